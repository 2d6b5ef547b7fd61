"""The server that is tuned: one of our own, or one that runs already and takes orders."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritonpress_client import ModelUnavailableError, Options
from tritonpress_client.connection import Connection
from tritonpress_server import Settings, TritonServer

from tritonpress_generator.errors import InputError
from tritonpress_generator.model_control import ModelControl
from tritonpress_generator.tune.knobs import Configs, Knob, Setting, changed

_LOADING_S = 300.0
_POLL_S = 0.05


class Bench:
    """A server with the configs of a repository, given others by its model control."""

    def __init__(self, url: str, configs: Configs, knobs: Sequence[Knob], options: Options | None = None) -> None:
        """Connects; the server serves `configs` as they lie in its repository.

        Raises:
            TritonpressError: No Triton answers at `url`.
        """
        self.url = url
        self._configs, self._knobs = configs, knobs
        self._connection = Connection(url, timeout_s=_LOADING_S, options=options)
        self._loaded: Configs = {}

    def serve(self, setting: Setting) -> None:
        """Returns once a setting is served.

        Raises:
            InputError: It is loaded, and not ready for long.
            InvalidInputError: The server cannot load a config.
            ServerError: Likewise.
            TritonpressError: The server does not answer.
        """
        wanted = changed(self._configs, self._knobs, setting)
        # An ensemble follows its steps.
        for name in sorted({*wanted, *self._loaded}, key=lambda name: self._configs[name].platform == "ensemble"):
            if wanted.get(name) != self._loaded.get(name):
                # Kept even if it cannot be loaded: what is served then is not what lies in the repository.
                self._loaded[name] = wanted.get(name, self._configs[name])
                self._connection.load_model(name, wanted.get(name))
        self._loaded = wanted
        self._wait_until_ready()

    def close(self) -> None:
        """Leaves the server as it was found."""
        try:
            self.serve({knob.key: knob.now for knob in self._knobs})
        finally:
            self._connection.close()

    def _wait_until_ready(self) -> None:
        """Loading a step takes its ensemble away for a moment."""
        deadline = time.monotonic() + _LOADING_S
        for name in self._configs:
            while not self._ready(name):
                if time.monotonic() > deadline:
                    raise InputError(f"{self.url}: {name} is not ready after {_LOADING_S:g} s; see the server's log")
                time.sleep(_POLL_S)

    def _ready(self, name: str) -> bool:
        try:
            return self._connection.ready(name)
        except ModelUnavailableError:
            return False


@contextmanager
def bench(
    repository: Path,
    configs: Configs,
    knobs: Sequence[Knob],
    *,
    server: str | None = None,
    options: Options | None = None,
    cache: bool = False,
) -> Iterator[Bench]:
    """Yields a server of the repository.

    Args:
        repository: What it serves.
        configs: Of all that is tuned.
        knobs: What is turned.
        server: `HOST:PORT` of one that serves the repository and takes orders; default: an embedded one.
        options: How that one is trusted.
        cache: Whether the embedded one must have a response cache, though no config asks for it yet.

    Raises:
        ServerError: The embedded server does not start.
        InputError: The other one takes no orders.
        TritonpressError: It does not answer.
    """
    if server is not None:
        with contextlib.closing(ModelControl(server, timeout_s=_LOADING_S, options=options)) as control:
            if not control.takes_orders:
                raise InputError(
                    f"--server {server}: must take orders, does not; start it with --model-control-mode=explicit "
                    "(tritonpress-serve: --model-control explicit)"
                )
        yield from _closing(Bench(server, configs, knobs, options))
        return
    settings = Settings(drain_s=0)
    needed = cache and not any(config.response_cache.enable for config in configs.values())
    arguments = [f"--cache-config=local,size={settings.cache_mib * 2**20}"] if needed else []
    ensembles = [name for name, config in configs.items() if config.platform == "ensemble"]
    with TritonServer(repository, models=ensembles, settings=settings, extra_args=arguments) as own:
        yield from _closing(Bench(own.grpc_url, configs, knobs))


def _closing(opened: Bench) -> Iterator[Bench]:
    try:
        yield opened
    finally:
        opened.close()
