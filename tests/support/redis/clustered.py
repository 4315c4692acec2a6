"""A cluster of servers, whose slots move and whose masters fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations
from typing import Any

from tests.support.ports import HOST, reserved_port
from tests.support.redis.binaries import Binary
from tests.support.redis.single import Server, eventually, server

SLOTS = 16384
BATCH = 100  # keys moved at once
FAILOVER = 2.0  # seconds until a failover is asked for again


class Cluster:
    """The servers of one cluster. `cluster()` makes one."""

    def __init__(self, nodes: Sequence[Server], *, masters: int, password: str | None) -> None:
        self.nodes = tuple(nodes)  # the first masters, then the replicas of the first shard, of the second, …
        self.shards = masters
        self._replicas = len(nodes) // masters - 1
        self._password = password

    @property
    def url(self) -> str:
        """The address of all nodes: "redis+cluster://127.0.0.1:port,…"."""
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}"

    def shard(self, index: int) -> tuple[Server, ...]:
        """The servers of one shard: the first master, then its replicas. Which one is the master now may differ."""
        first = self.shards + index * self._replicas
        return (self.nodes[index], *self.nodes[first : first + self._replicas])

    async def master(self, index: int) -> Server:
        """The server that is the master of one shard now. Raises `LookupError` when none is."""
        for node in self.shard(index):
            if node.running and (await node.info("replication"))["role"] == "master":
                return node
        raise LookupError(f"shard {index} has no master")

    async def owner(self, slot: int) -> Server:
        """The server that serves `slot` now, as the nodes that live agree. Raises `LookupError` when they don't."""
        found = set()
        for node in self._alive():
            for first, last, master, *_ in await node.command("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    found.add(int(master[1]))
        if len(found) != 1:
            raise LookupError(f"slot {slot} is served by {len(found)} nodes")
        return next(node for node in self.nodes if node.port in found)

    async def move_slot(
        self, slot: int, target: Server, *, halfway: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """
        Move `slot` and its keys to `target`, while the cluster serves it.

        `halfway` is awaited when half of the keys (rounded down) have moved: until it returns, the old owner answers
        with ASK for those that it has no more, and for new ones.
        """
        source = await self.owner(slot)
        if source is target:
            return
        source_id, target_id = [(await node.command("CLUSTER", "MYID")).decode() for node in (source, target)]
        await target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        if halfway is not None:
            count = await source.command("CLUSTER", "COUNTKEYSINSLOT", slot)
            await self._migrate(await source.command("CLUSTER", "GETKEYSINSLOT", slot, count // 2), source, target)
            await halfway()
        while keys := await source.command("CLUSTER", "GETKEYSINSLOT", slot, BATCH):
            await self._migrate(keys, source, target)
        # The new owner first: were it to fail in between, the old one would still send everybody there.
        others = [node for node in self._alive() if node not in (source, target)]
        for node in (target, source, *others):
            if (await node.info("replication"))["role"] == "master":
                await node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

        async def agreed() -> bool:
            try:
                return await self.owner(slot) is target
            except LookupError:
                return False

        await eventually(agreed, what=f"a cluster that agrees on the new owner of slot {slot}")

    async def failover(self, index: int) -> Server:
        """Make a replica the master of its shard, in agreement with the old one (CLUSTER FAILOVER), and return it."""
        old = await self.master(index)
        replica = next(node for node in self._alive(index) if node is not old)
        loop = asyncio.get_running_loop()
        again = loop.time()

        async def promoted() -> bool:
            nonlocal again
            if loop.time() >= again:  # masters vote once in a while for the same shard, and a refusal is not told
                again = loop.time() + FAILOVER
                await replica.command("CLUSTER", "FAILOVER")
            return (await replica.info("replication"))["role"] == "master"

        await eventually(promoted, what=f"a failover of shard {index}")
        await self.ok()
        return replica

    async def kill_master(self, index: int) -> Server:
        """Kill the master of a shard, wait until a replica took over, and return that. `start()` brings it back."""
        old = await self.master(index)
        if self._alive(index) == [old]:
            raise RuntimeError(f"shard {index} has no replica that could take over")
        await old.kill()

        async def replaced() -> bool:
            try:
                await self.master(index)
            except LookupError:
                return False
            return True

        await eventually(replaced, what=f"a replica that takes over shard {index}")
        await self.ok()
        return await self.master(index)

    async def ok(self) -> None:
        """Wait until all nodes that live find that the cluster serves every slot, and agree on who does."""

        async def settled() -> bool:
            views = set()
            for node in self._alive():
                state = (await node.command("CLUSTER", "INFO")).decode()
                if "cluster_state:ok" not in state:
                    return False
                views.add(_owners(await node.command("CLUSTER", "SLOTS")))
            return len(views) == 1

        await eventually(settled, what="a cluster that serves every slot")

    async def linked(self) -> None:
        """Wait until every replica that lives follows its master."""

        async def follow() -> bool:
            for node in self._alive():
                state = await node.info("replication")
                if state["role"] == "slave":
                    if state["master_link_status"] != "up":
                        return False
                elif "state=online" not in state.get("slave0", "state=online"):
                    return False  # the replica says "up" before its master begins to send it what is written
            return True

        await eventually(follow, what="the replicas' links to their masters")

    def _alive(self, index: int | None = None) -> list[Server]:
        return [node for node in (self.nodes if index is None else self.shard(index)) if node.running]

    async def _migrate(self, keys: Sequence[bytes], source: Server, target: Server) -> None:
        login = () if self._password is None else ("AUTH", self._password)
        for start in range(0, len(keys), BATCH):
            some = keys[start : start + BATCH]
            await source.command("MIGRATE", HOST, target.port, "", 0, 5000, *login, "KEYS", *some)


@asynccontextmanager
async def cluster(
    binary: Binary | None = None,
    *,
    masters: int = 3,
    replicas: int = 0,
    args: Sequence[str] = (),
    password: str | None = None,
    node_timeout: float = 1.0,
) -> AsyncIterator[Cluster]:
    """
    Run a cluster of `masters`, each with as many `replicas`, for as long as the block lasts.

    Slots are spread evenly, in order. A node is down after `node_timeout` seconds of silence, and then, as in a
    cluster that nobody configured, no slot is served until a replica took over. Raises `StartupFailed`.
    """
    async with AsyncExitStack() as stack:
        nodes = []
        buses = []
        for _ in range(masters * (1 + replicas)):
            buses.append(
                stack.enter_context(reserved_port())
            )  # by itself it would be ten thousand higher, where others' ports are
            settings = ["--cluster-enabled", "yes", "--cluster-port", str(buses[-1])]
            settings += ["--cluster-node-timeout", str(round(node_timeout * 1000))]
            settings += ["--cluster-replica-validity-factor", "0", *args]
            nodes.append(await stack.enter_async_context(server(binary, args=settings, password=password)))
        bounds = [round(number * SLOTS / masters) for number in range(masters + 1)]
        for number in range(masters):
            await nodes[number].command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            await nodes[number].command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        # Everybody meets everybody, as hearing of each other would take seconds.
        for one, other in combinations(range(len(nodes)), 2):
            await nodes[one].command("CLUSTER", "MEET", HOST, nodes[other].port, buses[other])
        group = Cluster(nodes, masters=masters, password=password)
        await eventually(lambda: _acquainted(nodes), what="a cluster whose nodes know each other")
        for index in range(masters):
            first, *others = group.shard(index)
            identity = await first.command("CLUSTER", "MYID")
            await asyncio.gather(*(other.command("CLUSTER", "REPLICATE", identity) for other in others))
        await group.ok()
        await group.linked()
        yield group


async def _acquainted(nodes: Sequence[Server]) -> bool:
    for node in nodes:
        known = (await node.command("CLUSTER", "NODES")).decode().splitlines()
        if len(known) != len(nodes) or any("handshake" in line or "noaddr" in line for line in known):
            return False
    return True


def _owners(slots: Any) -> frozenset[tuple[int, int, int]]:
    return frozenset((first, last, int(master[1])) for first, last, master, *_ in slots)
