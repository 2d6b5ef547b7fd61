"""Another build of the tiny workload, of which every step differs: what mixes the two answers like neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tiny_sources import WORDS, items, queries, write_jsonl


def write_other_sources(sources: Path, folder: Path) -> Path:
    """Returns the path of the recipe in a copy of the tiny sources with other token ids, weights and item ids."""
    import torch
    from transformers import AutoConfig, BertModel

    shutil.copytree(sources, folder)
    path = folder / "checkpoint" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= dict(zip(WORDS, [vocabulary[word] for word in reversed(WORDS)], strict=True))
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    torch.manual_seed(7)
    model = BertModel(AutoConfig.from_pretrained(folder / "checkpoint"))
    model.save_pretrained(folder / "checkpoint", safe_serialization=True)
    write_jsonl(folder / "catalogue.jsonl", [{**item, "id": item["id"].replace("T", "U")} for item in items()])
    asked = [
        {"query": query["query"], "relevant": {key.replace("T", "U"): 1 for key in query["relevant"]}}  # type: ignore[attr-defined]
        for query in queries()
    ]
    write_jsonl(folder / "queries.jsonl", asked)
    return folder / "recipe.yaml"
