"""Guests of the demo: people at its page, as a test directs them, and the demo on several processes."""

import asyncio
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from playwright.async_api import ConsoleMessage, Page, expect

from tests.e2e.people import WITHIN
from tests.support.ports import reserved_ports
from tests.support.server import HOST, ROOT

PATIENCE = WITHIN * 1000  # ms, the unit of `expect`
SECRET = {"REALTIME_SECRET": "a secret of the tests alone"}
VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", ({violatedDirective, blockedURI, sourceFile, lineNumber}) => {
  violations.push(`${violatedDirective}: ${blockedURI} at ${sourceFile}:${lineNumber}`);
});
"""


class Guest:
    """Somebody at the demo's page."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.complaints: list[str] = []
        page.on("console", self._note)

    @classmethod
    async def come(cls, page: Page, url: str, name: str) -> "Guest":
        """Open the demo, sign in and wait until the room is joined."""
        guest = cls(page, name)
        await page.add_init_script(VIOLATIONS)
        await page.goto(url)
        await page.locator("form[data-sign-in] input[name=name]").fill(name)
        await page.locator("form[data-sign-in] button").click()
        await guest.here()
        return guest

    async def here(self) -> None:
        """Wait until the page is online and sees itself in the room."""
        await expect(self.page.locator("[data-state]")).to_have_attribute("data-state", "online", timeout=PATIENCE)
        await self.sees(f"[data-member='{self.name}'][data-status=online]")

    async def write(self, *texts: str) -> None:
        """Type messages, and send each with Enter."""
        composer = self.page.locator("form[data-composer] textarea[name=text]")
        for text in texts:
            await composer.fill(text)
            await composer.press("Enter")

    async def sees(self, selector: str, *, count: int = 1) -> None:
        """Wait until the page has `count` such elements, seen or scrolled away."""
        await expect(self.page.locator(selector)).to_have_count(count, timeout=PATIENCE)

    async def reads(self, texts: list[str]) -> None:
        """Wait until the room's messages are these."""
        await expect(self.page.locator("[data-message] [data-text]")).to_have_text(texts, timeout=PATIENCE)

    async def counts(self, **counters: int) -> None:
        """Wait until the counters are these."""
        for name, value in counters.items():
            counter = self.page.locator(f"[data-counter={name}]")
            await expect(counter).to_have_text(str(value), timeout=PATIENCE)

    async def offline(self) -> None:
        """Wait until the page knows that it has no link."""
        await expect(self.page.locator("[data-state]")).not_to_have_attribute("data-state", "online", timeout=PATIENCE)

    async def is_content(self) -> None:
        """Assert that the browser had nothing to complain of."""
        assert self.complaints == []
        assert await self.page.evaluate("violations") == []

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


# --- several processes ----------------------------------------------------------------------------------------------

STARTING = 30.0  # seconds
STOPPING = 20.0


@dataclass(frozen=True, kw_only=True)
class Several:
    """The demo as `scripts/demo --workers` starts it."""

    ports: Sequence[int]
    process: asyncio.subprocess.Process
    output: deque[str]

    @property
    def urls(self) -> list[str]:
        """The processes' pages, by their numbers less one."""
        return [f"http://{HOST}:{port}" for port in self.ports]

    async def descendants(self) -> list[int]:
        """The processes that it has started: workers, and the server that they share."""
        command = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        listing = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        printed, _ = await listing.communicate()
        return [int(pid) for pid in printed.split()]


@asynccontextmanager
async def several(ports: Sequence[int] = ()) -> AsyncIterator[Several]:
    """Start the demo on several processes, two of them unless told, and end it as Ctrl+C does."""
    with ExitStack() as stack:
        async with _several(ports or stack.enter_context(reserved_ports(2))) as demo:
            yield demo


@asynccontextmanager
async def _several(ports: Sequence[int]) -> AsyncIterator[Several]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo", "--port", str(ports[0]), "--workers", str(len(ports))),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output: deque[str] = deque(maxlen=200)
    announced = asyncio.Event()

    async def read(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            output.append(line.decode(errors="replace"))
            if output[-1].startswith("The demo is on"):
                announced.set()

    reading = asyncio.ensure_future(read(process.stdout))
    waiting = asyncio.ensure_future(announced.wait())
    try:
        await asyncio.wait([reading, waiting], timeout=STARTING, return_when=asyncio.FIRST_COMPLETED)
        assert announced.is_set(), "".join(output)
        yield Several(ports=ports, process=process, output=output)
    finally:
        waiting.cancel()
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), STOPPING)
        await reading
