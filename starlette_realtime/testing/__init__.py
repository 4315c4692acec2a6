"""Tools for tests: a clock that is moved by hand, clients in the same process, and the contract of every store."""

from typing import TYPE_CHECKING

from starlette_realtime.testing.clock import FakeClock, settle
from starlette_realtime.testing.peers import Closed, Peer, Rejected

if TYPE_CHECKING:
    from starlette_realtime.testing.contract import StoreContract

__all__ = ["Closed", "FakeClock", "Peer", "Rejected", "StoreContract", "settle"]


def __getattr__(name: str) -> object:
    # The contract imports pytest, which an application has no need of.
    if name == "StoreContract":
        from starlette_realtime.testing.contract import StoreContract

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
