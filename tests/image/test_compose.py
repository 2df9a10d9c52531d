"""docker-compose.yml: its promises, its settings, and what its services do one after the other, without Docker."""

import io
import json
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.support.compose import Servers, compose
from tests.support.localstack import LocalStackEndpoint
from tests.support.postgresql import PostgresqlServer
from tests.support.rabbitmq import RabbitBroker
from tests.support.services import ROOT
from worker.cli import app
from worker.settings import Settings, load_settings

OURS = ("migrate", "provision", "worker", "demo")
SECONDS = re.compile(r"(\d+)s")
LAST_WORDS: int = yaml.safe_load((ROOT / "helm/transload/values.yaml").read_text(encoding="utf-8"))[
    "drainMarginSeconds"
]
"""Seconds beyond the drain that a container's grace period needs: as for the chart."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


@pytest.fixture(scope="module")
def settings(services: dict[str, Any]) -> Settings:
    return load_settings(file=None, home=None, environ=services["worker"]["environment"])


def test_images_are_pinned_by_version(services: dict[str, Any]) -> None:
    others = {name: each["image"] for name, each in services.items() if name not in OURS}
    assert others["localstack"] == "localstack/localstack:4.14.0", "later ones want an account"
    assert [
        image for image in others.values() if not re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", image)
    ] == []
    assert {services[name]["image"] for name in OURS} == {"transload:local"}
    assert all(services[name]["build"] == "." for name in OURS), "none of ours is looked for in a registry"


def test_no_version_key_and_no_port_beyond_this_machine(services: dict[str, Any]) -> None:
    assert "version" not in compose()
    ports = [port for each in services.values() for port in each.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_what_is_waited_for_can_be_waited_for(services: dict[str, Any]) -> None:
    for name, each in services.items():
        waits = each.get("depends_on", {})
        for other in waits:
            condition = waits[other]["condition"] if isinstance(waits, dict) else "service_started"
            assert condition != "service_healthy" or "healthcheck" in services[other], (name, other)
            assert condition != "service_completed_successfully" or "restart" not in services[other]
            assert not services[other].get("profiles") or each.get("profiles"), (name, other)
    assert services["worker"]["depends_on"] == {
        **{name: {"condition": "service_healthy"} for name in ("localstack", "rabbitmq", "postgres")},
        **{name: {"condition": "service_completed_successfully"} for name in ("migrate", "provision")},
    }
    by_default = {name for name, each in services.items() if not each.get("profiles")}
    assert by_default == {"localstack", "rabbitmq", "postgres", "migrate", "provision", "worker"}


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_as_confined_as_the_charts(services: dict[str, Any], name: str) -> None:
    pod = (ROOT / "helm/transload/templates/_pod.tpl").read_text(encoding="utf-8")
    user = re.findall(r"runAs(?:User|Group): (\d+)", pod)
    assert "readOnlyRootFilesystem: true" in pod
    assert "drop: [ALL]" in pod
    assert "allowPrivilegeEscalation: false" in pod
    ours = services[name]
    assert ours["user"] == ":".join(user)
    assert ours["read_only"] is True
    assert ours["cap_drop"] == ["ALL"]
    assert ours["security_opt"] == ["no-new-privileges:true"]
    (scratch,) = ours["tmpfs"]
    assert scratch.startswith(f"/scratch:mode=0700,uid={user[0]},gid={user[1]},")


def test_the_worker_is_given_the_time_to_drain(services: dict[str, Any], settings: Settings) -> None:
    grace = SECONDS.fullmatch(services["worker"]["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > settings.worker.drain_timeout + LAST_WORDS


def test_the_settings_are_accepted_and_every_server_is_used(
    services: dict[str, Any], settings: Settings
) -> None:
    assert (settings.queue.type, settings.publisher.type) == ("sqs", "rabbitmq")
    assert {place.backend for place in settings.staging.values()} == {"s3"}
    assert {place.backend for place in settings.targets.values()} == {"s3"}
    assert settings.ledger.path is None
    assert {json.dumps(services[name]["environment"], sort_keys=True) for name in OURS} == {
        json.dumps(services["worker"]["environment"], sort_keys=True)
    }, "what is provisioned and migrated is what the worker uses"


def test_prometheus_may_scrape_the_worker_and_finds_the_rules(
    services: dict[str, Any], settings: Settings
) -> None:
    given = yaml.safe_load(compose()["configs"]["prometheus"]["content"])
    (scrape,) = given["scrape_configs"]
    assert settings.admin.token is not None
    assert scrape["authorization"]["credentials"] == settings.admin.token.get_secret_value()
    assert settings.admin.host == "0.0.0.0"  # noqa: S104 - within the container's own network
    assert scrape["dns_sd_configs"][0]["port"] == settings.admin.port
    assert f":{settings.admin.port}/readyz" in services["worker"]["healthcheck"]["test"][-1]
    (mount,) = services["prometheus"]["volumes"]
    source, target, _ = mount.split(":")
    (rules,) = given["rule_files"]
    found = (ROOT / source / Path(rules).relative_to(target)).read_text(encoding="utf-8")
    assert f'job="{scrape["job_name"]}"' in found, "the rules ask for another job"


def test_localstack_is_healthy_when_it_is_ready(
    services: dict[str, Any], localstack: LocalStackEndpoint
) -> None:
    _, python, *probe = services["localstack"]["healthcheck"]["test"]
    assert python == "python3"
    asked = [part.replace("http://127.0.0.1:4566", localstack.endpoint_url) for part in probe]
    assert subprocess.run([sys.executable, *asked], check=False, capture_output=True).returncode == 0
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        unanswered = [part.replace(":4566", f":{silent.getsockname()[1]}") for part in probe]
        assert subprocess.run([sys.executable, *unanswered], check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    ("completed", "states", "healthy"),
    [
        (True, [], True),
        (True, ["SUCCESSFUL", "SUCCESSFUL"], True),
        (True, ["SUCCESSFUL", "ERROR"], False),
        (True, ["RUNNING"], False),
        (False, [], False),
        (False, ["SUCCESSFUL"], False),
    ],
)
def test_localstack_is_healthy_only_after_every_script(
    services: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    completed: bool,
    states: list[str],
    healthy: bool,
) -> None:
    """As `/_localstack/init/ready` answers, which says `completed` although a script failed."""
    answer = {"completed": completed, "scripts": [{"name": f"{each}.sh", "state": each} for each in states]}
    asked = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append((url, timeout))
        return io.BytesIO(json.dumps(answer).encode())

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(SystemExit) as ended:
        exec(services["localstack"]["healthcheck"]["test"][-1], {})  # noqa: S102 - the file's own code
    assert asked == [("http://127.0.0.1:4566/_localstack/init/ready", 2)]
    assert bool(ended.value.code) is not healthy


@pytest.fixture
async def servers(
    localstack: LocalStackEndpoint, rabbitmq: RabbitBroker, postgresql: PostgresqlServer
) -> AsyncIterator[Servers]:
    async with postgresql.database(migrated=False) as database:
        servers = Servers(localstack, rabbitmq, database, secrets.token_hex(4))
        yield servers
        await rabbitmq.leave(servers.completions)


def test_its_services_one_after_the_other_announce_a_bundle(servers: Servers, tmp_path: Path) -> None:
    """provision, migrate, publish, the worker, and what the demo looks at, in this process."""

    def run(service: str, *arguments: str) -> str:
        environment = servers.environment(service) | {"TRANSLOAD_HOME": str(tmp_path / "home")}
        done = CliRunner(env=environment).invoke(app, arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        return done.stdout

    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.html").write_text(name, encoding="utf-8")
    run("provision", "provision")
    run("migrate", "migrate")
    bid = run("demo", "publish", str(tmp_path / "in"), "--recipe", "demo").strip()
    run("worker", "run", "--until-idle")
    assert bid in run("demo", "outbox", "ls", "--state", "published", "--json")
    assert "2 objects" in run("demo", "verify", bid)
    assert all(line.startswith("ok") for line in run("provision", "provision", "--check").splitlines())
