"""The compose file's proxy before the embedded Triton, by HTTP: what it lets through, and what it does not."""

from __future__ import annotations

import gzip
import http.client
import json

import pytest
from caddy import Proxy
from tritonpress_server import TritonServer

MODEL = "/v2/models/recommendation"
LONGEST_TEXT = 8192
"""Bytes that the tiny recipe's step takes of a query."""
REFUSAL = b"not open through this proxy\n"


def request(texts: int, character: str = "a", length: int = 8) -> bytes:
    """Returns the body of a request of so many texts, each of so many characters, written as they are given."""
    data = ",".join([f'"{character * length}"'] * texts)
    return f'{{"inputs":[{{"name":"QUERY","shape":[{texts},1],"datatype":"BYTES","data":[{data}]}}]}}'.encode()


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/config", f"{MODEL}/ready"]
)
def test_health_metadata_and_configs_are_open(proxy: Proxy, path: str) -> None:
    assert proxy.ask("GET", path)[0] == 200


@pytest.mark.parametrize("path", [f"{MODEL}/infer", f"{MODEL}/versions/1/infer"])
def test_inference_is_open(proxy: Proxy, path: str) -> None:
    status, body = proxy.ask("POST", path, request(2))
    assert status == 200
    assert json.loads(body)["outputs"][0]["shape"] == [2, 10]


CLOSED = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/recommendation/load"),
    ("POST", "/v2/repository/models/recommendation/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/r/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/trace/setting"),
    ("POST", f"{MODEL}/trace/setting"),
    ("GET", "/v2/models/stats"),
    ("GET", f"{MODEL}/stats"),
    ("POST", f"{MODEL}/generate"),
    ("DELETE", f"{MODEL}/infer"),
    ("GET", "/metrics"),
    ("GET", "/"),
    # What a proxy and the server behind it may take for different things.
    ("POST", "//v2/repository/index"),
    ("POST", "/v2//repository/index"),
    ("POST", "/v2/repository/index/"),
    ("POST", "/v2/health/../repository/index"),
    ("POST", "/v2/models/../repository/index"),
    ("POST", "/v2/models/a/../../repository/index"),
    ("POST", "/v2/models/%2e%2e/repository/index"),
    ("POST", "/v2%2Frepository%2Findex"),
    ("POST", "/v2/%72epository/index"),
    ("POST", "/v2/models/recommendation%2F..%2F..%2Frepository%2Findex"),
    ("POST", "/v2/repository/index%3F/../../models/recommendation"),
    ("GET", "/v2/models//stats"),
    ("GET", "/v2/models/./stats"),
    ("GET", "//v2/models/stats"),
    ("GET", "/v2/models/stats/"),
    ("GET", "/v2/models/sta%74s"),
    ("GET", "/v2%2Fmodels%2Fstats"),
    ("GET", "/V2/models/stats"),
    ("GET", "/v2/models/stats?a=/v2/health/live"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_all_else_is_refused_by_the_proxy(proxy: Proxy, method: str, path: str) -> None:
    assert proxy.ask(method, path, b"{}" if method == "POST" else None) == (403, REFUSAL)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity", ""])
def test_no_compressed_body_is_let_through(proxy: Proxy, encoding: str) -> None:
    body = gzip.compress(request(1))
    assert proxy.ask("POST", f"{MODEL}/infer", body, Content_Encoding=encoding) == (403, REFUSAL)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v2/repository/index"), ("GET", "/v2/models/stats"), ("GET", "/v2/logging")]
)
def test_the_server_itself_would_have_answered(tiny_server: TritonServer, method: str, path: str) -> None:
    connection = http.client.HTTPConnection(tiny_server.http_url, timeout=60)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None)
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def test_the_longest_request_is_let_through_and_no_longer_one(proxy: Proxy) -> None:
    longest = request(8, "\\u0061", LONGEST_TEXT)
    assert len(longest) < proxy.request_bytes < len(longest) + (1 << 17)
    assert proxy.ask("POST", f"{MODEL}/infer", longest)[0] == 200
    status, body = proxy.ask("POST", f"{MODEL}/infer", longest.ljust(proxy.request_bytes + 1))
    assert (status, body) == (413, b"")
