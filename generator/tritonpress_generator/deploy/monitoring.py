"""Prometheus: what it scrapes, records and raises alarms of; and how Kubernetes learns the queue time."""

from __future__ import annotations

from typing import Any

from tritonpress_generator.deploy import queries
from tritonpress_generator.deploy.queries import Objectives
from tritonpress_generator.deploy.settings import METRICS

JOB = "triton"
_JOB = f'job="{JOB}"'
QUEUE_METRIC = "tritonpress_queue_us_per_request"
"""The custom metric that the autoscaler holds."""
_SCRAPE_S = 10
_QUEUED = 64
"""Requests that wait for a model, over five minutes: four full batches of 16."""


def scrape_config(host: str, rules: str) -> dict[str, Any]:
    """Returns Prometheus's configuration for servers that answer at a name of the compose network."""
    return {
        "global": {"scrape_interval": f"{_SCRAPE_S}s", "evaluation_interval": f"{_SCRAPE_S}s"},
        "rule_files": [rules],
        "scrape_configs": [
            {
                "job_name": JOB,
                # By DNS, so that `docker compose up --scale triton=3` is seen.
                "dns_sd_configs": [{"names": [host], "type": "A", "port": METRICS, "refresh_interval": "5s"}],
            },
        ],
    }


def rules(objectives: Objectives) -> dict[str, Any]:
    """Returns the groups of recording and alerting rules."""
    by, p99 = ("job", "instance", "model"), objectives.recorded("tritonpress:p99_us")
    recorded = {
        "tritonpress:queue_us": queries.queue_us(by, objectives.picked()),
        "tritonpress:batch_size": queries.batch_size(by, objectives.picked()),
        "tritonpress:p99_us": objectives.p99_us(),
        "tritonpress:p99_above_limit": f"{p99} > bool {objectives.p99_ms * 1000:g}",
    }
    # What is summed up has lost it.
    labels = {"labels": {"namespace": objectives.namespace}} if objectives.namespace else {}
    return {
        "groups": [
            {
                "name": "tritonpress",
                "rules": [{"record": name, "expr": expr, **labels} for name, expr in recorded.items()],
            },
            {"name": "tritonpress-alerts", "rules": [_labelled(alert, objectives) for alert in _alerts(objectives)]},
        ]
    }


def _labelled(alert: dict[str, Any], objectives: Objectives) -> dict[str, Any]:
    """Returns an alert that says whose it is, where Prometheus may know others."""
    namespace = {"namespace": objectives.namespace} if objectives.namespace else {}
    return alert | {"labels": {**alert["labels"], **namespace}}


def adapter_rules() -> dict[str, Any]:
    """Returns the rule by which prometheus-adapter gives Kubernetes each pod's queue time: of its worst model."""
    by = ("namespace", "pod")
    query = queries.scaling_queue_us((*by, "model"), "<<.LabelMatchers>>")
    return {
        "rules": [
            {
                "seriesQuery": 'nv_inference_queue_duration_us{namespace!="",pod!=""}',
                "resources": {"overrides": {label: {"resource": label} for label in by}},
                "name": {"as": QUEUE_METRIC},
                "metricsQuery": f"max by (<<.GroupBy>>) ({query})",
            }
        ]
    }


def _alerts(objectives: Objectives) -> list[dict[str, Any]]:
    # A page where 2 % of a month's budget went in an hour or 5 % in six, and still goes.
    fast, slow = (
        f"{objectives.failure_burn(long)} > {rate} and {objectives.failure_burn(short)} > {rate}"
        for long, short, rate in (("1h", "5m", 14.4), ("6h", "30m", 6))
    )
    up = f"up{{{objectives.picked(_JOB)}}}"
    waiting = f"nv_inference_pending_request_count{{{objectives.picked()}}}"
    late = " and ".join(f"{objectives.latency_burn(window)} > 6" for window in ("1h", "5m"))
    return [
        _alert("TritonDown", f"{up} == 0", "1m", "critical", "{{ $labels.instance }} gives no metrics"),
        _alert("TritonGone", f"absent({up})", "2m", "critical", "no Triton server is known to Prometheus"),
        _alert(
            "TritonFailureBudgetFast", fast, "2m", "critical", "requests fail 14 times faster than the budget allows"
        ),
        _alert(
            "TritonFailureBudgetSlow", slow, "15m", "warning", "requests fail 6 times faster than the budget allows"
        ),
        _alert(
            "TritonLatency",
            late,
            "2m",
            "critical",
            f"the p99 of {{{{ $labels.model }}}} is above {objectives.p99_ms:g} ms in too many minutes",
        ),
        _alert(
            "TritonQueue",
            f"max by (instance, model) ({waiting}) > {_QUEUED}",
            "5m",
            "warning",
            "{{ $value }} requests wait for {{ $labels.model }} on {{ $labels.instance }}",
        ),
    ]


def _alert(name: str, expr: str, for_: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "for": for_,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }
