"""When an old step is given up, by a clock of the test's own; `test_switched_servers.py` is on servers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import model_control
from tritonpress_generator.model_control import ModelControl

STEP = "recommendation_engine_0123456789ab"


class Server:
    """A server with one old step, whose requests it has counted as `counts` say at each look, and then as the last."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts
        self.seen: list[int] = []
        self.unloaded: list[str] = []

    def statistics(self, model: str = "") -> list[SimpleNamespace]:
        if model:
            self.seen.append(self.counts[min(len(self.seen), len(self.counts) - 1)])
        count = SimpleNamespace(count=self.seen[-1] if self.seen else 0)
        return [SimpleNamespace(name=STEP, success=count, fail=SimpleNamespace(count=0))]

    def model_config(self, model: str) -> pb.ModelConfig:
        return pb.ModelConfig(name=model)

    def models(self) -> list[SimpleNamespace]:
        return []

    def unload_model(self, model: str) -> None:
        self.unloaded.append(model)


def test_a_pause_behind_the_switch_is_not_taken_for_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    server, now = Server([5, 5, 6]), [0.0]

    def sleep(seconds: float) -> None:
        # Between the first two looks everything stands still; a request that was on its way is counted behind them.
        now[0] += 10 if len(server.seen) == 1 else seconds

    monkeypatch.setattr(model_control, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(model_control, "Connection", lambda *_, **__: server)
    ModelControl("triton.test:8001", timeout_s=60).unload_unused("recommendation", set())
    assert server.unloaded[-1] == STEP
    assert server.seen[:3] == [5, 5, 6]
    assert server.seen.count(6) > 5
    # No sooner than before where nothing stands still.
    assert now[0] >= 11
