"""`TritonServer`: the embedded tritonserver as a context manager that ends with its process."""

import contextlib
import http.client
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tritonpress_server import guard, probe, triton_log
from tritonpress_server.errors import (
    ModelRepositoryError,
    PortInUseError,
    ServerStartError,
    ServerTimeoutError,
    SettingsError,
    StubStartError,
)
from tritonpress_server.launch import find_models, launch, models_to_load, pid_of
from tritonpress_server.ports import choose_ports
from tritonpress_server.resting import called
from tritonpress_server.runtime import find_runtime
from tritonpress_server.settings import Settings

POLL_S = 0.02
KILL_TIMEOUT_S = 10.0
# Unloading, after what is in flight has been answered.
EXIT_S = 15.0
# A chosen port can be lost to another process before Triton binds it, and Triton to a race with its own stubs.
TRIES = 3
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class TritonServer:
    """A real Triton that serves a model repository until the block ends, or until the process does, in whatever way.

    Example:
        with TritonServer("model_repo") as server:
            client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

    Attributes:
        grpc_url: `host:port` of the gRPC endpoint; empty until started, like the other two.
        http_url: `host:port` of the HTTP endpoint.
        metrics_url: `host:port` of the Prometheus endpoint (path `/metrics`).
        log_path: Where Triton and the models write; None before the first start if none was given.
    """

    def __init__(  # noqa: PLR0913
        self,
        repository: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        models: Sequence[str] | None = None,
        log_path: str | os.PathLike[str] | None = None,
        startup_timeout_s: float = 120.0,
        settings: Settings | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Describes a server; nothing runs before `start()`.

        Args:
            repository: Folder with one folder a model. Those whose name begins with "." are passed over.
            host: Address that all three endpoints bind.
            grpc_port: Port, or None for a free one; likewise `http_port` and `metrics_port`.
            http_port: See `grpc_port`.
            metrics_port: See `grpc_port`.
            models: The models to load, with the steps that they need; None for all but the steps of builds that no
                ensemble serves, empty for none (they can be loaded through Triton's model control).
            log_path: File that the log is appended to; None for a temporary one, removed when the server stops cleanly.
            startup_timeout_s: How long loading may take.
            settings: Model control, caches, draining, logs, traces, metrics; default: `Settings()`.
            extra_args: More options of tritonserver, after ours.

        Raises:
            SettingsError: `models` are given to a server that loads all there is.
        """
        self.repository = Path(repository)
        self.host = host
        self.models = None if models is None else tuple(models)
        self.startup_timeout_s = startup_timeout_s
        self.settings = settings or Settings()
        if self.models is not None and self.settings.model_control != "explicit":
            raise SettingsError(
                f"models go with model_control explicit, got {self.settings.model_control}, by which Triton loads all "
                "there is; leave one out"
            )
        self.extra_args = tuple(extra_args)
        self.grpc_url = self.http_url = self.metrics_url = ""
        self.log_path = Path(log_path) if log_path is not None else None
        self._log_is_ours = log_path is None
        self._log_offset = 0
        self._wanted_ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self._private = Path()
        self._ports: dict[str, int] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of tritonserver, the parent of its Python stubs; 0 while it does not run.

        Look before you send it a signal: `os.kill` takes 0 for all processes of the caller's own group.
        """
        return self._pid if self._guard is not None and self._guard.poll() is None else 0

    def start(self) -> None:
        """Starts Triton and returns when it is ready to answer on all endpoints.

        Raises:
            ServerNotInstalledError: The wheel or a shared libpython is missing.
            PortInUseError: A port that was given is taken, or the host is no address of this machine.
            ModelRepositoryError: The repository is missing, empty or may not be read, or a model in it failed to load.
            ServerTimeoutError: Loading took longer than `startup_timeout_s`.
            ServerStartError: Anything else; also where it runs already, or has ended without `stop()`.
        """
        if self._guard is not None:
            state = f"runs already (pid {pid})" if (pid := self.pid) else "has ended by itself"
            raise ServerStartError(f"this server {state}; stop() it or make another TritonServer")
        try:
            arguments = [*self.settings.arguments(self.repository, self._models_to_load()), *self.extra_args]
        except OSError as error:
            raise ModelRepositoryError(
                f"model repository {str(self.repository)!r} must be readable by the user who serves it, "
                f"{error.filename} is not: {error.strerror}; allow uid {os.geteuid()} to read it"
            ) from error
        for attempt in range(1, TRIES + 1):
            try:
                self._start_once(arguments)
                break
            except StubStartError:
                if attempt == TRIES:
                    raise
            except PortInUseError:
                if attempt == TRIES or None not in self._wanted_ports.values():
                    raise
            except OSError as error:
                raise ServerStartError(
                    f"{tempfile.gettempdir()!r} must have room for Triton's backends and log: {error.strerror}; make "
                    "some, or set TMPDIR to another folder"
                ) from error

    def stop(self, timeout_s: float | None = None) -> None:
        """Drains and ends Triton; kills it if that takes too long. Does nothing if it does not run.

        It says at once that it is not ready, and refuses what is new; what is in flight is answered. An exception
        meanwhile, such as that of Ctrl-C, kills it too.

        Args:
            timeout_s: After how long it is killed; default: the settings' `drain_s`, and some seconds for the rest.
        """
        if self._guard is None:
            return
        timeout_s = self.settings.drain_s + EXIT_S if timeout_s is None else timeout_s
        ran, clean = self._guard.poll() is None, False
        try:
            self._guard.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(timeout_s)
                clean = ran
        finally:
            self._kill()
            if clean and self._log_is_ours and self.log_path is not None:
                self.log_path.unlink(missing_ok=True)
                self.log_path = None
            # The guard has done it, unless somebody killed the guard.
            guard.clean_up(self._private)
            self._guard, self._pid = None, 0

    def wait(self) -> int:
        """Waits until Triton ends, and returns its exit status (128 + the signal, if one ended it).

        Raises:
            ServerStartError: It does not run.
        """
        if self._guard is None:
            raise ServerStartError("this server does not run, so there is nothing to wait for; start() it first")
        return self._guard.wait()

    def served_models(self) -> list[tuple[str, str]]:
        """Name and version of each model that answers, sorted.

        Raises:
            ServerStartError: It does not run, or does not answer.
        """
        if self._guard is None:
            raise ServerStartError("this server does not run, so it serves nothing; start() it first")
        address = WILDCARDS.get(self.host, self.host)
        try:
            return probe.ready_models(address, http_port=self._ports["http"], headers=self.settings.admin_headers())
        except (OSError, http.client.HTTPException) as error:
            raise ServerStartError(
                f"Triton must answer at {self.http_url}, it does not: {error}; see its log {self.log_path}"
            ) from error

    def log_tail(self) -> str:
        """The last lines of the log that matter, without those about missing GPUs; empty where there is no log."""
        return triton_log.tail(self._log())

    def _models_to_load(self) -> list[str]:
        repository = str(self.repository)
        if not self.repository.is_dir():
            raise ModelRepositoryError(
                f"model repository {repository!r} must be an existing folder; build one with: tritonpress build RECIPE"
            )
        found = find_models(self.repository)
        if not found:
            raise ModelRepositoryError(
                f"model repository {repository!r} holds no model; build one with: tritonpress build RECIPE"
            )
        for name in self.models or ():
            if name not in found:
                raise ModelRepositoryError(
                    f"model {name!r} is not in model repository {repository!r}; choose from {', '.join(found)}"
                )
        if self.models is None:
            return models_to_load(self.repository)
        return [*self.models, *sorted(called(self.repository, self.models))]

    def _start_once(self, arguments: list[str]) -> None:
        runtime = find_runtime()
        self._ports = choose_ports(self.host, self._wanted_ports)
        log = self._open_log()
        private = Path(tempfile.mkdtemp(prefix="tritonpress-"))
        try:
            self._guard = launch(
                runtime,
                self.repository,
                private=private,
                host=self.host,
                ports=self._ports,
                log=log,
                arguments=arguments,
            )
            self._pid = pid_of(self._guard)
            self._wait_until_ready(server_id=private.name)
        except BaseException:
            # A refusal, Ctrl-C, anything: nothing may be left running or lying about, except the log.
            self._kill()
            self._guard, self._pid = None, 0
            guard.clean_up(private)
            raise
        self._private = private
        address = WILDCARDS.get(self.host, self.host)
        address = f"[{address}]" if ":" in address else address
        self.grpc_url, self.http_url, self.metrics_url = (
            f"{address}:{self._ports[endpoint]}" for endpoint in ("grpc", "http", "metrics")
        )

    def _wait_until_ready(self, *, server_id: str) -> None:
        deadline = time.monotonic() + self.startup_timeout_s
        metrics_port = None if "--allow-metrics=false" in self.extra_args else self._ports["metrics"]
        while not probe.is_ready(
            WILDCARDS.get(self.host, self.host),
            http_port=self._ports["http"],
            metrics_port=metrics_port,
            server_id=server_id,
        ):
            if self._guard is not None and (status := self._guard.poll()) is not None:
                raise triton_log.why_it_ended(self._log(), path=self.log_path, status=status)
            if time.monotonic() > deadline:
                raise ServerTimeoutError(
                    f"Triton was not ready within startup_timeout_s={self.startup_timeout_s:g}; raise it, or load "
                    f"fewer models; log {self.log_path} ends:\n{self.log_tail()}"
                )
            time.sleep(POLL_S)

    def _open_log(self) -> Path:
        if self.log_path is None:
            descriptor, name = tempfile.mkstemp(prefix="tritonpress-", suffix=".log")
            os.close(descriptor)
            self.log_path = Path(name)
        try:
            with self.log_path.open("ab") as log:
                self._log_offset = log.tell()
        except OSError as error:
            raise ServerStartError(
                f"log_path {str(self.log_path)!r} must be a file that can be written: {error.strerror}"
            ) from error
        return self.log_path

    def _log(self) -> str:
        return triton_log.read_log(self.log_path, offset=self._log_offset) if self.log_path is not None else ""

    def _kill(self) -> None:
        if self._guard is None:
            return
        # By the guard, which alone knows that the number is still the server's; it ends the stubs too.
        self._guard.send_signal(guard.KILL)
        self._guard.wait(KILL_TIMEOUT_S)
