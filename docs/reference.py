"""Writes the pages of all keys and options, from the settings' own classes and the commands' own parsers.

python docs/reference.py            # docs/recipe.md, docs/scenario.md, docs/commands.md
python docs/reference.py --check    # writes nothing; status 1 where a page is not as the code has it
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tritonpress_client import cli as client
from tritonpress_generator import cli as generator
from tritonpress_generator import plugins, recipe_text
from tritonpress_generator.bench import __main__ as bench
from tritonpress_generator.search import settings as search
from tritonpress_generator.training import settings
from tritonpress_loadtests import cli as loads
from tritonpress_loadtests import scenario
from tritonpress_server import cli as server

DOCS = Path(__file__).parent
MADE = "*Made by `docs/reference.py` from the code; `make check` holds it to that.*"
STAGES = {
    "task": "tasks",
    "passes": "passes",
    "graph": "graph",
    "engine": "engines",
    "serve.lengths": "lengths",
    "finetune": "training",
}
"""The recipe's keys whose words are files, and their folders."""
RANGES = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
MANY = 1 << 31
"""A limit that nobody comes to is not told."""
ANY_KEYS = "keys"
RECIPE, SCENARIO = "A recipe", "A scenario"
EVERY_TRAINING = "Every training"
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}


class Page:
    """The tables of settings on one page; a class that is named twice has one table."""

    def __init__(self, base: type[BaseModel] | None = None, place: str = "") -> None:
        """Begins a page.

        Args:
            base: What several of its settings have in common.
            place: The heading under which that has its own table.
        """
        self._places: dict[str, str] = {}
        self._base: dict[str, Any] = base.model_json_schema()["properties"] if base else {}
        self._base_place = place

    def section(self, key: str, model: type[BaseModel], *, level: int = 2, text: str | None = None) -> Iterator[str]:
        """Yields the lines on the settings at `key`, and on those inside them."""
        schema = model.model_json_schema()
        inner = schema.pop("$defs", {})
        new = [(key, schema)]
        while new:
            place, part = new.pop(0)
            top = part is schema
            told = text if top and text is not None else _told(part.get("description", ""))
            yield from [f"{'#' * (level if top else level + 1)} {place}", "", told, ""]
            named = self._named_first(place, part, inner)
            self._places |= {name: path for path, name in named}
            yield from self._table(place, part["properties"], part.get("required", ()))
            new = [(path, inner[name]) for path, name in named] + new

    def _named_first(self, key: str, schema: dict[str, Any], inner: dict[str, Any]) -> list[tuple[str, str]]:
        """Returns where, and by their names, the classes that are named for the first time on this page."""
        above = "" if key in (RECIPE, EVERY_TRAINING, SCENARIO) else key.split(" ", maxsplit=1)[0].strip("`") + "."
        found: dict[str, str] = {}
        for name, prop in schema["properties"].items():
            for reference in re.findall(r"#/\$defs/(\w+)", repr(prop)):
                if reference not in self._places:
                    found.setdefault(reference, f"{above}{name}")
        return [(path, name) for name, path in found.items() if "properties" in inner[name]]

    def _table(self, key: str, properties: dict[str, Any], required: Sequence[str]) -> Iterator[str]:
        own = properties
        if key != self._base_place and self._base and self._base.items() <= properties.items():
            yield from [f"[What every training has](#{_anchor(self._base_place)}), and:", ""]
            own = {name: prop for name, prop in properties.items() if name not in self._base}
        if not own:
            yield from ["Nothing more." if properties else "It has no settings.", ""]
            return
        yield from ["| key | what it may be | default | |", "| --- | --- | --- | --- |"]
        for name, prop in own.items():
            told = prop.get("description")
            if not told:
                raise SystemExit(f"{key}: {name} has no docstring; say what it is")
            default = "**must be there**" if name in required else _default(prop.get("default"))
            yield f"| `{name}` | {_cell(self._kind(prop))} | {default} | {_cell(told)} |"
        yield ""

    def _kind(self, prop: dict[str, Any]) -> str:
        """Returns in words what a property may be."""
        if "$ref" in prop:
            return f"[these keys](#{_anchor(self._places[prop['$ref'].rpartition('/')[2]])})"
        several = prop.get("anyOf") or prop.get("oneOf")
        if several is None:
            return self._plain(prop)
        kinds = [one for one in several if one.get("type") != "null"]
        words = list(dict.fromkeys(self._kind(one) for one in kinds))
        if WORDS["string"] in words and ANY_KEYS in words:
            words = ["a word, or a word with its settings", *(word for word in words if word not in (ANY_KEYS, "text"))]
        return " or ".join(words)

    def _plain(self, prop: dict[str, Any]) -> str:
        """Returns in words what a property of one kind may be."""
        kind = prop.get("type")
        values = [prop["const"]] if "const" in prop else prop.get("enum")
        if values:
            return ", ".join(f"`{value}`" for value in values)
        if kind == "array":
            return f"list of: {self._kind(prop['items'])}" if prop.get("items") else "list"
        if kind == "object":
            values = prop.get("additionalProperties")
            return f"keys, each with: {self._kind(values)}" if isinstance(values, dict) and values else ANY_KEYS
        limits = [f"{sign} {_number(prop[name])}" for name, sign in RANGES.items() if prop.get(name, MANY) < MANY]
        return f"{WORDS.get(str(kind), 'anything')} {', '.join(limits)}".strip()


