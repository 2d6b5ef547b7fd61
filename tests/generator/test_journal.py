"""What a long measurement writes down as it goes."""

from __future__ import annotations

import resource
from pathlib import Path

from tritonpress_generator.journal import Journal


def test_what_was_found_stays_where_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).put("trial one", {"layers": 1}, {"score": 0.5, "seconds": 2.0})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "trial t')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        assert Journal(path).get("trial one") == {"score": 0.5, "seconds": 2.0}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole


def test_gives_back_what_was_put_and_cuts_off_what_a_kill_has_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    journal = Journal(path)
    journal.put("trial one", {"layers": 1}, {"score": 0.5, "seconds": 2.0})
    journal.put("score one", {"layers": 1}, {"score": 0.25, "seconds": 3.0})
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"key": "trial t')
    again = Journal(path)
    assert again.get("trial one") == {"score": 0.5, "seconds": 2.0}
    assert again.get("trial one") is not None
    assert again.get("trial two") is None
    assert again.replayed_s == 2.0
    assert path.read_bytes() == whole
    again.put("trial two", {"layers": 2}, {"score": 0.75, "seconds": 1.0})
    assert Journal(path).get("trial two") == {"score": 0.75, "seconds": 1.0}


def test_a_line_that_a_crash_has_spoilt_is_measured_again(tmp_path: Path) -> None:
    """A file system may leave zeros where a line was being written when the machine went down."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for number in range(3):
        journal.put(f"trial {number}", {}, {"score": number, "seconds": 2.0})
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for spoilt in (b"\0" * (len(second) - 1), second[: len(second) // 2], b"[]", b"{}", b"\xff"):
        path.write_bytes(first + spoilt + b"\n" + third)
        again = Journal(path)
        assert [again.get(f"trial {number}") is not None for number in range(3)] == [True, False, True]
