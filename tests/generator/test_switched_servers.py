"""The switch between builds on a real Triton, under load, and what is loaded afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
from at_once import AT_ONCE
from switched_builds import (
    CANARY,
    NAME,
    QUERY,
    Load,
    asked,
    loaded,
    old_and_new,
    run,
    states,
    steps_of,
    wait_for,
)
from tiny_builds import write_other_sources
from tritonpress_client import TritonpressError
from tritonpress_client.connection import Connection
from tritonpress_generator import builds, repository, switching, workplace
from tritonpress_generator.errors import VerificationError
from tritonpress_server import Settings, TritonServer


@pytest.fixture
def model_repo(both: Path, tmp_path: Path) -> Path:
    """A repository with two builds, whose server has the new one's steps only when it is told."""
    return without_canary(both, tmp_path / "model_repo")


def without_canary(repository_of: Path, folder: Path) -> Path:
    shutil.copytree(repository_of, folder)
    shutil.rmtree(folder / CANARY)
    return folder


def break_step(model_repo: Path, step: str) -> str:
    """Makes a Python step one that no server can load; returns its file."""
    file = f"{step}/1/model.py"
    (model_repo / file).write_text("raise RuntimeError('not on this machine')")
    return file


@pytest.mark.parametrize("layout", ["both", pytest.param("both_scripting", marks=pytest.mark.slow)])
def test_a_switch_under_load_loses_and_mixes_nothing(
    layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    old, new = old_and_new(request.getfixturevalue(layout))
    model_repo = without_canary(request.getfixturevalue(layout), tmp_path / "model_repo")
    steps = steps_of(model_repo)
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        assert loaded(server.grpc_url) == {NAME, *steps[old]}
        with asked(server.grpc_url, model_repo) as load:
            wait_for(load, old)
            assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 0
            wait_for(load, new)
            assert loaded(server.grpc_url) == {NAME, *steps[new]}
            assert run("rollback", model_repo, NAME, "--server", server.grpc_url) == 0
            wait_for(load, old)
            assert loaded(server.grpc_url) == {NAME, *steps[old]}
    assert set(load.seen) == {old, new}
    assert sum(a != b for a, b in zip(load.seen, load.seen[1:], strict=False)) >= 2


def test_steps_are_loaded_once(model_repo: Path, both: Path, tmp_path: Path) -> None:
    _, new = old_and_new(both)
    log = tmp_path / "triton.log"
    with TritonServer(model_repo, settings=AT_ONCE, log_path=log) as server:
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 0
    loads, steps = re.findall(r'"loading: (\S+):1"', log.read_text(encoding="utf-8")), steps_of(model_repo)[new]
    assert {step: loads.count(step) for step in steps} == dict.fromkeys(steps, 1)


@pytest.mark.slow
def test_a_server_that_polls_follows_the_files(model_repo: Path, both: Path) -> None:
    old, new = old_and_new(both)
    with (
        TritonServer(model_repo, settings=Settings(model_control="poll", poll_s=1)) as server,
        asked(server.grpc_url, model_repo) as load,
    ):
        wait_for(load, old)
        assert run("promote", model_repo, NAME, new) == 0
        wait_for(load, new)
        assert run("rollback", model_repo, NAME, "--server", server.grpc_url) == 0
        assert load.seen[-1] == old
    assert set(load.seen) == {old, new}


@pytest.mark.slow
def test_a_server_that_polls_loses_nothing_where_nothing_is_to_be_kept(
    tiny_sources: Path, tiny_repository: Path, both: Path, tmp_path: Path
) -> None:
    """It finds the new steps and the switch by one look, and must find the old ones there still."""
    old, new = old_and_new(both)
    model_repo = Path(shutil.copytree(tiny_repository, tmp_path / "model_repo"))
    recipe = write_other_sources(tiny_sources, tmp_path / "sources")
    gone = steps_of(model_repo)[old]
    with (
        TritonServer(model_repo, settings=Settings(model_control="poll", poll_s=1)) as server,
        asked(server.grpc_url, both) as load,
    ):
        wait_for(load, old)
        assert run("build", recipe, "--out", model_repo, "--keep", "0") == 0
        wait_for(load, new)
        assert run("promote", model_repo, NAME, new, "--keep", "0") == 0
        assert not [step for step in gone if (model_repo / step).exists()]
        for _ in range(600):
            if not gone & loaded(server.grpc_url):
                break
            load.stop.wait(0.05)
        wait_for(load, new)
        assert loaded(server.grpc_url) == {NAME, *steps_of(model_repo)[new]}
    assert set(load.seen) == {old, new}


@pytest.mark.slow
def test_a_server_takes_a_canary_and_gives_it_up(both: Path, tmp_path: Path) -> None:
    model_repo = Path(shutil.copytree(both, tmp_path / "model_repo"))
    old, new = old_and_new(model_repo)
    steps = steps_of(model_repo)
    with (
        TritonServer(model_repo, models=[NAME], settings=AT_ONCE) as server,
        Connection(server.grpc_url, timeout_s=30) as connection,
    ):
        switching.bring_up(model_repo, NAME, canary=True, servers=switching.Servers([server.grpc_url]))
        load = Load(server.grpc_url, model_repo)
        assert load.build("red", connection.infer(NAME, QUERY)) == old
        assert load.build("red", connection.infer(CANARY, QUERY)) == new
        assert run("rollback", model_repo, NAME, "--canary", "--server", server.grpc_url) == 0
        assert loaded(server.grpc_url) == {NAME, *steps[old]}
        # One that a kill has kept from being told is found out, and brought up to date.
        with workplace.at_work(model_repo, NAME, wait=True) as work:
            builds.switch(model_repo, NAME, new, work, before=[old])
        assert run("rollback", model_repo, NAME, "--server", server.grpc_url) == 2
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 0
        assert load.build("red", connection.infer(NAME, QUERY)) == new


@pytest.mark.slow
def test_a_canary_that_was_withdrawn_in_the_files_alone_is_unloaded_later(both: Path, tmp_path: Path) -> None:
    model_repo = Path(shutil.copytree(both, tmp_path / "model_repo"))
    old, _ = old_and_new(model_repo)
    steps = steps_of(model_repo)
    with TritonServer(model_repo, models=[NAME, CANARY], settings=AT_ONCE) as server:
        assert run("rollback", model_repo, NAME, "--canary") == 0
        assert run("promote", model_repo, NAME, old, "--server", server.grpc_url) == 0
        assert loaded(server.grpc_url) == {NAME, *steps[old]}


def test_a_build_beside_which_nothing_is_kept_leaves_nothing_else_loaded(
    tiny_sources: Path, tiny_repository: Path, tmp_path: Path
) -> None:
    model_repo = Path(shutil.copytree(tiny_repository, tmp_path / "model_repo"))
    recipe = write_other_sources(tiny_sources, tmp_path / "sources")
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        assert run("build", recipe, "--out", model_repo, "--server", server.grpc_url, "--keep", "0") == 0
        ((new, steps),) = steps_of(model_repo).items()
        assert builds.served(model_repo, NAME) == new
        assert loaded(server.grpc_url) == {NAME, *steps}


@pytest.mark.slow
def test_steps_whose_folders_are_gone_are_unloaded_and_none_of_others(model_repo: Path, both: Path) -> None:
    old, new = old_and_new(both)
    manifest = builds.read_manifest(model_repo, NAME, old)
    others = [f"{NAME}_model_by_hand", f"{NAME}_shop_tokenizer_0123456789ab", f"{NAME}_tokenizer_0123456789ab_2"]
    tokenizer = manifest["steps"]["tokenizer"]
    for other in others:
        shutil.copytree(model_repo / tokenizer, model_repo / other)
        config = model_repo / other / "config.pbtxt"
        config.write_text(config.read_text().replace(tokenizer, other))
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        for other in others:
            shutil.rmtree(model_repo / other)
        for _ in range(2):
            assert run("promote", model_repo, NAME, new, "--keep", "0") == 0
        assert states(model_repo) == {new: "served"}
        assert loaded(server.grpc_url) == {NAME, *manifest["steps"].values(), *others}
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 0
        assert loaded(server.grpc_url) == {NAME, *steps_of(model_repo)[new], *others}


def test_what_an_ensemble_on_the_server_names_stays_loaded(model_repo: Path, both: Path) -> None:
    """One that lies in another repository, or nowhere any more."""
    old, new = old_and_new(both)
    steps = steps_of(model_repo)
    (model_repo / "shop").mkdir()
    shutil.copytree(model_repo / NAME / "1", model_repo / "shop" / "1")
    config = builds.read_config(model_repo / NAME)
    config.name = "shop"
    (model_repo / "shop" / "config.pbtxt").write_text(builds.config_text(config))
    with (
        TritonServer(model_repo, settings=AT_ONCE) as server,
        Connection(server.grpc_url, timeout_s=30) as connection,
    ):
        shutil.rmtree(model_repo / "shop")
        load = Load(server.grpc_url, model_repo)
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url, "--keep", "0") == 0
        assert loaded(server.grpc_url) == {NAME, "shop", *steps[old], *steps[new]}
        assert load.build("red", connection.infer("shop", QUERY)) == old


