"""A room as a test's client sees it, and the frames that it is told by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from starlette_realtime.messages import Position, Sender, Status

if TYPE_CHECKING:
    from starlette_realtime.testing.client import Client

__all__ = ["ClientRoom", "Received", "brief", "matches", "read_event"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """
    An event as a client gets it, its `data` decoded.

    `position`: it is kept. `sender`: None where it was the server. `at` is in Unix milliseconds. `id`: it is a request,
    to be answered. `recovered`: it was missed, and came with joining again.
    """

    event: str
    data: Any
    room: str | None = None
    position: Position | None = None
    sender: Sender | None = None
    at: int | None = None
    id: int | None = None
    recovered: bool = False


class ClientRoom:
    """A room that a `Client` is in, or was."""

    def __init__(self, client: "Client", name: str, *, served: bool) -> None:
        self.client = client
        self.name = name
        self.served = served
        """Whether the server joined it, as it does with `user:…`."""
        self.position: Position | None = None
        """How far it was heard; None: the room keeps nothing."""
        self.recovered = False
        """Whether the last join brought exactly what was missed."""
        self.reason = ""
        """Why it did not."""
        self.roster: Mapping[str, Any] | None = None
        """Who was there when it was joined, as `{seq, total, list}`; None where the room has no presence."""
        self.meta: object = None
        self.status: Status | None = None

    async def send(self, event: str, data: object = None, *, key: str | None = None) -> Any:
        """Send an event and wait for the acknowledgement: what the handler returned. Raises `Refused`."""
        return await self.client.send(event, data, room=self.name, key=key)

    async def event(self, name: str | None = None) -> Received:
        """The next unread event of this room, of that name where one is given."""
        return await self.client.event(name, room=self.name)

    async def nothing(self, *names: str) -> None:
        """`Client.nothing`, for this room."""
        await self.client.nothing(*names, room=self.name)

    async def reset(self) -> str:
        """Wait for a `reset`: the reason why events are, or may be, lost."""
        reason: str = (await self.client.expect("reset", room=self.name))["reason"]
        return reason

    async def presence(self) -> Mapping[str, Any]:
        """The next unread change of who is there: `joined`, `updated`, `left` and more, as they are on the wire."""
        return await self.client.expect("presence", room=self.name)

    async def members(self) -> list[dict[str, Any]]:
        """Ask who is there now: at most as many as the room shows."""
        found: list[dict[str, Any]] = (await self.client.call("members", room=self.name))["list"]
        return found

    async def users(self) -> set[str | None]:
        """Ask who is there now, by user."""
        return {member.get("user") for member in await self.members()}

    async def set_status(self, status: Status | None = None, *, meta: object = None) -> None:
        """Change what the others see of this member."""
        await self.client.call("status", room=self.name, status=status, meta=meta)
        self.status, self.meta = status or self.status, meta if meta is not None else self.meta

    async def history(self, *, before: Position | None = None, limit: int | None = None) -> list[Received]:
        """Ask for older events, oldest first."""
        page = await self.client.call("history", room=self.name, before=before, limit=limit)
        return [read_event({"room": self.name, **event}) for event in page["events"]]

    async def leave(self) -> None:
        """Leave the room."""
        await self.client.call("leave", room=self.name)
        self.client.rooms.pop(self.name, None)


def read_event(frame: Mapping[str, Any]) -> Received:
    """An event's frame, decoded."""
    position, sender = frame.get("position"), frame.get("from")
    return Received(
        event=frame["event"],
        data=frame.get("data"),
        room=frame.get("room"),
        position=None if position is None else msgspec.convert(position, Position),
        sender=None if sender is None else msgspec.convert(sender, Sender),
        at=frame.get("at"),
        id=frame.get("id"),
        recovered=frame.get("recovered", False),
    )


def matches(frame: Mapping[str, Any], kind: str, **fields: Any) -> bool:
    """Whether a frame is of that type and has these fields."""
    return frame["type"] == kind and all(frame.get(name) == value for name, value in fields.items())


def brief(frame: Mapping[str, Any]) -> str:
    """A frame in few words, for a complaint."""
    kind = frame["type"]
    match kind:
        case "event":
            said = f"event {frame['event']!r} {_short(frame.get('data'))}"
        case "reply" if "error" in frame:
            said = f"reply {frame['id']}: {frame['error']['code']}"
        case "reply":
            said = f"reply {frame['id']}: {_short(frame.get('data'))}"
        case "error" | "left":
            said = f"{kind}: {frame['code']}"
        case "reset":
            said = f"reset: {frame['reason']}"
        case _:
            said = kind
    return f"{said} in {frame['room']}" if "room" in frame else said


def _short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"
