"""What a run ran on: the machine and the versions, so that two reports can be compared."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("tritonpress", "tritonclient", "grpcio", "locust", "gevent", "numpy")


def machine(cores: int) -> dict[str, Any]:
    """Returns how many cores there are for the server, the CPU's name, the memory in GiB and the platform."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": cores,
        "cpu": _cpu_name(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that make and measure the load."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in _PACKAGES}}


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
