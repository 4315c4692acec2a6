"""Leaks: what a test leaves behind, tasks, timers and whatever the application's gauges count."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, runtime_checkable

from starlette_realtime.clock import Clock, Timer
from starlette_realtime.store import Store
from starlette_realtime.testing.clock import FakeClock, settle

__all__ = ["Gauged", "Leaked", "Leaks"]

KEPT: Final = frozenset(
    {"topics", "publications", "publication_bytes", "dedupe_keys", "claims", "revocations", "timers"}
)
"""Gauges of a store that count what it keeps on purpose, until its own time is up; timers are looked at one by one."""

STEP: Final = 1.0  # seconds by which a fake clock is moved, while something is left
POLL: Final = 0.01  # seconds of real time between two looks, where there is no fake clock

T = TypeVar("T")


@runtime_checkable
class Gauged(Protocol):
    """What tells how much it holds, as `Realtime` and every `Store` do."""

    def gauges(self) -> Mapping[str, int]:
        """Names to numbers."""
        ...


class Leaked(AssertionError):
    """Something was left behind; `left` says what, one line each."""

    def __init__(self, left: list[str]) -> None:
        super().__init__("the test left behind:\n" + "\n".join(f"  - {line}" for line in left))
        self.left = left


class Leaks:
    """
    Compare what there is after a block, or a test, with what there was before.

        async with Leaks(realtime):
            async with Client(app, "/realtime", token="ann") as ann:
                await ann.join("chat:1")

    Tasks of the event loop are compared in any case. Whatever is watched, at once or with `watch`, is compared from
    then on: the gauges of a `Realtime` or a store, and the timers of its clock, or of a clock itself. Less than before
    is no leak, nor is the history that a store keeps.

    What takes its time (a presence that lingers, a handler's last seconds) may take `within` seconds of a `FakeClock`,
    which is moved as far as need be, and `timeout` seconds of real time. Raises `Leaked`.
    """

    def __init__(self, *watched: object, within: float = 60.0, timeout: float = 1.0) -> None:
        self.within = within
        self.timeout = timeout
        self._tasks: frozenset[asyncio.Task[Any]] = frozenset()
        self._gauged: list[tuple[Gauged, Mapping[str, int]]] = []
        self._clocks: dict[Clock, frozenset[Timer]] = {}
        for thing in watched:
            self.watch(thing)

    async def __aenter__(self) -> Self:
        self._tasks = frozenset(asyncio.all_tasks())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:  # a test that failed halfway leaves much behind, and nobody wants to hear of that
            await self.check()

    def watch(self, thing: T) -> T:
        """Watch a `Realtime`, a store, a clock, or anything that has `gauges()` or a `clock`; gives it back."""
        clock = thing if isinstance(thing, Clock) else getattr(thing, "clock", None)
        if isinstance(thing, Gauged):
            self._gauged.append((thing, dict(thing.gauges())))
        elif not isinstance(clock, Clock):
            raise TypeError(f"{thing!r} has neither gauges() nor a clock: there is nothing to watch")
        if isinstance(clock, Clock):
            self._clocks.setdefault(clock, frozenset(_timers(clock)))
        return thing

    async def check(self) -> None:
        """Raise `Leaked` unless all is as it was, or comes to be so in time."""
        await settle()
        loop = asyncio.get_running_loop()
        deadline, moved = loop.time() + self.timeout, 0.0
        fakes = [clock for clock in self._clocks if isinstance(clock, FakeClock)]
        while left := self.left():
            if fakes and moved < self.within:
                for clock in fakes:
                    await clock.advance(STEP)
                moved += STEP
            elif loop.time() < deadline:
                await asyncio.sleep(POLL)
            else:
                raise Leaked(left)

    def left(self) -> list[str]:
        """What is there now and was not before, one line each."""
        tasks = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
        found = [_task(task) for task in sorted(tasks, key=lambda task: task.get_name()) if not _is_runner(task)]
        for gauged, before in self._gauged:
            now, kind = gauged.gauges(), type(gauged).__name__
            found += [
                f"gauge {name!r} of {kind}: {now[name]}, was {before.get(name, 0)}"
                for name in sorted(now)
                if now[name] > before.get(name, 0) and not _kept(gauged, name)
            ]
        for clock, timers in self._clocks.items():
            more = sorted(timer for timer in _timers(clock) if timer not in timers)
            soonest = {_name(timer): timer.when - clock.now() for timer in reversed(more)}
            found += [
                f"{count} of the timer {name}, the next due in {soonest[name]:.6g} s"
                for name, count in Counter(map(_name, more)).items()
            ]
        return found


def _kept(gauged: Gauged, name: str) -> bool:
    """Whether a gauge counts what a store keeps; an application's own name them with a prefix."""
    prefix, _, rest = name.rpartition(".")
    return rest in KEPT and (prefix == "store" or isinstance(gauged, Store))


def _timers(clock: Clock) -> list[Timer]:
    """The timers that wait, but for those of what a store keeps."""
    return [timer for timer in clock._heap if timer.active and not _owner(timer).startswith("starlette_realtime.store")]


def _owner(timer: Timer) -> str:
    """The module that a timer belongs to; a container's own method, as `dict.pop`, forgets what a store kept."""
    callback: Any = timer.callback
    return str(getattr(callback, "__module__", None) or "starlette_realtime.store")


def _name(timer: Timer) -> str:
    return f"{_owner(timer)}.{getattr(timer.callback, '__qualname__', None) or repr(timer.callback)}"


def _is_runner(task: "asyncio.Task[Any]") -> bool:
    """Whether a task is how anyio's plug-in waits for this very check: it makes one for each fixture."""
    return getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")


def _task(task: "asyncio.Task[Any]") -> str:
    coroutine: Any = task.get_coro()
    name = getattr(coroutine, "__qualname__", None) or repr(coroutine)
    stack = task.get_stack(limit=1)
    where = f" at {stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else ""
    return f"task {task.get_name()} of {name}{where}"
