"""TLS, mutual TLS, metadata that is refreshed, and that nothing secret is shown or sent in the clear."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from at_once import AT_ONCE
from certificates import Certificates
from served_models import Served, write_models
from tritonpress_client import (
    AccessDeniedError,
    AsyncConnection,
    AsyncRecommender,
    BearerToken,
    Connection,
    InvalidInputError,
    Options,
    Recommender,
    ServerUnreachableError,
    Tls,
)
from tritonpress_server import TritonServer

HEADER = "triton-grpc-protocol-gate"
SECRET = "s3cret-word"


@pytest.fixture(scope="module")
def guarded(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that wants a client's certificate, and for inference and orders a secret header."""
    folder = tmp_path_factory.mktemp("client_guarded")
    arguments = [
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={certificates.server}",
        f"--grpc-server-key={certificates.server_key}",
        f"--grpc-root-cert={certificates.ca}",
        f"--grpc-restricted-protocol=inference,model-repository:gate={SECRET}",
    ]
    repository = write_models(folder / "repository", "guarded", instances=1)
    with TritonServer(repository, log_path=folder / "log", extra_args=arguments, settings=AT_ONCE) as server:
        yield server
        os.kill(server.pid, signal.SIGKILL)


def tls(certificates: Certificates, **changes: Any) -> Tls:
    """Returns what the guarded server accepts, with changes."""
    accepted = {
        "ca": certificates.ca.read_bytes(),
        "certificate": certificates.client.read_bytes(),
        "key": certificates.client_key.read_bytes(),
    }
    return Tls(**(accepted | changes))


def test_mutual_tls_and_a_header(guarded: TritonServer, certificates: Certificates) -> None:
    options = Options(tls=tls(certificates), metadata={HEADER: SECRET})
    with Recommender(guarded.grpc_url, options=options) as recommender:
        assert recommender.recommend("red lamp")[1].item_id == "guarded"

    async def ask() -> str:
        async with AsyncRecommender(guarded.grpc_url, options=options) as recommender:
            return (await recommender.recommend("red lamp"))[1].item_id

    assert asyncio.run(ask()) == "guarded"


def test_the_name_in_the_certificate_may_be_another(guarded: TritonServer, certificates: Certificates) -> None:
    for name, right in (("triton.test", True), ("other.test", False)):
        options = Options(tls=tls(certificates, server_name=name))
        with Connection(guarded.grpc_url, timeout_s=20, options=options) as connection:
            if right:
                assert connection.ready()
            else:
                with pytest.raises(ServerUnreachableError):
                    connection.ready()


@pytest.mark.parametrize(
    ("addresses", "plain", "right"),
    [
        ({"away.test": "127.0.0.3", "triton.test": "127.0.0.1"}, [], True),
        ({"away.test": "127.0.0.3"}, ["127.0.0.1"], True),
        ({"triton.test": "127.0.0.3", "other.test": "127.0.0.1"}, [], False),
    ],
)
def test_each_of_several_targets_is_held_to_its_own_name(
    addresses: dict[str, str],
    plain: list[str],
    right: bool,
    guarded: TritonServer,
    certificates: Certificates,
    names: dict[str, list[str]],
) -> None:
    names.update({name: [address] for name, address in addresses.items()})
    port = guarded.grpc_url.rpartition(":")[2]
    targets = [f"{target}:{port}" for target in (*plain, *(f"dns:///{name}" for name in addresses))]
    options = Options(tls=tls(certificates), metadata={HEADER: SECRET})
    with Recommender(targets, timeout_s=20, options=options) as recommender:
        if right:
            assert recommender.recommend("red lamp")[1].item_id == "guarded"
        else:
            with pytest.raises(ServerUnreachableError):
                recommender.recommend("red lamp")


@pytest.mark.parametrize("without", ["client certificate", "authority", "tls"])
def test_without_the_right_certificates_nothing_answers(
    guarded: TritonServer, certificates: Certificates, without: str
) -> None:
    settings = {
        "client certificate": tls(certificates, certificate=None, key=None),
        "authority": tls(certificates, ca=None),
        "tls": None,
    }[without]
    with (
        Connection(guarded.grpc_url, timeout_s=20, options=Options(tls=settings)) as connection,
        pytest.raises(ServerUnreachableError, match=guarded.grpc_url),
    ):
        connection.ready()


@pytest.mark.parametrize("metadata", [None, {HEADER: "wrong"}])
def test_a_server_that_denies_access_says_what_it_wants(
    guarded: TritonServer, certificates: Certificates, metadata: Any
) -> None:
    options = Options(tls=tls(certificates), metadata=metadata)
    with (
        Recommender(guarded.grpc_url, options=options) as recommender,
        pytest.raises(AccessDeniedError, match=r"denies access; see `Options.metadata`") as caught,
    ):
        recommender.recommend("red lamp")
    assert caught.value.attempts == 1
    assert "wrong" not in str(caught.value)


class Gate:
    """Metadata whose first value is out of date."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.token = "expired"

    def __call__(self) -> dict[str, str]:
        self.fetched.append(self.token)
        return {HEADER: self.token}

    def expire(self) -> None:
        """Learns the new one."""
        self.token = SECRET


def test_what_is_denied_is_asked_again_with_a_fresh_value(guarded: TritonServer, certificates: Certificates) -> None:
    gate = Gate()
    with Recommender(guarded.grpc_url, options=Options(tls=tls(certificates), metadata=gate)) as recommender:
        assert recommender.recommend("red lamp")
    assert gate.fetched.count("expired") >= 1
    assert gate.fetched[-1] == SECRET
    orders = Gate()
    with Connection(guarded.grpc_url, options=Options(tls=tls(certificates), metadata=orders)) as connection:
        connection.unload_model("nothing")
    assert orders.fetched == ["expired", SECRET]


class SealedGate(Gate):
    """Cannot learn another value."""

    def expire(self) -> None:
        """Raises what the user's own code may."""
        raise OSError(SECRET)


