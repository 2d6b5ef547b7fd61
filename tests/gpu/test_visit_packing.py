"""What travels fits into the calls, and is opened and run on the other side; the kit is a double of its layout."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from visit import packing
from visit.__main__ import main

THERE = Path(packing.__file__).with_name("there.sh")
UNPACK = f"""
[ -d "$TENSORRT_KIT/kit" ] || exit 1
unset PYTHONPATH
export PATH="$TENSORRT_KIT/kit/python/bin:{os.defpath}"
"""
PYTHON = '#!/bin/sh\necho "$@" "PYTHONPATH=$PYTHONPATH"\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with what is to travel in `.gpu`, which git ignores, and a kit in pieces."""
    tree = tmp_path / "tree"
    (tree / ".gpu" / "visit").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    (tree / ".gitignore").write_text(".gpu/\n")
    (tree / "tracked.py").write_bytes(b"x" * 1000)
    noise = np.random.default_rng(0).bytes(300_000)
    (tree / ".gpu" / "visit" / "weights.npy").write_bytes(noise)
    (tree / ".gpu" / "unpack.sh").write_text(UNPACK)
    python = tmp_path / "kit" / "python" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "kit" / "noise").write_bytes(noise[::-1])
    with tarfile.open(tmp_path / "kit.tar", "w") as archive:
        archive.add(tmp_path / "kit", "kit")
    packed = lzma.compress((tmp_path / "kit.tar").read_bytes(), preset=0)
    for number, start in enumerate(range(0, len(packed), 200_000)):
        (tree / ".gpu" / f"kit.part.{number:02}").write_bytes(packed[start : start + 200_000])
    return tree


@pytest.fixture(autouse=True)
def small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("CALL_BYTES", 1 << 18), ("_MARGIN_BYTES", 1 << 12), ("_CHUNK_BYTES", 1 << 16)):
        monkeypatch.setattr(packing, name, size)


def there(tree: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `there.sh` in a copy of the checkout, as a call does."""
    environment = os.environ | {"TENSORRT_KIT": str(tree.parent / "there"), "OUT": str(tree / "out")}
    environment |= {"PATH": path} if path else {}
    return subprocess.run(
        ["/bin/bash", str(THERE), *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


def test_every_call_is_within_its_limit(tree: Path) -> None:
    parts = packing.pack(tree / ".gpu", tree=tree)
    assert [part.name for part in parts] == [f"{number:02}of{len(parts):02}" for number in range(len(parts))]
    sizes = [part.stat().st_size for part in parts]
    assert packing.travelling(tree) == 1000 + len(".gpu/\n")
    assert all(size + packing.travelling(tree) < packing.CALL_BYTES for size in sizes)
    # As few calls as the size allows.
    assert {*sizes[:-1]} == {max(sizes)}
    assert len(parts) == 3


@pytest.mark.parametrize("xz", [True, False])
def test_parts_are_opened_and_run_in_the_kits_python(tree: Path, tmp_path: Path, xz: bool) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("bash", "cat", "cp", "ls", "mkdir", "python3", "tar", "touch", *(["xz"] if xz else [])):
        (bare / name).symlink_to(shutil.which(name) or name)
    for part in packing.pack(tree / ".gpu", tree=tree):
        # A call that was repeated changes nothing.
        for _ in range(2):
            assert there(tree, "keep", str(part), path=str(bare)).returncode == 0
    for options in (["--only", "int8"], ["--shapes", "base"]):
        ran = there(tree, "run", *options, path=str(bare))
        assert ran.returncode == 0, ran.stderr
        kept = tmp_path / "there"
        asked = ran.stdout.splitlines()[-1]
        assert asked.startswith(
            f"-m visit run {kept}/visit --work {kept}/work --out {tree}/out --python {bare}/python3 "
        )
        assert " ".join(options) in asked
        assert asked.endswith(f"PYTHONPATH={tree}/generator:{tree}/server:{tree}/tests/gpu")
    for name, source in (
        ("visit/weights.npy", tree / ".gpu" / "visit" / "weights.npy"),
        ("kit/noise", tmp_path / "kit" / "noise"),
    ):
        assert (kept / name).read_bytes() == source.read_bytes()


def test_missing_part_is_said(tree: Path) -> None:
    parts = packing.pack(tree / ".gpu", tree=tree)
    assert "all parts must have been kept, got 0 of ?" in there(tree, "run").stderr
    for part in (parts[0], parts[2]):
        there(tree, "keep", str(part))
    ran = there(tree, "run")
    assert ran.returncode == 2
    assert "all parts must have been kept, got 2 of 3 (00of03 02of03); keep the others" in ran.stderr


def test_what_cannot_travel_is_a_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree)
    (tree / "large.bin").write_bytes(bytes(1 << 18))
    assert main(["pack", ".gpu"]) == 2
    assert (
        "its files must leave room in 0 MiB, take 0.3; have git ignore what need not travel" in capsys.readouterr().err
    )
    (tree / "large.bin").unlink()
    for path in (tree / ".gpu").glob("kit.part.*"):
        path.unlink()
    assert main(["pack", ".gpu"]) == 2
    assert capsys.readouterr().err == "visit: .gpu/kit.part.*: must be there; pack the kit first\n"
    shutil.rmtree(tree / ".gpu" / "visit")
    assert main(["pack", ".gpu"]) == 2
    assert capsys.readouterr().err == "visit: .gpu/visit: must be there; prepare it first\n"


def test_calls_are_printed_as_they_are_made(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree)
    assert main(["pack", ".gpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith("bash tests/gpu/visit/there.sh keep .gpu/parts/00of03")
    assert said[-1].endswith("keep .gpu/parts/02of03 && bash tests/gpu/visit/there.sh run")
