"""What is made of Triton's log where the real server cannot be brought to write it on demand."""

from pathlib import Path

from tritonpress_server import ModelRepositoryError, ServerStartError
from tritonpress_server.triton_log import tail, why_it_ended

LOADING = """\
I1123 23:29:10.064639 19321 model_lifecycle.cc:472] "loading: lookup:1"
I1123 23:29:10.064640 19321 model_lifecycle.cc:472] "loading: good:1"
I1123 23:29:10.108188 19321 model_lifecycle.cc:839] "successfully loaded 'good'"
E1123 23:29:10.108190 19321 server.cc:241] "CudaDriverHelper has not been initialized."
\x1b[1;31m[E:onnxruntime:, sequential_executor.cc:677 ExecuteKernel] indices element out of data bounds\x1b[m
"""


def test_a_crash_while_loading_names_the_models_that_were_not_loaded() -> None:
    error = why_it_ended(LOADING, path=Path("triton.log"), status=139)
    assert isinstance(error, ModelRepositoryError)
    assert str(error).startswith("model 'lookup' made Triton crash while loading, as a failing warm-up request does; ")


def test_another_signal_is_no_fault_of_the_repository() -> None:
    error = why_it_ended(LOADING, path=Path("triton.log"), status=137)
    assert isinstance(error, ServerStartError)
    assert "Triton ended with status 137 before it was ready; log triton.log ends:\n" in str(error)


def test_the_tail_is_free_of_colours_and_of_what_every_machine_without_a_gpu_says() -> None:
    assert (
        tail(LOADING)
        == "  [E:onnxruntime:, sequential_executor.cc:677 ExecuteKernel] indices element out of data bounds"
    )
    assert tail("") == "  (the log is empty)"