def test_what_expiring_raises_is_told(guarded: TritonServer, certificates: Certificates) -> None:
    options = Options(tls=tls(certificates), metadata=SealedGate())
    with (
        Recommender(guarded.grpc_url, options=options) as recommender,
        pytest.raises(AccessDeniedError, match=r"`Options.metadata.expire` raised OSError, and gave no way") as caught,
    ):
        recommender.recommend("red lamp")
    assert isinstance(caught.value.__cause__, OSError)
    assert SECRET not in str(caught.value)


def test_a_token_is_fetched_again_when_it_is_old() -> None:
    tokens = iter(["first", "second", "third"])
    token = BearerToken(lambda: next(tokens), lifetime_s=1000)
    assert token() == token() == {"authorization": "Bearer first"}
    token.expire()
    assert token() == {"authorization": "Bearer second"}
    old = BearerToken(lambda: next(tokens), lifetime_s=0)
    assert old() == {"authorization": "Bearer third"}


def test_a_token_is_sent_without_the_white_space_around_it() -> None:
    assert BearerToken(lambda: f"{SECRET}\r\n")() == {"authorization": f"Bearer {SECRET}"}


def refused(url: str, metadata: Any) -> list[InvalidInputError | AccessDeniedError]:
    """Returns what both kinds of clients raise for that metadata."""
    options = Options(metadata=metadata)

    async def ask() -> None:
        async with AsyncConnection(url, options=options) as connection:
            await connection.ready()

    with pytest.raises((InvalidInputError, AccessDeniedError)) as in_async:
        asyncio.run(ask())
    with (
        Connection(url, options=options) as connection,
        pytest.raises((InvalidInputError, AccessDeniedError)) as caught,
    ):
        connection.ready()
    return [caught.value, in_async.value]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (HEADER, f"{SECRET}\n", f"`metadata` must give '{HEADER}' as a str of printable ASCII; correct the value"),
        (HEADER, f"{SECRET}é", "as a str of printable ASCII"),
        (HEADER, SECRET.encode(), "as a str of printable ASCII"),
        (f"{HEADER}-bin", SECRET, f"`metadata` must give '{HEADER}-bin' as bytes"),
        ("a gate", SECRET, "names in `metadata` must be of letters, digits, '-', '_' and '.', got 'a gate'"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named_without_its_value(
    servers: tuple[Served, Served], name: str, value: Any, words: str
) -> None:
    for error in refused(servers[0].url, lambda: {name: value}):
        assert type(error) is InvalidInputError
        assert words in str(error)
        assert SECRET not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("raised", [ValueError(SECRET), OSError(SECRET), InvalidInputError("cannot read token")])
def test_what_metadata_raises_is_told(servers: tuple[Served, Served], raised: Exception) -> None:
    def fetch() -> str:
        raise raised

    for error in refused(servers[0].url, BearerToken(fetch)):
        if isinstance(raised, InvalidInputError):
            assert error is raised
            continue
        assert type(error) is AccessDeniedError
        assert f"`Options.metadata` raised {type(raised).__name__}, and gave no headers; correct" in str(error)
        assert error.__cause__ is raised
        assert SECRET not in str(error)


def test_nothing_secret_is_shown(
    guarded: TritonServer, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="tritonpress_client")
    token = BearerToken(lambda: SECRET)
    key = certificates.client_key.read_text().splitlines()[1]
    options = Options(tls=tls(certificates), metadata=lambda: {HEADER: SECRET, **token()})
    with Recommender(guarded.grpc_url, timeout_s=20, options=options) as recommender:
        recommender.recommend("red lamp")
        with pytest.raises(InvalidInputError) as caught:
            recommender.recommend("bad")
        shown = [repr(each) for each in (options, options.tls, token, recommender, caught.value, vars(caught.value))]
    for text in (*shown, str(caught.value), caplog.text):
        assert SECRET not in text
        assert key not in text


@pytest.mark.parametrize("target", ["triton.test:8001", "dns:///triton.test:8001", "10.1.2.3:8001"])
def test_metadata_is_not_sent_in_the_clear(target: str) -> None:
    with pytest.raises(InvalidInputError, match=r"`metadata` would go to .*triton.test|10.1.2.3.* in the clear; set"):
        Connection(target, options=Options(metadata={HEADER: SECRET}))
    Connection(target, options=Options(metadata={HEADER: SECRET}, clear_metadata=True)).close()
    Connection(target, options=Options(metadata={HEADER: SECRET}, tls=Tls())).close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: Tls(certificate=path.read_bytes()), "belong together"),
        (lambda path: Tls(ca=str(path)), r"`Tls.ca` must be PEM as bytes; read the file"),
        (lambda _: Tls(ca=b"nothing"), r"`Tls.ca` must be PEM"),
        (lambda _: Options(compression="zip"), "`compression` must be gzip, deflate or None, got 'zip'"),
        (lambda _: Options(keepalive_s=0), "`keepalive_s` must be a finite number above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_named(make: Any, words: str, certificates: Certificates) -> None:
    path: Path = certificates.ca
    with pytest.raises(InvalidInputError, match=words):
        make(path)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(compression: Any, servers: Any) -> None:
    with Recommender(servers[0].url, options=Options(compression=compression)) as recommender:
        text = "a long text " * 1000
        assert recommender.recommend(text)[0].item_id == text
