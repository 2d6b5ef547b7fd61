"""Putting tritonserver's command line together and starting it under its guard."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from tritonpress_server import guard
from tritonpress_server.resting import brought, resting
from tritonpress_server.runtime import Runtime


def launch(
    runtime: Runtime,
    repository: Path,
    *,
    private: Path,
    host: str,
    ports: Mapping[str, int],
    log: Path,
    arguments: Sequence[str],
) -> subprocess.Popen[bytes]:
    """The guard's process; see `pid_of`.

    Args:
        runtime: The wheel's parts.
        repository: The model repository.
        private: An empty folder for this run; its name becomes the server's id, and the guard removes it at the end.
        host: Address of all endpoints.
        ports: Port by endpoint: `grpc`, `http`, `metrics`.
        log: File that the output is appended to.
        arguments: More options of tritonserver, after these.
    """
    runtime.write_backends(private / "backends")
    options = {
        "id": private.name,
        "backend-directory": private / "backends",
        "cache-directory": runtime.caches,
        "backend-config": f"python,shm-region-prefix-name={private.name}-",
    }
    command = [
        str(runtime.binary),
        *(f"--{name}={value}" for name, value in options.items()),
        *shared_options(repository.absolute(), host=host, ports=ports),
        *arguments,
    ]
    with log.open("ab") as output:
        return subprocess.Popen(
            # Isolated and without site: it starts in 10 ms and cannot be disturbed by the environment.
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(private), *command],
            env=runtime.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            # A session of its own: Ctrl-C reaches us alone, and we drain it.
            start_new_session=True,
        )


def pid_of(guarding: subprocess.Popen[bytes]) -> int:
    """Tritonserver's pid, once its guard has started it; 0 if it could not."""
    if guarding.stdout is None:
        return 0
    with guarding.stdout as first_line:
        return int(first_line.readline() or 0)


def shared_options(repository: PurePath, *, host: str, ports: Mapping[str, int]) -> list[str]:
    """The options that tritonserver gets here and in NVIDIA's container alike, before those of `Settings`.

    Args:
        repository: The model repository, as tritonserver finds it.
        host: Address of all endpoints.
        ports: Port by endpoint: `grpc`, `http`, `metrics`.
    """
    return [
        f"--model-repository={repository}",
        *(f"--{endpoint}-address={host}" for endpoint in ports),
        *(f"--{endpoint}-port={port}" for endpoint, port in ports.items()),
        # Auto-completion costs each Python-hosted model a process of its own and a second.
        "--disable-auto-complete-config",
        # Ready once all is loaded that is loaded at the start, and until it ends. Else it were not ready while it loads
        # another build, nor ever again once it has refused one, and would be taken out of service with what it serves.
        "--strict-readiness=false",
    ]


def find_models(repository: Path) -> list[str]:
    """The names of the models in a repository, sorted.

    Triton itself would end at a folder such as ".staging", so the models are named one by one.
    """
    return sorted(
        entry.name
        for entry in repository.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and not _is_begun(entry)
    )


def _is_begun(folder: Path) -> bool:
    """Whether a first build has not come to an end there: it has no config yet, and is nothing that was served."""
    if (folder / "config.pbtxt").exists():
        return False
    return next(folder.glob("manifest.*.json"), None) is not None or not any(
        entry.name.isdigit() for entry in folder.iterdir()
    )


def models_to_load(repository: Path) -> list[str]:
    """The names of the models that are asked for where none are given: all that serve, but the steps of ensembles.

    Triton loads those with their ensembles. A step's name is another in the next build: a list without it, once written
    down, still holds after a promote.
    """
    left_out = resting(repository) | brought(repository)
    return [name for name in find_models(repository) if name not in left_out]
