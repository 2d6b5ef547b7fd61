"""Which graph pass has broken the metric: what is served is measured after each of them."""

from __future__ import annotations

from dataclasses import replace

from tritonpress_generator import forms, gate
from tritonpress_generator.answering import Answers
from tritonpress_generator.errors import GateError
from tritonpress_generator.workload import Workload


def first_missed(workload: Workload, form: forms.Form, source: forms.Source, baseline: Answers) -> str:
    """Returns the word of the graph pass after which the gate is missed first.

    It is for a build whose graph has missed: that of all passes is not measured again, and each of the others takes an
    export, the passes and an engine of its own.

    Args:
        workload: What is built.
        form: Its model.
        source: What the form was made of.
        baseline: The FP32 checkpoint's answers to the labelled data.
    """
    recipe = workload.recipe
    before = workload.scores(baseline, baseline)
    for count, stage in enumerate(recipe.graph[:-1], 1):
        shorter = replace(recipe, graph=recipe.graph[:count], lengths=(form.lengths,))
        made = forms.compile_forms(shorter, source)[form.lengths.word]
        scores = workload.scores(workload.answers(made.infer(recipe.engine)), baseline)
        try:
            gate.check(recipe.gate, before, scores, stage=stage.word)
        except GateError:
            return stage.word
    return recipe.graph[-1].word
