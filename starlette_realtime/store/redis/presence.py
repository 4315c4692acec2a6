"""Presence: one process's members, topic by topic, and how they are told apart from what was lost on the way."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from starlette_realtime.clock import Clock
from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry, Members, PresenceDiff
from starlette_realtime.store.redis.keys import Keys, ms
from starlette_realtime.store.redis.lately import Lately
from starlette_realtime.store.redis.lease import Lease
from starlette_realtime.store.redis.link import Link
from starlette_realtime.store.redis.mending import Mending
from starlette_realtime.store.redis.room import Records, Room, Unsettled
from starlette_realtime.store.redis.scripts import script
from starlette_realtime.store.redis.told import Gone

__all__ = ["BATCH", "KNOWN", "LIFE", "Presence", "PresenceChanged", "Records", "decode_diff", "decode_entries"]

PresenceChanged = Callable[[str, tuple[Entry, ...], tuple[Entry, ...]], object]
"""Topic, entries whose `who` appeared, entries whose `who` is gone."""

BATCH = 200
"""How many records one script announces anew, or removes."""

LIFE = 3_600.0
"""Seconds that presence records, slots and the index stand when no process refreshes them: not even a reaper."""

REFRESH = LIFE / 3
"""Seconds between two times that a topic's records are refreshed."""

KNOWN = 600.0
"""Seconds for which what came of a process's last operation in a topic is known, and for which tombstones stand."""

SOME_TIME = b"1"
"""When something was made of which it isn't known when, in the server's milliseconds."""

_entries = msgspec.json.Decoder(tuple[Entry, ...])
_departures = msgspec.json.Decoder(tuple[tuple[Entry, ...], tuple[str, ...], tuple[str, ...]])
_diff = msgspec.json.Decoder(tuple[tuple[Entry, ...], tuple[str, ...]])


def decode_diff(payload: bytes) -> PresenceDiff:
    """A presence diff, as it came over a topic's channel. Raises `ValueError` for anything else."""
    head, _, body = payload.partition(b"\n")
    kind, prev, seq = head.split(b" ")
    if kind != b"d":
        raise ValueError("this is no presence diff")
    entered, left = _diff.decode(body)
    return PresenceDiff(int(prev), int(seq), entered, left)


def decode_entries(answer: bytes) -> tuple[Entry, ...]:
    """The JSON of entries, as scripts answer it. Raises `StoreError` for what no store of ours has written."""
    try:
        return _entries.decode(answer) if answer != b"[]" else ()
    except (ValueError, RecursionError, msgspec.MsgspecError) as exc:
        raise StoreError("the store has presence records that no store of ours has written") from exc


def decode_departures(answer: bytes) -> tuple[tuple[Entry, ...], tuple[str, ...], tuple[str, ...]] | None:
    """What came of a leave, see `leave.lua`; None: it was not made. Raises `StoreError` as `decode_entries` does."""
    if answer == b"[]":
        return None
    try:
        return _departures.decode(answer)
    except (ValueError, RecursionError, msgspec.MsgspecError) as exc:
        raise StoreError("the store has presence records that no store of ours has written") from exc


