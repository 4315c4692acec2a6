"""JSON web tokens (RFC 7519) of other issuers: signatures by PyJWT, everything else decided here. Extra `jwt`."""

from starlette_realtime.webtokens.jwks import JWKS
from starlette_realtime.webtokens.reader import JSONWebTokens, Keys

__all__ = ["JWKS", "JSONWebTokens", "Keys"]
