"""What a recipe says of operation, on the real server: priorities, queues, the rate limiter, the response cache."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from counted import counted, settled
from held_steps import Execution, executions, held_until, make_holdable
from tiny_sources import write_recipe
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonpress_client import ModelUnavailableError, Options, Retries, wire
from tritonpress_client.connection import AsyncConnection, Connection
from tritonpress_generator import cli, recipe, repository
from tritonpress_generator.build import build
from tritonpress_generator.errors import InputError
from tritonpress_generator.queueing import add_queue, may_idle
from tritonpress_generator.recipe_text import ServeConfig
from tritonpress_server import Settings, TritonServer

NAME = "recommendation"
LIMITED, IMPATIENT, UNLIMITED = 2, 3, 4
SERVE = {
    "max_batch_size": 2,
    "max_length": 48,
    "lengths": "exact",
    "steps": "ensemble",
    "queue": {
        "priority_levels": 4,
        "by_priority": {LIMITED: {"max_queue_size": 4}, IMPATIENT: {"default_timeout_microseconds": 1000}},
    },
}


def text(number: int) -> dict[str, np.ndarray]:
    """A request unlike all others, whose texts have the length of the longest that is served."""
    words = f"a lamp for the home {number} " * 12
    return {"QUERY": np.array([[words.encode()]], np.object_)}


@pytest.fixture(scope="module")
def repo(tiny_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workload with priorities and limits; others with a response cache, patience, turns, and the last of turns."""
    folder = tmp_path_factory.mktemp("operation")
    sources = Path(shutil.copytree(tiny_sources, folder / "sources"))
    # An only instance would be left idle at times (`may_idle`).
    build(write_recipe(sources, serve=SERVE, engine={"onnxruntime": {"instances": 2}}), folder / "repo")
    cached = {"max_batch_size": 2, "max_length": 48, "lengths": "exact", "response_cache": True}
    build(write_recipe(sources, serve=cached, name="cached"), folder / "repo")
    # In one step: a tokenizer would be one more to wait for.
    turns = {key: SERVE[key] for key in ("max_batch_size", "max_length", "lengths")} | {"steps": "single"}
    turns |= {"rate_limiter": {"resources": {"processor": 1}}}
    build(write_recipe(sources, serve=turns, name="turns", engine={"onnxruntime": {"instances": 1}}), folder / "repo")
    last = {**turns, "rate_limiter": {"resources": {"processor": 1}, "priority": 1_000_000}}
    build(write_recipe(sources, serve=last, name="last", engine={"onnxruntime": {"instances": 1}}), folder / "repo")
    patient = {
        **cached,
        "response_cache": False,
        "queue": {"default_timeout_microseconds": 1000, "timeout_action": "delay"},
    }
    build(write_recipe(sources, serve=patient, name="patient"), folder / "repo")
    for name, part in ((NAME, "engine"), ("turns", "model"), ("last", "model"), ("patient", "model")):
        make_holdable(folder / "repo", step_of(folder / "repo", name, part))
    return folder / "repo"


