"""What is taken out of texts: what looks like a secret, and what is one of this process's."""

import base64
import html
import json
import re
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from worker.redaction import HIDDEN, redact
from worker.secret_values import Hidden, hider, hiding

CANARY = "hunter2canary"
SPICY = 'h/2+%@"z&=\\ü nter'
PART = 'h/2+%@"z=\\ü nter'
PEM = f"-----BEGIN PRIVATE KEY-----\n{'A' * 40}{CANARY}\n{CANARY}{'B' * 40}\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{CANARY}@host/path",
        f"https://{CANARY}@host/path",
        f"amqp://u:pa/{CANARY}@host/vhost",
        f"amqp://u:p#{CANARY}@host/vhost",
        f"amqp://u:p@{CANARY}@host/vhost",
        f"amqp://u:%2F{CANARY}%40@host/vhost",
        f"postgresql://:{CANARY}@host/db",
        f"?url=amqp%3A%2F%2Fu%3A{CANARY}%40host%2F",
        f'{{"url": "https:\\/\\/u:{CANARY}@host"}}',
        f"https://b/k?X-Amz-Credential={CANARY}/x&X-Amz-Signature={CANARY}&X-Amz-Security-Token={CANARY}",
        f"https://b/k?AWSAccessKeyId={CANARY}&Signature={CANARY}&Expires=1",
        f"https://a/c?sv=2024-01-01&sig={CANARY}%3D&se=2",
        f"https://g/k?X-Goog-Credential={CANARY}&X-Goog-Signature={CANARY}",
        f"https://n/webhdfs/v1/?op=OPEN&delegation={CANARY}&offset=0",
        f"https://api/x?access_token={CANARY}#id_token={CANARY}",
        f"next=https%3A%2F%2Fh%2F&refresh_token%3D{CANARY}",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={CANARY}==;EndpointSuffix=x",
        f"BlobEndpoint=https://a/;SharedAccessSignature=sv=1&sig={CANARY}",
        f"Endpoint=sb://a/;SharedAccessKeyName=n;SharedAccessKey={CANARY}=",
        f"host=h user=u password={CANARY} dbname=x",
        f"host=h user=u password='{CANARY} \\' {CANARY}' dbname=x",
        f"host=h;PWD={CANARY};",
        f"Authorization: Bearer {CANARY}",
        f"GET / HTTP/1.1\r\nHost: h\r\nProxy-Authorization: Basic {CANARY}\r\n\r\n",
        f"b'GET / HTTP/1.1\\r\\nX-Amz-Security-Token: {CANARY}\\r\\n'",
        f"{{'Authorization': 'AWS4-HMAC-SHA256 Credential=x/y, SignedHeaders=h, Signature={CANARY}'}}",
        f"AWS4-HMAC-SHA256 Credential={CANARY}/2026/s3, SignedHeaders=a;b, Signature={CANARY}",
        f"(b'authorization', b'SharedKey account:{CANARY}=')",
        f"x-api-key: {CANARY}",
        f"Set-Cookie: hadoop.auth={CANARY}; Path=/",
        f'{{"access_token": "{CANARY}", "expires_in": 1}}',
        f'{{\\"client_secret\\": \\"{CANARY}\\"}}',
        f"<a secret='{CANARY}'/>",
        f"told Bearer {CANARY}",
        f"refused: eyJhbGciOi{CANARY}.eyJpc3{CANARY}.{CANARY}",
        f"refused: ya29.{CANARY}",
        PEM,
        repr(PEM),
    ],
)
def test_case_99_what_looks_like_a_secret_is_hidden(text: str) -> None:
    shown = redact(text)
    assert CANARY not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b/c?page=2&sort=up#part",
        "s3://bucket/key@x: a@b.c was not found",
        "http://[::1]:80/a@b",
        "https://host/a:b@c/",
        "wants the bearer token of admin.token",
        "token: expired",
        "no object 'a=b' in staging main",
        "redis://a:6379/0 mail somebody@example.org",
        "key 'k1' is wrapped by KMS, which needs the package 'aiobotocore'",
        "the secret's JSON has no key 'password'; correct what stands after the #",
        "{'password': None, 'size': 3}",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "://",
        "://a:b",
        "'token",
        "&token=",
        "authorization:",
        "x-",
        '"token":"',
        "-----BEGIN PRIVATE KEY-----",
        "%3A%2F%2F%40",
        "eyJhbGciOi-",
    ],
)
def test_case_100_hostile_text_costs_one_pass(piece: str) -> None:
    # Were it two passes inside each other, this would not come to an end.
    assert redact(piece * 20_000)


