"""Processes on one server, behind Sentinels and on a cluster, with all that can go wrong; and bugs to be found."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RULE_MARKER, rule, run_state_machine_as_test

from starlette_realtime.messages import Gap, Publication, Recovery
from starlette_realtime.replay import Replay
from starlette_realtime.store.redis.keys import slot_of
from starlette_realtime.store.redis.publications import Publications
from starlette_realtime.store.redis.reaper import Reaper
from starlette_realtime.store.redis.scripts import Script, script
from tests.store.redis import field
from tests.store.redis.field import PERIODS
from tests.store.redis.machine import StoreMachine, topics
from tests.store.redis.witness import Truth
from tests.support.redis import Cluster, Sentinels, Server, Snapshot, cluster, sentinels, server

T = TypeVar("T")
S = TypeVar("S", Server, Sentinels, Cluster)

EXAMPLES = int(os.environ.get("STORE_MACHINE_EXAMPLES", "0"))
"""How many examples to try instead of a few: for a search of minutes, or a night."""


def search(examples: int, steps: int = 20, **options: Any) -> settings:
    """How long to look for failures. They are not made smaller: in real time nothing happens twice in the same way."""
    return settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=30 if EXAMPLES else steps,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        **options,
    )


class OnSingle(StoreMachine):
    """One server, which may be set back to what it was."""

    servers: ClassVar[Server]

    def __init__(self) -> None:
        super().__init__()
        self.saved: tuple[Snapshot, dict[str, Truth]] | None = None

    async def at(self, key: bytes) -> Server:
        return self.servers

    @rule(anew=st.booleans())
    def set_back(self, anew: bool) -> None:
        """The server fails, and comes back with what it had when it was saved; but first of all it has to be saved."""
        self.do(self._save() if anew or self.saved is None else self._set_back())

    async def _save(self) -> None:
        snapshot = await self.servers.snapshot()
        await self.look()
        self.saved = snapshot, {topic: truth.copy() for topic, truth in self.truth.items()}

    async def _set_back(self) -> None:
        assert self.saved is not None
        await self.settle()
        snapshot, saved = self.saved
        for store in self.processes:
            store.cut()
        await self.servers.restore(snapshot)
        for topic, truth in self.truth.items():
            truth.set_back(saved[topic])
            truth.rows = truth.rows[: (await self.seen(topic)).offset]
        for store in self.processes:
            store.restore()
        # Who dies before it has looked takes along what it had told.
        await self.eventually(self.what_is_wrong_with_presence)

    async def _kill(self, node: int) -> None:
        await super()._kill(node)
        self.saved = None  # what it had told is told again by whoever clears it away once more

    @rule(seconds=st.sampled_from((0.1, 0.4, 1.2)))
    def freeze(self, seconds: float) -> None:
        """The server does nothing for a while."""
        self.do(self._freeze(seconds))

    async def _freeze(self, seconds: float) -> None:
        self.servers.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.servers.resume()


class OnSentinel(StoreMachine):
    """A master and its replica, which take turns."""

    servers: ClassVar[Sentinels]
    # Two processes learn of a failover at different times: neither may take the other for dead.
    periods: ClassVar = {**PERIODS, "lease": 2.5}

    def __init__(self) -> None:
        super().__init__()
        self.fallen_over = False

    async def at(self, key: bytes) -> Server:
        return self.servers.master

    @rule()
    def fail_over(self) -> None:
        """The replica becomes the master; it has everything that was acknowledged."""
        self.do(self._fail_over())

    async def _fail_over(self) -> None:
        if self.fallen_over and not EXAMPLES:
            return  # it takes seconds
        self.fallen_over = True
        await self.settle()
        await self.eventually(self.what_is_wrong_with_presence)  # what is taken back would be done, and told, again
        await self.servers.failover(demoted=True)


class OnCluster(StoreMachine):
    """Three masters with a replica each; slots move, and replicas take over."""

    servers: ClassVar[Cluster]

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, Server] = {}  # as far as somebody has asked

    async def at(self, key: bytes) -> Server:
        slot = slot_of(key)
        if slot not in self.owners:
            self.owners[slot] = await self.servers.owner(slot)
        return self.owners[slot]

    @rule(topic=topics, shard=st.integers(0, 2), leases=st.booleans())
    def move_slot(self, topic: str, shard: int, leases: bool) -> None:
        """Another master is responsible for a topic, or for the processes' leases."""
        self.do(self._move_slot(topic, shard, leases))

    async def _move_slot(self, topic: str, shard: int, leases: bool) -> None:
        slot = slot_of(self.keys.nodes if leases else self.keys.topic(topic))
        await self.servers.move_slot(slot, await self.servers.master(shard))
        self.owners.clear()

    @rule(shard=st.integers(0, 2))
    def fail_over(self, shard: int) -> None:
        """A replica becomes a master, and loses nothing."""
        self.do(self._fail_over(shard))

    async def _fail_over(self, shard: int) -> None:
        await self.servers.linked()
        await self.servers.failover(shard)
        self.owners.clear()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of all machines."""
    with asyncio.Runner() as runner:
        yield runner


@contextmanager
def running(
    runner: asyncio.Runner, servers: AbstractAsyncContextManager[S], kind: type[StoreMachine]
) -> Iterator[None]:
    """Have the machine's servers run."""
    kind.runner, kind.servers = runner, runner.run(servers.__aenter__())
    try:
        yield
    finally:
        runner.run(servers.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def single(runner: asyncio.Runner) -> Iterator[None]:
    with running(runner, server(), OnSingle):
        yield


def test_one_server(single: None) -> None:
    run_state_machine_as_test(OnSingle, settings=search(8))


def test_servers_that_sentinels_watch(runner: asyncio.Runner) -> None:
    with running(runner, sentinels(), OnSentinel):
        run_state_machine_as_test(OnSentinel, settings=search(5))


def test_a_cluster(runner: asyncio.Runner) -> None:
    with running(runner, cluster(replicas=1), OnCluster):
        run_state_machine_as_test(OnCluster, settings=search(8))


# --- bugs that the machine must find ---


def keys_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated key publishes again."""
    real = Publications.publish

    def publish(self: Publications, topic: str, data: bytes, history: Any, producer: str, key: str, n: int) -> Any:
        return real(self, topic, data, history, producer, "", n)

    monkeypatch.setattr(Publications, "publish", publish)


def what_is_repeated_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication whose answer was lost is made twice."""
    real = script("publish")
    source = real.source.replace(b"redis.call('GET', KEYS[n])", b"false")
    monkeypatch.setattr(real, "source", source)
    monkeypatch.setattr(real, "sha", Script("publish", source).sha)


def repairs_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair goes on where the store is."""
    real = Replay.recovered

    def recovered(self: Replay, recovery: Recovery) -> tuple[Publication | Gap, ...]:
        self.position = None
        return real(self, recovery)

    monkeypatch.setattr(Replay, "recovered", recovered)


def the_dead_leave_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever clears away a dead process's members tells it twice."""
    real = Reaper._tell

    def tell(self: Reaper, topic: str, step: Any, answer: bytes) -> None:
        real(self, topic, step, answer)
        real(self, topic, step, answer)

    monkeypatch.setattr(Reaper, "_tell", tell)


BUGS: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    keys_are_ignored: {"publish", "burst"},
    what_is_repeated_is_made_again: {"publish", "visit"},
    repairs_read_nothing: {"burst", "disturb", "cut_links"},
    the_dead_leave_twice: {"kill", "visit", "unsubscribe"},
}
"""With the rules that are enough to find them."""


class Found(BaseException):
    """The search is over: nobody wants to see it again."""


@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_finds_the_bug(
    single: None, bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Focused(OnSingle):
        def do(self, work: Coroutine[Any, Any, T]) -> T:
            try:
                return super().do(work)
            except AssertionError as error:
                raise Found from error

    rules = {name for name in dir(OnSingle) if hasattr(getattr(OnSingle, name), RULE_MARKER)}
    for name in rules - BUGS[bug]:
        setattr(Focused, name, None)
    bug(monkeypatch)
    monkeypatch.setattr(field, "CALM", 4.0)  # what is wrong stays wrong
    with pytest.raises(Found):
        run_state_machine_as_test(Focused, settings=search(20, derandomize=True, database=None))
