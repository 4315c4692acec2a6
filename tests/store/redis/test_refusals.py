"""Servers that can't be used, and how that is said; the rights that a store needs; TLS and sockets."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable
from importlib.resources import files
from pathlib import Path

import pytest
from limits import parse
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.messages import Entry
from starlette_realtime.store.redis import RedisStore
from tests.store.redis.load import WIDE, readers
from tests.store.redis.support import SHORT
from tests.support.certificate import certificate
from tests.support.ports import reserved_port
from tests.support.proxy import Proxy
from tests.support.redis import Cluster, Sentinels, Server, cluster, sentinels, server
from tests.support.waiting import until

SECRET = "s3cr:t/@ word"
QUOTED = "s3cr%3At%2F%40%20word"

RIGHTS = (
    "~rt:* resetchannels &rt:* "
    "+ping +info +client|setinfo +eval +evalsha +time +publish +subscribe +unsubscribe "
    "+get +set +del +exists +pexpire +pttl +incrby +decrby "
    "+hget +hset +hmget +hgetall +hexists +hdel +hlen +hincrby +hscan "
    "+sadd +srem +smembers +scard +srandmember "
    "+zadd +zrem +zrange +zrangebyscore +zscore "
    "+xadd +xlen +xrange +xrevrange +xtrim +xdel "
    "+expire +rename +lindex +lpush +ltrim"  # for limits
)
"""What a user of a single server must be permitted."""

IN_A_CLUSTER = "+cluster|slots +spublish +ssubscribe +sunsubscribe"
"""What must be permitted there as well."""

BEHIND_SENTINELS = "+role"


@pytest.fixture(scope="module")
async def guarded(anyio_backend: str) -> AsyncIterator[Server]:
    async with server(password=SECRET) as running:
        yield running


@pytest.fixture(scope="module")
async def clustered(anyio_backend: str) -> AsyncIterator[Cluster]:
    async with cluster() as running:
        yield running


@pytest.fixture(scope="module")
async def watched(anyio_backend: str) -> AsyncIterator[Sentinels]:
    async with sentinels(password=SECRET) as running:
        yield running


async def refusal(url: str) -> str:
    """What somebody reads who tries this URL."""
    store = RedisStore(url, **SHORT)
    assert "s3cr" not in repr(store)
    assert "s3cr" not in repr(store.address)
    with pytest.raises(ConfigurationError) as refused:
        async with store:
            pass
    error: BaseException | None = refused.value
    while error is not None:
        assert "s3cr" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    return str(refused.value)


async def test_missing_and_wrong_credentials_are_said_to_be_so(
    guarded: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logins = ("", ":wrongs3cret@", "nobody:s3cret@")
    for said in await asyncio.gather(*(refusal(f"redis://{login}{guarded.address}/0") for login in logins)):
        assert "credentials" in said
        assert guarded.address in said
        assert "redis://user:password@host" in said
    assert "s3cr" not in caplog.text


async def test_a_password_with_signs_is_understood(guarded: Server) -> None:
    assert QUOTED in guarded.url
    for url in (guarded.url, guarded.url.replace("redis://:", "redis://default:")):
        async with RedisStore(url, **SHORT) as store:
            await store.publish("t", b"0", history=WIDE)


async def test_a_cluster_wants_a_clusters_url(clustered: Cluster, guarded: Server) -> None:
    assert "redis+cluster://" in await refusal(clustered.nodes[0].url)
    assert "a single server's URL starts with redis://" in await refusal(f"redis+cluster://:{QUOTED}@{guarded.address}")
    assert "credentials" in await refusal(f"redis+cluster://{guarded.address}")


async def test_a_cluster_and_sentinels_take_credentials(watched: Sentinels) -> None:
    place = watched.url.removeprefix("redis+sentinel://")
    user = f":{QUOTED}@"
    async with RedisStore(f"redis+sentinel://{user}{place}", **SHORT) as store:
        await store.publish("t", b"0", history=WIDE)
    wrong = (f"{user}{place}?sentinel_password=s3cr", f":s3cr@{place}")
    for said in await asyncio.gather(*(refusal(f"redis+sentinel://{each}") for each in wrong)):
        assert "credentials" in said
    with pytest.raises(StoreError, match="knows no master 'another'"):
        another = f"redis+sentinel://{user}{place.replace('mymaster', 'another')}"
        async with RedisStore(another, **{**SHORT, "start_timeout": 0.0}):
            pass
    async with cluster(password=SECRET) as guarded:
        hosts = guarded.url.removeprefix("redis+cluster://")
        async with RedisStore(f"redis+cluster://{user}{hosts}", **SHORT) as store:
            await asyncio.gather(*(store.publish(f"t{n}", b"0", history=WIDE) for n in range(20)))


async def test_a_replica_is_no_place_to_write_to(watched: Sentinels) -> None:
    assert "replica" in await refusal(watched.replica.url)


async def nobody(url: str) -> None:
    """See that a store finds nobody at this URL, in time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(StoreError) as refused:
        async with RedisStore(url, **{**SHORT, "start_timeout": 0.0}):
            pass
    assert loop.time() - began < SHORT["timeout"] + 0.5
    assert "s3cr" not in str(refused.value)


