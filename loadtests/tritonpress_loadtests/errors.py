"""The errors that load testing raises.

    LoadTestError             every error of this package; `exit_status` is the command's
    ├── ScenarioError         the scenario, its queries or an argument is at fault: status 2
    ├── LoadGeneratorError    the process that makes the load ended before a stage was measured: status 2
    ├── NotWrittenError       what was measured cannot be written, or not all of it: status 2
    └── NothingMeasuredError  the run was interrupted before its first stage: status 130

What the server is to blame for before a run comes as `tritonpress_client.TritonpressError`; during a run it is counted.
"""

from __future__ import annotations

from typing import Any

from tritonpress_client.errors import one_line


class LoadTestError(Exception):
    """Every error of this package; the message is one line."""

    exit_status = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class ScenarioError(LoadTestError):
    """The scenario, its queries or an argument is at fault."""


class LoadGeneratorError(LoadTestError):
    """The process that makes the load ended without a result."""


class NotWrittenError(LoadTestError):
    """What was measured cannot be written, or not all of it."""

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        super().__init__(message)
        self.results = results
        """All of it; see `results.py`."""


class NothingMeasuredError(LoadTestError):
    """The run was interrupted before its first stage."""

    exit_status = 130
