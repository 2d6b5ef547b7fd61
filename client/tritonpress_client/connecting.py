"""The arguments by which the commands reach a server, and what is made of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeVar

from tritonpress_client.credentials import BearerToken
from tritonpress_client.errors import InvalidInputError
from tritonpress_client.model_client import ModelClient
from tritonpress_client.options import Metadata, Options, Tls

ADMIN_METADATA = "triton-grpc-protocol-tritonpress-admin"
"""By which a server that `tritonpress-serve --admin-token-file` guards is asked for more than answers."""

_Client = TypeVar("_Client", bound=ModelClient)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what all commands take."""
    parser.add_argument(
        "--url",
        default="127.0.0.1:8001",
        help="HOST:PORT of Triton's gRPC endpoint; several with commas between, or dns:///NAME:PORT (%(default)s)",
    )
    parser.add_argument("--timeout-s", type=float, default=5.0, help="deadline of each request (%(default)s)")
    add_security_arguments(parser)


def add_security_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a server is trusted, and who asks."""
    security = parser.add_argument_group("security")
    security.add_argument("--tls", action="store_true", help="TLS, with the system's authorities without --ca")
    security.add_argument("--ca", type=Path, metavar="PEM", help="authorities that the server's certificate is held to")
    security.add_argument("--certificate", type=Path, metavar="PEM", help="the client's own, for mutual TLS")
    security.add_argument("--key", type=Path, metavar="PEM", help="of --certificate")
    token = security.add_mutually_exclusive_group()
    token.add_argument("--token-file", type=Path, metavar="FILE", help="sent as a bearer token, read every minute")
    token.add_argument(
        "--admin-token-file", type=Path, metavar="FILE", help="for a server that guards model control and statistics"
    )


def targets(arguments: argparse.Namespace) -> list[str]:
    """Returns the servers' addresses."""
    return [target.strip() for target in arguments.url.split(",")]


def options(arguments: argparse.Namespace) -> Options:
    """Returns the connection's settings.

    Raises:
        InvalidInputError: A file cannot be read, or is no PEM.
    """
    files = {"ca": arguments.ca, "certificate": arguments.certificate, "key": arguments.key}
    pem = {name: None if path is None else _read(path) for name, path in files.items()}
    wanted = arguments.tls or any(pem.values())
    return Options(
        tls=Tls(ca=pem["ca"], certificate=pem["certificate"], key=pem["key"]) if wanted else None,
        metadata=_metadata(arguments),
    )


def security_words(arguments: argparse.Namespace) -> list[str]:
    """Returns the arguments that say the same to another command, wherever it runs: files by name, not by content."""
    words = ["--tls"] if arguments.tls else []
    for name in ("ca", "certificate", "key", "token_file", "admin_token_file"):
        path: Path | None = getattr(arguments, name)
        words += [] if path is None else [f"--{name.replace('_', '-')}={path.absolute()}"]
    return words


def _metadata(arguments: argparse.Namespace) -> Metadata | None:
    """Returns what goes with each request."""
    token_file: Path | None = arguments.token_file
    if token_file is not None:
        return BearerToken(lambda: _token(token_file), lifetime_s=60)
    if arguments.admin_token_file is not None:
        return {ADMIN_METADATA: _token(arguments.admin_token_file)}
    return None


def connected(kind: type[_Client], arguments: argparse.Namespace) -> _Client:
    """Returns a client of the model that the arguments name."""
    return kind(targets(arguments), model=arguments.model, timeout_s=arguments.timeout_s, options=options(arguments))


def _token(path: Path) -> str:
    """Returns the token in a file, without the white space around it."""
    token = _read(path).decode(errors="replace").strip()
    if not (token.isascii() and token.isprintable()):
        raise InvalidInputError(f"{path} must hold a token of printable ASCII alone; put nothing else into the file")
    return token


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidInputError(f"cannot read {path}: {exc.strerror}") from exc
