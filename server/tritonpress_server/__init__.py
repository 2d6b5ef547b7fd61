"""The embedded Triton Inference Server, and the Python-hosted backends that stand in for NVIDIA's native ones."""

from tritonpress_server.errors import (
    ModelRepositoryError,
    PortInUseError,
    ServerError,
    ServerNotInstalledError,
    ServerStartError,
    ServerTimeoutError,
    SettingsError,
    StubStartError,
)
from tritonpress_server.server import TritonServer
from tritonpress_server.settings import Settings

__all__ = [
    "ModelRepositoryError",
    "PortInUseError",
    "ServerError",
    "ServerNotInstalledError",
    "ServerStartError",
    "ServerTimeoutError",
    "Settings",
    "SettingsError",
    "StubStartError",
    "TritonServer",
]
