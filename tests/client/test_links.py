"""One link after the other: tokens, the opening, close codes, backoff, draining, silence."""

import json
import random
from typing import Any

import pytest

from starlette_realtime import CLOSE_CODES, Refused
from starlette_realtime.client import TokenError, Uncertain
from starlette_realtime.errors import ConnectionClosed
from starlette_realtime.messages import NULL
from starlette_realtime.testing import FakeClock, settle
from tests.client.support import Outcome, World, at, take


@pytest.mark.parametrize("row", CLOSE_CODES.values(), ids=lambda row: row.name)
async def test_a_close_code_says_whether_to_come_back(row: Any) -> None:
    world = World()
    world.wire.accept()
    world.wire.close(row.code, row.name)
    if row.reconnect == "no":
        closed = world.core.dialer.closed
        assert world.state == "closed"
        assert closed is not None
        assert (closed.code, closed.reason, closed.message) == (row.code, row.name, row.meaning)
        assert isinstance(world.errors[-1], Refused)
        assert world.errors[-1].code == row.name
        assert world.clock.timers == 0
    else:
        assert (world.states[-1].state, world.states[-1].retry_in) == ("waiting", 0.25)
        await world.clock.advance(0.25)
        assert len(world.wires) == 2


@pytest.mark.parametrize("code", [1000, 1006, 1011, 3999, 4999])
async def test_an_unknown_code_is_tried_again(code: int) -> None:
    world = World()
    world.wire.accept()
    world.wire.close(code)
    assert (world.states[-1].state, world.states[-1].reason) == ("waiting", "connection_lost")
    await world.clock.advance(0.25)
    assert len(world.wires) == 2


async def test_the_backoff_doubles_up_to_its_bound_with_full_jitter() -> None:
    world = World()
    world.chance = 1.0
    waits = []
    for _ in range(9):
        world.wire.close()
        waits.append(world.states[-1].retry_in)
        await world.clock.advance(waits[-1] or 0.0)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0]
    world.chance = 0.0
    world.wire.close()
    assert world.states[-1].retry_in == 0.0


async def test_the_retries_of_many_clients_are_spread() -> None:
    chance = random.Random(7)
    clock = FakeClock()
    waits = []
    for _ in range(2_000):
        world = World(clock=clock, random=chance.random)
        for _ in range(5):  # the fifth wait is spread over 8 s
            world.wire.close()
            waits.append(world.states[-1].retry_in or 0.0)
            world.core.dialer.dial()
        world.core.close()
    last = waits[4::5]
    for second in range(8):
        share = sum(second <= wait < second + 1 for wait in last) / len(last)
        assert 0.09 < share < 0.16


async def test_a_server_that_accepts_and_drops_at_once_is_not_hammered() -> None:
    world = World()
    waits = []
    for _ in range(4):
        world.wire.accept()
        await world.clock.advance(9.9)
        world.wire.close()
        waits.append(world.states[-1].retry_in or 0.0)
        await world.clock.advance(waits[-1])
    assert waits == [0.25, 0.5, 1.0, 2.0]


async def test_a_link_that_held_starts_the_backoff_over_and_leaves_nothing_behind() -> None:
    world = World()
    for _ in range(3):
        world.wire.accept()
        await world.clock.advance(10.0)
        world.wire.close()
        assert world.states[-1].retry_in == 0.25
        assert world.clock.timers == 1, "the next try alone"
        await world.clock.advance(0.25)


async def test_a_refused_token_gets_one_new_one_and_a_second_refusal_is_final() -> None:
    world = World(tokens=True)
    world.give("old")
    world.wire.exchange.opened()
    world.wire.refuse(world.wire.last("auth"), "expired", message="the credentials have expired")
    assert world.states[-1].state == "waiting"
    await world.clock.advance(0.25)
    world.give("new")
    world.wire.exchange.opened()
    assert world.wire.last("auth")["token"] == "new"
    world.wire.refuse(world.wire.last("auth"), "unauthenticated", message="not you")
    closed = world.core.dialer.closed
    assert closed is not None
    assert (closed.code, closed.message) == (4401, "not you")
    assert str(closed) == "not you (4401, unauthenticated)"