async def test_nobody_there_is_known_within_the_time_limit() -> None:
    with reserved_port() as port:
        await asyncio.gather(
            nobody(f"redis://:s3cret@127.0.0.1:{port}"),
            nobody(f"redis+sentinel://:s3cret@127.0.0.1:{port}/mymaster"),
            nobody(f"redis+cluster://:s3cret@127.0.0.1:{port}"),
            nobody("unix:///nowhere/at/all.sock"),
        )


async def test_nobody_who_answers_is_known_within_the_time_limit() -> None:
    async with server() as single, Proxy("127.0.0.1", single.port) as proxy:
        proxy.half_open()
        await asyncio.gather(
            nobody(f"redis://127.0.0.1:{proxy.port}"),
            nobody(f"redis+sentinel://127.0.0.1:{proxy.port}/mymaster"),
            nobody(f"redis+cluster://127.0.0.1:{proxy.port}"),
        )


async def test_a_store_that_could_not_start_may_be_tried_again() -> None:
    async with server() as single:
        await single.kill()
        store = RedisStore(single.url, **{**SHORT, "start_timeout": 0.0})
        with pytest.raises(StoreError):
            async with store:
                pass
        await single.start()
        async with store:
            assert (await store.publish("t", b"0", history=WIDE)).offset == 1


async def test_a_server_that_comes_up_a_little_later_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with server() as single:
        await single.kill()
        store = RedisStore(single.url, **SHORT)
        starting = asyncio.ensure_future(store.__aenter__())
        await until(lambda: "can't be used yet, and is tried again" in caplog.text)
        await single.start()
        await starting
        assert (await store.publish("t", b"0", history=WIDE)).offset == 1
        await store.__aexit__(None, None, None)


# --- rights ---


async def everything(store: RedisStore) -> None:
    """Use all that a store can do."""
    async with store, readers("t", store) as (reader,):
        await store.publish("t", b"0", history=WIDE, producer="u", key="k")
        await store.publish("t", b"0", history=WIDE, producer="u", key="k")
        await store.publish_volatile("t", b"1")
        await until(lambda: reader.data == [b"0", b"1"])
        position = (await store.page("t", before=None, limit=9)).publications[0].position
        await store.recover("t", since=position, limit=9)
        await store.enter("t", [Entry("c", "u:a"), Entry("d", "u:b")])
        await store.leave("t", ["c"])
        assert (await store.members("t", limit=9)).total == 1
        assert await store.admit("k", "slot", limit=1)
        assert not await store.admit("k", "other", limit=1)
        await store.release("k", "slot")
        assert await store.claim("ticket", ttl=5.0)
        await store.revoke("u:a", issued_before=1.0)
        assert await store.revocations()
        inbox: list[bytes] = []
        await store.receive(inbox.append)
        await store.send(store.node, b"hello")
        await until(lambda: inbox == [b"hello"])
        assert [node.id for node in await store.nodes()] == [store.node]
        for strategy in (SlidingWindowCounterRateLimiter, FixedWindowRateLimiter, MovingWindowRateLimiter):
            limiter = strategy(store.limits)
            assert await limiter.hit(parse("2/minute"), "somebody")
            assert await limiter.test(parse("2/minute"), "somebody")
            await limiter.get_window_stats(parse("2/minute"), "somebody")
            await limiter.clear(parse("2/minute"), "somebody")
        await asyncio.sleep(SHORT["check_interval"] + SHORT["sweep"])


