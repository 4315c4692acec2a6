"""What several modules here share."""

from collections.abc import AsyncIterator

import pytest

from tests.support.redis import Server, server


@pytest.fixture(scope="module")
async def running(anyio_backend: str) -> AsyncIterator[Server]:
    """One server for a module's tests."""
    async with server() as found:
        yield found
