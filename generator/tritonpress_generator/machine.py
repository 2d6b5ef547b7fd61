"""The machine that something was measured on, and with which packages."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("tritonpress", "torch", "transformers", "tokenizers", "onnx", "tritonclient", "nvidia-pytriton")
_OF_EXTRAS = ("nncf",)


def processor() -> str:
    """Returns the processor's name as the system gives it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a model is made with; an engine knows its own."""
    # Not by its package, which has another name for GPUs.
    import onnxruntime

    found = {"python": platform.python_version(), "onnxruntime": str(onnxruntime.__version__)}
    found |= {name: version(name) for name in _PACKAGES}
    for name in _OF_EXTRAS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
