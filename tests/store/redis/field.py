"""Field: three processes on real servers, what was done there, and what must hold in the end."""

import asyncio
import inspect
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from hypothesis.stateful import RuleBasedStateMachine

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, Position
from starlette_realtime.store.redis.keys import Keys
from tests.store.redis.support import FaultyStore, Servers, stores
from tests.store.redis.witness import HISTORY, LOOK, Listener, Seen, Truth
from tests.support.redis import Server

__all__ = ["NODES", "PERIODS", "TOPICS", "Field"]

T = TypeVar("T")

TOPICS = ("a", "b")
NODES = 3
PERIODS: dict[str, Any] = {
    "timeout": 0.8,
    "lease": 1.2,
    "beat": 0.3,
    "sweep": 0.2,
    "check_interval": 0.5,
    "stale_after": 0.5,
    "dedupe": 60.0,
}
CALM = 15.0  # seconds within which all must be well, once nothing goes wrong any more


class Field(RuleBasedStateMachine):
    """
    Everything but the rules.

    All machines of a module share `servers` and `runner`; each has keys of its own.
    """

    servers: ClassVar[Servers]
    runner: ClassVar[asyncio.Runner]
    periods: ClassVar[Mapping[str, Any]] = PERIODS

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
        self.told: Counter[tuple[str, str]] = Counter()  # (topic, who): joins less leaves
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
        made = stores(self.servers, 1, prefix=self.prefix, **self.periods)
        (store,) = await self.stack.enter_async_context(made)
        await store.__aenter__()
        store.on_presence(self.tell)
        return store

    def tell(self, topic: str, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        """Count who joined, and who left."""
        self.told.update((topic, entry.who) for entry in joined)
        self.told.subtract((topic, entry.who) for entry in left)

    # --- what processes do ---

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

    async def settle(self) -> None:
        """Wait until everything that was published is refused, or made and known."""
        if self.pending:
            await asyncio.wait(tuple(self.pending))
        await self.look()

    async def hear(self, topic: str, node: int) -> None:
        """Subscribe."""
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

    async def hear_no_more(self, topic: str, node: int) -> None:
        """Unsubscribe."""
        if (listener := self.listeners.pop((node, topic), None)) is not None:
            await self.processes[node].unsubscribe(topic, listener)

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

    # --- what must hold ---

    @staticmethod
    def is_calm(store: FaultyStore) -> bool:
        """Whether it knows what came of everything that it asked for."""
        process = store._process
        rooms = process.presence._rooms.values()
        return not (process._reaper._unsettled or any(room.users or room.unsettled for room in rooms))

    async def all_is_well(self) -> None:
        """Once nothing more goes wrong, all are where the store is, have heard what led there, and see who is there."""
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
        while reason := await self.reason(wrong):
            assert not self.failures, self.failures[0]
            assert loop.time() < deadline, f"not within {CALM} s: {reason}"
            await asyncio.sleep(0.03)

    @staticmethod
    async def reason(wrong: Callable[[], Awaitable[str]]) -> str:
        """What is wrong; a store that is away is."""
        try:
            return await wrong()
        except StoreError as error:
            return str(error)

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

    async def finish(self) -> None:
        """Nothing is left of what was there."""
        for node, topic in list(self.listeners):
            await self.hear_no_more(topic, node)
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
        await asyncio.gather(*self.dead)

    async def end(self) -> None:
        """End what runs, whatever happened."""
        for store in self.processes:
            store.restore()
        running = [store for store in self.processes if store._started]
        ending = (store.__aexit__(None, None, None) for store in running)
        await asyncio.gather(*ending, *self.dead, *self.pending, return_exceptions=True)
        await self.stack.aclose()
