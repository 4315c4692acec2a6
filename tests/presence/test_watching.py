"""Watchers get a snapshot and then what changes, in bounded batches, without a gap."""

import asyncio
from typing import Any

import msgspec
import pytest

from starlette_realtime import MemoryStore, StoreError
from starlette_realtime.presence import Diff, PresenceTracker, Snapshot, StoreAway, StoreBack, by_user
from starlette_realtime.presence.changes import Watched
from starlette_realtime.testing import FakeClock, Peer, settle
from tests.presence.support import Process, clock_of, follow, present, processes, topic_of


def fold(changes: list[Watched]) -> dict[str, tuple[str | None, str]]:
    """Who a watcher believes to be there, by connection; a difference that doesn't follow on is an error."""
    at, members = -1, dict[str, tuple[str | None, str]]()
    for change in changes:
        if isinstance(change, Snapshot):
            at, members = change.seq, {each.connection: (each.user, each.status) for each in change.members}
            assert (len(members) == change.total) == change.complete
        elif isinstance(change, Diff):
            assert change.prev == at < change.seq
            at = change.seq
            members.update({each.connection: (each.user, each.status) for each in (*change.joined, *change.updated)})
            for connection in change.left:
                members.pop(connection, None)
            assert len(members) == change.total
    return members


async def come(process: Process, *names: str) -> list[Peer]:
    peers = [process.peer(name) for name in names]
    for peer in peers:
        await peer.connect()
        await present(peer)
    return peers


async def test_a_watcher_gets_a_snapshot_and_then_what_changes() -> None:
    async with processes(1) as (process,):
        (ann,) = await come(process, "ann")
        changes: list[Watched] = []
        async with process.tracker.watch("plan") as watch:
            task = asyncio.ensure_future(follow(watch, changes))
            await settle()
            (snapshot,) = changes
            assert isinstance(snapshot, Snapshot)
            assert [member.user for member in snapshot.members] == ["ann"]
            (bob,) = await come(process, "bob")
            diff = changes[1]
            assert isinstance(diff, Diff)
            assert (diff.prev, diff.seq, diff.total) == (snapshot.seq, snapshot.seq + 1, 2)
            assert [member.user for member in diff.joined] == ["bob"]
            await bob.send({"status": "away"})
            await clock_of(process).advance(0.1)
            diff = changes[2]
            assert isinstance(diff, Diff)
            assert [(member.user, member.status) for member in diff.updated] == [("bob", "away")]
            assert [user.status for user in watch.users()] == ["online", "away"]
            await ann.disconnect()
            await clock_of(process).advance(0.1)
            diff = changes[3]
            assert isinstance(diff, Diff)
            assert diff.left == (snapshot.members[0].connection,)
            assert process.tracker.gauges()["watchers"] == 1
        await task  # the end of the block is the end of the iteration
        await bob.disconnect()


async def test_changes_are_told_together_and_not_too_often() -> None:
    async with processes(1, interval=1.0) as (process,):
        changes: list[Watched] = []
        async with process.tracker.watch("plan") as watch:
            task = asyncio.ensure_future(follow(watch, changes))
            peers = await come(process, "ann", "bob", "cat")
            await peers[0].disconnect()
            await clock_of(process).advance(0.9)
            assert len(changes) == 2  # the snapshot, and the first arrival at once
            await clock_of(process).advance(0.2)
            assert len(changes) == 3
            assert {user for user, _ in fold(changes).values()} == {"bob", "cat"}
        await task
        for peer in peers[1:]:
            await peer.disconnect()


async def test_who_begins_to_watch_within_a_batch_gets_nothing_twice() -> None:
    async with processes(1, interval=1.0) as (process,):
        async with process.tracker.watch("plan") as first:
            early: list[Watched] = []
            tasks = [asyncio.ensure_future(follow(first, early))]
            peers = await come(process, "ann", "bob")  # bob waits for the batch
            async with process.tracker.watch("plan") as second:
                late: list[Watched] = []
                tasks.append(asyncio.ensure_future(follow(second, late)))
                await settle()
                assert late == []
                await clock_of(process).advance(1.0)
                peers += await come(process, "cat")
                await clock_of(process).advance(1.0)
                assert fold(early) == fold(late)
                (snapshot, diff) = late
                assert isinstance(snapshot, Snapshot)
                assert isinstance(diff, Diff)
                assert [member.user for member in diff.joined] == ["cat"]
        await asyncio.wait(tasks)
        for peer in peers:
            await peer.disconnect()


