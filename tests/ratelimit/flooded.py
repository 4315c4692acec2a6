"""An application to be flooded: it counts what it hears, and ticks for whoever watches."""

import asyncio
from collections import Counter
from contextlib import suppress

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from starlette_realtime.ratelimit import RateLimiter

TICK = 0.01
"""Seconds between two ticks."""

heard: Counter[str] = Counter()
closing = RateLimiter(frames="20/second", connections_per_address=5)
waiting = RateLimiter(frames="20/second", over="wait")


async def listen(socket: WebSocket) -> None:
    """Count what comes."""
    await socket.accept()
    async for _ in socket.iter_text():
        heard[socket.url.path] += 1


async def tick(socket: WebSocket) -> None:
    """Say a number, and the next one soon."""
    await socket.accept()
    number = 0
    with suppress(WebSocketDisconnect):
        while True:
            await socket.send_text(str(number))
            number += 1
            await asyncio.sleep(TICK)


async def gauges(request: Request) -> Response:
    """What was heard, and what the limiters hold."""
    return JSONResponse({"heard": dict(heard), "closing": closing.gauges(), "waiting": waiting.gauges()})


app = Starlette(
    routes=[
        Route("/gauges", gauges),
        WebSocketRoute("/close", listen, middleware=[Middleware(closing.wrap)]),
        WebSocketRoute("/wait", listen, middleware=[Middleware(waiting.wrap)]),
        WebSocketRoute("/ticks", tick, middleware=[Middleware(closing.wrap)]),
    ]
)
