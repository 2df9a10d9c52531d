"""The threat model names cases; each has to have a test that says its number."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_case_that_is_named_has_a_test() -> None:
    tested = {
        int(number)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_case_\w+)", path.read_text(encoding="utf-8"))
        for number in re.findall(r"(?:case|and)_(\d+)_", name)
    }
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[-2] for line in page.splitlines() if line.startswith("| ") and line.count("|") == 5
    ]
    named = {
        number
        for text in (*rows, *re.findall(r"\(case (\d+)\)", page))
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", text)
        for number in range(int(first), int(last or first) + 1)
    }
    assert len(named) > 40
    assert named - tested == set()
