"""The queue adapters, by the name `queue.type` gives them."""

from types import MappingProxyType

from backends.registry import Entry, Registry
from worker.queues.base import Queue

QUEUES: Registry[Queue] = Registry(
    "queue",
    MappingProxyType(
        {
            "embedded": Entry("worker.queues.embedded:EmbeddedQueue"),
            "memory": Entry("worker.queues.memory:MemoryQueue"),
            "rabbitmq": Entry("worker.queues.rabbitmq:RabbitQueue", extra="rabbitmq"),
            "sqs": Entry("worker.queues.sqs:SqsQueue", extra="sqs"),
        }
    ),
)
