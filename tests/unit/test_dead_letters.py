"""Dead letters: what is read from them, one look at all of them, and what a redrive does to each."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from handlers.messages import Bundle, Payload, Resource, ResourceFetched, encode
from worker.attempts import Attempt
from worker.dead_letters import Condition, Letter, Look, Selection, look_at
from worker.delivery import LeaseKeeper
from worker.metrics import Metrics
from worker.queues.base import (
    OBITUARY,
    REDRIVES_ATTRIBUTE,
    TIME_ATTRIBUTE,
    Ack,
    Dead,
    Disposition,
    Message,
    OutgoingMessage,
    Queue,
    QueueError,
    QueueMissing,
    QueueUnavailable,
)
from worker.queues.embedded import EmbeddedOptions, EmbeddedQueue
from worker.queues.memory import MemoryOptions, MemoryQueue
from worker.redrive import Outcome, Pace, Purge, Redrive

BID = "17571960-2065-e0cd-cf71-8196d8577b7e"
TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
FETCHED = encode(
    ResourceFetched(
        id="m1",
        bundle=Bundle(bid=BID, recipe_id="fr"),
        resource=Resource(url="https://example.com/page.html"),
        payload=Payload(location="s3://staging/a"),
    )
)


@pytest.fixture(params=["memory", "embedded"])
async def queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Queue]:
    opened: Queue
    if request.param == "memory":
        opened = await MemoryQueue.connect(MemoryOptions(lease=30))
    else:
        opened = await EmbeddedQueue.connect(EmbeddedOptions(path=tmp_path / "queue.db", lease=30))
    yield opened
    await opened.aclose()


@pytest.fixture
async def memory() -> AsyncIterator[MemoryQueue]:
    queue = await MemoryQueue.connect(MemoryOptions(lease=30))
    yield queue
    await queue.aclose()


async def bury(
    queue: Queue,
    *bodies: bytes,
    dead: Dead = Dead("malformed", "no JSON", "Refused"),  # noqa: B008 - frozen
    attributes: Mapping[str, str] = TRACE,
) -> None:
    await queue.send([OutgoingMessage(body, attributes) for body in bodies])
    for _ in bodies:
        (message,) = await queue.receive(1, 1)
        assert await queue.settle(message, dead)


async def everything(look: Look) -> list[Letter]:
    found: list[Letter] = []
    while page := await look.more():
        found += page
    return found


async def seen(queue: Queue) -> list[Letter]:
    async with look_at(queue) as look:
        return await everything(look)


async def drained(queue: Queue) -> list[Message]:
    messages: list[Message] = []
    while page := await queue.receive(100, 0):
        messages += page
    return messages


class Heard(list[tuple[str, Outcome]]):
    """What a run told, by the letters' bodies."""

    def told(self, letter: Letter, outcome: Outcome) -> None:
        self.append((letter.body.decode(), outcome))


async def redriven(
    queue: Queue,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    *,
    limit: int | None = None,
    max_redrives: int = 3,
    dry_run: bool = False,
    to: Queue | None = None,
) -> tuple[Redrive, Heard]:
    heard = Heard()
    run = Redrive(
        selection,
        queue=to or queue,
        limit=limit,
        max_redrives=max_redrives,
        pace=Pace(None),
        dry_run=dry_run,
        told=heard.told,
    )
    async with look_at(queue) as look:
        await run.over(look)
    return run, heard


async def purged(
    queue: Queue,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    *,
    limit: int | None = None,
    dry_run: bool = False,
    of: Queue | None = None,
) -> tuple[Purge, Heard]:
    heard = Heard()
    run = Purge(selection, queue=of or queue, limit=limit, dry_run=dry_run, told=heard.told)
    async with look_at(queue) as look:
        await run.over(look)
    return run, heard


