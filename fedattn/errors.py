"""Every error that fedattn raises, and the exit code it ends a command with.

    FedattnError                2
      ConfigError               2   a config key, value or combination
      DataError                 2   a conversation file, by line and field, never by its text
      TokenError                2   a vocabulary or token id
      ModelError                2   an architecture or checkpoint
      AttentionError            2   an attention view: what was asked of it, or a stored map
      UpdateError               2   a vector that cannot be encoded or decoded
      PrivacyError              2   a mechanism or accountant that cannot hold what was asked
        BudgetError             3   the next round would pass the budget
      RefusalError              2   a device declines an instruction, before it reads data
      SecAggError               4   a secure-aggregation round that must stop
        ProtocolError           4   a message that fails a numbered check
        ThresholdError          4   too few survivors; nothing was unmasked
      LedgerError               2   a ledger that cannot be read or written
      RunError                  2   a run directory: missing, partial, occupied, of a newer format

An error names the field, the bound and the remedy. Errors raised on a device never hold text,
weights, sizes or keys, because their text could travel to the server.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FINDING = 1
EXIT_BAD_INPUT = 2
EXIT_BUDGET = 3
EXIT_ABORTED = 4
EXIT_INTERRUPTED = 130


class FedattnError(Exception):
    """The root: whatever fedattn refuses, it refuses by one of these."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(FedattnError):
    """A config key, its value or a combination is wrong; the message has the remedy."""


class DataError(FedattnError):
    """A conversation file is wrong; the message has line number and field, never the text."""


class TokenError(FedattnError):
    """A vocabulary cannot be built or a token id is out of range."""


class ModelError(FedattnError):
    """An architecture is impossible or a checkpoint does not fit it."""


class AttentionError(FedattnError):
    """An attention view was asked for what there is not, or a stored map has another shape."""


class UpdateError(FedattnError):
    """A vector cannot be encoded or a sum cannot be decoded."""


class PrivacyError(FedattnError):
    """A mechanism or accountant cannot give the guarantee that was asked for."""


class BudgetError(PrivacyError):
    """The next round would pass the privacy budget."""

    exit_code = EXIT_BUDGET


class RefusalError(FedattnError):
    """A device declines an instruction; `rule` names why and is all that the server learns."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class SecAggError(FedattnError):
    """A secure-aggregation round has to stop."""

    exit_code = EXIT_ABORTED


class ProtocolError(SecAggError):
    """A message fails a check of the protocol; `check` names it."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check = check


class ThresholdError(SecAggError):
    """Fewer survivors than the threshold: the round aborts and nothing is unmasked."""


class LedgerError(FedattnError):
    """A ledger cannot be read, or an entry cannot be appended."""


class RunError(FedattnError):
    """A run directory is missing, partial, occupied or of a newer format."""
