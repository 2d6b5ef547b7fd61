"""What the container runs, run here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import yaml
from tritonpress_client.connecting import ADMIN_METADATA
from tritonpress_generator.deploy import image_files
from tritonpress_server.ports import choose_ports
from tritonpress_server.runtime import find_runtime

CHECK = Path(str(image_files.__file__)).parent / "healthcheck.py"
"""The health check, which Python runs as a file."""
GUARDED = CHECK.with_name("guarded.py")
"""What puts the token into the command."""
TOKEN = "0123456789abcdef"
ADMIN = {ADMIN_METADATA: TOKEN}


def commands(out: Path) -> list[list[str]]:
    """Returns the commands of the image and of the pods."""
    dockerfile = (out / "image" / "Dockerfile").read_text()
    (image,) = re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    deployment = yaml.safe_load((out / "kubernetes" / "base" / "deployment.yaml").read_text())
    return [json.loads(image), deployment["spec"]["template"]["spec"]["containers"][0]["args"]]


@contextmanager
def running(
    command: list[str], repository: Path, work: Path, secrets: Mapping[str, Path] | None = None
) -> Iterator[dict[str, int]]:
    """Runs a container's command by the embedded Triton; gives the ports, when it is ready.

    Only what the container has and this machine has not is replaced: where the repository, the backends and the secrets
    (by their path in the container) lie, and ports that nobody else has.
    """
    runtime = find_runtime()
    runtime.write_backends(work / "backends")
    token = work / "admin_token"
    token.write_text(TOKEN + "\n")
    _, program, _, binary, *given = command
    assert (Path(program).name, binary) == (GUARDED.name, "tritonserver")
    ports = choose_ports("127.0.0.1", {"grpc": None, "http": None, "metrics": None})
    here = {"model-repository": repository, **{f"{endpoint}-port": port for endpoint, port in ports.items()}}
    here |= {f"{endpoint}-address": "127.0.0.1" for endpoint in ports}
    options = [
        f"--{name}={here.get(name, (secrets or {}).get(value, value))}" if equals else option
        for option in given
        for name, equals, value in [option.removeprefix("--").partition("=")]
    ]
    extra = [f"--backend-directory={work / 'backends'}"]
    with (
        (work / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, GUARDED, token, runtime.binary, *options, *extra],
            env=runtime.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while health(ports["http"]) != 0:
                assert process.poll() is None, (work / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (work / "log").read_text()[-3000:]
            yield ports
        finally:
            process.terminate()
            assert process.wait(60) == 0


def asked() -> triton.InferInput:
    """Returns a query."""
    query = triton.InferInput("QUERY", [1, 1], "BYTES")
    query.set_data_from_numpy(np.array([[b"red lamp"]], np.object_))
    return query


def health(port: int) -> int:
    """Returns the exit status of the container's health check."""
    return subprocess.run([sys.executable, CHECK, str(port)], capture_output=True, check=False).returncode
