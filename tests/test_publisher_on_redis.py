"""Publishers and a real server: from coroutines, threads, forked processes, and the command line."""

import asyncio
import io
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from anyio import to_thread

from starlette_realtime import (
    ConfigurationError,
    History,
    MemoryStore,
    Publisher,
    Realtime,
    RedisStore,
    Room,
    SyncPublisher,
    Unavailable,
    UnknownRoom,
)
from starlette_realtime.command import MOST, main
from starlette_realtime.publisher.blocking import _parents
from tests.rooms.support import Client, by_name, connection_options, unlimited
from tests.support.proxy import Proxy
from tests.support.redis import Server, server
from tests.support.redis.single import eventually
from tests.support.waiting import until

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
CHAT = Room("chat:{room_id:int}", history=History(size=3, ttl=60.0))
LIVE = Room("live", history=None)
ROOMS = [CHAT, LIVE]
PERIODS: dict[str, Any] = {"lease": 2.0, "beat": 0.4, "sweep": 0.3}  # of all processes, as they judge each other


class Site:
    """An application of several processes, and their clients."""

    def __init__(self, redis: Server) -> None:
        self.redis = redis
        self.stack = AsyncExitStack()

    async def process(self, url: str | None = None) -> Realtime:
        """One more process, with rooms equal to `ROOMS`."""
        store = RedisStore(url or self.redis.url, **PERIODS)
        options: dict[str, Any] = {"limiter": unlimited(), "connection": connection_options(), "secret": "x" * 32}
        realtime = Realtime(authenticate=by_name, store=store, **options)
        for room in ROOMS:
            realtime.room(room.template, history=room.history)
        return await self.stack.enter_async_context(realtime)

    async def client(self, realtime: Realtime, user: str, *rooms: str) -> Client:
        """A client of that process, in these rooms."""
        client = await self.stack.enter_async_context(Client(realtime))
        await client.auth(user)
        for room in rooms:
            await client.join(room)
        return client

    def publisher(self, **options: Any) -> Publisher:
        """A publisher in a process of its own."""
        return Publisher(RedisStore(self.redis.url, **PERIODS), ROOMS, **options)


@pytest.fixture(scope="module")
async def redis(anyio_backend: str) -> AsyncIterator[Server]:
    """One server for all tests here."""
    async with server() as running:
        yield running


