"""nginx with its WebDAV module, the HTTP API that is not ours. Used by tests/conftest.py (fixture `nginx`).

It stores a PUT in a temporary file and renames it, knows neither `If-None-Match` on a PUT nor listings, and keeps no metadata.
"""

import contextlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support import apt
from tests.support.processes import Server, free_port
from tests.support.services import NotAvailable, Running, environment_without, fetch

COMMAND = "apt-get install --no-install-recommends nginx-light"
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class NginxDav:
    """What a test needs: where it answers, and the directory whose files its objects are."""

    url: str
    files: Path


class Nginx:
    """The nginx of one test run. It is always started here: the tests look at its files."""

    name = "nginx"

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self.files = Path()

    def start(self) -> Running:
        """From PATH or Debian's package, started in a tenth of a second."""
        program = _program()
        directory = tempfile.TemporaryDirectory(prefix="transload-nginx-", ignore_cleanup_errors=True)
        base = Path(self._closing.enter_context(directory))
        self.files = base / "files"
        url = f"http://127.0.0.1:{free_port()}"
        server = Server.start(
            [program, "-p", str(base), "-c", str(_configured(base, url))],
            log=base / "nginx.log",
            environment=environment_without("NGINX", "TRANSLOAD_"),
        )
        self._closing.callback(server.stop)
        return Running(url, _wait(server, url), "started here")

    def stop(self) -> None:
        self._closing.close()


def _configured(base: Path, url: str) -> Path:
    for name in ("files", "temporary"):
        (base / name).mkdir()
    configuration = base / "nginx.conf"
    unused = "".join(
        f"  {kind}_temp_path {base}/temporary/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration.write_text(
        f"""daemon off;
pid {base}/pid;
error_log stderr warn;
worker_processes 1;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {base}/temporary;
{unused}
  large_client_header_buffers 8 16k;
  server {{
    listen {url.removeprefix("http://")};
    root {base}/files;
    location = /version {{ return 200 "$nginx_version"; }}
    location / {{
      dav_methods PUT DELETE;
      create_full_put_path on;
      # What nginx would answer with a redirect to the directory's own URL.
      if (-d $request_filename) {{ return 404; }}
    }}
  }}
}}
""",
        encoding="utf-8",
    )
    return configuration


def _program() -> str:
    """Debian puts it where only root looks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    if found := shutil.which("nginx", path=path):
        return found
    if apt.can_install():
        try:
            apt.install("nginx-light")
        except OSError as exc:
            raise NotAvailable(str(exc), COMMAND) from exc
        if found := shutil.which("nginx", path=path):
            return found
    raise NotAvailable("the program is not here", COMMAND)


def _wait(server: Server, url: str) -> str:
    """Poll until it answers. Returns its version."""
    deadline = time.monotonic() + START_SECONDS
    while server.alive and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return fetch(f"{url}/version").decode()
        time.sleep(0.02)
    raise NotAvailable(f"it did not start; {server.log} ends:\n{server.last_lines()}\n", COMMAND)
