"""
Fixtures for pytest: `pytest_plugins = ["starlette_realtime.testing.fixtures"]` in a conftest, or import them there.

They are asynchronous, for tests that anyio's plug-in runs; it comes with anyio. For another runner, make a fixture of
your own of `async with Leaks() as leaks: yield leaks`.
"""

from collections.abc import AsyncIterator

import pytest

from starlette_realtime.testing.leaks import Leaks

__all__ = ["no_leaks"]


@pytest.fixture
async def no_leaks() -> AsyncIterator[Leaks]:
    """
    Fail a test that leaves tasks behind, or anything of what it watches: `no_leaks.watch(realtime)`.

    What is compared, and how long it may take: see `Leaks`. Ask for it before fixtures that start an application, so
    that they have ended by then.
    """
    leaks = Leaks()
    async with leaks:
        yield leaks
