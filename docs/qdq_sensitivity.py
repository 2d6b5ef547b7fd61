"""Says what each part's INT8 by `qdq` costs, and which parts `keep` leaves out; the table of docs/measurements.md.

    HF_HUB_OFFLINE=1 .venv/bin/python docs/qdq_sensitivity.py generator/recipes/question_answering.yaml --data FOLDER

Errors are of a part alone; the metric is of the held-out examples of the recipe's `data`, run by ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx
from tritonpress_generator import forms, sensitivity
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.graph import GraphMaterial, qdq
from tritonpress_generator.kept import Kept
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload


def main() -> None:
    """Prints the tables, and the gate's metrics of what was chosen."""
    parser = argparse.ArgumentParser(description="Says what each part's INT8 costs, and which parts are left out.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the recipe's data")
    parser.add_argument("--keep", type=float, default=0.99)
    parser.add_argument("--most", type=int, default=1000, help="held-out examples")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe)
    exact = recipes.lengths_of("exact", recipe.engine, path=options.recipe)
    workload = Workload.load(replace(recipe, graph=(), lengths=exact), Progress())
    examples = workload.material(options.data)
    source = workload.source(material=examples)
    fp32 = forms.compile_forms(workload.recipe, source)["exact"].fp32

    def score(graph: onnx.ModelProto) -> float:
        return examples.score(session_infer(graph.SerializeToString()), workload.tokenizer, options.most)

    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder))
        material = GraphMaterial(kept, score, held_out=source.held_out)
        config = qdq.Config(keep=options.keep)
        graph = qdq.apply(fp32, config, [feed for _, feed in alone(source.calibration)], material)
        kept.save()
        values = [json.loads(path.read_text(encoding="utf-8"))["value"] for path in Path(folder).glob("*.json")]
        (record,) = [value for value in values if "left_out" in value]
    print(sensitivity.table(record))
    print(workload.metrics(workload.answers(session_infer(graph.SerializeToString()))))


if __name__ == "__main__":
    main()