# What the settings hold


class Place(BaseModel):
    url: str = ""
    password: SecretStr | None = None
    user: str = ""
    options: dict[str, object] = {}
    places: dict[str, "Place"] = {}


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent": quote,
    "percent, all": lambda secret: quote(secret, safe=""),
    "percent, lower case": lambda secret: re.sub(
        "%..", lambda found: found[0].lower(), quote(secret, safe="")
    ),
    "form": quote_plus,
    "JSON": lambda secret: json.dumps({"a": secret}),
    "JSON, Unicode": lambda secret: json.dumps({"a": secret}, ensure_ascii=False),
    "XML": html.escape,
    "repr": repr,
    "bytes": lambda secret: repr(secret.encode()),
    "Base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "Basic": lambda secret: base64.b64encode(f"user:{secret}".encode()).decode(),
    "Basic, longer": lambda secret: base64.b64encode(f"a user:{secret}\nmore".encode()).decode(),
    "SASL": lambda secret: base64.b64encode(f"\0user\0{secret}".encode()).decode(),
    "Base64, for URLs": lambda secret: base64.urlsafe_b64encode(f"us:{secret}".encode()).decode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("secret", [CANARY, SPICY])
def test_case_99_a_secret_of_the_settings_is_known_in_every_encoding(encoding: str, secret: str) -> None:
    hide = hiding(Place(password=SecretStr(secret)))
    written = ENCODINGS[encoding](secret)
    shown = hide(f"the server said {written} to that")
    assert written not in shown
    assert HIDDEN in shown
    # What is left of it is no more than what an alignment of Base64 leaves at its ends.
    rest = shown.replace(HIDDEN, "")
    assert not [rest for start in range(len(secret) - 5) if secret[start : start + 6] in rest]


@given(st.text(min_size=12, max_size=60), st.text(max_size=5), st.text(max_size=5))
@settings(max_examples=60, deadline=None)
def test_case_99_any_secret_is_hidden_wherever_it_stands(secret: str, before: str, after: str) -> None:
    assert secret not in hider([secret])(f"{before}{secret}{after}").replace(HIDDEN, "\0")


@pytest.mark.parametrize(
    "settings",
    [
        Place(url=f"postgresql://somebody:{quote(PART, safe='')}@host/db"),
        Place(password=SecretStr(f"amqp://u:{quote(PART, safe='')}@host/")),
        Place(password=SecretStr(f"AccountName=a;AccountKey={PART}")),
        Place(password=SecretStr(f"?sv=1&sig={quote(PART, safe='')}&se=2")),
        Place(password=SecretStr(json.dumps({"client_email": "x@y", "private_key": PART}))),
        Place(options={"api_key": PART}),
        Place(places={"a": Place(password=SecretStr(PART))}),
        Place(options={"deep": [{"token": PART}]}),
    ],
)
def test_case_99_what_is_secret_within_a_value_is_known_by_itself(settings: Place) -> None:
    assert hiding(settings)(f"refused {PART}.") == f"refused {HIDDEN}."


def test_a_key_file_is_known_by_its_lines_and_not_by_what_everybody_knows() -> None:
    account = json.dumps(
        {"client_email": "somebody@example.iam", "private_key": PEM, "token_uri": "https://oauth2/token"}
    )
    hide = hiding(Place(password=SecretStr(account)))
    for line in PEM.splitlines()[1:-1]:
        assert hide(f"line {line}") == f"line {HIDDEN}"
    assert (
        hide("somebody@example.iam at https://oauth2/token") == "somebody@example.iam at https://oauth2/token"
    )


def test_words_that_are_open_elsewhere_or_short_are_not_looked_for() -> None:
    hide = hiding(
        Place(
            url="postgresql://transload:transload@host/db",
            password=SecretStr("guest"),
            places={"b": Place(user="postgres-user", password=SecretStr("postgres-user"))},
        )
    )
    text = "transload of a guest: postgres-user may not"
    assert hide(text) == text


def test_hidden_learns() -> None:
    hidden = Hidden()
    assert hidden(f"say {CANARY}, https://u:p@h") == f"say {CANARY}, https://{HIDDEN}@h"
    hidden.learn(Place(password=SecretStr(CANARY)))
    assert hidden(f"say {CANARY}") == f"say {HIDDEN}"
