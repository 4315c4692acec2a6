"""Presence: the fold of snapshots and numbered differences."""

from typing import Any

from starlette_realtime.client import Change, Person
from starlette_realtime.client.stay import Stay
from tests.client.support import World


def member(connection: str, user: str | None = None, since: int = 0, **fields: Any) -> dict[str, Any]:
    return {"connection": connection, "user": user, "status": "online", "since": since, **fields}


def roster(seq: int, *members: dict[str, Any], total: int | None = None) -> dict[str, Any]:
    return {"seq": seq, "total": len(members) if total is None else total, "list": list(members)}


def entered(*members: dict[str, Any], seq: int = 1) -> tuple[World, Stay]:
    world = World()
    return world, world.joined(members=roster(seq, *members))


def there(stay: Stay) -> dict[str, tuple[str, ...]]:
    return {key: person.connections for key, person in stay.presence.members.items()}


async def test_the_snapshot_is_grouped_by_user_and_by_connection_where_there_is_none() -> None:
    _, stay = entered(
        member("c2", "ann", 20, status="away", meta={"tab": 2}),
        member("c1", "ann", 10, meta={"tab": 1}),
        member("c3", None, 15),
    )
    assert dict(stay.presence.members) == {
        "ann": Person("ann", "online", {"tab": 2}, ("c1", "c2"), 10),
        "c3": Person(None, "online", None, ("c3",), 15),
    }
    assert (stay.presence.total, stay.presence.seq, stay.presence.complete) == (3, 1, True)


async def test_differences_are_applied_in_order_and_repeated_ones_ignored() -> None:
    world, stay = entered(member("c1", "ann"))
    world.wire.say("presence", room="chat", prev=1, seq=3, joined=[member("c2", "bob")])
    world.wire.say("presence", room="chat", prev=1, seq=3, left=["c1"])
    world.wire.say("presence", room="chat", prev=2, seq=4, updated=[member("c1", "ann", status="away")])
    assert there(stay) == {"ann": ("c1",), "bob": ("c2",)}
    assert stay.presence.members["ann"].status == "away"
    world.wire.say("presence", room="chat", prev=4, seq=5, left=["c1", "nobody"])
    assert there(stay) == {"bob": ("c2",)}
    assert stay.presence.total == 1


async def test_a_gap_asks_for_a_snapshot_once_and_what_comes_meanwhile_is_applied_after_it() -> None:
    world, stay = entered(member("c1", "ann"))
    world.wire.say("presence", room="chat", prev=4, seq=5, joined=[member("c5", "eve")])
    world.wire.say("presence", room="chat", prev=5, seq=6, joined=[member("c6", "fay")])
    assert there(stay) == {"ann": ("c1",)}
    (ask,) = world.wire.all("members")
    world.wire.reply(ask, roster(5, member("c1", "ann"), member("c5", "eve")))
    assert there(stay) == {"ann": ("c1",), "eve": ("c5",), "fay": ("c6",)}


async def test_more_than_is_held_only_means_to_ask_again() -> None:
    world, stay = entered(member("c1", "ann"))
    for number in range(100):
        world.wire.say("presence", room="chat", prev=number + 4, seq=number + 5, joined=[member(f"d{number}")])
    world.wire.reply(world.wire.last("members"), roster(4, member("c1", "ann")))
    assert len(stay.presence.members) == 65
    world.wire.say("presence", room="chat", prev=104, seq=105, joined=[member("last")])
    world.wire.reply(world.wire.last("members"), roster(105, member("c1", "ann")))
    assert there(stay) == {"ann": ("c1",)}


async def test_a_refused_snapshot_is_asked_for_with_the_next_difference() -> None:
    world, stay = entered(member("c1", "ann"))
    world.wire.say("presence", room="chat", prev=4, seq=5)
    world.wire.refuse(world.wire.last("members"), "forbidden")
    world.wire.say("presence", room="chat", prev=5, seq=6)
    assert len(world.wire.all("members")) == 2
    world.wire.reply(world.wire.last("members"), roster(6, member("c2", "bob")))
    assert there(stay) == {"bob": ("c2",)}


async def test_a_joins_snapshot_is_newer_than_one_that_was_asked_for_before() -> None:
    world, stay = entered(member("c1", "ann"))
    world.wire.say("presence", room="chat", prev=4, seq=5)
    await world.relink()
    world.wire.joined(recovered=True, members=roster(9, member("c9", "zoe")))
    ask = world.wire.last("members")
    world.wire.reply(ask, roster(5, member("c1", "ann")))
    assert there(stay) == {"zoe": ("c9",)}


async def test_above_the_rooms_bound_there_is_a_sample_that_says_so() -> None:
    world, stay = entered(member("c1", "ann"))
    world.wire.say("presence", room="chat", seq=2, total=5_000, sample=[member("c7", "gus")])
    assert there(stay) == {"gus": ("c7",)}
    assert (stay.presence.total, stay.presence.complete) == (5_000, False)
    world.wire.say("presence", room="chat", prev=2, seq=3, joined=[member("c8", "hal")], total=150)
    assert world.wire.last("members"), "what a difference applies to is not known"


async def test_after_a_reset_a_new_snapshot_is_right_whatever_its_number() -> None:
    world, stay = entered(member("c1", "ann"), seq=900)
    world.wire.say("reset", room="chat", reason="lost")
    world.wire.reply(world.wire.last("members"), roster(1, member("c2", "bob")))
    assert there(stay) == {"bob": ("c2",)}
    assert stay.presence.seq == 1


async def test_a_room_without_presence_has_nobody_in_it_and_asks_for_nobody() -> None:
    world = World()
    stay = world.joined()
    world.wire.say("reset", room="chat", reason="lost")
    assert there(stay) == {}
    assert world.wire.all("members") == []


async def test_a_change_is_what_differs_from_what_was_known() -> None:
    world, stay = entered(member("c1", "ann"), member("c2", "bob"))
    before = stay.presence.members
    assert stay.presence.change(before) == Change()
    calls = world.people_calls
    world.wire.say("presence", room="chat", prev=1, seq=2)
    assert world.people_calls == calls, "nobody came, changed or went"
    world.wire.say("presence", room="chat", prev=2, seq=3, joined=[member("c3", "cid")], left=["c1"])
    world.wire.say("presence", room="chat", prev=3, seq=4, updated=[member("c2", "bob", status="away")])
    change = stay.presence.change(before)
    assert [[one.user for one in group] for group in (change.joined, change.updated, change.left)] == [
        ["cid"],
        ["bob"],
        ["ann"],
    ]


async def test_a_snapshot_that_cannot_even_be_asked_for_is_asked_for_later() -> None:
    world = World(queue=1)
    stay = world.joined(members=roster(1, member("c1", "ann")))
    world.send(None, 1)
    world.wire.say("presence", room="chat", prev=4, seq=5)
    assert world.wire.all("members") == []
    world.wire.reply(world.wire.last("event"))
    world.wire.say("presence", room="chat", prev=5, seq=6)
    world.wire.reply(world.wire.last("members"), roster(6))
    assert there(stay) == {}
