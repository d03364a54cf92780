"""What a round may be: every field's bounds, and its bytes."""

from dataclasses import replace

import pytest

from fedattn.errors import ProtocolError
from fedattn.secagg import RoundSpec
from tests.secagg.harness import make_spec

SPARSE = make_spec(14, 9, 2, degree=6, share_threshold=4)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"instruction_hash": b"short"}, "spec.instruction_hash"),
        ({"round": -1}, "spec.round"),
        ({"roster": ()}, "spec.roster"),
        ({"roster": (b"k" * 32, b"k" * 32, b"l" * 32)}, "spec.roster"),
        ({"roster": (b"k" * 31, b"l" * 32, b"m" * 32)}, "spec.roster"),
        ({"threshold": 0}, "spec.threshold"),
        ({"threshold": 5}, "spec.threshold"),
        ({"threshold": 2}, "spec.threshold"),
        ({"max_colluding": 2}, "spec.threshold"),
        ({"max_colluding": -1}, "spec.max_colluding"),
        ({"dimension": 0}, "spec.dimension"),
        ({"modulus_bits": 7}, "spec.modulus_bits"),
        ({"modulus_bits": 33}, "spec.modulus_bits"),
    ],
)
def test_an_impossible_round_is_refused_by_field(change, check):
    spec = make_spec(4, 3)
    with pytest.raises(ProtocolError) as caught:
        replace(spec, **change)
    assert caught.value.check == check
    assert RoundSpec.from_bytes(spec.to_bytes()) == spec


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"degree": 14}, "spec.degree"),
        ({"degree": -1}, "spec.degree"),
        ({"share_threshold": 0}, "spec.share_threshold"),
        ({"share_threshold": 7}, "spec.share_threshold"),
        ({"degree": 0}, "spec.share_threshold"),
    ],
)
def test_an_impossible_graph_is_refused_by_field(change, check):
    with pytest.raises(ProtocolError) as caught:
        replace(SPARSE, **change)
    assert caught.value.check == check
    assert RoundSpec.from_bytes(SPARSE.to_bytes()) == SPARSE
