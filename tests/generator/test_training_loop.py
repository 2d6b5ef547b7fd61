"""The training loop, on a model of a few weights whose evaluations are written down beforehand."""

from __future__ import annotations

import copy
import fcntl
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tritonpress_generator.errors import InputError
from tritonpress_generator.training import loop, report
from tritonpress_generator.training.distributed import World
from tritonpress_generator.training.settings import FinetuneConfig

ALONE = World(0, 1, torch.device("cpu"))
SETTINGS: dict[str, Any] = {"precision": "fp32", "epochs": 2, "batch_size": 4}


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


class Job:
    """A regression, and the metrics that its evaluations give one after another."""

    def __init__(self, metrics: Sequence[float], *, dropout: float = 0.0, fingerprint: str = "one") -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Dropout(dropout), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )
        inputs = torch.randn(30, 3)
        self.features = [{"input_ids": row.tolist(), "target": float(row.sum())} for row in inputs]
        self.metrics = metrics
        self.weights: list[list[torch.Tensor]] = []
        """At every evaluation."""
        self.fingerprint = fingerprint

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        self.weights.append(self.now())
        return {"quality": self.metrics[len(self.weights) - 1]}

    def now(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def train(self, folder: Path, **settings: Any) -> loop.Progress:
        trained = loop.Trained(
            self.model, self.features, _collate, _losses, self.evaluate, "quality", self.fingerprint, "finetune"
        )
        return loop.train(trained, FinetuneConfig(**SETTINGS | settings), folder, ALONE)


def _collate(features: Sequence[loop.Feature]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([feature[name] for feature in features]) for name in features[0]}


def _losses(model: Callable[..., Any], batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
    return torch.square(model(batch["input_ids"])[:, 0] - batch["target"])


def same(weights: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns what TensorBoard shows of the files in `folder`: steps and values."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_best_weights_are_kept_and_not_the_last(tmp_path: Path) -> None:
    job = Job([0.1, 0.7, 0.3, 0.7])
    progress = job.train(tmp_path, evaluations=4)
    assert (progress.step, progress.best_step, progress.best_metric) == (16, 8, 0.7)
    assert same(job.now(), job.weights[1])
    assert not same(job.now(), job.weights[3])
    assert [entry["quality"] for entry in progress.evaluations] == [0.1, 0.7, 0.3, 0.7]


def test_training_stops_after_so_many_evaluations_without_a_better_one(tmp_path: Path) -> None:
    job = Job([0.5, 0.4, 0.6, 0.6, 0.2, 0.9, 0.9, 0.9])
    progress = job.train(tmp_path / "a", evaluations=8, patience=2)
    assert (progress.step, progress.best_step) == (10, 6)
    assert len(progress.losses) == 10
    assert same(job.now(), job.weights[2])
    assert Job(job.metrics).train(tmp_path / "b", evaluations=8).step == 16


def test_loss_falls_and_the_learning_rate_is_that_of_the_schedule(tmp_path: Path) -> None:
    progress = Job([0.0] * 4).train(tmp_path, epochs=20, learning_rate=3e-2)
    assert sum(progress.losses[-8:]) < 0.3 * sum(progress.losses[:8])
    rates = [rate for _, rate in scalars(tmp_path)["train/learning_rate"]]
    assert max(rates) == pytest.approx(3e-2)
    assert rates[0] < max(rates) > rates[-1]


@pytest.mark.parametrize("batch_size", [4, 7])
def test_accumulated_parts_are_the_whole_batch(tmp_path: Path, batch_size: int) -> None:
    runs = []
    for steps in (1, 2, 5):
        job = Job([0.0] * 4)
        progress = job.train(tmp_path / str(steps), batch_size=batch_size, accumulation_steps=steps)
        runs.append((progress.losses, job.now()))
    for losses, weights in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        for one, other in zip(weights, runs[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


METRICS = [0.3, 0.5, 0.4, 0.2, 0.6, 0.1, 0.0, 0.1]
PATIENT: dict[str, Any] = {"evaluations": 8, "patience": 3, "epochs": 4}


def kill(job: Job, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Trains until the end of `step`."""
    said = report.Report.step

    def end(self: Any, progress: loop.Progress, rate: float) -> None:
        said(self, progress, rate)
        if progress.step == step:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(report.Report, "step", end)
        job.train(folder, **settings)


@pytest.mark.parametrize("every_s", [0.0, 1e9])
@pytest.mark.parametrize("step", [1, 8, 15, 31])
def test_killed_run_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, every_s: float
) -> None:
    """With states after every step, or after evaluations alone; dropout, patience and the best weights are in it."""
    whole = Job(METRICS, dropout=0.3)
    expected = whole.train(tmp_path / "whole", **PATIENT)
    monkeypatch.setattr(loop, "_STATE_EVERY_S", every_s)
    killed = Job(METRICS, dropout=0.3)
    kill(killed, tmp_path / "killed", step, monkeypatch, **PATIENT)
    torch.manual_seed(99)
    resumed = Job(METRICS, dropout=0.3)
    state = tmp_path / "killed" / "state.pt"
    done = torch.load(state)["progress"]["evaluations"] if state.is_file() else []
    resumed.weights = copy.copy(killed.weights[: len(done)])
    assert resumed.train(tmp_path / "killed", **PATIENT) == expected
    assert same(resumed.now(), whole.now())
    assert scalars(tmp_path / "killed") == scalars(tmp_path / "whole")


def test_run_that_goes_on_at_once_is_shown_behind_what_it_goes_on_from(tmp_path: Path) -> None:
    """TensorBoard reads files by name, and in a process the name of the hundredth is before that of another."""
    begun = tmp_path / f"events.out.tfevents.{int(time.time())}.zzz.1.99"
    begun.touch()
    report.Report(tmp_path, 8, 4, shown=True).close()
    first, _ = sorted(tmp_path.iterdir())
    assert first == begun


@pytest.mark.parametrize("bf16", [False, True])
def test_run_goes_on_in_the_precision_in_which_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    auto = PATIENT | {"precision": "auto"}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    whole = Job(METRICS)
    expected = whole.train(tmp_path / "whole", **auto)
    kill(Job(METRICS), tmp_path / "killed", 10, monkeypatch, **auto)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not bf16)
    resumed = Job(METRICS)
    resumed.weights = whole.weights[:2]
    assert resumed.train(tmp_path / "killed", **auto) == expected
    assert same(resumed.now(), whole.now())
    assert expected.precision == ("bf16" if bf16 else "fp32")
    other = Job(METRICS).train(tmp_path / "other", **auto)
    assert other.losses != expected.losses


def test_another_training_of_a_folder_is_refused_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a build that is begun while `tritonpress distill` runs."""
    killed = Job(METRICS)
    kill(killed, tmp_path, 10, monkeypatch, **PATIENT)
    other = Job(METRICS)
    other.weights = killed.weights[:2]
    before = (tmp_path / "state.pt").read_bytes()
    running = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_EX)
    with pytest.raises(InputError, match=r"finetune: another training is at .*; wait until that has ended"):
        other.train(tmp_path, **PATIENT)
    assert (tmp_path / "state.pt").read_bytes() == before
    fcntl.flock(running, fcntl.LOCK_UN)
    expected = other.train(tmp_path, **PATIENT)
    fcntl.flock(running, fcntl.LOCK_EX)
    assert Job([]).train(tmp_path, **PATIENT) == expected
    os.close(running)


def test_finished_run_is_not_computed_again(tmp_path: Path) -> None:
    first = Job(METRICS)
    expected = first.train(tmp_path, **PATIENT)
    again = Job([])
    assert again.train(tmp_path, **PATIENT) == expected
    assert expected.seconds > 0
    assert same(again.now(), first.now())
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == list(range(1, expected.step + 1))


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    Job(METRICS).train(tmp_path, **PATIENT)
    with pytest.raises(InputError, match=r"state\.pt is the state of a run with other .*; remove it to begin anew, or"):
        Job(METRICS, fingerprint="another").train(tmp_path, **PATIENT)


@pytest.mark.parametrize("spoil", [lambda data: data[:500], lambda data: b"", lambda data: b"\x80\x02c" + data])
def test_state_that_cannot_be_read_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    Job(METRICS).train(tmp_path, **PATIENT)
    path = tmp_path / "state.pt"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=r"state\.pt cannot be read .*; remove it to begin anew") as raised:
        Job(METRICS).train(tmp_path, **PATIENT)
    assert "\n" not in str(raised.value)


def test_state_that_cannot_be_written_is_said_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Job(METRICS).train(tmp_path / "whole", **PATIENT)
    folder = tmp_path / "full"
    killed = Job(METRICS)
    kill(killed, folder, 10, monkeypatch, **PATIENT)
    before = (folder / "state.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        resumed = Job(METRICS)
        resumed.weights = killed.weights[:2]
        with pytest.raises(InputError, match=r"state\.pt cannot be written \(.* File too large\); make room, and give"):
            resumed.train(folder, **PATIENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in folder.glob("state.*")] == ["state.pt"]
    assert (folder / "state.pt").read_bytes() == before
    resumed.weights = killed.weights[:2]
    assert resumed.train(folder, **PATIENT) == expected


def test_loss_that_is_not_finite_ends_the_run_and_leaves_the_state_good(tmp_path: Path) -> None:
    job = Job(METRICS)
    job.features[17]["target"] = float("inf")
    with pytest.raises(InputError, match=r"the loss must be finite, is inf at step \d; lower finetune\.learning_rate"):
        job.train(tmp_path, **PATIENT)
    assert all(torch.isfinite(weights).all() for weights in job.now())


def test_losses_and_metrics_are_in_tensorboards_files(tmp_path: Path) -> None:
    progress = Job(METRICS).train(tmp_path, evaluations=4)
    shown = scalars(tmp_path)
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 17))
    assert [value for _, value in shown["train/loss"]] == pytest.approx(progress.losses)
    assert shown["validation/quality"] == [(4 * i, pytest.approx(METRICS[i - 1])) for i in range(1, 5)]


def test_lines_are_plain_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "_LINE_EVERY_S", 0)
    Job(METRICS).train(tmp_path, evaluations=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 18
    assert lines[0].startswith("step 1 of 16, loss ")
    assert lines[0].endswith(" min left")
    assert lines[-1] == "step 16 of 16, validation: quality 0.5000  (the best yet)"
    assert not any(character in line for line in lines for character in "\r\x1b")
