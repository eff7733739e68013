"""Find the date phrases of a text and say what each meant on the day it was said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from localmem import rules, words
from localmem.dates.calendar_rules import RESOLVERS, SEASON_START
from localmem.dates.instants import EPOCH, dateparser_library, day_of, hour24, instant_of
from localmem.dates.languages import Language, Rule, common_rules, group, language_of
from localmem.dates.tense import AS_SAID, Lean, Tense
from localmem.types import Instant


@dataclass(frozen=True, slots=True)
class DatePhrase:
    """One date phrase: characters [start, end) of the text, and what it means.

    ``value`` is ``2025-03-04`` (day), ``2025-03`` (month), ``2025`` (year), the Monday (week), ``2025-03-04T09:00``
    (time) or ``summer 2024`` (season). ``sort_key`` is where that span begins.
    """

    start: int
    end: int
    phrase: str
    value: str
    granularity: str  # day, month, year, week, time, season
    sort_key: Instant
    relative: bool = True  # means something only beside the day it was said


@dataclass(frozen=True, slots=True)
class Found:
    """A phrase with what rewriting needs to know of it."""

    phrase: DatePhrase
    core_end: int  # where the date ends and a clock time begins
    what: str
    day: date
    language: str


def resolve(text: str, at: Instant, *, languages: Sequence[str] | None = None) -> tuple[DatePhrase, ...]:
    """The date phrases of a text said at ``at``, in order of place, none overlapping another.

    A day or month without its year, or a weekday without its week, goes to the past or the future by the nearest word
    that tells ("since", "was", "will", "until") and by how near the two are in time; with no such word to the coming
    one unless the last is much nearer. Numbers with slashes whose order is unsure (4/5/2025 in English) are left
    alone. ``languages`` are tried in order; None guesses from the function words. Clock times alone are no dates.
    """
    return tuple(found.phrase for found in find(text, at, languages))


def find(text: str, at: Instant, languages: Sequence[str] | None, lean: Lean = AS_SAID) -> list[Found]:
    """What ``resolve`` finds, with what rewriting needs to know beside it."""
    today = day_of(at)
    plain = words.straighten(text)
    spoken = words.guess_languages(plain) if languages is None else tuple(languages)
    found: list[Found] = []
    for name in spoken:
        if name in words.LANGUAGES:
            found += _found_by(language_of(name), plain, text, today, lean)
    if "en" in spoken:
        # 4/5/2025 is 5 April to some writers of English and 4 May to others: no answer. Elsewhere the day comes first.
        found = [one for one in found if one.what != "slashes"]
    if not found and (foreign := foreign_languages(plain)):
        found += found_by_dateparser(text, at, foreign)
    return _disjoint(found)


def _disjoint(found: list[Found]) -> list[Found]:
    """The longest wins where phrases overlap: "last Friday" over "Friday"."""
    chosen: list[Found] = []
    for one in sorted(found, key=lambda f: (f.phrase.start - f.phrase.end, f.phrase.start)):
        if all(one.phrase.end <= c.phrase.start or one.phrase.start >= c.phrase.end for c in chosen):
            chosen.append(one)
    return sorted(chosen, key=lambda f: f.phrase.start)


def _found_by(language: Language, plain: str, text: str, today: date, lean: Lean) -> Iterator[Found]:
    for rule in (*common_rules(), *language.rules):
        for m in rule.pattern.finditer(plain):
            try:
                yield from _meanings(rule, m, language, text, today, lean)
            except (ValueError, OverflowError):
                continue  # 31 June, the year 10000: not a date


def _meanings(rule: Rule, m: re.Match[str], language: Language, text: str, today: date, lean: Lean) -> Iterator[Found]:
    tense = Tense(language, m.string, m.start(), m.end(), lean)
    resolved = RESOLVERS[rule.what](rule.shift, m, language, today, tense)
    for start, end, day, granularity in resolved:
        core_end = end
        value = _value(day, granularity, language)
        if granularity == "day":
            clock = _clock_in_iso(m) if rule.what == "iso" else _clock_after(language, m.string, end)
            if clock:
                hour, minute, end = clock[0], clock[1], max(end, clock[2])
                value, granularity = f"{day.isoformat()}T{hour:02d}:{minute:02d}", "time"
        absolute = rule.absolute and not (rule.what == "holiday" and rule.shift)
        phrase = DatePhrase(
            start=start,
            end=end,
            phrase=text[start:end],
            value=value,
            granularity="day" if granularity == "weekend" else granularity,
            sort_key=sort_key(day, value if granularity == "time" else None),
            relative=not absolute,
        )
        yield Found(phrase, core_end, "weekend" if granularity == "weekend" else rule.what, day, language.name)


def sort_key(day: date, value: str | None) -> Instant:
    moment = datetime.fromisoformat(value) if value else datetime(day.year, day.month, day.day)
    return instant_of(moment)


def _value(day: date, granularity: str, language: Language) -> str:
    if granularity == "month":
        return f"{day:%Y-%m}" if day.year > 999 else day.isoformat()[:7]
    if granularity == "year":
        return str(day.year)
    if granularity == "season":
        return f"{language.season_names[SEASON_START.index(day.month)]} {day.year}"
    return day.isoformat()


def _clock_in_iso(m: re.Match[str]) -> tuple[int, int, int] | None:
    hour, minute = group(m, "h"), group(m, "mi")
    return (int(hour), int(minute), m.end()) if hour and minute else None


def _clock_after(language: Language, text: str, end: int) -> tuple[int, int, int] | None:
    """Hour, minute and end of a clock time right after a day: "at 9", "um 9 Uhr", "9:30pm"."""
    m = language.time.match(text, end)
    if not m:
        return None
    found = {k.rstrip("23"): v for k, v in m.groupdict().items() if v}
    if "word" in found:
        return language.time_words[found["word"].lower()], 0, m.end()
    hour = hour24(int(found.get("h", "99")), found.get("ap"))
    return (hour, int(found.get("mi", "0")), m.end()) if hour < 24 else None


# --- languages without rules: scripts that none of ours is written in ---

_SCRIPTS = {
    "kana": "\u3040-\u30ff",
    "hangul": "\uac00-\ud7af",
    "han": "\u4e00-\u9fff",
    "cyrillic": "\u0400-\u04ff",
    "arabic": "\u0600-\u06ff",
    "hebrew": "\u0590-\u05ff",
    "greek": "\u0370-\u03ff",
    "thai": "\u0e00-\u0e7f",
    "devanagari": "\u0900-\u097f",
}


def foreign_languages(text: str) -> list[str]:
    for script, letters in _SCRIPTS.items():
        if re.search(f"[{letters}]", text):
            return list(rules.load("dates").table["scripts"][script])
    return []


def found_by_dateparser(text: str, at: Instant, languages: list[str]) -> Iterator[Found]:
    base = (EPOCH + timedelta(microseconds=at)).replace(tzinfo=None)
    settings = {"RELATIVE_BASE": base, "TIMEZONE": "UTC", "RETURN_AS_TIMEZONE_AWARE": False}
    try:
        hits = dateparser_library().search.search_dates(text[:2000], languages=languages, settings=settings) or []
    except (ValueError, OverflowError, KeyError, TypeError, IndexError, AttributeError):
        return  # its search fails in many ways on odd text; then there is no phrase
    place = 0
    for phrase, moment in hits:
        start = text.find(phrase, place)
        if start < 0 or not re.search(r"[^\W\d_]", phrase) or not 1 < moment.year < 9999:
            continue  # bare numbers: ages, amounts
        place = start + len(phrase)
        day = moment.date()
        yield Found(
            DatePhrase(start, place, phrase, day.isoformat(), "day", sort_key(day, None)), place, "day", day, ""
        )
