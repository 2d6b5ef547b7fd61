"""`tritonpress promote` and `rollback`: their arguments, and what they print."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tritonpress_generator.errors import InputError

COMMANDS = ("promote", "rollback")
_SECURITY = {
    "ca": "authorities that the server's certificate is held to",
    "certificate": "the client's own, for mutual TLS",
    "key": "of --certificate",
    "token-file": "sent as a bearer token",
    "admin-token-file": "for a server that guards model control",
}


def add_parsers(commands: Any) -> None:
    """Adds the two commands."""
    promote = commands.add_parser("promote", help="switch a workload to another build that lies in the repository")
    rollback = commands.add_parser("rollback", help="switch a workload back to the build that it served before")
    for parser in (promote, rollback):
        parser.add_argument("repository", type=Path, help="as `tritonpress build` writes it")
        parser.add_argument("name", help="the workload")
    promote.add_argument("build", nargs="?", help="default: the canary's")
    rollback.add_argument("--canary", action="store_true", help="withdraw the canary, and leave the workload as it is")
    for parser in (promote, rollback):
        add_server_arguments(parser)
        parser.add_argument("--timeout-s", type=float, default=300.0, help="for loading a model (default: 300)")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `build` takes too."""
    parser.add_argument(
        "--server",
        action="append",
        dest="servers",
        default=[],
        metavar="HOST:PORT",
        help="a Triton that serves the repository, to be told by gRPC; may be repeated",
    )
    add_security_arguments(parser)
    parser.add_argument(
        "--keep", type=_count, default=1, metavar="N", help="builds that stay beside those that serve (default: 1)"
    )


def add_security_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a server is trusted, and who asks."""
    # As `tritonpress-query` has them, whose package is not imported for a command that asks no server.
    security = parser.add_argument_group("security, with --server")
    security.add_argument("--tls", action="store_true", help="TLS, with the system's authorities without --ca")
    for name, text in _SECURITY.items():
        security.add_argument(f"--{name}", type=Path, metavar="FILE", help=text)


def run(options: argparse.Namespace) -> None:
    """Switches, and prints what was done.

    Raises:
        GeneratorError: See `switching`.
    """
    from tritonpress_client import connecting

    from tritonpress_generator import switching

    with _reached():
        servers = switching.Servers(options.servers, options.timeout_s, connecting.options(options))
        if options.command == "rollback" and options.canary:
            build = switching.withdraw(options.repository, options.name, servers=servers, keep=options.keep)
            print(f"{options.name}: build {build} is no canary any more")
        elif options.command == "promote":
            _print(
                options,
                switching.promote(options.repository, options.name, options.build, servers=servers, keep=options.keep),
            )
        else:
            _print(options, switching.rollback(options.repository, options.name, servers=servers, keep=options.keep))


def bring_up(options: argparse.Namespace, name: str, ensemble: str) -> None:
    """Makes the servers that the arguments of `build` name, if any, serve what was built.

    Raises:
        GeneratorError: See `switching`.
    """
    if not options.servers:
        _say_what_stays(options.out, name, options.keep)
        return
    from tritonpress_client import connecting

    from tritonpress_generator import switching

    with _reached():
        servers = switching.Servers(options.servers, options=connecting.options(options))
        switching.bring_up(options.out, name, canary=options.canary, servers=servers, keep=options.keep)
    print(f"{ensemble}: served by {', '.join(options.servers)}")


@contextmanager
def _reached() -> Iterator[None]:
    """Says of a server that cannot be asked what the client says."""
    from tritonpress_client import TritonpressError

    try:
        yield
    except TritonpressError as exc:
        raise InputError(str(exc)) from exc


def _print(options: argparse.Namespace, done: Any) -> None:
    from tritonpress_generator import builds
    from tritonpress_generator.table import render

    rows = builds.listing(options.repository, options.name)
    print(render(["build", "created", "state"], [[row["build"], row["created"], row["state"]] for row in rows]))
    served = f"{options.name}: build {done.build} serves"
    print(f"{served} as before" if done.before == done.build else f"{served}, {done.before} did before")
    if done.collected:
        print(f"removed: {', '.join(done.collected)}")
    if not options.servers:
        print("the files are switched; a server that polls follows, another one with --server, or when it is restarted")
        _say_what_stays(options.repository, options.name, options.keep)


def _say_what_stays(repository: Path, name: str, keep: int) -> None:
    """Prints which builds lie there beyond what is to be kept, since servers that were not told may serve them."""
    from tritonpress_generator import builds

    if beyond := builds.beyond(repository, name, keep):
        again = f"tritonpress promote {repository} {name} {builds.served(repository, name)} --keep {keep}"
        print(f"{name}: {', '.join(beyond)} stays for servers that have yet to follow; once they have: {again}")


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise argparse.ArgumentTypeError(f"must be a number of builds, 0 or more, got {text!r}")
    return count
