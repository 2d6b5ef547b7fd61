"""`verify` and `evaluate` ask a server in requests that it takes, however small these must be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from at_once import AT_ONCE
from tiny_sources import write_recipe
from tritonpress_generator import cli
from tritonpress_server import TritonServer

# Of the longest texts, of 8 tokens, a request has room for one.
PACKED = {"max_batch_size": 4, "max_length": 8, "lengths": {"ragged": {"max_tokens": 32}}, "steps": "ensemble"}
SMALL = {"max_batch_size": 2, "max_length": 48, "lengths": "exact", "steps": "single"}


@pytest.mark.parametrize("serve", [SMALL, PACKED], ids=["small", "packed"])
def test_requests_are_no_larger_than_the_server_takes(
    tiny_sources: Path, tmp_path: Path, serve: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    sources = Path(shutil.copytree(tiny_sources, tmp_path / "sources"))
    recipe, out = write_recipe(sources, serve=serve), tmp_path / "out"
    assert cli.main(["build", str(recipe), "--out", str(out)]) == 0
    assert cli.main(["verify", str(out)]) == 0
    assert "recommendation: 72 answers" in capsys.readouterr().out
    # The recipe may say another size than what is served.
    recipe = write_recipe(sources, serve=serve | {"max_batch_size": 8, "lengths": "exact"})
    with TritonServer(out, settings=AT_ONCE) as server:
        assert cli.main(["evaluate", str(recipe), "--target", server.grpc_url]) == 0
