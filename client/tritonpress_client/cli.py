"""`tritonpress-query`: asks a served model, or the server how it is."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tritonpress_client import connecting
from tritonpress_client.commands import ask, classify, health, recommend
from tritonpress_client.errors import DeadlineExceededError, ServerError, TritonpressError, is_overloaded

_EXIT_STATUS = (
    "Exit status: 0 done; 1 a server is not ready, failed, was too slow or busy, or standard output cannot be written;"
    " 2 the input is at fault."
)
_COMMANDS = {"ask": ask, "classify": classify, "recommend": recommend, "health": health}


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the command."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except TritonpressError as exc:
        print(f"tritonpress-query: {exc}", file=sys.stderr)
        return 1 if isinstance(exc, DeadlineExceededError | ServerError) or is_overloaded(exc.__cause__) else 2
    except BrokenPipeError:
        # The reader (`| head`) has had enough.
        _drop_output()
        return 0
    except OSError as exc:
        print(f"tritonpress-query: cannot write to standard output: {exc.strerror or exc}", file=sys.stderr)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _drop_output() -> None:
    """Lets what is left in the buffer not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Returns the command's arguments."""
    server = _Parser(add_help=False)
    connecting.add_arguments(server)
    server.add_argument("--json", action="store_true", help="print JSON, a line each")

    parser = _Parser(prog="tritonpress-query", description=__doc__, epilog=_EXIT_STATUS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(name, parents=[server], help=command.HELP, epilog=_EXIT_STATUS)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
