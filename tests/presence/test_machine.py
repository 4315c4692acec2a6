"""Presence, whatever happens to connections, processes and the store: nobody is lost, no ghosts, nothing in silence."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from starlette_realtime import MemoryStore
from starlette_realtime.messages import Members
from starlette_realtime.presence import ConnectionPresence, Diff, Roster, Snapshot, StoreAway, StoreBack, Watch
from starlette_realtime.presence.handle import PresenceHandle
from starlette_realtime.presence.visits import Visit, Visits
from starlette_realtime.presence.watching import Watch as WatchImplementation
from starlette_realtime.testing import FakeClock, Peer, settle
from tests.presence.support import Process, follow

USERS = ("ann", "ann", "ann", "bob", "bob", None)
LINGER = 5.0
SLOTS = st.integers(0, len(USERS) - 1)
PROCESSES = st.integers(0, 1)
SPINS = st.integers(-1, 6)


def answering_late(operation: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """An answer takes its time, as over a network."""

    async def late(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        answer = await operation(*args, **options)
        for _ in range(3):
            await asyncio.sleep(0)
        return answer

    return late


class Slot:
    """One device: its peer, and what it wants to be seen as."""

    def __init__(self, user: str | None) -> None:
        self.user = user
        self.peer: Peer | None = None
        self.status = "online"


class Watcher:
    """One watcher, and what it believes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.heard: list[Any] = []
        self.read = 0
        self.at = -1
        self.members: dict[str, ConnectionPresence] = {}
        self.total = 0
        self.complete = True
        self.away = False
        self.watch: Watch | None = None
        self.task: asyncio.Task[None] | None = None

    def believe(self) -> None:
        """Take what was heard in, and check that each follows on the one before."""
        for change in self.heard[self.read :]:
            if isinstance(change, Snapshot):
                self.at, self.total, self.complete = change.seq, change.total, change.complete
                self.members = {each.connection: each for each in change.members}
                assert change.complete == (len(self.members) == change.total)
            elif isinstance(change, Diff):
                assert change.prev == self.at < change.seq, "a hole that nobody told of"
                assert self.complete, "a difference to a sample"
                self.at, self.total = change.seq, change.total
                for each in change.joined:
                    assert each.connection not in self.members
                for each in change.updated:
                    assert each.connection in self.members
                self.members.update({each.connection: each for each in (*change.joined, *change.updated)})
                for connection in change.left:
                    self.members.pop(connection, None)
                assert len(self.members) == change.total
            else:
                assert isinstance(change, StoreBack if self.away else StoreAway)
                self.away = not self.away
        self.read = len(self.heard)


