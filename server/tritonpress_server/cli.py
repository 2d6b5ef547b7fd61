"""`tritonpress-serve`: a model repository on the embedded Triton, in the foreground."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import FrameType
from typing import Any

from tritonpress_server.errors import (
    ModelRepositoryError,
    PortInUseError,
    ServerError,
    ServerNotInstalledError,
    SettingsError,
)
from tritonpress_server.server import TritonServer
from tritonpress_server.settings import LOG_FORMATS, MODES, Settings

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM and returns the exit status.

    0: it was told to stop and drained. 1: Triton failed. 2: the repository, a model in it, or a port is at fault.
    130: it was told to stop again while it drained, and killed Triton.
    """
    options = parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(options)
    except KeyboardInterrupt:  # before it served
        _say("stopped")
        return DONE
    except (ModelRepositoryError, PortInUseError, ServerNotInstalledError, SettingsError) as error:
        print(f"tritonpress-serve: {error}", file=sys.stderr)
        return BAD_INPUT
    except ServerError as error:
        print(f"tritonpress-serve: {error}", file=sys.stderr)
        return FAILED
    finally:
        if before is not None:  # None: installed by what is not Python
            signal.signal(signal.SIGTERM, before)


def _serve(options: argparse.Namespace) -> int:
    server = TritonServer(
        options.repository,
        host=options.host,
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
        models=options.models,
        log_path=options.log,
        startup_timeout_s=options.startup_timeout,
        settings=Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)}),
    )
    with server:
        try:
            _announce(server)
            status = server.wait()
            log = server.log_tail()
        except KeyboardInterrupt:
            return _drain(server)
    print(f"tritonpress-serve: Triton ended by itself with status {status}; its log ends:\n{log}", file=sys.stderr)
    return FAILED


def _drain(server: TritonServer) -> int:
    try:
        server.stop()
    except KeyboardInterrupt:
        print(
            "tritonpress-serve: told to stop again while it drained: Triton was killed; what was in flight is lost",
            file=sys.stderr,
        )
        return INTERRUPTED
    _say("stopped")
    return DONE


def _announce(server: TritonServer) -> None:
    endpoints = f"grpc {server.grpc_url}  http {server.http_url}  metrics {server.metrics_url}"
    for name, version in server.served_models():
        _say(f"serving {name} (version {version})  {endpoints}")
    _say("ready; Ctrl-C drains and stops")


def _say(line: str) -> None:
    """Prints a line, and goes on where nobody reads any more, also when the interpreter flushes at its end."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """Returns the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="tritonpress-serve",
        description="Serve a model repository with the embedded Triton; Ctrl-C drains and stops, a second one kills.",
    )
    parser.add_argument("repository", metavar="REPO", help="model repository, as `tritonpress build` writes it")
    parser.add_argument("--host", default="127.0.0.1", help="address of all endpoints (default %(default)s)")
    parser.add_argument("--grpc-port", type=_port, default=8001, help="default %(default)s; 0 chooses a free one")
    parser.add_argument("--http-port", type=_port, default=8000, help="default %(default)s; 0 chooses a free one")
    parser.add_argument("--metrics-port", type=_port, default=8002, help="default %(default)s; 0 chooses a free one")
    parser.add_argument(
        "--model", action="append", dest="models", metavar="NAME", help="serve this model alone; may be repeated"
    )
    parser.add_argument("--log", metavar="FILE", help="append Triton's log to this file")
    parser.add_argument(
        "--startup-timeout", type=float, default=120.0, metavar="S", help="seconds for loading (default %(default)g)"
    )
    _add_settings(parser.add_argument_group("operation"))
    return parser


def _add_settings(group: argparse._ArgumentGroup) -> None:
    """Adds an option for each field of the settings."""
    defaults = Settings()

    def add(name: str, text: str, **more: Any) -> None:
        option, default = "--" + name.replace("_", "-"), getattr(defaults, name)
        if isinstance(default, bool):
            group.add_argument(option, action="store_true", help=text)
        else:
            kind = int if isinstance(default, int) else str
            text += "" if default is None else " (default %(default)s)"
            group.add_argument(option, type=kind, default=default, help=text, **more)

    add("model_control", "whether it takes orders, follows the repository's files, or neither", choices=MODES)
    add("poll_s", "how often it looks at the files, with --model-control poll", metavar="S")
    add("cache_mib", "memory for answers, where a recipe has response_cache", metavar="MIB")
    add("drain_s", "how long it waits for requests in flight when it is told to stop", metavar="S")
    add("trace_file", "gets the moments of traced requests, as JSON", metavar="FILE")
    add("trace_url", "an OpenTelemetry collector that gets them, such as http://host:4318/v1/traces", metavar="URL")
    add("trace_rate", "one request of so many is traced", metavar="N")
    add("log_format", "of the log's timestamps", choices=LOG_FORMATS)
    add("log_verbose", "from 1 on each request is logged", metavar="N")
    add("metrics_summaries", "latencies by quantile too, in the metrics")
    add("tls_certificate", "the server's for gRPC, with --tls-key", metavar="PEM")
    add("tls_key", "of --tls-certificate", metavar="PEM")
    add("tls_client_ca", "clients must show a certificate of these authorities", metavar="PEM")
    add("admin_token_file", "token that model control, statistics and shared memory then need", metavar="FILE")


def _port(text: str) -> int | None:
    try:
        port = int(text)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be in [1, 65535], or 0 for a free port, got {text!r}")
    return port or None


if __name__ == "__main__":
    sys.exit(main())
