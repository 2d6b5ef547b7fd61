"""Loads a repository in real Triton and replays each workload's golden requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_client.connection import Connection
from tritonpress_server import Settings, TritonServer

from tritonpress_generator import repository
from tritonpress_generator.answering import Texts
from tritonpress_generator.asking import ask, together
from tritonpress_generator.errors import InputError, VerificationError
from tritonpress_generator.infer import Array
from tritonpress_generator.plans import pending, releases

_THREADS = 8
_BATCH = 8
"""Golden requests that are asked together, where the server takes so many."""


def verify(path: Path) -> dict[str, int]:
    """Returns, for each workload in the repository `path`, how many answers were compared; all were right.

    The golden requests are asked one by one, all in batches, and by several clients at once.

    Raises:
        InputError: There is no workload, or a manifest is missing.
        VerificationError: A file is not as it was written, or an answer differs.
    """
    manifests = {name: repository.read_manifest(path, name) for name in repository.workloads(path)}
    for name, manifest in manifests.items():
        problems = repository.changed_files(path, manifest)
        if problems:
            raise VerificationError(f"{name}: {'; '.join(problems)}; the manifest says otherwise: build it again")
        if missing := pending.missing(path, manifest):
            raise InputError(f"{name}: its plan is pending; run {missing[0]} on a machine with the GPU, then verify")
    with TritonServer(path, settings=Settings(drain_s=0)) as server:
        return {name: _replay(server.grpc_url, name, manifest) for name, manifest in manifests.items()}


def check_plans(path: Path, release: str) -> int:
    """Returns how many TensorRT plans the repository `path` has; all of them run in NVIDIA's container of `release`.

    Raises:
        InputError: There is no workload, a plan is pending, or the release has no such name.
        VerificationError: A plan would not run there; says why, and the remedy.
    """
    releases.check_release(release, where="--server")
    count = 0
    for name in repository.workloads(path):
        manifest = repository.read_manifest(path, name)
        if missing := pending.missing(path, manifest):
            raise InputError(f"{name}: its plan is pending; run {missing[0]} on a machine with the GPU, then verify")
        for folder in pending.folders(path, manifest):
            for plan, stamp in pending.plans(folder).items():
                if not stamp:
                    raise VerificationError(f"{plan}: must have its stamp beside it, {plan.name}.json; build it again")
                if problem := releases.mismatch(stamp, release):
                    raise VerificationError(f"{plan}: {problem}")
                count += 1
    return count


def _replay(url: str, name: str, manifest: dict[str, Any]) -> int:
    golden = manifest["golden"]
    requests = golden["requests"]
    tolerance = float(golden["score_tolerance"])
    with Connection(url, timeout_s=60.0) as connection:
        answers = ask(connection, name, _texts(requests), batch=_BATCH)
        compared = _compare(name, requests, answers, tolerance, how="in a batch")

        def alone(request: dict[str, Any]) -> int:
            answer = together(connection, name, _texts([request]))
            return _compare(name, [request], answer, tolerance, how="alone")

        compared += sum(map(alone, requests))
        with ThreadPoolExecutor(_THREADS) as pool:
            compared += sum(pool.map(alone, requests * 4))
    return compared


def _texts(requests: list[dict[str, Any]]) -> Texts:
    return {key: [request["inputs"][key] for request in requests] for key in requests[0]["inputs"]}


def _compare(name: str, requests: list[dict[str, Any]], answer: dict[str, Array], tolerance: float, *, how: str) -> int:
    for row, request in enumerate(requests):
        for key, expected in request["outputs"].items():
            got = [value.decode() if isinstance(value, bytes) else float(value) for value in answer[key][row]]
            if isinstance(expected[0], float):
                worst = float(np.max(np.abs(np.subtract(got, expected))))
                if not worst <= tolerance:
                    raise VerificationError(
                        f"{name}: {key} of {request['inputs']} asked {how} must be within {tolerance:g} of the "
                        f"build's, is {worst:.3g} away; build it on this machine, or with this ONNX Runtime"
                    )
            elif got != expected:
                raise VerificationError(
                    f"{name}: {key} of {request['inputs']} asked {how} must be {expected}, got {got}; build it again"
                )
    return len(requests)
