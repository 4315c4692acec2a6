"""Address: which servers a URL names, and how to make a connection to one of them."""

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from starlette_realtime.errors import ConfigurationError

__all__ = ["Address", "Host", "Remap"]

Host: TypeAlias = tuple[str, int]
"""Where a server listens."""

Remap: TypeAlias = Callable[[Host], Host]
"""Where a server that says it is there can be reached from here: through a tunnel, or out of a container's network."""

SCHEMES = (
    "redis://host:port/db, rediss://… (TLS), unix:///path?db=0, redis+sentinel://host:port,host:port/service?db=0, "
    "redis+cluster://host:port,host:port; rediss+sentinel and rediss+cluster with TLS"
)
MANAGED = {"host", "port", "path", "connection_class", "db", "username", "password", "protocol"}


@dataclass(frozen=True, kw_only=True)
class Address:
    """
    What a store's URL says.

    `hosts` are the server, the sentinels, or some nodes of a cluster; `path` a Unix socket; `service` what the
    sentinels call the master. `options` go to redis-py's connection as they are (`ssl_ca_certs`, for one);
    `sentinel_options` to the connections to sentinels.
    """

    kind: Literal["single", "sentinel", "cluster"] = "single"
    hosts: tuple[Host, ...] = ()
    path: str | None = None
    service: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read a URL. Raises `ConfigurationError`, which never shows a password."""
        try:
            address = cls._read(url)
            address.connection(address.hosts[0] if address.hosts else None, timeout=1.0)
            return address
        except ValueError as exc:
            wrong = str(exc)
        except (TypeError, RedisError) as exc:
            wrong = f"one of its options can't be: {exc}"
        # Not while the other error is handled: it would be kept as the context.
        raise ConfigurationError(f"the store's URL can't be used: {wrong}. It is one of {SCHEMES}")

    @classmethod
    def _read(cls, url: str) -> "Address":
        split = _split(url)
        scheme, _, kind = split.scheme.partition("+")
        if kind in ("sentinel", "cluster") and scheme in ("redis", "rediss"):
            return cls._several(split, scheme, kind)  # type: ignore[arg-type]
        if kind or scheme not in ("redis", "rediss", "unix"):
            raise ValueError(f"{split.scheme!r} is no scheme of a store")
        return cls._single(url)

    @classmethod
    def _single(cls, url: str) -> "Address":
        found: dict[str, Any] = dict(parse_url(url))
        path = found.get("path")
        return cls(
            hosts=() if path else ((found.get("host", "localhost"), found.get("port", 6379)),),
            path=path,
            db=int(found.get("db", 0)),
            username=found.get("username"),
            password=found.get("password"),
            tls=found.get("connection_class") is SSLConnection,
            options={name: value for name, value in found.items() if name not in MANAGED},
        )

    @classmethod
    def _several(cls, split: SplitResult, scheme: str, kind: Literal["sentinel", "cluster"]) -> "Address":
        credentials, at, places = split.netloc.rpartition("@")
        hosts = tuple(_host(place, 26_379 if kind == "sentinel" else 6_379) for place in places.split(",") if place)
        if not hosts:
            raise ValueError("it names no host")
        query = dict(parse_qsl(split.query))
        sentinel = {
            name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query
        }
        path = unquote(split.path.strip("/"))
        # One host in place of all is what redis-py can read.
        plain = urlunsplit((scheme, f"{credentials}{at}localhost", "", urlencode(query), ""))
        address = replace(cls._single(plain), kind=kind, hosts=hosts, sentinel_options=sentinel)
        if kind == "cluster":
            if path not in ("", "0") or address.db:
                raise ValueError("a cluster has no databases but 0")
            return address
        if not path or "/" in path:
            raise ValueError("it ends in the name by which the sentinels know the master: /mymaster")
        return replace(address, service=path)

    def connection(self, host: Host | None, *, timeout: float) -> AbstractConnection:
        """A connection that is not made yet, to `host` or the Unix socket; it doesn't repeat anything by itself."""
        options = self._common(timeout)
        options.update(db=self.db, username=self.username, password=self.password)
        if host is None:
            return UnixDomainSocketConnection(path=self.path or "", **options)
        return self._tcp(host, options)

    def to_sentinel(self, host: Host, *, timeout: float) -> AbstractConnection:
        """A connection that is not made yet, to one of the sentinels."""
        return self._tcp(host, {**self._common(timeout), **self.sentinel_options})

    def _tcp(self, host: Host, options: dict[str, Any]) -> AbstractConnection:
        kind = SSLConnection if self.tls else Connection
        options.setdefault("socket_keepalive", True)
        return kind(host=host[0], port=host[1], **options)

    def _common(self, timeout: float) -> dict[str, Any]:
        # Waiting for an answer is bounded by the callers, who know which answers are due.
        return {
            **self.options,
            "socket_timeout": None,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "decode_responses": False,
            "protocol": 2,
        }

    def __str__(self) -> str:
        """Where it is, without credentials."""
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "single" else f"+{self.kind}")
        if self.path is not None:
            return f"unix://{self.path}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{scheme}://{hosts}" + (f"/{self.service}" if self.service else "")

    @property
    def context(self) -> ssl.SSLContext | None:
        """The TLS context that connections use; None without TLS. Made anew at each call: it reads files."""
        if not self.tls:
            return None
        connection = self._tcp(("localhost", 0), self._common(1.0))
        assert isinstance(connection, SSLConnection)
        return connection.ssl_context.get()


def _split(url: str) -> SplitResult:
    """The parts of a URL whose port can be read. What `urllib` says is not repeated: it quotes what it can't read."""
    with suppress(ValueError):
        split = urlsplit(url)
        if "," not in split.netloc:  # several are looked at one by one
            _ = split.port
        return split
    raise ValueError("its host and port can't be read; signs in a password are percent-encoded, @ as %40 and / as %2F")


def _host(place: str, port: int) -> Host:
    split = _split(f"//{place}")
    if not split.hostname:
        raise ValueError("one of its hosts is empty")
    return split.hostname, split.port or port
