"""The licences of what a worker needs: `python -m tests.supply.licences` (`make licences`) writes docs/licences.md.

tests/supply/test_licences.py holds the page to the lock, and the licences to `ALLOWED`. sbom.py writes them, too.
"""

import importlib.metadata
from collections.abc import Mapping

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from tests.supply.packages import ALWAYS, brought_by, locked
from tests.support.services import ROOT

PAGE = ROOT / "docs/licences.md"

ALLOWED = frozenset(
    {
        *("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0", "Zlib"),
        # Copyleft for their own files only. The LGPL is weak as well, but asks more of who hands an image on: none so far.
        *("EPL-2.0", "MPL-2.0"),
    }
)
"""SPDX identifiers (https://spdx.org/licenses/) that a package a worker needs may have."""

SPELLINGS: Mapping[str, str] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "ISC License": "ISC",
    "MIT License": "MIT",
}
"""What packages without an SPDX expression write, where it can mean one licence only."""

READ: Mapping[str, str] = {
    "isodate": "BSD-3-Clause",
    "pyasn1-modules": "BSD-2-Clause",
    # Its Apache licence covers the newer part; "the above BSD License applies to all code".
    "python-dateutil": "BSD-3-Clause",
}
"""Packages whose metadata leave it open ("BSD"), and what the licence file says that they bring."""

HEAD = """\
# Licences

<!-- Written by `make licences` out of the packages' own metadata; a test holds it to requirements.lock. -->

Transload itself is under Apache-2.0. These are the packages that a worker on Linux needs, in the versions of `requirements.lock`, and
the extras that bring them. What is locked for development only is not among them. Expressions are SPDX's; of licences joined by `OR`
one may choose. Wheels can hold compiled libraries besides (OpenSSL in `cryptography`, for one), whose licences their packages name.

A test refuses a package under any licence but these: {allowed}. EPL-2.0 and MPL-2.0 ask for the source of changes to those packages'
own files, and Transload changes none.

| package | version | licence | brought by |
|---|---|---|---|
"""


def licence_of(name: str) -> str:
    """The SPDX expression of an installed package. Raises `ValueError` where its metadata do not tell one."""
    if name in READ:
        return READ[name]
    metadata = importlib.metadata.metadata(name)
    classifiers = (
        each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or [] if "License ::" in each
    )
    for written in (
        *(metadata.get_all("License-Expression") or metadata.get_all("License") or []),
        *classifiers,
    ):
        try:
            return str(canonicalize_license_expression(SPELLINGS.get(written, written)))
        except InvalidLicenseExpression:
            continue
    raise ValueError(
        f"{name} does not say its licence as SPDX: read its licence file and add it to {__name__}.READ"
    )


def allowed(expression: str) -> bool:
    """Whether one may use a package under this expression. Raises `ValueError` for parentheses, which none has had so far."""
    if "(" in expression:
        raise ValueError(f"parentheses in {expression!r}")
    return any(set(choice.split(" AND ")) <= ALLOWED for choice in expression.split(" OR "))


def page(packages: Mapping[str, set[str]]) -> str:
    """docs/licences.md as it should be, for the packages of a worker and the extras that bring them."""
    lock = locked()
    head = HEAD.format(allowed=", ".join(sorted(ALLOWED)))
    rows = (
        f"| {name} | {lock[name].version} | {licence_of(name)} | "
        f"{'every installation' if ALWAYS in extras else ', '.join(sorted(extras))} |\n"
        for name, extras in sorted(packages.items())
    )
    return head + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(brought_by()), encoding="utf-8")
    print(PAGE)
