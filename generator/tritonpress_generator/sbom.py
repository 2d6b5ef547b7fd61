"""A software bill of materials: CycloneDX 1.6 as JSON (ECMA-424), the same for the same packages.

Neither a time nor a random number is in it: its serial number is made of its content.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from typing import Any

from tritonpress_generator import licences


@dataclass(frozen=True, order=True)
class Package:
    """A package of Python's index."""

    name: str
    """Normalised (PEP 503)."""
    version: str
    licence: str | None
    """An SPDX expression, or a name; None where the package gives none."""
    sha256: str | None = None
    """Of its wheel; what is installed does not know it."""

    @property
    def purl(self) -> str:
        """The package's URL (ECMA-427)."""
        return f"pkg:pypi/{self.name}@{self.version}"


def installed() -> list[Package]:
    """Returns the packages of the environment that this runs in, sorted by their names, without ours."""
    found = {package.name: package for package in map(_installed, distributions())}
    found.pop("tritonpress", None)
    return sorted(found.values())


def normalised(name: str) -> str:
    """Returns a package's name as indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed(distribution: Distribution) -> Package:
    about = distribution.metadata
    # A message answers None for what it has not, which its type does not say.
    expression, text = (str(about[key]) if key in about else None for key in ("License-Expression", "License"))
    found = licences.licence(expression, text, about.get_all("Classifier") or [])
    return Package(normalised(about["Name"]), distribution.version, found)


def document(
    name: str, version: str, packages: Sequence[Package], *, kind: str = "application", base_image: str | None = None
) -> str:
    """Returns the bill of what `name` consists of.

    Args:
        name: Of the whole.
        version: Of the whole.
        packages: Its parts.
        kind: Of the whole, as CycloneDX names it: `application`, `container`.
        base_image: The image that it is built on, with its tag: what is in that is its maker's to say.
    """
    components = [_component(package) for package in sorted(packages)]
    if base_image is not None:
        image, _, tag = base_image.rpartition(":")
        components.insert(0, {"type": "container", "bom-ref": base_image, "name": image, "version": tag})
    whole = {"type": kind, "bom-ref": f"{name}@{version}", "name": name, "version": version}
    content: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": whole},
        "components": components,
        "dependencies": [
            {"ref": whole["bom-ref"], "dependsOn": [part["bom-ref"] for part in components]},
            *({"ref": part["bom-ref"]} for part in components),
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return json.dumps({"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json"} | content | {
        "serialNumber": serial.urn
    }, indent=2) + "\n"  # fmt: skip


def _component(package: Package) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
    }
    if package.licence is not None:
        is_spdx = "BSD" not in package.licence.split() and licences.is_allowed(package.licence)
        component["licenses"] = [{"expression": package.licence} if is_spdx else {"license": {"name": package.licence}}]
    if package.sha256 is not None:
        component["hashes"] = [{"alg": "SHA-256", "content": package.sha256}]
    return component
