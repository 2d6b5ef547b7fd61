"""What is asked of Triton's metrics: alerts, dashboard and scaling share these expressions.

Names and labels are those of Triton's metrics (https://github.com/triton-inference-server/server, docs/user_guide/
metrics.md), as the embedded server gives them; burn rates are those of Google's SRE workbook, chapter 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SUCCESS_OBJECTIVE = 0.999
"""Of requests; a server's own failures and what its queues reject count against it."""
LATENCY_OBJECTIVE = 0.99
"""Of minutes, in which the p99 is within the limit."""
_BAD = 'reason=~"BACKEND|REJECTED"'
"""Triton counts a request that the client got wrong as OTHER, and one that it gave up as CANCELED."""
_LEAST_PER_S = 0.01
"""Below the rate of one request in a window of a minute."""


def queue_us(by: Sequence[str], matchers: str = "", window: str = "1m") -> str:
    """Returns the mean queue time of a request in µs, by the labels `by`; nothing where no request was."""
    return per_request("nv_inference_queue_duration_us", by, matchers, window)


def scaling_queue_us(by: Sequence[str], matchers: str) -> str:
    """Returns the mean queue time of a request over a minute in µs, by the labels `by`; 0 where no request was.

    An autoscaler without a value takes no server away, and an idle one is what it should take.
    """
    growth, requests = _rates("nv_inference_queue_duration_us", by, matchers, "1m")
    return f"{growth} / clamp_min({requests}, {_LEAST_PER_S})"


def per_request(counter: str, by: Sequence[str], matchers: str = "", window: str = "1m") -> str:
    """Returns a counter's growth for each request that was answered, by the labels `by`."""
    growth, requests = _rates(counter, by, matchers, window)
    return f"{growth} / ({requests} > 0)"


def _rates(counter: str, by: Sequence[str], matchers: str, window: str) -> tuple[str, str]:
    """Returns a counter's growth and the requests that were answered, a second each."""
    labels = ", ".join(by)
    counters = (counter, "nv_inference_request_success")
    growth, requests = (f"sum by ({labels}) (rate({name}{{{matchers}}}[{window}]))" for name in counters)
    return growth, requests


def batch_size(by: Sequence[str], matchers: str = "", window: str = "1m") -> str:
    """Returns the mean number of requests in an execution, by the labels `by`."""
    labels = ", ".join(by)
    executions = f"sum by ({labels}) (rate(nv_inference_exec_count{{{matchers}}}[{window}]))"
    return f"sum by ({labels}) (rate(nv_inference_count{{{matchers}}}[{window}])) / ({executions} > 0)"


@dataclass(frozen=True)
class Objectives:
    """What the public models promise."""

    public: Sequence[str]
    p99_ms: float
    namespace: str = ""
    """Of the servers, where their Prometheus may know others; empty where it knows no others."""

    def picked(self, *matchers: str) -> str:
        """Returns `matchers` and the one of these servers, as a selector has them."""
        return ", ".join([*matchers, *([f'namespace="{self.namespace}"'] if self.namespace else [])])

    def failed_share(self, window: str) -> str:
        """Returns the share of requests that failed by the server's fault; a step's failure is its workload's."""
        failed = f"sum(rate(nv_inference_request_failure{{{self.picked(_BAD)}}}[{window}]))"
        asked = f"sum(rate(nv_inference_request_success{{{self.picked(self._models)}}}[{window}]))"
        return f"{failed} / ({asked} + {failed} > 0)"

    def failure_burn(self, window: str) -> str:
        """Returns how many times faster than it may the budget of failures is spent."""
        return f"({self.failed_share(window)}) / {1 - SUCCESS_OBJECTIVE:.3g}"

    def p99_us(self) -> str:
        """Returns the worst p99 of the servers by model, in µs; nothing where no request was."""
        picked = self.picked(self._models, 'quantile="0.99"')
        return f"max by (model) (nv_inference_request_summary_us{{{picked}}} >= 0)"

    def recorded(self, name: str) -> str:
        """Returns the series that Prometheus records under a name."""
        return f"{name}{{{self.picked()}}}" if self.namespace else name

    def latency_burn(self, window: str) -> str:
        """Returns how many times faster than it may the budget of slow minutes is spent, by model."""
        above = self.recorded("tritonpress:p99_above_limit")
        return f"avg_over_time({above}[{window}]) / {1 - LATENCY_OBJECTIVE:.3g}"

    @property
    def _models(self) -> str:
        """The matcher of the public models."""
        return f'model=~"{"|".join(self.public)}"'
