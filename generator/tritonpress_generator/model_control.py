"""A running Triton that serves a repository, told of a switch by its model control API.

A server in explicit mode loads the new steps beside the old ones, then the ensemble's new config, and goes on answering
by the old one until then; it gives up the old steps once nobody asks them. One that polls its repository does all of
it by itself, and is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from tritonpress_client import InvalidInputError, ModelUnavailableError, Options, Retries
from tritonpress_client.connection import Connection

from tritonpress_generator.errors import InputError, VerificationError

_NO_MODEL = "tritonpress no such model"
"""A name that no model has: what a server answers to its unloading says whether it takes orders."""
_POLL_S = 0.1
_STILL_S = 1.0
"""How long nobody must have asked an old step before it is given up."""


class ModelControl:
    """One server."""

    def __init__(self, target: str, *, timeout_s: float, options: Options | None = None) -> None:
        """Connects.

        Args:
            target: `HOST:PORT` of the gRPC endpoint.
            timeout_s: How long the loading of one model, or of a poll, may take.
            options: How the server is trusted, and what it asks of those who give orders.

        Raises:
            TritonpressError: `target` is none, or no Triton answers there.
        """
        self.target = target
        self._timeout_s = timeout_s
        # Sent once: a load that is lost on the way may have begun.
        once = replace(options or Options(), retries=Retries(attempts=1))
        self._connection = Connection(target, timeout_s=timeout_s, options=once)
        self.takes_orders = self._takes_orders()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def build(self, ensemble: str) -> str | None:
        """Returns the build that an ensemble is served with, empty where its config has none; None if it is not."""
        try:
            return str(self._connection.model_config(ensemble).parameters["build"].string_value)
        except (InvalidInputError, ModelUnavailableError):
            return None

    def load_steps(self, steps: Sequence[str]) -> None:
        """Loads those of `steps` that are not loaded, which nobody asks yet.

        Raises:
            TritonpressError: One cannot be loaded.
        """
        if self.takes_orders:
            ready = self._in_state("READY")
            for step in steps:
                if step not in ready:
                    self._connection.load_model(step)

    def load_ensemble(self, ensemble: str, build: str) -> None:
        """Returns once the ensemble serves `build`, which its config in the repository names.

        Raises:
            TritonpressError: It cannot be loaded.
            VerificationError: It serves something else: the server has another repository, or has not polled it.
        """
        if self.takes_orders:
            self._connection.load_model(ensemble)
        deadline = time.monotonic() + (0 if self.takes_orders else self._timeout_s)
        while (found := self.build(ensemble)) != build:
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            if self.takes_orders:
                raise VerificationError(
                    f"{self.target}: must serve {ensemble} with build {build} after loading it, got {found or 'none'}; "
                    "give the repository that this server serves"
                )
            raise VerificationError(
                f"{self.target}: must serve {ensemble} with build {build} within {self._timeout_s:g} s, got "
                f"{found or 'none'}; it neither takes orders nor polls that often: restart it, or start it with "
                "--model-control-mode=explicit"
            )

    def unload_ensemble(self, ensemble: str) -> None:
        """Takes an ensemble away; a server that polls does so by itself, once its folder is gone."""
        if self.takes_orders:
            self._connection.unload_model(ensemble)

    def unload_steps(self, steps: Sequence[str]) -> None:
        """Gives up steps that no ensemble names any more, once nobody has asked them for a while.

        Args:
            steps: In the order of the flow; each may call those before it.

        Raises:
            TritonpressError: The server does not answer, or steps are asked on and on.
        """
        if not self.takes_orders:
            return
        loaded = [step for step in steps if step in self._in_state("READY")]
        self._wait_until_still(loaded)
        # A caller first, and until it is gone: a request in it has yet to call.
        for step in reversed(loaded):
            self._connection.unload_model(step)
            self._wait_until_unloaded(step)

    def _takes_orders(self) -> bool:
        try:
            self._connection.unload_model(_NO_MODEL)
        except InvalidInputError:
            return False
        return True

    def _in_state(self, state: str) -> set[str]:
        return {model.name for model in self._connection.models() if model.state == state}

    def _wait_until_still(self, steps: Sequence[str]) -> None:
        deadline, still_since, before = time.monotonic() + self._timeout_s, time.monotonic(), -1
        while time.monotonic() - still_since < _STILL_S and steps:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.target}: {', '.join(steps)} are asked on, by others than the ensemble, which has "
                    "switched; unload them by hand"
                )
            time.sleep(_POLL_S)
            asked = sum(self._requests(step) for step in steps)
            if asked != before:
                before, still_since = asked, time.monotonic()

    def _requests(self, step: str) -> int:
        return sum(version.success.count + version.fail.count for version in self._connection.statistics(step))

    def _wait_until_unloaded(self, step: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        while step in self._in_state("UNLOADING"):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.target}: {step} is not unloaded within {self._timeout_s:g} s, the ensemble has switched; "
                    "see the server's log"
                )
            time.sleep(_POLL_S)
