"""Command: publish, disconnect, kick and revoke from a shell or a cron job, by the application's own rooms."""

import argparse
import asyncio
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from starlette_realtime.errors import ConfigurationError, RealtimeError, Refused
from starlette_realtime.publisher import Publisher
from starlette_realtime.rooms import Room, RoomsOptions
from starlette_realtime.router import RoomRouter
from starlette_realtime.store import MemoryStore, Store

__all__ = ["main", "parser"]

PROGRAM = "python -m starlette_realtime"
STORE = "REALTIME_STORE"
MOST = 16 * 1024 * 1024
"""How many bytes are read from standard input at most; an event may have far fewer."""

EPILOGUE = f"""
The store is a URL, or MODULE:NAME of a Store that the application makes; by default what {STORE} says, or that of
the Realtime that --rooms names. Rooms are MODULE:NAME of a Room, a list of them, or a Realtime.
Exit status: 0 done, 1 refused or unavailable (it may or may not have been done: repeat it with the same --key), 2 the
command is wrong.
"""


class Mistake(Exception):
    """The command cannot be carried out as it stands; the text says why."""


def main(arguments: Sequence[str]) -> int:
    """Carry out the command, and tell the exit status: 0, or 1 or 2 with the reason on standard error."""
    options = parser().parse_args(arguments)
    try:
        said = asyncio.run(_carry_out(options, _publisher(options, os.environ)))
    except (Mistake, ConfigurationError, ValueError) as exc:
        sys.stderr.write(f"{PROGRAM}: {exc}\n")
        return 2
    except RealtimeError as exc:
        cause = f" ({exc.__cause__})" if exc.__cause__ is not None else ""
        text = f"{exc.code}: {exc.message}" if isinstance(exc, Refused) else str(exc)
        sys.stderr.write(f"{PROGRAM}: {text}{cause}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    if said:
        sys.stdout.write(f"{said}\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """What reads the command's words."""
    whole = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, epilog=EPILOGUE)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, usage: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, usage=f"{PROGRAM} {name} {usage}" if usage else None, epilog=EPILOGUE
        )
        made.add_argument("--store", metavar="STORE", help="redis://host:port/db, or module:name of a Store")
        made.add_argument("--rooms", metavar="ROOMS", help="module:name of a Room, a list of Rooms, or a Realtime")
        return made

    publish = command(
        "publish", "publish an event to a room, or to a user", "[options] (ROOM | --user USER) EVENT [JSON | -]"
    )
    publish.add_argument("--user", help="all connections of this user, instead of a room")
    publish.add_argument("--key", help="publish once, however often this is repeated with it within 120 s")
    publish.add_argument("--producer", default="publisher", help="whose keys these are (default: %(default)s)")
    publish.add_argument("--volatile", action="store_true", help="only to who is there now; nothing is kept")
    publish.add_argument("words", nargs="+", metavar="ROOM EVENT JSON", help="JSON - is read from standard input")

    disconnect = command("disconnect", "close a user's connections")
    disconnect.add_argument("user", metavar="USER")
    disconnect.add_argument("--code", type=int, default=4403, help="the close code (default: %(default)s)")
    disconnect.add_argument("--error", default="forbidden", help="what the client is told (default: %(default)s)")

    kick = command("kick", "remove a user, or one connection, from a room")
    kick.add_argument("room", metavar="ROOM")
    _either(kick, "--user", "--connection")
    kick.add_argument("--code", default="forbidden", help="what the client is told (default: %(default)s)")

    revoke = command("revoke", "revoke a user's credentials up to now, or one token")
    _either(revoke, "--user", "--token")
    revoke.add_argument("--issued-before", type=float, metavar="SECONDS", help="up to that Unix time (users only)")

    command("nodes", "list the processes on the store: their ids, and seconds since each was heard of")
    return whole


def _either(parser: argparse.ArgumentParser, *names: str) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    for name in names:
        group.add_argument(name, metavar=name.removeprefix("--").upper())


