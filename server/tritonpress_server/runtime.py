"""Where the tritonserver of the `nvidia-pytriton` wheel lies, and what it needs around it to run."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tritonpress_server.errors import ServerNotInstalledError

OUR_BACKENDS = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Runtime:
    """The parts of the wheel that belong to this interpreter."""

    binary: Path
    """The `tritonserver` executable."""
    libraries: tuple[Path, ...]
    """Folders for `LD_LIBRARY_PATH`: the wheel's libraries, then this interpreter's libpython."""
    python_backend: tuple[Path, ...]
    """The files that must stand side by side in `backends/python`."""
    caches: Path
    """The response caches of the wheel."""

    def environment(self) -> dict[str, str]:
        """The environment variables that tritonserver and its stubs run with."""
        inherited = os.environ.get("LD_LIBRARY_PATH", "")
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join([*map(str, self.libraries), *filter(None, [inherited])]),
            # The stubs take the packages of the environment whose `python3` comes first here.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }

    def write_backends(self, folder: Path) -> None:
        """Fills `folder` with the `python` backend and ours, each a folder named as Triton looks for it."""
        python = folder / "python"
        python.mkdir(parents=True)
        for file in self.python_backend:
            # Copies: Triton refuses a library that is a link out of the backend directory.
            shutil.copy(file, python / file.name)
        for backend in OUR_BACKENDS.iterdir():
            if (backend / "model.py").is_file():
                shutil.copytree(backend, folder / backend.name, ignore=shutil.ignore_patterns("__pycache__"))


def find_runtime() -> Runtime:
    """The runtime of the running interpreter.

    Raises:
        ServerNotInstalledError: The wheel, its stub for this Python, or a shared libpython is missing.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerNotInstalledError(
            "the embedded Triton is not installed (no package `pytriton`); pip install 'tritonpress[server]'"
        )
    wheel = Path(spec.submodule_search_locations[0])
    triton = wheel / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (python := Path(sys.executable).parent / "python3").exists():
        raise ServerNotInstalledError(
            f"Triton's Python stubs find their packages by {python}, which is missing; run from a virtual environment"
        )
    runtime = Runtime(
        binary=triton / "bin" / "tritonserver",
        libraries=(wheel.parent / "nvidia_pytriton.libs", find_libpython().parent),
        python_backend=(
            triton / "backends" / "python" / "libtriton_python.so",
            triton / "backends" / "python" / "triton_python_backend_utils.py",
            triton / "python_backend_stubs" / version / "triton_python_backend_stub",
        ),
        caches=triton / "caches",
    )
    for part in (runtime.binary, runtime.libraries[0], *runtime.python_backend):
        if not part.exists():
            raise ServerNotInstalledError(
                f"the installed nvidia-pytriton lacks {part} for Python {version}; "
                "use CPython 3.10 to 3.12 and pip install --force-reinstall nvidia-pytriton==0.7.0"
            )
    return runtime


def find_libpython() -> Path:
    """The shared library of the running interpreter, which Triton's stubs embed.

    Raises:
        ServerNotInstalledError: This interpreter came without one.
    """
    name = f"libpython{sysconfig.get_config_var('LDVERSION')}.so.1.0"
    libdir = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    # A relocated build (uv's, conda's) has a LIBDIR of the machine that built it.
    folders = (libdir, libdir / (sysconfig.get_config_var("MULTIARCH") or ""), Path(sys.base_prefix) / "lib")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise ServerNotInstalledError(
        f"Triton's Python stubs need {name}, which {sys.base_prefix} lacks (looked in {', '.join(map(str, folders))}); "
        f"on Debian and Ubuntu: apt-get install libpython{version}; "
        f"with pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {version}"
    )
