"""A master, its replica and three Sentinels that watch over them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from tests.support.ports import HOST, reserved_port
from tests.support.redis.binaries import Binary
from tests.support.redis.single import Server, eventually, server

SENTINELS = 3
QUORUM = 2
# Milliseconds. The defaults are ten seconds for INFO and two for the rest: too long for tests to wait.
PERIODS = ("info-period", "1000", "publish-period", "500", "ping-period", "250")


class Sentinels:
    """The servers of one replicated set. `sentinels()` makes one."""

    def __init__(self, pair: Sequence[Server], watchers: Sequence[Server], *, service: str) -> None:
        self.pair = tuple(pair)
        self.watchers = tuple(watchers)
        self.service = service
        self.master, self.replica = self.pair  # as of the last call here; nobody else's failover is noticed

    @property
    def url(self) -> str:
        """The address of all Sentinels: "redis+sentinel://127.0.0.1:port,…/mymaster"."""
        return f"redis+sentinel://{','.join(watcher.address for watcher in self.watchers)}/{self.service}"

    async def failover(self, *, demoted: bool = False) -> None:
        """
        Have Sentinel promote the replica, as for maintenance, and swap `master` and `replica`.

        Returns when the replica is a master and all Sentinels say so. The old master still takes writes then, until
        Sentinel demotes it some seconds later: `demoted` waits for that.
        """
        await self.linked()
        await eventually(self._ask_for_failover, what="a Sentinel that begins a failover")
        await self._promoted()
        if demoted:
            await self.linked()

    async def kill_master(self) -> None:
        """Kill the master, wait until its replica was promoted, and swap them. `replica.start()` brings it back."""
        await self.linked()
        await self.master.kill()
        await self._promoted()

    async def linked(self) -> None:
        """Wait until `replica` follows `master` and has what that has now, and all Sentinels know both."""
        needed: int | None = None  # the position in what is replicated

        async def follows() -> bool:
            nonlocal needed
            master, replica = await self.master.info("replication"), await self.replica.info("replication")
            # The replica says "up" before the master begins to send it what is written.
            if replica.get("master_port") != str(self.master.port) or "state=online" not in master.get("slave0", ""):
                return False
            needed = needed or int(master["master_repl_offset"])
            return replica["master_link_status"] == "up" and int(replica["slave_repl_offset"]) >= needed

        async def known() -> bool:
            for watcher in self.watchers:
                if not watcher.running:
                    continue
                replicas = await watcher.command("SENTINEL", "REPLICAS", self.service)
                for fields in (dict(zip(found[::2], found[1::2], strict=True)) for found in replicas):
                    if fields[b"flags"] != b"slave" or fields[b"master-link-status"] != b"ok":
                        return False
                if not replicas:
                    return False
                await watcher.command("SENTINEL", "CKQUORUM", self.service)
            return True

        await eventually(follows, what="the replica's link to its master")
        await eventually(known, what="what the Sentinels must know for a failover")

    async def _ask_for_failover(self) -> bool:
        watcher = next(watcher for watcher in self.watchers if watcher.running)
        await watcher.command("SENTINEL", "FAILOVER", self.service)
        return True

    async def _promoted(self) -> None:
        async def done() -> bool:
            if (await self.replica.info("replication"))["role"] != "master":
                return False
            for watcher in self.watchers:
                if watcher.running:
                    known = await watcher.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
                    if int(known[1]) != self.replica.port:
                        return False
            return True

        await eventually(done, what="the replica's promotion")
        self.master, self.replica = self.replica, self.master


@asynccontextmanager
async def sentinels(
    binary: Binary | None = None,
    *,
    args: Sequence[str] = (),
    password: str | None = None,
    service: str = "mymaster",
    down_after: float = 1.0,
    failover_timeout: float = 3.0,
) -> AsyncIterator[Sentinels]:
    """
    Run a master, a replica and three Sentinels, of which two must agree, for as long as the block lasts.

    `args` and `password` are for master and replica. A master is down after `down_after` seconds of silence; an
    attempt of a failover is given up after `failover_timeout` seconds. Raises `StartupFailed`.
    """
    async with AsyncExitStack() as stack:
        pair = [await stack.enter_async_context(server(binary, args=args, password=password)) for _ in range(2)]
        await pair[1].command("REPLICAOF", HOST, pair[0].port)
        await pair[1].command("CONFIG", "REWRITE")  # so that it stays a replica when it is started again
        # What Sentinels find out about each other in their first seconds, and keep in their files, is told at once.
        watchers = [(stack.enter_context(reserved_port()), secrets.token_hex(20)) for _ in range(SENTINELS)]
        running = []
        for port, identity in watchers:
            known = ["--sentinel", "myid", identity]
            known += ["--sentinel", "monitor", service, HOST, str(pair[0].port), str(QUORUM)]
            known += ["--sentinel", "down-after-milliseconds", service, str(round(down_after * 1000))]
            known += ["--sentinel", "failover-timeout", service, str(round(failover_timeout * 1000))]
            if password is not None:
                known += ["--sentinel", "auth-pass", service, password]
            known += ["--sentinel", "known-replica", service, HOST, str(pair[1].port)]
            for other, its_identity in watchers:
                if other != port:
                    known += ["--sentinel", "known-sentinel", service, HOST, str(other), its_identity]
            watcher = await stack.enter_async_context(server(binary, args=known, port=port, sentinel=True))
            running.append(watcher)
        await asyncio.gather(*(watcher.command("SENTINEL", "DEBUG", *PERIODS) for watcher in running))
        group = Sentinels(pair, running, service=service)
        await group.linked()
        yield group
