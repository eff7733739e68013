"""The calendar arithmetic behind each kind of rule in ``rules/dates.toml``."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from functools import cache

from localmem import rules
from localmem.dates.languages import Language, count_of, group, unit_of
from localmem.dates.tense import Tense, nearest

SEASON_START = (12, 3, 6, 9)  # winter, spring, summer, autumn

# A resolver gets (shift, match, language, today, tense) and gives (start, end, first day, granularity) of each phrase.
Meaning = tuple[int, int, date, str]


def _by_day(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    yield m.start(), m.end(), today + timedelta(days=shift), "day"


def _by_ago(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    n, unit = shift * count_of(m, language), unit_of(m, language)
    if shift > 0 and tense.lean() < 0:
        return  # "learned it in 3 weeks" is how long, not when
    if unit == "day":
        yield m.start(), m.end(), today + timedelta(days=n), "day"
    elif unit == "week":
        # "in two weeks" is meant to the day more often than "two weeks ago".
        day = today + timedelta(weeks=n)
        yield (m.start(), m.end(), day, "day") if shift > 0 else (m.start(), m.end(), monday(day), "week")
    elif unit == "month":
        yield m.start(), m.end(), month_shifted(today, n), "month"
    else:
        yield m.start(), m.end(), date(today.year + n, 1, 1), "year"


def _by_week(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    yield m.start(), m.end(), monday(today) + timedelta(weeks=shift), "week"


def _by_month(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    yield m.start(), m.end(), month_shifted(today, shift), "month"


def _by_year(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    yield m.start(), m.end(), date(today.year + shift, 1, 1), "year"


def _by_weekend(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    saturday = monday(today) + timedelta(days=5)
    if shift == 0 and tense.lean() < 0 and today < saturday:
        saturday -= timedelta(weeks=1)  # "we were away at the weekend", said on a Tuesday
    # On a Sunday "last weekend" is a week ago, on a Monday it is yesterday.
    yield m.start(), m.end(), saturday + timedelta(weeks=shift), "weekend"


def _by_weekday(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    wanted = _index(language.weekdays, group(m, "wd"))
    ahead = (wanted - today.weekday()) % 7
    if shift == -1:
        days = ahead - 7
    elif shift == 1:
        days = ahead if ahead > 1 else ahead + 7  # next Thursday said on a Wednesday is not tomorrow
    elif shift == 2:
        days = ahead
    else:
        candidates = [today + timedelta(days=ahead - 7), today + timedelta(days=ahead or 7)]
        days = (tense.place(candidates, today, "weekday") - today).days
    yield m.start(), m.end(), today + timedelta(days=days), "day"


def _by_weekday_week(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    wanted = _index(language.weekdays, group(m, "wd"))
    yield m.start(), m.end(), monday(today) + timedelta(weeks=shift, days=wanted), "day"


def _by_named_month(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    month, year = _index(language.months, group(m, "mon")) + 1, group(m, "y")
    if year:
        yield m.start(), m.end(), date(int(year), month, 1), "month"
        return
    this_month = today.replace(day=1)
    if shift == 2:
        day = date(today.year, month, 1)
    elif shift:
        others = [date(today.year + n, month, 1) for n in (-1, 0, 1) if (n, month) != (0, today.month)]
        day = nearest(others, this_month, shift)
    else:
        day = tense.place([date(today.year + n, month, 1) for n in (-1, 0, 1)], this_month, "month")
    yield m.start(), m.end(), day, "month"


def _by_month_day(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    month = _index(language.months, group(m, "mon")) + 1
    number = int(group(m, "dom") or 1)
    yield m.start(), m.end(), _dated(group(m, "y"), month, number, today, tense), "day"


def _by_range(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    named, first, second = group(m, "mon"), int(group(m, "dom1") or 1), int(group(m, "dom") or 1)
    cut = _ORDINAL.match(m.string, m.end("dom1")).end()  # type: ignore[union-attr]  # it matches nothing at all, too
    again = m.start("dom")
    if not named:
        begin = _day_number(0, first, today, tense)
        end = begin.replace(day=second) if second > first else month_shifted(begin, 1).replace(day=second)
    else:
        month = _index(language.months, named) + 1
        earlier = group(m, "mon1")
        month1 = _index(language.months, earlier) + 1 if earlier else month
        begin = _dated(group(m, "y"), month1, first, today, tense)
        end = date(begin.year + (month < month1), month, second)
    if end < begin:
        return
    yield m.start(), cut, begin, "day"
    yield again, m.end(), end, "day"


_ORDINAL = re.compile(r"(?i)(?:st|nd|rd|th|er|º|\.)?")


def _by_dom(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    if language.follow_no.match(m.string, m.end()) or _noun_after().match(m.string, m.end()):
        return
    number, named = int(group(m, "dom") or 1), group(m, "wd")
    wanted = _index(language.weekdays, named) if named else None
    yield m.start(), m.end(), _day_number(shift, number, today, tense, wanted), "day"


@cache
def _noun_after() -> re.Pattern[str]:
    """A word after "the 5th" that makes it a rank: the 5th floor. Words that go on with the sentence are listed."""
    return re.compile(rf" (?!(?:{rules.load('dates').table['after_day']})\b)[a-zà-ÿ]{{2,}}")


def _by_named_year(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    year = int(group(m, "y") or 0)
    if not _counted().match(m.string, m.end()) and abs(year - today.year) <= 150:
        yield m.start(), m.end(), date(year, 1, 1), "year"


@cache
def _counted() -> re.Pattern[str]:
    """What follows a number of things, not a year: 2000 steps, 2,000."""
    return re.compile(rf"(?i) (?:{rules.load('dates').table['counted']})\b| ?[%€$£]|[.,:]\d|-\d")


def _by_season(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    season = next(n for n, pattern in enumerate(language.seasons) if pattern.search(m[0]))
    month = SEASON_START[season]
    starts = [date(today.year + n, month, 1) for n in (-2, -1, 0, 1)]
    current = [day for day in starts if day <= today < month_shifted(day, 3)]
    others = [day for day in starts if day not in current]
    if shift == 2 and current:
        day = current[0]
    elif shift == 2:
        day = nearest(others, today, 1)
    elif shift:
        day = nearest(others, today, shift)
    else:
        day = current[0] if current and not tense.forced else nearest(others, today, 1 if tense.lean() > 0 else -1)
    yield m.start(), m.end(), day, "season"


def _by_holiday(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    rule = next(day for pattern, day in language.holidays if pattern.search(m[0]))
    candidates = [holiday_on(rule, today.year + n) for n in (-1, 0, 1)]
    if shift == 0:
        day = tense.place(candidates, today, "month_day")
    else:
        day = nearest(candidates, today, 1 if shift == 2 else shift)
    yield m.start(), m.end(), day, "day"


def _by_numbers(shift: int, m: re.Match[str], language: Language, today: date, tense: Tense) -> Iterator[Meaning]:
    year, month, day = group(m, "y"), int(group(m, "month") or 1), group(m, "day")
    if day is None:
        yield m.start(), m.end(), date(int(year or today.year), month, 1), "month"
    else:
        yield m.start(), m.end(), _dated(year, month, int(day), today, tense), "day"


RESOLVERS = {
    "day": _by_day,
    "ago": _by_ago,
    "week": _by_week,
    "month": _by_month,
    "month_end": _by_month,
    "year": _by_year,
    "weekend": _by_weekend,
    "weekday": _by_weekday,
    "weekday_week": _by_weekday_week,
    "named_month": _by_named_month,
    "month_day": _by_month_day,
    "range": _by_range,
    "dom": _by_dom,
    "named_year": _by_named_year,
    "season": _by_season,
    "holiday": _by_holiday,
    "iso": _by_numbers,
    "numeric": _by_numbers,
    "slashes": _by_numbers,
}


def monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def month_shifted(day: date, months: int) -> date:
    """The first of the month so many months away."""
    count = day.year * 12 + day.month - 1 + months
    return date(count // 12, count % 12 + 1, 1)


def _index(patterns: Sequence[re.Pattern[str]], name: str | None) -> int:
    return next(n for n, pattern in enumerate(patterns) if name and pattern.match(name))


def _dated(year: str | None, month: int, number: int, today: date, tense: Tense) -> date:
    if year:
        return date(int(year), month, number)
    candidates = [date(today.year + n, month, number) for n in (-1, 0, 1) if _exists(today.year + n, month, number)]
    if not candidates:  # 29 February between leap years
        candidates = [
            date(y, month, number) for y in range(today.year - 4, today.year + 5) if _exists(y, month, number)
        ]
    if not candidates:
        raise ValueError(f"no day {number} in month {month}")
    return tense.place(candidates, today, "month_day")


def _exists(year: int, month: int, number: int) -> bool:
    return 1 <= year <= 9999 and 1 <= number <= calendar.monthrange(year, month)[1]


def _day_number(shift: int, number: int, today: date, tense: Tense, weekday: int | None = None) -> date:
    """ "the 5th": of this month, last month or the next by tense, or of the month said; the weekday said must fit."""
    first = today.replace(day=1)
    offsets = (shift - 10,) if shift else (-1, 0, 1)
    months = [month_shifted(first, n) for n in offsets]
    candidates = [day.replace(day=number) for day in months if _exists(day.year, day.month, number)]
    fitting = [day for day in candidates if weekday is None or day.weekday() == weekday]
    return tense.place(fitting or candidates, today, "dom")


def holiday_on(rule: str, year: int) -> date:
    if rule.startswith("easter"):
        return _easter(year) + timedelta(days=int(rule[6:]))
    month, day = rule.split("-")
    return date(year, int(month), int(day))


def _easter(year: int) -> date:
    """Western Easter Sunday (Gauss, in the form of Meeus)."""
    a, b, c = year % 19, year // 100, year % 100
    h = (19 * a + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    k = (32 + 2 * (b % 4) + 2 * (c // 4) - h - c % 4) % 7
    n = h + k - 7 * ((a + 11 * h + 22 * k) // 451) + 114
    return date(year, n // 31, n % 31 + 1)
