"""The process of an open loop: sends each request when its schedule says, whatever became of those before.

Latency runs from the *scheduled* moment, so that a server (or a generator) that stands still is charged with every
request that was due meanwhile: no coordinated omission. No request is left out: where the limit of requests in flight
is reached, those that are due wait here, which counts in their latency and is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import selectors
import sys
import time
from collections.abc import Iterator
from io import FileIO

import grpc
import grpc.aio
import numpy as np
import psutil
from tritonpress_client import Options, TritonpressError, connecting
from tritonpress_client.credentials import sent_metadata
from tritonpress_client.transport import AsyncioTransport

from tritonpress_loadtests import wire
from tritonpress_loadtests.arrivals import Schedule, moments, schedule
from tritonpress_loadtests.generator_protocol import BEAT_S, TICK_S, Order, emit, parse_arguments, start_of
from tritonpress_loadtests.recorder import Recorder
from tritonpress_loadtests.scenario import Drawn, LoadedScenario, load_scenario

_PR_SET_TIMERSLACK = 29
_READY_S = 20.0
_NAP_S = 0.25  # how long an order to stop may wait
_GIVE_UP_S = 10.0


class _Sender:
    """Runs one stage's share."""

    def __init__(
        self, loaded: LoadedScenario, order: Order, call: grpc.aio.UnaryUnaryMultiCallable, options: Options
    ) -> None:
        scenario = loaded.scenario
        self._timeout_s = scenario.timeout_s
        self._duration_s = order.stage.duration_s
        self._most = max(1, scenario.max_in_flight // order.of)
        self._call = call
        self._options = options
        self._draws: Iterator[Drawn] = loaded.draws(f"open {order.number} {order.process}")
        own = stage_schedule(loaded, order)[order.process :: order.of]
        # A view would keep the others' moments in memory.
        self._due_s = own.copy() if order.of > 1 else own
        self._in_flight: set[asyncio.Task[None]] = set()
        self._in_flight_of = [0] * len(loaded.requests)
        self._freed = asyncio.Event()
        self._stopped = asyncio.Event()
        pieces = order.stage.pieces
        self.recorder = Recorder(
            loaded.models,
            self._duration_s,
            self._timeout_s,
            piece_s=float(np.diff(pieces.edges_s(self._duration_s)).min()) if pieces else None,
        )
        self.most_in_flight = 0
        self.gave_up_after_s: float | None = None
        self._held_s = 0.0

    @property
    def due(self) -> int:
        """How many requests the whole stage has for this process."""
        return len(self._due_s)

    def stop(self, lines: FileIO) -> None:
        """Sends nothing more; the line that says so is left to whoever reads the next order."""
        asyncio.get_running_loop().remove_reader(lines)
        self._stopped.set()

    async def run(self, start_s: float) -> float:
        """Sends everything and waits for the answers; returns how long it sent, in s.

        It gives up where it is itself so late that its rate is not offered: the rest would take many times the
        duration, and be no measurement of the server.
        """
        self._start_s = start_s
        tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._beat())]
        try:
            for due_s in moments(self._due_s):
                if not await self._until(due_s):
                    break
                if self._is_behind(due_s):
                    self.gave_up_after_s = time.monotonic() - start_s
                    break
                waits = len(self._in_flight) >= self._most
                if waits:
                    await self._wait_for_room()
                self._send(due_s, waited=waits)
            await self._until(self._duration_s)
            sent_for_s = min(time.monotonic() - start_s, self._duration_s)
            if self._in_flight:
                await asyncio.wait(self._in_flight)
        finally:
            for task in tasks:
                task.cancel()
        return sent_for_s

    async def _until(self, at_s: float) -> bool:
        """Waits for that moment, if it is not past; returns whether to go on."""
        wait_s = self._start_s + at_s - time.monotonic()
        # Also where nothing is to be waited for: a sender that is late must let the answers in.
        await asyncio.sleep(min(max(wait_s, 0.0), _NAP_S))
        while (wait_s := self._start_s + at_s - time.monotonic()) > 0 and not self._stopped.is_set():
            await asyncio.sleep(min(wait_s, _NAP_S))
        return not self._stopped.is_set()

    def _is_behind(self, due_s: float) -> bool:
        """Says whether it is later than the stage is long, by its own fault and not that of the limit in flight."""
        lag_s = time.monotonic() - self._start_s - due_s
        self._held_s = min(self._held_s, lag_s)
        return lag_s - self._held_s > max(_GIVE_UP_S, self._duration_s)

    async def _wait_for_room(self) -> None:
        since_s = time.monotonic()
        self.recorder.limit_hits += 1
        while len(self._in_flight) >= self._most:
            self._freed.clear()
            await self._freed.wait()
        self._held_s += time.monotonic() - since_s

    def _send(self, due_s: float, *, waited: bool) -> None:
        drawn = next(self._draws)
        self.recorder.started(time.monotonic() - self._start_s - due_s)
        alone = not waited and not self._in_flight_of[drawn.place]
        self._in_flight_of[drawn.place] += 1
        task = asyncio.create_task(self._ask(drawn, due_s, alone))
        self._in_flight.add(task)
        self.most_in_flight = max(self.most_in_flight, len(self._in_flight))
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._freed.set()
        task.result()

    async def _ask(self, drawn: Drawn, due_s: float, alone: bool) -> None:
        try:
            await self._call(drawn.payload, timeout=self._timeout_s, metadata=sent_metadata(self._options, {}))
        except grpc.aio.AioRpcError as exc:
            self.recorder.failed(drawn.place, due_s, wire.error_text(exc.code().name, exc.details()))
        except TritonpressError as exc:
            # What gives the metadata has failed, such as a token's file that is gone: nothing was sent, and it was due.
            self.recorder.failed(drawn.place, due_s, wire.error_text(type(exc).__name__, str(exc)))
        else:
            end_s = time.monotonic() - self._start_s
            self.recorder.answered(drawn.place, drawn.up_to, due_s, end_s, alone=alone)
        finally:
            self._in_flight_of[drawn.place] -= 1

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            emit(
                {
                    "event": "tick",
                    "elapsed_s": time.monotonic() - self._start_s,
                    "requests": self.recorder.requests,
                    "failed": self.recorder.failures,
                    "in_flight": len(self._in_flight),
                    "p50_ms": self.recorder.take_recent_p50_ms(),
                }
            )

    async def _beat(self) -> None:
        while True:
            due_s = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self.recorder.beat(time.monotonic() - due_s)


