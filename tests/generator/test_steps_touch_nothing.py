"""What Triton's Python steps do while they answer: they run nothing that they are asked, and write and reach nothing.

The processes of the steps are watched by an audit hook (PEP 578), which is put before what they run.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from at_once import AT_ONCE
from tiny_sources import TASKS
from tritonpress_client import Connection, TritonpressError
from tritonpress_generator.build import build
from tritonpress_server import TritonServer

_WATCH = """
import os
import sys

_log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_armed = os.environ["WATCH_ARMED"]
_EVENTS = ("exec", "compile", "import", "os.", "subprocess.", "socket.", "shutil.", "pickle.", "ctypes.", "marshal.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")


def _watch(event, arguments):
    if event == "open":
        # What is looked up for an import, or shown of a fault, is read.
        if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif not event.startswith(_EVENTS) or event in _HARMLESS:
        return
    if os.path.exists(_armed):
        os.write(_log, f"{event} {arguments!r:.300}\\n".encode())


sys.addaudithook(_watch)
"""
_WRITER = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel()[0].decode()
            with open("/dev/null", "w") as file:
                file.write(str(eval(text)))
            answers.append(pb_utils.InferenceResponse([]))
        return answers
"""
_CONFIG = """name: "writer" backend: "python" max_batch_size: 1
input [{ name: "TEXT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "NONE" data_type: TYPE_STRING dims: [1] }]
"""
HOSTILE = [
    "__import__('os').system('touch outside')", "{0.__class__.__mro__}", "${jndi:ldap://127.0.0.1/a}", "`id`", "%s%s%n",
    "$(touch outside)", "../../../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/", "'; drop table",
    "!!python/object/apply:os.getpid", "cos\nsystem\n(S'id'\ntR.", "a\0b", "\u202e\ufeff\U0001f600" * 30, "<script>",
    "[CLS][SEP][MASK][PAD][UNK]", "a " * 5000, "", " ", "\n" * 100, '{"a": ' * 500, "\x7fELF", "a" * 100_000,
]  # fmt: skip
GOOD = "Where is my order?"
NOT_UTF_8 = b"\xff\xfe\xc0"


@dataclass(frozen=True)
class Watched:
    """A server whose steps are watched."""

    url: str
    log: Path
    models: list[str]


@pytest.fixture(scope="module")
def watched(task_sources: Path, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    repository = Path(shutil.copytree(tiny_repository, folder / "model_repo"))
    for task in TASKS:
        build(task_sources / task / "recipe.yaml", repository)
    writer = repository / "writer"
    (writer / "1").mkdir(parents=True)
    (writer / "1" / "model.py").write_text(_WRITER)
    (writer / "config.pbtxt").write_text(_CONFIG)
    for path in repository.glob("*/1/model.py"):
        path.write_text(_WATCH + path.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATCH_LOG", str(folder / "log"))
        patch.setenv("WATCH_ARMED", str(folder / "armed"))
        models = ["recommendation", *TASKS]
        with TritonServer(repository, models=[*models, "writer"], settings=AT_ONCE) as server:
            with Connection(server.grpc_url) as connection:
                for model in models:
                    ask(connection, model, GOOD)  # what is imported late is there
            (folder / "armed").touch()
            yield Watched(server.grpc_url, folder / "log", models)


def ask(connection: Connection, model: str, text: str | bytes) -> None:
    """Asks with a text in the place of every text, and with one that is good beside it in every other."""
    names = list(connection.model_metadata(model).inputs)
    for hostile in (names, *([name] for name in names if len(names) > 1)):
        inputs = {name: np.array([[text if name in hostile else GOOD]], object) for name in names}
        with contextlib.suppress(TritonpressError):
            connection.infer(model, inputs)


def test_steps_do_nothing_but_answer(watched: Watched) -> None:
    with Connection(watched.url) as connection:
        for model in watched.models:
            for text in (*HOSTILE, NOT_UTF_8):
                ask(connection, model, text)
            assert connection.model_metadata(model).name == model
    assert watched.log.read_text() == ""


def test_a_step_that_does_is_seen(watched: Watched) -> None:
    with Connection(watched.url) as connection:
        ask(connection, "writer", "1 + 1")
    seen = watched.log.read_text()
    watched.log.write_text("")
    assert {line.split(" ", 1)[0] for line in seen.splitlines()} >= {"open", "compile", "exec"}
