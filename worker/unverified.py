"""Which settings leave unverified who answers, told once when a worker or a producer starts. Called by worker/bootstrap.py.

Whatever can be verified is, unless an option of that very place says otherwise; an adapter's options know which those are.
"""

from collections.abc import Iterator

import structlog

from backends.addresses import is_here
from worker.ledger.urls import ledger_url
from worker.rabbitmq.options import RabbitOptions
from worker.settings import Settings


def warn(settings: Settings) -> None:
    """A warning for every place whose options switch a verification off."""
    log = structlog.get_logger("security")
    for place, what in unverified(settings):
        log.warning("who answers is not verified", place=place, because=what)


def unverified(settings: Settings) -> Iterator[tuple[str, str]]:
    """The keys of the places, as `targets.main`, each with what is not verified and the option that says so."""
    for section, places in (("staging", settings.staging), ("targets", settings.targets)):
        for name, place in places.items():
            if said := place.options.unverified():
                yield f"{section}.{name}", said
    for section, options in (("queue", settings.queue.options), ("publisher", settings.publisher.options)):
        if isinstance(options, RabbitOptions) and (said := options.unverified()):
            yield section, said
    if said := _ledger(settings.ledger.url):
        yield "ledger", said


def _ledger(text: str) -> str | None:
    url = ledger_url(text)
    host, mode = url.host or url.query.get("host", ""), url.query.get("sslmode", "prefer")
    if url.drivername == "sqlite" or mode == "verify-full" or all(is_here(each) for each in _each(host)):
        return None
    return (
        f"it is not verified that the server of the url answers (sslmode={_each(mode)[-1]}; verify-full does)"
    )


def _each(value: str | tuple[str, ...]) -> list[str]:
    """A parameter may be given several times, and a host may be several."""
    return [one for text in ([value] if isinstance(value, str) else value) for one in text.split(",")]
