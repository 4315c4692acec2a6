"""The contract notices a Redis store that is blind to gaps, and nothing else about it."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from starlette_realtime.replay import Replay
from starlette_realtime.store import Store
from starlette_realtime.testing import FakeClock
from starlette_realtime.testing.contract.delivery import DeliveryContract
from tests.store.redis.support import RedisContract
from tests.store.test_contract import GAPS, Blind, Unrepeating
from tests.support.redis import server


@pytest.mark.parametrize(
    ("replay", "noticed"), [(Blind, GAPS | {"test_what_comes_twice_is_heard_once"}), (Unrepeating, GAPS)]
)
async def test_the_contract_fails_a_store_that_is_blind(replay: Callable[[], Replay], noticed: set[str]) -> None:
    async with server() as running:

        class Contract(RedisContract):
            servers = running

            async def make_stores(self, count: int, clock: FakeClock) -> Sequence[Store]:
                made = await super().make_stores(count, clock)
                for store in made:
                    setattr(store._feeds, "_replay", replay)  # noqa: B010
                return made

        async def fails(name: str) -> bool:
            try:
                await getattr(Contract(), name)()
            except AssertionError:
                return True
            return False

        names = [name for name in dir(DeliveryContract) if name.startswith("test_")]
        failed = await asyncio.gather(*(fails(name) for name in names))  # most wait, for what does not come
        assert {name for name, failing in zip(names, failed, strict=True) if failing} == noticed
