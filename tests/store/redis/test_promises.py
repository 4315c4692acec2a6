"""What a store keeps to itself, what it refuses as a whole, and who tells of the dead: on real servers."""

import asyncio
from contextlib import suppress
from math import inf
from typing import Any, cast

import pytest
from redis.exceptions import NoScriptError, ResponseError

from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.messages import Entry, History
from starlette_realtime.store.redis import RedisStore
from starlette_realtime.store.redis.address import Address
from starlette_realtime.store.redis.pipe import Call, Pipe
from tests.store.redis.load import WIDE, readers, running
from tests.store.redis.support import SHORT, FaultyStore, processes
from tests.support.redis import cluster, server
from tests.support.waiting import until


async def test_what_may_not_be_published_is_not_answered_for_when_it_is_repeated() -> None:
    async with server() as single:
        await single.command("ACL", "SETUSER", "app", "on", ">word", "~*", "+@all", "allchannels")
        options: dict[str, Any] = {"history": WIDE, "producer": "u"}
        async with (
            RedisStore(f"redis://app:word@{single.address}", **SHORT) as store,
            RedisStore(single.url, **SHORT) as other,
            readers("t", other) as (reader,),
        ):
            first = await store.publish("t", b"0", key="first", **options)
            await single.command("ACL", "SETUSER", "app", "resetchannels")
            for _ in range(2):
                with pytest.raises(StoreError, match="publish on the channel"):
                    await store.publish("t", b"1", key="second", **options)
            assert (await other.read("t", since=first, limit=9)).publications == ()
            await single.command("ACL", "SETUSER", "app", "allchannels")
            second = await store.publish("t", b"1", key="second", **options)
            assert (second.epoch, second.offset) == (first.epoch, 2)
            await until(lambda: reader.data == [b"0", b"1"])
            assert reader.gaps == []


async def test_databases_of_one_server_hear_nothing_of_each_other() -> None:
    async with (
        server() as single,
        RedisStore(f"redis://{single.address}/0", **SHORT) as one,
        RedisStore(f"redis://{single.address}/1", **SHORT) as other,
        RedisStore(f"redis://{single.address}?db=1", **SHORT) as third,
        readers("t", one, other, third) as (reader, *others),
    ):
        await one.publish_volatile("t", b"0")
        await one.publish("t", b"1", history=WIDE)
        await one.enter("t", [Entry("c", "u:a")])
        await until(lambda: reader.data == [b"0", b"1"])
        await other.publish("t", b"2", history=WIDE)
        await until(lambda: all(each.data == [b"2"] for each in others))
        assert reader.data == [b"0", b"1"]
        assert (await other.members("t", limit=9)).total == 0


async def test_what_cannot_be_sent_fails_and_harms_no_other_publication() -> None:
    async with server() as single, RedisStore(single.url, **SHORT) as store:
        async with asyncio.timeout(5.0):
            results = await asyncio.gather(
                store.publish("one", cast(bytes, "text"), history=WIDE),
                store.publish("two", b"0", history=History(ttl=float("inf"))),
                store.publish("three", b"0", history=WIDE),
                return_exceptions=True,
            )
        assert [type(result).__name__ for result in results] == ["TypeError", "OverflowError", "Position"]


async def back(store: FaultyStore, *topics: str) -> None:
    """Have a process that was cut off come back, to find that nobody is there any more."""
    store.restore()
    for topic in topics:
        with suppress(StoreError):  # as soon as it can be
            await store.leave(topic, [f"c-{topic}"])


async def test_a_process_in_which_nobody_hears_of_leaves_lets_others_tell_them() -> None:
    topics = [f"t{number}" for number in range(8)]
    async with server() as single, running(single, 4) as (worker, script, app, dead):
        left: list[str] = []
        for topic in topics:
            await dead.enter(topic, [Entry(f"c-{topic}", "u:a")])
        app.on_presence(lambda topic, joined, gone: left.extend(entry.connection for entry in gone))
        await until(
            lambda: all(each._process.lease.steady >= SHORT["lease"] for each in (app, worker, script)), within=10.0
        )
        dead.cut()
        await until(lambda: len(left) == len(topics), within=10.0)
        assert sorted(left) == [f"c-{topic}" for topic in topics]
        await back(dead, *topics)


async def test_the_dead_leave_though_nobody_is_there_to_hear_it() -> None:
    async with cluster() as servers, running(servers, 2) as (worker, dead):
        await dead.enter("t", [Entry("c-t", "u:a")])
        dead.cut()
        async with asyncio.timeout(3 * SHORT["lease"] + 5.0):
            while (await worker.members("t", limit=9)).total:
                await asyncio.sleep(0.05)
        await back(dead, "t")


async def test_answers_are_bytes_whatever_the_url_says() -> None:
    async with (
        server() as single,
        RedisStore(f"{single.url}?decode_responses=true", **SHORT) as store,
        readers("t", store) as (reader,),
    ):
        await store.publish("t", b"0", history=WIDE)
        await until(lambda: reader.data == [b"0"])


@pytest.mark.parametrize("option", ["max_connections=5", "nothing=1"])
@pytest.mark.parametrize("start", ["redis://h", "rediss://h", "unix:///s", "redis+sentinel://h/m", "redis+cluster://h"])
def test_an_option_that_no_connection_has_is_refused_at_once(start: str, option: str) -> None:
    with pytest.raises(ConfigurationError, match=option.partition("=")[0]):
        Address.parse(f"{start}?{option}")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr/et@host:6379",
        "redis://user:s3cr#et@host",
        "redis://user:s3cr?et@host",
        "redis://user:s3cr\u2100et@host",
        "redis://user:s3cr[et@host",
        "redis+sentinel://user:s3cr/et@host:1,other:2/main",
        "redis+sentinel://user:s3cr,more/et@host:1/main",
        "redis+cluster://user:s3cr/et@host:1",
    ],
)
def test_a_password_that_breaks_the_url_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as refused:
        Address.parse(url)
    error: BaseException | None = refused.value
    while error is not None:
        assert "s3cr" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


