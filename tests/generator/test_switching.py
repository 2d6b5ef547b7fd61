"""Builds beside one another, and the switch between them: in the files, and on a real Triton under load."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from at_once import AT_ONCE
from tiny_builds import write_other_sources
from tritonpress_client import TritonpressError
from tritonpress_client.connection import Connection
from tritonpress_generator import builds, cli, repository, switching, workplace
from tritonpress_server import Settings, TritonServer

NAME, CANARY = "recommendation", "recommendation_canary"


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def both(tiny_sources: Path, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tiny build serving and another, of which every step differs, as its canary."""
    folder = tmp_path_factory.mktemp("both")
    model_repo = Path(shutil.copytree(tiny_repository, folder / "model_repo"))
    recipe = write_other_sources(tiny_sources, folder / "sources")
    assert run("build", recipe, "--out", model_repo, "--canary") == 0
    return model_repo


@pytest.fixture
def model_repo(both: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(both, tmp_path / "model_repo"))


def old_and_new(model_repo: Path) -> tuple[str, str]:
    tried = builds.canary(model_repo, NAME)
    assert tried is not None
    return builds.served(model_repo, NAME), tried


def states(model_repo: Path) -> dict[str, str]:
    return {row["build"]: row["state"] for row in builds.listing(model_repo, NAME)}


def whole(model_repo: Path) -> None:
    """Every ensemble's steps are there, as they were written."""
    for name in builds.workloads(model_repo):
        assert repository.changed_files(model_repo, repository.read_manifest(model_repo, name)) == []


def test_a_canary_stands_beside_and_changes_nothing(both: Path, tiny_repository: Path) -> None:
    old, new = old_and_new(both)
    assert states(both) == {old: "served", new: "canary"}
    assert (both / NAME / "config.pbtxt").read_bytes() == (tiny_repository / NAME / "config.pbtxt").read_bytes()
    steps = {step.model_name for step in builds.read_config(both / CANARY).ensemble_scheduling.step}
    assert not steps & {step.model_name for step in builds.read_config(both / NAME).ensemble_scheduling.step}
    assert [row["build"] for row in json.loads((both / NAME / "manifest.json").read_text())["builds"]] == [old, new]
    whole(both)


