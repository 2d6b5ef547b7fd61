"""Energy that NVIDIA's GPUs have taken, by counters that the driver's own library (NVML) reads.

A counter is a whole board's, in millijoules since the driver was loaded, of Volta and later; newer boards renew it each
20 to 100 ms, so that what is measured should take a second at least. Source:
https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html (nvmlDeviceGetTotalEnergyConsumption).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
"""The driver brings it."""
_RANGE_UJ = (1 << 64) * 1000 - 1


@dataclass(frozen=True)
class GpuCounter:
    """One GPU's."""

    library: ctypes.CDLL
    device: ctypes.c_void_p
    """NVML's handle."""
    range_uj: int = _RANGE_UJ
    """The largest value."""

    def read(self) -> int:
        """Returns the microjoules by now.

        Raises:
            OSError: It cannot be read.
        """
        energy_mj = ctypes.c_ulonglong()
        _call(self.library, "nvmlDeviceGetTotalEnergyConsumption", self.device, ctypes.byref(energy_mj))
        return energy_mj.value * 1000


def counters() -> tuple[list[GpuCounter], str]:
    """Returns the counters of all GPUs that the driver shows, or none and why.

    All are needed: which of them an engine runs on, NVML does not know. It stays loaded as long as the process.
    """
    found = []
    try:
        library = ctypes.CDLL(LIBRARY)
        _call(library, "nvmlInit_v2")
        count = ctypes.c_uint()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        for index in range(count.value):
            device = ctypes.c_void_p()
            _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
            found.append(GpuCounter(library, device))
            found[-1].read()
    except OSError as exc:
        return [], str(exc)
    return found, "" if found else f"{LIBRARY} shows no GPU"


def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Calls a function of NVML.

    Raises:
        OSError: It has failed, or this driver has none of the name.
    """
    function = getattr(library, name, None)
    if function is None:
        raise OSError(f"{LIBRARY} has no {name}")
    if status := function(*arguments):
        said = library.nvmlErrorString
        said.restype = ctypes.c_char_p
        raise OSError(f"{name}: {said(status).decode()}")
