"""Counters: what one process has done since it started, for dashboards and metrics."""

from collections import Counter

from msgspec import Struct, field

__all__ = ["Counters"]


CODES = 100
"""How many error codes are counted each for itself: an application may make them up as it goes."""


class Counters(Struct):
    """
    Counts that only rise; rates are the difference of two readings.

    What an application reads from `Realtime.counters`. They belong to one process and start at 0 with it.
    """

    opened: int = 0
    """Connections whose WebSocket was accepted."""
    closed: Counter[int] = field(default_factory=Counter)
    """Connections that have ended, by close code; 1006 where a peer was gone without a word."""
    received: int = 0
    """Commands from clients."""
    sent: int = 0
    """Frames that were written to clients."""
    published: int = 0
    """Events that this process published, kept or volatile."""
    refused: Counter[str] = field(default_factory=Counter)
    """Refusals by error code: error replies, and handshakes that were turned away. `other`: beyond 100 codes."""
    resumed: int = 0
    """Rooms that a client resumed without a gap."""
    reset: int = 0
    """Rooms where a client was told to start afresh."""

    def refuse(self, code: str) -> None:
        """Count a refusal."""
        known = code in self.refused or len(self.refused) < CODES
        self.refused[code if known else "other"] += 1
