"""How to reach an SFTP server: the options, and one authenticated SSH connection. Used by backends/sftp.py and its pool.

Nothing is taken from the user's `~/.ssh` or environment: what is trusted and what is shown stands in the options. No agent is
asked and no key tried that they do not name.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self
from urllib.parse import quote

import asyncssh
from pydantic import Field, SecretStr, model_validator

from backends.base import BackendOptions
from backends.errors import PermissionDenied, StorageError, Unavailable

_KEEPALIVES = 3
"""Unanswered ones in a row that end a connection."""


class SFTPOptions(BackendOptions):
    """A directory on an SSH server, whom to be there, and how to know the server."""

    host: str = Field(min_length=1, description="Name or address of the server.")
    port: int = Field(default=22, ge=1, le=65535, description="TCP port of the server.")
    username: str = Field(min_length=1, description="User to log in as.")
    root: str = Field(
        pattern=r"^/[^\x00]*$",
        description="Absolute directory on the server that every key hangs under. It has to exist.",
    )
    private_key_file: Path | None = Field(default=None, description="Private key to log in with.")
    private_key: SecretStr | None = Field(
        default=None, description="The same as text, in OpenSSH's, PEM or PKCS#8 form."
    )
    passphrase: SecretStr | None = Field(
        default=None, description="What the private key is encrypted with, if it is."
    )
    password: SecretStr | None = Field(default=None, description="Password to log in with.")
    agent_socket: Path | None = Field(
        default=None, description="Socket of an ssh-agent whose keys are tried first."
    )
    known_hosts: Path | None = Field(
        default=None, description="File with the server's host key, in OpenSSH's known_hosts form."
    )
    host_key: str | None = Field(
        default=None,
        description="The server's host key as ssh-keyscan prints it, without the host: `ssh-ed25519 AAAA…`. Several on lines of their own.",
    )
    verify_host_key: bool = Field(
        default=True,
        description="False takes any host key: whoever sits on the way can read and change everything.",
    )
    max_connections: int = Field(default=2, ge=1, le=64, description="SSH connections at once.")
    channels_per_connection: int = Field(
        default=4,
        ge=1,
        le=64,
        description="SFTP sessions over each connection; OpenSSH's MaxSessions allows 10.",
    )
    connect_timeout: float = Field(
        default=20.0, gt=0, description="Seconds for a new connection, log-in and session included."
    )
    timeout: float = Field(
        default=60.0, gt=0, description="Seconds without any answer after which a session is given up."
    )
    sync_timeout: float = Field(
        default=600.0, gt=0, description="The same while the server flushes a file to its disk."
    )
    keepalive_interval: float = Field(
        default=15.0,
        gt=0,
        description=f"Seconds of silence before the peer is asked for a sign of life; {_KEEPALIVES} without an answer end the connection.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.private_key is not None and self.private_key_file is not None:
            raise ValueError("give private_key or private_key_file, not both")
        if not any((self.private_key, self.private_key_file, self.password, self.agent_socket)):
            raise ValueError("give a way to log in: private_key_file, private_key, password or agent_socket")
        if self.known_hosts is not None and self.host_key is not None:
            raise ValueError("give known_hosts or host_key, not both")
        if self.verify_host_key and self.known_hosts is None and self.host_key is None:
            raise ValueError(
                "give the server's known_hosts or host_key (see ssh-keyscan), or verify_host_key: false"
            )
        return self

    def unverified(self) -> str | None:
        """See `BackendOptions`."""
        return (
            None if self.verify_host_key else "the server's host key is not verified (verify_host_key: false)"
        )

    @property
    def location(self) -> str:
        """`sftp://user@host/srv/`, with the port where it is not 22."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == 22 else f":{self.port}"
        return f"sftp://{quote(self.username, safe='')}@{host}{port}{quote(self.root.rstrip('/'))}/"


