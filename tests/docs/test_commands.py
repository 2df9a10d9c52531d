"""Every command that a page names exists, with its options; and docs/cli.md has all of them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.docs.blocks import PAGES, ROOT
from worker.cli import app

CLI = typer.main.get_command(app)
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_COMMAND = re.compile(r"(?:^|[`$(|;&\s])transload((?: [^`\n|;&)#]*)?)")


def inner_of(command: Any) -> dict[str, Any]:
    """A group's commands. Typer's groups are not always those of click."""
    return getattr(command, "commands", {})


def commands(command: Any = CLI, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its whole name."""
    for name, inner in inner_of(command).items():
        yield from commands(inner, (*path, name))
    if not inner_of(command):
        yield " ".join(path), command


COMMANDS = dict(commands())


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("-")} | {
        "--help"
    }


def mentioned(text: str) -> Iterator[str]:
    """What follows `transload` in code."""
    for code in _CODE.findall(text):
        for line in code.splitlines():
            # An error that is shown, and the text that keys are derived with.
            if re.match(r"`?transload(: | encryption v1)|info = ", line.strip()):
                continue
            # Releases and namespaces have the command's name; kubectl runs what is behind two dashes.
            if re.match(r"`?(helm|kubectl) ", line):
                line = line.partition(" -- ")[2]  # noqa: PLW2901 - what is left of it
            yield from (found.strip() for found in _COMMAND.findall(line.replace(r"\"", '"')))


def problems(rest: str) -> Iterator[str]:
    """What is wrong with the arguments of one mention; placeholders and brackets are read over."""
    try:
        words = shlex.split(re.sub(r"[\[\]…]", " ", rest))
    except ValueError:
        words = rest.split()
    command: Any = CLI
    waiting = iter(words)
    for word in waiting:
        if word.startswith("-") and word != "-":
            if word.partition("=")[0] not in options_of(command):
                yield f"{command.name}: {word}"
            if command is CLI and word in {"--config", "--home"}:
                next(waiting, None)
        elif inner_of(command) and not word.isupper():
            if word not in inner_of(command):
                yield f"{command.name}: {word}"
                return
            command = inner_of(command)[word]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "helm/transload/README.md"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [f"transload {rest}: {what}" for rest in mentioned(text) for what in problems(rest)]
    assert wrong == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_commands_has_each_with_all_its_options(name: str) -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    found = [
        heading
        for heading in headings
        for code in re.findall(r"`([^`]+)`", heading)
        if re.match(rf"{name}(?: |$)", code)
    ]
    if name == "provision":
        page = (ROOT / "docs/provisioning.md").read_text(encoding="utf-8")
        found = [page]
    assert found, f"docs/cli.md has no heading for {name}"
    told = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", found[0]))
    for parameter in COMMANDS[name].params:
        flags = {flag for flag in parameter.opts if flag.startswith("-")}
        assert not flags or flags & told, f"{name}: {flags} is not in its heading"


@pytest.mark.parametrize(
    "text", ["`transload nonsense`", "`transload run --nonsense`", "```sh\nx=$(transload dlq nonsense)\n```"]
)
def test_the_search_finds_what_is_wrong(text: str) -> None:
    (rest,) = mentioned(text)
    assert list(problems(rest))
