"""The demo's dashboard: what it counts, whom it tells, and what bounds the demo itself."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest

from demo.app import app, realtime, tokens
from demo.dashboard import Dashboard
from demo.processes import RUNS, TOPIC, Peers, Place
from demo.stats import FIELDS, Report, Stats
from starlette_realtime import Identity, MemoryStore, Realtime, Refused
from starlette_realtime.testing import Client, FakeClock, post

KITCHEN = "chat:kitchen"


async def by_name(token: str) -> Identity | None:
    """A token is the user's name."""
    return Identity(token) if token else None


class House:
    """A kit with two kinds of rooms and a dashboard that shows one of them, on a clock that stands still."""

    def __init__(
        self, clock: FakeClock | None = None, store: MemoryStore | None = None, place: Place | None = None
    ) -> None:
        self.clock = clock if clock is not None else FakeClock()
        self.realtime = Realtime(authenticate=by_name, clock=self.clock, store=store, secret="s" * 16)
        self.realtime.room("chat:{room_id}").on("greet")(self._greet)
        self.realtime.room("secret:{room_id}")
        self.dashboard = Dashboard(self.realtime, {KITCHEN, "chat:garden"}, place)

    def client(self, user: str) -> Client:
        """Somebody who comes."""
        return Client(self.realtime, "", token=user)

    @staticmethod
    async def _greet(name: str) -> str:
        return f"hello {name}"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    async with house.realtime, house.dashboard.running():
        yield house


async def test_a_point_tells_what_is_there_and_what_came_and_went_in_a_second(house: House) -> None:
    async with house.client("Ann") as ann, house.client("Ann") as phone, house.client("Bob") as bob:
        for client in (ann, phone, bob):
            await client.join(KITCHEN)
        await ann.join("chat:garden")
        await ann.join("secret:plans")
        await house.clock.advance(1.0)
        before = house.dashboard.stats.latest()
        for _ in range(10):
            await bob.send("greet", "Ann", room=KITCHEN)
        with pytest.raises(Refused):
            await bob.send("greet", 5, room=KITCHEN)
        await house.clock.advance(1.0)
        report = house.dashboard.stats.latest()
    point = {field: column[0] for field, column in report.points.items()}
    assert tuple(point) == FIELDS
    assert point["at"] == before.points["at"][0] + 1000 == round(house.clock.time() * 1000)
    assert (point["connections"], point["people"], point["members"]) == (3, 2, 4)
    assert (point["received"], point["sent"], point["refused"]) == (11, 11, 1)
    assert report.rooms == {KITCHEN: 3, "chat:garden": 1}
    assert report.refused["invalid_payload"] == 1


async def test_rates_are_for_a_second_however_late_a_point_is(house: House) -> None:
    stats = Stats(house.realtime, {KITCHEN})
    async with house.client("Ann") as ann:
        await ann.join(KITCHEN)
        stats.sample()
        for _ in range(6):
            await ann.send("greet", "you", room=KITCHEN)
        await house.clock.advance(4.0)
        stats.sample()
    assert stats.latest().points["received"] == [1.5]


async def test_a_room_that_is_resumed_is_counted_and_so_is_one_that_starts_afresh(house: House) -> None:
    async with house.client("Ann") as ann:
        await ann.join(KITCHEN)
        await ann.drop()
        await ann.resume()
        assert ann.rooms[KITCHEN].recovered
        await house.clock.advance(1.0)
        report = house.dashboard.stats.latest()
        assert (report.resumed, report.reset) == (2, 0)  # the user's own room as well
        assert report.points["resumed"] == [2]


async def test_so_many_points_are_kept_and_no_more(house: House) -> None:
    stats = Stats(house.realtime, {KITCHEN}, size=3)
    assert stats.latest().points == stats.recent().points == {field: [] for field in FIELDS}
    for _ in range(5):
        await house.clock.advance(1.0)
        stats.sample()
    now = round(house.clock.time() * 1000)
    assert stats.recent().points["at"] == [now - 2000, now - 1000, now]
    assert stats.latest().points["at"] == [now]


