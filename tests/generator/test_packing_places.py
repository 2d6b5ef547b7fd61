"""Repositories that cannot be packed, and places that are not written to: one line each, and what was there is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trees
from tritonpress_generator.errors import InputError
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.packing.unpack import unpack


def test_folder_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(trees.write(tmp_path / "source", {"m/config.pbtxt": b"1"}), tmp_path / "bundle")
    full = trees.write(tmp_path / "full", {"kept": b"1"})
    for target, said in {
        full: "is not empty",
        full / "kept": "is a file",
        tmp_path / "no" / "target": "make it first",
        tmp_path / "bundle" / "target": "make it first",
    }.items():
        with pytest.raises(InputError, match=said):
            unpack(tmp_path / "bundle", target)
    monkeypatch.chdir(trees.write(tmp_path / "here", {}))
    with pytest.raises(InputError, match="the one that this runs in"):
        unpack(tmp_path / "bundle", Path())
    assert trees.read(full) == {"kept": b"1"}
    unpack(tmp_path / "bundle", trees.write(tmp_path / "empty", {}))
    assert (tmp_path / "empty" / "m" / "config.pbtxt").is_file()


def test_repository_that_a_bundle_does_not_hold(tmp_path: Path) -> None:
    source = trees.write(tmp_path / "source", {"model": b"1"})

    def message() -> str:
        with pytest.raises(InputError) as caught:
            pack(source, tmp_path / "bundle")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "bundle").exists()
        return str(caught.value)

    (source / "link").symlink_to(source / "model")
    assert "is a symbolic link" in message()
    (source / "link").unlink()
    (source / "link").symlink_to(source)
    assert "is a symbolic link" in message()
    (source / "link").unlink()
    os.mkfifo(source / "pipe")
    assert "must be a file or a folder" in message()
    (source / "pipe").unlink()
    for name in (b"a\\b", b"c:d", b"line\nline", b"\xff"):
        place = Path(os.fsdecode(os.fsencode(source) + b"/" + name))
        place.touch()
        assert "rename it" in message()
        place.unlink()
    pack(source, tmp_path / "bundle")


def test_places_that_a_bundle_is_not_written_to(tmp_path: Path) -> None:
    source = trees.write(tmp_path / "source", {"model": b"1"})
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    for repository, file, said in [
        (source, source / "bundle", "must not lie in the repository"),
        (source, other, "is no bundle"),
        (source, tmp_path, "is no bundle"),
        (source, tmp_path / "no" / "bundle", "cannot be packed"),
        (tmp_path / "no", tmp_path / "bundle", "must be a folder"),
        (trees.write(tmp_path / "empty", {}), tmp_path / "bundle", "is empty"),
    ]:
        with pytest.raises(InputError, match=said):
            pack(repository, file)
    assert trees.read(source) == {"model": b"1"}
    assert other.read_bytes() == b"kept"
    pack(source, tmp_path / "bundle")
    (source / "model").write_bytes(b"2")
    pack(source, tmp_path / "bundle")
    unpack(tmp_path / "bundle", tmp_path / "target")
    assert trees.read(tmp_path / "target") == {"model": b"2"}
