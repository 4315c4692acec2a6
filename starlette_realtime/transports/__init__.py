"""Transports: what moves a connection's frames."""

from starlette_realtime.transports.websocket import Handler, serve_websocket

__all__ = ["Handler", "serve_websocket"]
