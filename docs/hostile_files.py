"""The kinds of files that `fuzz_files.py` changes, and what reads them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml
from backports import zstd
from mutations import changed_tree, json_bytes, spoilt, text_bytes, yaml_bytes
from tritonpress_client import TritonpressError
from tritonpress_generator import builds, recipe, repository, switching, used, verify
from tritonpress_generator.deploy import served
from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.packing import bundle, coding
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.packing.unpack import unpack
from tritonpress_server import ServerError, Settings
from tritonpress_server.launch import models_to_load

ROOT = Path(__file__).parents[1]
SMALL_BYTES = 64 << 10
"""Larger files of a repository are left out of the copies that are changed."""
OTHER_BUILD = "0" * used.HASH_LENGTH

Calls = Iterator[tuple[str, Callable[[], object]]]


class Kind(Protocol):
    """What is changed, and what reads it."""

    name: str
    errors: tuple[type[Exception], ...]
    """The documented ones."""

    def case(self, chance: random.Random, folder: Path) -> Calls:
        """Yields what is called, by a name, after writing a case into the empty `folder`."""


class Recipes:
    """The shipped recipes, with every part that a recipe may have."""

    name = "recipes"
    errors = (GeneratorError,)

    def __init__(self, model_repo: Path) -> None:
        self._recipes = [
            yaml.safe_load(path.read_text(encoding="utf-8"))
            for path in sorted((ROOT / "generator" / "recipes").glob("*.yaml"))
        ]
        for path in (ROOT / "generator" / "recipes").glob("*.yaml"):
            recipe.load(path)  # imports what recipes name: that is no case's work
        self._recipes[0] |= {
            "data": {"train": ["a.jsonl"], "validation": ["b.jsonl"]},
            "search": {"minutes": 10},
            "engine": {"onnxruntime": {"instances": 1}},
            "serve": {
                "lengths": [32, 64],
                "queue": {"priority_levels": 2, "by_priority": {1: {"max_queue_size": 3}}},
                "rate_limiter": {"resources": {"cores": 1}},
            },
        }

    def case(self, chance: random.Random, folder: Path) -> Calls:
        path = folder / "recipe.yaml"
        path.write_bytes(yaml_bytes(chance, chance.choice(self._recipes)))
        yield "load", partial(recipe.load, path)


class Repositories:
    """A repository's manifests and configs, and what lies in the place of its files."""

    name = "repositories"
    errors = (GeneratorError, ServerError, TritonpressError)

    def __init__(self, model_repo: Path) -> None:
        self._files = {
            path.relative_to(model_repo).as_posix(): path.read_bytes()
            for path in sorted(model_repo.rglob("*"))
            if path.is_file() and path.stat().st_size <= SMALL_BYTES and "kept" not in path.parts
        }
        self._names = builds.workloads(model_repo)
        for name in self._names:
            manifest = repository.read_manifest(model_repo, name)
            manifest["files"] = {path: entry for path, entry in manifest["files"].items() if path in self._files}
            # Of a build before builds could be switched, too.
            manifest.setdefault("ensemble", self._files[f"{name}/config.pbtxt"].decode())
            self._add(name, manifest)
            self._add(name, manifest | {"build": OTHER_BUILD})

    def _add(self, name: str, manifest: dict[str, Any]) -> None:
        self._files[f"{name}/manifest.{manifest['build']}.json"] = json.dumps(manifest).encode()

    def case(self, chance: random.Random, folder: Path) -> Calls:
        model_repo = folder / "model_repo"
        name = chance.choice(self._names)
        own = [path for path in self._files if path.startswith((f"{name}/", f"{name}_"))]
        for path in own:
            (model_repo / path).parent.mkdir(parents=True, exist_ok=True)
            (model_repo / path).write_bytes(self._files[path])
        read = [path for path in own if path.endswith("config.pbtxt") or "/manifest." in path]
        for _ in range(chance.choice([1, 1, 2])):
            path = chance.choice(read)
            if chance.random() < 0.15:
                _put_instead(chance, model_repo / chance.choice([path, *own]))
            elif (model_repo / path).is_file():
                (model_repo / path).write_bytes(self._changed(chance, path))
        calls: list[tuple[str, Callable[[], object]]] = [
            ("deploy", partial(served.read, model_repo)),
            ("serve", lambda: Settings().arguments(model_repo, models_to_load(model_repo))),
            ("verify --server", partial(verify.check_plans, model_repo, "24.10")),
            ("list", partial(builds.listing, model_repo, name)),
            ("promote", partial(switching.promote, model_repo, name, OTHER_BUILD)),
            ("rollback", partial(switching.rollback, model_repo, name)),
            ("promote --keep 0", partial(switching.promote, model_repo, name, OTHER_BUILD, keep=0)),
        ]
        # Some of them, in this order: Triton's configs are slow to parse.
        yield from (call for call in calls if chance.random() < 0.5)

    def _changed(self, chance: random.Random, path: str) -> bytes:
        content = self._files[path]
        if chance.random() < 0.1:
            return spoilt(chance, content)
        if path.endswith(".json"):
            return json_bytes(chance, json.loads(content))
        return _changed_config(chance, content)


