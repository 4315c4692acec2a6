"""A limit says what it means, or what is wrong with it."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from starlette_realtime.errors import ConfigurationError
from starlette_realtime.ratelimit import Limit, Rate, RateLimiter


def test_a_limit_has_one_rate_or_several() -> None:
    assert Limit("5/second").rates == (Rate(5, 1),)
    assert Limit("100/minute;5/second").rates == (Rate(100, 60), Rate(5, 1))
    assert Limit(Rate(5, 0.2)).rates == (Rate(5, 0.2),)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Limit("often"), "is no rate limit: write one like '5/second'"),
        (lambda: Limit("5/second", by=cast(Any, "room")), "counts by 'connection', 'user', 'address' or a function"),
        (
            lambda: Limit("5/second", strategy=cast(Any, "token-bucket")),
            "choose one of 'moving-window', 'fixed-window'",
        ),
        (lambda: Limit("5/second", burst=0.5), "burst of a limit is 1 or more"),
        (lambda: Limit("5/second", burst=float("inf")), "burst of a limit is 1 or more"),
        (lambda: Limit(Rate(0.5, 1.0)), "burst of a limit is 1 or more"),
        (lambda: Limit("5/second;9/minute", burst=5), "a burst belongs to one rate"),
        (lambda: Limit("5/second", cost=0), "a cost is a positive number or a function"),
        (lambda: Limit("5/second", cost=float("inf")), "a cost is a positive number or a function"),
        (lambda: Limit("5/second", cost=float("nan")), "a cost is a positive number or a function"),
        (lambda: Limit("5/second", shared=True), "a connection lives in one process"),
        (lambda: Limit(Rate(5, 0.2), by="user", shared=True), "whole things in whole seconds"),
        (lambda: Limit(Rate(5.5, 1), by="user", shared=True), "whole things in whole seconds"),
        (lambda: RateLimiter(frames=cast(Any, [5])), "5 is no limit"),
        (lambda: RateLimiter(frames=cast(Any, 5)), "5 is no limit"),
        (lambda: RateLimiter(over=cast(Any, "drop")), "'close' or 'wait', not 'drop'"),
        (lambda: RateLimiter(connections_per_user=0), "connections_per_user is 1 or more, or None"),
        (lambda: RateLimiter(connections_per_address=-1), "connections_per_address is 1 or more, or None"),
        (lambda: RateLimiter(requests=Limit("5/second")), "requests come before there is a connection"),
        (lambda: RateLimiter(handshakes=[Limit("5/second", by="connection")]), "handshakes come before"),
    ],
)
def test_a_mistake_is_told_at_once(make: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        make()


def test_a_rate_alone_is_counted_as_its_kind_is() -> None:
    limiter = RateLimiter(
        requests="9/second", handshakes=Rate(9), frames="9/second", joins="9/second", publishes="9/second"
    )
    assert [limit.by for limit in limiter.requests.limits] == ["address"]
    assert [limit.by for limit in limiter.handshakes.limits] == ["address"]
    assert [limit.by for limit in limiter.frames.limits] == ["connection"]
    assert [limit.by for limit in limiter.joins.limits] == ["connection"]
    assert [limit.by for limit in limiter.publishes.limits] == ["user"]
    assert [limit.by for limit in limiter.gate("event", ["5/second", Limit("9/minute", by="user")]).limits] == [
        "connection",
        "user",
    ]
    assert limiter.gate("event", None).limits == limiter.gate("event", ()).limits == ()


def test_the_defaults_are_those_that_are_documented() -> None:
    limiter = RateLimiter()
    assert limiter.requests.limits == ()
    assert limiter.handshakes.limits == (Limit("5/second", burst=20, by="address"),)
    assert limiter.frames.limits == (Limit("20/second", burst=40),)
    assert limiter.joins.limits == (Limit("5/second", burst=100),)
    assert limiter.publishes.limits == (Limit("10/second", by="user", shared=True),)
    assert (limiter.connections_per_user, limiter.connections_per_address) == (10, 50)
