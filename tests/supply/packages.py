"""What the lock pins, and which of it a worker needs: the rest is for development. Used by everything beside it."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.services import ROOT

LOCK = ROOT / "requirements.lock"
PYTHONS = ("3.11", "3.12", "3.13")
"""The versions that pyproject.toml names."""
ALWAYS = ""
"""In the place of an extra: what every installation has."""

_PINNED = re.compile(
    r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>[\w.!+]+)(?: ; (?P<marker>[^#\\;]+?))?"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)"
)


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of the lock."""

    name: str
    """As PEP 503 normalises it."""
    version: str
    marker: str
    """Where it is wanted (PEP 508); empty for everywhere."""
    hashes: tuple[str, ...]
    """SHA-256 of each of its files, in hexadecimal."""


def pins(text: str) -> dict[str, Pin]:
    """What a lock holds, by name.

    Raises `ValueError` for anything in it but one version of a package with the hashes of its files: an option, an address of
    an index, a URL, a range, a second line for the same package.
    """
    found: dict[str, Pin] = {}
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r" *\\\n *", " ", "\n".join(lines)).splitlines():
        match = _PINNED.fullmatch(line)
        if match is None:
            raise ValueError(f"{line[:200]!r} is not one version of a package with its hashes")
        name = match["name"]
        if name in found:
            raise ValueError(f"{name} is locked twice")
        hashes = tuple(re.findall(r"sha256:(\w+)", match["hashes"]))
        found[name] = Pin(name, match["version"], match["marker"] or "", hashes)
    return found


def locked() -> dict[str, Pin]:
    """What requirements.lock holds."""
    return pins(LOCK.read_text(encoding="utf-8"))


def required() -> dict[str, list[str]]:
    """The requirements of pyproject.toml by extra, `ALWAYS` among them; not `all`, which only repeats the others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: listed for name, listed in project["optional-dependencies"].items() if name != "all"}
    return {ALWAYS: project["dependencies"], **extras}


def brought_by() -> dict[str, set[str]]:
    """Every package that a worker on Linux needs, by name, and the extras that bring it.

    The packages' own metadata tell what they need, so they have to be installed. Raises `LookupError` for one that is not, or
    not in the version of the lock.
    """
    lock = locked()
    needed: dict[str, set[str]] = {}
    for extra, requirements in required().items():
        for name in sorted(_closure(requirements)):
            if name not in lock or importlib.metadata.version(name) != lock[name].version:
                raise LookupError(
                    f"{name} is not installed as requirements.lock has it: make lock, then make test"
                )
            needed.setdefault(name, set()).add(extra)
    return needed


def _closure(requirements: Iterable[str]) -> set[str]:
    """The names of all packages that these requirements bring, on any of the Python versions."""
    reached: set[tuple[str, str, str]] = set()
    waiting = [each for python in PYTHONS for each in _wanted(requirements, ALWAYS, python)]
    while waiting:
        package = waiting.pop()
        if package not in reached:
            reached.add(package)
            name, extra, python = package
            waiting += _wanted(importlib.metadata.requires(name) or [], extra, python)
    return {name for name, _, _ in reached}


def _wanted(requirements: Iterable[str], extra: str, python: str) -> Iterator[tuple[str, str, str]]:
    """Those that hold where `extra` was asked for: the package itself, and once more with each extra of it."""
    surroundings = {
        "extra": extra,
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    for each in map(Requirement, requirements):
        if each.marker is None or each.marker.evaluate(surroundings):
            for asked in (ALWAYS, *sorted(each.extras)):
                yield canonicalize_name(each.name), asked, python
