"""Rate limits: how much, how often, and the bucket that one process counts it in."""

from dataclasses import dataclass
from typing import Self

import limits

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError

__all__ = ["Rate", "TokenBucket"]

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
        try:
            (item,) = limits.parse_many(text)
        except ValueError as exc:
            raise ConfigurationError(
                f"{text!r} is no rate limit: write one like '5/second', '10 per minute' or '100/5 seconds', "
                "or Rate(5, 0.2) for parts of a second"
            ) from exc
        return cls(float(item.amount), float(item.get_expiry()))

    @property
    def per_second(self) -> float:
        """The amount that one second gives."""
        return self.amount / self.seconds


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

    @property
    def remaining(self) -> float:
        """What could be taken now."""
        behind = max(0.0, self._full_at - self._clock.now())
        return max(0.0, self.burst - behind / self._interval)
