"""Bundles that are cut, changed or hostile: a line each, and nothing written."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trees
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonpress_generator import cli
from tritonpress_generator.errors import InputError
from tritonpress_generator.packing import bundle, coding
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.packing.unpack import unpack

HELLO = b"hello, hello, hello\n"
BLOCK = coding.BLOCK_BYTES
MANY_FOLDERS = [f"{number}" + "/a" * 31 for number in range(3_200)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle of a few thousand bytes, in which there is some of everything."""
    folder = tmp_path_factory.mktemp("small")
    tree: trees.Tree = {
        "m/config.pbtxt": b'platform: "onnxruntime_onnx"\n' * 20,
        "m/1/w.npy": b"\x93NUMPY\x01\x00\x0e\x00{'descr':'<f4'}"[:-1] + trees.weights(600).tobytes(),
        "m/1/copy": b'platform: "onnxruntime_onnx"\n' * 20,
        "m/empty": b"",
        "m/2": None,
    }
    pack(trees.write(folder / "source", tree), folder / "bundle")
    return (folder / "bundle").read_bytes()


def refused(data: bytes, folder: Path) -> str:
    """Returns what `unpack` says of a bundle, after which nothing is there that was not before."""
    file = folder / "bundle"
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        unpack(file, folder / "target")
    assert [path.name for path in folder.iterdir()] == ["bundle"]
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert len(message) < 600
    return message.removeprefix(str(file))


def forged(index: object, blocks: bytes = b"", *, text: bytes | None = None) -> bytes:
    """Returns a bundle whose header fits whatever the index says."""
    text = json.dumps(index).encode() if text is None else text
    begin = bundle.HEADER_BYTES + len(blocks)
    header = struct.pack("<8sQQQ32s", bundle.MAGIC, 1, begin, len(text), hashlib.sha256(text).digest())
    return header + blocks + text


def honest() -> dict[str, Any]:
    """Returns the index of a bundle with one file, `HELLO`, stored as it is."""
    return {
        "files": [
            {
                "path": "a/b",
                "bytes": len(HELLO),
                "sha256": hashlib.sha256(HELLO).hexdigest(),
                "executable": False,
                "contents": [0],
            }
        ],
        "folders": ["a/c"],
        "contents": [{"bytes": len(HELLO), "blocks": [{"crc32": zlib.crc32(HELLO), "streams": [len(HELLO)]}]}],
    }


def test_an_honest_index_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(forged(honest(), HELLO))
    unpack(tmp_path / "bundle", tmp_path / "target")
    assert trees.read(tmp_path / "target") == {"a/b": HELLO, "a/c": None}


def test_cut_anywhere(small: bytes, tmp_path: Path) -> None:
    for length in sorted({*range(80), *range(80, len(small), 37), len(small) - 1}):
        refused(small[:length], tmp_path)
    assert "must be" in refused(small[:-1], tmp_path)
    assert "must be" in refused(small + b"x", tmp_path)


def test_one_bit_changed_anywhere(small: bytes, tmp_path: Path) -> None:
    bits = random.Random(0)
    for position in [*range(bundle.HEADER_BYTES), *bits.sample(range(bundle.HEADER_BYTES, len(small)), 400)]:
        changed = bytearray(small)
        changed[position] ^= 1 << bits.randrange(8)
        refused(bytes(changed), tmp_path)


def test_other_files_are_no_bundles(tmp_path: Path) -> None:
    for data in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"x" * 1000, bytes(100)):
        assert "must be a bundle of tritonpress pack" in refused(data, tmp_path)
    newer = struct.pack("<8sQQQ32s", bundle.MAGIC, 2, 64, 0, bytes(32))
    assert "version must be 1, got 2" in refused(newer, tmp_path)


def _path(path: str) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["files"][0].update(path=path)


