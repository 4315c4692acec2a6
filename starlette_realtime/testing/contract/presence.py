"""The contract, part three: presence without ghosts."""

import asyncio

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, Members, PresenceDiff
from starlette_realtime.store.base import Store
from starlette_realtime.testing.contract.harness import Heard, StoreHarness

__all__ = ["PresenceContract"]

Changes = list[tuple[str, tuple[str, ...], tuple[str, ...]]]


def entry(connection: str, who: str = "", **fields: object) -> Entry:
    """A record of somebody."""
    return Entry(connection, who or f"u:{connection}", **fields)  # type: ignore[arg-type]


def names(entries: tuple[Entry, ...]) -> tuple[str, ...]:
    """Their connections."""
    return tuple(entry.connection for entry in entries)


def fold(diffs: list[PresenceDiff], start: Members) -> tuple[int, set[Entry], bool]:
    """What somebody knows who took a snapshot and heard the diffs; and whether none was missing."""
    sequence, whole, known = start.seq, True, {entry.connection: entry for entry in start.entries}
    for diff in diffs:
        if diff.seq <= sequence:
            continue
        whole = whole and diff.prev == sequence
        sequence = diff.seq
        known.update((entry.connection, entry) for entry in diff.entered)
        for connection in diff.left:
            known.pop(connection, None)
    return sequence, set(known.values()), whole