@pytest.fixture
async def site(redis: Server) -> AsyncIterator[Site]:
    """An application without processes yet."""
    await redis.command("FLUSHALL")
    site = Site(redis)
    async with site.stack:
        yield site


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` returns, in a thread, while this event loop goes on."""
    return await to_thread.run_sync(work)


def threads() -> list[str]:
    """The publishers' threads."""
    return [thread.name for thread in threading.enumerate() if thread.name == "starlette_realtime.publisher"]


# --- in coroutines --------------------------------------------------------------------------------------------------


async def test_what_it_does_reaches_clients_of_all_processes(site: Site) -> None:
    one, two = await site.process(), await site.process()
    ann, bob = await site.client(one, "ann", "chat:1", "live"), await site.client(two, "bob", "chat:1")
    async with site.publisher() as publisher:
        first = await publisher.publish("chat:1", "message", "hello", key="k")
        assert await publisher.publish("chat:1", "message", "hello", key="k") == first
        for client in (ann, bob):
            assert (await client.expect("event"))["position"]["id"] == first.id
        await publisher.publish_volatile("live", "tick")
        assert (await ann.expect("event"))["event"] == "tick"
        await publisher.send_to_user("bob", "note")
        assert (await bob.expect("event"))["event"] == "note"
        await publisher.kick("chat:1", user="bob")
        assert (await bob.expect("left"))["room"] == "chat:1"
        await publisher.disconnect_user("bob")
        assert (await bob.closed()).code == 4403
        await publisher.revoke_user("ann")
        assert (await ann.closed()).code == 4450
    async with site.publisher() as next_run:
        assert await next_run.publish("chat:1", "message", "hello", key="k") == first
        for number in range(3):
            await next_run.publish("chat:1", "message", number)
        events = (await next_run.at("chat:1").history()).events
        assert [bytes(event.data) for event in events] == [b"0", b"1", b"2"]


async def test_all_processes_are_asked_and_those_that_are_cut_off_are_named(site: Site) -> None:
    proxy = await site.stack.enter_async_context(Proxy("127.0.0.1", site.redis.port))
    one, two, three = (
        await site.process(),
        await site.process(),
        await site.process(f"redis://127.0.0.1:{proxy.port}/0"),
    )
    clients = [await site.client(process, "ann", "chat:1") for process in (one, two, three)]
    async with site.publisher() as publisher:
        found = await publisher.connections_of("ann")
        assert {connection.connection for connection in found.connections} == {client.id for client in clients}
        assert (found.total, found.missing) == (3, ())
        assert (await two.at("chat:1").connections()).total == 3
        nodes = {process.store.node for process in (one, two, three)}
        assert (await one.count()).processes.keys() == nodes == {node.id for node in await publisher.nodes()}
        assert len(await one.nodes()) == 4
        cut = three.store.node
        proxy.half_open()
        counts = await one.count(timeout=0.2)
        assert (counts.connections, counts.missing) == (2, (cut,))

        async def is_over() -> bool:
            return (await publisher.count()).missing == ()

        await eventually(is_over, what="its lease to be over")
        proxy.restore()

        async def is_back() -> bool:
            counts = await publisher.count()
            return counts.connections == 3 and counts.processes.keys() == {node.id for node in await one.nodes()} - own

        own = {publisher.store.node}
        await eventually(is_back, what="it to be back, by another name")
        assert three.store.node != cut


async def test_while_the_server_is_away_it_is_unavailable_and_repeats_with_its_key(site: Site) -> None:
    ann = await site.client(await site.process(), "ann", "chat:1")
    async with site.publisher() as publisher:
        await publisher.publish("chat:1", "message", 1, key="first")
        site.redis.pause()
        try:
            with pytest.raises(Unavailable) as refused:
                await publisher.publish("chat:1", "message", 2, key="second")
            assert refused.value.__cause__ is not None
        finally:
            site.redis.resume()
        again = await publisher.publish("chat:1", "message", 2, key="second")
        assert again.offset == 2
        await publisher.publish("chat:1", "message", 3)
        assert [(await ann.expect("event"))["data"] for _ in range(3)] == [1, 2, 3]


async def test_without_a_server_it_is_not_entered() -> None:
    with pytest.raises(Unavailable):
        async with Publisher(RedisStore("redis://127.0.0.1:1", timeout=0.2)):
            pass


# --- in threads -----------------------------------------------------------------------------------------------------


async def test_threads_share_one_event_loop(site: Site) -> None:
    ann = await site.client(await site.process(), "ann", "chat:1", "live")
    publisher = SyncPublisher(site.publisher)
    assert threads() == []
    positions = await asyncio.gather(
        *(in_thread(lambda number=number: publisher.publish("chat:1", "message", number)) for number in range(20))  # type: ignore[misc]
    )
    assert sorted(position.offset for position in positions) == list(range(1, 21))
    assert sorted([(await ann.expect("event"))["data"] for _ in range(20)]) == list(range(20))
    assert len(threads()) == 1
    await in_thread(publisher.close)
    assert threads() == []
    await in_thread(publisher.close)
    assert (await in_thread(lambda: publisher.publish("chat:1", "message", "again"))).offset == 21
    await in_thread(publisher.close)


async def test_a_with_block_has_what_a_publisher_has(site: Site) -> None:
    one = await site.process()
    ann, bob = await site.client(one, "ann", "chat:1", "live"), await site.client(one, "bob", "chat:1")

    def work() -> None:
        with site.publisher().sync(timeout=5.0) as publisher:
            publisher.publish_volatile("live", "tick")
            assert publisher.send_to_user("ann", "note", key="k") == publisher.send_to_user("ann", "note", key="k")
            publisher.kick("chat:1", user="ann", code="gone")
            assert publisher.connections_of("ann").total == 1
            assert publisher.count().connections == 2
            assert [node.id for node in publisher.nodes()] == [one.store.node]
            publisher.disconnect_user("ann")
            publisher.revoke_token("t")
            publisher.revoke_user("bob", issued_before=0.0)
            with pytest.raises(UnknownRoom):
                publisher.publish("nowhere", "message")
            with pytest.raises(ValueError, match="a key"):
                publisher.publish("chat:1", "message", key="")

    await in_thread(work)
    assert (await ann.closed()).code == 4403
    assert sorted(frame["event"] for frame in ann.take("event")) == ["note", "tick"]
    assert bob.peer.closed is None
    assert threads() == []


async def test_in_an_event_loop_it_would_block() -> None:
    publisher = SyncPublisher(lambda: Publisher(MemoryStore()))
    with pytest.raises(ConfigurationError, match="would block the event loop"):
        publisher.publish("chat:1", "message")
    with pytest.raises(ConfigurationError, match="would block the event loop"), publisher:
        pass
    assert threads() == []


def test_what_cannot_start_says_why_and_leaves_no_thread() -> None:
    with pytest.raises(ConfigurationError, match="belongs to its application's event loop"):
        Publisher(MemoryStore()).sync().publish("chat:1", "message")
    with pytest.raises(ZeroDivisionError):
        SyncPublisher(lambda: [][1 // 0]).publish("chat:1", "message")
    with pytest.raises(Unavailable):
        Publisher(RedisStore("redis://127.0.0.1:1", timeout=0.2)).sync().publish("chat:1", "message")
    with pytest.raises(ConfigurationError, match="takes a function"):
        SyncPublisher(Publisher(MemoryStore()))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="timeout is in seconds"):
        SyncPublisher(lambda: Publisher(MemoryStore()), timeout=0.0)
    assert threads() == []


async def test_a_call_takes_no_longer_than_its_time(site: Site) -> None:
    publisher = SyncPublisher(lambda: Publisher(RedisStore(site.redis.url, timeout=30.0), ROOMS), timeout=1.0)
    await in_thread(publisher.__enter__)
    site.redis.pause()
    try:
        with pytest.raises(Unavailable, match="no answer within 1 s"):
            await in_thread(lambda: publisher.publish("chat:1", "message", 1, key="k"))
        slow = SyncPublisher(lambda: Publisher(RedisStore(site.redis.url, timeout=30.0), ROOMS), timeout=0.3)
        with pytest.raises(Unavailable, match="did not start within"):
            await in_thread(lambda: slow.publish("chat:1", "message"))
    finally:
        site.redis.resume()
    assert (await in_thread(lambda: publisher.publish("chat:1", "message", 1, key="k"))).offset == 1
    await in_thread(publisher.close)
    await until(lambda: not threads(), what="the one that gave up to end")


async def test_closing_ends_what_other_threads_wait_for(site: Site) -> None:
    publisher = SyncPublisher(lambda: Publisher(RedisStore(site.redis.url, timeout=30.0), ROOMS))
    await in_thread(publisher.__enter__)
    site.redis.pause()
    try:
        waiting = asyncio.ensure_future(in_thread(lambda: publisher.publish("chat:1", "message")))
        running = publisher._running
        assert running is not None
        _, portal = running.ready.result()
        await until(lambda: len(portal._task_group._tasks) > 0, what="the call")  # type: ignore[attr-defined]
        closing = asyncio.ensure_future(in_thread(publisher.close))
        with pytest.raises(Unavailable, match="was closed meanwhile"):
            await waiting
    finally:
        site.redis.resume()
    await closing
    assert threads() == []


async def test_a_loop_that_ended_by_itself_is_started_again(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Publisher):
        async def __aexit__(self, *exc_info: object) -> None:
            await super().__aexit__(None, None, None)
            raise RuntimeError("broken")

    publisher = SyncPublisher(lambda: Broken(RedisStore(site.redis.url), ROOMS))
    for offset in (1, 2):
        assert (await in_thread(lambda: publisher.publish("chat:1", "message"))).offset == offset
        running = publisher._running
        assert running is not None
        _, portal = running.ready.result()
        await in_thread(lambda portal=portal: portal.call(portal.stop))  # type: ignore[misc]
        await in_thread(running.thread.join)
    assert caplog.text.count("the publisher's event loop ended") == 2
    await in_thread(publisher.close)
    assert threads() == []


async def test_what_is_a_parents_is_neither_used_nor_closed(site: Site) -> None:
    publisher = SyncPublisher(site.publisher)
    await in_thread(lambda: publisher.publish("chat:1", "message"))
    parents = publisher._running
    assert parents is not None
    publisher._forked()  # as if this were the child
    assert (await in_thread(lambda: publisher.publish("chat:1", "message"))).offset == 2
    await in_thread(publisher._exit)
    assert len(threads()) == 1
    assert parents.thread.is_alive()
    assert await in_thread(lambda: parents.stop(5.0))
    _parents.remove(parents)


async def test_nobody_waits_long_for_another_thread_to_start_it() -> None:
    publisher = SyncPublisher(lambda: Publisher(MemoryStore()), timeout=0.1)
    with publisher._lock, pytest.raises(Unavailable, match="another thread has not started"):
        await in_thread(lambda: publisher.publish("chat:1", "message"))


# --- in other processes ---------------------------------------------------------------------------------------------

SCRIPT = """
import gc, logging, os, sys
from starlette_realtime import ConfigurationError, Publisher, RedisStore, Room, SyncPublisher

ROOMS = [Room("chat:{{room_id:int}}")]
made = SyncPublisher(lambda: Publisher(RedisStore({url!r}), ROOMS))
own = Publisher(RedisStore({url!r}), ROOMS).sync()
# How long something takes, which asyncio's debug mode tells, is the machine's business.
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing"))
{body}
"""


def script(site: Site, body: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which every warning is an error, as far as anything can be at its end."""
    source = SCRIPT.format(url=site.redis.url, body=textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", source],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60.0,
        stdin=subprocess.DEVNULL,
    )


async def test_a_process_that_forgets_to_close_ends_all_the_same(site: Site) -> None:
    one = await site.process()
    done = await in_thread(lambda: script(site, 'print(made.publish("chat:1", "message").offset)'))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert len(await one.nodes()) == 1  # it has given back its lease


async def test_a_forked_process_has_a_publisher_of_its_own(site: Site) -> None:
    body = """
        print(made.publish("chat:1", "message").offset, own.publish("chat:1", "message").offset)
        sys.stdout.flush()
        for _ in range(2):
            child = os.fork()
            if not child:
                print(made.publish("chat:1", "message").offset)
                try:
                    own.publish("chat:1", "message")
                except ConfigurationError as error:
                    print(error)
                gc.collect()
                sys.exit()
            os.waitpid(child, 0)
        print(made.publish("chat:1", "message").offset, own.publish("chat:1", "message").offset)
        made.close()
        own.close()
    """
    done = await in_thread(lambda: script(site, body))
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert (lines[0], lines[1], lines[3], lines[5]) == ("1 2", "3", "4", "5 6")
    assert "entered before the process forked" in lines[2]
    assert "Traceback" not in done.stderr


# --- on the command line --------------------------------------------------------------------------------------------

APPLICATION = """
from starlette_realtime import History, RedisStore, Room
from starlette_realtime import MemoryStore, Realtime, RoomsOptions, SignedTokens

ROOMS = [Room("chat:{{room_id:int}}", history=History(size=3)), Room("live", history=None)]
store = RedisStore({url!r})
realtime = Realtime(
    authenticate=SignedTokens("x" * 32),
    store=store,
    rooms=[Room("lobby")],
    options=RoomsOptions(user_history=History(size=1)),
)
"""


@pytest.fixture
def shell(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run a command in a thread: its status, and what it printed; the environment names the store."""
    (tmp_path / "shop.py").write_text(APPLICATION.format(url=site.redis.url))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("REALTIME_STORE", site.redis.url)

    async def run(*words: str) -> tuple[int, str, str]:
        sys.modules.pop("shop", None)
        status = await in_thread(lambda: main(words))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


async def test_the_command_publishes(site: Site, shell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await site.client(await site.process(), "ann", "chat:1", "live")
    status, out, err = await shell("publish", "--rooms", "shop:ROOMS", "--key", "k", "chat:1", "message", '{"n": 1}')
    assert (status, json.loads(out)["offset"], err) == (0, 1, "")
    event = await ann.expect("event")
    assert (event["event"], event["data"]) == ("message", {"n": 1})
    assert await shell("publish", "--rooms", "shop:ROOMS", "--key", "k", "chat:1", "message") == (0, out, "")
    again = await shell(
        "publish", "--rooms", "shop:ROOMS", "--key", "k", "--producer", "another", "chat:1", "message", "2"
    )
    assert json.loads(again[1])["offset"] == 2
    assert await shell("publish", "--rooms", "shop:ROOMS", "--volatile", "live", "tick", "-5") == (0, "", "")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'"from a pipe"\n')))
    assert (await shell("publish", "--user", "ann", "note", "-"))[0] == 0
    assert [(await ann.expect("event"))["data"] for _ in range(3)] == [2, -5, "from a pipe"]


async def test_the_command_disconnects_kicks_revokes_and_lists(site: Site, shell: Callable[..., Any]) -> None:
    one = await site.process()
    ann, bob = await site.client(one, "ann", "chat:1"), await site.client(one, "bob")
    assert await shell("kick", "--rooms", "shop:ROOMS", "chat:1", "--user", "ann", "--code", "gone") == (0, "", "")
    assert (await ann.expect("left"))["code"] == "gone"
    status, out, _ = await shell("nodes")
    assert (status, out.split()[0]) == (0, one.store.node)
    assert await shell("disconnect", "ann") == (0, "", "")
    assert (await ann.closed()).code == 4403
    assert await shell("revoke", "--token", "t") == (0, "", "")
    assert await shell("revoke", "--user", "bob", "--issued-before", "5") == (0, "", "")
    assert bob.peer.closed is None
    assert await shell("revoke", "--user", "bob") == (0, "", "")
    assert (await bob.closed()).code == 4450


async def test_a_realtime_brings_its_rooms_options_and_store(
    site: Site, shell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REALTIME_STORE")
    for number in range(2):
        await shell("publish", "--rooms", "shop:realtime", "--user", "ann", "note", str(number))
    assert (await shell("publish", "--rooms", "shop:realtime", "lobby", "message"))[0] == 0
    assert (await shell("publish", "--store", "shop:store", "--rooms", "shop:ROOMS", "chat:1", "message"))[0] == 0
    async with RedisStore(site.redis.url) as store:
        assert len((await store.page("user:ann", before=None, limit=10)).publications) == 1
        assert len((await store.page("lobby", before=None, limit=10)).publications) == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["chat:one", "message"], 1, "unknown_room: no declared room has the name 'chat:one'; declared are chat:"),
        (["user:ann", "message"], 1, "forbidden: a user's own room is reached with send_to_user"),
        (["chat:1", "message", '"' + "x" * 300_000 + '"'], 1, "too_large: an event may have 262144 bytes"),
        (["chat:1", "message", "hello"], 2, "the data is no JSON"),
        (["chat:1", "rt:kick"], 2, "is reserved"),
        (["chat:1"], 2, "publish takes ROOM EVENT [JSON]"),
        (["chat:1", "message", "1", "2"], 2, "publish takes ROOM EVENT [JSON]"),
        (["live", "message"], 2, "keeps no history"),
        (["--key", "", "chat:1", "message"], 2, "a key has 1 to 128 characters"),
        (["--key", "k", "--volatile", "live", "message"], 2, "--volatile goes with neither"),
        (["--user", "", "message"], 2, "cannot be a user"),
        (["--producer", "", "chat:1", "message"], 2, "producer is a name"),
    ],
)
async def test_what_is_refused_or_wrong_has_its_exit_status(
    shell: Callable[..., Any], words: list[str], status: int, said: str
) -> None:
    found, out, err = await shell("publish", "--rooms", "shop:ROOMS", *words)
    assert (found, out) == (status, "")
    assert said in err
    assert err.count("\n") == 1


async def test_standard_input_is_bounded(shell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b" " * (MOST + 1))))
    status, _, err = await shell("publish", "--user", "ann", "note", "-")
    assert (status, "too_large" in err) == (1, True)


async def test_a_token_is_revoked_for_good(shell: Callable[..., Any]) -> None:
    status, _, err = await shell("revoke", "--token", "t", "--issued-before", "5")
    assert (status, "--issued-before goes with --user" in err) == (2, True)


async def test_without_a_server_the_command_may_be_repeated(shell: Callable[..., Any]) -> None:
    status, out, err = await shell("publish", "--store", "redis://127.0.0.1:1", "--user", "ann", "note")
    assert (status, out) == (1, "")
    assert err.startswith("python -m starlette_realtime: unavailable: ")


async def test_it_is_a_program(site: Site, tmp_path: Path) -> None:
    ann = await site.client(await site.process(), "ann")
    command = [
        sys.executable,
        "-m",
        "starlette_realtime",
        "publish",
        "--store",
        site.redis.url,
        "--user",
        "ann",
        "note",
    ]
    done = await in_thread(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60.0))
    assert (done.returncode, done.stderr) == (0, "")
    assert (await ann.expect("event"))["event"] == "note"
