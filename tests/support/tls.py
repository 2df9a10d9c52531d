"""An authority that issues certificates, and a front that speaks TLS for a server that speaks none. For the tests of case 104."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.support.dropping import drop

_DAY: Final = timedelta(days=1)
_SSL_REQUEST: Final = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
"""https://www.postgresql.org/docs/current/protocol-message-formats.html#PROTOCOL-MESSAGE-FORMATS-SSLREQUEST"""


@dataclass(frozen=True, slots=True)
class Authority:
    """Its certificate is in the file `trusted`."""

    folder: Path
    trusted: Path
    _key: ec.EllipticCurvePrivateKey
    _name: x509.Name

    @classmethod
    def make(cls, folder: Path, name: str) -> Self:
        key, subject = ec.generate_private_key(ec.SECP256R1()), _named(name)
        certificate = (
            _blank(subject, subject, key, datetime.now(UTC) + _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        trusted = folder / f"{name}.pem"
        trusted.write_bytes(certificate.public_bytes(Encoding.PEM))
        return cls(folder, trusted, key, subject)

    def server(self, host: str = "127.0.0.1", *, expired: bool = False) -> ssl.SSLContext:
        """What a server needs to pass for `host`, a name or an address."""
        certificate, key = self.issue(host, expired=expired)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

    def issue(self, host: str = "127.0.0.1", *, expired: bool = False) -> tuple[Path, Path]:
        """The files of a certificate and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            alternative: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        until = datetime.now(UTC) + (-_DAY if expired else _DAY)
        certificate = (
            _blank(_named(host), self._name, key, until)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        name = f"{host.replace(':', '_')}{'-expired' if expired else ''}"
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        return files


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _blank(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=until - 3 * _DAY,
        not_valid_after=until,
    )


@dataclass(slots=True)
class Front:
    """`served` counts the connections whose TLS came about."""

    port: int = 0
    served: int = 0


@asynccontextmanager
async def tls_front(
    host: str, port: int, context: ssl.SSLContext, *, postgresql: bool = False
) -> AsyncIterator[Front]:
    """A port of loopback behind which the server at `host:port` is reached with TLS.

    A client of PostgreSQL asks for TLS in the clear first.
    """
    front = Front()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever distrusts us hangs up in the middle.
        with suppress(OSError, asyncio.IncompleteReadError):
            if postgresql:
                assert await reader.readexactly(8) == _SSL_REQUEST
                writer.write(b"S")
                await writer.drain()
                await writer.start_tls(context)
            front.served += 1
            upstream = await asyncio.open_connection(host, port)
            try:
                await asyncio.gather(_copy(reader, upstream[1]), _copy(upstream[0], writer))
            finally:
                _leave(upstream[1])

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _: _leave(writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=None if postgresql else context)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _leave(writer: asyncio.StreamWriter) -> None:
    # One whose TLS never came about has no socket any more.
    if writer.get_extra_info("socket") is not None:
        drop(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()
