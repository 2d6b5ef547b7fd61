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
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .runner import Cuda, Messages, PlanError, Runner, device, tensorrt, timed

MIB = 1 << 20
LOW_TYPES = {"FLOAT16": "FP16", "BFLOAT16": "BF16", "INT8": "INT8", "FLOAT8E4M3FN": "FP8"}
"""ONNX's element types, and the builder flags and data types that are named after them."""


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
        "warnings": messages.warnings,
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


def layers(trt: Any, engine: Any) -> Dict[str, Any]:
    """Returns what the engine consists of: every layer, and how many there are by the type of what they give."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    entries = json.loads(text).get("Layers", [])
    counts: Dict[str, int] = {}
    for entry in entries:
        outputs = entry.get("Outputs", []) if isinstance(entry, dict) else []
        kinds = sorted({_element_type(output) for output in outputs}) or ["?"]
        key = "+".join(kinds)
        counts[key] = counts.get(key, 0) + 1
    return {"layers": entries, "by_type": counts}


def _element_type(output: Dict[str, Any]) -> str:
    """Returns the type of a layer's output as the builder's flags name it: releases word it differently."""
    text = str(output.get("Format/Datatype", output.get("DataType", "?")))
    words = [word.strip(".") for word in text.split(" ")]
    kinds = [word for word in words if word not in {"format", "(kLINEAR)"}]
    return {"Float": "FP32", "Half": "FP16", "BFloat16": "BF16"}.get(kinds[-1], kinds[-1].upper())


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
    new.write_bytes(data)
    new.replace(path)


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
