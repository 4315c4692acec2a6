"""The outbox: one writer, bounded in bytes, entries and time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from starlette_realtime.connection import Outbox, size_of
from starlette_realtime.testing import FakeClock, settle
from starlette_realtime.types import Frame


class Wire:
    """An outbox, its writer, and what came out of it; `hold` keeps a write from ending."""

    def __init__(self, *, max_bytes: int = 100, max_entries: int = 8, timeout: float = 0.5) -> None:
        self.clock = FakeClock()
        self.written: list[Frame] = []
        self.overflows = 0
        self.stucks = 0
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.outbox = Outbox(
            clock=self.clock,
            max_bytes=max_bytes,
            max_entries=max_entries,
            timeout=timeout,
            overflow=self._overflow,
            stuck=self._stuck,
        )
        self.task = asyncio.ensure_future(self.outbox.run(self._write))

    def put(self, text: str) -> None:
        self.outbox.put((text,), len(text))

    async def _write(self, frame: Frame) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.written.append(frame)

    def _overflow(self) -> None:
        self.overflows += 1

    def _stuck(self) -> None:
        self.stucks += 1


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    yield wire
    wire.task.cancel()
    await asyncio.wait((wire.task,))
    assert wire.outbox.size == 0
    assert wire.clock.timers == 0


async def test_frames_come_out_in_order_and_count_until_they_are_out(wire: Wire) -> None:
    wire.open.clear()
    wire.put("one")
    wire.outbox.put(("two", b"three"), 8)
    assert wire.outbox.size == 11
    await settle()
    assert wire.written == []
    wire.open.set()
    await settle()
    assert wire.written == ["one", "two", b"three"]
    assert wire.outbox.size == 0


@pytest.mark.parametrize("kind", ["bytes", "entries"])
async def test_over_a_bound_nothing_more_is_taken_and_that_is_told_once(wire: Wire, kind: str) -> None:
    wire.open.clear()
    await settle()
    for _ in range(20):
        wire.put("x" * 30 if kind == "bytes" else "x")
    assert wire.overflows == 1
    assert wire.outbox.size <= 100
    wire.open.set()
    await settle()
    assert len(wire.written) == (3 if kind == "bytes" else 8)


async def test_what_may_be_dropped_is_taken_only_while_there_is_little(wire: Wire) -> None:
    wire.open.clear()
    wire.outbox.offer(("a" * 20,), 20)
    wire.put("b" * 10)
    wire.outbox.offer(("dropped",), 7)
    wire.open.set()
    await settle()
    wire.outbox.offer(("c",), 1)
    await settle()
    assert wire.written == ["a" * 20, "b" * 10, "c"]
    assert wire.overflows == 0


async def test_a_recovery_does_not_count_and_is_known_to_be_out(wire: Wire) -> None:
    wire.open.clear()
    written = wire.outbox.put_unbounded(("x" * 10_000,))
    wire.put("y")
    await settle()
    assert (wire.outbox.size, written.done()) == (1, False)
    wire.open.set()
    await written
    await settle()
    assert wire.written == ["x" * 10_000, "y"]


@pytest.mark.parametrize("moment", ["waiting", "in flight"])
@pytest.mark.parametrize("end", ["close", "cancel", "error"])
async def test_a_recovery_that_is_never_out_keeps_nobody_waiting(wire: Wire, moment: str, end: str) -> None:
    wire.open.clear()
    if moment == "waiting":
        wire.put("before")
    written = wire.outbox.put_unbounded(("x",))
    await settle()
    if end == "close":
        wire.outbox.close()
        wire.open.set()
    elif end == "cancel":
        wire.task.cancel()
    else:
        wire.error = OSError("gone")
        wire.open.set()
    await asyncio.wait((wire.task,))
    if end == "error":
        with pytest.raises(OSError, match="gone"):
            wire.task.result()
    assert written.done()
    assert wire.outbox.put_unbounded(("late",)).done()


async def test_the_last_word_comes_after_the_rest_or_instead_of_it() -> None:
    for discard, expected in ((False, ["in flight", "waiting", "last"]), (True, ["in flight", "last"])):
        wire = Wire()
        wire.open.clear()
        wire.put("in flight")
        await settle()
        wire.put("waiting")
        wire.outbox.finish(("last",), discard=discard)
        wire.put("too late")
        wire.open.set()
        await wire.task
        assert wire.written == expected
        assert wire.outbox.size == 0
        assert wire.clock.timers == 0


async def test_a_write_that_takes_too_long_is_told_once(wire: Wire) -> None:
    wire.open.clear()
    wire.put("x")
    await wire.clock.advance(0.4)
    assert wire.stucks == 0
    await wire.clock.advance(0.2)
    assert wire.stucks == 1
    await wire.clock.advance(5.0)
    assert wire.stucks == 1


async def test_many_writes_that_are_each_in_time_are_fine(wire: Wire) -> None:
    for _ in range(10):
        wire.open.clear()
        wire.put("x")
        await wire.clock.advance(0.4)
        wire.open.set()
        await settle()
    assert wire.stucks == 0
    await wire.clock.advance(1.0)


async def test_a_large_frame_has_more_time() -> None:
    wire = Wire(max_bytes=1_000_000)
    wire.open.clear()
    wire.put("x" * 4 * 65_536)
    await wire.clock.advance(1.9)
    assert wire.stucks == 0
    await wire.clock.advance(0.2)
    assert wire.stucks == 1
    wire.outbox.close()
    wire.open.set()
    await wire.task


async def test_a_write_that_fails_ends_the_writer(wire: Wire) -> None:
    wire.error = OSError("gone")
    wire.put("x")
    wire.put("y")
    await asyncio.wait((wire.task,))
    with pytest.raises(OSError, match="gone"):
        wire.task.result()
    wire.put("z")
    assert len(wire.outbox) == 0


def test_sizes_are_those_on_the_wire() -> None:
    assert size_of(("abc", b"de")) == 5
    assert size_of(("äß€",)) == 7
    assert size_of(()) == 0


async def test_what_stands_behind_a_large_frame_has_the_time_of_that_one() -> None:
    wire = Wire(max_bytes=1_000_000)
    wire.put("x" * 4 * 65_536)
    await settle()
    wire.open.clear()  # a server that took it at once, and now waits until it is out
    wire.put("y")
    await wire.clock.advance(1.9)
    assert wire.stucks == 0
    await wire.clock.advance(0.2)
    assert wire.stucks == 1
    wire.outbox.close()
    wire.open.set()
    await wire.task


async def test_what_can_wait_leaves_half_of_each_bound() -> None:
    wire = Wire()
    wire.open.clear()
    assert wire.outbox.fits(50)
    assert not wire.outbox.fits(51)
    wire.put("x" * 30)
    assert wire.outbox.fits(20)
    assert not wire.outbox.fits(21)
    for _ in range(5):
        wire.put("")
    await settle()
    assert len(wire.outbox) == 5  # one is being written
    assert not wire.outbox.fits(0)
    wire.open.set()
    await settle()
    assert wire.outbox.fits(50)
    wire.outbox.close()
    await wire.task


async def test_the_largest_of_the_last_two_frames_is_known_in_bytes(wire: Wire) -> None:
    for frame, largest in (("€" * 70_000, 210_000), ("a", 210_000), ("b", 1), (b"x" * 70_000, 70_000)):
        await wire.outbox.put_unbounded((frame,))
        assert wire.outbox.largest == largest
