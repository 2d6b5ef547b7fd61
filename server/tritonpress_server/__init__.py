"""The embedded Triton Inference Server, and the Python-hosted backends that stand in for NVIDIA's native ones."""

from tritonpress_server.errors import (
    ModelRepositoryError,
    PortInUseError,
    ServerError,
    ServerNotInstalledError,
    ServerStartError,
    ServerTimeoutError,
)
from tritonpress_server.server import TritonServer

__all__ = [
    "ModelRepositoryError",
    "PortInUseError",
    "ServerError",
    "ServerNotInstalledError",
    "ServerStartError",
    "ServerTimeoutError",
    "TritonServer",
]
