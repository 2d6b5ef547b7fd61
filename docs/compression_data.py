"""Writes what the demonstration's compressed models were trained, chosen and judged on, out of the public sets.

.venv/bin/python docs/compression_data.py DATA OUT

Classification: SEntFiN's training headlines but the last 600, which decide, and as many texts again of the first half
of one and the second half of another, for which the original says what is to be learnt (more examples, as Jiao et al.
2020 make for "TinyBERT"). Recommendation: pairs of English texts that belong together, and the recipe, whose catalogue
they are. Some are made of the catalogues themselves, which whoever compresses a model has: neighbouring sentences of
one item, a sentence and its item, lists of titles drawn at random; four fifths of the queries that were written for the
shipped catalogue (`distill/shoppers.jsonl`, without a look at those that judge) are among them. What judges are the
queries of SciFact, of Online Retail and MovieTweetings, and the shipped ones, which are not read here (a list of titles
may be one of them by chance). Question answering: the training files as they are, with four fifths of the passages that
were written for this (`distill/customers.json`: help pages with their customers' questions, none of them among those
that judge); 400 questions of Wikipedia and the other fifth, which decide; and 2,464 of XQuAD and of SQuADShifts'
held-out reviews and posts that judge.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import operator
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_HELD_OUT = ("eval_xquad", "dev_shifts_amazon_reviews", "dev_shifts_reddit")
_RECIPES = Path(__file__).resolve().parents[1] / "generator" / "recipes"
_DECIDING = 600
_FIFTH = 5
_PAIRS_EACH = 4000
_SHOPPERS_EACH = 4
"""How often the queries that were written for the shipped catalogue are among the training pairs."""
_GENERAL_EACH = 6000
_SHORTEST, _TITLES = 15, 10
"""Characters of a sentence, and titles of a list at most."""
_SEED = 0
_SEED_OF_NEARER = 3


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the public sets")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    _classification(options.data, options.out)
    _question_answering(options.data, options.out)
    _recommendation(options.data, options.out)


def _classification(data: Path, out: Path) -> None:
    rows = _table(data / "classification" / "sentfin_train.tsv")
    training, deciding = rows[:-_DECIDING], rows[-_DECIDING:]
    generator = random.Random(_SEED)
    halves = [(text.split(), label) for text, label in training]
    joined = []
    for words, label in halves:
        other, _ = generator.choice(halves)
        joined.append((" ".join(words[: (len(words) + 1) // 2] + other[len(other) // 2 :]), label))
    _write_table(out / "sentfin_training.tsv", [*training, *joined])
    _write_table(out / "sentfin_deciding.tsv", deciding)
    shutil.copy(data / "classification" / "sentfin_dev.tsv", out)


def _question_answering(data: Path, out: Path) -> None:
    deciding: list[Any] = []
    articles = _articles(data / "qa" / "dev_shifts_new_wiki.json.gz")
    for number in range(max(len(article["paragraphs"]) for article in articles)):
        for article in articles:
            if number < len(article["paragraphs"]) and _questions(deciding) < 400:
                deciding.append({"title": article["title"], "paragraphs": [article["paragraphs"][number]]})
    _write_squad(out / "qa_deciding.json.gz", deciding)
    with (_RECIPES / "distill" / "customers.json").open(encoding="utf-8") as file:
        customers = json.load(file)["data"]
    decides = [number % _FIFTH == 0 for number in range(len(customers))]
    _write_squad(out / "customers_deciding.json.gz", [*itertools.compress(customers, decides)])
    _write_squad(out / "train_customers.json.gz", [*itertools.compress(customers, map(operator.not_, decides))])
    _write_squad(out / "qa_held_out.json.gz", [a for file in _HELD_OUT for a in _articles(_qa(data, file))])
    for path in sorted((data / "qa").glob("train_*.json.gz")):
        shutil.copy(path, out)


def _recommendation(data: Path, out: Path) -> None:
    generator = random.Random(_SEED)
    lines = (_RECIPES / "recommendation" / "catalogue.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    pairs = [(item["title"], item["text"]) for item in items]
    pairs += [(item["title"], f"{item['title']}. {item['text']}") for item in items]
    for file in ("train_squad11_part", "train_shifts_new_wiki", "train_shifts_amazon_reviews", "train_shifts_reddit"):
        found = [*_answered(_articles(_qa(data, file)))]
        pairs += generator.sample(found, min(_PAIRS_EACH, len(found)))
    for file in ("banking77_train.tsv", "sentfin_train.tsv"):
        pairs += generator.sample([*_alike(_table(data / "classification" / file), generator)], 2000)
    texts = [f"{item['title']}. {item['text']}" for item in items]
    with gzip.open(data / "retrieval" / "scifact_corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        texts += [f"{(item := json.loads(line))['title']}. {item['text']}" for line in file]
    own, abstracts = {*texts[: len(items)], *(item["text"] for item in items)}, texts[len(items) :]
    pairs += _of_catalogue(texts)
    pairs += [(generator.choice(_sentences(text) or [text]), text) for text in texts for _ in range(2)]
    all_titles: set[str] = set()
    for file, most in (("retail_products", 1500), ("movies", 1500)):
        with (data / "catalogues" / f"{file}.tsv").open(encoding="utf-8", newline="") as lines_of:
            titles = [row["title"] for row in csv.DictReader(lines_of, delimiter="\t", quoting=csv.QUOTE_NONE)]
        pairs += [_beside_each_other(titles, generator) for _ in range(most)]
        all_titles.update(titles)
    pairs = [pair for pair in pairs if all(text.strip() for text in pair)]
    generator.shuffle(pairs)
    deciding, training = pairs[:400], pairs[400:]
    shoppers = [*_shoppers({item["id"]: f"{item['title']}. {item['text']}" for item in items})]
    for number, asked in enumerate(shoppers):
        if number % _FIFTH:
            training += asked * _SHOPPERS_EACH
        else:
            deciding += asked[:1]
    generator.shuffle(training)
    names = {text: f"T{number}" for number, text in enumerate(dict.fromkeys(t for _, t in (*deciding, *training)))}
    requests, headlines = (
        {text for text, _ in _table(data / "classification" / file)}
        for file in ("banking77_train.tsv", "sentfin_train.tsv")
    )
    sentences = {part for text in abstracts for part in _parts(text)}
    asked_by_shoppers, abstracts_too = {query for asked in shoppers for query, _ in asked}, {*abstracts}
    nearer = _nearer(
        training,
        {
            "shoppers": lambda query, _: query in asked_by_shoppers,
            "own": lambda _, text: text in own,
            "abstracts": lambda _, text: text in abstracts_too,
            "neighbours": lambda query, text: {query, text} <= sentences,
            "lists": lambda _, text: text in all_titles,
            "headlines": lambda query, text: query in headlines or text in headlines,
            "requests": lambda query, text: query in requests or text in requests,
            "answered": lambda *_: True,
        },
    )
    for _, text in nearer:
        names.setdefault(text, f"T{len(names)}")
    _write_lines(out / "pairs_items.jsonl", [{"id": name, "title": "", "text": text} for text, name in names.items()])
    files = {"pairs_training.jsonl": training, "pairs_nearer.jsonl": nearer, "pairs_deciding.jsonl": deciding}
    for path, chosen in files.items():
        _write_lines(out / path, [{"query": query, "relevant": {names[text]: 1}} for query, text in chosen])
    for recipe in ("recommendation", "recommendation_further", "recommendation_nearer"):
        shutil.copy(_RECIPES / "distill" / f"{recipe}.yaml", out)
    texts_of_pairs = (text for pair in (*deciding, *training) for text in pair)
    (out / "corpus.txt").write_text("\n".join(texts_of_pairs), encoding="utf-8")


def _nearer(
    training: Sequence[tuple[str, str]], kinds: Mapping[str, Callable[[str, str], bool]]
) -> list[tuple[str, str]]:
    """Returns those of `training` that labels can be learnt from: true pairs, and of the general ones a part.

    A list of titles has one of its own beside it, since the one that it had was drawn at random.
    """
    of_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in training:
        of_kind[next(kind for kind, has in kinds.items() if has(*pair))].append(pair)
    generator = random.Random(_SEED_OF_NEARER)
    chosen = [pair for kind in ("shoppers", "own", "abstracts") for pair in of_kind[kind]]
    for kind in ("neighbours", "answered"):
        chosen += generator.sample(of_kind[kind], min(_GENERAL_EACH, len(of_kind[kind])))
    chosen += of_kind["requests"]
    chosen += [(query, generator.choice(query.split("\n"))) for query, _ in of_kind["lists"]]
    generator.shuffle(chosen)
    return chosen


def _shoppers(texts: dict[str, str]) -> Iterator[list[tuple[str, str]]]:
    """Yields each of the written queries with the items that suit it, the best first."""
    for line in (_RECIPES / "distill" / "shoppers.jsonl").read_text(encoding="utf-8").splitlines():
        query = json.loads(line)
        yield [(query["query"], texts[item]) for item in query["relevant"]]


def _answered(articles: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yields each question with the sentence that answers it."""
    for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
        context = paragraph["context"]
        ends = [match.end() for match in re.finditer(r"[.!?]\s+", context)] + [len(context)]
        for question in paragraph["qas"]:
            start = question["answers"][0]["answer_start"]
            end = next(end for end in ends if end > start)
            first = max((other for other in ends if other <= start), default=0)
            yield question["question"].strip(), context[first:end].strip()


