"""Messages: commands, events and records, as msgspec structs. The native protocol's frames are these, in JSON."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import UNSET, Raw, Struct, UnsetType, field

NULL = Raw(b"null")

Status: TypeAlias = Literal["online", "away"]


# --- who, and where -------------------------------------------------------------------------------------------------


class Identity(Struct, frozen=True):
    """
    An authenticated peer.

    `user` is 1 to 128 characters of NFC without control characters, or None for an anonymous peer; `claims` is
    what the credentials say besides; `expires_at` is in Unix seconds, None: with the connection. `issued_at`, in Unix
    seconds, is from when on it has been known: a revocation from then on means it. `AuthGuard` fills it in, with 0
    where nobody can tell.
    """

    user: str | None
    claims: Mapping[str, object] = field(default_factory=dict)
    expires_at: float | None = None
    issued_at: float | None = None


class Position(Struct, frozen=True):
    """
    A place in one topic's publications: which stream, how much of it, and what was last.

    `offset` counts from 1, and 0 is before the first; `id` names the publication at `offset` ("" at 0).
    Clients keep it as it is.
    """

    epoch: str
    offset: int
    id: str


class History(Struct, frozen=True):
    """What a topic keeps: at most `size` publications, until `ttl` seconds after the last of them."""

    size: int = 512
    ttl: float = 300.0


class Entry(Struct, frozen=True, omit_defaults=True):
    """
    One presence record: a connection in a topic.

    `who` is what connections are counted by: `u:` and the user, or `s:` and the session of an anonymous peer; it
    never leaves the server. `meta` is JSON; `since` is in Unix milliseconds.
    """

    connection: str
    who: str
    user: str | None = None
    status: Status = "online"
    meta: Raw | UnsetType = UNSET
    since: int = 0


# --- what the store keeps and delivers ------------------------------------------------------------------------------


class Publication(Struct, frozen=True):
    """
    One event in the store.

    `data` is opaque to the store; `at` is the store's clock in Unix milliseconds; `previous` is the id of the
    publication before it ("" before the first). A volatile publication has no position.
    """

    data: bytes
    at: int
    position: Position | None = None
    previous: str = ""


class Recovery(Struct, frozen=True):
    """
    What a topic published after a position, oldest first, up to `position`, the topic's current one.

    `complete` is False when the history does not reach back: `reason` then says why, there are no publications,
    and the reader must start afresh.
    """

    publications: tuple[Publication, ...]
    position: Position
    complete: bool
    reason: str = ""


class Page(Struct, frozen=True):
    """
    Older publications, oldest first. `more`: there are still older ones in the history; `truncated`: there were,
    and the history has dropped them.
    """

    publications: tuple[Publication, ...]
    more: bool
    truncated: bool


class Members(Struct, frozen=True):
    """A topic's presence at sequence `seq`: `total` connections, of which `entries` are at most the asked-for many."""

    seq: int
    total: int
    entries: tuple[Entry, ...]


class PresenceDiff(Struct, frozen=True):
    """What led from presence sequence `prev` to `seq`: entries that came or changed, and connections that left."""

    prev: int
    seq: int
    entered: tuple[Entry, ...] = ()
    left: tuple[str, ...] = ()


class Gap(Struct, frozen=True):
    """Publications were, or may have been, lost for good: go on from `position`."""

    position: Position
    reason: str


class Stale(Struct, frozen=True):
    """The store is away: nothing arrives until `Fresh`."""


class Fresh(Struct, frozen=True):
    """The store is back, and what it published meanwhile has been delivered."""


Delivery: TypeAlias = Publication | PresenceDiff | Gap | Stale | Fresh


class Node(Struct, frozen=True):
    """One process on the store: its incarnation's id, and how long ago it was last heard of, in seconds."""

    id: str
    age: float


class ConnectionInfo(Struct, frozen=True):
    """
    One client's connection, on any process: its public id, the process (`Node.id`) that has it, and who it is.

    `user` is None for an anonymous one, and before `auth`; `since` is in Unix milliseconds; `rooms` are those that it
    is in, without its user's own.
    """

    connection: str
    node: str
    user: str | None
    since: int
    rooms: tuple[str, ...]


