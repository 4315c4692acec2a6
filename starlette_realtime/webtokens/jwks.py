"""JWKS: an issuer's published keys, fetched when needed, kept for a while, and never asked for too often."""

import asyncio
import importlib
import io
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

import anyio.to_thread
import msgspec

from starlette_realtime.clock import Clock
from starlette_realtime.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from starlette_realtime.webtokens.keys import Key

__all__ = ["JWKS", "Fetch", "load_keys_module"]

logger = logging.getLogger("starlette_realtime.auth")

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets what is at a URL; raises whatever it likes when it can't."""


class _Set(msgspec.Struct, frozen=True):
    """A JWK set (RFC 7517 section 5)."""

    keys: list[dict[str, Any]]


class JWKS:
    """
    The keys that an issuer publishes at `url` (RFC 7517), for `JSONWebTokens`.

    They are fetched with the first token, and again when they are older than `max_age` seconds, or when a token names
    a key that is not among them; but at most once in `min_interval` seconds, so that made-up names don't hammer the
    issuer, and once at a time. While that fails, the old keys serve for another `stale_for` seconds; then tokens are
    refused as `Unavailable`.

    A fetch takes at most `timeout` seconds, `max_bytes` bytes and `max_keys` keys. The `url` is https (http for the
    own machine only), and redirects are not followed. `fetch` replaces how it is got: your HTTP client, say.

    Each set is kept by itself: keys of one issuer never verify for another, whatever they are called.

    Raises `ConfigurationError` for a URL that is not safe, and where PyJWT is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        fetch: Fetch | None = None,
        max_age: float = 600.0,
        stale_for: float = 3600.0,
        min_interval: float = 10.0,
        timeout: float = 5.0,
        max_bytes: int = 131_072,
        max_keys: int = 32,
        clock: Clock | None = None,
    ) -> None:
        _check_url(url)
        if not (max_age > 0 and stale_for >= 0 and min_interval > 0 and timeout > 0):
            raise ConfigurationError("max_age, min_interval and timeout are positive seconds, stale_for 0 or more")
        self.url = url
        self._module = load_keys_module()
        self._fetch = fetch if fetch is not None else partial(_get, timeout=timeout, max_bytes=max_bytes)
        self._max_age = max_age
        self._stale_for = stale_for
        self._min_interval = min_interval
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._max_keys = max_keys
        self._clock = clock if clock is not None else Clock()
        self._keys: tuple[Key, ...] = ()
        self._fetched: float | None = None  # when the keys came, and
        self._asked: float | None = None  # when they were asked for last
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> tuple["Key", ...]:
        """
        The keys of that name, or all where a token names none. Raises `Unavailable` when the issuer can't be asked.
        """
        if self._fetched is None or self._clock.now() - self._fetched >= self._max_age:
            await self._refresh()
        found = self._named(kid)
        if not found and kid is not None and await self._refresh():
            found = self._named(kid)
        now = self._clock.now()
        usable = self._fetched is not None and now - self._fetched < self._max_age + self._stale_for
        if usable and (found or not self._failed):
            return found
        wait = 0.0 if self._asked is None else self._asked + self._min_interval - now
        raise Unavailable("the issuer of this token can't be asked for its keys", retry_after=max(1.0, wait))

    def _named(self, kid: str | None) -> tuple["Key", ...]:
        return self._keys if kid is None else tuple(key for key in self._keys if key.kid == kid)

    async def _refresh(self) -> bool:
        """Fetch, or wait for whoever does; False where it is too early to ask again."""
        task = self._fetching
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            now = self._clock.now()
            if self._asked is not None and now - self._asked < self._min_interval:
                return False
            self._asked = now
            task = self._fetching = asyncio.create_task(self._load())
        await asyncio.wait((task,))  # whoever gives up waiting doesn't take it away from the others
        return True

    async def _load(self) -> None:
        try:
            async with self._clock.timeout(self._timeout):
                text = await self._fetch(self.url)
            if len(text) > self._max_bytes:
                raise ValueError(f"over {self._max_bytes} bytes")
            entries = msgspec.json.decode(text, type=_Set).keys
            if len(entries) > self._max_keys:
                raise ValueError(f"over {self._max_keys} keys")
            self._keys = self._module.published_keys(entries)
        except Exception as exc:
            self._failed = True
            logger.warning("the keys at %s could not be had: %s: %s", self.url, type(exc).__name__, exc)
        else:
            self._failed = False
            self._fetched = self._clock.now()


def load_keys_module() -> Any:
    """The module `keys`, which needs the extra; raises `ConfigurationError` that says what to install."""
    try:
        return importlib.import_module("starlette_realtime.webtokens.keys")
    except ImportError as exc:
        raise ConfigurationError("JSON web tokens need PyJWT: pip install 'starlette-realtime[jwt]'") from exc


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    secure = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))
    plain = url.isascii() and url.isprintable() and " " not in url
    if not secure or not plain or not parts.hostname or parts.username is not None:
        raise ConfigurationError(f"keys are fetched by https (http from this machine only), and not from {url!r}")


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or (host is not None and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: what another place says are not this issuer's keys."""

    def redirect_request(self, *_args: object) -> Request | None:
        """None: the answer stays the error that it is."""
        return None


class _Timely(io.RawIOBase):
    """What comes from a socket, until its timeout has passed since the first look: however little comes at a time."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._socket = sock
        self._until = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what there is. Raises `TimeoutError`."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self._socket.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Let the socket go."""
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """An answer that comes in time or not at all: a timeout of a socket alone bounds each of its bytes."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Timely(self.fp.detach(), sock))


class _Plain(HTTPHandler):
    def do_open(self, http_class: Any, req: Request, **options: Any) -> HTTPResponse:
        """Ask, over HTTP."""
        return super().do_open(partial(_connection, http_class), req, **options)


class _Secure(HTTPSHandler):
    def do_open(self, http_class: Any, req: Request, **options: Any) -> HTTPResponse:
        """Ask, over TLS."""
        return super().do_open(partial(_connection, http_class), req, **options)


def _connection(http_class: Any, host: str, **options: Any) -> Any:
    connection = http_class(host, **options)
    connection.response_class = _Response
    return connection


MOST_FETCHES = 8
"""How many fetches of this process may be under way, those that nobody waits for any more included."""

_fetching: set[object] = set()


async def _get(url: str, *, timeout: float, max_bytes: int) -> bytes:
    if len(_fetching) >= MOST_FETCHES:  # abandoned ones, of a server that drips its answer
        raise URLError("earlier fetches have not ended")
    return await anyio.to_thread.run_sync(_fetch, url, timeout, max_bytes, abandon_on_cancel=True)


def _fetch(url: str, timeout: float, max_bytes: int) -> bytes:
    thread = object()
    _fetching.add(thread)
    try:
        return _get_now(url, timeout, max_bytes)
    finally:
        _fetching.discard(thread)


def _get_now(url: str, timeout: float, max_bytes: int) -> bytes:
    """Read what is there, and little more than `max_bytes` of it; an abandoned thread ends soon, too."""
    proxies = [ProxyHandler({})] if _is_loopback(urlsplit(url).hostname) else []
    request = Request(url, headers={"Accept": "application/json"})
    body = b""
    try:
        with build_opener(_Stay, _Plain, _Secure, *proxies).open(request, timeout=timeout) as response:
            while len(body) <= max_bytes and (part := response.read1(16_384)):
                body += part
    except HTTPError as exc:
        exc.close()
        raise
    return body
