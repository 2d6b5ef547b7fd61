"""The closed loop against the real server, and the gate of what was answered elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tiny_sources import WORDS, write_task
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import recipe as recipes
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.plans import pending
from tritonpress_server import TritonServer
from visit import gate, parity, plans, prepare, serving
from visit.__main__ import main
from visit.closed_loop import LoadError, inputs, load
from visit.contest import path_of_package
from visit.records import read
from visit.travelling import Weights


@pytest.fixture(autouse=True)
def modules_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([path_of_package(), *sys.path]))


class Witness(grpc.GenericRpcHandler):
    """Passes on what a server is asked; holds inferences until `held` are there, and counts those at the same time."""

    def __init__(self, server: grpc.Channel, held: int) -> None:
        self.most = 0
        self._server, self._held = server, held
        self._there, self._all_there, self._lock = 0, threading.Event(), threading.Lock()

    def service(self, handler_call_details: Any) -> Any:
        ask = self._server.unary_unary(handler_call_details.method)
        inference = handler_call_details.method.endswith("/ModelInfer")

        def answer(request: bytes, context: Any) -> bytes:
            with self._counted() if inference else contextlib.nullcontext():
                return bytes(ask(request, timeout=60))

        return grpc.unary_unary_rpc_method_handler(answer)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._there += 1
            self.most = max(self.most, self._there)
            if self._there >= self._held:
                self._all_there.set()
        self._all_there.wait(60)
        try:
            yield
        finally:
            with self._lock:
                self._there -= 1


@contextlib.contextmanager
def witness(url: str, held: int) -> Iterator[tuple[str, Witness]]:
    """The address of a witness before a server, and what it has seen."""
    with grpc.insecure_channel(url) as channel:
        seen = Witness(channel, held)
        server = grpc.server(ThreadPoolExecutor(held + 5), handlers=[seen])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", seen
        finally:
            server.stop(None).wait()


def test_as_many_requests_are_in_flight_as_said(tiny_server: TritonServer, tmp_path: Path) -> None:
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps([{"QUERY": "red lamp"}, {"QUERY": "old chair for the garden"}]))
    with witness(tiny_server.grpc_url, 3) as (url, seen):
        found = load(url, "recommendation", requests, in_flight=3, seconds=2.5)
    assert found["in_flight"] == seen.most == 3
    assert found["requests_per_s"] > 0
    assert 0 < found["p50_ms"] <= found["p99_ms"]


def test_requests_that_are_refused_are_no_figure(tiny_server: TritonServer, tmp_path: Path) -> None:
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps([{"QUERY": ""}]))
    with pytest.raises(LoadError, match=r"1 of 1 processes failed .*InferenceServerException"):
        load(tiny_server.grpc_url, "recommendation", requests, in_flight=1, seconds=1)


def test_token_ids_are_int32_rows(tmp_path: Path) -> None:
    (request, *_) = json.loads(serving.token_requests(plans.INPUTS, 5, tmp_path / "tokens.json").read_text())
    tensors = {tensor.name(): tensor for tensor in inputs(request)}
    assert [*tensors] == ["input_ids", "attention_mask", "token_type_ids"]
    assert {(tensor.datatype(), tuple(tensor.shape())) for tensor in tensors.values()} == {("INT32", (1, 5))}


def test_repository_serves_the_plan_that_it_is_given(travelled: tuple[Path, Path], tmp_path: Path) -> None:
    """A plan for one of the lengths: profiles, graphs and warm-ups of the others would not load with it."""
    source = travelled[1] / "workloads" / "question_answering"
    plan = tmp_path / "model.int8.48.plan"
    plan.write_bytes(b"a plan")
    stamp = {"rung": "int8", "profiles": [{"batch": [1, 32, 128], "length": [48, 48, 48]}]}
    (tmp_path / "model.int8.48.plan.json").write_text(json.dumps(stamp))
    folder, engine = serving.repository(source, plan, tmp_path / "served")
    assert (folder / engine / "1" / "model.plan").read_bytes() == b"a plan"
    assert json.loads((folder / engine / "1" / "model.plan.json").read_text()) == stamp
    assert not list(folder.rglob("*.onnx"))
    before, after = (
        text_format.Parse((at / engine / "config.pbtxt").read_text(), pb.ModelConfig())
        for at in (source / "repository", folder)
    )
    assert ([*before.instance_group[0].profile], [*after.instance_group[0].profile]) == (["0", "1"], ["0"])
    graphs = [
        [(spec.batch_size, *spec.input["input_ids"].dim) for spec in config.optimization.cuda.graph_spec]
        for config in (before, after)
    ]
    assert graphs[1] == [graph for graph in graphs[0] if graph[1] == 48] == [(1 << power, 48) for power in range(6)]
    assert [one.name for one in after.model_warmup] == ["48 tokens"]
    del before.instance_group[:], after.instance_group[:]
    for config in (before, after):
        config.ClearField("optimization")
        config.ClearField("model_warmup")
    assert before == after


def test_repository_that_reads_what_the_encoders_do_serves_them(travelled: tuple[Path, Path]) -> None:
    assert [source.name for source in serving.suiting(travelled[1])] == ["question_answering"]


@pytest.fixture(scope="module")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and what of it travels."""
    folder = tmp_path_factory.mktemp("workload")
    (folder / "sources").mkdir()
    recipe = write_task(folder / "sources", "question_answering")
    prepare.workload(recipe, folder / "visit")
    return recipe, folder / "visit"


