"""RabbitMQ as the queue and the publisher both need it: `Link` asks, `Outlet` publishes.

It stands on aiormq, the protocol half of aio-pika: docs/adr/0009-rabbitmq.md says why. Whatever goes wrong comes out of
here as `BrokerError`.
"""
