"""Rooms: how they are declared, who is in them, and the dispatch of a client's commands."""

from starlette_realtime.rooms.declaration import Room
from starlette_realtime.rooms.dispatch import Rooms
from starlette_realtime.rooms.limits import RoomsOptions
from starlette_realtime.rooms.member import Member, RoomView

__all__ = ["Member", "Room", "RoomView", "Rooms", "RoomsOptions"]
