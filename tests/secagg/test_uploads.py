"""Uploads that are added where they arise give the sum, and the refusals, of those added here."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fedattn.errors import ProtocolError
from fedattn.secagg.wire import Stage
from tests.secagg.harness import Round, make_spec

SPECS = {
    "complete": {"n": 6, "t": 4, "c": 1},
    "16 bits": {"n": 6, "t": 4, "bits": 16},
    "13 bits": {"n": 6, "t": 4, "bits": 13},
    "sparse": {"n": 14, "t": 9, "c": 2, "degree": 6, "share_threshold": 4},
}


class Elsewhere(Round):
    """A round whose uploads are checked and added away from the server, as a worker would."""

    def upload(self):
        mailboxes = {i: self.server.mailbox(i) for i in self.server.sharers}
        uploads = pickle.loads(pickle.dumps(self.server.uploads))
        total = np.zeros(self.spec.dimension, np.uint32)
        take = self.server.uploaded

        def read(index, message):
            upload = uploads.read(index, message)
            np.add(total, upload.words.astype(np.uint32), out=total)
            self.server.summed(index, upload.notice)

        self.server.uploaded = read
        super().upload()
        self.server.uploaded = take
        assert self.mailboxes == mailboxes
        self.pending = total
        return self

    def confirm(self):
        self.server.add_uploads(self.pending)
        return super().confirm()


@pytest.mark.parametrize("name", SPECS)
def test_both_ways_give_one_sum_bit_for_bit(name):
    spec = make_spec(**SPECS[name])
    gone = {Stage.SHARE: {2}, Stage.UPLOAD: {3}}
    here, there = Round(spec, gone=gone), Elsewhere(spec, gone=gone)
    assert (here.run() == there.run()).all()
    assert here.server.survivor_indices == there.server.survivor_indices
    assert (here.server.total() == here.plain_sum(here.server.survivor_indices)).all()


def test_a_sum_that_never_came_or_does_not_fit_releases_nothing():
    r = Elsewhere(make_spec(5, 4)).until(Stage.CONFIRM)
    for call in (r.server.survivors, lambda: r.server.add_uploads(r.pending[:-1])):
        with pytest.raises(ProtocolError, match=r"^sum: "):
            call()
    with pytest.raises(ProtocolError, match=r"^sum: "):
        r.server.add_uploads(r.pending.astype(np.uint64))
    r.confirm()
    with pytest.raises(ProtocolError, match=r"^stage: "):  # nothing is added to a sum once closed
        r.server.add_uploads(r.pending)


def test_who_was_not_asked_or_came_twice_is_not_taken_note_of():
    r = Elsewhere(make_spec(5, 4), gone={Stage.SHARE: {5}}).until(Stage.CONFIRM)
    for index, check in ((5, "roster"), (1, "repeat"), (9, "roster")):
        with pytest.raises(ProtocolError, match=f"^{check}: "):
            r.server.summed(index, None)
    assert r.server.survivor_indices == (1, 2, 3, 4)


def test_a_notice_is_checked_where_the_words_are_added():
    sparse = Round(make_spec(**SPECS["sparse"]), gone={Stage.SHARE: {2}}).until(Stage.CONFIRM)
    complete = Round(make_spec(5, 4)).until(Stage.CONFIRM)
    drew = next(i for i, absent in sparse.server.uploads.absent.items() if absent == (2,))
    uploads, sent = sparse.server.uploads, sparse.sent[Stage.UPLOAD, drew]
    assert uploads.read(drew, sent).notice.absent == (2,)
    honest = uploads.read(drew, sent).notice
    for index, notice in (
        (drew, None),
        (drew, sparse.server._notices[1 if drew != 1 else 3]),
        (99, honest),
    ):
        with pytest.raises(ProtocolError, match=r"^notice: "):
            uploads.require_notice(index, notice)
    with pytest.raises(ProtocolError, match=r"^notice: "):
        complete.server.uploads.require_notice(1, honest)