async def test_case_28_a_letter_tells_everything(queue: Queue) -> None:
    attempts = (Attempt(1_700_000_000, "PayloadMissing", "not there"), Attempt(1_700_000_060, "Crashed", ""))
    await bury(queue, FETCHED, dead=Dead("payload_missing", "gone", "PayloadMissing", attempts))
    (letter,) = await seen(queue)
    assert (letter.reason, letter.error, letter.detail) == ("payload_missing", "PayloadMissing", "gone")
    assert (letter.source, letter.receive_count, letter.redrives) == (queue.name, 1, 0)
    assert (letter.bid, letter.recipe, letter.url) == (BID, "fr", "https://example.com/page.html")
    assert letter.first_tried_at == "2023-11-14T22:13:20.000+00:00"
    assert [(each["error"], each["detail"]) for each in letter.attempts] == [
        ("PayloadMissing", "not there"),
        ("Crashed", ""),
    ]
    assert letter.body == FETCHED
    assert letter.attributes == TRACE


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"dead_letter_attempts": "[", "dead_letter_receive_count": "x", REDRIVES_ATTRIBUTE: "-1"},
        {"dead_letter_attempts": "[1]", "dead_letter_receive_count": "9" * 5000, REDRIVES_ATTRIBUTE: "²"},
        {"dead_letter_attempts": "[" * 100_000, TIME_ATTRIBUTE: "yesterday"},
        {TIME_ATTRIBUTE: "0001-01-01T00:00:00"},
    ],
)
async def test_what_others_wrote_is_shown_and_breaks_nothing(
    memory: MemoryQueue, attributes: dict[str, str]
) -> None:
    letters = await memory.open_dead_letters()
    await letters.send([OutgoingMessage(b"\xff\x00", attributes)])
    (letter,) = await seen(memory)
    assert (letter.reason, letter.receive_count, letter.redrives, letter.bid) == (None, None, 0, None)
    assert not letter.died_after(time.time() - 60)
    log = attributes.get("dead_letter_attempts")
    assert [each["detail"] for each in letter.attempts] == ([log] if log else [])


async def test_a_look_shows_each_letter_once_and_gives_all_back(queue: Queue) -> None:
    bodies = [str(number).encode() for number in range(25)]
    await bury(queue, *bodies)
    async with look_at(queue) as look:
        assert sorted(letter.body for letter in await everything(look)) == sorted(bodies)
        letters = await queue.open_dead_letters()
        assert (await letters.depth()).visible == 0
    assert (await letters.depth()).visible == 25
    assert len(await seen(queue)) == 25
    await letters.aclose()


async def test_a_look_keeps_its_letters_past_their_lease(tmp_path: Path) -> None:
    queue = await EmbeddedQueue.connect(EmbeddedOptions(path=tmp_path / "queue.db", lease=0.3))
    await bury(queue, b"kept")
    letters = await queue.open_dead_letters()
    async with look_at(queue) as look:
        (letter,) = await look.more()
        assert await letters.receive(1, 0.7) == []
        assert letter.delivery.held
    assert len(await letters.receive(1, 0)) == 1
    await letters.aclose()
    await queue.aclose()


async def test_a_look_ends_while_another_consumer_holds_a_letter(queue: Queue) -> None:
    await bury(queue, b"a", b"b")
    other = await queue.open_dead_letters()
    (held,) = await other.receive(1, 1)
    assert {letter.id for letter in await seen(queue)}.isdisjoint({held.id})
    assert await other.settle(held, Ack())
    assert len(await seen(queue)) == 1
    await other.aclose()


class Backwards(MemoryQueue):
    """Gives the same letter again and again, as a queue whose leases have all passed."""

    asked = 0

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        self.asked += 1
        assert self.asked < 10, "the look does not end"
        for row in self._shelf.rows.values():
            row.visible_at = 0
        return await super().receive(limit, wait)


class Talkative(MemoryQueue):
    """Says that there is more, and gives nothing: the approximation of a service, or a locked FIFO group."""

    asked = 0

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        self.asked += 1
        return await super().receive(limit, min(wait, 0)) if self.asked == 3 else []


async def look_through(letters: Queue) -> list[Letter]:
    async with asyncio.timeout(10):
        return await everything(Look(letters, LeaseKeeper(letters, Metrics())))


async def test_a_letter_that_comes_again_is_shown_once_and_ends_the_look() -> None:
    letters = await Backwards.connect(MemoryOptions(lease=30))
    await letters.send([OutgoingMessage(b"x")])
    assert len(await look_through(letters)) == 1


