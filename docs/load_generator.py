"""What the load generator can do by itself: rates and memory against a model that does nothing.

    python docs/load_generator.py [--requests 1000000 --rate 3000]

Prints, of one process in an open loop and of Locust's users, the requests answered a second, the generator's CPU and
its resident memory, at last in ten parts of a long run. On two cores the server takes its part of both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from tritonpress_loadtests.run import run
from tritonpress_server import TritonServer

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "loadtests"))


def main() -> None:
    """Measures and prints."""
    from noop_model import write_noop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the long run (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="of each rate (%(default)s)")
    parser.add_argument("--rate", type=float, default=3000, help="of the long run, per s (%(default)s)")
    parser.add_argument("--only-long", action="store_true", help="leave the rates out")
    arguments = parser.parse_args()
    rates = [1000, 2000, 3000, 4000, 4500, 5000, 6000]
    stages: list[dict[str, Any]] = [{"users": users, "duration_s": arguments.seconds} for users in (8, 16, 32)]
    stages += [{"rate_per_s": rate, "duration_s": arguments.seconds} for rate in rates]
    # The same requests in ten parts: memory that grew with them would show from part to part.
    long = {"soak": {"rate_per_s": arguments.rate, "duration_s": arguments.requests / arguments.rate, "parts": 10}}
    courses = [{"shape": long}] if arguments.only_long else [{"stages": stages}, {"shape": long}]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with TritonServer(write_noop(folder / "repository")) as server:
            for part in courses:
                for stage in _run(folder, server.grpc_url, part):
                    p99_ms = stage["latency_ms"]["p99"] if stage["latency_ms"] else float("nan")
                    print(
                        f"{stage['label']:24} {stage['throughput_per_s']:8.0f}/s  p99 {p99_ms:8.2f} ms"
                        f"  {stage['generator']['cpu_share']:5.0%} of a core"
                        f"  {stage['generator']['rss_bytes'] / 2**20:6.0f} MiB  {stage['failed']} failed",
                        flush=True,
                    )


def _run(folder: Path, url: str, course: dict[str, Any]) -> list[dict[str, Any]]:
    queries = ROOT / "generator" / "recipes" / "classification" / "financial_news.tsv"
    scenario = folder / "scenario.yaml"
    request = {"workload": "classification", "model": "noop", "queries": str(queries)}
    scenario.write_text(yaml.safe_dump({"name": "noop", "requests": [request], "warm_up_s": 2, **course}))
    stages: list[dict[str, Any]] = run(scenario, url, folder / "out")["stages"]
    return stages


if __name__ == "__main__":
    main()
