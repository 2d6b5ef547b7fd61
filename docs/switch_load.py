"""Switches a workload to and fro between two builds under load, and holds each answer to one of the two.

    python docs/switch_load.py model_repo classification generator/recipes/classification.yaml

The other build is of the recipe without the last step of its graph, built as a canary in a copy of the repository. No
request is sent twice. Ends with 1 if one is lost, or an answer is that of neither build.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from fault_lab import Lab, Load, copy_workload, judge, other_output
from tritonpress_client import Options, Retries
from tritonpress_generator import builds, switching
from tritonpress_generator.build import build
from tritonpress_server import TritonServer

_ANSWERS = 50
"""How many answers of a build must have come before the next switch."""
_WITHIN_S = 60.0
_KEEP = 9
"""More builds than lie there: none is to be removed."""


class TwoBuilds(Load):
    """Clients that send each request once, and hold each answer to either of two builds."""

    def __init__(self, url: str, goldens: Mapping[str, Mapping[str, Any]], model_repo: Path, name: str) -> None:
        """Keeps the requests whose answers tell the builds apart.

        Args:
            url: The server's.
            goldens: What the manifest of each build says of its answers.
            model_repo: The repository.
            name: The workload's.

        Raises:
            SystemExit: No request tells them apart.
        """
        super().__init__(url, model_repo, name, timeout_s=60.0, options=Options(retries=Retries(attempts=1)))
        self._answers = {
            build: {_key(request): request["outputs"] for request in golden["requests"]}
            for build, golden in goldens.items()
        }
        self.asked = len(self._requests)
        self._requests = [request for request in self._requests if self._tells_apart(_key(request))]
        self.telling = len(self._requests)
        if not self._requests:
            sys.exit(f"{name}: the golden requests have the same answers by both builds; give another recipe")

    def reset(self) -> None:
        super().reset()
        self.by_build: Counter[str] = Counter()

    def wait_for_build(self, build: str) -> bool:
        """Returns whether a number of answers of a build has come since, within a time."""
        before, deadline = self.by_build[build], time.monotonic() + _WITHIN_S
        while self.by_build[build] < before + _ANSWERS and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.by_build[build] >= before + _ANSWERS

    def _tells_apart(self, key: str) -> bool:
        first, second = (answers.get(key) for answers in self._answers.values())
        if first is None or second is None:
            return False
        return other_output(first, {name: [row] for name, row in second.items()}, 2 * self._tolerance) is not None

    def _count(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        for name, answers in self._answers.items():
            if other_output(answers[_key(request)], answer, self._tolerance) is None:
                self.by_build[name] += 1
                self.right += 1
                return
        self.wrong.append(f"{request['inputs']}: { {output: rows[0] for output, rows in answer.items()} }")


def _key(request: Mapping[str, Any]) -> str:
    return repr(sorted(request["inputs"].items()))


def other_recipe(recipe: Path, folder: Path) -> Path:
    """Returns the recipe without the last step of its graph, in a copy of the folder that it lies in."""
    path = Path(shutil.copytree(recipe.parent, folder)) / recipe.name
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["graph"] = content["graph"][:-1]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def switch(lab: Lab, other: str, switches: int, clients: int) -> None:
    """Promotes the other build and rolls back in turn under load, and prints what clients have seen."""
    goldens = {build: found["golden"] for build, found in builds.manifests(lab.repository, lab.name).items()}
    pair = {build: goldens[build] for build in (builds.served(lab.repository, lab.name), other)}
    with TritonServer(lab.repository, models=[lab.name], log_path=lab.folder / "log") as server:
        load = TwoBuilds(server.grpc_url, pair, lab.repository, lab.name)
        servers = switching.Servers([server.grpc_url])
        lab.say(f"{load.telling} of {load.asked} golden requests tell the builds apart, and are asked")
        followed = 0
        with load.by(clients):
            load.wait_for_build(next(iter(pair)))
            for number in range(switches):
                if number % 2:
                    done = switching.rollback(lab.repository, lab.name, servers=servers, keep=_KEEP)
                else:
                    done = switching.promote(lab.repository, lab.name, other, servers=servers, keep=_KEEP)
                followed += load.wait_for_build(done.build)
    lab.say(f"{switches} switches, {clients} clients; answers by build: {dict(load.by_build)}")
    lab.promise(followed == switches, f"the build that was switched to answers after each switch ({followed})")
    judge(lab, load)


def main() -> int:
    """Builds the other, switches, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("name", help="the workload")
    parser.add_argument("recipe", type=Path, help="of the workload")
    parser.add_argument("--switches", type=int, default=20, help="promotes and rollbacks (%(default)d)")
    parser.add_argument("--clients", type=int, default=4, help="a request at a time each (%(default)d)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tritonpress-switch-") as folder:
        repository = copy_workload(options.repository, options.name, Path(folder) / "model_repo")
        build(other_recipe(options.recipe, Path(folder) / "recipes"), repository, canary=True, keep=_KEEP)
        # The server has its steps when it is told to load them, and not before.
        other = switching.withdraw(repository, options.name, keep=_KEEP)
        lab = Lab(repository, options.name, Path(folder), seconds=0, minutes=0)
        switch(lab, other, options.switches, options.clients)
    return int(bool(lab.broken))


if __name__ == "__main__":
    sys.exit(main())
