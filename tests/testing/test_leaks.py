"""A leak is found and named; what ends in its own time is none."""

import asyncio
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import starlette_realtime.testing
from starlette_realtime.clock import Clock
from starlette_realtime.store import MemoryStore
from starlette_realtime.testing import Client, FakeClock, Leaked, Leaks, fixtures, running
from tests.testing.support import make_app

no_leaks = fixtures.no_leaks

CONFTEST = """
import pytest

pytest_plugins = ["starlette_realtime.testing.fixtures"]

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


def pytest_says(folder: Path, tests: str) -> str:
    """What pytest prints of these tests in a folder of their own."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(textwrap.dedent(tests))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60).stdout


async def test_whoever_leaves_nothing_behind_passes_even_if_it_takes_time() -> None:
    clock = FakeClock()
    app = make_app(clock=clock)
    realtime = app.state.realtime
    async with (
        Leaks(clock),
        running(app, clock=clock),
        Leaks(realtime),
        Client(app, "/realtime", token="ann") as ann,
    ):
        room = await ann.join("chat:1")
        await room.send("say", "hello", key="k")
        await ann.drop()  # presence lingers for 5 s
    assert clock.now() < 1_060.0


async def test_a_connection_that_stays_is_named_by_the_gauges_and_its_tasks() -> None:
    clock = FakeClock()
    app = make_app(clock=clock)
    async with running(app, clock=clock):
        leaks = Leaks(app.state.realtime, app.state.realtime.store, within=2.0, timeout=0.02)
        with pytest.raises(Leaked) as leaked:
            async with leaks:
                ann = await Client(app, "/realtime", token="ann").connect()
                await ann.join("chat:1")
        left = "\n".join(leaked.value.left)
        assert "gauge 'connections' of Realtime: 1, was 0" in left
        assert "gauge 'store.entries' of Realtime: 2, was 1" in left
        assert "gauge 'entries' of MemoryStore: 2, was 1" in left
        assert "publication" not in left
        assert "of Peer._run at " in left
        assert "1 of the timer starlette_realtime.router" in left
        assert str(leaked.value).startswith("the test left behind:\n  - ")
        await ann.close()
        await leaks.check()


async def test_a_task_that_ends_in_real_time_is_waited_for() -> None:
    async with Leaks():
        asyncio.get_running_loop().create_task(asyncio.to_thread(int))


async def test_what_was_there_before_is_no_leak() -> None:
    clock = FakeClock()
    clock.call_later(100.0, print)
    before = asyncio.ensure_future(asyncio.sleep(60.0))
    async with Leaks(clock) as leaks:
        assert leaks.left() == []
    before.cancel()


async def test_timers_of_the_same_kind_are_counted() -> None:
    clock = Clock()
    timers = []
    with pytest.raises(Leaked, match=r"3 of the timer collections\.Counter, the next due in 59\.") as leaked:
        async with Leaks(clock, timeout=0.02):
            timers = [clock.call_later(seconds, Counter) for seconds in (70.0, 60.0, 80.0)]
    assert len(leaked.value.left) == 1
    for timer in timers:
        timer.cancel()


async def test_a_test_that_fails_is_not_asked_what_it_left() -> None:
    clock = FakeClock()
    with pytest.raises(ZeroDivisionError):
        async with Leaks(clock, within=0.0, timeout=0.0):
            clock.call_later(60.0, print)
            raise ZeroDivisionError


async def test_whatever_has_gauges_can_be_watched() -> None:
    class Held:
        def __init__(self) -> None:
            self.count = 1

        def gauges(self) -> dict[str, int]:
            return {"topics": self.count}

    leaks, held = Leaks(timeout=0.02), Held()
    assert leaks.watch(held) is held
    held.count = 3
    with pytest.raises(Leaked, match="gauge 'topics' of Held: 3, was 1"):
        async with leaks:
            pass
    held.count = 0
    async with leaks:
        pass


async def test_what_cannot_be_watched_is_told() -> None:
    store = MemoryStore()
    assert Leaks().watch(store) is store
    with pytest.raises(TypeError, match="nothing to watch"):
        Leaks().watch("a string")


def test_the_fixture_fails_the_test_that_leaks_and_no_other(tmp_path: Path) -> None:
    said = pytest_says(
        tmp_path,
        """
        import asyncio
        import pytest

        pytestmark = pytest.mark.anyio

        async def test_leaks(no_leaks):
            global task
            no_leaks.timeout = 0.01
            task = asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="forgotten")

        async def test_is_clean(no_leaks):
            await asyncio.get_running_loop().create_task(asyncio.sleep(0))
        """,
    )
    assert "2 passed, 1 error" in said
    assert "ERROR at teardown of test_leaks" in said
    assert "- task forgotten of Event.wait at" in said


async def test_the_fixture_watches_what_it_is_shown(no_leaks: Leaks) -> None:
    clock = no_leaks.watch(FakeClock())
    clock.call_later(5.0, int)
    assert len(no_leaks.left()) == 1  # gone by the end: the clock is moved


def test_the_module_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        starlette_realtime.testing.Nothing  # noqa: B018


def test_the_tools_themselves_do_without_pytest() -> None:
    program = "import sys, starlette_realtime.testing; assert 'pytest' not in sys.modules, sys.modules['pytest']"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
