"""A clock that only the test moves, and tokens that live by it."""

import pytest

from starlette_realtime import SignedTokens
from starlette_realtime.testing import FakeClock
from tests.auth.support import SECRET


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tokens(clock: FakeClock) -> SignedTokens:
    return SignedTokens(SECRET, clock=clock)
