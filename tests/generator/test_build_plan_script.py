"""`build_plan.sh` serves the fastest precision that passes the gate, or leaves what was there.

`docker` and the gate's verdict are stand-ins here: what runs in NVIDIA's containers is seen on a GPU alone.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tritonpress_generator.plans import pending


def commands(folder: Path, *, gate: dict[str, int]) -> Path:
    """Returns a folder with a `docker` that builds nothing but files, and a `tritonpress` of the gate's verdicts."""
    folder.mkdir()
    verdicts = " ".join(f"{name}) exit {status};;" for name, status in gate.items())
    scripts = {
        "docker": """case "$*" in
            *build_plan\\ plan.json*) for rung in fp16 int8; do
                echo "plan $rung" > "$PLAN/model.$rung.plan"; echo "{}" > "$PLAN/model.$rung.plan.json"; done
                printf "int8\\nfp16\\n" > "$PLAN/rungs.txt"; echo '{"compute_capability": "9.0"}' > "$PLAN/rungs.json";;
        esac""",
        "tritonpress": f"""case "$(cat "$PLAN"/model.plan "$PLAN"/model_9.0.plan 2>/dev/null | tail -1)" in
            {verdicts.replace("int8)", '"plan int8")').replace("fp16)", '"plan fp16")')}
        esac""",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("gate", "status", "served"),
    [
        ({"int8": 0, "fp16": 0}, 0, "plan int8\n"),
        ({"int8": 1, "fp16": 0}, 0, "plan fp16\n"),
        ({"int8": 1, "fp16": 1}, 1, "old"),
        ({"int8": 2, "fp16": 0}, 2, "old"),
    ],
)
def test_script_serves_the_fastest_that_passes_the_gate_or_leaves_what_was_there(
    tmp_path: Path, several: bool, gate: dict[str, int], status: int, served: str
) -> None:
    capabilities = ["8.0", "9.0"] if several else []
    folder = tmp_path / "step" / "1"
    pending.write(folder, {}, {"compute_capabilities": capabilities}, release="24.10", workload="x", low=None)
    plan = folder / ("model_9.0.plan" if several else "model.plan")
    other = folder / "model_8.0.plan"
    for path in (plan, plan.with_name(f"{plan.name}.json"), other):
        path.write_text("old")
    path = f"{commands(tmp_path / 'bin', gate=gate)}:/usr/bin:/bin"
    environment = {"PATH": path, "PLAN": str(folder)}
    done = subprocess.run([folder / "build_plan.sh", "recipe.yaml"], env=environment, capture_output=True, check=False)
    assert done.returncode == status, done.stderr
    assert plan.read_text() == served
    assert plan.with_name(f"{plan.name}.json").read_text() == ("old" if served == "old" else "{}\n")
    assert other.read_text() == "old"
    assert not list(folder.glob("*.old"))
