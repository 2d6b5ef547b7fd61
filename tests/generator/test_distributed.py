"""Processes that train together: what each computes on, and the folder that they share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import write_training
from tritonpress_generator import cli
from tritonpress_generator.errors import InputError
from tritonpress_generator.training.distributed import device_of

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
CHECKS = """
import sys
from pathlib import Path
from tritonpress_generator.errors import InputError
from tritonpress_generator.training.distributed import world

with world() as processes:
    for folder in ("shared", f"own.{processes.rank}"):
        try:
            processes.check_shared(Path(sys.argv[1], folder), where="finetune")
            print(folder)
        except InputError as exc:
            print(exc)
"""


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda:1"), (8, "cuda:1")])
def test_process_has_a_gpu_of_its_own_where_there_are_any(gpus: int, device: str) -> None:
    assert device_of(TORCHRUN, gpus) == torch.device(device)


@pytest.mark.parametrize(
    ("changes", "gpus", "message"),
    [
        ({}, 1, r"torchrun: each process of a host must .*, there are 1 and .* process 2; give --nproc-per-node 1"),
        ({"LOCAL_RANK": None}, 4, r"torchrun: with WORLD_SIZE the environment must have LOCAL_RANK too, has not"),
        ({"RANK": None, "MASTER_PORT": None}, 0, r"must have RANK, MASTER_PORT too, has not; start the processes with"),
    ],
)
def test_what_torchrun_would_not_start_so_is_refused(changes: dict[str, str | None], gpus: int, message: str) -> None:
    environment = {name: value for name, value in (TORCHRUN | changes).items() if value is not None}
    with pytest.raises(InputError, match=message):
        device_of(environment, gpus)


def test_who_does_not_need_the_number_on_the_host_may_lack_it() -> None:
    assert device_of({name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}, 0).type == "cpu"


def test_world_without_the_rest_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_training(tmp_path, "classification")
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["finetune", str(recipe), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tritonpress finetune: torchrun: with WORLD_SIZE the environment must have RANK, ")


def test_folder_that_a_process_does_not_see_is_refused(tmp_path: Path) -> None:
    for name in ("shared", "own.0", "own.1"):
        (tmp_path / name).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = TORCHRUN | {"WORLD_SIZE": "2", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CHECKS, str(tmp_path)],
            env=os.environ | together | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for rank, process in enumerate(running):
        said = process.communicate(timeout=120)[0].splitlines()
        assert process.returncode == 0
        assert said == [
            "shared",
            f"finetune: {tmp_path / f'own.{rank}'} must be one folder for all processes, 1 of 2 do not see what the "
            "first one writes there; give one that the hosts share",
        ]
    assert not [*tmp_path.glob("*/*")]