async def test_several_watchers_share_one_subscription_and_the_last_one_ends_it() -> None:
    async with processes(1) as (process,):
        async with process.tracker.watch("plan"):
            async with process.tracker.watch("plan"), process.tracker.watch("plan"):
                assert process.store.gauges()["subscribers"] == 1
                assert process.tracker.gauges()["watchers"] == 3
            assert process.store.gauges()["subscribers"] == 1
        await settle()
        assert process.store.gauges()["subscribers"] == 0
        assert process.tracker.gauges()["watched"] == 0


async def test_a_watcher_that_is_slow_gets_a_snapshot_instead_of_a_queue() -> None:
    async with processes(1, interval=0.0) as (process,), process.tracker.watch("plan") as watch:
        changes = [await anext(watch)]
        (ann,) = await come(process, "ann")
        for number in range(40):
            await ann.send({"meta": number})
            await ann.receive_json()
        changes = [await anext(watch)]
        (snapshot,) = changes
        assert isinstance(snapshot, Snapshot)
        assert snapshot.members[0].meta == 39
        await ann.send({"status": "away"})
        changes.append(await anext(watch))
        assert list(fold(changes).values()) == [("ann", "away")]
        assert isinstance(changes[1], Diff)
        await ann.disconnect()


async def test_above_the_bound_a_watcher_gets_the_total_and_a_sample() -> None:
    async with processes(1, shown=3, interval=0.0) as (process,):
        changes: list[Watched] = []
        async with process.tracker.watch("plan") as watch:
            task = asyncio.ensure_future(follow(watch, changes))
            peers = await come(process, "ann", "bob", "cat", "dan", "eve")
            for change, total in zip(changes[4:], (4, 5), strict=True):
                assert isinstance(change, Snapshot)
                assert (change.total, len(change.members), change.complete) == (total, 3, False)
            for peer in (peers.pop(), peers.pop()):
                await peer.disconnect()
                await settle()
            snapshot = changes[-1]
            assert isinstance(snapshot, Snapshot)
            assert snapshot.complete
            assert {user for user, _ in fold(changes).values()} == {"ann", "bob", "cat"}
            await peers.pop().disconnect()
            await settle()
            assert isinstance(changes[-1], Diff)
            assert {user for user, _ in fold(changes).values()} == {"ann", "bob"}
        await task
        for peer in peers:
            await peer.disconnect()


async def test_a_large_batch_is_told_as_a_snapshot() -> None:
    async with processes(1, shown=30, interval=1.0) as (process,):
        async with process.tracker.watch("plan") as watch:
            changes = [await anext(watch)]
            peers = await come(process, "first")
            changes.append(await anext(watch))
            for number in range(40):  # who come and go within one batch
                (peer,) = await come(process, f"u{number}")
                await peer.disconnect()
            await clock_of(process).advance(1.0)
            changes.append(await anext(watch))
            assert isinstance(changes[-1], Snapshot)
            assert {user for user, _ in fold(changes).values()} == {"first"}
        await peers[0].disconnect()


async def test_what_a_process_missed_is_mended_by_itself() -> None:
    async with processes(2) as (one, two):
        changes: list[Watched] = []
        async with two.tracker.watch("plan") as watch:
            task = asyncio.ensure_future(follow(watch, changes))
            peers = await come(one, "ann")
            two.store.faults.drop(1)
            peers += await come(one, "bob")
            await clock_of(one).advance(1.0)
            assert {user for user, _ in fold(changes).values()} == {"ann"}
            peers += await come(one, "cat")
            await clock_of(one).advance(1.0)
            assert {user for user, _ in fold(changes).values()} == {"ann", "bob", "cat"}
            two.store.faults.drop(1)
            await peers.pop().disconnect()
            await clock_of(one).advance(11.0)  # nothing else shows it: the store's own check does
            assert {user for user, _ in fold(changes).values()} == {"ann", "bob"}
        await task
        for peer in peers:
            await peer.disconnect()


