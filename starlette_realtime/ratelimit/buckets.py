"""Buckets: one token bucket for each key, as many as are in use, and a bound on them."""

from collections import OrderedDict
from itertools import islice

from starlette_realtime.clock import Clock
from starlette_realtime.ratelimit.rate import Rate, TokenBucket

__all__ = ["MAX_KEYS", "Blocked", "KeyedBuckets"]

MAX_KEYS = 100_000
"""How many keys one limit remembers in a process."""

SWEEP = 2
"""How many of the longest unused keys each new one looks at: more than one, so that they are gone before long."""

SEARCH = 16
"""How many of the longest unused are looked at for a full one, before one that isn't is forgotten."""


class KeyedBuckets:
    """
    A token bucket for each key.

    A full bucket is the same as none, so that the longest unused are forgotten once they are full. At most `max_keys`
    are kept: over it, a full one goes first, then the one unused for longest.
    """

    def __init__(self, rate: Rate, burst: float, *, max_keys: int = MAX_KEYS) -> None:
        self.rate = rate
        self.burst = burst
        self._max = max_keys
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def get(self, key: str, clock: Clock) -> TokenBucket:
        """The key's bucket: full, where it is new."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            self._buckets.move_to_end(key)
            return bucket
        self._sweep()
        bucket = self._buckets[key] = TokenBucket(self.rate, self.burst, clock)
        return bucket

    def _sweep(self) -> None:
        for _ in range(SWEEP):
            oldest = next(iter(self._buckets), None)
            if oldest is None or self._buckets[oldest].reset:
                break
            del self._buckets[oldest]
        if len(self._buckets) >= self._max:
            oldest = next(iter(self._buckets))
            for key, bucket in islice(self._buckets.items(), SEARCH):
                if not bucket.reset:
                    oldest = key
                    break
            del self._buckets[oldest]


class Blocked:
    """Who was refused by a quota, until when, for what cost: at most `max_keys`, of which the oldest goes first."""

    def __init__(self, *, max_keys: int = MAX_KEYS) -> None:
        self._max = max_keys
        self._until: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def block(self, key: str, cost: float, until: float, now: float) -> None:
        """Remember that `cost` is refused until then."""
        for _ in range(SWEEP):
            oldest = next(iter(self._until), None)
            if oldest is None or self._until[oldest][0] > now:
                break
            del self._until[oldest]
        self._until.pop(key, None)
        if len(self._until) >= self._max:
            self._until.popitem(last=False)
        self._until[key] = (until, cost)

    def wait(self, key: str, cost: float, now: float) -> float:
        """How many seconds `cost` is still refused; 0.0 where that is not known."""
        found = self._until.get(key)
        if found is None:
            return 0.0
        until, least = found
        if until <= now:
            del self._until[key]
            return 0.0
        return until - now if cost >= least else 0.0
