"""INT8 by NNCF, for OpenVINO: post-training quantisation.

NNCF (https://github.com/openvinotoolkit/nncf) smooths channels, chooses ranges and corrects biases, and puts pairs of
QuantizeLinear and DequantizeLinear in front of products: those with constant weights, and those that are attention's
scores. Activations are signed bytes, with a zero point unless the preset is `performance`. Residual connections,
Softmax and normalisations stay as they are, and so does the task's head.

With `keep` products go back to FP32 (`sensitivity.py`). NNCF's own `quantize_with_accuracy_control` is not used: where
channels were smoothed, its ONNX backend puts the weights back and leaves the smoothing, so that the model answers
something else (NNCF 3.4), and it returns a model even where none was accurate enough.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from typing import Any, Literal

import onnx
from pydantic import Field

from tritonpress_generator import calibration, sensitivity
from tritonpress_generator.calibration import FEWEST_TEXTS
from tritonpress_generator.encoder_products import encoder_products
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial
from tritonpress_generator.graph.quantize import FEWEST_COLUMNS
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import GraphEditor, normalized, with_own_vectors
from tritonpress_generator.quantized_pairs import described, folded, reading_pairs, rebuilt, undone
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.sampling import spread

READS = "export"
_WEIGHTED = {"MatMul", "Gemm"}
_NO_SMOOTHING = -1.0
"""NNCF's word for it."""


class Config(Settings):
    preset: Literal["performance", "mixed"] = "mixed"
    """Activations' codes: `performance` has 0 for 0, `mixed` a zero point where that is nearer."""
    smooth_quant_alpha: float | None = Field(default=0.95, ge=0, le=1)
    """How much of an activation's range is moved into the weights: 0 nothing, 1 all of it; null: SmoothQuant is off."""
    bias_correction: bool = True
    """Whether a bias takes up the mean error of its product (NNCF's fast correction; the other one fails on ONNX)."""
    embeddings: bool = False
    """Whether embedding tables are quantised too, which makes the file smaller."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns (`*layer.5/output*`) of the names of products that stay as they are."""
    samples: int = Field(default=300, ge=FEWEST_TEXTS)
    """How many of the task's texts are run to see the ranges."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """The share of the unquantised graph's metric on held-out examples (`data`) that must be kept: the products that
    cost most stay in FP32 until it is (`sensitivity.py`). Default: nothing is measured."""


def apply(
    model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]], material: GraphMaterial = NO_MATERIAL
) -> onnx.ModelProto:
    """Returns `model` in plain operators, with NNCF's pairs, and the codes of its weights in INT8.

    Args:
        model: FP32.
        config: The settings.
        samples: The task's texts as the model's inputs, one sequence each.
        material: Keeps what was chosen for the next build of the same, and measures the metric for `keep`.

    Raises:
        InputError: NNCF is not installed, there is nothing to calibrate or measure with, or nothing to quantise, a
            pattern is of no product, or the graph is of another kind than NNCF takes.
        GateError: The metric is kept with none of the products quantised.
    """
    if not samples:
        raise InputError("nncf: calibration needs at least 1 text, got 0; the task must have texts")
    nncf = _nncf()
    fp32 = with_own_vectors(normalized(model))
    names = _quantised(GraphEditor(fp32), config)
    if config.keep is not None:
        # Before the calibration, which takes long: without labelled examples there is no metric.
        material.held_out()
    samples = spread(samples, config.samples)
    key = calibration.kept_key("nncf", fp32, config.model_dump_json(exclude={"keep"}), samples)
    description = material.kept.get(key)
    if description is None:
        description = described(_calibrated(nncf, fp32, names, config, samples), fp32)
        material.kept.put(key, description)
    others = [node.name for node in fp32.graph.node if node.op_type in _WEIGHTED and node.name not in names]
    # NNCF smooths also what it was told to leave.
    quantized = undone(rebuilt(description, fp32), fp32, others)
    products = reading_pairs(quantized, fp32, names)

    def made(left_out: Collection[str]) -> onnx.ModelProto:
        return folded(undone(quantized, fp32, [name for name in products if name in left_out]))

    if config.keep is None:
        return made(())
    chosen = sensitivity.Measured(fp32, {name: [name] for name in products}, made, samples, material)
    return made(chosen.left_out(config.keep, key=f"keep {config.keep} {key}", where="nncf"))


def _quantised(editor: GraphEditor, config: Config) -> list[str]:
    """Returns the names of the products, and of the look-ups, that are quantised."""
    products = encoder_products(editor, fewest_columns=FEWEST_COLUMNS)
    if all(editor.constant(node.input[1]) is None for node in products):
        raise InputError("nncf: the graph has no product with constant weights; there is nothing to quantise")
    included = calibration.included(products, config.exclude, where="nncf")
    tables = _tables(editor) if config.embeddings else []
    return [node.name for node in (*included, *tables)]


def _tables(editor: GraphEditor) -> list[onnx.NodeProto]:
    """Returns the look-ups in constant tables."""
    lookups = [node for node in editor.model.graph.node if node.op_type == "Gather"]
    return [node for node in lookups if (table := editor.constant(node.input[0])) is not None and table.ndim == 2]


def _calibrated(
    nncf: Any, fp32: onnx.ModelProto, names: Sequence[str], config: Config, samples: Sequence[dict[str, Array]]
) -> onnx.ModelProto:
    """Returns NNCF's graph, its weights in FP32 in front of their pairs."""
    editor = GraphEditor(fp32)
    weighted = [node for node in fp32.graph.node if node.op_type in _WEIGHTED]
    constant = [node for node in weighted if all(editor.constant(name) is not None for name in node.input)]
    if constant:
        raise InputError(f"nncf: NNCF takes no product of two constants, has {constant[0].name}; use qdq for INT8")
    left = [node.name for node in (*weighted, *_tables(editor)) if node.name not in names]
    alpha = _NO_SMOOTHING if config.smooth_quant_alpha is None else config.smooth_quant_alpha
    try:
        with _quiet():
            quantized: onnx.ModelProto = nncf.quantize(
                fp32,
                nncf.Dataset(list(samples)),
                preset=nncf.QuantizationPreset(config.preset),
                subset_size=len(samples),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=left),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha),
                    disable_bias_correction=not config.bias_correction,
                    backend_params={"compress_weights": False},
                ),
            )
    except (nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as exc:
        raise InputError(
            f"nncf: NNCF refuses the model ({' '.join(str(exc).split())[:300]}); use qdq for INT8"
        ) from exc
    return quantized


def _nncf() -> Any:
    """Returns the package, which neither calls home nor logs but errors.

    Raises:
        InputError: It is not installed.
    """
    logger, before = logging.getLoggerClass(), os.environ.get("NNCF_CI")
    # Its telemetry has no other switch than this, and is made when the package is imported.
    os.environ["NNCF_CI"] = "1"
    try:
        with _quiet():
            nncf = import_module("nncf")
            nncf.set_log_level(logging.ERROR)
    except ImportError as exc:
        raise InputError("nncf: needs the package nncf; pip install 'tritonpress[openvino]'") from exc
    finally:
        logging.setLoggerClass(logger)
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lets NNCF's progress bars be seen on a terminal alone."""
    with contextlib.redirect_stdout(sys.stdout if sys.stdout.isatty() else io.StringIO()):
        yield
