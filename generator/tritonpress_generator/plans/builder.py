"""Builds TensorRT plans from ONNX files: `python3 build_plan.py SETTINGS.json`, in any TensorRT from 8.5 on.

It needs Python 3.8, numpy, tensorrt and cuda-python alone, and is copied as it is beside the ONNX files, so that
NVIDIA's container builds what this project asked for. What a release can do is asked of its module, never of its
version.

SETTINGS.json has `rungs` ([{name, model, types}], the most accurate first; `types` are the element types that the graph
holds), `inputs` (names), `profiles` ([{batch: [min, opt, max], length: [min, opt, max]}]), `shapes` ([[batch, length]],
on which the rungs are timed), `compute_capabilities` (a plan a kind of GPU, or none), and the builder's options. Every
rung becomes `model.NAME.plan` beside it; one that is not faster than the one above it is removed again and `rungs.txt`
names those that are left, the fastest first.
"""

# ruff: noqa: UP006, UP035, UP045, B905 (Python 3.8 in older containers)
from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

TIMED_S = 2.0
MIB = 1 << 20
LOW_TYPES = {"FLOAT16": "FP16", "BFLOAT16": "BF16", "INT8": "INT8", "FLOAT8E4M3FN": "FP8"}
"""ONNX's element types, and the builder flags and data types that are named after them."""


class PlanError(Exception):
    """The input or the machine is at fault; one line says what, and the remedy."""


def tensorrt() -> Any:
    """Returns the module `tensorrt`.

    Raises:
        PlanError: It is not installed, or its libraries cannot be loaded.
    """
    try:
        import tensorrt as trt
    except (ImportError, OSError) as exc:
        raise PlanError(
            f"TensorRT is needed to build a plan ({exc}); run build_plan.sh, which takes a container"
        ) from exc
    return trt


class Messages:
    """Keeps what TensorRT says, since its calls return None where they fail."""

    def __init__(self, trt: Any) -> None:
        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    errors.append(" ".join(message.split()))
                elif severity == trt.ILogger.WARNING:
                    warnings.append(" ".join(message.split()))

        errors: List[str] = []
        warnings: List[str] = []
        self.errors, self.warnings, self.logger = errors, warnings, Logger()

    def last(self) -> str:
        """Returns the last error, or that there was none."""
        return self.errors[-1] if self.errors else "TensorRT gave no reason"


