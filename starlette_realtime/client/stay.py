"""A stay in one room: how far it was heard, who is there, and what waits to be read. No I/O."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import UNSET

from starlette_realtime.client.inbox import End, Inbox, Mark, News
from starlette_realtime.client.presence import Presence
from starlette_realtime.client.values import Reset, RoomState
from starlette_realtime.messages import Event, JoinedRoom, Position, Roster, Status
from starlette_realtime.messages import Reset as ResetFrame

__all__ = ["Stay"]


class Stay:
    """
    From the join to the end, over any number of links.

    A reader that lags makes the room fall `behind`: what comes then is passed over, and fetched again from the room's
    history, from `position` on, once there is space. `served`: the server joined it, and will again.
    """

    def __init__(
        self,
        name: str,
        inbox: Inbox,
        *,
        served: bool,
        since: Position | None,
        ask: Callable[[Callable[[Roster | None], None]], None],
        people_changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.inbox = inbox
        self.served = served
        self.position = since
        """Of the last kept event that was put into the inbox; None: none yet, or an ephemeral room."""
        self.state: RoomState = "joining"
        self.error: Exception | None = None
        self.meta: Any = None
        self.status: Status | None = None
        self.presence = Presence(ask, people_changed)
        self.behind = False
        self.catching_up = False
        self.stale = False
        self.admitted = False
        """Whether it was joined once."""
        self._known = since is not None  # there is something to resume

    @property
    def joined(self) -> bool:
        """Whether the server has joined the present connection."""
        return self.state == "joined"

    def since(self) -> Position | None:
        """What to join with now: while there is no space for what was missed, it isn't asked for."""
        if self.behind and self.inbox.low:
            self.behind = False
        return None if self.behind else self.position

    def entered(self, data: JoinedRoom) -> None:
        """The server's answer to a join: what was missed is put into the inbox, or declared lost."""
        again, self._known = self._known, True
        self.state = "joined"
        self.admitted = True
        if data.members is not None:
            self.presence.load(data.members)
        if self.behind:
            return
        events: Sequence[Event] = () if data.events is UNSET else data.events
        resumed = again and data.recovered is True
        if again and not resumed:
            reason = data.reason or ("unknown" if data.position else "ephemeral")
            self.inbox.put(Reset(self.name, reason, data.position))
        if not resumed:
            self.position = data.position
        for event in events:
            if not resumed or self._is_news(event):
                self.inbox.put(News(event, True, memoryview(event.data).nbytes))
        self.position = data.position
        self.inbox.put(Mark(self.position))

    def event(self, event: Event) -> None:
        """A live event."""
        if not self.joined:
            return  # before the reply to a join, frames belong to an earlier stay
        if not self.behind and self.inbox.full:
            self.behind = True
        if not self.behind and self._is_news(event):
            self.position = event.position or self.position
            self.inbox.put(News(event, False, memoryview(event.data).nbytes))

    def reset(self, frame: ResetFrame) -> None:
        """The server lost something, or lost count."""
        if not self.joined:
            return
        self.presence.reset()
        if self.inbox.full:
            self.behind = True
        if not self.behind:  # else the catching up tells
            self.position = frame.position
            self.inbox.put(Reset(self.name, frame.reason, frame.position))

    def disconnected(self) -> None:
        """The link is over."""
        self.state = "joining"
        self.catching_up = self.stale = False
        if self._known and not self.inbox.low:
            self.behind = True

    def caught_up(self) -> None:
        """There is space again, in a room that has no history: what was passed over is lost."""
        self.behind = False
        self.inbox.put(Reset(self.name, "lagged"))

    def end(self, state: RoomState, error: Exception, *, wanted: bool) -> None:
        """It is over: left by the application's own wish, or refused, or removed by the server."""
        self.state = state
        self.error = error
        if not self.mirrored:
            self.inbox.put(End(None if wanted else error))

    @property
    def mirrored(self) -> bool:
        """The user's own room: its events are the client's."""
        return self.served and self.name.startswith("user:")

    def _is_news(self, event: Event) -> bool:
        """Offsets may skip: what was sent to others only isn't for us."""
        last, position = self.position, event.position
        if position is None or last is None or last.epoch != position.epoch:
            return True
        return position.offset > last.offset
