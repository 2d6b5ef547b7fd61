"""What a tiny build is made of: a seeded two-layer BERT, a vocabulary, a catalogue, queries and a recipe."""

from __future__ import annotations

import json
from pathlib import Path

ADJECTIVES = ["red", "blue", "small", "large", "old", "new", "soft", "hard"]
NOUNS = ["lamp", "chair", "table", "knife", "book", "shoe", "ball", "bowl"]
WORDS = [*ADJECTIVES, *NOUNS, "a", "for", "the", "home", "garden", "kitchen", "."]


def items() -> list[dict[str, str]]:
    """Returns 64 items, T-001 to T-064."""
    pairs = [(adjective, noun) for adjective in ADJECTIVES for noun in NOUNS]
    return [
        {"id": f"T-{i:03}", "title": f"{adjective} {noun}", "text": f"a {adjective} {noun} for the home"}
        for i, (adjective, noun) in enumerate(pairs, start=1)
    ]


def queries() -> list[dict[str, object]]:
    """Returns 24 queries; the relevant items are those that share a word."""
    catalogue = items()
    texts = [*ADJECTIVES, *NOUNS, *(f"{a} {n} for the garden" for a, n in zip(ADJECTIVES, NOUNS, strict=True))]
    return [
        {"query": text, "relevant": {i["id"]: 1 for i in catalogue if set(text.split()) & set(i["title"].split())}}
        for text in texts
    ]


def write_jsonl(path: Path, records: list[dict[str, object]] | list[dict[str, str]]) -> Path:
    """Returns `path` after writing a record a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def wordpiece_tokenizer(path: Path) -> None:
    """Writes a `tokenizer.json` that knows `WORDS` and every letter."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *WORDS,
        *(c for c in letters if c not in WORDS),
        *(f"##{c}" for c in letters),
    ]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))


def write_checkpoint(folder: Path, *, positions: int = 64) -> Path:
    """Returns `folder` with a seeded two-layer BERT for `positions` tokens in it."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    wordpiece_tokenizer(folder / "tokenizer.json")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=positions,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def write_recipe(folder: Path, **changes: object) -> Path:
    """Returns the path of a recipe for the tiny checkpoint, with top-level keys changed."""
    import yaml

    recipe: dict[str, object] = {
        "name": "recommendation",
        "task": {"recommendation": {"catalogue": "catalogue.jsonl", "top_k": 10}},
        "checkpoint": {"source": "./checkpoint"},
        "graph": ["fuse", {"quantize": {"samples": 64}}],
        "gate": {"dataset": "queries.jsonl", "metric": "ndcg@10", "keep": 0.8, "confidence": "point"},
        "engine": "onnxruntime",
        "serve": {"max_batch_size": 8, "max_length": 48, "lengths": "exact", "steps": "ensemble"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path


LABELS = ["negative", "neutral", "positive"]
TASKS: dict[str, tuple[object, str, str, dict[str, object]]] = {
    "question_answering": (
        {"question_answering": {"doc_stride": 8, "max_question_length": 12, "max_answer_length": 6, "n_best": 2}},
        "questions.json",
        "f1",
        {"max_length": 48},
    ),
    "classification": ("classification", "texts.tsv", "accuracy", {"max_length": 48}),
}
"""The recipe's task, the gate's data set and metric, and what is changed in `serve`."""


def contexts() -> list[str]:
    """Returns texts of 8 to 90 tokens, so that some need several windows of 48."""
    sentences = [f"the {adjective} {noun} for the home ." for adjective, noun in zip(ADJECTIVES, NOUNS, strict=True)]
    return [" ".join((sentences * 2)[first : first + count]) for first in range(8) for count in (1, 3, 8)]


def questions() -> list[dict[str, object]]:
    """Returns SQuAD's articles: 48 questions, of which a quarter has no answer."""
    articles: list[dict[str, object]] = []
    for number, context in enumerate(contexts()):
        words = context.split()
        answers = [{"text": word, "answer_start": context.index(word)} for word in words[1:3]]
        asked = [
            {"id": f"{number}-a", "question": "a lamp for the garden", "answers": answers},
            {"id": f"{number}-b", "question": "the kitchen", "answers": answers[:1]}
            if number % 2
            else {"id": f"{number}-b", "question": "the kitchen", "answers": [], "is_impossible": True},
        ]
        articles.append({"title": f"article {number // 4}", "paragraphs": [{"context": context, "qas": asked}]})
    return articles


def write_task(folder: Path, task: str, *, positions: int = 64) -> Path:
    """Returns the path of a recipe for `task`, with a seeded checkpoint for `positions` tokens and data beside it."""
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

    checkpoint = write_checkpoint(folder / "checkpoint", positions=positions)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(checkpoint)
    if task == "question_answering":
        model = AutoModelForQuestionAnswering.from_config(config)
        text = json.dumps({"version": "v2.0", "data": questions()})
    else:
        config.update({"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}})
        model = AutoModelForSequenceClassification.from_config(config)
        rows = [f"{context}\t{LABELS[i % len(LABELS)]}\n" for i, context in enumerate(contexts())]
        text = "".join(["text\tlabel\n", *rows])
    # Far from each other, as trained weights make them: random ones answer everything nearly alike.
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim == 2 else 1
    model.save_pretrained(checkpoint, safe_serialization=True)
    settings, dataset, metric, serve = TASKS[task]
    (folder / dataset).write_text(text, encoding="utf-8")
    return write_recipe(
        folder,
        name=task,
        task=settings,
        gate={"dataset": dataset, "metric": metric, "keep": 0.01, "confidence": "point"},
        serve={"max_batch_size": 8, "lengths": "exact", "steps": "single", **serve},
    )
