"""MemoryQuotas: storage for the `limits` package in one process, as quick with many keys as with one."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from math import floor, inf
from typing import Generic, TypeVar

from limits.aio.storage import MovingWindowSupport, SlidingWindowCounterSupport, Storage

from starlette_realtime.clock import Clock

__all__ = ["MemoryQuotas"]

SWEEP = 2
"""How many of the keys that end first each hit looks at: more than the one it may add."""


@dataclass(slots=True)
class _Kept:
    """What is kept for a key, for `window` seconds, until `ends`."""

    window: float = 0.0
    ends: float = -inf


@dataclass(slots=True)
class _Counter(_Kept):
    """How many hits there were."""

    count: int = 0


@dataclass(slots=True)
class _Log(_Kept):
    """When hits were: `[time, how many]`, oldest first; `total` of them."""

    times: deque[list[float]] = field(default_factory=deque)
    total: int = 0


_K = TypeVar("_K", bound=_Kept)


class _Shelves(Generic[_K]):
    """What is kept, by key; and for each length of window its keys, those that end first to the front."""

    def __init__(self) -> None:
        self.found: dict[str, _K] = {}
        self._shelves: OrderedDict[float, OrderedDict[str, None]] = OrderedDict()

    def put(self, key: str, kept: _K, window: float, ends: float) -> None:
        """Keep it until then; all with the same window come in the order in which they end."""
        if kept.window != window:
            self.drop(key)
        kept.window, kept.ends = window, ends
        self.found[key] = kept
        shelf = self._shelves.setdefault(window, OrderedDict())
        shelf[key] = None
        shelf.move_to_end(key)

    def drop(self, key: str) -> _K | None:
        """Forget a key."""
        kept = self.found.pop(key, None)
        if kept is not None:
            shelf = self._shelves[kept.window]
            del shelf[key]
            if not shelf:
                del self._shelves[kept.window]
        return kept

    def ended(self, window: float, now: float) -> list[str]:
        """A few keys that have ended: on that window's shelf, and on another one each time."""
        shelves = [self._shelves.get(window)]
        if self._shelves:
            turn = next(iter(self._shelves))
            self._shelves.move_to_end(turn)
            if turn != window:
                shelves.append(self._shelves[turn])
        found = [key for shelf in shelves if shelf is not None for key in islice(shelf, SWEEP)]
        return [key for key in found if self.found[key].ends < now]

    def first(self) -> str | None:
        """The key that ends first; None where there is none."""
        heads = [next(iter(shelf)) for shelf in self._shelves.values()]
        return min(heads, key=lambda key: self.found[key].ends, default=None)

    def clear(self) -> None:
        """Forget everything."""
        self.found.clear()
        self._shelves.clear()


