"""For tests of switches: what lies in a repository, what a server has loaded, and clients that know the answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tritonpress_client import Options, Retries, TritonpressError
from tritonpress_client.connection import Connection
from tritonpress_generator import builds, cli

NAME, CANARY = "recommendation", "recommendation_canary"
QUERY = {"QUERY": np.array([[b"red"]], np.object_)}


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def old_and_new(model_repo: Path) -> tuple[str, str]:
    tried = builds.canary(model_repo, NAME)
    assert tried is not None
    return builds.served(model_repo, NAME), tried


def states(model_repo: Path) -> dict[str, str]:
    return {row["build"]: row["state"] for row in builds.listing(model_repo, NAME)}


def steps_of(model_repo: Path) -> dict[str, set[str]]:
    """The steps of each build that lies there."""
    return {build: {*m["steps"].values()} for build, m in builds.manifests(model_repo, NAME).items()}


def loaded(url: str) -> set[str]:
    """The models that answer, those too whose folders are gone: the index of Triton lists none of these."""
    with Connection(url, timeout_s=30) as connection:
        return {entry.name for entry in connection.statistics()}


class Load:
    """Clients that ask the workload on and on, each request once, and know both builds' answers."""

    def __init__(self, url: str, model_repo: Path) -> None:
        golden = {
            build: manifest["golden"]["requests"] for build, manifest in builds.manifests(model_repo, NAME).items()
        }
        self.queries = [request["inputs"]["QUERY"] for request in next(iter(golden.values()))]
        self.expected = {
            build: {request["inputs"]["QUERY"]: request["outputs"] for request in requests}
            for build, requests in golden.items()
        }
        self.url = url
        self.seen: list[str] = []
        self.stop = threading.Event()

    def ask(self) -> None:
        once = Options(retries=Retries(attempts=1))
        with Connection(self.url, timeout_s=30.0, options=once) as connection:
            while not self.stop.is_set():
                for query in self.queries:
                    try:
                        answer = connection.infer(NAME, {"QUERY": np.array([[query.encode()]], np.object_)})
                    except TritonpressError as exc:
                        self.seen.append(f"lost: {exc}")
                    else:
                        self.seen.append(self.build(query, answer))

    def build(self, query: str, answer: dict[str, np.ndarray]) -> str:
        """Which build gives this answer: the ids alone would not tell a mixed one."""
        items = [item.decode() for item in answer["ITEM_ID"][0]]
        for build, expected in self.expected.items():
            if items == expected[query]["ITEM_ID"]:
                close = np.abs(answer["SCORE"][0] - expected[query]["SCORE"]).max() < 1e-4
                return build if close else f"mixed: {items}"
        return f"mixed: {items}"


@contextmanager
def asked(url: str, model_repo: Path, clients: int = 4) -> Iterator[Load]:
    load = Load(url, model_repo)
    threads = [threading.Thread(target=load.ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()


def wait_for(load: Load, build: str, count: int = 50) -> None:
    """Returns once so many more answers have come, the last of them from `build`."""
    start = len(load.seen)
    for _ in range(600):
        if len(load.seen) >= start + count and load.seen[-1] == build:
            return
        load.stop.wait(0.05)
    raise AssertionError(f"no answers of {build}: {load.seen[-3:]}")
