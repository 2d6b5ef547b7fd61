"""`tritonpress deploy`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

_PORTS = {"grpc": 8001, "https": 8443, "prometheus": 9090, "grafana": 3000}
_SETTINGS = (
    "release", "name", "image", "bundle", "bundle_sha256", "plan", "p99_ms", "mig", "execution_env", "guarded",
    "grpc_tls",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser("deploy", help="write image, compose file and Kubernetes manifests for a repository")
    parser.add_argument("repository", type=Path, help="as `tritonpress build` writes it")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or one that an earlier deploy wrote")
    parser.add_argument(
        "--release", metavar="YY.MM", help="of NVIDIA's Triton container (default: the newest that fits)"
    )
    parser.add_argument("--name", default="tritonpress", help="of the namespace and its objects (default: %(default)s)")
    parser.add_argument("--image", default="tritonpress", help="its name, with its registry (default: %(default)s)")
    parser.add_argument("--bundle", metavar="URL", help="s3:// or gs:// of the packed repository (default: a volume)")
    parser.add_argument("--bundle-sha256", metavar="HEX", help="of the bundle that the pods take (default: any)")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="plan.json of tritonpress-load plan")
    parser.add_argument("--p99-ms", type=float, metavar="M", help="limit of the alerts (default: the plan's, or 100)")
    parser.add_argument("--mig", default="1g.10gb", metavar="PROFILE", help="of the overlay mig (default: %(default)s)")
    parser.add_argument("--execution-env", type=Path, metavar="FILE", help="conda-pack for the Python steps")
    parser.add_argument(
        "--no-admin-token",
        dest="guarded",
        action="store_false",
        help="model control, statistics and shared memory for whoever reaches gRPC (default: for a secret's token)",
    )
    parser.add_argument(
        "--grpc-tls",
        choices=("server", "mutual"),
        help="gRPC with a certificate of the server's, or of both sides (default: none)",
    )
    for endpoint, port in _PORTS.items():
        parser.add_argument(
            f"--{endpoint}-port", type=int, default=port, metavar="N", help="of compose (default: %(default)s)"
        )


def run(options: argparse.Namespace) -> None:
    """Writes, and prints what comes next.

    Raises:
        InputError: See `deploy`.
    """
    from tritonpress_generator.deploy import deploy
    from tritonpress_generator.deploy.settings import Ports, Settings

    ports = Ports(**{endpoint: getattr(options, f"{endpoint}_port") for endpoint in _PORTS})
    settings = Settings(ports=ports, **{name: getattr(options, name) for name in _SETTINGS})
    done = deploy(options.repository, options.out, settings)
    out = os.fspath(done.out)
    print(f"wrote {out}: image {done.image} on Triton {done.release}; overlays {', '.join(done.overlays)}")
    for note in done.notes:
        print(f"note: {note}")
    print(f"image: docker build -t {done.image} {out}/image")
    print(f"one machine: docker compose -f {out}/compose/compose.yaml up (secrets: docs/deploy.md)")
    if options.bundle:
        print(f"bundle: tritonpress pack {os.fspath(done.repository)} FILE, and copy it to {options.bundle}")
    if options.guarded:
        print(
            f"admin token: compose/secrets/admin_token, and in the cluster kubectl -n {options.name} create secret"
            f" generic {options.name}-admin --from-file=token=FILE; promote --admin-token-file FILE sends it"
        )
    if options.grpc_tls:
        files = ", ".join(settings.tls_files)
        print(
            f"gRPC's certificates: {files} in compose/secrets, and in the cluster as the keys of secret"
            f" {options.name}-grpc-tls, as cert-manager writes it"
        )
    print(f"cluster: kubectl apply -k {out}/kubernetes/overlays/{done.overlays[0]}")
