"""Whether warm-up does its work: the first request of a server that has just become ready, beside those that follow.

    python docs/first_request.py model_repo classification "TEXT" [--starts 10]

Each start is a server of its own. Prints the first request's latency, and p50 and p99 of a thousand after it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from tritonpress_client import Connection
from tritonpress_server import TritonServer

INPUTS = {"classification": ["TEXT"], "recommendation": ["QUERY"], "question_answering": ["QUESTION", "CONTEXT"]}
FOLLOWING = 1000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=10, help="servers one after the other (%(default)s)")
    arguments, texts = parse(parser)
    inputs = {name: np.array([[text]], object) for name, text in texts.items()}
    below = 0
    print(f"{'start':>5}{'first ms':>10}{'p50 ms':>10}{'p99 ms':>10}")
    for start in range(arguments.starts):
        with TritonServer(arguments.repository, models=[arguments.model]) as server:
            first_ms, following_ms = _ask(server.grpc_url, arguments.model, inputs)
        p50_ms, p99_ms = np.percentile(following_ms, [50, 99])
        below += first_ms <= p99_ms
        print(f"{start + 1:>5}{first_ms:>10.2f}{p50_ms:>10.2f}{p99_ms:>10.2f}", flush=True)
    print(f"the first request was no slower than the p99 in {below} of {arguments.starts} starts")


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the arguments, and the text of each of the model's inputs, which this adds to the parser."""
    parser.add_argument("repository", type=Path)
    parser.add_argument("model", choices=INPUTS)
    parser.add_argument("texts", nargs="+", help="one for each of the model's inputs")
    arguments = parser.parse_args()
    names = INPUTS[arguments.model]
    if len(arguments.texts) != len(names):
        parser.error(f"{arguments.model} takes {', '.join(names)}")
    return arguments, dict(zip(names, arguments.texts, strict=True))


def _ask(url: str, model: str, inputs: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Returns the time of the model's first request in ms, and those of the ones after it."""
    with Connection(url) as connection:
        # The connection is made before, so that the model is what is timed.
        connection.model_metadata(model)
        times_ms = []
        for _ in range(1 + FOLLOWING):
            began = time.perf_counter()
            connection.infer(model, inputs)
            times_ms.append(1e3 * (time.perf_counter() - began))
    return times_ms[0], np.array(times_ms[1:])


if __name__ == "__main__":
    main()
