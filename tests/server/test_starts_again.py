"""Triton that ends by a race with its own stubs is started again; a race cannot be had on demand, so it is played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from at_once import AT_ONCE
from tritonpress_server import ServerStartError, StubStartError, TritonServer, runtime, server

RACE = "terminate called after throwing an instance of 'boost::interprocess::lock_exception'"


def starts(folder: Path, monkeypatch: pytest.MonkeyPatch, *, aborted: int, says: str = RACE) -> Path:
    """Lets the first starts end as the race does, and returns the file with a line a start."""
    real = runtime.find_runtime()
    log = folder / "starts"
    binary = folder / "tritonserver"
    binary.write_text(
        f"""#!/bin/bash
echo start >> {log}
if [ "$(wc -l < {log})" -le {aborted} ]; then echo "{says}" >&2; kill -ABRT $$; fi
exec {real.binary} "$@"
"""
    )
    binary.chmod(0o755)
    monkeypatch.setattr(server, "find_runtime", lambda: replace(real, binary=binary))
    return log


def test_it_is_started_again(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = starts(tmp_path, monkeypatch, aborted=2)
    with TritonServer(repository, settings=AT_ONCE) as served:
        assert ("add_one", "1") in served.served_models()
    assert log.read_text().split() == ["start"] * 3


def test_it_is_said_where_that_goes_on(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = starts(tmp_path, monkeypatch, aborted=9)
    with pytest.raises(StubStartError, match="Triton ended with status 134 before it was ready"):
        TritonServer(repository, settings=AT_ONCE).start()
    assert log.read_text().split() == ["start"] * 3


def test_what_ends_it_otherwise_is_said_at_once(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = starts(tmp_path, monkeypatch, aborted=9, says="out of something")
    with pytest.raises(ServerStartError, match="out of something"):
        TritonServer(repository, settings=AT_ONCE).start()
    assert log.read_text().split() == ["start"]
