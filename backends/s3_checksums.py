"""Which checksum goes with what is written to S3, and what S3 has to say of it at the end. Used by the backends/s3*.py modules only.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

import base64
import hashlib
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from backends.checksums import Algorithm, in_base64, in_hex, running

Choice = Literal["when_supported", "when_required", "crc32c", "crc64nvme", "md5"]

_SHOWN: Final[Mapping[str, Algorithm]] = MappingProxyType(
    {"ChecksumCRC32C": "crc32c", "ChecksumCRC64NVME": "crc64nvme", "ChecksumMD5": "md5"}
)
_OF_PARTS: Final[Mapping[str, Any]] = MappingProxyType(
    {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
)
"""Declared when the upload is created: parts with a checksum that was not are an InvalidPart at Complete.

One checksum of the whole object, not one of the parts' checksums, is what a later copy can be compared by.
"""


class Proof(Protocol):
    """The checksums of one write."""

    @property
    def declared(self) -> Mapping[str, Any]:
        """What the create call of an upload says of them."""
        ...

    def update(self, chunk: bytes) -> None:
        """Takes note of the whole stream, in its order."""
        ...

    def sent(self, number: int, body: bytes) -> Mapping[str, str]:
        """What goes with a part, or with an object in one piece, which is number 1. Runs on a thread where it takes long."""
        ...

    def named(self, sent: Mapping[str, str]) -> Mapping[str, str]:
        """What of that Complete repeats."""
        ...

    def closing(self, size: int) -> Mapping[str, Any]:
        """What Complete says of the whole: the store refuses it before anything has a name."""
        ...

    def fault(self, answer: Mapping[str, Any], *, parts: int) -> str | None:
        """What is wrong with the answer to a Complete, or with `parts=0` to a PUT; None when it is as it has to be."""
        ...


def proof_of(choice: Choice) -> Proof:
    """For one write."""
    if choice == "when_required":
        return _Nothing()
    if choice == "when_supported":
        return _Parts()
    return _Md5() if choice == "md5" else _Whole(choice)


def required_algorithm(choice: Choice) -> str | None:
    """The checksum a store has to know, as S3 calls it. Others may be overlooked by a store that does not know them."""
    return choice.upper() if choice in {"crc32c", "crc64nvme"} else None


def shown_by(head: Mapping[str, Any]) -> dict[Algorithm, str]:
    """The checksums of the whole object that HeadObject tells, in hex."""
    whole = head.get("ChecksumType") == "FULL_OBJECT"
    return {kind: in_hex(kind, str(head[name])) for name, kind in _SHOWN.items() if whole and name in head}


class _Nothing:
    """The payload is signed instead."""

    declared: Mapping[str, Any] = MappingProxyType({})

    def update(self, chunk: bytes) -> None:
        """Nothing is told of the whole."""

    def sent(self, number: int, body: bytes) -> Mapping[str, str]:  # noqa: ARG002 - as the protocol has it
        return self.declared

    def named(self, sent: Mapping[str, str]) -> Mapping[str, str]:
        return sent

    def closing(self, size: int) -> Mapping[str, Any]:  # noqa: ARG002 - as the protocol has it
        return self.declared

    def fault(self, answer: Mapping[str, Any], *, parts: int) -> str | None:  # noqa: ARG002 - as the protocol has it
        return None


class _Parts(_Nothing):
    """A CRC32 with every part. (An object in one piece goes through obstore, with its SHA-256.)"""

    declared = _OF_PARTS

    def sent(self, number: int, body: bytes) -> Mapping[str, str]:  # noqa: ARG002 - as the protocol has it
        return {"ChecksumCRC32": base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()}

    def closing(self, size: int) -> Mapping[str, Any]:  # noqa: ARG002 - as the protocol has it
        return {}


class _Whole:
    """A CRC with every part, and that of the whole at the end."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm = algorithm
        self._name = f"Checksum{algorithm.upper()}"
        self._whole = running(algorithm)
        self.declared: Mapping[str, Any] = {
            "ChecksumAlgorithm": algorithm.upper(),
            "ChecksumType": "FULL_OBJECT",
        }

    def update(self, chunk: bytes) -> None:
        self._whole.update(chunk)

    def sent(self, number: int, body: bytes) -> Mapping[str, str]:  # noqa: ARG002 - as the protocol has it
        checksum = running(self._algorithm)
        checksum.update(body)
        return {self._name: in_base64(checksum.digest())}

    def named(self, sent: Mapping[str, str]) -> Mapping[str, str]:
        return sent

    def closing(self, size: int) -> Mapping[str, Any]:
        whole = in_base64(self._whole.digest())
        return {self._name: whole, "ChecksumType": "FULL_OBJECT", "MpuObjectSize": size}

    def fault(self, answer: Mapping[str, Any], *, parts: int) -> str | None:  # noqa: ARG002 - as the protocol has it
        ours, theirs = in_base64(self._whole.digest()), answer.get(self._name)
        if theirs == ours:
            return None
        return f"it tells the {self._algorithm} {theirs} of what has {ours}"


class _Md5:
    """Content-MD5 with every request, which every store verifies, and at the end the ETag: the MD5, or that of the parts' MD5s."""

    declared: Mapping[str, Any] = MappingProxyType({})

    def __init__(self) -> None:
        self._sums: dict[int, bytes] = {}

    def update(self, chunk: bytes) -> None:
        """An ETag says nothing of the whole as such."""

    def sent(self, number: int, body: bytes) -> Mapping[str, str]:
        self._sums[number] = hashlib.md5(body, usedforsecurity=False).digest()
        return {"ContentMD5": in_base64(self._sums[number])}

    def named(self, sent: Mapping[str, str]) -> Mapping[str, str]:  # noqa: ARG002 - as the protocol has it
        return self.declared

    def closing(self, size: int) -> Mapping[str, Any]:  # noqa: ARG002 - as the protocol has it
        return self.declared

    def fault(self, answer: Mapping[str, Any], *, parts: int) -> str | None:
        if "kms" in answer.get("ServerSideEncryption", ""):
            # https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html: such an ETag is no MD5.
            return None
        sums = b"".join(self._sums[number] for number in sorted(self._sums))
        ours = hashlib.md5(sums, usedforsecurity=False).hexdigest() + f"-{parts}" if parts else sums.hex()
        theirs = str(answer.get("ETag", "")).strip('"')
        return None if theirs == ours else f"it tells the ETag {theirs} of what has {ours}"
