"""What each release of NVIDIA's Triton container has in it: a plan runs in the TensorRT that built it.

NVIDIA's TensorRT container of a release has the TensorRT that its Triton container has, so that a plan built in the one
runs in the other (a maintainer's word: https://github.com/triton-inference-server/server/issues/5812; and Triton's
own tests build their plans so, in its `qa/common/gen_qa_model_repository`). Of the releases whose TensorRT could be
found in a public source that names it, the version is in the table; a plan that was built in the TensorRT container of
the same release needs no table.

Python and ONNX Runtime are those of Triton's compatibility matrix (`MATRIX`); its TensorRT is that of the containers
with TensorRT-LLM, which differs, and so is not taken. Which OpenVINO a release has, no source was found to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonpress_generator.errors import InputError

EMBEDDED = "24.10"
"""Of the embedded server (tritonserver 2.51)."""
MATRIX = (
    "https://github.com/triton-inference-server/server/blob/0f963c9a8c6913aa4cd9b57ee04f9c2b76ee8d2a"
    "/docs/introduction/compatibility.md"
)
"""The source of every `python` and `onnxruntime` of the table."""


@dataclass(frozen=True)
class TensorRT:
    """A release's TensorRT."""

    version: str
    source: str


@dataclass(frozen=True)
class Release:
    """What is known of a release; None where no source says it."""

    python: str | None = None
    """For which Triton's Python backend is built."""
    onnxruntime: str | None = None
    """Of Triton's own `onnxruntime` backend."""
    tensorrt: TensorRT | None = None


RELEASES: Mapping[str, Release] = {
    "23.04": Release(tensorrt=TensorRT("8.6.1.2", "https://github.com/triton-inference-server/server/issues/5812")),
    "23.05": Release(tensorrt=TensorRT("8.6.1.2", "https://github.com/triton-inference-server/server/issues/5975")),
    "24.02": Release(tensorrt=TensorRT("8.6.3", "https://github.com/triton-inference-server/server/issues/6959")),
    "24.04": Release("3.10.12", "1.17.3"),
    "24.05": Release("3.10.12", "1.18.0"),
    "24.06": Release("3.10.12", "1.18.0"),
    "24.07": Release("3.10.12", "1.18.1"),
    "24.08": Release("3.10.12", "1.18.1"),
    "24.09": Release("3.10.12", "1.19.2"),
    "24.10": Release("3.10.12", "1.19.2"),
    "24.11": Release("3.12.3", "1.19.2"),
    "24.12": Release("3.12.3", "1.20.1"),
    "25.01": Release("3.12.3", "1.20.1"),
    "25.02": Release("3.12.3", "1.20.1"),
    "25.03": Release("3.12.3", "1.21.0"),
    "25.04": Release("3.12.3", "1.21.0"),
    "25.05": Release("3.12.3", "1.22.0"),
    "25.06": Release("3.12.3", "1.22.0"),
    "25.07": Release("3.12.3", "1.22.0"),
    "25.08": Release("3.12.3", "1.23.0+1d1712fdaf"),
    "25.09": Release("3.12.3", "1.23.0"),
    "25.10": Release("3.12.3", "1.23.1"),
    "25.11": Release("3.12.3", "1.23.2"),
    "25.12": Release("3.12.3", "1.23.2"),
    "26.01": Release("3.12.3", "1.23.2"),
    "26.02": Release("3.12.3", "1.24.1"),
    "26.03": Release("3.12.3", "1.24.2"),
    "26.04": Release("3.12.3", "1.24.4"),
    "26.05": Release("3.12.3", "1.24.4"),
    "26.06": Release("3.12.3", "1.24.4"),
    "26.07": Release("3.12.3", "1.27.0"),
    "26.08": Release("3.12.3", "1.28.0"),
}


_FIRST_OF_PYTHON_3_10 = "23.05"
"""Source: https://github.com/triton-inference-server/server/issues/5895."""
_FIRST_OF_8_6 = "23.04"
_FIRST_OF_10 = "24.05"


def weakly_typed(release: str) -> bool:
    """Says whether the TensorRT of `release`, 8 up to 24.04, takes types from flags and not from the graph."""
    return release < _FIRST_OF_10


def lacks_layer_normalization(release: str) -> bool:
    """Says whether the parser of `release`, TensorRT 8.5 and before, does not know LayerNormalization."""
    return release < _FIRST_OF_8_6


def lacks_python(release: str) -> str | None:
    """Returns why Triton's `release` cannot run this project's Python steps, and the remedy; None where it can."""
    if release >= _FIRST_OF_PYTHON_3_10:
        return None
    return (
        f"the Python of Triton must be 3.10 or later for the Python steps, {release} has 3.8; take "
        f"engine.tensorrt.release {_FIRST_OF_PYTHON_3_10} or later and build again"
    )


def tensorrt_image(release: str) -> str:
    """Returns the container that builds plans for Triton's `release`."""
    return f"nvcr.io/nvidia/tensorrt:{release}-py3"


def triton_image(release: str) -> str:
    """Returns NVIDIA's Triton container of `release`."""
    return f"nvcr.io/nvidia/tritonserver:{release}-py3"


def check_release(release: str, *, where: str) -> None:
    """Refuses what is not the name of a release.

    Raises:
        InputError: It is not a year and a month.
    """
    if not re.fullmatch(r"2\d\.(0[1-9]|1[0-2])", release):
        raise InputError(f"{where}: must be a release of NVIDIA's containers such as {EMBEDDED}, got {release!r}")


def mismatch(stamp: Mapping[str, Any], release: str) -> str | None:
    """Returns why the plan of `stamp` does not run in Triton's `release`, and the remedy; None where it runs.

    Args:
        stamp: What the builder wrote beside the plan: `tensorrt`, the container's `release` or None, and
            `version_compatible`.
        release: Of NVIDIA's Triton container.
    """
    if stamp.get("release") == release:
        return None
    built = str(stamp["tensorrt"])
    remedy = f"build it in {tensorrt_image(release)}"
    known = RELEASES.get(release, Release()).tensorrt
    if known is None:
        return (
            f"was built with TensorRT {built}; which one Triton {release} has is not known here, and only a plan of "
            f"{tensorrt_image(release)} is sure to run there; {remedy}"
        )
    if _same(built, known.version):
        return None
    newer = _numbers(built)[:1] == _numbers(known.version)[:1] and _numbers(built) < _numbers(known.version)
    if newer and stamp.get("version_compatible"):
        return None
    # A plan that is compatible with other versions runs in later ones of its major.
    also = ", or with engine.tensorrt.version_compatible and Triton's " if newer else ""
    also += "--backend-config=tensorrt,version-compatible=true" if newer else ""
    return f"was built with TensorRT {built}; Triton {release} has {known.version} ({known.source}); {remedy}{also}"


def _same(built: str, served: str) -> bool:
    """Says whether two versions are one, as far as both are known."""
    pairs = zip(built.split("."), served.split("."), strict=False)
    return all(left == right for left, right in pairs)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
