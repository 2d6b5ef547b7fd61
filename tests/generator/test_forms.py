"""Which form of the lengths is chosen, and what an execution of it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from tiny_sources import write_recipe
from tritonpress_generator import form_choice, ragged
from tritonpress_generator.build import build
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import fuse
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.lengths.ragged import bytes_per_token
from tritonpress_generator.signature import Output, Signature
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.tasks.recommendation import Head


@pytest.fixture
def sources(tiny_sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sources, tmp_path / "sources"))


def serve(**settings: object) -> dict[str, object]:
    return {"max_batch_size": 8, "max_length": 48, **settings}


def test_auto_measures_every_form_and_takes_the_fastest(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_choice, "_SLICE_S", 0.05)
    lengths = build(write_recipe(sources, serve=serve(lengths="auto")), tmp_path / "out").manifest["lengths"]
    measured = lengths["measured"]
    assert set(measured) == {"exact", "ragged", "buckets"}
    assert lengths["form"] == max(measured, key=lambda form: float(measured[form]["texts_per_s"]))
    assert all(0 < figures["low"] <= figures["texts_per_s"] <= figures["high"] for figures in measured.values())
    assert measured["exact"]["padding"] == measured["ragged"]["padding"] == 0
    assert lengths["samples"] == 24


BATCHING = Batching(pad_id=0, packed=True)
BATCHES = [Sequences([[0, 0], [0]], [1, 1])] * 5
"""Of two texts each, which are one execution."""


def test_measure_finds_the_faster_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: how busy the machine is decides nothing."""
    now = [0.0]
    monkeypatch.setattr(form_choice, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    ran: list[str] = []

    def taking(name: str, seconds: float) -> Infer:
        def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
            ran.append(name)
            # Something else has the machine once, in the second of the three rounds.
            now[0] += 1.0 if ran.count(name) == 90 else seconds
            return {}

        return infer

    candidates = {
        name: form_choice.Candidate(BATCHING, [taking(name, seconds)]) for name, seconds in (("a", 0.03), ("b", 0.01))
    }
    figures = form_choice.measure(candidates, BATCHES, rounds=3)
    assert figures["a"].texts_per_s == pytest.approx(2 / 0.03)
    assert figures["b"].texts_per_s == pytest.approx(2 / 0.01)
    assert figures["b"].low < 0.9 * figures["b"].texts_per_s
    assert figures["a"].padding == 0


def test_workers_run_at_once() -> None:
    both, met = threading.Barrier(2), []

    def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
        met.append(both.wait(timeout=60))
        return {}

    assert form_choice.rate(form_choice.Candidate(BATCHING, [infer, infer]), BATCHES, 0.0) > 0
    assert sorted(met) == [0, 1]


def test_samples_of_the_recipe_decide_the_borders(sources: Path, tmp_path: Path) -> None:
    (sources / "samples.txt").write_text(2 * ("lamp\n" + "red lamp\n" * 3 + "\n" + "lamp " * 30 + "\n"))
    recipe = write_recipe(sources, serve=serve(lengths={"buckets": {"count": 2}}, samples="samples.txt"))
    manifest = build(recipe, tmp_path / "out").manifest
    assert manifest["lengths"]["samples"] == 10
    assert manifest["lengths"]["padding"] == pytest.approx(1 / 48)
    (settings,) = (tmp_path / "out").glob("*/1/settings.json")
    assert json.loads(settings.read_text())["batching"]["borders"] == [4, 32, 48]


@pytest.mark.parametrize(
    ("prepare", "settings", "message"),
    [
        (lambda s: None, {"samples": "none.txt"}, "none.txt: cannot be read"),
        (lambda s: (s / "x.txt").write_text(" \n"), {"samples": "x.txt"}, "must have at least one text, got none"),
        (lambda s: (s / "x.txt").write_text("lamp\n\x07\n"), {"samples": "x.txt"}, r"x.txt: text 2 must have text"),
        (
            lambda s: (s / "x.txt").write_text("a\tlamp\n"),
            {"samples": "x.txt"},
            "QUERY alone, without tabs, has 2 parts",
        ),
        (
            lambda s: (s / "x.txt").write_text("lamp\n" * 7),
            {"samples": "x.txt"},
            "at least 8 texts, serve.samples has 7",
        ),
        (lambda s: None, {"lengths": [16, 40]}, r"serve\.lengths: must be ascending and end with serve\.max_length"),
        (lambda s: None, {"lengths": {"ragged": {"max_tokens": 100}}}, "must have room for 384 tokens .* got max_tok"),
        (lambda s: None, {"steps": "sinlge"}, "serve.steps: unknown word 'sinlge'; did you mean 'single'"),
        (lambda s: None, {"too_long": "shrink"}, "serve.too_long: input should be 'cut' or 'refuse'"),
    ],
)
def test_what_cannot_be_served_is_refused(
    sources: Path, tmp_path: Path, prepare: Callable[[Path], object], settings: dict[str, object], message: str
) -> None:
    prepare(sources)
    with pytest.raises(InputError, match=message):
        build(write_recipe(sources, serve=serve(**{"lengths": "exact", **settings})), tmp_path / "out")
    assert not (tmp_path / "out" / "recommendation").exists()


EXECUTION = """
import sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
def peak(sequences, length):
    feed = {"input_ids": np.full(sequences * length, 7), "lengths": np.full(sequences, length)}
    session.run(None, feed)
    # Not getrusage, whose figure begins with that of the process that started this one.
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
before = peak(1, 8)
print(peak(int(sys.argv[2]), int(sys.argv[3])) - before)
"""


@pytest.mark.parametrize(("sequences", "length"), [(64, 64), (1024, 4)])
def test_execution_takes_what_its_tokens_are_said_to_take(tmp_path: Path, sequences: int, length: int) -> None:
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=90, hidden_size=256, num_hidden_layers=3, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=64,
    )  # fmt: skip
    encoder = hf.AutoModel.from_config(config, attn_implementation=ragged.ATTENTION).eval()
    plain = ragged.export(Head(encoder, "mean").eval(), Signature({"embedding": Output(256)}))
    path = tmp_path / "model.onnx"
    path.write_bytes(fuse.apply(plain, fuse.Config(), []).SerializeToString())
    command = [sys.executable, "-c", EXECUTION, str(path), str(sequences), str(length)]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    share = taken / (sequences * length * bytes_per_token(encoder))
    assert 0.3 < share <= 1.1