def build(trt: Any, rung: Dict[str, Any], settings: Dict[str, Any], folder: Path) -> Tuple[bytes, Dict[str, Any]]:
    """Returns the serialised plan of a rung, and what it was built with.

    Raises:
        PlanError: The graph, a profile or an option does not suit this TensorRT, or it finds no plan.
    """
    messages = Messages(trt)
    builder = trt.Builder(messages.logger)
    strong = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    network = builder.create_network(_network_flags(trt))
    model = folder / rung["model"]
    _parse(trt, network, messages, model)
    config = builder.create_builder_config()
    flags = _set_flags(trt, config, rung, settings, strong=strong)
    if settings.get("workspace_bytes"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings["workspace_bytes"])
    _add_profiles(builder, config, network, settings)
    cache_path = folder / "timing.cache"
    cache = config.create_timing_cache(cache_path.read_bytes() if cache_path.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    start = time.time()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(f"{model.name}: TensorRT {trt.__version__} builds no plan ({messages.last()[:300]})")
    cache_path.write_bytes(bytes(config.get_timing_cache().serialize()))
    stamp = {
        "tensorrt": trt.__version__,
        "release": os.environ.get("NVIDIA_TENSORRT_VERSION"),
        "strongly_typed": strong,
        "version_compatible": bool(settings.get("version_compatible")),
        "hardware_compatibility": settings.get("hardware_compatibility", "none"),
        "flags": flags,
        "profiles": settings["profiles"],
        "graph": hashlib.sha256(model.read_bytes()).hexdigest(),
        "rung": rung["name"],
        "built_in_s": round(time.time() - start, 1),
        "warnings": len(messages.warnings),
    }
    return bytes(plan), stamp


def _network_flags(trt: Any) -> int:
    """Returns the flags of a network: its batch explicit, and strongly typed where that can be said."""
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        value = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        if value is not None:
            flags |= 1 << int(value)
    return flags


def _parse(trt: Any, network: Any, messages: Messages, model: Path) -> None:
    parser = trt.OnnxParser(network, messages.logger)
    try:
        data = model.read_bytes()
    except OSError as exc:
        raise PlanError(f"{model}: cannot be read ({exc}); build the workload again") from exc
    if parser.parse(data):
        return
    problems = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        operator = error.node_operator() if hasattr(error, "node_operator") else ""
        node = error.node_name() if hasattr(error, "node_name") else f"node {error.node()}"
        problems.append(f"{operator} {node}".strip() + f": {' '.join(error.desc().split())}")
    raise PlanError(
        f"{model.name}: TensorRT {trt.__version__} cannot take {len(problems)} of its nodes "
        f"({'; '.join(problems)[:600]}); build with a newer release of the container (engine.tensorrt.release)"
    )


def _set_flags(trt: Any, config: Any, rung: Dict[str, Any], settings: Dict[str, Any], *, strong: bool) -> List[str]:
    """Sets what the settings and the graph ask for, and returns the names of the flags."""
    wanted = []
    for kind in rung["types"]:
        name = LOW_TYPES.get(kind)
        if name is None:
            continue
        if not hasattr(trt.DataType, name if name in {"INT8", "FP8", "BF16"} else "HALF"):
            raise PlanError(
                f"rung {rung['name']}: TensorRT {trt.__version__} knows no {name}; take a newer release, or another "
                "precision"
            )
        # Where types are in the graph, the flags would contradict it, and later releases have none.
        if not strong:
            wanted.append(name)
    if not strong and "INT8" in wanted and "FP16" not in wanted:
        wanted.append("FP16")
    if not strong and wanted and hasattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"):
        wanted.append("OBEY_PRECISION_CONSTRAINTS")
    names = {
        "version_compatible": ("VERSION_COMPATIBLE",),
        "refit": ("REFIT",),
        "strip": ("STRIP_PLAN",),
        "sparsity": ("SPARSE_WEIGHTS",),
    }
    for key, of in names.items():
        if settings.get(key):
            wanted += of
    for name in wanted:
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise PlanError(
                f"{name}: TensorRT {trt.__version__} has no such flag; take a newer release, or leave it out"
            )
        config.set_flag(flag)
    _set_options(trt, config, settings)
    return wanted


def _set_options(trt: Any, config: Any, settings: Dict[str, Any]) -> None:
    level = settings.get("builder_optimization_level")
    if level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise PlanError(f"builder_optimization_level: TensorRT {trt.__version__} has none; leave it out")
        config.builder_optimization_level = level
    compatible = settings.get("hardware_compatibility", "none")
    if compatible != "none":
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        wanted = getattr(levels, compatible.upper(), None)
        if wanted is None or not hasattr(config, "hardware_compatibility_level"):
            raise PlanError(f"hardware_compatibility: TensorRT {trt.__version__} has no {compatible}; leave it out")
        config.hardware_compatibility_level = wanted
    sources = settings.get("tactic_sources")
    if sources is not None:
        mask = 0
        for name in sources:
            mask |= 1 << int(getattr(trt.TacticSource, name))
        config.set_tactic_sources(mask)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _add_profiles(builder: Any, config: Any, network: Any, settings: Dict[str, Any]) -> None:
    names = {network.get_input(number).name for number in range(network.num_inputs)}
    if names != set(settings["inputs"]):
        raise PlanError(f"inputs: the graph must have {settings['inputs']}, has {sorted(names)}; build it again")
    for entry in settings["profiles"]:
        profile = builder.create_optimization_profile()
        for name in settings["inputs"]:
            profile.set_shape(name, *zip(entry["batch"], entry["length"]))
        if config.add_optimization_profile(profile) < 0:
            raise PlanError(f"profile {entry}: TensorRT refuses it; correct engine.tensorrt.optimization_profiles")


def load(trt: Any, plan: bytes, stamp: Optional[Dict[str, Any]] = None) -> Tuple[Any, Any]:
    """Returns the engine of a serialised plan, and the runtime that must outlive it.

    Raises:
        PlanError: The plan is corrupt, or of another TensorRT or GPU.
    """
    messages = Messages(trt)
    runtime = trt.Runtime(messages.logger)
    if stamp and stamp.get("version_compatible") and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        of = f", built with TensorRT {stamp['tensorrt']} on {stamp.get('gpu', '?')}" if stamp else ""
        raise PlanError(
            f"the plan{of} cannot be loaded by TensorRT {trt.__version__} here ({messages.last()[:300]}); "
            "build it again"
        )
    return engine, runtime


def layers(trt: Any, engine: Any) -> Dict[str, Any]:
    """Returns what the engine consists of: every layer, and how many there are by the type of what they give."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    entries = json.loads(text).get("Layers", [])
    counts: Dict[str, int] = {}
    for entry in entries:
        outputs = entry.get("Outputs", []) if isinstance(entry, dict) else []
        kinds = sorted({str(output.get("Format/Datatype", "?")).split(" ")[-1] for output in outputs}) or ["?"]
        key = "+".join(kinds)
        counts[key] = counts.get(key, 0) + 1
    return {"layers": entries, "by_type": counts}


class Cuda:
    """The few calls of the CUDA runtime that a plan needs, from either form of cuda-python."""

    def __init__(self) -> None:
        try:
            try:
                from cuda.bindings import runtime as cudart
            except ImportError:
                from cuda import cudart
        except ImportError as exc:
            raise PlanError(f"cuda-python is needed to run a plan ({exc}); pip install cuda-python") from exc
        self._runtime = cudart

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Returns the result of a call.

        Raises:
            PlanError: CUDA reports an error.
        """
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error) != 0:
            raise PlanError(f"{name}: CUDA reports {error}; a GPU and its driver are needed")
        return results[0] if len(results) == 1 else results

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


