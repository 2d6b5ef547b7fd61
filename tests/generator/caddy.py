"""The compose file's proxy, run as Caddy on this machine before the embedded Triton."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Certificates
from deployments import deploy, use_index
from tritonpress_client import Options, Tls
from tritonpress_server import TritonServer
from tritonpress_server.ports import choose_ports


@dataclass(frozen=True)
class Proxy:
    """One that runs."""

    port: int
    authority: Path
    request_bytes: int
    """What it takes of a request."""

    @property
    def url(self) -> str:
        """The address of its gRPC."""
        return f"127.0.0.1:{self.port}"

    def options(self, **more: object) -> Options:
        """Returns a client's options, by which it trusts the proxy."""
        return Options(tls=Tls(ca=self.authority.read_bytes()), **more)  # type: ignore[arg-type]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Returns the status and the body of an answer; the path is sent as it is."""
        trusted = ssl.create_default_context(cafile=self.authority)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=trusted, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def running(
    repository: Path, server: TritonServer, certificates: Certificates, folder: Path, *options: str
) -> Iterator[Proxy]:
    """Runs Caddy with the generated file, in which only ports, upstreams and the certificate are of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        use_index(folder / "index", patch)
        out = deploy(repository, folder / "out", *options)
    config = json.loads((out / "compose" / "proxy.json").read_text())
    found = config["apps"]["http"]["servers"]["triton"]
    port = choose_ports("127.0.0.1", {"https": None})["https"]
    found["listen"] = [f"127.0.0.1:{port}"]
    here = {"triton:8000": server.http_url, "triton:8001": server.grpc_url}
    limits = set()
    for handler in (handler for route in found["routes"] for handler in route["handle"]):
        for upstream in handler.get("upstreams", ()):
            upstream["dial"] = here[upstream["dial"]]
        limits |= {handler["max_size"]} if "max_size" in handler else set()
    (limit,) = limits
    (certificate,) = config["apps"]["tls"]["certificates"]["load_files"]
    certificate |= {"certificate": str(certificates.server), "key": str(certificates.server_key)}
    (folder / "proxy.json").write_text(json.dumps(config))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    environment |= {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            ["caddy", "run", "--config", folder / "proxy.json"], env=environment, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            proxy = Proxy(port, certificates.ca, limit)
            _wait_until_open(proxy, process, folder / "log")
            yield proxy
        finally:
            process.terminate()
            assert process.wait(60) == 0


def _wait_until_open(proxy: Proxy, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            proxy.ask("GET", "/v2/health/live")
        except ConnectionRefusedError:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        else:
            return