async def test_who_watches_is_told_every_second_and_who_does_not_costs_nothing(house: House) -> None:
    async with house.client("Ann") as ann:
        await house.clock.advance(5.0)
        assert house.realtime.counters.published == 0
        room = await ann.join("dashboard")
        await house.clock.advance(3.0)
        heard = [await room.event("stats") for _ in range(3)]
        moments = [event.data["points"]["at"] for event in heard]
        assert [b[0] - a[0] for a, b in pairwise(moments)] == [1000, 1000]
        assert heard[-1].data["points"]["connections"] == [1]
        assert all(event.position is None for event in heard)
        await room.leave()
        await house.clock.advance(5.0)
        assert house.realtime.counters.published == 3
        await ann.nothing()


async def test_who_comes_later_asks_for_the_last_minutes(house: House) -> None:
    async with house.client("Ann") as ann:
        await house.clock.advance(400.0)
        room = await ann.join("dashboard")
        (report,) = await room.send("snapshot")
    assert {len(column) for column in report["points"].values()} == {300}
    assert report["points"]["at"][-1] == round(house.clock.time() * 1000)
    assert report["points"]["connections"][-1] == 1
    assert report["rooms"] == {}


async def test_the_dashboard_is_for_those_who_have_signed_in() -> None:
    async with app.router.lifespan_context(app):
        with pytest.raises(Refused, match="unauthenticated"):
            async with Client(app, "/realtime"):
                pass
        async with Client(app, "/realtime", token=tokens.issue("Ann")) as ann:
            room = await ann.join("dashboard")
            (report,) = await room.send("snapshot")
            assert set(report) == {field.name for field in fields(Report)}
            assert (report["process"], report["beats"]) == (1, {})


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.fixture
async def houses() -> AsyncIterator[tuple[House, House]]:
    """Two of several processes."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    one, two = (
        House(clock, shared, Place(number=number, ports=(8000, 8001)))
        for number, shared in enumerate((store, store.sibling()), start=1)
    )
    async with one.realtime, two.realtime, one.dashboard.running(), two.dashboard.running():
        yield one, two


async def test_whoever_watches_hears_of_all_processes(houses: tuple[House, House]) -> None:
    one, two = houses
    async with one.client("Ann") as ann, two.client("Ann") as phone, two.client("Bob") as bob:
        for client in (phone, bob):
            await client.join(KITCHEN)
        room = await ann.join("dashboard")
        await one.clock.advance(2.0)
        heard: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for _ in range(4):
            report = (await room.event("stats")).data
            heard[report["process"]].append(report)
        assert [len(reports) for reports in heard.values()] == [2, 2]
        last = [reports[-1] for reports in heard.values()]
        assert [report["points"]["connections"] for report in last] == [[1], [2]]
        assert [report["points"]["people"] for report in last] == [[2], [2]]  # of all processes, each once
        assert [report["rooms"] for report in last] == [{}, {KITCHEN: 2}]
        assert [report["node"] for report in last] == [house.realtime.store.node for house in houses]
        assert last[0]["beats"].keys() == {house.realtime.store.node for house in houses}


async def test_what_a_process_told_is_known_to_the_others_when_it_is_gone(houses: tuple[House, House]) -> None:
    one, two = houses
    async with one.client("Ann") as ann:
        await one.clock.advance(5.0)
        assert [news.report.process for news in two.dashboard.peers.live] == [1]
        await ann.close()
    await two.dashboard.peers.tell(two.dashboard.stats.latest(), {"Bob"})
    assert one.dashboard.peers.users == {"Bob"}
    now = one.clock.now()
    async with two.client("Bob") as bob:
        room = await bob.join("dashboard")
        own, other = await room.send("snapshot")
    assert (own["process"], other["process"]) == (2, 1)
    assert other["points"]["connections"] == [1, 1, 1, 1, 1]
    assert own["run"] != other["run"]
    assert one.clock.now() == now


async def test_who_was_not_heard_for_three_seconds_counts_as_gone() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    one, two = House(clock, store), House(clock, store.sibling())
    async with one.realtime, two.realtime:
        peers = Peers(two.realtime, "two")
        one.dashboard.stats.sample()
        async with peers.listening():
            await one.dashboard.peers.tell(one.dashboard.stats.latest(), ())
            await two.clock.advance(2.9)
            assert len(peers.live) == 1
            await two.clock.advance(0.2)
            assert peers.live == []
            assert len(peers.recent()) == 1


async def test_so_many_runs_are_remembered_and_so_many_points_of_each() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    one, two = House(clock, store), House(clock, store.sibling())
    async with one.realtime, two.realtime:
        one.dashboard.stats.sample()
        latest = one.dashboard.stats.latest()
        peers = Peers(two.realtime, "two")
        async with peers.listening():
            for number in range(RUNS + 3):
                await one.dashboard.peers.tell(replace(latest, run=f"run {number}"), ())
            for _ in range(310):
                await one.dashboard.peers.tell(replace(latest, run=f"run {RUNS}"), ())
            await one.dashboard.peers.tell(replace(latest, run="two"), ())  # its own, heard by itself
            recent = peers.recent()
        assert [report.run for report in recent][-3:] == [f"run {RUNS + 1}", f"run {RUNS + 2}", f"run {RUNS}"]
        assert len(recent) == RUNS
        assert {len(column) for column in recent[-1].points.values()} == {300}
        await one.dashboard.peers.tell(latest, ())
        assert len(peers.recent()) == RUNS  # nobody listens any more


async def test_words_of_another_version_are_not_understood_and_harm_nobody(
    houses: tuple[House, House], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = houses
    await one.clock.advance(1.0)
    for words in (b"", b"{}", b"[1]"):
        await one.realtime.store.publish_volatile(TOPIC, words)
    await one.clock.advance(1.0)
    assert "of another version" in caplog.text
    (other,) = two.dashboard.peers.recent()
    assert len(other.points["at"]) == 2


def test_the_environment_says_which_process_this_is_and_one_alone_needs_none() -> None:
    assert Place.read({}) == Place(number=1, ports=(), store="")
    assert Place().origins == Place().sources == []
    place = Place.read(
        {"REALTIME_PORTS": "8000,8001", "REALTIME_PROCESS": "2", "REALTIME_STORE": "unix:///tmp/server.sock"}
    )
    assert place == Place(number=2, ports=(8000, 8001), store="unix:///tmp/server.sock")
    assert place.origins == [f"http://{host}:{port}" for port in place.ports for host in ("127.0.0.1", "localhost")]
    assert "ws://localhost:8001" in place.sources


async def test_only_what_takes_connections_is_company() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert await Place(number=1, ports=(1, port)).has_company()
        assert not await Place(number=2, ports=(1, port)).has_company()
    assert not await Place(number=1, ports=(1, port)).has_company()
    assert not await Place().has_company()


async def test_the_only_process_is_not_killed_and_says_why() -> None:
    async with app.router.lifespan_context(app), Client(app, "/realtime", token=tokens.issue("Ann")) as ann:
        assert await ann.send("where") == 1
        with pytest.raises(Refused, match="only process left"):
            await ann.send("kill")


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_noise_is_limited_and_heard_by_nobody() -> None:
    async with (
        app.router.lifespan_context(app),
        Client(app, "/realtime", token=tokens.issue("Ann")) as ann,
        Client(app, "/realtime", token=tokens.issue("Bob")) as bob,
    ):
        for client in (ann, bob):
            await client.join("chat:library")
        before = realtime.counters.refused["rate_limited"]
        for _ in range(20):
            await ann.send("noise")
        with pytest.raises(Refused, match="rate_limited") as refused:
            await ann.send("noise")
        assert refused.value.retry_after is not None
        assert 0 < refused.value.retry_after <= 0.5
        assert realtime.counters.refused["rate_limited"] == before + 1
        limits = await ann.expect("limits")
        assert limits["event"] == "noise"
        assert limits["remaining"] < 5
        await bob.nothing()


async def test_one_address_signs_in_only_so_often() -> None:
    crowd = ("203.0.113.7", 50_000)
    taken = 0
    while (answer := await post(app, "/session", json={"name": "Guest"}, client=crowd)).status == 200:
        taken += 1
        assert taken < 1_000
    assert taken >= 100  # and what the time that passed gave back
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "set-cookie" not in answer.headers
    assert "content-security-policy" in answer.headers
    elsewhere = await post(app, "/session", json={"name": "Ann"}, client=("203.0.113.8", 50_000))
    assert elsewhere.status == 200
