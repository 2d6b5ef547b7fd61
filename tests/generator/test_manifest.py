"""Manifests that have been damaged, or made up, are refused in one line, and switch and serve nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonpress_generator import builds, manifest, switching
from tritonpress_generator.deploy import served
from tritonpress_generator.errors import SHOWN, InputError

NAME = "recommendation"


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def _file(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["files"].update({name: next(iter(content["files"].values()))})


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no steps": (lambda content: content.pop("steps"), "steps: field required"),
    "steps in a list": (_set("steps", value=["a"]), "steps: input should be a valid dictionary"),
    "a step above": (_set("steps", "model", value="../../etc"), "steps.model: string should match pattern"),
    "a step that is a number": (_set("steps", "model", value=1), "steps.model: input should be a valid string"),
    "files in a list": (_set("files", value=[]), "files: input should be a valid dictionary"),
    "a file without its hash": (
        lambda content: next(iter(content["files"].values())).pop("sha256"),
        "sha256: field required",
    ),
    "a file above": (_file("../../etc/passwd"), "files: the path '../../etc/passwd' is not a relative path"),
    "an absolute file": (_file("/etc/passwd"), "files: the path '/etc/passwd' is not a relative path"),
    "another build": (_set("build", value="../x"), "build: string should match pattern"),
    "versions in a list": (_set("versions", value=[]), "versions: input should be a valid dictionary"),
}


@pytest.fixture
def model_repo(tiny_repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_repository, tmp_path / "model_repo"))


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_says_what_none_does(name: str, model_repo: Path) -> None:
    change, said = CHANGES[name]
    build = builds.served(model_repo, NAME)
    path = model_repo / NAME / f"manifest.{build}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    _refused(model_repo, build, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "recursion"),
        ("9" * 5_000, "digits"),
        ("null", "valid"),
        ("{", "cannot be read"),
        ("\ud800", "utf-8"),
    ],
    ids=range(5),
)
def test_a_file_that_is_no_manifest(text: str, said: str, model_repo: Path) -> None:
    build = builds.served(model_repo, NAME)
    (model_repo / NAME / f"manifest.{build}.json").write_bytes(text.encode(errors="surrogatepass"))
    _refused(model_repo, build, said)


def test_nothing_waits_for_a_pipe_or_a_device(model_repo: Path) -> None:
    build = builds.served(model_repo, NAME)
    path, config = model_repo / NAME / f"manifest.{build}.json", model_repo / NAME / "config.pbtxt"
    path.unlink()
    os.mkfifo(path)
    _refused(model_repo, build, "is no file")
    config.unlink()
    config.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="is no file"):
        builds.read_config(model_repo / NAME)


def _refused(model_repo: Path, build: str, said: str) -> None:
    before = (model_repo / NAME / "config.pbtxt").read_bytes()
    with pytest.raises(manifest.ManifestError):
        manifest.read(model_repo / NAME / f"manifest.{build}.json")
    assert builds.manifests(model_repo, NAME) == {}
    with pytest.raises(InputError) as raised:
        served.read(model_repo)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="has no build"):
        switching.promote(model_repo, NAME, build)
    assert (model_repo / NAME / "config.pbtxt").read_bytes() == before


def test_a_message_keeps_its_remedy_however_long_a_value_it_repeats() -> None:
    said = str(InputError(f"name: must be short, got {'a' * 100_000}\n; take another"))
    assert len(said) <= SHOWN + 3
    assert said.startswith("name: must be short, got aaa")
    assert said.endswith("aaa ; take another")


def test_a_link_in_the_version_folder_is_replaced_and_not_followed(model_repo: Path, tmp_path: Path) -> None:
    readme = model_repo / NAME / "1" / "README"
    readme.unlink()
    readme.symlink_to(tmp_path / "outside")
    switching.promote(model_repo, NAME, builds.served(model_repo, NAME))
    assert readme.is_file()
    assert not readme.is_symlink()
    assert not (tmp_path / "outside").exists()
