"""Small repositories to deploy, and an index of packages on the disk that pip takes for the real one."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import cli, repository
from tritonpress_generator.repository import Step
from tritonpress_server.ports import choose_ports

STAMP = {"tensorrt": "10.5.0.18", "release": "24.10", "compute_capability": "8.0", "hardware_compatibility": "none"}
# Of custom resources and of Kustomize, for which Kubernetes itself has no schema.
OTHERS = ("monitoring.coreos.com/", "kustomize.config.k8s.io/")
PINS = {"numpy": "1.26.4", "onnxruntime": "1.32.0", "tokenizers": "0.23.3"}


def write_repository(
    folder: Path,
    name: str = "classification",
    *,
    pins: Mapping[str, str] | None = PINS,
    stamps: Mapping[str, Mapping[str, Any]] | None = None,
    files: int = 1,
    canary: bool = False,
    cached: bool = False,
    queue_delay_us: int = 0,
) -> Path:
    """Returns `folder` after writing a workload with a Python step and, with `stamps`, a TensorRT engine into it.

    Args:
        folder: The repository.
        name: The workload's.
        pins: Of the Python step; None for a step without a list of them.
        stamps: Of the plans, by their file's name.
        files: Of the step, beside its code.
        canary: Whether it is placed beside the one that serves.
        cached: Whether it has a response cache.
        queue_delay_us: How long the Python step waits for companions.
    """

    def write_step(version_dir: Path) -> None:
        version_dir.mkdir(parents=True)
        (version_dir / "model.py").write_text("# never run\n")
        for number in range(files):
            (version_dir / f"{number}.bin").write_bytes(bytes(1000))
        if pins is not None:
            (version_dir / "requirements.txt").write_text("".join(f"{n}=={v}\n" for n, v in pins.items()))

    def write_plans(version_dir: Path) -> None:
        version_dir.mkdir(parents=True)
        (version_dir / "plan.json").write_text("{}")
        for file, stamp in (stamps or {}).items():
            (version_dir / file).write_bytes(b"plan")
            (version_dir / f"{file}.json").write_text(json.dumps(stamp))

    config = _config(pb.ModelInstanceGroup.KIND_CPU, backend="python")
    if queue_delay_us:
        config.dynamic_batching.max_queue_delay_microseconds = queue_delay_us
    steps = [Step("model", config, write_step)]
    if stamps is not None:
        gpu = _config(pb.ModelInstanceGroup.KIND_GPU, platform="tensorrt_plan")
        steps.insert(0, Step("engine", gpu, write_plans))

    def ensemble(names: dict[str, str]) -> pb.ModelConfig:
        parts = [pb.ModelEnsembling.Step(model_name=step, model_version=-1) for step in names.values()]
        config = pb.ModelConfig(platform="ensemble", ensemble_scheduling=pb.ModelEnsembling(step=parts))
        if cached:
            config.response_cache.enable = True
        return config

    manifest = {"workload": name, "golden": {"requests": []}, "versions": {"tokenizers": "0.23.3"}}
    repository.write(folder, name, steps, ensemble, manifest, canary=canary)
    return folder


def _config(kind: int, **keys: str) -> pb.ModelConfig:
    config = pb.ModelConfig(max_batch_size=8, instance_group=[pb.ModelInstanceGroup(kind=kind, count=2)], **keys)
    if keys.get("backend"):
        config.parameters["intra_op_thread_count"].string_value = "2"
    return config


def write_wheel(folder: Path, name: str, version: str, *, tag: str = "cp310-abi3-manylinux_2_28_x86_64") -> str:
    """Returns the sha256 of a wheel with nothing in it, which was written into `folder`."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-{tag}.whl"
    about = f"{stem}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n"
        wheel.writestr(f"{about}/METADATA", metadata)
        wheel.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def use_index(folder: Path, patch: pytest.MonkeyPatch, pins: Mapping[str, str] = PINS) -> dict[str, str]:
    """Returns the sha256 of the wheels of `pins`, by name: all that pip finds from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    unpack = ("annotated-types", "backports-zstd", "pydantic", "pydantic-core", "tqdm", "typing-extensions")
    more = {name: version(name) for name in (*unpack, "typing-inspection")}
    hashes = {name: write_wheel(folder, name, pin) for name, pin in {**more, **pins, "numpy": version("numpy")}.items()}
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        patch.setenv(f"PIP_{key}", value)
    return hashes


def free_ports() -> list[str]:
    """Returns options for four ports that nobody has."""
    ports = choose_ports("127.0.0.1", dict.fromkeys(("grpc", "https", "prometheus", "grafana")))
    return [f"--{endpoint}-port={port}" for endpoint, port in ports.items()]


def deploy(repository: Path, out: Path, *options: str) -> Path:
    """Returns `out` after the command has written into it."""
    assert cli.main(["deploy", str(repository), "--out", str(out), *free_ports(), *options]) == 0
    return out


def objects(folder: Path) -> list[dict[str, Any]]:
    """Returns the objects of Kubernetes in `folder` that it has a schema for."""
    found = [yaml.safe_load(path.read_text()) for path in sorted(folder.rglob("*.yaml"))]
    return [entry for entry in found if "kind" in entry and not entry["apiVersion"].startswith(OTHERS)]


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str | Path]) -> str:
    """Returns the one line that the command says of what it refuses."""
    assert cli.main(["deploy", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tritonpress deploy: ")
    assert said.count("\n") == 1
    assert len(said) < 600
    return said


def filled(expression: str) -> str:
    """Returns an expression with what Grafana and the adapter put into it."""
    for name, value in {"$__rate_interval": "1m", "<<.LabelMatchers>>": 'pod="p"', "<<.GroupBy>>": "pod"}.items():
        expression = expression.replace(name, value)
    return expression
