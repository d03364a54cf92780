"""Checks on the ledger: who wrote it, that it is whole, and what devices confirmed.

Each returns its detail or raises CheckFailedError with what it found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise

import fedattn
from fedattn.audit.evidence import Evidence, is_pinned, require
from fedattn.entries import Abort, Close, Intent, Open, Release, Resume, Skip
from fedattn.ledger import GENESIS
from fedattn.mechanism import threshold_of
from fedattn.privacy import rows
from fedattn.privacy.binomial import tail
from fedattn.privacy.events import round_event
from fedattn.signing import fingerprint

UNLIKELY = 2.0**-40
CERTIFICATES_FILE = "certificates.pem"  # of the members, in the run directory


def server_key(e: Evidence) -> str:
    """One key signed report and ledger; it is the pinned one."""
    keys = {"report.sig": e.signer[0], "the ledger": e.server_key}
    keys["report.json"] = bytes.fromhex(e.report.ledger.server_public_key)
    require(len(set(keys.values())) == 1, "report.sig, report.json and ledger name different keys")
    found = fingerprint(e.server_key)
    if e.server_pin is None:
        return f"{found}, not pinned: anyone could have made this run and signed it"
    require(found == e.server_pin, f"signed by {found}, pinned is {e.server_pin}")
    return "is the pinned key"


def ledger_signatures(e: Evidence) -> str:
    """The server's key signed every line's stored bytes."""
    bad = [n for n, x in enumerate(e.entries, 1) if not x.is_signed_by(e.server_key)]
    require(not bad, f"line(s) {_list(bad)} not signed by the server key that `open` names")
    return f"{len(e.entries)} lines"


def ledger_chain(e: Evidence) -> str:
    """Each line names the hash of the one before, and numbers are consecutive from 0."""
    previous = GENESIS
    for seq, entry in enumerate(e.entries):
        require(entry.seq == seq, f"line {seq + 1} has seq {entry.seq}, expected {seq}")
        require(entry.prev == previous, f"line {seq + 1} does not continue the line before it")
        previous = entry.hash
    return f"head {previous}"


def grammar(e: Evidence) -> str:
    """open, then skips and intents, rounds rising, each intent with one outcome, close.

    The outcome of an intent is a release, an abort, or a resume that names it: then the run was
    cut off in that round, which stays spent and has no other outcome. A round is skipped only where
    clients are sampled, or after all have answered all they may.
    """
    e.opened, e.closed  # noqa: B018 (raise unless they frame the ledger)
    pending: tuple[str, int] | None = None
    last_round = cut_off = 0
    for number, entry in enumerate(e.entries[1:-1], start=2):
        body = entry.body
        require(not isinstance(body, Open | Close), f"line {number}: `{entry.kind}` inside")
        if isinstance(body, Intent | Skip):
            require(
                # a number that is left out is a round that devices may have answered
                body.round == last_round + 1,
                f"line {number}: round {body.round} after {last_round}",
            )
            require(pending is None, f"line {number}: the intent before it has no outcome")
            last_round = body.round
            pending = None if isinstance(body, Skip) else (entry.hash, body.round)
        elif isinstance(body, Resume):
            require(
                body.open_intent == (None if pending is None else pending[0]),
                f"line {number}: the resume names another open intent than the ledger has",
            )
            cut_off += pending is not None
            pending = None
        elif isinstance(body, Release | Abort):
            require(
                (body.intent, body.round) == pending,
                f"line {number}: {entry.kind} of round {body.round} does not follow its intent",
            )
            pending = None
    require(pending is None, "`close` follows an intent without an outcome")
    require(last_round <= e.config.train.rounds, f"round {last_round} is above the config's")
    skips = e.count(Skip)
    require(
        skips == 0
        or e.config.privacy.client_rate < 1
        or len(e.intents) >= rows.participations(e.config),
        f"{skips} rounds skipped, though every client is asked in each round",
    )
    closed = (e.closed.released, e.closed.aborted, e.closed.skipped)
    require(closed == (e.count(Release), e.count(Abort), skips), "`close` counts other rounds")
    return (
        f"{len(e.intents)} intents: {closed[0]} released, {closed[1]} aborted, {cut_off} cut off; "
        f"{skips} rounds skipped; resumed {e.count(Resume)} times"
    )


def events(e: Evidence) -> str:
    """Each intent states the mechanism that the config demands."""
    wanted = round_event(e.config, e.opened.dimension)
    for _, intent in e.intents:
        require(
            intent.priced == wanted,
            f"round {intent.round}: {intent.priced}, the config says {wanted}",
        )
    return f"{wanted} in {len(e.intents)} rounds"


def cohorts(e: Evidence) -> str:
    """Each round asked distinct devices of the run's roster, enough, under the config's quorum."""
    roster, config = e.opened.roster, e.config
    require(len(set(roster)) == len(roster), "a device is listed twice in the roster")
    require(
        config.secagg.threshold <= len(roster) <= config.data.clients,
        f"a roster of {len(roster)} devices",
    )
    asked = _asked(e)
    for entry, intent in e.intents:
        where, size = f"round {intent.round}", len(intent.roster)
        require(intent.cohort == size, f"{where}: cohort {intent.cohort}, {size} in its roster")
        require(len(set(intent.roster)) == size, f"{where}: a device is listed twice in its roster")
        remaining = asked[entry.hash]
        require(
            _is_part(intent.roster, remaining),
            f"{where}: its roster is not a part of the run's, in that order",
        )
        require(
            config.privacy.client_rate < 1 or size == len(remaining),
            f"{where}: {size} of {len(remaining)} devices, though the config asks every one",
        )
        quorum = threshold_of(config, size)
        require(intent.threshold == quorum, f"{where}: threshold {intent.threshold}, not {quorum}")
        require(quorum <= size, f"{where}: cohort {size} is below its threshold {quorum}")
    sizes = sorted(intent.cohort for _, intent in e.intents)
    return f"{sizes[0]} to {sizes[-1]} of {len(roster)} devices a round" if sizes else "no round"


def _asked(e: Evidence) -> dict[str, dict[str, int]]:
    """Whom the run goes on with at each intent, by its hash: `open`'s devices, or a resume's.

    Each with its place among them.
    """
    opened = remaining = _places(e.opened.roster)
    found = {}
    for entry in e.entries:
        if isinstance(entry.body, Resume):
            require(
                _is_part(entry.body.roster, opened),
                "a resume goes on with others than the run's devices",
            )
            remaining = _places(entry.body.roster)
            # whom a sampled round may draw is what its rate is accounted for
            require(
                e.config.privacy.client_rate == 1 or len(remaining) in (0, len(opened)),
                "a resume leaves out devices, though clients are sampled",
            )
        elif isinstance(entry.body, Intent):
            found[entry.hash] = remaining
    return found


def _places(roster: Sequence[str]) -> dict[str, int]:
    return {key: place for place, key in enumerate(roster)}


def _is_part(roster: Sequence[str], whole: Mapping[str, int]) -> bool:
    """Whether all of `roster` is in `whole`, once and in that order; in the time of `roster`."""
    places = [-1, *(whole.get(key, -1) for key in roster)]
    return all(place < after for place, after in pairwise(places))


def client_sampling(e: Evidence) -> str:
    """Cohorts are no larger, and no device is drawn more often, than the stated rate explains.

    Independent draws at the stated rate fail this with probability 2^-39 at most. That draws were
    independent and secret no audit can see.
    """
    rate, devices = e.config.privacy.client_rate, len(e.opened.roster)
    if rate == 1:
        return "every client is asked in each round"
    asked = Counter(key for _, intent in e.intents for key in intent.roster)
    rounds, drawn = len(e.intents) + e.count(Skip), asked.total()
    busiest = max(asked.values(), default=0)
    # of skipped rounds nothing is counted, so each count is at most that of independent draws
    chance = tail(rounds * devices, rate, drawn - 1)
    require(chance > UNLIKELY, f"{drawn} devices asked in {rounds} rounds: not rate {rate:g}")
    chance = devices * tail(rounds, rate, busiest - 1)
    require(chance > UNLIKELY, f"a device asked in {busiest} of {rounds} rounds: not rate {rate:g}")
    return f"{drawn} draws in {rounds} rounds, at most {busiest} of one device: rate {rate:g} fits"


def participations(e: Evidence) -> str:
    """No device was asked in more rounds than the accounting of rows counts for one."""
    most = rows.participations(e.config)
    asked = Counter(key for _, intent in e.intents for key in intent.roster)
    busiest = max(asked.values(), default=0)
    require(busiest <= most, f"a device was asked in {busiest} rounds, at most {most} are counted")
    return f"at most {busiest} rounds of one device, of {most} allowed"


def instructions(e: Evidence) -> str:
    """The instruction that devices signed is the one this ledger's config and event make."""
    from fedattn.instruction import Instruction

    # Skipping this check for a run of another version would let a server state one.
    version = e.opened.fedattn_version
    other_version = (
        "" if version == fedattn.__version__ else f"; if only by its form, audit with {version}"
    )
    for entry, intent in e.intents:
        expected = Instruction(
            config=e.config,
            round=intent.round,
            start_sha256=e.opened.start_sha256,
            model_sha256=intent.model_before,
            dimension=e.opened.dimension,
            run=e.entries[0].hash,
            ledger_head=entry.prev,
            roster=tuple(bytes.fromhex(key) for key in intent.roster),
            event=intent.priced,
        )
        require(
            expected.sha256.hex() == intent.instruction_sha256,
            f"round {intent.round}: devices were given another instruction than the ledger shows"
            + other_version,
        )
    return f"{len(e.intents)} recomputed"


