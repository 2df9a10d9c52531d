"""CRC32C, CRC-64/NVME and MD5: computed as their specifications say, read as stores and tools write them, refused otherwise."""

import base64
import random
import re

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.checksums import WIDTHS, Algorithm, in_base64, in_hex, require_shown, running
from backends.errors import IntegrityError, Unsupported

ALGORITHMS: tuple[Algorithm, ...] = ("crc32c", "crc64nvme", "md5")
DIGITS = b"123456789"


def of(algorithm: Algorithm, *pieces: bytes) -> str:
    checksum = running(algorithm)
    for piece in pieces:
        checksum.update(piece)
    return checksum.digest().hex()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(range(31, -1, -1)), "5cdb3f11"),
        (
            bytes.fromhex(
                "01c00000000000000000000000000000140000000000040000000014000000182800000000000000"
                "0200000000000000"
            ),
            "563a96d9",
        ),
    ],
    ids=["zeros", "ones", "up", "down", "a SCSI read"],
)
def test_crc32c_as_in_rfc_3720(data: bytes, told: str) -> None:
    """Appendix B.4, which writes the value with its lowest byte first."""
    assert of("crc32c", data) == bytes.fromhex(told)[::-1].hex()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (bytes(4096), 0x6482D367EB22B64E),
        (b"\xff" * 4096, 0xC0DDBA7302ECA3AC),
        (bytes(range(256)) * 16, 0x3E729F5F6750449C),
        (bytes(range(255, -1, -1)) * 16, 0x9A2DF64B8E9E517E),
        (DIGITS, 0xAE8B14860A799888),
    ],
    ids=["zeros", "ones", "up", "down", "check"],
)
def test_crc64nvme_as_in_the_nvm_command_set(data: bytes, value: int) -> None:
    """The 64b CRC examples of the NVM Command Set Specification, and the check value of the CRC catalogue."""
    assert int(of("crc64nvme", data), 16) == value


def test_md5_as_in_rfc_1321() -> None:
    assert of("md5", b"message digest") == "f96b697d7cb7938d525a2f31aaf161d0"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(pieces=st.lists(st.binary(max_size=70), max_size=6))
def test_in_pieces_it_is_the_same(algorithm: Algorithm, pieces: list[bytes]) -> None:
    assert of(algorithm, *pieces) == of(algorithm, b"".join(pieces))


def test_two_libraries_agree() -> None:
    data = random.Random(3).randbytes(100_003)
    assert int(of("crc32c", data), 16) == google_crc32c.value(data)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
def test_base64_and_hex_say_the_same(algorithm: Algorithm, data: st.DataObject) -> None:
    digest = data.draw(st.binary(min_size=WIDTHS[algorithm], max_size=WIDTHS[algorithm]))
    for text in (in_base64(digest), digest.hex(), digest.hex().upper()):
        assert in_hex(algorithm, text) == digest.hex()


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        ("crc32c", ""),
        ("crc32c", "4waSg"),
        ("crc32c", "4waSgw"),
        ("crc32c", "4waSgx=="),
        ("crc32c", " 4waSgw=="),
        ("crc32c", "4waSgw==\n"),
        ("crc32c", "0xe30692"),
        ("crc32c", "e306928"),
        ("crc32c", "e3069283e3069283"),
        ("crc32c", "\uff13" * 8),
        ("crc64nvme", "4waSgw=="),
        ("md5", "a-b"),
        ("md5", "_" * 22 + "=="),
    ],
)
def test_what_is_none_is_refused(algorithm: Algorithm, text: str) -> None:
    expected = re.escape(f"a {algorithm} is {WIDTHS[algorithm]} bytes in base64, or")
    with pytest.raises(ValueError, match="parts" if "-" in text else expected):
        in_hex(algorithm, text)


def test_one_of_parts_is_told_from_one_of_the_bytes() -> None:
    with pytest.raises(ValueError, match="made of the checksums of parts"):
        in_hex("crc32c", f"{base64.b64encode(b'abcd').decode()}-3")


def test_what_a_store_shows_decides() -> None:
    require_shown({"md5": "aa"}, {"md5": "aa", "crc32c": "bb"}, "k")
    require_shown({}, {}, "k")
    with pytest.raises(IntegrityError, match="k has md5 bb; aa was promised"):
        require_shown({"md5": "aa"}, {"md5": "bb"}, "k")
    with pytest.raises(Unsupported, match="shows no crc32c of k"):
        require_shown({"md5": "aa", "crc32c": "cc"}, {"md5": "aa"}, "k")
