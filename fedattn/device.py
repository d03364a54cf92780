"""One client: its identity, its policy, its ledger of spent privacy, its data.

The device decides. It compares an instruction with its policy and with what its data has spent
over their whole life, and declines before it reads private data. The spend is on disk before
anything computed from data leaves. Nothing here needs torch until a round trains.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedattn.certificates import (
    later_revocations,
    load_roster,
    read_member,
    read_revocations,
    split_pem,
    verify_member,
)
from fedattn.config import DataConfig, ModelConfig
from fedattn.counters import Counter, CounterMemory
from fedattn.device_ledger import DeviceLedger, LedgerState
from fedattn.durable import write_durably
from fedattn.errors import ConfigError, FedattnError, ProtocolError, RefusalError
from fedattn.instruction import Instruction
from fedattn.own_keys import own_key
from fedattn.policy import Policy, rules
from fedattn.randomness import Randomness
from fedattn.signing import SigningKey
from fedattn.start import start_dimension, start_facts, vector_sha256

if TYPE_CHECKING:
    from fedattn.config import Config
    from fedattn.train import LocalResult


class Device:
    """The device in `folder`, which follows `policy`; client `index` (0..clients-1) of it.

    `index` says which conversations are its own where a simulation shares one source, and which
    stream of randomness in a seeded run. Of data of its own the ledger lies beside the data file:
    whatever federation the device is in, they are spent once.
    """

    def __init__(self, folder: Path, policy: Policy, index: int = 0) -> None:
        self.folder, self.policy, self.index = folder, policy, index

    @property
    def identity(self) -> SigningKey:
        """The Ed25519 key of secure aggregation, made on this device when first needed."""
        return self._own_key("identity")

    @property
    def ledger_key(self) -> SigningKey:
        """The Ed25519 key that signs the ledger's lines, made on this device when first needed."""
        return self._own_key("ledger-key")

    def _own_key(self, name: str) -> SigningKey:
        return own_key(self.folder / f"{name}.pem", lambda: self.randomness(name))

    @property
    def certificate(self) -> bytes:
        """The authority's certificate of this device (PEM)."""
        path = self.folder / "certificate.pem"
        if not path.exists():
            raise RefusalError("certificate", "this device has none; join a federation")
        return path.read_bytes()

    @property
    def ledger(self) -> DeviceLedger:
        """What this device's data has answered and spent."""
        if self.policy.data is None:
            return DeviceLedger(self.folder / "spend.jsonl", lambda: self.ledger_key)
        data = Path(self.policy.data.path).resolve()
        path = data.with_name(f"{data.name}.ledger.jsonl")
        return DeviceLedger(path, lambda: self.ledger_key, data.name)

    @property
    def data(self) -> tuple[DataConfig, int]:
        """The source of this device's conversations, and which client of it this device is."""
        if self.policy.data is not None:
            return self.policy.data.config, 0
        assert self.policy.agreed_config is not None
        return self.policy.agreed_config.data, self.index

    @property
    def peers(self) -> CounterMemory:
        """What this device remembers of the other members' ledgers."""
        return CounterMemory(self.folder / "peers.json")

    def require_ledger_of(self, remembered: bytes) -> None:
        """RefusalError("ledger_restored") if this device once signed for a longer ledger.

        `remembered`: the newest counter of this device that others know, empty if none.
        ProtocolError("counter.*") for one that this device never signed.
        """
        if not remembered:
            return
        counter = Counter.parse(remembered)
        if counter.key != self.identity.public_bytes or not counter.is_genuine:
            raise ProtocolError("counter.signature", "is not this device's own word")
        if not self.ledger.read().contains(LedgerState(counter.count, counter.head.hex())):
            raise RefusalError(
                "ledger_restored",
                "this ledger lacks lines that the device signed for: an old copy lies there. Bring "
                "the newer one back; if it is lost, have this identity revoked and do not train on "
                "these data again",
            )

    def counter(self, instruction: Instruction) -> Counter:
        """This device's signed word on its ledger, which has accepted `instruction`."""
        state = self.ledger.read().state
        head = bytes.fromhex(state.head)
        return Counter.sign(self.identity, instruction.sha256, state.count, head)

    def randomness(self, *labels: str) -> Randomness:
        """OS entropy; in a seeded run a stream of this device and these labels."""
        if self.policy.seed is None:
            return Randomness.from_os()
        return Randomness.seeded(self.policy.seed, "device", str(self.index), *labels)

    def join(self, certificate: bytes, authority: bytes) -> None:
        """Pin the federation's authority and keep this device's certificate (both PEM).

        ProtocolError("certificate.*") unless the authority certified this device's own key.
        """
        certified = verify_member(certificate, authority, at=datetime.now(UTC))
        if certified != self.identity.public_bytes:
            raise RefusalError("certificate", "is for another key than this device's")
        (self.folder / "authority.pem").write_bytes(authority)
        (self.folder / "certificate.pem").write_bytes(certificate)

    def meet(self, certificates: bytes, revoked: bytes = b"") -> None:
        """Remember the other members' certificates (PEM, one after another), verified.

        `revoked`: the authority's list of certificates that it took back (CRL, PEM), if the server
        has one; it replaces the list that the device holds. ProtocolError("certificate.*") if the
        pinned authority did not issue one of them, ("certificate.revocations.*") for a list that
        it did not issue, that ended, or that is older than the one held.
        """
        self._certified(certificates)
        if revoked:
            now, held = datetime.now(UTC), self._held_revocations()
            later_revocations(held, revoked, self._authority(), at=now)
            if revoked != held:
                self._keep("revoked.crl", revoked)
        self._keep("members.pem", certificates)

    def _keep(self, name: str, stored: bytes) -> None:
        try:
            write_durably(self.folder / name, stored)
        except FedattnError:
            raise RefusalError("folder", "cannot be written on this device") from None

    def _authority(self) -> bytes:
        pinned = self.folder / "authority.pem"
        if not pinned.exists():
            raise RefusalError("authority", "none is pinned on this device; join a federation")
        return pinned.read_bytes()

    def _held_revocations(self) -> bytes:
        path = self.folder / "revoked.crl"
        held = path.read_bytes() if path.exists() else None
        if held == b"":  # cut short: who was revoked is not known, which is not nobody
            raise RefusalError("revoked", "revoked.crl is empty; bring the authority's list")
        return held or b""

    def _certified(self, certificates: bytes) -> dict[bytes, int]:
        """Serial by public key of verified members."""
        return _roster(certificates, self._authority(), datetime.now(UTC).replace(microsecond=0))

    def accept(self, instruction: Instruction) -> int:
        """This device's place in the roster (1..n), or RefusalError naming the violated rule.

        Once it returns, the ledger says on disk that the instruction was answered.
        """
        config = instruction.config
        rules.check(self.policy, instruction)
        rules.check_round(instruction, _dimension(config))
        key = self.identity.public_bytes
        self._check_roster(instruction, key)
        rules.check_cohort(instruction)
        if instruction.start_sha256 != self._start_sha256(config):
            raise RefusalError("start_model", "is not the one installed here")
        rules.check_mechanism(instruction)
        rules.check_cleaning(self.data[0])
        # Priced before others must wait, and remembered: below it takes no time.
        rules.check_spend(self.policy, instruction, self.ledger.read().spent)
        with self.ledger.locked() as ledger:
            rules.check_replay(instruction, ledger.lines)
            rules.check_spend(self.policy, instruction, ledger.lines.spent)
            # A second advertisement under one hash would let the server show peers different keys.
            ledger.append("accepted", rules.answer_to(instruction))
        return instruction.roster.index(key) + 1

    def _check_roster(self, instruction: Instruction, key: bytes) -> None:
        if instruction.roster.count(key) != 1:
            raise RefusalError("roster", "must list this device exactly once")
        members = self.folder / "members.pem"
        certified = self._certified(members.read_bytes()) if members.exists() else {}
        if not set(instruction.roster) <= set(certified):
            raise RefusalError("certified", "the roster lists a key without a certificate")
        held = self._held_revocations()
        if held:
            revoked = read_revocations(held, self._authority(), at=datetime.now(UTC)).serials
            if any(certified[member] in revoked for member in instruction.roster):
                raise RefusalError("revoked", "the roster lists a key that the authority took back")

    def train(self, instruction: Instruction, vector: npt.ArrayLike) -> LocalResult:
        """Record the spend, then train on this device's conversations from `vector` (d,).

        RefusalError, before data is read, for a GPU or a package that is not there, for other
        weights than the instruction names, for one that was not accepted or was trained before, and
        for what has been spent since.
        """
        from fedattn import contribution
        from fedattn.placement import usable_device

        placed = self._placed(instruction.config)
        usable_device(placed.train.device)
        rules.check_cleaning(self.data[0])
        weights = np.asarray(vector, np.float32)
        config = instruction.config
        _, start = contribution.installed_start(config.model, config.seed)
        if vector_sha256(start, weights) != instruction.model_sha256:
            raise RefusalError("model", "is not the one that the instruction names")
        with self.ledger.locked() as ledger:
            # (accept checked all this, but another round may have been accepted or trained since)
            name = instruction.sha256.hex()
            accepted = {answer.instruction for answer in ledger.lines.accepted}
            spent = {answer.instruction for answer in ledger.lines.spent}
            if name not in accepted or name in spent:
                raise RefusalError("accepted", "was not accepted, or trained before")
            rules.check_spend(self.policy, instruction, ledger.lines.spent)
            ledger.append("spent", rules.answer_to(instruction))
        randomness = self.randomness("train", str(instruction.round))
        return contribution.contribute(placed, *self.data, weights, randomness)

    def _placed(self, config: Config) -> Config:
        """`config` as this device computes it: where, with how many threads, in which memory."""
        return config if self.policy.limits is None else config.placed(self.policy.placement)

    def _start_sha256(self, config: Config) -> str:
        """Hash of the installed start model."""
        if config.model.start != "random":
            return start_facts(config.model).sha256
        return _random_start(config.model, config.seed, self.folder / "random-starts.json")


