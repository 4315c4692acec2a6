"""Processes that are killed, with the periods that everybody has and with short ones: what the others hear of it."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from starlette_realtime.messages import Entry, Fresh, Stale
from starlette_realtime.store.redis import RedisStore
from starlette_realtime.testing import Leaks
from starlette_realtime.testing.contract.harness import Heard
from tests.store.redis.load import WIDE, readers, running, told
from tests.store.redis.support import SHORT, Servers
from tests.support.proxy import Proxy
from tests.support.redis import BINARIES, Binary, cluster, server
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]
CHILD = Path(__file__).with_name("child.py")


@asynccontextmanager
async def child(
    servers: Servers, prefix: str, *, rooms: int, members: int, **options: float
) -> AsyncIterator[tuple[Process, list[list[str]]]]:
    """A process that enters members; what it says is appended to the list. It is killed in the end, at the latest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHILD),
        *(servers.url, prefix, str(rooms), str(members), json.dumps(options)),
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said: list[list[str]] = []

    async def listen() -> None:
        assert process.stdout is not None
        while (line := await process.stdout.readline()).endswith(b"\n"):
            said.append(line.decode().split())

    listening = asyncio.create_task(listen())
    try:
        await until(lambda: said or process.returncode is not None, within=30.0, what="a process that has begun")
        assert said, "it ended"
        yield process, said
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await listening
        assert process.stdin is not None
        process.stdin.close()


class Leaves:
    """What observers were told of those who left."""

    def __init__(self) -> None:
        self.count: Counter[tuple[str, str]] = Counter()
        self.joined = 0

    def __call__(self, topic: str, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        """Hear it."""
        self.joined += len(joined)
        self.count.update((topic, entry.who) for entry in left)


def users(rooms: int, members: int) -> set[tuple[str, str]]:
    """Who leaves, when a child of so many rooms and members ends."""
    return {(f"room{room}", f"u:{n - n % 4 // 3}") for room in range(rooms) for n in range(members)}


@pytest.mark.parametrize("binary", BINARIES[:1], ids=str)
async def test_with_the_real_defaults_faults_are_found_and_the_dead_leave_in_time(binary: Binary) -> None:
    rooms, members, loop = 100, 25, asyncio.get_running_loop()
    prefix, took = uuid4().hex, dict[str, float]()
    async with (
        Leaks(timeout=5.0),
        server(binary) as single,
        Proxy("127.0.0.1", single.port) as proxy,
        RedisStore(single.url, prefix=prefix) as one,
        RedisStore(single.url, prefix=prefix) as two,
        RedisStore(single.url, prefix=prefix, remap=lambda host: ("127.0.0.1", proxy.port)) as cut_off,
        readers("quiet", cut_off, two) as (reader, other),
        child(single, prefix, rooms=rooms, members=members) as (process, said),
    ):

        async def time(what: str, condition: Callable[[], object], *, within: float) -> None:
            began = loop.time()
            await until(condition, within=within, what=what)
            took[what] = loop.time() - began

        async def dead_leave() -> None:
            leaves = Leaves()
            one.on_presence(leaves)
            two.on_presence(leaves)
            assert (await two.members("room99", limit=0)).total == members
            process.kill()
            await time("leaves", lambda: len(leaves.count) >= len(users(rooms, members)), within=20.0)
            assert leaves.count == Counter(users(rooms, members))
            assert leaves.joined == 0
            assert [(await one.members(f"room{room}", limit=0)).total for room in range(rooms)] == [0] * rooms
            assert {node.id for node in await one.nodes()} <= {one.node, two.node, cut_off.node}
            assert said[0][1] not in {node.id for node in await one.nodes()}

        async def half_open_is_found() -> None:
            proxy.half_open()
            await time("stale", lambda: told(reader, Stale), within=10.0)
            await one.publish("quiet", b"missed", history=WIDE)
            proxy.restore()
            await time("fresh", lambda: told(reader, Fresh), within=5.0)
            await until(lambda: reader.data == [b"missed"])
            assert reader.gaps == []
            assert told(other, Stale) == 0

        async with asyncio.TaskGroup() as group:
            group.create_task(dead_leave())
            group.create_task(half_open_is_found())
    # A link that is idle is asked after 5 s, has 2 s to answer, and its topics are stale 2 s later.
    assert took["stale"] >= 2.0


async def test_what_a_killed_process_had_acknowledged_is_there_and_its_members_leave_once() -> None:
    rooms, members = 20, 10
    async with cluster() as servers, running(servers, 2) as (one, two), readers("room0", one, two) as heard:
        leaves = Leaves()
        one.on_presence(leaves)
        two.on_presence(leaves)
        short = {name: SHORT[name] for name in ("timeout", "lease", "beat", "sweep")}
        async with child(servers, one._keys.prefix, rooms=rooms, members=members, **short) as (process, said):
            await until(lambda: len(said) > 50)
            process.kill()
            await process.wait()
        published = [words for words in said if words[0] == "published"]
        await until(lambda: all(len(reader.data) >= len(published) for reader in heard))
        for reader in heard:
            assert len(reader.data) - len(published) in (0, 1), "the last answer may not have been told any more"
            assert reader.data == [b"%d" % number for number in range(len(reader.data))]
            assert reader.gaps == []
        await until(lambda: len(leaves.count) >= len(users(rooms, members)), within=SHORT["lease"] + 5.0)
        await until(lambda: all(left_of(reader) == members for reader in heard))
        assert leaves.count == Counter(users(rooms, members))
        assert leaves.joined == 0
        assert {node.id for node in await one.nodes()} == {one.node, two.node}


def left_of(reader: Heard) -> int:
    """How many members a reader was told to be gone."""
    return sum(len(diff.left) for diff in reader.diffs)
