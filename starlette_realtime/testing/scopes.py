"""ASGI scopes: how a server would describe a request or a handshake (ASGI HTTP and WebSocket, 2.5)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from starlette_realtime.types import Scope

__all__ = ["make_scope", "request_headers"]


def make_scope(
    kind: str,
    path: str,
    headers: list[tuple[bytes, bytes]],
    *,
    root_path: str,
    secure: bool,
    client: tuple[str, int] | None,
    **more: Any,
) -> Scope:
    """A scope of that `kind`; `path` may have a query, and is taken as it stands on the wire."""
    path, _, query = path.partition("?")
    scheme = "ws" if kind == "websocket" else "http"
    return {
        "type": kind,
        "http_version": "1.1",
        "scheme": f"{scheme}s" if secure else scheme,
        "path": unquote(path),
        "raw_path": quote(path, safe="/%:@!$&'()*+,;=~").encode(),
        "query_string": query.encode(),
        "root_path": root_path,
        "headers": headers,
        "client": client,
        "server": ("testserver", 443 if secure else 80),
        "state": {},
        "extensions": {},
        **more,
    }


def request_headers(
    headers: Iterable[tuple[str, str]],
    origin: str | None,
    cookies: Mapping[str, str] | None,
    host: str | None,
    *,
    subprotocols: Sequence[str] = (),
) -> list[tuple[bytes, bytes]]:
    """The request's headers, the given ones just as they are."""
    found = [(name.lower(), value) for name, value in headers]
    if host is not None:
        found.insert(0, ("host", host))
    if origin is not None:
        found.append(("origin", origin))
    if cookies:
        found.append(("cookie", "; ".join(f"{name}={value}" for name, value in cookies.items())))
    if subprotocols:
        found.append(("sec-websocket-protocol", ", ".join(subprotocols)))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found]
