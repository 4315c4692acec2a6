"""Processes: which of several this one is, and what they tell each other once a second."""

import asyncio
import logging
import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import msgspec

from demo.stats import FIELDS, Point, Report, columns
from starlette_realtime import Realtime, StoreError
from starlette_realtime.messages import Delivery, Publication

logger = logging.getLogger(__name__)

TOPIC = "demo:processes"
"""The store's topic by which they hear each other; no room of the demo has a name like this."""

LIVE = 3.0
"""Seconds without a word after which a process counts as gone, here: the store is more patient."""

RUNS = 16
"""How many of the others are remembered, those that have ended among them."""

NAMES = 1_000
"""How many users a process tells the others of: beyond that, who has pages on two is counted twice."""

HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which process this is: number 1 of one, unless `demo/__main__.py` says otherwise by the environment."""

    number: int = 1
    ports: Sequence[int] = ()
    """Those of all processes, in the order of their numbers; none: it is the only one."""
    store: str = ""
    """The address of what they share; empty: memory."""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """What the environment says."""
        ports = tuple(int(port) for port in environment.get("REALTIME_PORTS", "").split(",") if port)
        number = int(environment.get("REALTIME_PROCESS", "1"))
        return cls(number=number, ports=ports, store=environment.get("REALTIME_STORE", ""))

    @property
    def origins(self) -> list[str]:
        """Where pages come from that may connect here: those of all processes."""
        return [f"http://{host}:{port}" for port in self.ports for host in HOSTS]

    @property
    def sources(self) -> list[str]:
        """The same places, as a content security policy names what a page may connect to."""
        return [origin.replace("http", "ws", 1) for origin in self.origins]

    async def has_company(self) -> bool:
        """Whether another process takes connections, at this moment."""
        own = self.ports[self.number - 1 : self.number]
        for port in self.ports:
            if port not in own:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection(HOSTS[0], port)
                    writer.close()
                    return True
        return False


@dataclass(frozen=True, kw_only=True)
class News:
    """What a process tells the others: its last point, and whom it serves."""

    report: Report
    users: Sequence[str]


@dataclass
class Run:
    """Another process, as far as it was heard."""

    news: News
    heard: float
    """The clock's time of the last word."""
    points: deque[Point] = field(default_factory=lambda: deque(maxlen=300))


class Peers:
    """
    The other processes: hear what they tell once a second, and know it for the last minutes.

    A process that was started anew is another run: what the old one counted is not forgotten.
    """

    def __init__(self, realtime: Realtime, run: str) -> None:
        self._realtime = realtime
        self._run = run
        self._runs: OrderedDict[str, Run] = OrderedDict()  # who was heard last is last

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear the others for as long as the block lasts."""
        store = self._realtime.store
        await store.subscribe(TOPIC, self._heard)
        try:
            yield
        finally:
            await store.unsubscribe(TOPIC, self._heard)

    async def tell(self, report: Report, users: Collection[str]) -> None:
        """Tell the others. While the store is away nobody hears it: the next word is as good."""
        news = News(report=report, users=sorted(users)[:NAMES])
        with suppress(StoreError):
            await self._realtime.store.publish_volatile(TOPIC, msgspec.json.encode(news))

    @property
    def live(self) -> list[News]:
        """The last words of those that were heard a moment ago."""
        since = self._realtime.clock.now() - LIVE
        return [run.news for run in self._runs.values() if run.heard > since]

    @property
    def users(self) -> set[str]:
        """Whom they serve."""
        return {user for news in self.live for user in news.users}

    def recent(self) -> list[Report]:
        """What each has told in the last minutes, those among them that are gone."""
        return [replace(run.news.report, points=columns(run.points)) for run in self._runs.values()]

    def _heard(self, delivery: Delivery) -> None:
        if not isinstance(delivery, Publication):
            return
        try:
            news = msgspec.json.decode(delivery.data, type=News)
            points = list(zip(*(news.report.points[name] for name in FIELDS), strict=True))
        except (msgspec.DecodeError, KeyError, ValueError):
            logger.warning("another process of the demo is of another version: restart all of them")
            return
        run_id, now = news.report.run, self._realtime.clock.now()
        if run_id == self._run:
            return
        run = self._runs.setdefault(run_id, Run(news, now))
        run.news, run.heard = news, now
        run.points.extend(points)
        self._runs.move_to_end(run_id)
        while len(self._runs) > RUNS:
            self._runs.popitem(last=False)
