"""Links: what lies between peers and the application, and how it fails."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from starlette_realtime.clock import Clock, Timer

__all__ = ["Link", "Way"]


class Carried(Protocol):
    """A peer, as its link sees it."""

    ways: "tuple[Way, Way]"

    def lost(self) -> None:
        """The link was cut: both ends notice."""
        ...


class Link:
    """
    The network between one or more peers and the application: `Peer(app, link=link)`.

    It carries everything at once, in order, until it is told otherwise. `delay` is in seconds of `clock`, by default
    real ones; with a `FakeClock`, what is on its way waits for the test.
    """

    def __init__(self, *, clock: Clock | None = None, delay: float = 0.0) -> None:
        self.clock = clock if clock is not None else Clock()
        self.flowing = True
        """Whether anything gets through."""
        self.refusing = False
        """Whether it is cut: who connects is refused."""
        self._delay = delay
        self._carried: set[Carried] = set()

    @property
    def open(self) -> int:
        """How many peers it carries."""
        return len(self._carried)

    def cut(self) -> None:
        """
        Break every connection, so that both ends notice (1006), and refuse new ones until `restore`.

        What was on its way is lost.
        """
        self.flowing, self.refusing = False, True
        for carried in list(self._carried):
            carried.lost()

    def half_open(self) -> None:
        """
        Let nothing through, either way, and let nobody notice.

        What is sent meanwhile arrives after `restore`, as it does when a network comes back in time, or is lost by
        `cut`. It fills the peer's backlog; when that is full, the sender waits.
        """
        self.flowing = False

    def restore(self) -> None:
        """Let everything through again, after `cut` or `half_open`. Connections that were cut stay so."""
        self.flowing, self.refusing = True, False
        for carried in list(self._carried):
            for way in carried.ways:
                way.pump()

    def delay(self, seconds: float) -> None:
        """Let whatever is sent from now on arrive so much later, each way; nothing overtakes what went before it."""
        self._delay = seconds

    def carry(self, carried: Carried) -> None:
        """Take up a peer; raises `ConnectionRefusedError` while it is cut."""
        if self.refusing:
            raise ConnectionRefusedError("the link is cut: restore() it to connect")
        self._carried.add(carried)

    def drop(self, carried: Carried) -> None:
        """A peer has ended."""
        self._carried.discard(carried)

    def due(self) -> float:
        """When what is sent now arrives."""
        return self.clock.now() + self._delay


class Way:
    """One direction of one peer's connection: what is put in arrives, in order, by being called."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[tuple[float, Callable[[], object]]] = deque()
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, arrive: Callable[[], object]) -> None:
        """Send something."""
        self._waiting.append((self._link.due(), arrive))
        self.pump()

    def pump(self) -> None:
        """Let arrive what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        clock = self._link.clock
        while self._waiting and self._link.flowing:
            early = self._waiting[0][0] - clock.now()
            if early > 0:
                self._timer = clock.call_later(early, self.pump)
                return
            self._waiting.popleft()[1]()

    def clear(self) -> None:
        """Lose what is on its way."""
        self._waiting.clear()
        self.pump()
