"""`tritonpress-query health`."""

from __future__ import annotations

import argparse
import json

from tritonpress_client.connection import Connection
from tritonpress_client.health import health

HELP = "the server, its models, their counts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the server is all that this command asks about."""


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if the server and its models are ready, else 1, after printing their state."""
    with Connection(arguments.url, timeout_s=arguments.timeout_s) as connection:
        state = health(connection)
    print(json.dumps(state.as_dict(), ensure_ascii=False) if arguments.json else state.table())
    return 0 if state.ready else 1
