"""Settings whose values lie in AWS Secrets Manager, on LocalStack, and on servers that repeat what they are told."""

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import AioSession
from typer.testing import CliRunner

from tests.support.echoing import http_answer, listening
from tests.support.localstack import LocalStackEndpoint
from worker.cli import app
from worker.settings import Settings, SettingsError, load_settings

CANARY = "canary-secret-0123456789"
S3 = "backend: s3, bucket: bbb, access_key_id: a"

Asked = Callable[[Any], Any]


def ask(localstack: LocalStackEndpoint, work: Asked) -> Any:
    """What `work` makes of a client."""

    async def asked() -> Any:
        async with AioSession().create_client(
            "secretsmanager",
            region_name=localstack.region,
            endpoint_url=localstack.endpoint_url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        ) as client:
            return await work(client)

    return asyncio.run(asked())


def secret(localstack: LocalStackEndpoint, *values: str | bytes) -> tuple[str, str]:
    """A new secret with these values, the last one current: its id and its ARN."""
    name = f"test/{uuid.uuid4().hex}@a.b+c=d"

    async def made(client: Any) -> str:
        first, *later = (
            {"SecretBinary" if isinstance(value, bytes) else "SecretString": value} for value in values
        )
        arn: str = (await client.create_secret(Name=name, **first))["ARN"]
        for value in later:
            await client.put_secret_value(SecretId=name, **value)
        return arn

    return name, ask(localstack, made)


def section(endpoint_url: str, **more: Any) -> str:
    given = {
        "endpoint_url": endpoint_url,
        "region": "us-east-1",
        "access_key_id": "test",
        "secret_access_key": "test",
        **more,
    }
    return f"secrets: {json.dumps(given)}"


def load(folder: Path, *sections: str) -> Settings:
    file = folder / "t.yaml"
    file.write_text("\n".join(sections), encoding="utf-8")
    return load_settings(file=file, home=folder / "home", environ={})