def recipe_page() -> str:
    """Returns the page of a recipe's keys."""
    page = Page(settings.TrainingConfig, EVERY_TRAINING)
    lines = ["# Recipe: all keys", "", MADE, ""]
    lines += [
        "A word that names a stage may have settings: `fuse`, or `{quantize: {precision: int8}}`. All is checked when",
        "the recipe is read. Files are relative to the recipe (or to its `folder`), those of `data` and the corpus of",
        "a `crop` to `--data` where that is given; what they hold is in [Files of examples](data.md).",
        "",
    ]
    lines += page.section(RECIPE, recipe_text.RecipeText, text="")
    lines += page.section(EVERY_TRAINING, settings.TrainingConfig, text="Of `finetune` and of `passes: distill`.")
    for key, kind in STAGES.items():
        words = plugins.names("tasks" if kind == "training" else kind)
        lines += [f"## {key}: {', '.join(f'`{word}`' for word in words)}", ""]
        for word in words:
            module = importlib.import_module(f"tritonpress_generator.{kind}.{word}")
            told = _told(inspect.getdoc(module) or "")
            if kind == "tasks":
                told += f" Metrics: {', '.join(f'`{metric}`' for metric in module.METRICS)}, `agreement`."
            lines += page.section(f"`{word}` ({key})", module.Config, level=3, text=told)
    lines += page.section("search", search.Config)
    return _joined(lines)


def scenario_page() -> str:
    """Returns the page of a load test's keys."""
    lines = ["# Scenario: all keys", "", MADE, ""]
    lines += ["What `tritonpress-load run` holds a server to; examples are in `loadtests/scenarios/`.", ""]
    lines += Page().section(SCENARIO, scenario.Scenario, text="")
    return _joined(lines)


def commands_page() -> str:
    """Returns the page of all commands' options."""
    lines = ["# Commands: all options", "", MADE, ""]
    lines += ["`--help` says the same.", ""]
    for parser in (generator.parser(), server.parser(), client.parser(), loads.parser(), bench.parser()):
        name = "python -m tritonpress_generator.bench" if parser.prog.endswith("bench") else parser.prog
        told = _told(parser.description or "").removeprefix(f"`{name}`: ")
        lines += [f"## {name}", "", f"{told[0].upper()}{told[1:]}", ""]
        commands = _commands(parser)
        if not commands:
            lines += _options(parser.prog, _actions(parser))
            continue
        rows = {command: [*_rows(command, _actions(sub))] for command, (sub, _) in commands.items()}
        common = [row for row in next(iter(rows.values())) if all(row in others for others in rows.values())]
        for command, (_, told) in commands.items():
            lines += [f"### {name} {command}", "", f"{told[0].upper()}{told[1:]}.", ""]
            own = [row for row in rows[command] if row not in common]
            lines += ["| | |", "| --- | --- |", *own, ""] if own else []
        if common:
            lines += [f"### Of all commands of {name}", "", "| | |", "| --- | --- |"]
            lines += [*common, ""]
    return _joined(lines)


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Returns a parser's commands, and what its help says of each."""
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (sub, told[name]) for name, sub in action.choices.items()}
    return {}


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def _options(command: str, actions: Iterable[argparse.Action]) -> list[str]:
    return ["| | |", "| --- | --- |", *_rows(command, actions), ""]


def _rows(command: str, actions: Iterable[argparse.Action]) -> Iterator[str]:
    for action in actions:
        if not action.help:
            raise SystemExit(f"{command}: {action.dest} has no help; say what it is")
        value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        if action.choices and not action.metavar:
            value = "\\|".join(map(str, action.choices))
        names = ", ".join(action.option_strings)
        told = action.help % {"default": action.default, "prog": command}
        yield f"| `{f'{names} {value}'.strip()}` | {_cell(told)} |"


def _told(docstring: str) -> str:
    """Returns a docstring's first part, as one line a paragraph."""
    first = re.split(r"\n\s*(?:Args|Raises):", inspect.cleandoc(docstring))[0]
    parts = re.split(r"\n\s*\n", first)
    return "\n\n".join(part if part.startswith("    ") else " ".join(part.split()) for part in parts).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(value: Any) -> str:
    return "" if value in (None, "") or isinstance(value, dict) else f"`{_number(value)}`"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _joined(lines: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a page is another")
    options = parser.parse_args(arguments)
    pages = {"recipe.md": recipe_page(), "scenario.md": scenario_page(), "commands.md": commands_page()}
    stale = [name for name, text in pages.items() if not _is(DOCS / name, text)]
    if options.check:
        for name in stale:
            print(f"docs/{name}: is not as the code has it; run python docs/reference.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).write_text(pages[name], encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
