"""The browser client as it is served: one stripped module, made from its sources without a build."""

from starlette_realtime.scripts.linking import link
from starlette_realtime.scripts.serving import Scripts
from starlette_realtime.scripts.stripping import strip

__all__ = ["Scripts", "link", "strip"]
