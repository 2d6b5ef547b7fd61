"""What a probe sees of a server: it is not ready before all is loaded that it starts with, and then until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from at_once import AT_ONCE
from test_draining import ready
from tiny_models import write_model
from tritonclient.utils import InferenceServerException
from tritonpress_server import Settings, TritonServer
from tritonpress_server.ports import choose_ports
from tritonpress_server.settings import MODES

REFUSED = "raise RuntimeError('not on this machine')"
HELD = """
import time
from pathlib import Path

folder = Path(FOLDER)

class TritonPythonModel:
    def initialize(self, args):
        (folder / "loading").touch()
        end = time.monotonic() + 600
        while not (folder / "released").exists() and time.monotonic() < end:
            time.sleep(0.01)

    def execute(self, requests):
        return []
"""


def write_python(repository: Path, name: str, code: str) -> None:
    """Writes a model of this code, whose FOLDER is the one that the repository lies in."""
    path = write_model(repository, name, None, platform="", backend="python") / "1" / "model.py"
    path.write_text(code.replace("FOLDER", repr(str(repository.parent))))


def begun(pool: ThreadPoolExecutor, folder: Path, load: Callable[[], Any]) -> Future[Any]:
    """What `load` comes to, once a held model's loading has begun."""
    loaded = pool.submit(load)
    while not (folder / "loading").exists():
        if loaded.done():
            loaded.result()  # raises what it was refused with
        time.sleep(0.01)
    return loaded


@pytest.mark.parametrize("mode", MODES)
def test_a_server_is_not_ready_before_all_is_loaded(repository: Path, tmp_path: Path, mode: str) -> None:
    write_python(repository, "held", HELD)
    port = choose_ports("127.0.0.1", {"http": None})["http"]
    # Where it polls, it ends after a look at the files.
    settings = Settings(model_control=mode, drain_s=0, **({"poll_s": 1} if mode == "poll" else {}))
    server = TritonServer(repository, http_port=port, settings=settings)
    with ThreadPoolExecutor(1) as pool:
        try:
            started = begun(pool, tmp_path, server.start)
            assert not ready(f"127.0.0.1:{port}")
            (tmp_path / "released").touch()
            started.result()
            assert ready(server.http_url)
        finally:
            (tmp_path / "released").touch()  # a test that fails waits for nothing
            server.stop()


def test_a_server_is_ready_while_it_loads_a_model_and_where_it_refuses_one(repository: Path, tmp_path: Path) -> None:
    write_python(repository, "held", HELD)
    write_python(repository, "refused", REFUSED)
    with (
        TritonServer(repository, models=["add_one"], settings=AT_ONCE) as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            loaded = begun(pool, tmp_path, lambda: client.load_model("held"))
            assert ready(server.http_url)
            (tmp_path / "released").touch()
            loaded.result()
            with pytest.raises(InferenceServerException, match="not on this machine"):
                client.load_model("refused")
            assert ready(server.http_url)
        finally:
            (tmp_path / "released").touch()


def test_a_server_that_polls_is_ready_where_it_refuses_a_model(repository: Path) -> None:
    with (
        TritonServer(repository, settings=Settings(model_control="poll", poll_s=1, drain_s=0)) as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        write_python(repository, "refused", REFUSED)
        end = time.monotonic() + 60
        while not any("not on this machine" in model.reason for model in client.get_model_repository_index().models):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert ready(server.http_url)
