"""What the RabbitMQ queue is configured with. Read by worker/queues/rabbitmq.py."""

from pydantic import Field

from worker.queues.base import QueueOptions
from worker.rabbitmq.options import RabbitOptions


class RabbitQueueOptions(RabbitOptions, QueueOptions):
    """The queue, its lease, and where its dead letters go."""

    queue: str = Field(min_length=1, max_length=200, description="The queue's name.")
    dead_letter_queue: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Where dead letters go; default: the queue's name with `.dead`.",
    )
    prefetch: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Messages the broker hands to this process ahead of its answers; default: worker.concurrency and as many again, to look at.",
    )
    lease: float = Field(default=30.0, ge=0.5, description="Seconds a received message stays hidden.")
    consumer_timeout: float | None = Field(
        default=1800.0,
        gt=0,
        description="Seconds after which the broker takes back what is not settled, as its `consumer_timeout` says; "
        "none where that is switched off.",
    )
    declare: bool = Field(
        default=True,
        description="Make the queue, its dead-letter queue and its delay queues when they are missing; "
        "false: they must be there.",
    )

    @property
    def queue_name(self) -> str:
        """As configured."""
        return self.queue
