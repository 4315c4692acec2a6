"""A process to be frozen: it keeps changing its members, and says what it is called and what it was told."""

import asyncio
import sys

from starlette_realtime.errors import StoreError
from starlette_realtime.messages import Entry
from starlette_realtime.store.redis import RedisStore


async def main(url: str, prefix: str) -> None:
    """Until the input ends."""
    store = RedisStore(url, prefix=prefix, timeout=1.0, lease=2.0, beat=0.4, sweep=0.3)
    stop = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    async with store:
        store.on_presence(lambda topic, joined, left: say("changed", len(joined), len(left)))
        node, number = "", 0
        while not stop.done():
            if store.node != node:
                node = store.node
                say("node", node)
            number += 1
            try:
                await store.enter("t", [Entry(f"c{number % 5}", "u:x", since=number)])
            except StoreError:
                say("refused")
            await asyncio.sleep(0.001)


def say(*words: object) -> None:
    """A line for whoever started this."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