class Door:
    """Opens connections to one server. `load` makes it."""

    def __init__(
        self, options: SFTPOptions, keys: list[asyncssh.SSHKey], trusted: asyncssh.SSHKnownHosts | None
    ) -> None:
        """`trusted` is what the host key is compared with; None takes any."""
        self._options = options
        self._keys = keys
        self._trusted = trusted

    @classmethod
    async def load(cls, options: SFTPOptions) -> Self:
        """Read the files that the options name. Raises `StorageError` when one cannot be used."""
        try:
            keys, trusted = await asyncio.to_thread(_read, options)
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as exc:
            # Their messages tell of the form of a key, never of its content.
            raise StorageError(f"{options.location}: a configured key cannot be used: {exc}") from exc
        except (OSError, ValueError) as exc:
            raise StorageError(
                f"{options.location}: a configured key or known_hosts file cannot be read: {exc}"
            ) from exc
        return cls(options, keys, trusted)

    async def open(self) -> asyncssh.SSHClientConnection:
        """A connection that is logged in. Raises `PermissionDenied` or `Unavailable`."""
        options = self._options
        where = f"{options.username}@{options.host}:{options.port}"
        try:
            async with asyncio.timeout(options.connect_timeout):
                return await self._connect()
        except asyncssh.HostKeyNotVerifiable as exc:
            raise PermissionDenied(
                f"{where}: the server's host key is not the trusted one ({exc.reason}). If the server has a new key, put it into "
                "known_hosts or host_key; if not, somebody sits on the way"
            ) from exc
        except asyncssh.PermissionDenied as exc:
            raise PermissionDenied(
                f"{where}: the server refuses the log-in; check username, key and password"
            ) from exc
        except TimeoutError as exc:
            raise Unavailable(f"{where}: no log-in within {options.connect_timeout:g} s") from exc
        except (OSError, asyncssh.Error, ValueError) as exc:
            raise Unavailable(f"{where}: cannot connect: {exc}") from exc

    async def _connect(self) -> asyncssh.SSHClientConnection:
        options = self._options
        keys: list[asyncssh.SSHKey | asyncssh.SSHKeyPair] = [*self._keys]
        async with AsyncExitStack() as stack:
            if options.agent_socket is not None:
                # Its keys sign for as long as it is connected.
                agent = await stack.enter_async_context(asyncssh.connect_agent(str(options.agent_socket)))
                keys[:0] = await agent.get_keys()
            return await asyncssh.connect(
                options.host,
                options.port,
                config=None,
                username=options.username,
                password=options.password.get_secret_value() if options.password else None,
                # None, because an empty list stands for the keys in ~/.ssh.
                client_keys=keys or None,
                agent_path=None,
                known_hosts=self._trusted,
                x509_trusted_certs=None,
                gss_kex=False,
                gss_auth=False,
                host_based_auth=False,
                # A third less processor time than the default, ChaCha20, on processors that know AES.
                encryption_algs="^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
                login_timeout=options.connect_timeout,
                keepalive_interval=options.keepalive_interval,
                keepalive_count_max=_KEEPALIVES,
            )


def _read(options: SFTPOptions) -> tuple[list[asyncssh.SSHKey], asyncssh.SSHKnownHosts | None]:
    passphrase = options.passphrase.get_secret_value() if options.passphrase else None
    keys = []
    if options.private_key_file is not None:
        keys.append(asyncssh.read_private_key(str(options.private_key_file), passphrase))
    if options.private_key is not None:
        keys.append(asyncssh.import_private_key(options.private_key.get_secret_value(), passphrase))
    if not options.verify_host_key:
        return keys, None
    if options.host_key is not None:
        lines = [line for line in options.host_key.splitlines() if line.strip()]
        for line in lines:
            # A line that is no key would only be passed over below.
            asyncssh.import_public_key(line)
        return keys, asyncssh.import_known_hosts("\n".join(f"* {line}" for line in lines))
    return keys, asyncssh.read_known_hosts(str(options.known_hosts))
