"""The ring: keys from files, from variables and from KMS; what is wrong with one is said, what it is never."""

import base64
import logging
import os
import secrets
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr, ValidationError

from backends.errors import MissingExtra, PermissionDenied, Unavailable
from handlers.errors import HandlerError
from handlers.transforms import kms_keys
from handlers.transforms.key_ring import (
    KeyOptions,
    KeyRing,
    KeyRingOptions,
    KeyUnusable,
    KmsOptions,
    load_ring,
)
from tests.fuzz.encryption import decrypted, encrypted
from tests.support.localstack import LocalStackEndpoint
from tests.support.processes import free_port
from tests.support.s3 import s3_client

KEY = bytes.fromhex("8f1ce54e4b2ad4b4c2e3d91f0a7766554433221100ffeeddccbbaa9988776601")
HEX = KEY.hex()
BASE64 = base64.b64encode(KEY).decode()
FORMS: dict[str, bytes] = {
    "raw": KEY,
    "hex": HEX.encode(),
    "hex with a line end": f"{HEX.upper()}\n".encode(),
    "base64": BASE64.encode(),
    "base64 for URLs": base64.urlsafe_b64encode(KEY).rstrip(b"=") + b"\r\n",
}


def file_of(path: Path, data: bytes, mode: int = 0o400) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


async def ring_of(*kms: KmsOptions, **keys: KeyOptions) -> KeyRing:
    asked_like = kms[0] if kms else KmsOptions()
    ring = await load_ring(KeyRingOptions(keys=keys, primary=next(iter(keys)), kms=asked_like))
    assert list(ring.keys) == list(keys)
    return ring


async def unusable(**keys: KeyOptions) -> str:
    with pytest.raises(KeyUnusable) as caught:
        await ring_of(**keys)
    assert isinstance(caught.value, HandlerError)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
async def test_a_file_with_a_key(tmp_path: Path, form: str) -> None:
    ring = await ring_of(k1=KeyOptions(key_file=file_of(tmp_path / "key", FORMS[form])))
    assert ring.primary == "k1"
    assert ring.keys["k1"].get_secret_value() == KEY


@pytest.mark.parametrize("text", [HEX, BASE64, f" {HEX}\n"])
async def test_a_variable_with_a_key(text: str) -> None:
    ring = await ring_of(k1=KeyOptions(key=SecretStr(text)))
    assert ring.keys["k1"].get_secret_value() == KEY


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a" * 32,
        b"correct horse battery staple 123",
        KEY[:31],
        KEY + b"\n",
        KEY * 2,
        HEX[:-1].encode(),
        HEX.encode() * 2,
        b"0x" + HEX.encode(),
        bytes(32),
        b"00" * 32,
        b"\xff" * 32,
        secrets.token_bytes(20_000),
    ],
)
async def test_what_is_no_key_is_not_taken_for_one(tmp_path: Path, data: bytes) -> None:
    path = file_of(tmp_path / "key", data)
    said = await unusable(k1=KeyOptions(key_file=path))
    assert "'k1'" in said
    assert str(path) in said
    assert "32 random bytes" in said


async def test_32_characters_in_a_variable_are_no_key() -> None:
    for text in ("x" * 32, "ü" * 32, "\ud800" * 16, ""):
        said = await unusable(k1=KeyOptions(key=SecretStr(text)))
        assert "32 random bytes" in said


@pytest.mark.parametrize("mode", [0o600, 0o440, 0o640])
async def test_modes_that_keep_a_key(tmp_path: Path, mode: int) -> None:
    await ring_of(k1=KeyOptions(key_file=file_of(tmp_path / "key", KEY, mode)))


@pytest.mark.parametrize("mode", [0o644, 0o404, 0o402, 0o401, 0o660, 0o777])
async def test_modes_that_do_not(tmp_path: Path, mode: int) -> None:
    said = await unusable(k1=KeyOptions(key_file=file_of(tmp_path / "key", KEY, mode)))
    assert f"mode {mode:04o}" in said
    assert "chmod 0400" in said


