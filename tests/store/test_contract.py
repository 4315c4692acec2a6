"""The memory store keeps the contract, and the contract notices a store that is blind to gaps."""

from collections.abc import Callable, Sequence

import pytest

from starlette_realtime.messages import Gap, Publication, Recovery
from starlette_realtime.replay import Replay
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.testing import FakeClock, StoreContract
from starlette_realtime.testing.contract.delivery import DeliveryContract


class TestMemoryStore(StoreContract):
    """Several processes, played by siblings."""

    async def make_stores(self, count: int, clock: FakeClock) -> Sequence[Store]:
        first = MemoryStore(clock=clock)
        return [first, *(first.sibling() for _ in range(count - 1))]


class TestMemoryStoreWithShortPeriods(TestMemoryStore):
    """The same with every period an option, most of them below a second."""

    lease, sweep, dedupe, check_interval, stale_after = 0.9, 0.2, 2.0, 0.8, 0.25

    async def make_stores(self, count: int, clock: FakeClock) -> Sequence[Store]:
        first = MemoryStore(
            clock=clock,
            timeout=0.2,
            lease=self.lease,
            beat=0.3,
            sweep=self.sweep,
            dedupe=self.dedupe,
            check_interval=self.check_interval,
            stale_after=self.stale_after,
        )
        return [first, *(first.sibling() for _ in range(count - 1))]


class Blind(Replay):
    """Passes on whatever comes, as it comes."""

    def live(self, publication: Publication) -> tuple[Publication, ...]:
        return (publication,)

    def recovered(self, recovery: Recovery) -> tuple[Publication | Gap, ...]:
        self.needs_read = False
        self.position = recovery.position
        return ()

    def check(self, recovery: Recovery) -> None:
        pass


class Unrepeating(Blind):
    """Knows repeats by their offset alone, and no gaps."""

    def live(self, publication: Publication) -> tuple[Publication, ...]:
        position = publication.position
        if position is not None and self.position is not None:
            if position.offset <= self.position.offset:
                return ()
            self.position = position
        return (publication,)


async def failures(replay: Callable[[], Replay]) -> set[str]:
    """The contract's tests of delivery that fail when every feed has this replay."""

    class Contract(DeliveryContract):
        async def make_stores(self, count: int, clock: FakeClock) -> Sequence[Store]:
            first = MemoryStore(clock=clock)
            stores = [first, *(first.sibling() for _ in range(count - 1))]
            for store in stores:
                setattr(store._feeds, "_replay", replay)  # noqa: B010
            return stores

    failed = set()
    for name in dir(Contract):
        if name.startswith("test_"):
            try:
                await getattr(Contract(), name)()
            except AssertionError:
                failed.add(name)
    return failed


GAPS = {
    "test_a_lost_delivery_is_made_up_for",
    "test_a_last_delivery_that_was_lost_is_found_by_the_check",
    "test_what_the_history_has_lost_is_told_as_a_gap",
    "test_a_topic_that_was_wound_back_is_told_as_a_gap",
    "test_a_topic_that_was_wound_back_in_silence_is_found_by_the_check",
    "test_a_topic_that_was_lost_is_told_as_a_gap",
    "test_whoever_is_cut_off_is_told_and_misses_nothing",
}


async def test_the_contract_passes_with_the_real_replay() -> None:
    assert await failures(Replay) == set()


async def test_the_contract_fails_a_store_that_is_blind_to_gaps() -> None:
    assert await failures(Blind) == GAPS | {"test_what_comes_twice_is_heard_once"}


async def test_the_contract_fails_a_store_that_only_drops_repeats() -> None:
    assert await failures(Unrepeating) == GAPS


async def test_faults_that_are_not_provided_fail_the_contract() -> None:
    class Bare(TestMemoryStore):
        @staticmethod
        def _faults(store: Store, name: str) -> object:
            return StoreContract._faults(object(), name)  # type: ignore[arg-type]

    with pytest.raises(NotImplementedError, match=r"override drop\(\)"):
        await Bare().test_a_lost_delivery_is_made_up_for()
