"""
What the Redis store costs: publications a second, CPU for each, memory of a room. Starts a server of its own.

    python -m benchmarks.redis_store [--seconds 3] [--bytes 100]

Rates are of the machine that it runs on, server and client on it together; compare them within one run only.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import redis.asyncio

from starlette_realtime.messages import Entry, History
from starlette_realtime.store.redis import RedisStore
from tests.support.redis import Server, server

MEMBERS = 200


class Measured:
    """One row: what was done, how often a second, and the CPU time of client and server for each, in microseconds."""

    def __init__(self, name: str, rate: float, client: float, server: float) -> None:
        self.name = name
        self.rate = rate
        self.client = client
        self.server = server

    def __str__(self) -> str:
        return f"{self.name:58} {self.rate:10,.0f} {self.client:8.1f} {self.server:8.1f}"


async def busy(running: Server) -> float:
    """CPU seconds that the server has used."""
    info = await running.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def measure(
    name: str, running: Server, seconds: float, workers: int, work: Callable[[int], Awaitable[object]]
) -> Measured:
    """Let `workers` do `work` over and over."""
    done = 0
    start, client, spent = time.perf_counter(), time.process_time(), await busy(running)

    async def worker(number: int) -> None:
        nonlocal done
        while time.perf_counter() - start < seconds:
            await work(number)
            done += 1

    await asyncio.gather(*(worker(number) for number in range(workers)))
    took = time.perf_counter() - start
    client, spent = time.process_time() - client, await busy(running) - spent
    return Measured(name, done / took, client / done * 1e6, spent / done * 1e6)


async def held(running: Server, pattern: str) -> tuple[int, int]:
    """How many keys there are of that pattern, and the bytes that they take."""
    count, size, cursor = 0, 0, b"0"
    while True:
        cursor, keys = await running.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
        for key in keys:
            count += 1
            size += await running.command("MEMORY", "USAGE", key, "SAMPLES", 0)
        if int(cursor) == 0:
            return count, size


async def rates(running: Server, seconds: float, size: int) -> None:
    """Publishing, one after the other and pipelined."""
    data, history = b"x" * size, History()
    plain = redis.asyncio.Redis(host="127.0.0.1", port=running.port)
    print(f"{'':58} {'a second':>10} {'client':>8} {'server':>8}   µs of CPU each")
    async with RedisStore(running.url, prefix=uuid4().hex) as store:

        async def bare(number: int) -> None:
            await plain.publish("channel", data)

        async def kept(number: int) -> None:
            await store.publish("room", data, history=history)

        async def keyed(number: int) -> None:
            await store.publish("room", data, history=history, producer="u:ann", key=uuid4().hex)

        async def many(number: int) -> None:
            await store.publish(f"room {number % 100}", data, history=history)

        async def volatile(number: int) -> None:
            await store.publish_volatile("room", data)

        one = await measure("redis-py, PUBLISH, one by one (nothing is kept)", running, seconds, 1, bare)
        print(one)
        print(await measure("kept, one by one", running, seconds, 1, kept))
        piped = await measure("kept, 256 under way, one room", running, seconds, 256, kept)
        print(piped)
        print(await measure("kept with a key, 256 under way, one room", running, seconds, 256, keyed))
        print(await measure("kept, 256 under way, 100 rooms", running, seconds, 256, many))
        print(await measure("volatile, 256 under way, one room", running, seconds, 256, volatile))
        print(f"pipelined, kept: {piped.rate / one.rate:.1f} times redis-py's rate one by one")
    await plain.aclose()


async def memory(running: Server, size: int) -> None:
    """What a room takes, and what its publications' keys take as long as they are known."""
    data, keyed = b"x" * size, 0
    async with RedisStore(running.url, prefix="size") as store:
        for kept in (0, 1, 64, 512):
            topic = f"chat:{kept:06}"
            if kept == 0:
                await store.read(topic, since=None, limit=0)
            publications = [
                store.publish(topic, data, history=History(512, 3600.0), producer="u:somebody", key=f"{number:022}")
                for number in range(kept)
            ]
            await asyncio.gather(*publications)
            _, room = await held(running, f"size:*chat%3A{kept:06}:[ms]")
            count, known = await held(running, f"size:*chat%3A{kept:06}:i:*")
            keyed = known // count if count else keyed
            print(f"a room with {kept:3} publications of {size} bytes: {room:8,} bytes")
        print(f"an idempotency key, for as long as it is known: {keyed:8,} bytes")
        entries = [Entry(f"{number:024x}", f"u:user-{number}", f"user-{number}", since=1) for number in range(MEMBERS)]
        await store.enter("chat:members", entries)
        _, room = await held(running, "size:*chat%3Amembers:p*")
        print(f"a member, in a room of {MEMBERS}: {room / MEMBERS:8,.0f} bytes")
        _, process = await held(running, f"size:*{store.node}*")
        print(f"a process: {process:8,} bytes")


async def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--bytes", type=int, default=100, help="of each publication")
    options = parser.parse_args()
    async with server() as running:
        await rates(running, options.seconds, options.bytes)
        await memory(running, options.bytes)


if __name__ == "__main__":
    asyncio.run(main())
