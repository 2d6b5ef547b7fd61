"""The training loop: AdamW, warm-up and decay, accumulation, evaluation, early stopping, and a state to resume from.

A run is determined by its seed: what a step computes depends on the weights and on the number of the step alone, so
that a run that was killed goes on to the same result, and several processes compute what one would.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.parallel import DistributedDataParallel

from tritonpress_generator import workplace
from tritonpress_generator.errors import InputError, PlaceError
from tritonpress_generator.training.distributed import World
from tritonpress_generator.training.report import Report
from tritonpress_generator.training.schedule import Schedule
from tritonpress_generator.training.settings import BOARD, STATE, TrainingConfig

_STATE_EVERY_S = 120.0

Feature = Mapping[str, Any]
"""An example: its sequences and its labels, by name."""


@dataclass
class Progress:
    """How far a training has come; all of it is in its state."""

    step: int = 0
    best_metric: float | None = None
    best_step: int = 0
    worse: int = 0
    """Evaluations since the best one."""
    losses: list[float] = field(default_factory=list)
    """Of each step, the mean over its batch."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of products and activations, as it was begun: a machine that would begin in the other one goes on in this one."""
    seconds: float = field(default=0.0, compare=False)
    """Spent on all of this, in the runs that were killed too."""


@dataclass(frozen=True)
class Trained:
    """What is trained, and on what."""

    model: torch.nn.Module
    features: Sequence[Feature]
    collate: Callable[[Sequence[Feature]], dict[str, torch.Tensor]]
    losses: Callable[[Callable[..., Any], dict[str, torch.Tensor], World], torch.Tensor]
    """A loss for each example of this process's part of a batch."""
    evaluate: Callable[[], dict[str, float]]
    """Metrics on the held-out examples, the same in every process; higher is better."""
    metric: str
    """The one that decides."""
    fingerprint: str
    """Of all that determines the run."""
    where: str
    """The section of a recipe that has its settings, for messages."""


def train(trained: Trained, config: TrainingConfig, folder: Path, world: World) -> Progress:
    """Returns how the training went; the model then has the weights that were best on the held-out examples.

    Args:
        trained: The model and its data.
        config: The settings.
        folder: Where the state and TensorBoard's files are written, the same for all processes; a state of the same run
            is resumed.
        world: The processes that train together.

    Raises:
        InputError: `folder` has the state of another run, or is another one for each process, or the loss is no
            longer finite.
        PlaceError: `folder` cannot be read or written, or another training that is not done is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world.check_shared(folder, where=trained.where)
    # The states of two would be written over each other.
    with workplace.held(folder) if world.writes else nullcontext(True) as is_held:
        return _train(trained, config, folder, world, alone=all(world.gather(is_held)))


def _train(trained: Trained, config: TrainingConfig, folder: Path, world: World, *, alone: bool) -> Progress:
    """Trains as `train` says; `alone` if no other training is at `folder`."""
    schedule = Schedule([len(feature["input_ids"]) for feature in trained.features], config)
    model = trained.model.to(world.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    state = _State(folder, trained, parameters, optimizer, world)
    progress = state.load() or Progress(precision=_precision(config, world))
    config = config.model_copy(update={"precision": progress.precision})
    if not (alone or _is_done(progress, schedule, config)):
        raise PlaceError(f"{trained.where}: another training is at {folder}; wait until that has ended")
    parallel = DistributedDataParallel(model) if world.size > 1 else model
    evaluations = set(schedule.evaluations)
    epochs: dict[int, list[list[int]]] = {}
    report = Report(folder / BOARD, schedule.steps, progress.step, shown=world.writes)
    clock = time.monotonic()
    try:
        while not _is_done(progress, schedule, config):
            number = progress.step // schedule.steps_per_epoch
            if number not in epochs:
                epochs = {number: schedule.epoch(number)}
            members = epochs[number][progress.step % schedule.steps_per_epoch]
            rate = schedule.learning_rate(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            # Dropout's masks depend on the step alone, so that a resumed run draws the same.
            torch.manual_seed(hash((config.seed, progress.step, world.rank)) & 0x7FFFFFFF)
            loss = _step(trained, parallel, members, config, world)
            if not torch.isfinite(loss):
                raise InputError(
                    f"{trained.where}: the loss must be finite, is {loss.item()} at step {progress.step}; "
                    f"lower {trained.where}.learning_rate"
                )
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.losses.append(loss.item())
            progress.step += 1
            report.step(progress, rate)
            if progress.step in evaluations:
                metrics = trained.evaluate()
                _note(progress, metrics, trained.metric, state)
                report.evaluated(progress, metrics)
            clock, before = time.monotonic(), clock
            progress.seconds += clock - before
            if state.is_due(evaluated=progress.step in evaluations):
                report.flush()
                state.save(progress)
    finally:
        report.close()
    state.restore_best()
    return progress


def _step(trained: Trained, model: Any, members: Sequence[int], config: TrainingConfig, world: World) -> torch.Tensor:
    """Computes the gradients of one batch, and returns its mean loss."""
    # The parts are those of one process, each of them shared, so that what is computed together is the same.
    count = min(config.accumulation_steps, len(members))
    parts = [members[i::count] for i in range(count)]
    total = torch.zeros((), device=world.device)
    bf16 = computes_in_bf16(config, world.device)
    for number, part in enumerate(parts):
        last = number == count - 1
        mine = part[world.rank :: world.size]
        alone = nullcontext() if last or world.size == 1 else model.no_sync()
        # Where there are fewer examples than processes, one is computed and not counted: all must take part.
        batch = trained.collate([trained.features[i] for i in mine or part[:1]])
        batch = {name: tensor.to(world.device) for name, tensor in batch.items()}
        with alone:
            with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
                losses = trained.losses(model, batch, world)
            loss = losses.float().sum() * (1.0 if mine else 0.0)
            # The processes' gradients are averaged; what is wanted is the mean over the whole batch.
            (loss * world.size / len(members)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return world.sum(total) / len(members)


def computes_in_bf16(config: TrainingConfig, device: torch.device) -> bool:
    """Returns whether products are computed in bf16: as the recipe says, else where the machine has it."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def _precision(config: TrainingConfig, world: World) -> Literal["fp32", "bf16"]:
    """Returns in what a training is begun: as the first process's machine computes."""
    return "bf16" if world.gather(computes_in_bf16(config, world.device))[0] else "fp32"


