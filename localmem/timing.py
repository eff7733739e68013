"""What a query says about time: spans of dates, an event to find first, the newest, or what was so once."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from localmem import dates, rules, words
from localmem.types import Instant

DAY = 86_400 * 1_000_000  # microseconds
_SPANS = {"day": 1, "time": 1, "week": 7, "month": 31, "season": 92, "year": 366}  # days
_FUZZ_MIN, _FUZZ_SHARE = 2 * DAY, 0.2  # what is said some days later is still about a day
_EVENT_CHARS_MAX = 120
_QUERY_CHARS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Span:
    """From ``start`` on and before ``stop``; None is open."""

    start: Instant | None
    stop: Instant | None

    @property
    def middle(self) -> Instant:
        return ((self.start or 0) + (self.stop or 0)) // 2

    def fit(self, at: Instant) -> float:
        """1 for a moment inside, falling towards 0 with its distance; an open span says half as much."""
        gap = max(0, (self.start or at) - at, at - (self.stop or at + 1))
        if self.start is None or self.stop is None:
            return 0.5 * math.exp(-gap / _FUZZ_MIN)
        return math.exp(-gap / max(_FUZZ_MIN, _FUZZ_SHARE * (self.stop - self.start)))


@dataclass(frozen=True, slots=True)
class Asked:
    """``event``: words of something that happened, which the query's time is before or after (``side`` -1 or 1)."""

    spans: tuple[Span, ...] = ()
    event: str = ""
    side: int = 0
    recent: bool = False
    past: bool = False

    def beside(self, at: Instant | None) -> Asked:
        """With the span before or after the event, once it is known when that was."""
        if at is None:
            return self
        span = Span(None, at) if self.side < 0 else Span(at, None)
        return Asked((*self.spans, span), "", 0, self.recent, self.past)

    def fit(self, moments: Iterable[Instant]) -> float:
        """How well something with these moments suits the spans, in [0, 1]; 0 when there are none."""
        return max((span.fit(at) for at in moments for span in self.spans), default=0.0)


def asked(query: str, now: Instant) -> Asked:
    """What a query says about time. Dates without a year, and words like "last March", are read as on ``now``."""
    text = words.straighten(query[:_QUERY_CHARS_MAX])
    spoken = [_cues(language) for language in words.guess_languages(text)]
    recent = any(cues.recent.search(text) for cues in spoken)
    past = any(cues.past.search(text) for cues in spoken)
    phrases = dates.resolve(text, now)
    if phrases:
        return Asked(tuple(_spans(text, phrases, spoken)), recent=recent, past=past)
    event, side = next(filter(None, (cues.event_in(text) for cues in spoken)), ("", 0))
    return Asked((), event, side, recent, past)


def moments(text: str, at: Instant) -> tuple[Instant, ...]:
    """When something was said, and the middles of the days, months and years that it names."""
    return (at, *_named(text, at // DAY))


@functools.lru_cache(maxsize=4096)
def _named(text: str, day: int) -> tuple[Instant, ...]:
    return tuple(_of(phrase).middle for phrase in dates.resolve(text[:_QUERY_CHARS_MAX], day * DAY))


# -------------------------------------------------------------------- dates


def _of(phrase: dates.DatePhrase) -> Span:
    start = phrase.sort_key - phrase.sort_key % DAY
    return Span(start, start + _SPANS[phrase.granularity] * DAY)


def _spans(text: str, phrases: Sequence[dates.DatePhrase], spoken: Sequence[_Cues]) -> Iterator[Span]:
    """One span for each date; one for two with "and" or a dash between them; open before or after where it says so."""
    left = list(phrases)
    while left:
        phrase = left.pop(0)
        span = _of(phrase)
        if left and _AND.fullmatch(text[phrase.end : left[0].start]):
            yield Span(span.start, _of(left.pop(0)).stop)
            continue
        word = next((word for cues in spoken if (word := cues.word_for(text[: phrase.start], phrase.phrase))), "")
        sides = {"before": Span(None, span.start), "after": Span(span.stop, None), "since": Span(span.start, None)}
        yield sides.get(word, span)


_AND = re.compile(r"\s*(?:and|to|until|till|-|–|—|und|bis|et|à|au|y|al?|e|fino a|en|tot)\s*", re.IGNORECASE)


# -------------------------------------------------------------------- words


@dataclass(frozen=True, slots=True)
class _Cues:
    recent: re.Pattern[str]
    past: re.Pattern[str]
    sides: Mapping[str, re.Pattern[str]]  # before, after, since
    event: re.Pattern[str]
    subject: re.Pattern[str]

    def word_for(self, earlier: str, phrase: str) -> str:
        """Which of the sides stands at the beginning of a date phrase or right in front of it; "" for none."""
        for word, pattern in self.sides.items():
            if pattern.match(phrase) or any(not earlier[m.end() :].strip() for m in pattern.finditer(earlier)):
                return word
        return ""

    def event_in(self, text: str) -> tuple[str, int] | None:
        """(the words that tell an event, which side of it is meant)."""
        for found in self.event.finditer(text):
            first = found["event"].split()[0]
            if first[0].isupper() or self.subject.fullmatch(first):
                return found["event"].strip(), -1 if found["before"] else 1
        return None


@functools.cache
def _cues(language: str) -> _Cues:
    table = rules.load("timing").table[language]

    def whole(pattern: str) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)

    after = rf"{table['after']}|{table['since']}"
    event = rf"(?:(?P<before>{table['before']})|{after})\s+(?P<event>\S[^?!.,;:\n]{{2,{_EVENT_CHARS_MAX}}})"
    return _Cues(
        recent=whole(table["recent"]),
        past=whole(table["past"]),
        sides={word: whole(table[word]) for word in ("before", "after", "since")},
        event=re.compile(rf"(?<!\w){event}", re.IGNORECASE),
        subject=re.compile(table["subject"], re.IGNORECASE),
    )
