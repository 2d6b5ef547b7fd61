"""What can be turned in the configs of a build without building it again.

Lengths are no knob: `build` chooses between them by measurement, and each is another engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import builds, plugins
from tritonpress_generator.queueing import may_idle

Value = tuple[int, ...]
Setting = Mapping[str, Value]
"""The knobs' values, by key."""
Configs = dict[str, pb.ModelConfig]
"""By the model's name, or its role in a build."""

_THREADS = ("intra_op_thread_count", "INFERENCE_NUM_THREADS")
"""The parameters by which engines are told their threads."""
_DELAYS_US = (0, 500, 1000, 2000, 4000, 8000)
_DELAY_SHARE = 0.25
"""Of the limit on the latency: what waits longer for companions has no time left for the work."""
_LEAST_BATCH = 8
"""Requests of so many elements go on being served: their number is part of what clients rely on."""
_GPU_INSTANCES = (1, 2, 3, 4)
_ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Kind:
    """A sort of knob."""

    read: Callable[[pb.ModelConfig], Value]
    write: Callable[[pb.ModelConfig, Value], None]
    words: Callable[[Value], str]


def _read_instances(config: pb.ModelConfig) -> Value:
    count = sum(group.count for group in config.instance_group)
    parameter = _threads_parameter(config)
    return (count, int(config.parameters[parameter].string_value)) if parameter else (count,)


def _write_instances(config: pb.ModelConfig, value: Value) -> None:
    del config.instance_group[1:]
    config.instance_group[0].count = value[0]
    if parameter := _threads_parameter(config):
        config.parameters[parameter].string_value = str(value[1])


def _threads_parameter(config: pb.ModelConfig) -> str | None:
    return next((name for name in _THREADS if name in config.parameters), None)


def sizing(config: pb.ModelConfig) -> dict[str, int]:
    """Returns an engine's instances, and threads if it is told them, as a recipe's engine is told them."""
    parameter = _threads_parameter(config)
    names = ["instances", *([parameter.lower()] if parameter else [])]
    return dict(zip(names, _read_instances(config), strict=True))


def _instances_words(value: Value) -> str:
    if len(value) == 1:
        return f"instances {value[0]}"
    return f"instances {value[0]} of {value[1]} thread{'s' if value[1] > 1 else ''}"


def _read_preferred(config: pb.ModelConfig) -> Value:
    return tuple(config.dynamic_batching.preferred_batch_size)


def _write_preferred(config: pb.ModelConfig, value: Value) -> None:
    config.dynamic_batching.preferred_batch_size[:] = value


def _write_batch(config: pb.ModelConfig, value: Value) -> None:
    config.max_batch_size = value[0]
    kept = [size for size in config.dynamic_batching.preferred_batch_size if size <= value[0]]
    if kept != list(config.dynamic_batching.preferred_batch_size):
        config.dynamic_batching.preferred_batch_size[:] = kept


def _write_delay(config: pb.ModelConfig, value: Value) -> None:
    config.dynamic_batching.max_queue_delay_microseconds = value[0]


def _write_cache(config: pb.ModelConfig, value: Value) -> None:
    config.ClearField("response_cache")
    if value[0]:
        config.response_cache.enable = True


KINDS: dict[str, Kind] = {
    "instances": Kind(_read_instances, _write_instances, _instances_words),
    "batch": Kind(lambda config: (config.max_batch_size,), _write_batch, lambda value: f"batches to {value[0]}"),
    "delay": Kind(
        lambda config: (config.dynamic_batching.max_queue_delay_microseconds,),
        _write_delay,
        lambda value: f"queue delay {value[0]:,} µs",
    ),
    "preferred": Kind(
        _read_preferred,
        _write_preferred,
        lambda value: f"preferred sizes {', '.join(map(str, value)) or 'none'}",
    ),
    "cache": Kind(
        lambda config: (int(config.response_cache.enable),),
        _write_cache,
        lambda value: f"response cache {'on' if value[0] else 'off'}",
    ),
}


@dataclass(frozen=True)
class Knob:
    """One knob of one workload."""

    workload: str
    role: str
    """Of the step, or `ensemble`."""
    kind: str
    models: tuple[str, ...]
    """Whose configs it turns."""
    now: Value
    values: tuple[Value, ...]
    """All that are tried, `now` among them."""

    @property
    def key(self) -> str:
        """What settings call it."""
        return f"{self.workload}.{self.role}.{self.kind}"

    def words(self, value: Value) -> str:
        """Returns a value in few words."""
        said = KINDS[self.kind].words(value)
        return said if self.role in {"model", "engine", _ENSEMBLE} else f"{self.role} {said}"


