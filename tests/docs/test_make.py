"""Every `make` and `docker compose` that a page names is one that there is, with its variables, options, services and profiles."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT
from tests.support.compose import compose

ALL = (
    *PAGES,
    ROOT / "helm/transload/README.md",
    ROOT / "Makefile",
    ROOT / ".ci/run",
    ROOT / "docker-compose.yml",
)
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_MAKE = re.compile(
    r"(?:^|[`;&|(]|&& |step |tests\(\) \{ )[ ]*make(?= [a-z-]+| [A-Z]+=|`)([^`\n#;|]*)", re.MULTILINE
)
_COMPOSE = re.compile(r"docker compose([^`\n;|#]*)")
_RULE = re.compile(r"^([a-z-]+):(?: \$\(STAMP\))?[^\n]*\n((?:\t[^\n]*\n)*)", re.MULTILINE)

TARGETS: dict[str, str] = dict(_RULE.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
"""Each target's recipe."""


def code_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return "\n".join(_CODE.findall(text))
    # What a target's own line tells in brackets, and comments.
    return "\n".join(re.sub(r"^# ?", "", line) for line in text.splitlines() if not line.startswith("\t"))


def words_of(rest: str) -> list[str]:
    # A command may be shown with what it prints, or with what it is for, behind it.
    return shlex.split(re.split(r" {2,}", rest.strip())[0].replace("…", " "))


def source_of(recipe: str) -> str:
    """The program that a recipe starts."""
    (module,) = re.findall(r"-m (tests\.[\w.]+)", recipe)
    path: Path = ROOT / module.replace(".", "/")
    found = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return found.read_text(encoding="utf-8")


def problems_of_make(rest: str) -> Iterator[str]:
    words = words_of(rest)
    targets = [word for word in words if "=" not in word]
    for word in targets:
        if word not in TARGETS:
            yield f"no target {word}"
            return
    recipes = "".join(TARGETS[word] for word in targets)
    for name, _, value in (word.partition("=") for word in words if "=" in word):
        if (
            f"$({name})" not in recipes
            and f"$(if $({name})" not in recipes
            and f"$(or $({name})" not in recipes
        ):
            yield f"{targets or 'make'} knows no {name}"
        elif name == "ARGS" and "pytest" not in recipes:
            options = [option.partition("=")[0] for option in shlex.split(value) if option.startswith("-")]
            yield from (f"no {option}" for option in options if f'"{option}"' not in source_of(recipes))


def problems_of_compose(rest: str) -> Iterator[str]:
    services = compose()["services"]
    words = words_of(rest)
    for option, value in pairwise(words):
        if option == "--profile" and not any(value in each.get("profiles", []) for each in services.values()):
            yield f"no profile {value}"
        if option == "--scale" and value.partition("=")[0] not in services:
            yield f"no service {value}"
    if "run" in words:
        (service,) = [word for word in words[words.index("run") + 1 :] if not word.startswith("-")][:1]
        if service not in services:
            yield f"no service {service}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_and_compose_that_a_page_names_exists(page: Path) -> None:
    code = code_of(page)
    wrong = [f"make{rest}: {what}" for rest in _MAKE.findall(code) for what in problems_of_make(rest)]
    wrong += [
        f"compose{rest}: {what}" for rest in _COMPOSE.findall(code) for what in problems_of_compose(rest)
    ]
    assert wrong == []


def test_the_search_finds_what_there_is() -> None:
    """Or the pages would pass because nothing is looked at."""
    found = {word for page in ALL for rest in _MAKE.findall(code_of(page)) for word in words_of(rest)}
    assert {"demo", "test", "docs", "crash", "conformance", "simulate-scaling", "lock"} <= found
    assert {"FROM=DIR", "ARGS=--short"} <= found
    assert sum(len(_COMPOSE.findall(code_of(page))) for page in ALL) >= 8


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (" nonsense", "no target nonsense"),
        (" demo TO=DIR", "knows no TO"),
        (" crash ARGS='--long --seed 3'", "no --long"),
        (" soak HOURS=8", None),
        (" test ARGS='-m slow tests/image'", None),
    ],
)
def test_what_is_wrong_with_a_make_is_found(rest: str, told: str | None) -> None:
    wrong = list(problems_of_make(rest))
    assert (wrong == []) if told is None else (told in wrong[0])


@pytest.mark.parametrize("rest", [" --profile nonsense up", " run --rm nonsense", " up --scale nonsense=3"])
def test_what_is_wrong_with_a_compose_is_found(rest: str) -> None:
    assert list(problems_of_compose(rest))
