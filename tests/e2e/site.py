"""The site of the end-to-end tests: pages that chat, and a server that tells what it saw."""

from pathlib import Path
from typing import TypedDict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from starlette_realtime import Connection, ConnectionOptions, Member, Realtime, SignedTokens

PAGES = Path(__file__).parent / "pages"
SECRET = "a secret of the tests alone"


class Text(TypedDict):
    """What somebody says."""

    text: str


class Site:
    """
    A chat with kept rooms (`chat:…`) and ephemeral ones (`game:…`), as an ASGI app, and its server's side of things.

    `token_life` is in seconds. `origins` are those of pages that come from elsewhere.
    """

    def __init__(
        self,
        *,
        token_life: float = 600.0,
        connection: ConnectionOptions | None = None,
        origins: tuple[str, ...] = (),
        linger: float = 5.0,
    ) -> None:
        self.connections: list[Connection] = []  # that authenticated, in order, those that have ended included
        self.handled: list[str] = []  # texts, once for each time that the handler ran to its end
        self.tokens = 0  # issued
        self.tokens_away = False  # the endpoint fails
        self.tokens_forged = False  # it issues what this server doesn't accept
        self._life = token_life
        self._signer = SignedTokens(SECRET)
        self._forger = SignedTokens(SECRET[::-1])
        self.realtime = Realtime(authenticate=self._signer, connection=connection, origins=origins)
        self.realtime.on_connect(self._connected)
        for template, history in (("chat:{room_id}", True), ("game:{room_id}", False)):
            room = (
                self.realtime.room(template, presence=True, linger=linger)
                if history
                else self.realtime.room(template, presence=True, linger=linger, history=None)
            )
            room.on("message")(self._message if history else self._passing)
            room.on("typing")(self._typing)
        self.app = Starlette(
            lifespan=self.realtime.lifespan,
            routes=[
                Route("/", self._page),
                Route("/token", self._token),
                Mount("/pages", StaticFiles(directory=PAGES)),
                Mount("/realtime", self.realtime),
            ],
        )

    def connections_of(self, user: str) -> list[Connection]:
        """The connections that a user has had, in order."""
        return [connection for connection in self.connections if connection.user == user]

    async def _connected(self, connection: Connection) -> None:
        self.connections.append(connection)

    async def _message(self, member: Member, body: Text) -> dict[str, int]:
        position = await member.broadcast("message", body)  # over the user's limit it raises, and the page tries again
        self.handled.append(body["text"])
        return {"offset": position.offset}

    async def _passing(self, member: Member, body: Text) -> dict[str, int]:
        await member.broadcast_volatile("message", body)
        return {"offset": 0}

    async def _typing(self, member: Member) -> None:
        await member.broadcast_volatile("typing", others_only=True)

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGES / "chat.html")

    async def _token(self, request: Request) -> Response:
        if self.tokens_away:
            return Response(status_code=503)
        self.tokens += 1
        signer = self._forger if self.tokens_forged else self._signer
        return PlainTextResponse(signer.issue(request.query_params["user"], expires_in=self._life))
