"""Images and containers without a Docker engine and without a registry: buildah builds, runc runs, both from Debian's packages.

Images cannot be pulled here, so the two that the Dockerfile names are stood in for: Python's by a Debian of the same release with
its own Python, made by debootstrap once and kept below `.services/`; uv's by the same release of uv from the package index. Used by
tests/conftest.py (fixture `containers`).
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import apt
from tests.support.services import HOME, ROOT, NotAvailable, Running, environment_without, exclusive

PROGRAMS = ("buildah", "runc", "debootstrap")
DEBIAN = "trixie"
"""The release under the Dockerfile's Python image."""
PACKAGES = "python3,ca-certificates,netbase,tzdata"
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
"""What this machine trusts, builds trust as well."""
COMMAND = f"apt-get install {' '.join(PROGRAMS)}   (as root on Debian)"
BUILD_SECONDS = 900
PYTHON_IMAGE, UV_IMAGE = "localhost/python", "localhost/uv"


class BuildError(Exception):
    """The build failed; the message is the end of what it said."""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its configuration as Docker has it, and its files."""

    config: Mapping[str, Any]
    root: Path


@dataclass(frozen=True, slots=True)
class Container:
    """An image that is run with a read-only root, no capability, no way to new ones, and one tmpfs at /scratch.

    That is what docker-compose.yml and the chart ask for. The network is this machine's own.
    """

    image: Image
    base: Path
    name: str = field(default_factory=lambda: f"transload-{secrets.token_hex(4)}")

    def command(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] | None = None,
        workdir: str | None = None,
        mounts: Mapping[Path, str] | None = None,
    ) -> list[str]:
        """The command line that runs it once. Without arguments it does what the image says."""
        config = self.image.config
        bundle = self.base / self.name
        bundle.mkdir(parents=True)
        user, group = map(int, config["User"].split(":"))
        merged = dict(pair.split("=", 1) for pair in config["Env"]) | dict(environment or {})
        asked = list(arguments) or config["Cmd"]
        specification = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": user, "gid": group},
                "args": [*(config["Entrypoint"] if entrypoint is None else entrypoint), *asked],
                "env": [f"{name}={value}" for name, value in merged.items()],
                "cwd": workdir or config["WorkingDir"],
                "noNewPrivileges": True,
                "capabilities": {},
            },
            "root": {"path": str(self.image.root), "readonly": True},
            "mounts": [
                _mount("proc", "/proc", "proc"),
                _mount("tmpfs", "/dev", "dev", "nosuid", "mode=755", "size=65536k"),
                _mount(
                    "tmpfs",
                    "/scratch",
                    "scratch",
                    "nosuid",
                    "nodev",
                    "noexec",
                    "mode=0700",
                    f"uid={user}",
                    f"gid={group}",
                ),
                *(_mount("bind", to, str(source), "rbind", "ro") for source, to in (mounts or {}).items()),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
        }
        (bundle / "config.json").write_text(json.dumps(specification), encoding="utf-8")
        return [*self._runc, "run", "--bundle", str(bundle), self.name]

    def run(self, *arguments: str, **how: Any) -> "subprocess.CompletedProcess[str]":
        """Run to the end, whatever the exit status."""
        return subprocess.run(
            self.command(arguments, **how), capture_output=True, text=True, check=False, timeout=120
        )

    def execute(self, *arguments: str) -> int:
        """The exit status of a command beside the one that runs, as a health check is run."""
        return subprocess.run(
            [*self._runc, "exec", self.name, *arguments], check=False, capture_output=True, timeout=60
        ).returncode

    def kill(self, number: signal.Signals) -> None:
        """Send the signal to process 1."""
        subprocess.run([*self._runc, "kill", self.name, str(number.value)], check=True, timeout=60)

    @property
    def _runc(self) -> list[str]:
        return ["runc", "--root", str(self.base / "state")]


class Containers:
    """The builder and the runtime of one test run."""

    name = "containers"

    def __init__(self, home: Path = HOME) -> None:
        self._home = home
        self._base: Path | None = None

    def start(self) -> Running:
        """Found or installed; then both base images are made (minutes the first time, seconds after it)."""
        for program in PROGRAMS:
            if shutil.which(program) is None:
                if not apt.can_install():
                    raise NotAvailable(f"no {program}, and no root and apt to install it with", COMMAND)
                try:
                    apt.install(program)
                except OSError as exc:
                    raise NotAvailable(str(exc), COMMAND) from exc
        if os.geteuid() != 0:
            raise NotAvailable("runs as root only", COMMAND)
        self._base = Path(tempfile.mkdtemp(prefix="transload-containers-"))
        try:
            self._import(PYTHON_IMAGE, self._debian(), "/", f"SSL_CERT_FILE={CERTIFICATES}")
            self._import(UV_IMAGE, self._uv() / "bin" / "uv", "/uv")
            versions = [self._said("buildah", "--version"), self._said("runc", "--version")]
        except BuildError as exc:
            raise NotAvailable(str(exc), COMMAND) from exc
        return Running(
            "",
            ", ".join(re.findall(r"version (\S+)", "\n".join(v.split("\n")[0] for v in versions))),
            "on PATH",
        )

    def stop(self) -> None:
        """Remove the images and whatever was made of them."""
        if self._base is not None:
            base, self._base = self._base, None
            shutil.rmtree(base, ignore_errors=True)

    @contextmanager
    def container(self, image: Image) -> Iterator[Container]:
        """One container of the image, gone at the end whatever it does."""
        assert self._base is not None
        container = Container(image, self._base)
        try:
            yield container
        finally:
            subprocess.run(
                ["runc", "--root", str(self._base / "state"), "delete", "--force", container.name],
                check=False,
                capture_output=True,
                timeout=60,
            )

    def build(self, context: Path, **arguments: str) -> Image:
        """The image of the Dockerfile in `context`, with these build arguments. Raises `BuildError`."""
        tag = f"localhost/built:{secrets.token_hex(4)}"
        given = {"PYTHON_IMAGE": PYTHON_IMAGE, "UV_IMAGE": UV_IMAGE, **arguments}
        build_arguments = [part for pair in given.items() for part in ("--build-arg", "=".join(pair))]
        self._buildah(
            "bud", "--isolation", "chroot", "--format", "docker", "--tag", tag, *build_arguments, str(context)
        )
        config = json.loads(self._buildah("inspect", "--type", "image", tag))["Docker"]["config"]
        return Image(config, Path(self._buildah("mount", self._buildah("from", tag))))

    def _buildah(self, *arguments: str) -> str:
        assert self._base is not None
        return self._said(
            *("buildah", "--root", str(self._base / "images"), "--runroot", str(self._base / "run")),
            *("--storage-driver", "vfs", *arguments),
        )

    def _said(self, *command: str) -> str:
        # Its cache lies in TMPDIR, and would outlive the run elsewhere.
        environment = environment_without("BUILDAH_", "STORAGE_") | {"TMPDIR": str(self._base)}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS, env=environment
        )
        if done.returncode:
            raise BuildError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-8000:]}")
        return done.stdout.strip()

    def _import(self, image: str, source: Path, target: str, *environment: str) -> None:
        scratch = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", scratch, str(source), target)
        for variable in environment:
            self._buildah("config", "--env", variable, scratch)
        self._buildah("commit", "--quiet", scratch, image)
        self._buildah("rm", scratch)

    def _debian(self) -> Path:
        """The files of a small Debian with Python, as an archive."""
        archive = self._home / f"{DEBIAN}-python.tar"
        with exclusive(self._home / "containers.lock"):
            if not archive.exists():
                print(f"making {archive} by debootstrap (minutes, once)", file=sys.__stderr__)
                with tempfile.TemporaryDirectory(dir=self._base) as place:
                    root, packed = Path(place, "root"), Path(place, "root.tar")
                    self._said(
                        "debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root), MIRROR
                    )
                    if CERTIFICATES.exists():
                        inside = root / CERTIFICATES.relative_to("/")
                        inside.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(CERTIFICATES, inside)
                    self._said(
                        *("tar", "--create", f"--file={packed}", f"--directory={root}"),
                        *(
                            "--exclude=./var/cache/apt/*",
                            "--exclude=./var/lib/apt/lists/*",
                            "--exclude=./dev/*",
                            ".",
                        ),
                    )
                    shutil.move(packed, archive)
        return archive

    def _uv(self) -> Path:
        """The release of uv that the Dockerfile names."""
        found = re.search(
            r"^ARG UV_IMAGE=\S+:(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
        )
        assert found is not None
        directory = self._home / f"uv-{found[1]}"
        with exclusive(self._home / "containers.lock"):
            if not (directory / "bin" / "uv").exists():
                python = next(p for p in ("python3", sys.executable) if shutil.which(p))
                self._said(
                    python, "-m", "pip", "install", "--quiet", "--target", str(directory), f"uv=={found[1]}"
                )
        return directory


def _mount(kind: str, to: str, source: str, *options: str) -> dict[str, Any]:
    return {"type": kind, "destination": to, "source": source, "options": list(options)}
