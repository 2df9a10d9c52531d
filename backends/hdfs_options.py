"""How one directory of a cluster is reached. Used by the backends/hdfs*.py modules only."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from pydantic import Field, SecretStr, model_validator

from backends.base import BackendOptions


class HdfsOptions(BackendOptions):
    """How to reach one directory of one cluster."""

    url: str = Field(
        pattern=r"^https?://[^\s/?#@]+/?$",
        description="HTTP address of the active NameNode: `http://namenode:9870`.",
    )
    root: str = Field(
        pattern=r"^(/[^/:~\x00-\x1f\x7f]+)+$",
        description="Directory every key hangs under. Created if it is missing.",
    )
    user: str | None = Field(
        default=None, min_length=1, description="User of a cluster with simple authentication (`user.name`)."
    )
    delegation_token: SecretStr | None = Field(
        default=None, description="Delegation token of a cluster with Kerberos, as text, instead of `user`."
    )
    datanodes: tuple[str, ...] = Field(
        default=("*",),
        min_length=1,
        description="Host names (patterns with `*`) that the NameNode may send bytes to and have them come from.",
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) to trust instead of the system's."
    )
    verify: Literal["size", "read_back"] = Field(
        default="size",
        description="Proof before the commit: the size that the NameNode tells, or SHA-256 of the whole read back.",
    )
    sync: bool = Field(
        default=True,
        description="DataNodes fsync each block (SYNC_BLOCK, Hadoop 3); else HDFS answers for it with its replicas.",
    )
    replication: int | None = Field(
        default=None, ge=1, le=512, description="Replicas of each block; by default the cluster's."
    )
    block_size: int | None = Field(
        default=None, ge=1 << 20, description="Bytes of a block; by default the cluster's."
    )
    max_connections: int = Field(default=64, ge=1, description="Connections at once, to all hosts together.")
    connect_timeout: float = Field(default=5.0, gt=0, description="Seconds to connect.")
    read_timeout: float = Field(
        default=60.0, gt=0, description="Seconds for an answer, and for every 256 KiB in either direction."
    )

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if not {".", "..", ".snapshot", ".reserved"}.isdisjoint(self.root.split("/")):
            raise ValueError("root has a reserved segment")
        if self.user is not None and self.delegation_token is not None:
            raise ValueError("user and delegation_token exclude each other")
        return self

    @property
    def location(self) -> str:
        """`webhdfs://namenode:9870/srv/`, and `swebhdfs` with TLS: Hadoop's own names of the schemes."""
        scheme, _, host = self.url.rstrip("/").partition("://")
        return f"{'swebhdfs' if scheme == 'https' else 'webhdfs'}://{host}{quote(self.root)}/"
