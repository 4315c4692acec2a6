"""Rooms, whatever happens to links, processes and the store: nothing lost, nothing twice, nothing silent."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from starlette_realtime import Connection, History, Member, Members, MemoryStore, NotJoined, Position, Realtime, Refused
from starlette_realtime.fanout import Topic, read_body, to_event
from starlette_realtime.messages import Body, Delivery, Event, Publication, Reset
from starlette_realtime.presence import Roster
from starlette_realtime.rooms.joining import Joining
from starlette_realtime.rooms.member import Membership
from starlette_realtime.store.backend import Topic as StoreTopic
from starlette_realtime.store.ring import Ring
from starlette_realtime.testing import Closed, FakeClock, settle
from tests.rooms.support import Client, World

ROOM = "chat:1"
KEPT = History(size=6, ttl=40.0)
SECRET = b"sixteen bytes or more"
USERS = ("ada", "ada", "bob", "eve")
NOWHERE = Position("", 0, "")

SLOTS = st.integers(0, len(USERS) - 1)
SPINS = st.integers(0, 8)
PROCESSES = st.integers(0, 1)


def _answering_late(operation: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """An answer takes its time, as over a network: what happens meanwhile is not in it."""

    async def late(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        answer = await operation(*args, **options)
        for _ in range(3):
            await asyncio.sleep(0)
        return answer

    return late


class Slot:
    """One device of a user: what it knows by the protocol alone, and whether that may be."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.client: Client | None = None
        self.session: str | None = None  # the token
        self.sid = ""
        self.process = 0
        self.joined = False
        self.stalled = False
        self.last: Position | None = None
        self.pending: dict[int, tuple[str, Position | None]] = {}
        self.members: dict[str, Any] | None = None
        self.seq = 0

    def forget(self) -> None:
        self.client, self.joined, self.members, self.stalled = None, False, None, False
        self.pending.clear()


