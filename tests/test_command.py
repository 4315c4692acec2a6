"""The command says what is wrong in one line, and its exit status tells whether to repeat it."""

import sys
from pathlib import Path

import pytest

from starlette_realtime.command import main

APPLICATION = """
from starlette_realtime import MemoryStore, Realtime, Room

chat = Room("chat:{number:int}")
ROOMS = [chat, Room("live", history=None)]
memory = MemoryStore()
nothing = []
number = 7

async def by_name(token): ...

realtime = Realtime(authenticate=by_name, rooms=[Room("lobby")])
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory has an application, and the environment names no store."""
    (tmp_path / "shop.py").write_text(APPLICATION)
    (tmp_path / "broken.py").write_text("\nraise RuntimeError('no database')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("REALTIME_STORE", raising=False)
    for name in ("shop", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def run(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit status, and what was written to standard output and standard error."""
    with pytest.raises(SystemExit) as ended:  # as the program does, and argparse by itself
        raise SystemExit(main(words.split(" ")))
    status = ended.value.code
    assert isinstance(status, int)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "invalid choice"),
        ("nonsense", "invalid choice"),
        ("publish", "the following arguments are required"),
        ("publish chat:1 hello", "Pass --store redis://host:port, or set REALTIME_STORE"),
        ("publish --store redis://127.0.0.1:1 chat:1 hello", "Pass --rooms MODULE:NAME"),
        ("kick --store redis://127.0.0.1:1 chat:1 --user ann", "Pass --rooms MODULE:NAME"),
        ("kick --store redis://127.0.0.1:1 chat:1", "one of the arguments --user --connection is required"),
        ("publish --store http://127.0.0.1 --user ann hello", "http"),
        ("publish --store shop:memory --rooms shop chat:1 hello", "'shop' is not like module:name"),
        ("publish --store shop:memory --rooms shop:none chat:1 hello", "shop has no none"),
        ("publish --store shop:memory --rooms shop:number chat:1 hello", "--rooms names a Room"),
        ("publish --store shop:memory --rooms shop:nothing chat:1 hello", "--rooms names a Room"),
        ("publish --store shop:memory --rooms nowhere:ROOMS chat:1 hello", "nowhere can't be imported: ModuleNotFound"),
        ("publish --store shop:memory --rooms broken:ROOMS chat:1 hello", "no database"),
        ("publish --store shop:number --rooms shop:ROOMS chat:1 hello", "shop:number is no Store: its type is int"),
        ("publish --store shop:memory --rooms shop:ROOMS chat:1 hello", "reaches nobody: share a RedisStore"),
        ("publish --rooms shop:realtime chat:1 hello", "Pass --store"),
        ("revoke --store shop:memory --user ann --token t", "not allowed with argument"),
        ("disconnect --store shop:memory --code x ann", "invalid int value"),
    ],
)
def test_a_mistake_is_told_in_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(words, capsys)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_where_an_import_failed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run("publish --store shop:memory --rooms broken:ROOMS chat:1 hello", capsys)
    assert "broken.py:2" in err


def test_help_names_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("--help", "publish --help"):
        status, out, _ = run(words, capsys)
        assert status == 0
        assert "Exit status: 0 done, 1 refused or unavailable" in " ".join(out.split())
