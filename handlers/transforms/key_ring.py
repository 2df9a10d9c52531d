"""The keys that payloads are encrypted with: where they come from, and which one is used for writing.

`load_ring` is called once at start by whoever constructs the transforms `encrypt` and `decrypt`; those get the ring. What is
secret is held in pydantic's wrappers, which print as asterisks, and no message here repeats what a file or variable holds.
"""

import asyncio
import base64
import importlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr, StringConstraints, model_validator

from backends.aws_options import AwsOptions
from backends.errors import MissingExtra
from handlers.errors import HandlerError

KEY: Final = 32
"""Bytes of a key."""

_FILE_LIMIT: Final = 16 << 10
_FORMS: Final = "a key is 32 random bytes: raw, as 64 hexadecimal digits, or in Base64"
_HEX: Final = re.compile(rb"[0-9A-Fa-f]{64}")
_BASE64: Final = re.compile(rb"[0-9A-Za-z+/_-]{43}=?")
_PRINTABLE: Final = re.compile(rb"[\t\n\r\x20-\x7e]*")

KeyId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class KeyUnusable(HandlerError):
    """A key of the ring cannot be had or used; the message says which one and what to do."""


class KmsOptions(AwsOptions):
    """How AWS KMS is asked for keys that it wrapped."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    endpoint_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s/]+", description="URL of another KMS than AWS's."
    )


class KeyOptions(BaseModel):
    """Where one key comes from: exactly one of `key_file`, `key` and `kms_wrapped_file`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    key_file: Path | None = Field(
        default=None,
        description="File with the key: 32 random bytes, raw, as 64 hexadecimal digits or in Base64. Only its owner and, "
        "for reading, its group may have access.",
    )
    key: SecretStr | None = Field(
        default=None, description="The key itself, as 64 hexadecimal digits or in Base64; better `key_env`."
    )
    kms_wrapped_file: Path | None = Field(
        default=None,
        description="File with a data key that AWS KMS wrapped (its `CiphertextBlob`), raw or in Base64; KMS unwraps it at "
        "every start.",
    )
    kms_key_id: str | None = Field(
        default=None,
        min_length=1,
        description="Key of KMS that must have wrapped it (id, ARN or alias); by default the one that the blob names.",
    )
    kms_context: Mapping[str, str] = Field(
        default={}, description="Encryption context that it was wrapped with."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [self.key_file is not None, self.key is not None, self.kms_wrapped_file is not None]
        if sum(given) != 1:
            raise ValueError("give exactly one of key_file, key (or key_env) and kms_wrapped_file")
        if self.kms_wrapped_file is None and (self.kms_key_id is not None or self.kms_context):
            raise ValueError("kms_key_id and kms_context go with kms_wrapped_file")
        return self


class KeyRingOptions(BaseModel):
    """The keys, and which of them writes. Keys that are no longer primary stay for as long as something was written with them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: Mapping[KeyId, KeyOptions] = Field(
        min_length=1,
        description="Keys by their ids. The id is written, readable, into everything that is encrypted; never give one id to "
        "another key.",
    )
    primary: KeyId = Field(description="Id of the key that encrypts.")
    kms: KmsOptions = Field(
        default=KmsOptions(), description="How AWS KMS is reached, for `kms_wrapped_file`."
    )

    @model_validator(mode="after")
    def _primary_is_there(self) -> Self:
        if self.primary not in self.keys:
            raise ValueError(f"primary is {self.primary!a}, and keys has no such id")
        return self


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys that are loaded. Its repr shows ids only."""

    keys: Mapping[str, SecretBytes]
    primary: str


async def load_ring(options: KeyRingOptions) -> KeyRing:
    """The ring with all its keys. Reads files, and asks KMS where one is wrapped by it.

    Raises `KeyUnusable`, `MissingExtra` where KMS is needed and its SDK is not installed, `PermissionDenied` where KMS
    refuses, and `Unavailable` where it does not answer.
    """
    keys: dict[str, SecretBytes] = {}
    for key_id, source in options.keys.items():
        secret = await _load(key_id, source, options.kms)
        twin = next((other for other, known in keys.items() if known == secret), None)
        if twin is not None:
            raise KeyUnusable(f"key {key_id!a} is the same as {twin!a}; every id needs a key of its own")
        keys[key_id] = secret
    return KeyRing(keys, options.primary)


async def _load(key_id: str, source: KeyOptions, kms: KmsOptions) -> SecretBytes:
    if source.key is not None:
        return _usable(key_id, "its value", source.key.get_secret_value().encode(errors="replace"), raw=False)
    if source.key_file is not None:
        held = await asyncio.to_thread(_read, key_id, source.key_file, secret=True)
        return _usable(key_id, str(source.key_file), held, raw=True)
    assert source.kms_wrapped_file is not None  # noqa: S101 - for mypy: the options have exactly one source
    blob = await asyncio.to_thread(_read, key_id, source.kms_wrapped_file, secret=False)
    try:
        unwrapping = importlib.import_module("handlers.transforms.kms_keys")
    except ModuleNotFoundError as exc:
        raise MissingExtra(
            f"key {key_id!a} is wrapped by KMS, which needs the package {exc.name!r}; "
            "install it with: pip install 'transload[kms]'"
        ) from exc
    plain: bytes = await unwrapping.unwrap(key_id, source, kms, _blob(blob))
    if len(plain) != KEY:
        raise KeyUnusable(
            f"key {key_id!a}: KMS unwrapped {len(plain)} bytes; make a data key of {KEY} (AES_256)"
        )
    return SecretBytes(plain)


def _usable(key_id: str, where: str, held: bytes, *, raw: bool) -> SecretBytes:
    text = held.strip()
    if raw and len(held) == KEY and not _PRINTABLE.fullmatch(held):
        found = held
    elif _HEX.fullmatch(text):
        found = bytes.fromhex(text.decode("ascii"))
    elif _BASE64.fullmatch(text):
        found = base64.urlsafe_b64decode(text.rstrip(b"=").translate(bytes.maketrans(b"+/", b"-_")) + b"=")
    else:
        # 32 characters of text are a password, or half a key: neither has 256 bits.
        raise KeyUnusable(f"key {key_id!a}: {where} holds {len(held)} bytes that are no key; {_FORMS}")
    if len(set(found)) == 1:
        raise KeyUnusable(f"key {key_id!a}: all bytes in {where} are the same; {_FORMS}")
    return SecretBytes(found)


def _blob(held: bytes) -> bytes:
    """As KMS made it; the AWS command line prints it in Base64."""
    if not _PRINTABLE.fullmatch(held):
        return held
    try:
        return base64.b64decode(b"".join(held.split()), validate=True)
    except ValueError:
        return held


def _read(key_id: str, path: Path, *, secret: bool) -> bytes:
    """What the file holds. A `secret` one has to be out of reach of everybody but its owner and readers of its group."""
    try:
        # Not to wait for a FIFO's writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeyUnusable(f"key {key_id!a}: {path} is no file")
            if secret and status.st_mode & (stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP):
                mode = stat.S_IMODE(status.st_mode)
                raise KeyUnusable(
                    f"key {key_id!a}: {path} is open to others (mode {mode:04o}); chmod 0400 {path}"
                )
            held = os.read(descriptor, _FILE_LIMIT + 1)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise KeyUnusable(f"key {key_id!a}: {path} cannot be read: {exc.strerror}") from exc
    if len(held) > _FILE_LIMIT:
        raise KeyUnusable(f"key {key_id!a}: {path} is larger than {_FILE_LIMIT} bytes; {_FORMS}")
    return held
