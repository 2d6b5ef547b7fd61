"""Says how many requests of one pool the simulator goes through in a second, on one core.

.venv/bin/python docs/simulator_speed.py
"""

from __future__ import annotations

import time

import numpy as np
from tritonpress_loadtests.simulator import Replica, simulate

_COUNT = 1_000_000
_ROUNDS = 11


def main() -> None:
    """Prints the median and the extremes of the rounds."""
    generator = np.random.default_rng(0)
    due_s, factors = np.cumsum(generator.exponential(1 / 700, _COUNT)), generator.gamma(4, 0.25, _COUNT)
    replica = Replica(2, 8, 0.001, 0.002)
    simulate(due_s[:1000], factors[:1000], replica)  # compiles
    rates = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        simulate(due_s, factors, replica)
        rates.append(_COUNT / (time.perf_counter() - began) / 1e6)
    print(f"million requests/s: {np.median(rates):.2f} [{min(rates):.2f}–{max(rates):.2f}]")


if __name__ == "__main__":
    main()
