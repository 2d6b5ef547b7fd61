"""What may be wrong with a file: changes of a parsed tree, of its text, and of its bytes, all drawn by one `Random`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import yaml

_DEEP = (50, 500, 3_000, 50_000)
_NUMBERS = (0, -1, 1, 2, 17, 2**31, 2**63, -(2**70), 0.0, -0.5, 1e308, float("inf"), float("nan"), True)
_TEXTS = (
    "", " ", "a", "a" * 70, "a" * 3_000, "../../outside", "/etc/passwd", "/dev/null", ".", "..", "a\nb", "a\0b",
    "\x1b[2J", "\u202e\ufeff\u0301", "{a}", "%s %n", "$(id)", "true", "1", "1e9", "nan", "int8", "auto", "package:json",
)  # fmt: skip
_TEXT_OF_YAML = (
    "!!python/object/apply:os.system ['touch outside']", "!!python/name:os.system", "!!binary '%%%'", "!!binary aGk=",
    "!!timestamp 2024-02-30", "2024-13-45", "2024-01-01T25:61:00Z", "!!int x", "!!float x", "!!set {a, b}",
    "!!omap [a: 1]", "!!null x", "&a [*a]", "&a {b: *a}", "*nowhere", "=", "<<", "1:60:99", "0x", "0b2", "09", "1_000",
    "~", "? [a, b]", "- - -", "@", "`", "%TAG", "!", "&", "*", "'", '"', "|", ">", "{", "[", "? {a: b}", "[" * 20,
    "9" * 5_000, "{[1, 2]: 3}", "{{a: b}: c}", "{~: 1}", "{1: 2, true: 3}", "{a: 1, a: 2}", "{<<: 1}", "{<<: {a: 1}}",
)  # fmt: skip


def changed_tree(chance: random.Random, data: Any) -> Any:
    """Returns a copy of parsed data with one to three things changed."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice([1, 1, 2, 3])):
        places = list(_places(data))
        if not places:
            return _value(chance, data)
        owner, key = chance.choice(places)
        chance.choice(_CHANGES)(chance, data, owner, key)
    return data


def yaml_bytes(chance: random.Random, data: Any) -> bytes:
    """Returns a YAML file of changed data, or with a text that no dump of data would have."""
    text = _yaml(changed_tree(chance, data) if chance.random() < 0.7 else data)
    if chance.random() < 0.4:
        text = chance.choice((_other_value, _bomb, _deep, _many_keys, _repeated_line, _other_layout))(chance, text)
    return _as_bytes(chance, text)


def json_bytes(chance: random.Random, data: Any) -> bytes:
    """Returns a JSON file of changed data, or a text that is none."""
    text = json.dumps(changed_tree(chance, data) if chance.random() < 0.8 else data)
    if chance.random() < 0.2:
        depth = chance.choice(_DEEP)
        deep = chance.choice(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
        text = chance.choice([deep, text.replace("{", '{"a":' + deep + ",", 1), "9" * 5_000, "null", '"\\ud800"'])
    return _as_bytes(chance, text)


def _yaml(data: Any) -> str:
    text: str = yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False)
    return text


