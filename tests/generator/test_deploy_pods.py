"""What pods ask of their node, and how long servers may take to load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployments import STAMP, deploy, use_index, write_repository
from tritonpress_generator.deploy import served

CORES = 4
"""Two instances of two threads."""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A repository for a CPU and one for a GPU, each packed and deployed."""
    folder = tmp_path_factory.mktemp("pods")
    with pytest.MonkeyPatch.context() as patch:
        use_index(folder / "index", patch)
        repositories = {"cpu": write_repository(folder / "cpu")}
        repositories["gpu"] = write_repository(folder / "gpu", stamps={"model.plan": STAMP})
        yield {
            name: deploy(repository, folder / f"{name}-out", "--bundle=s3://models/today.bundle")
            for name, repository in repositories.items()
        }


def pod(out: Path, kind: str) -> dict[str, Any]:
    deployment = yaml.safe_load((out / "kubernetes" / kind / "deployment.yaml").read_text())
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def test_pods_are_of_the_class_that_gets_whole_cores(deployed: dict[str, Path]) -> None:
    """Kubernetes calls it Guaranteed: requests are limits, of CPU and memory, of every container, first ones too."""
    base, overlay = (pod(deployed["cpu"], kind) for kind in ("base", "overlays/cpu"))
    added = {container["name"]: container["resources"] for container in overlay["containers"]}
    containers = [*base["initContainers"], *base["containers"]]
    assert [container["name"] for container in containers] == ["fetch", "unpack", "triton"]
    for container in containers:
        requests, limits = (
            container["resources"].get(kind, {}) | added.get(container["name"], {}).get(kind, {})
            for kind in ("requests", "limits")
        )
        assert requests == limits
        assert requests.keys() == {"cpu", "memory"}
    assert added["triton"]["requests"] == {"cpu": str(CORES)}


def test_memory_of_a_plan_is_not_that_of_what_it_is_made_of(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "model_repo", stamps={"model.plan": STAMP})
    before = served.read(repository).memory_mib
    (plan,) = repository.glob("*_engine_*/1/model.plan")
    for name in ("model.fp32.onnx", "model.fp16.plan"):
        with plan.with_name(name).open("wb") as file:
            file.truncate(512 << 20)
    assert served.read(repository).memory_mib == before


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_server_has_as_long_to_load_wherever_it_is_started(deployed: dict[str, Path], kind: str) -> None:
    out = deployed[kind]
    (server,) = pod(out, "base")["containers"]
    seconds = server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"]
    stack = yaml.safe_load((out / "compose" / "compose.yaml").read_text())
    assert stack["services"]["triton"]["healthcheck"]["start_period"] == f"{seconds}s"
    assert f"--start-period={seconds}s " in (out / "image" / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("machine", "measured"),
    [({"cores": CORES}, f" (the plan's machine has {CORES})"), ({"cores": CORES + 1, "cpu": "…"}, ""), (None, "")],
)
def test_the_cores_that_a_pod_asks_for_are_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    machine: dict[str, Any] | None,
    measured: str,
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    repository = write_repository(tmp_path / "model_repo")
    (step,) = repository.glob("classification_model_*")
    plan = {
        "schema": "tritonpress-plan/1",
        "demand": {"p99_ms": 40.0, "survive": "machine"},
        "service": {"model": step.name},
        "kubernetes": {"min_replicas": 2, "max_replicas": 3, "target_us": 900.0},
        "machine": machine,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out = deploy(repository, tmp_path / "out", f"--plan={tmp_path / 'plan.json'}")
    said = (
        f"note: a pod asks for cpu {CORES}, the engine's instances × threads, and a node has less to give than its"
        f" cores: take nodes of more than {CORES}{measured}, or build with fewer instances or threads\n"
    )
    assert said in capsys.readouterr().out
    (server,) = pod(out, "overlays/cpu")["containers"]
    assert server["resources"]["requests"] == {"cpu": str(CORES)}


def test_a_server_on_a_gpu_asks_for_no_more_than_feeds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_index(tmp_path / "index", monkeypatch)
    deploy(write_repository(tmp_path / "model_repo", stamps={"model.plan": STAMP}), tmp_path / "out")
    assert "asks for cpu" not in capsys.readouterr().out