def _changed_config(chance: random.Random, content: bytes) -> bytes:
    """Returns a `config.pbtxt` with other values, names, nesting, or lines."""
    text = content.decode()
    quoted = [part for part in text.split('"')[1::2] if part]
    kind = chance.randrange(5)
    if kind == 0:
        return text_bytes(chance, text)
    if kind == 1:
        other = chance.choice(["../x", "/etc", "", "a" * 100_000, "\\0", "\\377", "\\n", chance.choice(quoted), "."])
        return text.replace(f'"{chance.choice(quoted)}"', f'"{other}"', chance.choice([1, -1])).encode()
    if kind == 2:
        depth = chance.choice([20, 200, 20_000])
        nested = "ensemble_scheduling { step { input_map { " * depth
        return (text + chance.choice([nested, "parameters { value { " * depth, "[" * depth])).encode()
    if kind == 3:
        number = chance.choice(["-1", "0", "99999999999999999999", "1e400", "nan", "true", "-0x1"])
        return text.replace(": 1", f": {number}", chance.choice([1, -1])).encode()
    lines = text.splitlines(keepends=True)
    return "".join(chance.sample(lines, chance.randint(0, len(lines)))).encode()


def _put_instead(chance: random.Random, path: Path) -> None:
    """Puts something that is no file in the place of one, or nothing."""
    if not path.is_file() or path.is_symlink():
        return
    path.unlink()
    kind = chance.randrange(7)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path.name)
    elif kind == 2:
        path.symlink_to("/nowhere")
    elif kind == 3:
        path.symlink_to("/dev/zero")
    elif kind == 4:
        os.mkfifo(path)
    elif kind == 5:
        path.touch()


class Bundles:
    """A bundle's bytes, its header, its index and its blocks, with checksums that fit what was changed, or not."""

    name = "bundles"
    errors = (GeneratorError,)

    def __init__(self, model_repo: Path) -> None:
        self._bundle = b""

    def case(self, chance: random.Random, folder: Path) -> Calls:
        if not self._bundle:
            self._bundle = _honest(folder / "honest")
            shutil.rmtree(folder / "honest")
        (folder / "inside").mkdir()
        (folder / "inside" / "bundle").write_bytes(self._changed(chance))
        yield "unpack", partial(_unpacked_whole, folder)

    def _changed(self, chance: random.Random) -> bytes:
        data = self._bundle
        if chance.random() < 0.25:
            return spoilt(chance, data)
        if chance.random() < 0.1:
            return data[: chance.randrange(len(data))]
        _, _, begin, length, _ = struct.unpack("<8sQQQ32s", data[: bundle.HEADER_BYTES])
        blocks, index = data[bundle.HEADER_BYTES : begin], json.loads(data[begin : begin + length])
        if chance.random() < 0.3:
            blocks = _other_blocks(chance, index)
        if chance.random() < 0.7:
            index = changed_tree(chance, index)
        text = json.dumps(index).encode(errors="surrogatepass")
        text = spoilt(chance, text) if chance.random() < 0.1 else text
        header = [bundle.MAGIC, bundle.VERSION, bundle.HEADER_BYTES + len(blocks), len(text)]
        if chance.random() < 0.2:
            header[chance.randint(1, 3)] = chance.choice([0, 1, 2**32, 2**63, 2**64 - 1, len(data)])
        return struct.pack("<8sQQQ32s", *header, hashlib.sha256(text).digest()) + blocks + text


def _honest(folder: Path) -> bytes:
    """Returns a bundle with some of everything: texts, words, what is there twice, an empty file and folder."""
    words = bytes(range(256)) * 8
    tree = {
        "m/config.pbtxt": b'platform: "onnxruntime_onnx"\n' * 9,
        "m/1/model.bin": words,
        "m/2/again": words,
        "e": b"",
    }
    for path, content in tree.items():
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / path).write_bytes(content)
    (folder / "source" / "empty").mkdir()
    pack(folder / "source", folder / "bundle")
    return (folder / "bundle").read_bytes()


def _other_blocks(chance: random.Random, index: dict[str, Any]) -> bytes:
    """Returns blocks of other streams, some of which are more than they may be, and makes the index fit them."""
    streams = []
    for content in index["contents"]:
        for block in content["blocks"]:
            stream = chance.choice(
                [
                    zstd.compress(bytes(chance.choice([1, content["bytes"], coding.BLOCK_BYTES, 64 << 20]))),
                    chance.randbytes(chance.randint(1, content["bytes"])),
                    zstd.compress(bytes(content["bytes"]))[:-1],
                ]
            )
            block |= {"crc32": zlib.crc32(stream), "streams": [len(stream)]}
            streams.append(stream)
    return b"".join(streams)


def _unpacked_whole(folder: Path) -> None:
    """Unpacks, and raises where something is there after a refusal, or beside what was unpacked."""
    inside = folder / "inside"
    try:
        unpack(inside / "bundle", inside / "target")
    finally:
        left = {path.name for path in inside.iterdir()} - {"bundle", "target"}
        if left or [path.name for path in folder.iterdir()] != ["inside"]:
            raise RuntimeError(f"unpacking has left {left}")


KINDS: dict[str, Callable[[Path], Kind]] = {kind.name: kind for kind in (Recipes, Repositories, Bundles)}
"""What is built; `hostile_load_files.py` has what asks it."""
