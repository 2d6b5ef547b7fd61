"""What an operator chooses, and the one place of every name, port and image that the generated files share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tritonpress_generator.errors import InputError

GRPC, HTTP, METRICS = 8001, 8000, 8002
"""Triton's ports in the container, its own defaults."""
USER = 10001
"""Who everything of ours runs as: nobody's number on a host."""
EXECUTION_ENV = "/opt/tritonpress/execution_env.tar.gz"
"""Where the image has the packed environment of `--execution-env`."""
TOKEN_FILE = "/run/tritonpress/admin_token"
"""Where the container has the token that model control, statistics and shared memory are asked with."""
TLS_FOLDER = "/run/tritonpress-tls"
"""Where the container has the certificates of gRPC, one file each, as a TLS secret of Kubernetes names its keys."""
CERTIFICATE, KEY, CLIENT_CA = "tls.crt", "tls.key", "ca.crt"
GRPC_TLS = {"server": (CERTIFICATE, KEY), "mutual": (CERTIFICATE, KEY, CLIENT_CA)}
"""The files that each kind of TLS needs: with "mutual", clients must show a certificate of `CLIENT_CA` too."""
DRAIN_S, STOP_S = 10, 60
"""How long balancers have to learn that a server goes, and how long it has in all."""

PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
GRAFANA_IMAGE = "grafana/grafana:12.3.1"
PROXY_IMAGE = "caddy:2.10.2-alpine"
S3_IMAGE = "amazon/aws-cli:2.34.48"
GCS_IMAGE = "gcr.io/google.com/cloudsdktool/google-cloud-cli:562.0.0-slim"

_MIG = re.compile(r"[1-9]g\.[1-9]\d{0,2}gb(\.me)?")
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
# What a bucket and an object may be called so that nothing of it means something to a command line.
_BUNDLE = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Ports:
    """What the compose file opens on its host; each is checked to be free here."""

    grpc: int = 8001
    https: int = 8443
    prometheus: int = 9090
    grafana: int = 3000


@dataclass(frozen=True)
class Settings:
    """How a repository is to be run."""

    release: str | None = None
    """Of NVIDIA's container; None for the newest that fits."""
    name: str = "tritonpress"
    """Of the Kubernetes objects, their namespace and the compose project."""
    image: str = "tritonpress"
    """The image's name, with its registry, without a tag."""
    ports: Ports = field(default_factory=Ports)
    bundle: str | None = None
    """`s3://…` or `gs://…`: where the cluster's pods get the packed repository; None for a volume."""
    bundle_sha256: str | None = None
    """Of the bundle that the pods take, and no other; None for whatever lies there."""
    plan: Path | None = None
    """A capacity plan's `plan.json`."""
    p99_ms: float | None = None
    """The limit that alerts and the dashboard hold the p99 to; None for the plan's."""
    mig: str = "1g.10gb"
    """The part of a GPU that the overlay `mig` asks for."""
    execution_env: Path | None = None
    """A packed environment (conda-pack) for the Python steps, in place of packages in the image."""
    guarded: bool = True
    """Whether model control, statistics and shared memory are for those with a token alone."""
    grpc_tls: str | None = None
    """Whether gRPC has TLS: a key of `GRPC_TLS`; None for none."""

    @property
    def tls_files(self) -> tuple[str, ...]:
        """The files in `TLS_FOLDER`."""
        return GRPC_TLS[self.grpc_tls] if self.grpc_tls else ()


def check(settings: Settings) -> None:
    """Refuses names that could not be what they are for.

    Raises:
        InputError: One of them.
    """
    rules = (
        ("--name", settings.name, _NAME, "up to 40 letters, digits and hyphens, such as tritonpress"),
        ("--image", settings.image, _IMAGE, "an image's name without a tag, such as registry.example/tritonpress"),
        ("--mig", settings.mig, _MIG, "a MIG profile such as 1g.10gb"),
        ("--bundle", settings.bundle, _BUNDLE, "s3://BUCKET/KEY or gs://BUCKET/KEY, of letters, digits and ._=-"),
        ("--bundle-sha256", settings.bundle_sha256, _SHA256, "64 hexadecimal digits, as sha256sum prints them"),
    )
    for option, value, allowed, rule in rules:
        if value is not None and not allowed.fullmatch(value):
            raise InputError(f"{option} must be {rule}, got {value!r}")
    if settings.bundle_sha256 and not settings.bundle:
        raise InputError("--bundle-sha256 goes with --bundle; give both, or leave it out")
    if settings.p99_ms is not None and not 0 < settings.p99_ms < 3.6e6:
        raise InputError(f"--p99-ms must be above 0 and below an hour, got {settings.p99_ms:g}")
    if settings.grpc_tls not in (None, *GRPC_TLS):
        raise InputError(f"--grpc-tls must be one of {', '.join(GRPC_TLS)}, got {settings.grpc_tls!r}")
    env = settings.execution_env
    if env is not None and not (env.is_file() and env.name.endswith(".tar.gz")):
        raise InputError(f"--execution-env must be a .tar.gz of conda-pack, got {str(env)!r}, which is none")
