"""Which release of NVIDIA's container fits a repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonpress_generator.errors import InputError
from tritonpress_generator.plans import releases


def choose(plans: Mapping[Path, Mapping[str, Any]], wanted: str | None) -> str:
    """Returns the release that runs all plans; of several the newest.

    Args:
        plans: The stamps of the repository's TensorRT plans.
        wanted: The release that was asked for.

    Raises:
        InputError: The table does not have that release, a plan does not run in it, or no release runs them all.
    """
    known = sorted((name for name, entry in releases.RELEASES.items() if entry.python), reverse=True)
    if wanted is not None:
        releases.check_release(wanted, where="--release")
        if wanted not in known:
            raise InputError(
                f"--release must be one whose Python is known here, {known[-1]} to {known[0]}, got {wanted}; take one"
                " of them"
            )
        for path, stamp in plans.items():
            if problem := releases.mismatch(stamp, wanted):
                raise InputError(f"{path}: {problem}")
        return wanted
    for name in known:
        if all(releases.mismatch(stamp, name) is None for stamp in plans.values()):
            return name
    built = "; ".join(
        f"{path.parent.parent.name}/{path.name} was built with TensorRT {stamp['tensorrt']}"
        + (f" of release {stamp['release']}" if stamp.get("release") else "")
        for path, stamp in plans.items()
    )
    raise InputError(
        f"no release of Triton's container from {known[-1]} to {known[0]} runs all plans: {built}; build"
        f" them in {releases.tensorrt_image(known[0])}"
    )
