"""What a failed call to the broker comes down to."""

import pytest
from aiormq.exceptions import ChannelPreconditionFailed

from worker.rabbitmq.calls import BrokerError, Trouble, call


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ("PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/'", Trouble.REFUSED),
        (
            "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1500 ms.",
            Trouble.UNAVAILABLE,
        ),
    ],
)
async def test_case_33_what_was_asked_as_the_broker_lost_its_patience_may_be_asked_again(
    said: str, trouble: Trouble
) -> None:
    async def asked() -> None:
        raise ChannelPreconditionFailed(said)

    with pytest.raises(BrokerError, match="PRECONDITION_FAILED") as caught:
        await call(asked(), 10)
    assert caught.value.trouble is trouble
