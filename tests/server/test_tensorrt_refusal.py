"""The embedded `tensorrt` backend in the real server, on a machine without a GPU: a line, and the others are served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from at_once import AT_ONCE
from tiny_models import CPU, add_one, infer, write_model
from tritonclient.utils import InferenceServerException
from tritonpress_server import ModelRepositoryError, TritonServer

GPU = [{"kind": "KIND_GPU", "count": 1}]
NO_GPU = "a tensorrt_plan needs an NVIDIA GPU and an instance_group of KIND_GPU, got KIND_CPU"


def has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


pytestmark = pytest.mark.skipif(has_gpu(), reason="shows what is said where there is no GPU")


def write_plan(repository: Path, name: str, instances: list[dict[str, object]]) -> None:
    folder = write_model(repository, name, None, platform="tensorrt_plan", instance_group=instances)
    (folder / "1" / "model.plan").write_bytes(b"a plan of another machine")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder, "add_one", add_one())
    write_plan(folder, "gpu", GPU)
    write_plan(folder, "cpu", CPU)
    write_plan(folder, "unsaid", [])
    return folder


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, extra_args=["--exit-on-error=false"], settings=AT_ONCE) as server:
        yield server


def test_other_models_are_served(served: TritonServer) -> None:
    assert served.served_models() == [("add_one", "1")]
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(infer(served.grpc_url, "add_one", {"x": x})["y"], x + 1)


@pytest.mark.parametrize("name", ["cpu", "unsaid"])
def test_plan_without_a_gpu_is_refused(served: TritonServer, name: str) -> None:
    with grpcclient.InferenceServerClient(served.grpc_url) as client:
        with pytest.raises(InferenceServerException) as raised:
            client.load_model(name)
        assert NO_GPU in str(raised.value)
        assert not client.is_model_ready(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpu", rf"model 'cpu' failed to load: Internal: {re.escape(NO_GPU)}, .*engine: onnxruntime; log:"),
        ("gpu", r"model 'gpu' failed to load: .*KIND_GPU but no GPUs are available; serve it where an NVIDIA GPU is, "),
    ],
)
def test_refusal_is_one_line_with_the_remedy(repository: Path, name: str, message: str) -> None:
    with (
        pytest.raises(ModelRepositoryError) as raised,
        TritonServer(repository, models=["add_one", name], settings=AT_ONCE),
    ):
        pass
    assert re.match(message, str(raised.value))
    assert "\n" not in str(raised.value)
