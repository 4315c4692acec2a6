"""Rate limits: how much of what a peer may ask, and how many connections it may have."""

from starlette_realtime.ratelimit.gate import Gate
from starlette_realtime.ratelimit.limit import By, Cost, Limit, Limits, Strategy, Subject
from starlette_realtime.ratelimit.limiter import RateLimiter
from starlette_realtime.ratelimit.rate import Decision, Rate, TokenBucket

__all__ = [
    "By",
    "Cost",
    "Decision",
    "Gate",
    "Limit",
    "Limits",
    "Rate",
    "RateLimiter",
    "Strategy",
    "Subject",
    "TokenBucket",
]
