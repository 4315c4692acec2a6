"""Rooms: what a reader gets over broken links, resets, lagging readers, refusals, and what the server joins."""

from typing import Any

import pytest

from starlette_realtime import NotJoined, Refused
from starlette_realtime.client.inbox import MAX_BYTES
from starlette_realtime.messages import Position
from tests.client.support import Outcome, World, at, take


def position(offset: int, epoch: str = "e") -> Position:
    return Position(**at(offset, epoch))


def missed(*offsets: int) -> list[dict[str, Any]]:
    return [{"type": "event", "room": "chat", "event": "message", "data": n, "position": at(n)} for n in offsets]


# --- over broken links ----------------------------------------------------------------------------------------------


async def test_a_first_join_is_neither_a_recovery_nor_a_reset() -> None:
    world = World()
    stay = world.joined(position=at(7))
    assert stay.position == position(7)
    assert take(stay.inbox) == []


async def test_a_kept_event_that_was_heard_is_not_delivered_again() -> None:
    world = World()
    stay = world.joined(position=at(7))
    for offset in (7, 8, 8, 6, 11, 10):
        world.wire.event(offset, position=at(offset))
    world.wire.event("of another count", position=at(3, "f"))
    world.wire.event("volatile")
    assert take(stay.inbox) == [8, 11, "of another count", "volatile"]
    assert stay.position == position(3, "f")


async def test_a_resume_delivers_what_was_missed_in_order_and_once() -> None:
    world = World()
    stay = world.joined(position=at(1))
    world.wire.event(2, position=at(2))
    await world.relink()
    world.wire.event("of an earlier stay", position=at(5))
    world.wire.say("reset", room="chat", reason="of an earlier stay")
    assert world.wire.last("join")["since"] == at(2)
    world.wire.joined(recovered=True, events=missed(2, 3, 4), position=at(5))
    world.wire.event(6, position=at(6))
    assert take(stay.inbox) == [2, (3,), (4,), 6]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"position": at(3), "reason": "trimmed"}, "reset: trimmed"),
        ({"position": at(3, "new"), "reason": "forgotten"}, "reset: forgotten"),
        ({"position": at(3)}, "reset: unknown"),
        ({"position": None}, "reset: ephemeral"),
    ],
)
async def test_a_resume_that_failed_says_so_and_goes_on_from_the_new_position(
    answer: dict[str, Any], expected: str
) -> None:
    world = World()
    stay = world.joined(position=at(9))
    await world.relink()
    world.wire.joined(**answer)
    assert take(stay.inbox) == [expected]
    world.wire.event("next", position=at(4, (answer["position"] or at(0))["epoch"]))
    assert take(stay.inbox) == ["next"]


async def test_an_ephemeral_room_is_told_of_a_reset_after_every_broken_link() -> None:
    world = World()
    stay = world.joined(position=None)
    for _ in range(2):
        await world.relink()
        world.wire.joined(position=None, reason="ephemeral")
    assert take(stay.inbox) == ["reset: ephemeral", "reset: ephemeral"]


async def test_a_position_that_was_kept_is_resumed_from() -> None:
    world = World()
    world.wire.accept()
    stay = world.core.join("chat", since=position(4))
    assert world.wire.last("join")["since"] == at(4)
    world.wire.joined(recovered=True, events=missed(5), position=at(5))
    assert take(stay.inbox) == [(5,)]


async def test_a_join_whose_reply_was_lost_is_a_first_join_again() -> None:
    world = World()
    world.wire.accept()
    stay = world.core.join("chat")
    await world.relink()
    assert "since" not in world.wire.last("join")
    world.wire.joined(position=at(3))
    assert take(stay.inbox) == []


async def test_a_reset_of_the_server_comes_in_order_and_moves_the_position() -> None:
    world = World()
    stay = world.joined(position=at(1), members={"seq": 1, "total": 0, "list": []})
    world.wire.event(2, position=at(2))
    world.wire.say("reset", room="chat", reason="lost", position=at(1, "new"))
    world.wire.event("new", position=at(2, "new"))
    assert take(stay.inbox) == [2, "reset: lost", "new"]
    assert world.wire.last("members")["room"] == "chat", "the store has lost count"


async def test_a_room_joined_twice_is_the_same_and_leaving_makes_room_for_a_new_stay() -> None:
    world = World()
    stay = world.joined()
    assert world.core.join("chat") is stay
    assert len(world.wire.all("join")) == 1
    world.core.leave(stay, Outcome())
    again = world.core.join("chat")
    assert again is not stay
    world.wire.event("of the old stay", position=at(2))
    world.wire.joined(position=at(5))
    world.wire.event(6, position=at(6))
    assert take(again.inbox) == [6]
    assert take(stay.inbox) == ["end: None"]


