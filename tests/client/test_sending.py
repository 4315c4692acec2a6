"""Sending: order, keys, the bound, repetition, pacing, and the honest end of what was never answered."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Struct
from pydantic import BaseModel

from starlette_realtime import InvalidPayload, NotJoined, RateLimited, Refused
from starlette_realtime.client import QueueFull, Uncertain, UserChanged
from tests.client.support import Outcome, World, at


def data_of(world: World) -> list[Any]:
    return [frame["data"] for frame in world.wire.all("event")]


async def test_send_gives_the_replys_data_or_its_error() -> None:
    world = World()
    stay = world.joined()
    good = world.send(stay, {"text": "hi"})
    world.wire.reply(world.wire.last("event"), {"offset": 2})
    assert good.data == {"offset": 2}
    bad = world.send(stay, {})
    world.wire.refuse(world.wire.last("event"), "invalid_payload", message="no", fields={"text": "required"})
    assert isinstance(bad.error, Refused)
    assert (bad.error.code, bad.error.message, bad.error.fields) == ("invalid_payload", "no", {"text": "required"})


async def test_what_is_sent_is_what_it_was_when_send_was_called() -> None:
    world = World()
    message = {"text": "before"}
    world.send(None, message)
    message["text"] = "after"
    world.wire.accept()
    assert data_of(world) == [{"text": "before"}]


async def test_messages_of_a_room_go_out_one_at_a_time_those_of_others_beside_them() -> None:
    world = World()
    stay = world.joined()
    for value in (1, 2, 3):
        world.send(stay, value)
    world.send(None, 4)
    assert data_of(world) == [1, 4]
    world.wire.reply(world.wire.all("event")[0])
    assert data_of(world) == [1, 4, 2]


async def test_twenty_messages_sent_offline_come_in_order_once_there_is_a_connection() -> None:
    world = World()
    stay = world.joined()
    world.wire.close()
    sent = [world.send(stay, number) for number in range(20)]
    await world.clock.advance(600.0)
    while world.state != "connecting":
        await world.clock.advance(1.0)
    world.wire.accept()
    assert world.wire.all("event") == [], "not before the room is joined again"
    world.wire.joined(recovered=True)
    for number in range(20):
        world.wire.reply(world.wire.last("event"), number)
    assert [one.data for one in sent] == list(range(20)) == data_of(world)
    assert len({frame["key"] for frame in world.wire.all("event")}) == 20


async def test_what_was_not_answered_is_sent_again_with_its_key_before_what_came_later() -> None:
    world = World()
    stay = world.joined()
    first, second = world.send(stay, 1), world.send(stay, 2, key="mine")
    (frame,) = world.wire.all("event")
    await world.relink()
    world.wire.joined(recovered=True)
    assert world.wire.all("event")[0]["key"] == frame["key"]
    assert data_of(world) == [1]
    world.wire.reply(world.wire.last("event"), "a")
    assert world.wire.last("event")["key"] == "mine"
    world.wire.reply(world.wire.last("event"), "b")
    assert (first.data, second.data, first.calls, second.calls) == ("a", "b", 1, 1)


async def test_the_queue_is_bounded_and_says_so() -> None:
    world = World(queue=3)
    for value in (1, 2, 3):
        world.send(None, value)
    with pytest.raises(QueueFull, match="3 commands"):
        world.send(None, 4)


async def test_a_refusal_for_the_rate_keeps_the_order() -> None:
    world = World()
    stay = world.joined()
    sent = [world.send(stay, value) for value in (1, 2)]
    key = world.wire.last("event")["key"]
    world.wire.refuse(world.wire.last("event"), "rate_limited", retry_after=2.5)
    await world.clock.advance(2.49)
    assert data_of(world) == [1]
    await world.clock.advance(0.02)
    assert data_of(world) == [1, 1]
    assert world.wire.last("event")["key"] == key
    world.wire.reply(world.wire.last("event"), "a")
    world.wire.reply(world.wire.last("event"), "b")
    assert [one.data for one in sent] == ["a", "b"]


async def test_after_a_refusal_for_the_rate_lanes_go_out_one_by_one_and_more_with_each_success() -> None:
    world = World()
    for number in range(20):
        world.send(world.joined(f"r{number}"), number)
    assert len(world.wire.all("event")) == 16, "the window"
    for frame in world.wire.all("event"):
        world.wire.refuse(frame, "rate_limited", retry_after=1.0)
    assert len(world.wire.all("event")) == 17, "one that was not refused"
    await world.clock.advance(1.1)
    assert len(world.wire.all("event")) == 17
    for sent in (17, 19, 21):
        assert len(world.wire.all("event")) == sent
        world.wire.reply(world.wire.last("event"))


async def test_unavailable_is_tried_again_with_a_growing_pause() -> None:
    world = World()
    world.wire.accept()
    sent = world.send(None, 1)
    for pause in (0.25, 0.5, 1.0):
        world.wire.refuse(world.wire.last("event"), "unavailable")
        count = len(world.wire.all("event"))
        await world.clock.advance(pause - 0.01)
        assert len(world.wire.all("event")) == count
        await world.clock.advance(0.02)
        assert len(world.wire.all("event")) == count + 1
    world.wire.reply(world.wire.last("event"), "ok")
    assert sent.data == "ok"


async def test_an_entry_without_an_answer_is_uncertain_after_100_s_and_the_next_one_goes() -> None:
    world = World()
    stay = world.joined()
    first, second = world.send(stay, 1), world.send(stay, 2)
    for _ in range(5):
        await world.clock.advance(19.9)
        world.wire.say("ping")
    assert first.calls == 0
    await world.clock.advance(0.6)
    assert isinstance(first.error, Uncertain)
    assert data_of(world) == [1, 2]
    world.wire.reply(world.wire.all("event")[0], "late")
    assert (first.calls, second.calls) == (1, 0)


async def test_a_store_that_stays_unavailable_may_have_stored() -> None:
    world = World()
    world.wire.accept()
    sent = world.send(None, 1)
    while not sent.calls:
        world.wire.refuse(world.wire.last("event"), "unavailable", retry_after=30.0)
        for _ in range(3):
            await world.clock.advance(10.0)
            world.wire.say("ping")
    assert isinstance(sent.error, Uncertain)


async def test_nothing_is_repeated_that_the_server_may_have_forgotten() -> None:
    world = World()
    world.wire.accept()
    sent = world.send(None, 1)
    world.wire.close()
    world.clock._now += 101.0  # the machine slept, and its timers with it
    world.core.dialer.dial()
    world.wire.accept()
    assert isinstance(sent.error, Uncertain)
    assert world.wire.all("event") == []


async def test_what_was_never_written_waits_as_long_as_it_takes() -> None:
    world = World()
    sent = world.send(None, 1)
    await world.clock.advance(86_400.0)
    while world.state != "connecting":
        await world.clock.advance(1.0)
    world.wire.accept()
    world.wire.reply(world.wire.last("event"), "ok")
    assert sent.data == "ok"


async def test_a_time_limit_counts_from_the_call_offline_or_not() -> None:
    world = World()
    offline = world.send(None, 1, timeout=5.0)
    await world.clock.advance(5.1)
    assert isinstance(offline.error, TimeoutError)
    world.wire.accept()
    online = world.send(None, 2, timeout=5.0)
    await world.clock.advance(5.1)
    assert isinstance(online.error, TimeoutError)
    assert data_of(world) == [2]


async def test_a_rate_limit_beyond_the_100_s_is_the_servers_word_unless_an_answer_was_lost() -> None:
    world = World()
    world.wire.accept()
    plain = world.send(None, 1)
    world.wire.refuse(world.wire.last("event"), "rate_limited", retry_after=3_600.0)
    assert plain.code == "rate_limited"
    doubtful = world.send(None, 2)
    await world.relink()
    world.wire.refuse(world.wire.last("event"), "rate_limited", retry_after=3_600.0)
    assert isinstance(doubtful.error, Uncertain)


async def test_not_joined_is_an_answer() -> None:
    world = World()
    stay = world.joined()
    sent = world.send(stay, 1)
    world.wire.refuse(world.wire.last("event"), "not_joined")
    assert sent.code == "not_joined"


async def test_not_joined_while_the_room_is_being_joined_again_waits_for_the_join() -> None:
    world = World()
    world.wire.accept()
    world.wire.say("joined", room="served", recovered=False, events=[], position=at(1))
    stay = world.core.rooms["served"]
    sent = world.send(stay, 1)
    stay.state = "joining"
    world.wire.refuse(world.wire.last("event"), "not_joined")
    assert sent.calls == 0
    world.wire.say("joined", room="served", recovered=True, events=[], position=at(1))
    world.wire.reply(world.wire.last("event"), "ok")
    assert sent.data == "ok"


async def test_leaving_fails_what_waits_but_what_is_under_way_gets_its_answer() -> None:
    world = World()
    stay = world.joined()
    flying, waiting, left = world.send(stay, 1), world.send(stay, 2), Outcome()
    frame = world.wire.last("event")
    world.core.leave(stay, left)
    assert isinstance(waiting.error, NotJoined)
    assert flying.calls == 0
    world.wire.reply(frame, "ok")
    world.wire.reply(world.wire.last("leave"), {})
    assert flying.data == "ok"
    assert left.calls == 1
    with pytest.raises(NotJoined):
        world.send(stay, 3)
    again = Outcome()
    world.core.leave(stay, again)
    assert again.error is None
    assert len(world.wire.all("leave")) == 1


async def test_what_was_under_way_to_a_left_room_is_not_repeated() -> None:
    world = World()
    stay = world.joined()
    broken, left = world.send(stay, 1), Outcome()
    world.core.leave(stay, left)
    await world.relink()
    assert isinstance(broken.error, Uncertain)
    assert world.wire.all("event") == []
    assert (left.calls, left.error) == (1, None), "over is over"
    other = world.joined("other")
    refused = world.send(other, 1)
    frame = world.wire.last("event")
    world.core.leave(other, Outcome())
    world.wire.refuse(frame, "rate_limited", retry_after=1.0)
    assert refused.code == "rate_limited"


async def test_what_one_user_wrote_is_not_sent_in_the_name_of_another() -> None:
    world = World()
    stay = world.joined()
    flying, waiting = world.send(stay, 1), world.send(stay, 2)
    await world.relink(user="bob")
    assert isinstance(flying.error, Uncertain)
    assert isinstance(waiting.error, UserChanged)
    world.wire.joined(recovered=True)
    assert world.wire.all("event") == []


class Point(Struct):
    x: int


@dataclass
class Line:
    when: datetime


class Model(BaseModel):
    text: str


async def test_structs_dataclasses_and_models_are_sent_as_their_json() -> None:
    world = World()
    world.wire.accept()
    for value in (Point(1), Line(datetime(2026, 1, 2, tzinfo=UTC)), Model(text="é"), {1: (2.5, None)}):
        world.send(None, value)
        world.wire.reply(world.wire.last("event"))
    assert data_of(world) == [{"x": 1}, {"when": "2026-01-02T00:00:00Z"}, {"text": "é"}, {"1": [2.5, None]}]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "data",
    [
        math.nan,
        {"a": [math.inf]},
        2**53 + 1,
        "\ud800",
        {"\udfff": 1},
        nested(33),
        object(),
        {"a": print},
        nested(5_000),
    ],
    ids=range(9),
)
async def test_what_the_server_could_not_take_is_refused_before_it_is_sent(data: Any) -> None:
    world = World()
    world.wire.accept()
    with pytest.raises(InvalidPayload) as refused:
        world.send(None, data)
    assert "can't be sent" in refused.value.message
    with pytest.raises(InvalidPayload):
        world.core.send_volatile(None, "cursor", data)
    with pytest.raises(InvalidPayload):
        world.core.join("chat", meta=data)
    assert world.core.pending == 0


async def test_what_is_just_allowed_is_sent() -> None:
    world = World()
    world.wire.accept()
    for value in (2**53, nested(32), 1e308):
        world.send(None, value)
        world.wire.reply(world.wire.last("event"))
    assert len(data_of(world)) == 3


async def test_something_too_large_does_not_hold_up_what_follows() -> None:
    world = World()
    sent = [world.send(None, value) for value in ("é" * 100, "ok")]
    world.wire.accept(message_bytes=200)
    assert sent[0].code == "too_large"
    assert "200 bytes" in getattr(sent[0].error, "message", "")
    assert data_of(world) == ["ok"]


async def test_volatile_events_go_out_now_or_never() -> None:
    world = World()
    stay = world.core.join("chat")
    assert world.core.send_volatile(None, "cursor", 1) is False
    world.wire.accept()
    assert world.core.send_volatile(stay, "cursor", 2) is False, "not joined yet"
    world.wire.joined()
    assert world.core.send_volatile(stay, "cursor", 3) is True
    assert "key" not in world.wire.last("event")
    assert "id" not in world.wire.last("event")
    world.wire.waiting = 65_537
    assert world.core.send_volatile(stay, "cursor", 4) is False
    assert data_of(world) == [3]


async def test_only_the_newest_status_waits_and_each_join_tells_it_again() -> None:
    world = World()
    stay = world.core.join("chat")
    outcomes = [Outcome() for _ in range(300)]
    for number, outcome in enumerate(outcomes):
        stay.status, stay.meta = "away", number
        world.core.set_status(stay, outcome)
    assert world.core.pending == 1
    assert outcomes[0].data == {}
    world.wire.accept()
    assert {"status": "away", "meta": 299}.items() <= world.wire.last("join").items()
    world.wire.joined()
    world.wire.reply(world.wire.last("status"), {})
    assert outcomes[-1].data == {}
    await world.relink()
    assert world.wire.last("join")["status"] == "away"


async def test_a_forgotten_entry_is_not_written_unless_it_was_already() -> None:
    world = World()
    stay = world.joined()
    flying = world.core.send(stay, "message", 1, Outcome(), key=None, timeout=None)
    waiting = world.core.send(stay, "message", 2, Outcome(), key=None, timeout=None)
    world.core.forget(waiting)
    world.core.forget(flying)
    world.wire.reply(world.wire.last("event"))
    assert data_of(world) == [1]
    assert world.core.pending == 0


# --- the pace that the server tells ---------------------------------------------------------------------------------


async def test_with_nothing_left_everything_waits_as_long_as_the_server_said() -> None:
    world = World()
    stay = world.joined()
    world.wire.say("limits", remaining=0, retry_after=3.0)
    world.send(stay, 1)
    world.core.set_status(stay, Outcome())
    assert world.core.send_volatile(stay, "cursor", 2) is False
    await world.clock.advance(2.9)
    assert world.wire.all("event") == world.wire.all("status") == []
    await world.clock.advance(0.2)
    assert len(world.wire.all("event")) == 1
    assert world.limits_seen[0].retry_after == 3.0


async def test_an_event_that_is_named_waits_and_others_dont_but_a_rooms_order_holds() -> None:
    world = World()
    stay = world.joined()
    world.wire.say("limits", event="slow", remaining=0, retry_after=3.0)
    world.send(stay, "slow", event="slow")
    world.send(stay, "behind it")
    world.send(None, "elsewhere")
    assert data_of(world) == ["elsewhere"]
    await world.clock.advance(3.1)
    world.wire.reply(world.wire.last("event"))
    assert data_of(world) == ["elsewhere", "slow", "behind it"]


async def test_no_more_goes_out_at_once_than_is_left() -> None:
    world = World()
    stays = [world.joined(f"r{number}") for number in range(5)]
    world.wire.say("limits", remaining=2, retry_after=0.0)
    for stay in stays:
        world.send(stay, 1)
    assert len(world.wire.all("event")) == 2


async def test_news_that_something_is_left_ends_the_waiting_and_so_does_a_new_link() -> None:
    world = World()
    stay = world.joined()
    world.wire.say("limits", remaining=0, retry_after=50.0)
    world.send(stay, 1)
    world.wire.say("limits", remaining=5, retry_after=0.0)
    assert data_of(world) == [1]
    world.wire.say("limits", remaining=0, retry_after=50.0)
    await world.relink()
    world.wire.joined(recovered=True)
    assert data_of(world) == [1]


async def test_a_wait_that_is_too_long_is_the_applications_to_decide_on() -> None:
    world = World()
    world.wire.accept()
    world.wire.say("limits", remaining=0, retry_after=500.0)
    sent = world.send(None, 1)
    assert isinstance(sent.error, RateLimited)
    assert sent.error.retry_after == pytest.approx(500.0)


async def test_however_many_events_the_server_names_the_memory_is_bounded() -> None:
    world = World()
    world.wire.accept()
    for number in range(1_000):
        world.wire.say("limits", event=f"e{number}", remaining=0, retry_after=9.0)
    assert len(world.core._outbox._paces) == 64
    assert world.clock.timers <= 3


async def test_a_store_position_is_kept_as_it_is() -> None:
    world = World()
    world.joined(position=at(3))
    await world.relink()
    assert world.wire.last("join")["since"] == at(3)
