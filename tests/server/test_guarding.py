"""TLS on gRPC, and a token for what is more than asking a model."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from certificates import TOKEN, Certificates, guard
from tiny_models import add_one, write_model
from tritonpress_client import Connection, Options, Tls, TritonpressError
from tritonpress_client.cli import main as query
from tritonpress_client.connecting import ADMIN_METADATA
from tritonpress_server import SettingsError, TritonServer
from tritonpress_server.settings import ADMIN_HEADER

NUMBERS = {"x": np.zeros((1, 4), np.float32)}


@pytest.fixture(scope="module")
def guarded(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with mutual TLS that guards model control and statistics."""
    folder = tmp_path_factory.mktemp("server_guarded")
    write_model(folder / "repository", "add_one", add_one())
    with TritonServer(folder / "repository", settings=guard(certificates, folder / "token")) as server:
        yield server


def connected(server: TritonServer, certificates: Certificates, *, token: str | None = None) -> Connection:
    tls = Tls(
        ca=certificates.ca.read_bytes(),
        certificate=certificates.client.read_bytes(),
        key=certificates.client_key.read_bytes(),
    )
    metadata = None if token is None else {ADMIN_METADATA: token}
    return Connection(server.grpc_url, timeout_s=20, options=Options(tls=tls, metadata=metadata))


def test_whoever_has_a_certificate_is_answered(guarded: TritonServer, certificates: Certificates) -> None:
    with connected(guarded, certificates) as connection:
        assert connection.ready("add_one")
        assert list(connection.infer("add_one", NUMBERS).values())
    with (
        Connection(guarded.grpc_url, timeout_s=2, options=Options(tls=Tls(ca=certificates.ca.read_bytes()))) as bare,
        pytest.raises(TritonpressError),
    ):
        bare.infer("add_one", NUMBERS)


@pytest.mark.parametrize("token", [None, "not this one at all"])
def test_without_the_token_nothing_more_is_done(
    guarded: TritonServer, certificates: Certificates, token: str | None
) -> None:
    with connected(guarded, certificates, token=token) as connection:
        for ask in (
            lambda: connection.load_model("add_one"),
            lambda: connection.unload_model("add_one"),
            connection.statistics,
            connection.models,
        ):
            with pytest.raises(TritonpressError, match="restricted"):
                ask()
        assert connection.ready("add_one")


def test_with_the_token_it_takes_orders(guarded: TritonServer, certificates: Certificates) -> None:
    with connected(guarded, certificates, token=TOKEN) as connection:
        connection.load_model("add_one")
        assert connection.statistics("add_one")
    assert guarded.served_models() == [("add_one", "1")]


def test_http_is_guarded_likewise(guarded: TritonServer) -> None:
    host, _, port = guarded.http_url.rpartition(":")
    statuses = []
    for headers in ({}, {ADMIN_HEADER: TOKEN}):
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", "/v2/repository/index", body="{}", headers=headers)
        statuses.append(connection.getresponse().status)
        connection.close()
    assert statuses == [403, 200]


def test_the_command_takes_the_token(
    guarded: TritonServer, certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = ["--ca", str(certificates.ca), "--certificate", str(certificates.client)]
    command = ["health", "--url", guarded.grpc_url, *trusted, "--key", str(certificates.client_key)]
    assert query([*command, "--admin-token-file", str(guarded.settings.admin_token_file)]) == 0
    assert "add_one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tls_key": None}, "tls_certificate and tls_key belong together"),
        ({"tls_certificate": None, "tls_key": None}, "tls_client_ca goes with tls_certificate"),
        ({"tls_key": "no/such/file"}, "tls_key must be a file that can be read, no/such/file cannot: No such file"),
        ({"tls_client_ca": __file__}, "tls_client_ca must be a PEM file"),
        ({"admin_token_file": __file__}, "must hold one token of 16 or more"),
    ],
)
def test_what_cannot_guard_is_refused(
    certificates: Certificates, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    whole = guard(certificates, tmp_path / "token")
    with pytest.raises(SettingsError, match=message):
        replace(whole, **changes)  # type: ignore[arg-type]
