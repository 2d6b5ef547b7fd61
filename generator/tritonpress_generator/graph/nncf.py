"""INT8 by NNCF, for OpenVINO: post-training quantisation, and accuracy control by the task's own metric.

NNCF (https://github.com/openvinotoolkit/nncf) smooths channels, chooses ranges and corrects biases, and puts pairs of
QuantizeLinear and DequantizeLinear in front of products: those with constant weights, and those that are attention's
scores. Activations are signed bytes, with a zero point unless the preset is `performance`. Residual connections,
Softmax and normalisations stay as they are, and so does the task's head.

With `max_drop` products go back to FP32, as few as the metric needs. NNCF's own `quantize_with_accuracy_control` is not
used: where channels were smoothed, its ONNX backend puts the weights back and leaves the smoothing, so that the model
answers something else (NNCF 3.4), and it returns a model even where none was accurate enough.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Literal

import onnx
from pydantic import Field

from tritonpress_generator import accuracy_control, calibration
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.graph import NO_MATERIAL, GraphMaterial
from tritonpress_generator.graph.quantize import FEWEST_COLUMNS
from tritonpress_generator.infer import Array
from tritonpress_generator.onnx_graph import DOMAIN, GraphEditor, encoder_products, normalized, with_own_vectors
from tritonpress_generator.quantized_pairs import described, folded, reading_pairs, rebuilt, undone
from tritonpress_generator.recipe import Settings

_RANKING_SAMPLES = 32
_ROUNDING = 1e-9
"""Of a difference of two metrics."""
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
    samples: int = Field(default=300, ge=1)
    """How many of the task's texts are run to see the ranges."""
    max_drop: float | None = Field(default=None, ge=0)
    """How far below FP32's the task's metric may be (0.01: 87 % for 88 %), on the held-out examples of the recipe's
    `data`, in the recipe's engine; products go back to FP32 until it is. Null: it is left to the gate."""


def apply(
    model: onnx.ModelProto, config: Config, samples: Sequence[dict[str, Array]], material: GraphMaterial = NO_MATERIAL
) -> onnx.ModelProto:
    """Returns `model` in plain operators, with NNCF's pairs, and the codes of its weights in INT8.

    Args:
        model: FP32.
        config: The settings.
        samples: The task's texts as the model's inputs, one sequence each.
        material: Keeps what was chosen for the next build of the same, and measures the metric for `max_drop`.

    Raises:
        InputError: NNCF is not installed, there is nothing to calibrate or measure with, or nothing to quantise, a
            pattern is of no product, or the graph is of another kind than NNCF takes.
        GateError: With `max_drop`: nothing may be INT8.
    """
    if not samples:
        raise InputError("nncf: calibration needs at least 1 text, got 0; the task must have texts")
    own = [opset.domain for opset in model.opset_import if opset.domain not in {"", DOMAIN}]
    if own:
        raise InputError(f"nncf: the graph must have ONNX's operators alone, has some of {own[0]}; leave fuse out")
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise InputError("nncf: the graph must not be quantised yet; name one of nncf and qdq, once")
    nncf = _nncf()
    fp32 = with_own_vectors(normalized(model))
    names = _quantised(GraphEditor(fp32), config)
    # Before the calibration, which takes long: without labelled examples there is no metric.
    metric = None if config.max_drop is None else material.score(fp32)
    samples = samples[: config.samples]
    settings = f"{nncf.__version__} {config.model_dump_json(exclude={'max_drop'})}"
    key = calibration.kept_key("nncf", fp32, settings, samples)
    description = material.kept.get(key)
    if description is None:
        description = described(_calibrated(nncf, fp32, names, config, samples), fp32)
        material.kept.put(key, description)
    others = [node.name for node in fp32.graph.node if node.op_type in _WEIGHTED and node.name not in names]
    # NNCF smooths also what it was told to leave.
    quantized = undone(rebuilt(description, fp32), fp32, others)
    products = reading_pairs(quantized, fp32, names)
    in_fp32: list[str] = []
    if metric is not None:
        control = _Control(quantized, fp32, products, material)
        in_fp32 = control.in_fp32(metric, config, f"{key} max_drop", samples)
    material.note({"int8": len(products) - len(in_fp32), "in_fp32": in_fp32})
    return folded(undone(quantized, fp32, in_fp32))


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


class _Control:
    """Accuracy control of one graph."""

    def __init__(
        self, quantized: onnx.ModelProto, fp32: onnx.ModelProto, names: Sequence[str], material: GraphMaterial
    ) -> None:
        self._quantized, self._fp32, self._names, self._material = quantized, fp32, names, material

    def in_fp32(self, metric: float, config: Config, key: str, samples: Sequence[dict[str, Array]]) -> list[str]:
        """Returns as few products as must go back to FP32 to be within `max_drop` of FP32's `metric`.

        What an earlier build has chosen is taken where the metrics of both graphs are what they were then, and it is
        still within.

        Raises:
            GateError: Nothing may be INT8.
        """
        # 0.8 - 0.1 is more than 0.7.
        limit = metric - (config.max_drop or 0.0) - _ROUNDING

        def reaches(names: Sequence[str]) -> bool:
            return self._material.score(folded(self._undone(names))) >= limit

        int8 = self._material.score(folded(self._quantized))
        if int8 >= limit:
            return []
        kept = self._material.kept
        key, seen = f"{key} {config.max_drop}", [metric, int8]
        before = kept.get(key)
        if before is not None and before["metrics"] == seen and reaches(before["in_fp32"]):
            return [*before["in_fp32"]]
        chosen = accuracy_control.fewest(self._ranked(samples[:: max(1, len(samples) // _RANKING_SAMPLES)]), reaches)
        if chosen is None:
            raise GateError(
                f"nncf: the metric must be at least {limit:.4f} ({metric:.4f} in FP32, max_drop {config.max_drop:g}), "
                f"is {int8:.4f} in INT8, and less than that with all products but one in FP32",
                "raise max_drop, or leave nncf out of `graph`",
            )
        kept.put(key, {"metrics": seen, "in_fp32": chosen})
        return chosen

    def _ranked(self, samples: Sequence[dict[str, Array]]) -> list[str]:
        return accuracy_control.ranked(
            self._names,
            lambda name: session_infer(self._undone([name]).SerializeToString()),
            session_infer(self._fp32.SerializeToString()),
            samples,
        )

    def _undone(self, names: Sequence[str]) -> onnx.ModelProto:
        return undone(self._quantized, self._fp32, names)


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