class RoomMachine(RuleBasedStateMachine):
    """Two processes, four devices, one room."""

    rings = False
    """Whether the processes keep what was published last, as with a store on a server."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.slots = [Slot(user) for user in USERS]
        self.truth: dict[str, tuple[Publication, Body]] = {}
        self.keys: dict[tuple[str, str], Position] = {}
        self.born: dict[str, int] = {}  # before how many losses of the store it was published
        self.generation = 0
        self.said = 0
        self.present: Counter[str] = Counter()
        self.tasks: list[asyncio.Task[Any]] = []
        self.runner.run(self._start())

    # --- set up, tear down ---

    async def _start(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._broken)
        self.broken: list[Any] = []
        store = MemoryStore(clock=self.clock, rng=random.Random(1))
        self.backend = store.backend
        self._record()
        self.worlds = [World(clock=self.clock, store=each, secret=SECRET) for each in (store, store.sibling())]
        for world in self.worlds:
            self._declare(world.realtime)
            await world.__aenter__()

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.broken.append(context)

    def _declare(self, realtime: Realtime) -> None:
        room = realtime.room("chat:{room_id:int}", presence=True, history=KEPT, linger=2.0)

        @room.on("say")
        async def say(member: Member, number: int) -> Any:
            position = await member.broadcast("said", number)
            return [position.epoch, position.offset, position.id]

        @room.on("say_others")
        async def say_others(member: Member, number: int) -> None:
            await member.broadcast("said", number, others_only=True)

        @room.on_join
        async def came(member: Member) -> None:
            self.present[str(member.user)] += 1

        @room.on_leave
        async def left(member: Member) -> None:
            self.present[str(member.user)] -= 1

    def _record(self) -> None:
        """Know every publication of the room before anybody hears of it."""
        deliver = StoreTopic.deliver

        def recording(topic: StoreTopic, delivery: Delivery) -> None:
            if topic.name == ROOM and isinstance(delivery, Publication) and delivery.position is not None:
                self.truth[delivery.position.id] = (delivery, read_body(delivery))
                self.born[delivery.position.id] = self.generation
            deliver(topic, delivery)

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(StoreTopic, "deliver", recording)
        self.patch.setattr(MemoryStore, "_rings", self.rings)
        for name in ("read", "page", "members", "enter", "leave", "publish", "_listen", "_where"):
            self.patch.setattr(MemoryStore, name, _answering_late(getattr(MemoryStore, name)))

    def teardown(self) -> None:
        try:
            self.runner.run(self._finish())
        finally:
            self.patch.undo()
            self.runner.close()

    async def _finish(self) -> None:
        try:
            await self._come_to_rest()
        finally:
            for slot in self.slots:
                if slot.client is not None:
                    slot.client.peer.leave()
            for world in self.worlds:
                await world.__aexit__()
        assert not self.broken
        await self.clock.advance(200_000.0 if self.said < 3 else 100.0)
        for world in self.worlds:
            gauges = world.realtime.gauges()
            owed = {
                name: gauges[name] for name in ("connections", "tasks", "locks", "lingering", "endings", "entering")
            }
            assert not any(owed.values()), owed
            assert gauges["topics"] == gauges["store.entries"] == gauges["store.feeds"] == 0
            assert gauges["store.recoveries"] == gauges["store.ring_publications"] == gauges["store.ring_bytes"] == 0

    async def _come_to_rest(self) -> None:
        """Mend everything, wait as long as promised, and see that everybody has everything."""
        for slot in self.slots:
            if slot.client is not None:
                slot.client.peer.flow()
        for world in self.worlds:
            world.store.faults.drop(0)
            world.store.faults.duplicate(0)
            world.store.faults.resume()
        await self._advance(16.0)
        await self._advance(16.0)
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=1.0)
        self._read()
        for slot in self.slots:
            assert not slot.pending, slot.pending
        top = self._top()
        entries = self._entries()
        for slot in self.slots:
            if slot.joined:
                assert slot.last is not None
                assert self._leads_to(slot, slot.last, top), (slot.last, top)
                if slot.members is None:  # a gap that was told: one asks
                    assert slot.client is not None
                    snapshot = await slot.client.call("members", room=ROOM)
                    slot.members = {member["connection"]: member for member in snapshot["list"]}
                    self._read()
                assert slot.members is not None
                assert set(slot.members) == set(entries)
        users = {entry.user for entry in entries.values()}
        assert {user for user, count in self.present.items() if count} == users
        assert set(self.present.values()) <= {0, 1}, self.present
        mine = {slot.client.id for slot in self.slots if slot.client is not None and slot.joined}
        assert set(entries) == mine

    # --- the truth ---

    def _top(self) -> Position:
        topic = self.backend.topics.get(ROOM)
        return topic.stream.position if topic is not None else NOWHERE

    def _entries(self) -> dict[str, Any]:
        topic = self.backend.topics.get(ROOM)
        return {name: entry for name, (entry, _) in topic.entries.items()} if topic is not None else {}

    def _leads_to(self, slot: Slot, start: Position, end: Position, *, over: int = 0) -> bool:
        """Whether nothing that the slot should hear is after `start`, up to `end`, but for its last `over` events."""
        while end != start:
            row = self.truth.get(end.id)
            if row is None or end.epoch != start.epoch or end.offset <= start.offset:
                return False
            publication, body = row
            if not body.event.startswith("rt:") and body.exclude != slot.sid:
                if over == 0:
                    return False
                over -= 1
            end = Position(end.epoch, end.offset - 1, publication.previous)
        return over == 0

    # --- what the devices hear ---

    def _read(self) -> None:
        for slot in self.slots:
            client = slot.client
            if client is None:
                continue
            for frame in client.take():
                self._hear(slot, frame)
            if client.peer.closed is not None:
                # 1006: it did not read in time.
                allowed = {1006, 1013, 4403, 4440, 4441} if slot.stalled else {1013, 4403, 4441}
                assert client.peer.closed.code in allowed, client.peer.closed
                slot.forget()

    def _hear(self, slot: Slot, frame: Any) -> None:
        kind = frame["type"]
        if kind == "reply":
            self._replied(slot, frame)
        elif frame.get("room") != ROOM:
            assert kind in {"welcome", "joined", "error", "stale", "fresh", "reset"}, frame
        elif kind == "left":
            assert slot.joined
            slot.joined, slot.members = False, None
        else:
            assert slot.joined, f"{frame} outside of a membership"
            if kind == "event":
                self._follows(slot, frame)
            elif kind == "reset":
                assert frame["reason"]
                slot.last = Position(**frame["position"])
            elif kind == "presence":
                self._fold(slot, frame)

    def _follows(self, slot: Slot, event: Any) -> None:
        position = Position(**event["position"])
        _, body = self.truth[position.id]
        assert bytes(body.data).decode() == str(event["data"])
        assert body.exclude != slot.sid or body.exclude is None
        assert slot.last is not None
        assert self._leads_to(slot, slot.last, position, over=1), (slot.last, position)
        slot.last = position

    def _replied(self, slot: Slot, reply: Any) -> None:
        what, since = slot.pending.pop(reply["id"])
        data = reply.get("data")
        if "error" in reply:
            assert reply["error"]["code"] in {"unavailable", "not_joined", "forbidden", "unauthenticated"}, reply
            return
        if what == "leave":
            slot.joined, slot.members = False, None
        elif what == "join":
            self._joined(slot, since, data)
        elif what.startswith("say:"):
            self._acknowledged(slot, what.removeprefix("say:"), Position(*data))

    def _joined(self, slot: Slot, since: Position | None, data: Any) -> None:
        position = Position(**data["position"])
        if slot.joined and since is None:  # again: where it is
            assert slot.last is not None
            assert self._leads_to(slot, slot.last, position), (slot.last, position)
        else:
            slot.joined = True
            slot.last = since if data["recovered"] else None
            if data["recovered"]:
                assert since is not None
            elif since is not None:
                assert data["reason"]
            for event in data["events"]:
                if slot.last is None:
                    slot.last = Position(**event["position"])
                else:
                    self._follows(slot, event)
            if slot.last is not None:
                assert self._leads_to(slot, slot.last, position), (slot.last, position)
        slot.last = position
        members = data["members"]
        slot.members = {member["connection"]: member for member in members["list"]}
        slot.seq = members["seq"]

    def _acknowledged(self, slot: Slot, key: str, position: Position) -> None:
        if not key:
            return
        first = self.keys.setdefault((slot.user, key), position)
        if position != first:
            again, before = self.truth[position.id][0], self.truth[first.id][0]
            late = again.at - before.at >= 120_000
            assert late or self.born[position.id] != self.born[first.id], "published twice"
            self.keys[slot.user, key] = position

    def _fold(self, slot: Slot, frame: Any) -> None:
        if slot.members is None or frame["seq"] <= slot.seq:
            return
        if frame["prev"] > slot.seq:
            slot.members = None
            return
        for member in (*frame.get("joined", ()), *frame.get("updated", ())):
            slot.members[member["connection"]] = member
        for connection in frame.get("left", ()):
            slot.members.pop(connection, None)
        slot.seq = frame["seq"]

    # --- acting ---

    def _run(self, work: Awaitable[Any], spins: int = -1) -> None:
        async def run() -> None:
            await work
            if spins < 0:
                await settle()
            for _ in range(spins):
                await asyncio.sleep(0)
            self._read()

        self.runner.run(run())
        assert not self.broken, self.broken

    async def _advance(self, seconds: float) -> None:
        while seconds > 0:
            await self.clock.advance(min(seconds, 1.0))
            seconds -= 1.0
            self._read()

    async def _command(self, slot: Slot, what: str, asked: Position | None, kind: str, **fields: Any) -> None:
        if slot.client is None or slot.client.peer.closed is not None or not slot.sid:
            return
        try:
            number = await slot.client.command(kind, **fields)
        except Closed:
            return
        slot.pending[number] = (what, asked)

    async def _connect(self, slot: Slot, process: int) -> None:
        world = self.worlds[process]
        client = world.client()
        world.clients.pop()
        await client.__aenter__()
        slot.client, slot.process, slot.sid = client, process, ""
        number = await client.command("auth", token=slot.user, **({"session": slot.session} if slot.session else {}))
        for _ in range(5):
            await self.clock.advance(0.5)
            if client.peer.closed or [frame for frame in client.take(keep=True) if frame.get("id") == number]:
                break
        try:
            data = await client.answer(number)
        except Exception:
            slot.forget()
            return
        slot.session = data["session"]
        for connection in world.realtime.connections:
            if connection.id == client.id:
                slot.sid = connection.session
        self._read()

    # --- the rules ---

    @initialize()
    def two_are_there(self) -> None:
        for number in (0, 2):
            self._run(self._connect(self.slots[number], number // 2))
            self._run(self._command(self.slots[number], "join", None, "join", room=ROOM))

    @rule(number=SLOTS, process=PROCESSES)
    def connect(self, number: int, process: int) -> None:
        slot = self.slots[number]
        if slot.client is None:
            self._run(self._connect(slot, process))

    @rule(number=SLOTS, spins=SPINS, anew=st.booleans())
    def join(self, number: int, spins: int, anew: bool = False) -> None:
        slot = self.slots[number]
        if any(what == "join" for what, _ in slot.pending.values()):
            return
        since = None if anew else slot.last
        position = {"epoch": since.epoch, "offset": since.offset, "id": since.id} if since is not None else None
        fields = {"since": position} if position is not None else {}
        self._run(self._command(slot, "join", since, "join", room=ROOM, **fields), spins)

    @rule(number=SLOTS, spins=SPINS)
    def leave(self, number: int, spins: int) -> None:
        self._run(self._command(self.slots[number], "leave", None, "leave", room=ROOM), spins)

    @rule(number=SLOTS, spins=SPINS, key=st.sampled_from(["", "", "k", "l"]))
    def say(self, number: int, spins: int, key: str) -> None:
        self.said += 1
        slot = self.slots[number]
        fields = {"event": "say", "data": self.said, "room": ROOM} | ({"key": key} if key else {})
        self._run(self._command(slot, f"say:{key}", None, "event", **fields), spins)

    @rule(number=SLOTS, spins=SPINS)
    def say_to_others(self, number: int, spins: int) -> None:
        self.said += 1
        fields = {"event": "say_others", "data": self.said, "room": ROOM}
        self._run(self._command(self.slots[number], "others", None, "event", **fields), spins)

    @rule(process=PROCESSES, spins=SPINS, count=st.integers(1, 9))
    def publish(self, process: int, spins: int, count: int) -> None:
        async def publish() -> None:
            for _ in range(count):
                self.said += 1
                try:
                    await self.worlds[process].realtime.at(ROOM).broadcast("said", self.said)
                except Refused:
                    return

        async def start() -> None:
            self.tasks = [task for task in self.tasks if not task.done()]
            self.tasks.append(asyncio.ensure_future(publish()))

        self._run(start(), spins)

    @rule(number=SLOTS, code=st.sampled_from([1000, 1006, 1006]), spins=SPINS)
    def go(self, number: int, code: int, spins: int) -> None:
        slot = self.slots[number]

        async def go() -> None:
            if slot.client is not None:
                self._read()
            if slot.client is not None:
                slot.client.peer.leave(code)
                slot.forget()

        self._run(go(), spins)

    @rule(number=SLOTS, process=PROCESSES, count=st.integers(0, 8), spins=SPINS)
    def come_back(self, number: int, process: int, count: int, spins: int) -> None:
        """Break the link, and resume where it broke, perhaps on the other process, while others speak."""
        if count % 2:
            self.say_to_others(number, -1)
        self.go(number, 1006, spins)
        self.publish(process, spins, count)
        self.connect(number, process)
        self.join(number, spins)
        self.publish(process, spins, 1)

    @rule(number=SLOTS)
    def stop_reading(self, number: int) -> None:
        slot = self.slots[number]
        if slot.client is not None:
            slot.client.peer.stall()
            slot.stalled = True

    @rule(number=SLOTS)
    def read_again(self, number: int) -> None:
        client = self.slots[number].client

        async def flow() -> None:
            if client is not None:
                client.peer.flow()

        self._run(flow())

    @rule(user=st.sampled_from(sorted(set(USERS))), process=PROCESSES)
    def kick(self, user: str, process: int) -> None:
        async def kick() -> None:
            self.tasks.append(asyncio.ensure_future(self._kick(user, process)))

        self._run(kick())

    async def _kick(self, user: str, process: int) -> None:
        with suppress(Refused):
            await self.worlds[process].realtime.at(ROOM).kick(user=user)

    @rule(process=PROCESSES, fault=st.sampled_from(["drop", "duplicate"]), count=st.integers(1, 3))
    def garble(self, process: int, fault: str, count: int) -> None:
        getattr(self.worlds[process].store.faults, fault)(count)

    @rule(process=PROCESSES, number=SLOTS, count=st.integers(1, 3))
    def know_better(self, process: int, number: int, count: int) -> None:
        """Join, when the process has missed something without knowing it yet."""
        self.connect(number, process)
        self.garble(process, "drop", count)
        self.publish(process, -1, count)
        self.join(number, -1)
        self.publish(process, -1, 1)

    @precondition(lambda self: ROOM in self.backend.topics)
    @rule(count=st.integers(0, 3))
    def forget(self, count: int) -> None:
        faults = self.worlds[0].store.faults
        self.generation += 1
        if count == 0:
            faults.lose(ROOM)
        else:
            faults.rewind(ROOM, min(count, len(self.backend.topics[ROOM].stream.rows)))

    @rule(process=PROCESSES)
    def stall(self, process: int) -> None:
        self._run(self._switch(process, stall=True))

    @rule(process=PROCESSES)
    def resume(self, process: int) -> None:
        self._run(self._switch(process, stall=False))

    async def _switch(self, process: int, *, stall: bool) -> None:
        faults = self.worlds[process].store.faults
        if stall:
            faults.stall()
        else:
            faults.resume()

    @rule(seconds=st.sampled_from([0.02, 0.1, 1.0, 3.0, 18.0]))
    def wait(self, seconds: float) -> None:
        self._run(self._advance(seconds))

    @rule()
    def rest(self) -> None:
        self._run(self._come_to_rest())


class RingMachine(RoomMachine):
    """The same, where those who join are answered from memory."""

    rings = True


def run(examples: int, steps: int = 30, machine: type[RoomMachine] = RoomMachine, **options: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=True, **options),
    )


@pytest.mark.parametrize("machine", [RoomMachine, RingMachine])
def test_nothing_is_lost_or_heard_twice_or_in_silence(machine: type[RoomMachine]) -> None:
    run(120, machine=machine)


def _rings_are_filled_from_any_read(patch: pytest.MonkeyPatch) -> None:
    """What a read has found is taken for what led to where the process is."""

    def fill(self: Ring, found: Sequence[Publication], end: Position, *, whole: bool) -> None:
        if not self.rows:
            self.rows.extend(found)

    patch.setattr(Ring, "fill", fill)


def _joins_do_not_listen(patch: pytest.MonkeyPatch) -> None:
    """What is published while somebody joins is lost."""
    patch.setattr(Topic, "buffer", lambda self, connection, replay: None)


def _joins_go_live_at_once(patch: pytest.MonkeyPatch) -> None:
    """Who knows more than its process hears some of it again."""
    live = Topic.live

    def hasty(self: Topic, connection: Connection, position: Position | None, here: Position | None) -> None:
        live(self, connection, position, None)

    patch.setattr(Topic, "live", hasty)


def _recoveries_skip_one(patch: pytest.MonkeyPatch) -> None:
    """The first of what was missed is left out."""
    events = Joining._events

    def skipping(self: Joining, membership: Membership, publications: list[Publication]) -> list[Event]:
        return events(self, membership, publications[1:] if len(publications) > 1 else publications)

    patch.setattr(Joining, "_events", skipping)


def _recoveries_bring_ones_own(patch: pytest.MonkeyPatch) -> None:
    """`others_only` is forgotten in a recovery."""

    def all_of_them(self: Joining, membership: Membership, publications: list[Publication]) -> list[Event]:
        bodies = ((publication, read_body(publication)) for publication in publications)
        return [to_event(*row, membership.name) for row in bodies if not row[1].event.startswith("rt:")]

    patch.setattr(Joining, "_events", all_of_them)


def _gaps_are_kept_secret(patch: pytest.MonkeyPatch) -> None:
    """A process that lost something says nothing of it."""
    broadcast = Topic.broadcast

    def quiet(self: Topic, event: Any, **options: Any) -> None:
        if not isinstance(event, Reset):
            broadcast(self, event, **options)

    patch.setattr(Topic, "broadcast", quiet)


def _members_go_on_hearing(patch: pytest.MonkeyPatch) -> None:
    """Who has left hears on until presence has been left, too."""

    async def leave(self: Joining, connection: Connection, name: str, *, code: str | None = None) -> None:
        membership = connection.rooms.pop(name, None)
        if membership is None:
            raise NotJoined

        async def later() -> None:
            await asyncio.sleep(0)
            await self._attendance.leave(membership)
            membership.topic.remove(connection)
            self._fanout.detach(membership.topic)

        self._attendance.tasks.start(later())

    patch.setattr(Joining, "leave", leave)


def _snapshots_are_swallowed(patch: pytest.MonkeyPatch) -> None:
    """A process that reloads its members doesn't tell what has changed."""
    load = Roster.load

    def silent(self: Roster, members: Members) -> None:
        load(self, members)
        self._touched.clear()

    patch.setattr(Roster, "load", silent)


def test_the_machine_finds_a_bug_of_the_rings() -> None:
    with pytest.MonkeyPatch.context() as patch:
        _rings_are_filled_from_any_read(patch)
        with pytest.raises((AssertionError, KeyError)):
            run(600, machine=RingMachine, phases=[Phase.generate], database=None, derandomize=True)


@pytest.mark.parametrize(
    "bug",
    [
        _joins_do_not_listen,
        _joins_go_live_at_once,
        _recoveries_skip_one,
        _recoveries_bring_ones_own,
        _gaps_are_kept_secret,
        _members_go_on_hearing,
        _snapshots_are_swallowed,
    ],
)
def test_the_machine_finds_a_seeded_bug(bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        with pytest.raises((AssertionError, KeyError)):
            run(600, phases=[Phase.generate], database=None, derandomize=True)
