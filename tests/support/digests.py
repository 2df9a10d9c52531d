"""Whether downloaded files are the ones that were seen when their version was chosen. Used by the installers beside it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


def differing(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """The names of files in `folder` that are missing, too many, or of another SHA-256 (hexadecimal) than expected."""
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    return sorted({name for name, _ in found.items() ^ expected.items()})