# --- readers that lag -----------------------------------------------------------------------------------------------


async def test_a_reader_that_lags_gets_what_was_passed_over_from_the_history() -> None:
    world = World(inbox=4)
    stay = world.joined(position=at(0))
    take(stay.inbox)
    for offset in range(1, 10):
        world.wire.event(offset, position=at(offset))
    assert len(stay.inbox) == 4, "bounded"
    assert len(world.wire.all("join")) == 1
    stay.inbox.take()
    assert len(world.wire.all("join")) == 1, "not for each event that is taken"
    stay.inbox.take()
    assert world.wire.last("join")["since"] == at(4)
    world.wire.event(10, position=at(10))
    world.wire.joined(recovered=True, events=missed(*range(5, 11)), position=at(10))
    world.wire.event(11, position=at(11))
    assert take(stay.inbox) == [3, 4, (5,), (6,), (7,), (8,), (9,), (10,)]
    assert world.wire.last("join")["since"] == at(10), "what is recovered is let in on top, once"
    world.wire.joined(recovered=True, events=missed(11), position=at(11))
    world.wire.event(12, position=at(12))
    assert take(stay.inbox) == [(11,), 12]


async def test_what_the_history_no_longer_has_is_a_reset() -> None:
    world = World(inbox=2)
    stay = world.joined(position=at(0))
    take(stay.inbox)
    for offset in range(1, 10):
        world.wire.event(offset, position=at(offset))
    assert take(stay.inbox) == [1, 2]
    world.wire.joined(position=at(9), reason="trimmed")
    assert take(stay.inbox) == ["reset: trimmed"]


async def test_in_an_ephemeral_room_a_lagging_reader_is_told_so() -> None:
    world = World(inbox=2)
    stay = world.joined(position=None)
    take(stay.inbox)
    for number in range(5):
        world.wire.event(number)
    assert take(stay.inbox) == [0, 1, "reset: lagged"]
    world.wire.event("next")
    assert take(stay.inbox) == ["next"]


async def test_large_events_fill_an_inbox_before_their_number_does() -> None:
    world = World()
    stay = world.joined(position=at(0))
    take(stay.inbox)
    text = "x" * 60_000
    for offset in range(1, 200):
        world.wire.event(text, position=at(offset))
    assert len(stay.inbox) * 60_000 <= MAX_BYTES + 60_000
    assert stay.behind


async def test_reconnects_add_nothing_to_a_full_inbox() -> None:
    world = World(inbox=4)
    stay = world.joined(position=at(0))
    for offset in range(1, 10):
        world.wire.event(offset, position=at(offset))
    for _ in range(20):
        await world.relink()
        assert "since" not in world.wire.last("join"), "there is no space for what was missed"
        world.wire.joined(position=at(50))
    assert len(stay.inbox) == 4
    assert take(stay.inbox)[:3] == [1, 2, 3]
    assert world.wire.last("join")["since"] == at(3)


async def test_a_reader_that_catches_up_offline_resumes_from_there() -> None:
    world = World(inbox=4)
    stay = world.joined(position=at(0))
    for offset in range(1, 10):
        world.wire.event(offset, position=at(offset))
    world.wire.close()
    take(stay.inbox)
    await world.clock.advance(0.25)
    world.wire.accept()
    assert world.wire.last("join")["since"] == at(3)


async def test_a_link_that_breaks_while_a_reader_catches_up_loses_nothing() -> None:
    world = World(inbox=2)
    stay = world.joined(position=at(0))
    take(stay.inbox)
    for offset in range(1, 5):
        world.wire.event(offset, position=at(offset))
    assert take(stay.inbox) == [1, 2]
    assert len(world.wire.all("join")) == 2
    await world.relink()
    assert world.wire.last("join")["since"] == at(2)
    world.wire.joined(recovered=True, events=missed(3, 4), position=at(4))
    assert take(stay.inbox) == [(3,), (4,)]


async def test_catching_up_waits_out_a_limit() -> None:
    world = World(inbox=2)
    stay = world.joined(position=at(0))
    take(stay.inbox)
    for offset in range(1, 5):
        world.wire.event(offset, position=at(offset))
    take(stay.inbox)
    world.wire.refuse(world.wire.last("join"), "rate_limited", retry_after=2.0)
    assert len(world.wire.all("join")) == 2
    await world.clock.advance(2.1)
    assert world.wire.last("join")["since"] == at(2)
    world.wire.joined(recovered=True, events=missed(3, 4), position=at(4))
    assert take(stay.inbox) == [(3,), (4,)]