class PresenceContract(StoreHarness):
    """Who is there, who came first, who was the last to go."""

    async def test_the_first_connection_of_somebody_joins_and_the_last_leaves(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            assert names(await one.enter(topic, [entry("a1", "u:a"), entry("a2", "u:a"), entry("b", "u:b")])) == (
                "a1",
                "b",
            )
            assert await two.enter(topic, [entry("a3", "u:a")]) == ()
            assert await one.leave(topic, ["a1", "a2"]) == ()
            assert names(await two.leave(topic, ["a3"])) == ("a3",)
            assert names(await one.leave(topic, ["b", "unknown"])) == ("b",)
            assert (await one.members(topic, limit=9)).entries == ()

    async def test_a_snapshot_shows_the_longest_present_first(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            for number in range(6):
                await (one, two)[number % 2].enter(topic, [entry(f"c{number}", since=number)])
            await one.enter(topic, [entry("c0", since=0, status="away")])
            members = await two.members(topic, limit=3)
            assert (members.total, names(members.entries)) == (6, ("c0", "c1", "c2"))
            assert members.entries[0].status == "away"
            assert (await two.members(topic, limit=0)).entries == ()

    async def test_a_snapshot_is_the_sum_of_the_diffs(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await one.enter(topic, [entry("early")])
            await two.subscribe(topic, heard)
            start = await two.members(topic, limit=99)
            await one.enter(topic, [entry("a"), entry("b")])
            await two.enter(topic, [entry("c")])
            await one.enter(topic, [entry("a", status="away")])
            await one.leave(topic, ["b", "early"])
            await two.enter(topic, [entry("d")])
            await two.leave(topic, ["c"])
            end = await one.members(topic, limit=99)
            await self.until(lambda: bool(heard.diffs) and heard.diffs[-1].seq == end.seq)
            assert end.seq == start.seq + 8
            assert fold(heard.diffs, start) == (end.seq, set(end.entries), True)

    async def test_a_record_that_did_not_change_tells_nobody(self) -> None:
        async with self.node() as store:
            topic = self.name()
            await store.enter(topic, [entry("a")])
            before = await store.members(topic, limit=9)
            assert await store.enter(topic, [entry("a")]) == ()
            assert await store.leave(topic, ["unknown"]) == ()
            assert await store.enter(topic, []) == ()
            assert await store.members(topic, limit=9) == before

    async def test_only_its_own_process_removes_a_record(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            await one.enter(topic, [entry("a")])
            assert await two.leave(topic, ["a"]) == ()
            assert (await two.members(topic, limit=9)).total == 1

    async def test_somebody_may_change_who_they_are(self) -> None:
        async with self.node() as store:
            topic = self.name()
            await store.enter(topic, [entry("a", "s:anonymous")])
            assert names(await store.enter(topic, [entry("a", "u:known")])) == ("a",)
            assert names(await store.leave(topic, ["a"])) == ("a",)

    async def test_a_missed_diff_is_noticed(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            await self.drop(two, 1)
            await one.enter(topic, [entry("a")])
            sequence = (await one.members(topic, limit=0)).seq
            await self.until(
                lambda: bool(heard.diffs) and heard.diffs[-1].seq == sequence, seconds=self.check_interval * 2
            )
            assert heard.diffs[-1].prev == sequence  # not where a reader who missed it is: it takes a snapshot

    async def test_the_members_of_a_dead_process_leave_once(self) -> None:
        async with self.nodes(3) as (one, two, dead):
            topic, heard = self.name(), Heard()
            changes = self._watch(one), self._watch(two)
            await one.enter(topic, [entry("a1", "u:a")])
            await dead.enter(topic, [entry("a2", "u:a"), entry("b", "u:b"), entry("c", "u:c")])
            await two.subscribe(topic, heard)
            start = await two.members(topic, limit=9)
            await self.kill(dead)
            await self.advance(self.lease + self.sweep)
            await self.until(lambda: bool(changes[0] or changes[1]))
            await self.advance(self.sweep * 2)
            members = await one.members(topic, limit=9)
            assert names(members.entries) == ("a1",)
            assert sorted(changes[0] + changes[1]) == [(topic, (), ("b", "c"))]
            assert fold(heard.diffs, start) == (members.seq, set(members.entries), True)
            assert {node.id for node in await one.nodes()} == {one.node, two.node}

    async def test_a_living_process_keeps_its_members(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            await one.enter(topic, [entry("a")])
            node = one.node
            for _ in range(8):
                await self.advance(self.lease / 2)
            assert names((await two.members(topic, limit=9)).entries) == ("a",)
            assert one.node == node

    async def test_a_frozen_process_wakes_up_as_another_and_announces_its_members(self) -> None:
        async with self.nodes(2) as (one, frozen):
            topic, heard, node = self.name(), Heard(), frozen.node
            changes, anew = self._watch(one), self._watch(frozen)
            await one.subscribe(topic, heard)
            start = await one.members(topic, limit=9)
            await frozen.enter(topic, [entry("a"), entry("b")])
            await self.stall(frozen)
            await self.until(lambda: bool(changes), seconds=self.lease + self.sweep * 2)
            assert changes == [(topic, (), ("a", "b"))]
            assert (await one.members(topic, limit=9)).total == 0
            await self.resume(frozen)
            await frozen.enter(topic, [entry("c")])
            await self.until(lambda: bool(anew))
            assert frozen.node != node
            assert anew == [(topic, ("a", "b"), ())]
            members = await one.members(topic, limit=9)
            assert sorted(names(members.entries)) == ["a", "b", "c"]
            await self.until(lambda: bool(heard.diffs) and heard.diffs[-1].seq == members.seq)
            assert fold(heard.diffs, start) == (members.seq, set(members.entries), True)
            await self.advance(self.lease + self.sweep * 2)
            assert (await one.members(topic, limit=9)).total == 3
            assert changes == [(topic, (), ("a", "b"))]

    async def test_whoever_leaves_while_the_store_is_away_is_gone_when_it_is_back(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            await two.enter(topic, [entry("a"), entry("b")])
            changes = self._watch(two)
            await self.stall(two)
            task = asyncio.ensure_future(two.leave(topic, ["a"]))
            await self.until(task.done)
            assert task.exception() is not None
            await self.resume(two)
            await self.until(lambda: bool(changes), seconds=self.lease)
            assert changes == [(topic, (), ("a",))]
            assert names((await one.members(topic, limit=9)).entries) == ("b",)

    async def test_an_entry_whose_answer_was_lost_is_told_once(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            changes, others = self._watch(one), self._watch(two)
            await self.lose_answers(one, 1)
            joined = await self.repeated(lambda: one.enter(topic, [entry("a"), entry("b")]))
            assert names(joined) == ("a", "b")
            await self.advance(self.lease / 2)
            assert changes == others == []
            assert names((await two.members(topic, limit=9)).entries) == ("a", "b")
            assert await two.enter(topic, [entry("a2", "u:a")]) == ()

    async def test_an_entry_that_nobody_repeats_does_not_stay(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            changes = self._watch(one)
            await self.lose_answers(one, 1)
            try:
                joined = names(await one.enter(topic, [entry("a")]))
            except StoreError:
                joined = ()
            left = names(await self.repeated(lambda: one.leave(topic, ["a"])))
            await self.advance(self.lease / 2)
            came = [*joined, *(who for change in changes for who in change[1])]
            went = [*left, *(who for change in changes for who in change[2])]
            assert came == went
            assert (await two.members(topic, limit=9)).total == 0

    async def test_a_leave_whose_answer_was_lost_is_told_once(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            changes = self._watch(one)
            await one.enter(topic, [entry("a"), entry("b")])
            await self.lose_answers(one, 1)
            left = await self.repeated(lambda: one.leave(topic, ["a"]))
            await self.advance(self.lease / 2)
            assert [*names(left), *(who for change in changes for who in change[2])] == ["a"]
            assert names((await two.members(topic, limit=9)).entries) == ("b",)

    async def test_a_process_that_ends_in_order_takes_its_members_along(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            async with one:
                await one.enter(topic, [entry("a")])
            assert (await two.members(topic, limit=9)).total == 1  # it is entered once more
            await one.__aexit__(None, None, None)
            assert (await two.members(topic, limit=9)).total == 0
            await one.__aenter__()

    def _watch(self, store: Store) -> Changes:
        changes: Changes = []
        store.on_presence(lambda topic, joined, left: changes.append((topic, names(joined), names(left))))
        return changes