async def test_an_auth_between_two_refusals_makes_the_second_a_first_one() -> None:
    world = World(tokens=True)
    for _ in range(3):
        world.give()
        world.wire.accept()
        world.wire.close(4401, "expired")
        assert world.states[-1].state == "waiting"
        await world.clock.advance(world.states[-1].retry_in or 0.0)


@pytest.mark.parametrize(
    ("code", "state"), [("unavailable", "waiting"), ("rate_limited", "waiting"), ("forbidden", "closed")]
)
async def test_an_auth_that_is_refused_ends_the_link_as_its_code_says(code: str, state: str) -> None:
    world = World()
    world.wire.exchange.opened()
    world.wire.welcome()
    world.wire.refuse(world.wire.last("auth"), code, retry_after=7.0)
    assert world.state == state
    if state == "waiting":
        assert world.states[-1].retry_in == pytest.approx(7.0 + 0.5 * 1.4)


async def test_the_delay_in_a_close_reason_is_kept_and_spread() -> None:
    world = World()
    world.wire.accept()
    world.wire.close(4429, "rate_limited;12.5")
    assert world.states[-1].retry_in == pytest.approx(12.5 + 0.5 * 2.5)
    assert world.states[-1].reason == "rate_limited"


@pytest.mark.parametrize("reason", ["rate_limited;soon", "rate_limited;nan", "rate_limited;-3", "rate_limited;inf"])
async def test_a_delay_that_is_none_holds_nobody_back_for_ever(reason: str) -> None:
    world = World()
    world.wire.accept()
    world.wire.close(4429, reason)
    assert 0.0 <= (world.states[-1].retry_in or 0.0) <= 1.2 * 86_400


async def test_a_draining_server_gets_its_clients_back_when_it_said_and_at_once() -> None:
    world = World()
    world.wire.accept()
    await world.clock.advance(10.0)
    world.wire.say("reconnect", after=4.0, reason="draining")
    await world.clock.advance(4.39)
    assert world.state == "online"
    await world.clock.advance(0.02)
    assert world.wires[0].dropped == 1012
    assert len(world.wires) == 2


async def test_a_server_that_closes_before_its_announced_delay_is_not_asked_earlier() -> None:
    world = World()
    world.wire.accept()
    await world.clock.advance(10.0)
    world.wire.say("reconnect", after=4.0, reason="draining")
    await world.clock.advance(1.0)
    world.wire.close(1012, "draining")
    assert world.states[-1].retry_in == pytest.approx(3.4)


async def test_several_addresses_are_tried_in_turn_with_session_and_positions() -> None:
    world = World(("ws://a/ws", "ws://b/ws"))
    world.joined("chat", position=at(4))
    await world.relink(session="s2")
    assert [wire.url for wire in world.wires] == ["ws://a/ws", "ws://b/ws"]
    assert world.wire.last("auth")["session"] == "s1"
    assert world.wire.last("join")["since"] == at(4)
    await world.relink()
    assert world.wire.url == "ws://a/ws"
    assert world.wire.last("auth")["session"] == "s2"


async def test_the_token_comes_before_the_socket_and_none_is_no_token() -> None:
    world = World(tokens=True)
    assert world.wires == []
    world.give(None)
    world.wire.exchange.opened()
    assert world.wire.sent == [{"id": 1, "type": "auth"}]


async def test_a_token_function_that_fails_is_told_and_asked_again() -> None:
    world = World(tokens=True)
    world.give(error=TokenError("no"))
    assert str(world.errors[-1]) == "no"
    assert (world.states[-1].state, world.states[-1].reason) == ("waiting", "token_failed")
    await world.clock.advance(0.25)
    world.give("t")
    assert len(world.wires) == 1


async def test_a_token_that_comes_after_the_close_opens_nothing() -> None:
    world = World(tokens=True)
    world.core.close()
    world.give("t")
    assert world.wires == []
    assert world.state == "closed"


async def test_expiring_renews_in_band_and_keeps_the_new_session() -> None:
    world = World(tokens=True)
    world.give("t1")
    world.wire.accept()
    world.wire.say("expiring", expires_in=60.0)
    world.give("t2")
    assert {"token": "t2", "session": "s1"}.items() <= world.wire.last("auth").items()
    world.wire.reply(world.wire.last("auth"), {"user": "ann", "expires_in": 600.0, "session": "s2"})
    world.wire.close()
    await world.clock.advance(0.25)
    world.give("t3")
    world.wire.exchange.opened()
    assert world.wire.last("auth")["session"] == "s2"


