"""What is set of a server beside its repository, in one place: each field is an option of `tritonpress-serve`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

from tritonpress_server.errors import SettingsError
from tritonpress_server.resting import files

_TRUE_CACHE = re.compile(r"response_cache\s*:?\s*{\s*enable\s*:\s*(true|1)\b")
_RATE_LIMITER = re.compile(r"rate_limiter\s*:?\s*{")
MODES = ("explicit", "poll", "none")
LOG_FORMATS = ("default", "ISO8601")
ADMIN_HEADER = "tritonpress-admin"
GUARDED = ("model-repository", "statistics", "shared-memory", "trace", "logging")
"""Triton's names of what a token is asked for."""
_TOKEN = re.compile(r"[\w.~-]{16,}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked when made.

    Raises:
        SettingsError: A value is out of range, or two of them cannot work together.
    """

    model_control: str = "explicit"
    """`explicit`: serves what it is given at the start, and takes orders (`promote --server`); `poll`: follows the
    repository's files; `none`: neither."""
    poll_s: int = 15
    """How often a server that polls looks at the files, in seconds."""
    cache_mib: int = 64
    """Of memory for answers, where a model's config asks for the response cache."""
    drain_s: int = 30
    """How long a server that is told to stop waits for requests in flight."""
    trace_file: str | None = None
    """Gets the moments of each step of traced requests, as JSON."""
    trace_url: str | None = None
    """An OpenTelemetry collector (OTLP over HTTP) that gets them as spans."""
    trace_rate: int = 1000
    """One request of so many is traced."""
    log_format: str = "default"
    """`default`, or `ISO8601`: timestamps as other services write them."""
    log_verbose: int = 0
    """0: what is worth reading; from 1 on each request."""
    metrics_summaries: bool = False
    """Latencies by quantile too, as this server computes them: they cannot be added over servers. (Triton's histograms,
    which could, exist for decoupled models alone.)"""

    tls_certificate: str | None = None
    """Of the server for gRPC, PEM with its chain; with `tls_key`. (Triton's HTTP endpoint has no TLS.)"""
    tls_key: str | None = None
    """Of `tls_certificate`, PEM."""
    tls_client_ca: str | None = None
    """Clients must show a certificate of these authorities, PEM (mutual TLS)."""
    admin_token_file: str | None = None
    """Its token is then asked of whoever loads models, reads statistics, maps shared memory, or changes traces and
    logs; inference, metadata and health stay open. gRPC wants it as `triton-grpc-protocol-tritonpress-admin`, HTTP as
    `tritonpress-admin`. tritonserver takes it on its command line alone, which every user of the host can read (`ps`)
    unless `/proc` is mounted with `hidepid=2`."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("poll_s", 1, 86_400),
            ("cache_mib", 1, 2**20),
            ("drain_s", 0, 86_400),
            ("trace_rate", 1, 2**31 - 1),
            ("log_verbose", 0, 9),
        ):
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"{name} must be in [{least}, {most}], got {getattr(self, name)}")
        for name, allowed in (("model_control", MODES), ("log_format", LOG_FORMATS)):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.trace_file and self.trace_url:
            raise SettingsError(
                "trace_file and trace_url exclude one another: Triton traces in one mode; leave one out"
            )
        defaults = {field.name: field.default for field in fields(self)}
        if self.poll_s != defaults["poll_s"] and self.model_control != "poll":
            raise SettingsError(f"poll_s goes with model_control poll, got {self.model_control}; leave one out")
        if self.trace_rate != defaults["trace_rate"] and not (self.trace_file or self.trace_url):
            raise SettingsError("trace_rate goes with trace_file or trace_url; give one, or leave it out")
        self._check_security()

    def _check_security(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("tls_certificate and tls_key belong together; give both, or leave both out")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError("tls_client_ca goes with tls_certificate and tls_key; give them, or leave it out")
        for name in ("tls_certificate", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            if path is not None and "-----BEGIN" not in _read(name, path):
                raise SettingsError(f"{name} must be a PEM file, {path} is none; convert it, as with openssl")
        self.admin_headers()

    def admin_headers(self) -> dict[str, str]:
        """Returns the headers by which HTTP's guarded endpoints are asked; none where they are open.

        Raises:
            SettingsError: The file cannot be read, or holds no token.
        """
        if self.admin_token_file is None:
            return {}
        token = _read("admin_token_file", self.admin_token_file).strip()
        if not _TOKEN.fullmatch(token):
            raise SettingsError(
                f"admin_token_file {self.admin_token_file} must hold one token of 16 or more letters, digits and -._~;"
                " make one with: openssl rand -hex 32"
            )
        return {ADMIN_HEADER: token}

    def arguments(self, repository: Path, models: list[str]) -> list[str]:
        """Returns tritonserver's options.

        Args:
            repository: Its configs say whether there must be a response cache and a rate limiter, which Triton would
                otherwise pass over without a word.
            models: What is loaded at the start; a server that polls, or takes no orders, loads all there is.
        """
        configs = [path.read_text(encoding="utf-8", errors="replace") for path in files(repository, "*/config.pbtxt")]
        options = [f"--model-control-mode={self.model_control}", f"--exit-timeout-secs={self.drain_s}"]
        if self.model_control == "explicit":
            options += [f"--load-model={name}" for name in models]
        if self.model_control == "poll":
            options.append(f"--repository-poll-secs={self.poll_s}")
        if any(map(_TRUE_CACHE.search, configs)):
            options.append(f"--cache-config=local,size={self.cache_mib * 2**20}")
        if any(map(_RATE_LIMITER.search, configs)):
            options.append("--rate-limit=execution_count")
        return options + self._secured() + self._observed()

    def _secured(self) -> list[str]:
        """Returns the options of TLS and of who may do what."""
        options = []
        if self.tls_certificate and self.tls_key:
            options += tls_options(self.tls_certificate, self.tls_key, self.tls_client_ca)
        for token in self.admin_headers().values():
            options += guard_options(token)
        return options

    def _observed(self) -> list[str]:
        """Returns the options of logs, traces and metrics."""
        options = []
        if self.log_format != "default":
            options.append(f"--log-format={self.log_format}")
        if self.log_verbose:
            options.append(f"--log-verbose={self.log_verbose}")
        if self.trace_file:
            options.append(f"--trace-config=triton,file={self.trace_file}")
        if self.trace_url:
            options += ["--trace-config=mode=opentelemetry", f"--trace-config=opentelemetry,url={self.trace_url}"]
        if self.trace_file or self.trace_url:
            options += [f"--trace-config=rate={self.trace_rate}", "--trace-config=level=TIMESTAMPS"]
        if self.metrics_summaries:
            options.append("--metrics-config=summary_latencies=true")
        return options


def guard_options(token: str) -> list[str]:
    """Returns tritonserver's options that make it ask for a token; see `Settings.admin_token_file`."""
    guarded = f"{','.join(GUARDED)}:{ADMIN_HEADER}={token}"
    return [f"--grpc-restricted-protocol={guarded}", f"--http-restricted-api={guarded}"]


def tls_options(certificate: str, key: str, client_ca: str | None = None) -> list[str]:
    """Returns tritonserver's options of TLS on gRPC; see `Settings.tls_certificate`, `tls_key` and `tls_client_ca`."""
    options = ["--grpc-use-ssl=1", f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}"]
    if client_ca:
        options += ["--grpc-use-ssl-mutual=1", f"--grpc-root-cert={client_ca}"]
    return options


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SettingsError(f"{name} must be a file that can be read, {path} cannot: {error.strerror}") from error