class Presence:
    """
    The members of this process, in Redis as they should be: now, or as soon as it is there again.

    An operation has a number, and the server keeps what came of a process's last one in a topic. So one whose answer
    was lost is asked after before the next; and one that arrives late, when it has been given up, is not made.
    `changed` hears of what came of operations after whoever asked for them was told otherwise.
    """

    def __init__(
        self, link: Link, keys: Keys, lease: Lease, *, clock: Clock, timeout: float, changed: PresenceChanged
    ) -> None:
        self._link = link
        self._keys = keys
        self._lease = lease
        self._clock = clock
        self._timeout = timeout
        self._changed = changed
        self._publish = b"SPUBLISH" if link.sharded else b"PUBLISH"
        self._rooms: OrderedDict[str, Room] = OrderedDict()  # the longest not refreshed first
        self._number = 0
        self._mending = Mending(self._mend, clock=clock, retry=min(0.5, lease.length / 10))
        # Whatever was set back by more than a lease takes this process for dead.
        self._left = Lately(link.steady_since, clock=clock, keep=2 * lease.length)
        self._gone = Gone(clock=clock, keep=KNOWN)
        self._beaten = clock.now()

    # --- what the store does ---

    async def enter(self, topic: str, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """See `Store.enter`."""
        if not entries:
            return ()
        entries = tuple(entries)
        async with self._room(topic) as room:
            before = {entry.connection: room.mine.get(entry.connection) for entry in entries}
            latest = {entry.connection: entry for entry in entries}
            for entry in entries:
                room.put(entry)
            room.coming.update(latest)
            try:
                async with self._in_turn(room):
                    joined = await self._enter(room, entries)
                for connection in latest:
                    room.leaving.pop(connection, None)
            except BaseException:
                for connection, entry in latest.items():
                    if room.mine.get(connection) is entry:  # not left or changed meanwhile
                        room.take(connection)
                        if (old := before[connection]) is not None:
                            room.put(old)
                if room.unsettled is not None:
                    self._mending.soon((topic,))
                raise
            finally:
                for connection, entry in latest.items():
                    if room.coming.get(connection) is entry:
                        del room.coming[connection]
            return joined

    async def leave(self, topic: str, connections: Sequence[str]) -> tuple[Entry, ...]:
        """See `Store.leave`."""
        known = self._rooms.get(topic)
        if known is None:
            return ()
        leaving = {one: entry for one in connections if (entry := known.take(one)) is not None}
        if not leaving:
            return ()
        async with self._room(topic) as room:
            since = self._link.steady_since(room.keys.channel)
            try:
                async with self._in_turn(room):
                    left = await self._leave(room, leaving)
            except BaseException:
                room.leaving.update((one, entry) for one, entry in leaving.items() if one not in room.mine)
                self._mending.soon((topic,))
                raise
            if not room.mine:
                self._left.add(topic, room.keys.channel, since)
                self._mending.soon((topic,))  # it is no longer to be noted
            return left

    async def members(self, topic: str, limit: int) -> Members:
        """See `Store.members`."""
        keys = Records.of(self._keys.topic(topic))
        args = (b"%d" % max(0, limit),)
        sequence, total, entries = await self._link.run(script("members"), (keys.meta, keys.records, keys.order), args)
        return Members(int(sequence), total, decode_entries(entries))

    def renewed(self) -> None:
        """The process has another id: its members are announced anew."""
        if self._clock.now() - self._beaten >= KNOWN:  # that others declared it dead is forgotten by now
            for room in self._rooms.values():
                room.told.forget()
        self._mending.soon(self._rooms)

    def refresh(self) -> None:
        """To be called now and then: have records outlive servers, and their own expiry."""
        self._beaten = now = self._clock.now()
        since: dict[bytes, float | None] = {}
        due: list[str] = []
        for topic, room in self._rooms.items():
            tag = room.keys.channel.partition(b"}")[0]
            if tag not in since:
                since[tag] = self._link.steady_since(room.keys.channel)
            if now - room.refreshed >= REFRESH or (since[tag] is not None and since[tag] != room.steady):
                due.append(topic)
        self._mending.soon((*due, *self._left.suspects()))

    async def stop(self) -> None:
        """Have all members of this process leave. Raises `StoreError`."""
        await self._mending.end()
        rooms = list(self._rooms)
        for room in self._rooms.values():
            for connection, entry in list(room.mine.items()):
                room.leaving[connection] = entry
                room.take(connection)
        for start in range(0, len(rooms), BATCH):
            some = (self._mend(topic) for topic in rooms[start : start + BATCH])
            for result in await asyncio.gather(*some, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result

    async def discard(self) -> None:
        """Forget what this process had."""
        await self._mending.end()
        self._rooms.clear()
        self._left.clear()
        self._gone.clear()

    def gauges(self) -> dict[str, int]:
        """What is held."""
        return {"presence_topics": len(self._rooms), "presence_mending": len(self._mending)}

    # --- one topic at a time ---

    @asynccontextmanager
    async def _room(self, topic: str) -> AsyncIterator[Room]:
        room = self._rooms.get(topic)
        if room is None:
            room = self._rooms[topic] = Room(topic, Records.of(self._keys.topic(topic)), self._gone)
            room.refreshed = self._clock.now()
        room.users += 1
        try:
            yield room
        finally:
            room.users -= 1
            if room.idle and self._rooms.get(topic) is room:
                del self._rooms[topic]

    @asynccontextmanager
    async def _in_turn(self, room: Room) -> AsyncIterator[None]:
        try:
            async with self._clock.timeout(self._timeout), room.lock:
                yield
        except TimeoutError as exc:
            raise StoreError(f"the store did not answer within {self._timeout} s") from exc

    async def _enter(self, room: Room, entries: Collection[Entry], *, anew: bool = False) -> tuple[Entry, ...]:
        """`anew`: what another process has taken over meanwhile stays with that one."""
        for _ in range(2):
            await self._settle(room)
            node = await self._lease.standing()
            if not await self._index(room, node):
                continue
            number = self._next()
            former = self._lease.earlier if anew else b"*"
            args = [self._publish, node.encode(), number, self._lease.until, former, ms(LIFE), ms(KNOWN), room.told.ids]
            args += room.told.entering(entries)
            if room.steady is None:
                room.steady = self._link.steady_since(room.keys.channel)
            may, *answer = await self._perform(room, node, number, args)
            if may:
                room.told.came(entries, node, answer[1])
                return decode_entries(answer[0])
            self._lease.missed(node)
        raise StoreError("the store took this process for dead twice in a row: do its servers' clocks agree?")

    async def _leave(self, room: Room, leaving: Mapping[str, Entry | None]) -> tuple[Entry, ...]:
        """Tells who left; who is there after all is told to `changed`."""
        await self._settle(room)
        node = await self._lease.standing()
        number = self._next()
        args = [self._publish, node.encode(), number, self._lease.earlier, ms(KNOWN), b"0", b"0", room.told.ids]
        args += room.told.leaving(leaving)
        answer, _, at = await self._perform(room, node, number, args, leaving)
        return self._went(room, leaving, answer, at)

    def _went(self, room: Room, leaving: Mapping[str, Entry | None], answer: bytes, at: bytes) -> tuple[Entry, ...]:
        if (made := decode_departures(answer)) is None:
            return ()
        for connection in leaving:
            room.leaving.pop(connection, None)
        back, left = room.told.went(leaving, *made, at)
        self._tell(room, back, ())
        return left

    async def _perform(
        self,
        room: Room,
        node: str,
        number: bytes,
        args: Sequence[bytes],
        leaving: Mapping[str, Entry | None] | None = None,
    ) -> Any:
        keys = room.keys
        last = keys.last(node)
        room.unsettled = Unsettled(last, number, leaving)
        made = script("enter" if leaving is None else "leave")
        answer = await self._link.run(made, (*keys, keys.owned(node), keys.tombstone(node), last), args)
        room.unsettled = None
        return answer

    async def _settle(self, room: Room) -> None:
        """Learn what came of the operation before, or have it never made."""
        if (unsettled := room.unsettled) is not None:
            answer = await self._link.run(script("settle"), (unsettled.key,), (unsettled.number, ms(KNOWN)))
            room.unsettled = None
            if unsettled.leaving is None:
                self._tell(room, decode_entries(answer), ())
            else:
                self._tell(room, (), self._went(room, unsettled.leaving, answer, SOME_TIME))

    async def _index(self, room: Room, node: str) -> bool:
        """Note that this process has members there, so that a reaper finds them; False: it was declared dead."""
        if room.indexed != node:
            keys = (self._keys.node(node, "rooms"), self._keys.node(node, "x"))
            args = (room.topic.encode(errors="surrogatepass"), self._next(), ms(24 * LIFE))
            if not await self._link.run(script("index"), keys, args):
                self._lease.missed(node)
                return False
            room.indexed = node
        return True

    async def _mend(self, topic: str) -> None:
        """Have in Redis what this process should have in this topic, and nothing else."""
        async with self._room(topic) as room, room.lock:
            await self._settle(room)
            node = await self._lease.standing()
            renewed = room.indexed not in ("", node)
            since = self._link.steady_since(room.keys.channel)
            found = False
            for id in {node, room.indexed} - {""}:
                there = await self._link.call(b"SMEMBERS", room.keys.owned(id), key=room.keys.channel)
                extra = [one for one in (connection.decode() for connection in there) if one not in room.mine]
                found = found or bool(extra)
                extra += [one for one in room.leaving if one not in room.mine and one not in extra]
                leaving = [(one, room.leaving.get(one)) for one in extra]
                for start in range(0, len(leaving), BATCH):
                    self._tell(room, (), await self._leave(room, dict(leaving[start : start + BATCH])))
            suspect = since != room.steady and (found or bool(room.mine))
            if room.mine:
                if not renewed:
                    room.indexed = ""  # once more: the index expires, too
                entries = [entry for connection, entry in room.mine.items() if room.coming.get(connection) is not entry]
                for start in range(0, len(entries), BATCH):
                    self._tell(room, await self._enter(room, entries[start : start + BATCH], anew=True), ())
            else:
                self._left.add(topic, room.keys.channel, since)
                if found or room.indexed == node:
                    await self._unindex(room, node)
                room.indexed = ""  # what is left under an earlier id is cleared away with it
            if suspect:
                await self._link.run(script("era"), room.keys[:2], (self._publish,))
                await self._adopt(room)
            room.steady = since
            room.refreshed = self._clock.now()

    async def _unindex(self, room: Room, node: str) -> None:
        args = (self._next(), room.topic.encode(errors="surrogatepass"))
        await self._link.run(script("unindex"), (self._keys.node(node, "rooms"),), args)

    async def _adopt(self, room: Room) -> None:
        """
        Give processes that nobody knows, and that have members there, to the reapers.

        Another master's failure may have lost that they existed.
        """
        holders = await self._link.call(b"SMEMBERS", room.keys.holders, key=room.keys.channel)
        unknown = {holder.decode() for holder in holders}
        if not unknown - {self._lease.node}:
            return
        for node in unknown - await self._lease.known():
            topics = self._keys.node(node, "rooms")
            args = (b"ZADD", topics, b"0", room.topic.encode(errors="surrogatepass"))
            await self._link.call(*args, key=topics)
            await self._link.call(b"ZADD", self._keys.nodes, b"NX", b"0", node.encode(), key=self._keys.nodes)

    def _tell(self, room: Room, joined: tuple[Entry, ...], left: tuple[Entry, ...]) -> None:
        if joined or left:
            self._changed(room.topic, joined, left)

    def _next(self) -> bytes:
        self._number += 1
        return b"%d" % self._number
