"""A request that is malformed on the wire, in one execution with one of ours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from served_models import executed, write_models
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonpress_client import Recommender
from tritonpress_server import Settings, TritonServer


def malformed() -> service_pb2.ModelInferRequest:
    """Returns a request whose text is said to be longer than it is."""
    request = service_pb2.ModelInferRequest(model_name="recommendation")
    request.inputs.add(name="QUERY", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append((2**31 - 1).to_bytes(4, "little") + b"ab")
    return request


def test_a_malformed_neighbour_costs_nothing_but_time(tmp_path: Path) -> None:
    repository = write_models(tmp_path / "repository", "batched", instances=1)
    for config in repository.glob("recommendation/config.pbtxt"):
        # All that wait are taken at once.
        config.write_text(config.read_text() + "dynamic_batching { max_queue_delay_microseconds: 300000 }\n")
    with (
        # The malformed request stays in flight for Triton, which would wait for it at the end.
        TritonServer(repository, settings=Settings(drain_s=1)) as server,
        Recommender(server.grpc_url) as recommender,
        grpc.insecure_channel(server.grpc_url) as channel,
        ThreadPoolExecutor(2) as pool,
    ):
        recommender.limits()
        asked = [pool.submit(recommender.recommend, f"query {number}") for number in range(2)]
        with pytest.raises(grpc.RpcError, match="incomplete string"):
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(malformed(), timeout=10)
        assert [answer.result()[0].item_id for answer in asked] == ["query 0", "query 1"]
    assert sorted(executed(repository, "batched")) == ["query 0", "query 1"]