@pytest.fixture(scope="module")
def server(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("log")
    settings = Settings(
        trace_file=str(folder / "trace.json"), trace_rate=1, log_format="ISO8601", metrics_summaries=True
    )
    with TritonServer(repo, settings=settings, log_path=folder / "log") as server:
        yield server


def ended(
    url: str, asked: list[tuple[int, int]], model: str = NAME, order: list[tuple[int, str]] | None = None
) -> list[tuple[int, str]]:
    """Asks all requests (number, priority) at once; returns priority and outcome in the order in which they ended.

    Each is appended to `order` as it ends, where that is given.
    """
    order = [] if order is None else order

    async def one(connection: AsyncConnection, number: int, priority: int) -> None:
        try:
            await connection.infer(model, text(number))
            order.append((priority, "answered"))
        except ModelUnavailableError as exc:
            order.append((priority, str(exc)))

    async def all_of_them() -> None:
        connections = {
            priority: AsyncConnection(
                url, timeout_s=120, options=Options(priority=priority, retries=Retries(attempts=1))
            )
            for _, priority in asked
        }
        await asyncio.gather(*(one(connections[priority], number, priority) for number, priority in asked))
        for connection in connections.values():
            await connection.close()

    asyncio.run(all_of_them())
    return order


def waiting(server: TritonServer, model: str) -> int:
    """How many requests wait at a model that has not begun them."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as response:
        metrics = response.read().decode()
    found = re.search(
        rf'^nv_inference_pending_request_count{{model="{model}",version="1"}} (\d+)', metrics, re.MULTILINE
    )
    assert found, metrics
    return int(found[1])


def step_of(repo: Path, name: str, part: str) -> str:
    return str(repository.read_manifest(repo, name)["steps"][part])


def answered(url: str, asked: list[tuple[int, int]]) -> None:
    """Returns once all requests (number, priority), asked at once, are answered; the id of each is its priority."""

    async def all_of_them() -> None:
        async with grpc.aio.insecure_channel(url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            requests = []
            for number, priority in asked:
                request = wire.infer_request(NAME, None, priority)
                request.id = str(priority)
                wire.add_arrays(request, text(number))
                requests.append(request)
            await asyncio.gather(*(stub.ModelInfer(request, timeout=120) for request in requests))

    asyncio.run(all_of_them())


def test_high_priority_overtakes_a_flood(server: TritonServer, repo: Path) -> None:
    engine = step_of(repo, NAME, "engine")
    # Of the lowest priority: with a limit it would be refused in part.
    flood = [(number, UNLIMITED) for number in range(100)]
    before = len(executions(repo))

    def came() -> int:
        return len(requests_of(executions(repo)[before:])) + waiting(server, engine)

    with ThreadPoolExecutor(1) as pool, held_until(repo, engine, lambda: came() == 110):
        flooding = pool.submit(answered, server.grpc_url, flood)
        until(lambda: came() == 100)
        answered(server.grpc_url, [(number, 1) for number in range(1000, 1010)])
    flooding.result()
    begun = executions(repo)[before:]
    assert sorted(requests_of(begun)) == ["1"] * 10 + [str(UNLIMITED)] * 100
    # An instance by itself, since the other one may have stood still meanwhile: the two requests that it had begun, and
    # two that the batcher may have given it to begin next.
    for instance in {execution.instance for execution in begun}:
        asked = requests_of([execution for execution in begun if execution.instance == instance])
        assert asked[: last_of(asked, "1")].count(str(UNLIMITED)) <= 4


def requests_of(begun: list[Execution]) -> list[str]:
    return [request for execution in begun for request in execution.requests]


def last_of(order: list[str], asked: str) -> int:
    """The place of the last one, 0 where there is none."""
    return max((place for place, one in enumerate(order) if one == asked), default=0)


def test_a_full_queue_and_one_that_waits_too_long_refuse(server: TritonServer, repo: Path) -> None:
    engine = step_of(repo, NAME, "engine")
    outcomes: list[tuple[int, str]] = []

    def ended_so(words: str) -> bool:
        return any(words in outcome.lower() for _, outcome in outcomes)

    with held_until(repo, engine, lambda: ended_so("maximum queue size")):
        ended(server.grpc_url, [(number, LIMITED) for number in range(2000, 2060)], order=outcomes)
    assert ended_so("maximum queue size")
    assert ended_so("answered")
    outcomes.clear()
    with held_until(repo, engine, lambda: ended_so("timeout expired")):
        ended(server.grpc_url, [(number, IMPATIENT) for number in range(3000, 3060)], order=outcomes)
    assert ended_so("timeout expired")


def test_what_waits_too_long_is_answered_late_where_the_recipe_says_delay(server: TritonServer, repo: Path) -> None:
    step = step_of(repo, "patient", "model")
    with held_until(repo, step, lambda: waiting(server, step) >= 10):
        outcomes = ended(server.grpc_url, [(number, 0) for number in range(5000, 5030)], "patient")
    assert [outcome for _, outcome in outcomes] == ["answered"] * 30


def test_workloads_that_name_one_resource_take_turns(server: TritonServer, repo: Path) -> None:
    """While an execution of one is held, the other waits, and behind it a third, which names no resource."""
    order: list[str] = []
    held, waits, third = (
        step_of(repo, "last", "model"),
        step_of(repo, "turns", "model"),
        step_of(repo, "cached", "model"),
    )

    def one(model: str) -> None:
        with Connection(server.grpc_url, timeout_s=60) as connection:
            connection.infer(model, text(6000))
            order.append(model)

    before = len(executions(repo))
    with held_until(repo, held, lambda: False):
        asked = [threading.Thread(target=one, args=(model,)) for model in ("last", "turns", "cached")]
        asked[0].start()
        until(lambda: len(executions(repo)) > before)
        asked[1].start()
        until(lambda: waiting(server, waits) == 1)
        asked[2].start()
        until(lambda: waiting(server, third) == 1)
        time.sleep(0.3)
        assert order == []
    for thread in asked:
        thread.join()
    assert sorted(order) == ["cached", "last", "turns"]


def until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_has_its_turn_first_waits_for_one_execution_of_the_others(server: TritonServer, repo: Path) -> None:
    turns, last = (step_of(repo, name, "model") for name in ("turns", "last"))
    outcomes: list[tuple[int, str]] = []
    before = len(executions(repo))

    def steps_begun() -> list[str]:
        """The step of each request that has been begun."""
        return [execution.step for execution in executions(repo)[before:] for _ in execution.requests]

    def all_wait() -> bool:
        return waiting(server, turns) == 20 and waiting(server, last) + len(steps_begun()) == 40

    with held_until(repo, last, all_wait):
        asked = [(number, 0) for number in range(7000, 7040)]
        flood = threading.Thread(target=ended, args=(server.grpc_url, asked, "last", outcomes))
        flood.start()
        # Of the flood, or there would be nothing to wait for.
        until(lambda: bool(steps_begun()))
        ended(server.grpc_url, [(number, 1) for number in range(8000, 8020)], "turns", outcomes)
    flood.join()
    assert [outcome for _, outcome in outcomes] == ["answered"] * 60
    order = steps_begun()
    assert (order.count(turns), order.count(last)) == (20, 40)
    # The execution that was held, and one that the batcher may have filled by then, of two requests each; 20 where
    # they alternate.
    assert order[: last_of(order, turns)].count(last) <= 4


def test_the_response_cache_answers_again(server: TritonServer) -> None:
    query = {"QUERY": np.array([[b"red lamp"]], np.object_)}
    with Connection(server.grpc_url, timeout_s=60) as connection:
        before = settled(connection, "cached")
        answers = [connection.infer("cached", query) for _ in range(5)]
        statistics = counted(connection, "cached", 5, before)
    assert (statistics.inference_count, statistics.success.count) == (1, 5)
    for answer in answers:
        np.testing.assert_array_equal(answer["SCORE"], answers[0]["SCORE"])
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as response:
        metrics = response.read().decode()
    assert 'nv_cache_num_hits_per_model{model="cached",version="1"} 4' in metrics
    # Of a model with a cache Triton summarises the parts alone.
    assert 'nv_inference_queue_summary_us{model="cached",version="1",quantile="0.99"}' in metrics


def test_the_model_was_warmed_up_before_it_was_ready(server: TritonServer) -> None:
    with Connection(server.grpc_url, timeout_s=60) as connection:
        step = next(status.name for status in connection.models() if status.name.startswith("cached_model"))
        config = connection.model_config(step)
    assert [(sample.name, sample.count) for sample in config.model_warmup] == [("text", 2)]


def test_the_config_that_is_served_is_the_recipe_s(server: TritonServer, repo: Path) -> None:
    steps = repository.read_manifest(repo, NAME)["steps"]
    with Connection(server.grpc_url, timeout_s=60) as connection:
        engine = connection.model_config(steps["engine"])
        tokenizer = connection.model_config(steps["tokenizer"])
    batching = engine.dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (4, 4)
    assert batching.priority_queue_policy[LIMITED].max_queue_size == 4
    assert batching.priority_queue_policy[IMPATIENT].default_timeout_microseconds == 1000
    assert tokenizer.dynamic_batching.priority_levels == 4
    assert [group.count for group in tokenizer.instance_group] == [2]
    with Connection(server.grpc_url, timeout_s=60) as connection:
        limited = connection.model_config(step_of(repo, "turns", "model"))
    (resource,) = limited.instance_group[0].rate_limiter.resources
    assert (resource.name, resource.count) == ("processor", 1)


def test_requests_are_traced_and_logged(server: TritonServer) -> None:
    with Connection(server.grpc_url, timeout_s=60) as connection:
        connection.infer("cached", text(4000))
    assert server.log_path is not None
    assert "Z I " in server.log_path.read_text()
    trace = server.log_path.parent / "trace.json"
    server.stop()
    written = "".join(path.read_text() for path in trace.parent.glob("trace.json*"))
    assert "COMPUTE_START" in written


def test_queue_policies_are_written_as_triton_has_them() -> None:
    serve = ServeConfig.model_validate(
        {
            "max_queue_delay_microseconds": 100,
            "queue": {
                "max_queue_size": 64,
                "default_timeout_microseconds": 200_000,
                "timeout_action": "delay",
                "allow_timeout_override": True,
            },
        }
    )
    config = pb.ModelConfig()
    add_queue(config, serve)
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.timeout_action, policy.default_timeout_microseconds) == (pb.ModelQueuePolicy.DELAY, 200_000)
    assert (policy.allow_timeout_override, policy.max_queue_size) == (True, 64)
    assert config.dynamic_batching.priority_levels == 0
    plain = pb.ModelConfig()
    add_queue(plain, ServeConfig())
    assert repository.config_text(plain).split() == ["max_batch_size:", "0", "dynamic_batching", "{", "}"]


def test_a_build_says_where_triton_may_leave_an_engine_idle(
    tiny_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = Path(shutil.copytree(tiny_sources, tmp_path / "sources"))
    serve = {"max_length": 48, "lengths": "exact", "steps": "ensemble", "queue": {"priority_levels": 2}}
    path = write_recipe(sources, serve=serve, engine={"onnxruntime": {"instances": 1}})
    assert cli.main(["build", str(path), "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "may leave idle" in line]
    assert [line.split()[1].rsplit("_", 1)[0] for line in lines] == [f"{NAME}_engine"]


@pytest.mark.parametrize(
    ("queue", "instances", "idle"),
    [
        ({"priority_levels": 2}, 1, True),
        ({"max_queue_size": 64}, 1, True),
        ({"default_timeout_microseconds": 200_000}, 1, True),
        ({"priority_levels": 2, "by_priority": {2: {"max_queue_size": 64}}}, 1, True),
        ({"priority_levels": 2}, 2, False),
        ({}, 1, False),
    ],
)
def test_an_only_instance_may_be_left_idle_where_its_queue_has_limits(
    queue: dict[str, object], instances: int, idle: bool
) -> None:
    config = pb.ModelConfig(instance_group=[pb.ModelInstanceGroup(count=instances)])
    add_queue(config, ServeConfig.model_validate({"queue": queue}))
    assert may_idle(config) == idle


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        ({"queue": {"timeout_action": "delay"}}, "need default_timeout_microseconds above 0"),
        ({"queue": {"allow_timeout_override": True}}, "need default_timeout_microseconds above 0"),
        ({"queue": {"default_priority_level": 2}}, "level 2 must be in 1..1"),
        ({"queue": {"priority_levels": 2, "by_priority": {3: {"max_queue_size": 1}}}}, "level 3 must be in 1..2"),
        ({"queue": {"by_priority": {1: {"max_queue_size": 1}}}}, "by_priority needs priority_levels above 1"),
        ({"queue": {"max_queue_size": 1}, "dynamic_batching": False}, "queue needs dynamic_batching: true"),
        (
            {"queue": {"default_timeout_microseconds": 50}, "max_queue_delay_microseconds": 50},
            "must be above max_queue_delay_microseconds",
        ),
        ({"rate_limiter": {"resources": {}}}, "serve.rate_limiter.resources"),
        ({"rate_limiter": {"resources": {"processor": 1}}}, "engine.onnxruntime.instances must be 1, is 2"),
        ({"rate_limiter": {"resources": {"processor": 0}}}, "serve.rate_limiter.resources.processor"),
        ({"queue": {"max_queue_sise": 1}}, "serve.queue.max_queue_sise: unknown key; allowed: max_queue_size"),
    ],
)
def test_what_cannot_work_is_refused(
    tiny_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: dict[str, object], message: str
) -> None:
    sources = Path(shutil.copytree(tiny_sources, tmp_path / "sources"))
    path = write_recipe(sources, serve={"max_length": 48, **serve}, engine={"onnxruntime": {"instances": 2}})
    with pytest.raises(InputError, match="serve"):
        recipe.load(path)
    assert cli.main(["build", str(path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
