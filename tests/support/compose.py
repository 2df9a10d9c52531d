"""docker-compose.yml as data, and its services' settings pointed at the tests' own servers. Used by tests/image."""

from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.localstack import LocalStackEndpoint
from tests.support.rabbitmq import RabbitBroker
from tests.support.services import ROOT


def compose() -> dict[str, Any]:
    """The file, with its anchors and merges resolved."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True, slots=True)
class Servers:
    """What stands in for the compose file's servers, and what makes names a test's own on them."""

    localstack: LocalStackEndpoint
    rabbitmq: RabbitBroker
    database: str
    run_id: str

    @property
    def completions(self) -> str:
        return f"bundles-complete-{self.run_id}"

    def environment(self, service: str) -> dict[str, str]:
        """The service's variables: every one of them as it is in the file, but for addresses and names."""
        given: dict[str, str] = compose()["services"][service]["environment"]
        return {name: self._here(name, value) for name, value in given.items()}

    def _here(self, name: str, value: str) -> str:
        if name == "TRANSLOAD_LEDGER__URL":
            return self.database
        if name == "TRANSLOAD_PUBLISHER__URL":
            return self.rabbitmq.url
        if name == "TRANSLOAD_PUBLISHER__QUEUE":
            return self.completions
        if name.endswith(("__BUCKET", "__QUEUE_URL")):
            value = f"{value}-{self.run_id}"
        return value.replace("http://localstack:4566", self.localstack.endpoint_url)
