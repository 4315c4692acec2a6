"""The contract, part one: publishing, idempotency, history, reading, paging."""

import asyncio

import pytest

from starlette_realtime.messages import Entry, History, Position
from starlette_realtime.testing.contract.harness import KEPT, Heard, StoreHarness

__all__ = ["PublicationContract"]


class PublicationContract(StoreHarness):
    """Positions, keys, history."""

    async def test_offsets_rise_by_one_and_name_their_predecessor(self) -> None:
        async with self.node() as store:
            topic = self.name()
            start = (await store.read(topic, since=None, limit=0)).position
            positions = [await store.publish(topic, b"%d" % number, history=KEPT) for number in range(5)]
            assert (start.offset, start.id) == (0, "")
            assert [position.offset for position in positions] == [1, 2, 3, 4, 5]
            assert {position.epoch for position in positions} == {start.epoch}
            recovery = await store.read(topic, since=start, limit=10)
            assert [row.position for row in recovery.publications] == positions
            assert [row.previous for row in recovery.publications] == ["", *(row.id for row in positions[:-1])]
            assert len({position.id for position in positions}) == 5

    async def test_any_text_is_a_topic_and_any_bytes_are_data(self) -> None:
        async with self.node() as store:
            data = bytes(range(256))
            for topic in ("}x", "{a}b", "a b", "ü:1", "*", "a%2Fb", "a/b", "x" * 500, "line\nbreak", "\x00"):
                topic = self.name() + topic
                start = (await store.read(topic, since=None, limit=0)).position
                await store.publish(topic, data, history=KEPT)
                assert [row.data for row in (await store.read(topic, since=start, limit=9)).publications] == [data]

    async def test_topics_do_not_touch_each_other(self) -> None:
        async with self.node() as store:
            one, two = self.name(), self.name()
            start = (await store.read(two, since=None, limit=0)).position
            await store.publish(one, b"1", history=KEPT)
            assert (await store.read(two, since=None, limit=0)).position == start

    async def test_the_same_key_publishes_once_from_any_process(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            start = (await one.read(topic, since=None, limit=0)).position
            first = await one.publish(topic, b"first", history=KEPT, producer="u:a", key="k")
            await one.publish(topic, b"between", history=KEPT)
            assert await one.publish(topic, b"again", history=KEPT, producer="u:a", key="k") == first
            assert await two.publish(topic, b"again", history=KEPT, producer="u:a", key="k") == first
            recovery = await two.read(topic, since=start, limit=10)
            assert [row.data for row in recovery.publications] == [b"first", b"between"]

    async def test_a_publication_whose_answer_was_lost_is_repeated_and_made_once(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            start = (await one.read(topic, since=None, limit=0)).position
            await two.subscribe(topic, heard)
            await self.lose_answers(one, 1)
            first = await self.repeated(lambda: one.publish(topic, b"1", history=KEPT, producer="u:a", key="k"))
            await one.publish(topic, b"2", history=KEPT, producer="u:a", key="k2")
            assert await two.publish(topic, b"again", history=KEPT, producer="u:a", key="k") == first
            assert [row.data for row in (await two.read(topic, since=start, limit=9)).publications] == [b"1", b"2"]
            await self.until(lambda: len(heard) >= 2)
            await self.quiet()
            assert heard.data == [b"1", b"2"]

    async def test_many_processes_that_publish_the_same_key_at_once_publish_it_once(self) -> None:
        async with self.nodes(3) as stores:
            topic = self.name()
            positions = await asyncio.gather(
                *(stores[number % 3].publish(topic, b"1", history=KEPT, producer="u:a", key="k") for number in range(9))
            )
            assert len(set(positions)) == 1
            assert (await stores[0].read(topic, since=None, limit=0)).position == positions[0]

    async def test_no_part_of_a_key_is_taken_for_another(self) -> None:
        async with self.node() as store:
            topic, other = self.name(), self.name()
            calls = [("a", "bc", 0), ("ab", "c", 0), ("a", "b", 0), ("a", "b", 1), ("a", "b:1", 0), ("a:b", "1", 0)]
            for producer, key, n in calls:
                await store.publish(topic, b"", history=KEPT, producer=producer, key=key, n=n)
            assert (await store.read(topic, since=None, limit=0)).position.offset == len(calls)
            assert (await store.publish(other, b"", history=KEPT, producer="a", key="b")).offset == 1

    async def test_without_a_key_every_publication_counts(self) -> None:
        async with self.node() as store:
            topic = self.name()
            first = await store.publish(topic, b"same", history=KEPT, producer="u:a")
            assert (await store.publish(topic, b"same", history=KEPT, producer="u:a")).offset == first.offset + 1

    async def test_a_key_is_known_for_its_time_and_no_longer(self) -> None:
        async with self.node() as store:
            topic, long = self.name(), History(size=8, ttl=self.dedupe * 4)
            first = await store.publish(topic, b"1", history=long, key="k")
            await self.advance(self.dedupe * 0.6)
            assert await store.publish(topic, b"2", history=long, key="k") == first
            await self.advance(self.dedupe * 0.6)
            assert (await store.publish(topic, b"3", history=long, key="k")).offset == 2

    async def test_a_volatile_publication_is_heard_and_not_kept(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            start = (await one.read(topic, since=None, limit=0)).position
            await two.subscribe(topic, heard)
            await one.publish_volatile(topic, b"typing")
            await self.until(lambda: heard.data == [b"typing"])
            assert heard.publications[0].position is None
            assert heard.publications[0].at > 0
            assert (await one.read(topic, since=start, limit=9)).publications == ()
            assert (await one.read(topic, since=None, limit=0)).position == start

    async def test_a_publication_is_the_same_live_and_read_later(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, heard = self.name(), Heard()
            await two.subscribe(topic, heard)
            start = (await one.read(topic, since=None, limit=0)).position
            await one.publish(topic, b"1", history=KEPT)
            await one.publish(topic, b"2", history=KEPT)
            await self.until(lambda: len(heard) == 2)
            assert (await one.read(topic, since=start, limit=9)).publications == tuple(heard)

    async def test_a_reader_at_the_top_has_missed_nothing(self) -> None:
        async with self.node() as store:
            topic = self.name()
            top = await store.publish(topic, b"1", history=KEPT)
            recovery = await store.read(topic, since=top, limit=0)
            assert (recovery.publications, recovery.position, recovery.complete) == ((), top, True)

    async def test_a_reader_gets_exactly_what_it_missed(self) -> None:
        async with self.nodes(2) as (one, two):
            topic = self.name()
            positions = [await one.publish(topic, b"%d" % number, history=KEPT) for number in range(10)]
            for index, position in enumerate(positions):
                recovery = await two.read(topic, since=position, limit=10)
                assert recovery.complete
                assert recovery.position == positions[-1]
                assert [row.position for row in recovery.publications] == positions[index + 1 :]

    async def test_a_reader_behind_the_history_is_told_so(self) -> None:
        async with self.node() as store:
            topic, short = self.name(), History(size=2, ttl=60.0)
            positions = [await store.publish(topic, b"%d" % number, history=short) for number in range(5)]
            for position, complete in zip(positions, (False, False, True, True, True), strict=True):
                recovery = await store.read(topic, since=position, limit=10)
                assert recovery.complete is complete
                assert recovery.position == positions[-1]
                assert complete or (recovery.publications, recovery.reason) == ((), "trimmed")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"epoch": "another"}, "forgotten"),
            ({"id": "another"}, "rewound"),
            ({"offset": 2, "id": "another"}, "rewound"),
            ({"offset": 9}, "rewound"),
            ({"offset": 0}, "rewound"),
        ],
    )
    async def test_a_position_that_never_was_recovers_nothing(self, change: dict[str, object], reason: str) -> None:
        async with self.node() as store:
            topic = self.name()
            await store.publish(topic, b"1", history=KEPT)
            await store.publish(topic, b"2", history=KEPT)
            top = await store.publish(topic, b"3", history=KEPT)
            fields: dict[str, object] = {"epoch": top.epoch, "offset": top.offset, "id": top.id, **change}
            since = Position(**fields)  # type: ignore[arg-type]
            recovery = await store.read(topic, since=since, limit=10)
            assert (recovery.complete, recovery.publications, recovery.position) == (False, (), top)
            assert recovery.reason == reason

    async def test_a_reader_who_missed_too_much_gets_none_of_it(self) -> None:
        async with self.node() as store:
            topic = self.name()
            first = await store.publish(topic, b"x" * 100, history=KEPT)
            for _ in range(4):
                await store.publish(topic, b"x" * 100, history=KEPT)
            for limit, limit_bytes, complete in ((4, 400, True), (3, 400, False), (4, 399, False)):
                recovery = await store.read(topic, since=first, limit=limit, limit_bytes=limit_bytes)
                assert recovery.complete is complete
                assert len(recovery.publications) == (4 if complete else 0)
                assert recovery.reason == ("" if complete else "too_many")

    async def test_those_who_join_recover_what_a_reader_reads(self) -> None:
        async with self.nodes(2) as (one, two):
            topic, short = self.name(), History(size=6, ttl=60.0)
            before = [await one.publish(topic, b"%d" % number, history=short) for number in range(4)]
            await two.subscribe(topic, Heard())
            positions = before + [await one.publish(topic, b"%d" % number, history=short) for number in range(4, 9)]
            await self.until(lambda: two.position(topic) == positions[-1])
            top = positions[-1]
            wrong = [Position("another", 3, "x"), Position(top.epoch, 5, "x"), Position(top.epoch, 9, "x")]
            for store in (one, two):  # one where nobody hears it, and one where somebody does
                for since in (None, *positions, *wrong, *reversed(positions)):
                    for limit in (3, 100):
                        recovery = await store.recover(topic, since=since, limit=limit, history=short)
                        assert recovery == await one.read(topic, since=since, limit=limit)
                found = await asyncio.gather(
                    *(store.recover(topic, since=since, limit=100, history=short) for since in [*positions, *wrong] * 5)
                )
                expected = [await one.read(topic, since=since, limit=100) for since in [*positions, *wrong]]
                assert list(found) == expected * 5

    async def test_where_many_topics_are_is_told_at_once(self) -> None:
        async with self.nodes(2) as (one, two):
            topics = [self.name() for _ in range(64)]
            await asyncio.gather(*(one.publish(topic, b"1", history=KEPT) for topic in topics[::2]))
            await asyncio.gather(*(one.enter(topic, [Entry("a", "u:a")]) for topic in topics[::3]))
            found = await two._where(topics)
            assert len(found) == len(topics)
            for topic, (position, sequence) in zip(topics, found, strict=True):
                assert position == (await one.read(topic, since=None, limit=0)).position
                assert sequence == (await one.members(topic, limit=0)).seq
            assert {position.offset for position, _ in found} == {0, 1}
            assert [sequence > 0 for _, sequence in found] == [number % 3 == 0 for number in range(64)]

    async def test_a_history_lives_its_time_from_the_last_publication(self) -> None:
        async with self.node() as store:
            topic, brief = self.name(), History(size=8, ttl=2.0)
            first = await store.publish(topic, b"1", history=brief)
            await self.advance(1.5)
            second = await store.publish(topic, b"2", history=brief)
            await self.advance(1.5)
            assert (await store.read(topic, since=first, limit=9)).complete
            await self.advance(1.0)
            late = await store.read(topic, since=first, limit=9)
            assert (late.complete, late.reason, late.position) == (False, "trimmed", second)
            assert (await store.read(topic, since=second, limit=9)).complete
            assert (await store.publish(topic, b"3", history=brief)).offset == 3
            assert not (await store.read(topic, since=first, limit=9)).complete
            assert len((await store.read(topic, since=second, limit=9)).publications) == 1

    async def test_a_position_outlives_its_history(self) -> None:
        async with self.node() as store:
            topic, none = self.name(), History(size=0, ttl=1.0)
            first = await store.publish(topic, b"1", history=none)
            await self.advance(5.0)
            assert (await store.publish(topic, b"2", history=none)).epoch == first.epoch

    async def test_pages_lead_back_to_the_beginning(self) -> None:
        async with self.node() as store:
            topic = self.name()
            for number in range(7):
                await store.publish(topic, b"%d" % number, history=KEPT)
            pages, before = list[list[bytes]](), None
            while True:
                page = await store.page(topic, before=before, limit=3)
                pages.append([row.data for row in page.publications])
                assert not page.truncated
                if not page.more:
                    break
                before = page.publications[0].position
            assert pages == [[b"4", b"5", b"6"], [b"1", b"2", b"3"], [b"0"]]

    async def test_a_page_says_where_the_history_was_cut_off(self) -> None:
        async with self.node() as store:
            topic, short = self.name(), History(size=3, ttl=60.0)
            positions = [await store.publish(topic, b"%d" % number, history=short) for number in range(5)]
            page = await store.page(topic, before=None, limit=2)
            assert ([row.data for row in page.publications], page.more, page.truncated) == ([b"3", b"4"], True, False)
            page = await store.page(topic, before=positions[3], limit=2)
            assert ([row.data for row in page.publications], page.more, page.truncated) == ([b"2"], False, True)
            for lost in (positions[0], positions[1], Position("another", 4, "x"), Position(positions[4].epoch, 4, "x")):
                page = await store.page(topic, before=lost, limit=2)
                assert (page.publications, page.more, page.truncated) == ((), False, True)

    async def test_a_page_is_bounded_in_bytes_and_never_empty_for_it(self) -> None:
        async with self.node() as store:
            topic = self.name()
            for _ in range(3):
                await store.publish(topic, b"x" * 100, history=KEPT)
            page = await store.page(topic, before=None, limit=3, limit_bytes=250)
            assert (len(page.publications), page.more) == (2, True)
            page = await store.page(topic, before=None, limit=3, limit_bytes=10)
            assert (len(page.publications), page.more) == (1, True)

    async def test_an_empty_topic_has_an_empty_page(self) -> None:
        async with self.node() as store:
            topic = self.name()
            start = (await store.read(topic, since=None, limit=0)).position
            for before in (None, start):
                page = await store.page(topic, before=before, limit=3)
                assert (page.publications, page.more, page.truncated) == ((), False, False)
