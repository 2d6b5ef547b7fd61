"""What becomes of a client in a forked process, under gevent, and in a pool of processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served_models import Served

Servers = tuple[Served, Served]

FORKED = """
import os, sys
from tritonpress_client import Recommender
recommender = Recommender(sys.argv[2:])
used_before = sys.argv[1] == "used"
if used_before:
    assert recommender.recommend("parent")[0].item_id == "parent"
children = []
for number in range(3):
    pid = os.fork()
    if not pid:
        status = 3
        try:
            status = 0 if [recommender.recommend(f"{number}-{i}")[0].item_id for i in range(5)] else 1
        finally:
            os._exit(status)
    children.append(pid)
    if used_before:
        assert recommender.recommend("parent again")[0].item_id == "parent again"
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
recommender.close()
"""

FORKED_IN_A_LOOKUP = """
import os, socket, sys, threading, time
from tritonpress_client import Balancing, Options, Recommender, targets
targets._LOOKUP_S = 0.2
resolve, looking, never, lookups = socket.getaddrinfo, threading.Event(), threading.Event(), []
def getaddrinfo(host, *arguments, **options):
    if host != "triton.test":
        return resolve(host, *arguments, **options)
    lookups.append(host)
    if len(lookups) == 2:
        looking.set()
        never.wait()
    return resolve("127.0.0.1", *arguments, **options)
socket.getaddrinfo = getaddrinfo
options = Options(balancing=Balancing(resolve_s=0.01))
recommender = Recommender("dns:///triton.test:" + sys.argv[1].rpartition(":")[2], options=options)
while not looking.is_set():
    recommender.recommend("parent")
pid = os.fork()
if not pid:
    end = time.monotonic() + 10
    try:
        while len(lookups) == 2 and time.monotonic() < end:
            recommender.recommend("child")
    finally:
        os._exit(len(lookups))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

GEVENT = """
from gevent import monkey; monkey.patch_all()
import grpc.experimental.gevent as grpc_gevent; grpc_gevent.init_gevent()
import gevent, sys
from pathlib import Path
from tritonpress_client import Recommender
release, logs, urls = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
ticks = []
def tick():
    while True:
        ticks.append(0)
        gevent.sleep(0.02)
texts = [f"wait {release} {i}" for i in range(4)]
def running():
    noted = {line for log in logs if Path(log).exists() for line in Path(log).read_text().splitlines()}
    return len(noted.intersection(texts))
with Recommender(urls, timeout_s=45) as recommender:
    recommender.limits()
    jobs = [gevent.spawn(recommender.recommend, text) for text in texts]
    clock = gevent.spawn(tick)
    # None of them is answered before all have begun, and the hub goes on meanwhile.
    with gevent.Timeout(40):
        while running() < 4:
            gevent.sleep(0.02)
        before = len(ticks)
        while len(ticks) <= before + 8:
            gevent.sleep(0.02)
    release.touch()
    gevent.joinall(jobs, raise_error=True)
    assert [job.value[0].item_id for job in jobs] == texts
    assert len(recommender.recommend_many([str(i) for i in range(30)])) == 30
clock.kill()
print("done")
"""

FORKED_WHILE_FETCHING = """
import os, signal, threading
from tritonpress_client import BearerToken
parent, fetching, answer = os.getpid(), threading.Event(), threading.Event()
def fetch():
    if os.getpid() == parent:
        fetching.set()
        answer.wait()
    return "fresh"
token = BearerToken(fetch)
thread = threading.Thread(target=token)
thread.start()
fetching.wait()
pid = os.fork()
if not pid:
    signal.alarm(20)  # ends what would hang
    os._exit(0 if token() == {"authorization": "Bearer fresh"} else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
answer.set()
thread.join()
"""


def run(program: str, *arguments: str) -> str:
    """Returns what the program prints, after it has ended well."""
    command: list[Any] = [sys.executable, "-W", "error::RuntimeWarning", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("servers_count", [1, 2])
@pytest.mark.parametrize("state", ["new", "used"])
def test_a_forked_process_connects_by_itself(servers: Servers, state: str, servers_count: int) -> None:
    assert run(FORKED, state, *(served.url for served in servers[:servers_count])) == "[0, 0, 0]"


def test_a_forked_process_fetches_a_token_by_itself() -> None:
    assert run(FORKED_WHILE_FETCHING) == "0"


def test_a_process_that_was_forked_while_a_name_is_looked_up_looks_again(servers: Servers) -> None:
    assert int(run(FORKED_IN_A_LOOKUP, servers[0].url)) > 2


@pytest.mark.parametrize("servers_count", [1, 2])
def test_greenlets_do_not_wait_for_each_other(servers: Servers, servers_count: int, tmp_path: Path) -> None:
    asked = servers[:servers_count]
    logs = ",".join(str(served.log) for served in asked)
    assert run(GEVENT, str(tmp_path / "release"), logs, *(served.url for served in asked)) == "done"
