"""What a repository holds and needs, as its manifests and configs say it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_server.launch import find_models, models_to_load
from tritonpress_server.resting import resting

from tritonpress_generator import builds
from tritonpress_generator import repository as repositories
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans import pending

_MIB = 1 << 20
# Of the demonstration's repository an instance of a Python step took 64 to 75 MiB, of which 23 are its weights.
_INSTANCE_MIB, _SERVER_MIB = 128, 512
_STEP_PACKAGES = ("numpy", "tokenizers")
_TEXT_LIMITS = ("max_bytes", "max_question_bytes", "max_context_bytes")
"""Of an encoder, what it lets in of a text of each kind (`steps/tokenizer`)."""
_ESCAPED_BYTES = 6
"""JSON may write a byte as `\\u001f`."""
_FRAME_BYTES = 64 << 10
"""For all of a request that is no text: names, shapes, parameters, the outputs that are asked for."""
_TRITON_REQUEST_BYTES = 64 << 20
"""What Triton itself takes, by default, in the releases that have a limit; of steps whose limits are not known."""
# Nothing that pip would take for an option, or for an address.
_PIN = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*==\d[A-Za-z0-9.+!]*")


@dataclass(frozen=True)
class Served:
    """What is served."""

    repository: Path
    builds: Mapping[str, str]
    """Of the workloads."""
    models: Sequence[str]
    """Folders of the repository that are loaded."""
    asked_for: Sequence[str]
    """Those of them that the server is asked for, as `tritonpress-serve` does it; Triton loads the others with them."""
    passing: Sequence[str]
    """Those of the latter that a promote or a rollback removes in time: canaries, and what a step calls by itself."""
    python_steps: Sequence[str]
    packages: Sequence[str]
    """`name==version` of what the Python steps import, sorted."""
    native: Sequence[str]
    """Triton's own backends that run an engine."""
    plans: Mapping[Path, Mapping[str, Any]]
    """The stamps of the TensorRT plans."""
    needs_gpu: bool
    cached: Sequence[str]
    """Those of the workloads with a response cache: of these Triton summarises no latency."""
    queue_delay_us: int
    """The longest that a step waits for companions."""
    cores: int
    """That the busiest workload's instances compute on."""
    memory_mib: int
    """An estimate of what all instances take."""
    request_bytes: int
    """The most bytes that a request to a workload can have, by HTTP or gRPC."""

    @property
    def digest(self) -> str:
        """What changes whenever a workload's build does."""
        text = "".join(f"{name}={build}\n" for name, build in sorted(self.builds.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def shared_memory_mib(self) -> int:
        """For requests and answers between Triton and its Python processes."""
        return 64 + 32 * len(self.python_steps)

    @property
    def startup_s(self) -> int:
        """How long a server may take to load: on a GPU, engines may be compiled first."""
        return 1800 if self.needs_gpu else 300


def read(repository: Path) -> Served:
    """Returns what `repository` serves, every file being as its manifest says.

    Raises:
        InputError: There is no workload, a file is missing or has changed, a plan is pending or without its stamp, or
            two workloads need different versions of a package.
    """
    manifests = {name: repositories.read_manifest(repository, name) for name in repositories.workloads(repository)}
    plans: dict[Path, dict[str, Any]] = {}
    for name, manifest in manifests.items():
        _check_files(repository, name, manifest)
        for folder in pending.folders(repository, manifest):
            plans |= pending.plans(folder)
    for plan, stamp in plans.items():
        if "tensorrt" not in stamp:
            raise InputError(f"{plan}: must have its stamp beside it, {plan.name}.json; build it again")
    configs = {
        step: repositories.read_config(repository / step)
        for manifest in manifests.values()
        for step in manifest["steps"].values()
    }
    python = sorted(step for step, config in configs.items() if config.backend == "python")
    idle, asked_for = resting(repository), models_to_load(repository)
    canaries = {name for name in manifests if builds.owner(repository, name) != name}
    return Served(
        repository=repository,
        builds={name: str(manifest["build"]) for name, manifest in manifests.items()},
        models=[name for name in find_models(repository) if name not in idle],
        asked_for=asked_for,
        passing=[name for name in asked_for if name in configs or name in canaries],
        python_steps=python,
        packages=_packages(repository, manifests, python),
        native=sorted({config.backend or config.platform for config in configs.values()} - {"python"}),
        plans=plans,
        needs_gpu=any(_on_gpu(config) for config in configs.values()),
        cached=[name for name in manifests if repositories.read_config(repository / name).response_cache.enable],
        queue_delay_us=max((c.dynamic_batching.max_queue_delay_microseconds for c in configs.values()), default=0),
        cores=max(_cores([configs[step] for step in manifest["steps"].values()]) for manifest in manifests.values()),
        memory_mib=_SERVER_MIB + sum(_memory_mib(repository / step, config) for step, config in configs.items()),
        request_bytes=max(_request_bytes(repository, name, manifest) for name, manifest in manifests.items()),
    )


def _check_files(repository: Path, name: str, manifest: dict[str, Any]) -> None:
    if problems := repositories.changed_files(repository, manifest):
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(f"{name}: {problems[0]}{more}; the manifest says otherwise: build it again")
    if missing := pending.missing(repository, manifest):
        raise InputError(f"{name}: its plan is pending; run {missing[0]} on a machine with the GPU, then deploy")


def _packages(repository: Path, manifests: Mapping[str, dict[str, Any]], python: Sequence[str]) -> list[str]:
    """Returns the pins of all Python steps."""
    found: dict[str, tuple[str, str]] = {}
    for name, manifest in manifests.items():
        for step in set(manifest["steps"].values()) & set(python):
            path = repository / step / "1" / "requirements.txt"
            versions = {package: version(package) for package in _STEP_PACKAGES} | manifest.get("versions", {})
            lines = [f"{package}=={versions[package]}" for package in _STEP_PACKAGES]
            for line in path.read_text(encoding="utf-8").split() if path.is_file() else lines:
                if not _PIN.fullmatch(line):
                    raise InputError(f"{path}: must have lines NAME==VERSION, has {line[:60]!r}; build {name} again")
                package = line.partition("==")[0]
                pin, of = found.setdefault(package, (line, name))
                if pin != line:
                    raise InputError(
                        f"{name} needs {line}, {of} needs {pin}, and a server has one of them; build both again"
                    )
    return sorted(pin for pin, _ in found.values())


def _on_gpu(config: pb.ModelConfig) -> bool:
    return any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group)


def _instances(config: pb.ModelConfig) -> int:
    return sum(max(1, group.count) for group in config.instance_group) or 1


def _cores(configs: Sequence[pb.ModelConfig]) -> int:
    """Returns the cores that a workload's engine is sized to; on a GPU those that feed it."""
    if any(map(_on_gpu, configs)):
        return sum(_instances(config) for config in configs if config.backend == "python") or 1
    threads = [
        int(config.parameters[key].string_value) * _instances(config)
        for config in configs
        for key in ("intra_op_thread_count", "INFERENCE_NUM_THREADS")
        if key in config.parameters
    ]
    return max(1, sum(threads))


def _memory_mib(folder: Path, config: pb.ModelConfig) -> int:
    """Returns what a step's instances may take: each has its weights, and as much again for activations."""
    if (folder / "1" / pending.SETTINGS).exists():
        # Beside plans lies what they are made of; a server has that of its GPU.
        weights = max((path.stat().st_size for path in pending.plans(folder / "1")), default=0) / _MIB
    else:
        weights = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _MIB
    return round(_instances(config) * (_INSTANCE_MIB + 2 * weights))


def _request_bytes(repository: Path, name: str, manifest: Mapping[str, Any]) -> int:
    """Returns how long a request to a workload can be: a whole batch of the longest texts, in JSON's longest way."""
    texts = [_texts_bytes(repository / step / "1" / "settings.json") for step in manifest["steps"].values()]
    known = [size for size in texts if size]
    if not known:
        return _TRITON_REQUEST_BYTES
    batch: int = max(1, repositories.read_config(repository / name).max_batch_size)
    return batch * max(known) * _ESCAPED_BYTES + _FRAME_BYTES


def _texts_bytes(path: Path) -> int:
    """Returns the most bytes of all texts that a step reads for an answer; 0 where it reads none."""
    try:
        if not path.is_file():
            return 0
        encoder = json.loads(path.read_text(encoding="utf-8")).get("encoder", {})
        return sum(int(encoder[limit]) for limit in _TEXT_LIMITS if limit in encoder)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise InputError(f"{path}: cannot be read ({str(exc)[:200]}); build the workload again") from exc
