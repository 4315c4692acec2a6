"""One real server: started on a private port of 127.0.0.1, and killed, frozen or set back as a test needs it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.asyncio.connection import Connection
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from tests.support.ports import HOST, reserved_port
from tests.support.redis.binaries import BINARIES, Binary

STARTING = 15.0  # seconds that a server may take until it answers
STOPPING = 10.0  # seconds that it may take to end when asked
SETTLING = 20.0  # seconds that several servers may take to agree
ATTEMPTS = 5  # to find a free port
POLL = 0.01  # seconds between two looks

# Waits for a line or for the end of its input, which comes however the tests end. $1 is the server, $2 its folder.
GUARD = 'if read -r _; then exit 0; fi; kill -9 "$1"; if [ -n "$2" ]; then rm -rf -- "$2"; fi'


class StartupFailed(RuntimeError):
    """The server did not start; the message has what it printed."""


@dataclass(frozen=True)
class Snapshot:
    """What a server held at one moment, as the bytes of its dump."""

    data: bytes


class Server:
    """A server in a process of its own. `server()` makes one."""

    def __init__(
        self,
        binary: Binary,
        folder: Path,
        port: int,
        *,
        args: Sequence[str] = (),
        password: str | None = None,
        unixsocket: Path | None = None,
        sentinel: bool = False,
        temporary: bool = False,
    ) -> None:
        self.binary = binary
        self.folder = folder
        self.port = port
        self.password = password
        self.unixsocket = unixsocket
        self._mode = ["--sentinel"] if sentinel else []
        self._temporary = temporary
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        # A file, not a command line: Sentinel and CONFIG REWRITE keep there what they change.
        lines = [f"port {port}", f"bind {HOST}", f'dir "{folder}"', "daemonize no", "supervised no"]
        if not sentinel:
            lines += ['save ""', "appendonly no", "repl-diskless-sync-delay 0", "shutdown-timeout 1"]
        if password is not None:
            lines += [f"requirepass {_quoted(password)}"] + ([] if sentinel else [f"masterauth {_quoted(password)}"])
        if unixsocket is not None:
            lines += [f"unixsocket {_quoted(str(unixsocket))}"]
        (folder / "server.conf").write_text("\n".join([*lines, *_lines(args), ""]))

    @property
    def address(self) -> str:
        """Its host and port, as "127.0.0.1:port"."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Its address, password included, as "redis://127.0.0.1:port/0"."""
        login = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"redis://{login}{self.address}/0"

    @property
    def unix_url(self) -> str:
        """Its address through the socket file that it was given, as "unix:///path?db=0"."""
        if self.unixsocket is None:
            raise RuntimeError("the server was started without `unixsocket`")
        login = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"unix://{login}{self.unixsocket}?db=0"

    @property
    def pid(self) -> int:
        """Its process. Raises `RuntimeError` while there is none."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether its process lives; a frozen one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """The end of what it printed since its first start."""
        log = self.folder / "server.log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

    async def start(self) -> None:
        """
        Start it, again on the same port and folder: with its last saved data, or none. Returns when it answers.

        Raises `StartupFailed`.
        """
        if self.running:
            raise RuntimeError("the server runs already")
        process = self._spawn()
        try:
            async with asyncio.timeout(STARTING):
                while not await self._answers(process.pid):
                    if process.poll() is not None:
                        raise StartupFailed(f"{self.binary} ended with status {process.returncode}:\n{self.output}")
                    await asyncio.sleep(POLL)
        except BaseException as error:
            self.end()
            if isinstance(error, TimeoutError):
                raise StartupFailed(f"{self.binary} did not answer within {STARTING} s:\n{self.output}") from error
            raise

    async def kill(self) -> None:
        """SIGKILL: what was not saved is lost, and the port refuses connections until `start()`."""
        self._running()
        self.end()

    async def stop(self) -> None:
        """SHUTDOWN NOSAVE: an orderly end, which saves nothing."""
        process = self._running()
        with contextlib.suppress(ConnectionError, RedisError):  # it ends without an answer
            await self.command("SHUTDOWN", "NOSAVE")
        try:
            async with asyncio.timeout(STOPPING):
                while process.poll() is None:
                    await asyncio.sleep(POLL)
        finally:
            self.end()

    def end(self) -> None:
        """Make sure that there is no process, at once; nothing to do when there is none."""
        process, guard = self._process, self._guard
        self._process = self._guard = None
        if process is not None:
            process.kill()
            process.wait()
        if guard is not None:
            assert guard.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                guard.stdin.write(b"done\n")
                guard.stdin.close()
            guard.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, new ones are accepted by the kernel, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: everything that came meanwhile is worked off."""
        os.kill(self.pid, signal.SIGCONT)

    async def save(self) -> None:
        """Write its data to the folder, where the next `start()` finds it."""
        await self.command("SAVE")

    async def snapshot(self) -> Snapshot:
        """Save its data and return a copy, to `restore()` later."""
        await self.save()
        return Snapshot((self.folder / "dump.rdb").read_bytes())

    async def restore(self, snapshot: Snapshot) -> None:
        """Kill it, set its data back to `snapshot`, and start it."""
        self.end()
        (self.folder / "dump.rdb").write_bytes(snapshot.data)
        await self.start()

    async def command(self, *words: str | bytes | float, timeout: float = 5.0) -> Any:
        """
        Send one command over a connection of its own and return the bare answer (RESP2, bytes).

        Raises redis-py's errors: `ResponseError` for an error reply, `ConnectionError` or `TimeoutError` otherwise.
        """
        connection = Connection(
            host=HOST,
            port=self.port,
            password=self.password,
            protocol=2,
            driver_info=None,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
        )
        try:
            await connection.connect_check_health(check_health=False, retry_socket_connect=False)
            await connection.send_command(*words, check_health=False)
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    async def info(self, section: str = "default") -> dict[str, str]:
        """INFO, as field and value."""
        lines = (await self.command("INFO", section)).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if line and not line.startswith("#"))

    async def _answers(self, pid: int) -> bool:
        """Whether that process answers, and not one that has the port already; while it loads its data it doesn't."""
        try:
            return (await self.info("server"))["process_id"] == str(pid)
        except (AuthenticationError, NoPermissionError):  # its own settings say who may ask
            return True
        except (RedisError, OSError):
            return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("the server does not run")
        return self._process

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [str(self.binary.path), str(self.folder / "server.conf"), *self._mode]
        # Sessions of their own: what is typed at the tests' terminal is not for them.
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        guarded = ["sh", "-c", GUARD, "guard", str(self._process.pid), str(self.folder) if self._temporary else ""]
        self._guard = subprocess.Popen(
            guarded,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._process


@asynccontextmanager
async def server(
    binary: Binary | None = None,
    *,
    args: Sequence[str] = (),
    password: str | None = None,
    folder: Path | None = None,
    port: int | None = None,
    unixsocket: Path | None = None,
    sentinel: bool = False,
) -> AsyncIterator[Server]:
    """
    Run a server for as long as the block lasts; it keeps nothing on disk unless told to save.

    `args` are more settings, as on a command line: `["--maxmemory", "10mb", "--user", "app", "on", ">secret", "~*"]`.
    `folder` is a temporary one unless given. Raises `StartupFailed`.
    """
    for attempt in range(1, ATTEMPTS + 1):
        with ExitStack() as stack:
            if folder is None:
                temporary = tempfile.TemporaryDirectory(prefix="rt-", ignore_cleanup_errors=True)
                place = Path(stack.enter_context(temporary))
            else:
                place = folder
            running = Server(
                binary or BINARIES[0],
                place,
                port or stack.enter_context(reserved_port()),
                args=args,
                password=password,
                unixsocket=unixsocket,
                sentinel=sentinel,
                temporary=folder is None,
            )
            stack.callback(running.end)
            try:
                await running.start()
            except StartupFailed as error:
                if port is None and attempt < ATTEMPTS and "in use" in str(error):
                    continue  # another process was faster
                raise
            yield running
            return


async def eventually(condition: Callable[[], Awaitable[object]], *, within: float = SETTLING, what: str) -> None:
    """
    Ask servers again and again until `await condition()` is true; one that doesn't answer makes it false.

    Raises `AssertionError`, naming `what` was awaited, when it isn't after `within` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    failure: Exception | None = None
    while loop.time() < deadline:
        try:
            if await condition():
                return
        except (RedisError, OSError) as error:
            failure = error
        await asyncio.sleep(POLL)
    raise AssertionError(f"not within {within} s: {what}") from failure


def _lines(args: Sequence[str]) -> list[str]:
    """Put a command line's settings into the form of the configuration file."""
    lines: list[str] = []
    for word in args:
        if word.startswith("--"):
            lines.append(word.removeprefix("--"))
        else:
            lines[-1] += f" {_quoted(word)}"
    return lines


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
