"""Importing the client brings what it needs and nothing else."""

from __future__ import annotations

import subprocess
import sys

NEEDED = "numpy, numpy.typing, grpc, tritonclient.grpc"
HEAVY = ("torch", "transformers", "onnxruntime", "pydantic", "gevent", "locust", "tritonpress_server")


def _modules(imports: str) -> set[str]:
    program = f"import sys, {imports}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_needs_tritonclient_grpc_and_numpy_only() -> None:
    # What is imported decides how long it takes, and unlike a time it is the same on every machine.
    extra = _modules("tritonpress_client") - _modules(NEEDED)
    foreign = {name.partition(".")[0] for name in extra} - {"tritonpress_client"}
    assert foreign <= sys.stdlib_module_names, foreign
    assert len(extra) <= 25, extra
    assert "tritonpress_client.shared_memory" not in extra  # only where it is asked for


def test_command_line_brings_nothing_heavy() -> None:
    assert not _modules("tritonpress_client.cli") & {*HEAVY, "tritonpress_generator"}
