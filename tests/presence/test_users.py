"""Presence records are grouped by user."""

from msgspec import Raw

from starlette_realtime.messages import Entry
from starlette_realtime.presence import ConnectionPresence, by_user


def test_a_user_is_online_where_any_connection_is_and_shows_what_it_shows() -> None:
    entries = [
        Entry("1", "u:ann", "ann", "away", Raw(b'"first"'), 30),
        Entry("2", "u:bob", "bob", "away", since=10),
        Entry("3", "u:ann", "ann", "online", Raw(b'"second"'), 20),
        Entry("4", "u:ann", "ann", "online", since=40),
    ]
    ann, bob = by_user(entries)
    assert (ann.user, ann.status, ann.meta, ann.since) == ("ann", "online", "second", 20)
    assert [each.connection for each in ann.connections] == ["1", "3", "4"]
    assert (bob.user, bob.status, bob.meta, bob.since) == ("bob", "away", None, 10)
    assert bob.connections == (ConnectionPresence("2", "bob", "away", 10),)


def test_anonymous_peers_are_told_apart_by_what_they_are_counted_by() -> None:
    entries = [Entry("1", "s:one"), Entry("2", "s:two"), Entry("3", "s:one")]
    assert [[each.connection for each in user.connections] for user in by_user(entries)] == [["1", "3"], ["2"]]


def test_what_a_watcher_gets_is_grouped_as_well() -> None:
    members = [
        ConnectionPresence("1", "ann", "online", 0),
        ConnectionPresence("2", None, "online", 0),
        ConnectionPresence("3", None, "online", 0),
        ConnectionPresence("4", "ann", "away", 0),
    ]
    assert [len(user.connections) for user in by_user(members)] == [2, 1, 1]


def test_nobody_is_nobody() -> None:
    assert by_user([]) == []
