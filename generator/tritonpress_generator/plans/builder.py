"""Builds TensorRT plans from ONNX files: `python3 -m build_plan SETTINGS.json`, in any TensorRT from 8.5 on.

With `runner.py` and what that shares with the server it needs Python 3.8, numpy, tensorrt and cuda-python alone. They
are copied as they are beside the ONNX files, so that NVIDIA's container builds what this project asked for. What a
release can do is asked of its module, never of its version.

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
import re
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .runner import Cuda, Messages, PlanError, Runner, device, layers, tensorrt, timed

MIB = 1 << 20
LOW_TYPES = {"FLOAT16": "FP16", "BFLOAT16": "BF16", "INT8": "INT8", "FLOAT8E4M3FN": "FP8"}
"""ONNX's element types, and the builder flags and data types that are named after them."""
EXTERNAL = {"CUBLAS", "CUBLAS_LT", "CUDNN"}
"""Sources of kernels that are libraries of their own."""
NO_WORKSPACE = ("insufficient workspace", "increasing the workspace size", "scratch space")
"""In the errors of a TensorRT whose workspace is too small (those of 8.5.3.1 are in its libnvinfer)."""


def build(
    trt: Any,
    rung: Dict[str, Any],
    settings: Dict[str, Any],
    folder: Path,
    *,
    about: Dict[str, Any],
    plan: Path,
    cache: Path,
) -> Dict[str, Any]:
    """Returns the stamp of a rung's plan, after writing both.

    Args:
        trt: The module.
        rung: Of the settings.
        settings: The builder's.
        folder: Where the rungs' graphs lie.
        about: What the stamp says of the GPU and CUDA.
        plan: Where the plan goes; its stamp goes beside it.
        cache: The folder of what builds have timed, which later ones begin with.

    Raises:
        PlanError: The graph, a profile or an option does not suit this TensorRT or GPU, or it finds no plan; what was
            at `plan` before is still there.
    """
    _check_device(about, settings)
    said: List[str] = []
    messages = Messages(trt, lambda kind, line: said.append(line) if kind == "error" else None)
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
    timings = cache / timing_cache(trt.__version__, about)
    before = len(said)
    # The cache must outlive the build.
    used = _set_timing_cache(config, timings)
    # That a cache is refused is no reason for what may fail next.
    del said[before:]
    start = time.time()
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise PlanError(f"{model.name}: TensorRT {trt.__version__} builds no plan {_why(said, messages, settings)}")
    data = bytes(data)
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
        "warnings": messages.warnings,
        **about,
        "plan": hashlib.sha256(data).hexdigest(),
        "layers": {},
        "layers_problem": "the plan was not loaded yet",
    }
    # What took minutes is written before anything else can fail.
    write(plan, data)
    _write_stamp(plan, stamp)
    if used is not None:
        _keep_timings(config, timings)
    return stamp


def runner_of(trt: Any, plan: Path, stamp: Dict[str, Any], folder: Path) -> Runner:
    """Returns what runs a plan that was built here, after writing the report of its layers and its summary.

    Where TensorRT's report cannot be read, the stamp says why in its place.

    Args:
        trt: The module.
        plan: The plan, which is left as it is whatever comes.
        stamp: Its stamp, in which, as in the file, `layers` becomes how many there are by type.
        folder: Where the report goes, as `layers.RUNG.json`.

    Raises:
        PlanError: The plan cannot be run here, such as for lack of memory.
    """
    runner = Runner(trt, plan.read_bytes(), stamp)
    try:
        inspected = layers(trt, runner.engine)
    except PlanError as exc:
        stamp["layers_problem"] = str(exc)
    else:
        stamp["layers"] = inspected["by_type"]
        del stamp["layers_problem"]
        write(folder / f"layers.{stamp['rung']}.json", json.dumps(inspected, indent=1).encode())
    _write_stamp(plan, stamp)
    return runner


def timing_cache(version: str, about: Dict[str, Any]) -> str:
    """Returns the name of the file of what was timed with this TensorRT on this kind of GPU: no other can use it."""
    words = re.sub(r"[^\w.]+", "-", f"{about['gpu']} {about['compute_capability']} TensorRT {version}")
    return f"timing.{words}.cache"


def _check_device(about: Dict[str, Any], settings: Dict[str, Any]) -> None:
    wanted = settings.get("compute_capabilities") or []
    if wanted and about["compute_capability"] not in wanted:
        raise PlanError(
            f"{about['gpu']}: must have a compute capability of {wanted}, has {about['compute_capability']}; "
            "take such a GPU"
        )


