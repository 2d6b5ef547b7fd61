"""Python steps in a packed environment: Triton reads its place in a step's config, by `EXECUTION_ENV_PATH`.

A step's name is a hash of its config, so the config stays; another of a name of its own, which Triton is told to prefer
(`--model-config-name`), lies beside it in a copy of the repository.
"""

from __future__ import annotations

from pathlib import Path

from tritonpress_generator.deploy.command import EXECUTION_ENV_CONFIG
from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import EXECUTION_ENV
from tritonpress_generator.repository import config_text, read_config


def repository(served: Served) -> dict[str, str | bytes | Path]:
    """Returns the files of the repository with a further config for each Python step, by their paths in it."""
    root = served.repository
    files: dict[str, str | bytes | Path] = {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
    for step in served.python_steps:
        config = read_config(root / step)
        config.parameters["EXECUTION_ENV_PATH"].string_value = EXECUTION_ENV
        files[f"{step}/configs/{EXECUTION_ENV_CONFIG}.pbtxt"] = config_text(config)
    return files
