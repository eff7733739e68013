"""The guards: each a yes or no about one class of words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

from localmem import dates, rules, words
from localmem.support.evidence import Evidence, begins_alike, content, kin, parts_of, squeeze, word_list
from localmem.support.negation import negation_agrees, sentence_around
from localmem.support.quantities import identifiers_stand, quantities_stand, read, readings_of_talk
from localmem.types import Instant, Message

GUARDS = ("name", "identifier", "quantity", "date", "negation", "subject", "relation", "words")
SHARE_MIN = 0.2  # of the fact's other content words; fitted so that at most 1 % of gold facts fall, all guards together
WORDS_MIN = 3  # fewer content words say too little for a share
_CAPITALISED = re.compile(r"(?<![\w'])[^\W\d_a-zà-öø-ÿ][\w'’.-]*[\w]|(?<![\w'])[^\W\d_a-zà-öø-ÿ](?!\w)")


def check(
    fact_text: str, quote: str, messages: Sequence[Message], context: Sequence[str] = (), at: Instant = 0
) -> tuple[str, ...]:
    """The names of the guards that failed, in the order of ``GUARDS``; empty: the fact is supported.

    ``quote`` is the fact's own evidence ("" where there is none: then every message counts), ``context`` what was
    said or known before, ``at`` the time of the messages, against which dates are derived.
    """
    said = [m.content for m in messages]
    speakers = [m.name for m in messages if m.name]
    evidence = read("\n".join((*said, *context, *speakers)), at)
    failed = {
        "name": not names_stand(fact_text, evidence),
        "identifier": not identifiers_stand(fact_text, evidence),
        "quantity": not quantities_stand(fact_text, evidence),
        "date": not dates_follow(fact_text, evidence),
        "negation": bool(quote) and not negation_agrees(fact_text, sentence_around(quote, said)),
        "subject": not subject_agrees(fact_text, quote),
        "relation": not relations_stand(fact_text, quote, evidence),
        "words": share(fact_text, evidence) < SHARE_MIN,
    }
    return tuple(guard for guard in GUARDS if failed[guard])


# --- names ---


def names_stand(fact: str, evidence: Evidence) -> bool:
    """Every capitalised word is in the conversation, or begins like one of its words (Poland, Polish)."""
    if words.guess_languages(fact)[0] == "de":
        return True  # every German noun has a capital: there they count as words
    return all(_known(name, evidence) or _initialled(name, fact, evidence) for name in _names(fact))


def _initialled(name: str, fact: str, evidence: Evidence) -> bool:
    """Whether the conversation has the initials of a name of several words: New Zealand said as NZ."""
    for m in re.finditer(r"(?:[A-Z][\w'’-]+ ){1,4}[A-Z][\w'’-]+", fact):
        initials = "".join(word[0] for word in m[0].split())
        if name in words.bare(m[0]) and any(initials.lower().endswith(w) for w in evidence.folded if len(w) > 1):
            return True
    return False


def _names(fact: str) -> Iterator[str]:
    dated = [(p.start, p.end) for p in dates.resolve(fact, 0)]
    for m in _CAPITALISED.finditer(fact):
        folded = words.bare(m[0]).removesuffix("'s").strip(".'")
        first = m.start() == 0 or fact[: m.start()].rstrip()[-1:] in ".;:!?"
        if len(folded) < 2 or folded in _not_names() or (first and folded in words.all_stop_words()):
            continue
        if any(char.isdigit() for char in folded) or any(start <= m.start() < end for start, end in dated):
            continue  # identifiers and dates have guards of their own
        if first and m.start() and m[0][1:].islower():
            continue  # an ordinary word that begins a second sentence
        yield folded


def _known(name: str, evidence: Evidence) -> bool:
    parts = [part for part in re.split(r"[-./' ]", name) if part]
    if all(
        part in evidence.folded
        or f"{part}s" in evidence.folded
        or words.stem(part) in evidence.stems
        or begins_alike(part, evidence.folded)
        for part in parts
    ):
        return True
    if "-" in name and any(len(part) > 3 and part in evidence.folded for part in parts):
        return True
    return len(name) > 2 and squeeze(name) in evidence.squeezed


@cache
def _holiday_words() -> frozenset[str]:
    table = rules.load("dates").table
    return frozenset(
        w
        for lang in words.LANGUAGES
        for row in table[lang]["holidays"]
        for w in re.split(r"[^a-z']+", words.bare(row))
        if w
    )


@cache
def _not_names() -> frozenset[str]:
    table = rules.load("dates").table
    dated = {
        name
        for lang in words.LANGUAGES
        for key in ("months", "weekdays")
        for row in table[lang][key]
        for name in row.split("|")
    }
    plural = {f"{name}s" for name in dated}
    return frozenset(map(words.bare, dated | plural)) | _holiday_words() | word_list("common_capitals")


# --- dates ---


def dates_follow(fact: str, evidence: Evidence) -> bool:
    """Every date of the fact stands in the conversation or is what one of its phrases may mean at that time."""
    phrases = [p for p in dates.resolve(fact, evidence.at) if not p.relative or p.granularity == "season"]
    if not phrases:
        return True
    known = readings_of_talk(evidence)
    return all(_date_known(p, known, evidence) for p in phrases)


def _date_known(phrase: dates.DatePhrase, known: frozenset[str], evidence: Evidence) -> bool:
    named = re.sub(r"^[a-zà-ÿ' ]+(?=[A-ZÀ-Þ0-9])", "", phrase.phrase)
    if words.bare(named) in words.bare(evidence.text):
        return True
    value = phrase.value[:10] if phrase.granularity != "season" else phrase.value
    if value in known or (phrase.granularity in ("month", "year") and any(r.startswith(value) for r in known)):
        return True
    if phrase.granularity == "season":
        return value.split()[0] in evidence.folded or value.split()[-1] in {r[:4] for r in known}
    # The year alone may come from the time of the message: "in March" said in 2025.
    return phrase.granularity == "year" and bool({phrase.value, phrase.value[2:]} & evidence.numbers)


# --- subject and relations ---


def subject_agrees(fact: str, quote: str) -> bool:
    """Not: "my sister is vegan" told as "User is vegan". Only where the quote has no "I" and the fact no relative."""
    if not quote or not re.match(r"User (?!and\b)", fact):
        return True
    found = [token.folded for token in words.tokens(quote)]
    if not found or not _relative_after_my(found):
        return True
    person = {"my", "our", "mein", "meine", "mon", "ma", "mi", "mio", "mia", "meu", "minha", "mijn"}
    speaks = [word for word in found if word in _first_person() and word not in person]
    in_fact = {part for token in words.tokens(fact) for part in parts_of(token.folded)}
    row = _relative_after_my(found)
    return bool(speaks or in_fact & row or "user's" in in_fact or any(w in found for w in ("we", "us", "both")))


def _relative_after_my(found: list[str]) -> frozenset[str]:
    """The row of kin words of a quote that begins with "my sister …", else empty."""
    for word, following in pairwise(found):
        if word in ("my", "mein", "meine", "mon", "ma", "mi", "mio", "mia", "meu", "minha", "mijn"):
            return next((row for row in kin() if following in row), frozenset())
    return frozenset()


@cache
def _first_person() -> frozenset[str]:
    return frozenset(rules.load("support").table["first_person"].split())


def relations_stand(fact: str, quote: str, evidence: Evidence) -> bool:
    """ "User's sister" needs a sister, or a word for one, in the conversation, where the quote speaks of "I" or other
    kin.

    A quote about neither may use a pet name for the person ("Koro came to practice").
    """
    for m in re.finditer(r"(?:User's|the user's|their|has an?) (\w+)(?!-?\w)", fact):
        row = next((row for row in kin() if words.bare(m[1]) == min(row, key=lambda w: _rank(w, row))), None)
        if row and not row & evidence.folded and _speaks_of_others(quote, row):
            return False
    return True


def _speaks_of_others(quote: str, row: frozenset[str]) -> bool:
    spoken = {part for token in words.tokens(quote) for part in (*parts_of(token.folded), token.folded)}
    others = frozenset().union(*(other for other in kin() if not other & row))
    return not quote or bool(spoken & (word_list("self") | others))


def _rank(word: str, row: frozenset[str]) -> int:
    return _leaders().index(word) if word in _leaders() else len(_leaders())


@cache
def _leaders() -> tuple[str, ...]:
    return tuple(row.split()[0] for row in rules.load("support").table["kin"])


# --- other words ---


def share(fact: str, evidence: Evidence) -> float:
    """The share of the fact's content words that the conversation has, by stem or by a shared beginning."""
    meant = content(fact)
    if len(meant) < WORDS_MIN:
        return 1.0
    known = [s for s in meant if s in evidence.stems or begins_alike(s, evidence.folded) or _kin_said(s, evidence)]
    return len(known) / len(meant)


def _kin_said(stem: str, evidence: Evidence) -> bool:
    """Whether another word for the same relative was said: nana for grandmother."""
    return any(stem in row and row & evidence.folded for row in kin())
