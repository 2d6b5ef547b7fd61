"""tritonserver's command line in the container."""

from __future__ import annotations

from pathlib import PurePosixPath

from tritonpress_server import Settings
from tritonpress_server.launch import shared_options
from tritonpress_server.settings import guard_options, tls_options

from tritonpress_generator.deploy.image import GUARDED
from tritonpress_generator.deploy.image_files.guarded import PLACE
from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import (
    DRAIN_S,
    GRPC,
    HTTP,
    METRICS,
    STOP_S,
    TLS_FOLDER,
    TOKEN_FILE,
)
from tritonpress_generator.deploy.settings import Settings as Wanted
from tritonpress_generator.plans import pending

MODELS = PurePosixPath("/models/repository")
EXECUTION_ENV_CONFIG = "container"
"""The name of the configs that say where the packed environment is."""
QUANTILES = (0.5, 0.9, 0.99)
_EXIT_S = 10
"""To unload the models, after what is in flight has been answered."""


def command(served: Served, wanted: Wanted) -> list[str]:
    """Returns the command: what `tritonpress-serve` runs on the same repository, and what production adds.

    Added are quantiles of latency among the metrics (Triton's histograms are of decoupled models alone) and, where they
    are asked for, configs that name a packed environment, and the certificates of gRPC. Where it is guarded, a small
    program comes before, which puts the secret's token into its place.
    """
    ports = {"grpc": GRPC, "http": HTTP, "metrics": METRICS}
    settings = Settings(metrics_summaries=True, drain_s=STOP_S - DRAIN_S - _EXIT_S)
    quantiles = ",".join(f"{quantile}:{min(quantile, 1 - quantile) / 10:.3g}" for quantile in QUANTILES)
    added = [f"--metrics-config=summary_quantiles={quantiles}"]
    added += pending.serving_options(served.plans.values())
    if wanted.execution_env:
        added.append(f"--model-config-name={EXECUTION_ENV_CONFIG}")
    if wanted.tls_files:
        added += tls_options(*(f"{TLS_FOLDER}/{name}" for name in wanted.tls_files))
    shared = shared_options(MODELS, host="0.0.0.0", ports=ports)
    line = ["tritonserver", *shared, *settings.arguments(served.repository, list(served.asked_for)), *added]
    return [*GUARDED, TOKEN_FILE, *line, *guard_options(PLACE)] if wanted.guarded else line
