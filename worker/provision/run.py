"""The whole plan of a configuration: opens what is needed to look, and to change. Called by worker/cli_provision.py."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from backends.aws_session import open_session
from backends.s3_client import S3Options, client_config
from worker.aws import SqsOptions, open_client
from worker.provision.buckets import plan_bucket
from worker.provision.calls import SDK_ERRORS
from worker.provision.plan import ProvisionError, Step
from worker.provision.queues import plan_queue
from worker.provision.wanted import wanted_buckets, wanted_queues
from worker.settings_schema import Settings


@asynccontextmanager
async def planned(settings: Settings) -> AsyncIterator[list[Step]]:
    """Every step for every bucket and queue; they may be applied, in this order, while the block runs.

    Raises `ProvisionRefused` before anything is asked or changed, and `ProvisionError`.
    """
    buckets, queues = wanted_buckets(settings), wanted_queues(settings)
    async with AsyncExitStack() as stack:
        clients = _Clients(stack)
        steps: list[Step] = []
        for queue in queues:
            steps += await plan_queue(await clients.sqs(queue.options), queue.queue)
        for bucket in buckets:
            steps += await plan_bucket(await clients.s3(bucket.options), bucket.bucket)
        yield steps


class _Clients:
    """One client for all that are reached alike: to make one costs more than most requests."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._open: dict[object, Any] = {}

    async def s3(self, options: S3Options) -> Any:
        alike = options.model_copy(update={"bucket": "a.dot" if "." in options.bucket else "none"})
        if alike not in self._open:
            try:
                client = open_session(options).create_client(
                    "s3",
                    region_name=options.region,
                    endpoint_url=options.endpoint_url,
                    config=client_config(options),
                )
                self._open[alike] = await self._stack.enter_async_context(client)
            except SDK_ERRORS as exc:
                raise ProvisionError(f"bucket {options.bucket}: {exc}") from exc
        return self._open[alike]

    async def sqs(self, options: SqsOptions) -> Any:
        alike = tuple(options)
        if alike not in self._open:
            try:
                self._open[alike] = await self._stack.enter_async_context(open_client(options))
            except SDK_ERRORS as exc:
                raise ProvisionError(f"SQS: {exc}") from exc
        return self._open[alike]