async def test_an_empty_answer_is_not_believed_while_the_queue_claims_more() -> None:
    letters = await Talkative.connect(MemoryOptions(lease=30))
    await letters.send([OutgoingMessage(b"x")])
    assert len(await look_through(letters)) == 1
    assert letters.asked == 4


class Limited(MemoryQueue):
    """Gives no more while two are held, as a broker with a prefetch."""

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        room = 2 - (await self.depth()).in_flight
        return await super().receive(min(limit, room), min(wait, 0)) if room else []


async def test_what_the_queue_does_not_give_is_counted() -> None:
    letters = await Limited.connect(MemoryOptions(lease=30))
    await letters.send([OutgoingMessage(b"x")] * 5)
    look = Look(letters, LeaseKeeper(letters, Metrics()))
    async with asyncio.timeout(10):
        assert len(await everything(look)) == 2
    assert look.unseen == 3


async def test_what_dies_meanwhile_does_not_prolong_a_look_for_ever(memory: MemoryQueue) -> None:
    letters = await memory.open_dead_letters()
    await bury(memory, b"first")
    async with look_at(memory) as look:
        pages = 0
        async with asyncio.timeout(10):
            while page := await look.more():
                pages += 1
                assert len(page) == 1
                await asyncio.sleep(0.002)  # the clock of an obituary counts milliseconds
                await bury(memory, b"another")
    assert 1 < pages < 6
    await letters.aclose()


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["reason=malformed"], {"a", "b"}),
        (["reason=mal*", "detail=*two*"], {"b"}),
        (["reason=Malformed"], set()),
        (["reason=-"], {"c"}),
        (["reason=*"], {"a", "b", "d"}),
        (["bid=17571960-*"], {"d"}),
        (["url=https://example.com/*", "recipe=f?"], {"d"}),
        (["error=Refused", "source=memory"], {"a", "b"}),
    ],
)
async def test_conditions_choose(memory: MemoryQueue, conditions: list[str], expected: set[str]) -> None:
    await bury(memory, b"a", dead=Dead("malformed", "number one", "Refused"))
    await bury(memory, b"b", dead=Dead("malformed", "number two", "Refused"))
    letters = await memory.open_dead_letters()
    await letters.send([OutgoingMessage(b"c")])
    await bury(memory, FETCHED, dead=Dead("payload_missing"))
    selection = Selection(where=tuple(map(Condition.parse, conditions)))
    names = {FETCHED: "d"}
    found = {
        names.get(each.body, each.body.decode()) for each in await seen(memory) if selection.matches(each)
    }
    assert found == expected


