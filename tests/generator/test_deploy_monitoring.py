"""What Prometheus, its operator and Grafana are given: PromQL's grammar, and whose servers it is about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from deployments import deploy, filled, use_index, write_repository
from tritonpress_generator.deploy import monitoring
from tritonpress_generator.deploy.dashboard import dashboard
from tritonpress_generator.deploy.queries import Objectives

_SERIES = re.compile(r"\b(?:nv_\w+|up\b|tritonpress:\w+)(\{[^}]*\})?")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitoring")
    with pytest.MonkeyPatch.context() as patch:
        use_index(folder / "index", patch)
        return deploy(write_repository(folder / "model_repo"), folder / "out", "--name=blue")


def test_promql_of_rules_dashboard_and_adapter_parses(out: Path) -> None:
    expressions = [rule["expr"] for group in _rules(out) for rule in group["rules"]]
    board = json.loads((out / "compose" / "grafana" / "dashboards" / "tritonpress.json").read_text())
    adapter = yaml.safe_load((out / "kubernetes" / "prometheus-adapter.yaml").read_text())["rules"][0]
    expressions += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [adapter["metricsQuery"], adapter["seriesQuery"]]
    operators, boards = _of_operator(out)
    expressions += [rule["expr"] for rule in operators]
    expressions += [target["expr"] for panel in boards["panels"] for target in panel["targets"]]
    assert len(expressions) > 50
    for expression in expressions:
        promql_parser.parse(filled(expression))
    assert [group["name"] for group in _rules(out)] == ["tritonpress", "tritonpress-alerts"]


def test_in_a_cluster_nothing_is_asked_of_others_servers(out: Path) -> None:
    """Its Prometheus knows every Triton: their failures are not ours, and ours may be gone while they are up."""
    rules, board = _of_operator(out)
    expressions = [rule["expr"] for rule in rules]
    expressions += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    for expression in expressions:
        found = [match.group(1) or "" for match in _SERIES.finditer(expression)]
        assert found and all('namespace="blue"' in matchers for matchers in found), expression
    assert {rule["labels"]["namespace"] for rule in rules} == {"blue"}
    # One Prometheus and one Grafana for several deployments.
    mine, other = (dashboard(Objectives(["a"], 100, name), gpu=False) for name in ("blue", "green"))
    assert mine["uid"] == board["uid"] != other["uid"]
    assert len(mine["uid"]) <= 40
    folder = out / "kubernetes" / "components" / "prometheus-operator"
    assert yaml.safe_load((folder / "dashboard.yaml").read_text())["data"].keys() == {f"{mine['uid']}.json"}


def test_a_server_without_requests_has_a_queue_time() -> None:
    """Else Kubernetes takes no server away when nobody asks any more: a comparison would leave out what is idle."""
    (rule,) = monitoring.adapter_rules()["rules"]
    assert ">" not in re.sub("<<.*?>>", "", rule["metricsQuery"])
    promql_parser.parse(filled(rule["metricsQuery"]))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="plays metrics with promtool, which is not installed")
def test_the_autoscaler_is_told_the_queue_time(tmp_path: Path) -> None:
    """Of a pod that is asked ten times in ten seconds, one that is asked once a minute, and one that nobody asks."""
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(_scaled()))
    done = subprocess.run(["promtool", "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _scaled() -> dict[str, Any]:
    """Returns promtool's unit test of the adapter's query."""
    (rule,) = monitoring.adapter_rules()["rules"]
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="n"').replace("<<.GroupBy>>", "pod")
    requests = {"busy": "0+10x30", "rare": "0x5 1x5 2x5 3x5 4x5", "idle": "5x30"}
    waited = {"busy": "0+5000x30", "rare": "0x5 500x5 1000x5 1500x5 2000x5", "idle": "900x30"}
    series = {"nv_inference_request_success": requests, "nv_inference_queue_duration_us": waited}
    return {
        "tests": [
            {
                "interval": "10s",
                "input_series": [
                    {"series": f'{name}{{namespace="n", pod="{pod}", model="m"}}', "values": values}
                    for name, pods in series.items()
                    for pod, values in pods.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"round({query})",
                        "eval_time": "4m",
                        "exp_samples": [
                            {"labels": f'{{pod="{pod}"}}', "value": value}
                            for pod, value in {"busy": 500, "rare": 500, "idle": 0}.items()
                        ],
                    }
                ],
            }
        ]
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="plays alerts with promtool, which is not installed")
def test_alerts_ring_when_they_should(tmp_path: Path) -> None:
    objectives = Objectives(["a", "b"], 50)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(monitoring.rules(objectives)))
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(_played()))
    done = subprocess.run(["promtool", "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _played() -> dict[str, Any]:
    """Returns promtool's unit test: an hour in which a server rejects one of 50 requests, and is slow."""
    labels = 'instance="x", job="triton", model="a"'
    series = {
        'up{job="triton", instance="x"}': "1+0x60",
        'up{job="triton", instance="y"}': "0+0x60",
        f"nv_inference_request_success{{{labels}}}": "0+98x60",
        f'nv_inference_request_failure{{{labels}, reason="REJECTED"}}': "0+2x60",
        f'nv_inference_request_failure{{{labels}, reason="OTHER"}}': "0+50x60",
        f'nv_inference_request_summary_us{{{labels}, quantile="0.99"}}': "60000+0x60",
        f"nv_inference_pending_request_count{{{labels}}}": "10+0x60",
    }
    rings = {"TritonDown": True, "TritonGone": False, "TritonFailureBudgetFast": True, "TritonQueue": False}
    expected = {
        "TritonDown": {
            "exp_labels": {"instance": "y", "job": "triton", "severity": "critical"},
            "exp_annotations": {"summary": "y gives no metrics"},
        },
        "TritonFailureBudgetFast": {
            "exp_labels": {"severity": "critical"},
            "exp_annotations": {"summary": "requests fail 14 times faster than the budget allows"},
        },
        "TritonLatency": {
            "exp_labels": {"model": "a", "severity": "critical"},
            "exp_annotations": {"summary": "the p99 of a is above 50 ms in too many minutes"},
        },
    }
    tests = [
        {"eval_time": "60m", "alertname": name, "exp_alerts": [expected[name]] if ring else []}
        for name, ring in {**rings, "TritonLatency": True}.items()
    ]
    return {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": tests,
            }
        ],
    }


def test_the_dashboard_shows_gpus_where_there_are_any() -> None:
    objectives = Objectives(["a"], 100)
    without, with_gpu = (dashboard(objectives, gpu=gpu)["panels"] for gpu in (False, True))
    assert len(with_gpu) == len(without) + 2
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in with_gpu]
    assert len(set(places)) == len(places)


def _rules(out: Path) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load((out / "compose" / "rules.yaml").read_text())["groups"]
    return groups


def _of_operator(out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the rules and the dashboard of the operator's component."""
    folder = out / "kubernetes" / "components" / "prometheus-operator"
    groups = yaml.safe_load((folder / "prometheusrule.yaml").read_text())["spec"]["groups"]
    (board,) = yaml.safe_load((folder / "dashboard.yaml").read_text())["data"].values()
    return [rule for group in groups for rule in group["rules"]], json.loads(board)
