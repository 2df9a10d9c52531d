"""The publisher adapters, by the name `publisher.type` gives them."""

from types import MappingProxyType

from backends.registry import Entry, Registry
from worker.publishers.base import Publisher

PUBLISHERS: Registry[Publisher] = Registry(
    "publisher",
    MappingProxyType(
        {
            "embedded": Entry("worker.publishers.embedded:EmbeddedPublisher"),
            "rabbitmq": Entry("worker.publishers.rabbitmq:RabbitPublisher", extra="rabbitmq"),
            "sqs": Entry("worker.publishers.sqs:SqsPublisher", extra="sqs"),
        }
    ),
)
