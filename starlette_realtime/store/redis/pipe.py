"""Pipe: all commands to one server over one connection, in order, without waiting for each other's answers."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.errors import StoreError
from starlette_realtime.store.redis.line import Connect, Line, pack
from starlette_realtime.store.redis.scripts import Script

__all__ = ["Call", "Pipe"]

WRITE = 262_144
"""Bytes after which a write is full."""

AGAIN = 0.05
"""Seconds until a command is repeated that the server could not take for the moment."""

MOMENTARY = ("NOREPLICAS", "BUSY")
"""How errors begin that pass by themselves."""


class Call:
    """One command: what is sent, who waits for the answer, and until when."""

    __slots__ = ("asking", "data", "deadline", "error", "future", "once", "parts", "slot")

    def __init__(
        self, parts: Sequence[bytes], future: "asyncio.Future[Any]", *, slot: int, deadline: float, once: bool
    ) -> None:
        self.parts = parts
        self.data = pack(parts)
        self.future = future
        self.slot = slot
        self.deadline = deadline
        self.once = once  # not sent again when its answer was lost
        self.asking = False  # the next time it goes where an `ASK` said
        self.error: BaseException | None = None  # why it was not answered yet

    def instead(self, script: Script) -> None:
        """Send the script's text: the server doesn't know its digest."""
        self.parts = (b"EVAL", script.source, *self.parts[2:])
        self.data = pack(self.parts)

    def fail(self, reason: str) -> None:
        """Let whoever waits know."""
        if not self.future.done():
            why = "" if self.error is None else f": {str(self.error) or type(self.error).__name__}"
            error = StoreError(reason + why)
            error.__cause__ = self.error
            self.future.set_exception(error)


class Pipe(Line):
    """
    The commands to one server.

    A command whose answer was lost with the connection is sent again over the next one, unless it is to be sent `once`,
    until its deadline. When something is overdue and the server has owed an answer for half the time limit, the
    connection is given up: it may be half open.
    `limit` and `limit_bytes` bound what waits. `moved` takes commands that belong elsewhere.
    """

    speaks = True

    def __init__(
        self,
        connect: Connect,
        *,
        clock: Clock,
        timeout: float,
        name: str,
        scripts: dict[bytes, Script],
        moved: Callable[[Call, ResponseError], None] | None = None,
        failed: Callable[[BaseException], None] | None = None,
        limit: int = 100_000,
        limit_bytes: int = 67_108_864,
    ) -> None:
        super().__init__(connect, clock=clock, timeout=timeout, name=name)
        self._scripts = scripts
        self._moved = moved
        self._failed = failed
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._waiting: deque[Call] = deque()
        self._sent: deque[Call] = deque()
        self._size = 0
        self._owing = 0.0  # since when the server owes the next answer, where it owes any
        self._timer: Timer | None = None
        self._later: dict[Timer, Call] = {}
        self._taught: dict[bytes, Call] = {}  # digest → the command that brings the script's text

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent) + len(self._later)

    def submit(self, call: Call) -> None:
        """Send it as soon as possible, after what was submitted before. Its future tells the answer."""
        if len(self) >= self._limit or self._size + len(call.data) > self._limit_bytes:
            call.fail("too much waits for the store already")
            return
        self._size += len(call.data)
        self._waiting.append(call)
        if self._timer is None or call.deadline < self._timer.when:
            self._watch(call.deadline)
        self._wake.set()

    def take(self) -> list[Call]:
        """All that is not answered, in order: for another server. What may not be repeated fails."""
        calls = [*self._repeatable("the server went away before it answered"), *self._waiting, *self._later.values()]
        for timer in self._later:
            timer.cancel()
        self._later.clear()
        self._sent.clear()
        self._waiting.clear()
        self._size = 0
        return calls

    async def close(self) -> None:
        """End it; what waits fails."""
        await super().close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for call in self.take():
            call.fail("the store was closed")

    # --- the line ---

    def _opened(self) -> None:
        self._again()

    def _lost(self, trouble: BaseException) -> None:
        self._again()
        self._taught.clear()
        for call in self._waiting:
            call.error = trouble
        self._expire()
        if self._failed is not None:
            self._failed(trouble)

    def _again(self) -> None:
        """What was sent and not answered goes first, and in its order."""
        calls = list(self._repeatable("the answer was lost"))
        self._sent.clear()
        self._waiting.extendleft(reversed(calls))

    def _repeatable(self, reason: str) -> Iterator[Call]:
        for call in self._sent:
            if call.once:
                self._size -= len(call.data)
                call.fail(reason)
            elif call.future.done():
                self._size -= len(call.data)
            else:
                yield call

    def _outgoing(self) -> bytes:
        parts: list[bytes] = []
        size, now, waiting, sent = 0, self._clock.now(), self._waiting, self._sent
        if not sent:
            self._owing = now
        while waiting and size < WRITE:
            call = waiting.popleft()
            if call.future.done() or now >= call.deadline:  # nobody waits, or this process was frozen meanwhile
                self._size -= len(call.data)
                call.fail("the store did not answer in time")
                continue
            data = call.data
            if call.asking:
                # The answer to ASKING comes first: a call of its own that nobody waits for.
                asking = Call(
                    (b"ASKING",), call.future.get_loop().create_future(), slot=-1, deadline=call.deadline, once=True
                )
                self._size += len(asking.data)
                sent.append(asking)
                parts.append(asking.data)
            parts.append(data)
            sent.append(call)
            size += len(data)
        return b"".join(parts)

    def _incoming(self, reply: object) -> None:
        call = self._sent.popleft()
        self._size -= len(call.data)
        self._owing = self._clock.now()
        if self._taught and call.parts[0] == b"EVAL":
            self._taught = {sha: taught for sha, taught in self._taught.items() if taught is not call}
        if isinstance(reply, ResponseError):
            self._refused(call, reply)
        elif not call.future.done():
            call.future.set_result(reply)

    def _refused(self, call: Call, error: ResponseError) -> None:
        if call.future.done():
            return
        call.error = error
        if isinstance(error, NoScriptError) and (script := self._scripts.get(call.parts[1])) is not None:
            # Its text once: until that is answered, whatever comes after it knows the digest. A command that nobody
            # waits for any more may never be sent.
            taught = self._taught.get(script.sha)
            if taught is None or taught.future.done():
                self._taught[script.sha] = call
                call.instead(script)
            self.submit(call)
        elif isinstance(error, MovedError | AskError) and self._moved is not None:
            self._moved(call, error)
        elif isinstance(error, ReadOnlyError):
            # A master no more: whatever else is under way is refused as well, and goes to the next one.
            self.submit(call)
            self.drop(error)
        elif _passes(error):
            timer = self._clock.call_later(AGAIN, lambda: self._resubmit(timer))
            self._later[timer] = call
        else:
            call.fail("the store refused")

    def _resubmit(self, timer: Timer) -> None:
        call = self._later.pop(timer)
        if self._clock.now() >= call.deadline:
            call.fail("the store did not answer in time")
        else:
            self.submit(call)

    # --- deadlines ---

    def _watch(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(max(AGAIN, due - self._clock.now()), self._overdue)

    def _overdue(self) -> None:
        self._timer = None
        now, overdue = self._clock.now(), False
        late = TimeoutError(f"no answer within {self._timeout} s")
        for call in self._sent:
            if call.deadline <= now:
                overdue = True
                call.error = call.error or late
                call.fail("the store did not answer in time")
        # What has waited for a connection may be overdue on one that was made a moment ago, and is well.
        if overdue and now - self._owing >= self._timeout / 2:
            self.drop(late)
        self._expire()
        due = min((call.deadline for calls in (self._sent, self._waiting) for call in calls), default=None)
        if due is not None:
            self._watch(due)

    def _expire(self) -> None:
        now, kept = self._clock.now(), deque[Call]()
        for call in self._waiting:
            if call.deadline > now:
                kept.append(call)
            else:
                self._size -= len(call.data)
                call.fail("the store did not answer in time")
        self._waiting = kept


def _passes(error: ResponseError) -> bool:
    """Whether it will be another answer in a moment."""
    if isinstance(error, ClusterDownError | MasterDownError | TryAgainError):
        return True
    return not isinstance(error, OutOfMemoryError) and str(error).startswith(MOMENTARY)
