"""What a client and a balancer see of a server that is told to stop."""

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from test_server_cli import COMMAND, FREE_PORTS
from tiny_models import infer, write_model
from tritonclient.utils import InferenceServerException

ONE = np.zeros((1, 4), np.float32)
SLOW_MODEL = """
import time
from pathlib import Path
import triton_python_backend_utils as pb_utils

folder = Path(FOLDER)

class TritonPythonModel:
    def execute(self, requests):
        (folder / "running").touch()
        end = time.monotonic() + 600
        while not (folder / "released").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
"""


def write_slow_model(folder: Path) -> Path:
    """A repository with a model that writes `running` into `folder`, and answers once `released` is there."""
    path = write_model(folder / "repo", "slow", None, platform="", backend="python") / "1" / "model.py"
    path.write_text(SLOW_MODEL.replace("FOLDER", repr(str(folder))))
    return folder / "repo"


def tensor() -> grpcclient.InferInput:
    given = grpcclient.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(ONE)
    return given


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{url}/v2/health/ready", timeout=60) as response:
            return bool(response.status == 200)
    except TimeoutError:  # says nothing
        raise
    except OSError:  # says no, or takes no new connection
        return False


@contextmanager
def asked(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str, Future[Any]]]:
    """The command with a request in flight: the process, its URLs of gRPC and HTTP, and the answer to come."""
    command = [*COMMAND, str(write_slow_model(folder)), *FREE_PORTS, "--drain-s", "60", "--log", str(folder / "log")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        assert process.stdout is not None
        line = process.stdout.readline().split()
        grpc_url, http_url = line[line.index("grpc") + 1], line[line.index("http") + 1]
        assert ready(http_url)
        answer = pool.submit(infer, grpc_url, "slow", {"x": ONE})
        while not (folder / "running").exists():
            if answer.done():
                answer.result()  # raises what it was refused with
            time.sleep(0.01)
        try:
            yield process, grpc_url, http_url, answer
        finally:
            process.kill()  # no answer keeps a test that fails


def test_readiness_goes_first_and_what_is_in_flight_is_answered(tmp_path: Path) -> None:
    with asked(tmp_path) as (process, grpc_url, http_url, answer):
        process.send_signal(signal.SIGTERM)
        while ready(http_url):
            time.sleep(0.02)
        # A balancer that asks sees it before the answer is there, and what is new is refused, not lost on the way.
        with grpcclient.InferenceServerClient(grpc_url) as client:
            with pytest.raises(InferenceServerException, match="Server exiting"):
                while client.is_server_ready(client_timeout=60):  # HTTP is gone some milliseconds before
                    time.sleep(0.02)
            with pytest.raises(InferenceServerException, match="no available versions"):
                client.infer("slow", [tensor()], client_timeout=60)
        assert not answer.done()
        (tmp_path / "released").touch()
        np.testing.assert_array_equal(answer.result()["y"], ONE)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.endswith("stopped\n")


def test_a_second_signal_ends_it_at_once_and_not_with_status_0(tmp_path: Path) -> None:
    with asked(tmp_path) as (process, _, http_url, answer):
        process.send_signal(signal.SIGTERM)
        while ready(http_url):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        with pytest.raises(InferenceServerException):
            answer.result()
    assert process.returncode == 130
    assert err.startswith("tritonpress-serve: told to stop again while it drained: Triton was killed")
    assert err.count("\n") == 1
    assert "stopped" not in out


def test_what_takes_longer_than_the_time_to_drain_is_given_up(tmp_path: Path) -> None:
    repository = write_slow_model(tmp_path)
    script = (
        "import sys, threading, time; from pathlib import Path; from tritonpress_server import Settings, TritonServer\n"
        "from tiny_models import infer; import numpy as np\n"
        "server = TritonServer(sys.argv[1], log_path=sys.argv[2], settings=Settings(drain_s=1)); server.start()\n"
        "ask = lambda: infer(server.grpc_url, 'slow', {'x': np.zeros((1, 4), np.float32)})\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "while not Path(sys.argv[3]).exists(): time.sleep(0.01)\n"
        "server.stop(timeout_s=5); print('stopped', flush=True)\n"
        "import os; os._exit(0)"
    )
    command = [sys.executable, "-c", script, str(repository), str(tmp_path / "log"), str(tmp_path / "running")]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=Path(__file__).parent)
    assert done.stdout == "stopped\n", done.stderr
    assert time.monotonic() - started < 250
