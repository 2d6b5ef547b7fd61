"""One fault on a copy of a repository and the embedded server; prints what was seen, and which promises were kept.

    python docs/faults.py model_repo classification stub-killed
    python docs/faults.py model_repo classification soak --minutes 30

    stub-killed    one of a step's Python processes is killed under load
    server-killed  tritonserver, and then tritonpress-serve, is killed under load, and started again
    disk-full      while building, unpacking, promoting, starting and serving (needs root, or unshare -rm)
    build-killed   kill -9 at each stage of a build, at each touch of the repository, and at random moments
    clock-jump     the time of day leaps by an hour, forward and back, for server and clients (needs a C compiler)
    descriptors    the server, and then a client, has no file descriptor left
    soak           a steady load, with the memory of server, stubs and client; `--minutes`

Ends with 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from fault_lab import Lab, copy_workload, with_a_clock_of_its_own

FAULTS = {
    "stub-killed": "faults_of_servers",
    "server-killed": "faults_of_servers",
    "disk-full": "faults_of_disks",
    "build-killed": "faults_of_builds",
    "clock-jump": "fault_of_the_clock",
    "descriptors": "fault_of_descriptors",
    "soak": "fault_of_soaking",
}
"""The module of each, which is imported when it is asked for; the function is called as the fault is."""


def main() -> int:
    """Makes the fault, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("name", help="the workload that is asked")
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each part (%(default)g)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of a soak (%(default)g)")
    options = parser.parse_args()
    if options.fault == "clock-jump":
        with_a_clock_of_its_own()
    module = import_module(FAULTS[options.fault])
    with tempfile.TemporaryDirectory(prefix="tritonpress-faults-") as folder:
        repository = copy_workload(options.repository, options.name, Path(folder) / "model_repo")
        (Path(folder) / "work").mkdir()
        lab = Lab(repository, options.name, Path(folder) / "work", options.seconds, options.minutes)
        print(f"{options.fault}:", flush=True)
        getattr(module, options.fault.replace("-", "_"))(lab)
    print(f"{options.fault}: {f'{len(lab.broken)} promises broken' if lab.broken else 'every promise kept'}")
    return int(bool(lab.broken))


if __name__ == "__main__":
    sys.exit(main())
