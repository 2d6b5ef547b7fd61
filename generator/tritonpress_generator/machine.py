"""The machine that something was measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Returns the processor's name as the system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
