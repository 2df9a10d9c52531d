"""What AWS charges for the requests of a million small resources, SQS to S3. Called by scaling.py for docs/scaling.md.

Requests were counted in two runs of 1,000 resources in 10 bundles against LocalStack with a ledger on PostgreSQL, a producer and one
worker with its default concurrency; the larger count is taken.
"""

from dataclasses import dataclass
from typing import Final

MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one kind, and their price."""

    what: str
    per_resource: float
    dollars_a_million: float

    @property
    def dollars(self) -> float:
        """For a million resources."""
        return self.per_resource * self.dollars_a_million


SQS: Final = 0.40
"""A standard queue."""
S3_WRITE: Final = 5.00
"""PUT, COPY, POST, LIST; S3 Standard."""
S3_READ: Final = 0.40
"""GET and the rest."""

REQUESTS: Final = (
    Requests("the producer announces, SendMessageBatch", 1.010, SQS),
    Requests("the worker receives, ReceiveMessage", 0.125, SQS),
    Requests("it acknowledges, DeleteMessageBatch", 0.179, SQS),
    Requests("it renews leases, ChangeMessageVisibilityBatch", 0.007, SQS),
    Requests("it announces, SendMessageBatch", 0.010, SQS),
    Requests("the producer stages, PutObject", 1.000, S3_WRITE),
    Requests("it lists what it staged, ListObjectsV2", 0.010, S3_WRITE),
    Requests("the worker reads, GetObject", 1.000, S3_READ),
    Requests("it writes, PutObject", 1.000, S3_WRITE),
    Requests("it writes manifests, PutObject", 0.010, S3_WRITE),
)


def cost_table() -> str:
    """In Markdown, with the sum."""
    lines = ["| request | a resource | US$ a million resources |", "|---|---|---|"]
    lines += [
        f"| {requests.what} | {requests.per_resource:.3f} | {requests.dollars:.2f} |" for requests in REQUESTS
    ]
    count, dollars = (
        sum(requests.per_resource for requests in REQUESTS),
        sum(requests.dollars for requests in REQUESTS),
    )
    lines.append(f"| together | {count:.3f} | {dollars:.2f} |")
    return "\n".join(lines)