async def test_watchers_are_told_that_the_store_is_away_and_back() -> None:
    async with processes(2) as (one, two):
        changes: list[Watched] = []
        late: list[Watched] = []
        async with two.tracker.watch("plan") as watch:
            tasks = [asyncio.ensure_future(follow(watch, changes))]
            (ann,) = await come(one, "ann")
            two.store.faults.stall()
            await clock_of(one).advance(3.0)
            assert changes[-1] == StoreAway()
            async with two.tracker.watch("plan") as second:  # this process knows the topic
                tasks.append(asyncio.ensure_future(follow(second, late)))
                await settle()
                assert isinstance(late[0], Snapshot)
                assert late[1:] == [StoreAway()]
                (bob,) = await come(one, "bob")
                await ann.disconnect()
                await clock_of(one).advance(3.0)
                assert len(late) == 2
                two.store.faults.resume()
                await clock_of(one).advance(3.0)
                for heard in (changes, late):
                    assert heard.count(StoreBack()) == 1
                    assert {user for user, _ in fold(heard).values()} == {"bob"}
        await asyncio.wait(tasks)
        await bob.disconnect()


async def test_an_outage_that_nobody_looked_at_is_not_told_late() -> None:
    async with processes(1) as (process,), process.tracker.watch("plan") as watch:
        assert isinstance(await anext(watch), Snapshot)
        process.store.faults.stall()
        await clock_of(process).advance(3.0)
        process.store.faults.resume()
        await clock_of(process).advance(3.0)
        (ann,) = await come(process, "ann")
        assert isinstance(await anext(watch), Diff)
        await ann.disconnect()


async def test_who_begins_to_watch_while_the_store_is_away_is_told_so() -> None:
    async with processes(1) as (process,):
        process.store.faults.stall()
        tasks = [asyncio.ensure_future(process.tracker.watch("plan").__aenter__()) for _ in range(2)]
        await clock_of(process).advance(3.0)
        for task in tasks:
            with pytest.raises(StoreError):
                await task
        assert process.tracker.gauges()["watched"] == 0
        process.store.faults.resume()
        async with process.tracker.watch("plan") as watch:
            assert isinstance(await anext(watch), Snapshot)


async def test_a_subscription_without_a_snapshot_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refusing(*args: Any, **options: Any) -> Any:
        raise StoreError("not now")

    async with processes(1) as (process,):
        with monkeypatch.context() as patch:
            patch.setattr(process.store, "members", refusing)
            with pytest.raises(StoreError):
                await process.tracker.watch("plan").__aenter__()
        await settle()
        assert process.store.gauges()["subscribers"] == 0


async def test_who_gives_up_waiting_for_the_first_snapshot_leaves_nothing() -> None:
    async with processes(1) as (process,):
        process.store.faults.stall()
        task = asyncio.ensure_future(process.tracker.watch("plan").__aenter__())
        await settle()
        task.cancel()
        await asyncio.wait((task,))
        assert process.tracker.gauges()["watchers"] == 0
        process.store.faults.resume()


