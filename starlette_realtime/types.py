"""Types: the ASGI aliases and what one transport frame is."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Frame = str | bytes

__all__ = ["ASGIApp", "Frame", "Message", "Receive", "Scope", "Send"]
