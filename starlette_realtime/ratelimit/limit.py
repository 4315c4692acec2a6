"""Limit: how much of a thing, how often, counted by whom and where."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from math import inf
from typing import Any, Literal, get_args

from starlette.requests import HTTPConnection

from starlette_realtime.errors import ConfigurationError
from starlette_realtime.ratelimit.rate import Rate
from starlette_realtime.types import Scope

__all__ = ["By", "Cost", "Limit", "Limits", "Strategy", "Subject", "as_limits"]

By = Literal["connection", "user", "address"] | Callable[[HTTPConnection], str | None]
"""By whom is counted: each connection, user or address, or what a function makes of it (None: not limited)."""

Cost = float | Callable[[Any], float]
"""What one thing costs, 0 being free: a number, or a function of the thing."""

Strategy = Literal["moving-window", "fixed-window", "sliding-window-counter"]
"""How shared quotas are counted: the strategies of the `limits` package."""


@dataclass(frozen=True, slots=True)
class Limit:
    """
    So much, so often: `Limit("10/second", by="user")`.

    `rate` is in the notation of the `limits` package, one or several ("100/minute;5/second": all must allow), or a
    `Rate`. `by` says who is counted: "connection" (one WebSocket), "user" (whom an authentication outside has found;
    where it found nobody, the connection, or for requests the address), "address" (an IPv6 one as its /64; private,
    loopback and unknown peers are not limited) or a function that makes a key of a Starlette `HTTPConnection`, None
    for what is not limited.

    `burst` is how much may be taken at once, 1 or more, by default the rate's amount: a token bucket of that size
    that the rate refills. `cost` is what one thing takes: a number, or a function of the request or handshake (an
    `HTTPConnection`), of the frame (`str` or `bytes`), or of the event. 0 is free; what costs more than the burst is
    refused.

    `shared=True` counts for all processes together, in the store, by `strategy`: "moving-window" (exact; stores the
    time of each), "fixed-window" (the cheapest; up to twice the amount around a window's end) or
    "sliding-window-counter" (nearly exact, two numbers). The token bucket then stands in front of it in each
    process, so that who is over the limit there costs the store nothing. A store on a server is asked for some in
    advance, by who sends fast: at most a quarter of the amount, which lapses within a second. A moving window may let
    that through over its amount.

    Raises `ConfigurationError`.
    """

    rate: str | Rate
    _: KW_ONLY
    by: By = "connection"
    burst: float | None = None
    cost: Cost = 1
    strategy: Strategy = "moving-window"
    shared: bool = False

    def __post_init__(self) -> None:
        rates = self.rates
        if self.strategy not in get_args(Strategy):
            known = ", ".join(map(repr, get_args(Strategy)))
            raise ConfigurationError(f"{self.strategy!r} is no strategy: choose one of {known}")
        if not callable(self.by) and self.by not in ("connection", "user", "address"):
            raise ConfigurationError(
                f"a limit counts by 'connection', 'user', 'address' or a function of an HTTPConnection, "
                f"not by {self.by!r}"
            )
        if self.burst is not None and len(rates) > 1:
            raise ConfigurationError("a burst belongs to one rate: give a list of limits, each with its own")
        for rate in rates:
            burst = rate.amount if self.burst is None else self.burst
            if not 1 <= burst < inf:
                raise ConfigurationError(f"the burst of a limit is 1 or more, not {burst!r}")
            if self.shared and (rate.amount % 1 or rate.seconds % 1):
                raise ConfigurationError(
                    f"a shared limit counts whole things in whole seconds, not {rate.amount:g} in {rate.seconds:g} s"
                )
        if not callable(self.cost) and not 0 < self.cost < inf:
            raise ConfigurationError(f"a cost is a positive number or a function, not {self.cost!r}")
        if self.shared and self.by == "connection":
            raise ConfigurationError(
                "a connection lives in one process, so nothing is shared: leave shared=True out, or count by 'user'"
            )

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Its rates, each of which must allow."""
        return (self.rate,) if isinstance(self.rate, Rate) else Rate.parse_many(self.rate)


Limits = str | Rate | Limit | Sequence[str | Rate | Limit] | None
"""The limits on one kind of thing, all of which must allow; none: `()` or None."""


def as_limits(limits: Limits, by: By) -> tuple[Limit, ...]:
    """Those limits, counted `by` where they don't say otherwise. Raises `ConfigurationError`."""
    if limits is None:
        return ()
    several = tuple(limits) if isinstance(limits, list | tuple) else (limits,)
    for limit in several:
        if not isinstance(limit, str | Rate | Limit):
            raise ConfigurationError(f"{limit!r} is no limit: write '5/second', Rate(5, 0.2) or Limit('5/second', …)")
    return tuple(limit if isinstance(limit, Limit) else Limit(limit, by=by) for limit in several)


@dataclass(frozen=True, slots=True)
class Subject:
    """
    Who is counted: the request or WebSocket (`scope`), its `user` (None: nobody), its `connection` (an id; "": none).
    """

    scope: Scope
    user: str | None = None
    connection: str = ""
