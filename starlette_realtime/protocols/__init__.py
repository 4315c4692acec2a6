"""Sans-I/O wire protocols: frames in, commands out; events in, frames out."""

from starlette_realtime.protocols.base import WireProtocol
from starlette_realtime.protocols.native import NativeProtocol

__all__ = ["NativeProtocol", "WireProtocol"]
