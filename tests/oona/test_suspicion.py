"""Forgeries that repeat are told once, with their count, and again only while they go on."""

from datetime import timedelta

from redis.asyncio import Redis

from tests.oona.bus import (
    CONTROL,
    EMERGENCY,
    Events,
    Inbox,
    command,
    consuming,
    entries,
    letters,
    send,
)
from tolaria_bus.oona.opening import Opener, Refused, RefusedReason
from tolaria_bus.oona.suspicion import Suspicion
from tolaria_bus.oona.trust import KeyRing, NonceWindow

RING = KeyRing({"k1": b"the right secret"})
WRONG = KeyRing({"k1": b"another secret"})
UNKNOWN = KeyRing({"eve": b"another secret"})
WINDOW = timedelta(seconds=60)


class Forger:
    """Refusals one after the other, on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.events = Events()
        self.now = 100.0
        self.suspicion = Suspicion(
            "s", self.events, times=3, window=WINDOW, monotonic=lambda: self.now
        )
        self._entry = 0

    def refused(
        self, times: int = 1, reason: RefusedReason = "signature", key: str = "k", after: float = 0
    ) -> None:
        for _ in range(times):
            self.now += after
            self._entry += 1
            self.suspicion.refused(Refused(reason, "x", key), f"{self._entry}-0")

    def told(self) -> list[tuple[str, str, str]]:
        details = self.events.of("bad_signatures")
        return [(detail["count"], detail["first"], detail["last"]) for detail in details]


def test_a_few_are_told_to_nobody_and_enough_are_told_at_once():
    forger = Forger()
    forger.refused(2)
    assert forger.told() == []
    forger.refused()
    assert forger.told() == [("3", "1-0", "3-0")]


def test_rare_ones_are_an_accident_each():
    forger = Forger()
    forger.refused(50, after=31)
    assert forger.told() == []


def test_a_flood_is_told_once_a_window_with_what_came_since():
    forger = Forger()
    forger.refused(3)
    forger.refused(590, after=0.1)
    assert forger.told() == [("3", "1-0", "3-0")]
    forger.refused(20, after=0.1)
    [(count, first, _)] = forger.told()[1:]
    assert first == "4-0"
    # A sixtieth of a second is lost or won in summing.
    assert int(count) in (599, 600)


def test_the_last_of_a_flood_are_told_without_another_one():
    forger = Forger()
    forger.refused(10)
    forger.now += 61
    forger.suspicion.tell_late()
    forger.suspicion.tell_late()
    assert forger.told() == [("3", "1-0", "3-0"), ("7", "4-0", "10-0")]


def test_after_a_window_without_any_it_takes_as_many_again():
    forger = Forger()
    forger.refused(3)
    forger.refused(2, after=61)
    assert len(forger.told()) == 1
    forger.refused(2)
    assert forger.told()[1:] == [("3", "5-0", "7-0")]


def test_only_what_may_be_forged_counts():
    forger = Forger()
    reasons: tuple[RefusedReason, ...] = ("malformed", "stale", "future", "type", "oversize")
    for reason in reasons:
        forger.refused(5, reason)
    forger.refused(5, "audience", key="")
    assert forger.told() == []
    forger.refused(1, "audience", key="one")
    forger.refused(1, "replay", key="two")
    forger.refused(1, "signature", key="x" * 1000)
    [detail] = forger.events.of("bad_signatures")
    assert detail["reasons"] == "audience 1, replay 1, signature 1"
    assert detail["keys"] == f"'one' 'two' '{'x' * 64}'"


def test_an_event_names_a_few_keys_however_many_there_are():
    forger = Forger()
    for number in range(1000):
        forger.refused(key=f"k{number}")
    forger.now += 61
    forger.suspicion.tell_late()
    assert len(forger.events.of("bad_signatures")[1]["keys"].split()) == 8


async def test_a_consumer_tells_repeated_bad_signatures_once(redis: Redis, redis_url: str):
    inbox, events = Inbox(ack=True), Events()
    options = {"opener": Opener(RING, NonceWindow()), "ring": RING, "on_event": events}
    async with consuming(redis_url, inbox, **options):  # type: ignore[arg-type]
        first = await send(redis, CONTROL, command("forged"), WRONG)
        await send(redis, CONTROL, command("unsigned"))
        await send(redis, CONTROL, command("unknown"), UNKNOWN)
        await send(redis, CONTROL, command("good"), RING)
        await inbox.wait_for(1)
        assert events.of("bad_signatures") == []
        fields = {b"json": b'{"commandType":"PAUSE"}'}
        await redis.xadd(CONTROL, fields)  # type: ignore[arg-type]
        last = await send(redis, CONTROL, command("again"), WRONG)
        for number in range(20):
            await send(redis, CONTROL, command(str(number)), WRONG)
        await send(redis, CONTROL, command("last"), RING)
        await inbox.wait_for(2)
        assert inbox.ids() == ["good", "last"]
    [told] = events.of("bad_signatures")
    assert told == {
        "stream": CONTROL,
        "count": "5",
        "reasons": "signature 5",
        "keys": "'k1' '' 'eve'",
        "first": first,
        "last": last,
    }
    assert len(await letters(redis, CONTROL, RING)) == 25


async def test_replays_and_entries_for_other_streams_are_counted_too(redis: Redis, redis_url: str):
    inbox, events = Inbox(ack=True), Events()
    options = {"opener": Opener(RING, NonceWindow()), "ring": RING, "on_event": events}
    async with consuming(redis_url, inbox, **options):  # type: ignore[arg-type]
        await send(redis, EMERGENCY, command("elsewhere"), RING)
        await send(redis, CONTROL, command("good"), RING)
        (received,) = await inbox.wait_for(1)
        [(_, elsewhere)] = await entries(redis, EMERGENCY)
        for fields in (received.fields, elsewhere) * 3:
            await redis.xadd(CONTROL, dict(fields))  # type: ignore[arg-type]
        told = await events.wait_for("bad_signatures")
    assert told["reasons"] == "audience 2, replay 3"
