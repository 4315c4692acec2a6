"""Presence in Redis: what came of a lost answer, of a lost server, and of those who died."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, History, Members, PresenceDiff
from starlette_realtime.store.redis.presence import decode_diff
from starlette_realtime.store.redis.scripts import script
from starlette_realtime.testing.contract.harness import Heard
from starlette_realtime.testing.contract.presence import entry, fold, names
from tests.store.redis.support import SHORT, FaultyStore, processes, stores
from tests.support.redis import Server, server
from tests.support.waiting import until

LEASE, SWEEP = SHORT["lease"], SHORT["sweep"]

Changes = list[tuple[str, tuple[str, ...], tuple[str, ...]]]


def watch(*watched: FaultyStore) -> Changes:
    """What the store itself changed, as any of these tells it."""
    changes: Changes = []
    for store in watched:
        store.on_presence(lambda topic, joined, left: changes.append((topic, names(joined), names(left))))
    return changes


async def there(store: FaultyStore, topic: str = "t") -> list[str]:
    return sorted(names((await store.members(topic, limit=9)).entries))


async def test_an_enter_whose_answer_was_lost_is_made_and_answered_once(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        heard = Heard()
        await two.subscribe("t", heard)
        await one.enter("t", [entry("a")])
        one.lose_reply(b"connection-b")
        assert names(await one.enter("t", [entry("connection-b")])) == ("connection-b",)
        members = await two.members("t", limit=9)
        assert names(members.entries) == ("a", "connection-b")
        await until(lambda: heard.diffs and heard.diffs[-1].seq == members.seq)
        assert fold(heard.diffs, Members(0, 0, ())) == (members.seq, set(members.entries), True)
        assert len(heard.diffs) == 2
        assert sum(proxy.dropped for proxy in one.proxies.values()) == 1


async def test_a_leave_whose_answer_was_lost_is_made_and_answered_once(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        await one.enter("t", [entry("connection-a"), entry("b")])
        changes = watch(one, two)
        one.lose_reply(b"connection-a")
        assert names(await one.leave("t", ["connection-a"])) == ("connection-a",)
        assert await there(two) == ["b"]
        assert changes == []
        assert sum(proxy.dropped for proxy in one.proxies.values()) == 1


async def test_an_enter_that_was_refused_for_lack_of_an_answer_leaves_no_ghost(running: Server) -> None:
    async with processes(running, 2, lease=30.0) as (one, two):
        await one.enter("t", [entry("a")])
        changes = watch(one, two)
        for proxy in one.proxies.values():
            proxy.drop_replies()
        with pytest.raises(StoreError):
            await one.enter("t", [entry("b")])
        one.restore()
        one.cut_links()
        await until(lambda: len(changes) == 2)
        assert changes == [("t", ("b",), ()), ("t", (), ("b",))]  # it had come, and it goes again
        assert await there(two) == ["a"]


async def test_an_enter_that_arrives_after_it_was_given_up_is_not_made(running: Server) -> None:
    async with processes(running, 2, lease=30.0) as (one, two):
        await one.enter("t", [entry("a")])
        changes = watch(one, two)
        one.half_open()
        with pytest.raises(StoreError):
            await one.enter("t", [entry("b")])
        one.restore()  # the network delivers now what it has held back
        assert names(await one.enter("t", [entry("c")])) == ("c",)

        async def settled() -> list[str]:
            while await there(two) != ["a", "c"]:
                await asyncio.sleep(0.01)
            return await there(two)

        assert await asyncio.wait_for(settled(), 5.0) == ["a", "c"]
        assert changes in ([], [("t", ("b",), ()), ("t", (), ("b",))])


async def test_what_was_settled_as_not_made_is_never_made(running: Server) -> None:
    async with processes(running, 1) as (one,):
        await one.enter("t", [entry("a")])
        room = one._process.presence._rooms["t"]
        node, number = one.node.encode(), b"1000"
        last = room.keys.last(one.node)
        assert await one._link.run(script("settle"), (last,), (number, b"60000")) == b"[]"
        keys = (*room.keys, room.keys.owned(one.node), room.keys.tombstone(one.node), last)
        args = (
            b"PUBLISH",
            node,
            number,
            b"9999999999999",
            b"*",
            b"60000",
            b"60000",
            b"",
            b"late",
            b"u:late",
            b"{}",
            b"0",
        )
        assert (await one._link.run(script("enter"), keys, args))[:2] == [1, b"[]"]
        assert await there(one) == ["a"]
        assert await one._link.run(script("settle"), (last,), (b"7", b"60000")) == b"[]"


async def test_a_caller_who_gives_up_leaves_no_ghost(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        await one.enter("t", [entry("a")])
        for proxy in one.proxies.values():
            proxy.delay(0.05)
        task = asyncio.ensure_future(one.enter("t", [entry("b")]))
        await asyncio.sleep(0)
        await until(lambda: one._process.presence._rooms["t"].unsettled)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await one.enter("t", [entry("c")])
        await until(lambda: one.gauges()["presence_mending"] == 0)
        await one.leave("t", ["c"])
        assert await there(two) == ["a"]


async def test_calls_for_one_topic_are_made_in_their_order(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        calls = []
        for number in range(41):
            calls.append(one.enter("t", [entry("a", since=number)]))
            calls.append(one.leave("t", ["a"]) if number % 3 == 0 else one.enter("t", [entry(f"b{number % 5}")]))
        await asyncio.gather(*calls)
        assert (await two.members("t", limit=1)).total == 6
        assert next(each for each in (await two.members("t", limit=9)).entries if each.connection == "a").since == 40


async def test_many_members_are_counted_and_some_are_shown(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        entries = [entry(f"c{number:04}", f"u:{number % 700}", since=number) for number in range(2_100)]
        for start in range(0, len(entries), 300):
            await one.enter("t", entries[start : start + 300])
        members = await two.members("t", limit=1_500)
        assert (members.total, members.entries) == (2_100, tuple(entries[:1_500]))
        left = await one.leave("t", [each.connection for each in entries[:1_400]])
        assert left == ()
        assert len(await one.leave("t", [each.connection for each in entries[1_400:]])) == 700
        assert await two.members("t", limit=9) == Members(members.seq + 2_100, 0, ())


async def test_any_text_is_a_name(running: Server) -> None:
    strange = ['q"uo\\te', "новый\nline", "a b", "🦊", "{x}%", "-"]
    async with processes(running, 2) as (one, two):
        heard = Heard()
        for topic in ("rt:t}{", "зал 1"):
            await two.subscribe(topic, heard)
            await one.enter(topic, [entry(name, f"u:{name}") for name in strange])
            members = await two.members(topic, limit=9)
            assert names(members.entries) == tuple(strange)
            await one.leave(topic, strange)
            await until(lambda: heard.diffs and heard.diffs[-1].left == tuple(strange))
            heard.clear()


async def test_only_a_diff_is_read_as_one() -> None:
    assert decode_diff(b'd 1 3\n[[{"connection":"a","who":"u:a"}],["b"]]') == PresenceDiff(
        1, 3, (Entry("a", "u:a"),), ("b",)
    )
    for payload in (b"", b"p 1 2\n[[],[]]", b"d 1\n[[],[]]", b"d 1 2\n", b"d 1 2\n[[]]", b"d x 2\n[[],[]]"):
        with pytest.raises(ValueError):
            decode_diff(payload)


async def test_members_are_announced_anew_when_the_server_has_lost_everything() -> None:
    async with server() as own, processes(own, 2) as (one, two):
        heard, changes = Heard(), watch(one, two)
        await one.enter("t", [entry("a")])
        await two.enter("t", [entry("b")])
        await two.subscribe("t", heard)
        before = (one.node, two.node)
        await own.kill()
        await own.start()
        await until(lambda: heard.diffs, within=10.0)

        async def announced() -> bool:
            return await there(one) == ["a", "b"]

        async with asyncio.timeout(5.0):
            while not await announced():
                await asyncio.sleep(0.02)
        assert changes == []  # they were there all the time
        assert one.node not in before
        assert two.node not in before
        await until(lambda: heard.diffs[-1].entered, within=5.0)


async def test_members_are_put_right_when_the_server_is_set_back() -> None:
    async with server() as own, processes(own, 2, lease=8.0, beat=0.3) as (one, two):
        await one.enter("t", [entry("a"), entry("b")])
        await two.enter("t", [entry("c")])
        early = await two.members("t", limit=9)
        snapshot = await own.snapshot()
        await one.leave("t", ["a"])
        await one.enter("t", [entry("d")])
        late = await two.members("t", limit=9)
        heard, changes = Heard(), watch(one, two)
        await two.subscribe("t", heard)
        await own.restore(snapshot)

        async def mended() -> None:
            while await there(two) != ["b", "c", "d"]:
                await asyncio.sleep(0.02)

        async with asyncio.timeout(8.0):
            await mended()
        assert changes == []  # who left, and who came, was told before
        # Whoever knew the members by a number that is given again is told to read them anew.
        await until(lambda: any(diff.prev > late.seq for diff in heard.diffs))
        after = await two.members("t", limit=9)
        assert after.seq > late.seq > early.seq


async def test_a_link_that_was_cut_is_no_reason_to_read_the_members_anew(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        await one.enter("t", [entry("a")])
        before = await two.members("t", limit=9)
        since = one._link.steady_since(one._keys.nodes)
        one.cut_links()
        await until(lambda: one._link.steady_since(one._keys.nodes) not in (None, since))
        await until(lambda: one._process.presence._rooms["t"].steady not in (None, since))
        assert await two.members("t", limit=9) == before


async def test_members_whose_process_nobody_knows_any_more_leave() -> None:
    async with server() as own, processes(own, 3) as (one, two, dead):
        changes = watch(one, two)
        await one.enter("t", [entry("a")])
        await dead.enter("t", [entry("b")])
        dead.cut()
        # As after the failure of a master that had not told its replica yet.
        for key in (one._keys.node(dead.node, "rooms"), one._keys.node(dead.node, "alive")):
            await own.command("DEL", key)
        await own.command("ZREM", one._keys.nodes, dead.node)
        one.cut_links()
        await until(lambda: changes, within=LEASE * 2 + SWEEP * 4 + 2.0)
        assert changes == [("t", (), ("b",))]
        assert await there(two) == ["a"]


async def test_the_members_of_many_rooms_leave_in_time_and_each_once(running: Server) -> None:
    async with processes(running, 4) as (*living, dead):
        changes = watch(*living)
        rooms = [f"room {number}" for number in range(100)]
        await asyncio.gather(
            *(dead.enter(room, [entry(f"{room} {number}") for number in range(25)]) for room in rooms),
            *(living[0].enter(room, [entry("stays")]) for room in rooms),
        )
        dead.cut()
        await until(lambda: len(changes) >= 100, within=LEASE + SWEEP + 2.0)
        await asyncio.sleep(SWEEP)
        assert sorted(topic for topic, _, _ in changes) == sorted(rooms)
        assert all(len(left) == 25 and not joined for _, joined, left in changes)
        for room in rooms[::20]:
            assert await there(living[1], room) == ["stays"]
        nodes = await living[0]._process.lease.known()
        assert dead.node not in nodes
        left = [key async for key in scan(running, living[0], dead.node)]
        assert {key.rsplit(b":", 2)[-2] for key in left} <= {b"px", b"po", b"{%b}" % dead.node.encode()}


async def test_another_one_goes_on_when_a_reaper_dies(running: Server) -> None:
    async with processes(running, 3) as (one, two, dead):
        changes = watch(one, two)
        await dead.enter("t", [entry("a"), entry("b")])
        await dead.enter("u", [entry("c")])
        dead.cut()
        keys = one._keys
        # The first reaper got so far: the tombstones stand, and one member of two is gone.
        marks = (keys.node(dead.node, "x"), keys.node(dead.node, "rooms"), keys.node(dead.node, "alive"))
        assert sorted(await one._link.run(script("bury"), marks, (b"60000", b"9"))) == [b"t", b"u"]
        records = dead._process.presence._rooms["t"].keys
        names_ = (*records, records.owned(dead.node), records.tombstone(dead.node), records.last("gone", reaper=True))
        args = (b"PUBLISH", dead.node.encode(), b"1", b"", b"60000", b"1", b"60000")
        answer, remaining = await one._link.run(script("leave"), names_, args)
        assert remaining == 1
        await until(lambda: len(changes) == 2, within=LEASE + SWEEP + 2.0)
        assert sorted(left for _, _, left in changes) == [("b",), ("c",)] if b'"a"' in answer else [("a",), ("c",)]
        assert await there(one) == await there(one, "u") == []


async def test_a_step_of_a_reaper_whose_answer_was_lost_is_told_all_the_same(running: Server) -> None:
    async with processes(running, 2) as (one, dead):
        changes = watch(one)
        await dead.enter("t", [entry("a")])
        dead.cut()
        one.lose_reply(b":p:" + dead.node.encode())
        await until(lambda: changes, within=LEASE + SWEEP * 2 + 3.0)
        assert changes == [("t", (), ("a",))]
        assert sum(proxy.dropped for proxy in one.proxies.values()) == 1


async def test_a_dead_process_is_refused_everywhere(running: Server) -> None:
    async with processes(running, 2) as (one, other):
        await other.enter("t", [entry("a")])
        node, process = other.node, other._process
        await one._process._reaper._clear(
            node, one._link.steady_since(one._keys.nodes)
        )  # it is not dead, but declared so
        assert await there(one) == []
        changes = watch(other)
        assert names(await other.enter("t", [entry("b")])) == ("b",)
        assert other.node != node
        await until(lambda: changes)
        assert changes == [("t", ("a",), ())]
        assert process.lease.former[-1] == node
        assert await there(one) == ["a", "b"]


async def test_whoever_was_taken_over_is_not_taken_back(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        await one.enter("t", [entry("a")])
        assert await two.enter("t", [entry("a", status="away")]) == ()
        one._process.presence.renewed()
        await until(lambda: one.gauges()["presence_mending"] == 0)
        await one.enter("t", [entry("b")])
        assert (await two.members("t", limit=9)).entries[0].status == "away"
        assert await one.leave("t", ["a"]) == ()
        assert names(await two.leave("t", ["a"])) == ("a",)


async def test_records_are_refreshed_before_they_expire(running: Server) -> None:
    async with processes(running, 1) as (one,):
        await one.enter("t", [entry("a")])
        base = one._keys.topic("t")
        lived = [":pe", ":pz", ":pu", ":pn", f":p:{one.node}"]
        for kind in lived:
            assert await running.command("PEXPIRE", base + kind.encode(), 60_000) == 1
        one._process.presence._rooms["t"].refreshed -= 3_600.0

        async def refreshed() -> None:
            while min([await running.command("PTTL", base + kind.encode()) for kind in lived]) <= 60_000:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(refreshed(), 5.0)
        assert await running.command("PTTL", base + b":m") > 500_000


async def test_after_all_have_left_nothing_is_held(running: Server) -> None:
    async with processes(running, 2) as (one, two):
        before = one.gauges()
        topics = [f"t{number}" for number in range(50)]
        for _ in range(3):
            await asyncio.gather(*(one.enter(topic, [entry("a"), entry("b")]) for topic in topics))
            await asyncio.gather(*(one.leave(topic, ["a", "b"]) for topic in topics))
        await until(lambda: one.gauges()["presence_topics"] == 0)
        await until(lambda: one.gauges()["presence_mending"] == before["presence_mending"])
        assert await running.command("EXISTS", one._keys.node(one.node, "rooms")) == 0
        left = [key async for key in scan(running, two, "")]
        assert {key.rsplit(b":", 2)[-2] for key in left if b"}:t" in key} <= {b"po"} | {
            key.rsplit(b":", 2)[-2] for key in left if key.endswith(b":m")
        }


async def test_a_process_that_ends_in_order_leaves_no_trace(running: Server) -> None:
    async with processes(running, 2) as (one, two), stores(running, 1, prefix=two._keys.prefix) as (brief,):
        async with brief:
            node = brief.node
            await brief.enter("t", [entry("a")])
            await brief.admit("k", "s", limit=1)
        assert await two._process.lease.known() == {one.node, two.node}
        assert await there(two) == []
        left = [key async for key in scan(running, two, node)]
        assert all(b":po:" in key for key in left)
        async with brief:
            assert brief.node != node
            assert names(await brief.enter("t", [entry("a")])) == ("a",)


async def scan(running: Server, store: FaultyStore, part: str) -> AsyncIterator[bytes]:
    """All keys of the store's that have `part` in their name."""
    cursor = b"0"
    while True:
        cursor, keys = await running.command("SCAN", cursor, "MATCH", f"{store._keys.prefix}:*{part}*", "COUNT", 1_000)
        for key in keys:
            yield key
        if cursor == b"0":
            return


async def test_what_somebody_else_has_written_is_a_store_error(running: Server) -> None:
    async with processes(running, 1) as (store,):
        await store.enter("poisoned", [entry("a")])
        await store.publish("poisoned", b"1", history=History())
        base = store._keys.topic("poisoned")
        await running.command("HSET", base + b":pe", "a", f"{store.node} 3 u:a{{")
        with pytest.raises(StoreError, match="no store of ours"):
            await store.members("poisoned", limit=9)
        await running.command("HSET", base + b":m", "e", b"\xff")
        for asking in (store.read("poisoned", since=None, limit=9), store.page("poisoned", before=None, limit=9)):
            with pytest.raises(StoreError, match="no store of ours"):
                await asking
        assert (await store.read("well", since=None, limit=0)).complete
