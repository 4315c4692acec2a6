"""Gate: the limits on one kind of thing, all of which must let it through."""

from collections.abc import Callable, MutableMapping
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from starlette_realtime.errors import ConfigurationError
from starlette_realtime.ratelimit.buckets import Blocked, KeyedBuckets
from starlette_realtime.ratelimit.counting import Ask, Quota
from starlette_realtime.ratelimit.limit import Limit, Subject
from starlette_realtime.ratelimit.rate import Decision, Rate, TokenBucket

if TYPE_CHECKING:
    from starlette_realtime.ratelimit.limiter import RateLimiter

__all__ = ["UNLIMITED", "Gate"]

UNLIMITED = Decision(True, 0.0, 2**53, 2**53, 0.0)
"""What nothing limits."""

TELLING = 1.0
"""Seconds between two `limits` frames about one gate."""


class Gate:
    """
    The limits on one kind of thing; made by `RateLimiter`.

    `name` tells it from others, in the store as well. `local`: every limit counts one connection in this process, so
    that `take_now` decides at once.
    """

    def __init__(self, name: str, limits: tuple[Limit, ...], limiter: "RateLimiter") -> None:
        self.name = name
        self.limits = limits
        self.local = all(limit.by == "connection" for limit in limits)
        self._limiter = limiter
        rates = [(limit, rate) for limit in limits for rate in limit.rates]
        self._counts = tuple(
            _Count(limit, rate, name if len(rates) == 1 else f"{name}-{number}", f"{name}:{number}")
            for number, (limit, rate) in enumerate(rates, start=1)
        )
        self._only = self._counts[0] if len(self._counts) == 1 else None

    def __repr__(self) -> str:
        return f"<Gate {self.name}>"

    @property
    def policies(self) -> tuple[tuple[str, int, float], ...]:
        """What it allows: name, amount, and in how many seconds that is there again."""
        return tuple((count.policy, int(count.most), count.window) for count in self._counts)

    @property
    def kept(self) -> int:
        """How many keys it remembers in this process."""
        return sum(len(count.keyed) for count in self._counts)

    def take_now(self, buckets: MutableMapping[object, TokenBucket], what: object = None) -> Decision:
        """
        Count `what` against a connection, whose buckets those are: for a gate that is `local`.

        All its limits are charged, or none. Raises `ConfigurationError` where a cost is no number.
        """
        only = self._only
        if only is not None:
            cost = only.cost if only.price is None else only.priced(what)
            bucket = buckets.get(only)
            if bucket is None:
                bucket = buckets[only] = TokenBucket(only.rate, only.burst, self._limiter.clock)
            return bucket.decide(cost, only.policy)
        charges: list[tuple[_Count, TokenBucket, float]] = []
        for count in self._counts:
            bucket = buckets.get(count)
            if bucket is None:
                bucket = buckets[count] = TokenBucket(count.rate, count.burst, self._limiter.clock)
            charges.append((count, bucket, count.priced(what)))
        return _refused(charges) or _charged(charges)

    async def take(
        self,
        subject: Subject,
        buckets: MutableMapping[object, TokenBucket],
        what: object = None,
        *,
        exact: bool = False,
    ) -> Decision:
        """
        Count `what` against `subject`; `buckets` are its connection's, or an empty mapping.

        All the limits are charged, or none. `exact` asks the store what remains of a shared quota. Raises
        `ConfigurationError` where a cost is no number.
        """
        if self.local:
            return self.take_now(buckets, what)
        limiter = self._limiter
        charges: list[tuple[_Count, TokenBucket, float]] = []
        asks: list[Ask] = []
        asked: list[_Count] = []
        held = UNLIMITED
        now = limiter.clock.now()
        for count in self._counts:
            cost = count.priced(what)
            bucket, who = self._bucket(count, subject, buckets)
            if bucket is None:
                continue
            charges.append((count, bucket, cost))
            if count.quota is not None and who is not None and cost:
                wait = count.blocked.wait(who, cost, now)
                if wait > (held.retry_after or 0.0):
                    held = Decision(False, wait, 0, int(count.most), wait, count.policy)
                asks.append(Ask(count.quota, who, cost))
                asked.append(count)
        refused = _refused(charges)
        if refused is not None or not held.allowed:
            return _longer(refused or held, held)
        decision = _charged(charges)
        if not asks:
            return decision
        answers = await limiter.quotas.take(asks, exact=exact)
        now = limiter.clock.now()
        for count, ask, answer in zip(asked, asks, answers, strict=True):
            if answer is None:
                continue
            answer = Decision(
                answer.allowed, answer.retry_after, answer.remaining, answer.limit, answer.reset, count.policy
            )
            if not answer.allowed and not limiter.quotas.away:  # then the store says when it is back
                count.blocked.block(ask.who, ask.cost, now + (answer.retry_after or 0.0), now)
            decision = _longer(decision, answer)
        if not decision.allowed:
            for _, bucket, cost in charges:
                bucket.give_back(cost)
        return decision

    def due(self, told: MutableMapping[object, float], decision: Decision) -> bool:
        """
        Whether a `limits` frame should tell a client what remains: below a quarter, and at most once a second.

        `told` is the connection's, and remembers when that was, for each gate.
        """
        if 4 * decision.remaining >= decision.limit:
            return False
        now = self._limiter.clock.now()
        if now - told.get(self, -inf) < TELLING:
            return False
        told[self] = now
        return True

    def _bucket(
        self, count: "_Count", subject: Subject, buckets: MutableMapping[object, TokenBucket]
    ) -> tuple[TokenBucket | None, str | None]:
        """Where that subject is counted in this process, None for nowhere, and under which key, None for no key."""
        by = count.limit.by
        who: str | None
        if callable(by):
            key = by(HTTPConnection(subject.scope))
            if key is None:
                return None, None
            who = f"key:{key}"
        elif by == "user" and subject.user is not None:
            who = f"user:{subject.user}"
        elif by == "address" or (by == "user" and not subject.connection):
            group = self._limiter.address_group(subject.scope)
            if group is None:
                return None, None
            who = f"address:{group}"
        else:
            bucket = buckets.get(count)
            if bucket is None:
                bucket = buckets[count] = TokenBucket(count.rate, count.burst, self._limiter.clock)
            return bucket, None
        return count.keyed.get(who, self._limiter.clock), who


