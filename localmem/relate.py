"""What can be seen between a new fact and one known memory without understanding them. Pure; English cues.

`signals` gives named numbers; `decide` weighs them together with the model's label scores. The cue words are data
(``rules/relate.toml``), few and plain on purpose: how much each matters is fitted on examples (``rules/decide.toml``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from localmem import dates, rules, words

JOINED_WORDS_MAX = 36  # as long as the longest wordings that the tuned model learnt
_JOINT = "; "
_STOPS = frozenset({"user", "user's", "users", "not", "no", "longer", "any", "more", "anymore"})
_NAME = re.compile(r"(?<=[ (\"'“])[A-ZÀ-Þ][\w'’-]+")
REPEATED_SHARE = 0.5  # of the fact's content words, in the memory that is said to hold it already
PARAPHRASE_COSINE = 0.85  # or this near in meaning
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")

# Signals that mean more or less depending on how near the two are.
_CUES = ("ending", "changing", "negated", "no_longer", "adding", "number_differs", "name_differs", "past", "open")
_NEARNESS = ("cosine", "known_covered", "nearest", "fact_covered", "same_subject", "lead")


def signals(fact: str, known: str, cosine: float, cosines: Sequence[float]) -> dict[str, float]:
    """Named numbers about a fact and one known memory; ``cosines`` are those of all memories shown, this one too."""
    seen = {name: float(value) for name, value in _plain(fact, known, cosine, cosines)}
    for near in _NEARNESS:
        for cue in (*_CUES, "known_open"):
            seen[f"{cue}*{near}"] = seen[cue] * seen[near]
    seen["nearest*fact_covered"] = seen["nearest"] * seen["fact_covered"]
    seen["nearest*known_covered"] = seen["nearest"] * seen["known_covered"]
    seen["fact_covered*longer"] = seen["fact_covered"] * seen["longer"]
    seen["known_covered*longer"] = seen["known_covered"] * seen["longer"]
    seen["same_subject*cosine"] = seen["same_subject"] * cosine
    seen["other_person*cosine"] = seen["other_person"] * cosine
    return seen


def _plain(fact: str, known: str, cosine: float, cosines: Sequence[float]) -> Iterator[tuple[str, float]]:
    said, kept = content(fact), content(known)
    new, old = frozenset(said), frozenset(kept)
    others = sorted(cosines, reverse=True)
    others.remove(cosine)
    fact_covered = len(new & old) / max(1, len(new))
    known_covered = len(new & old) / max(1, len(old))
    yield "constant", 1.0
    yield "cosine", cosine
    yield "cosine_squared", cosine * cosine
    yield "cosine_high", max(0.0, cosine - 0.8)
    yield "fact_covered", fact_covered
    yield "known_covered", known_covered
    yield "both_covered", fact_covered * known_covered
    yield "fact_all_covered", fact_covered == 1
    yield "known_all_covered", known_covered == 1
    yield "nearest", not others or cosine >= others[0]
    yield "lead", cosine - (others[0] if others else 0.3)
    yield "crowd", sum(others) / len(others) if others else 0.3
    yield "new_words", min(len(new - old), 6) / 3
    yield "old_words", min(len(old - new), 6) / 3
    yield "longer", max(-6, min(6, len(said) - len(kept))) / 3
    yield "same_first", bool(said and kept and said[0] == kept[0])
    yield "same_last", bool(said and kept and said[-1] == kept[-1])
    yield from _attribute(fact, known, new - old, old - new)
    yield from _subjects(subject(fact), subject(known))
    yield from _particulars("name", names(fact), names(known))
    yield from _particulars("number", numbers(fact), numbers(known))
    yield from _cues(fact, known)


def _subjects(new: str, old: str) -> Iterator[tuple[str, float]]:
    plain = ("user", "user's")
    yield "same_subject", new == old
    yield "other_person", new != old and (new not in plain or old not in plain)
    yield "user_and_thing", new != old and new in plain and old in plain


def _attribute(fact: str, known: str, gained: frozenset[str], lost: frozenset[str]) -> Iterator[tuple[str, float]]:
    """Signs that both speak of the same attribute and only its value differs ("User's favourite tea is …")."""
    a, b = ([token.folded for token in words.tokens(text)] for text in (fact, known))
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    swapped = 1 <= len(gained) <= 2 and 1 <= len(lost) <= 2
    single = _has("single", fact) and _has("single", known)
    days, days_before = frozenset(_pattern("day").findall(fact)), frozenset(_pattern("day").findall(known))
    yield "shared_start", min(shared, 6) / 3
    yield "value_swapped", swapped
    yield "value_swapped_after_start", swapped and shared >= 3
    yield "single_valued", single
    yield "single_value_swapped", single and swapped
    yield "many_valued", _has("many", fact)
    yield "day_differs", bool(days and days_before and not days & days_before)


def _particulars(what: str, new: frozenset[str], old: frozenset[str]) -> Iterator[tuple[str, float]]:
    yield f"{what}_differs", bool(new and old and not new & old)
    yield f"{what}_new", bool(new - old)
    yield f"{what}_old", bool(old - new)
    yield f"{what}_shared", bool(new & old)


def _cues(fact: str, known: str) -> Iterator[tuple[str, float]]:
    denied, denied_before = _has("negation", fact), _has("negation", known)
    yield "ending", _fresh("ending", fact, known)
    yield "ended_before", _has("ending", known)
    yield "no_longer", _has("no_longer", fact)
    yield "asking_to_drop", _has("asking_to_drop", fact)
    yield "changing", _fresh("changing", fact, known)
    yield "adding", _has("adding", fact)
    yield "open", _has("open", fact)
    yield "known_open", _has("open", known)
    yield "past", _has("past", fact)
    yield "known_past", _has("past", known)
    yield "negated", denied and not denied_before
    yield "known_negated", denied_before and not denied
    yield "both_negated", denied and denied_before


def _fresh(cue: str, fact: str, known: str) -> bool:
    """Whether the fact has a cue word that the memory lacks: "a retired teacher" ends nothing for a retired one."""
    before = frozenset(word.casefold() for word in _pattern(cue).findall(known))
    return any(word.casefold() not in before for word in _pattern(cue).findall(fact))


def _has(cue: str, text: str) -> bool:
    return _pattern(cue).search(text) is not None


@cache
def _pattern(cue: str) -> re.Pattern[str]:
    table = rules.load("relate").table
    source = {**table["cues"], **table["attributes"], **table["people"]}[cue].replace("\n", "")
    return re.compile(rf"\b(?:{source})\b", re.IGNORECASE)


@cache
def _relative() -> re.Pattern[str]:
    return re.compile(rf"User['’]?s ((?:[\w-]+ ){{0,2}}?{_pattern('relatives').pattern})", re.IGNORECASE)


def states_replacement(text: str) -> bool:
    """Whether a fact that ends something also says what holds instead."""
    return _has("replacing", text)


def negates(text: str) -> bool:
    """Whether a text says that something is not so."""
    return _has("negation", text)


def content(text: str) -> list[str]:
    """Stems of the words that carry content, in order."""
    stop = words.stop_words("en") | _STOPS
    return [words.stem(token.folded) for token in words.tokens(text) if token.folded not in stop]


def subject(text: str) -> str:
    """Whom or what a fact is about: "user", a relative ("sister"), "user's" for a thing of the user, else a name."""
    relative = _relative().match(text)
    if relative:
        return relative.group(1).lower().split()[-1]
    if re.match(r"Users? |User,", text):
        return "user"
    return "user's" if text.startswith(("User's", "User’s")) else text.partition(" ")[0].lower()


def names(text: str) -> frozenset[str]:
    """Capitalised words that do not open the text."""
    return frozenset(_NAME.findall(text)) - {"User", "User's", "User’s", "Assistant"}


def numbers(text: str) -> frozenset[str]:
    """Numbers, dates and times as written, without the day when it was said (`dates.as_said`)."""
    return frozenset(_NUMBER.findall(dates.SAID_ON.sub("", text)))


def conflicts(fact: str, known: str) -> bool:
    """Whether the fact seems to contradict the memory rather than add to it: other names, numbers, or a cue."""
    for new, old in ((names(fact), names(known)), (numbers(fact), numbers(known))):
        if new and old and not new & old:
            return True
    denied, denied_before = _has("negation", fact), _has("negation", known)
    return denied != denied_before or _has("changing", fact) or _has("ending", fact)


def may_repeat(fact: str, known: str, cosine: float) -> bool:
    """Whether the fact could say nothing that the memory does not: no new number or name, and enough shared words.

    A fact that is dropped as known is lost, so what the weights call the same has to look like it as well.
    """
    if numbers(fact) - numbers(known) or names(fact) - names(known):
        return False
    said, told = frozenset(content(fact)), frozenset(content(known))
    return not said or len(said & told) >= REPEATED_SHARE * len(said) or cosine >= PARAPHRASE_COSINE


def neutral(fact: str, known: str) -> tuple[str, str]:
    """Both texts with the person they are about as "User", where that is the same named person.

    The weights know facts about "User"; a name in every fact of two people's talk would count as a shared word.
    """
    first = re.match(r"[^\W\d_][\w-]+", fact)
    if first is None or first[0] in ("User", "Users", "Assistant") or not re.match(rf"{first[0]}\b", known):
        return fact, known
    name = re.compile(rf"\b{first[0]}\b")
    return name.sub("User", fact), name.sub("User", known)


def adds_up(fact: str, known: str) -> bool:
    """Whether every content word of the memory is in the fact, so that nothing is lost by replacing it."""
    return frozenset(content(known)) <= frozenset(content(fact))


def joined(fact: str, known: str) -> str | None:
    """Both texts in one, the memory's first; None where that is too long, or the memory was joined before."""
    text = f"{known}{_JOINT}{fact}"
    return None if _JOINT in known or len(text.split()) > JOINED_WORDS_MAX else text


def instead(fact: str, known: str) -> str:
    """The fact in the place of a memory; of a joined memory the part that shares fewer words with the fact stays."""
    said = frozenset(content(fact))
    parts = known.split(_JOINT)
    replaced = max(parts, key=lambda part: len(said & frozenset(content(part))))
    return _JOINT.join([fact, *(part for part in parts if part is not replaced)])
