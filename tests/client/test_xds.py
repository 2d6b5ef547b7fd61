"""A name that a control plane resolves: `xds:///NAME`."""

from __future__ import annotations

import collections
import os
import subprocess
import sys

from control_plane import ControlPlane
from served_models import Served

# A process of its own: gRPC takes the control plane's address from its environment.
PROGRAM = """
import sys
from tritonpress_client import Recommender, TritonpressError
with Recommender("xds:///triton.test", timeout_s=float(sys.argv[1])) as recommender:
    try:
        # A server takes its turn from when it is connected.
        connected = set()
        while len(connected) < 2:
            connected.add(recommender.recommend("red lamp")[1].item_id)
        print(*(recommender.recommend(str(number))[1].item_id for number in range(30)))
    except TritonpressError as exc:
        print(type(exc).__name__, exc)
"""


def run(timeout_s: float, bootstrap: str | None) -> str:
    """Returns what the program prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_XDS")}
    if bootstrap is not None:
        environment["GRPC_XDS_BOOTSTRAP_CONFIG"] = bootstrap
    command = [sys.executable, "-c", PROGRAM, str(timeout_s)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_control_plane_s_servers_are_asked_by_turns(servers: tuple[Served, Served]) -> None:
    with ControlPlane("triton.test", [server.url for server in servers]) as plane:
        counted = collections.Counter(run(20, plane.bootstrap).split())
        assert not plane.refused
    assert counted == {"one": 15, "two": 15}


def test_without_a_control_plane_the_error_says_what_is_missing() -> None:
    said = run(3, None)
    assert said.startswith("ServerUnreachableError no Triton server answers at xds:///triton.test")
    assert "GRPC_XDS_BOOTSTRAP" in said