def test_promote_and_rollback_switch_the_files(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = old_and_new(model_repo)
    before = (model_repo / NAME / "config.pbtxt").read_bytes()
    assert run("promote", model_repo, NAME) == 0
    assert f"{NAME}: build {new} serves, {old} did before" in capsys.readouterr().out
    assert states(model_repo) == {new: "served", old: "previous"}
    assert json.loads((model_repo / NAME / "manifest.json").read_text())["build"] == new
    assert run("promote", model_repo, NAME) == 0  # the canary names that build still
    assert "serves as before" in capsys.readouterr().out
    assert builds.previous(model_repo, NAME) == [old]
    assert run("rollback", model_repo, NAME) == 0
    assert (model_repo / NAME / "config.pbtxt").read_bytes() == before
    assert states(model_repo) == {old: "served", new: "canary"}
    whole(model_repo)


def test_old_builds_are_collected_and_none_that_an_ensemble_names(model_repo: Path) -> None:
    old, new = old_and_new(model_repo)
    assert run("promote", model_repo, NAME, "--keep", "0") == 0
    assert states(model_repo) == {new: "served"}
    assert len([path for path in model_repo.iterdir() if path.name.startswith(f"{NAME}_")]) == 4
    whole(model_repo)
    assert run("rollback", model_repo, NAME) == 2
    assert run("promote", model_repo, NAME, old) == 2


def test_what_a_canary_names_stays(model_repo: Path) -> None:
    old, new = old_and_new(model_repo)
    assert run("promote", model_repo, NAME, old, "--keep", "0") == 0
    assert states(model_repo) == {old: "served", new: "canary"}
    assert run("rollback", model_repo, NAME, "--canary", "--keep", "1") == 0
    assert states(model_repo) == {old: "served", new: "kept"}
    assert not (model_repo / CANARY).exists()
    assert run("promote", model_repo, NAME, new) == 0
    assert states(model_repo) == {new: "served", old: "previous"}


@pytest.mark.parametrize(
    ("arguments", "spoil", "message"),
    [
        (["promote", "nothing"], None, "has no workload 'nothing'; choose from: recommendation"),
        (["promote", CANARY], None, f"has no workload '{CANARY}'; choose from: recommendation"),
        (["promote", NAME, "0123456789ab"], None, "has no build '0123456789ab'; choose from: "),
        (["rollback", NAME], None, "no build lies there that served before"),
        (["promote", NAME, "--server", "127.0.0.1:1"], None, "no Triton server answers at 127.0.0.1:1"),
        (["promote", NAME, "--server", "nonsense"], None, "must be HOST:PORT"),
        (["rollback", NAME, "--canary"], lambda m: shutil.rmtree(m / CANARY), "has no canary; builds that lie there"),
        (["promote", NAME], lambda m: shutil.rmtree(m / CANARY), "has no canary; say which build"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    model_repo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], spoil: object, message: str
) -> None:
    if spoil is not None:
        spoil(model_repo)  # type: ignore[operator]
    before = (model_repo / NAME / "config.pbtxt").read_bytes()
    assert run(arguments[0], model_repo, *arguments[1:]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert (model_repo / NAME / "config.pbtxt").read_bytes() == before


def test_a_build_with_a_changed_file_is_not_promoted(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, new = old_and_new(model_repo)
    step = repository.read_manifest(model_repo, CANARY)["steps"]["engine"]
    (model_repo / step / "1" / "model.onnx").write_bytes(b"")
    assert run("promote", model_repo, NAME) == 1
    assert f"build {new}: {step}/1/model.onnx has changed; nothing was switched" in capsys.readouterr().err
    assert builds.served(model_repo, NAME) != new


def test_a_canary_of_nothing_is_refused(tiny_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", tiny_sources / "recipe.yaml", "--out", tmp_path, "--canary") == 2
    assert "must serve recommendation for a canary beside it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_workload_is_changed_by_one_process_at_a_time(model_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workplace.at_work(model_repo, NAME, wait=True):
        assert run("promote", model_repo, NAME) == 2
    assert "another build, promote or rollback is changing it" in capsys.readouterr().err
    assert run("promote", model_repo, NAME) == 0


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from tritonpress_generator import cli, switching
model_repo = Path(sys.argv[1])
def promote(victim, left):
    def counted(event, arguments):
        nonlocal left
        # Every change of a name in the repository passes here: folders made, files opened, renamed and removed.
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "open") and victim in str(arguments[:2]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(counted)
    os._exit(cli.main(["promote", victim, "recommendation", "--keep", "0"]))
for allowed in range(0, 400, 5):
    victim = str(shutil.copytree(model_repo, model_repo.with_name(f"victim-{allowed:03}")))
    child = os.fork()  # of a process that has all it needs imported: a new one takes seconds
    if not child:
        promote(victim, allowed)
    _, status = os.waitpid(child, 0)
    print(victim, os.waitstatus_to_exitcode(status))
    if os.WIFEXITED(status):
        break
"""


def test_promote_killed_at_any_moment_leaves_a_whole_repository(model_repo: Path) -> None:
    """Kills it at each touch of the file system in turn; the same command again then does the rest."""
    old, new = old_and_new(model_repo)
    done = subprocess.run([sys.executable, "-c", KILLED, str(model_repo)], capture_output=True, text=True, check=True)
    victims = [line.split() for line in done.stdout.splitlines() if "/victim-" in line]
    assert [int(status) for _, status in victims] == [-signal.SIGKILL] * (len(victims) - 1) + [0]
    seen = []
    for victim in (Path(name) for name, _ in victims):
        whole(victim)
        seen.append(builds.served(victim, NAME))
        assert run("promote", victim, NAME, "--keep", "0") == 0
        assert states(victim) == {new: "served"}
        assert not list(victim.rglob(".build-*"))
        whole(victim)
    assert seen == sorted(seen, key=[old, new].index)
    assert (seen[0], seen[-1]) == (old, new)
    assert len(seen) > 8


class Load:
    """Clients that ask the workload on and on, and know both builds' answers."""

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
        with Connection(self.url, timeout_s=30.0) as connection:
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


def test_a_switch_under_load_loses_and_mixes_nothing(model_repo: Path) -> None:
    old, new = old_and_new(model_repo)
    shutil.rmtree(model_repo / CANARY)  # so that the server has the new steps only when it is told
    steps = {build: {*m["steps"].values()} for build, m in builds.manifests(model_repo, NAME).items()}
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        assert {name for name, _ in server.served_models()} == {NAME, *steps[old]}
        with asked(server.grpc_url, model_repo) as load:
            wait_for(load, old)
            assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 0
            wait_for(load, new)
            assert {name for name, _ in server.served_models()} == {NAME, *steps[new]}
            assert run("rollback", model_repo, NAME, "--server", server.grpc_url) == 0
            wait_for(load, old)
            assert {name for name, _ in server.served_models()} == {NAME, *steps[old]}
    assert set(load.seen) == {old, new}
    assert sum(a != b for a, b in zip(load.seen, load.seen[1:], strict=False)) >= 2


@pytest.mark.slow
def test_a_server_that_polls_follows_the_files(model_repo: Path) -> None:
    old, new = old_and_new(model_repo)
    with (
        TritonServer(model_repo, settings=Settings(model_control="poll", poll_s=1)) as server,
        asked(server.grpc_url, model_repo) as load,
    ):
        wait_for(load, old)
        assert run("promote", model_repo, NAME) == 0
        wait_for(load, new)
        assert run("rollback", model_repo, NAME, "--server", server.grpc_url) == 0
        assert load.seen[-1] == old
    assert set(load.seen) == {old, new}


@pytest.mark.slow
def test_a_server_takes_a_canary_and_gives_it_up(model_repo: Path) -> None:
    old, new = old_and_new(model_repo)
    steps = {build: {*m["steps"].values()} for build, m in builds.manifests(model_repo, NAME).items()}
    query = {"QUERY": np.array([[b"red"]], np.object_)}
    with (
        TritonServer(model_repo, models=[NAME], settings=AT_ONCE) as server,
        Connection(server.grpc_url, timeout_s=30) as connection,
    ):
        switching.bring_up(model_repo, NAME, canary=True, servers=switching.Servers([server.grpc_url]))
        load = Load(server.grpc_url, model_repo)
        assert load.build("red", connection.infer(NAME, query)) == old
        assert load.build("red", connection.infer(CANARY, query)) == new
        assert run("rollback", model_repo, NAME, "--canary", "--server", server.grpc_url) == 0
        assert {name for name, _ in server.served_models()} == {NAME, *steps[old]}
        # One that a kill has kept from being told is found out, and brought up to date.
        with workplace.at_work(model_repo, NAME, wait=True) as work:
            builds.switch(model_repo, NAME, new, work, before=[old])
        assert run("rollback", model_repo, NAME, "--server", server.grpc_url) == 2
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 0
        assert load.build("red", connection.infer(NAME, query)) == new


def test_a_server_that_cannot_load_a_build_is_left_as_it_was(
    model_repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(model_repo)
    shutil.rmtree(model_repo / CANARY)
    manifest = builds.manifests(model_repo, NAME)[new]
    step = manifest["steps"]["tokenizer"]
    file = f"{step}/1/model.py"
    (model_repo / file).write_text("raise RuntimeError('not on this machine')")
    entry = repository._entry(model_repo / file)
    manifest["files"][file] = entry
    (model_repo / NAME / f"manifest.{new}.json").write_text(json.dumps(manifest))
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 1
        error = capsys.readouterr().err
        assert step in error
        assert "nothing was switched" in error
        assert builds.served(model_repo, NAME) == old
        with asked(server.grpc_url, model_repo, 1) as load:
            wait_for(load, old)
    assert set(load.seen) == {old}


@pytest.mark.slow
def test_a_server_of_another_repository_is_told_apart(
    model_repo: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(model_repo)
    assert run("promote", model_repo, NAME, new, "--server", tiny_server.grpc_url) == 1
    assert "nothing was switched" in capsys.readouterr().err
    assert builds.served(model_repo, NAME) == old
