"""YAML that no recipe and no scenario needs is refused at once, in one line."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonpress_server import strict_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 3_000, "has more than 50 levels"),
        ("{a: " * 3_000, "has more than 50 levels"),
        ("- " * 3_000 + "a", "has more than 50 levels"),
        (BOMB, "holds more than 20000 values"),
        ("a: &a [*a]", "an alias names what it is in"),
        ("a: &a {b: [*a]}", "an alias names what it is in"),
        ("[" + "1," * 20_001 + "]", "holds more than 20000 values"),
        ("a: 1\n" * 100, "key 'a' is written twice"),
        ("a" * 300_000, "must be at most 262144 characters"),
        ("a: 2024-02-30", "day is out of range"),
        ("a: 2024-01-01T25:00:00Z", "hour must be in 0..23"),
        ("a: " + "9" * 5_000, "digits"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: *b", "undefined alias"),
        ("a\0b", "special characters are not allowed"),
        ("---\na\n---\nb", "expected a single document"),
    ],
    ids=range(16),
)
def test_what_nobody_writes_is_refused_at_once(text: str, said: str) -> None:
    began = time.process_time()
    with pytest.raises(strict_yaml.StrictYamlError) as raised:
        strict_yaml.load(text)
    assert time.process_time() - began < 5
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=9))
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3)
)


@given(VALUES)
@settings(deadline=None, max_examples=40)
def test_plain_values_are_read_as_ever(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert strict_yaml.load(text) == yaml.safe_load(text)


def test_aliases_and_merges_of_a_reasonable_size_are_read() -> None:
    text = "base: &base {a: 1, b: [1, 2]}\nother:\n  <<: *base\n  a: 3\nsame: *base\n"
    assert strict_yaml.load(text) == {
        "base": {"a": 1, "b": [1, 2]},
        "other": {"a": 3, "b": [1, 2]},
        "same": {"a": 1, "b": [1, 2]},
    }
