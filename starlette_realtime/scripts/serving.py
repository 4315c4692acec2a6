"""Serving the browser client: its modules linked, stripped and compressed once."""

import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from starlette_realtime.scripts.linking import link
from starlette_realtime.types import Receive, Scope, Send

__all__ = ["Scripts"]


class Scripts:
    """
    Serves the browser client to GET and HEAD: `client.js`, and what is optional beside it, each with all that it needs,
    so that a page has it in one answer. An ASGI application for `http` scopes.

    The last segment of a request's path names the module: ask `has` with the path below your own mount first. A name
    that isn't there is a 404, another method a 405. Whoever accepts gzip gets it (RFC 9110 section 12.5.3). The
    modules are read when the first object is made; all objects of a process share them.
    """

    def __init__(self) -> None:
        self._scripts = _read()

    @property
    def names(self) -> Sequence[str]:
        """What is served, sorted."""
        return sorted(self._scripts)

    def has(self, path: str) -> bool:
        """Whether `path`, e.g. `/client.js`, is a module's."""
        return path[:1] == "/" and path[1:] in self._scripts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        script = self._scripts.get(scope["path"].rpartition("/")[2])
        body = b""
        if script is None:
            status, headers = 404, [(b"content-length", b"0")]
        elif scope["method"] not in ("GET", "HEAD"):
            status, headers = 405, [(b"allow", b"GET, HEAD"), (b"content-length", b"0")]
        else:
            gzipped = _takes_gzip(_elements(scope, b"accept-encoding"))
            variant = script.gzipped if gzipped else script.plain
            status, headers = 304, variant.headers
            if not _has(_elements(scope, b"if-none-match"), variant.etag):
                status, body = 200, variant.body
                headers = [*headers, (b"content-length", b"%d" % len(body))]
                if gzipped:
                    headers.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


class _Variant(NamedTuple):
    body: bytes
    etag: bytes  # of these very bytes: two encodings are two representations (RFC 9110 section 8.8.3.3)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", b"text/javascript; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"etag", self.etag),
            (b"vary", b"accept-encoding"),
            (b"x-content-type-options", b"nosniff"),
            # Public code, and pages of other allowed origins import it.
            (b"access-control-allow-origin", b"*"),
            (b"cross-origin-resource-policy", b"cross-origin"),
        ]


class _Script(NamedTuple):
    plain: _Variant
    gzipped: _Variant


_SERVED: Final = ("client.js", "react.js")


@cache
def _read() -> Mapping[str, _Script]:
    folder = files("starlette_realtime").joinpath("browser")
    sources = {file.name: file.read_text("utf-8") for file in folder.iterdir() if file.name.endswith(".js")}
    scripts = {}
    for name in _SERVED:
        # What is optional finds the client where the page has it: two copies would not know each other's errors.
        body = link(name, sources, apart=_SERVED).encode()
        scripts[name] = _Script(_variant(body), _variant(gzip.compress(body, 9, mtime=0)))
    return scripts


def _variant(body: bytes) -> _Variant:
    return _Variant(body, b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode())


def _elements(scope: Scope, name: bytes) -> list[bytes]:
    """What a header that is a list holds (RFC 9110 section 5.6.1)."""
    values = b",".join(value for key, value in scope["headers"] if key == name)
    return [element.strip() for element in values.split(b",")]


def _has(tags: list[bytes], etag: bytes) -> bool:
    """Whether the client has this version (RFC 9110 section 13.1.2: a list, compared weakly, or `*`)."""
    return any(tag.removeprefix(b"W/") in (etag, b"*") for tag in tags)


_QUALITY: Final = re.compile(rb"\s*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def _takes_gzip(accepted: list[bytes]) -> bool:
    """Whether gzip is accepted, and no less than plain bytes (RFC 9110 section 12.5.3)."""
    weights: dict[bytes, float] = {}
    for element in accepted:
        coding, semicolon, weight = element.partition(b";")
        quality = _QUALITY.fullmatch(weight)
        # A weight that can't be read is a reason for the plainest answer.
        weights[coding.strip().lower()] = float(quality[1]) if quality else 0.0 if semicolon else 1.0
    gzipped = weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", 0.0)))
    return gzipped > 0 and gzipped >= weights.get(b"identity", 0.0)
