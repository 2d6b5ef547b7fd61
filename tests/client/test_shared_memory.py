"""Inputs in shared memory: whose they are, when they are written again, and what becomes of them."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxy import Proxy
from served_models import Served, write_models
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonpress_client import (
    AccessDeniedError,
    AsyncRecommender,
    Balancing,
    CallEnd,
    DeadlineExceededError,
    InvalidInputError,
    Options,
    QuestionAnswering,
    Recommender,
    Retries,
    SharedMemory,
    shared_memory,
)
from tritonpress_client.connecting import ADMIN_METADATA
from tritonpress_client.shared_memory import is_too_old
from tritonpress_server import Settings, TritonServer
from tritonpress_server.ports import choose_ports
from waiting import until

TOKEN = "0123456789abcdef"
ALL = Options(shared_memory=SharedMemory(least_bytes=1))
LONG = 300_000


def regions(url: str, token: str = "") -> dict[str, int]:
    """Returns the regions that a server has mapped for this process, and their sizes."""
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = [(ADMIN_METADATA, token)] if token else None
        status = stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest(), metadata=metadata)
    own = f"tritonpress-client-{os.getpid()}-"
    return {name: region.byte_size for name, region in status.regions.items() if name.startswith(own)}


@pytest.fixture(autouse=True)
def nothing_left(servers: tuple[Served, Served]) -> Iterator[None]:
    """After each test the servers have no region, and the host no file."""
    before = set(Path("/dev/shm").glob("tritonpress-client-*"))
    yield
    assert not [region for server in servers for region in regions(server.url)]
    # Another process of this host has a file until its server has mapped it; one of ours would stay.
    left = set(Path("/dev/shm").glob("tritonpress-client-*")) - before
    assert until(lambda: not any(path.exists() for path in left)), left


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that shares memory with those who have its token; it keeps its address when it is started anew."""
    folder = tmp_path_factory.mktemp("shared_memory")
    (folder / "token").write_text(TOKEN)
    repository = write_models(folder / "repository", "guarded", instances=1)
    guard = Settings(admin_token_file=str(folder / "token"))
    port = choose_ports("127.0.0.1", {"grpc": None})["grpc"]
    with TritonServer(repository, grpc_port=port, settings=guard, log_path=folder / "log") as server:
        yield server


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), min_size=1, max_size=9))
def test_every_text_arrives_as_it_is(servers: tuple[Served, Served], texts: list[str]) -> None:
    asked = [f"_{text}" for text in texts]
    with Recommender(servers[0].url, options=ALL) as recommender:
        assert [answer[0].item_id for answer in recommender.recommend_many(asked)] == asked
        assert regions(servers[0].url)


def test_large_inputs_lie_there_and_small_ones_travel(task_server: TritonServer) -> None:
    options = Options(shared_memory=SharedMemory(least_bytes=200))
    context = "The lamp is red. " * 40
    with (
        QuestionAnswering(task_server.grpc_url) as plain,
        QuestionAnswering(task_server.grpc_url, options=options) as q,
    ):
        assert q.ask("what is red?", "The lamp is red.") == plain.ask("what is red?", "The lamp is red.")
        assert not regions(task_server.grpc_url)
        assert q.answers("what is red?", context) == plain.answers("what is red?", context)
        assert len(regions(task_server.grpc_url)) == 1


def test_requests_at_a_time_have_regions_of_their_own(servers: tuple[Served, Served]) -> None:
    texts = [f"{number} {'x' * (number * 997)}" for number in range(150)]
    urls = [server.url for server in servers]
    # Long enough that no attempt is overtaken by another, which would have a region too.
    with Recommender(urls, timeout_s=60, options=ALL) as recommender, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(recommender.recommend, texts))
        assert [answer[0].item_id for answer in answers] == texts
        assert {answer[1].item_id for answer in answers} == {"one", "two"}
        for url in urls:
            assert 1 <= len(regions(url)) <= 8


def test_what_was_given_up_is_not_written_again_while_it_may_be_read(
    servers: tuple[Served, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_SWEEP_S", 0.0)
    url = servers[0].url
    release = tmp_path / "release"
    # What the server must be asked before has all of the deadline, not an attempt's share.
    once = Options(shared_memory=SharedMemory(least_bytes=1), retries=Retries(attempts=1))
    with Recommender(url, timeout_s=60, options=ALL) as patient, Recommender(url, timeout_s=2, options=once) as hasty:
        patient.recommend("a")
        hasty.recommend("b")
        with ThreadPoolExecutor(4) as pool:
            try:
                held = [pool.submit(patient.recommend, f"wait {release}") for _ in range(4)]
                # All of the model's instances.
                assert until(lambda: servers[0].executed().count(f"wait {release}") == 4)
                with pytest.raises(DeadlineExceededError):
                    hasty.recommend("given up")
                given_up = regions(url)
                with pytest.raises(DeadlineExceededError):
                    hasty.recommend("given up too")
                # The second one has taken another region, since the first still waits in the server's queue.
                assert len(regions(url)) == len(given_up) + 1
            finally:
                release.touch()
            assert [job.result()[0].item_id for job in held] == [f"wait {release}"] * 4
        # The server says when it is done with what was given up: how long that takes is not what is tested.
        monkeypatch.setitem(shared_memory.Regions._sweep.__kwdefaults__, "patience_s", 60.0)
        hasty.recommend("c")
        assert hasty.recommend("d" * LONG)[0].item_id == "d" * LONG  # a new region; those that nobody uses go
        assert len(regions(url)) <= 6


def test_a_server_that_was_started_anew_is_given_new_regions(guarded: TritonServer) -> None:
    attempts: list[int] = []

    class Count:
        def started(self, method: str, model: str) -> tuple[None, dict[str, str]]:
            return None, {}

        def ended(self, handle: None, end: CallEnd) -> None:
            attempts.append(end.attempts)

    options = Options(shared_memory=SharedMemory(least_bytes=1), metadata={ADMIN_METADATA: TOKEN}, observers=(Count(),))
    with Recommender(guarded.grpc_url, timeout_s=10, options=options) as recommender:
        assert recommender.recommend("before")[0].item_id == "before"
        before = regions(guarded.grpc_url, TOKEN)
        guarded.stop()
        guarded.start()
        recommender.limits()
        assert recommender.recommend("after")[0].item_id == "after"
        assert attempts[-1] == 1
        after = regions(guarded.grpc_url, TOKEN)
        assert len(after) == 1
        assert not before.keys() & after.keys()
    assert not regions(guarded.grpc_url, TOKEN)


def test_a_guarded_server_wants_its_token(guarded: TritonServer) -> None:
    with (
        Recommender(guarded.grpc_url, options=ALL) as recommender,
        pytest.raises(AccessDeniedError, match=r"refuses `shared_memory`: it is guarded; give its token") as caught,
    ):
        recommender.recommend("red lamp")
    assert str(caught.value).count("\n") == 0
    options = Options(shared_memory=SharedMemory(least_bytes=1), metadata={ADMIN_METADATA: TOKEN})
    with Recommender(guarded.grpc_url, options=options) as recommender:
        assert recommender.recommend("red lamp")[1].item_id == "guarded"
        assert regions(guarded.grpc_url, TOKEN)
    assert not regions(guarded.grpc_url, TOKEN)


def test_a_token_that_is_not_had_does_not_keep_a_connection_from_closing(servers: tuple[Served, Served]) -> None:
    gone = [False]

    def metadata() -> dict[str, str]:
        if gone[0]:
            raise OSError("the vault is sealed")
        return {}

    options = Options(shared_memory=SharedMemory(least_bytes=1), metadata=metadata)
    recommender = Recommender(servers[0].url, options=options)
    recommender.recommend("red lamp")
    (region,) = regions(servers[0].url)
    gone[0] = True
    recommender.close()
    assert [endpoint.forget_channel() for endpoint in recommender._calls.balancer.endpoints] == [None]
    # Nobody could ask the server any more to give the region back.
    with grpc.insecure_channel(servers[0].url) as plain:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(plain)
        stub.SystemSharedMemoryUnregister(service_pb2.SystemSharedMemoryUnregisterRequest(name=region))


def test_a_server_that_cannot_open_the_memory_is_named(
    servers: tuple[Served, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_FOLDER", tmp_path)  # as a container with a /dev/shm of its own sees it
    with Recommender(servers[0].url, options=ALL) as recommender:
        with pytest.raises(
            InvalidInputError, match=rf"{servers[0].url} refuses `shared_memory`: it cannot open"
        ) as told:
            recommender.recommend("red lamp")
        assert "Unable to open shared memory region" in str(told.value)
        assert not list(tmp_path.iterdir())
        monkeypatch.setattr(shared_memory, "_FOLDER", tmp_path / "nowhere")
        with pytest.raises(InvalidInputError, match=r"needs a folder .*nowhere that can be written \(No such file"):
            recommender.recommend("red lamp")


def test_without_memory_requests_travel(servers: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # The server says when it is done with a region: how long that takes is not what is tested.
    monkeypatch.setitem(shared_memory.Regions._sweep.__kwdefaults__, "patience_s", 60.0)
    url = servers[0].url
    small = Options(shared_memory=SharedMemory(least_bytes=1, most_bytes=1 << 19))
    with Recommender(url, timeout_s=60, options=small) as recommender:
        assert recommender.recommend("small")[0].item_id == "small"
        assert list(regions(url).values()) == [1 << 18]
        # Those that are free and too small make room.
        assert recommender.recommend("x" * LONG)[0].item_id == "x" * LONG
        assert list(regions(url).values()) == [1 << 19]
        assert recommender.recommend("y" * 2 * LONG)[0].item_id == "y" * 2 * LONG
        with ThreadPoolExecutor(4) as pool:
            asked = [f"sleep 0.2 {number}" for number in range(4)]
            assert [answer[0].item_id for answer in pool.map(recommender.recommend, asked)] == asked
        assert list(regions(url).values()) == [1 << 19]
    monkeypatch.setattr(os, "posix_fallocate", full)
    with Recommender(url, options=ALL) as recommender:
        assert recommender.recommend("red lamp")[0].item_id == "red lamp"
        assert not regions(url)


def test_a_server_that_hangs_is_overtaken_and_gives_its_memory_back(
    proxies: tuple[Proxy, Proxy], servers: tuple[Served, Served]
) -> None:
    balancing = Balancing(failures=2, return_s=0)
    options = Options(shared_memory=SharedMemory(least_bytes=1), balancing=balancing)
    numbers = itertools.count()
    with Recommender([proxy.url for proxy in proxies], timeout_s=6.0, options=options) as recommender:

        def server_of(length: int) -> str:
            text = f"{next(numbers)} {'x' * length}"
            answer = recommender.recommend(text)
            assert answer[0].item_id == text
            return answer[1].item_id

        def is_registered_unseen() -> bool:
            assert server_of(LONG) == "two"
            return len(regions(servers[0].url)) == 2

        assert until(lambda: server_of(1) == "one")
        proxies[0].fault = "hang"
        # What the client says still arrives there: a larger region is registered, and the client does not learn it.
        assert until(is_registered_unseen)
        assert [server_of(LONG) for _ in range(12)] == ["two"] * 12
        proxies[0].fault = "none"
        proxies[0].reset_all()
        # By then the client has noticed, and has a connection over which it can give the memory back.
        assert until(lambda: server_of(1) == "one")


def test_cancelled_tasks_leave_others_alone(servers: tuple[Served, Served]) -> None:
    async def ask() -> None:
        async with AsyncRecommender(servers[0].url, timeout_s=20, options=ALL) as recommender:
            await recommender.recommend("first")
            for length in range(1, 6):
                lost = [asyncio.ensure_future(recommender.recommend(f"sleep 5 {number}")) for number in range(3)]
                await asyncio.sleep(0.05)
                for task in lost:
                    task.cancel()
                texts = [f"{number} {'z' * length * number}" for number in range(20)]
                answers = await asyncio.gather(*map(recommender.recommend, texts))
                assert [answer[0].item_id for answer in answers] == texts
                assert all(
                    isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*lost, return_exceptions=True)
                )
            await asyncio.sleep(0.3)

    asyncio.run(ask())


FORKED = """
import os, sys
from tritonpress_client import Options, Recommender, SharedMemory
recommender = Recommender(sys.argv[1:], options=Options(shared_memory=SharedMemory(least_bytes=1)))
def ask(who):
    for number in range(30):
        text = f"{who} {number} " + who[-1] * 5000
        assert recommender.recommend(text)[0].item_id == text
ask("parent")
children = []
for number in range(2):
    pid = os.fork()
    if not pid:
        status = 3
        try:
            ask(f"child {number}")
            recommender.close()
            status = 0
        finally:
            os._exit(status)
    children.append(pid)
ask("parent again")
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
"""


def test_a_forked_process_has_regions_of_its_own(servers: tuple[Served, Served]) -> None:
    command = [sys.executable, "-c", FORKED, servers[0].url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[0, 0]", 0), done.stderr


@pytest.mark.parametrize("target", ["triton.test:8001", "10.1.2.3:8001", "dns:///localhost:8001"])
def test_servers_elsewhere_are_refused(target: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"`shared_memory` is for servers of this host .*{target} may be"):
        Recommender(["127.0.0.1:8001", target], options=ALL)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"`SharedMemory.least_bytes` must be a number of at least 1, got 0"):
        SharedMemory(least_bytes=0)
    with pytest.raises(InvalidInputError, match=r"`SharedMemory.most_bytes` must be a number of at least 9, got 8"):
        SharedMemory(least_bytes=9, most_bytes=8)


@pytest.mark.parametrize(("version", "too_old"), [("2.49.0", True), ("2.50.0", False), ("3.1", False), ("?", True)])
def test_a_server_that_does_not_count_uses_is_too_old(version: str, too_old: bool) -> None:
    assert is_too_old(version) is too_old
