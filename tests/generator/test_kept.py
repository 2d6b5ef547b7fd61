"""What one build has computed, the next one finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator.kept import NOTHING, Kept

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(values=st.dictionaries(st.text(), JSON, max_size=4))
def test_what_was_saved_is_found(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    folder = tmp_path_factory.mktemp("workload") / "kept"
    kept = Kept(folder)
    for key, value in values.items():
        kept.put(key, value)
    assert not folder.exists()
    kept.save()
    again = Kept(folder)
    assert {key: again.get(key) for key in values} == values


def test_what_nobody_asks_for_any_more_goes(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put("a", 1)
    kept.put("b", 2)
    kept.save()
    later = Kept(tmp_path)
    assert later.get("a") == 1
    later.save()
    assert Kept(tmp_path).get("a") == 1
    assert Kept(tmp_path).get("b") is None


def test_others_stay_where_they_are_asked_to(tmp_path: Path) -> None:
    for key, value in (("a", 1), ("b", 2)):
        kept = Kept(tmp_path)
        kept.put(key, value)
        kept.save(others=True)
    assert [Kept(tmp_path).get(key) for key in "ab"] == [1, 2]


def test_what_lies_elsewhere_is_found_and_kept_here(tmp_path: Path) -> None:
    search = Kept(tmp_path / "search")
    search.put("a", 1)
    search.put("b", 2)
    search.save()
    here = Kept(tmp_path / "here", also=tmp_path / "search")
    assert here.get("a") == 1
    here.save()
    assert [Kept(tmp_path / "here").get(key) for key in "ab"] == [1, None]
    assert Kept(tmp_path / "search").get("b") == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "b", "value": 1}', '{"key": "a"}', "\x00"])
def test_what_cannot_be_read_is_computed_again(tmp_path: Path, content: str) -> None:
    kept = Kept(tmp_path)
    kept.put("a", 1)
    kept.save()
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert Kept(tmp_path).get("a") is None


def test_nothing_is_kept_without_a_folder() -> None:
    NOTHING.put("a", 1)
    NOTHING.save()
    assert NOTHING.get("a") is None
