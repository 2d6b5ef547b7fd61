"""An index that is small as text and large once it is parsed is refused within the memory of an init container."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tritonpress_generator.packing import bundle

CONTAINER_MIB = 512
READ = """
import sys
from pathlib import Path
from tritonpress_generator.errors import InputError
from tritonpress_generator.packing import bundle

try:
    with open(sys.argv[1], "rb") as file:
        bundle.read(file, Path(sys.argv[1]))
except InputError as exc:
    print(exc)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024)
"""
HASH = "0" * 64
SHAPES = {
    "blocks": ('{"files":[],"folders":[],"contents":[{"bytes":1,"blocks":[%s]}]}', '{"crc32":0,"streams":[1]}'),
    "contents": ('{"files":[],"folders":[],"contents":[%s]}', '{"bytes":1,"blocks":[{"crc32":0,"streams":[1]}]}'),
    "of none": ('{"files":[],"folders":[],"contents":[%s]}', "{}"),
    "references": (
        f'{{"files":[{{"path":"a","bytes":1,"sha256":"{HASH}","executable":false,"contents":[%s]}}],"folders":[],'
        '"contents":[]}',
        "0",
    ),
    "of no number": (
        f'{{"files":[{{"path":"a","bytes":1,"sha256":"{HASH}","executable":false,"contents":[%s]}}],"folders":[],'
        '"contents":[]}',
        "[]",
    ),
    "keys": ('{"files":[],"folders":[],"contents":[],%s}', '"%x":0'),
}


def written(path: Path, text: bytes) -> Path:
    header = struct.pack("<8sQQQ32s", bundle.MAGIC, 1, bundle.HEADER_BYTES, len(text), hashlib.sha256(text).digest())
    path.write_bytes(header + text)
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("full", [True, False], ids=["as long as may be", "with as many marks"])
def test_hostile_index_takes_little_memory(shape: str, full: bool, tmp_path: Path) -> None:
    whole, entry = SHAPES[shape]
    counts = [bundle.INDEX_BYTES // (len(entry % 1 if "%" in entry else entry) + 8)]
    if not full:
        marks = {mark: sum(map(entry.encode().count, mark)) for mark in bundle.MARKS}
        marks[b","] += 1
        counts += [(bundle.MARKS[mark] - 20) // count for mark, count in marks.items() if count]
    entries = [entry % number if "%" in entry else entry for number in range(min(counts))]
    path = written(tmp_path / "bundle", (whole % ",".join(entries)).encode())
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    said, peak_mib = done.stdout.splitlines()
    assert said.startswith(f"{path}: ")
    assert len(said) < 600
    assert int(peak_mib) < CONTAINER_MIB * 3 // 4