class Runner:
    """Runs a plan on arrays; one context, the first profile that holds the shapes."""

    def __init__(self, trt: Any, plan: bytes, stamp: Optional[Dict[str, Any]] = None) -> None:
        self._trt, self._cuda = trt, Cuda()
        self.engine, self._runtime = load(trt, plan, stamp)
        self.context = self.engine.create_execution_context()
        self._stream = self._cuda("cudaStreamCreate")
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        inputs = trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if self.engine.get_tensor_mode(name) == inputs]
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) != inputs]
        self._profile = -1
        self._buffers: Dict[str, Tuple[int, int]] = {}

    def choose_profile(self, shape: Sequence[int]) -> None:
        """Makes the profile that holds inputs of `shape` the context's.

        Raises:
            PlanError: None does.
        """
        for number in range(self.engine.num_optimization_profiles):
            least, _, most = self.engine.get_tensor_profile_shape(self.inputs[0], number)
            if all(low <= size <= high for low, size, high in zip(least, shape, most)):
                if number != self._profile:
                    self.context.set_optimization_profile_async(number, self._stream)
                    self._profile = number
                return
        raise PlanError(f"shape {list(shape)}: no profile of the plan holds it; widen optimization_profiles")

    def __call__(self, feed: Dict[str, Any]) -> Dict[str, Any]:
        """Returns the outputs for one feed of arrays, by name."""
        import numpy as np

        cuda = self._cuda
        self.choose_profile(feed[self.inputs[0]].shape)
        arrays = {}
        for name in self.inputs:
            arrays[name] = np.ascontiguousarray(feed[name], self._trt.nptype(self.engine.get_tensor_dtype(name)))
            self.context.set_input_shape(name, arrays[name].shape)
            kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            cuda(
                "cudaMemcpyAsync",
                self._device(name, arrays[name].nbytes),
                arrays[name].ctypes.data,
                arrays[name].nbytes,
                kind,
                self._stream,
            )
        answers = {}
        for name in self.outputs:
            shape = tuple(self.context.get_tensor_shape(name))
            answers[name] = np.empty(shape, self._trt.nptype(self.engine.get_tensor_dtype(name)))
            self._device(name, answers[name].nbytes)
        for name in (*self.inputs, *self.outputs):
            self.context.set_tensor_address(name, self._buffers[name][0])
        if not self.context.execute_async_v3(self._stream):
            raise PlanError("the plan could not be run; see what TensorRT says above")
        for name, answer in answers.items():
            kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            cuda("cudaMemcpyAsync", answer.ctypes.data, self._buffers[name][0], answer.nbytes, kind, self._stream)
        cuda("cudaStreamSynchronize", self._stream)
        return answers

    def _device(self, name: str, size: int) -> int:
        """Returns the address of at least `size` bytes on the GPU for the tensor `name`."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            if room:
                self._cuda("cudaFree", address)
            address = int(self._cuda("cudaMalloc", size))
            self._buffers[name] = (address, size)
        return address


def device(cuda: Any) -> Dict[str, Any]:
    """Returns what a plan's stamp says of the GPU and CUDA."""
    number = cuda("cudaGetDevice")
    properties = cuda("cudaGetDeviceProperties", number)
    name = properties.name
    return {
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": cuda("cudaRuntimeGetVersion"),
        "driver": cuda("cudaDriverGetVersion"),
    }


