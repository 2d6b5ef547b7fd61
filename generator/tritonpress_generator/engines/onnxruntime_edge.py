"""ONNX Runtime for small machines: its own file format, one thread, a measured ceiling of memory; x86 and Arm.

`model.ort` is optimised when it is built, by fusions that every CPU build of ONNX Runtime has and by none that is of
one processor, so that the same bytes run on x86-64 and on Arm. `required_operators_and_types.config`, beside it, is for
a build of ONNX Runtime with these operators and types alone (`--include_ops_by_config`). Triton's `onnxruntime` backend
hands the path to ONNX Runtime, which knows the format by the file's suffix.

The arena stays on, without patterns of memory, which keep a block for each shape: of the settings of ONNX Runtime's
allocator, it has the lowest peak after many shapes (docs/measurements.md). With one thread ONNX Runtime makes no pool,
so that nothing spins between requests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from pydantic import Field
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import peak_memory, workplace
from tritonpress_generator.engines import Asked
from tritonpress_generator.engines.onnxruntime import check_native, session_infer
from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.recipe_text import Settings

PLATFORM = "onnxruntime_onnx"
PACKAGES = ("onnxruntime",)
LAYOUTS = ("single", "ensemble", "scripting")
FORMS = ("exact", "buckets")
"""Not packed: an execution would be as long as `ragged` is told, and not as the batch that is measured here."""
INTEGERS = "int64"
SPARSE: tuple[str, ...] = ()
MODEL = "model.ort"
OPERATORS = "required_operators_and_types.config"
_PARAMETERS = {
    "intra_op_thread_count": "1",
    "inter_op_thread_count": "1",
    "execution_mode": "0",
    "enable_mem_arena": "true",
    "enable_mem_pattern": "false",
}
"""Of Triton's config: one operator after the other, in one thread."""
_LEVEL = "extended"
"""The highest that is of no processor: the next one, `layout`, has x86's NCHWc."""


class Config(Settings):
    memory_ceiling_mib: float | None = Field(default=None, gt=0)
    """The most memory that a process with the engine may have resident, Python and ONNX Runtime included, at executions
    of up to `serve.max_batch_size` sequences of `serve.max_length` tokens; default: measured, and not held to any."""


def refusal(graph: Sequence[tuple[str, Any]], config: Config) -> str | None:
    """Returns nothing: it runs what any graph pass makes."""
    return None


def runs_here() -> bool:
    """Says whether this machine can run the engine."""
    return True


def rungs(fp32: onnx.ModelProto, model: onnx.ModelProto, config: Config) -> dict[str, onnx.ModelProto]:
    """Returns the graphs to choose from: what the recipe's graph passes have made."""
    return {"onnxruntime_edge": model}


def build(graphs: Mapping[str, onnx.ModelProto], version_dir: Path, config: Config, asked: Asked) -> None:
    """Writes the engine, and which operators it uses, into Triton's version folder `version_dir`.

    Raises:
        InputError: ONNX Runtime cannot run the graph, or its format cannot hold it.
    """
    check_native([*graphs.values()][-1], asked, where="engine.onnxruntime_edge")
    version_dir.mkdir(parents=True, exist_ok=True)
    with workplace.scratch() as folder:
        onnx.save([*graphs.values()][-1], folder / "model.onnx")
        _convert(folder)
        shutil.copyfile(folder / f"model.{_LEVEL}.ort", version_dir / MODEL)
        text = (folder / f"model.required_operators_and_types.{_LEVEL}.config").read_text(encoding="utf-8")
    # Without the comments: they name a folder that is gone, and the step's name is a hash of its files.
    operators = [line for line in text.splitlines() if line and not line.startswith("#")]
    (version_dir / OPERATORS).write_text("".join(f"{line}\n" for line in operators), encoding="utf-8")


def _convert(folder: Path) -> None:
    """Writes what ONNX Runtime's own tool makes of `model.onnx` beside it; in a process, whose loggers it sets up."""
    tool = "onnxruntime.tools.convert_onnx_models_to_ort"
    options = ["--optimization_style", "Fixed", "--enable_type_reduction"]
    ended = subprocess.run(
        [sys.executable, "-I", "-m", tool, *options, str(folder / "model.onnx")],
        env=os.environ | {"ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL": _LEVEL},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
        raise InputError(
            f"engine.onnxruntime_edge: ONNX Runtime cannot make its format of the graph ({last[:300]}); leave out the "
            "graph pass that made it so"
        )


def load(version_dir: Path, config: Config, *, threads: int | None = None) -> Infer:
    """Returns the engine in `version_dir`, with `threads`, by default the one that it is served with.

    Raises:
        InputError: ONNX Runtime refuses the file.
    """
    return session_infer(version_dir / MODEL, threads=threads or 1)


def threads(config: Config) -> list[int]:
    """Returns how many threads each instance has: one of one."""
    return [1]


def measured(version_dir: Path, config: Config, asked: Asked) -> dict[str, Any]:
    """Returns the peaks of memory, in bytes, for the manifest.

    Raises:
        GateError: The engine takes more than the recipe allows.
        InputError: It does not run to its end.
    """
    peak = peak_memory.measure("onnxruntime_edge", version_dir, _PARAMETERS, asked)
    most, ceiling = peak_memory.mib(peak.most), config.memory_ceiling_mib
    if ceiling is not None and most > ceiling:
        raise GateError(
            f"engine.onnxruntime_edge: resident memory must stay within memory_ceiling_mib {ceiling:g}, got {most:.1f} "
            f"(up to: {peak})",
            "raise it, lower serve.max_batch_size or serve.max_length, or compress more",
        )
    return {"peak_memory_bytes": asdict(peak)}


def model_config(config: Config, asked: Asked) -> pb.ModelConfig:
    """Returns the engine's part of Triton's config: who runs it, where, and that it has one thread."""
    return pb.ModelConfig(
        platform=PLATFORM,
        default_model_filename=MODEL,
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)],
        parameters={key: pb.ModelParameter(string_value=value) for key, value in _PARAMETERS.items()},
    )


def versions() -> dict[str, str]:
    """Returns what the engine was built and gated with, for the manifest."""
    return {"onnxruntime": onnxruntime.__version__}