class PresenceMachine(RuleBasedStateMachine):
    """Two processes, six devices of three people, one topic, any number of watchers."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.slots = [Slot(user) for user in USERS]
        self.watchers: list[Watcher] = []
        self.counts: Counter[str] = Counter()
        self.broken: list[Any] = []
        self.runner.run(self._start())

    async def _start(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.broken.append(context))
        self.patch = pytest.MonkeyPatch()
        for name in ("members", "enter", "leave", "_listen"):
            self.patch.setattr(MemoryStore, name, answering_late(getattr(MemoryStore, name)))
        store = MemoryStore(clock=self.clock, rng=random.Random(1))
        self.processes = [
            Process(each, self.clock, linger=LINGER, shown=4, interval=0.1) for each in (store, store.sibling())
        ]
        for process in self.processes:
            await process.tracker.__aenter__()

            @process.tracker.on_join
            async def came(topic: str, who: ConnectionPresence) -> None:
                self.counts[who.user or who.connection] += 1

            @process.tracker.on_leave
            async def went(topic: str, who: ConnectionPresence) -> None:
                self.counts[who.user or who.connection] -= 1

    # --- the truth ---

    def _wanted(self) -> Counter[tuple[str | None, str]]:
        return Counter((slot.user, slot.status) for slot in self.slots if slot.peer is not None)

    async def _come_to_rest(self) -> None:
        """Mend everything, wait as long as was promised, and see that everybody knows what is so."""
        for process in self.processes:
            process.store.faults.drop(0)
            process.store.faults.duplicate(0)
            process.store.faults.resume()
        for _ in range(40):  # a lease, a sweep and a linger, and the check after them
            await self.clock.advance(1.0)
        wanted = self._wanted()
        for process in self.processes:
            snapshot = await process.tracker.members("plan", limit=99)
            assert Counter((each.user, each.status) for each in snapshot.members) == wanted
            users = await process.who()
            for user in {"ann", "bob"}:
                statuses = {status for name, status in wanted if name == user}
                expected = "online" if "online" in statuses else "away" if statuses else "offline"
                assert await process.tracker.status("plan", user) == expected
                assert (user in users) == bool(statuses)
            gauges = process.tracker.gauges()
            owed = {name: gauges[name] for name in ("lingering", "tasks", "retries", "telling")}
            assert not any(owed.values()), owed
        assert sum(process.tracker.gauges()["present"] for process in self.processes) == wanted.total()
        for watcher in self.watchers:
            watcher.believe()
            assert not watcher.away
            assert watcher.total == wanted.total()
            if watcher.complete:
                assert Counter((each.user, each.status) for each in watcher.members.values()) == wanted
        present = Counter({user: 1 for user in {slot.user for slot in self.slots if slot.peer} if user})
        known = Counter({name: count for name, count in self.counts.items() if name in {"ann", "bob"} and count})
        assert known == present, (self.counts, present)
        assert set(self.counts.values()) <= {0, 1}, self.counts

    def teardown(self) -> None:
        try:
            self.runner.run(self._finish())
        finally:
            self.patch.undo()
            self.runner.close()

    async def _finish(self) -> None:
        try:
            await self._come_to_rest()
        finally:
            for slot in self.slots:
                if slot.peer is not None:
                    await slot.peer.disconnect()
            for watcher in self.watchers:
                await self._unwatch(watcher)
            for process in self.processes:
                await process.tracker.__aexit__(None, None, None)
        assert not self.broken, self.broken
        await self.clock.advance(100.0)
        for process in self.processes:
            assert not any(process.tracker.gauges().values()), process.tracker.gauges()
            assert process.store.gauges()["entries"] == process.store.gauges()["feeds"] == 0
        assert self.clock.timers == 0
        assert not +self.counts, self.counts

    async def _unwatch(self, watcher: Watcher) -> None:
        if watcher.watch is not None:
            watcher.watch.close()
        if watcher.task is not None:
            await asyncio.wait((watcher.task,))

    # --- acting ---

    def _run(self, work: Awaitable[Any] | None = None, spins: int = -1) -> None:
        async def run() -> None:
            if work is not None:
                await work
            if spins < 0:
                await settle()
            for _ in range(max(spins, 0)):
                await asyncio.sleep(0)

        self.runner.run(run())
        assert not self.broken, self.broken

    @invariant()
    def watchers_follow(self) -> None:
        for watcher in self.watchers:
            watcher.believe()

    @rule(number=SLOTS, process=PROCESSES, spins=SPINS)
    def connect(self, number: int, process: int, spins: int) -> None:
        slot = self.slots[number]
        if slot.peer is None:
            slot.peer, slot.status = self.processes[process].peer(slot.user), "online"
            self._run(slot.peer.connect(), spins)

    @rule(number=SLOTS, status=st.sampled_from(["online", "away"]), spins=SPINS)
    def show(self, number: int, status: str, spins: int) -> None:
        slot = self.slots[number]
        if slot.peer is not None:
            slot.status = status
            self._run(slot.peer.send({"status": status}), spins)

    @rule(number=SLOTS, code=st.sampled_from([1000, 1006, 1006]), spins=SPINS)
    def leave(self, number: int, code: int, spins: int) -> None:
        slot = self.slots[number]
        peer, slot.peer = slot.peer, None

        async def leave() -> None:
            if peer is not None:
                peer.leave(code)

        self._run(leave(), spins)

    @rule(number=SLOTS, how=st.sampled_from(["close", "crash", "cancel"]), spins=SPINS)
    def end(self, number: int, how: str, spins: int) -> None:
        slot = self.slots[number]
        peer, slot.peer = slot.peer, None
        if peer is not None:
            self._run(peer.cancel() if how == "cancel" else peer.send({how: 1000}), spins)

    @rule(number=SLOTS, process=PROCESSES, spins=SPINS)
    def come_back(self, number: int, process: int, spins: int) -> None:
        """Break the link, and come back at once, perhaps to the other process."""
        self.leave(number, 1006, spins)
        self.connect(number, process, spins)

    @rule(process=PROCESSES)
    def begin_to_watch(self, process: int) -> None:
        if len(self.watchers) >= 3 or self.processes[process].store.faults.stalled:
            return
        watcher = Watcher(self.processes[process])
        self.watchers.append(watcher)

        async def begin() -> None:
            watcher.watch = watcher.process.tracker.watch("plan")
            await watcher.watch.__aenter__()
            watcher.task = asyncio.ensure_future(follow(watcher.watch, watcher.heard))

        self._run(begin())

    @rule()
    def stop_to_watch(self) -> None:
        if self.watchers:
            self._run(self._unwatch(self.watchers.pop(0)))

    @rule(process=PROCESSES, fault=st.sampled_from(["drop", "duplicate"]), count=st.integers(1, 3))
    def garble(self, process: int, fault: str, count: int) -> None:
        getattr(self.processes[process].store.faults, fault)(count)

    @rule(process=PROCESSES, stall=st.booleans())
    def stall_or_resume(self, process: int, stall: bool) -> None:
        async def switch() -> None:
            faults = self.processes[process].store.faults
            (faults.stall if stall else faults.resume)()

        self._run(switch())

    @rule(seconds=st.sampled_from([0.05, 0.1, 1.0, 3.0, 6.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self._run(self.clock.advance(seconds))

    @rule()
    def rest(self) -> None:
        self._run(self._come_to_rest())


def run(examples: int, **options: Any) -> None:
    run_state_machine_as_test(
        PresenceMachine,
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, print_blob=True, **options),
    )


def test_everybody_knows_who_is_there() -> None:
    run(100)


def _changes_during_a_request_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Visit, "wanted", lambda visit: visit.entry)


def _lingering_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Visits, "_lingered", lambda visits, visit: None)


def _who_comes_back_leaves_all_the_same(patch: pytest.MonkeyPatch) -> None:
    def rouse(self: Visits, visit: Visit) -> None:
        self._lingering.pop(visit, None)
        if visit in visit.person.lingering:
            visit.person.lingering.remove(visit)

    patch.setattr(Visits, "_rouse", rouse)


def _failures_are_final(patch: pytest.MonkeyPatch) -> None:
    def failed(self: Visits, person: Any, error: Exception) -> None:
        person.dirty.clear()

    patch.setattr(Visits, "_failed", failed)


def _the_end_is_missed(patch: pytest.MonkeyPatch) -> None:
    end = PresenceHandle.end

    def deaf(self: PresenceHandle, *, clean: bool) -> None:
        if clean:
            end(self, clean=clean)

    patch.setattr(PresenceHandle, "end", deaf)


def _late_watchers_get_a_batch_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Roster, "settled", True)


def _snapshots_are_swallowed(patch: pytest.MonkeyPatch) -> None:
    load = Roster.load

    def silent(self: Roster, members: Members) -> None:
        load(self, members)
        self._touched.clear()

    patch.setattr(Roster, "load", silent)


def _samples_are_added_to(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WatchImplementation, "restart", lambda watch: None)


@pytest.mark.parametrize(
    "bug",
    [
        _changes_during_a_request_are_forgotten,
        _lingering_never_ends,
        _who_comes_back_leaves_all_the_same,
        _failures_are_final,
        _the_end_is_missed,
        _late_watchers_get_a_batch_twice,
        _snapshots_are_swallowed,
        _samples_are_added_to,
    ],
)
def test_the_machine_finds_a_seeded_bug(bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        with pytest.raises((AssertionError, KeyError, ExceptionGroup)):
            run(400, phases=[Phase.generate], database=None, derandomize=True)
