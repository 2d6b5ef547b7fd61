"""What is set of a server, as tritonserver's options and as `tritonpress-serve`'s."""

import json
import os
import signal
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tiny_models import add_one, infer, write_model
from tritonpress_server import Settings, SettingsError, TritonServer
from tritonpress_server.cli import main
from tritonpress_server.launch import find_models, models_to_load
from tritonpress_server.resting import called, resting
from tritonpress_server.triton_log import model_failures, tail


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["--model-control-mode=explicit", "--exit-timeout-secs=30", "--load-model=add_one"]),
        (
            {"model_control": "poll", "poll_s": 3, "drain_s": 5},
            ["--model-control-mode=poll", "--exit-timeout-secs=5", "--repository-poll-secs=3"],
        ),
        ({"model_control": "none"}, ["--model-control-mode=none", "--exit-timeout-secs=30"]),
        (
            {"trace_url": "http://collector:4318/v1/traces", "trace_rate": 10, "model_control": "none"},
            [
                "--model-control-mode=none",
                "--exit-timeout-secs=30",
                "--trace-config=mode=opentelemetry",
                "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
                "--trace-config=rate=10",
                "--trace-config=level=TIMESTAMPS",
            ],
        ),
    ],
)
def test_settings_become_options(repository: Path, settings: dict[str, object], expected: list[str]) -> None:
    assert Settings(**settings).arguments(repository, ["add_one"]) == expected  # type: ignore[arg-type]


def test_what_a_config_needs_of_the_server_is_switched_on(repository: Path) -> None:
    """Triton passes over both without a word where the server was not started for them."""
    write_model(repository, "cached", add_one(), response_cache={"enable": True})
    limited = {"resources": [{"name": "r", "count": 1}]}
    write_model(repository, "limited", add_one(), instance_group=[{"kind": "KIND_CPU", "rate_limiter": limited}])
    options = Settings(cache_mib=2).arguments(repository, [])
    assert options[2:] == ["--cache-config=local,size=2097152", "--rate-limit=execution_count"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_mib": 0}, r"cache_mib must be in \[1, 1048576\], got 0"),
        ({"log_verbose": -1}, "log_verbose must be in"),
        ({"model_control": "sometimes"}, "model_control must be one of explicit, poll, none, got 'sometimes'"),
        ({"trace_file": "a", "trace_url": "b"}, "exclude one another"),
        ({"poll_s": 3}, "poll_s goes with model_control poll, got explicit"),
        ({"trace_rate": 3}, "trace_rate goes with trace_file or trace_url"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


def test_every_setting_is_an_option_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in text
    handler = signal.getsignal(signal.SIGTERM)
    assert main(["nowhere", "--poll-s", "3"]) == 2
    assert signal.getsignal(signal.SIGTERM) is handler
    assert capsys.readouterr().err == (
        "tritonpress-serve: poll_s goes with model_control poll, got explicit; leave one out\n"
    )


def test_a_failure_is_found_in_both_formats_of_the_log() -> None:
    said = "\"failed to load 'm' version 1: Internal: no such file\""
    for line in (
        f"E1128 18:55:17.662195 15385 model_lifecycle.cc:1] {said}",
        f"2026-11-28T19:29:48Z E 1 m.cc:1] {said}",
    ):
        assert model_failures(line) == {"m": "Internal: no such file"}
    assert tail('2026-11-28T19:29:48Z I 1 m.cc:1] "loading"') == "  (the log is empty)"


def test_steps_of_builds_that_rest_are_not_served(repository: Path) -> None:
    """A step is served if an ensemble names it, or if one that is served does; else it lies there for a rollback."""
    for name in ("w_engine_1", "w_engine_2", "w_model_1", "w_model_2"):
        write_model(repository, name, add_one())
    folder = repository / "w"
    folder.mkdir()
    for build in ("1", "2"):
        steps = {"engine": f"w_engine_{build}", "model": f"w_model_{build}"}
        (folder / f"manifest.{build}.json").write_text(json.dumps({"steps": steps}))
    (folder / "manifest.json").write_text("{}")
    (folder / "config.pbtxt").write_text('name: "w" ensemble_scheduling { step { model_name: "w_model_2" } }')
    config = repository / "w_model_2" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "engine" value { string_value: "w_engine_2" } }')
    assert resting(repository) == {"w_engine_1", "w_model_1"}
    # The step comes with its ensemble; what the step calls by itself does not.
    assert models_to_load(repository) == ["add_one", "w", "w_engine_2"]
    assert called(repository, ["add_one"]) == set()
    assert called(repository, ["add_one", "w"]) == called(repository, ["w_model_2"]) == {"w_engine_2"}
    assert called(repository, ["w", "w_engine_2"]) == set()
    (folder / "manifest.1.json").write_text("nonsense")
    assert resting(repository) == set()


def test_what_a_first_build_has_begun_is_no_model(repository: Path) -> None:
    for name in ("begun", "placed", "without_config"):
        (repository / name).mkdir()
    (repository / "placed" / "manifest.1.json").write_text("{}")
    (repository / "placed" / "1").mkdir()
    (repository / "without_config" / "1").mkdir()
    # That is a model, of which Triton says what it lacks.
    assert find_models(repository) == ["add_one", "without_config"]


def test_a_server_that_polls_takes_a_model_that_comes_later(repository: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "later", "second", add_one())
    with TritonServer(repository, settings=Settings(model_control="poll", poll_s=1)) as server:
        (tmp_path / "later" / "second").rename(repository / "second")
        for _ in range(600):
            if ("second", "1") in server.served_models():
                break
            time.sleep(0.1)
        one = np.zeros((1, 4), np.float32)
        np.testing.assert_array_equal(infer(server.grpc_url, "second", {"x": one})["y"], one + 1)


def test_what_is_no_file_in_the_place_of_one_is_passed_over(repository: Path) -> None:
    """A folder, a pipe, a link that leads to itself: nothing waits, and nothing is raised."""
    for name, make in {
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "loop": lambda path: path.symlink_to(path.name),
        "device": lambda path: path.symlink_to("/dev/zero"),
    }.items():
        (repository / name).mkdir()
        make(repository / name / "config.pbtxt")
        make(repository / name / "manifest.0.json")
    (repository / "folder" / "manifest.1.json").write_text("[" * 100_000)
    assert resting(repository) == set()
    assert Settings().arguments(repository, [])[0] == "--model-control-mode=explicit"