def knobs(
    configs: Configs,
    steps: Mapping[str, str],
    *,
    workload: str,
    engine: str,
    cores: int,
    p99_ms: float,
    preferred: Sequence[int] = (),
    cache: bool = False,
) -> list[Knob]:
    """Returns the knobs of a workload's build, those first of which most is to be expected.

    Args:
        configs: Of its ensemble and its steps, by name.
        steps: The steps' names, by role.
        workload: Its name, which is the ensemble's.
        engine: The recipe's word for its engine: what no recipe can tell it is no knob.
        cores: Of the machine that serves.
        p99_ms: The limit on the latency.
        preferred: The sizes for which the engine's profiles are optimised; none for an engine without profiles.
        cache: Whether the response cache is tried.

    Raises:
        InputError: There is no such engine.
    """
    # Where the work is done is where requests wait for companions.
    role = "engine" if "engine" in steps else "model"
    found: list[tuple[str, str, tuple[str, ...], list[Value]]] = []
    told = set(plugins.find("engines", engine, path=workload).Config.model_fields)
    sized = [role] if told.issuperset(sizing(configs[steps[role]])) else []
    for name in [*sized, *(["tokenizer"] if "tokenizer" in steps else [])]:
        config = configs[steps[name]]
        sizings = _sizings(config, KINDS["instances"].read(config), cores)
        found.append((name, "instances", (steps[name],), [value for value in sizings if _may_have(config, value[0])]))
    if configs[steps[role]].HasField("dynamic_batching"):
        batching = configs[steps[role]].dynamic_batching
        most_us = _DELAY_SHARE * p99_ms * 1000
        # Whoever times out first would never be served.
        timeouts = [p.default_timeout_microseconds for p in _policies(batching) if p.default_timeout_microseconds]
        delays: list[Value] = [(us,) for us in _DELAYS_US if us <= most_us and us < min(timeouts, default=us + 1)]
        found.append((role, "delay", (steps[role],), delays))
        most = configs[steps[role]].max_batch_size
        if preferred:
            sizes = tuple(sorted({size for size in preferred if 1 < size <= most}))
            found.append((role, "preferred", (steps[role],), [(), *([sizes] if sizes else [])]))
        batched = tuple(name for name in (*steps.values(), workload) if configs[name].max_batch_size == most)
        # A step that calls its engine makes padded batches of the size that it was built for (`max_sequences`).
        if not {"engine", "model"} <= steps.keys() or any(i.name == "lengths" for i in configs[steps[role]].input):
            found.append((role, "batch", batched, [(size,) for size in _halves(most) if size >= _LEAST_BATCH]))
    if cache:
        found.append((_ENSEMBLE, "cache", (workload,), [(0,), (1,)]))
    result = []
    for role, kind, models, values in found:
        now = KINDS[kind].read(configs[models[0]])
        result.append(Knob(workload, role, kind, models, now, tuple(dict.fromkeys([now, *values]))))
    return [knob for knob in result if len(knob.values) > 1]


def _may_have(config: pb.ModelConfig, instances: int) -> bool:
    """Says whether a step works with so many: see `queueing.may_idle`, and `rate_limiter` in `recipe.of`."""
    alone = pb.ModelConfig()
    alone.CopyFrom(config)
    for group in alone.instance_group:
        group.count = instances
    limited = any(group.HasField("rate_limiter") for group in config.instance_group)
    return not may_idle(alone) and (instances == 1 or not limited)


def _sizings(config: pb.ModelConfig, now: Value, cores: int) -> list[Value]:
    """Returns instances, with threads where the engine is told them: in all a thread more than there are cores at most.

    Instances that each take all cores slow each other down.
    """
    if any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group):
        return [(count,) for count in _GPU_INSTANCES]
    counts = range(1, min(cores, 16) + 2)
    if len(now) == 1:
        return [(count,) for count in counts]
    return [(count, threads) for count in counts for threads in _halves(cores) if count * threads <= cores + 1]


def _halves(most: int) -> list[int]:
    """Returns `most`, its half and so on."""
    return [most >> shift for shift in range(most.bit_length())]


def _policies(batching: pb.ModelDynamicBatching) -> Iterator[pb.ModelQueuePolicy]:
    yield batching.default_queue_policy
    yield from batching.priority_queue_policy.values()


def read_configs(repository: Path, manifest: Mapping[str, Any], workload: str) -> Configs:
    """Returns the configs of the workload's ensemble and its steps as they lie in the repository, by name.

    Raises:
        InputError: One cannot be read.
    """
    return {name: builds.read_config(repository / name) for name in (*manifest["steps"].values(), workload)}


def changed(configs: Configs, turned: Sequence[Knob], setting: Setting) -> Configs:
    """Returns copies of those configs that differ under a setting."""
    result: Configs = {}
    for knob in turned:
        value = setting[knob.key]
        for name in knob.models:
            if KINDS[knob.kind].read(result.get(name, configs[name])) != value:
                if name not in result:
                    result[name] = pb.ModelConfig()
                    result[name].CopyFrom(configs[name])
                KINDS[knob.kind].write(result[name], value)
    return {name: config for name, config in result.items() if config != configs[name]}


def words(turned: Sequence[Knob], setting: Setting, than: Setting | None = None) -> str:
    """Returns a setting in words, without what another has too."""
    several = len({knob.workload for knob in turned}) > 1
    said = [
        (f"{knob.workload} " if several else "") + knob.words(setting[knob.key])
        for knob in turned
        if than is None or setting[knob.key] != than[knob.key]
    ]
    return ", ".join(said) or "as it is"
