"""Real servers for tests: uvicorn on the test's own event loop, or as a process of its own."""

import asyncio
import os
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, IPPROTO_TCP, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
STARTING = 15.0  # seconds that a server may take until it serves
STOPPING = 10.0  # seconds that it may take to end
LINES = 200  # kept of what a process printed
ANNOUNCED = re.compile(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")


class StartupFailed(RuntimeError):
    """The server did not start; the app's own error is the `__cause__` where there is one."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that serves on loopback."""

    port: int

    @property
    def url(self) -> str:
        """Its address for HTTP, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    @property
    def ws_url(self) -> str:
        """Its address for WebSocket, without a slash at the end."""
        return f"ws://{HOST}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class RunningServer(Running):
    """A server on the test's event loop."""

    server: uvicorn.Server


@dataclass(frozen=True, kw_only=True)
class RunningProcess(Running):
    """A server in a process of its own, and the last lines that it printed."""

    process: asyncio.subprocess.Process
    output: deque[str]


@asynccontextmanager
async def serve(app: ASGIApp, *, port: int = 0, **options: Any) -> AsyncIterator[RunningServer]:
    """
    Serve `app` with uvicorn on this event loop, on 127.0.0.1 and a free port unless told one, lifespan included.

    `options` go to `uvicorn.Config`. At the end of the block the server shuts down gracefully, for `STOPPING`
    seconds at most. Raises `StartupFailed`.
    """
    failures: list[BaseException] = []

    async def observed(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except BaseException as error:
            if scope["type"] == "lifespan":
                failures.append(error)
            raise

    defaults = {"ws": "websockets-sansio", "lifespan": "on", "log_config": None, "access_log": False}
    config = uvicorn.Config(observed, **{**defaults, "timeout_graceful_shutdown": 5, **options})
    server = _Server(config)
    # asyncio sets TCP_NODELAY only where the protocol is named: without it, small frames wait 40 ms for each other.
    with socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) as listener:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        bound = listener.getsockname()[1]
        task = asyncio.create_task(_run(server, listener))
        try:
            await until(lambda: server.started or task.done(), within=STARTING, what="the server's start")
            if not server.started:
                cause = task.exception()
                cause = failures[0] if failures else cause
                raise StartupFailed(f"the app's lifespan failed: {cause!r}") from cause
            yield RunningServer(port=bound, server=server)
        finally:
            server.should_exit = True
            done, _ = await asyncio.wait([task], timeout=STOPPING)
            if not done:
                task.cancel()
                await asyncio.wait([task])
                raise AssertionError(f"the server did not end within {STOPPING} s")
    task.result()


class _Server(uvicorn.Server):
    """Uvicorn, but the test's signal handlers stay as they are."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(server: uvicorn.Server, listener: socket) -> None:
    try:
        await server.serve(sockets=[listener])
    except SystemExit as exit:  # in a task it would end the event loop
        raise StartupFailed(f"uvicorn exited with status {exit.code}") from exit


@asynccontextmanager
async def serve_process(
    app: str, *options: str, env: Mapping[str, str] | None = None, port: int = 0, cwd: Path = ROOT
) -> AsyncIterator[RunningProcess]:
    """
    Serve `app` ("package.module:name") with uvicorn in a process of its own, on 127.0.0.1 and a free port unless told.

    `options` are uvicorn's command line options, `env` is added to this process's environment, `cwd` is where the
    module is. At the end of the
    block the process gets SIGTERM and, `STOPPING` seconds later, SIGKILL. Raises `StartupFailed` with its output.
    """
    command = [sys.executable, "-m", "uvicorn", app, "--host", HOST, "--port", str(port), "--no-access-log"]
    command += ["--ws", "websockets-sansio", "--ws-max-size", "65536", "--ws-per-message-deflate", "false"]
    command += ["--timeout-graceful-shutdown", "5", *options]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output: deque[str] = deque(maxlen=LINES)
    announced = asyncio.get_running_loop().create_future()
    reading = asyncio.ensure_future(_read(process.stdout, output, announced))
    try:
        try:
            async with asyncio.timeout(STARTING):
                await asyncio.wait([reading, announced], return_when=asyncio.FIRST_COMPLETED)
                # Several workers listen only after the port was announced.
                while not reading.done() and not await _accepts(announced.result()):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise StartupFailed(f"{app} did not start within {STARTING} s:\n{''.join(output)}") from None
        if reading.done():
            raise StartupFailed(f"{app} did not start:\n{''.join(output)}")
        yield RunningProcess(port=announced.result(), process=process, output=output)
    finally:
        await _end(process)
        await asyncio.wait_for(reading, STOPPING)


async def _read(stream: asyncio.StreamReader, output: deque[str], announced: asyncio.Future[int]) -> None:
    async for line in stream:
        output.append(line.decode(errors="replace"))
        if (found := ANNOUNCED.search(output[-1])) and not announced.done():
            announced.set_result(int(found[1]))


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOPPING)
        except TimeoutError:
            process.kill()
    await process.wait()
