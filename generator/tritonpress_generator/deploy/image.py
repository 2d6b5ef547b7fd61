"""The image: NVIDIA's of a release, with the few packages that the Python steps import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import tritonpress_generator
from tritonpress_generator.deploy import requirements
from tritonpress_generator.deploy.settings import EXECUTION_ENV, GRPC, HTTP, METRICS, USER, Settings
from tritonpress_generator.plans.releases import triton_image
from tritonpress_generator.sbom import Package

_PACKAGE = Path(tritonpress_generator.__file__).parent
_HOME = "/opt/tritonpress"
PYTHON = f"{_HOME}/python"
"""Where the image has its packages."""
HEALTHCHECK = ["python3", f"{_HOME}/healthcheck.py", str(HTTP)]
GUARDED = ["python3", f"{_HOME}/guarded.py"]
"""The program of the image that puts a secret's token into a command."""
UNPACK = ["python3", "-m", "tritonpress_generator.packing"]
"""The command of the image that unpacks and verifies a bundle."""

# What `UNPACK` imports, beside the packing itself.
_UNPACK_FILES = ("__init__.py", "errors.py", "workplace.py")
UNPACK_PACKAGES = (
    "annotated-types", "backports-zstd", "numpy", "pydantic", "pydantic-core", "tqdm", "typing-extensions",
    "typing-inspection",
)  # fmt: skip


def packages(served: Sequence[str], settings: Settings) -> list[str]:
    """Returns what is installed in the image, `name==version` each.

    Args:
        served: What the Python steps need, which a packed environment has in it.
        settings: The operator's.
    """
    needed = [] if settings.execution_env else list(served)
    if settings.bundle:
        known = {pin.partition("==")[0] for pin in needed}
        needed += [f"{name}=={version(name)}" for name in UNPACK_PACKAGES if name not in known]
    return sorted(needed)


def files(
    *, release: str, locked: Sequence[Package], command: Sequence[str], startup_s: int, settings: Settings
) -> dict[str, str | bytes | Path]:
    """Returns the files of the build's context by their paths; a path stands for its file's content."""
    context: dict[str, str | bytes | Path] = {
        "Dockerfile": _dockerfile(release, command, bool(locked), startup_s, settings),
        "healthcheck.py": _PACKAGE / "deploy" / "image_files" / "healthcheck.py",
    }
    if settings.guarded:
        context["guarded.py"] = _PACKAGE / "deploy" / "image_files" / "guarded.py"
    if locked:
        context["requirements.txt"] = requirements.text(locked)
    if settings.bundle:
        packing = sorted((_PACKAGE / "packing").rglob("*.py"))
        for path in (*(_PACKAGE / name for name in _UNPACK_FILES), *packing):
            context[f"tritonpress_generator/{path.relative_to(_PACKAGE).as_posix()}"] = path
    if settings.execution_env:
        context[Path(EXECUTION_ENV).name] = settings.execution_env
    return context


def _dockerfile(release: str, command: Sequence[str], has_packages: bool, startup_s: int, settings: Settings) -> str:
    base = triton_image(release)
    install = [
        "python3", "-m", "pip", "install", "--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes",
        f"--target={PYTHON}", "--requirement=/tmp/requirements.txt",
    ]  # fmt: skip
    lines = []
    if has_packages:
        lines += [
            f"FROM {base} AS packages",
            "COPY requirements.txt /tmp/requirements.txt",
            f"RUN {json.dumps(install)}",
            "",
        ]
    lines += [
        f"FROM {base}",
        f'LABEL org.opencontainers.image.title="{settings.name}" org.opencontainers.image.base.name="{base}"',
    ]
    if has_packages:
        lines.append(f"COPY --from=packages {PYTHON} {PYTHON}")
    if settings.bundle:
        lines.append(f"COPY tritonpress_generator {PYTHON}/tritonpress_generator")
    if settings.execution_env:
        lines.append(f"COPY {Path(EXECUTION_ENV).name} {EXECUTION_ENV}")
    if settings.guarded:
        lines.append(f"COPY guarded.py {GUARDED[1]}")
    # A packed environment has packages of its own, perhaps of another Python.
    path = "" if settings.execution_env else f"PYTHONPATH={PYTHON} "
    return "\n".join(
        [
            *lines,
            f"COPY healthcheck.py {HEALTHCHECK[1]}",
            "# The root file system is read-only: Python must not try to write what it compiles.",
            f"ENV {path}PYTHONDONTWRITEBYTECODE=1",
            f"USER {USER}:{USER}",
            f"EXPOSE {GRPC} {HTTP} {METRICS}",
            f"HEALTHCHECK --interval=10s --timeout=5s --start-period={startup_s}s CMD {json.dumps(HEALTHCHECK)}",
            "# NVIDIA's entry point, which makes CUDA fit the driver and then becomes this command, stays.",
            f"CMD {json.dumps(command)}",
            "",
        ]
    )