class Connections(Struct, frozen=True):
    """
    Connections that were asked for, the longest there first on each process.

    `total` is how many there are on the processes that answered; `connections` may be fewer. `missing` are the
    processes (`Node.id`) that did not answer in time: what they have is in neither.
    """

    connections: tuple[ConnectionInfo, ...]
    total: int
    missing: tuple[str, ...] = ()


class ProcessCounts(Struct, frozen=True):
    """How many connections one process has, of how many users, in how many rooms (user rooms aside)."""

    connections: int
    users: int
    rooms: int


class Counts(Struct, frozen=True):
    """
    How many connections there are, in total and by process (`Node.id`).

    A user or a room that is on several processes counts in each. `missing` are the processes that did not answer in
    time, and are not counted.
    """

    connections: int
    processes: Mapping[str, ProcessCounts]
    missing: tuple[str, ...] = ()


class Sender(Struct, frozen=True, omit_defaults=True):
    """Who published: the public id of the connection and, where the room shows users, the user."""

    connection: str
    user: str | None = None


class Body(Struct, frozen=True, omit_defaults=True, array_like=True):
    """
    What a room publishes: a publication's `data`.

    `exclude` is the session that does not get it, `only` the one connection that does.
    """

    event: str
    data: Raw
    sender: Sender | None = None
    exclude: str | None = None
    only: str | None = None


# --- commands: what a client asks -----------------------------------------------------------------------------------


class _Command(Struct, frozen=True, kw_only=True, tag_field="type"):
    id: int | None = None


class Auth(_Command, tag="auth", frozen=True):
    """Authenticate or refresh, continue a session, and say how far the rooms were heard that the server joins."""

    token: str | None = None
    session: str | None = None
    since: dict[str, Position] = field(default_factory=dict)


class Join(_Command, tag="join", frozen=True):
    """Join a room, at a position where there is one."""

    room: str
    since: Position | None = None
    meta: Raw | None = None
    status: Status = "online"


class Leave(_Command, tag="leave", frozen=True):
    """Leave a room."""

    room: str


class Send(_Command, tag="event", frozen=True):
    """An event for a room's handler, or for the connection's where there is no room."""

    event: str
    data: Raw = NULL
    room: str | None = None
    key: str | None = None


class SetStatus(_Command, tag="status", frozen=True):
    """Change the presence record in one room, or in all joined ones."""

    status: Status | None = None
    meta: Raw | UnsetType | None = UNSET
    room: str | None = None


class GetHistory(_Command, tag="history", frozen=True):
    """Page backwards through a room's history."""

    room: str
    before: Position | None = None
    limit: int | None = None


class GetMembers(_Command, tag="members", frozen=True):
    """Ask for a presence snapshot."""

    room: str


class Failure(Struct, frozen=True, omit_defaults=True):
    """Why not: the `error` of a reply, and what an `error` frame holds. `retry_after` is in seconds."""

    code: str
    message: str = ""
    retry_after: float | None = None
    fields: Mapping[str, str] | None = None


class Answer(_Command, tag="reply", frozen=True):
    """A client's answer to the server's request with that `id`."""

    data: Raw = NULL
    error: Failure | None = None


class Pong(_Command, tag="pong", frozen=True):
    """A sign of life."""


Command: TypeAlias = Auth | Join | Leave | Send | SetStatus | GetHistory | GetMembers | Answer | Pong


# --- events: what the server says -----------------------------------------------------------------------------------


class Bounds(Struct, frozen=True):
    """What a client should know before it hits it: the size of a message in bytes, the number of joined rooms."""

    message_bytes: int
    rooms: int


class Welcome(Struct, frozen=True, tag_field="type", tag="welcome"):
    """The first event: the connection's public id, and the heartbeat in seconds."""

    connection: str
    heartbeat: float
    limits: Bounds
    server: str


