"""A plan that could not be built here: what builds it lies in the version folder, beside the graphs that it is made of.

1/plan.json             what to build: rungs, profiles, options (`builder.py`)
1/model.RUNG.onnx       the graphs of the ladder
1/build_plan/           the builder, a package of its own
1/build_plan.sh         runs it in NVIDIA's container, and holds what it built to the gate
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonpress_server.backends.tensorrt import cuda_calls

from tritonpress_generator import builds
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans import builder, releases

if TYPE_CHECKING:
    import onnx

SETTINGS = "plan.json"
BUILDER = ("__init__.py", "__main__.py", "builder.py", "runner.py")
BUILDER_PACKAGES = ("numpy==1.26.4", "cuda-python==12.6.2.post1")
"""What NVIDIA's TensorRT container may lack; they have wheels for Python 3.10 to 3.12, as releases from 23.05 on have.
The names of this cuda-python are recorded (`tests/cuda_names.json`)."""
_SCRIPT = """#!/usr/bin/env bash
# Builds the TensorRT plan on this machine's GPU, times its precisions, and takes the fastest that passes the gate.
#
#   build_plan.sh RECIPE
#
# Needs Docker with the NVIDIA container toolkit, and tritonpress with its generator for the gate. GPU=1 takes another
# GPU; PORT, 8001 by default, is Triton's on this machine while the gate asks. The containers take packages from PyPI,
# or from what PIP_INDEX_URL and HTTPS_PROXY say.
set -euo pipefail
# 1 is the gate's verdict alone.
trap 'exit 2' ERR
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
repository=$(cd "$here/../.." && pwd)
recipe=${{1:?usage: build_plan.sh RECIPE}}
gpu="device=${{GPU:-0}}"
port=${{PORT:-8001}}
# Which ensemble serves the build that this step is of says its config, by the build's name.
step=$(basename "$(dirname "$here")")
serves_it() {{
    [ -f "$repository/$1/config.pbtxt" ] || return 1
    config=$(tr -d '[:space:]' < "$repository/$1/config.pbtxt")
    for manifest in "$repository/{workload}"/manifest.*.json; do
        build=${{manifest##*/manifest.}}
        case $config in
            *'key:"build"value{{string_value:"'"${{build%.json}}"'"}}'*) ;;
            *) continue ;;
        esac
        ! grep -qF "\\"$step\\"" "$manifest" || return 0
    done
    return 1
}}
ensemble={workload}
canary=
if ! serves_it "$ensemble"; then
    ensemble={canary}
    canary=--canary
    serves_it "$ensemble" || {{
        echo "build_plan.sh: $step: must be of the build that {workload} or its canary serves, which the gate asks," \\
            "is of neither; build it again" >&2
        exit 2
    }}
fi
# Without a home, as whoever starts this, for whom what is written is.
user=(--user "$(id -u):$(id -g)" -e HOME=/tmp -e PIP_INDEX_URL -e HTTPS_PROXY)
# --target: from 24.11 on Python's own folder is the system's (PEP 668).
pip="python3 -m pip install -q --no-cache-dir --no-deps --only-binary=:all: --target"
running=
plan=
ours=
gated=
packages=$(mktemp -d "$here/packages.XXXXXX")
# What the gate has not passed is not left to be served, and what was there before stays, whatever ends this script.
finish() {{
    [ ! "$running" ] || docker stop "$running" > /dev/null 2>&1 || true
    rm -rf "$packages"
    [ "$plan" ] || return 0
    for file in "$plan" "$plan.json"; do
        if [ "$gated" ]; then
            rm -f "$file.old"
        else
            [ ! "$ours" ] || rm -f "$file"
            [ ! -f "$file.old" ] || mv "$file.old" "$file"
        fi
    done
}}
trap finish EXIT
# The image has not all that NVIDIA's samples in Python need, cuda-python among it.
docker run --rm --gpus "$gpu" "${{user[@]}}" -v "$here:/plan" -w /plan {tensorrt_image} bash -c '
    if ! python3 -c "import numpy; from build_plan.cuda_calls import Cuda; Cuda()" 2> /dev/null; then
        '"$pip"' /tmp/packages {builder_packages} || {{
            echo "{tensorrt_image} lacks cuda-python, and pip cannot install it (above); give the container an" \
                "index that it reaches: PIP_INDEX_URL, HTTPS_PROXY" >&2
            exit 2
        }}
        export PYTHONPATH=/tmp/packages
    fi
    exec python3 -m build_plan {settings}'
chmod 755 "$packages"
docker run --rm "${{user[@]}}" -v "$packages:/packages" {triton_image} $pip /packages {packages} || {{
    echo "pip cannot install {packages}, which the Python steps need, in {triton_image} (above);" \
        "give the container an index that it reaches: PIP_INDEX_URL, HTTPS_PROXY" >&2
    exit 2
}}
{plan}
for file in "$plan" "$plan.json"; do
    # Beside what a run that was killed has set aside, there is only what no gate has passed.
    [ -f "$file.old" ] || [ ! -f "$file" ] || mv "$file" "$file.old"
