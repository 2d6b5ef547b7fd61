"""Reads YAML of recipes and scenarios, in bounded time and memory whatever it holds.

Here, since both the generator and the load tests may import this package.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

MOST_CHARACTERS = 256 << 10
MOST_NODES = 20_000
"""Values, each counted as often as aliases repeat it."""
MOST_LEVELS = 50


class StrictYamlError(ValueError):
    """It is no YAML, or more of it than anybody writes; the message is one line."""


def load(text: str) -> Any:
    """Returns what `text` holds: plain values alone, no key twice.

    Raises:
        StrictYamlError: See there.
    """
    if len(text) > MOST_CHARACTERS:
        raise StrictYamlError(f"must be at most {MOST_CHARACTERS} characters, has more")
    try:
        return yaml.load(text, Loader=_Loader)
    # Dates that no calendar has, and numbers of thousands of digits, are not found by YAML itself.
    except (yaml.YAMLError, ValueError, OverflowError) as exc:
        raise StrictYamlError(" ".join(str(exc).split())) from exc


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._nodes: dict[int, int] = {}
        """By the id of each node that is whole: how many values it stands for."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Returns the next node, which is neither too deep nor stands for too much."""
        alias = self.check_event(yaml.AliasEvent)
        self._level += 1
        if self._level > MOST_LEVELS:
            raise yaml.composer.ComposerError(None, None, f"has more than {MOST_LEVELS} levels", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        if alias and id(node) not in self._nodes:
            raise yaml.composer.ComposerError(None, None, "an alias names what it is in", self.get_mark())
        if node is not None and not alias:
            self._nodes[id(node)] = self._expanded(node)
        return node

    def _expanded(self, node: yaml.Node) -> int:
        """Returns how many values a node stands for, whose parts are known."""
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        count = 1 + sum(self._nodes[id(part)] for part in parts)
        if count > MOST_NODES:
            raise yaml.composer.ComposerError(None, None, f"holds more than {MOST_NODES} values", node.start_mark)
        return count

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns the mapping of `node`; the plain loader lets the last of two equal keys win without a word."""
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and keys[key.tag, key.value] > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is written twice", key.start_mark
                )
        return super().construct_mapping(node, deep=deep)