class Reply(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="reply"):
    """The one answer to the command with that id: `data`, or `error`."""

    id: int
    data: Raw | UnsetType = UNSET
    error: Failure | UnsetType = UNSET


class Event(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="event"):
    """
    Something happened.

    `data` is JSON as it stands, in bytes: `msgspec.json.decode(event.data)` reads it. With `position`, the event is
    kept. `sender` is the `connection` and, where the room shows users, the `user` who published it; None: the server.
    `at` is in Unix milliseconds. With `id`, the server wants an answer.
    """

    event: str
    data: Raw
    room: str | None = None
    position: Position | None = None
    sender: Sender | None = field(default=None, name="from")
    at: int | None = None
    id: int | None = None


class MemberInfo(Struct, frozen=True, omit_defaults=True):
    """A member as clients see it; `since` in Unix milliseconds."""

    connection: str
    user: str | None = None
    status: Status | UnsetType = UNSET
    meta: Raw | UnsetType = UNSET
    since: int | UnsetType = UNSET


class Roster(Struct, frozen=True):
    """A presence snapshot: at most as many members as the room shows, of `total`."""

    seq: int
    total: int
    list: Sequence[MemberInfo]


class JoinedRoom(Struct, frozen=True, omit_defaults=True):
    """What joining gives: where the room is, what was missed, who is there."""

    recovered: bool | UnsetType = UNSET
    events: Sequence[Event] | UnsetType = UNSET
    position: Position | None = None
    reason: str | None = None
    members: Roster | None = None


class Joined(JoinedRoom, frozen=True, omit_defaults=True, kw_only=True, tag_field="type", tag="joined"):
    """The server joined this connection to a room."""

    room: str


class Left(Struct, frozen=True, tag_field="type", tag="left"):
    """The server removed this connection from a room; `code` is an error code."""

    room: str
    code: str


class Presence(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="presence"):
    """
    How a room's members changed between two sequences; the lists hold final states, `left` connections.

    Above the room's bound only `seq`, `total` and a `sample` of the members.
    """

    room: str
    seq: int
    prev: int | None = None
    joined: Sequence[MemberInfo] = ()
    updated: Sequence[MemberInfo] = ()
    left: Sequence[str] = ()
    total: int | None = None
    sample: Sequence[MemberInfo] | None = None


class Reset(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="reset"):
    """Events were, or may have been, lost: start afresh from your own source of truth."""

    room: str
    reason: str
    position: Position | None = None


class StoreAway(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="stale"):
    """The store is away, for one room or for all."""

    room: str | None = None


class StoreBack(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="fresh"):
    """The store is back."""

    room: str | None = None


class Expiring(Struct, frozen=True, tag_field="type", tag="expiring"):
    """The credentials expire in so many seconds: send `auth` with new ones."""

    expires_in: float


class Reconnect(Struct, frozen=True, tag_field="type", tag="reconnect"):
    """Come back after so many seconds, to another process."""

    after: float
    reason: str


class Limits(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="limits"):
    """What is left to spend."""

    remaining: int
    retry_after: float
    event: str | None = None


class Error(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="error"):
    """What was wrong with a frame that had no id; also said before every close."""

    code: str
    message: str = ""
    retry_after: float | None = None
    fields: Mapping[str, str] | None = None


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    """Are you there?"""


ServerEvent: TypeAlias = (
    Welcome
    | Reply
    | Event
    | Joined
    | Left
    | Presence
    | Reset
    | StoreAway
    | StoreBack
    | Expiring
    | Reconnect
    | Limits
    | Error
    | Ping
)


# --- what handlers of authentication give back ----------------------------------------------------------------------


class Authenticated(Struct, frozen=True):
    """The `data` of the reply to `auth`; `expires_in` in seconds, null: with the connection."""

    user: str | None
    expires_in: float | None
    session: str


class Events(Struct, frozen=True):
    """
    A page of a room's history, oldest first; also the `data` of the reply to `history`.

    `more`: there are still older ones; `truncated`: there were, and the history has dropped them.
    """

    events: Sequence[Event]
    more: bool
    truncated: bool
