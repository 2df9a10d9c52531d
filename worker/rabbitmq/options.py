"""Which RabbitMQ broker. The options of worker/queues/rabbitmq.py and worker/publishers/rabbitmq.py begin with these."""

from urllib.parse import parse_qs, urlsplit, urlunsplit

from pydantic import BaseModel, Field, SecretStr, field_validator


class RabbitOptions(BaseModel):
    """Which broker, and how patient to be with it."""

    url: SecretStr = Field(
        description="amqp://user:password@host:5672/vhost, or amqps://…; TLS files go into the query: "
        "cafile, certfile, keyfile; no_verify_ssl=1 takes any certificate."
    )
    timeout: float = Field(
        default=10.0, gt=0, description="Seconds the broker has to answer, and to confirm a message."
    )

    @field_validator("url")
    @classmethod
    def _is_amqp(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            sound = parts.scheme in {"amqp", "amqps"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            # What is wrong with it may lie in the password, so the URL is not repeated.
            raise ValueError("is no amqp:// or amqps:// URL with a host; percent-encode the password")
        return url

    def unverified(self) -> str | None:
        """What the URL leaves unverified of whoever answers: a line for a warning. None: nothing."""
        parts = urlsplit(self.url.get_secret_value())
        # As aiormq reads it: whatever is not 0.
        off = parts.scheme == "amqps" and parse_qs(parts.query).get("no_verify_ssl", ["0"])[-1] != "0"
        return "the broker's certificate is not verified (no_verify_ssl in the url)" if off else None

    @property
    def place(self) -> str:
        """The broker without the credentials: `amqp://host:5672/vhost`."""
        parts = urlsplit(self.url.get_secret_value())
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
