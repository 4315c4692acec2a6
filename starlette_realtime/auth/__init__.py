"""AuthGuard: who is asking, may they still, and from where."""

from starlette_realtime.auth.guard import AuthGuard
from starlette_realtime.auth.ways import Authenticate, IdentifiedUser, ScopeUser, StarletteSession, TokenReader

__all__ = ["AuthGuard", "Authenticate", "IdentifiedUser", "ScopeUser", "StarletteSession", "TokenReader"]
