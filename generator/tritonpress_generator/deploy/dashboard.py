"""The Grafana dashboard: rates, queue, compute, batch size, latency against its limit, and how budgets are spent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tritonpress_generator.deploy import queries
from tritonpress_generator.deploy.queries import Objectives

_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT = 8, 8
_MODEL = 'model=~"$model"'
_WINDOW = "$__rate_interval"


def dashboard(objectives: Objectives, *, gpu: bool) -> dict[str, Any]:
    """Returns the dashboard, as Grafana imports it."""
    panels = [*_slo(objectives), *_requests(objectives.picked(_MODEL)), *_machine(objectives.picked(), gpu)]
    for number, panel in enumerate(panels):
        row, column = divmod(number, 24 // _WIDTH)
        panel["id"] = number + 1
        panel["gridPos"] = {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
    counted = f"nv_inference_request_success{{{objectives.picked()}}}"
    return {
        "uid": uid(objectives.namespace),
        "title": " ".join(["tritonpress", *filter(None, [objectives.namespace])]),
        "tags": ["triton"],
        "schemaVersion": 41,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": f"label_values({counted}, model)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                },
            ]
        },
        "panels": panels,
    }


def uid(namespace: str) -> str:
    """Returns what tells the dashboard from those of other deployments in a Grafana, which allows 40 characters."""
    return f"tritonpress-{hashlib.sha256(namespace.encode()).hexdigest()[:12]}" if namespace else "tritonpress"


def _slo(objectives: Objectives) -> list[dict[str, Any]]:
    limit, p99 = objectives.p99_ms / 1000, objectives.recorded("tritonpress:p99_us")
    return [
        _panel("p99 of the public models, worst server", "s", {"{{model}}": f"{p99} / 1e6"}, limit),
        _panel(
            "Latency budget, times as fast as it may be spent",
            "none",
            {f"{{{{model}}}}, {window}": objectives.latency_burn(window) for window in ("5m", "1h")},
            1,
        ),
        _panel(
            "Failure budget, times as fast as it may be spent",
            "none",
            {window: objectives.failure_burn(window) for window in ("5m", "1h")},
            1,
        ),
    ]


def _requests(picked: str) -> list[dict[str, Any]]:
    def per_model(counter: str) -> str:
        return queries.per_request(counter, ("model",), picked, _WINDOW) + " / 1e6"

    compute = {part: f"nv_inference_compute_{part}_duration_us" for part in ("input", "infer", "output")}
    answered = f"sum by (model) (rate(nv_inference_request_success{{{picked}}}[{_WINDOW}]))"
    failed = f"sum by (model, reason) (rate(nv_inference_request_failure{{{picked}}}[{_WINDOW}])) > 0"
    waiting = f"sum by (model) (nv_inference_pending_request_count{{{picked}}})"
    parts = {f"{{{{model}}}} {part}": per_model(name) for part, name in compute.items()}
    hits = f"sum by (model) (rate(nv_cache_num_hits_per_model{{{picked}}}[{_WINDOW}]))"
    return [
        _panel("Requests answered", "reqps", {"{{model}}": answered}),
        _panel("Requests failed, by reason", "reqps", {"{{model}} {{reason}}": failed}),
        _panel("Requests that wait", "none", {"{{model}}": waiting}),
        _panel("Queue of a request", "s", {"{{model}}": per_model("nv_inference_queue_duration_us")}),
        _panel("Compute of a request", "s", parts),
        _panel("Requests in an execution", "none", {"{{model}}": queries.batch_size(("model",), picked, _WINDOW)}),
        _panel("Answers out of the response cache", "reqps", {"{{model}}": hits}),
    ]  # fmt: skip


def _machine(picked: str, gpu: bool) -> list[dict[str, Any]]:
    def each(metric: str) -> str:
        return f"{metric}{{{picked}}}" if picked else metric

    panels = [
        _panel("CPU of the hosts", "percentunit", {"{{instance}}": each("nv_cpu_utilization")}),
        _panel(
            "Memory of the hosts",
            "percentunit",
            {"{{instance}}": f"{each('nv_cpu_memory_used_bytes')} / {each('nv_cpu_memory_total_bytes')}"},
        ),
    ]
    if gpu:
        panels += [
            _panel("GPU", "percentunit", {"{{instance}} {{gpu_uuid}}": each("nv_gpu_utilization")}),
            _panel("Memory of the GPUs", "bytes", {"{{instance}} {{gpu_uuid}}": each("nv_gpu_memory_used_bytes")}),
        ]
    return panels


def _panel(title: str, unit: str, queries: Mapping[str, str], limit: float | None = None) -> dict[str, Any]:
    """Returns a time series of each query by its legend, with a line at `limit`."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if limit is not None:
        steps.append({"color": "red", "value": limit})
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for number, (legend, expr) in enumerate(queries.items())
        ],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {"thresholdsStyle": {"mode": "off" if limit is None else "line"}},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }
