"""ASGI: refusing a request or handshake, the origin check, and who the peer is."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, NamedTuple

import msgspec

from starlette_realtime.errors import CLOSE_CODES, ERROR_CODES, ConfigurationError, Refused, Unauthenticated
from starlette_realtime.types import Message, Receive, Scope, Send

__all__ = [
    "Origins",
    "address_group",
    "client_address",
    "close_reason",
    "deny",
    "header_values",
    "is_private",
    "milliseconds",
    "mounted_path",
    "outcome",
    "scope_user",
]

_FOR_EVER: Final = 1e9
"""Seconds: the longest time that peers are told to wait."""

_MAX_REASON: Final = 123
"""Bytes of a close reason: a control frame has 125, and the code takes two (RFC 6455 section 5.5)."""


_OUTCOMES: Final = {
    "revoked": (401, 4450),
    "rate_limited": (429, 4429),
    "unavailable": (503, 1013),
}


def outcome(refusal: Refused) -> tuple[int, int]:
    """The HTTP status and the close code of a request, handshake or connection that ends by this refusal."""
    fallback = (401, 4401) if isinstance(refusal, Unauthenticated) else (403, 4403)
    return _OUTCOMES.get(refusal.code, fallback)


def mounted_path(scope: Scope) -> str:
    """The path below where the application is mounted (ASGI: `path` includes `root_path`)."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
        return path[len(root) :]
    return path


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """All values of the header `name` (in lower case), in order, as they came."""
    return [value for key, value in scope["headers"] if key == name]


# --- refusing -------------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> float:
    """
    Seconds as they are told to peers: rounded up to milliseconds, so that nobody comes too early.

    From 0 to 10^9: whatever an application says, it can be told.
    """
    return math.ceil(min(max(0.0, seconds), _FOR_EVER) * 1000 - 1e-6) / 1000


def close_reason(code: str, retry_after: float | None = None) -> str:
    """
    A close frame's reason, `code` or `code;retry_after`, at most 123 bytes of UTF-8.

    `retry_after` is in seconds, rounded up to milliseconds; a `code` that is too long is cut.
    """
    suffix = ""
    if retry_after is not None:
        seconds = f"{milliseconds(retry_after):.3f}".rstrip("0").rstrip(".")
        suffix = f";{seconds}"
    return code.encode()[: _MAX_REASON - len(suffix)].decode(errors="ignore") + suffix


async def deny(
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    status: int,
    code: int,
    reason: str = "",
    message: str = "",
    retry_after: float | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    frames: Sequence[str] = (),
) -> None:
    """
    Refuse an HTTP request or a WebSocket handshake, before anything was received from it.

    An HTTP request gets `status`, with the error as JSON. A browser cannot read the status of a refused handshake,
    so one with an `Origin` header is accepted, sent `frames` (text) and closed with `code`; one without is refused
    with `status` where the server can (the ASGI extension `websocket.http.response`), else with its 403.

    `reason` is an error code, by default the name of the close code; `message` says it to people. `retry_after`
    (seconds) goes into the close reason and, rounded up, into `Retry-After` (RFC 9110 section 10.2.3). A 401 has a
    `WWW-Authenticate: Bearer` (RFC 6750 section 3) unless `headers` has another. That the peer has gone meanwhile is
    no error.
    """
    if not reason:
        reason = CLOSE_CODES[code].name if code in CLOSE_CODES else "forbidden"
    websocket = scope["type"] == "websocket"
    with suppress(OSError):
        if websocket and (await receive())["type"] != "websocket.connect":
            return
        if websocket and header_values(scope, b"origin"):
            for each in _accepted(scope, code, close_reason(reason, retry_after), frames):
                await send(each)
        elif websocket and "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": code, "reason": close_reason(reason, retry_after)})
        else:
            prefix = "websocket.http.response" if websocket else "http.response"
            error: dict[str, str | float] = {"code": reason, "message": message or ERROR_CODES.get(reason, reason)}
            if retry_after is not None:
                error["retry_after"] = milliseconds(retry_after)
            body = msgspec.json.encode(error)
            start = {"status": status, "headers": _headers(status, retry_after, headers, len(body))}
            await send({"type": f"{prefix}.start", **start})
            await send({"type": f"{prefix}.body", "body": body})


def _accepted(scope: Scope, code: int, reason: str, frames: Sequence[str]) -> Iterator[Message]:
    # A browser that asked for subprotocols fails the connection, unreadably, when the answer names none of them.
    yield {"type": "websocket.accept", "subprotocol": next(iter(scope.get("subprotocols") or ()), None)}
    for frame in frames:
        yield {"type": "websocket.send", "text": frame}
    yield {"type": "websocket.close", "code": code, "reason": reason}


def _headers(
    status: int, retry_after: float | None, extra: Iterable[tuple[bytes, bytes]], length: int
) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % length),
        (b"cache-control", b"no-store"),
        *((name.lower(), value) for name, value in extra),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after))))
    if status == 401 and all(name != b"www-authenticate" for name, _ in headers):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


# --- origin ---------------------------------------------------------------------------------------------------------


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None  # never the scheme's default


_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}

# A host as browsers send it: ASCII, international names in Punycode (RFC 5891); the whole authority, so that userinfo,
# paths and whatever else a lenient parser would skip has no place.
_AUTHORITY: Final = r"(?P<host>[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
_ORIGIN: Final = re.compile(rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://{_AUTHORITY}")
_HOST: Final = re.compile(_AUTHORITY)
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # RFC 9110 section 9.2.1


class Origins:
    """
    Whose pages may connect: those of the same origin and those of `allowed` (RFC 6454).

    An `Origin` header is compared exactly, by scheme, host and port, with `allowed` and with the request's `Host`.
    An `https` origin over an `http` scope is a proxy's doing and the same origin; the reverse is not. `allowed` holds
    origins such as `https://app.example.com`; `"*"` lets any page in, `null` included.

    Without `Origin`, which every browser sends with a WebSocket handshake and a POST, these pass only without a
    cookie: it is a program's, and needs other credentials. A browser's GET of the same origin has none: it passes
    with `Sec-Fetch-Site: same-origin`, or without that header too. What another site's page asked for never passes.

    `allowed_hosts` is against DNS rebinding, where a foreign page's own host name resolves to this server: names
    such as `example.com`, `example.com:8000` or `*.example.com`; empty: any. Repeated headers never pass.

    Raises `ConfigurationError` for an entry that no header could equal.
    """

    def __init__(self, allowed: Sequence[str] | Literal["*"] = (), allowed_hosts: Sequence[str] = ()) -> None:
        if isinstance(allowed_hosts, str) or (isinstance(allowed, str) and allowed != "*"):
            raise ConfigurationError("allowed origins and hosts are lists of strings, or '*' for any origin")
        self.any = self._any = allowed == "*"
        self._allowed = frozenset(() if self._any else map(_configured_origin, allowed))
        self._any_host = not allowed_hosts
        self._hosts: set[tuple[str, int | None]] = set()
        self._suffixes: list[tuple[str, int | None]] = []
        for entry in allowed_hosts:
            parsed = _parse_host(entry.removeprefix("*."))
            if parsed is None:
                raise ConfigurationError(f"{entry!r} is no host: write example.com, example.com:8000 or *.example.com")
            if entry.startswith("*."):
                self._suffixes.append(("." + parsed[0], parsed[1]))
            else:
                self._hosts.add(parsed)

    def check(self, scope: Scope) -> bool:
        """Whether this HTTP request or WebSocket handshake may go on."""
        origins = header_values(scope, b"origin")
        sites = header_values(scope, b"sec-fetch-site")
        if len(origins) > 1 or len(sites) > 1 or not self.check_host(scope):
            return False
        hosts = header_values(scope, b"host")
        host = _parse_host(hosts[0].decode("latin-1")) if hosts else None
        if origins:
            return self._origin_allowed(origins[0].decode("latin-1"), host, scope)
        if sites and sites[0] != b"same-origin":
            return False
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return True
        return not header_values(scope, b"cookie")

    def check_host(self, scope: Scope) -> bool:
        """Whether the `Host` is one, and an allowed one, whoever asks."""
        hosts = header_values(scope, b"host")
        if len(hosts) > 1:
            return False
        host = _parse_host(hosts[0].decode("latin-1")) if hosts else None
        return self._host_allowed(host) and not (hosts and host is None)

    def _host_allowed(self, host: tuple[str, int | None] | None) -> bool:
        if self._any_host:
            return True
        if host is None:
            return False
        name, port = host
        return (
            host in self._hosts
            or (name, None) in self._hosts
            or any(name.endswith(suffix) and want in (None, port) for suffix, want in self._suffixes)
        )

    def _origin_allowed(self, text: str, host: tuple[str, int | None] | None, scope: Scope) -> bool:
        origin = _parse_origin(text)
        if origin is None:
            return self._any and text == "null"
        if self._any or origin in self._allowed:
            return True
        if host is None or origin.scheme not in ("http", "https"):
            return False
        secure = scope.get("scheme", "http") in ("https", "wss")
        if secure and origin.scheme != "https":
            return False
        default = _DEFAULT_PORTS[origin.scheme]
        return (origin.host, origin.port or default) == (host[0], host[1] or default)


def _configured_origin(text: str) -> _Origin:
    origin = _parse_origin(text)
    if origin is None:
        raise ConfigurationError(
            f"{text!r} is no origin: write scheme://host or scheme://host:port, without path or wildcard, and "
            "international names in Punycode (any sandboxed page is 'null': it cannot be allowed alone)"
        )
    return origin


def _parse_origin(text: str) -> _Origin | None:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return None
    host = _normal_host(match["host"])
    port = int(match["port"]) if match["port"] else None
    if host is None or (port is not None and port > 65535):
        return None
    scheme = match["scheme"].lower()
    return _Origin(scheme, host, None if port == _DEFAULT_PORTS.get(scheme) else port)


def _parse_host(text: str) -> tuple[str, int | None] | None:
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    host = _normal_host(match["host"])
    port = int(match["port"]) if match["port"] else None
    return None if host is None or (port is not None and port > 65535) else (host, port)


def _normal_host(host: str) -> str | None:
    """Lower case; an IPv6 address in its one short form. `example.com.` stays another host, as in browsers."""
    if not host.startswith("["):
        return host.lower()
    try:
        return f"[{IPv6Address(host[1:-1]).compressed}]"
    except ValueError:
        return None


# --- the peer -------------------------------------------------------------------------------------------------------

_PRIVATE: Final = tuple(
    map(
        ip_network,
        (
            "127.0.0.0/8",  # loopback, RFC 1122
            "10.0.0.0/8",  # RFC 1918
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
            "169.254.0.0/16",  # link-local, RFC 3927
            "::1/128",  # loopback, RFC 4291
            "fc00::/7",  # RFC 4193
            "fe80::/10",  # link-local, RFC 4291
        ),
    )
)


def client_address(scope: Scope) -> str | None:
    """
    The peer's IP address, as the server says; None where it has none (a Unix socket, an in-process test).

    `X-Forwarded-For` is not read here, as anybody can send it: a server that trusts its proxy puts the real address
    into the scope (uvicorn's `--proxy-headers` and `--forwarded-allow-ips`). An IPv4 address in IPv6 (`::ffff:…`) is
    given as IPv4, and a zone is left out.
    """
    client = scope.get("client")
    address = _address(client[0]) if client else None
    return None if address is None else str(address)


def scope_user(scope: Scope) -> str | None:
    """
    Who some authentication outside has found: the name of `scope["user"]`; None for nobody.

    That is a Starlette `BaseUser`, as `AuthGuard` and Starlette's `AuthenticationMiddleware` leave it: its `identity`,
    or its `display_name` where it has none.
    """
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    try:
        name = user.identity
    except (AttributeError, NotImplementedError):
        name = user.display_name
    return str(name)


def address_group(address: str) -> str:
    """What limits count an address as: an IPv6 one as its /64, which is one customer's (RFC 6177), any other alone."""
    parsed = _address(address)
    return str(IPv6Network((parsed.packed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address


def is_private(address: str | None) -> bool:
    """Whether the peer is no host of the public Internet: loopback, private, link-local, or without an address."""
    parsed = _address(address) if address else None
    return parsed is None or any(parsed in network for network in _PRIVATE if network.version == parsed.version)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed
