"""What a run that skipped the masks of secure aggregation says of itself, in every output.

`secure_aggregation: arithmetic` adds plain updates: whoever runs such a simulation sees each of
them. Its epsilons are what the same run with masks guarantees, and no reader may overlook that.
"""

from __future__ import annotations

from typing import Final

from fedattn.config import ROWS, Config, Row

MASKS_SKIPPED: Final = "MASKS SKIPPED"
AS_IF_MASKED: Final = "AS IF MASKED"
_SEEN = "this run skipped the masks, and whoever ran it saw every client's update in clear"


def masks_label(config: Config) -> tuple[str, ...]:
    """The loud sentence of a run without masks; none where there are."""
    if config.secure_aggregation == "masked":
        return ()
    label = (
        f"{MASKS_SKIPPED}: secure_aggregation: arithmetic - plain updates were added, so nobody's "
        "update was hidden from whoever ran this simulation"
    )
    if config.privacy.unit != "none":
        label += "; every epsilon is what the same run with masks guarantees"
    return (label,)


def masks_reasons(config: Config) -> dict[Row, tuple[str, ...]]:
    """What each adversary's row says first of a run without masks; nothing where there are."""
    if config.secure_aggregation == "masked":
        return dict.fromkeys(ROWS, ())
    plain = f"{MASKS_SKIPPED}: {_SEEN}, not sums alone."
    if not config.is_private:
        return dict.fromkeys(ROWS, (plain,))
    if config.privacy.noise == "local":
        held = f"{MASKS_SKIPPED}: {_SEEN}; this row does not rely on masks."
        return dict.fromkeys(ROWS, (held,))
    outsider = f"{AS_IF_MASKED}: {_SEEN}; the row holds if an outsider is shown none of them."
    if config.privacy.noise == "server":
        return {**dict.fromkeys(ROWS, (plain,)), "outsider": (outsider,)}
    summed = (
        f"{AS_IF_MASKED}: {_SEEN}; this epsilon is what the same run with masks guarantees, and no "
        "guarantee against whoever ran this one."
    )
    unmasked = f"{AS_IF_MASKED}: {_SEEN}; against whoever ran it this row is all that holds."
    return {
        "outsider": (outsider,),
        "server": (summed,),
        "collusion": (summed,),
        "unmasked": (unmasked,),
    }


def masks_assumptions(config: Config) -> tuple[str, ...]:
    """What is assumed in place of masks, where a claim needs them."""
    if config.secure_aggregation == "masked" or not config.is_summed_noise:
        return ()
    shown = (
        "Whoever ran this simulation, who saw every client's update in clear, showed nobody any "
        "of them."
    )
    if config.privacy.noise == "server":
        return (shown,)
    return (
        shown,
        f"{AS_IF_MASKED}: the rows of server and collusion, and what is assumed for them here, are "
        "those of the same run with masks.",
    )