def _is_done(progress: Progress, schedule: Schedule, config: TrainingConfig) -> bool:
    return progress.step >= schedule.steps or (config.patience is not None and progress.worse >= config.patience)


def _note(progress: Progress, metrics: dict[str, float], metric: str, state: _State) -> None:
    """Keeps the weights if they are the best yet."""
    progress.evaluations.append({"step": float(progress.step)} | metrics)
    if progress.best_metric is None or metrics[metric] > progress.best_metric:
        progress.best_metric, progress.best_step, progress.worse = metrics[metric], progress.step, 0
        state.keep_best()
    else:
        progress.worse += 1


class _State:
    """What a killed run goes on from; written by one process, by rename, so that it is whole at every moment."""

    def __init__(
        self,
        folder: Path,
        trained: Trained,
        parameters: list[torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        world: World,
    ) -> None:
        self._path = folder / f"{STATE}.pt"
        self._trained = trained
        self._parameters = parameters
        self._optimizer = optimizer
        self._world = world
        self._best: list[torch.Tensor] = []
        self._saved = time.monotonic()

    def load(self) -> Progress | None:
        where = self._trained.where
        if not self._path.is_file():
            return None
        try:
            state = torch.load(self._path, map_location=self._world.device, weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as exc:
            raise PlaceError(
                f"{where}: {self._path} cannot be read ({' '.join(str(exc).split())[:200]}); remove it to begin anew"
            ) from exc
        if state["fingerprint"] != self._trained.fingerprint:
            raise InputError(
                f"{where}: {self._path} is the state of a run with other settings, data or weights; remove it to begin "
                "anew, or give another folder"
            )
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = state["best"]
        return Progress(**state["progress"])

    def is_due(self, *, evaluated: bool) -> bool:
        return evaluated or time.monotonic() - self._saved >= _STATE_EVERY_S

    def save(self, progress: Progress) -> None:
        self._saved = time.monotonic()
        if not self._world.writes:
            return
        new = self._path.with_suffix(".new")
        state = {
            "fingerprint": self._trained.fingerprint,
            "parameters": [parameter.detach() for parameter in self._parameters],
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "progress": vars(progress),
        }
        try:
            with new.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except (OSError, RuntimeError) as exc:
            # torch raises the latter while it handles the former.
            fault = exc if isinstance(exc, OSError) else exc.__context__
            if not isinstance(fault, OSError):
                raise
            new.unlink(missing_ok=True)
            raise PlaceError(
                f"{self._trained.where}: {self._path} cannot be written ({fault}); make room, and give the same "
                "command again: it goes on from the last state that was saved"
            ) from exc

    def keep_best(self) -> None:
        self._best = [parameter.detach().clone() for parameter in self._parameters]

    def restore_best(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._best, strict=True):
                parameter.copy_(value)
