"""Three processes on real servers, in real time, with everything that can go wrong: the rules, and what must hold."""

import asyncio

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Position
from tests.store.redis.field import CALM, NODES, TOPICS, Field
from tests.store.redis.witness import HISTORY, REWIND, Truth
from tests.support.waiting import until

__all__ = ["StoreMachine", "topics"]

PENDING = 3  # publications that nobody waits for

topics = st.sampled_from(TOPICS)
nodes = st.integers(0, NODES - 1)
keys = st.sampled_from(("", "", "k1", "k2"))
whos = st.sampled_from(("u:x", "u:y"))
visitors = st.tuples(nodes, whos, st.integers(0, 1), st.sampled_from(("online", "away", "gone")))
OUTAGES = ("cut", "half_open", "mute")


class StoreMachine(Field):
    """The invariants are those of the promises: order, no silent gap, agreement, idempotency, presence, bounds."""

    @initialize()
    def start(self) -> None:
        """All processes run; everybody hears everything, and somebody is there."""
        self.do(self._start())

    async def _start(self) -> None:
        for node in range(NODES):
            self.processes.append(await self.start_one())
            for topic in TOPICS:
                await self.hear(topic, node)
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

    @rule(topic=topics, node=nodes, size=st.integers(2, 12))
    def burst(self, topic: str, node: int, size: int) -> None:
        self.do(self._burst(topic, node, size))

    async def _burst(self, topic: str, node: int, size: int) -> None:
        await asyncio.gather(*(self.send(topic, node) for _ in range(size)))

    @rule(topic=topics, node=nodes)
    def subscribe(self, topic: str, node: int) -> None:
        self.do(self.hear(topic, node))

    @rule(topic=topics, node=nodes)
    def unsubscribe(self, topic: str, node: int) -> None:
        self.do(self.hear_no_more(topic, node))

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
        self.do(self.all_is_well())

    def teardown(self) -> None:
        try:
            if not self.failed and self.processes:
                self.do(self.all_is_well())
                self.do(self.finish())
        finally:
            self.runner.run(self.end())
