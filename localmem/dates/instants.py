"""Timestamps: what a caller may give, what a transcript may hold, and how localmem writes them."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

from localmem.errors import InvalidInputError, InvalidTypeError
from localmem.types import Instant

FIRST: Instant = -62_135_596_800_000_000  # 0001-01-01T00:00:00Z
LAST: Instant = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMS = "ISO 8601 text such as 2025-03-01T09:00:00Z or 2025-03-01, a datetime, a date, or Unix seconds"


def parse_instant(value: object) -> Instant:
    """Microseconds since 1970 of ISO 8601 text, a datetime, a date, or Unix seconds. Without an offset it is UTC.

    Raises InvalidInputError for a value that is none of these or lies outside the years 1 to 9999.
    """
    if isinstance(value, datetime):
        return instant_of(value)
    if isinstance(value, date):
        return instant_of(datetime(value.year, value.month, value.day))
    if isinstance(value, str):
        return _instant_of_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _instant_of_seconds(value)
    raise InvalidTypeError(f"a timestamp can't be {type(value).__name__}; give {_FORMS}")


def to_iso(instant: Instant) -> str:
    """``2025-03-01T09:00:00Z``, microseconds only where there are any. InvalidInputError outside years 1 to 9999."""
    if not FIRST <= instant <= LAST:
        raise InvalidInputError(f"the instant {instant} lies outside the years 1 to 9999")
    moment = EPOCH + timedelta(microseconds=instant)
    return moment.replace(tzinfo=None).isoformat() + "Z"


def parse_loose(text: str) -> Instant | None:
    """A timestamp in free form ("1:56 pm on 8 May, 2023"), UTC, or None. Day, month and year must be said.

    None also for 05/06/2023: it is June to one writer and May to the next.
    """
    cleaned = " ".join(text.split())
    if not cleaned or len(cleaned) > 80:
        return None
    try:
        return _instant_of_text(cleaned)
    except InvalidInputError:
        return _loose_english(cleaned) or _loose_other(cleaned)


def instant_of(moment: datetime) -> Instant:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    try:
        instant = (aware - EPOCH) // timedelta(microseconds=1)
    except OverflowError as error:
        raise InvalidInputError(
            f"the timestamp {moment.isoformat()} lies outside the years 1 to 9999 in UTC"
        ) from error
    return _in_range(instant, moment.isoformat())


def _instant_of_text(value: str) -> Instant:
    text = value.strip()
    try:
        return instant_of(datetime.fromisoformat(text))
    except ValueError as error:
        if isinstance(error, InvalidInputError):
            raise
        shown = text if len(text) <= 40 else text[:40] + "…"
        raise InvalidInputError(f"the timestamp {shown!r} can't be read; give {_FORMS}") from None


def _instant_of_seconds(value: int | float) -> Instant:
    if isinstance(value, float) and not math.isfinite(value * 1_000_000):
        raise InvalidInputError(f"the timestamp {value} is not a moment; give {_FORMS}")
    instant = value * 1_000_000 if isinstance(value, int) else round(value * 1_000_000)
    hint = "" if abs(value) < 10**11 else " (milliseconds? Unix time is given in seconds)"
    return _in_range(instant, f"{value}{hint}")


def _in_range(instant: int, given: str) -> Instant:
    if not FIRST <= instant <= LAST:
        raise InvalidInputError(f"the timestamp {given} lies outside the years 1 to 9999; give {_FORMS}")
    return instant


_CLOCK = re.compile(
    r"(?<![\d.])(?P<h>[01]?\d|2[0-3])(?:[:.](?P<m>[0-5]\d)(?::(?P<s>[0-5]\d))?)? ?(?P<ap>[ap]\.?m\.?)?(?![\d\w])", re.I
)
_MONTH = r"(?P<mon>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_LOOSE_DAY = (
    re.compile(rf"(?<!\d)(?P<d>[0-3]?\d)(?:st|nd|rd|th)?(?: of)?[ -]{_MONTH},?[ -](?P<y>\d{{4}})(?!\d)", re.I),
    re.compile(rf"\b{_MONTH} (?P<d>[0-3]?\d)(?:st|nd|rd|th)?,? (?P<y>\d{{4}})(?!\d)", re.I),
    re.compile(r"(?<![\d.])(?P<d>\d\d?)\.(?P<n>\d\d?)\.(?P<y>\d{4})(?![\d.])"),
    re.compile(r"(?<!\d)(?P<d>1[3-9]|2\d|3[01])/(?P<n>\d\d?)/(?P<y>\d{4})(?!\d)"),
    re.compile(r"(?<!\d)(?P<n>\d\d?)/(?P<d>1[3-9]|2\d|3[01])/(?P<y>\d{4})(?!\d)"),
    re.compile(r"(?<!\d)(?P<y>\d{4})[-/](?P<n>\d\d?)[-/](?P<d>\d\d?)(?!\d)"),
)


def _loose_english(text: str) -> Instant | None:
    """Day, month name and year in either order, and a clock time before or after. Anything left over: not ours."""
    for pattern in _LOOSE_DAY:
        if not (m := pattern.search(text)):
            continue
        rest = (text[: m.start()] + " " + text[m.end() :]).strip()
        clock = _CLOCK.search(rest)
        if clock and not (clock["m"] or clock["ap"]):
            clock = None
        left = rest if not clock else rest[: clock.start()] + " " + rest[clock.end() :]
        if re.sub(
            r"(?i)\b(?:on|at|the|utc|gmt|z|(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?)\b|[\s,.\-–()]",
            "",
            left,
        ):
            return None
        month = int(m["n"]) if "n" in m.re.groupindex else _month_number(m["mon"])
        hour, minute, second = _clock_of(clock)
        try:
            return instant_of(datetime(int(m["y"]), month, int(m["d"]), hour, minute, second))
        except ValueError:
            return None
    return None


def _month_number(name: str) -> int:
    return ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"].index(
        name[:3].lower()
    ) + 1


def _clock_of(m: re.Match[str] | None) -> tuple[int, int, int]:
    if m is None:
        return 0, 0, 0
    return hour24(int(m["h"]), m["ap"]), int(m["m"] or 0), int(m["s"] or 0)


def hour24(hour: int, half: str | None) -> int:
    if not half or hour > 12:
        return hour
    return hour % 12 + (12 if half[0].lower() == "p" else 0)


def _loose_other(text: str) -> Instant | None:
    """What dateparser reads as a full date by itself; relative words are off, they would mean the clock."""
    if re.search(r"(?<!\d)\d\d?/\d\d?/\d{2,4}(?!\d)", text):
        return None  # 05/06/2023 is June to one writer and May to the next: no answer is better than half wrong ones
    dateparser = dateparser_library()
    settings = {
        "REQUIRE_PARTS": ["day", "month", "year"],
        "TIMEZONE": "UTC",
        "RETURN_AS_TIMEZONE_AWARE": True,
        "PARSERS": ["absolute-time"],
        "RELATIVE_BASE": datetime(2000, 1, 1),
    }
    try:
        moment = dateparser.parse(text, settings=settings)
    except (ValueError, OverflowError, KeyError):
        return None
    return instant_of(moment) if moment else None


@cache
def dateparser_library() -> Any:
    # dateparser warns about its own use of ambiguous formats on newer Pythons; the user can do nothing about it.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dateparser
        import dateparser.search
    return dateparser


def day_of(at: Instant) -> date:
    """The UTC day of an instant, within the years 2 to 9998: what is asked of it are the years beside it."""
    day = (EPOCH + timedelta(microseconds=min(max(at, FIRST), LAST))).date()
    return min(max(day, date(2, 1, 1)), date(9998, 12, 31))
