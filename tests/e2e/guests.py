"""Guests of the demo: people at its page, as a test directs them."""

from playwright.async_api import ConsoleMessage, Page, expect

from tests.e2e.people import WITHIN

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
