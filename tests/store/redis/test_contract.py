"""The Redis store keeps the contract: on a single server, behind Sentinels, and on a cluster."""

from collections.abc import AsyncIterator

import pytest

from tests.store.redis.support import RedisContract
from tests.support.redis import BINARIES, Binary, Cluster, Sentinels, Server, cluster, sentinels, server


@pytest.fixture(scope="module", params=BINARIES, ids=str)
async def single(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Server]:
    binary: Binary = request.param
    async with server(binary) as running:
        yield running


@pytest.fixture(scope="module", params=BINARIES, ids=str)
async def watched(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Sentinels]:
    binary: Binary = request.param
    async with sentinels(binary) as running:
        yield running


@pytest.fixture(scope="module", params=BINARIES, ids=str)
async def clustered(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Cluster]:
    binary: Binary = request.param
    async with cluster(binary) as running:
        yield running


class TestSingle(RedisContract):
    """One server."""

    @pytest.fixture(autouse=True)
    def on(self, single: Server) -> None:
        self.servers = single


class TestSentinel(RedisContract):
    """A master, a replica, and three that watch them."""

    @pytest.fixture(autouse=True)
    def on(self, watched: Sentinels) -> None:
        self.servers = watched


class TestCluster(RedisContract):
    """Three masters."""

    @pytest.fixture(autouse=True)
    def on(self, clustered: Cluster) -> None:
        self.servers = clustered
