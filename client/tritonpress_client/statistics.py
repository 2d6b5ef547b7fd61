"""Triton's statistics of a model as plain values that can be subtracted: after − before is what a run cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    @property
    def mean_us(self) -> float:
        """The mean time of one in microseconds; 0 where there was none."""
        return self.ns / self.count / 1e3 if self.count else 0.0

    def __sub__(self, before: Duration) -> Duration:
        return Duration(self.count - before.count, self.ns - before.ns)


@dataclass(frozen=True)
class ModelStatistics:
    """The counters of one version of a model since the server loaded it.

    The durations count requests, not executions: a request that shared an execution with others is charged with all of
    its time.
    """

    name: str
    version: str
    inference_count: int
    """Rows served: a request with a batch of 8 counts 8."""
    execution_count: int
    """Runs of the model; fewer than requests where the dynamic batcher joined some."""
    batch_sizes: dict[int, int]
    """Executions by the number of rows they held."""
    success: Duration
    """Whole requests that were answered."""
    fail: Duration
    """Whole requests that were refused or failed; Triton 2.51 counts one that failed in a step of an ensemble twice."""
    queue: Duration
    """Waiting for an instance; for an ensemble, without the queues of its steps."""
    compute_input: Duration
    """Preparing the inputs."""
    compute_infer: Duration
    """Running the model; for an ensemble, the sum over its steps."""
    compute_output: Duration
    """Preparing the outputs."""
    execution_ns: dict[int, int] = field(default_factory=dict)
    """Time of all executions by the number of rows they held; one that several requests shared counts once."""

    def __sub__(self, before: ModelStatistics) -> ModelStatistics:
        """Returns what happened since `before`, which must be of the same model and version."""
        if (before.name, before.version) != (self.name, self.version):
            raise ValueError(f"cannot subtract {before.name} {before.version} from {self.name} {self.version}")
        sizes = {size: count - before.batch_sizes.get(size, 0) for size, count in self.batch_sizes.items()}
        return ModelStatistics(
            name=self.name,
            version=self.version,
            inference_count=self.inference_count - before.inference_count,
            execution_count=self.execution_count - before.execution_count,
            batch_sizes={size: count for size, count in sizes.items() if count},
            success=self.success - before.success,
            fail=self.fail - before.fail,
            queue=self.queue - before.queue,
            compute_input=self.compute_input - before.compute_input,
            compute_infer=self.compute_infer - before.compute_infer,
            compute_output=self.compute_output - before.compute_output,
            execution_ns={size: ns - before.execution_ns.get(size, 0) for size, ns in self.execution_ns.items()},
        )


def model_statistics_from_proto(model: Any) -> ModelStatistics:
    """Returns the plain form of a `ModelStatistics` message."""
    inference = model.inference_stats
    return ModelStatistics(
        name=model.name,
        version=model.version,
        inference_count=model.inference_count,
        execution_count=model.execution_count,
        batch_sizes={batch.batch_size: batch.compute_infer.count for batch in model.batch_stats},
        execution_ns={
            batch.batch_size: batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns
            for batch in model.batch_stats
        },
        **{
            name: Duration(getattr(inference, name).count, getattr(inference, name).ns)
            for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        },
    )
