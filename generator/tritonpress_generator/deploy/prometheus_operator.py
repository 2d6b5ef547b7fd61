"""A Kustomize component for clusters with the Prometheus operator: scraping, rules and the dashboard."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tritonpress_generator.deploy import dashboard, monitoring
from tritonpress_generator.deploy.kubernetes import COMPONENT, selector
from tritonpress_generator.deploy.queries import Objectives
from tritonpress_generator.deploy.settings import Settings


def component(settings: Settings, objectives: Objectives, *, gpu: bool) -> dict[str, dict[str, Any]]:
    """Returns the component's files: a cluster's Prometheus and Grafana know other Tritons too.

    Args:
        settings: The operator's.
        objectives: What its servers promise.
        gpu: Whether they have one.
    """
    own = replace(objectives, namespace=settings.name)
    objects = {
        "podmonitor": {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": {"name": settings.name},
            "spec": {
                "selector": {"matchLabels": selector(settings)},
                "podMetricsEndpoints": [{"port": "metrics", "interval": "10s"}],
                # The rules know the job by the name that it has in the compose file.
                "jobLabel": COMPONENT,
            },
        },
        "prometheusrule": {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": settings.name},
            "spec": monitoring.rules(own),
        },
        "dashboard": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            # As the sidecar of Grafana's usual chart finds it.
            "metadata": {"name": f"{settings.name}-dashboard", "labels": {"grafana_dashboard": "1"}},
            # The files of all deployments come into one folder.
            "data": {f"{dashboard.uid(own.namespace)}.json": json.dumps(dashboard.dashboard(own, gpu=gpu), indent=1)},
        },
    }
    files = {f"{name}.yaml": entry for name, entry in objects.items()}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        # Whoever includes it need not say it: a monitor finds the pods of its own namespace alone.
        "namespace": settings.name,
        "resources": list(files),
    }
    return {**files, "kustomization.yaml": kustomization}
