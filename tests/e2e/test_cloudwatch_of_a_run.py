"""A worker that sends its metrics to CloudWatch and logs what it wrote to S3 (LocalStack)."""

import asyncio
import json
import secrets
from pathlib import Path

import yaml

from tests.support.cli import Transload
from tests.support.localstack import LocalStackEndpoint
from tests.support.s3 import new_bucket
from tests.unit.test_cloudwatch import total


async def test_a_run_is_seen_in_cloudwatch(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    bucket, namespace = await new_bucket(localstack), f"test/{secrets.token_hex(6)}"
    access = {
        "region": localstack.region,
        "endpoint_url": localstack.endpoint_url,
        "access_key_id": localstack.access_key_id,
        "secret_access_key": localstack.secret_access_key,
    }
    config = tmp_path / "t.yaml"
    content = {
        "targets": {"lake": {"backend": "s3", "bucket": bucket, **access}},
        "cloudwatch": {"enabled": True, "namespace": namespace, **access},
    }
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    transload = Transload(tmp_path / "home", config)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "page.html").write_bytes(b"12345")
    await asyncio.to_thread(transload.ok, "publish", folder, "--recipe", "fr")
    done = await asyncio.to_thread(transload.run, "run", "--until-idle")
    assert done.returncode == 0

    acked = await total(localstack, namespace, "messages_settled", {"queue": "resources", "outcome": "ack"})
    assert acked["Sum"] == 2
    written = await total(localstack, namespace, "transfer_bytes", {"backend": "lake", "direction": "out"})
    assert written["Sum"] > 5, "payload and manifest"

    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    uploads = [line for line in logged if line["event"] == "S3 upload completed"]
    (page,) = (line for line in uploads if line["size"] == 5)
    assert page["bucket"] == bucket
    assert "page" in page["key"]
    assert page["duration"] > 0
    assert page["level"] == "info"
