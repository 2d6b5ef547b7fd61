"""What a build has come to, as a person reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tritonpress_generator import calibration_texts, plugins, sensitivity
from tritonpress_generator.build import Built
from tritonpress_generator.passes import distill
from tritonpress_generator.plans import pending
from tritonpress_generator.queueing import may_idle
from tritonpress_generator.repository import read_config, size_bytes
from tritonpress_generator.table import render


def print_built(built: Built, recipe: Path, out: Path) -> None:
    """Prints the table of a build's stages, what the gate has found, and what is to be done."""
    metrics = list(built.rows[0].metrics)
    first = built.rows[0]
    header = ["stage", "size MB", f"ms at {built.tokens} tokens", "speed-up", *metrics]
    rows = [
        [
            row.stage,
            f"{row.size_bytes / 1e6:.1f}",
            f"{row.latency_ms:.2f}",
            f"{first.latency_ms / row.latency_ms:.1f}x",
            *(f"{row.metrics[metric]:.4f}" for metric in metrics),
        ]
        for row in built.rows
    ]
    print(render(header, rows))
    for word, done in built.manifest["graph"].items():
        if "errors" in done:
            print(f"\n{word}: what each part costs\n{sensitivity.table(done)}\n")
    print(gate_line(built.manifest["gate"]))
    print(lengths_line(built.manifest["lengths"]))
    seen = calibration_texts.seen_line(built.manifest["calibration"])
    for line in filter(None, (elsewhere_line(built.manifest["gate"]), seen, zeros_line(built.manifest))):
        print(line)
    for name, done in built.manifest["passes"].items():
        if done.get("given_back"):
            print(f"{name}: {distill.summary(done)}")
    share = size_bytes(built.manifest) / first.size_bytes
    size = f"{size_bytes(built.manifest) / 1e6:.1f} MB, {share:.0%} of the checkpoint"
    print(f"wrote {os.fspath(built.folder)} and its steps, {size}")
    for step in built.manifest["steps"].values():
        if may_idle(read_config(out / step)):
            print(
                f"serve.queue: {step} has one instance, which Triton may leave idle for half a second while requests "
                "wait; give the engine instances: 2, or leave serve.queue out (docs/operations.md)"
            )
    for name, reason in built.manifest["refused"].items():
        print(f"refused {name}: {reason}")
    if scripts := pending.missing(out, built.manifest):
        print("the times of its precisions are ONNX Runtime's on this CPU")
    for script in scripts:
        if reason := pending.refusal(script):
            print(f"plan pending: {script.name} cannot gate it, since {reason}")
            continue
        print(f"plan pending: on a machine with the GPU and Docker, run {os.fspath(script)} {os.fspath(recipe)}")


def gate_line(gate: dict[str, Any]) -> str:
    """Returns what the gate has found, and how certain that is."""
    line = f"gate: {gate['metric']} {gate['served']:.4f}, limit {gate['limit']:.4f}"
    if gate["agreement"] is not None:
        line += f", agreement {gate['agreement']:.4f}"
    if gate["kept"] is None:
        return f"{line}: passed by the point estimate of {gate['examples']} examples"
    low, high = (f"{share:.1%}" for share in gate["kept"])
    sure = f"{gate['confidence']:.0%}"
    return f"{line}: passed; keeps {low} to {high} of FP32's, certain at {sure} with {gate['examples']} examples"


def elsewhere_line(gate: dict[str, Any]) -> str | None:
    """Returns that the gate's examples are others' too, where they are, of the manifest's `gate`."""
    if not gate["read_elsewhere"]:
        return None
    keys = " and ".join(gate["read_elsewhere"])
    return f"gate.dataset is {keys} too: what was trained or chosen on it keeps more there than elsewhere; name another"


def zeros_line(manifest: dict[str, Any]) -> str | None:
    """Returns what zeros gain in the engine that was built, None where nothing was set to 0."""
    found = [done for name, done in manifest["passes"].items() if "sparsify" in name]
    if not found:
        return None
    done = found[-1]
    engine = manifest["engine"]
    gains = done["pattern"] in plugins.find("engines", engine, path="engine").SPARSE
    what = "computes this pattern faster, with sparsity: true" if gains else "computes them all the same"
    return f"{done['zeros']:.1%} of the encoder's weights are 0: {engine} {what}"


def lengths_line(lengths: dict[str, Any]) -> str:
    """Returns how requests of different lengths share the engine, and what else was measured."""
    measured = lengths["measured"]
    line = f"lengths: {lengths['form']}, {lengths['padding']:.1%} of the computed tokens are padding"
    if not measured:
        return line
    figures = ", ".join(f"{form} {figure['texts_per_s']:.0f}" for form, figure in measured.items())
    return f"{line} (texts/s: {figures})"