def text_bytes(chance: random.Random, text: str) -> bytes:
    """Returns a text file with lines changed."""
    lines = text.split("\n")
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines))
        new = (chance.choice(_TEXTS), lines[at] * 2, lines[at][: len(lines[at]) // 2], "[" * chance.choice(_DEEP), '"')
        lines[at : at + chance.choice([0, 1])] = [chance.choice(new)]
    return _as_bytes(chance, "\n".join(lines))


def spoilt(chance: random.Random, message: bytes) -> bytes:
    """Returns the message with bytes changed, left out, doubled or added."""
    changed = bytearray(message)
    for _ in range(chance.randint(1, 4)):
        if not changed:
            break
        at = chance.randrange(len(changed))
        kind = chance.randrange(4)
        if kind == 0:
            changed[at] = chance.randrange(256)
        elif kind == 1:
            del changed[at : at + chance.randint(1, 20)]
        elif kind == 2:
            changed[at:at] = changed[at : at + chance.randint(1, 40)]
        else:
            changed[at:at] = chance.randbytes(chance.randint(1, 20))
    return bytes(changed)


def _places(data: Any) -> Any:
    """Yields each place of a value: what holds it, and its key there."""
    stack = [data]
    while stack:
        owner = stack.pop()
        pairs = owner.items() if isinstance(owner, dict) else enumerate(owner) if isinstance(owner, list) else ()
        for key, value in pairs:
            yield owner, key
            stack.append(value)


def _value(chance: random.Random, old: Any) -> Any:
    """Returns another value, often of the same kind."""
    if isinstance(old, str) and old and chance.random() < 0.3:
        at = chance.randrange(len(old))
        return chance.choice([old[:at] + old[at + 1 :], old[:at] + "/../" + old[at:], old.upper(), f" {old}\n"])
    if isinstance(old, int | float) and chance.random() < 0.5:
        return chance.choice([-old, old * 1000, old / 3, str(old), [old], float(old)])
    kinds = (
        chance.choice(_NUMBERS),
        chance.choice(_TEXTS),
        None,
        [],
        {},
        [old],
        {"a": old},
        [old] * (300 if len(repr(old)) < 100 else 3),
        [[]],
    )
    return chance.choice(kinds)


def _replace(chance: random.Random, data: Any, owner: Any, key: Any) -> None:
    owner[key] = _value(chance, owner[key])


def _remove(chance: random.Random, data: Any, owner: Any, key: Any) -> None:
    del owner[key]


def _rename(chance: random.Random, data: Any, owner: Any, key: Any) -> None:
    if isinstance(owner, dict):
        owner[chance.choice([f"{key}x", str(key)[1:], str(key).upper(), "", 1, "a.b", "/", "\0"])] = owner.pop(key)


def _swap(chance: random.Random, data: Any, owner: Any, key: Any) -> None:
    """Puts there what stands elsewhere, perhaps all."""
    other, place = chance.choice(list(_places(data)))
    owner[key] = copy.deepcopy(chance.choice([other[place], data]))


def _add(chance: random.Random, data: Any, owner: Any, key: Any) -> None:
    if isinstance(owner, dict):
        owner[chance.choice(_TEXTS)] = _value(chance, owner[key])
    else:
        owner.insert(key, _value(chance, owner[key]))


_CHANGES: tuple[Callable[[random.Random, Any, Any, Any], None], ...] = (
    _replace, _replace, _replace, _remove, _rename, _swap, _add,
)  # fmt: skip


def _other_value(chance: random.Random, text: str) -> str:
    """Gives a key a value that only a YAML file can say."""
    lines = [line for line in text.split("\n") if ": " in line] or ["a: b"]
    line = chance.choice(lines)
    return text.replace(line, f"{line.partition(': ')[0]}: {chance.choice(_TEXT_OF_YAML)}", 1)


def _bomb(chance: random.Random, text: str) -> str:
    """Aliases of aliases: a line that stands for up to billions of values."""
    width, as_list = chance.choice([2, 10]), chance.random() < 0.5
    value = "&b0 [x]" if as_list else "&b0 {k: x}"
    for n in range(1, chance.choice([3, 9, 30])):
        parts = [value, *[f"*b{n - 1}"] * width]
        inside = ", ".join(parts if as_list else (f"k{i}: {part}" for i, part in enumerate(parts)))
        value = f"&b{n} [{inside}]" if as_list else f"&b{n} {{{inside}}}"
    return _with_value(chance, text, value)


def _deep(chance: random.Random, text: str) -> str:
    depth = chance.choice(_DEEP)
    return _with_value(chance, text, chance.choice(["[" * depth + "]" * depth, "[" * depth, "{a: " * depth]))


def _many_keys(chance: random.Random, text: str) -> str:
    keys = ", ".join(f"k{i}: 1" for i in range(chance.choice([300] * 10 + [10_000, 200_000])))
    return _with_value(chance, text, f"{{{keys}}}")


def _repeated_line(chance: random.Random, text: str) -> str:
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    return "\n".join([*lines[:at], *[lines[at]] * chance.choice([1, 2, 1_000]), *lines[at:]])


def _other_layout(chance: random.Random, text: str) -> str:
    return chance.choice(
        [f"---\n{text}---\n{text}", text.replace("  ", "\t"), text.replace("\n", "\r\n"), f"%YAML 9.9\n---\n{text}"]
    )


def _with_value(chance: random.Random, text: str, value: str) -> str:
    """Gives one of the outermost keys that value, in place of what stands under it."""
    data = yaml.load(text, Loader=yaml.CSafeLoader)
    if not isinstance(data, dict) or not data:
        return f"a: {value}\n"
    key = chance.choice(list(data))
    rest = {name: entry for name, entry in data.items() if name != key}
    return _yaml(rest) + f"{json.dumps(key)}: {value}\n"


def _as_bytes(chance: random.Random, text: str) -> bytes:
    data = text.encode("utf-8", errors="surrogatepass")
    if chance.random() < 0.85:
        return data
    return chance.choice(
        [spoilt(chance, data), b"\xef\xbb\xbf" + data, text.encode("utf-16"), b"", b"\0", data[: len(data) // 2]]
    )
