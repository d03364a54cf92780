"""Messages of an old round, of another instruction, of another stage, or in the wrong order."""

import numpy as np
import pytest

from fedattn.errors import ProtocolError, UpdateError
from fedattn.secagg import keys
from fedattn.secagg.prg import add_masks
from fedattn.secagg.wire import Role, Stage
from tests.attacks.adversary import (
    ANSWERING,
    adverts,
    honest,
    key_list,
    refuses,
    step,
    words_of,
)
from tests.secagg.harness import INSTRUCTION, Round, make_spec, sha


@pytest.fixture(scope="module")
def old():
    """The round before: the same members and, worst case, the same randomness."""
    r = Round(make_spec(5, 4, 1, instruction=sha("old round")), gone={Stage.UPLOAD: {5}})
    r.run()
    return r


@pytest.mark.parametrize("stage", ANSWERING, ids=lambda stage: stage.name.lower())
def test_an_old_rounds_message(finished, old, stage):
    replayed = honest(old, stage, 1)
    refuses("message.instruction", step, finished, stage, 1, replayed)
    # under the new round's name the members' signatures or packets inside are still old
    renamed = replayed[:7] + INSTRUCTION + replayed[39:]
    check = {
        Stage.SHARE: "message.instruction",
        Stage.UPLOAD: "mailbox.proven",
        Stage.UNMASK: "confirmations.signature",
    }
    if stage in check:  # the survivor list alone holds nothing secret or signed
        inner = "keys.own" if stage == Stage.SHARE else check[stage]
        refuses(inner, step, finished, stage, 1, renamed)


@pytest.mark.parametrize("stage", ANSWERING, ids=lambda stage: stage.name.lower())
@pytest.mark.parametrize("at", [*ANSWERING, Stage.DONE], ids=lambda stage: stage.name.lower())
def test_skipping_or_repeating_a_stage(finished, stage, at):
    state, message = finished.state(at, 1), honest(finished, stage, 1)
    if at == stage:
        step(finished, stage, 1, message, state=state)
    else:
        refuses("stage", step, finished, stage, 1, message, state=state)


@pytest.mark.parametrize("stage", ANSWERING, ids=lambda stage: stage.name.lower())
def test_another_stages_message(finished, stage):
    for other in ANSWERING:
        if other != stage:
            message = honest(finished, other, 1)
            refuses("message.stage", step, finished, stage, 1, message)


@pytest.mark.parametrize("stage", ANSWERING, ids=lambda stage: stage.name.lower())
def test_reflecting_a_clients_own_message_to_it(finished, stage):
    for i in (1, 2):
        reflected = finished.sent[stage, i]
        refuses("message.role", step, finished, stage, 1, reflected)


@pytest.mark.parametrize("stage", ANSWERING, ids=lambda stage: stage.name.lower())
def test_a_message_of_another_format(finished, stage):
    message = honest(finished, stage, 1)

    def changed(place, value):
        return message[:place] + bytes([value]) + message[place + 1 :]

    for bad in (
        b"",
        message[:38],
        changed(0, 2),  # a version that means something else
        changed(1, 9),  # a stage there is not
        changed(2, 7),  # a role there is not
        message[:-1],
        message + b"\0",
    ):
        refuses("decode", step, finished, stage, 1, bad)
    refuses("message.role", step, finished, stage, 1, changed(2, Role.CLIENT))
    refuses("message.index", step, finished, stage, 1, changed(6, 3))


@pytest.mark.parametrize("stage", ANSWERING, ids=lambda stage: stage.name.lower())
def test_making_a_client_sign_as_another(finished, stage):
    message, other = honest(finished, stage, 1), finished.keys[2]
    refuses("identity", step, finished, stage, 1, message, identity=other)


def test_asking_for_a_vector_of_another_length_or_type(finished):
    for vector in (np.zeros(4, np.uint32), np.zeros(6, np.uint32), np.zeros(5, np.int64)):
        with pytest.raises(UpdateError, match="must be uint32"):
            step(finished, Stage.UPLOAD, 1, finished.mailboxes[1], vector=vector)


# ---- another instruction for each client


def test_an_instruction_of_its_own_per_client_stops_everybody_before_shares_leave(finished):
    """Less noise for some: their keys do not pass with the others', however they are mixed."""
    weaker = Round(make_spec(5, 4, 1, instruction=sha("less noise"))).advertise()
    for split in (1, 2, 3, 4):
        mixed = [*adverts(finished)[:split], *adverts(weaker)[split:]]
        refuses("message.instruction", step, finished, Stage.SHARE, 1, key_list(finished, mixed))
        renamed = [m[:7] + INSTRUCTION + m[39:] for m in mixed]
        refuses("message.signature", step, finished, Stage.SHARE, 1, key_list(finished, renamed))
        if split < finished.spec.threshold:  # nor are those that follow ours enough
            alone = key_list(finished, mixed[:split])
            refuses("keys.threshold", step, finished, Stage.SHARE, 1, alone)


def test_under_two_instructions_masks_would_not_cancel():
    """Were all checks gone, the sum of two clients' vectors would still be noise."""
    strong, weak = (
        Round(make_spec(2, 2, d=4096, bits=16, instruction=sha(name))).until(Stage.CONFIRM)
        for name in ("agreed", "less noise")
    )
    residue = np.zeros(4096, np.uint16)
    for r, i in ((strong, 1), (weak, 2)):
        state = r.state(Stage.UPLOAD, i)
        residue += words_of(r, r.sent[Stage.UPLOAD, i], i) - r.vectors[i].astype(np.uint16)
        self_mask = np.zeros(4096, np.uint16)
        hash_ = r.spec.instruction_hash
        add_masks(self_mask, [(keys.self_mask_key(hash_, i, state.self_seed), -1)])
        residue += self_mask
    counts = np.bincount(residue >> 8, minlength=256)
    assert (residue == 0).sum() < 8
    assert ((counts - 16) ** 2 / 16).sum() < 255 + 6 * (2 * 255) ** 0.5


def test_a_step_that_fails_returns_nothing_and_leaves_the_state_as_it_was(finished):
    state = finished.state(Stage.UNMASK, 1)
    before = state.to_bytes()
    with pytest.raises(ProtocolError):
        step(finished, Stage.UNMASK, 1, finished.survivors)
    assert state.to_bytes() == before