async def test_a_reset_that_finds_no_space_is_found_out_later() -> None:
    world = World(inbox=2)
    stay = world.joined(position=at(0))
    take(stay.inbox)
    for offset in (1, 2):
        world.wire.event(offset, position=at(offset))
    world.wire.say("reset", room="chat", reason="lost", position=at(1, "new"))
    assert len(stay.inbox) == 2
    take(stay.inbox)
    assert world.wire.last("join")["since"] == at(2), "where the reader is: the server says what became of it"


async def test_the_connections_own_events_are_bounded_and_a_lagging_reader_is_told_so() -> None:
    world = World(inbox=3)
    world.wire.accept()
    for number in range(10):
        world.wire.event(number, room=None)
    assert take(world.core.inbox) == [0, 1, 2, "reset: lagged"]
    world.wire.event("next", room=None)
    assert take(world.core.inbox) == ["next"]


# --- refusals, and the server's will --------------------------------------------------------------------------------


async def test_a_refused_room_is_over_and_can_be_tried_again() -> None:
    world = World()
    world.wire.accept()
    stay = world.core.join("chat")
    waiting = world.send(stay, 1)
    world.wire.refuse(world.wire.last("join"), "forbidden", message="members only")
    assert stay.state == "refused"
    assert isinstance(stay.error, Refused)
    assert waiting.error is stay.error
    assert take(stay.inbox) == ["end: forbidden"]
    with pytest.raises(Refused):
        world.send(stay, 2)
    assert world.core.join("chat") is not stay


@pytest.mark.parametrize("code", ["unavailable", "rate_limited", "expired"])
async def test_a_join_that_is_refused_for_the_moment_is_tried_again(code: str) -> None:
    world = World()
    world.joined(position=at(4))
    await world.relink()
    for _ in range(2):
        world.wire.refuse(world.wire.last("join"), code, retry_after=1.0)
        await world.clock.advance(1.1)
        assert world.wire.last("join")["since"] == at(4)
    assert len(world.wire.all("join")) == 3


async def test_a_repetition_of_a_join_does_not_outlive_its_link_or_its_room() -> None:
    world = World()
    world.wire.accept()
    stay = world.core.join("chat")
    world.wire.refuse(world.wire.last("join"), "unavailable", retry_after=5.0)
    world.core.leave(stay, Outcome())
    other = world.core.join("other")
    world.wire.refuse(world.wire.last("join"), "unavailable", retry_after=5.0)
    await world.relink()
    await world.clock.advance(6.0)
    assert [frame["room"] for frame in world.wire.all("join")] == ["other"]
    assert other.state == "joining"


async def test_a_meta_that_the_server_would_close_for_refuses_the_room_alone() -> None:
    world = World()
    world.wire.accept(message_bytes=200)
    stay = world.core.join("chat", meta="x" * 300)
    assert stay.state == "refused"
    assert world.state == "online"


async def test_a_room_that_the_server_ends_is_told_after_its_events_and_not_joined_again() -> None:
    world = World()
    stay = world.joined(position=at(0))
    world.wire.event(1, position=at(1))
    world.wire.say("left", room="chat", code="forbidden")
    assert take(stay.inbox) == [1, "end: forbidden"]
    assert stay.state == "left"
    await world.relink()
    assert world.wire.all("join") == []


async def test_a_client_that_is_closed_by_the_server_ends_its_rooms_with_the_reason() -> None:
    world = World()
    stay = world.joined()
    world.wire.close(4450, "revoked")
    assert take(stay.inbox) == ["end: the credentials were revoked (4450, revoked)"]
    assert take(world.core.inbox) == ["end: the credentials were revoked (4450, revoked)"]


async def test_stale_and_fresh_reach_a_room_or_all() -> None:
    world = World()
    one, other = world.joined("one"), world.joined("other")
    world.wire.say("stale", room="one")
    assert (one.stale, other.stale) == (True, False)
    world.wire.say("fresh", room="one")
    world.wire.say("stale")
    assert (one.stale, other.stale) == (True, True)
    assert world.stale_calls == [True, False, True]
    await world.relink()
    assert (one.stale, other.stale) == (False, False)
    world.wire.say("stale", room="nowhere")
    assert len(world.stale_calls) == 3


# --- rooms that the server joins ------------------------------------------------------------------------------------


