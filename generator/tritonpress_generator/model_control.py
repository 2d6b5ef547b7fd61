"""A running Triton that serves a repository, told of a switch by its model control API.

A server in explicit mode loads the new steps beside the old ones, then the ensemble's new config, and goes on answering
by the old one until then; it gives up the old steps once nobody asks them. One that polls its repository does all of
it by itself, and is waited for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_client import InvalidInputError, ModelUnavailableError, Options, Retries, TritonpressError
from tritonpress_client.connection import Connection

from tritonpress_generator import builds
from tritonpress_generator.errors import GeneratorError, InputError, VerificationError
from tritonpress_generator.used import calls, own_steps, used

_NO_MODEL = "tritonpress no such model"
"""A name that no model has: what a server answers to its unloading says whether it takes orders."""
_POLL_S = 0.1
_STILL_POLLS = 10
"""How many polls in a row must find that nobody has asked an old step before it is given up.

A clock would not do: while this process stands still, time passes in which nobody is seen to ask."""


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
        self._loaded: list[str] = []

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def build(self, ensemble: str) -> str | None:
        """Returns the build that an ensemble is served with, empty where its config has none; None if it is not."""
        config = self._config(ensemble)
        return None if config is None else build_of(config)

    def load_steps(self, steps: Sequence[str]) -> None:
        """Loads those of `steps` that are not loaded, which nobody asks yet; `give_back` unloads them again.

        Raises:
            TritonpressError: One cannot be loaded.
        """
        if self.takes_orders:
            ready = self._ready()
            for step in steps:
                if step not in ready:
                    # Before it is: of one that is lost on the way the server may load it all the same.
                    self._loaded.append(step)
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
                "--model-control-mode=explicit (tritonpress-serve: --model-control explicit)"
            )

    def give_back(self) -> None:
        """Unloads the steps that `load_steps` has loaded, but for those that the server's ensembles use by now.

        Raises:
            TritonpressError: The server does not answer.
            InputError: The steps are asked on and on, or are not unloaded in time.
        """
        if self._loaded:
            # Not what is still being loaded: Triton 2.51 may end when it is unloaded then (4 of 25 times).
            configs = self._ready_configs()
            steps = {*self._loaded} - used(configs)
            self._unload({step: config for step, config in configs.items() if step in steps})

    def unload_canary(self, ensemble: str, workload: str) -> None:
        """Takes a workload's canary away; a server that polls does so by itself, once its folder is gone."""
        if self.takes_orders:
            config = self._config(ensemble)
            # Somebody else's model may have the name.
            if config is not None and config.parameters["canary_of"].string_value == workload:
                self._connection.unload_model(ensemble)

    def unload_unused(self, workload: str, in_use: set[str]) -> None:
        """Unloads the workload's steps that are not used any more, once nobody has asked them for a while.

        Which these are is asked of the server: the repository may have removed them long ago.

        Args:
            workload: Its name; the models of others are left alone.
            in_use: What ensembles in the repository use; what the server's own use is left alone too.

        Raises:
            TritonpressError: The server does not answer.
            InputError: The steps are asked on and on, or are not unloaded in time.
        """
        if self.takes_orders:
            configs, own = self._ready_configs(), own_steps(workload)
            in_use = in_use | used(configs)
            self._unload({m: config for m, config in configs.items() if own.fullmatch(m) and m not in in_use})

    def _unload(self, steps: Mapping[str, pb.ModelConfig]) -> None:
        self._wait_until_still([*steps])
        # A caller first, and until it is gone: a request in it has yet to call.
        for step in sorted(steps, key=lambda step: not calls(steps[step]) & steps.keys()):
            self._connection.unload_model(step)
            self._wait_until_unloaded(step)

    def _ready(self) -> set[str]:
        """Returns the models that are ready; the index leaves out those whose folders are gone."""
        return {entry.name for entry in self._connection.statistics()}

    def _ready_configs(self) -> dict[str, pb.ModelConfig]:
        configs = {model: self._config(model) for model in self._ready()}
        return {model: config for model, config in configs.items() if config is not None}

    def _config(self, model: str) -> pb.ModelConfig | None:
        """Returns the config that a model is served with; None if it is not."""
        try:
            return self._connection.model_config(model)
        except (InvalidInputError, ModelUnavailableError):
            return None

    def _takes_orders(self) -> bool:
        try:
            self._connection.unload_model(_NO_MODEL)
        except InvalidInputError:
            return False
        return True

    def _unloading(self) -> set[str]:
        return {model.name for model in self._connection.models() if model.state == "UNLOADING"}

    def _wait_until_still(self, steps: Sequence[str]) -> None:
        deadline, still, before = time.monotonic() + self._timeout_s, 0, -1
        while still < _STILL_POLLS and steps:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.target}: {', '.join(steps)} are asked on, by others than the ensemble, which has "
                    "switched; unload them by hand"
                )
            time.sleep(_POLL_S)
            asked = sum(self._requests(step) for step in steps)
            still = still + 1 if asked == before else 0
            before = asked

    def _requests(self, step: str) -> int:
        return sum(version.success.count + version.fail.count for version in self._connection.statistics(step))

    def _wait_until_unloaded(self, step: str) -> None:
        # Of a step whose folder is gone Triton does not say it: that it was still must do.
        deadline = time.monotonic() + self._timeout_s
        while step in self._unloading():
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.target}: {step} is not unloaded within {self._timeout_s:g} s, the ensemble has switched; "
                    "see the server's log"
                )
            time.sleep(_POLL_S)


def build_of(config: pb.ModelConfig) -> str:
    """Returns the build that an ensemble's config names; empty if it names none."""
    return str(config.parameters["build"].string_value)


def check_serves(target: str, repository: Path, name: str, build: str, found: str | None) -> None:
    """Refuses a server that serves something else than the repository says, as after a switch that was killed.

    Args:
        target: `HOST:PORT` of the server.
        repository: The model repository.
        name: The workload's, or its canary's.
        build: That is to be served.
        found: That is.

    Raises:
        InputError: They differ.
    """
    if found == build:
        return
    remedy = f"bring it up to date first: tritonpress promote {repository} {name} {build} --server {target}"
    if builds.owner(repository, name) != name:
        remedy = "load it there, or restart the server"
    raise InputError(
        f"{target}: must serve {name} with build {build}, as the repository says, got {found or 'none'}; {remedy}"
    )


@contextlib.contextmanager
def given_back(controls: Sequence[ModelControl]) -> Iterator[None]:
    """Makes the servers unload what they have loaded, where what is done meanwhile fails."""
    try:
        yield
    except (TritonpressError, GeneratorError, OSError):
        for control in controls:
            # Of one that does not answer either, what went wrong first is said.
            with contextlib.suppress(TritonpressError, GeneratorError):
                control.give_back()
        raise


def switch_back(controls: Sequence[ModelControl], ensemble: str, build: str) -> None:
    """Makes the servers that have switched serve `build` again, whose steps they still have."""
    for control in controls:
        # The one that has failed may fail again; what went wrong first is said.
        with contextlib.suppress(TritonpressError, VerificationError):
            if control.build(ensemble) != build:
                control.load_ensemble(ensemble, build)
