"""Several processes of one application in one test, on one store and one clock: to be stopped, killed and frozen."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

from starlette_realtime.clock import Clock
from starlette_realtime.store import MemoryStore, Store
from starlette_realtime.testing.clock import FakeClock, settle
from starlette_realtime.testing.lifespan import Lifespan
from starlette_realtime.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MakeApp", "Process", "Processes"]


class MakeApp(Protocol):
    """What makes one process's application, with a `Realtime` on that store and clock."""

    def __call__(self, *, store: Store, clock: Clock) -> ASGIApp:
        """Make it."""
        ...


class Process:
    """
    One process: an ASGI application for peers, clients and requests, with its own share of the store.

    Everything runs in the test's event loop, and on one clock: a frozen process's timers go on, but what they do
    reaches neither the store nor a peer until it thaws.
    """

    def __init__(self, app: ASGIApp, store: MemoryStore, clock: FakeClock) -> None:
        self.app = app
        self.store = store
        """This process's link to what all share, with its `faults`."""
        self.lifespan = Lifespan(app, clock=clock)
        self._calls: set[asyncio.Task[object]] = set()
        self._running = asyncio.Event()
        self.alive = False
        """Whether it serves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket; raises `ConnectionRefusedError` when it has ended."""
        if not self.alive:
            raise ConnectionRefusedError("this process has ended")
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)

        async def receive_running() -> Message:
            message = await receive()
            await self._running.wait()
            return message

        async def send_running(message: Message) -> None:
            await self._running.wait()
            await send(message)

        try:
            await self.lifespan(scope, receive_running, send_running)
        finally:
            self._calls.discard(task)

    async def start(self) -> None:
        """Start it: its application's lifespan begins."""
        await self.lifespan.start()
        self.alive = True
        self._running.set()

    async def stop(self) -> None:
        """Stop it in order, as a deployment does: its clients are told to come back. The clock moves as need be."""
        if self.alive:
            self.thaw()
            await self.lifespan.stop()
            self.alive = False

    async def kill(self) -> None:
        """
        End it without a word: its peers lose their connections (1006), and the others on the store are not told.

        They find out by its lease, as they would in earnest.
        """
        self.alive = False
        self.store.faults.kill()
        for task in list(self._calls):
            task.cancel()
        self._running.set()
        self.lifespan.leave()
        await settle()

    def freeze(self) -> None:
        """Let nothing through to its peers or its store, and let nobody notice: it swaps, or its machine is paused."""
        self._running.clear()
        self.store.faults.stall()

    def thaw(self) -> None:
        """End `freeze`: what waits goes on."""
        self.store.faults.resume()
        self._running.set()


class Processes:
    """
    So many processes of one application, for the length of a block.

        async with Processes(make_app, 2) as (one, two):
            async with Client(one, "/realtime", token="ann") as ann:
                room = await ann.join("chat:1")
                await one.kill()
                await ann.resume(two)

    `make_app` is called for each with its `store` and `clock`. They share one `MemoryStore` (`store`, where its
    options matter) and one `FakeClock`. At the end of the block all are stopped, the killed ones too.
    """

    def __init__(
        self, make_app: MakeApp, count: int = 2, *, clock: FakeClock | None = None, store: MemoryStore | None = None
    ) -> None:
        if store is not None and clock is None:
            if not isinstance(store.clock, FakeClock):
                raise TypeError("the processes' store has no fake clock: give it MemoryStore(clock=FakeClock())")
            clock = store.clock
        self.clock = clock if clock is not None else FakeClock()
        """The one clock of all."""
        self.count = count
        self._make_app = make_app
        self._store = store if store is not None else MemoryStore(clock=self.clock)
        self._processes: list[Process] = []
        self._stack = AsyncExitStack()

    def __iter__(self) -> Iterator[Process]:
        return iter(tuple(self._processes))

    @property
    def alive(self) -> Sequence[Process]:
        """Those that serve."""
        return [process for process in self._processes if process.alive]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._stack = stack
            for _ in range(self.count):
                await self.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def start(self) -> Process:
        """Start one more."""
        store = self._store if not self._processes else self._store.sibling()
        process = Process(self._make_app(store=store, clock=self.clock), store, self.clock)
        self._processes.append(process)
        await process.start()
        self._stack.push_async_callback(self._end, process)
        return process

    async def _end(self, process: Process) -> None:
        if process.alive:
            await process.stop()
        else:
            await process.lifespan.stop()