def _file(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["files"][0].update(changed)


def _content(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["contents"][0].update(changed)


def _streams(*streams: int) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["contents"][0]["blocks"][0].update(streams=list(streams))


def _second(path: str) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["files"].append(index["files"][0] | {"path": path})


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "absolute": (_path("/etc/passwd"), "not a relative path"),
    "above": (_path("../../b"), "not a relative path"),
    "above, later": (_path("a/../../../b"), "not a relative path"),
    "not the shortest": (_path("a/./b"), "not a relative path"),
    "empty name": (_path("a//b"), "not a relative path"),
    "a folder's": (_path("b/"), "not a relative path"),
    "no path": (_path(""), "not a relative path"),
    "drive": (_path("C:/b"), "backslash or a drive"),
    "backslashes": (_path("..\\..\\b"), "backslash or a drive"),
    "NUL": (_path("a\0b"), "a control character"),
    "line": (_path("a\nb"), "a control character"),
    "terminal": (_path("a\x1b[2J"), "a control character"),
    "deep path": (_path("a/" * 32 + "b"), "longer than 1024 bytes or 32 names"),
    "deep folder": (lambda index: index["folders"].append("d/" * 500 + "e"), "longer than 1024 bytes or 32 names"),
    "long path": (_path("a/" * 600 + "b"), "longer than 1024 bytes"),
    "huge path": (_path("a" * 1_000_000), "longer than 1024 bytes"),
    "folder above": (lambda index: index["folders"].append("../c"), "not a relative path"),
    "twice": (_second("a/b"), "is there twice"),
    "file as folder": (_second("a/b/c"), "a file and a folder"),
    "folder as file": (_second("a/c"), "is there twice"),
    "empty folder over file": (lambda index: index["folders"].append("a/b/d"), "a file and a folder"),
    "mode": (_file(mode=0o4755), "Extra inputs"),
    "executable": (_file(executable=1), "valid boolean"),
    "negative": (_file(bytes=-1), "greater than or equal to 0"),
    "huge": (_file(bytes=2**60), "less than or equal to"),
    "not a number": (_file(bytes="20"), "valid integer"),
    "other length": (_file(bytes=21), "must be 21 bytes, its contents are 20"),
    "sha256": (_file(sha256="0" * 64), "does not have its sha256"),
    "no sha256": (_file(sha256=""), "match pattern"),
    "no content": (_file(contents=[1]), "must name each content"),
    "unnamed content": (_file(contents=[], bytes=0), "must name each content"),
    "too often": (_file(contents=[0] * 1_000_001), "at most 1000000 contents"),
    "no blocks": (_content(blocks=[]), "has 0 blocks"),
    "empty content": (_content(bytes=0, blocks=[]), "greater than or equal to 1"),
    "too many blocks": (_content(blocks=honest()["contents"][0]["blocks"] * 2), "has 2 blocks"),
    "beyond its plane": (_streams(21), "longer than its plane"),
    "shorter": (_streams(19), "the blocks must be 19 bytes, are 20"),
    "three planes": (_streams(5, 5, 5), "1, 2 or 4 streams, has 3"),
    "five planes": (_streams(4, 4, 4, 4, 4), "at most 4 items"),
    "empty plane": (_streams(10, 0), "greater than or equal to 1"),
    "huge stream": (_streams(2**40), "less than or equal to 262144"),
    "CRC": (lambda index: index["contents"][0]["blocks"][0].update(crc32=1), "does not have its CRC"),
    "other keys": (lambda index: index.update(links=["a"]), "Extra inputs"),
    "missing key": (lambda index: index.pop("folders"), "Field required"),
    "too many folders": (lambda index: index["folders"].extend(MANY_FOLDERS), "at most 100000 folders"),
    "too many files": (lambda index: index["files"].extend(index["files"] * 100_000), "at most 100000 items"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_index(name: str, tmp_path: Path) -> None:
    change, said = HOSTILE[name]
    index = copy.deepcopy(honest())
    change(index)
    assert said in refused(forged(index, HELLO), tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{", b"[" * 500_000, b'{"files":' * 100_000, b"\xff\xfe", b"9" * 100_000, b'"\\ud800"'],
    ids=range(9),
)
def test_index_that_is_no_index(text: bytes, tmp_path: Path) -> None:
    assert "the index is not as it must be" in refused(forged(None, text=text), tmp_path)


def test_index_too_large_is_not_read(tmp_path: Path) -> None:
    header = struct.pack("<8sQQQ32s", bundle.MAGIC, 1, 64, 1 << 40, bytes(32))
    assert "at most 16777216 bytes" in refused(header, tmp_path)


def _of_one_stream(stream: bytes, length: int) -> bytes:
    index = honest()
    index["contents"][0] |= {"bytes": length, "blocks": [{"crc32": zlib.crc32(stream), "streams": [len(stream)]}]}
    index["files"][0] |= {"bytes": length}
    return forged(index, stream)


def test_frames_that_say_more_or_less_than_the_index(tmp_path: Path) -> None:
    bomb = zstd.compress(bytes(200 << 20), 3, options=None)
    assert len(bomb) < BLOCK
    wide = zstd.compress(bytes(BLOCK), options={zstd.CompressionParameter.window_log: 27})
    header = zstd.compress(HELLO * 100)
    for stream, length in [
        (bomb, BLOCK),
        (zstd.compress(HELLO * 100), 1999),
        (zstd.compress(HELLO * 100), 2001),
        (zstd.compress(HELLO * 100)[:-1], 2000),
        (zstd.compress(HELLO * 100) + b"x", 2000),
        (b"\xff" + header[1:], 2000),
        (HELLO, 2000),
    ]:
        assert "is no code" in refused(_of_one_stream(stream, length), tmp_path)
    assert coding.decode([wide], BLOCK).tobytes() == bytes(BLOCK), "what says how long it is needs no window"


def test_more_than_a_repository_can_be_is_not_written(tmp_path: Path) -> None:
    """A block of zeros is stored in a few bytes; a file may name it a million times."""
    stream = zstd.compress(bytes(BLOCK))
    index = honest()
    index["contents"][0] |= {"bytes": BLOCK, "blocks": [{"crc32": zlib.crc32(stream), "streams": [len(stream)]}]}
    index["files"][0] |= {"bytes": 4097 * BLOCK, "contents": [0] * 4097}
    assert "must be at most 1073741824 bytes" in refused(forged(index, stream), tmp_path)


def test_more_than_the_disk_has_is_not_written(small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle").write_bytes(small)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(2**40, 2**40 - 99, 99))
    with pytest.raises(InputError, match=r"needs \d+ bytes, the disk has 99"):
        unpack(tmp_path / "bundle", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_command_says_it_in_one_line(small: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle").write_bytes(small[:-1])
    for arguments in (["unpack", "bundle", "target"], ["unpack", "missing", "target"], ["pack", "missing", "new"]):
        paths = [str(tmp_path / argument) for argument in arguments[1:]]
        assert cli.main([arguments[0], *paths]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"tritonpress {arguments[0]}: ")
        assert printed.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["..", "../x", "a", "a/c", "/x", "a/b/../../..", "0" * 64]),
    st.lists(st.integers(-1, 30), max_size=5),
    st.just({}),
)


@given(data=st.data(), value=NASTY, stream=st.one_of(st.just(HELLO), st.binary(min_size=1, max_size=60)))
@settings(deadline=None, max_examples=300)
def test_no_index_and_no_stream_does_more_than_fail(data: st.DataObject, value: object, stream: bytes) -> None:
    """The header and the CRC fit, so that what is inside is read."""
    index = honest()
    index["contents"][0]["blocks"][0] |= {"crc32": zlib.crc32(stream), "streams": [len(stream)]}
    place: Any = index
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "inside"
        folder.mkdir()
        (folder / "bundle").write_bytes(forged(index, stream))
        try:
            unpack(folder / "bundle", folder / "target")
        except InputError as exc:
            assert "\n" not in str(exc)
            assert [path.name for path in folder.iterdir()] == ["bundle"]
        else:
            assert HELLO in trees.read(folder / "target").values()
        assert [path.name for path in Path(work).iterdir()] == ["inside"]
