"""Discrete events of many replicas of a Triton model: arrivals, a balancer, dynamic batchers, instances.

A replica has one queue, first in, first out, and a number of instances. A free instance takes up to `max_batch`
requests at once; where the queue is shorter, the batcher waits until its oldest request has waited for `delay_s`, as
Triton's does. An execution of b requests takes `fixed_s + per_row_s * b`, times the mean of b factors drawn for the
requests, so that long texts take longer and batches even them out, and times what so many busy instances cost that
share cores. Compiled by numba: millions of requests a second on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
POLICIES = ("random", "round_robin", "two_choices", "least_loaded")


@dataclass(frozen=True)
class Replica:
    """How one replica serves; times in seconds."""

    instances: int
    max_batch: int
    fixed_s: float
    per_row_s: float
    delay_s: float = 0.0
    slowdown: tuple[float, ...] = ()
    """How many times longer an execution takes that begins as the first, second, … of the instances; default: none."""


@dataclass(frozen=True)
class Outage:
    """Replicas `first` to before `last` take no requests from `from_s` to `to_s`.

    With `lost` what they hold fails, as with a zone that is lost; without, they finish it, as in a rolling update.
    """

    first: int
    last: int
    from_s: float
    to_s: float
    lost: bool


def simulate(due_s: Floats, factors: Floats, replica: Replica, **pool: Any) -> Floats:
    """Returns the time of each request in the system in s, NaN where it failed: the first of `simulate_queues`."""
    return simulate_queues(due_s, factors, replica, **pool)[0]


def simulate_queues(
    due_s: Floats,
    factors: Floats,
    replica: Replica,
    *,
    replicas: int = 1,
    policy: str = "random",
    outages: tuple[Outage, ...] = (),
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Returns the time of each request in the system in s, and what of it it waited; NaN where it failed.

    Args:
        due_s: When requests arrive, ascending.
        factors: Each request's share in the time of its execution, 1 in the mean.
        replica: What all replicas are.
        replicas: How many.
        policy: Of the balancer: one of `POLICIES`; `two_choices` asks the less loaded of two drawn (Mitzenmacher 2001).
        outages: What is taken away for a time.
        seed: Fixes the balancer's draws.
    """
    changes = sorted(
        [(outage.from_s, 1 if outage.lost else 0, outage.first, outage.last) for outage in outages]
        + [(outage.to_s, 2, outage.first, outage.last) for outage in outages]
    )
    table = np.array(changes, np.float64).reshape(-1, 4)
    times_s, waits_s = _run(
        np.ascontiguousarray(due_s, np.float64),
        np.ascontiguousarray(factors, np.float64),
        replicas,
        replica.instances,
        replica.max_batch,
        replica.fixed_s,
        replica.per_row_s,
        replica.delay_s,
        np.array(replica.slowdown or (1.0,) * replica.instances, np.float64),
        POLICIES.index(policy),
        table,
        seed,
    )
    return times_s, waits_s


@numba.njit(cache=True)
def _push(heap_s, heap_what, size, at_s, what):  # type: ignore[no-untyped-def] # pragma: no cover
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if heap_s[parent] <= at_s:
            break
        heap_s[place], heap_what[place] = heap_s[parent], heap_what[parent]
        place = parent
    heap_s[place], heap_what[place] = at_s, what
    return size + 1


@numba.njit(cache=True)
def _pop(heap_s, heap_what, size):  # type: ignore[no-untyped-def] # pragma: no cover
    size -= 1
    at_s, what = heap_s[size], heap_what[size]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap_s[child + 1] < heap_s[child]:
            child += 1
        if at_s <= heap_s[child]:
            break
        heap_s[place], heap_what[place] = heap_s[child], heap_what[child]
        place = child
    heap_s[place], heap_what[place] = at_s, what
    return size


@numba.njit(cache=True)
def _choose(policy, replicas, load, up, turn):  # type: ignore[no-untyped-def] # pragma: no cover
    """Returns the replica of the next request, -1 where none is up; `turn` is whose turn it is."""
    if policy == 3:
        best = -1
        first = np.random.randint(replicas)  # ties are broken at random
        for step in range(replicas):
            other = (first + step) % replicas
            if up[other] and (best < 0 or load[other] < load[best]):
                best = other
                if load[best] == 0:
                    break
        return best
    if policy == 1:
        for step in range(replicas):
            if up[(turn + step) % replicas]:
                return (turn + step) % replicas
        return -1
    one = _draw(replicas, up)
    if policy == 2 and one >= 0:
        other = _draw(replicas, up)
        if load[other] < load[one]:
            return other
    return one