async def test_a_renewal_that_fails_is_repeated_until_it_works_or_the_link_ends() -> None:
    world = World(tokens=True)
    world.give("t1")
    world.wire.accept()
    world.wire.say("expiring", expires_in=60.0)
    world.give(error=TokenError("busy"))
    await world.clock.advance(0.25)
    world.give("t2")
    world.wire.refuse(world.wire.last("auth"), "unavailable")
    await world.clock.advance(0.5)
    world.give("t3")
    world.wire.reply(world.wire.last("auth"), {"user": "ann", "expires_in": 600.0, "session": "s2"})
    await world.clock.advance(30.0)
    assert world.asked == []
    assert [str(error) for error in world.errors] == ["busy", "unavailable: unavailable for now, try again"]
    world.wire.say("expiring", expires_in=60.0)
    world.give(error=TokenError("busy"))
    world.wire.close()
    await world.clock.advance(0.25)
    assert len(world.asked) == 1, "for the new link, not for the old one"


async def test_expiry_over_a_day_never_leaves_the_client_without_a_token() -> None:
    world = World(tokens=True)
    world.give("t0")
    world.wire.accept()
    for hour in range(24):
        await world.clock.advance(20.0)
        world.wire.say("ping")
        world.wire.say("expiring", expires_in=60.0)
        world.give(f"t{hour}")
        world.wire.reply(world.wire.last("auth"), {"user": "ann", "expires_in": 600.0, "session": f"s{hour}"})
    assert world.state == "online"
    assert len(world.wires) == 1
    assert world.errors == []


async def test_refresh_tells_how_it_went() -> None:
    world = World(tokens=True)
    offline = Outcome()
    world.core.dialer.refresh(offline)
    assert (offline.calls, offline.error) == (1, None), "the next link asks anyway"
    world.give("t1")
    world.wire.accept()
    failed, refused, broken = Outcome(), Outcome(), Outcome()
    world.core.dialer.refresh(failed)
    world.give(error=TokenError("no"))
    assert isinstance(failed.error, TokenError)
    world.core.dialer.refresh(refused)
    world.give("t2")
    world.wire.refuse(world.wire.last("auth"), "forbidden")
    assert refused.code == "forbidden"
    world.core.dialer.refresh(broken)
    world.wire.close()
    world.give("t3")
    assert isinstance(broken.error, ConnectionClosed)


async def test_a_ping_is_answered_and_every_frame_is_a_sign_of_life() -> None:
    world = World()
    world.wire.accept(heartbeat=25.0)
    world.wire.say("ping")
    assert world.wire.sent[-1] == {"type": "pong"}
    await world.clock.advance(39.9)
    world.wire.say("something_new", of="a later version")
    await world.clock.advance(39.9)
    assert world.state == "online"
    await world.clock.advance(0.2)
    assert (world.states[-1].state, world.states[-1].reason) == ("waiting", "silent")
    assert world.wire.dropped == 1006


async def test_without_a_heartbeat_silence_says_nothing() -> None:
    world = World()
    world.wire.accept(heartbeat=0.0)
    await world.clock.advance(86_400.0)
    assert world.state == "online"


async def test_an_opening_without_an_answer_is_given_up_whatever_else_arrives() -> None:
    world = World()
    world.wire.exchange.opened()
    await world.clock.advance(10.0)
    world.wire.welcome()
    await world.clock.advance(4.9)
    assert world.state == "connecting"
    await world.clock.advance(0.2)
    assert world.states[-1].reason == "silent"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"type":"event"}', '{"type":"reply","id":"x"}', "\ud800", '{"type":1}', "[" * 100_000],
    ids=range(8),
)
async def test_a_frame_that_cannot_be_read_ends_the_link_since_it_may_have_been_an_event(text: str) -> None:
    world = World()
    world.wire.accept()
    world.wire.exchange.received(text)
    assert (world.states[-1].state, world.states[-1].reason) == ("waiting", "bad_frame")
    world.wires[0].exchange.received('{"type":"ping"}')
    assert {"type": "pong"} not in world.wires[0].sent, "what a given-up socket still says is not heard"


async def test_a_reply_that_is_none_ends_the_link() -> None:
    world = World()
    world.wire.accept()
    world.core.join("chat")
    world.wire.reply(world.wire.last("join"), {"events": "none"})
    assert world.states[-1].reason == "bad_frame"