def survivors(e: Evidence) -> str:
    """No release had fewer survivors than the threshold, or more than the cohort."""
    for _, intent, release in e.releases:
        where, count = f"round {release.round}", release.survivors
        require(count >= intent.threshold, f"{where}: {count} survivors, need {intent.threshold}")
        require(count <= intent.cohort, f"{where}: {count} survivors of {intent.cohort}")
        distinct = len(set(release.survivor_commitments))
        require(distinct == count, f"{where}: {distinct} commitments for {count} survivors")
    return f"{len(e.releases)} releases"


def certificates(e: Evidence) -> str:
    """The pinned authority had certified every device of the roster when the run began."""
    held_by = f"held by {e.opened.authority_held_by}, as the server declares"
    if e.authority is None:
        return f"no authority pinned: the server may have invented devices (it is {held_by})"
    from fedattn.certificates import load_roster, split_pem

    path = e.run_dir / CERTIFICATES_FILE
    require(path.is_file(), f"{CERTIFICATES_FILE} is missing")
    began = datetime.fromisoformat(e.entries[0].at)
    certified = set(load_roster(split_pem(path.read_bytes()), e.authority, at=began))
    unknown = [key for key in e.opened.roster if bytes.fromhex(key) not in certified]
    require(not unknown, f"{len(unknown)} of {len(e.opened.roster)} devices have no certificate")
    return f"{len(e.opened.roster)} devices certified by the pinned authority ({held_by})"


