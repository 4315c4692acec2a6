"""The client over a real network: uvicorn, a proxy that fails, TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI

from starlette_realtime import History, Member, Position, Realtime, SignedTokens
from starlette_realtime.client import Client, Closed, Event, Room, Uncertain, connect
from starlette_realtime.testing import Leaks
from tests.support.proxy import Proxy
from tests.support.server import serve
from tests.support.waiting import until

TOKENS = SignedTokens("a secret of the tests alone")


def site(**options: Any) -> tuple[FastAPI, Realtime]:
    realtime = Realtime(authenticate=TOKENS, **options)
    app = FastAPI(lifespan=realtime.lifespan)
    app.mount("/realtime", realtime)
    chat = realtime.room("chat", history=History(size=200, ttl=60.0), presence=True)

    @chat.on("message")
    async def message(member: Member, data: Any) -> Position:
        return await member.broadcast("message", data)

    return app, realtime


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[tuple[Client, Proxy, Realtime]]:
    app, realtime = site()
    async with serve(app) as server, Proxy("127.0.0.1", server.port) as proxy, Leaks():
        url = f"http://127.0.0.1:{proxy.port}/realtime"
        async with connect(url, token=lambda: TOKENS.issue("ann"), **{"backoff": (0.05, 0.2), **options}) as client:
            yield client, proxy, realtime


async def take(room: Room | Client, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(10.0):
        async for item in room:
            found.append(item.data if isinstance(item, Event) else item.reason)
            if len(found) == count:
                return found
    raise AssertionError("it ended")


async def test_nothing_is_lost_and_nothing_comes_twice_over_cuts() -> None:
    async with connected() as (client, proxy, _):
        room = await client.join("chat")
        sent = []
        for number in range(30):
            sent.append(room.send("message", number, returns=Position))
            if number % 10 == 5:
                proxy.cut()
                await until(lambda: client.state != "online")
                proxy.restore()
                await client.wait_online(timeout=5.0)
        async with asyncio.timeout(15.0):
            offsets = [(await future).offset for future in sent]
        assert offsets == list(range(1, 31))
        assert await take(room, 30) == list(range(30))
        assert proxy.connections >= 4


async def test_twenty_messages_sent_offline_arrive_once_and_in_order() -> None:
    async with connected() as (client, proxy, _):
        room = await client.join("chat")
        proxy.cut()
        await until(lambda: client.state != "online")
        sent = [room.send("message", number) for number in range(20)]
        proxy.restore()
        async with asyncio.timeout(15.0):
            await asyncio.gather(*sent)
        assert await take(room, 20) == list(range(20))


async def test_what_a_half_open_link_swallowed_is_sent_again_and_counted_once() -> None:
    async with connected() as (client, proxy, _realtime):
        room = await client.join("chat")
        await room.send("message", 0)
        proxy.half_open()
        sent = room.send("message", 1)
        await asyncio.sleep(0)
        proxy.cut()
        await until(lambda: client.state != "online")
        proxy.restore()
        async with asyncio.timeout(10.0):
            await sent
            await room.send("message", 2)
        assert await take(room, 3) == [0, 1, 2]


async def test_a_server_that_comes_back_empty_is_a_reset() -> None:
    app, _ = site()
    async with serve(app) as server:
        port = server.port
        client = connect(f"http://127.0.0.1:{port}/realtime", token=lambda: TOKENS.issue("ann"), backoff=(0.05, 0.2))
        await client.__aenter__()
        room = await client.join("chat")
        await room.send("message", 1)
        assert await take(room, 1) == [1]
    app, _ = site()
    async with serve(app, port=port):
        assert await take(room, 1) == ["forgotten"]
        await room.send("message", 2)
        assert await take(room, 1) == [2]
        await client.close()


async def test_several_addresses_are_tried_in_turn() -> None:
    app, _ = site()
    async with serve(app) as server, Proxy("127.0.0.1", server.port) as dead:
        dead.cut()
        urls = [f"http://127.0.0.1:{port}/realtime" for port in (dead.port, server.port)]
        async with connect(urls, token=TOKENS.issue("ann"), backoff=(0.01, 0.1)) as client:
            await client.wait_online(timeout=5.0)


async def test_nothing_at_the_address_says_what_the_address_should_be() -> None:
    app, _ = site()
    async with serve(app) as server, connect(f"{server.url}/elsewhere") as client:
        with pytest.raises(Closed, match="the kit is not mounted here"):
            await client.wait_online(timeout=5.0)


async def test_a_header_may_say_who_this_is() -> None:
    app, _ = site()
    async with serve(app) as server:
        headers = {"Authorization": f"Bearer {TOKENS.issue('bot')}"}
        async with connect(f"{server.url}/realtime", headers=headers) as client:
            await client.join("chat")
            assert client.user == "bot"
        async with connect(f"{server.url}/realtime", headers={"Authorization": "Bearer no"}, backoff=(0, 0)) as client:
            with pytest.raises(Closed, match="4401"):
                await client.wait_online(timeout=5.0)


async def test_an_origin_is_sent_only_where_one_is_given() -> None:
    app, _ = site(origins=["https://good.example"])
    async with serve(app) as server:
        for origin, allowed in (None, True), ("https://good.example", True), ("https://bad.example", False):
            async with connect(f"{server.url}/realtime", token=TOKENS.issue("ann"), origin=origin) as client:
                if allowed:
                    await client.wait_online(timeout=5.0)
                else:
                    with pytest.raises(Closed, match="4403"):
                        await client.wait_online(timeout=5.0)


async def test_a_frame_that_is_larger_than_the_client_takes_is_final() -> None:
    async with connected(max_size=2_000) as (client, _, _realtime):
        room = await client.join("chat")
        sent = room.send("message", "x" * 3_000)
        with pytest.raises(Closed, match=r"`max_size` \(1009, max_size\)"):
            await take(room, 1)
        with pytest.raises(Uncertain):
            await sent


async def test_a_client_that_ends_says_goodbye_over_the_network() -> None:
    app, realtime = site()
    async with serve(app) as server:
        async with connect(f"{server.url}/realtime", token=TOKENS.issue("ann")) as client:
            room = await client.join("chat")
            assert list(room.members) == ["ann"]
        await until(lambda: realtime.gauges()["connections"] == 0)


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (folder / "key.pem").write_bytes(pem)
    (folder / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return folder / "key.pem", folder / "cert.pem"


async def test_tls_is_checked_and_its_authority_can_be_named(tmp_path: Path) -> None:
    key, cert = certificate(tmp_path)
    app, _ = site()
    async with serve(app, ssl_keyfile=str(key), ssl_certfile=str(cert)) as server:
        url = f"https://127.0.0.1:{server.port}/realtime"
        trusting = ssl.create_default_context(cafile=str(cert))
        async with connect(url, token=TOKENS.issue("ann"), ssl=trusting) as client:
            await client.wait_online(timeout=5.0)
        async with connect(url, token=TOKENS.issue("ann"), websockets={"proxy": None}) as client:
            with pytest.raises(TimeoutError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.wait_online(timeout=1.0)