def test_a_server_that_cannot_load_a_build_is_left_as_it_was(
    model_repo: Path, both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(both)
    manifest = builds.manifests(model_repo, NAME)[new]
    file = break_step(model_repo, manifest["steps"]["postprocessing"])
    manifest["files"][file] = repository._entry(model_repo / file)
    (model_repo / NAME / f"manifest.{new}.json").write_text(json.dumps(manifest))
    with TritonServer(model_repo, settings=AT_ONCE) as server:
        assert run("promote", model_repo, NAME, new, "--server", server.grpc_url) == 1
        error = capsys.readouterr().err
        assert manifest["steps"]["postprocessing"] in error
        assert "nothing was switched" in error
        assert builds.served(model_repo, NAME) == old
        assert loaded(server.grpc_url) == {NAME, *steps_of(model_repo)[old]}
        with Connection(server.grpc_url, timeout_s=30) as connection:
            assert connection.ready()
        with asked(server.grpc_url, model_repo, 1) as load:
            wait_for(load, old)
    assert set(load.seen) == {old}


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", ["a step", "the ensemble"])
def test_where_the_second_server_refuses_the_first_is_left_as_it_was(
    fails_at: str, model_repo: Path, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(both)
    steps = steps_of(model_repo)
    # It has the steps, and an ensemble that nobody switches.
    another = Path(shutil.copytree(model_repo, tmp_path / "another"))
    said = f"{NAME} was switched back to {old}"
    if fails_at == "a step":
        break_step(another, builds.manifests(another, NAME)[new]["steps"]["postprocessing"])
        said = "nothing was switched"
    with TritonServer(model_repo, settings=AT_ONCE) as first, TritonServer(another, settings=AT_ONCE) as second:
        servers = ["--server", first.grpc_url, "--server", second.grpc_url]
        with asked(first.grpc_url, model_repo, 2) as load:
            wait_for(load, old)
            assert run("promote", model_repo, NAME, new, *servers) == 1
            wait_for(load, old)
        assert said in capsys.readouterr().err
        assert builds.served(model_repo, NAME) == old
        for server in (first, second):
            assert loaded(server.grpc_url) == {NAME, *steps[old]}
    assert set(load.seen) <= {old, new}


@pytest.mark.slow
def test_a_server_that_does_not_take_a_build_is_left_as_it_was(model_repo: Path, both: Path, tmp_path: Path) -> None:
    old, new = old_and_new(both)
    another = Path(shutil.copytree(model_repo, tmp_path / "another"))
    with workplace.at_work(model_repo, NAME, wait=True) as work:
        builds.switch(model_repo, NAME, new, work, before=[old])
    with TritonServer(another, settings=AT_ONCE) as server:
        with pytest.raises(VerificationError, match=f"the repository has the build, and {server.grpc_url} serves what"):
            switching.bring_up(model_repo, NAME, canary=False, servers=switching.Servers([server.grpc_url]))
        assert loaded(server.grpc_url) == {NAME, *steps_of(model_repo)[old]}


def ask_until_it_ends(url: str, step: str) -> None:
    """Asks an old step, which is not unloaded then."""
    try:
        with Connection(url, timeout_s=30) as connection:
            while True:
                connection.infer(step, QUERY)
    except TritonpressError:
        return


@pytest.mark.slow
def test_a_server_that_dies_after_the_switch_is_said_to_have_switched(
    model_repo: Path, both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(both)
    step = builds.manifests(model_repo, NAME)[old]["steps"]["tokenizer"]
    ended = threading.Event()
    with TritonServer(model_repo, settings=AT_ONCE) as first, TritonServer(model_repo, settings=AT_ONCE) as second:

        def kill() -> None:
            """Once the first has given up an old step, which the second cannot yet: both have switched then."""
            with Connection(first.grpc_url, timeout_s=30) as connection:
                while not ended.is_set() and connection.ready(step):
                    ended.wait(0.05)
            os.kill(second.pid, signal.SIGKILL)

        threads = [
            threading.Thread(target=ask_until_it_ends, args=(second.grpc_url, step)),
            threading.Thread(target=kill),
        ]
        for thread in threads:
            thread.start()
        servers = ["--server", first.grpc_url, "--server", second.grpc_url]
        status = run("promote", model_repo, NAME, new, *servers, "--keep", "0")
        ended.set()
        for thread in threads:
            thread.join()
        error = capsys.readouterr().err
        assert status == 1
        assert f"{NAME} serves build {new}, as the repository says, and no build was removed" in error
        assert states(model_repo) == {new: "served", old: "previous"}
        assert loaded(first.grpc_url) == {NAME, *steps_of(model_repo)[new]}


@pytest.mark.slow
def test_a_server_of_another_repository_is_told_apart(
    model_repo: Path, both: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = old_and_new(both)
    assert run("promote", model_repo, NAME, new, "--server", tiny_server.grpc_url) == 1
    assert "nothing was switched" in capsys.readouterr().err
    assert builds.served(model_repo, NAME) == old
