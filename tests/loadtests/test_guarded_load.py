"""Load on a server that wants certificates, and a token for its statistics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Certificates, write_certificates
from noop_model import write_noop
from scenarios import write_noop_scenario
from tritonpress_loadtests.cli import main
from tritonpress_server import Settings, TritonServer

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for the module."""
    return write_certificates(tmp_path_factory.mktemp("load_certificates"))


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the token."""
    path = tmp_path_factory.mktemp("load_token") / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture(scope="module")
def guarded(
    certificates: Certificates, token_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server with mutual TLS that guards its statistics."""
    settings = Settings(
        tls_certificate=str(certificates.server),
        tls_key=str(certificates.server_key),
        tls_client_ca=str(certificates.ca),
        admin_token_file=str(token_file),
    )
    with TritonServer(write_noop(tmp_path_factory.mktemp("load_guarded")), settings=settings) as server:
        yield server


@pytest.fixture
def trusted(certificates: Certificates) -> list[str]:
    """The arguments by which client and server trust each other."""
    files = {"ca": certificates.ca, "certificate": certificates.client, "key": certificates.client_key}
    return [f"--{name}={path}" for name, path in files.items()]


def test_both_loops_load_a_guarded_server(
    guarded: TritonServer, trusted: list[str], token_file: Path, tmp_path: Path
) -> None:
    stages = [{"users": 2, "duration_s": 0.6}, {"rate_per_s": 50, "arrivals": "constant", "duration_s": 1}]
    scenario = write_noop_scenario(tmp_path, stages=stages, warm_up_s=0)
    out = tmp_path / "out"
    command = ["run", str(scenario), "--out", str(out), "--url", guarded.grpc_url, "--processes", "2", *trusted]
    assert main([*command, f"--admin-token-file={token_file}"]) == 0
    text = (out / "results.json").read_text(encoding="utf-8")
    results = json.loads(text)
    closed, opened = results["stages"]
    assert closed["requests"] > 20
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
    locustfile = Path(__file__).parents[2] / "loadtests" / "locustfile.py"
    command = [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "-u", "2", "-r", "2", "-t", "1s"]
    done = subprocess.run(
        [*command, "--host", guarded.grpc_url, "--json", *trusted],
        env={**os.environ, "TRITONPRESS_SCENARIO": str(write_noop_scenario(tmp_path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    assert entry["num_requests"] > 0
    assert entry["num_failures"] == 0
