"""The interface of a wire protocol: it has no clock and no socket."""

from abc import ABC, abstractmethod
from typing import ClassVar

from starlette_realtime.messages import Command, ServerEvent
from starlette_realtime.types import Frame


class WireProtocol(ABC):
    """
    Translates one connection's frames.

    Nothing here awaits: a transport feeds `receive`, sends what `pending` returns, and sends what `send` makes of
    an event. `encode` makes frames that all connections with the same protocol and view share.
    """

    subprotocol: ClassVar[str | None] = None
    """The WebSocket subprotocol (RFC 6455 section 1.9) that selects it."""

    @abstractmethod
    def receive(self, frame: Frame, now: float) -> list[Command]:
        """
        Read one frame, at `now` seconds of the caller's monotonic clock.

        What the peer did wrong but may survive is answered through `pending`; `ProtocolError` says with which
        code to close.
        """

    @abstractmethod
    def pending(self) -> list[Frame]:
        """Take what the protocol itself has to say, in order; the list is then empty."""

    @abstractmethod
    def send(self, event: ServerEvent) -> tuple[Frame, ...]:
        """The frames of one event for this connection; an event with binary parts is several."""

    @classmethod
    @abstractmethod
    def encode(cls, event: ServerEvent, view: str | None = None) -> tuple[Frame, ...]:
        """The frames of a broadcast, made once for all connections that share `view` (a namespace, say)."""