@lru_cache(maxsize=16)
def _roster(certificates: bytes, authority: bytes, second: datetime) -> dict[bytes, int]:
    """A bundle's verified members; remembered for a second: in a simulation all ask at once."""
    pems = split_pem(certificates)
    load_roster(pems, authority, at=second)
    members = [read_member(pem, authority, at=second) for pem in pems]
    return {each.public_key: each.serial for each in members if each.serial is not None}


def _dimension(config: Config) -> int:
    """d of the installed start model, or RefusalError if it has not what the config trains."""
    try:
        return start_dimension(config.model)
    except ConfigError:
        raise RefusalError("dimension", "trains what the model installed here has not") from None


_version = lru_cache(version)  # (reads the package's metadata)
_random_starts: dict[str, str] = {}


def _random_start(config: ModelConfig, seed: int | None, memory: Path) -> str:
    """Hash of a random start model, remembered: only torch can make it, and torch is slow to start.

    A wrong memory makes this device decline, no more: it trains from what torch makes.
    """
    drawn = f"{_version('torch')} {seed} {config.model_dump_json()}"
    name = hashlib.sha256(drawn.encode()).hexdigest()
    if name in _random_starts:
        return _random_starts[name]
    stored: dict[str, str] = {}
    with suppress(OSError, ValueError):
        stored = json.loads(memory.read_text())
    if name not in stored:
        from fedattn.contribution import installed_start

        stored[name] = installed_start(config, seed)[1]
        with suppress(FedattnError):
            write_durably(memory, json.dumps(stored).encode())
    return _random_starts.setdefault(name, stored[name])