async def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o400)
    assert "no file" in await unusable(k1=KeyOptions(key_file=tmp_path / "fifo"))
    assert "no file" in await unusable(k1=KeyOptions(key_file=tmp_path))
    assert "No such file" in await unusable(k1=KeyOptions(key_file=tmp_path / "missing"))
    # Kubernetes mounts secrets as links.
    file_of(tmp_path / "key", KEY)
    (tmp_path / "link").symlink_to("key")
    await ring_of(k1=KeyOptions(key_file=tmp_path / "link"))


async def test_two_ids_for_one_key_are_a_rotation_that_was_none(tmp_path: Path) -> None:
    said = await unusable(
        k1=KeyOptions(key_file=file_of(tmp_path / "key", KEY)), k2=KeyOptions(key=SecretStr(HEX))
    )
    assert "'k2' is the same as 'k1'" in said


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"key": HEX, "key_file": "/etc/key"},
        {"key": HEX, "kms_key_id": "alias/a"},
        {"key_file": "/etc/key", "kms_context": {"a": "b"}},
        {"key": HEX, "unknown": 1},
    ],
)
def test_a_key_has_one_source(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        KeyRingOptions.model_validate({"keys": {"k1": given}, "primary": "k1"})
    assert HEX not in str(caught.value)


@pytest.mark.parametrize("key_id", ["", "a b", "ä", "-a", "a" * 65, "a\n"])
def test_ids_are_short_and_plain(key_id: str) -> None:
    with pytest.raises(ValidationError):
        KeyRingOptions.model_validate({"keys": {key_id: {"key": HEX}}, "primary": key_id})


def test_the_primary_is_one_of_them() -> None:
    with pytest.raises(ValidationError, match="keys has no such id") as caught:
        KeyRingOptions.model_validate({"keys": {"k1": {"key": HEX}}, "primary": "k2"})
    assert HEX not in str(caught.value)


async def test_case_99_no_key_in_any_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in what objects print, nor in the errors of anything that goes wrong with them, nor in logs."""
    caplog.set_level(logging.DEBUG)
    options = KeyRingOptions(
        keys={
            "k1": KeyOptions(key_file=file_of(tmp_path / "k1", KEY)),
            "k2": KeyOptions(key=SecretStr(KEY[::-1].hex())),
        },
        primary="k1",
    )
    ring = await load_ring(options)
    said = [repr(options), str(options), options.model_dump_json(), repr(ring), str(ring), f"{ring}"]
    data = await encrypted(b"x" * 100, ring=ring)
    for changed in (data[:-1], b"?" + data, data[:30]):
        _, error = await decrypted(changed, ring=ring)
        assert error is not None
        said += traceback.format_exception(error)
    for broken in (HEX[:-2], HEX + "00", KEY.hex(" ")):
        with pytest.raises(KeyUnusable) as caught:
            await ring_of(k1=KeyOptions(key=SecretStr(broken)))
        said += traceback.format_exception(caught.value)
        with pytest.raises(KeyUnusable) as caught:
            await ring_of(k1=KeyOptions(key_file=file_of(tmp_path / broken[:9], broken.encode(), 0o600)))
        said += traceback.format_exception(caught.value)
    text = "\n".join([*said, caplog.text])
    for key in (KEY, KEY[::-1]):
        for form in (key.hex()[:12], base64.b64encode(key).decode()[:12], repr(key)[2:20], key.hex(" ")[:12]):
            assert form not in text


async def wrapped(
    localstack: LocalStackEndpoint, context: dict[str, str] | None = None
) -> tuple[str, bytes, bytes]:
    """A key of KMS, and a data key: plain, and as it is stored."""
    async with s3_client(localstack, "kms") as kms:
        key_id: str = (await kms.create_key())["KeyMetadata"]["KeyId"]
        made = await kms.generate_data_key(KeyId=key_id, KeySpec="AES_256", EncryptionContext=context or {})
    return key_id, made["Plaintext"], made["CiphertextBlob"]


def asked(localstack: LocalStackEndpoint, **more: Any) -> KmsOptions:
    return KmsOptions(
        endpoint_url=localstack.endpoint_url,
        region=localstack.region,
        access_key_id=localstack.access_key_id,
        secret_access_key=SecretStr(localstack.secret_access_key),
        **more,
    )


@pytest.mark.parametrize("form", [bytes, base64.b64encode, base64.encodebytes])
async def test_a_key_that_kms_wrapped(
    localstack: LocalStackEndpoint, tmp_path: Path, form: Callable[[bytes], bytes]
) -> None:
    context = {"purpose": "transload"}
    key_id, plain, blob = await wrapped(localstack, context)
    # Of no use to anybody who may not ask KMS: it may be readable.
    source = KeyOptions(
        kms_wrapped_file=file_of(tmp_path / "blob", form(blob), 0o644), kms_key_id=key_id, kms_context=context
    )
    ring = await ring_of(asked(localstack), k1=source, k2=KeyOptions(key=SecretStr(HEX)))
    assert ring.keys["k1"].get_secret_value() == plain
    assert await decrypted(await encrypted(b"x", ring=ring), ring=ring) == (b"x", None)


async def test_kms_refuses(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    _, plain, blob = await wrapped(localstack, {"purpose": "transload"})
    path = file_of(tmp_path / "blob", blob)
    async with s3_client(localstack, "kms") as kms:
        other: str = (await kms.create_key())["KeyMetadata"]["KeyId"]
        short: bytes = (await kms.encrypt(KeyId=other, Plaintext=KEY[:16]))["CiphertextBlob"]
    sources = {
        "InvalidCiphertextException": KeyOptions(kms_wrapped_file=path, kms_context={"purpose": "other"}),
        "IncorrectKeyException": KeyOptions(
            kms_wrapped_file=path, kms_key_id=other, kms_context={"purpose": "transload"}
        ),
        "NotFoundException": KeyOptions(kms_wrapped_file=path, kms_key_id=f"alias/{secrets.token_hex(4)}"),
        "16 bytes": KeyOptions(kms_wrapped_file=file_of(tmp_path / "short", short)),
    }
    for said, source in sources.items():
        with pytest.raises(KeyUnusable, match=said) as caught:
            await ring_of(asked(localstack), k1=source)
        text = "".join(traceback.format_exception(caught.value))
        assert "'k1'" in str(caught.value)
        assert plain.hex() not in text
    with pytest.raises(KeyUnusable):
        await ring_of(asked(localstack), k1=KeyOptions(kms_wrapped_file=file_of(tmp_path / "no", b"no blob")))


async def test_kms_is_not_there(localstack: LocalStackEndpoint, tmp_path: Path) -> None:
    source = KeyOptions(kms_wrapped_file=file_of(tmp_path / "blob", b"\x01\x02blob"))
    nowhere = KmsOptions(
        endpoint_url=f"http://127.0.0.1:{free_port()}",
        region=localstack.region,
        access_key_id="test",
        secret_access_key=SecretStr("test"),
    )
    with pytest.raises(Unavailable, match="EndpointConnectionError"):
        await ring_of(nowhere, k1=source)
    with pytest.raises(PermissionDenied, match="ProfileNotFound"):
        await ring_of(KmsOptions(profile="nobody", region="us-east-1"), k1=source)
    with pytest.raises(KeyUnusable, match="NoRegionError"):
        await ring_of(KmsOptions(access_key_id="test", secret_access_key=SecretStr("test")), k1=source)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDeniedException", 400, PermissionDenied),
        ("ExpiredTokenException", 400, PermissionDenied),
        ("ThrottlingException", 400, Unavailable),
        ("LimitExceededException", 400, Unavailable),
        ("KMSInternalException", 500, Unavailable),
        ("DependencyTimeoutException", 503, Unavailable),
        ("DisabledException", 400, KeyUnusable),
    ],
)
def test_what_kms_says_and_localstack_never_does(code: str, status: int, kind: type[Exception]) -> None:
    answer = {
        "Error": {"Code": code, "Message": "token=secret"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = kms_keys._translate(ClientError(answer, "Decrypt"), "k1")
    assert type(error) is kind
    assert code in str(error)
    assert "secret" not in str(error)


async def test_without_the_sdk_only_kms_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="aiobotocore")

    monkeypatch.setattr("importlib.import_module", missing)
    await ring_of(k1=KeyOptions(key=SecretStr(HEX)))
    with pytest.raises(MissingExtra, match=r"transload\[kms\]"):
        await ring_of(k1=KeyOptions(kms_wrapped_file=file_of(tmp_path / "blob", b"blob")))
