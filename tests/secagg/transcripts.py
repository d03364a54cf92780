"""Rounds as JSON documents: every input and every message, so that others can repeat them.

A transcript holds the specification (`RoundSpec.to_bytes`), the members' Ed25519 secrets, the
AES-256-CTR keys of the streams that clients draw from (at advertise: mask secret, transport secret,
self seed, then draws; at share: coefficients, then nonces), their vectors, who was lost at which
stage, every message in the order of stages, and the sum.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedattn.randomness import Randomness
from fedattn.secagg import RoundSpec
from fedattn.secagg.wire import EVERYONE, Stage
from fedattn.signing import SigningKey
from tests.secagg.harness import STATEMENT, Round, identities, make_spec

FORMAT = "fedattn-secagg-transcript/1"
FOLDER = Path(__file__).parent.parent / "vectors" / "secagg"
RELAYED = {
    Stage.SHARE: "key_lists",
    Stage.UPLOAD: "mailboxes",
    Stage.UNMASK: "confirmation_lists",
}
_SPARSE = {"degree": 6, "share_threshold": 3}
ROUNDS: dict[str, tuple[RoundSpec, dict[Stage, set[int]]]] = {
    **{
        f"complete-lost-at-{stage.name.lower()}": (make_spec(4, 3, 1), {stage: {2}})
        for stage in list(Stage)[:5]
    },
    "complete-16-bits": (make_spec(4, 3, 1, bits=16), {}),
    "complete-13-bits": (make_spec(4, 3, 1, bits=13), {Stage.UPLOAD: {3}}),
    "sparse": (
        make_spec(24, 14, 2, **_SPARSE),
        {
            Stage.ADVERTISE: {20},
            Stage.SHARE: {5},
            Stage.UPLOAD: {7, 8},
            Stage.CONFIRM: {9},
            Stage.UNMASK: {11},
        },
    ),
}


class Recorded(Round):
    """A round whose randomness and identities come from a transcript."""

    def __init__(self, transcript: dict):
        self.streams = transcript["streams"]
        super().__init__(
            RoundSpec.from_bytes(bytes.fromhex(transcript["spec"])),
            {i: np.array(v, np.uint32) for i, v in enumerate(transcript["vectors"], 1)},
            {Stage[name]: set(members) for name, members in transcript["lost"].items()},
        )
        secrets = map(bytes.fromhex, transcript["identities"])
        self.keys = {i: SigningKey(secret) for i, secret in enumerate(secrets, 1)}

    def _rng(self, index: int, stage: str) -> Randomness:
        return Randomness(bytes.fromhex(self.streams[index - 1][stage]), is_seeded=True)


def served(r: Round, stage: Stage) -> dict[int, bytes]:
    """The server's messages before clients send those of `stage`, by recipient."""
    if stage == Stage.CONFIRM:
        return {EVERYONE: r.survivors}
    by_member = getattr(r, RELAYED[stage])
    one = not r.spec.degree and stage != Stage.UPLOAD
    return {EVERYONE: next(iter(by_member.values()))} if one else by_member


def messages_of(r: Round) -> list[dict[str, object]]:
    """Every message of a finished round, stage by stage, the server's first."""
    found = []
    for stage in list(Stage)[:5]:
        if stage != Stage.ADVERTISE:
            for to, message in sorted(served(r, stage).items()):
                found.append({"stage": stage.name, "to": to, "hex": message.hex()})
        for (at, index), message in sorted(r.sent.items()):
            if at == stage:
                found.append({"stage": stage.name, "from": index, "hex": message.hex()})
    return found


def record(name: str) -> dict[str, object]:
    """The transcript of one of `ROUNDS`."""
    spec, lost = ROUNDS[name]
    r = Round(spec, gone=lost)
    total = r.run()
    secrets = [Randomness.seeded(0, "identity", str(i)).bytes(32) for i in range(len(spec.roster))]
    assert [SigningKey(secret).public_bytes for secret in secrets] == [
        key.public_bytes for key in identities(len(secrets))
    ]
    return {
        "format": FORMAT,
        "spec": spec.to_bytes().hex(),
        "statement": STATEMENT.hex(),
        "identities": [secret.hex() for secret in secrets],
        "streams": [
            {stage: r._rng(i, stage)._key.hex() for stage in ("advertise", "share")}
            for i in spec.members
        ],
        "vectors": [r.vectors[i].tolist() for i in spec.members],
        "lost": {stage.name: sorted(members) for stage, members in lost.items()},
        "messages": messages_of(r),
        "survivors": list(r.server.survivor_indices),
        "sum": total.tolist(),
    }


def load(name: str) -> dict:
    """A recorded document."""
    return json.loads((FOLDER / f"{name}.json").read_text())
