"""The locustfile under Locust's own command: its web page, and several processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from scenarios import write_scenario
from tritonpress_server import TritonServer
from tritonpress_server.ports import choose_ports

LOCUSTFILE = Path(__file__).parents[2] / "loadtests" / "locustfile.py"
# Tells of each request which process sent it.
WATCHED = f"""
import os, runpy
from locust import events
LoadedUser = runpy.run_path({str(LOCUSTFILE)!r})["LoadedUser"]

@events.request.add_listener
def note(context, **_):
    with open(os.path.join(os.environ["SENT"], str(os.getpid())), "a") as sent:
        sent.write(context["drawn"].payload.hex() + "\\n")
"""


@contextlib.contextmanager
def locust(*arguments: str, scenario: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Runs Locust beside the block, and ends it."""
    environment = {**os.environ, "TRITONPRESS_SCENARIO": str(scenario), **variables}
    command = [sys.executable, "-m", "locust", *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=60)


def page(url: str, process: subprocess.Popen[str]) -> str:
    """Returns what is at the address, once something is."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.1)
    raise AssertionError("Locust has ended")


def test_the_web_page_shows_the_users(folder: Path, tiny_server: TritonServer) -> None:
    port = choose_ports("127.0.0.1", {"web": None})["web"]
    web = ["--web-host", "127.0.0.1", "--web-port", str(port), "--autostart", "-u", "2", "-r", "2"]
    arguments = ["-f", str(LOCUSTFILE), "--host", tiny_server.grpc_url, *web]
    url = f"http://127.0.0.1:{port}"
    with locust(*arguments, scenario=write_scenario(folder)) as process:
        assert "<title>Locust" in page(f"{url}/", process)
        while not (entries := json.loads(page(f"{url}/stats/requests", process))["stats"])[0]["num_requests"]:
            time.sleep(0.1)
    assert entries[0]["name"] == "recommendation"
    assert entries[0]["num_failures"] == 0


def sent_by_process(folder: Path) -> list[int]:
    """Returns how many requests each process has told of."""
    return [path.read_text(encoding="utf-8").count("\n") for path in folder.iterdir()]


def test_processes_ask_different_things(folder: Path, tiny_server: TritonServer) -> None:
    queries = "".join(json.dumps({"query": f"red lamp {number}"}) + "\n" for number in range(1000))
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    sent = folder / "sent"
    sent.mkdir()
    locustfile = folder / "locustfile.py"
    locustfile.write_text(WATCHED, encoding="utf-8")
    users = ["--headless", "--processes", "2", "-u", "2", "-r", "2"]
    arguments = ["-f", str(locustfile), "--host", tiny_server.grpc_url, *users]
    with locust(*arguments, scenario=write_scenario(folder), SENT=str(sent)) as process:
        while [count >= 20 for count in sent_by_process(sent)] != [True, True]:
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    first, second = (path.read_text(encoding="utf-8").split() for path in sent.iterdir())
    assert first[:20] != second[:20]
