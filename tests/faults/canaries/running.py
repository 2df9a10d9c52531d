"""One run of the table, in a process of its own: standard output, arguments and logs belong to it alone."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.canaries.driving import drive
from tests.faults.canaries.subjects import SUBJECTS
from tests.faults.canaries.words import WORD


@dataclass(frozen=True, slots=True)
class Cell:
    """One adapter in one kind of trouble."""

    subject: int
    answer: str
    leaks: Sequence[str]
    written: int
    """Bytes."""
    heard: bool
    """The server was told the secret itself, and so could repeat it."""


def alone() -> None:
    """A developer's profile, endpoint or proxy is not to be asked."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "OC_", "TRANSLOAD_"))]:
        del os.environ[name]
    os.environ |= {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


def run(wanted: tuple[int, str]) -> Cell:
    number, answer = wanted
    with tempfile.TemporaryDirectory() as folder:
        written = drive(SUBJECTS[number], answer, Path(folder))
        return Cell(number, answer, written.leaks, len(written.content), WORD.encode() in written.heard)
