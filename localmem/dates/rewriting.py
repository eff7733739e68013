"""Put absolute dates in the place of relative phrases, with the preposition that belongs there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache

from localmem import rules
from localmem.dates.instants import day_of
from localmem.dates.languages import Language, language_of
from localmem.dates.phrases import Found, find
from localmem.dates.tense import IN_FACTS
from localmem.types import Instant


def rewrite(text: str, at: Instant) -> str:
    """The fact with its relative phrases made absolute, in the style of the training facts.

    "yesterday" becomes "on 2025-03-04", "next month" "in April 2025", "last year" "in 2024", "last week" "in the week
    of 2025-02-24"; after "by", "until", "since" only the value stands. Phrases that recur ("every Friday") and
    absolute ones ("in March", "12 September") stay as they are.
    """
    found = (one for one in find(text, at, None, IN_FACTS) if one.phrase.relative and not _stays(text, one))
    return _replaced(text, found)


def as_said(text: str, at: Instant) -> str:
    """A person's own words with the values of the dates that are sure; where others are left, when it was said.

    "we sailed on the 2nd of June" becomes "we sailed on 2025-06-02". A weekday, the day of a month, a month or a season
    may be past or to come: "on Friday (said 2025-06-04)" is true of both. Only English is rewritten.
    """
    today = day_of(at)
    undated = [one for one in find(text, at, None) if str(one.day.year) not in one.phrase.phrase]
    once = [one for one in undated if not _is_habit(text, one)]
    sure = [one for one in once if _is_sure(text, one, today)]
    written = _replaced(text, sure)
    return f"{written} (said {today.isoformat()})" if len(sure) < len(once) else written


SAID_ON = re.compile(r" \(said \d{4}-\d\d-\d\d\)$")  # what `as_said` puts behind a text


def _replaced(text: str, every: Iterable[Found]) -> str:
    parts: list[str] = []
    last = 0
    for found in every:
        start, end, written = _written(text, found)
        if start < last:
            continue
        parts += (text[last:start], written)
        last = end
    return "".join((*parts, text[last:]))


def _stays(text: str, found: Found) -> bool:
    return not found.language or found.what == "month_end" or _recurs(text, found)


def _is_sure(text: str, found: Found, today: date) -> bool:
    """Whether a phrase means the same day whatever the tense, or nearly always the nearer one: 2 June."""
    if found.language != "en" or found.phrase.phrase.endswith("'s"):
        return False
    if found.what in ("weekday", "dom", "season", "holiday", "month_end"):
        return _POINTED.search(found.phrase.phrase) is not None
    if found.phrase.relative:
        return True
    language = language_of("en")
    past, coming = language.past.search(text), language.future.search(text)
    against = (past and not coming and found.day > today) or (coming and not past and found.day < today)
    return found.phrase.granularity in ("day", "time") and not against and _BORN.search(text) is None


_POINTED = re.compile(r"(?i)\b(?:last|next|this|coming|past)\b")
_BORN = re.compile(r"(?i)\bborn\b|\b(?:19|20)\d\d\b")  # in another year


def _is_habit(text: str, found: Found) -> bool:
    """ "Mondays", "every Friday", "Monday to Friday", "my birthday is 3 May"."""
    before, after = text[: found.phrase.start][-30:], text[found.core_end :]
    if _EACH.match(after):
        return True
    pointed = _POINTED.search(found.phrase.phrase) or found.what not in ("weekday", "dom", "season", "holiday")
    if found.phrase.relative and pointed:
        return False
    listed = language_of(found.language or "en").listed_weekday
    days = found.what == "weekday" and (
        re.search(r"(?i)days$", found.phrase.phrase.strip()) or listed[0].search(before) or listed[1].match(after)
    )
    yearly = found.what != "weekday" and _YEARLY.search(text)
    return bool(days or yearly or _habit().search(text))


_EACH = re.compile(r"(?i)\W{0,2}(?:mornings|afternoons|evenings|nights|of (?:the|each|every) month)\b")
_YEARLY = re.compile(r"(?i)birthday|anniversary|geburtstag|anniversaire|cumplea|complean|anivers|verjaardag")


def _recurs(text: str, found: Found) -> bool:
    """Whether a phrase names a habit: every Friday, Monday to Friday, usually on Tuesday."""
    language, start, end = language_of(found.language), found.phrase.start, found.core_end
    if found.what not in ("weekday", "weekend", "dom", "season"):
        return False
    before, after = text[max(0, start - 30) : start], text[end : end + 30]
    if language.recurs.search(before) and not re.search(r"(?i)\bon\W+$", before):
        return True
    if re.match(r"(?i)\W{0,2}(?:mornings|afternoons|evenings|nights|lunchtimes)\b", after):
        return True  # "on Tuesday evenings"
    phrase = text[start:end]
    if found.what == "weekday" and not re.search(r"(?i)last|next|this|coming|past", phrase):
        listed = language.listed_weekday[0].search(before) or language.listed_weekday[1].match(after)
        habit = _habit().search(text)
        bare = not re.match(
            r"(?i)(?:on|since|by|until|till|from|before|after|for|am|seit|bis|ab|el|op|n[oa]|sinds|tot|vanaf) ", phrase
        )
        ends = not after.strip() or after.lstrip()[0] in ".,;:!?)"
        return bool(listed or habit or (bare and not ends))
    return False


@cache
def _habit() -> re.Pattern[str]:
    return re.compile(rf"(?i)\b(?:{rules.load('dates').table['habit']})\b")


def _written(text: str, found: Found) -> tuple[int, int, str]:
    """Start, end and wording of the absolute form, with the preposition that stands or belongs there."""
    language, phrase = language_of(found.language), found.phrase
    start, end = phrase.start, found.core_end
    full = _full_form(language, found)
    bare = _without_first(full, language.drop)
    inside = text[start:end]
    if found.language == "en" and re.match(r"['’]s\b ?", text[end:]):
        return _possessive(text, start, end, bare)
    kept = _leading(inside, language.keep)
    if kept:
        return start, end, f"{inside[: len(kept)]} {bare}"
    if found.language == "en" and text[:start].lower().endswith(" the "):
        start -= len("the ")
    before = text[:start]
    if _trailing(before, language.keep):
        return start, end, bare
    dropped = _trailing(before, language.drop)
    if dropped:
        start -= len(dropped)
    if not before.strip() and text[start : start + 1].isupper():
        full = full[0].upper() + full[1:]  # the phrase began the sentence
    return start, end, full


def _full_form(language: Language, found: Found) -> str:
    phrase, day = found.phrase, found.day
    kind = phrase.granularity if phrase.granularity in ("month", "year", "week", "season") else "day"
    if found.what in ("weekend", "holiday"):
        kind = found.what
    holiday = re.sub(r"(?i)^(?:at |on )?(?:last|next|this) ", "at ", phrase.phrase)
    return language.write[kind].format(
        v=day.isoformat(),
        mon=language.month_names[day.month - 1],
        y=day.year,
        s=f"{holiday} {day.year}" if kind == "holiday" else phrase.value,
    )


def _possessive(text: str, start: int, end: int, bare: str) -> tuple[int, int, str]:
    """ "last year's trip" becomes "the 2024 trip"; "User's last year's trip" keeps its own determiner."""
    after = re.match(r"['’]s\b", text[end:])
    determined = re.search(r"(?i)(?:\b(?:the|a|his|her|their|my|our)|['’]s) $", text[:start])
    value = bare.removeprefix("the ")
    return start, end + (after.end() if after else 0), value if determined else f"the {value}"


def _leading(phrase: str, prepositions: Sequence[str]) -> str | None:
    lowered = phrase.lower()
    return next((p for p in prepositions if lowered.startswith(p + " ")), None)


def _trailing(before: str, prepositions: Sequence[str]) -> str | None:
    """The preposition with its blank that a text ends in, as written, or None."""
    lowered = before.lower()
    for p in prepositions:
        if lowered.endswith(p + " ") and not lowered[: -len(p) - 1][-1:].isalpha():
            return before[-len(p) - 1 :]
    return None


def _without_first(full: str, drop: Sequence[str]) -> str:
    first, _, rest = full.partition(" ")
    return rest if first.lower() in drop and rest else full
