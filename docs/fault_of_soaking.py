"""A steady load for long."""

from __future__ import annotations

import time

import numpy as np
import psutil
from fault_lab import Lab, Load, judge, stubs
from tritonpress_server import TritonServer


def soak(lab: Lab) -> None:
    """A steady load; memory of the server, of its stubs and of the client, and how it goes on."""
    with TritonServer(lab.repository, log_path=lab.folder / "log") as server:
        load = Load(server.grpc_url, lab.repository, lab.name)
        found: dict[str, list[float]] = {"tritonserver": [], "stubs": [], "client": []}
        with load.by(2):
            time.sleep(min(60.0, 12 * lab.minutes))  # pools are filled
            began = time.monotonic()
            while time.monotonic() - began < 60 * lab.minutes:
                found["tritonserver"].append(_mib(psutil.Process(server.pid)))
                found["stubs"].append(sum(map(_mib, stubs(server.pid))))
                found["client"].append(_mib(psutil.Process()))
                time.sleep(1)
        judge(lab, load)
        for who, mib in found.items():
            slope, low, high = trend(np.array(mib))
            hour = 3600 / (60 * lab.minutes / len(mib))
            lab.promise(
                low * len(mib) < max(4.0, 0.02 * mib[0]),
                f"memory of {who} is flat: {mib[0]:.1f} to {mib[-1]:.1f} MiB, {slope * hour:+.2f} MiB/h "
                f"(95 %: {low * hour:+.2f} to {high * hour:+.2f})",
            )


def trend(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the slope of values a sample, with its interval of 95 %, by ten parts' means: samples are no draws."""
    parts = np.array([part.mean() for part in np.array_split(values, 10)])
    at = (np.arange(10) - 4.5) * len(values) / 10
    slope = float((at * parts).sum() / (at**2).sum())
    rest = parts - parts.mean() - slope * at
    # Student's t of 8 degrees of freedom.
    error = 2.306 * float(np.sqrt((rest**2).sum() / 8 / (at**2).sum()))
    return slope, slope - error, slope + error


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20
