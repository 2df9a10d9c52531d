"""Helm and Kubernetes' schemas, from the Python package index: neither a helm command nor a cluster is needed.

`helm-python-sdk` is Helm's own engine as a library. It is kept out of the tests' process, where Go would have a runtime of its
own: tests/support/helm_engine.py answers in another. Used by tests/conftest.py (fixture `helm`).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.services import HOME, NotAvailable, Running, environment_without, exclusive

VARIABLE = "TRANSLOAD_TEST_HELM_PYTHON"
WANTED = ("helm-python-sdk==0.2.2", "kubernetes-validate==1.37.0")
"""Helm 4.2.3; the schemas of Kubernetes 1.25 to 1.37."""
COMMAND = (
    f"python3 -m venv helm-venv && helm-venv/bin/pip install {' '.join(WANTED)} && "
    f"export {VARIABLE}=$PWD/helm-venv/bin/python"
)
INSTALL_SECONDS = 600
_ENGINE = Path(__file__).with_name("helm_engine.py")


class HelmError(Exception):
    """Helm, or a schema, refused what it was given; the message is theirs."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The process that answers."""

    process: "subprocess.Popen[str]"

    def ask(self, do: str, **what: Any) -> Any:
        """Raises `HelmError` with what the engine said, and `OSError` when it is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        # Go writes its log where it likes.
        for line in self.process.stdout:
            if line.startswith(('{"answer": ', '{"error": ')):
                told = json.loads(line)
                if "error" in told:
                    raise HelmError(told["error"])
                return told["answer"]
        raise OSError("the engine has ended")

    def render(
        self, chart: Path, values: Mapping[str, Any], *, name: str = "rel", namespace: str = "ns"
    ) -> dict[str, str]:
        """What `helm template` makes of each template, by its path, and the notes among them. Raises `HelmError`."""
        rendered: dict[str, str] = self.ask(
            "render", chart=str(chart), values=values, name=name, namespace=namespace
        )
        return rendered

    def lint(self, chart: Path, values: Mapping[str, Any]) -> list[str]:
        """The warnings and errors of `helm lint --strict`."""
        found: list[str] = self.ask("lint", chart=str(chart), values=values)
        return found


class Helm:
    """The engine of one test run."""

    name = "helm"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """After `start`."""
        assert self._engine is not None
        return self._engine

    def start(self) -> Running:
        """With the Python that the environment names, else one installed here (seconds, once)."""
        given = os.environ.get(VARIABLE)
        python = Path(given) if given else self._install()
        try:
            self._engine = Engine(
                subprocess.Popen(
                    [str(python), str(_ENGINE)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    encoding="utf-8",
                    env=environment_without("PYTHON", "VIRTUAL_ENV", "TRANSLOAD_", "HELM_", "KUBE"),
                )
            )
            version = self._engine.ask("version")
        except OSError as exc:
            raise NotAvailable(f"{python} has no working Helm ({exc})", COMMAND) from exc
        return Running("", version, "environment" if given else "started here")

    def stop(self) -> None:
        if self._engine is not None:
            process, self._engine = self._engine.process, None
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait()

    def _install(self) -> Path:
        """The Python of a virtual environment with the engine in it."""
        directory = self._home / f"helm-{WANTED[0].partition('==')[2]}"
        inner, stamp = directory / "bin" / "python", directory / "installed"
        with exclusive(self._home / "helm.lock"):
            # The stamp is written last, so an install that was interrupted is done anew.
            if stamp.exists() and stamp.read_text(encoding="utf-8") == "\n".join(WANTED):
                return inner
            shutil.rmtree(directory, ignore_errors=True)
            print(f"installing Helm's engine into {directory} (seconds, once)", file=sys.__stderr__)
            _run([sys.executable, "-m", "venv", str(directory)])
            _run([str(inner), "-m", "pip", "install", "--quiet", *WANTED])
            stamp.write_text("\n".join(WANTED), encoding="utf-8")
        return inner


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as exc:
        raise NotAvailable(f"{' '.join(command)} took over {INSTALL_SECONDS} s", COMMAND) from exc
    if done.returncode:
        raise NotAvailable(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}", COMMAND)
