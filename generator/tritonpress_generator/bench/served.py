"""The served workload against the same work in process, and its latency at a steady load."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from tritonpress_generator.bench.timing import Ask, closed_loop, open_loop, spread
from tritonpress_generator.infer import Infer
from tritonpress_generator.steps.single.pipeline import Pipeline
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.table import render

CONCURRENCY = (1, 4, 16)
STEADY_SHARE = 0.6
"""Of the highest throughput, for the latency at a steady load."""
_SERVICE = "/inference.GRPCInferenceService"
_CHANNELS = 4


@dataclass(frozen=True)
class InProcess:
    """The work of a served request, without a server."""

    encoder: TextEncoder
    postprocess: Callable[..., dict[str, NDArray[Any]]]
    instances: Sequence[Infer]
    """Engines with the instances' threads."""
    whole: Infer
    """One engine with all cores."""

    def pipeline(self, engine: Infer) -> Pipeline:
        """Returns the road behind the tokenizer."""
        return Pipeline(self.encoder.executions, engine, self.postprocess)


class Messages:
    """Requests of one text each, made before they are needed, over a few channels; answers are not looked into.

    What a load generator costs on the server's own cores would otherwise count as the server's.
    """

    def __init__(self, url: str, model: str, input_name: str, texts: Sequence[str]) -> None:
        """Connects."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(url, options=options) for _ in range(_CHANNELS)]
        self._calls = [channel.unary_unary(f"{_SERVICE}/ModelInfer") for channel in self._channels]
        self._messages = [_message(model, input_name, text.encode()) for text in texts]

    def __enter__(self) -> Messages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()

    def live(self) -> object:
        """Returns the answer to a call that does nothing: what the road to the server costs alone."""
        return self._channels[0].unary_unary(f"{_SERVICE}/ServerLive")(b"", timeout=60)

    def __call__(self, caller: int, turn: int) -> object:
        """Returns the answer to the request `turn` as it came."""
        return self._calls[caller % _CHANNELS](self._messages[turn % len(self._messages)], timeout=60)


def compare_served(
    served: dict[str, Messages], local: InProcess, input_name: str, texts: Sequence[str], *, name: str, rounds: int
) -> list[dict[str, Any]]:
    """Returns and prints the throughput of each of `served` as a share of the best in process, and its latency.

    Args:
        served: By what is printed.
        local: The same work in process.
        input_name: Of the public text.
        texts: What is asked, one a request.
        name: Of what is compared.
        rounds: How often each runs, a second at a time.
    """
    rows, figures = [], []
    cores = len(os.sched_getaffinity(0))
    alone = _engine_alone(local, texts)
    floor_ms: list[float] = []
    for callers in CONCURRENCY:
        ways = _ways_in_process(local, input_name, texts, callers)
        measured: dict[str, list[tuple[float, float]]] = {label: [] for label in (*ways, *served)}
        engine_ms: list[float] = []
        for turn in range(rounds + 1):
            for label, (ask, count, size) in ways.items():
                per_s, times = closed_loop(ask, count, 1.0)
                measured[label] += [(per_s * size, float(np.median(times)))] if turn else []
            for label, messages in served.items():
                per_s, times = closed_loop(messages, callers, 1.0)
                measured[label] += [(per_s, float(np.median(times)))] if turn else []
            if callers == 1 and turn:
                engine_ms.append(float(np.median(closed_loop(alone, 1, 1.0)[1])))
                floor_ms.append(_floor_ms(alone, next(iter(served.values()))))
        best: NDArray[Any] = np.max([[per_s for per_s, _ in measured[label]] for label in ways], axis=0)
        fastest = max(ways, key=lambda label: float(np.median([per_s for per_s, _ in measured[label]])))
        for label in served:
            rates = np.array([value for value, _ in measured[label]])
            p50 = np.array([value for _, value in measured[label]])
            above = spread(p50 - engine_ms, unit="") if engine_ms else ""
            rows.append(
                [
                    f"{label}, {callers} at a time",
                    f"{np.median(best):.0f}",
                    f"{np.median(rates):.0f}",
                    spread(rates / best, unit=""),
                    f"{np.median(p50):.2f}",
                    above,
                ]
            )
            figures.append(
                {"way": label, "callers": callers, "share": (rates / best).tolist(), "p50_ms": p50.tolist()}
                | {
                    "engine_p50_ms": engine_ms,
                    "grpc_p50_ms": floor_ms,
                    "best_in_process": fastest,
                    "in_process_per_s": best.tolist(),
                }
            )
    print(f"{name}, one text a request, {cores} cores for server and load")
    print(f"(a gRPC call that does nothing, made after the engine has run: p50 {spread(floor_ms, unit='')} ms)")
    print(
        render(["", "in process/s", "served/s", "share", "p50 ms", "p50 above the engine's"], rows) + "\n", flush=True
    )
    return figures


def steady_latency(messages: Messages, local: InProcess, texts: Sequence[str], *, name: str, seconds: float) -> Any:
    """Returns and prints the latency at 60 % of the highest throughput, Poisson arrivals, from when each was due."""
    highest = max(closed_loop(messages, callers, 3.0)[0] for callers in (8, 16, 32))
    times = open_loop(messages, STEADY_SHARE * highest, 64, seconds, seed=1)
    engine = closed_loop(_engine_alone(local, texts), 1, 4.0)[1]
    p50, p99 = np.percentile(times, [50, 99])
    own50, own99 = np.percentile(engine, [50, 99])
    print(
        f"{name} at {STEADY_SHARE * highest:.0f} requests/s, {STEADY_SHARE:.0%} of {highest:.0f}, for {seconds:.0f} s: "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {p99 / p50:.1f} times the p50 "
        f"(the engine's own times for these texts, alone: {own50:.1f} and {own99:.1f} ms, {own99 / own50:.1f} times)\n",
        flush=True,
    )
    return {"highest_per_s": highest, "p50_ms": p50, "p99_ms": p99, "engine_p50_ms": own50, "engine_p99_ms": own99}


def _ways_in_process(
    local: InProcess, input_name: str, texts: Sequence[str], callers: int
) -> dict[str, tuple[Ask, int, int]]:
    """Returns what asks, from how many threads, and how many texts at a time, for each way to do it in process.

    No way has more threads than cores, or more texts at a time than are asked at a time: each is given its best.
    """
    count = min(callers, len(local.instances))
    size = -(-callers // count)
    instances = [local.pipeline(engine) for engine in local.instances]
    whole = [local.pipeline(local.whole)]

    def asks(pipelines: Sequence[Pipeline], size: int) -> Ask:
        def ask(caller: int, turn: int) -> None:
            chosen = [texts[(turn * size + i) % len(texts)].encode() for i in range(size)]
            column = {input_name: np.array(chosen, np.object_)}
            pipelines[caller % len(pipelines)](local.encoder.encode(chosen), column)

        return ask

    return {
        "instances, one by one": (asks(instances, 1), count, 1),
        "instances, together": (asks(instances, size), count, size),
        "all cores, one by one": (asks(whole, 1), 1, 1),
        "all cores, together": (asks(whole, callers), 1, callers),
    }


def _engine_alone(local: InProcess, texts: Sequence[str]) -> Ask:
    """Returns the bare engine of one instance on each text's tokens."""
    rows = local.encoder.encode([text.encode() for text in texts])
    feeds = [feed for row in rows for _, feed in local.encoder.executions([row])]
    return lambda _, turn: local.instances[0](feeds[turn % len(feeds)])


def _floor_ms(engine: Ask, messages: Messages) -> float:
    """Returns the median ms of a call that does nothing, made as often as the engine's work allows."""
    times = []
    for turn in range(60):
        engine(0, turn)
        start = time.perf_counter()
        messages.live()
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def _message(model: str, input_name: str, text: bytes) -> bytes:
    """Returns a request with one text, serialised."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=input_name, datatype="BYTES")
    tensor.shape.extend([1, 1])
    request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    message: bytes = request.SerializeToString()
    return message
