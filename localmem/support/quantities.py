"""Numbers and identifiers: what a fact may not make up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache

from localmem import dates, rules, words
from localmem.support.evidence import Evidence, parts_of, squeeze
from localmem.types import Instant

_IDENTIFIER = re.compile(
    r"(?<![\w@])(?=[^\s]*\d)(?=[^\s]*[A-Za-z])[A-Za-z0-9][\w.:/@#+-]*[\w#+]|[\w.+-]+@[\w-]+\.[\w.-]+"
)
_UNIT_NUMBER = re.compile(
    r"\d+(?:[.,:]\d+)*-?(?:am|pm|a|p|h|hrs?|km|kg|g|mg|mcg|ml|cl|l|mm|cm|m|k|s|st|nd|rd|th|er|x|gb|mb|tb|hz|ghz|w|kw|kwh|v|min|mins|year|week|month|day|yo|e|ste|de|º|ª|in|ft|lb|lbs|oz|mph|bn|d|w|mbit|kcal|%)?"
)


def read(text: str, at: Instant) -> Evidence:
    """Everything said, known before and named, joined into one text, as the guards ask for it."""
    folded = frozenset(part for token in words.tokens(text) for part in parts_of(token.folded))
    return Evidence(
        text=text,
        folded=folded,
        stems=words.stems(folded),
        squeezed=squeeze(text),
        numbers=frozenset(numbers_in(text)) | frozenset(map(plain_number, re.findall(r"\d+", text))),
        at=at,
    )


def readings_of_talk(evidence: Evidence) -> frozenset[str]:
    """Every date the conversation may mean."""
    today = dates.to_iso(evidence.at)[:10]
    monday = dates.resolve("this week", evidence.at, languages=("en",))[0].value
    # Years and months beside the present are often meant without being named: "next school year", "three weeks in".
    year, month = int(today[:4]), int(today[5:7])
    years = {f"{year + n:04d}" for n in (-1, 0, 1)}
    months = {f"{year + (month - 1 + n) // 12:04d}-{(month - 1 + n) % 12 + 1:02d}" for n in (-1, 0, 1)}
    return _readings_of(evidence.text, evidence.at) | years | months | {today, monday}


@lru_cache(maxsize=16)  # the facts of one episode ask in a row
def _readings_of(text: str, at: Instant) -> frozenset[str]:
    return dates.readings(text, at) | dates.spans_from(text, at)


def identifiers_stand(fact: str, evidence: Evidence) -> bool:
    """Tokens of letters and digits (versions, models, addresses) stand in the conversation, bar blanks and hyphens."""
    return all(squeeze(token) in evidence.squeezed for token in _identifiers(fact))


def _identifiers(fact: str) -> Iterator[str]:
    for m in _IDENTIFIER.finditer(fact):
        folded = words.bare(m[0]).strip(".")
        parts = [part for part in re.split(r"[-/]", folded) if any(c.isdigit() for c in part)]
        if not all(_UNIT_NUMBER.fullmatch(part) or part.isdigit() for part in parts) or "@" in folded:
            yield folded


def quantities_stand(fact: str, evidence: Evidence) -> bool:
    """Every number of the fact, as digits or as a word, is a number of the conversation."""
    plain = _without_dates(fact)
    loose = rules.load("support").table["numbers"]["loose"]
    for m in _DIGITS.finditer(plain):
        forms = set(_forms(m))
        if not forms & evidence.numbers and not any(_derivable(n, plain, evidence) for n in forms):
            return False
    spelled = [n for word, n in _number_words_in(plain) if word not in loose]
    return all(n in evidence.numbers or _counted_up(n, evidence) for n in spelled)


def _without_dates(fact: str) -> str:
    spans = [(p.start, p.end) for p in dates.resolve(fact, 0)]
    for start, end in reversed(spans):
        fact = fact[:start] + " " * (end - start) + fact[end:]
    return re.sub(r"(?<!\d)((?:19|20)\d\d)/\d\d(?!\d)", r"\1   ", fact)  # the school year 2025/26


def numbers_in(text: str) -> Iterator[str]:
    """Every number of a text in one form, digits and words alike."""
    yield from _digits_in(text)
    yield from (number for _, number in _number_words_in(text))


def _digits_in(text: str) -> Iterator[str]:
    for m in _DIGITS.finditer(text):
        yield from _forms(m)


_DIGITS = re.compile(r"(?<![A-Za-z_\d])(?:\d{1,3}(?:[ ']\d{3})+(?!\d)|\d+(?:[.,:]\d+)*)(?P<k>k\b)?")


def _forms(m: re.Match[str]) -> Iterator[str]:
    """A number in one form: 1,740 as 1740, 8:40 as 8.4, 3,480 as 3480; 12k as 12000 and, as people say it, 12."""
    digits = m[0].rstrip("k")
    yield plain_number(digits)
    if m["k"]:
        thousands = re.fullmatch(r"(\d+)(?:[.,](\d{1,3}))?", digits)
        if thousands:
            yield plain_number(thousands[1] + (thousands[2] or "").ljust(3, "0"))


def plain_number(digits: str) -> str:
    """Digits without grouping and without zeros that say nothing: 1,740 is 1740, 8:40 is 8.4."""
    grouped = re.fullmatch(r"\d{1,3}(?:[.,' ]\d{3})+", digits)
    if grouped:
        return re.sub(r"\D", "", digits)
    plain = re.sub(r"[,:]", ".", digits)
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return plain.lstrip("0") or "0"


def _number_words_in(text: str) -> Iterator[tuple[str, str]]:
    """(word, number): seven, twenty-two, three hundred."""
    table = _number_words()
    run: list[tuple[str, float]] = []
    for token in words.tokens(text):
        if token.folded in table:
            run.append((token.folded, table[token.folded]))
            yield token.folded, _shown(table[token.folded])
            continue
        yield from _joined(run)
        run = []
    yield from _joined(run)


def _joined(run: list[tuple[str, float]]) -> Iterator[tuple[str, str]]:
    if len(run) < 2:
        return
    total, current = 0.0, 0.0
    for _, value in run:
        if value in (100, 1000):
            current = (current or 1) * value
            total, current = (total + current, 0.0) if value == 1000 else (total, current)
        else:
            current += value
    yield "-".join(word for word, _ in run), _shown(total + current)


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


@cache
def _number_words() -> dict[str, float]:
    return {str(k): float(v) for k, v in rules.load("support").table["numbers"]["words"].items()}


def _derivable(number: str, fact: str, evidence: Evidence) -> bool:
    """Digits a fact may form from the conversation: a year, or 19:00 from 7pm."""
    if re.fullmatch(r"(?:19|20)\d\d", number):
        return number in {reading[:4] for reading in readings_of_talk(evidence)} or number[2:] in evidence.numbers
    head, _, minutes = number.partition(".")
    if not (head.isdigit() and int(head) <= 24 and (minutes or _CLOCK_WORDS.search(fact))):
        return False
    hours = {head, str((int(head) + 12) % 24), str(int(head) + 1)}
    if minutes:
        return (
            minutes in evidence.numbers | {"5", "3"} and bool(hours & evidence.numbers)
        ) or f"{(int(head) + 12) % 24}.{minutes}" in evidence.numbers
    return str((int(head) + 12) % 24) in evidence.numbers


_CLOCK_WORDS = re.compile(
    r"(?i)\d ?(?:am|pm|h|uhr|o'clock)\b|\b(?:at|from|until|by|after|before|um|ab|bis|à|às|alle|om|las) \d{1,2}\b"
)


def _counted_up(number: str, evidence: Evidence) -> bool:
    """A small number in words may count what is listed: "two sons" said as two names."""
    return number.isdigit() and 2 <= int(number) <= COUNTED_MAX and _listed(evidence.text)


COUNTED_MAX = 4  # "two sons" said as two names; more things are rarely counted up


def _listed(text: str) -> bool:
    return bool(re.search(r"(?i)\w,? (?:and|&|\+|und|et|y|e|en|plus|with|w/) ?\w|\w, \w+", text))
