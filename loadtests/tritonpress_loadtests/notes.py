"""What to know before the figures of a stage are believed, a sentence each."""

from __future__ import annotations

from typing import Any

_FEW = 1000
_LATE_SHARE = 0.05  # of the duration


def notes(stage: dict[str, Any]) -> list[str]:
    """Returns what would make a reader trust the stage less.

    Args:
        stage: As `results.summarise_stage` makes it.
    """
    said = []
    answered = {model: figures["requests"] - figures["failed"] for model, figures in stage["by_model"].items()}
    few = [
        f"{max(1, count // 100)} of {count} requests" + (f" to {model}" if len(answered) > 1 else "")
        for model, count in answered.items()
        if count < _FEW
    ]
    if few:
        said.append(f"p99 rests on the slowest {', '.join(few)}: run longer to trust it")
    if stage["warm_up_s"]:
        said.append(
            f"the first {stage['warm_up_s']:g} s differ from the rest and are no part of the latencies and their"
            " limits; their requests are counted"
        )
    if stage["stable"] is not True:
        said.append(f"not stable: {'; '.join(stage['unstable'])}")
    if stage["generator"]["bottleneck"]:
        said.append(f"the load generator was the bottleneck: it {stage['generator']['bottleneck']}")
    began_late_s = stage["generator"]["began_late_s"]
    if began_late_s > _LATE_SHARE * stage["planned_duration_s"]:
        said.append(
            f"a process of the load began {began_late_s:.1f} s late, and asked for the whole duration since: less"
            " was asked at the same time, and less of the server's CPU was taken, than with all in time"
        )
    if stage["late"]:
        said.append(f"{stage['late']:,} requests were sent more than 1 ms after their moment; their latency counts it")
    if stage["limit_hits"]:
        said.append(
            f"{stage['limit_hits']:,} requests had to wait, since `max_in_flight` were waiting for answers;"
            " their latency counts it"
        )
    for model, figures in stage["by_model"].items():
        seen = sum(row["answered"] for row in stage["models"] if row["model"] == model)
        answered = figures["requests"] - figures["failed"]
        if stage["models"] and seen < answered:
            said.append(
                f"the server counted {seen} of {answered} answers of {model}: other servers behind its address gave the"
                " rest, or the model was loaded anew"
            )
        if seen > figures["requests"]:
            count = f"{seen} requests to {model}, {figures['requests']} were sent"
            said.append(
                f"the server answered {count}: those of an earlier stage that had timed out, or of somebody else"
            )
    return said
