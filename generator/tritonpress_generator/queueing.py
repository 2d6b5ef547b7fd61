"""What a recipe says of waiting, as Triton's configs have it: queue policies, priorities, the rate limiter."""

from __future__ import annotations

from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.recipe_text import QueuePolicy, ServeConfig

_ACTIONS = {"reject": pb.ModelQueuePolicy.REJECT, "delay": pb.ModelQueuePolicy.DELAY}


def add_queue(config: pb.ModelConfig, serve: ServeConfig) -> None:
    """Adds the dynamic batcher of the step where the work is done, if the recipe has one, and the rate limiter."""
    if serve.dynamic_batching:
        batching = config.dynamic_batching
        batching.max_queue_delay_microseconds = serve.max_queue_delay_microseconds
        batching.preferred_batch_size.extend(serve.preferred_batch_size)
        batching.SetInParent()
        add_priorities(config, serve)
        if (policy := _policy(serve.queue)).ByteSize():
            batching.default_queue_policy.CopyFrom(policy)
        for level, policy in sorted(serve.queue.by_priority.items()):
            batching.priority_queue_policy[level].CopyFrom(_policy(policy))
    if serve.rate_limiter is not None:
        for group in config.instance_group:
            group.rate_limiter.priority = serve.rate_limiter.priority
            for name, count in serve.rate_limiter.resources.items():
                # `global` is a word of Python.
                group.rate_limiter.resources.add(**{"name": name, "global": True, "count": count})


def add_priorities(config: pb.ModelConfig, serve: ServeConfig) -> None:
    """Lets a step that batches take requests by their priority."""
    if serve.queue.priority_levels > 1:
        config.dynamic_batching.priority_levels = serve.queue.priority_levels
        config.dynamic_batching.default_priority_level = (
            serve.queue.default_priority_level or serve.queue.priority_levels
        )


def instances_of(serve: ServeConfig, asked: int) -> int:
    """Returns how many instances a step of little work has: two at least with priorities, for `may_idle`."""
    return max(asked, 2) if serve.queue.priority_levels > 1 else asked


def may_idle(config: pb.ModelConfig) -> bool:
    """Says whether Triton may leave the model idle for up to half a second while requests wait.

    With priorities, time limits or a limit on the queue its batcher forms a batch when an instance waits for one, and
    is not woken by an only one that has just become free; seen with Triton 2.51 (docs/operations.md).
    """
    batching = config.dynamic_batching
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    limited = any(p.max_queue_size or p.default_timeout_microseconds or p.allow_timeout_override for p in policies)
    instances = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
    return bool((limited or batching.priority_levels > 0) and instances == 1)


def _policy(policy: QueuePolicy) -> pb.ModelQueuePolicy:
    return pb.ModelQueuePolicy(
        timeout_action=_ACTIONS[policy.timeout_action],
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )
