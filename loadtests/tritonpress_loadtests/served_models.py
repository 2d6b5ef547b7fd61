"""How the server's models are configured: what a plan must know of them, and what tells two repositories apart."""

from __future__ import annotations

import hashlib
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_client import Connection


def served_models(connection: Connection) -> dict[str, dict[str, Any]]:
    """Returns by model what its config says; ensembles have 0 instances.

    Keys: `instances`, `max_batch_size`, `queue_delay_us`, `batched`, `kind`, `config_sha256`.

    Raises:
        TritonpressError: The server does not answer, or guards what it has.
    """
    models = {}
    for name in sorted({status.name for status in connection.models() if status.ready}):
        config = connection.model_config(name)
        kinds = sorted({group.Kind.Name(group.kind).removeprefix("KIND_") for group in config.instance_group})
        models[name] = {
            "instances": instances(config),
            "max_batch_size": config.max_batch_size,
            "queue_delay_us": config.dynamic_batching.max_queue_delay_microseconds,
            "batched": config.HasField("dynamic_batching"),
            "kind": ", ".join(kinds),
            "config_sha256": hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest(),
        }
    return models


def instances(config: pb.ModelConfig) -> int:
    """Returns how many executions of a model run at the same time, by its config as a server gives it."""
    # Triton has filled in which GPUs a group is on, and has `count` on each.
    return sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)


def repository_sha256(models: dict[str, dict[str, Any]], *, without_instances: bool = False) -> str:
    """Returns one hash of all models' names and configs, or of what of these is not the number of instances.

    Names of the steps carry a hash of their content; how their batchers are set is in the config alone.
    """
    keys = ("max_batch_size", "batched", "queue_delay_us") if without_instances else ("config_sha256",)
    told = sorted(" ".join([name, *(str(entry[key]) for key in keys)]) for name, entry in models.items())
    return hashlib.sha256("\n".join(told).encode()).hexdigest()
