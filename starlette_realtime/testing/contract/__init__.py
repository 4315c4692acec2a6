"""The contract that every store keeps, as tests to inherit."""

import pytest

from starlette_realtime.testing.contract.delivery import DeliveryContract
from starlette_realtime.testing.contract.harness import Heard, StoreHarness
from starlette_realtime.testing.contract.presence import PresenceContract
from starlette_realtime.testing.contract.publications import PublicationContract
from starlette_realtime.testing.contract.sharing import SharingContract

__all__ = ["Heard", "StoreContract", "StoreHarness"]


class StoreContract(PublicationContract, DeliveryContract, PresenceContract, SharingContract):
    """
    Everything that a `Store` promises. Inherit it in a test module, and say how to make stores:

    ```python
    class TestMyStore(StoreContract):
        lease, sweep = 1.0, 0.25

        async def make_stores(self, count: int, clock: FakeClock) -> list[Store]:
            prefix = uuid4().hex
            return [MyStore(url, prefix=prefix, lease=1.0, sweep=0.25, check_interval=1.0) for _ in range(count)]

        async def advance(self, seconds: float) -> None:    # the store's time is the server's
            await asyncio.sleep(seconds)

        async def drop(self, store: Store, count: int) -> None:
            store.lose_deliveries(count)
        ...
    ```

    The tests are coroutines marked `anyio`: the plug-in comes with anyio. The faults are part of it: without
    losing deliveries on purpose, nobody knows whether a gap is seen. `StoreHarness` says what to override. Call
    `pytest.register_assert_rewrite("starlette_realtime.testing.contract")` in a conftest, before the import, and
    failures show their values.
    """

    pytestmark = pytest.mark.anyio
