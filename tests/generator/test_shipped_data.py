"""The demonstration's own data is well-formed, and the adapters are what their cards say."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonpress_generator import labelled_texts, squad
from tritonpress_generator import recipe as recipes
from tritonpress_generator.catalogue import load_items, load_queries

RECIPES = Path(__file__).parents[2] / "generator" / "recipes"
TRAINED = ("classification", "question_answering")
QUESTIONS = squad.load(RECIPES / "question_answering" / "customer_service.json")
TRAINING_QUESTIONS = squad.load(RECIPES / "distill" / "customers.json")
TEXTS = labelled_texts.load(RECIPES / "classification" / "financial_news.tsv")


def test_passages_and_questions_are_as_many_as_promised() -> None:
    contexts = {question.context for question in QUESTIONS}
    assert len(contexts) >= 60
    assert len(QUESTIONS) >= 240
    assert 0.18 <= sum(not question.answers for question in QUESTIONS) / len(QUESTIONS) <= 0.22
    assert len({question.question for question in QUESTIONS}) == len(QUESTIONS)
    assert all(question.question.endswith("?") for question in QUESTIONS)
    assert len({question.title for question in QUESTIONS}) == len(contexts)


def test_passages_to_train_on_have_nothing_of_those_that_judge() -> None:
    assert len(TRAINING_QUESTIONS) >= 1000
    for part in ("question", "context", "title"):
        judging, training = ({getattr(one, part).casefold() for one in of} for of in (QUESTIONS, TRAINING_QUESTIONS))
        assert not judging & training, part
    assert len({one.question for one in TRAINING_QUESTIONS}) == len(TRAINING_QUESTIONS)


def test_queries_to_train_on_have_nothing_of_those_that_judge() -> None:
    folder = RECIPES / "recommendation"
    items = {item.item_id for item in load_items(folder / "catalogue.jsonl")}
    judging = load_queries(folder / "queries.jsonl", items)
    training = load_queries(RECIPES / "distill" / "shoppers.jsonl", items)
    assert len(training) >= 2000
    assert items == {item for query in training for item in query.relevant}
    assert len({" ".join(_words(query.query)) for query in training}) == len(training)
    searched = {four for query in judging if "\n" not in query.query for four in _fours(query.query)}
    seen = [{*query.query.split("\n")} for query in judging if "\n" in query.query]
    asked = {" ".join(_words(query.query)) for query in judging}
    for query in training:
        assert " ".join(_words(query.query)) not in asked, query
        if "\n" in query.query:
            assert max(len(titles & {*query.query.split("\n")}) for titles in seen) < 2, query
        else:
            assert not searched & {*_fours(query.query)}, query


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _fours(text: str) -> Iterator[tuple[str, ...]]:
    words = _words(text)
    return zip(words, words[1:], words[2:], words[3:], strict=False)


@pytest.mark.parametrize("questions", [QUESTIONS, TRAINING_QUESTIONS], ids=["judging", "training"])
def test_answers_are_whole_words_of_their_passage(questions: list[squad.Question]) -> None:
    """That each is where it should be, `squad.load` has checked."""
    for question in questions:
        assert question.question == question.question.strip()
        assert 40 <= len(question.context.split()) <= 800
        for answer in question.answers:
            end = answer.start + len(answer.text)
            assert answer.text == answer.text.strip()
            before, after = question.context[: answer.start][-1:], question.context[end : end + 1]
            assert not (before.isalnum() and answer.text[0].isalnum()), answer
            assert not (after.isalnum() and answer.text[-1].isalnum()), answer


def test_passages_have_characters_of_many_kinds_and_some_need_windows() -> None:
    everything = "".join({question.context for question in QUESTIONS})
    for kind in (
        "€",
        "é",
        "e\u0301",
        "[\u0590-\u05ff]",
        "[\u0600-\u06ff]",
        "[\u4e00-\u9fff]",
        "[\U0001f300-\U0001faff]",
    ):
        assert re.search(kind, everything), kind
    assert max(len(question.context.split()) for question in QUESTIONS) >= 600


def test_sentences_of_financial_news() -> None:
    assert len(TEXTS) >= 200
    assert len({row.text.casefold() for row in TEXTS}) == len(TEXTS)
    labels = Counter(row.labels[0] for row in TEXTS)
    assert set(labels) == {"positive", "neutral", "negative"}
    assert min(labels.values()) >= 60
    for row in TEXTS:
        assert row.text == row.text.strip()
        assert 4 <= len(row.text.split()) <= 40


def test_adapters_are_small() -> None:
    files = [RECIPES / task / "adapter" / "adapter_model.safetensors" for task in TRAINED]
    assert sum(path.stat().st_size for path in files) <= 3_000_000


@pytest.mark.parametrize("task", TRAINED)
def test_adapter_and_its_card_belong_to_the_recipe(task: str) -> None:
    recipe = recipes.load(RECIPES / f"{task}.yaml")
    folder = RECIPES / task / "adapter"
    card = (folder / "README.md").read_text(encoding="utf-8")
    config, data = recipe.finetune.config, recipe.data
    assert data is not None
    for file in (*data.train, *data.validation, *data.test):
        assert file in card
    assert f"seed: {config.seed}\n" in card
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == recipe.checkpoint.source
    assert settings["r"] == config.lora.rank
    assert config.lora.written == "fp8"
    # Both factors were multiplied by the same power of two.
    assert np.log2(config.lora.alpha / settings["lora_alpha"]) % 2 == 0


def test_compressed_models_travel_as_masks_and_low_rank_differences() -> None:
    folders = [path.parent for path in RECIPES.rglob("cuts.json")]
    assert folders
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= 3_000_000
    for folder in folders:
        assert (RECIPES / "distill" / f"{folder.parent.name}.yaml").is_file()
        assert "distill:" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((RECIPES / "distill").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_made_a_compressed_model_can_be_written_so(path: Path) -> None:
    recipe = recipes.load(path)
    *cuts, last = recipe.passes
    assert last.word == "distill"
    assert last.config.lora.written == "fp8"
    assert {stage.word for stage in cuts} <= {"crop", "prune"} | ({"restore"} if last.config.from_checkpoint else set())
