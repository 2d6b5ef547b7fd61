"""A worker: the same BERT in PyTorch with scaled_dot_product_attention, eager or compiled; and the matrix units alone.

    python -m visit.torch_worker SHAPE [--compile] [--device cuda] [--precision fp16]

It needs torch alone. All sequences are full, so that attention gets no mask and may take its fastest kernel.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from visit.contest import Measured, run_for, work
from visit.shapes import SHAPES, Shape

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SIDE = 8192


class Layer(nn.Module):
    """One of BERT's layers. Source: Devlin et al. 2019; post-normalised, exact GELU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_in = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.attention_out = nn.Linear(shape.hidden, shape.hidden)
        self.attention_norm = nn.LayerNorm(shape.hidden, eps=1e-12)
        self.up = nn.Linear(shape.hidden, shape.intermediate)
        self.down = nn.Linear(shape.intermediate, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden, eps=1e-12)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = states.shape
        # (batch, seq, 3, heads, size) to three of (batch, heads, seq, size)
        parts = self.attention_in(states).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        states = self.attention_norm(states + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, hidden)))
        answer: torch.Tensor = self.norm(states + self.down(nn.functional.gelu(self.up(states))))
        return answer


class Encoder(nn.Module):
    """BERT with a span head: INT64 ids and segments `(batch, seq)` to start and end `(batch, seq)`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.positions, shape.hidden)
        self.segments = nn.Embedding(2, shape.hidden)
        self.norm = nn.LayerNorm(shape.hidden, eps=1e-12)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.span = nn.Linear(shape.hidden, 2)

    def forward(self, ids: torch.Tensor, segments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = torch.arange(ids.shape[1], device=ids.device)
        states = self.norm(self.words(ids) + self.positions(places) + self.segments(segments))
        for layer in self.layers:
            states = layer(states)
        start_and_end: tuple[torch.Tensor, ...] = self.span(states).unbind(-1)
        return start_and_end


def load(shape: Shape, *, device: str, precision: str, compiled: bool) -> tuple[dict[str, Any], Measured]:
    """Returns what the worker is, and what measures it."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Encoder(shape).to(TYPES[precision]).eval()
    if compiled:
        # Layer by layer: all of them share what is compiled for one.
        torch._dynamo.config.recompile_limit = 64
        for layer in model.layers:
            layer.compile(dynamic=False)

    def measure(request: dict[str, Any]) -> dict[str, Any]:
        if "matrix" in request:
            return matrix_rate(request["matrix"], device, side=request.get("side", _SIDE))
        batch, length = request["batch"], request["length"]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, shape.vocabulary, (batch, length), generator=generator).to(device)
        segments = torch.zeros_like(ids)

        with torch.inference_mode():
            run: Callable[[], Any] = partial(model, ids, segments)
            run()
            if compiled and device == "cuda":
                run = _captured(run)

            def executions(count: int) -> float:
                _wait(device)
                start = time.perf_counter()
                for _ in range(count):
                    run()
                _wait(device)
                return time.perf_counter() - start

            return run_for(request["seconds"], batch, executions)

    return about(device), measure


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Returns the replay of `run` as a CUDA graph, as a server of fixed shapes would have it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def matrix_rate(kind: str, device: str, *, side: int) -> dict[str, Any]:
    """Returns the 10^12 operations/s of a product of two square matrices of random numbers: FP16, or INT8 to INT32."""
    generator = torch.Generator(device).manual_seed(0)
    if kind == "int8":
        left = torch.randint(-127, 128, (side, side), device=device, dtype=torch.int8, generator=generator)
        # The second is read by columns, which is what INT8's units want.
        right = torch.randint(-127, 128, (side, side), device=device, dtype=torch.int8, generator=generator).t()
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch._int_mm
    else:
        left, right = (torch.randn(side, side, device=device, generator=generator).to(TYPES[kind]) for _ in range(2))
        product = torch.matmul

    def executions(count: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            product(left, right)
        _wait(device)
        return time.perf_counter() - start

    executions(3)
    per_s = run_for(1.0, 1, executions)["sequences_per_s"]
    return {"tera_operations_per_s": 2 * side**3 * per_s / 1e12, "side": side}


def about(device: str) -> dict[str, Any]:
    """Returns what this torch is, and what it runs on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "device": name}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Works until the input ends."""
    parser = argparse.ArgumentParser(description="Measures a BERT in PyTorch.")
    parser.add_argument("shape", choices=[*SHAPES])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=[*TYPES], default="fp16")
    options = parser.parse_args()
    settings = {"device": options.device, "precision": options.precision, "compiled": options.compile}
    work(lambda: load(SHAPES[options.shape], **settings), (RuntimeError, ValueError, AssertionError, LookupError))


if __name__ == "__main__":
    main()