@numba.njit(cache=True)
def _draw(replicas, up):  # type: ignore[no-untyped-def] # pragma: no cover
    """Returns a replica that is up at random, -1 where none is."""
    for _ in range(64):
        one = np.random.randint(replicas)
        if up[one]:
            return one
    # Hardly any is up: a draw among those, one by one.
    left = 0
    found = -1
    for one in range(replicas):
        if up[one]:
            left += 1
            if np.random.randint(left) == 0:
                found = one
    return found


@numba.njit(cache=True)
def _run(  # type: ignore[no-untyped-def] # noqa: PLR0912, PLR0913, PLR0915, PLR0917 # pragma: no cover
    due_s, factors, replicas, instances, max_batch, fixed_s, per_row_s, delay_s, slowdown, policy, changes, seed
):
    # In one piece: divided into functions that share the arrays through a tuple it was measured to be six times slower.
    np.random.seed(seed)
    count = len(due_s)
    result = np.full(count, np.nan)
    waits = np.full(count, np.nan)
    # A replica's queue is a list through `following`; what an instance executes is such a list too.
    following = np.full(count, -1, np.int64)
    head = np.full(replicas, -1, np.int64)
    tail = np.full(replicas, -1, np.int64)
    queued = np.zeros(replicas, np.int64)
    load = np.zeros(replicas, np.int64)
    free = np.full(replicas, instances, np.int64)
    up = np.ones(replicas, np.bool_)
    lost_at_s = np.full(replicas, -1.0)
    armed = np.zeros(replicas, np.bool_)
    running = np.full(replicas * instances, -1, np.int64)
    running_since_s = np.zeros(replicas * instances)
    idle = np.arange(replicas * instances).reshape(replicas, instances).copy()
    capacity = replicas * instances + replicas + 1
    heap_s = np.empty(capacity)
    heap_what = np.empty(capacity, np.int64)
    size = 0
    slots = replicas * instances
    arrival = 0
    change = 0
    turn = 0
    while True:
        arrival_s = due_s[arrival] if arrival < count else np.inf
        event_s = heap_s[0] if size else np.inf
        change_s = changes[change, 0] if change < len(changes) else np.inf
        if arrival_s == np.inf and event_s == np.inf:
            break
        if change_s <= arrival_s and change_s <= event_s:
            kind = int(changes[change, 1])
            for which in range(int(changes[change, 2]), int(changes[change, 3])):
                up[which] = kind == 2
                if kind == 1:
                    lost_at_s[which] = change_s
                    head[which] = tail[which] = -1
                    load[which] -= queued[which]
                    queued[which] = 0
            change += 1
            continue
        if event_s <= arrival_s:
            now_s, what = event_s, heap_what[0]
            size = _pop(heap_s, heap_what, size)
            if what < slots:
                which = what // instances
                request = running[what]
                failed = lost_at_s[which] >= running_since_s[what]
                while request >= 0:
                    if not failed:
                        result[request] = now_s - due_s[request]
                    load[which] -= 1
                    request = following[request]
                idle[which, free[which]] = what
                free[which] += 1
            else:
                which = what - slots
                armed[which] = False
        else:
            now_s = arrival_s
            which = 0 if replicas == 1 and up[0] else _choose(policy, replicas, load, up, turn)
            turn = which + 1
            request = arrival
            arrival += 1
            if which < 0:
                continue
            if tail[which] >= 0:
                following[tail[which]] = request
            else:
                head[which] = request
            tail[which] = request
            queued[which] += 1
            load[which] += 1
        while free[which] and queued[which]:
            first = head[which]
            if queued[which] < max_batch and delay_s > 0 and now_s < due_s[first] + delay_s:
                # One timer a replica is enough: those in the queue are due in its order.
                if not armed[which]:
                    armed[which] = True
                    size = _push(heap_s, heap_what, size, due_s[first] + delay_s, slots + which)
                break
            batch = min(queued[which], max_batch)
            total = 0.0
            last = first
            for step in range(batch):
                if step:
                    last = following[last]
                total += factors[last]
                waits[last] = now_s - due_s[last]
            head[which] = following[last]
            following[last] = -1
            if head[which] < 0:
                tail[which] = -1
            queued[which] -= batch
            free[which] -= 1
            slot = idle[which, free[which]]
            running[slot] = first
            running_since_s[slot] = now_s
            took_s = (fixed_s + per_row_s * batch) * (total / batch) * slowdown[instances - free[which] - 1]
            size = _push(heap_s, heap_what, size, now_s + took_s, slot)
    return result, waits
