"""Inspection: whether a server is one that the store can keep its promises on, asked once at the start."""

import logging
from collections.abc import Mapping

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

from starlette_realtime.errors import ConfigurationError, StoreError
from starlette_realtime.store.redis.address import Address
from starlette_realtime.store.redis.link import Link

__all__ = ["inspect", "translate"]

logger = logging.getLogger("starlette_realtime.store")

OLDEST = (7, 0)
"""The first version with sharded pub/sub, and with scripts that declare what they are."""


async def inspect(link: Link, key: bytes) -> None:
    """
    Look at the server that has `key`.

    Raises `ConfigurationError` for one that is too old, is a replica, or is of another topology than the URL says;
    warns where it may drop what it was given. A server that doesn't want to be asked is believed.
    """
    try:
        answer = await link.call(b"INFO", key=key)
    except StoreError as exc:
        if isinstance(exc.__cause__, NoPermissionError):
            logger.debug("INFO is not permitted: the server is taken as it is")
            return
        raise
    found = _read(answer)
    version = found.get("valkey_version") or found.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < OLDEST:
        raise ConfigurationError(f"{link.address} is version {version}: Redis 7.0 or later, or Valkey, is needed")
    if found.get("cluster_enabled") == "1" and link.address.kind != "cluster":
        raise ConfigurationError(f"{link.address} is a cluster's node: its URL starts with redis+cluster://")
    if found.get("role", "master") != "master":
        raise ConfigurationError(f"{link.address} is a replica: name the master, or let sentinels do so")
    if found.get("maxmemory", "0") != "0" and found.get("maxmemory_policy", "noeviction") != "noeviction":
        logger.warning(
            "%s drops data when its memory is full (maxmemory-policy %s): histories, presence and idempotency keys "
            "with it; set it to noeviction",
            link.address,
            found["maxmemory_policy"],
        )


def translate(exc: StoreError, address: Address) -> ConfigurationError | None:
    """What a failure to start means, where trying again would not help."""
    cause = exc.__cause__
    while isinstance(cause, StoreError):
        cause = cause.__cause__
    if "CERTIFICATE_VERIFY_FAILED" in str(exc):
        return ConfigurationError(
            f"{address} has a certificate that is not vouched for ({cause or exc}): name whom to trust, "
            "rediss://host?ssl_ca_certs=/path/ca.pem"
        )
    if isinstance(cause, NoPermissionError):
        return ConfigurationError(f"{address} refuses what the store needs ({cause}): see Deploying, in the docs")
    if isinstance(cause, AuthenticationError | AuthorizationError):
        return ConfigurationError(f"{address} refuses these credentials ({cause}): redis://user:password@host")
    if "cluster support disabled" in str(exc):
        return ConfigurationError(f"{address} is no cluster: a single server's URL starts with redis://")
    return None


def _read(answer: object) -> Mapping[str, str]:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else ""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in pairs}
