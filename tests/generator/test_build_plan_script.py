"""`build_plan.sh` serves the fastest precision that passes the gate, or leaves what was there.

`docker`, the containers' Python and the gate's verdict are stand-ins here: what runs in NVIDIA's containers is seen on
a GPU alone.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_sources import write_task
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import builds, cli
from tritonpress_generator.plans import pending

DOCKER = """echo "$*" | tr '\\n' ' ' >> "$LOG"; echo >> "$LOG"
case "$*" in
    # A container whose name is not free yet: Docker removes it after it has stopped.
    *--name*) name="$*"; name="${name#*--name }"; name="${name%% *}"
        ! grep -qx "$name" "$LOG.names" 2>/dev/null || exit 125
        echo "$name" >> "$LOG.names"; exit;;
    *pip\\ install*--target\\ /packages*) exit ${PIP:-0};;
esac
for argument; do [ "$argument" != bash ] || bash="bash"; last=$argument; done
[ -z "${bash:-}" ] || exec bash -c "$last"
"""
PYTHON = """echo "python3 $*" >> "$LOG"
case "$*" in
    *Cuda\\(\\)*) exit ${LACKS_CUDA:-0};;
    *pip\\ install*) exit ${PIP:-0};;
    *build_plan\\ plan.json*) echo "PYTHONPATH=${PYTHONPATH:-}" >> "$LOG"
        for rung in fp16 int8; do
            echo "plan $rung" > "$PLAN/model.$rung.plan"; echo "{}" > "$PLAN/model.$rung.plan.json"; done
        printf "${RUNGS:-int8 fp16 }" | tr " " "\\n" > "$PLAN/rungs.txt"
        echo '{"compute_capability": "9.0"}' > "$PLAN/rungs.json";;
    *) exec /usr/bin/python3 "$@";;
esac
"""


def run(
    folder: Path,
    *,
    gate: dict[str, int] | None = None,
    release: str = "24.10",
    several: bool = False,
    served: str = "x",
    settings: Mapping[str, Any] | None = None,
    **set_: str,
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Returns what became of the script in `folder`, and what was called, a line each.

    Args:
        folder: The version folder, written before.
        gate: Its verdicts, by precision.
        release: Of Triton's.
        several: Whether the plan is of a kind of GPU.
        served: The ensemble that serves the step's build.
        settings: More of the builder.
        set_: Environment of the stand-ins.
    """
    repository = folder.parents[1]
    commands = repository / "bin"
    commands.mkdir()
    for ensemble, build in {"x": "b1", "x_canary": "b2"}.items():
        config = pb.ModelConfig(name=ensemble)
        config.parameters["build"].string_value = build
        config.parameters["previous"].string_value = "b1"
        (repository / ensemble).mkdir()
        (repository / ensemble / "config.pbtxt").write_text(builds.config_text(config))
        steps = {"engine": folder.parent.name if ensemble == served else "another"}
        (repository / "x" / f"manifest.{build}.json").write_text(json.dumps({"build": build, "steps": steps}))
    verdicts = " ".join(f'"plan {name}") exit {status};;' for name, status in (gate or {"int8": 0}).items())
    asked = f"""echo "tritonpress $*" >> "$LOG"
    case "$(cat "$PLAN"/model.plan "$PLAN"/model_9.0.plan 2>/dev/null | tail -1)" in {verdicts} esac"""
    for name, text in {"docker": DOCKER, "python3": PYTHON, "tritonpress": asked}.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    all_ = {"compute_capabilities": ["8.0", "9.0"] if several else [], **(settings or {})}
    pending.write(folder, {}, all_, release=release, workload="x", low=None)
    log = commands / "log"
    log.touch()
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "PLAN": str(folder), "LOG": str(log), **set_}
    done = subprocess.run(
        [folder / "build_plan.sh", "recipe.yaml"], env=environment, capture_output=True, text=True, check=False
    )
    return done, log.read_text()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("gate", "status", "served"),
    [
        ({"int8": 0, "fp16": 0}, 0, "plan int8\n"),
        ({"int8": 1, "fp16": 0}, 0, "plan fp16\n"),
        ({"int8": 1, "fp16": 1}, 1, "old"),
        ({"int8": 2, "fp16": 0}, 2, "old"),
    ],
)
def test_script_serves_the_fastest_that_passes_the_gate_or_leaves_what_was_there(
    tmp_path: Path, several: bool, gate: dict[str, int], status: int, served: str
) -> None:
    folder = tmp_path / "step" / "1"
    folder.mkdir(parents=True)
    plan = folder / ("model_9.0.plan" if several else "model.plan")
    other = folder / "model_8.0.plan"
    for path in (plan, plan.with_name(f"{plan.name}.json"), other):
        path.write_text("old")
    done, _ = run(folder, gate=gate, several=several)
    assert done.returncode == status, done.stderr
    assert plan.read_text() == served
    assert plan.with_name(f"{plan.name}.json").read_text() == ("old" if served == "old" else "{}\n")
    assert other.read_text() == "old"
    assert not list(folder.glob("*.old"))
    assert not list(folder.glob("packages*"))


