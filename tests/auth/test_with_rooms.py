"""AuthGuard inside Realtime: what rooms make of credentials."""

from tests.auth.support import application, basic, user_of
from tests.rooms.support import serving


async def test_a_proxys_password_does_not_keep_anybody_out() -> None:
    """Browsers send it unasked to whatever is behind the proxy."""
    proxys = basic("staging", "let me in")
    async with serving(lambda realtime: realtime.room("chat:{room_id:int}")) as world:
        client = await world.client(headers=proxys).__aenter__()
        assert (await client.auth("ada"))["user"] == "ada"
        await client.join("chat:1")
    anonymous = application(authenticate=lambda token: token, anonymous=True)
    assert await user_of(anonymous, headers=proxys) is None
