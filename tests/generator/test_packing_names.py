"""Which names a bundle holds: the same ones on every Python, and none that moves what a terminal shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import trees
from tritonpress_generator.errors import InputError
from tritonpress_generator.packing import paths
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.packing.unpack import unpack

HELD = {
    "of another script": "モデル",
    "wide space": "a\u3000b",
    "no-break space": "a\u00a0b",
    "joined": "\U0001f469\u200d\U0001f680",
    "not joined": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "soft hyphen": "a\u00adb",
    "new in Unicode 14": "\U0001fae0",
    "not in Unicode yet": "a\u0378b",
    "private": "\ue000",
}
CONTROLS = [*range(1, 0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]


@pytest.mark.parametrize("name", HELD)
def test_names_of_all_scripts_are_held(name: str, tmp_path: Path) -> None:
    tree: trees.Tree = {f"{HELD[name]}/{HELD[name]}": b"1"}
    pack(trees.write(tmp_path / "source", tree), tmp_path / "bundle")
    unpack(tmp_path / "bundle", tmp_path / "target")
    assert trees.read(tmp_path / "target") == tree


def test_names_that_move_what_a_terminal_shows_are_not(tmp_path: Path) -> None:
    for character in map(chr, CONTROLS):
        assert paths.problem(f"a{character}b") == "has a control character"
    source = trees.write(tmp_path / "source", {"model\u202egnp.sh": b"1"})
    with pytest.raises(InputError, match="has a control character, which a bundle does not hold; rename it") as caught:
        pack(source, tmp_path / "bundle")
    assert "\u202e" not in str(caught.value)


def test_deep_folders_are_held_to_a_limit(tmp_path: Path) -> None:
    tree: trees.Tree = {"/".join("a" * paths.NAMES): b"1", "/".join("b" * paths.NAMES): None}
    source = trees.write(tmp_path / "source", tree)
    pack(source, tmp_path / "bundle")
    unpack(tmp_path / "bundle", tmp_path / "target")
    assert trees.read(tmp_path / "target") == tree
    (source / "/".join("b" * paths.NAMES) / "c").touch()
    with pytest.raises(InputError, match="is longer than 1024 bytes or 32 names, which a bundle does not hold"):
        pack(source, tmp_path / "bundle")


def test_every_folder_above_is_found_once() -> None:
    found = list(paths.above(["a/b/c", "a/b/d", "e", "a/f/g"]))
    assert sorted(found) == ["a", "a/b", "a/f"]