@pytest.mark.parametrize("failure", [StoreError("not now"), KeyError("a bug")])
async def test_a_snapshot_that_cannot_be_had_is_asked_for_again(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with processes(2) as (one, two):
        changes: list[Watched] = []
        members, failures = MemoryStore.members, [failure]

        async def fragile(self: MemoryStore, topic: str, *, limit: int) -> Any:
            if self is two.store and limit and failures:
                raise failures[0]
            return await members(self, topic, limit=limit)

        async with two.tracker.watch("plan") as watch:
            task = asyncio.ensure_future(follow(watch, changes))
            await settle()
            monkeypatch.setattr(MemoryStore, "members", fragile)
            two.store.faults.drop(1)
            peers = await come(one, "ann", "bob")
            await clock_of(one).advance(8.0)
            assert fold(changes) == {}
            failures.clear()
            await clock_of(one).advance(6.0)
            assert {user for user, _ in fold(changes).values()} == {"ann", "bob"}
        await task
        for peer in peers:
            await peer.disconnect()


async def test_a_store_that_was_wound_back_is_followed() -> None:
    """As one that was restarted: its sequence begins anew, behind the watchers'."""
    async with processes(1) as (process,):
        changes: list[Watched] = []
        async with process.tracker.watch("plan") as watch:
            task = asyncio.ensure_future(follow(watch, changes))
            peers = await come(process, "ann", "bob", "cat")
            await clock_of(process).advance(1.0)
            topic = process.store.backend.topics["rt:presence:plan"]
            topic.seq = 1
            await clock_of(process).advance(11.0)
            snapshot = changes[-1]
            assert isinstance(snapshot, Snapshot)
            assert snapshot.seq == 1
            await peers.pop().disconnect()
            await clock_of(process).advance(1.0)
            diff = changes[-1]
            assert isinstance(diff, Diff)
            assert (diff.prev, diff.seq) == (1, 2)
            assert {user for user, _ in fold(changes).values()} == {"ann", "bob"}
        await task
        for peer in peers:
            await peer.disconnect()


async def test_closing_the_tracker_ends_the_watches() -> None:
    tracker = PresenceTracker(topic=topic_of, clock=FakeClock())
    async with tracker:
        watch = await tracker.watch("plan").__aenter__()
        assert isinstance(await anext(watch), Snapshot)
        waiting = asyncio.ensure_future(anext(watch, None))
        await settle()
    assert await waiting is None
    assert await anext(watch, None) is None
    assert not any(tracker.gauges().values())


async def test_a_watch_is_entered_once_and_before_it_is_asked() -> None:
    tracker = PresenceTracker(topic=topic_of, clock=FakeClock())
    watch = tracker.watch("plan")
    with pytest.raises(RuntimeError, match="async with"):
        await anext(watch)
    with pytest.raises(RuntimeError, match="async with"):
        watch.users()
    async with watch:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        await watch.__aenter__()


async def test_what_a_watcher_gets_is_json_that_tells_what_it_is() -> None:
    async with processes(1) as (process,), process.peer("ann") as ann, process.tracker.watch("plan") as watch:
        _, connection = await present(ann)
        snapshot = await anext(watch)
        while not isinstance(snapshot, Snapshot) or not snapshot.members:
            snapshot = await anext(watch)
        told = msgspec.json.decode(msgspec.json.encode(snapshot))
        since = snapshot.members[0].since
        member = {"connection": connection, "user": "ann", "status": "online", "since": since, "meta": None}
        expected = {"seq": 1, "total": 1, "members": [member], "complete": True, "type": "snapshot"}
        assert told == expected
        assert msgspec.json.encode([StoreAway(), StoreBack()]) == b'[{"type":"stale"},{"type":"fresh"}]'
        (user,) = by_user(snapshot.members)
        assert (user.user, user.status) == ("ann", "online")


async def test_who_began_with_a_sample_gets_everybody_when_there_is_room() -> None:
    async with processes(1, shown=2) as (process,):
        peers = await come(process, "ann", "bob", "cat")
        async with process.tracker.watch("plan") as watch:
            first = await anext(watch)
            assert isinstance(first, Snapshot)
            assert not first.complete
            await peers.pop().disconnect()
            second = await anext(watch)
            assert isinstance(second, Snapshot)
            assert [member.user for member in second.members] == ["ann", "bob"]
        for peer in peers:
            await peer.disconnect()


async def test_a_block_that_ends_while_a_snapshot_is_asked_for_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with processes(1) as (process,):
        async with process.tracker.watch("plan"):
            process.store.faults.drop(1)
            peers = await come(process, "ann")
            process.store.faults.stall()
            await clock_of(process).advance(1.0)
            process.store.faults.resume()
            process.store.faults.stall()  # the repair is under way
        process.store.faults.resume()
        await settle()
        assert process.tracker.gauges()["watched"] == 0
        await peers[0].disconnect()


async def test_publications_lost_in_a_topic_mean_a_look_at_its_members() -> None:
    """A store that forgot the topic has forgotten who was there."""
    async with processes(1) as (process,), process.tracker.watch("plan") as watch:
        first = await anext(watch)
        process.store.faults.lose("rt:presence:plan")
        process.store.faults.stall()
        process.store.faults.resume()
        peers = await come(process, "ann")
        await clock_of(process).advance(1.0)
        assert isinstance(first, Snapshot)
        assert {user for user, _ in fold([first, await anext(watch)]).values()} == {"ann"}
        await peers[0].disconnect()
