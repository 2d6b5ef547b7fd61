"""`tritonpress-query`: asks a served model, or the server how it is."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tritonpress_client.connection import Connection
from tritonpress_client.errors import DeadlineExceededError, InferenceError, InvalidInputError, TritonpressError
from tritonpress_client.health import Health, health
from tritonpress_client.recommender import Recommendation, Recommender

_EXIT_STATUS = "Exit status: 0 done; 1 the server is not ready, failed or was too slow; 2 the input is at fault."


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the command."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except TritonpressError as exc:
        print(f"tritonpress-query: {exc}", file=sys.stderr)
        return 1 if isinstance(exc, DeadlineExceededError | InferenceError) else 2
    except BrokenPipeError:
        # The reader (`| head`) has had enough; what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    server = _Parser(add_help=False)
    server.add_argument("--url", default="127.0.0.1:8001", help="HOST:PORT of Triton's gRPC endpoint (%(default)s)")
    server.add_argument("--timeout-s", type=float, default=5.0, help="deadline of each request (%(default)s)")
    server.add_argument("--json", action="store_true", help="print JSON, a line each")

    parser = _Parser(prog="tritonpress-query", description=__doc__, epilog=_EXIT_STATUS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    recommend = commands.add_parser(
        "recommend", parents=[server], help="the items that match a query", epilog=_EXIT_STATUS
    )
    recommend.add_argument(
        "text", nargs="*", metavar="TEXT", help="what the user looks for, or titles seen, one a line"
    )
    recommend.add_argument("--file", type=Path, help='queries, one a line; *.jsonl: one {"query": …} a line')
    recommend.add_argument("-k", type=int, help="how many items (all that the model gives)")
    recommend.add_argument("--model", default="recommendation", help="name of the ensemble (%(default)s)")
    recommend.add_argument("--catalogue", type=Path, help="JSONL with id and title, to print titles")
    recommend.set_defaults(run=_recommend)

    state = commands.add_parser(
        "health", parents=[server], help="the server, its models, their counts", epilog=_EXIT_STATUS
    )
    state.set_defaults(run=_health)
    return parser


def _recommend(arguments: argparse.Namespace) -> int:
    if bool(arguments.text) == (arguments.file is not None):
        raise InvalidInputError("give either TEXT or --file FILE")
    queries = arguments.text or list(_read_queries(arguments.file))
    titles = _read_titles(arguments.catalogue) if arguments.catalogue else {}
    with Recommender(arguments.url, model=arguments.model, timeout_s=arguments.timeout_s) as recommender:
        answers = recommender.recommend_many(queries, arguments.k)
    for query, items in zip(queries, answers, strict=True):
        if arguments.json:
            print(json.dumps({"query": query, "items": [_as_dict(item, titles) for item in items]}, ensure_ascii=False))
        else:
            print("\n".join(_lines(query, items, titles)))
    return 0


def _as_dict(item: Recommendation, titles: dict[str, str]) -> dict[str, Any]:
    title = {"title": titles[item.item_id]} if item.item_id in titles else {}
    return {"item_id": item.item_id, "score": item.score, **title}


def _lines(query: str, items: list[Recommendation], titles: dict[str, str]) -> Iterator[str]:
    """Yields the query and its items, a line each: rank, score, id, title."""
    yield " / ".join(query.splitlines())
    rank_width, id_width = len(str(len(items))), max(len(item.item_id) for item in items)
    for rank, item in enumerate(items, start=1):
        row = f"  {rank:>{rank_width}}  {item.score:8.4f}  {item.item_id:<{id_width}}  {titles.get(item.item_id, '')}"
        yield row.rstrip()


def _health(arguments: argparse.Namespace) -> int:
    with Connection(arguments.url, timeout_s=arguments.timeout_s) as connection:
        state: Health = health(connection)
    print(json.dumps(state.as_dict(), ensure_ascii=False) if arguments.json else state.table())
    return 0 if state.ready else 1


def _read_queries(path: Path) -> Iterator[str]:
    """Yields the file's queries; empty lines are left out."""
    found = False
    for number, line in _read_lines(path):
        query = _entry(path, number, line, "query")["query"] if path.suffix == ".jsonl" else line
        found = True
        yield query
    if not found:
        raise InvalidInputError(f"{path} holds no query; put one on each line")


def _read_titles(path: Path) -> dict[str, str]:
    """Returns the catalogue's titles by id."""
    entries = (_entry(path, number, line, "id", "title") for number, line in _read_lines(path))
    return {entry["id"]: entry["title"] for entry in entries}


def _entry(path: Path, number: int, line: str, *keys: str) -> dict[str, str]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as exc:
        raise InvalidInputError(f"{path}:{number} is not JSON ({exc}); write one object a line") from exc
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
        wanted = ", ".join(f'"{key}": TEXT' for key in keys)
        raise InvalidInputError(f"{path}:{number} must be an object with {wanted}")
    return entry


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that hold something, with their numbers."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except OSError as exc:
        raise InvalidInputError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{path} is not UTF-8 ({exc.reason} at byte {exc.start}); convert it") from exc


if __name__ == "__main__":
    sys.exit(main())