def slower(times: Sequence[Tuple[str, float]]) -> Dict[str, str]:
    """Returns why rungs are refused, by name: each must be faster than the last that was taken.

    Args:
        times: The name and the ms of each, the most accurate first.
    """
    refused: Dict[str, str] = {}
    taken: Optional[Tuple[str, float]] = None
    for name, ms in times:
        if taken is not None and not ms < taken[1]:
            refused[name] = f"must be faster than {taken[0]}, which takes {taken[1]:.3f} ms; takes {ms:.3f} ms"
        else:
            taken = (name, ms)
    return refused


def timed(runners: Dict[str, Any], inputs: Sequence[str], shapes: Sequence[Sequence[int]]) -> Dict[str, float]:
    """Returns the ms that each runner takes for one execution of each of `shapes`; medians, measured in turn."""
    import numpy as np

    totals = dict.fromkeys(runners, 0.0)
    for shape in shapes:
        feed = {name: np.ones(tuple(shape), np.int32) for name in inputs}
        times: Dict[str, List[float]] = {name: [] for name in runners}
        for run in runners.values():
            for _ in range(5):
                run(feed)
        end = time.perf_counter() + TIMED_S
        while time.perf_counter() < end:
            for name, run in runners.items():
                start = time.perf_counter()
                run(feed)
                times[name].append(time.perf_counter() - start)
        for name, of in times.items():
            totals[name] += float(np.median(of)) * 1e3
    return totals


def write(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 the input or the machine is at fault."""
    if len(arguments) != 1:
        print("usage: build_plan.py SETTINGS.json", file=sys.stderr)
        return 2
    try:
        _run(Path(arguments[0]))
    except PlanError as exc:
        print(f"build_plan: {exc}", file=sys.stderr)
        return 2
    return 0


def _run(path: Path) -> None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise PlanError(f"{path}: cannot be read ({exc}); build the workload again") from exc
    trt, folder = tensorrt(), path.parent
    about = device(Cuda())
    wanted = settings.get("compute_capabilities") or []
    if wanted and about["compute_capability"] not in wanted:
        raise PlanError(
            f"{about['gpu']}: must have a compute capability of {wanted}, has {about['compute_capability']}; "
            "take such a GPU"
        )
    runners = {}
    for rung in settings["rungs"]:
        print(f"building {rung['name']} for {about['gpu']} with TensorRT {trt.__version__}", flush=True)
        plan, stamp = build(trt, rung, settings, folder)
        runner = Runner(trt, plan, stamp)
        inspected = layers(trt, runner.engine)
        stamp.update(about, plan=hashlib.sha256(plan).hexdigest(), layers=inspected["by_type"])
        write(folder / f"model.{rung['name']}.plan", plan)
        write(folder / f"model.{rung['name']}.plan.json", json.dumps(stamp, indent=2).encode())
        write(folder / f"layers.{rung['name']}.json", json.dumps(inspected, indent=1).encode())
        print(f"  {len(plan) / MIB:.1f} MiB, layers by type: {inspected['by_type']}", flush=True)
        runners[rung["name"]] = runner
    times = timed(runners, settings["inputs"], settings["shapes"])
    refused = slower(list(times.items()))
    for name, ms in times.items():
        print(f"{name}: {ms:.3f} ms" + (f"; refused: {refused[name]}" if name in refused else ""), flush=True)
    for name in refused:
        (folder / f"model.{name}.plan").unlink()
    left = [name for name in times if name not in refused]
    report = {"ms": times, "refused": refused, "left": left[::-1], "shapes": settings["shapes"], **about}
    write(folder / "rungs.json", json.dumps(report, indent=2).encode())
    write(folder / "rungs.txt", "".join(f"{name}\n" for name in left[::-1]).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
