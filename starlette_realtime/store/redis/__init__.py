"""RedisStore: the store for many processes, on Redis 7.0 or later and Valkey; single server, Sentinel, Cluster."""

try:
    import redis as _driver
except ImportError as exc:  # pragma: no cover - tests have it
    raise ImportError("a RedisStore needs redis-py: pip install 'starlette-realtime[redis]'") from exc
del _driver

from starlette_realtime.store.redis.store import RedisStore  # noqa: E402

__all__ = ["RedisStore"]