def _of_catalogue(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the sentences of each text in pairs of neighbours, short ones and the last of an odd number left out."""
    pairs = []
    for text in texts:
        sentences = _sentences(text)
        pairs += list(zip(sentences[::2], sentences[1::2], strict=False))
    return pairs


def _sentences(text: str) -> list[str]:
    return [part for part in _parts(text) if len(part) >= _SHORTEST]


def _parts(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text.strip())


def _beside_each_other(titles: Sequence[str], generator: random.Random) -> tuple[str, str]:
    """Returns titles at random, one a line, as a customer's are asked, and one more."""
    return "\n".join(generator.sample(titles, generator.randint(1, _TITLES))), generator.choice(titles)


def _alike(rows: Sequence[tuple[str, str]], generator: random.Random) -> Iterator[tuple[str, str]]:
    """Yields each text with another of its label."""
    of_label = defaultdict(list)
    for text, label in rows:
        of_label[label].append(text)
    for text, label in rows:
        yield text, generator.choice(of_label[label])


def _qa(data: Path, name: str) -> Path:
    return data / "qa" / f"{name}.json.gz"


def _articles(path: Path) -> list[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles: list[Any] = json.load(file)["data"]
        return articles


def _questions(articles: Sequence[Any]) -> int:
    return sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])


def _table(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def _write_table(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    lines = ["text\tlabel", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_squad(path: Path, articles: Sequence[Any]) -> None:
    content = json.dumps({"version": "1.1", "data": articles}).encode()
    path.write_bytes(gzip.compress(content, mtime=0))


def _write_lines(path: Path, records: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