async def test_a_late_answer_to_an_old_link_harms_nobody() -> None:
    world = World()
    world.wire.accept()
    stay = world.core.join("chat")
    join = world.wire.last("join")
    old = world.wire
    await world.relink()
    old.reply(join, {"recovered": False, "events": [], "position": at(9)})
    assert stay.state == "joining"


async def test_an_error_without_an_id_is_told_and_gives_its_words_to_the_close() -> None:
    world = World()
    world.wire.accept()
    world.wire.say("error", code="forbidden", message="you were asked to leave")
    assert isinstance(world.errors[-1], Refused)
    assert world.errors[-1].message == "you were asked to leave"
    world.wire.close(4403, "forbidden")
    assert world.states[-1].message == "you were asked to leave"
    assert len(world.errors) == 1, "not twice"


async def test_an_earlier_complaint_is_not_taken_for_the_reason_of_the_close() -> None:
    world = World()
    world.wire.accept()
    world.wire.say("error", code="bad_frame", message="what was that")
    world.wire.close(4403, "forbidden")
    assert world.states[-1].message == "refused by origin or rule, or removed by the server"


async def test_nothing_at_the_address_is_final_unless_something_was_there_before() -> None:
    world = World()
    world.wire.close(4403, "not_found")
    assert world.state == "closed"
    assert "mounted" in world.states[-1].message
    deployed = World()
    deployed.wire.accept()
    deployed.wire.close()
    await deployed.clock.advance(0.25)
    deployed.wire.close(4403, "not_found")
    assert deployed.state == "waiting"


async def test_close_ends_everything_and_says_so() -> None:
    world = World()
    stay = world.joined()
    sent, waits = world.send(stay, 1), world.send(stay, 2)
    world.core.close()
    assert isinstance(sent.error, Uncertain)
    assert waits.error is world.core.dialer.closed
    assert world.states[-1].state == "closed"
    assert world.wire.dropped == 1000
    assert take(stay.inbox) == ["end: None"]
    assert take(world.core.inbox) == ["end: None"]
    assert world.clock.timers == 0
    assert world.core.rooms == {}
    world.core.close()
    assert [change.state for change in world.states].count("closed") == 1
    late = world.core.join("late")
    assert late.state == "left"
    with pytest.raises(ConnectionClosed):
        world.send(None, 3)


async def test_only_the_applications_close_is_a_normal_one() -> None:
    world = World()
    world.wire.accept()
    world.wire.exchange.end(1006, "silent")
    assert world.wire.dropped == 1006


async def test_a_stuck_socket_is_given_up() -> None:
    world = World()
    world.wire.accept()
    world.wire.waiting = 9 * 1024 * 1024
    assert world.core.send_volatile(None, "cursor", 1) is False
    sent = world.send(None, 1)
    assert world.states[-1].reason == "stuck"
    assert sent.calls == 0
    await world.clock.advance(0.25)
    world.wire.accept()
    world.wire.reply(world.wire.last("event"), "ok")
    assert sent.data == "ok"


async def test_nothing_piles_up_over_a_day_of_broken_links() -> None:
    world = World()
    chance = random.Random(3)
    stay = world.joined()
    began = world.clock.now()
    while world.clock.now() - began < 86_400.0:
        await world.clock.advance(chance.random() * 300)
        if world.state == "online" and chance.random() < 0.7:
            world.wire.close()
        elif world.state == "connecting":
            world.wire.accept()
            world.wire.joined(recovered=True)
        del world.wires[:-1], world.states[:-1]
    assert world.clock.timers <= 3
    assert len(stay.inbox) <= 1_024
    assert world.core.pending == 0
    await settle()


async def test_frames_are_what_the_protocol_says() -> None:
    world = World()
    world.wire.accept()
    stay = world.core.join("chat", meta={"colour": "teal"}, status="away")
    assert world.wire.last("join") == {
        "id": 2,
        "type": "join",
        "room": "chat",
        "meta": {"colour": "teal"},
        "status": "away",
    }
    world.wire.joined()
    world.send(stay, None, key="k")
    assert world.wire.last("event") == {
        "id": 3,
        "type": "event",
        "room": "chat",
        "event": "message",
        "data": None,
        "key": "k",
    }
    assert json.loads(bytes(NULL)) is None
