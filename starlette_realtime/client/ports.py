"""What the core asks of its surroundings."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from starlette_realtime.client.exchange import Exchange, Wire
from starlette_realtime.client.stay import Stay
from starlette_realtime.client.values import StateChange, TokenError
from starlette_realtime.errors import RealtimeError, Refused
from starlette_realtime.messages import Event, Limits

__all__ = ["Answer", "Port", "Token"]

Token: TypeAlias = Callable[[TokenError | None, str | None], None]
Answer: TypeAlias = Callable[[Any, Refused | None], None]


class Port(Protocol):
    """Sockets, the token function, and those who are told; nothing here waits."""

    def ask(self, done: Token) -> None:
        """Ask the token function, and call `done` once, at once or later."""
        ...

    def open(self, url: str, exchange: Exchange) -> Wire:
        """Open a socket, whose life the exchange is told."""
        ...

    def state_changed(self, change: StateChange) -> None:
        """The client's state has changed."""
        ...

    def failed(self, error: RealtimeError) -> None:
        """Something went wrong that nothing else tells."""
        ...

    def served(self, stay: Stay) -> None:
        """The server joined this client to a room."""
        ...

    def changed(self, stay: Stay) -> None:
        """A room's state has changed."""
        ...

    def people(self, stay: Stay) -> None:
        """Somebody came, changed or went."""
        ...

    def stale(self, stay: Stay | None, away: bool) -> None:
        """The server's store is away, or back: for one room or for all."""
        ...

    def limits(self, limits: Limits) -> None:
        """What is left to spend."""
        ...

    def question(self, stay: Stay | None, event: Event, answer: Answer) -> None:
        """The server wants an answer."""
        ...
