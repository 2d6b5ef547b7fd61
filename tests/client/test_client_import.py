"""Importing the client is quick and brings little."""

from __future__ import annotations

import subprocess
import sys


def _python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_import_takes_less_than_0_3_s() -> None:
    # CPU time, so that what else runs on the machine does not count.
    program = "import time; start = time.process_time(); import tritonpress_client; print(time.process_time() - start)"
    times_s = [float(_python(program)) for _ in range(3)]
    assert min(times_s) < 0.3, times_s


def test_import_needs_tritonclient_grpc_and_numpy_only() -> None:
    heavy = (
        "torch",
        "transformers",
        "onnxruntime",
        "pydantic",
        "gevent",
        "locust",
        "tritonpress_server",
        "tritonpress_generator",
    )
    program = f"import sys, tritonpress_client.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert _python(program) == "[]\n"