async def test_the_users_room_speaks_through_the_client_and_resumes_with_auth() -> None:
    world = World()
    world.wire.accept()
    world.wire.say("joined", room="user:ann", recovered=False, events=[], position=at(2))
    world.wire.event("note", room="user:ann", position=at(3))
    world.wire.event("mine", room=None)
    assert take(world.core.inbox) == ["note", "mine"]
    world.wire.close()
    await world.clock.advance(0.25)
    world.wire.exchange.opened()
    assert world.wire.last("auth")["since"] == {"user:ann": at(3)}
    world.wire.welcome()
    world.wire.reply(world.wire.last("auth"), {"user": "ann", "expires_in": None, "session": "s2"})
    assert world.wire.all("join") == []
    event = {"type": "event", "event": "note", "data": "missed", "room": "user:ann", "position": at(4)}
    world.wire.say("joined", room="user:ann", recovered=True, events=[event], position=at(4))
    assert take(world.core.inbox) == [("missed",)]


async def test_the_users_room_catches_up_through_the_clients_inbox() -> None:
    world = World(inbox=2)
    world.wire.accept()
    world.wire.say("joined", room="user:ann", recovered=False, events=[], position=at(0))
    take(world.core.inbox)
    for offset in range(1, 6):
        world.wire.event(offset, room="user:ann", position=at(offset))
    assert take(world.core.inbox) == [1, 2]
    assert world.wire.last("join", "user:ann")["since"] == at(2)


async def test_what_the_users_room_cannot_catch_up_with_is_told_as_lost() -> None:
    world = World(inbox=2)
    world.wire.accept()
    world.wire.say("joined", room="user:ann", recovered=False, events=[], position=at(0))
    take(world.core.inbox)
    for offset in range(1, 6):
        world.wire.event(offset, room="user:ann", position=at(offset))
    assert take(world.core.inbox) == [1, 2]
    world.wire.refuse(world.wire.last("join", "user:ann"), "internal")
    world.wire.event(6, room="user:ann", position=at(6))
    assert take(world.core.inbox) == ["reset: lagged", 6]


async def test_a_room_that_the_server_joined_ends_when_it_is_not_joined_again() -> None:
    world = World()
    world.wire.accept()
    for name in ("a", "b", "c"):
        world.wire.say("joined", room=name, recovered=False, events=[], position=at(2))
    world.wire.say("joined", room="a", recovered=False, events=[], position=at(9))
    assert world.served_rooms == ["a", "b", "c"]
    stays = {name: world.core.rooms[name] for name in ("a", "b", "c")}
    await world.relink()
    world.wire.say("joined", room="a", recovered=True, events=[], position=at(2))
    world.wire.say("left", room="b", code="not_joined")
    assert (stays["a"].state, stays["b"].state, stays["c"].state) == ("joined", "left", "joining")
    await world.clock.advance(10.1)
    assert stays["c"].state == "left"
    assert isinstance(stays["c"].error, NotJoined)


async def test_only_so_many_positions_go_with_auth_as_the_server_takes() -> None:
    world = World()
    world.wire.accept()
    for number in range(120):
        world.wire.say("joined", room=f"r{number}", recovered=False, events=[], position=at(1))
    world.wire.close()
    await world.clock.advance(0.25)
    world.wire.exchange.opened()
    assert len(world.wire.last("auth")["since"]) == 100


async def test_the_rooms_that_a_server_may_join_a_client_to_are_bounded() -> None:
    world = World()
    world.wire.accept()
    for number in range(1_010):
        world.wire.say("joined", room=f"r{number}", recovered=False, events=[], position=None)
    assert len(world.core.rooms) == 1_000
    assert len(world.errors) == 10


# --- questions ------------------------------------------------------------------------------------------------------


async def test_a_question_goes_to_whom_it_is_asked_and_its_answer_back_on_its_link() -> None:
    world = World()
    stay = world.joined()
    world.wire.event(["a", "b"], event="pick", id=5)
    ((question, answer),) = world.questions
    assert question.event == "pick"
    answer("a", None)
    assert world.wire.last("reply") == {"type": "reply", "id": 5, "data": "a"}
    world.wire.event(1, room=None, event="pick", id=6)
    world.questions[-1][1](None, Refused("forbidden", "no"))
    assert world.wire.last("reply") == {"type": "reply", "id": 6, "error": {"code": "forbidden", "message": "no"}}
    world.wire.event(1, room=None, event="pick", id=7)
    world.questions[-1][1](float("nan"), None)
    assert world.wire.last("reply")["error"]["code"] == "internal"
    assert len(world.errors) == 1
    world.wire.event(1, event="pick", id=8)
    old = world.wire
    await world.relink()
    world.questions[-1][1]("late", None)
    assert old.last("reply")["id"] == 7
    assert world.wire.all("reply") == []
    assert take(stay.inbox) == []
