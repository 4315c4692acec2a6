"""Three processes on real servers, in real time, with everything that can go wrong: the rules, and what must hold."""

import asyncio
import inspect
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, ClassVar, TypeAlias, TypeVar
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, Position
from starlette_realtime.store.redis.keys import Keys
from tests.store.redis.support import FaultyStore, Servers, stores
from tests.store.redis.witness import HISTORY, LOOK, REWIND, Listener, Seen, Truth
from tests.support.redis import Server
from tests.support.waiting import until

__all__ = ["TOPICS", "StoreMachine"]

T = TypeVar("T")

Told: TypeAlias = Counter[tuple[str, str]]

TOPICS = ("a", "b")
NODES = 3
PERIODS = {
    "timeout": 0.8,
    "lease": 1.2,
    "beat": 0.3,
    "sweep": 0.2,
    "check_interval": 0.5,
    "stale_after": 0.5,
    "dedupe": 60.0,
}
PENDING = 3  # publications that nobody waits for
CALM = 15.0  # seconds within which all must be well, once nothing goes wrong any more

topics = st.sampled_from(TOPICS)
nodes = st.integers(0, NODES - 1)
keys = st.sampled_from(("", "", "k1", "k2"))
whos = st.sampled_from(("u:x", "u:y"))
visitors = st.tuples(nodes, whos, st.integers(0, 1), st.sampled_from(("online", "away", "gone")))
OUTAGES = ("cut", "half_open", "mute")


