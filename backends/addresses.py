"""Which addresses a configured URL may lead to. Used by the adapters that make their connections themselves.

Where a URL leads is somebody else's to say: whoever answers for its name in DNS, now and at the next request, and whoever
answers with a redirect. The judge stands where a socket is made, so the address that is judged is the one that is connected
to, however it was spelled and whenever it was looked up. docs/adr/0022-addresses.md has what was decided and rejected.
"""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:  # of aiohttp, which not every adapter that asks here needs
    from aiohappyeyeballs import AddrInfoType

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PRIVATE: Final = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
    )
)
"""Loopback, and what an organization numbers by itself: RFC 1918, RFC 6598, RFC 4193."""

_METADATA: Final = tuple(
    ip_network(text)
    for text in (
        "100.100.100.200",
        "168.63.129.16",
        "fd00:42::42",
        "fd00:100::100:200",
        "fd00:a9fe:a9fe::1",
        "fd00:c1::a9fe:a9fe",
        "fd00:ec2::/32",
        "fd20:ce::254",
    )
)
"""Where clouds hand out credentials and would pass for private or public: Alibaba, Azure, Scaleway, Alibaba, Linode, Oracle, AWS (all
of its services beside an instance), Google. The usual one, 169.254.169.254, is link-local."""

_EMBEDDING: Final = tuple(
    (IPv6Network(text), shift)
    for text, shift in (
        ("::ffff:0:0/96", 0),
        ("::ffff:0:0:0/96", 0),
        ("64:ff9b::/96", 0),
        ("::/96", 0),
        ("2002::/16", 80),
    )
)
"""IPv6 addresses that lead to an IPv4 one, and by how many bits that stands left: mapped (RFC 4291), translated (RFC 2765),
NAT64 (RFC 6052), compatible (RFC 4291), 6to4 (RFC 3056)."""

_PROTOCOLS: Final = IPv4Network("192.0.0.0/24")
"""For protocols' own use (RFC 6890); what `is_global` says of it changed between releases of Python."""

_UNICAST: Final = IPv6Network("2000::/3")
"""All of IPv6 that is routed between organizations: https://www.iana.org/assignments/ipv6-address-space."""

_INNER: Final = ("localhost", "local", "internal", "test", "home.arpa", "svc")
"""Ends of names that the public DNS does not have: RFC 6761, RFC 6762, RFC 8375, ICANN's `internal`, Kubernetes' services."""

_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""The end of a name that is another spelling of an IPv4 address: 2130706433, 0x7f.1 (https://url.spec.whatwg.org/#ends-in-a-number-checker)."""


class AddressRefused(OSError):
    """A name led to an address that is not taken. The message says which, and what to configure."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Says which addresses are connected to."""

    listed: tuple[Network, ...] = ()
    """Taken whatever they are."""
    private: bool = False
    """Take private addresses besides public ones; never those that are neither."""

    @classmethod
    def of(cls, host: str, listed: Iterable[Network] = ()) -> Self:
        """For the host of a URL that the operator wrote.

        An address stands for itself. A name that only the operator's own resolver can answer may lead to private addresses;
        one of the public DNS may not, because others say where it leads.
        """
        literal = literals([host])
        return cls((*listed, *literal), private=not literal and _is_inner(host))

    def socket(self, info: "AddrInfoType") -> socket.socket:
        """A socket for that address, as `aiohttp.TCPConnector(socket_factory=…)` asks for it. Raises `AddressRefused`."""
        family, kind, protocol, _, address = info
        self.check(str(address[0]))
        return socket.socket(family, kind, protocol)

    def check(self, text: str) -> None:
        """Raises `AddressRefused`."""
        # A zone is no part of an address, and only link-local ones are looked for in theirs: RFC 4007.
        address = ip_address(text.partition("%")[0])
        meant = _embedded(address) or address
        if any(one in network for one in (address, meant) for network in self.listed):
            return
        if _is_metadata(meant) or not (_is_public(meant) or _is_private(meant)):
            raise AddressRefused(
                f"{text} is link-local, a cloud's metadata or no host's address; it is taken only where it is listed itself"
            )
        if not self.private and not _is_public(meant):
            raise AddressRefused(
                f"{text} is a private address behind a public name; if it is meant, list its network in allow_networks"
            )


def is_here(host: str) -> bool:
    """Whether a host, or the path of a socket, is of this machine by its spelling alone."""
    loopback = any(network.is_loopback for network in literals([host]))
    return loopback or host.startswith("/") or host.lower() == "localhost"


def literals(hosts: Iterable[str]) -> tuple[Network, ...]:
    """Those of the hosts that are addresses, in brackets or not, each as a network of one."""
    found: list[Network] = []
    for host in hosts:
        try:
            found.append(ip_network(host.strip("[]")))
        except ValueError:
            continue
    return tuple(found)


def _is_inner(host: str) -> bool:
    name = host.rstrip(".").lower()
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return False
    return "." not in name or any(name == end or name.endswith(f".{end}") for end in _INNER)


def _embedded(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address) or int(address) <= 1:
        return None
    for network, shift in _EMBEDDING:
        if address in network:
            return IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return None


def _is_metadata(address: Address) -> bool:
    return any(address in network for network in _METADATA)


def _is_private(address: Address) -> bool:
    return any(address in network for network in _PRIVATE)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global and not address.is_multicast and address not in _PROTOCOLS
