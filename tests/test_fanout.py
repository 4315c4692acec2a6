"""The fan-out: encoded once, one bad codec or consumer harms nobody else, and topics end with their last member."""

import asyncio
from typing import Any, ClassVar

import pytest
from msgspec import DecodeError, Raw

from starlette_realtime import ConnectionOptions, History, MemoryStore, StoreError
from starlette_realtime.connection import Connection
from starlette_realtime.fanout import Fanout, Topic, read_body, write_body
from starlette_realtime.messages import Body, Gap, Position, Publication, ServerEvent
from starlette_realtime.protocols import NativeProtocol
from starlette_realtime.replay import Replay
from starlette_realtime.testing import FakeClock, settle
from starlette_realtime.types import Frame


class Counting(NativeProtocol):
    """Counts how often an event is encoded."""

    encoded: ClassVar[int] = 0

    @classmethod
    def encode(cls, event: ServerEvent, view: str | None = None) -> tuple[Frame, ...]:
        Counting.encoded += 1
        return super().encode(event, view)


class Broken(NativeProtocol):
    """Cannot encode anything."""

    @classmethod
    def encode(cls, event: ServerEvent, view: str | None = None) -> tuple[Frame, ...]:
        raise ZeroDivisionError


class Setup:
    """A fan-out over a memory store, and connections without a transport."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.controls: list[str] = []
        self.fanout = Fanout(self.store, self.clock, control=lambda topic, body: self.controls.append(body.event))

    def connection(self, protocol: type[NativeProtocol] = Counting, **options: Any) -> Connection:
        service: Any = None
        return Connection(
            protocol=protocol(), scope={}, service=service, clock=self.clock, options=ConnectionOptions(**options)
        )

    async def member(self, topic: Topic, **options: Any) -> Connection:
        connection = self.connection(**options)
        topic.live(connection, None, None)
        return connection

    async def publish(self, event: str = "said", name: str = "t", **fields: Any) -> Position:
        body = Body(event, Raw(b"1"), **fields)
        return await self.store.publish(name, write_body(body), history=History())


@pytest.fixture
def setup() -> Setup:
    Counting.encoded = 0
    return Setup()


async def test_an_event_is_encoded_once_for_all(setup: Setup) -> None:
    topic = await setup.fanout.attach("t")
    members = [await setup.member(topic) for _ in range(50)]
    await setup.publish()
    assert Counting.encoded == 1
    assert [len(member.outbox) for member in members] == [1] * 50


async def test_a_codec_that_fails_costs_its_members_the_connection_and_nobody_else(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    topic = await setup.fanout.attach("t")
    broken, fine = await setup.member(topic, protocol=Broken), await setup.member(topic)
    await setup.publish()
    assert broken.close_code == 4441
    assert fine.close_code is None
    assert len(fine.outbox) == 1
    assert "could not be encoded" in caplog.text


async def test_a_slow_consumer_is_cut_off_and_the_others_are_served(setup: Setup) -> None:
    topic = await setup.fanout.attach("t")
    slow, fine = await setup.member(topic, outbox_entries=3), await setup.member(topic)
    for _ in range(10):
        await setup.publish()
    assert slow.close_code == 4440
    assert len(fine.outbox) == 10


async def test_only_one_hears_what_is_for_one_and_all_but_one_what_is_for_others(setup: Setup) -> None:
    topic = await setup.fanout.attach("t")
    first, second = await setup.member(topic), await setup.member(topic)
    first.session, second.session = "s1", "s2"
    await setup.publish(only=first.id)
    await setup.publish(only="nobody")
    assert (len(first.outbox), len(second.outbox)) == (1, 0)
    await setup.publish(exclude="s1")
    assert (len(first.outbox), len(second.outbox)) == (1, 1)


async def test_the_kits_own_publications_are_heard_by_no_client(setup: Setup) -> None:
    topic = await setup.fanout.attach("t")
    member = await setup.member(topic)
    await setup.publish("rt:kick")
    assert setup.controls == ["rt:kick"]
    assert len(member.outbox) == 0


@pytest.mark.parametrize(
    "data",
    [
        b'["said",' + b"[" * 3_000 + b"]" * 3_000 + b"]",
        b'["said",' + b'{"a":' * 3_000 + b"1" + b"}" * 3_001,
        b"[" * 3_000,
    ],
    ids=["lists", "objects", "broken"],
)
async def test_what_is_nested_too_deep_is_left_out_and_said_once(
    setup: Setup, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    topic = await setup.fanout.attach("t")
    member = await setup.member(topic)
    await setup.store.publish("t", data, history=History())
    await setup.publish()
    assert len(member.outbox) == 1
    assert caplog.text.count("a publication that no room made was left out") == 1
    with pytest.raises(DecodeError):
        read_body(Publication(data, 0))


async def test_who_joins_is_buffered_for_until_it_is_live(setup: Setup) -> None:
    topic = await setup.fanout.attach("t")
    replay = Replay()
    connection = setup.connection()
    topic.buffer(connection, replay)
    await setup.publish()
    assert replay.held == 1
    recovery = await setup.store.read("t", since=None, limit=10)
    replay.recovered(recovery)
    topic.live(connection, replay.position, setup.store.position("t"))
    await setup.publish()
    assert replay.held == 0
    assert len(connection.outbox) == 1


async def test_who_is_ahead_hears_what_follows_and_meanwhile_what_has_no_place(setup: Setup) -> None:
    topic = await setup.fanout.attach("t")
    connection = setup.connection()
    here = Position("e", 1, "a")
    ahead = Position("e", 3, "c")
    data = write_body(Body("said", Raw(b"1")))
    topic.live(connection, ahead, here)
    assert topic.heard(connection) == ahead
    topic.deliver(Publication(data, 0, Position("e", 2, "b"), "a"))
    topic.deliver(Publication(data, 0, ahead, "b"))
    assert len(connection.outbox) == 0
    topic.deliver(Publication(data, 0))
    assert len(connection.outbox) == 1
    topic.deliver(Publication(data, 0, Position("e", 4, "d"), "c"))
    assert len(connection.outbox) == 2
    assert topic.heard(connection) == Position("e", 4, "d")


@pytest.mark.parametrize("position", [Position("e", 3, "other"), Position("e", 4, "d"), Position("other", 1, "x")])
async def test_who_is_ahead_of_something_else_has_to_resume(setup: Setup, position: Position) -> None:
    topic = await setup.fanout.attach("t")
    connection = setup.connection()
    topic.live(connection, Position("e", 3, "c"), Position("e", 1, "a"))
    topic.deliver(Publication(write_body(Body("said", Raw(b"1"))), 0, position, ""))
    assert connection.close_code == 4441
    topic.remove(connection)


async def test_a_gap_is_told_to_all_and_settles_who_was_ahead(setup: Setup) -> None:
    topic = await setup.fanout.attach("t")
    ahead, member = setup.connection(), await setup.member(topic)
    topic.live(ahead, Position("e", 3, "c"), Position("e", 1, "a"))
    topic.deliver(Gap(Position("f", 9, "z"), "forgotten"))
    assert (len(ahead.outbox), len(member.outbox)) == (1, 1)
    assert topic.heard(ahead) == Position("f", 9, "z")


async def test_a_topic_ends_with_its_last_attachment(setup: Setup) -> None:
    baseline = setup.store.gauges()["feeds"]
    topics = [await setup.fanout.attach("t") for _ in range(3)]
    assert len(set(map(id, topics))) == 1
    for topic in topics:
        setup.fanout.detach(topic)
    await setup.fanout.close()
    assert setup.fanout.topics == {}
    assert setup.store.gauges()["feeds"] == baseline


async def test_attaching_while_the_last_one_detaches_loses_nothing(setup: Setup) -> None:
    for spins in range(6):
        old = await setup.fanout.attach("t")
        setup.fanout.detach(old)
        for _ in range(spins):
            await asyncio.sleep(0)
        topic = await setup.fanout.attach("t")
        member = await setup.member(topic)
        await settle()
        await setup.publish()
        assert len(member.outbox) == 1
        topic.remove(member)
        setup.fanout.detach(topic)
        await setup.fanout.close()


async def test_an_attachment_that_is_cancelled_or_fails_leaves_nothing(setup: Setup) -> None:
    setup.store.faults.stall()
    attaching = [asyncio.ensure_future(setup.fanout.attach("t")) for _ in range(3)]
    await settle()
    attaching[0].cancel()
    await settle()
    assert attaching[0].cancelled()
    await setup.clock.advance(2.1)
    for task in attaching[1:]:
        with pytest.raises(StoreError):
            task.result()
    assert setup.fanout.topics == {}
    setup.store.faults.resume()
    await setup.fanout.close()
    assert setup.store.gauges()["feeds"] == 0
    topic = await setup.fanout.attach("t")
    setup.fanout.detach(topic)
    await setup.fanout.close()


async def test_a_cancelled_attachment_does_not_take_the_others_with_it(setup: Setup) -> None:
    setup.store.faults.stall()
    first, second = asyncio.ensure_future(setup.fanout.attach("t")), asyncio.ensure_future(setup.fanout.attach("t"))
    await settle()
    first.cancel()
    await settle()
    setup.store.faults.resume()
    topic = await second
    assert topic.references == 1
    setup.fanout.detach(topic)
    await setup.fanout.close()
    assert setup.store.gauges()["feeds"] == 0
