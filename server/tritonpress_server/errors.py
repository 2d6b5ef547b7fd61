"""What can go wrong with the embedded Triton.

    ServerError
    ├── ServerNotInstalledError    the nvidia-pytriton wheel or a shared libpython is missing
    ├── SettingsError              a setting is out of range, or excludes another
    ├── PortInUseError             a port that was asked for is taken, or may not be used
    ├── ModelRepositoryError       the repository is missing, empty or unreadable, or a model in it failed to load
    ├── ServerStartError           it did not start for another reason; the last log lines follow
    │   └── StubStartError         a model's Python process and Triton got in each other's way; the next start is well
    └── ServerTimeoutError         it was not ready, or did not end, in the time that was given

The first line of each message says what is wrong and what to do about it.
"""


class ServerError(Exception):
    """Any failure of the embedded Triton."""


class ServerNotInstalledError(ServerError):
    """A part that the server needs is not on this machine."""


class SettingsError(ServerError):
    """A setting is at fault."""


class PortInUseError(ServerError):
    """A port cannot be bound."""


class ModelRepositoryError(ServerError):
    """The model repository cannot be served as it is."""


class ServerStartError(ServerError):
    """Triton ended before it was ready, for a reason that is not the repository's."""


class StubStartError(ServerStartError):
    """A stub and Triton began to use their shared memory at the same time, by which Triton ends.

    Reported up to release 25.02 (https://github.com/triton-inference-server/server/issues/8882).
    """


class ServerTimeoutError(ServerError):
    """Triton took longer than the limit."""