@pytest.mark.parametrize(
    ("text", "words"), [("reason", "FIELD=GLOB"), ("reasons=x", "use id, reason, error"), ("=x", "no field")]
)
def test_a_condition_says_what_is_wrong_with_it(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Condition.parse(text)


async def test_case_30_a_redriven_message_is_as_it_was_but_counted(queue: Queue) -> None:
    await bury(queue, FETCHED)
    run, _ = await redriven(queue)
    assert run.outcomes == {Outcome.REDRIVEN: 1}
    assert run.complete
    (message,) = await drained(queue)
    assert message.body == FETCHED
    assert message.attributes == {**TRACE, REDRIVES_ATTRIBUTE: "1"}
    assert message.receive_count == 1
    assert not set(OBITUARY) & set(message.attributes)
    assert await seen(queue) == []


async def test_case_30_redrives_are_capped(queue: Queue) -> None:
    await bury(queue, b"never mended")
    for redrives in range(1, 4):
        run, _ = await redriven(queue)
        assert run.outcomes == {Outcome.REDRIVEN: 1}
        (message,) = await drained(queue)
        assert message.attributes[REDRIVES_ATTRIBUTE] == str(redrives)
        assert await queue.settle(message, Dead("malformed"))
    run, heard = await redriven(queue)
    assert heard == [("never mended", Outcome.OVER_CAP)]
    assert not run.complete
    assert await drained(queue) == []
    run, _ = await redriven(queue, max_redrives=4)
    assert run.complete
    assert len(await drained(queue)) == 1


async def test_a_redrive_of_named_letters_leaves_the_others(queue: Queue) -> None:
    await bury(queue, b"a", b"b", b"c")
    ids = {letter.body: letter.id for letter in await seen(queue)}
    run, _ = await redriven(queue, Selection(frozenset({ids[b"b"], "no such"})))
    assert run.outcomes == {Outcome.REDRIVEN: 1, Outcome.NOT_MATCHING: 2}
    assert run.missing == {"no such"}
    assert not run.complete
    assert {letter.body for letter in await seen(queue)} == {b"a", b"c"}
    assert [message.body for message in await drained(queue)] == [b"b"]


async def test_a_dry_run_changes_nothing(queue: Queue) -> None:
    await bury(queue, b"a", b"b", b"c")
    run, heard = await redriven(queue, dry_run=True, limit=2)
    assert [outcome for _, outcome in heard] == [Outcome.SELECTED] * 2
    assert run.complete
    assert (await queue.depth()).visible == 0
    assert len(await seen(queue)) == 3


async def test_a_limit_counts_what_is_done(queue: Queue) -> None:
    await bury(queue, *(b"x" for _ in range(25)))
    run, _ = await redriven(queue, limit=12)
    assert run.outcomes[Outcome.REDRIVEN] == 12
    assert (await queue.depth()).visible == 12
    assert len(await seen(queue)) == 13


async def test_what_a_worker_kills_again_is_not_redriven_in_the_same_run(memory: MemoryQueue) -> None:
    await bury(memory, *(str(number).encode() for number in range(12)))

    async def worker() -> None:
        while True:
            for message in await memory.receive(10, 10):
                assert message.attributes[REDRIVES_ATTRIBUTE] == "1"
                await asyncio.sleep(0.002)
                await memory.settle(message, Dead("malformed"))

    working = asyncio.create_task(worker())
    async with asyncio.timeout(10):
        run, heard = await redriven(memory)
        while (await memory.depth()).dead != 12:  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(0.005)
    working.cancel()
    counted = Counter(body for body, outcome in heard if outcome is Outcome.REDRIVEN)
    assert counted == Counter({str(number): 1 for number in range(12)})
    assert run.complete


async def test_letters_of_another_queue_go_there_only_when_asked(memory: MemoryQueue) -> None:
    other = await MemoryQueue.connect(MemoryOptions(name="other"))
    await bury(memory, b"a")
    run, heard = await redriven(memory, to=other)
    assert heard == [("a", Outcome.OTHER_QUEUE)]
    assert not run.complete
    run, _ = await redriven(memory, Selection(where=(Condition("source", "memory"),)), to=other)
    assert run.complete
    assert len(await drained(other)) == 1
    await other.aclose()


async def test_letters_of_another_queue_are_deleted_only_when_asked(memory: MemoryQueue) -> None:
    other = await MemoryQueue.connect(MemoryOptions(name="other"))
    await bury(memory, b"a")
    run, heard = await purged(memory, of=other)
    assert heard == [("a", Outcome.OTHER_QUEUE)]
    assert not run.complete
    assert len(await seen(memory)) == 1
    run, _ = await purged(memory, Selection(where=(Condition("source", "memory"),)), of=other)
    assert run.complete
    assert await seen(memory) == []
    await other.aclose()


async def test_a_fifo_queue_takes_every_redrive_once(memory: MemoryQueue) -> None:
    await bury(memory, FETCHED)
    (letter,) = await seen(memory)
    (again,) = await seen(memory)
    first = letter.returning()
    assert first.group == BID
    assert again.returning() == first
    await redriven(memory)
    (message,) = await drained(memory)
    await memory.settle(message, Dead("malformed"))
    (later,) = await seen(memory)
    ids = {later.returning().deduplication_id, first.deduplication_id, "m1"}
    assert len(ids) == 3


class Picky(MemoryQueue):
    """Refuses some bodies, as SQS does, before anything is sent; or everything."""

    def refuse(self, body: bytes | None, error: type[QueueError]) -> None:
        self.refused, self.error = body, error

    async def send(self, messages: Sequence[OutgoingMessage]) -> None:
        if self.refused is None or any(message.body == self.refused for message in messages):
            raise self.error("no")
        await super().send(messages)


async def test_what_the_queue_refuses_stays_and_the_others_go(memory: MemoryQueue) -> None:
    picky = await Picky.connect(MemoryOptions())
    picky.refuse(b"b", QueueError)
    await bury(memory, b"a", b"b", b"c")
    run, heard = await redriven(memory, to=picky)
    assert sorted(heard) == [("a", Outcome.REDRIVEN), ("b", Outcome.REFUSED), ("c", Outcome.REDRIVEN)]
    assert not run.complete
    assert [letter.body for letter in await seen(memory)] == [b"b"]
    assert [message.body for message in await drained(picky)] == [b"a", b"c"]


@pytest.mark.parametrize("error", [QueueUnavailable, QueueMissing])
async def test_a_queue_that_does_not_answer_ends_the_run_and_keeps_the_letters(
    memory: MemoryQueue, error: type[QueueError]
) -> None:
    picky = await Picky.connect(MemoryOptions())
    picky.refuse(None, error)
    await bury(memory, b"a", b"b")
    with pytest.raises(error):
        await redriven(memory, to=picky)
    assert len(await seen(memory)) == 2


class Unsettling(MemoryQueue):
    """Dead letters that cannot be removed: the queue answers with an error, or says the handle is stale."""

    answer: QueueError | bool = False

    async def settle(self, message: Message, disposition: Disposition) -> bool:
        if not isinstance(disposition, Ack):
            return await super().settle(message, disposition)
        if isinstance(self.answer, QueueError):
            raise self.answer
        return self.answer


class WithUnsettling(MemoryQueue):
    answer: QueueError | bool = False

    async def open_dead_letters(self) -> Queue:
        assert self._dead is not None
        letters = Unsettling(self._options.model_copy(update={"name": "dead"}), self._dead, None)
        letters.answer = self.answer
        return letters


@pytest.mark.parametrize("answer", [False, QueueUnavailable("gone")])
async def test_a_letter_that_cannot_be_removed_is_reported(answer: QueueError | bool) -> None:
    queue = await WithUnsettling.connect(MemoryOptions())
    queue.answer = answer
    await bury(queue, b"a")
    heard = Heard()
    run = Redrive(
        Selection(), queue=queue, limit=None, max_redrives=3, pace=Pace(None), dry_run=False, told=heard.told
    )
    async with look_at(queue) as look:
        if answer is False:
            await run.over(look)
        else:
            with pytest.raises(QueueUnavailable):
                await run.over(look)
    assert heard == [("a", Outcome.KEPT)]
    assert not run.complete
    # Nothing is lost: the message is back, and the letter will be.
    depth = await queue.depth()
    assert (depth.visible, depth.dead) == (1, 1)


class OneId(MemoryQueue):
    """Messages of a publisher that gives all of them the same id."""

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        return [replace(message, id="batch-7") for message in await super().receive(limit, wait)]


class WithOneId(MemoryQueue):
    async def open_dead_letters(self) -> Queue:
        assert self._dead is not None
        return OneId(self._options, self._dead, None)


@pytest.fixture
async def one_id() -> AsyncIterator[MemoryQueue]:
    queue = await WithOneId.connect(MemoryOptions(lease=30))
    yield queue
    await queue.aclose()


async def test_letters_that_share_an_id_are_all_dealt_with(one_id: MemoryQueue) -> None:
    letters = await one_id.open_dead_letters()
    bodies = [f"{number}".encode() for number in range(25)]
    await letters.send([OutgoingMessage(body) for body in bodies])
    died = [f"2026-01-01T00:00:00.{number:03}+00:00" for number in range(25)]
    await letters.send([OutgoingMessage(b"alike", {TIME_ATTRIBUTE: time_}) for time_ in died])
    assert len(await seen(one_id)) == 50
    redrive, _ = await redriven(one_id, limit=25)
    assert redrive.outcomes == {Outcome.REDRIVEN: 25}
    run, _ = await purged(one_id)
    assert run.outcomes == {Outcome.PURGED: 25}
    assert run.complete
    assert (await one_id.depth()).dead == 0


async def test_what_cannot_be_told_from_a_letter_that_was_dealt_with_is_left_and_counted(
    one_id: MemoryQueue,
) -> None:
    letters = await one_id.open_dead_letters()
    await letters.send([OutgoingMessage(b"alike")] * 12)
    run, _ = await purged(one_id, Selection(where=(Condition("reason", "malformed"),)))
    assert run.complete, "none of them was chosen"
    run, _ = await purged(one_id, limit=3)
    assert run.complete, "more was not asked for"
    await letters.send([OutgoingMessage(b"alike")] * 3)
    async with look_at(one_id) as look:
        run = Purge(Selection(), queue=one_id, told=Heard().told)
        await run.over(look)
        assert (run.outcomes, look.unseen) == ({Outcome.PURGED: 10}, 2)
    assert not run.complete
    run, _ = await purged(one_id)
    assert run.outcomes == {Outcome.PURGED: 2}
    assert run.complete


async def test_a_letter_that_comes_again_after_its_lease_was_lost_is_no_other() -> None:
    letters = await MemoryQueue.connect(MemoryOptions(lease=30))
    await letters.send([OutgoingMessage(b"x")])
    look = Look(letters, LeaseKeeper(letters, Metrics()))
    for _ in range(2):
        shown = await look.more()
        for row in letters._shelf.rows.values():
            row.visible_at = 0
        for delivery in tuple(look._held.values()):
            delivery.lose()
    assert shown == ()
    assert look.unseen == 0
    await letters.aclose()


async def test_a_letter_whose_lease_is_lost_is_not_sent(memory: MemoryQueue) -> None:
    await bury(memory, b"a", b"b")
    heard = Heard()
    run = Redrive(
        Selection(), queue=memory, limit=None, max_redrives=3, pace=Pace(None), dry_run=False, told=heard.told
    )

    class Losing(Look):
        async def more(self) -> Sequence[Letter]:
            page = await super().more()
            for letter in page:
                if letter.body == b"a":
                    letter.delivery.lose()
            return page

    letters = await memory.open_dead_letters()
    await run.over(Losing(letters, LeaseKeeper(letters, Metrics())))
    assert sorted(heard) == [("a", Outcome.LEASE_LOST), ("b", Outcome.REDRIVEN)]
    assert [message.body for message in await drained(memory)] == [b"b"]


async def test_a_cancelled_look_gives_everything_back(queue: Queue) -> None:
    await bury(queue, b"a", b"b")
    looked = asyncio.Event()

    async def look() -> None:
        async with look_at(queue) as look:
            await everything(look)
            looked.set()
            await asyncio.Event().wait()

    looking = asyncio.create_task(look())
    await asyncio.wait_for(looked.wait(), 10)
    looking.cancel()
    await asyncio.wait([looking])
    letters = await queue.open_dead_letters()
    assert (await letters.depth()).visible == 2
    await letters.aclose()


async def test_purge_deletes_what_was_chosen(queue: Queue) -> None:
    await bury(queue, b"a", b"b")
    await bury(queue, b"c", dead=Dead("conflict"))
    selection = Selection(where=(Condition("reason", "malformed"),))
    for dry_run, outcome in ((True, Outcome.SELECTED), (False, Outcome.PURGED)):
        run, _ = await purged(queue, selection, dry_run=dry_run)
        assert run.outcomes == {outcome: 2, Outcome.NOT_MATCHING: 1}
    assert [letter.body for letter in await seen(queue)] == [b"c"]
    assert await drained(queue) == []


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("rate", "batch", "naps"),
    [(None, 10, []), (100.0, 10, [0.1, 0.1]), (5.0, 5, [1.0, 1.0]), (0.5, 1, [2.0, 2.0])],
)
async def test_a_pace_is_kept(rate: float | None, batch: int, naps: list[float]) -> None:
    clock = Time()
    pace = Pace(rate, clock, clock.sleep)
    assert pace.batch == batch
    for _ in range(3):
        await pace.turn(pace.batch)
    assert clock.naps == pytest.approx(naps)


async def test_a_pace_does_not_make_up_for_lost_time() -> None:
    clock = Time()
    pace = Pace(1.0, clock, clock.sleep)
    await pace.turn(1)
    clock.now += 60
    for _ in range(3):
        await pace.turn(1)
    assert clock.naps == pytest.approx([1.0, 1.0])


async def test_a_look_without_dead_letters_says_so(memory: MemoryQueue) -> None:
    letters = await memory.open_dead_letters()
    with pytest.raises(QueueMissing):
        async with look_at(letters):
            pass
    await letters.aclose()
