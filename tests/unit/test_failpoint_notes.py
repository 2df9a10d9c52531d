"""The failpoint action that only watches, by which the crash matrix learns what a load passes."""

from pathlib import Path

import pytest

from worker.failpoints import FailpointError, parse


def test_every_passage_of_a_matching_place_is_noted(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    (armed,) = parse(f"file.*=note:{notes}")
    for name in ("file.link.before", "s3.put.before", "file.link.after", "file.link.before"):
        armed.reached(name)
    assert notes.read_text(encoding="utf-8").split() == [
        "file.link.before",
        "file.link.after",
        "file.link.before",
    ]


@pytest.mark.parametrize("text", ["a=note", "a=note:", "a=note:notes@2", "a=note:notes@2+"])
def test_a_note_needs_a_file_and_takes_no_count(text: str) -> None:
    with pytest.raises(FailpointError, match="TRANSLOAD_FAILPOINTS"):
        parse(text)
