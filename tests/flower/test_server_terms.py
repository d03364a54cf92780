"""What a run's own config tells the ServerApp."""

from __future__ import annotations

import pytest

from fedattn.errors import RunError
from fedattn.flower.server_app import _terms

GIVEN = {"authority-held-by": "simulation", "created-by": "simulation"}


def test_an_empty_list_of_revoked_certificates_is_not_taken_for_nobody(tmp_path):
    held = tmp_path / "revoked.crl"
    held.write_bytes(b"")  # cut short by a full disk
    with pytest.raises(RunError, match=r"revoked\.crl: is empty; bring the authority's list"):
        _terms({**GIVEN, "revoked": str(held)})


def test_a_list_that_is_named_must_be_there(tmp_path):
    with pytest.raises(RunError):
        _terms({**GIVEN, "revoked": str(tmp_path / "none.crl")})


def test_a_list_that_is_there_is_passed_on_as_it_is_and_none_is_none(tmp_path):
    held = tmp_path / "revoked.crl"
    held.write_bytes(b"a list")
    assert _terms({**GIVEN, "revoked": str(held)}).revoked == b"a list"
    assert _terms(GIVEN).revoked == b""
