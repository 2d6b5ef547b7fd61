"""What differs between kinds of machine: Kustomize's overlays `cpu`, `gpu` and `mig`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritonpress_generator.deploy.pods import CONTAINER
from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import Settings
from tritonpress_generator.errors import InputError

_LABEL = "nvidia.com/gpu.compute"
"""Of nodes, by NVIDIA's GPU feature discovery."""


def overlays(served: Served, settings: Settings) -> dict[str, dict[str, Any]]:
    """Returns the files of the overlays that can run the repository: of a CPU, or of a GPU and a part of one.

    Raises:
        InputError: The plans were built for GPUs of which no machine has two kinds.
    """
    cores = {"cpu": str(served.cores)}
    if not served.needs_gpu:
        # Requests that equal limits, in whole cores: where the kubelet's CPU manager is static, the cores are its own.
        return _overlay("cpu", settings, {"requests": cores, "limits": cores}, {})
    pod: dict[str, Any] = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}
    if terms := _terms(served):
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        pod["affinity"] = {"nodeAffinity": required}
    parts = {"gpu": "nvidia.com/gpu", "mig": f"nvidia.com/mig-{settings.mig}"}
    files: dict[str, dict[str, Any]] = {}
    for name, resource in parts.items():
        files |= _overlay(name, settings, {"requests": cores, "limits": {resource: "1"}}, pod)
    return files


def _overlay(
    name: str, settings: Settings, resources: dict[str, Any], pod: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    container = {"name": CONTAINER, "resources": resources}
    return {
        f"{name}/kustomization.yaml": {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": settings.name,
            "resources": ["../../base"],
            "patches": [{"path": "deployment.yaml"}],
        },
        f"{name}/deployment.yaml": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": settings.name},
            "spec": {"template": {"spec": {**pod, "containers": [container]}}},
        },
    }


def _terms(served: Served) -> list[dict[str, Any]]:
    """Returns which nodes have a GPU that all plans are for; a plan runs on no other kind."""
    kinds: dict[Path, set[str]] = {}
    ampere = False
    for path, stamp in served.plans.items():
        if stamp.get("hardware_compatibility") == "ampere_plus":
            ampere = True
        elif "compute_capability" in stamp:
            kinds.setdefault(path.parent, set()).add(str(stamp["compute_capability"]))
    later = [{"key": f"{_LABEL}.major", "operator": "Gt", "values": ["7"]}] if ampere else []
    if not kinds:
        return [{"matchExpressions": later}] if later else []
    common = set.intersection(*kinds.values())
    if not common:
        each = "; ".join(
            f"{folder.parent.name} for {', '.join(sorted(found))}" for folder, found in sorted(kinds.items())
        )
        raise InputError(f"the plans must be for one kind of GPU, are by compute capability: {each}; build them on one")
    return [{"matchExpressions": [*_is(capability), *later]} for capability in sorted(common)]


def _is(capability: str) -> list[dict[str, Any]]:
    parts = dict(zip(("major", "minor"), capability.split("."), strict=True))
    return [{"key": f"{_LABEL}.{part}", "operator": "In", "values": [value]} for part, value in parts.items()]