async def permit(servers: Iterable[Server], *rights: str) -> None:
    """Let there be a user with these rights alone."""
    for each in servers:
        words = " ".join(rights).split()
        await each.command("ACL", "SETUSER", "app", "reset", "on", f">{SECRET}", *words)
        await each.command("ACL", "LOG", "RESET")


async def denied(servers: Iterable[Server]) -> set[tuple[bytes, bytes]]:
    """What the user was not permitted."""
    found = set()
    for each in servers:
        for row in await each.command("ACL", "LOG"):
            entry = dict(zip(row[::2], row[1::2], strict=True))
            found.add((entry[b"reason"], entry[b"object"]))
    return found


async def test_a_user_with_these_rights_can_do_all_there_is(clustered: Cluster, watched: Sentinels) -> None:
    user = f"app:{QUOTED}@"
    async with server() as single:
        await permit((single,), RIGHTS)
        await everything(RedisStore(f"redis://{user}{single.address}", **SHORT))
        assert await denied((single,)) == set()
    await permit(clustered.nodes, RIGHTS, IN_A_CLUSTER)
    await everything(RedisStore(clustered.url.replace("//", f"//{user}"), **SHORT))
    assert await denied(clustered.nodes) == set()
    await permit(watched.pair, RIGHTS, BEHIND_SENTINELS)
    await everything(RedisStore(watched.url.replace("//", f"//{user}"), **SHORT))
    assert await denied(watched.pair) == set()


def test_no_script_needs_another_right() -> None:
    called = set()
    for source in (files("starlette_realtime.store.redis") / "lua").iterdir():
        called |= set(re.findall(r"redis\.call\('([A-Z]+)'", source.read_text()))
    assert {f"+{command.lower()}" for command in called} <= set(RIGHTS.split())


async def test_what_is_not_permitted_is_said_when_it_is_tried() -> None:
    async with server() as single:
        await permit((single,), RIGHTS, "-xadd -info")
        async with RedisStore(f"redis://app:{QUOTED}@{single.address}", **SHORT) as store:
            with pytest.raises(StoreError, match="xadd"):
                await store.publish("t", b"0", history=WIDE)
        await permit((single,), RIGHTS, "resetchannels &other:*")
        async with RedisStore(f"redis://app:{QUOTED}@{single.address}", **SHORT) as store:
            with pytest.raises(StoreError, match="channel"):
                await store.subscribe("t", print)


# --- TLS and sockets ---


async def test_tls_is_spoken_with_whom_the_authority_vouches_for(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()
    made, other = certificate(ours), certificate(others)
    async with server(password=SECRET) as single, Proxy("127.0.0.1", single.port, tls=made.server_context()) as proxy:
        url = f"rediss://:{QUOTED}@127.0.0.1:{proxy.port}/0"
        async with (
            RedisStore(f"{url}?ssl_ca_certs={made.ca_path}", **SHORT) as store,
            readers("t", store) as (reader,),
        ):
            await store.publish("t", b"0" * 100_000, history=WIDE)
            await until(lambda: reader.data)
            proxy.cut_links()
            await store.publish("t", b"1", history=WIDE)
            await until(lambda: len(reader.data) == 2)

        for said in await asyncio.gather(refusal(f"{url}?ssl_ca_certs={other.ca_path}"), refusal(url)):
            assert "certificate verify failed" in said.lower()
            assert "ssl_ca_certs=/path/ca.pem" in said


async def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    async with server(unixsocket=tmp_path / "s", password=SECRET) as single:
        async with RedisStore(single.unix_url, **SHORT) as store, readers("t", store) as (reader,):
            await store.publish("t", b"0", history=WIDE)
            await until(lambda: reader.data == [b"0"])
            await single.command("CLIENT", "KILL", "TYPE", "normal")
            await single.command("CLIENT", "KILL", "TYPE", "pubsub")
            await store.publish("t", b"1", history=WIDE)
            await until(lambda: reader.data == [b"0", b"1"])
        assert "s3cr" not in str(store.address)


def test_the_docs_name_these_rights() -> None:
    page = (Path(__file__).parents[3] / "docs" / "deploying.md").read_text()
    assert f"ACL SETUSER realtime on >password {RIGHTS}\n" in page
    assert f"`{IN_A_CLUSTER}`" in page
    assert f"`{BEHIND_SENTINELS}`" in page
