"""SyncPublisher: a Publisher for code that is not asynchronous, in a thread of its own."""

import asyncio
import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from starlette_realtime.errors import ConfigurationError, Unavailable
from starlette_realtime.messages import Connections, Counts, Node, Position
from starlette_realtime.publisher.publisher import Publisher
from starlette_realtime.store import MemoryStore

__all__ = ["SyncPublisher"]

logger = logging.getLogger("starlette_realtime.publisher")

T = TypeVar("T")


class _Running:
    """A publisher that is entered, in an event loop that has a thread of its own, until it is stopped."""

    def __init__(self, make: Callable[[], Publisher]) -> None:
        self._make = make
        self.ready: Future[tuple[Publisher, BlockingPortal]] = Future()
        self.leaving = False
        # The interpreter's exit waits for no daemon: whoever forgets to close must not hang there.
        self.thread = threading.Thread(target=self._run, name="starlette_realtime.publisher", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            anyio.run(self._live)
        except BaseException as exc:
            if not self.ready.done() and self.ready.set_running_or_notify_cancel():
                self.ready.set_exception(exc)
            elif self.leaving:  # at the interpreter's exit a loop can't be closed in order
                logger.debug("the publisher's event loop was not closed in order", exc_info=exc)
            else:
                logger.exception("the publisher's event loop ended")

    async def _live(self) -> None:
        publisher = self._make()
        if isinstance(publisher.store, MemoryStore):
            raise ConfigurationError(
                "a MemoryStore belongs to its application's event loop, and this runs in another thread: share a "
                "RedisStore, or call the Publisher with anyio.from_thread.run(…) there"
            )
        async with publisher, BlockingPortal() as portal:
            if self.ready.set_running_or_notify_cancel():
                self.ready.set_result((publisher, portal))
                await portal.sleep_until_stopped()

    def stop(self, timeout: float) -> bool:
        """End it within `timeout` seconds; what is under way is cancelled."""
        self.leaving = True
        if not (self.ready.cancel() or self.ready.cancelled()) and self.ready.exception() is None:
            _, portal = self.ready.result()
            try:
                portal.start_task_soon(portal.stop, True)
            except RuntimeError:
                logger.debug("the publisher's event loop has ended already")
        self.thread.join(timeout)
        return not self.thread.is_alive()


class SyncPublisher:
    """
    A `Publisher` for threads: its methods are `Publisher`'s, without `await`, `at` aside.

        publisher = SyncPublisher(lambda: Publisher(RedisStore(url), rooms=[chat]))
        publisher.publish("chat:42", "message", {"text": "hello"}, key="welcome-42")

    `make` makes the publisher that is used, in the process and the event loop that it is used in; so this can be made
    before a process forks, as Celery's and gunicorn's do. The first call starts a thread with an event loop, which
    all threads of the process share. `close`, or the end of a `with` block, ends it; the interpreter's exit does, too.
    The next call starts it again.

    `timeout`: seconds that a call may take altogether, the start of the thread included; over it, it raises
    `Unavailable`, like a store that is away. Calls raise what `Publisher`'s methods raise, and `ConfigurationError`
    where they would block an event loop.
    """

    def __init__(self, make: Callable[[], Publisher], *, timeout: float = 10.0) -> None:
        if not callable(make):
            raise ConfigurationError("SyncPublisher takes a function: lambda: Publisher(RedisStore(url), rooms=[…])")
        if not timeout > 0:
            raise ConfigurationError(f"timeout is in seconds and positive, not {timeout!r}")
        self._make = make
        self._timeout = timeout
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._pid = os.getpid()
        _made.add(self)

    # --- what a Publisher does --------------------------------------------------------------------------------------

    def publish(self, room: str, event: str, data: object = None, *, key: str | None = None) -> Position:
        """See `Publisher.publish`."""
        return self._call(lambda publisher: publisher.publish(room, event, data, key=key))

    def publish_volatile(self, room: str, event: str, data: object = None) -> None:
        """See `Publisher.publish_volatile`."""
        self._call(lambda publisher: publisher.publish_volatile(room, event, data))

    def send_to_user(self, user: str, event: str, data: object = None, *, key: str | None = None) -> Position:
        """See `Publisher.send_to_user`."""
        return self._call(lambda publisher: publisher.send_to_user(user, event, data, key=key))

    def disconnect_user(self, user: str, *, code: int = 4403, error: str = "forbidden") -> None:
        """See `Publisher.disconnect_user`."""
        self._call(lambda publisher: publisher.disconnect_user(user, code=code, error=error))

    def kick(
        self, room: str, *, user: str | None = None, connection: str | None = None, code: str = "forbidden"
    ) -> None:
        """See `Publisher.kick`."""
        self._call(lambda publisher: publisher.kick(room, user=user, connection=connection, code=code))

    def revoke_user(self, user: str, *, issued_before: float | None = None) -> None:
        """See `Publisher.revoke_user`."""
        self._call(lambda publisher: publisher.revoke_user(user, issued_before=issued_before))

    def revoke_token(self, token_id: str) -> None:
        """See `Publisher.revoke_token`."""
        self._call(lambda publisher: publisher.revoke_token(token_id))

    def connections_of(self, user: str, *, limit: int = 1_000, timeout: float = 1.0) -> Connections:
        """See `Publisher.connections_of`."""
        return self._call(lambda publisher: publisher.connections_of(user, limit=limit, timeout=timeout))

    def count(self, *, timeout: float = 1.0) -> Counts:
        """See `Publisher.count`."""
        return self._call(lambda publisher: publisher.count(timeout=timeout))

    def nodes(self) -> Sequence[Node]:
        """See `Publisher.nodes`."""
        return self._call(lambda publisher: publisher.nodes())

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start now: raises what a call would."""
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, and what other threads have under way: that raises `Unavailable`. Closing again is fine."""
        with self._lock:
            running, self._running = self._running, None
        if running is None:
            return
        atexit.unregister(self._exit)
        if not running.stop(self._timeout):
            logger.warning("the publisher's thread did not end within %g s", self._timeout)

    def _exit(self) -> None:
        if self._pid == os.getpid():
            self.close()

    def _call(self, work: Callable[[Publisher], Coroutine[Any, Any, T]]) -> T:
        until = time.monotonic() + self._timeout
        publisher, portal = self._start()
        try:
            future: Future[T] = portal.start_task_soon(work, publisher)
        except RuntimeError:
            raise Unavailable("the publisher was closed meanwhile") from None
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            if future.done():
                return future.result()
            future.cancel()
            raise Unavailable(f"no answer within {self._timeout:g} s") from None
        except CancelledError:
            raise Unavailable("the publisher was closed meanwhile") from None
        except BaseException:
            future.cancel()  # interrupted: nobody waits for it any more
            raise

    def _start(self) -> tuple[Publisher, BlockingPortal]:
        _check_thread()
        until = time.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout):
            raise Unavailable(f"another thread has not started the publisher within {self._timeout:g} s")
        try:
            running = self._running
            if running is None or not running.thread.is_alive():
                running = self._running = _Running(self._make)
                atexit.unregister(self._exit)
                atexit.register(self._exit)
            try:
                return running.ready.result(max(0.0, until - time.monotonic()))
            except BaseException as exc:
                self._running = None
                atexit.unregister(self._exit)
                running.stop(1.0 if running.ready.done() else 0.0)  # what hangs ends by itself, when it can
                if isinstance(exc, TimeoutError):
                    raise Unavailable(f"the publisher did not start within {self._timeout:g} s") from None
                raise
        finally:
            self._lock.release()

    def _forked(self) -> None:
        """In the child: the thread is the parent's, and so are its connections."""
        if self._running is not None:
            _parents.append(self._running)
        self._lock = threading.Lock()
        self._running = None
        self._pid = os.getpid()


_made: "weakref.WeakSet[SyncPublisher]" = weakref.WeakSet()
_parents: list[_Running] = []
"""What belongs to a parent process: kept, so that nothing of it is closed from here; one for each fork that had one."""


def _after_fork() -> None:
    for publisher in tuple(_made):
        publisher._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check_thread() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigurationError("this would block the event loop: in asynchronous code, enter the Publisher and await it")
