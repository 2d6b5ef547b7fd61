"""TensorRT's and CUDA's modules as whoever runs a plan needs them, in any TensorRT from 8.5 on.

Needs Python 3.8, numpy, tensorrt and cuda-python alone: the generator copies this file beside the builder of plans,
which runs in NVIDIA's older containers too. What a release can do is asked of its module, never of its version.
"""

# ruff: noqa: UP006, UP035, UP045 (Python 3.8 in older containers)
from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Optional, Tuple

TYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool",
}  # fmt: skip
"""numpy's names of the types of TensorRT that numpy has."""

NO_GPU = "a GPU and its driver are needed"
AGAIN = "what uses the GPU must be started again"
REMEDIES = {
    2: "free memory of the GPU, or lower instance_group.count or the shapes of the plan's profiles",
    **dict.fromkeys((3, 35, 100, 804), NO_GPU),
}
"""By CUDA's error: no memory; not initialised, driver too old, no GPU, driver and GPU that do not fit."""


class PlanError(Exception):
    """The input or the machine is at fault; one line says what, and the remedy."""


def tensorrt(*, remedy: str) -> Any:
    """Returns the module `tensorrt`.

    Raises:
        PlanError: It is not installed, or its libraries cannot be loaded.
    """
    try:
        import tensorrt as trt
    except (ImportError, OSError) as exc:
        raise PlanError(f"TensorRT is needed ({' '.join(str(exc).split())}); {remedy}") from exc
    if not hasattr(trt, "Runtime"):
        # Any folder of that name on the path is imported as a package without a file.
        raise PlanError(f"TensorRT is needed (the folder {next(iter(trt.__path__))} is none); {remedy}")
    return trt


def numpy_type(kind: Any) -> Any:
    """Returns numpy's type for a member of TensorRT's DataType.

    `tensorrt.nptype` of TensorRT 8.5 asks numpy for names that numpy 1.24 and later have no more.

    Raises:
        PlanError: numpy has none, as for BF16 and FP8.
    """
    import numpy as np

    if kind.name not in TYPES:
        raise PlanError(f"the types of a plan's inputs and outputs must be among {', '.join(TYPES)}, got {kind.name}")
    return np.dtype(TYPES[kind.name])


class Messages:
    """Counts what TensorRT says and keeps the last of it, since its calls return None where they fail.

    Attributes:
        logger: What TensorRT is given.
        warnings: How many there were.
    """

    def __init__(self, trt: Any, tell: Optional[Callable[[str, str], None]] = None) -> None:
        """Passes each message on to `tell`, if given, as ("error" or "warning", line)."""

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self, messages: Messages) -> None:
                trt.ILogger.__init__(self)
                self._messages = messages

            def log(self, severity: Any, message: str) -> None:
                line = " ".join(message.split())
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    self._messages.error = line
                elif severity == trt.ILogger.WARNING:
                    self._messages.warnings += 1
                    self._messages.warning = line
                else:
                    return
                if tell is not None:
                    tell("warning" if severity == trt.ILogger.WARNING else "error", line)

        self.error = self.warning = ""
        self.warnings = 0
        self.logger = Logger(self)

    def last(self) -> str:
        """Returns the last error, else the last warning, or that there was none."""
        return self.error or self.warning or "TensorRT gave no reason"


def load(
    trt: Any, plan: bytes, stamp: Optional[Dict[str, Any]] = None, messages: Optional[Messages] = None
) -> Tuple[Any, Any]:
    """Returns the engine of a serialised plan, and the runtime that must outlive it.

    Args:
        trt: The module.
        plan: The file's content.
        stamp: What the builder wrote beside the plan. With `version_compatible` the lean runtime that such a plan
            brings along may run, which is code of the CPU: a plan that is not trusted must not have it.
        messages: Where TensorRT's go.

    Raises:
        PlanError: The plan is corrupt, or of another TensorRT or GPU; or there is no GPU.
    """
    messages = messages or Messages(trt)
    try:
        runtime = trt.Runtime(messages.logger)
    except TypeError as exc:
        # What pybind11 makes of a null pointer.
        raise PlanError(
            f"TensorRT {trt.__version__} makes no runtime here ({messages.last()[:300]}); {NO_GPU}"
        ) from exc
    if stamp and stamp.get("version_compatible") and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        of = ""
        if stamp and "tensorrt" in stamp:
            of = f", built with TensorRT {stamp['tensorrt']} on {stamp.get('gpu', '?')}"
        raise PlanError(
            f"the plan{of} cannot be loaded by TensorRT {trt.__version__} here ({messages.last()[:300]}); "
            "build it again"
        )
    return engine, runtime


class Cuda:
    """The calls of the CUDA runtime that a plan needs, from either form of cuda-python."""

    def __init__(self, runtime: Any = None) -> None:
        """Takes `runtime` for cuda-python's module, which is imported by default.

        Raises:
            PlanError: cuda-python is not installed.
        """
        self._runtime = runtime if runtime is not None else _cuda_runtime()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Returns the result of a call.

        Raises:
            PlanError: CUDA reports an error.
        """
        try:
            error, *results = getattr(self._runtime, name)(*arguments)
        except RuntimeError as exc:
            # What cuda-python raises in place of an error's number where there is no driver.
            raise PlanError(f"{name}: {' '.join(str(exc).split())}; {NO_GPU}") from exc
        if int(error) != 0:
            raise PlanError(f"{name}: CUDA reports {getattr(error, 'name', error)}; {REMEDIES.get(int(error), AGAIN)}")
        return results[0] if len(results) == 1 else results

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def forget_error(self) -> None:
        """Clears the last error that CUDA keeps for this thread, which TensorRT would take for one of its next call."""
        with contextlib.suppress(PlanError):
            self("cudaGetLastError")


def captured(cuda: Cuda, stream: Any, issue: Callable[[], None]) -> Any:
    """Returns the executable CUDA graph of what `issue` puts into `stream`; whoever asked for it destroys it.

    Raises:
        PlanError: It cannot be captured; the stream is out of its capture, and takes work as before.
    """
    # Other threads, such as a library's, may go on with calls of their own.
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda("cudaStreamBeginCapture", stream, mode)
    graph = None
    try:
        issue()
        graph = cuda("cudaStreamEndCapture", stream)
        return cuda("cudaGraphInstantiateWithFlags", graph, 0)
    except PlanError:
        if graph is None:
            # The stream must leave its capture, which CUDA may call invalid by now.
            with contextlib.suppress(PlanError):
                graph = cuda("cudaStreamEndCapture", stream)
        cuda.forget_error()
        raise
    finally:
        if graph is not None:
            cuda("cudaGraphDestroy", graph)


def _cuda_runtime() -> Any:
    try:
        try:
            from cuda.bindings import runtime
        except ImportError:
            from cuda import cudart as runtime
    except ImportError as exc:
        raise PlanError(f"cuda-python is needed to run a plan ({exc}); pip install cuda-python") from exc
    return runtime
