"""From revealed shares to the masks that the server must take off the sum.

All secrets first, then the masks, one at a time: memory is one secret a member. Bonawitz et al.
2017, Figure 4, the end of round 4.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from fedattn.errors import ProtocolError
from fedattn.secagg import keys
from fedattn.secagg.adverts import Adverts
from fedattn.secagg.messages import Advertisement
from fedattn.secagg.prg import Mask, pairwise_sign
from fedattn.secagg.recovery import Recovery
from fedattn.secagg.spec import RoundSpec

Shares = Mapping[int, Mapping[int, int]]  # owner -> by whom -> share


def recover_secrets(
    spec: RoundSpec,
    adverts: Adverts,
    sharers: Iterable[int],
    survivors: Collection[int],
    shares: Shares,
) -> dict[int, bytes]:
    """By sharer: the self seed of a survivor, the mask key of a dropout.

    Raises ProtocolError("recovery") naming the member whose secret no tried subset reproduces.
    """
    recovery = Recovery(spec.recovery_threshold)
    secrets = {}
    for owner in sharers:
        accepts = _seed_check if owner in survivors else _key_check
        secret = recovery.secret(shares.get(owner, {}), accepts(spec, owner, adverts[owner]))
        if secret is None:
            detail = f"member {owner}: no {spec.recovery_threshold} shares agree; nothing unmasked"
            raise ProtocolError("recovery", detail)
        secrets[owner] = secret
    return secrets


def masks_to_add(
    spec: RoundSpec,
    adverts: Adverts,
    secrets: Mapping[int, bytes],
    survivors: Collection[int],
) -> Iterator[Mask]:
    """What to add to the sum of masked vectors: (mask key, sign), in the order of `secrets`.

    Minus each survivor's self mask; for each dropout, what cancels the masks that its surviving
    neighbours added.
    """
    hash_ = spec.instruction_hash
    for owner, secret in secrets.items():
        if owner in survivors:
            yield keys.self_mask_key(hash_, owner, secret), -1
            continue
        private = keys.load(secret)
        for peer in adverts.neighbours(owner):
            if peer in survivors:
                peer_key = adverts[peer].mask_key
                mask = keys.pairwise_mask_key(private, peer_key, hash_, owner, peer)
                yield mask, -pairwise_sign(peer, owner)


def _seed_check(spec: RoundSpec, owner: int, advert: Advertisement) -> Callable[[bytes], bool]:
    # (1) a seed other than the committed one would leave a wrong sum
    return lambda seed: (
        keys.seed_commitment(spec.instruction_hash, owner, seed) == advert.seed_commitment
    )


def _key_check(spec: RoundSpec, owner: int, advert: Advertisement) -> Callable[[bytes], bool]:
    # (2) so would a mask key other than the advertised one
    return lambda secret: keys.public_bytes(secret) == advert.mask_key
