"""Several processes of the demo on one private store: started, started again when one is killed, and ended together."""

import asyncio
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo.valkey import Unusable, end, private_server

HOST = "127.0.0.1"
STARTING = 30.0  # seconds until all answer
STOPPING = 10.0
AGAIN = 5.0  # seconds after which a process that was killed is started again: long enough to see what happens
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(port: int) -> list[str]:
    """What serves the demo on one port."""
    return [
        *(sys.executable, "-m", "uvicorn", "demo.app:app", "--host", HOST, "--port", str(port)),
        *("--ws", "websockets-sansio", "--ws-max-size", "65536", "--ws-per-message-deflate", "false"),
        *("--no-access-log", "--timeout-graceful-shutdown", "5"),
    ]


def say(words: str) -> None:
    """Tell whoever started this."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


async def serve(ports: Sequence[int]) -> str | None:
    """Serve until a signal comes. Returns why it could not go on, or None; nothing is left running."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for each in SIGNALS:
        loop.add_signal_handler(each, stopped.set)
    try:
        with tempfile.TemporaryDirectory(prefix="realtime-demo-") as folder:
            async with private_server(Path(folder)) as (url, server):
                return await _serve(ports, url, server, stopped)
    except Unusable as error:
        return str(error)
    finally:
        for each in SIGNALS:
            loop.remove_signal_handler(each)


async def _serve(
    ports: Sequence[int], url: str, server: asyncio.subprocess.Process, stopped: asyncio.Event
) -> str | None:
    shared = {
        "REALTIME_SECRET": os.environ.get("REALTIME_SECRET") or secrets.token_hex(),
        "REALTIME_STORE": url,
        "REALTIME_PORTS": ",".join(map(str, ports)),
    }
    kept = [asyncio.create_task(_keep(number, port, shared)) for number, port in enumerate(ports, start=1)]
    stop = asyncio.create_task(stopped.wait())
    away = asyncio.create_task(server.wait())
    announced = asyncio.create_task(_announce(ports))
    try:
        await asyncio.wait([*kept, stop, away], return_when=asyncio.FIRST_COMPLETED)
        failed = next((task.result() for task in kept if task.done()), None)
        if stop.done():
            return None
        return failed if failed is not None else "The server that the processes share has ended."
    finally:
        for task in (*kept, stop, away, announced):
            task.cancel()
        await asyncio.gather(*kept, stop, away, announced, return_exceptions=True)


async def _keep(number: int, port: int, shared: dict[str, str]) -> str:
    """Keep one process running, whatever kills it. Returns why that is no use."""
    while True:
        process = await asyncio.create_subprocess_exec(
            *command(port),
            *("--log-level", "warning"),
            env={**os.environ, **shared, "REALTIME_PROCESS": str(number)},
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl+C is for this process, which ends the others
        )
        try:
            code = await process.wait()
        finally:
            await end(process, within=STOPPING)
        if code >= 0:
            return f"Process {number} has ended by itself, with status {code}."
        say(f"Process {number} was killed ({signal.Signals(-code).name}), and comes back in {AGAIN:.0f} s.")
        await asyncio.sleep(AGAIN)


async def _announce(ports: Sequence[int]) -> None:
    """Say where the demo is, once all processes answer."""
    async with asyncio.timeout(STARTING):
        for port in ports:
            while not await _accepts(port):
                await asyncio.sleep(0.05)
    places = " and ".join(f"http://{HOST}:{port}" for port in ports)
    say(f"The demo is on {places} (Ctrl+C stops it).")


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True
