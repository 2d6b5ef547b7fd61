"""Load on a server that wants certificates, and a token for its statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import TOKEN, Certificates, guard
from noop_model import write_noop
from scenarios import plain_locust, write_noop_scenario
from tritonpress_loadtests.cli import main
from tritonpress_server import TritonServer


@pytest.fixture(scope="module")
def guarded(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with mutual TLS that guards its statistics."""
    folder = tmp_path_factory.mktemp("load_guarded")
    with TritonServer(write_noop(folder / "repository"), settings=guard(certificates, folder / "token")) as server:
        yield server


@pytest.fixture
def token_file(guarded: TritonServer) -> str:
    """A file with the token."""
    return str(guarded.settings.admin_token_file)


@pytest.fixture
def trusted(certificates: Certificates) -> list[str]:
    """The arguments by which client and server trust each other."""
    files = {"ca": certificates.ca, "certificate": certificates.client, "key": certificates.client_key}
    return [f"--{name}={path}" for name, path in files.items()]


def test_both_loops_load_a_guarded_server(
    guarded: TritonServer, trusted: list[str], token_file: str, tmp_path: Path
) -> None:
    stages = [{"users": 2, "duration_s": 0.6}, {"rate_per_s": 50, "arrivals": "constant", "duration_s": 1}]
    scenario = write_noop_scenario(tmp_path, stages=stages, warm_up_s=0)
    out = tmp_path / "out"
    command = ["run", str(scenario), "--out", str(out), "--url", guarded.grpc_url, "--processes", "2", *trusted]
    assert main([*command, f"--admin-token-file={token_file}"]) == 0
    text = (out / "results.json").read_text(encoding="utf-8")
    results = json.loads(text)
    closed, opened = results["stages"]
    assert closed["requests"] > 0
    assert opened["requests"] == 50
    for stage in (closed, opened):
        assert stage["failed"] == 0
        # By the statistics, which the server gives with the token alone.
        assert stage["models"][0]["answered"] == stage["requests"]
    assert results["served"]["noop"]["max_batch_size"] == 64
    # The command that can be run again names the files; what is in them is nowhere.
    assert f"--admin-token-file={token_file}" in results["command"]
    assert not [path for path in out.iterdir() if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("without", "words"), [("token", "--admin-token-file"), ("certificate", "no Triton server answers at")]
)
def test_what_is_missing_is_said_before_the_load(
    guarded: TritonServer,
    trusted: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    without: str,
    words: str,
) -> None:
    scenario = write_noop_scenario(tmp_path, timeout_s=2)
    given = trusted if without == "token" else trusted[:1]
    assert main(["run", str(scenario), "--out", str(tmp_path / "out"), "--url", guarded.grpc_url, *given]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert not (tmp_path / "out").exists()


def test_plain_locust_takes_the_same_arguments(guarded: TritonServer, trusted: list[str], tmp_path: Path) -> None:
    entry = plain_locust(write_noop_scenario(tmp_path), guarded.grpc_url, *trusted, users=2)
    assert entry["num_requests"] >= 2
    assert entry["num_failures"] == 0
