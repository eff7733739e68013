"""Every date a text may mean: for asking whether a date in a fact can come from the words, not for choosing one."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from datetime import date, timedelta

from localmem import words
from localmem.dates.calendar_rules import holiday_on, month_shifted
from localmem.dates.instants import day_of
from localmem.dates.languages import count_of, language_of, unit_of
from localmem.dates.phrases import Found, find
from localmem.dates.tense import AS_SAID, COMING, PAST
from localmem.types import Instant


def readings(text: str, at: Instant) -> frozenset[str]:
    """Every date a text said at ``at`` may mean: days, months, years and Mondays, in the forms of DatePhrase.value.

    Wider than ``resolve``: a day without its year stands for the last and the coming one, a month for its first,
    middle and last day, too. For asking whether a date in a fact may come from the words, not for choosing one.
    """
    found = [one for lean in (PAST, AS_SAID, COMING) for one in find(text, at, None, lean)]
    today = day_of(at)
    months = _months_named(text, today)
    near = {month_shifted(today, n).isoformat()[:7] for n in (-1, 0, 1)}
    numbered = {f"{month}-{day:02d}" for month in months | near for day in _days_named(text)}
    spanned = frozenset(value for one in found for value in _spanned(one))
    return spanned | months | numbered | _holidays_named(text, today) | _weekdays_named(text, today)


def _weekdays_named(text: str, today: date) -> frozenset[str]:
    """The last two and the coming two of each weekday named, abbreviated or not: "Mon-Wed", "Sunday week"."""
    plain = words.straighten(text)
    found: set[str] = set()
    for name in words.guess_languages(plain):
        for token in words.tokens(plain):
            for n, weekday in enumerate(language_of(name).weekdays):
                if weekday.match(token.text):
                    ahead = (n - today.weekday()) % 7
                    found |= {_later(today, ahead + 7 * weeks) for weeks in (-2, -1, 0, 1)}
    return frozenset(found)


def _later(day: date, days: int) -> str:
    """Bounded by the calendar's own ends."""
    return date.fromordinal(min(max(day.toordinal() + days, 1), date.max.toordinal())).isoformat()


def _holidays_named(text: str, today: date) -> frozenset[str]:
    plain = words.straighten(text)
    rules_named = {
        rule
        for name in words.guess_languages(plain)
        for pattern, rule in language_of(name).holidays
        if re.search(rf"(?<!\w)(?:{pattern.pattern[4:]})(?!\w)", plain, re.I)
    }
    return frozenset(
        holiday_on(rule, today.year + n).isoformat()
        for rule in rules_named
        for n in (-1, 0, 1)
        if 0 < today.year + n < 10000
    )


def _days_named(text: str) -> frozenset[int]:
    """Days of a month said without one: "the (12th)", "8-26", "on the first"."""
    numbers = _DAY_NUMBER.findall(text)
    spelled = [n + 1 for n, word in enumerate(_ORDINALS) if re.search(rf"(?i)\b{word}\b", text)]
    return frozenset(n for n in [int(next(filter(None, found))) for found in numbers] + spelled if 1 <= n <= 31)


_DAY_NUMBER = re.compile(
    r"(?i)(?<!\d)(\d{1,2})(?:st|nd|rd|th|e|ste|º|\.)(?!\w)|(?:dia|día|giorno|le|il|am) (\d{1,2})(?!\d)"
    r"|(?<!\d)(\d{1,2})(?=[-–/]\d{1,2}(?!\d))|(?<=[-–/])(\d{1,2})(?!\d)"
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def _months_named(text: str, today: date) -> frozenset[str]:
    """The months whose name stands anywhere, preposition or not, of the last, this and the next year."""
    plain = words.straighten(text)
    found: set[str] = set()
    for name in words.guess_languages(plain):
        for token in words.tokens(plain):
            for n, month in enumerate(language_of(name).months):
                if month.match(token.text):
                    found |= {f"{year:04d}-{n + 1:02d}" for year in (today.year - 1, today.year, today.year + 1)}
    return frozenset(found)


def spans_from(text: str, at: Instant) -> frozenset[str]:
    """Dates that lie a span named in the text before or after ``at``: "for 3 more months", "sober 6 years"."""
    today, plain = day_of(at), words.straighten(text)
    found: set[str] = set()
    for name in words.guess_languages(plain):
        language = language_of(name)
        for m in language.spans.finditer(plain):
            for direction in (-1, 1):
                found |= _at_distance(today, direction * count_of(m, language), unit_of(m, language))
    return frozenset(found)


def _at_distance(today: date, n: int, unit: str) -> set[str]:
    try:
        if unit in ("day", "week"):
            day = today + timedelta(days=n * (7 if unit == "week" else 1))
            return {day.isoformat(), day.isoformat()[:7], str(day.year)}
        first = month_shifted(today, n * (12 if unit == "year" else 1))
        number = min(today.day, calendar.monthrange(first.year, first.month)[1])
        return {first.replace(day=number).isoformat(), first.isoformat()[:7], str(first.year)}
    except (ValueError, OverflowError):
        return set()


def _spanned(found: Found) -> Iterator[str]:
    phrase, day = found.phrase, found.day
    yield phrase.value[:10] if phrase.granularity != "season" else phrase.value
    if phrase.granularity == "month":
        last = calendar.monthrange(day.year, day.month)[1]
        yield from (day.replace(day=n).isoformat() for n in (1, 15, last))
    elif phrase.granularity == "week":
        yield from ((day + timedelta(days=n)).isoformat() for n in range(7))
    elif phrase.granularity == "year":
        yield from (f"{day.year}-01-01", f"{day.year}-12-31", f"{day.year}-12", f"{day.year}-01")
    elif phrase.granularity == "season":
        yield from (month_shifted(day, n).isoformat()[:7] for n in range(-1, 4))
        yield from (str(day.year), str(month_shifted(day, 2).year))
    elif found.what == "weekend":
        yield from ((day + timedelta(days=n)).isoformat() for n in (-1, 1))
