"""A ragged engine in the real Triton: values of tokens, of sequences and rows, of pairs, as in the padded form."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from at_once import AT_ONCE
from counted import counted, settled
from google.protobuf import text_format
from tiny_encoders import asked, make, pairs, signature
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_client import Connection
from tritonpress_generator import export, ragged
from tritonpress_generator.engines import onnxruntime as engine
from tritonpress_generator.graph import fuse
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.lengths import ragged as form
from tritonpress_server import TritonServer

MODEL = make("bert", "own", "all")
GIVES = signature(MODEL)
LONGEST = 66
"""The model's positions."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    repository = tmp_path_factory.mktemp("repository")
    folder = repository / "reader"
    graph = ragged.export(make("bert", ragged.ATTENTION, "all"), GIVES)
    settings, ask = engine.Config(instances=1), asked(GIVES, "ragged")
    engine.build({"fp32": fuse.apply(graph, fuse.Config(), [])}, folder / "1", settings, ask)
    config: pb.ModelConfig = engine.model_config(settings, ask)
    config.name = "reader"
    config.max_batch_size = 8
    config.input.extend(form.engine_inputs(GIVES, engine.INTEGERS))
    form.declare_outputs(config, GIVES)
    config.dynamic_batching.max_queue_delay_microseconds = 20_000
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    with TritonServer(repository, settings=AT_ONCE) as server, Connection(server.grpc_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Infer:
    version_dir: Path = tmp_path_factory.mktemp("padded") / "1"
    graph = export.export(make("bert", export.ATTENTION, "all"), GIVES)
    engine.build({"fp32": graph}, version_dir, engine.Config(), asked(GIVES))
    return engine.load(version_dir, engine.Config())


def check(connection: Connection, padded: Infer, batch: dict[str, Array]) -> None:
    """Asks for the sequences of a padded batch in one request, and holds the answer to the padded form's."""
    tensors = {name: tensor[None] for name, tensor in ragged.packed(batch, GIVES).items()}
    answer = connection.infer("reader", tensors)
    mask = batch["attention_mask"].astype(bool)
    for name, expected in padded(batch).items():
        ours = expected[mask] if GIVES.outputs[name].width is None else expected
        assert answer[name].shape == (1, *ours.shape)
        assert np.abs(answer[name][0] - ours).max() <= 1e-5


def test_every_length_alone(served: Connection, padded: Infer) -> None:
    for length in range(1, LONGEST + 1):
        check(served, padded, pairs([length], seed=length))


def test_requests_of_one_and_several_sequences_share_executions(served: Connection, padded: Infer) -> None:
    before = settled(served, "reader")
    generator = np.random.default_rng(0)
    requests = [[length] for length in range(1, LONGEST + 1)]
    requests += [generator.integers(1, LONGEST + 1, count).tolist() for count in range(2, 12) for _ in range(4)]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: check(served, padded, pairs(requests[i], seed=i)), range(len(requests))))
    spent = counted(served, "reader", len(requests), before)
    assert spent.success.count == len(requests)
    assert spent.execution_count < len(requests)
