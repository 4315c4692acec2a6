"""Census: what all processes together know of connections, asked and answered over the store."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Annotated, Any, Self, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from starlette_realtime.clock import Clock
from starlette_realtime.connection import Connection
from starlette_realtime.errors import StoreError, Unavailable
from starlette_realtime.messages import ConnectionInfo, Connections, Counts, Delivery, Entry, ProcessCounts, Publication
from starlette_realtime.store import PROCESSES, Store
from starlette_realtime.tasks import Tasks

__all__ = ["Census"]

logger = logging.getLogger("starlette_realtime.rooms")

ANSWER = b"census "
"""What an answer begins with, among all that may be sent to a process."""

MOST = 1_000
"""How many connections one answer tells of at most."""

ANSWER_BYTES = 128 * 1024
"""How large they may be together: a process's inbox takes several answers at once."""

MOST_PROCESSES = 10_000
"""How many processes are asked at most."""

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading something of another process raises, that is not what it should be."""

OPEN = 100
"""How many questions may be open here, and how many of others are being answered, at most."""

_Count: TypeAlias = Annotated[int, Meta(ge=0)]


class _Question(Struct, frozen=True, omit_defaults=True):
    """Which connections there are of a user, or in a room; with neither, how many at all."""

    id: str
    asker: str
    node: str
    user: str | None = None
    room: str | None = None
    limit: _Count = 0


class _Row(Struct, frozen=True, array_like=True):
    """One connection in an answer."""

    connection: str
    user: str | None
    since: int
    rooms: tuple[str, ...]


class _Answer(Struct, frozen=True, omit_defaults=True):
    """What one process knows; `total` may be more than the rows."""

    question: str
    process: str
    node: str
    total: _Count
    users: _Count = 0
    rooms: _Count = 0
    rows: Annotated[tuple[_Row, ...], Meta(max_length=MOST)] = ()


class _Gathering:
    """The answers to one question; `waiting` are the processes that have not given theirs."""

    def __init__(self, waiting: Iterable[str]) -> None:
        self.waiting = set(waiting)
        self.answers: dict[str, _Answer] = {}
        self.complete = asyncio.Event()

    def add(self, answer: _Answer) -> None:
        if answer.process in self.answers or len(self.answers) > MOST_PROCESSES:
            return
        self.answers[answer.process] = answer
        self.waiting.discard(answer.process)
        if not self.waiting:
            self.complete.set()


_question = msgspec.json.Decoder(_Question).decode
_answer = msgspec.json.Decoder(_Answer).decode


class Census:
    """
    Asks every process that serves connections, and answers for this one.

    Entered, with `connections`, it answers: it is present in `PROCESSES` as long as its lease, and listens there. So
    it is known who should answer, and who didn't is named. Without `connections` it only asks. What comes over the
    store is not trusted to be what it should.
    """

    def __init__(
        self, store: Store, clock: Clock, *, connections: Callable[[], Iterable[Connection]] | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._connections = connections
        self._id = secrets.token_urlsafe(12)
        self._since = 0
        self._announced = ""
        self._asking: dict[str, _Gathering] = {}
        self._answering = Tasks("a question about connections was not answered", logger=logger)

    # --- asking -----------------------------------------------------------------------------------------------------

    async def find(
        self, *, user: str | None = None, room: str | None = None, limit: int, timeout: float
    ) -> Connections:
        """
        The connections of a user, or in a room: at most `limit` of each process, and never over `MOST`.

        Processes have `timeout` seconds. Raises `Unavailable`.
        """
        answers, missing = await self._ask(timeout, user=user, room=room, limit=max(0, min(limit, MOST)))
        found = tuple(
            ConnectionInfo(row.connection, answer.node, row.user, row.since, row.rooms)
            for answer in answers
            for row in answer.rows
        )
        return Connections(found, sum(answer.total for answer in answers), missing)

    async def count(self, *, timeout: float) -> Counts:
        """How many connections each process has, which has `timeout` seconds to tell. Raises `Unavailable`."""
        answers, missing = await self._ask(timeout)
        processes: dict[str, ProcessCounts] = {}
        for answer in answers:  # one process may serve several times: at several paths, say
            known = processes.get(answer.node, ProcessCounts(0, 0, 0))
            processes[answer.node] = ProcessCounts(
                known.connections + answer.total, known.users + answer.users, known.rooms + answer.rooms
            )
        return Counts(sum(answer.total for answer in answers), processes, missing)

    async def _ask(self, timeout: float, **what: Any) -> tuple[list[_Answer], tuple[str, ...]]:
        """What was answered within `timeout` seconds, and the processes that did not."""
        if len(self._asking) >= OPEN:
            raise Unavailable(f"{OPEN} such questions are open")
        number = secrets.token_urlsafe(12)
        gathering = self._asking[number] = _Gathering(())
        try:
            await self._store.receive(self._hear)
            question = _Question(number, self._id, self._store.node, **what)
            members = await self._store.members(PROCESSES, limit=MOST_PROCESSES)
            nodes = {entry.connection: _node(entry) for entry in members.entries if entry.connection != self._id}
            gathering.waiting.update(nodes)
            if nodes:
                await self._store.publish_volatile(PROCESSES, msgspec.json.encode(question))
                with suppress(TimeoutError):
                    async with self._clock.timeout(timeout):
                        await gathering.complete.wait()
        except StoreError as exc:
            raise Unavailable from exc
        finally:
            del self._asking[number]
        own = [] if self._connections is None else [self._know(question)]
        missing = dict.fromkeys(node for process, node in nodes.items() if process in gathering.waiting)
        return [*own, *gathering.answers.values()], tuple(missing)

    def _hear(self, data: bytes) -> None:
        if not data.startswith(ANSWER):
            return
        try:
            answer = _answer(data[len(ANSWER) :])
        except UNREADABLE:
            logger.error("a process's answer could not be read")
            return
        gathering = self._asking.get(answer.question)
        if gathering is not None:
            gathering.add(answer)

    # --- answering --------------------------------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        if not isinstance(delivery, Publication):
            return
        try:
            question = _question(delivery.data)
        except UNREADABLE:
            logger.error("a question about connections could not be read")
            return
        if question.asker == self._id:
            return
        if len(self._answering) >= OPEN:
            logger.warning("over %d questions about connections at once: one is not answered", OPEN)
            return
        self._answering.start(self._reply(question))

    async def _reply(self, question: _Question) -> None:
        try:
            await self._store.send(question.node, ANSWER + msgspec.json.encode(self._know(question)))
            if self._announced != self._store.node:
                await self._announce()  # it is another incarnation now
        except StoreError as exc:
            logger.info("a question about connections was not answered: %s", exc)

    def _know(self, question: _Question) -> _Answer:
        """What this process knows."""
        assert self._connections is not None
        there = [connection for connection in self._connections() if not connection.closed]
        if question.user is None and question.room is None:
            users = {connection.user for connection in there} - {None}
            rooms = {room for connection in there for room in _rooms(connection)}
            return _Answer(question.id, self._id, self._store.node, len(there), len(users), len(rooms))
        if question.user is not None:
            there = [connection for connection in there if connection.user == question.user]
        if question.room is not None:
            there = [connection for connection in there if question.room in connection.rooms]
        there.sort(key=lambda connection: connection.opened)
        rows, size = list[_Row](), 0
        for connection in there[: min(question.limit, MOST)]:
            row = _Row(connection.id, connection.user, round(connection.opened * 1000), _rooms(connection))
            size += len(msgspec.json.encode(row))
            if size > ANSWER_BYTES:
                break
            rows.append(row)
        return _Answer(question.id, self._id, self._store.node, len(there), rows=tuple(rows))

    # --- being there ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Answer from now on. Raises `StoreError`."""
        if self._connections is not None:
            self._since = round(self._clock.time() * 1000)
            await self._store.subscribe(PROCESSES, self._deliver)
            try:
                await self._announce()
            except BaseException:
                await self._store.unsubscribe(PROCESSES, self._deliver)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._store.ignore(self._hear)
        if self._connections is None:
            return
        await self._store.unsubscribe(PROCESSES, self._deliver)
        self._answering.cancel()
        await self._answering.ended()
        with suppress(StoreError):  # then it leaves with its lease
            await self._store.leave(PROCESSES, (self._id,))

    async def _announce(self) -> None:
        node = self._store.node
        meta = Raw(msgspec.json.encode(node))
        await self._store.enter(PROCESSES, (Entry(self._id, f"n:{self._id}", meta=meta, since=self._since),))
        self._announced = node


def _rooms(connection: Connection) -> tuple[str, ...]:
    return tuple(name for name in connection.rooms if not name.startswith("user:"))


def _node(entry: Entry) -> str:
    """The process that announced itself; the entry's own id where it doesn't say."""
    try:
        return msgspec.json.decode(entry.meta if isinstance(entry.meta, Raw) else b"", type=str)
    except UNREADABLE:
        return entry.connection
