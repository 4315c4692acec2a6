"""Faults: what can go wrong between one process and its store, at the flick of a switch, for tests."""

import asyncio
from typing import TYPE_CHECKING

from starlette_realtime.errors import StoreError

if TYPE_CHECKING:
    from starlette_realtime.store.memory import MemoryStore

__all__ = ["Faults"]


class Faults:
    """
    The faults of one `MemoryStore`, as `store.faults`: of its link, or, with a topic, of the shared data.

    Nothing is told when a fault happens, except by `stall` and `resume`, which a real client would notice too.
    """

    def __init__(self, store: "MemoryStore") -> None:
        self._store = store
        self._drop = 0
        self._duplicate = 0
        self._unanswered = 0
        self._resumed: asyncio.Event | None = None
        self.killed = False
        self.active = False
        """Whether any fault is on: the one thing that the fast path looks at."""

    def drop(self, count: int) -> None:
        """Lose the next `count` deliveries to this process."""
        self._drop = count
        self._update()

    def duplicate(self, count: int) -> None:
        """Deliver each of the next `count` deliveries to this process twice."""
        self._duplicate = count
        self._update()

    def unanswered(self, count: int) -> None:
        """Make the next `count` changes of this process, publications and others, but fail: their answer was lost."""
        self._unanswered = count
        self._update()

    def rewind(self, topic: str, count: int) -> None:
        """
        Take back the topic's last `count` publications, in the same epoch: the next ones use their offsets again.

        That is what a replica's promotion or an old snapshot does. Raises `ValueError` when the history holds fewer.
        """
        self._store.backend.rewind(topic, count)

    def lose(self, topic: str) -> None:
        """Lose the topic's publications and position: what comes next belongs to another epoch."""
        self._store.backend.lose(topic)

    def stall(self) -> None:
        """
        Cut the link: operations wait, up to the store's `timeout`; deliveries are lost; the lease isn't renewed.

        That is also what a frozen process looks like to the others, once it is longer than the lease.
        """
        if self._resumed is None:
            self._resumed = asyncio.Event()
            self._update()
            self._store._interrupted()

    def resume(self) -> None:
        """End `stall`: what waits goes on."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None
            self._update()
            self._store._back()

    def kill(self) -> None:
        """End the process without a word: it hears and does nothing more. There is no way back."""
        self.killed = True
        self._update()
        self._store._die()

    @property
    def stalled(self) -> bool:
        """Whether the link is cut."""
        return self._resumed is not None

    async def until_resumed(self) -> None:
        """Wait out `stall`."""
        while self._resumed is not None:
            await self._resumed.wait()

    def copies(self) -> int:
        """How often the delivery at hand arrives."""
        if self.killed or self._resumed is not None:
            return 0
        if self._drop:
            self._drop -= 1
            self._update()
            return 0
        if self._duplicate:
            self._duplicate -= 1
            self._update()
            return 2
        return 1

    def answer(self) -> None:
        """Give the answer at hand; raises `StoreError` where it is lost."""
        if self._unanswered:
            self._unanswered -= 1
            self._update()
            raise StoreError("the store's answer was lost")

    def _update(self) -> None:
        self.active = bool(
            self._drop or self._duplicate or self._unanswered or self.killed or self._resumed is not None
        )
