"""Rates: how much, how often, the bucket that one process counts it in, and what came of it."""

from dataclasses import dataclass
from typing import Self

import limits
import msgspec

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, RateLimited, Refused

__all__ = ["Decision", "Rate", "TokenBucket"]

# What a bucket may be early by, in seconds, so that whoever waited exactly `retry_after` is not turned away by the
# last bit of a double.
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Rate:
    """
    So much in so many seconds: `Rate(5, 1.0)`, or `Rate.parse("5/second")`.

    Raises `ConfigurationError` unless both are positive.
    """

    amount: float
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.amount < float("inf") and 0 < self.seconds < float("inf")):
            raise ConfigurationError(f"a rate is positive, not {self.amount!r} in {self.seconds!r} s")

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read one limit in the notation of the `limits` package: "5/second", "10 per minute", "100/5 seconds".

        Raises `ConfigurationError`.
        """
        rates = cls.parse_many(text)
        if len(rates) > 1:
            raise ConfigurationError(f"{text!r} is no rate limit, but several: write one like '5/second'")
        return rates[0]

    @classmethod
    def parse_many(cls, text: str) -> tuple[Self, ...]:
        """
        Read one limit or several: "100/minute;5/second".

        Raises `ConfigurationError`.
        """
        try:
            items = limits.parse_many(text)
            return tuple(cls(float(item.amount), float(item.get_expiry())) for item in items)
        except (ValueError, OverflowError) as exc:
            raise ConfigurationError(
                f"{text!r} is no rate limit: write one like '5/second', '10 per minute' or '100/5 seconds', "
                "or Rate(5, 0.2) for parts of a second"
            ) from exc

    @property
    def per_second(self) -> float:
        """The amount that one second gives."""
        return self.amount / self.seconds


class Decision(msgspec.Struct, frozen=True, gc=False):
    """
    What came of asking a limit; of several limits, what the tightest of them says.

    `retry_after`: seconds until the same would be allowed; 0.0 where it is, None where it never will be, as it costs
    more than the limit lets through at once. `remaining`: what may still be taken, of `limit`; as far as this process
    knows, where several share a quota. `reset`: seconds until all of it is there again, when nothing more is taken.
    `policy` names the limit that says so.
    """

    allowed: bool
    retry_after: float | None = 0.0
    remaining: int = 0
    limit: int = 0
    reset: float = 0.0
    policy: str = ""

    def refusal(self) -> Refused:
        """The error that tells a peer: `rate_limited` with its time, or `too_expensive`."""
        if self.retry_after is None:
            return Refused("too_expensive", f"it costs more than the {self.limit} that may be spent at once")
        return RateLimited(retry_after=self.retry_after)


class TokenBucket:
    """
    A local limit: at most `burst` at once, and `rate` in the long run.

    Whatever the schedule, at most `burst` + rate × time is taken in any stretch of time. `burst` is by default the
    rate's amount. A bucket is one number, without a timer, and starts full; time is `clock.now()`.

    Raises `ConfigurationError` for a `burst` below 1.
    """

    __slots__ = ("_clock", "_full_at", "_interval", "burst")

    def __init__(self, rate: Rate, burst: float | None = None, clock: Clock | None = None) -> None:
        self.burst = rate.amount if burst is None else burst
        if not 1 <= self.burst < float("inf"):
            raise ConfigurationError(f"the burst of a limit is 1 or more, not {self.burst!r}")
        self._clock = clock if clock is not None else Clock()
        self._interval = 1 / rate.per_second  # seconds that one token takes to come back
        self._full_at = self._clock.now()

    def take(self, cost: float = 1.0) -> float:
        """
        Take `cost` and return 0.0, or take nothing and return in how many seconds it could be taken.

        Raises `ValueError` for a cost that is not positive, or over `burst` and so never to be had.
        """
        if not 0 < cost <= self.burst:
            raise ValueError(f"a cost is over 0 and at most the burst ({self.burst:g}), not {cost!r}")
        now = self._clock.now()
        full_at = max(self._full_at, now) + cost * self._interval
        wait = full_at - now - self.burst * self._interval
        if wait > _SLACK:
            return wait
        self._full_at = full_at
        return 0.0

    def wait(self, cost: float = 1.0) -> float:
        """In how many seconds `cost` could be taken; takes nothing. Infinite for a cost over `burst`."""
        if cost > self.burst:
            return float("inf")
        wait = self.reset + (cost - self.burst) * self._interval
        return wait if wait > _SLACK else 0.0

    def give_back(self, cost: float) -> None:
        """Undo a `take`: what it was for did not happen."""
        self._full_at -= cost * self._interval

    def decide(self, cost: float, policy: str = "") -> Decision:
        """Take `cost`, 0 or more, or take nothing; tells what came of it."""
        now, interval, burst = self._clock.now(), self._interval, self.burst
        behind = self._full_at - now
        if behind < 0.0:
            behind = 0.0
        whole = burst * interval
        if cost > burst:
            return Decision(False, None, _whole((whole - behind) / interval), int(burst), behind, policy)
        after = behind + cost * interval
        if after - whole > _SLACK:
            return Decision(False, after - whole, _whole((whole - behind) / interval), int(burst), behind, policy)
        self._full_at = now + after
        return Decision(True, 0.0, _whole((whole - after) / interval), int(burst), after, policy)

    @property
    def reset(self) -> float:
        """Seconds until the bucket is full, when nothing more is taken."""
        return max(0.0, self._full_at - self._clock.now())

    @property
    def remaining(self) -> float:
        """What could be taken now."""
        return max(0.0, self.burst - self.reset / self._interval)


def _whole(tokens: float) -> int:
    # 2.9999999 tokens are 3 that a double has rounded.
    return max(0, int(tokens + 1e-6))