def test_workload_travels_with_all_that_its_plan_needs(travelled: tuple[Path, Path]) -> None:
    _, visit = travelled
    source = visit / "workloads" / "question_answering"
    (settings,) = source.glob("repository/*/1/plan.json")
    rungs = json.loads(settings.read_text())["rungs"]
    assert [rung["name"] for rung in rungs] == ["fp32", "fp16", "int8"]
    for rung in rungs:
        model = onnx.load(settings.with_name(rung["model"]))
        Weights(visit).put_back(model)
        onnx.checker.check_model(model, full_check=True)
        assert "LayerNormalization" not in {node.op_type for node in model.graph.node}
    requests = json.loads((source / "requests.json").read_text())
    assert all(set(request) == {"QUESTION", "CONTEXT"} for request in requests)


def test_workload_is_unpacked_where_its_plans_are_built(travelled: tuple[Path, Path], tmp_path: Path) -> None:
    _, visit = travelled
    options = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--python", sys.executable]
    assert main(["run", str(visit), *options, "--only", "workloads", "--shapes", "tiny"]) == 0
    found = {entry["item"]: entry for entry in read(tmp_path / "out")}
    assert "TensorRT is needed" in found["question_answering: ladder"]["why"]
    (version,) = (tmp_path / "work" / "workloads" / "question_answering").glob("repository/*/1")
    for path in sorted(version.glob("model.*.onnx")):
        onnx.checker.check_model(onnx.load(path), full_check=True)
        session_infer(path)


def test_what_was_answered_elsewhere_is_held_to_the_gate(travelled: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, visit = travelled
    asked = parity.recorded(visit / "workloads" / "question_answering" / "feeds.npz")
    for rung, wrong in (("fp32", False), ("int8", True)):
        arrays = {}
        for number, (feed, outputs) in enumerate(asked):
            # A word of every text, and the answer to none.
            elsewhere = np.where(feed["input_ids"] == 4 + WORDS.index("home"), 100, 0).astype(np.float32)
            for name, tensor in outputs.items():
                arrays[f"{number}/out/{name}"] = elsewhere if wrong else tensor
        np.savez(tmp_path / f"question_answering.{rung}.npz", **arrays)
    rows = [line.split() for line in gate.table(recipe, visit, tmp_path).splitlines()]
    found = {row[0]: row for row in rows}
    assert found["fp32"][-1] == "kept"
    assert found["fp32"][2] == "100.0%"
    assert found["int8"][-1] == "refused"


def test_answers_of_the_graph_that_travelled_are_those_that_were_recorded(travelled: tuple[Path, Path]) -> None:
    _, visit = travelled
    source = visit / "workloads" / "question_answering"
    (path,) = source.glob("repository/*/1/model.fp32.onnx")
    model = onnx.load(path)
    Weights(visit).put_back(model)
    found = parity.differences(session_infer(model.SerializeToString()), parity.recorded(source / "feeds.npz"))
    assert found["relative_error"] < 1e-5


def test_recipe_for_the_kit_keeps_its_files(travelled: tuple[Path, Path]) -> None:
    recipe = prepare.for_tensorrt(travelled[0], prepare.RELEASE)
    assert recipe.path == travelled[0]
    assert recipe.engine.word == "tensorrt"
    assert [stage.word for stage in recipe.graph] == ["qdq"]
    assert recipe.file(recipe.gate.dataset).exists()
    (lengths,) = recipe.lengths
    assert lengths.config.borders[-1] == recipes.load(travelled[0]).serve.max_length
    assert pending.SETTINGS == "plan.json"