class MemoryQuotas(Storage, MovingWindowSupport, SlidingWindowCounterSupport):
    """
    The asynchronous storage interface of the `limits` package, with all that its strategies need.

    They decide as they do with its own memory storage. A hit takes the same time however many keys there are, nothing
    runs in the background, and nothing is awaited, so that each call is one atomic step. Time is `clock.time()`.

    `max_keys` is how many keys are kept, `max_hits` how many hits with their times. Over either, what ends first is
    forgotten early.
    """

    # Without a scheme it is in no registry: `limits` makes none by an address.
    STORAGE_SCHEME = None

    def __init__(self, clock: Clock | None = None, *, max_keys: int = 100_000, max_hits: int = 1_000_000) -> None:
        super().__init__()
        self._clock = clock if clock is not None else Clock()
        self._max_keys = max_keys
        self._max_hits = max_hits
        self._counters = _Shelves[_Counter]()
        self._logs = _Shelves[_Log]()
        self._hits = 0  # in all logs

    def __len__(self) -> int:
        return len(self._counters.found) + len(self._logs.found)

    @property
    def hits(self) -> int:
        """How many hits are kept with their times."""
        return self._hits

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What it may raise by itself: nothing, so that no error is taken for an outage."""
        return ()

    async def check(self) -> bool:
        """True: it is always there."""
        return True

    async def reset(self) -> int | None:
        """Forget everything; tells how much that was."""
        count = max(len(self._counters.found), len(self._logs.found))
        self._counters.clear()
        self._logs.clear()
        self._hits = 0
        return count

    async def clear(self, key: str) -> None:
        """Forget one key."""
        self._counters.drop(key)
        self._drop_log(key)

    # --- fixed windows ----------------------------------------------------------------------------------------------

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count `amount`, in a window of `expiry` seconds from the first; tells the count."""
        return self._incr(key, expiry, amount, self._clock.time())

    async def decr(self, key: str, amount: int = 1) -> int:
        """Take `amount` back; tells the count, at least 0."""
        counter = self._live(key, self._clock.time())
        if counter is None:
            return 0
        counter.count = max(0, counter.count - amount)
        return counter.count

    async def get(self, key: str) -> int:
        """The count."""
        counter = self._live(key, self._clock.time())
        return counter.count if counter is not None else 0

    async def get_expiry(self, key: str) -> float:
        """When the window ends, in Unix time; now, where there is none."""
        now = self._clock.time()
        counter = self._live(key, now)
        return counter.ends if counter is not None else now

    def _incr(self, key: str, window: float, amount: int, now: float) -> int:
        counter = self._live(key, now)
        if counter is None:
            self._make_room(window, now)
            counter = _Counter()
        counter.count += amount
        if counter.count == amount:  # the first, or the first after all were taken back
            self._counters.put(key, counter, window, now + window)
        return counter.count

    def _live(self, key: str, now: float) -> _Counter | None:
        counter = self._counters.found.get(key)
        if counter is not None and counter.ends <= now:
            self._counters.drop(key)
            return None
        return counter

    # --- moving windows ---------------------------------------------------------------------------------------------

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Log `amount` hits, unless there were more than `limit` of them within `expiry` seconds then."""
        if amount > limit:
            return False
        now = self._clock.time()
        log = self._logs.found.get(key)
        if log is None:
            self._make_room(expiry, now)
            log = _Log()
        times = log.times
        self._trim(log, now - expiry)
        if log.total + amount > limit:
            return False
        # A clock that was set back doesn't make hits older than they are.
        at = max(now, times[-1][0]) if times else now
        if times and times[-1][0] == at:
            times[-1][1] += amount
        else:
            times.append([at, amount])
        log.total += amount
        self._hits += amount
        self._logs.put(key, log, expiry, at + expiry)
        while self._hits > self._max_hits and (first := self._logs.first()) is not None:
            self._drop_log(first)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest hit within `expiry` seconds was, in Unix time, and how many there are since."""
        now = self._clock.time()
        log = self._logs.found.get(key)
        if log is None:
            return now, 0
        self._trim(log, now - expiry)
        count = log.total
        for at, hits in islice(log.times, 2):  # one may be at the very edge: it counts no more, and is refused for yet
            if at > now - expiry:
                return at, count
            count -= int(hits)
        return now, 0

    def _trim(self, log: _Log, before: float) -> None:
        while log.times and log.times[0][0] < before:
            gone = int(log.times.popleft()[1])
            log.total -= gone
            self._hits -= gone

    def _drop_log(self, key: str) -> None:
        log = self._logs.drop(key)
        if log is not None:
            self._hits -= log.total

    # --- sliding windows --------------------------------------------------------------------------------------------

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` hits, unless that makes more than `limit`, the previous window's weighted by what is left."""
        if amount > limit:
            return False
        now = self._clock.time()
        before, before_left, count, _ = self._sliding(key, expiry, now)
        if floor(before * before_left / expiry + count) + amount > limit:
            return False
        self._incr(f"{key}/{int(now / expiry)}", 2 * expiry, amount, now)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """The previous window's count and seconds left, and the current one's."""
        return self._sliding(key, expiry, self._clock.time())

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget both windows."""
        number = int(self._clock.time() / expiry)
        for window in (number - 1, number):
            self._counters.drop(f"{key}/{window}")

    def _sliding(self, key: str, expiry: int, now: float) -> tuple[int, float, int, float]:
        before = self._live(f"{key}/{int((now - expiry) / expiry)}", now)
        current = self._live(f"{key}/{int(now / expiry)}", now)
        left = (1 - (now / expiry) % 1) * expiry
        before_count = before.count if before is not None else 0
        before_left = (1 - ((now - expiry) / expiry) % 1) * expiry if before_count else 0.0
        return before_count, before_left, current.count if current is not None else 0, left + expiry

    # --- the bound --------------------------------------------------------------------------------------------------

    def _make_room(self, window: float, now: float) -> None:
        """Before a key comes: forget a few that have ended; at the bound, what ends first."""
        for key in self._counters.ended(window, now):
            self._counters.drop(key)
        for key in self._logs.ended(window, now):
            self._drop_log(key)
        if len(self) >= self._max_keys:
            counter, log = self._counters.first(), self._logs.first()
            ends = self._counters.found[counter].ends if counter is not None else inf
            if counter is not None and (log is None or ends <= self._logs.found[log].ends):
                self._counters.drop(counter)
            else:
                assert log is not None  # what is kept is one or the other
                self._drop_log(log)
