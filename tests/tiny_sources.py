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


def write_checkpoint(folder: Path) -> Path:
    """Returns `folder` with a seeded two-layer BERT in it."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    wordpiece_tokenizer(folder / "tokenizer.json")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
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
        "gate": {"dataset": "queries.jsonl", "metric": "ndcg@10", "keep": 0.8},
        "engine": "onnxruntime",
        "serve": {"max_batch_size": 8, "max_length": 48, "lengths": "exact", "steps": "ensemble"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path