def _publisher(options: argparse.Namespace, environ: Mapping[str, str]) -> Publisher:
    """What is needed of the application, imported before any event loop runs: it may run one of its own."""
    named = _find(options.rooms) if options.rooms else None
    store = _store(options.store, named, environ)
    rooms, settings = _rooms(named)
    if not rooms and (options.command == "kick" or (options.command == "publish" and options.user is None)):
        raise Mistake("which rooms are there? Pass --rooms MODULE:NAME: a Room, a list of them, or a Realtime")
    return Publisher(store, rooms, options=settings, producer=getattr(options, "producer", "publisher"))


async def _carry_out(options: argparse.Namespace, publisher: Publisher) -> str:
    """What to print."""
    async with publisher:
        match options.command:
            case "publish":
                return await _publish(publisher, options)
            case "disconnect":
                await publisher.disconnect_user(options.user, code=options.code, error=options.error)
            case "kick":
                await publisher.kick(options.room, user=options.user, connection=options.connection, code=options.code)
            case "revoke" if options.token is not None:
                if options.issued_before is not None:
                    raise Mistake("--issued-before goes with --user: one token is revoked for good")
                await publisher.revoke_token(options.token)
            case "revoke":
                await publisher.revoke_user(options.user, issued_before=options.issued_before)
            case _:
                return "\n".join(f"{node.id} {node.age:.1f}" for node in await publisher.nodes())
    return ""


async def _publish(publisher: Publisher, options: argparse.Namespace) -> str:
    words: list[str] = options.words
    room = None if options.user is not None else words[0]
    rest = words if room is None else words[1:]
    if not 1 <= len(rest) <= 2:
        raise Mistake("publish takes ROOM EVENT [JSON], or --user USER EVENT [JSON]")
    if options.volatile and (options.user is not None or options.key is not None):
        raise Mistake("--volatile goes with neither --user nor --key: what isn't kept can't be known again")
    event, data = rest[0], _data(rest[1] if len(rest) == 2 else "null")
    if room is None:
        position = await publisher.send_to_user(options.user, event, data, key=options.key)
    elif options.volatile:
        await publisher.publish_volatile(room, event, data)
        return ""
    else:
        position = await publisher.publish(room, event, data, key=options.key)
    return msgspec.json.encode(position).decode()


def _data(text: str) -> object:
    given: str | bytes = text if text != "-" else sys.stdin.buffer.read(MOST + 1)
    if len(given) > MOST:
        raise Refused("too_large", f"standard input has over {MOST} bytes")
    try:
        return msgspec.json.decode(given)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise Mistake(f"""the data is no JSON: {exc}. A text is '"in quotes"'""") from None


def _store(given: str | None, named: object, environ: Mapping[str, str]) -> Store:
    if given is None and isinstance(named, RoomRouter) and not isinstance(named.store, MemoryStore):
        return named.store
    given = given or environ.get(STORE)
    if not given:
        raise Mistake(f"which store? Pass --store redis://host:port, or set {STORE}")
    if "://" in given:
        try:
            from starlette_realtime.store.redis import RedisStore
        except ImportError as exc:
            raise Mistake(f"the store needs the extra: pip install 'starlette-realtime[redis]' ({exc})") from None
        return RedisStore(given)
    found = _find(given)
    if not isinstance(found, Store):
        raise Mistake(f"{given} is no Store: its type is {type(found).__name__}")
    return found


def _rooms(named: object) -> tuple[Sequence[Room], RoomsOptions]:
    if named is None:
        return (), RoomsOptions()
    if isinstance(named, RoomRouter):
        return named.rooms, named.options
    found = list(named) if isinstance(named, Iterable) and not isinstance(named, Room) else [named]
    rooms = [room for room in found if isinstance(room, Room)]
    if not rooms or len(rooms) < len(found):
        raise Mistake("--rooms names a Room, a list of Rooms or a Realtime, and this is none of them")
    return rooms, RoomsOptions()


def _find(path: str) -> object:
    """What `module:name` or `module:name.name` names."""
    module, _, names = path.partition(":")
    if not module or not names:
        raise Mistake(f"{path!r} is not like module:name")
    try:
        found: object = importlib.import_module(module)
    except Exception as exc:  # whatever their module does
        place = traceback.extract_tb(exc.__traceback__)[-1]
        raise Mistake(f"{module} can't be imported: {exc!r}, {place.filename}:{place.lineno}") from None
    for name in names.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise Mistake(f"{module} has no {names}") from None
    return found
