"""Starting, stopping and dying of the embedded Triton."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_models import add_one, infer, write_model
from tritonpress_server import (
    ModelRepositoryError,
    PortInUseError,
    ServerStartError,
    ServerTimeoutError,
    TritonServer,
)
from tritonpress_server.guard import clean_up
from tritonpress_server.ports import choose_ports

ONE = np.zeros((1, 4), np.float32)
SLOW_MODEL = """
import time
from pathlib import Path
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        Path(RUNNING).touch()
        time.sleep(1.5)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in _said(task).split()}


def _gone(pids: set[int]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    status = _said(Path(f"/proc/{pid}/status"))
    return status != "" and "\nState:\tZ" not in status


def _said(path: Path) -> str:
    """What a file in /proc says; nothing of a process or a thread that ends meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _listening(port: int) -> set[str]:
    """The addresses that listen on the port, as /proc/net writes them."""
    lines = [line for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    sockets = (line.split()[1:4:2] for line in lines)
    return {local.split(":")[0] for local, state in sockets if state == "0A" and int(local.split(":")[1], 16) == port}


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def test_serves_every_model_and_passes_over_files_and_hidden_folders(served: TritonServer) -> None:
    names = [name for name, _ in served.served_models()]
    assert names == sorted(folder.name for folder in served.repository.iterdir() if (folder / "config.pbtxt").exists())
    with urllib.request.urlopen(f"http://{served.metrics_url}/metrics", timeout=10) as response:
        assert b'nv_inference_count{model="add_one"' in response.read()


def test_listens_on_the_loopback_alone(served: TritonServer) -> None:
    for url in (served.grpc_url, served.http_url, served.metrics_url):
        # gRPC opens a socket for both families and binds the IPv4 loopback in it.
        assert _listening(_port(url)) <= {"0100007F", "0000000000000000FFFF00000100007F"}
        assert _listening(_port(url))


def test_leaves_no_byte_code_in_the_repository(served: TritonServer) -> None:
    assert not list(served.repository.rglob("__pycache__"))


def test_ports_that_are_given_are_taken_and_the_log_is_kept(repository: Path, tmp_path: Path) -> None:
    with TritonServer(repository) as other:
        taken = _port(other.http_url)
        with pytest.raises(PortInUseError, match=rf"grpc_port {taken} on 127.0.0.1 is in use.*choose another port"):
            TritonServer(repository, grpc_port=taken).start()
    # Free again, and no other test's: the server before us had them.
    ports = {name: _port(url) for name, url in (("grpc", other.grpc_url), ("http", other.http_url))}
    log = tmp_path / "triton.log"
    log.write_text("what was there\n")
    with TritonServer(repository, grpc_port=ports["grpc"], http_port=ports["http"], log_path=log) as server:
        assert server.grpc_url == f"127.0.0.1:{ports['grpc']}"
        np.testing.assert_array_equal(infer(server.grpc_url, "add_one", {"x": ONE})["y"], ONE + 1)
        stubs = _children(server.pid)
        everything = {server.pid, *stubs}
        assert stubs
        with pytest.raises(ServerStartError, match="runs already"):
            server.start()
    assert _gone(everything)
    assert server.pid == 0
    assert log.read_text().startswith("what was there\n")
    assert other.log_path is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grpc_port": 70000}, r"grpc_port must be in \[1, 65535\], got 70000"),
        ({"grpc_port": 12345, "http_port": 12345}, "http_port must differ from the other ports, got 12345 twice"),
        ({"host": "no.such.host.invalid"}, "host 'no.such.host.invalid' must be an address of this machine"),
    ],
)
def test_ports_that_cannot_be_are_refused(repository: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(PortInUseError, match=message):
        TritonServer(repository, **options).start()  # type: ignore[arg-type]


def test_a_port_that_is_lost_while_triton_starts_is_named(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        options = [f"--http-port={other.getsockname()[1]}"]
        # No outgoing connection takes these before Triton binds them.
        ports = choose_ports("127.0.0.1", {"grpc": None, "http": None, "metrics": None})
        server = TritonServer(
            repository,
            grpc_port=ports["grpc"],
            http_port=ports["http"],
            metrics_port=ports["metrics"],
            log_path=tmp_path / "log",
            extra_args=options,
        )
        with pytest.raises(PortInUseError, match="a port was taken while Triton started"):
            server.start()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "must be an existing folder; build one with: tritonpress build RECIPE"),
        (lambda path: path, "holds no model; build one with: tritonpress build RECIPE"),
    ],
)
def test_a_repository_that_is_not_there_or_empty_is_refused(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "README.md").write_text("nothing yet")
    with pytest.raises(ModelRepositoryError, match=message):
        TritonServer(make(tmp_path)).start()


def test_a_model_that_is_not_there_is_refused(repository: Path) -> None:
    with pytest.raises(ModelRepositoryError, match=r"model 'nope' is not in model repository .*; choose from add_one"):
        TritonServer(repository, models=["nope"]).start()


def test_an_option_that_triton_does_not_know_shows_the_log(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"Triton ended with status 1 .*\n(.*\n)*.*--no-such-option"):
        TritonServer(repository, log_path=tmp_path / "log", extra_args=["--no-such-option"]).start()


def test_a_start_that_takes_too_long_is_given_up(repository: Path, tmp_path: Path) -> None:
    server = TritonServer(repository, startup_timeout_s=0.01, log_path=tmp_path / "log")
    with pytest.raises(ServerTimeoutError, match=r"startup_timeout_s=0\.01; raise it"):
        server.start()
    assert server.pid == 0


def test_stop_lets_requests_in_flight_end_and_a_chosen_model_is_served_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "repo", "slow", None, platform="", backend="python")
    running = tmp_path / "running"
    (folder / "1" / "model.py").write_text(SLOW_MODEL.replace("RUNNING", repr(str(running))))
    write_model(tmp_path / "repo", "add_one", add_one())
    server = TritonServer(tmp_path / "repo", models=["slow"])
    # Started by a thread that ends: the server must live as long as the process, not as that thread.
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    assert server.served_models() == [("slow", "1")]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(infer, server.grpc_url, "slow", {"x": ONE})
        while not running.exists():
            if answer.done():
                answer.result()  # raises what it was refused with
            time.sleep(0.01)
        server.stop()
        np.testing.assert_array_equal(answer.result()["y"], ONE)


def test_a_server_that_ends_while_it_is_asked_what_it_serves_is_said(repository: Path) -> None:
    with TritonServer(repository) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == 128 + signal.SIGKILL
        with pytest.raises(ServerStartError, match=rf"at {server.http_url}, it does not: .*refused; see its log /"):
            server.served_models()


@pytest.mark.parametrize("victim", ["parent", "guard"])
def test_server_and_stubs_die_with_a_killed_process(repository: Path, tmp_path: Path, victim: str) -> None:
    script = (
        "import sys, time; from tritonpress_server import TritonServer\n"
        "server = TritonServer(sys.argv[1], log_path=sys.argv[2]); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(repository), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        stubs, (guard,) = _children(server), _children(parent.pid)
        assert stubs
        leftovers = _leftovers(server)
        assert len(leftovers) >= 2
        os.kill(parent.pid if victim == "parent" else guard, signal.SIGKILL)
        assert _gone({server, *stubs})
        parent.kill()
    if victim == "parent":
        assert _gone({guard})
        assert not [path for path in leftovers if path.exists()]
    else:
        clean_up(leftovers[0])


def _leftovers(server: int) -> list[Path]:
    """The private folder and the shared memory of a running server."""
    arguments = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    (folder,) = (Path(word.partition("=")[2]).parent for word in arguments if word.startswith("--backend-directory="))
    return [folder, *Path("/dev/shm").glob(f"{folder.name}*")]


def test_a_full_or_missing_tmpdir_is_said(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ServerStartError, match=r"must have room for .*: No such file.*set TMPDIR"):
        TritonServer(repository).start()
