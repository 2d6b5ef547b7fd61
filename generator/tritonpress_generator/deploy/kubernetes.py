"""The Kubernetes objects that all kinds of machine share: Kustomize's base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tritonpress_generator.deploy import pods
from tritonpress_generator.deploy.capacity import Capacity
from tritonpress_generator.deploy.monitoring import JOB, QUEUE_METRIC
from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import GRPC, METRICS, Settings

MONITORING_NAMESPACE = "monitoring"
CLIENT_LABEL = "tritonpress-client"
"""Pods of the namespace that may ask the servers carry it, with the value "true"."""


COMPONENT = "app.kubernetes.io/component"


def selector(settings: Settings) -> dict[str, str]:
    """Returns the labels that the servers are found by."""
    return {"app.kubernetes.io/name": "tritonpress", "app.kubernetes.io/instance": settings.name}


def base(
    served: Served, settings: Settings, capacity: Capacity, *, image: str, command: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Returns the objects by the names of their files, with the `kustomization.yaml` that lists them."""
    labels = selector(settings)
    objects = {
        "namespace": _namespace(settings),
        "serviceaccount": {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": settings.name},
            "automountServiceAccountToken": False,
        },
        "deployment": _deployment(served, settings, capacity, image, command),
        "service": _service(settings),
        "horizontalpodautoscaler": _autoscaler(settings, capacity),
        "poddisruptionbudget": {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": settings.name},
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": labels},
                # A server that does not answer protects nothing from being moved.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        },
        "networkpolicy": _network_policy(settings),
    }
    files = {f"{name}.yaml": entry for name, entry in objects.items()}
    return {**files, "kustomization.yaml": _kustomization(settings, files=list(files), labels=labels)}


def _kustomization(settings: Settings, *, files: Sequence[str], labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": settings.name,
        "labels": [{"pairs": {**labels, "app.kubernetes.io/managed-by": "tritonpress"}}],
        "resources": list(files),
    }


def _namespace(settings: Settings) -> dict[str, Any]:
    level = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": settings.name, "labels": level}}


def _deployment(
    served: Served, settings: Settings, capacity: Capacity, image: str, command: Sequence[str]
) -> dict[str, Any]:
    labels = selector(settings)
    builds = ",".join(f"{name}={build}" for name, build in sorted(served.builds.items()))
    spread = [
        ("topology.kubernetes.io/zone", "DoNotSchedule" if capacity.spread_zones else "ScheduleAnyway"),
        ("kubernetes.io/hostname", "ScheduleAnyway"),
    ]
    pod = {
        **pods.spec(served, settings, image=image, command=command),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": otherwise,
                "labelSelector": {"matchLabels": labels},
                # Servers of the old build do not count while a new one rolls out.
                "matchLabelKeys": ["pod-template-hash"],
            }
            for key, otherwise in spread
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": settings.name},
        # No `replicas`: they are the autoscaler's.
        "spec": {
            "selector": {"matchLabels": labels},
            # A new build, or release, has another template: servers are added before others go.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "minReadySeconds": 10,
            "progressDeadlineSeconds": 2 * served.startup_s,
            "revisionHistoryLimit": 5,
            "template": {
                "metadata": {"labels": {**labels, COMPONENT: JOB}, "annotations": {"tritonpress/builds": builds}},
                "spec": pod,
            },
        },
    }


def _service(settings: Settings) -> dict[str, Any]:
    """Returns the headless service: its name gives the clients all servers, between which they balance."""
    protocol = "https" if settings.grpc_tls else "kubernetes.io/h2c"
    ports = [
        {"name": "grpc", "port": GRPC, "targetPort": "grpc", "appProtocol": protocol},
        {"name": "metrics", "port": METRICS, "targetPort": "metrics"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": settings.name},
        "spec": {"clusterIP": "None", "selector": selector(settings), "ports": ports},
    }


def _autoscaler(settings: Settings, capacity: Capacity) -> dict[str, Any]:
    metric = {
        "type": "Pods",
        "pods": {
            "metric": {"name": QUEUE_METRIC},
            "target": {"type": "AverageValue", "averageValue": str(capacity.target_us)},
        },
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": settings.name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": settings.name},
            "minReplicas": capacity.min_replicas,
            "maxReplicas": capacity.max_replicas,
            "metrics": [metric],
            "behavior": {
                # Up at once, by as many as there are; down by one in two minutes, after five quiet ones.
                "scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}]},
                "scaleDown": {
                    "stabilizationWindowSeconds": 300,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
                },
            },
        },
    }


def _network_policy(settings: Settings) -> dict[str, Any]:
    """Returns who may talk to the servers, and to whom they may: without a bucket to nobody."""
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": MONITORING_NAMESPACE}}}
    egress: list[dict[str, Any]] = []
    if settings.bundle:
        egress = [
            {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
            {"ports": [{"port": 443, "protocol": "TCP"}]},
            # Where clouds hand out the credentials of a workload.
            {"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}]},
        ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": settings.name},
        "spec": {
            "podSelector": {"matchLabels": selector(settings)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {CLIENT_LABEL: "true"}}}],
                    "ports": [{"port": "grpc", "protocol": "TCP"}],
                },
                {"from": [monitoring], "ports": [{"port": "metrics", "protocol": "TCP"}]},
            ],
            "egress": egress,
        },
    }
