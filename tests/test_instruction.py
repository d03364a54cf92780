"""One document, one hash: an instruction is read only in its canonical form."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from fedattn.encoding import PlainCodec, SumCodec
from fedattn.errors import ProtocolError
from fedattn.instruction import FORMAT, Instruction
from fedattn.privacy.events import PoissonGaussian, round_event
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey

KEYS = tuple(SigningKey.generate(Randomness.seeded(i)).public_bytes for i in range(3))


@pytest.fixture
def instruction(make_config):
    config = make_config(faults=[{"round": 1, "clients": 1}])
    return Instruction(
        config=config,
        run="00" * 32,
        round=3,
        start_sha256="aa" * 32,
        model_sha256="bb" * 32,
        dimension=10,
        ledger_head="cc" * 32,
        roster=KEYS,
        event=round_event(config, 10),
    )


def test_a_document_comes_back_as_its_instruction(instruction):
    assert Instruction.parse(instruction.document) == instruction
    assert instruction.sha256 == hashlib.sha256(instruction.document).digest()
    assert json.loads(instruction.document)["format"] == FORMAT


def test_every_field_is_in_the_hash(instruction, make_config):
    others = [
        replace(instruction, config=make_config(train__learning_rate=0.5)),
        replace(instruction, round=4),
        replace(instruction, run="ab" * 32),
        replace(instruction, start_sha256="ab" * 32),
        replace(instruction, model_sha256="ab" * 32),
        replace(instruction, dimension=11),
        replace(instruction, ledger_head="ab" * 32),
        replace(instruction, roster=KEYS[::-1]),
        replace(instruction, event=PoissonGaussian(0.5, 1.0, 9)),
    ]
    assert len({i.sha256 for i in [instruction, *others]}) == 1 + len(others)
    assert len(others) == len(instruction.__dataclass_fields__)


def test_the_round_of_secure_aggregation_is_bound_to_it(instruction):
    spec = instruction.spec
    assert spec.instruction_hash == instruction.sha256
    assert spec.roster == KEYS
    assert (spec.round, spec.threshold, spec.max_colluding, spec.dimension) == (3, 2, 0, 10)
    assert isinstance(instruction.codec, PlainCodec)
    assert instruction.codec.codec.clip_range == instruction.config.secagg.clip_range
    assert instruction.codec.codec.grid_scale == instruction.config.plain_grid_scale


def test_a_noised_sum_is_padded_and_its_quorum_follows_the_cohort(make_config):
    config = make_config(
        data__clients=30,
        privacy__unit="client",
        privacy__noise="distributed",
        privacy__client_rate=0.5,
        secagg__threshold=8,
        secagg__max_colluding=2,
        secagg__dropout_share=0.2,
    )
    roster = tuple(bytes([i]) * 32 for i in range(1, 16))
    made = Instruction(
        config,
        "dd" * 32,
        1,
        "aa" * 32,
        "bb" * 32,
        1000,
        "cc" * 32,
        roster,
        round_event(config, 1000),
    )
    codec = made.codec
    assert isinstance(codec, SumCodec)
    assert (codec.cohort, made.spec.threshold, made.spec.dimension) == (15, 12, 1024)
    assert made.spec.modulus_bits == codec.modulus_bits == codec.mechanism.modulus_bits(15)
    other = replace(made, round=2).codec
    assert isinstance(other, SumCodec)
    assert codec.seed != other.seed  # each round has its own signs and dithers


def edited(document, **changes):
    raw = json.loads(document)
    raw.update(changes)
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: b" " + d,
        lambda d: d + b"\n",
        lambda d: json.dumps(json.loads(d)).encode(),
        lambda d: json.dumps(
            json.loads(d), separators=(",", ":"), sort_keys=True, indent=1
        ).encode(),
        lambda d: d[:1] + b'"round":3,' + d[1:],
        lambda d: edited(d, extra=1),
        lambda d: edited(d, round=3.0),
        lambda d: edited(d, round="3"),
        lambda d: edited(d, dimension=True),
        lambda d: edited(d, roster=[key.hex().upper() for key in KEYS]),
        lambda d: edited(d, start_sha256=5),
        lambda d: d.replace(b'"sampling_rate":0.5', b'"sampling_rate":0.50'),
        lambda d: d.replace(b'"sampling_rate":0.5', b'"sampling_rate":5e-1'),
        lambda d: d.replace(b'"name"', b'"n\\u0061me"'),
    ],
)
def test_another_spelling_is_refused(instruction, change):
    document = change(instruction.document)
    assert document != instruction.document
    with pytest.raises(ProtocolError, match=r"^instruction\.canonical"):
        Instruction.parse(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: b"",
        lambda d: b"[]",
        lambda d: b"\xff",
        lambda d: b"{}",
        lambda d: d[:-1],
        lambda d: d.replace(FORMAT.encode(), b"fedattn-instruction/5"),
        lambda d: edited(d, config={}),
        lambda d: edited(d, config=None),
        lambda d: edited(d, roster=["xyz"]),
        lambda d: edited(d, roster=None),
        lambda d: edited(d, event={"kind": "less_noise"}),
        lambda d: edited(d, round="many"),
        lambda d: edited(d, round=float("nan")),
        lambda d: edited(d, dimension=None),
        lambda d: b"[" * 100_000,
    ],
)
def test_what_is_no_instruction_is_refused_without_its_text(instruction, change):
    with pytest.raises(ProtocolError) as caught:
        Instruction.parse(change(instruction.document))
    assert str(caught.value) == f"instruction.format: not a {FORMAT} document"
    assert caught.value.__cause__ is None
    assert caught.value.check == "instruction.format"
