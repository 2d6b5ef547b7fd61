"""What runs a repository in production, generated from what was built: `tritonpress deploy`.

    image/        the build's context: Dockerfile, requirements.txt with hashes, healthcheck.py
    compose/      one machine: Triton, a proxy with TLS, Prometheus with rules, Grafana with a dashboard
    kubernetes/   base; overlays of each kind of machine; a component for the Prometheus operator; a rule that gives the
                  autoscaler the queue time
    sbom.cdx.json what the image adds to NVIDIA's, with hashes and licences (CycloneDX)
    deploy.json   what was generated of what

Each decision (names, ports, images, limits) is made in one file: `settings.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tritonpress_server.errors import PortInUseError
from tritonpress_server.ports import choose_ports

from tritonpress_generator import sbom
from tritonpress_generator.deploy import (
    capacity,
    command,
    compose,
    dashboard,
    execution,
    image,
    kubernetes,
    monitoring,
    overlays,
    prometheus_operator,
    release,
    requirements,
    served,
    settings,
    tree,
)
from tritonpress_generator.deploy.queries import Objectives
from tritonpress_generator.deploy.settings import Settings
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans.releases import RELEASES, triton_image

_HOST = "127.0.0.1"
_MODELS = "model_repository"
"""A copy of the repository, where it has configs of its own."""
_SBOM = "sbom.cdx.json"


@dataclass(frozen=True)
class Deployed:
    """What was generated."""

    out: Path
    image: str
    release: str
    overlays: list[str]
    repository: Path
    """What is to be served, or packed."""
    notes: list[str]
    """What the operator has to know before relying on it."""


def deploy(repository: Path, out: Path, wanted: Settings) -> Deployed:
    """Returns what was written into `out` to run `repository`.

    Raises:
        InputError: A setting is out of its range, or a port is taken; the repository is not as its manifests say; no
            release of NVIDIA's container fits, or its Python has no wheel of a package; or `out` cannot be written.
    """
    settings.check(wanted)
    _check_place(repository, out)
    before = tree.earlier(out)
    _check_ports(wanted, before)
    found = served.read(repository)
    chosen = release.choose(found.plans, wanted.release)
    replicas = capacity.read(
        wanted.plan, p99_ms=wanted.p99_ms, models=found.models, queue_delay_us=found.queue_delay_us
    )
    objectives = Objectives(sorted(found.builds), replicas.p99_ms)
    packages = image.packages(found.packages, wanted)
    locked = requirements.lock(packages, str(RELEASES[chosen].python), release=chosen) if packages else []
    line = command.command(found, wanted)
    name = f"{wanted.image}:{chosen}-{found.digest}"
    copied = execution.repository(found) if wanted.execution_env else {}
    models = out / _MODELS if copied else repository

    files: dict[str, tree.Content] = {f"{_MODELS}/{path}": content for path, content in copied.items()}
    context = image.files(release=chosen, locked=locked, command=line, startup_s=found.startup_s, settings=wanted)
    files |= {f"image/{path}": content for path, content in context.items()}
    base_image = triton_image(chosen)
    files[_SBOM] = sbom.document(
        wanted.image, f"{chosen}-{found.digest}", locked, kind="container", base_image=base_image
    )
    board = dashboard.dashboard(objectives, gpu=found.needs_gpu)
    rules = monitoring.rules(objectives)
    stack = compose.compose(found, wanted, image=name, repository=tree.relative(models, out / "compose"))
    files |= _compose(stack, compose.proxy_config(found, wanted), rules, board)
    base = kubernetes.base(found, wanted, replicas, image=name, command=line)
    variants = overlays.overlays(found, wanted)
    operator = prometheus_operator.component(wanted, objectives, gpu=found.needs_gpu)
    files |= _yaml("kubernetes/base", base)
    files |= _yaml("kubernetes/overlays", variants)
    files |= _yaml("kubernetes/components/prometheus-operator", operator)
    files |= _yaml("kubernetes", {"prometheus-adapter.yaml": monitoring.adapter_rules()})
    about = {
        "release": chosen,
        "base_image": base_image,
        "image": name,
        "python": RELEASES[chosen].python,
        "onnxruntime": RELEASES[chosen].onnxruntime,
        "builds": dict(found.builds),
        "capacity": asdict(replicas),
        "ports": asdict(wanted.ports),
    }
    tree.write(out, files, about)
    names = sorted({path.partition("/")[0] for path in variants})
    return Deployed(out, name, chosen, names, models, _notes(found, wanted, chosen, replicas))


def _compose(
    stack: dict[str, Any], proxy: dict[str, Any], rules: dict[str, Any], board: dict[str, Any]
) -> dict[str, tree.Content]:
    """Returns the files of `compose/`."""
    texts: dict[str, tree.Content] = {
        "compose/proxy.json": json.dumps(proxy, indent=2) + "\n",
        "compose/grafana/dashboards/tritonpress.json": json.dumps(board, indent=1) + "\n",
    }
    entries = {"compose.yaml": stack, "prometheus.yaml": compose.prometheus_config(), "rules.yaml": rules}
    return {
        **texts,
        **_yaml("compose", entries),
        **_yaml("compose/grafana/provisioning", compose.provisioning()),
    }


def _yaml(folder: str, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, tree.Content]:
    return {f"{folder}/{name}": tree.yaml_text(entry) for name, entry in entries.items()}


def _check_place(repository: Path, out: Path) -> None:
    if out.resolve().is_relative_to(repository.resolve()):
        raise InputError(
            f"--out {out}: must lie outside of the repository {repository}, where every folder is a model; give another"
        )


def _check_ports(wanted: Settings, before: Mapping[str, Any]) -> None:
    """Refuses ports that are out of range, given twice, or taken here, unless by what was deployed before."""
    ports = asdict(wanted.ports)
    own = set(before.get("ports", {}).values())
    try:
        for endpoint, port in ports.items():
            if list(ports.values()).count(port) > 1:
                raise InputError(f"--{endpoint}-port must differ from the other ports, got {port} twice; give another")
            if port not in own:
                choose_ports(_HOST, {endpoint: port})
    except PortInUseError as exc:
        raise InputError(str(exc)) from exc


def _notes(found: served.Served, wanted: Settings, chosen: str, replicas: capacity.Capacity) -> list[str]:
    notes = []
    if found.passing:
        notes.append(
            f"servers ask for {', '.join(found.passing)} by name, and do not start without: deploy again after a"
            " promote or a rollback that removes it"
        )
    if wanted.bundle and not wanted.bundle_sha256:
        notes.append(
            f"pods take whatever bundle lies at {wanted.bundle}; give --bundle-sha256 for them to take one and no other"
        )
    if not found.needs_gpu:
        measured = replicas.measured_cores
        too_few = f" (the plan's machine has {measured})" if measured and measured <= found.cores else ""
        notes.append(
            f"a pod asks for cpu {found.cores}, the engine's instances × threads, and a node has less to give than its"
            f" cores: take nodes of more than {found.cores}{too_few}, or build with fewer instances or threads"
        )
    if not replicas.planned and replicas.min_replicas == replicas.max_replicas:
        notes.append(
            f"{replicas.max_replicas} replicas at all times are a guess: with a queue delay of"
            f" {found.queue_delay_us} µs the queue time does not tell how many are needed; lower"
            " max_queue_delay_microseconds, or measure and give --plan"
        )
    elif not replicas.planned:
        notes.append(
            f"{replicas.min_replicas} to {replicas.max_replicas} replicas and a queue of {replicas.target_us} µs are a"
            " guess; measure and give --plan"
        )
    if found.cached:
        notes.append(
            f"of a workload with a response cache Triton gives no p99 ({', '.join(found.cached)}): TritonLatency never"
            " rings for it; watch its p99 at the clients, by tritonpress_client.metrics"
        )
    if "openvino" in found.native:
        notes.append(f"which OpenVINO Triton {chosen} has is not known here; try the image with tritonpress evaluate")
    if "onnxruntime" in found.native:
        notes.append(
            f"an engine runs in Triton's own ONNX Runtime, {RELEASES[chosen].onnxruntime}; INT8 answers may differ from"
            " those that were gated"
        )
    return notes
