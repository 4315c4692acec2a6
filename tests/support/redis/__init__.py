"""Real Redis-compatible servers for tests: one alone, a master and a replica with Sentinels, and a cluster."""

from tests.support.redis.binaries import BINARIES, Binary, ServerMissing
from tests.support.redis.clustered import Cluster, cluster
from tests.support.redis.replicated import Sentinels, sentinels
from tests.support.redis.single import Server, Snapshot, StartupFailed, server

__all__ = [
    "BINARIES",
    "Binary",
    "Cluster",
    "Sentinels",
    "Server",
    "ServerMissing",
    "Snapshot",
    "StartupFailed",
    "cluster",
    "sentinels",
    "server",
]
