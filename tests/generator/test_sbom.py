"""The bill of materials: by CycloneDX's own schema, the same for the same packages, and honest about licences."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cyclonedx.schema
import jsonschema
import pytest
import referencing
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonpress_generator import licences, sbom
from tritonpress_generator.sbom import Package

BASE = "nvcr.io/t:26.08-py3"
MIT = Package("a", "1.0", "MIT", "0" * 64)


@cache
def validator() -> Any:
    """Returns CycloneDX's schema of 1.6, with those of SPDX's identifiers and of signatures that it names."""
    folder = Path(cyclonedx.schema.__file__).parent / "_res"
    schemas = {
        f"http://cyclonedx.org/schema/{name.replace('.SNAPSHOT', '')}": json.loads((folder / name).read_text("utf-8"))
        for name in ("bom-1.6.SNAPSHOT.schema.json", "spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
    }
    whole = schemas["http://cyclonedx.org/schema/bom-1.6.schema.json"]
    resources = {
        identifier: referencing.Resource(schema, referencing.jsonschema.DRAFT7)
        for schema in schemas.values()
        for identifier in {schema["$id"], *(uri for uri, one in schemas.items() if one is schema)}
    }
    return jsonschema.Draft7Validator(whole, registry=referencing.Registry().with_resources(resources.items()))


def test_what_is_installed_here_is_a_bill(tmp_path: Path) -> None:
    packages = sbom.installed()
    text = sbom.document("tritonpress", "1", packages)
    validator().validate(json.loads(text))
    by_name = {package.name: package for package in packages}
    assert by_name["numpy"] == Package("numpy", version("numpy"), "BSD")
    assert by_name["grpcio"].purl == f"pkg:pypi/grpcio@{version('grpcio')}"
    assert "tritonpress" not in by_name
    assert text == sbom.document("tritonpress", "1", packages[::-1])
    assert text != sbom.document("tritonpress", "1", packages[1:])


def test_the_schema_refuses_what_is_no_bill() -> None:
    content = json.loads(sbom.document("x", "1", [MIT]))
    content["components"][0]["type"] = "package"
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(content)


def test_an_image_says_what_it_is_built_on() -> None:
    packages = [MIT, Package("b", "2", "BSD"), Package("c", "3", None), Package("d", "4", "Their own licence")]
    content = json.loads(
        sbom.document("tritonpress", "1", packages, kind="container", base_image="nvcr.io/t:26.08-py3")
    )
    validator().validate(content)
    assert content["metadata"]["component"]["type"] == "container"
    base, a, b, c, d = content["components"]
    assert (base["type"], base["name"], base["version"]) == ("container", "nvcr.io/t", "26.08-py3")
    assert a["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    assert a["licenses"] == [{"expression": "MIT"}]
    assert b["licenses"] == [{"license": {"name": "BSD"}}]
    assert "licenses" not in c
    assert d["licenses"] == [{"license": {"name": "Their own licence"}}]
    assert content["dependencies"][0]["dependsOn"] == [part["bom-ref"] for part in content["components"]]


@pytest.mark.parametrize(
    ("expression", "text", "classifiers", "found"),
    [
        ("MIT OR Apache-2.0", "GPL", [], "MIT OR Apache-2.0"),
        (None, "Apache 2.0", [], "Apache-2.0"),
        (None, "MPL-2.0 AND MIT", [], "MPL-2.0 AND MIT"),
        (
            None,
            "Copyright (c) NumPy\nAll rights reserved. " * 9,
            ["License :: OSI Approved :: BSD License"],
            "BSD",
        ),
        (None, "UNKNOWN", ["License :: OSI Approved :: MIT License"], "MIT"),
        (None, None, ["License :: OSI Approved :: MIT License", "License :: OSI Approved :: GNU X"], "MIT AND GNU X"),
        (None, "GPL-3.0", [], "GPL-3.0"),
        (None, "", ["Programming Language :: Rust"], None),
        (None, "All rights reserved. " * 9, [], None),
    ],
)
def test_licences_by_metadata(
    expression: str | None, text: str | None, classifiers: list[str], found: str | None
) -> None:
    assert licences.licence(expression, text, classifiers) == found
    report = {"license_expression": expression, "license": text, "classifier": classifiers}
    assert licences.of_report({key: value for key, value in report.items() if value is not None}) == found


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("MIT AND GPL-3.0-only OR BSD-3-Clause", True),
        ("MIT AND (GPL-3.0-only OR BSD-3-Clause)", True),
        ("(MIT OR GPL-2.0-only) AND GPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("Apache-2.0 WITH Their-exception", False),
        ("GPL-3.0-only WITH GCC-exception-3.1", False),
        ("mit", False),
        ("", False),
        ("MIT OR", False),
        ("(MIT", False),
        ("MIT)", False),
        ("MIT MIT", False),
        ("MIT, Apache-2.0", False),
    ],
)
def test_what_is_allowed(expression: str, allowed: bool) -> None:
    assert licences.is_allowed(expression) is allowed


TREES = st.recursive(
    st.sampled_from([("MIT", True), ("ISC", True), ("GPL-3.0-only", False)]),
    lambda inside: st.tuples(inside, st.sampled_from(["AND", "OR"]), inside).map(
        lambda parts: (
            f"({parts[0][0]} {parts[1]} {parts[2][0]})",
            (parts[0][1] and parts[2][1]) if parts[1] == "AND" else (parts[0][1] or parts[2][1]),
        )
    ),
    max_leaves=9,
)


@given(TREES)
@settings(deadline=None)
def test_any_expression_is_what_its_parts_are(tree: tuple[str, bool]) -> None:
    assert licences.is_allowed(tree[0]) is tree[1]
