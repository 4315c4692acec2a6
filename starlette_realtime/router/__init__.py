"""RoomRouter: rooms below a path, for any ASGI application."""

from starlette_realtime.router.router import RoomRouter

__all__ = ["RoomRouter"]
