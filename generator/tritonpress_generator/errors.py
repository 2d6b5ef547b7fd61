"""The errors that the generator raises.

    GeneratorError           every error of this package; `exit_status` is the command's
    ├── InputError           the input is at fault (recipe, checkpoint, data, repository): status 2
    │   └── PlaceError       or a place where work is kept: its disk is full, or others are at it
    ├── GateError            the build ran and what it made is beyond an agreed limit: status 1
    │   └── UndecidedError   or the examples are too few to say
    ├── VerificationError    the repository is served and answers otherwise than it should: status 1
    └── SloError             no config serves as quickly as it should: status 1

A message is one line: the thing, the rule, the value found, the remedy.
"""

from __future__ import annotations

SHOWN = 1_500
"""Characters of a message; of what is longer the middle is left out, so that the remedy stays."""


class GeneratorError(Exception):
    """Every error of this package."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= SHOWN else f"{line[: SHOWN // 2]} … {line[-SHOWN // 2 :]}")


class InputError(GeneratorError):
    """The input is at fault."""

    exit_status = 2


class PlaceError(InputError):
    """A place where work is kept cannot be used now, which says nothing of what was to be made there."""


class GateError(GeneratorError):
    """The artefact is less accurate than agreed, or takes more memory."""

    exit_status = 1

    def __init__(self, reason: str, remedy: str, *, stage: str = "") -> None:
        """Keeps `reason` apart: where something else is served instead, that is all there is to say.

        `stage` names the pass after which the gate was missed first, where that is known.
        """
        super().__init__(f"{reason}; nothing was written; {remedy}")
        self.reason, self.remedy, self.stage = reason, remedy, stage


class UndecidedError(GateError):
    """The examples are too few to say whether the artefact is as accurate as agreed."""


class VerificationError(GeneratorError):
    """The served repository does not answer as its manifest says."""

    exit_status = 1


class SloError(GeneratorError):
    """No config of what is served keeps the limit on the latency."""

    exit_status = 1
