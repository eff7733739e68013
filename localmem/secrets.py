"""Mask secrets before anything is written: the kind and the length stay, the secret goes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from localmem import rules

ROUNDS_MAX = 5  # a mask may lay bare a boundary where the next secret begins; two rounds are usual
_PUNCTUATION = ".,;:!?)]}>\"'”“»«’‘`…、。"
_CLOSING = {'"': '"', "'": "'", "“": "”", "„": "“", "«": "»", "‚": "‘", "‘": "’", "`": "`"}
_DIGIT_RUN = re.compile(r"(?<![\w.,])\d+(?:[ -]\d+)*(?![\w])")
_DIGITS = re.compile(r"\d+")
_PLAIN = tuple((length,) for length in range(12, 20))
_GROUPINGS = frozenset(
    (*_PLAIN, (4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (6, 10), (6, 13), (4, 5, 6), (8, 8))
)
_PLACEHOLDERS = (
    "pass",
    "password",
    "passwd",
    "pwd",
    "secret",
    "xxx",
    "xxxx",
    "xxxxx",
    "token",
    "changeme",
    "example",
    "passwort",
)
_FIRST_SIZES = frozenset(grouping[0] for grouping in _GROUPINGS)


@dataclass(frozen=True, slots=True)
class SecretFound:
    """What was masked: characters [start, end) of the text as given."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Masked:
    """The text that may be written, and what was taken out of it, in order of place."""

    text: str
    found: tuple[SecretFound, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    start: tuple[str, ...]
    near: tuple[str, ...]
    pattern: re.Pattern[str]
    checks: tuple[str, ...]
    unless: re.Pattern[str] | None

    def matches(self, text: _Text) -> Iterator[re.Match[str]]:
        """Every match, in no particular order. With start literals the pattern is tried only where one stands."""
        if self.start:
            for place in text.places(self.start):
                if m := self.pattern.match(text.visible, place):
                    yield m
        elif any(literal in text.visible for literal in self.near):
            yield from self.pattern.finditer(text.visible)


@dataclass(frozen=True, slots=True)
class _Rules:
    patterns: tuple[_Rule, ...]
    blocks: tuple[tuple[str, re.Pattern[str], re.Pattern[str]], ...]
    card: Mapping[str, Any]
    card_context: re.Pattern[str]
    card_label: re.Pattern[str]
    password: _Rule
    sign_only: frozenset[str]
    not_values: frozenset[str]
    mask: re.Pattern[str]


@cache
def _rules() -> _Rules:
    table = rules.load("secrets").table
    patterns = tuple(map(_rule, (*table["key"], *table["label"])))
    blocks = tuple((row["kind"], re.compile(row["begin"]), re.compile(row["end"])) for row in table["block"]["kinds"])
    card, password = table["card"], table["password"]
    phrase = "(?i)" + password["noun"] + password["gap"] + password["verb"] + password["value"]
    kinds = {row.kind for row in patterns} | {kind for kind, _, _ in blocks} | {card["kind"], password["kind"]}
    names = "|".join(sorted(map(re.escape, kinds)))
    return _Rules(
        patterns=patterns,
        blocks=blocks,
        card=card,
        card_context=re.compile(card["context"]),
        card_label=re.compile(card["label"]),
        password=_rule({**password, "pattern": phrase}),
        sign_only=frozenset(password["sign_only"]),
        not_values=frozenset(password["not_values"].split()),
        mask=re.compile(rf"\[secret: (?:{names}), \d{{1,8}} characters\]"),
    )


def _rule(row: Mapping[str, Any]) -> _Rule:
    return _Rule(
        kind=row["kind"],
        start=tuple(row.get("start", ())),
        near=tuple(row.get("near", ())),
        pattern=re.compile(row["pattern"]),
        checks=tuple(row.get("checks", ())),
        unless=re.compile(row["unless"]) if "unless" in row else None,
    )


class _Text:
    """One text under search: masks that stand already are hidden, so that their own words match nothing."""

    def __init__(self, text: str) -> None:
        self.masks = [m.span() for m in _rules().mask.finditer(text)] if "[secret: " in text else []
        # Letters, not blanks: what stood beside the secret must not gain a word boundary by its going.
        self.visible = _rules().mask.sub(lambda m: "x" * len(m[0]), text) if self.masks else text
        lowered = self.visible.lower()
        if len(lowered) != len(self.visible):  # a few letters grow in lower case; positions must stay
            lowered = "".join(c.lower() if len(c.lower()) == 1 else c for c in self.visible)
        self._lowered = lowered
        self._known: dict[str, tuple[int, ...]] = {}

    def places(self, literals: tuple[str, ...]) -> Iterator[int]:
        """Where one of the literals begins. One in lower case is found in any case."""
        for literal in literals:
            if literal not in self._known:
                self._known[literal] = tuple(_find_all(self._lowered if literal.islower() else self.visible, literal))
            yield from self._known[literal]

    def hidden(self, start: int, end: int) -> bool:
        """Whether [start, end) touches a mask that stands already."""
        place = bisect_right(self.masks, (start, end))
        before = place > 0 and self.masks[place - 1][1] > start
        return before or (place < len(self.masks) and self.masks[place][0] < end)


def _find_all(text: str, literal: str) -> Iterator[int]:
    place = text.find(literal)
    while place >= 0:
        yield place
        place = text.find(literal, place + 1)


def mask(text: str, context: str = "") -> Masked:
    """Replace each secret by ``[secret: <kind>, <n> characters]``.

    ``context`` is what was said just before: a card number may be asked for in one message and given in the next.
    Masking a masked text changes nothing. Linear in the length of the text, about 0.2 s a megabyte.
    """
    found: list[SecretFound] = []
    current = text
    for _ in range(ROUNDS_MAX):
        spans = _disjoint(_candidates(current, context))
        if not spans:
            break
        # Positions in `current` are moved back to the text as given: every mask so far has shifted what follows it.
        origin = _Origin(found)
        placed = [SecretFound(s.kind, origin.at(s.start), origin.at(s.end)) for s in spans]
        found = sorted([*found, *placed], key=lambda s: s.start)
        current = _replace(text, found)
    return Masked(current, tuple(found))


def replacement(kind: str, length: int) -> str:
    """What stands in the place of a secret."""
    return f"[secret: {kind}, {length} characters]"


class _Origin:
    """Maps a position in the masked text back to the text as given."""

    def __init__(self, found: list[SecretFound]) -> None:
        self._ends: list[int] = []
        self._shifts: list[int] = []
        shift = 0
        for s in found:
            shift += len(replacement(s.kind, s.end - s.start)) - (s.end - s.start)
            self._ends.append(s.end + shift)
            self._shifts.append(shift)

    def at(self, position: int) -> int:
        passed = bisect_right(self._ends, position)
        return position - (self._shifts[passed - 1] if passed else 0)


def _replace(text: str, found: list[SecretFound]) -> str:
    parts: list[str] = []
    last = 0
    for s in found:
        parts += (text[last : s.start], replacement(s.kind, s.end - s.start))
        last = s.end
    return "".join((*parts, text[last:]))


def _disjoint(spans: Iterator[SecretFound]) -> list[SecretFound]:
    """The first in place wins, among those the longest."""
    chosen: list[SecretFound] = []
    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        if not chosen or span.start >= chosen[-1].end:
            chosen.append(span)
    return chosen


def _candidates(text: str, context: str) -> Iterator[SecretFound]:
    searched = _Text(text)
    found = chain(_blocks(searched), _patterns(searched), _passwords(searched), _cards(searched, context))
    return (s for s in found if not searched.hidden(s.start, s.end))


def _patterns(text: _Text) -> Iterator[SecretFound]:
    for rule in _rules().patterns:
        group = "s" if "s" in rule.pattern.groupindex else 0
        for m in rule.matches(text):
            around = text.visible[max(0, m.start() - 20) : m.end() + 20]
            if all(_CHECKS[check](m[group]) for check in rule.checks) and not (
                rule.unless and rule.unless.search(around)
            ):
                yield SecretFound(rule.kind, m.start(group), m.end(group))


def _mixed(value: str) -> bool:
    """Letters and digits together, and not one character over and over: words and identifiers in snake case are not."""
    digits = sum(c.isdigit() for c in value)
    return digits >= 2 and any(c.isalpha() for c in value) and len(set(value)) >= min(8, len(value) // 3)


def _no_placeholder(value: str) -> bool:
    folded = value.casefold()
    return folded not in _PLACEHOLDERS and len(set(folded) - {"*", "x", "•", "."}) > 0 and "…" not in value


_CHECKS = {"mixed": _mixed, "no placeholder": _no_placeholder}


def _blocks(text: _Text) -> Iterator[SecretFound]:
    """Private key blocks. Without an end marker the key material that follows is masked all the same."""
    visible = text.visible
    for kind, begin, end in _rules().blocks:
        starts = [(m.start(), m.end()) for m in begin.finditer(visible)]
        ends = [m.end() for m in end.finditer(visible)] if starts else []
        for n, (start, body) in enumerate(starts):
            following = starts[n + 1][0] if n + 1 < len(starts) else len(visible)
            place = bisect_right(ends, body)
            if place < len(ends) and ends[place] <= following:
                yield SecretFound(kind, start, ends[place])
            else:
                material = _KEY_BODY.match(visible, body, following)
                yield SecretFound(kind, start, material.end() if material else body)


_KEY_BODY = re.compile(r"(?:(?:[A-Za-z-]{3,20}: [^\n]{1,80})?\\?n?\s*+[A-Za-z0-9+/=]{16,}+)*+")


def _passwords(text: _Text) -> Iterator[SecretFound]:
    rule = _rules().password
    for m in rule.matches(text):
        noun = " ".join(m["noun"].casefold().split())
        if noun in _rules().sign_only and not m["sign"]:
            continue
        start, end = _value_span(text.visible, m)
        rest = text.visible[end : end + 40]
        if _is_value(text.visible[start:end], quoted=bool(m["open"]), sign=bool(m["sign"]), rest=rest):
            yield SecretFound(rule.kind, start, end)


def _value_span(text: str, m: re.Match[str]) -> tuple[int, int]:
    """The value without its quotes and without the punctuation of the sentence around it."""
    start, end = m.span("s")
    close = _CLOSING.get(m["open"])
    if close:
        stop = text.find(close, start, min(len(text), start + 130))
        if stop > start and "\n" not in text[start:stop]:
            return start, stop
    while end > start and text[end - 1] in _PUNCTUATION:
        # A password may end in "!": keep it when the rest already looks like one, the sentence would rarely shout
        # there.
        if text[end - 1] in "!?" and any(c.isdigit() for c in text[start : end - 1]):
            break
        end -= 1
    return start, end


def _is_value(value: str, *, quoted: bool, sign: bool, rest: str) -> bool:
    """Whether what follows "password is" is a password, and not a word about it."""
    folded = value.casefold()
    if len(value) < 3 or folded in _rules().not_values or not _no_placeholder(folded):
        return False
    if any(c in value for c in "<>{}$") and not any(c.isdigit() for c in value):
        return False  # a placeholder: <password>, ${DB_PASSWORD}
    if re.match(r"(?:[a-z_]+\.)+[a-z_]+[\[(]|[a-z_]+\(", value):
        return False  # code: getpass(), os.environ["…"]
    if quoted:
        return len(value.split()) <= 8
    shaped = any(c.isdigit() for c in value) or bool(re.search(r"[a-z][A-Z]|[^\w\s'’.,-]", value))
    if value.isdigit():
        return len(value) >= 4 and not re.match(
            r"\s?-?(?:char|digit|letter|symbol|word|zeichen|caract|carat|tekens|cijfers|chiffres)", rest, re.I
        )
    if re.fullmatch(r"\d+[-–]?(?:\d+|chars?|characters|digits?|letters|stellig\w*)", folded):
        return False
    if shaped:
        return True
    # A plain word: only as the last of its clause, or after a sign.
    ends_clause = bool(
        re.match(
            r"\s*(?:$|[.,;!?)\n]|(?:and|und|et|y|e|en|but|so|btw|for|if|in case|please|pls|thx|thanks)\b)", rest, re.I
        )
    )
    return len(value) >= 4 and ends_clause and (sign or value.isalpha() or "-" in value)


def _cards(text: _Text, context: str) -> Iterator[SecretFound]:
    found = list(_card_spans(text.visible))
    context_of = _rules().card_context
    if found and (context_of.search(text.visible) or context_of.search(context)):
        yield from (SecretFound(_rules().card["kind"], start, end) for start, end in found)


def _card_spans(text: str) -> Iterator[tuple[int, int]]:
    """Digit groups that could be a card by length, grouping, issuer and check digit, and have no other label."""
    for run in _DIGIT_RUN.finditer(text):
        if run.end() - run.start() < 12:
            continue
        groups = [(m.start(), m.end()) for m in _DIGITS.finditer(text, run.start(), run.end())]
        taken = 0
        for first in range(len(groups)):
            if first < taken or groups[first][1] - groups[first][0] not in _FIRST_SIZES:
                continue
            for last in range(first, min(first + 5, len(groups))):
                start, end = groups[first][0], groups[last][1]
                grouped = tuple(b - a for a, b in groups[first : last + 1])
                if first >= taken and grouped in _GROUPINGS and _is_card(re.sub(r"[ -]", "", text[start:end])):
                    if not _labelled(text[max(0, start - 40) : start]):
                        yield start, end
                    taken = last + 1


def _labelled(before: str) -> bool:
    """Whether the words right before say that the number is something else: an order, an IMEI."""
    words = before.rstrip(" :#=-")
    return bool(words) and not words[-1].isdigit() and bool(_rules().card_label.search(before))


def _is_card(digits: str) -> bool:
    return len(set(digits)) > 1 and _has_issuer(digits) and _luhn(digits)


def _has_issuer(digits: str) -> bool:
    for issuer in _rules().card["issuers"]:
        if len(digits) not in issuer["lengths"]:
            continue
        for prefix in issuer["prefixes"]:
            low, _, high = prefix.partition("-")
            if int(low) <= int(digits[: len(low)]) <= int(high or low):
                return True
    return False


def _luhn(digits: str) -> bool:
    doubled = sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (doubled + sum(int(d) for d in digits[-1::-2])) % 10 == 0
