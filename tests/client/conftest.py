"""What the tests of the client share."""

from collections.abc import AsyncIterator

import pytest

from tests.client.site import Site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async with site.realtime:
        yield site