def stage_schedule(loaded: LoadedScenario, order: Order) -> Schedule:
    """Returns when the whole stage's requests are due."""
    stage = order.stage
    seed = f"{loaded.scenario.seed} {order.number}"
    return schedule(stage.arrivals, stage.rate_per_s or 0.0, stage.duration_s, seed=seed, folder=loaded.path.parent)


async def _run_stage(loaded: LoadedScenario, url: str, options: Options, order: Order, lines: FileIO) -> bool:
    """Runs a stage between two of the conductor's lines; returns whether it wants more."""
    async with wire.channel(AsyncioTransport(), url, options) as channel:
        sender = _Sender(loaded, order, channel.unary_unary(wire.METHOD), options)
        # A server that cannot be reached shows in the requests.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(channel.channel_ready(), _READY_S)
        emit({"event": "ready"})
        start_s = start_of(lines.readline)
        if start_s is None:
            return False
        # The schedule and the payloads are not garbage: the collector need not look at them during the load.
        gc.collect()
        gc.freeze()
        cpu_s = time.process_time()
        loop = asyncio.get_running_loop()
        # Nothing but a wish to stop comes before the stage has been reported.
        loop.add_reader(lines, sender.stop, lines)
        duration_s = await sender.run(start_s)
        loop.remove_reader(lines)
        emit(
            {
                "event": "stage",
                "duration_s": duration_s,
                "cpu_share": (time.process_time() - cpu_s) / (time.monotonic() - start_s),
                "rss_bytes": psutil.Process().memory_info().rss,
                "most_in_flight": sender.most_in_flight,
                "due": sender.due,
                "gave_up_after_s": sender.gave_up_after_s,
                **sender.recorder.state(),
            }
        )
        gc.unfreeze()
    return True


def main() -> None:
    """Runs the stages that the conductor orders."""
    arguments = parse_arguments(__doc__)
    loaded, options = load_scenario(arguments.scenario), connecting.options(arguments)
    # Timers fire when they are due, not up to 50 µs later; and select() waits for microseconds, where epoll rounds up.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    # Without a buffer: a line that was read ahead, with the one before it, would wake nobody.
    lines = FileIO(sys.stdin.fileno(), closefd=False)
    try:
        while line := lines.readline():
            if (order := Order.parse(line, loaded)) is None:
                continue
            loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
            try:
                if not loop.run_until_complete(_run_stage(loaded, arguments.url, options, order, lines)):
                    break
            finally:
                loop.close()
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