def cosignatures(e: Evidence) -> str:
    """At least a threshold of a round's own devices confirmed each release and its intent."""
    from fedattn.secagg import verify_confirmation

    source = "the rosters in the ledger itself, which the server wrote"
    if e.roster_pins is not None:
        known = [k for k in e.opened.roster if is_pinned(bytes.fromhex(k), e.roster_pins)]
        source = f"the pinned roster, which knows {len(known)} of {len(e.opened.roster)} devices"
    for entry, intent, release in e.releases:
        signed = (
            bytes.fromhex(intent.instruction_sha256),
            bytes.fromhex(release.survivors_sha256),
            bytes.fromhex(entry.hash),
        )
        # Signatures come in roster order. So each key is tried once, against one signature: to try
        # all of them against each other would take a hostile ledger's auditor hours.
        signatures = map(bytes.fromhex, release.cosignatures)
        signature, confirmed = next(signatures, None), 0
        for key in map(bytes.fromhex, intent.roster):
            if signature is not None and verify_confirmation(key, *signed, signature):
                confirmed += e.roster_pins is None or is_pinned(key, e.roster_pins)
                signature = next(signatures, None)
        quorum = threshold_of(e.config, len(intent.roster))
        require(
            confirmed >= quorum,
            f"round {release.round}: {confirmed} valid co-signatures under {source}, need {quorum}",
        )
    return f"{len(e.releases)} releases confirmed under {source}"


def _list(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown + (", ..." if len(numbers) > 5 else "")
