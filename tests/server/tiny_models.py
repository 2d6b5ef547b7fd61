"""Tiny ONNX models made on the spot, their folders in a repository, and one request to them."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as pb

Array = npt.NDArray[Any]
CPU = [{"kind": "KIND_CPU", "count": 1}]
FP32, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def graph(
    nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: dict[str, Array] | None = None
) -> bytes:
    """A serialised model; `inputs` and `outputs` give (element type, shape) by name."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
            [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
            [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def add_one() -> bytes:
    """y = x + 1 over (batch, 4) FP32."""
    return graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        {"x": (FP32, ["batch", 4])},
        {"y": (FP32, ["batch", 4])},
        {"one": np.array(1, np.float32)},
    )


def full_batches(rows: int) -> dict[str, Any]:
    """The config with which requests of so many rows in all share one execution, however late one of them comes."""
    return {"max_batch_size": rows, "dynamic_batching": {"max_queue_delay_microseconds": 30_000_000}}


def write_model(repository: Path, name: str, onnx_model: bytes | None, **config: Any) -> Path:
    """Writes one model folder; `config` is what differs from the config that fits `add_one`."""
    fields: dict[str, Any] = {
        "name": name,
        "platform": "onnxruntime_onnx",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
        "instance_group": CPU,
        **config,
    }
    parameters = fields.pop("parameters", {})
    message = pb.ModelConfig(**fields)
    for key, value in parameters.items():
        message.parameters[key].string_value = str(value)
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(message))
    if onnx_model is not None:
        (folder / "1" / "model.onnx").write_bytes(onnx_model)
    return folder


def infer(url: str, model: str, inputs: dict[str, Array], *, outputs: list[str] | None = None) -> dict[str, Any]:
    """One request's answer, by output name."""
    tensors = []
    for name, value in inputs.items():
        datatype = (
            "BYTES" if value.dtype == object else {"f": "FP", "i": "INT"}[value.dtype.kind] + str(8 * value.itemsize)
        )
        tensors.append(grpcclient.InferInput(name, list(value.shape), datatype))
        tensors[-1].set_data_from_numpy(value)
    requested = None if outputs is None else [grpcclient.InferRequestedOutput(name) for name in outputs]
    with grpcclient.InferenceServerClient(url) as client:
        result = client.infer(model, tensors, outputs=requested, client_timeout=60)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def executions(url: str, model: str, *, rows: int) -> tuple[int, int]:
    """How many rows the model has executed, and in how many executions, as soon as there are so many, or after 60 s.

    Triton counts an execution after having answered it.
    """
    end = time.monotonic() + 60
    with grpcclient.InferenceServerClient(url) as client:
        while True:
            (statistics,) = client.get_inference_statistics(model).model_stats
            counts = [(batch.batch_size, batch.compute_infer.count) for batch in statistics.batch_stats]
            executed = sum(size * count for size, count in counts)
            if executed >= rows or time.monotonic() > end:
                return executed, sum(count for _, count in counts)
            time.sleep(0.02)
