"""What a query says about time: the spans it names, the event it leans on, the newest, what was so once."""

from __future__ import annotations

import pytest

from localmem import dates
from localmem.timing import DAY, Asked, Span, asked, moments

NOW = dates.parse_instant("2025-06-10T12:00:00Z")  # a Tuesday


def spans(query: str) -> list[tuple[str | None, str | None]]:
    """The spans as dates, the end excluded."""
    return [(_day(span.start), _day(span.stop)) for span in asked(query, NOW).spans]


def _day(at: int | None) -> str | None:
    return None if at is None else dates.to_iso(at)[:10]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("What did I do last March?", [("2025-03-01", "2025-04-01")]),
        ("Where did Ana work in 2023?", [("2023-01-01", "2024-01-02")]),
        ("What happened on 5 July 2023?", [("2023-07-05", "2023-07-06")]),
        ("What is planned for next week?", [("2025-06-16", "2025-06-23")]),
        ("What did we eat between 3 and 5 May 2023?", [("2023-05-03", "2023-05-06")]),
        ("Who came between June 2022 and March 2023?", [("2022-06-01", "2023-04-01")]),
        ("What did I own before 2019?", [(None, "2019-01-01")]),
        ("What did I own after 2019?", [("2020-01-02", None)]),
        ("What did I own since 2019?", [("2019-01-01", None)]),
        ("until 5 June 2021", [(None, "2021-06-05")]),
        ("Was haben wir gestern gegessen?", [("2025-06-09", "2025-06-10")]),
        ("Where does Ana live?", []),
        ("", []),
    ],
)
def test_spans(query: str, expected: list[tuple[str | None, str | None]]) -> None:
    assert spans(query) == expected


@pytest.mark.parametrize(
    ("query", "event", "side"),
    [
        ("What did we own before I moved to Porto?", "I moved to Porto", -1),
        ("Who called after the party in the harbour?", "the party in the harbour", 1),
        ("What has Tom bought since Ana left?", "Ana left", 1),
        ("Was war vor dem Umzug?", "dem Umzug", -1),
        ("What did I buy before 2019?", "", 0),  # a date says it
        ("Which bus goes after ten?", "", 0),
        ("Which shop is before crossing roads", "", 0),
    ],
)
def test_events(query: str, event: str, side: int) -> None:
    found = asked(query, NOW)
    assert (found.event, found.side) == (event, side)


@pytest.mark.parametrize(
    ("query", "recent", "past"),
    [
        ("What does Ana currently drive?", True, False),
        ("What is the latest plan for the flat?", True, False),
        ("What did the user prefer before?", False, True),
        ("What was my old address?", False, True),
        ("Wo arbeitete sie früher?", False, True),
        ("Quel est son travail actuellement ?", True, False),
        ("What did I say the day before yesterday?", False, False),
        ("Where does Ana live?", False, False),
    ],
)
def test_the_newest_and_what_was_once(query: str, recent: bool, past: bool) -> None:
    found = asked(query, NOW)
    assert (found.recent, found.past) == (recent, past)


def test_fit_falls_with_the_distance() -> None:
    week = Span(10 * DAY, 17 * DAY)
    inside, near, far = (week.fit(day * DAY) for day in (12, 18, 40))
    assert inside == 1.0 > near > 0.4 > 0.01 > far
    assert Span(None, 10 * DAY).fit(0) == Span(10 * DAY, None).fit(99 * DAY) == 0.5
    assert Span(10 * DAY, None).fit(0) < 0.1
    assert Asked((week, Span(None, 5 * DAY))).fit([4 * DAY]) == 0.5
    assert Asked().fit([4 * DAY]) == Asked((week,)).fit([]) == 0.0


def test_moments_are_the_saying_and_the_dates_named() -> None:
    at = dates.parse_instant("2025-03-05T18:00:00Z")
    assert moments("Ana: I sold the boat", at) == (at,)
    said, named = moments("Ana: I sold the boat in May 2021", at)
    assert (said, dates.to_iso(named)[:7]) == (at, "2021-05")
    assert dates.to_iso(moments("we met yesterday", at)[1])[:10] == "2025-03-04"


def test_an_event_becomes_a_span() -> None:
    found = asked("What did we own before I moved to Porto?", NOW)
    assert found.beside(None) == found
    assert found.beside(7).spans == (Span(None, 7),)
    assert asked("What did we own after I moved?", NOW).beside(7).spans == (Span(7, None),)


def test_a_long_query_takes_no_time() -> None:
    assert asked("before " * 20_000 + "?" * 20_000, NOW).spans == ()
