"""A real bash that finds `transload` on its PATH, for what the pages tell a user to type.

The command it finds hands arguments, environment and directory over to this process, which has everything imported, and prints what
comes back: a page of ten commands takes a second instead of ten.
"""

import base64
import io
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worker.cli import main

_SHIM = """#!{python} -IS
import base64, json, os, socket, stat, sys
given = b"" if stat.S_ISCHR(os.fstat(0).st_mode) else sys.stdin.buffer.read()
call = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "given": base64.b64encode(given).decode()}}
link = socket.socket(socket.AF_UNIX)
link.connect("\\0{address}")
with link, link.makefile("rwb") as stream:
    stream.write(json.dumps(call).encode() + b"\\n")
    stream.flush()
    answer = json.loads(stream.readline())
sys.stdout.buffer.write(base64.b64decode(answer["out"]))
sys.stdout.flush()
sys.stderr.buffer.write(base64.b64decode(answer["err"]))
sys.exit(answer["status"])
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a script came to."""

    status: int
    out: str
    err: str


def run(script: str, folder: Path, home: Path, environment: Mapping[str, str]) -> Ran:
    """Run `script` in `folder`, ending at the first command that fails. `home` is the user's, and holds the command."""
    address = f"transload-docs-{secrets.token_hex(8)}"
    (home / "bin").mkdir(exist_ok=True)
    shim = home / "bin" / "transload"
    shim.write_text(_SHIM.format(python=sys.executable, address=address), encoding="utf-8")
    shim.chmod(0o755)
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("TRANSLOAD_", "OC_"))
    }
    inherited |= {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}", **environment}
    out, err = home / "out", home / "err"
    with socket.socket(socket.AF_UNIX) as listener, out.open("wb") as stdout, err.open("wb") as stderr:
        listener.bind(f"\0{address}")
        listener.listen()
        listener.settimeout(0.02)
        bash = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=inherited,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        while bash.poll() is None:
            try:
                link, _ = listener.accept()
            except TimeoutError:
                continue
            with link, link.makefile("rwb") as stream:
                answer = _answer(json.loads(stream.readline()))
                stream.write(json.dumps(answer).encode() + b"\n")
    return Ran(bash.returncode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def _answer(call: dict[str, Any]) -> dict[str, Any]:
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    status: int | str | None = 0
    with _as_if(call), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as exc:
            status = exc.code
        out.flush()
        err.flush()
    texts = {
        name: base64.b64encode(stream.buffer.getvalue()).decode()
        for name, stream in (("out", out), ("err", err))
    }
    return {"status": status, **texts}


@contextmanager
def _as_if(call: dict[str, Any]) -> Iterator[None]:
    """This process with the arguments, environment, directory and input of that one."""
    given = io.TextIOWrapper(io.BytesIO(base64.b64decode(call["given"])), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(call["folder"])
        for name in set(os.environ) - set(call["environment"]):
            patch.delenv(name)
        for name, value in call["environment"].items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["transload", *call["arguments"]])
        patch.setattr(sys, "stdin", given)
        yield