def problems(folder: Path, *sections: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(folder, *sections)
    assert CANARY not in str(caught.value)
    return [line.removeprefix(f"{folder}/") for line in caught.value.problems]


def test_values_come_from_secrets_whole_by_key_by_stage_and_by_arn(
    localstack: LocalStackEndpoint, tmp_path: Path
) -> None:
    text, _ = secret(localstack, CANARY)
    database = {"username": "someone", "password": 'p/%@"w', "port": 5433, "ratio": 0.5}
    _, json_arn = secret(localstack, json.dumps({"password": "the one before"}), json.dumps(database))
    settings = load(
        tmp_path,
        section(localstack.endpoint_url),
        f"targets: {{m: {{{S3}, secret_access_key_secret: '{text}'}}, p: {{backend: postgres, host: h, database: d,",
        f"  user_secret: '{json_arn}#username', password_secret: '{json_arn}#password', port_secret: '{json_arn}#port'}},",
        f"  old: {{backend: postgres, host: h2, database: d, user: u, password_secret: '{json_arn}#password#AWSPREVIOUS'}},",
        f"  api: {{backend: http, base_url: 'http://h', headers: {{X-Key_secret: '{text}##AWSCURRENT'}}}}}}",
        f"tracing: {{headers: {{authorization_secret: '{text}'}}}}",
    )
    found: dict[str, Any] = {name: target.options for name, target in settings.targets.items()}
    assert found["m"].secret_access_key.get_secret_value() == CANARY
    assert (found["p"].user, found["p"].port) == ("someone", 5433)
    assert found["p"].password.get_secret_value() == database["password"]
    assert found["old"].password.get_secret_value() == "the one before"
    assert found["api"].headers["X-Key"].get_secret_value() == CANARY
    assert settings.tracing.headers["authorization"].get_secret_value() == CANARY
    shown = settings.redacted()
    # A name that somebody keeps there is not shown either.
    assert shown["targets"]["p"]["user"] == "**********"
    assert shown["targets"]["p"]["port"] == "**********"
    assert "secret_access_key" in shown["secrets"]
    assert not {CANARY, "someone", database["password"]} & set(str(shown).split("'"))


def test_case_99_what_cannot_be_read_is_told_where_it_stands_and_without_values(
    localstack: LocalStackEndpoint, tmp_path: Path
) -> None:
    text, _ = secret(localstack, CANARY)
    document, _ = secret(
        localstack, json.dumps({"password": CANARY, "deep": {"a": CANARY}, "yes": True, "empty": ""})
    )
    binary, _ = secret(localstack, CANARY.encode())
    gone, _ = secret(localstack, CANARY)
    ask(localstack, lambda client: client.delete_secret(SecretId=gone))
    found = problems(
        tmp_path,
        section(localstack.endpoint_url),
        "targets:",
        f"  a: {{{S3}, secret_access_key_secret: test/{uuid.uuid4().hex}}}",
        f"  b: {{{S3}, secret_access_key_secret: '{text}#password'}}",
        f"  c: {{{S3}, secret_access_key_secret: '{document}#passwort'}}",
        f"  d: {{{S3}, secret_access_key_secret: '{document}#deep'}}",
        f"  e: {{{S3}, secret_access_key_secret: '{document}#yes'}}",
        f"  f: {{{S3}, secret_access_key_secret: '{binary}'}}",
        f"  g: {{{S3}, secret_access_key_secret: '{gone}'}}",
        f"  h: {{{S3}, secret_access_key_secret: '{text}##NOSUCHSTAGE'}}",
        f"  i: {{{S3}, secret_access_key_secret: '{document}#empty'}}",
        f"admin: {{token_secret: '{document}'}}",
    )
    told = {line.partition(": ")[2].removeprefix("targets.").split(".")[0]: line for line in found}
    expected = {
        "a": "there is no such secret",
        "b": "the secret is no JSON object, so it has no key 'password'",
        "c": "the secret's JSON has no key 'passwort'",
        "d": "the secret's key 'deep' holds neither text nor a number",
        "e": "the secret's key 'yes' holds neither text nor a number",
        "f": "the secret is binary",
        "g": "marked for deletion",
        "h": "it has no such stage",
        "i": "refers to a value that is empty",
        "admin": "no header carries it",
    }
    assert {name: words in told[name] for name, words in expected.items()} == dict.fromkeys(expected, True), (
        found
    )
    assert told["a"].startswith("t.yaml:3: targets.a.secret_access_key_secret: ")
    assert len(found) == len(expected)


def test_each_version_is_asked_for_once_and_in_the_region_of_its_arn(tmp_path: Path) -> None:
    with listening(http_answer("403")) as echo:
        problems(
            tmp_path,
            section(echo.url),
            f"targets: {{a: {{{S3}, secret_access_key_secret: 'x#a'}}, b: {{{S3}, prefix: b, secret_access_key_secret: 'x#b'}},",
            f"  c: {{{S3}, prefix: c, secret_access_key_secret: 'x##OLD'}},",
            f"  d: {{{S3}, prefix: d, secret_access_key_secret: 'arn:aws:secretsmanager:eu-north-1:1:secret:y-AbCdEf#k'}}}}",
        )
        asked = sorted(request.partition(b"\r\n\r\n")[2] for request in echo.heard)
        regions = [request for request in echo.heard if b"/eu-north-1/secretsmanager/" in request]
    assert [json.loads(body) for body in asked] == [
        {"SecretId": "arn:aws:secretsmanager:eu-north-1:1:secret:y-AbCdEf"},
        {"SecretId": "x", "VersionStage": "OLD"},
        {"SecretId": "x"},
    ]
    assert len(regions) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("403", "needs secretsmanager:GetSecretValue"),
        ("404", "Secrets Manager refuses"),
        ("malformed", "the secret is binary"),
        ("garbage", "Secrets Manager"),
        ("silent", "did not answer within 0.5 s"),
    ],
)
def test_case_99_a_server_that_repeats_everything_is_not_repeated(
    tmp_path: Path, answer: str, expected: str
) -> None:
    more = {
        "secret_access_key": f"{CANARY}/k",
        "session_token": f"{CANARY}/t",
        "timeout": 0.5 if answer == "silent" else 20,
    }
    with listening(http_answer(answer)) as echo:
        (line,) = problems(tmp_path, section(echo.url, **more), "admin: {token_secret: prod/admin}")
        assert any(f"{CANARY}/t".encode() in request for request in echo.heard)
    assert line.startswith("t.yaml:2: admin.token_secret: ")
    assert expected in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "cannot be reached"),
        ({"access_key_id": None, "secret_access_key": None}, "there are no credentials"),
        ({"access_key_id": None, "secret_access_key": None, "profile": "nobody"}, "there is no such profile"),
        ({"region": None}, "no region is known"),
        (
            {"role_arn": "arn:aws:iam::1:role/r", "sts_endpoint_url": "http://127.0.0.1:1"},
            "cannot be reached",
        ),
    ],
)
def test_what_keeps_it_from_being_asked_is_told(tmp_path: Path, given: dict[str, Any], expected: str) -> None:
    (line,) = problems(tmp_path, section("http://127.0.0.1:1", **given), "admin: {token_secret: prod/admin}")
    assert expected in line


def test_a_role_that_is_refused_is_told(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    with listening(http_answer("403")) as echo:
        role = {"role_arn": "arn:aws:iam::1:role/r", "sts_endpoint_url": echo.url}
        (line,) = problems(
            tmp_path, section(localstack.endpoint_url, **role), "admin: {token_secret: prod/admin}"
        )
    assert "the role of the section secrets is refused" in line


def test_the_check_asks_only_when_it_is_told_to(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    name, _ = secret(localstack, "too short")
    file = tmp_path / "t.yaml"
    asked = f"{section(localstack.endpoint_url)}\nadmin: {{token_secret: '{name}'}}\n"

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(
            app, ["--config", str(file), "--home", str(tmp_path / "home"), "config", *arguments]
        )

    with listening(http_answer("500")) as echo:
        file.write_text(asked.replace(localstack.endpoint_url, echo.url), encoding="utf-8")
        checked = run("check")
        assert echo.heard == []
    assert checked.exit_code == 0
    assert (
        checked.stderr
        == "the settings are valid, as far as they were read\nadmin.token is read from AWS Secrets Manager at start\n"
    )
    file.write_text(asked, encoding="utf-8")
    assert "admin.token: the value should have at least 16 items" in str(run("check", "--fetch").exception)
    ask(localstack, lambda client: client.put_secret_value(SecretId=name, SecretString=CANARY))
    assert run("check", "--fetch").stderr == "the settings are valid\n"
    shown = run("show")
    assert shown.exit_code == 0
    assert CANARY not in shown.stdout
    assert "token: '**********'" in shown.stdout
