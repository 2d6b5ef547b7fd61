"""The packages of the image: versions as they were gated, wheels by their hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tritonpress_generator import licences
from tritonpress_generator.errors import InputError
from tritonpress_generator.sbom import Package, normalised

# Of glibc 2.35, which the oldest release of the table has (Ubuntu 22.04), and before; pip takes none by itself.
_PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)), "manylinux2014_x86_64"]
_TIMEOUT_S = 300
_HEADER = """\
# The wheels that the Python steps import, and none of what they do not: pip is told to take no dependencies.
"""


def lock(packages: Sequence[str], python: str, *, release: str) -> list[Package]:
    """Returns the packages with their licences and the sha256 of their wheels for the container's Python, x86-64.

    pip asks the index that it is set up for, and downloads no more than it must.

    Args:
        packages: `name==version` each.
        python: The container's version of Python, such as `3.12.3`.
        release: The container's, for messages.

    Raises:
        InputError: There is no pip, the index cannot be asked, or it has no such wheel.
    """
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"the hashes of {', '.join(packages)} are asked by pip, which {sys.executable} lacks; run python -m"
            " ensurepip, or give --execution-env"
        )
    minor = ".".join(python.split(".")[:2])
    with tempfile.TemporaryDirectory(prefix="tritonpress-") as work:
        report = Path(work) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--dry-run", "--ignore-installed", "--no-deps", "--target", work, "--report", str(report)]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", minor]
        command += [part for platform in _PLATFORMS for part in ("--platform", platform)]
        try:
            done = subprocess.run(
                [*command, *packages], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise InputError(f"pip found no wheels within {_TIMEOUT_S} s; {_remedy(minor, release)}") from exc
        if done.returncode:
            raise InputError(f"{_reason(done.stderr, minor, release)}; {_remedy(minor, release)}")
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return sorted(map(_package, installs))


def text(packages: Sequence[Package]) -> str:
    """Returns the requirements file of locked packages."""
    return _HEADER + "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in packages)


def _package(install: dict[str, Any]) -> Package:
    about = install["metadata"]
    name, licence = normalised(about["name"]), licences.of_report(about)
    return Package(name, about["version"], licence, _sha256(install["download_info"]))


def _sha256(download: dict[str, Any]) -> str:
    """Returns a wheel's hash from pip's report (PEP 610)."""
    archive = download["archive_info"]
    found: str | None = archive.get("hashes", {}).get("sha256")
    if found is None and str(archive.get("hash", "")).startswith("sha256="):
        found = archive["hash"].removeprefix("sha256=")
    if found is None and download["url"].startswith("file:"):
        # pip before 23.1 does not hash what lies on the disk.
        found = hashlib.sha256(Path(url2pathname(urlsplit(download["url"]).path)).read_bytes()).hexdigest()
    if found is None:
        raise InputError(f"pip gives no sha256 of {download['url']}; update pip (python -m pip install --upgrade pip)")
    return found


def _reason(log: str, minor: str, release: str) -> str:
    """Returns what pip's errors come to."""
    missing = re.search(r"requirement (\S+) \(from versions: (.*)\)", log)
    if missing and missing[2] != "none":
        return f"{missing[1]} has no wheel for Python {minor}, which Triton {release} has"
    if missing:
        return f"pip's index cannot be reached, or has no {missing[1].partition('==')[0]}"
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    return f"pip cannot find the wheels ({errors[-1][:200] if errors else 'it gave no reason'})"


def _remedy(minor: str, release: str) -> str:
    return f"take another --release, reach an index that has them for Python {minor}, or give --execution-env"
