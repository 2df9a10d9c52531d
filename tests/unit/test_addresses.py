"""Which addresses are taken, in all their spellings: case 96."""

import socket
from ipaddress import ip_network

import pytest

from backends.addresses import AddressRefused, Judge, is_here

PUBLIC = ["8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "2002:808:808::1", "::ffff:8.8.8.8"]
PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
    "::ffff:127.0.0.1",
    "::ffff:10.1.2.3",
    "::ffff:0:10.1.2.3",
    "::10.1.2.3",
    "64:ff9b::10.1.2.3",
    "2002:7f00:1::",
]
NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "2001:0:a9fe:a9fe::1",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "fd00:ec2::254",
    "fd00:ec2::254%2",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:a9fe:a9fe::1",
    "fd00:100::100:200",
    "fd00:42::42",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "0.0.0.0",  # noqa: S104 - nothing listens there
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "ff02::1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.1",
    "2001:db8::1",
]


def taken(judge: Judge, address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        made = judge.socket((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 80)))
    except AddressRefused:
        return False
    made.close()
    return True


def test_case_96_a_public_name_leads_to_public_addresses_only() -> None:
    judge = Judge.of("files.example.org")
    assert [address for address in (*PUBLIC, *PRIVATE, *NEVER) if taken(judge, address)] == PUBLIC


@pytest.mark.parametrize(
    "host",
    ["minio", "localhost", "files.prod.svc", "files.prod.svc.cluster.local.", "API.internal", "a.home.arpa"],
)
def test_case_96_a_name_of_our_own_may_lead_to_private_ones(host: str) -> None:
    judge = Judge.of(host)
    assert [address for address in (*PUBLIC, *PRIVATE, *NEVER) if taken(judge, address)] == PUBLIC + PRIVATE


@pytest.mark.parametrize(
    "host",
    [
        "localhost.example.org",
        "local.net",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "a.10",
    ],
)
def test_case_96_what_only_looks_like_one_may_not(host: str) -> None:
    assert not taken(Judge.of(host), "127.0.0.1")


@pytest.mark.parametrize("address", ["10.1.2.3", "169.254.169.254", "::1", "fe80::1", "0.0.0.1"])
def test_an_address_that_was_written_down_is_taken_and_no_other(address: str) -> None:
    judge = Judge.of(address)
    assert taken(judge, address)
    assert not any(taken(judge, other) for other in ("10.1.2.4", "127.0.0.1", "169.254.169.253", "fe80::2"))


def test_listed_networks_are_taken_however_their_addresses_are_spelled() -> None:
    judge = Judge.of("files.example.org", [ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
    assert [address for address in (*PRIVATE, *NEVER) if taken(judge, address)] == [
        "10.0.0.1",
        "fd12:3456::1",
        "::ffff:10.1.2.3",
        "::ffff:0:10.1.2.3",
        "::10.1.2.3",
        "64:ff9b::10.1.2.3",
        "fd00:ec2::254",
        "fd00:ec2::254%2",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
        "fd00:42::42",
    ]


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1 is a private address.*allow_networks"):
        Judge().check("10.0.0.1")
    with pytest.raises(AddressRefused, match=r"169\.254\.169\.254 .*metadata"):
        Judge(private=True).check("169.254.169.254")


def test_what_is_of_this_machine() -> None:
    here = ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "/var/run/postgresql"]
    assert all(is_here(host) for host in here)
    assert not any(is_here(host) for host in ["db", "10.0.0.1", "localhost.example.org", ""])