class _Count:
    """One rate of one limit of a gate, and what is counted by it in this process."""

    __slots__ = ("blocked", "burst", "cost", "keyed", "limit", "most", "policy", "price", "quota", "rate", "window")

    def __init__(self, limit: Limit, rate: Rate, policy: str, name: str) -> None:
        self.limit = limit
        self.rate = rate
        self.policy = policy
        self.quota = Quota(name, rate, limit.strategy) if limit.shared else None
        if limit.burst is not None:
            self.burst = limit.burst
        else:
            self.burst = self.quota.surge if self.quota is not None else rate.amount
        self.most = min(self.burst, rate.amount) if limit.shared else self.burst
        self.window = rate.seconds if limit.shared else self.burst / rate.per_second
        self.keyed = KeyedBuckets(rate, self.burst)
        self.blocked = Blocked()
        self.price: Callable[[Any], float] | None = limit.cost if callable(limit.cost) else None
        self.cost = 1.0 if callable(limit.cost) else float(limit.cost)

    def priced(self, what: object) -> float:
        if self.price is None:
            return self.cost
        cost: Any = self.price(what)
        if not isinstance(cost, int | float) or not (isfinite(cost) and cost >= 0):
            raise ConfigurationError(f"a cost is a number, 0 or more, not {cost!r}")
        return float(cost)


def _refused(charges: list[tuple[_Count, TokenBucket, float]]) -> Decision | None:
    """The refusal that lasts longest; None where none refuses."""
    found: Decision | None = None
    for count, bucket, cost in charges:
        if cost > count.most:
            return Decision(False, None, int(bucket.remaining), int(count.most), bucket.reset, count.policy)
        wait = bucket.wait(cost)
        if wait and (found is None or wait > (found.retry_after or 0.0)):
            found = Decision(False, wait, int(bucket.remaining), int(count.most), bucket.reset, count.policy)
    return found


def _charged(charges: list[tuple[_Count, TokenBucket, float]]) -> Decision:
    """Charge them all; tells what the tightest says."""
    tightest = UNLIMITED
    for count, bucket, cost in charges:
        decision = bucket.decide(cost, count.policy)
        if count.quota is not None:
            # Such a bucket may be larger than the quota, so as to let two windows through.
            remaining = max(0, decision.remaining - int(count.burst - count.most))
            decision = Decision(True, 0.0, remaining, int(count.most), decision.reset, count.policy)
        tightest = _longer(tightest, decision)
    return tightest


def _longer(one: Decision, other: Decision) -> Decision:
    """Which of two says more: a refusal, the longer one; else where a smaller part remains, `other` if in doubt."""
    if one.allowed != other.allowed:
        return other if one.allowed else one
    if not one.allowed:
        return one if _wait(one) >= _wait(other) else other
    return one if one.remaining * other.limit < other.remaining * one.limit else other


def _wait(refusal: Decision) -> float:
    return inf if refusal.retry_after is None else refusal.retry_after
