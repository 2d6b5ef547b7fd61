"""Repositories that cannot be packed, and places that are not written to: one line each, and what was there is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import trees
from safetensors.numpy import save
from tritonpress_generator.errors import InputError
from tritonpress_generator.packing import bundle, coding, extents
from tritonpress_generator.packing.formats import Tensor
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


def test_what_unpack_would_refuse_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = trees.write(tmp_path / "source", {"zeros": bytes(1 << 20), "model": b"1"})
    for constant, value, said in [
        ("FREE_BYTES", 1 << 19, r"must be at most 524288 bytes .* are 1048577; pack less"),
        ("INDEX_BYTES", 100, "the index must be at most 100 bytes"),
        ("REFERENCES", 1, "must name at most 1 contents, name 2"),
    ]:
        with monkeypatch.context() as context:
            context.setattr(bundle, constant, value)
            with pytest.raises(InputError, match=said):
                pack(source, tmp_path / "bundle")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    pack(source, tmp_path / "bundle")


def test_repository_that_is_too_large_is_refused_before_it_is_coded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many small tensors, as soon as that is seen."""
    weights = trees.weights(1 << 18)
    large: trees.Tree = {"model.plan": weights.tobytes(), "copy.plan": weights.tobytes()}
    small: trees.Tree = {"w.safetensors": save({f"w{number}": trees.weights(256, number) for number in range(200)})}
    coded: list[int] = []
    encode = coding.encode

    def noted(block: bytes, word_bytes: int, *, level: int) -> list[bytes]:
        coded.append(len(block))
        return encode(block, word_bytes, level=level)

    monkeypatch.setattr(coding, "encode", noted)
    for name, tree, constant, value, said, most in [
        ("large", large, "INDEX_BYTES", 400, r"the index must be at most 400 bytes .*, would be 507 or more", 0),
        ("many", large, "FILES", 1, "must have at most 1 files, has 2; pack less", 0),
        ("small", small, "INDEX_BYTES", 4000, r"the index must be at most 4000 bytes .* or more; pack less", 100),
    ]:
        source = trees.write(tmp_path / name, tree)
        with monkeypatch.context() as context:
            context.setattr(bundle, constant, value)
            with pytest.raises(InputError, match=said):
                pack(source, tmp_path / "bundle")
        assert len(coded) <= most
        coded.clear()
    monkeypatch.setattr(bundle, "INDEX_BYTES", 700)
    assert pack(tmp_path / "large", tmp_path / "bundle").repeated_bytes == weights.nbytes, "counted once, as it is"


def test_links_in_a_circle_are_said(tmp_path: Path) -> None:
    source = trees.write(tmp_path / "source", {"model": b"1"})
    pack(source, tmp_path / "bundle")
    circle = tmp_path / "circle"
    circle.symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(circle)
    for place in (circle, circle / "below"):
        with pytest.raises(InputError, match="has links in a circle; give another place"):
            pack(source, place)
        with pytest.raises(InputError, match="has links in a circle; give another place"):
            unpack(tmp_path / "bundle", place)
    with pytest.raises(InputError, match="must be a folder, is none"):
        pack(circle, tmp_path / "new")
    with pytest.raises(InputError, match="is no file"):
        unpack(circle, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "circle", "other", "source"]


def test_file_that_changes_while_it_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = trees.weights(1 << 20).tobytes()
    source = trees.write(tmp_path / "source", {"model.plan": content})
    changes = {"shorter": content[: 3 << 20], "longer": content + b"x", "another": content[:-1] + b"x", "gone": b""}
    cut, encode = extents.cut, coding.encode
    for said, changed in changes.items():

        def cut_and_change(file: BinaryIO, path: Path, changed: bytes = changed) -> list[Tensor]:
            found = list(cut(file, path))
            path.write_bytes(changed)
            return found

        def encode_and_change(block: bytes, word_bytes: int, *, level: int, changed: bytes = changed) -> list[bytes]:
            (source / "model.plan").write_bytes(changed)
            return encode(block, word_bytes, level=level)

        for module, name, function in [(extents, "cut", cut_and_change), (coding, "encode", encode_and_change)]:
            if (said, name) == ("another", "cut"):
                continue  # all of it is read after that
            (source / "model.plan").write_bytes(content)
            with monkeypatch.context() as context:
                context.setattr(module, name, function)
                with pytest.raises(InputError, match=r"model\.plan: changes while it is packed"):
                    pack(source, tmp_path / "bundle")
            assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_repository_that_changes_while_it_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a build ends: what was not coded yet may name what was not there when the files were listed."""
    tree: trees.Tree = {"a/1/model": b"a", "b/config.pbtxt": b"old", "b_engine_old/1/model": b"b"}
    source = trees.write(tmp_path / "source", tree)
    cut = extents.cut
    changes = [
        lambda: trees.write(source / "b_engine_new", {"1/model": b"new"}),
        lambda: (trees.write(tmp_path / "other", {"new": b"new"}) / "new").replace(source / "b/config.pbtxt"),
        lambda: (source / "a/1/model").rename(source / "a/model"),
    ]
    for change in changes:
        todo = [change]

        def cut_and_change(file: BinaryIO, path: Path, todo: list[Callable[[], object]] = todo) -> list[Tensor]:
            found = list(cut(file, path))
            while todo:
                todo.pop()()
            return found

        with monkeypatch.context() as context:
            context.setattr(extents, "cut", cut_and_change)
            with pytest.raises(InputError, match=r"source: changes while it is packed; stop what writes it"):
                pack(source, tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
    pack(source, tmp_path / "bundle")


def test_what_a_killed_pack_or_unpack_has_left_is_removed(tmp_path: Path) -> None:
    source = trees.write(tmp_path / "source", {"model": b"1"})
    with subprocess.Popen(["true"]) as ended:
        pass
    for work in (lambda: pack(source, tmp_path / "bundle"), lambda: unpack(tmp_path / "bundle", tmp_path / "target")):
        trees.write(tmp_path / f".tritonpress-{ended.pid}-x", {"tree/model": b"1"})
        work()
        assert not list(tmp_path.glob(".tritonpress-*"))


UNPACK_UNTIL_INTERRUPTED = """
import signal, sys, time
from tritonpress_generator.cli import main
from tritonpress_generator.packing import coding

signal.signal(signal.SIGINT, signal.default_int_handler)
decode, lengths = coding.decode, []

def decode_two(streams, length):
    if len(lengths) == 2:
        time.sleep(600)
    lengths.append(length)
    return decode(streams, length)

coding.decode = decode_two
sys.exit(main(["unpack", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_interrupted_unpack_leaves_nothing(tmp_path: Path) -> None:
    content = trees.weights(1 << 20).tobytes()
    pack(trees.write(tmp_path / "source", {"empty": b"", "model.plan": content}), tmp_path / "bundle")
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = [sys.executable, "-c", UNPACK_UNTIL_INTERRUPTED, str(tmp_path / "bundle"), str(tmp_path / "target")]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".tritonpress-*/tree/model.plan")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert said.strip() == "tritonpress unpack: interrupted; nothing was written"
    assert process.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == before