@pytest.mark.parametrize("gate", [{"int8": 1, "fp16": 1}, {"int8": 1, "fp16": 2}, {"int8": 2}])
def test_what_no_gate_has_passed_is_not_left_where_there_was_no_plan(tmp_path: Path, gate: dict[str, int]) -> None:
    folder = tmp_path / "step" / "1"
    done, _ = run(folder, gate=gate)
    assert done.returncode == list(gate.values())[-1], done.stderr
    assert not [path.name for path in folder.glob("model.plan*")]


def test_plan_that_cannot_be_put_in_place_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "step" / "1"
    folder.mkdir(parents=True)
    for name in ("model.plan", "model.plan.json"):
        (folder / name).write_text("old")
    done, _ = run(folder, RUNGS="missing ")
    assert done.returncode == 2
    assert {path.name: path.read_text() for path in folder.glob("model.plan*")} == {
        "model.plan": "old",
        "model.plan.json": "old",
    }


@pytest.mark.parametrize("allowed", [False, True])
def test_triton_is_told_of_plans_for_later_releases(tmp_path: Path, allowed: bool) -> None:
    done, called = run(tmp_path / "step" / "1", settings={"version_compatible": allowed})
    assert done.returncode == 0, done.stderr
    (serve,) = (line for line in called.splitlines() if "tritonserver --model-repository" in line)
    assert ("--backend-config=tensorrt,version-compatible=true" in serve) is allowed


@pytest.mark.parametrize(("lacks", "path"), [("0", ""), ("1", "/tmp/packages")])
def test_builder_is_given_what_the_container_lacks(tmp_path: Path, lacks: str, path: str) -> None:
    done, called = run(tmp_path / "step" / "1", LACKS_CUDA=lacks)
    assert done.returncode == 0, done.stderr
    assert f"\nPYTHONPATH={path}\n" in called
    installed = [line for line in called.splitlines() if line.startswith("python3 -m pip install")]
    assert bool(installed) == bool(path)
    for line in installed:
        assert line.endswith("--target /tmp/packages numpy==1.26.4 cuda-python==12.6.2.post1")


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ("1", "nvcr.io/nvidia/tensorrt:24.10-py3 lacks cuda-python, and pip cannot install it"),
        ("0", "which the Python steps need, in nvcr.io/nvidia/tritonserver:24.10-py3 (above); give the container an"),
    ],
)
def test_container_without_network_is_a_line_before_anything_is_served(
    tmp_path: Path, lacks: str, message: str
) -> None:
    done, called = run(tmp_path / "step" / "1", LACKS_CUDA=lacks, PIP="1")
    assert done.returncode == 2
    assert message in done.stderr
    assert "PIP_INDEX_URL" in done.stderr
    assert "tritonserver --model-repository" not in called


def test_steps_have_their_packages_in_a_folder_of_their_own(tmp_path: Path) -> None:
    done, called = run(tmp_path / "step" / "1", release="25.08")
    assert done.returncode == 0, done.stderr
    (install,) = (line for line in called.splitlines() if "--target /packages" in line)
    assert "tritonserver:25.08-py3 python3 -m pip install" in install
    (serve,) = (line for line in called.splitlines() if "tritonserver --model-repository" in line)
    assert ":/packages:ro -e PYTHONPATH=/packages" in serve


@pytest.mark.parametrize(("served", "word"), [("x", ""), ("x_canary", " --canary")])
def test_gate_asks_the_ensemble_that_serves_the_plan(tmp_path: Path, served: str, word: str) -> None:
    done, called = run(tmp_path / "step" / "1", served=served)
    assert done.returncode == 0, done.stderr
    assert f" --model-control-mode=explicit --load-model={served} --load-model=step " in called
    (asked,) = (line for line in called.splitlines() if line.startswith("tritonpress "))
    assert asked.endswith(f"--repository {tmp_path}{word}")


def test_plan_that_is_served_by_nobody_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    done, called = run(tmp_path / "step" / "1", served="none")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("build_plan.sh: step: must be of the build that x or its canary serves")
    assert called == ""


@pytest.mark.parametrize("release", ["23.03", "23.04"])
def test_release_whose_python_is_too_old_is_refused_before_anything_is_built(tmp_path: Path, release: str) -> None:
    done, called = run(tmp_path / "step" / "1", release=release)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"must be 3.10 or later for the Python steps, {release} has 3.8; take engine.tensorrt.release 23.05" in line
    assert called == ""


def test_build_says_that_the_release_cannot_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_task(tmp_path, "classification")
    engine = {"tensorrt": {"release": "23.03", "precision": "fp32"}}
    recipe = yaml.safe_load(path.read_text()) | {"engine": engine, "graph": []}
    recipe["serve"] |= {"lengths": [16, 48], "steps": "ensemble"}
    path.write_text(yaml.safe_dump(recipe))
    assert cli.main(["build", str(path), "--out", str(tmp_path / "out")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "plan pending: build_plan.sh cannot gate it, since the Python of Triton must be 3.10 or later"
    )
