"""
Tools for tests: peers and clients in the same process, a clock that is moved by hand, broken links, several processes,
and the contract of every store.
"""

from typing import TYPE_CHECKING

from starlette_realtime.testing.client import Client
from starlette_realtime.testing.clock import FakeClock, settle
from starlette_realtime.testing.http import Response, Stream, get, post, request
from starlette_realtime.testing.leaks import Leaked, Leaks
from starlette_realtime.testing.lifespan import running
from starlette_realtime.testing.links import Link
from starlette_realtime.testing.opener import AppOpener
from starlette_realtime.testing.peers import Closed, Peer, Rejected
from starlette_realtime.testing.processes import Process, Processes
from starlette_realtime.testing.rooms import ClientRoom, Received

if TYPE_CHECKING:
    from starlette_realtime.testing.contract import StoreContract

__all__ = [
    "AppOpener",
    "Client",
    "ClientRoom",
    "Closed",
    "FakeClock",
    "Leaked",
    "Leaks",
    "Link",
    "Peer",
    "Process",
    "Processes",
    "Received",
    "Rejected",
    "Response",
    "StoreContract",
    "Stream",
    "get",
    "post",
    "request",
    "running",
    "settle",
]


def __getattr__(name: str) -> object:
    # The contract imports pytest, which an application has no need of.
    if name == "StoreContract":
        from starlette_realtime.testing.contract import StoreContract

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
