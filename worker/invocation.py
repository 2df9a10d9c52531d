"""What every command shares: the options before its name, the settings they lead to, and how its work is run.

Called by worker/cli.py and the `worker/cli_….py` beside it.
"""

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from worker import failpoints, logs
from worker.secret_values import Hidden
from worker.settings import Settings, check_settings, load_settings

_Result = TypeVar("_Result")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: one object a line.")]
Bid = Annotated[str, typer.Argument(help="The bundle's id, as `transload bundles` shows it.")]


@dataclass(frozen=True, slots=True)
class Invocation:
    """What was said before the command's name, and the environment variables there were."""

    config: Path | None
    home: Path | None
    variables: Mapping[str, str]
    hidden: Hidden = field(default_factory=Hidden)
    """Learns the secrets of the settings. It is what errors are told through."""

    @classmethod
    def of(cls, context: typer.Context) -> "Invocation":
        """The one that the callback of worker/cli.py left in the context."""
        if not isinstance(context.obj, cls):
            raise TypeError("the callback sets the invocation")
        return context.obj

    def settings(self, *, quiet: bool = False) -> Settings:
        """Read, merge and check the settings; set up logging. Raises `SettingsError`."""
        settings = load_settings(file=self.config, home=self.home, environ=self._environ)
        self.hidden.learn(settings)
        level = "warning" if quiet else settings.logs.level
        logs.configure(level, settings.logs.format, sys.stderr, self.hidden)
        return settings

    def checked(self) -> tuple[Settings | None, Sequence[str]]:
        """As `check_settings`."""
        return check_settings(file=self.config, home=self.home, environ=self._environ)

    @property
    def _environ(self) -> Mapping[str, str]:
        return {name: value for name, value in self.variables.items() if name != failpoints.VARIABLE}


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a command's work. Ctrl-C cancels it and lets it clean up; the exit status is then 130."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