class StoreMachine(RuleBasedStateMachine):
    """
    The invariants are those of the store's promises: order, no silent gap, agreement, idempotency, presence, bounds.

    All machines of a module share `servers` and `runner`; each has keys of its own.
    """

    servers: ClassVar[Servers]
    runner: ClassVar[asyncio.Runner]

    def __init__(self) -> None:
        super().__init__()
        self.stack = AsyncExitStack()
        self.chance = random.Random(1)
        self.prefix = uuid4().hex
        self.keys = Keys(self.prefix)
        self.truth = {topic: Truth() for topic in TOPICS}
        self.sent: dict[str, dict[bytes, str]] = {topic: {} for topic in TOPICS}  # data → key
        self.acknowledged: list[tuple[str, bytes, str, Position]] = []  # since the last look
        self.pending: set[asyncio.Task[None]] = set()
        self.processes: list[FaultyStore] = []
        self.names = list(range(NODES))  # what they call their connections by
        self.dead: list[asyncio.Task[object]] = []
        self.listeners: dict[tuple[int, str], Listener] = {}
        self.clients: dict[str, Position] = {}
        self.members: dict[tuple[str, str], tuple[int, Entry]] = {}  # (topic, connection) → process, entry
        self.told: Told = Counter()  # (topic, who): joins less leaves
        self.failures: list[str] = []
        self.steps: list[str] = []
        self.number = 0
        self.quiet = 0  # how many steps there had been when all was well
        self.failed = False

    # --- what the rules stand on ---

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a step, and look what came of it."""
        arguments = {name: value for name, value in inspect.getcoroutinelocals(work).items() if name != "self"}
        named = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        self.steps.append(f"{getattr(work, '__name__', work)}({named})")

        async def step() -> T:
            result = await work
            await self.look()
            return result

        try:
            return self.runner.run(step())
        except BaseException as error:
            self.failed = True
            error.add_note("\n".join(["the steps were:", *self.steps, *self.failures]))
            raise

    async def at(self, key: bytes) -> Server:
        """The server that has a key. No proxy stands before it."""
        raise NotImplementedError

    async def seen(self, topic: str) -> Seen:
        """What the server has of a topic."""
        base = self.keys.topic(topic)
        return Seen.of(await (await self.at(base)).command("EVAL", LOOK, 2, base + b":m", base + b":s"))

    async def look(self) -> None:
        """Take in what the servers have, and compare it with what was acknowledged and heard."""
        for topic, truth in self.truth.items():
            acknowledged = [each for each in self.acknowledged if each[0] == topic]
            self.acknowledged = [each for each in self.acknowledged if each[0] != topic]
            seen = await self.seen(topic)
            if seen.epoch:
                truth.look(seen, self.sent[topic])
            for _, data, key, position in acknowledged:
                assert truth.has(position), f"{data!r} was acknowledged at {position}, and is not there"
                if key:
                    assert truth.keys[key] == position, f"the key {key} is known at {truth.keys[key]}, not {position}"
                else:
                    assert truth.rows[position.offset - 1] == (position, data)
        assert not self.failures, self.failures[0]

    async def start_one(self) -> FaultyStore:
        """A process that runs."""
        made = stores(self.servers, 1, prefix=self.prefix, **PERIODS)
        (store,) = await self.stack.enter_async_context(made)
        await store.__aenter__()
        store.on_presence(self.tell)
        return store

    def tell(self, topic: str, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        """Count who joined, and who left."""
        self.told.update((topic, entry.who) for entry in joined)
        self.told.subtract((topic, entry.who) for entry in left)

    @initialize()
    def start(self) -> None:
        """All processes run; everybody hears everything, and somebody is there."""
        self.do(self._start())

    async def _start(self) -> None:
        for node in range(NODES):
            self.processes.append(await self.start_one())
            for topic in TOPICS:
                await self._subscribe(topic, node)
                await self.visit_one(topic, node, "u:x", 0, "online")

    # --- publications ---

    @rule(topic=topics, node=nodes, key=keys, lost=st.booleans(), wait=st.booleans())
    def publish(self, topic: str, node: int, key: str, lost: bool, wait: bool) -> None:
        self.do(self._publish(topic, node, key, lost, wait))

    async def _publish(self, topic: str, node: int, key: str, lost: bool, wait: bool) -> None:
        if lost:
            self.processes[node].lose_reply(b"EVALSHA")
        task = asyncio.ensure_future(self.send(topic, node, key))
        if wait or len(self.pending) >= PENDING:
            await task
        else:
            self.pending.add(task)
            task.add_done_callback(self.pending.discard)
            await asyncio.sleep(0)

    async def send(self, topic: str, node: int, key: str = "") -> None:
        """Publish what nobody has published; where it is refused, it may have been made or not."""
        self.number += 1
        data, truth = b"%d" % self.number, self.truth[topic]
        key = key and f"{key}.{truth.setbacks}"  # which positions keys stand for is not taken back everywhere
        self.sent[topic][data] = key
        try:
            position = await self.processes[node].publish(topic, data, history=HISTORY, producer="u:x", key=key)
        except StoreError:
            return
        self.acknowledged.append((topic, data, key, position))

    @rule(topic=topics, node=nodes, size=st.integers(2, 12))
    def burst(self, topic: str, node: int, size: int) -> None:
        self.do(self._burst(topic, node, size))

    async def _burst(self, topic: str, node: int, size: int) -> None:
        await asyncio.gather(*(self.send(topic, node) for _ in range(size)))

    async def settle(self) -> None:
        """Wait until everything that was published is refused, or made and known."""
        if self.pending:
            await asyncio.wait(tuple(self.pending))
        await self.look()

    @rule(topic=topics, node=nodes)
    def subscribe(self, topic: str, node: int) -> None:
        self.do(self._subscribe(topic, node))

    async def _subscribe(self, topic: str, node: int) -> None:
        if (node, topic) in self.listeners:
            return
        store, listener = self.processes[node], Listener(topic, self.truth[topic], self.failures.append)
        try:
            await store.subscribe(topic, listener)
        except StoreError:
            return
        listener.begin(store.position(topic))
        self.listeners[node, topic] = listener
        await self.load(node, topic)

    async def load(self, node: int, topic: str) -> None:
        """Let a subscriber that has to load the topic's members."""
        listener = self.listeners[node, topic]
        if listener.sequence == -1:
            try:
                listener.load(await self.processes[node].members(topic, limit=1_000))
            except StoreError:
                return

    @rule(topic=topics, node=nodes)
    def unsubscribe(self, topic: str, node: int) -> None:
        self.do(self._unsubscribe(topic, node))

    async def _unsubscribe(self, topic: str, node: int) -> None:
        if (listener := self.listeners.pop((node, topic), None)) is not None:
            await self.processes[node].unsubscribe(topic, listener)

    @rule(topic=topics, node=nodes, recover=st.booleans())
    def resume(self, topic: str, node: int, recover: bool) -> None:
        self.do(self._resume(topic, node, recover))

    async def _resume(self, topic: str, node: int, recover: bool) -> None:
        """
        A client comes back, to any process; then it is where that was.

        It gets exactly what it has missed, or word that it is not to be had; with `recover` from the process's memory,
        up to where the process is.
        """
        await self.look()
        store, truth, since = self.processes[node], self.truth[topic], self.clients.get(topic)
        floor, old = truth.top, None
        if recover:
            floor = store.position(topic) or Position("", 0, "")
        try:
            recovery = await (store.recover if recover else store.read)(topic, since=since, limit=100)
        except StoreError:
            return
        if recover:
            old = store.position(topic)
        await self.look()
        truth.check(since, recovery, floor=floor.offset if truth.has(floor) else 0, old=old)
        self.clients[topic] = recovery.position

    # --- presence ---

    @rule(
        topic=topics, visitors=st.lists(visitors, min_size=1, max_size=6, unique_by=lambda each: each[:3]), lost=nodes
    )
    def visit(self, topic: str, visitors: list[tuple[int, str, int, str]], lost: int) -> None:
        """Some come, change, or go, all at once."""
        self.do(self._visit(topic, visitors, lost))

    async def _visit(self, topic: str, visitors: list[tuple[int, str, int, str]], lost: int) -> None:
        self.processes[lost].lose_reply(b"EVALSHA")
        await asyncio.gather(*(self.visit_one(topic, *visitor) for visitor in visitors))

    async def visit_one(self, topic: str, node: int, who: str, number: int, status: str) -> None:
        """One connection of somebody enters, or leaves."""
        store, connection = self.processes[node], f"{self.names[node]}:{who}:{number}"
        if status == "gone":
            if self.members.pop((topic, connection), None) is not None:
                await self.leave_one(topic, node, connection)
            return
        entry = Entry(connection, who, status="away" if status == "away" else "online")
        try:
            joined = await store.enter(topic, (entry,))
        except StoreError:
            return
        self.members[topic, connection] = node, entry
        self.tell(topic, joined, ())

    async def leave_one(self, topic: str, node: int, connection: str) -> None:
        """Leave, now or as soon as the store is back."""
        try:
            left = await self.processes[node].leave(topic, (connection,))
        except StoreError:
            return
        self.tell(topic, (), left)

    # --- faults ---

    @rule(node=nodes, drop=st.integers(0, 4), double=st.integers(0, 4))
    def disturb(self, node: int, drop: int, double: int) -> None:
        """The next deliveries to a process are lost, or come twice."""
        self.do(self._disturb(node, drop, double))

    async def _disturb(self, node: int, drop: int, double: int) -> None:
        self.processes[node].dropping = drop
        self.processes[node].doubling = double

    @rule(node=nodes, subscriptions=st.booleans())
    def cut_links(self, node: int, subscriptions: bool) -> None:
        self.do(self._cut_links(node, subscriptions))

    async def _cut_links(self, node: int, subscriptions: bool) -> None:
        store = self.processes[node]
        store.cut_subscriptions() if subscriptions else store.cut_links()

    @rule(
        node=nodes,
        topic=topics,
        kind=st.sampled_from(OUTAGES),
        seconds=st.sampled_from((0.1, 0.4, 1.0, 2.0)),
        size=st.integers(0, 6),
        who=whos,
        asked=st.booleans(),
    )
    def outage(self, node: int, topic: str, kind: str, seconds: float, size: int, who: str, asked: bool) -> None:
        """A process is cut off, in one way or another, for longer than its lease at times; work goes on elsewhere."""
        self.do(self._outage(node, topic, kind, seconds, size, who, asked))

    async def _outage(self, node: int, topic: str, kind: str, seconds: float, size: int, who: str, asked: bool) -> None:
        await self.settle()
        store, tasks = self.processes[node], list[asyncio.Task[None]]()
        if kind == "cut":
            store.cut()
        elif kind == "half_open":
            store.half_open()
        else:
            for proxy in store.proxies.values():
                proxy.drop_replies()
        tasks.append(asyncio.ensure_future(self._burst(topic, (node + 1) % NODES, size)))
        if asked:
            tasks.append(asyncio.ensure_future(self.send(topic, node, "k1")))
            tasks.append(asyncio.ensure_future(self.visit_one(topic, node, who, 2, "online")))
            for (name, connection), (place, _) in list(self.members.items()):
                if place == node and name == topic and not connection.endswith(":2"):
                    del self.members[name, connection]
                    tasks.append(asyncio.ensure_future(self.leave_one(name, node, connection)))
        await asyncio.sleep(seconds)
        if kind == "mute":
            store.cut_links()  # what was lost is lost with the link: the rest of a stream doesn't come
        store.restore()
        await asyncio.gather(*tasks)

    @rule(node=nodes)
    def kill(self, node: int) -> None:
        """A process dies; another takes its place."""
        self.do(self._kill(node))

    async def _kill(self, node: int) -> None:
        await self.settle()
        dying = self.processes[node]
        # What a process did, and had no time to tell, is told by nobody: so it is about nothing at this moment.
        await until(lambda: self.is_calm(dying), within=CALM, what="a process that waits for no answer")
        dying.cut()
        dying.off_presence(self.tell)
        self.dead.append(asyncio.ensure_future(dying.__aexit__(None, None, None)))
        self.listeners = {place: listener for place, listener in self.listeners.items() if place[0] != node}
        self.members = {place: held for place, held in self.members.items() if held[0] != node}
        self.processes[node] = await self.start_one()
        self.names[node] += NODES

    @staticmethod
    def is_calm(store: FaultyStore) -> bool:
        """Whether it knows what came of everything that it asked for."""
        process = store._process
        rooms = process.presence._rooms.values()
        return not (process._reaper._unsettled or any(room.users or room.unsettled for room in rooms))

    @rule(topic=topics, count=st.integers(1, 4), node=nodes, again=st.integers(0, 4))
    def rewind(self, topic: str, count: int, node: int, again: int) -> None:
        """The last publications are taken back, and others take their places."""
        self.do(self._rewind(topic, count, node, again))

    async def _rewind(self, topic: str, count: int, node: int, again: int) -> None:
        await self.settle()
        if self.truth[topic].kept < count:
            return
        base = self.keys.topic(topic)
        await (await self.at(base)).command("EVAL", REWIND, 2, base + b":m", base + b":s", count)
        self.truth[topic].take_back(count)
        await self._burst(topic, node, again)

    @rule(topic=topics, node=nodes, again=st.integers(0, 2))
    def lose(self, topic: str, node: int, again: int) -> None:
        """All of a topic's publications are lost."""
        self.do(self._lose(topic, node, again))

    async def _lose(self, topic: str, node: int, again: int) -> None:
        await self.settle()
        base = self.keys.topic(topic)
        await (await self.at(base)).command("DEL", base + b":m", base + b":s")
        self.truth[topic].set_back(Truth())
        await self._burst(topic, node, again)

    @rule(topic=topics, what=st.sampled_from(("SCRIPT FLUSH", "CLIENT KILL TYPE normal", "CLIENT KILL TYPE pubsub")))
    def upset(self, topic: str, what: str) -> None:
        """A server forgets its scripts, or its clients."""
        self.do(self._upset(topic, what))

    async def _upset(self, topic: str, what: str) -> None:
        server = await self.at(self.keys.topic(topic))
        await server.command(*what.split(), *(("SKIPME", "yes") if what.startswith("CLIENT") else ()))

    @rule(seconds=st.sampled_from((0.01, 0.1, 0.5)))
    def pause(self, seconds: float) -> None:
        """Time passes."""
        self.do(asyncio.sleep(seconds))

    # --- what must hold ---

    @invariant()
    def everything_is_bounded(self) -> None:
        for store in self.processes:
            gauges = store.gauges()
            assert gauges["subscribers"] == sum(1 for node, _ in self.listeners if self.processes[node] is store)
            assert gauges["held_publications"] <= 4 * HISTORY.size
            assert gauges["presence_topics"] <= len(TOPICS)
            assert gauges["commands"] <= 64

    @precondition(lambda self: len(self.steps) >= self.quiet + 8)
    @rule()
    def quiesce(self) -> None:
        """Once nothing more goes wrong, all are where the store is, have heard what led there, and see who is there."""
        self.do(self._quiesce())

    async def _quiesce(self) -> None:
        for store in self.processes:
            store.restore()
            store.dropping = store.doubling = 0
        await self.settle()
        await self.eventually(self.what_is_not_well)
        await asyncio.gather(*(self.send(topic, node) for topic in TOPICS for node in range(NODES)))
        assert len(self.acknowledged) == len(TOPICS) * NODES, "refused, with nothing in the way"
        await self.eventually(self.what_is_not_well)
        for topic, truth in self.truth.items():
            positions = [Position(truth.epoch, 0, ""), *(position for position, _ in truth.rows[-2 * HISTORY.size :])]
            asked = [(since, store) for since in positions for store in self.chance.sample(self.processes, 2)]
            read = [one.read(topic, since=since, limit=100) for since, one in asked[::2]]
            recovered = [other.recover(topic, since=since, limit=100) for since, other in asked[1::2]]
            for (since, _), recovery in zip(
                asked[::2] + asked[1::2], await asyncio.gather(*read, *recovered), strict=True
            ):
                truth.check(since, recovery, floor=truth.top.offset)
        self.quiet = len(self.steps)

    async def eventually(self, wrong: Callable[[], Awaitable[str]]) -> None:
        """Wait until nothing is wrong."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CALM
        while reason := await wrong():
            assert not self.failures, self.failures[0]
            assert loop.time() < deadline, f"not within {CALM} s: {reason}"
            await asyncio.sleep(0.03)

    async def what_is_not_well(self) -> str:
        """What is not (yet) as it should be."""
        await self.look()
        for (node, topic), listener in self.listeners.items():
            truth = self.truth[topic]
            if listener.position != truth.top:
                return f"process {node} hears {topic} up to {listener.position}, not {truth.top}"
            assert listener.base is not None
            heard = [(each.position, each.data) for each in listener.heard]
            assert heard == truth.rows[listener.base.offset :], f"process {node} heard something else in {topic}"
            if listener.stale:
                return f"process {node} believes that the store is away"
        return await self.what_is_wrong_with_presence()

    async def what_is_wrong_with_presence(self) -> str:
        """The same, of who is there."""
        for topic in TOPICS:
            found = await self.processes[self.chance.randrange(NODES)].members(topic, limit=1_000)
            present = set(found.entries)
            wanted = {entry for (name, _), (_, entry) in self.members.items() if name == topic}
            if present != wanted:
                return f"{present - wanted} are in {topic} and should not be, {wanted - present} are not"
            told = {who: count for (name, who), count in self.told.items() if name == topic and count}
            if told != dict.fromkeys((entry.who for entry in wanted), 1):
                return f"joins less leaves told in {topic} are {told}, where there are {wanted}"
            for (node, name), listener in self.listeners.items():
                if name == topic:
                    await self.load(node, topic)
                    if listener.sequence != found.seq:
                        return f"process {node} knows members of {topic} at {listener.sequence}, not {found.seq}"
                    assert set(listener.roster.values()) == present, f"process {node} has it otherwise in {topic}"
        living = {store.node for store in self.processes}
        if living != (known := {each.id for each in await self.processes[0].nodes()}):
            return f"the processes are {living}, not {known}"
        return ""

    async def who_is_not_known_to_be_gone(self) -> str:
        """Which ids are still to be cleared away."""
        known = await (await self.at(self.keys.nodes)).command("ZRANGE", self.keys.nodes, 0, -1)
        gone = {id.decode() for id in known} - {store.node for store in self.processes}
        return f"{gone} are not cleared away" if gone else ""

    def teardown(self) -> None:
        try:
            if not self.failed and self.processes:
                self.do(self._quiesce())
                self.do(self._stop())
        finally:
            self.runner.run(self._end())

    async def _stop(self) -> None:
        """Nothing is left of what was there."""
        for node, topic in list(self.listeners):
            await self._unsubscribe(topic, node)
        await self.eventually(self.who_is_not_known_to_be_gone)
        for store in self.processes:
            assert (store.gauges()["feeds"], store.gauges()["ring_bytes"]) == (0, 0)
            await store.__aexit__(None, None, None)
            assert not {name: count for name, count in store.gauges().items() if count}
        for topic in TOPICS:
            base = self.keys.topic(topic)
            records = [base + ending for ending in (b":pe", b":pz", b":pu", b":pn")]
            assert await (await self.at(base)).command("EXISTS", *records) == 0
        assert await (await self.at(self.keys.nodes)).command("EXISTS", self.keys.nodes) == 0

    async def _end(self) -> None:
        for store in self.processes:
            store.restore()
        running = [store for store in self.processes if store._started]
        ending = (store.__aexit__(None, None, None) for store in running)
        await asyncio.gather(*ending, *self.dead, *self.pending, return_exceptions=True)
        await self.stack.aclose()
