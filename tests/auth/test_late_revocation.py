"""What was revoked before a process hears of it: who came in meanwhile doesn't stay."""

from collections.abc import AsyncIterator

import pytest

from starlette_realtime import AuthGuard, Identity, MemoryStore
from starlette_realtime.testing import FakeClock, Peer
from starlette_realtime.types import Receive, Scope, Send

SECRET = "a secret that processes share, in tests"
BOUND = 15.0


class Undated:
    """Reads tokens that don't say when they were issued."""

    def read(self, token: str) -> Identity:
        return Identity(token)


async def live(token: str) -> str:
    """The application itself knows who that is."""
    return token


async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept, and stay until the end."""
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


def bearer(user: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {user}")]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def stores(clock: FakeClock) -> AsyncIterator[tuple[MemoryStore, MemoryStore]]:
    """The store in two processes."""
    async with MemoryStore(clock=clock) as here, here.sibling() as there:
        yield here, there


async def test_an_undated_token_does_not_outlive_a_revocation_that_its_process_hears_of_later(
    stores: tuple[MemoryStore, MemoryStore], clock: FakeClock
) -> None:
    here, there = (AuthGuard(endpoint, authenticate=Undated(), store=store, clock=clock) for store in stores)
    async with Peer(there, headers=bearer("bob")) as bob:  # so that it has just read what is revoked
        await clock.advance(1.0)
        await here.revoke_user("ann")
        await clock.advance(1.0)
        async with Peer(there, headers=bearer("ann")) as ann:
            await clock.advance(BOUND)
            assert (await ann.wait_closed()).code == 4450
        assert bob.closed is None


async def test_a_ticket_is_as_old_as_its_issue_for_a_process_that_hears_of_a_revocation_later(
    stores: tuple[MemoryStore, MemoryStore], clock: FakeClock
) -> None:
    here, there = (AuthGuard(endpoint, authenticate=live, store=store, secret=SECRET, clock=clock) for store in stores)
    async with Peer(there, headers=bearer("bob")):
        ticket = there.issue_ticket(Identity("ann"), {"type": "http", "headers": []})
        await clock.advance(1.0)
        await here.revoke_user("ann")
        await clock.advance(1.0)
        async with Peer(there, f"/ws?ticket={ticket}") as ann:
            await clock.advance(BOUND)
            assert (await ann.wait_closed()).code == 4450


async def test_a_ticket_is_no_younger_than_the_credentials_behind_it(
    stores: tuple[MemoryStore, MemoryStore], clock: FakeClock
) -> None:
    here, there = (
        AuthGuard(endpoint, authenticate=Undated(), store=store, secret=SECRET, clock=clock) for store in stores
    )
    async with Peer(there, headers=bearer("bob")) as bob:
        await clock.advance(1.0)
        await here.revoke_user("ann")
        identity = await there.authenticate("ann", bob.scope)  # it hasn't heard of it yet
        await clock.advance(1.0)
        ticket = there.issue_ticket(identity, {"type": "http", "headers": []})
        peer = Peer(here, f"/ws?ticket={ticket}", origin="http://testserver")
        await peer.connect()
        assert (await peer.wait_closed()).code == 4450


async def test_what_the_application_itself_lets_in_after_a_revocation_stays(
    stores: tuple[MemoryStore, MemoryStore], clock: FakeClock
) -> None:
    here, there = (AuthGuard(endpoint, authenticate=live, store=store, clock=clock) for store in stores)
    async with Peer(there, headers=bearer("bob")):
        await clock.advance(1.0)
        await here.revoke_user("ann")
        await clock.advance(1.0)
        async with Peer(there, headers=bearer("ann")) as ann:
            await clock.advance(BOUND)
            assert ann.closed is None
