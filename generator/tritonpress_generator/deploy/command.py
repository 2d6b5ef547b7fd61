"""tritonserver's command line in the container."""

from __future__ import annotations

from pathlib import PurePosixPath

from tritonpress_server.launch import shared_options

from tritonpress_generator.deploy.served import Served
from tritonpress_generator.deploy.settings import GRPC, HTTP, METRICS

MODELS = PurePosixPath("/models/repository")
EXECUTION_ENV_CONFIG = "container"
"""The name of the configs that say where the packed environment is."""
QUANTILES = (0.5, 0.9, 0.99)


def command(served: Served, *, execution_env: bool) -> list[str]:
    """Returns the command: what `tritonpress-serve` runs on the same repository, and what production adds.

    Added are quantiles of latency among the metrics (Triton's histograms are of decoupled models alone) and, where they
    are asked for, configs that name a packed environment.
    """
    ports = {"grpc": GRPC, "http": HTTP, "metrics": METRICS}
    quantiles = ",".join(f"{quantile}:{min(quantile, 1 - quantile) / 10:.3g}" for quantile in QUANTILES)
    added = ["--metrics-config=summary_latencies=true", f"--metrics-config=summary_quantiles={quantiles}"]
    if any(stamp.get("version_compatible") for stamp in served.plans.values()):
        added.append("--backend-config=tensorrt,version-compatible=true")
    if execution_env:
        added.append(f"--model-config-name={EXECUTION_ENV_CONFIG}")
    return ["tritonserver", *shared_options(MODELS, host="0.0.0.0", ports=ports, models=served.models), *added]