def _set_timing_cache(config: Any, path: Path) -> Any:
    """Returns the timing cache that the build uses: what is at `path`, else an empty one, else None."""
    try:
        kept = path.read_bytes()
    except OSError:
        kept = b""
    # What cannot be read, or is of another driver, is refused; a build without a cache would be the slower one.
    for data in (kept, b"") if kept else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _keep_timings(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    timed = cache.serialize() if cache is not None else None
    if timed is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, bytes(timed))
    except OSError as exc:
        print(f"{path}: cannot be written ({exc}); the next build times everything anew", file=sys.stderr)


def _why(said: Sequence[str], messages: Any, settings: Dict[str, Any]) -> str:
    """Returns what TensorRT said of a build that failed, and the remedy where it is one of memory.

    The last error is often only that there is no engine, the cause is an earlier one.
    """
    short = next((line for line in said if any(word in line.lower() for word in NO_WORKSPACE)), None)
    told = "; ".join(dict.fromkeys([short] if short else said)) or messages.last()
    text = f"({told[:500]})"
    if short is None:
        return text
    limit = settings.get("workspace_bytes")
    if limit:
        return f"{text}: the workspace of {limit / MIB:g} MiB is too small; raise engine.tensorrt.workspace_mib"
    return f"{text}: the GPU's memory is too small; free some of it, or lower the profiles' largest batch or length"


def _write_stamp(plan: Path, stamp: Dict[str, Any]) -> None:
    write(plan.with_name(f"{plan.name}.json"), (json.dumps(stamp, indent=2) + "\n").encode())


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
    if not strong and wanted and hasattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"):
        wanted.append("OBEY_PRECISION_CONSTRAINTS")
    names = {
        "version_compatible": ("VERSION_COMPATIBLE",),
        "refit": ("REFIT",),
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
        _limit_tactics(trt, config, sources)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _limit_tactics(trt: Any, config: Any, sources: Sequence[str]) -> None:
    """Leaves kernels of these sources alone, such as without cuBLAS and cuDNN where they are not installed."""
    mask = 0
    for name in sources:
        mask |= 1 << int(getattr(trt.TacticSource, name))
    if not config.set_tactic_sources(mask):
        raise PlanError(f"tactic_sources: TensorRT {trt.__version__} refuses {list(sources)}; leave some of them out")
    # Without it the core of 8.5 loads these libraries all the same (release notes of 8.5.2).
    feature = getattr(getattr(trt, "PreviewFeature", None), "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", None)
    if feature is not None and not set(sources) & EXTERNAL:
        config.set_preview_feature(feature, True)


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


def write(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.write_bytes(data)
        new.replace(path)
    except OSError:
        # A full disk has no room for what is of no use.
        new.unlink()
        raise


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 the input or the machine is at fault."""
    if len(arguments) != 1:
        print("usage: build_plan SETTINGS.json", file=sys.stderr)
        return 2
    try:
        _run(Path(arguments[0]))
    except PlanError as exc:
        print(f"build_plan: {exc}", file=sys.stderr)
        return 2
    except OSError as exc:
        print(f"build_plan: {exc.filename or arguments[0]}: {exc.strerror}; make room, or allow it", file=sys.stderr)
        return 2
    return 0


def _run(path: Path) -> None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise PlanError(f"{path}: cannot be read ({exc}); build the workload again") from exc
    trt, folder = tensorrt(), path.parent
    about = device(Cuda())
    runners, not_run = {}, {}
    for rung in settings["rungs"]:
        name = rung["name"]
        plan = folder / f"model.{name}.plan"
        print(f"building {name} for {about['gpu']} with TensorRT {trt.__version__}", flush=True)
        stamp = build(trt, rung, settings, folder, about=about, plan=plan, cache=folder)
        try:
            runners[name] = runner_of(trt, plan, stamp, folder)
        except PlanError as exc:
            not_run[name] = f"is built, and cannot be run here ({exc})"
            print(f"  {plan.name} {not_run[name]}", flush=True)
            continue
        found = stamp.get("layers_problem") or f"layers by type: {stamp['layers']}"
        print(f"  {plan.stat().st_size / MIB:.1f} MiB, {found}", flush=True)
    if not runners:
        raise PlanError("; ".join(f"model.{name}.plan {why}" for name, why in not_run.items()))
    times = timed(runners, settings["inputs"], settings["shapes"])
    refused = slower(list(times.items()))
    for name, ms in times.items():
        print(f"{name}: {ms:.3f} ms" + (f"; refused: {refused[name]}" if name in refused else ""), flush=True)
    for name in refused:
        (folder / f"model.{name}.plan").unlink()
    left = [name for name in times if name not in refused]
    report = {
        **{"ms": times, "refused": refused, "not_run": not_run, "left": left[::-1], "shapes": settings["shapes"]},
        **about,
    }
    write(folder / "rungs.json", json.dumps(report, indent=2).encode())
    write(folder / "rungs.txt", "".join(f"{name}\n" for name in left[::-1]).encode())