async def test_a_script_is_brought_though_who_was_to_bring_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server() as single, RedisStore(single.url, **SHORT) as store:
        await store.publish("t", b"0", history=WIDE)
        await single.command("SCRIPT", "FLUSH")
        refused = Pipe._refused

        def give_up(pipe: Pipe, call: Call, error: ResponseError) -> None:
            refused(pipe, call, error)
            if isinstance(error, NoScriptError):
                call.future.cancel()

        with monkeypatch.context() as patch, pytest.raises(asyncio.CancelledError):
            patch.setattr(Pipe, "_refused", give_up)
            await store.publish("t", b"1", history=WIDE)
        assert (await store.publish("t", b"2", history=WIDE)).offset == 2


async def test_a_process_whose_tokens_live_for_less_shortens_no_other_revocation() -> None:
    async with (
        server() as single,
        RedisStore(single.url, revocation_life=3_600.0, **SHORT) as store,
        RedisStore(single.url, revocation_life=0.1, **SHORT) as script,
    ):
        await store.revoke("u:a", issued_before=5.0)
        await script.revoke("u:a", issued_before=4.0)
        await script.revoke("u:b", issued_before=5.0)
        async with asyncio.timeout(5.0):
            while "u:b" in await store.revocations():
                await asyncio.sleep(0.01)
        assert await store.revocations() == {"u:a": 5.0}
        for name in store._revocations._names:
            assert await single.command("PTTL", name) > 3_000_000


async def test_a_revocation_that_cannot_be_read_lets_nobody_in_and_keeps_nobody_else_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with server() as single, RedisStore(single.url, **SHORT) as store, RedisStore(single.url, **SHORT) as other:
        name = store._revocations._names[0]
        await single.command("HSET", name, "u:lost", "soon")  # there is no version yet
        assert await store.revocations() == {"u:lost": inf}
        await store.revoke("u:ann", issued_before=5.0)
        await single.command("HSET", name, "u:bob", "not a number", "u:cleo", "nan", b"u:\xff", "7", "u:dan", "")
        await store.revoke("u:eve", issued_before=6.0)
        expected = {"u:ann": 5.0, "u:eve": 6.0, **dict.fromkeys(("u:lost", "u:bob", "u:cleo", "u:dan"), inf)}
        for each in (store, other, store):
            assert await each.revocations() == expected
        for subject in ("u:bob", "u:cleo", "u:dan", "u:lost"):
            await other.revoke(subject, issued_before=7.0)
        expected |= dict.fromkeys(("u:lost", "u:bob", "u:cleo", "u:dan"), 7.0)
        for each in (store, other):
            assert await each.revocations() == expected
    assert caplog.text.count("5 revocations can't be read") == 2  # once in each process
    assert "u:bob" in caplog.text


async def test_what_was_published_by_others_and_is_nested_too_deep_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deep = b"[" * 3_000 + b"]" * 3_000
    async with server() as single, RedisStore(single.url, **SHORT) as store, readers("t", store) as (reader,):
        await single.command(
            "PUBLISH", store._keys.topic("t"), b'd 1 2\n[[{"connection":"c","meta":' + deep + b"}],[]]"
        )
        await store.publish("t", b"0", history=WIDE)
        await until(lambda: reader.data == [b"0"])
        assert (len(reader), reader.gaps) == (1, [])
    assert caplog.text.count("that no store has sent") == 1


async def test_everything_but_the_list_of_processes_expires_by_itself() -> None:
    """Whatever becomes of the processes, a server is empty again some day."""
    async with server() as single, processes(single, 2) as (one, two):
        await one.publish("t", b"0", history=WIDE, producer="u", key="k")
        await one.read("quiet", since=None, limit=1)
        for store in (one, two):
            await store.enter("t", [Entry(f"a-{store.node}", "u:a"), Entry(f"b-{store.node}", "u:b")])
            assert await store.admit("k", f"a-{store.node}", limit=9)
            assert await store.admit("k", f"b-{store.node}", limit=9)
            assert await store.admit(f"mended-{store.node}", "a", limit=9)
        await one.leave("t", [f"a-{one.node}"])
        await two.leave("t", [f"a-{two.node}"])  # the last one of that user
        await one.release("k", f"a-{one.node}")
        assert await one.claim("ticket", ttl=30.0)
        await one.revoke("u:eve", issued_before=1.0)
        await one.send(two.node, b"hello")
        two._process.slots._mending.soon([f"mended-{two.node}"])
        await until(lambda: two.gauges()["slots_mending"] == 0)
        lives = {key: await single.command("PTTL", key) for key in await single.command("KEYS", "*")}
        for_ever = {key for key, life in lives.items() if life < 0}
        assert for_ever == {one._keys.nodes}
        # A day, and a little, is for positions, revocations, and where a process that nobody clears away has members.
        a_day = (b":m", b"{revoked}", b"{revoked}:v", b"{revoked}:x", b":rooms")
        long = {key for key, life in lives.items() if life > 3_600_000}
        assert [key for key in long if not key.endswith(a_day) or lives[key] > 90_000_000] == []