done
ours=yes
while read -r rung; do
    for file in plan plan.json; do
        cp "$here/model.$rung.$file" "$plan${{file#plan}}"
    done
    # A name a precision: that of the last one is free only when Docker has removed it.
    running="tritonpress-plan-$$-$rung"
    # The step by its own name too, since where another one calls it (`steps: scripting`) no ensemble brings it along.
    docker run --rm -d --name "$running" --gpus "$gpu" -p "127.0.0.1:$port:8001" -v "$repository:/models:ro" \
        -v "$packages:/packages:ro" -e PYTHONPATH=/packages {triton_image} tritonserver --model-repository=/models \
        --model-control-mode=explicit --load-model="$ensemble" --load-model="$step"{options} > /dev/null
    status=0
    tritonpress evaluate "$recipe" --target "127.0.0.1:$port" --wait-s 300 \
        --repository "$repository" $canary || status=$?
    docker stop "$running" > /dev/null
    running=
    [ "$status" != 0 ] || gated=yes
    [ "$status" = 1 ] || exit "$status"
done < "$here/rungs.txt"
echo "no precision passes the gate; the plan stays pending" >&2
exit 1
"""
_REFUSAL = """#!/usr/bin/env bash
echo "build_plan.sh: {reason}" >&2
exit 2
"""
_ONE = 'plan="$here/model.plan"'
_SEVERAL = (
    "capability=$(python3 -c \"import json; print(json.load(open('$here/rungs.json'))['compute_capability'])\")\n"
    'plan="$here/model_$capability.plan"'
)


def write(
    version_dir: Path,
    graphs: Mapping[str, onnx.ModelProto],
    settings: Mapping[str, Any],
    *,
    release: str,
    workload: str,
    low: str | None,
) -> None:
    """Writes what builds the plan of `graphs`, the most accurate first, in the containers of `release`.

    Of a release whose Triton cannot run the Python steps the script says so; the plan may be built where TensorRT is.

    Args:
        version_dir: The folder.
        graphs: By the rungs' names.
        settings: Of the builder.
        release: Of Triton's.
        workload: The public model's name.
        low: The element type, as ONNX names it, that all rungs but fp32 may use, where the graph does not say so.
    """
    # Whoever only looks for plans, as all that reads a repository does, need not wait for it.
    import onnx

    version_dir.mkdir(parents=True, exist_ok=True)
    rungs = []
    for name, graph in graphs.items():
        onnx.save(graph, version_dir / f"model.{name}.onnx")
        of = [low] if low and name != "fp32" else []
        rungs.append({"name": name, "model": f"model.{name}.onnx", "types": sorted({*types(graph), *of})})
    text = json.dumps({"release": release, "rungs": rungs, **settings}, indent=2) + "\n"
    (version_dir / SETTINGS).write_text(text, encoding="utf-8")
    (version_dir / "build_plan").mkdir(exist_ok=True)
    for path in (*(Path(__file__).parent / name for name in BUILDER), Path(str(cuda_calls.__file__))):
        shutil.copyfile(path, version_dir / "build_plan" / path.name)
    script = _SCRIPT.format(
        tensorrt_image=releases.tensorrt_image(release),
        triton_image=releases.triton_image(release),
        settings=SETTINGS,
        options=" ".join(["", *serving_options([settings])]),
        plan=_SEVERAL if settings.get("compute_capabilities") else _ONE,
        builder_packages=" ".join(BUILDER_PACKAGES),
        packages=" ".join(f"{name}=={version(name)}" for name in ("numpy", "tokenizers")),
        workload=workload,
        canary=builds.canary_name(workload),
    )
    if reason := releases.lacks_python(release):
        script = _REFUSAL.format(reason=reason)
    path = version_dir / "build_plan.sh"
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)


def serving_options(stamps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns what NVIDIA's tritonserver must be told of plans, by their stamps or by the builder's settings."""
    if any(stamp.get("version_compatible") for stamp in stamps):
        return ["--backend-config=tensorrt,version-compatible=true"]
    return []


def types(graph: onnx.ModelProto) -> list[str]:
    """Returns the names of the element types below FP32 that the graph's constants have, sorted."""
    import onnx

    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.graph.initializer}
    return sorted(kinds & set(builder.LOW_TYPES))


def folders(repository: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """Returns the version folders of a build's steps that are of TensorRT."""
    found = (repository / step / "1" for step in manifest["steps"].values())
    return [folder for folder in found if (folder / SETTINGS).exists()]


def missing(repository: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """Returns the scripts of the plans that are still to be built, or that no gate has passed.

    What it has passed, and what was built with the rest of the build, the manifest knows.
    """
    scripts = []
    for folder in folders(repository, manifest):
        found = [str(path.relative_to(repository)) for path in plans(folder)]
        if not found or not set(found) <= set(manifest["files"]):
            scripts.append(folder / "build_plan.sh")
    return scripts


def refusal(script: Path) -> str | None:
    """Returns why one of the `missing` scripts builds nothing, or None where it builds its plan."""
    settings = json.loads((script.parent / SETTINGS).read_text(encoding="utf-8"))
    # Builds of before do not say their release.
    return releases.lacks_python(settings["release"]) if "release" in settings else None


def plans(folder: Path) -> dict[Path, dict[str, Any]]:
    """Returns the stamps of the plans in a version folder that are served, by the plan's path."""
    found = {}
    for path in sorted([*folder.glob("model.plan"), *folder.glob("model_*.plan")]):
        stamp = path.with_name(f"{path.name}.json")
        found[path] = _stamp(stamp) if stamp.exists() else {}
    return found


def _stamp(path: Path) -> dict[str, Any]:
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stamp, dict):
            raise ValueError("is no mapping")
    except (OSError, ValueError, RecursionError) as exc:
        raise InputError(f"{path}: cannot be read ({exc}); build the plan again") from exc
    return stamp
