"""A worker: what plans answer to what was recorded, in a process that a plan may end.

python -m visit.answers_worker
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritonpress_generator.plans.runner import PlanError

from visit import plans
from visit.contest import work


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Returns how far a plan's answers are: `{"compare": [visit, plan, name, rung]}` of a shape's, or
    `{"answer": [plan, recorded, out]}` of a workload's, which are kept (`plans.answer`)."""
    if "compare" in request:
        visit, plan, name, rung = request["compare"]
        return plans.compare(Path(visit), Path(plan), name, rung)
    return plans.answer(*map(Path, request["answer"]))


if __name__ == "__main__":
    work(lambda: ({}, measure), (PlanError, OSError, ValueError, LookupError))
