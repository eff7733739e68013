"""Date phrases mean what a reader on the day they were said would take them to mean; the clock is never asked."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmem import dates
from localmem.errors import InvalidInputError

WEDNESDAY = dates.parse_instant("2025-03-05T14:00:00Z")


def values(text: str, at: int = WEDNESDAY) -> list[str]:
    return [phrase.value for phrase in dates.resolve(text, at)]


# --- resolve ---


@pytest.mark.parametrize(
    ("text", "value", "granularity"),
    [
        ("I saw him yesterday", "2025-03-04", "day"),
        ("the day before yesterday it rained", "2025-03-03", "day"),
        ("see you the day after tomorrow", "2025-03-07", "day"),
        ("last night was loud", "2025-03-04", "day"),
        ("we met last Friday", "2025-02-28", "day"),
        ("by next Friday", "2025-03-07", "day"),
        ("next Thursday is the biopsy", "2025-03-13", "day"),  # tomorrow is Thursday: nobody calls it next
        ("this Friday", "2025-03-07", "day"),
        ("Tuesday next week works", "2025-03-11", "day"),
        ("I had physio on Monday", "2025-03-03", "day"),
        ("I'll have physio on Monday", "2025-03-10", "day"),
        ("I move next month", "2025-04", "month"),
        ("last month I moved", "2025-02", "month"),
        ("two weeks ago we met", "2025-02-17", "week"),
        ("I met her 3 months ago", "2024-12", "month"),
        ("five years ago", "2020", "year"),
        ("in 3 days I fly", "2025-03-08", "day"),
        ("in two weeks I fly", "2025-03-19", "day"),
        ("last week was hard", "2025-02-24", "week"),
        ("next week I am off", "2025-03-10", "week"),
        ("last year we married", "2024", "year"),
        ("next year I retire", "2026", "year"),
        ("I have lived here since 2019", "2019", "year"),
        ("we are away this weekend", "2025-03-08", "day"),
        ("last weekend we hiked", "2025-03-01", "day"),
        ("tomorrow at 9", "2025-03-06T09:00", "time"),
        ("tomorrow at 9:30pm", "2025-03-06T21:30", "time"),
        ("the course starts in June", "2025-06", "month"),
        ("the course starts next February", "2026-02", "month"),
        ("she got her chair in February", "2025-02", "month"),
        ("the exam is on 12 September", "2025-09-12", "day"),
        ("rent goes up Oct 1", "2025-10-01", "day"),
        ("he died on 30 November", "2024-11-30", "day"),
        ("I moved in on the 1st", "2025-03-01", "day"),
        ("the appointment is on the 14th", "2025-03-14", "day"),
        ("May 5, 2021 was the day", "2021-05-05", "day"),
        ("in May 2021 we met", "2021-05", "month"),
        ("last summer in Greece", "summer 2024", "season"),
        ("2025-10-10 at the latest", "2025-10-10", "day"),
        ("on 24.12.2025", "2025-12-24", "day"),
        ("we stayed home at Christmas", "2024-12-25", "day"),
        ("at Easter we will go to Rome", "2025-04-20", "day"),
    ],
)
def test_english_phrases(text: str, value: str, granularity: str) -> None:
    phrases = dates.resolve(text, WEDNESDAY)
    assert [(phrase.value, phrase.granularity) for phrase in phrases] == [(value, granularity)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ich war gestern beim Arzt", "2025-03-04"),
        ("nächste Woche Montag fliege ich", "2025-03-10"),
        ("ich bin letztes Jahr umgezogen", "2024"),
        ("ab dem 14. April arbeite ich wieder", "2025-04-14"),
        ("vor drei Tagen kam er", "2025-03-02"),
        ("J'ai vu le médecin hier", "2025-03-04"),
        ("le mois prochain je déménage", "2025-04"),
        ("il y a deux ans je vivais à Lyon", "2023"),
        ("el mes pasado fui a Roma", "2025-02"),
        ("el 14 de junio se casa mi hermana", "2025-06-14"),
        ("ieri ho visto mia zia", "2025-03-04"),
        ("la settimana prossima sono in ferie", "2025-03-10"),
        ("ontem fui ao médico", "2025-03-04"),
        ("na semana que vem eu viajo", "2025-03-10"),
        ("gisteren was ik bij de tandarts", "2025-03-04"),
        ("volgende maand verhuis ik naar het noorden", "2025-04"),
        ("Я был у врача вчера", "2025-03-04"),
        ("昨日医者に行きました", "2025-03-04"),
    ],
)
def test_other_languages(text: str, value: str) -> None:
    assert values(text) == [value]


@pytest.mark.parametrize(
    "text",
    [
        "it may rain and she may come",
        "march on, soldier",
        "one second please",
        "the sun is out",
        "I'm 40",
        "open 24/7",
        "version 3.11 is out",
        "call 555-0199",
        "call +49 151 23456789",
        "the 5th floor, the 3rd attempt",
        "I walked 2000 steps",
        "April is my sister's name",
        "9am is too early",
        "4/5/2025",  # April or May: no answer
        "Hier ist es schön und warm",  # "yesterday" only in French
        "good morning to you",
        "31 June",
    ],
)
def test_what_is_no_date(text: str) -> None:
    assert values(text) == []


def test_phrases_do_not_overlap_and_lie_where_they_say() -> None:
    text = "We moved last Friday, the keys come on the 10th, and from 11 to 13 March I am in Porto."
    phrases = dates.resolve(text, WEDNESDAY)
    assert [phrase.value for phrase in phrases] == ["2025-02-28", "2025-03-10", "2025-03-11", "2025-03-13"]
    assert all(text[phrase.start : phrase.end] == phrase.phrase for phrase in phrases)
    assert all(a.end <= b.start for a, b in itertools.pairwise(phrases))


def test_the_sort_key_is_where_the_span_begins() -> None:
    (phrase,) = dates.resolve("last month", WEDNESDAY)
    assert dates.to_iso(phrase.sort_key) == "2025-02-01T00:00:00Z"


def test_the_clock_is_never_asked() -> None:
    assert values("yesterday", dates.parse_instant("1999-01-01")) == ["1998-12-31"]
    assert values("29 February", dates.parse_instant("2025-03-05"))[0].endswith("-02-29")


@given(st.text(max_size=80), st.integers(dates.FIRST, dates.LAST))
def test_any_text_at_any_time_is_survived(text: str, at: int) -> None:
    for phrase in dates.resolve(text, at):
        assert text[phrase.start : phrase.end] == phrase.phrase
    assert isinstance(dates.rewrite(text, at), str)
    assert isinstance(dates.readings(text, at), frozenset)


WORDS = [
    "on",
    "the",
    "next",
    "last",
    "Friday",
    "12",
    "March",
    "of",
    "in",
    "2019",
    "yesterday",
    "since",
    "weekend",
    "may",
    "week",
    "at",
    "9",
    "5th",
    "and",
    "to",
    "two",
    "weeks",
    "ago",
]


@given(st.lists(st.sampled_from(WORDS), max_size=10).map(" ".join), st.integers(dates.FIRST, dates.LAST))
def test_any_mixture_of_date_words_is_survived(text: str, at: int) -> None:
    phrases = dates.resolve(text, at)
    assert all(a.end <= b.start for a, b in itertools.pairwise(phrases))
    dates.readings(text, at)
    dates.rewrite(text, at)


def test_readings_hold_both_directions_and_the_ends_of_a_month() -> None:
    read = dates.readings("we meet on Friday, and by the end of May I move", WEDNESDAY)
    assert {"2025-02-28", "2025-03-07", "2025-05", "2025-05-31"} <= read


# --- rewrite ---


@pytest.mark.parametrize(
    ("fact", "written"),
    [
        ("User saw the dentist yesterday", "User saw the dentist on 2025-03-04"),
        ("User plans to move next month", "User plans to move in April 2025"),
        ("User was in Rome last year", "User was in Rome in 2024"),
        ("User met Ana last week", "User met Ana in the week of 2025-02-24"),
        ("User must pay by next Friday", "User must pay by 2025-03-07"),
        ("User has been off since last Monday", "User has been off since 2025-03-03"),
        ("User has physio on Tuesday", "User has physio on 2025-03-11"),
        ("User flies tomorrow at 9", "User flies on 2025-03-06 at 9"),
        ("Yesterday User saw Ana", "On 2025-03-04 User saw Ana"),
        ("User liked last year's trip", "User liked the 2024 trip"),
        ("User starts on the 10th", "User starts on 2025-03-10"),
        ("User went to Greece last summer", "User went to Greece in summer 2024"),
        ("User visits Ana this weekend", "User visits Ana on the weekend of 2025-03-08"),
        ("User wants a bike by the end of the month", "User wants a bike by the end of March 2025"),
        ("User war gestern beim Arzt", "User war am 2025-03-04 beim Arzt"),
        ("User ist letzten Monat nach Bonn gezogen", "User ist im Februar 2025 nach Bonn gezogen"),
        ("User a vu le médecin hier", "User a vu le médecin le 2025-03-04"),
        ("User fue al médico ayer con su madre", "User fue al médico el 2025-03-04 con su madre"),
        ("User ha visto la zia ieri", "User ha visto la zia il 2025-03-04"),
        ("User foi ao médico ontem", "User foi ao médico em 2025-03-04"),
        ("User was gisteren bij de tandarts", "User was op 2025-03-04 bij de tandarts"),
    ],
)
def test_relative_phrases_become_absolute(fact: str, written: str) -> None:
    assert dates.rewrite(fact, WEDNESDAY) == written
    assert dates.rewrite(written, WEDNESDAY) == written


@pytest.mark.parametrize(
    "fact",
    [
        "User works every Friday",
        "User works Monday to Friday",
        "User usually sings on Tuesday",
        "User's birthday is on 12 September",
        "User turned 40 in March",
        "User learned Go in 3 weeks",
        "User has lived in Ghent since 2019",
        "User moved on 2025-01-01",
        "User may move to March, Cambridgeshire",
        "User wants answers in the evening",
    ],
)
def test_habits_and_absolute_dates_stay(fact: str) -> None:
    assert dates.rewrite(fact, WEDNESDAY) == fact


# --- as_said ---


@pytest.mark.parametrize(
    ("said", "dated"),
    [
        ("I saw him yesterday", "I saw him on 2025-03-04"),
        ("I got the keys today", "I got the keys on 2025-03-05"),
        ("the exam is tomorrow", "the exam is on 2025-03-06"),
        ("I met her the day before yesterday", "I met her on 2025-03-03"),
        ("The day after tomorrow I fly", "On 2025-03-07 I fly"),
        ("I slept badly last night", "I slept badly on 2025-03-04"),
        ("I fly tomorrow at 9", "I fly on 2025-03-06 at 9"),
        ("we met last Friday", "we met on 2025-02-28"),
        ("LAST FRIDAY I QUIT", "On 2025-02-28 I QUIT"),
        ("I leave this Friday", "I leave on 2025-03-07"),
        ("by next Friday I pay", "by 2025-03-07 I pay"),
        ("next Tuesday at 5pm works", "on 2025-03-11 at 5pm works"),
        ("we meet Tuesday next week", "we meet on 2025-03-11"),
        ("I sold it 2 days ago", "I sold it on 2025-03-03"),
        ("In two weeks I fly", "On 2025-03-19 I fly"),
        ("I fly in two weeks' time", "I fly on 2025-03-19"),
        ("two weeks ago we met", "in the week of 2025-02-17 we met"),
        ("I start next week", "I start in the week of 2025-03-10"),
        ("I moved last month", "I moved in February 2025"),
        ("Next month I move", "In April 2025 I move"),
        ("last year we married", "in 2024 we married"),
        ("five years ago I quit", "in 2020 I quit"),
        ("next May I marry", "in May 2025 I marry"),
        ("I need it by the end of the month", "I need it by the end of March 2025"),
        ("last weekend we hiked", "on the weekend of 2025-03-01 we hiked"),
        ("last summer we were in Greece", "in summer 2024 we were in Greece"),
        ("last Christmas we skied", "at Christmas 2024 we skied"),
        ("I marry on 12 September", "I marry on 2025-09-12"),
        ("I fly on Friday 14 March", "I fly on 2025-03-14"),
        ("from 11 to 13 March I am in Porto", "from 2025-03-11 to 2025-03-13 I am in Porto"),
        ("I've been ill since yesterday", "I've been ill since 2025-03-04"),
        ("I'm off until tomorrow", "I'm off until 2025-03-06"),
        ("I need it for tomorrow", "I need it for 2025-03-06"),
        ("I was ill yesterday and fly tomorrow", "I was ill on 2025-03-04 and fly on 2025-03-06"),
        ("I liked last year's trip", "I liked the 2024 trip"),
        ("I fly (tomorrow)!", "I fly (on 2025-03-06)!"),
    ],
)
def test_sure_dates_are_written_out(said: str, dated: str) -> None:
    assert dates.as_said(said, WEDNESDAY) == dated
    assert dates.as_said(dated, WEDNESDAY) == dated


def test_a_day_of_a_month_is_the_nearer_one() -> None:
    at = dates.parse_instant("2025-06-04")
    assert dates.as_said("we sailed on the 2nd of June", at) == "we sailed on 2025-06-02"
    assert dates.as_said("we sailed on the 30th of May", at) == "we sailed on 2025-05-30"
    assert dates.as_said("we will sail on the 7th of June", at) == "we will sail on 2025-06-07"


@pytest.mark.parametrize(
    "said",
    [
        "the exam is on Friday",
        "I had physio on Monday",
        "Monday",
        "I fly on Friday and land on Saturday",
        "I moved in on the 1st",
        "Friday the 14th I fly",
        "I start in June",
        "I was there from May to June",
        "I've been ill since May",
        "in summer we hike",
        "at Christmas we ski",
    ],
)
def test_days_past_or_to_come_are_left_with_the_day_they_were_said(said: str) -> None:
    assert dates.as_said(said, WEDNESDAY) == f"{said} (said 2025-03-05)"


def test_when_it_was_said_is_told_once_beside_the_values_that_are_sure() -> None:
    said = "on Sunday I ran, yesterday I rested and on Friday I run"
    assert dates.as_said(said, WEDNESDAY) == (
        "on Sunday I ran, on 2025-03-04 I rested and on Friday I run (said 2025-03-05)"
    )


@pytest.mark.parametrize(
    "said",
    [
        "every Friday I swim",
        "I usually swim on Tuesday",
        "I swim on Fridays",
        "Mondays",
        "I swim on Monday mornings",
        "I swim on Tuesday evenings at seven",
        "I pay on the 1st of each month",
        "on weekends we hike",
        "I work Mon-Fri",
        "I swim twice a week",
        "my birthday is 3 May",
        "my wife's birthday is on the 12th of September",
        "our anniversary is in June",
        "mein Geburtstag ist am 3. Mai",
        "I always ski in winter",
    ],
)
def test_habits_and_birthdays_come_again_and_are_left_alone(said: str) -> None:
    assert dates.as_said(said, WEDNESDAY) == said


@pytest.mark.parametrize(
    "said",
    [
        "",
        "no dates here",
        "it may rain",
        "my friend May",
        "I'm 40",
        "I read it in 3 weeks",
        "I work 9 to 5",
        "I start on 2025-10-10",
        "I start in June 2025",
        "I was born on 12 September 1980",
        "I have lived here since 2019",
        "the wedding is 12/25/2026",
        "I was there in March 2021",
        "in the week of 2025-02-24",
        "at Christmas 2024",
    ],
)
def test_what_needs_no_date_stays(said: str) -> None:
    assert dates.as_said(said, WEDNESDAY) == said


@pytest.mark.parametrize(
    "said",
    [
        "ich war gestern beim Arzt",
        "am Freitag fliege ich mit meiner Frau",
        "ich bin letztes Jahr umgezogen",
        "j'ai vu le médecin hier",
        "ayer fui al médico con mi madre",
        "ieri ho visto mia zia",
        "ontem fui ao médico",
        "gisteren was ik bij de tandarts",
        "Я был у врача вчера",
        "昨日医者に行きました",
    ],
)
def test_other_languages_stay_as_they_are_with_the_day_they_were_said(said: str) -> None:
    assert dates.as_said(said, WEDNESDAY) == f"{said} (said 2025-03-05)"


def last_friday(day: date) -> date:
    """The one before today."""
    return next(before for n in range(1, 8) if (before := day - timedelta(days=n)).weekday() == 4)


MEANINGS: dict[str, Callable[[date], date]] = {
    "today": lambda day: day,
    "tonight": lambda day: day,
    "tomorrow": lambda day: day + timedelta(days=1),
    "yesterday": lambda day: day - timedelta(days=1),
    "last Friday": last_friday,
    "in two weeks": lambda day: day + timedelta(days=14),
}
DAYS = st.dates(date(1900, 2, 1), date(2099, 11, 30))
CLOCKS = st.integers(0, 86_399_999_999)


def at_clock(day: date, microseconds: int) -> int:
    return dates.parse_instant(day.isoformat()) + microseconds


@given(DAYS, CLOCKS, st.sampled_from(sorted(MEANINGS)))
def test_a_value_is_never_wrong(day: date, clock: int, phrase: str) -> None:
    value = MEANINGS[phrase](day).isoformat()
    at = at_clock(day, clock)
    assert dates.as_said(f"I fly {phrase}", at) == f"I fly on {value}"
    assert dates.as_said(f"{phrase.capitalize()} I see Ana", at) == f"On {value} I see Ana"
    assert dates.as_said(f"my exam ({phrase}) and my trip", at) == f"my exam (on {value}) and my trip"


MIXED = [*MEANINGS, "I", "we", "met", "fly", "will", "was", "the", "and", "or", "by", "since", "not", "(", ",", "Ana's"]


@given(DAYS, CLOCKS, st.lists(st.sampled_from(MIXED), max_size=9).map(" ".join))
def test_no_value_is_written_that_was_not_said(day: date, clock: int, said: str) -> None:
    dated = dates.as_said(said, at_clock(day, clock))
    values = {meaning(day).isoformat() for phrase, meaning in MEANINGS.items() if phrase in said}
    assert {*re.findall(r"\d{4}-\d\d-\d\d", dated)} <= values


# Not "in two weeks": beside words of the past that is how long, not when.
SURE = [*MIXED, "next month", "2 days ago", "12 March"]
SURE.remove("in two weeks")


@given(DAYS, CLOCKS, st.lists(st.sampled_from(SURE), max_size=9).map(" ".join))
def test_a_text_that_holds_its_years_is_left_as_it_is(day: date, clock: int, said: str) -> None:
    at = at_clock(day, clock)
    dated = dates.as_said(said, at)
    assert "(said" in dated or dates.as_said(dated, at) == dated


@given(st.text(max_size=80), st.integers(dates.FIRST, dates.LAST))
def test_any_words_at_any_time_are_dated_or_left(text: str, at: int) -> None:
    assert dates.as_said(text, at).count("(said ") <= text.count("(said ") + 1


@given(DAYS, CLOCKS, st.lists(st.sampled_from([*MIXED, *WORDS]), max_size=9).map(" ".join))
def test_when_it_was_said_is_told_at_most_once(day: date, clock: int, said: str) -> None:
    dated = dates.as_said(said, at_clock(day, clock))
    assert dated.count("(said ") == dated.endswith(f" (said {day.isoformat()})")


# --- timestamps ---


@pytest.mark.parametrize(
    ("value", "iso"),
    [
        ("2025-03-01T09:00:00Z", "2025-03-01T09:00:00Z"),
        ("2025-03-01T09:00:00+02:00", "2025-03-01T07:00:00Z"),
        ("2025-03-01 09:00", "2025-03-01T09:00:00Z"),
        ("2025-03-01", "2025-03-01T00:00:00Z"),
        ("2025-03-01T09:00:00.25Z", "2025-03-01T09:00:00.250000Z"),
        (datetime(2025, 3, 1, 9), "2025-03-01T09:00:00Z"),
        (datetime(2025, 3, 1, 9, tzinfo=timezone(timedelta(hours=-5))), "2025-03-01T14:00:00Z"),
        (date(2025, 3, 1), "2025-03-01T00:00:00Z"),
        (0, "1970-01-01T00:00:00Z"),
        (1_740_819_600, "2025-03-01T09:00:00Z"),
        (1_740_819_600.5, "2025-03-01T09:00:00.500000Z"),
        (-1, "1969-12-31T23:59:59Z"),
        ("0001-01-01", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ],
)
def test_timestamps_in_every_form(value: object, iso: str) -> None:
    assert dates.to_iso(dates.parse_instant(value)) == iso


@pytest.mark.parametrize(
    "value", ["", "yesterday", "2025-13-01", "12", float("nan"), float("inf"), 1e302, 10**15, True, None, [], b"x"]
)
def test_what_is_no_timestamp_is_named(value: object) -> None:
    with pytest.raises(InvalidInputError, match="timestamp"):
        dates.parse_instant(value)


def test_milliseconds_get_a_hint() -> None:
    with pytest.raises(InvalidInputError, match="milliseconds"):
        dates.parse_instant(1_740_819_600_000)


def test_an_offset_that_leaves_the_calendar_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="years 1 to 9999"):
        dates.parse_instant("0001-01-01T00:00:00+05:00")


@given(st.integers(dates.FIRST, dates.LAST))
def test_what_is_written_is_read_back(instant: int) -> None:
    assert dates.parse_instant(dates.to_iso(instant)) == instant


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_datetime_keeps_its_microseconds(moment: datetime) -> None:
    assert dates.parse_instant(dates.to_iso(dates.parse_instant(moment))) == dates.parse_instant(moment)


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("1:56 pm on 8 May, 2023", "2023-05-08T13:56:00Z"),
        ("12:05 am on 8 May, 2023", "2023-05-08T00:05:00Z"),
        ("8 May 2023", "2023-05-08T00:00:00Z"),
        ("May 8, 2023 13:56", "2023-05-08T13:56:00Z"),
        ("Monday, May 8th, 2023 at 9am", "2023-05-08T09:00:00Z"),
        ("2023/05/08 14:00", "2023-05-08T14:00:00Z"),
        ("05.06.2023, 10:00", "2023-06-05T10:00:00Z"),
        ("25/06/2023", "2023-06-25T00:00:00Z"),
        ("06/25/2023", "2023-06-25T00:00:00Z"),
        ("2023-05-08T13:56:00Z", "2023-05-08T13:56:00Z"),
        ("Mon, 05 Jun 2023 10:00:00 GMT", "2023-06-05T10:00:00Z"),
        ("3. März 2024", "2024-03-03T00:00:00Z"),
        ("8 mai 2023", "2023-05-08T00:00:00Z"),
    ],
)
def test_timestamps_in_free_form(text: str, iso: str) -> None:
    instant = dates.parse_loose(text)
    assert instant is not None
    assert dates.to_iso(instant) == iso


@pytest.mark.parametrize(
    "text", ["", "yesterday", "hello there", "12", "8 May", "05/06/2023", "31 June 2023", "x" * 500]
)
def test_what_is_no_full_date_is_none(text: str) -> None:
    assert dates.parse_loose(text) is None


def test_importing_and_english_need_no_date_library() -> None:
    code = (
        "import sys; from localmem import dates; dates.resolve('last Friday', 0);"
        "assert 'dateparser' not in sys.modules, 'dateparser was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("habit", ["on Tuesday evenings at seven", "Friday mornings", "on Sunday nights"])
def test_a_plural_time_of_day_is_a_habit_and_keeps_its_weekday(habit: str) -> None:
    assert dates.rewrite(f"User swims {habit}", dates.parse_instant("2026-03-18")) == f"User swims {habit}"
