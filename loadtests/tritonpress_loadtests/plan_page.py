"""The plan as one HTML page that needs nothing else."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from tritonpress_loadtests.plots import plan_svg
from tritonpress_loadtests.report import template

ENDS = {"limit": "then they miss the limit", "measured": "as far as was measured"}
LOST = {"nothing": "", "machine": ", one of which may fail", "zone": ", a zone of which may fail"}


def page(plan: dict[str, Any]) -> str:
    """Returns the HTML page of a plan, as `plan.make_plan` returns it with its cost and Kubernetes' figures."""
    return template("plan.html.j2").render(
        plan=plan,
        percentile="p99" if plan["demand"]["quantile"] == 0.99 else "p99.9",
        ends=ENDS[plan["machines"]["headroom_ends_at"]],
        lost=LOST[plan["demand"]["survive"]],
        plot=Markup(plan_svg(plan)),
    )
