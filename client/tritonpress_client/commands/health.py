"""`tritonpress-query health`."""

from __future__ import annotations

import argparse
import json
import time

from tritonpress_client.connecting import options, targets
from tritonpress_client.connection import Connection
from tritonpress_client.errors import InvalidInputError, TritonpressError
from tritonpress_client.health import Health, health, since, table

HELP = "the servers, their models, their counts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's own argument."""
    parser.add_argument(
        "--window-s",
        type=float,
        default=0.0,
        metavar="S",
        help="count for so long (since the models were loaded)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Returns 0 if the servers and their models are ready, else 1, after printing their state.

    Raises:
        TritonpressError: None of the servers could be asked.
    """
    if not 0 <= arguments.window_s <= 3600:
        raise InvalidInputError(f"--window-s must be in 0..3600 seconds, got {arguments.window_s:g}")
    settings = options(arguments)
    connections = [Connection(target, timeout_s=arguments.timeout_s, options=settings) for target in targets(arguments)]
    states = [_state(connection) for connection in connections]
    failed = [state for state in states if isinstance(state, TritonpressError)]
    if len(failed) == len(states):
        raise failed[0]
    if arguments.window_s:
        time.sleep(arguments.window_s)
        states = [since(state, _state(connection)) for state, connection in zip(states, connections, strict=True)]
    for connection in connections:
        connection.close()
    if arguments.json:
        for state in states:
            print(json.dumps(_as_dict(state), ensure_ascii=False))
    else:
        print(table(states, arguments.window_s))
    return 0 if all(isinstance(state, Health) and state.ready for state in states) else 1


def _state(connection: Connection) -> Health | TritonpressError:
    try:
        return health(connection)
    except TritonpressError as exc:
        return exc


def _as_dict(state: Health | TritonpressError) -> dict[str, object]:
    if isinstance(state, Health):
        return state.as_dict()
    return {"ready": False, "url": state.target, "error": str(state)}
