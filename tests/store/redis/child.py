"""A process to be killed: it enters members into rooms, and publishes to one of them until it ends."""

import asyncio
import json
import sys
from typing import Any

from starlette_realtime.messages import Entry, History
from starlette_realtime.store.redis import RedisStore


async def main(url: str, prefix: str, rooms: int, members: int, options: dict[str, Any]) -> None:
    """`members` in each of so many `rooms`, every second one of them with two connections."""
    stop = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    async with RedisStore(url, prefix=prefix, **options) as store:
        for room in range(rooms):
            entries = [Entry(f"{room}.{number}", f"u:{number - number % 4 // 3}") for number in range(members)]
            await store.enter(f"room{room}", entries)
        say("entered", store.node)
        number = 0
        while not stop.done():
            position = await store.publish("room0", b"%d" % number, history=History(size=1_000), key=f"{number}")
            say("published", number, position.offset)
            number += 1
            await asyncio.sleep(0.01)


def say(*words: object) -> None:
    """A line for whoever started this."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])))
