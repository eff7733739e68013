"""Cut what a person wrote into clauses, and turn a clause round to the third person. Pure; English.

A small model asked for all facts at once invents them. Led clause by clause it can't: fitted weights choose the clauses
worth keeping, and the model only chooses between wordings made of the person's own words. This module makes those
clauses and wordings. Word lists are data (``rules/clauses.toml``), weights too (``rules/extract.toml``, written by
scripts/fit_rules.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from localmem import rules, words
from localmem.types import Message

# A wording with choices: one tuple of alternatives per place, the likeliest first.
Lattice = tuple[tuple[str, ...], ...]

# Every repetition is bounded or begins where none like it stands before: no text takes quadratic time.
_SENTENCE_END = re.compile(
    r"(?:(?<![.!?…])[.!?…]+[\"'”’)\]]{0,4}(?=\s|$))|\n+|(?<=\s)[–—-]+(?=\s)|;(?=\s)|[\U0001F300-\U0001FAFF☀-➿]+"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|Dr|Mr|Mrs|Ms|Prof|St|vs|etc|approx|No|e\.g|i\.e|a\.m|p\.m|Jr|Sr|Inc)\.$"
)
_FIRST_PERSON = r"(?:i(?:['’](?:m|ve|ll|d))?|we(?:['’](?:re|ve|ll|d))?|my|our)\b"
_CLAUSE_CUT = re.compile(
    rf"(?:,\s{{0,9}}|\s{{1,9}})(?:and|but|so|plus|though|although)\s{{1,9}}"
    rf"(?=(?:also\s|now\s|then\s)?{_FIRST_PERSON})"
    rf"|[,:]\s{{1,9}}(?={_FIRST_PERSON})"
    r"|,?\s{1,9}so\s{1,9}(?=(?:it|that|the|this|he|she|they|you|nobody|please|don['’]t|do|no|leave|keep|what|how|can|could)\b)",
    re.IGNORECASE,
)
_CONTRACTED = {
    "i'm": ("is",), "im": ("is",), "i've": ("has",), "ive": ("has",), "i'll": ("will",), "i'd": ("would", "had"),
    "we're": ("is",), "we've": ("has",), "we'll": ("will",), "we'd": ("would", "had"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Clause:
    """Characters [start, end) of a text, trimmed of leading talk and outer marks."""

    text: str
    start: int
    end: int
    question: bool


# ------------------------------------------------------------------ cutting


def sentences(text: str) -> list[tuple[int, int]]:
    """The [start, end) of each sentence, without outer blanks; lines and emoji end one, abbreviations do not."""
    found: list[tuple[int, int]] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.group().startswith(".") and _ABBREVIATION.search(text[max(start, match.end() - 10) : match.end()]):
            continue
        _append_trimmed(found, text, start, match.end())
        start = match.end()
    _append_trimmed(found, text, start, len(text))
    return found


def clauses(text: str) -> list[Clause]:
    """The clauses of a text in order: sentences, cut where a new first-person part begins."""
    found: list[Clause] = []
    for begin, end in sentences(text):
        cuts = list(_CLAUSE_CUT.finditer(text, begin, end))
        starts = [begin, *(cut.end() for cut in cuts)]
        ends = [*(cut.start() for cut in cuts), end]
        asks = text[begin:end].rstrip().endswith("?")
        for start, stop in zip(starts, ends, strict=True):
            clause = _clause(text, start, stop, asks and stop == end)
            if clause is not None:
                found.append(clause)
    return found


def _append_trimmed(found: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if any(char.isalnum() for char in text[start:end]):
        found.append((start, end))


def _clause(text: str, start: int, end: int, question: bool) -> Clause | None:
    lead = _lead().match(text[start:end])
    if lead is not None:
        start += lead.end()  # a clause of nothing but that is none
    while end > start and not (text[end - 1].isalnum() or text[end - 1] in ")%€$£\"'”"):
        end -= 1
    while start < end and not (text[start].isalnum() or text[start] in "(€$£\"'“#"):
        start += 1
    return Clause(text[start:end], start, end, question) if end - start > 2 else None


@cache
def _lead() -> re.Pattern[str]:
    table = rules.load("clauses").table["cut"]
    talk = sorted([*table["lead"].split(), *_phrases(table["lead_phrases"])], key=len, reverse=True)
    return re.compile(rf"(?:(?:{'|'.join(map(re.escape, talk))})\b[\s,.!:;…–—-]*)+", re.IGNORECASE)


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split("|")]


@cache
def _listed(part: str, name: str) -> frozenset[str]:
    return frozenset(rules.load("clauses").table[part][name].split())


# ------------------------------------------------------------------ turning round


def restate(clause: str, subject: str = "User", *, before: str = "") -> Lattice:
    """The clause in the third person about ``subject``: a place per word, alternatives where grammar allows two.

    "I teach maths, my wife's a nurse" gives (User)(teaches)(maths,)(User's)(wife's)(a)(nurse). ``before``: what the
    person said before the clause, for whom "she" is. An empty lattice: nothing that can be said of the subject.
    Other languages than English are quoted: their grammar is not known here.
    """
    if "en" not in words.guess_languages(f"{before}\n{clause}"):
        return ((f"{subject}:",), *((token,) for token in clause.split()))
    wish = _wish(clause, subject)
    return _told(clause, subject, before) if wish is None else wish


def likeliest(lattice: Lattice) -> str:
    """The wording of first alternatives."""
    return " ".join(place[0] for place in lattice)


def _told(clause: str, subject: str, before: str) -> Lattice:
    places: list[tuple[str, ...]] = []
    own_verb = False  # the next verb is the subject's
    for token in clause.replace("’", "'").split():
        own_verb = _place(places, token, subject, own_verb)
    if not places or places[0][0].startswith(subject):
        return tuple(places)
    return _with_subject(places, subject, before)


def _place(places: list[tuple[str, ...]], token: str, subject: str, own_verb: bool) -> bool:
    """Append the places of one word; True while the subject's verb is still to come."""
    low = token.strip(',.;:!?()"“”').lower()
    head = token[: len(token) - len(token.lstrip('("“'))]
    tail = token[len(token.rstrip(',;:)"”')) :] if low else ""
    if low in ("i", "we"):
        places.append((head + subject + tail,))
        return True
    if low in _CONTRACTED:
        places += [(head + subject,), tuple(verb + tail for verb in _CONTRACTED[low])]
        return False
    changed = {
        "my": f"{subject}'s", "our": f"{subject}'s", "mine": f"{subject}'s", "ours": f"{subject}'s",
        "me": subject, "us": subject, "myself": "themselves", "ourselves": "themselves",
    }.get(low)  # fmt: skip
    if changed is not None:
        places.append((head + changed + tail,))
        return own_verb and "sel" in low
    if not own_verb:
        places.append((token,))
        return False
    adverb = low in _listed("verbs", "adverbs")
    places.append((token,) if adverb else tuple(form + tail for form in _verb(low)))
    return adverb


def _verb(low: str) -> tuple[str, ...]:
    """Third-person forms of a verb said in the first person, the likeliest first."""
    irregular = dict(pair.split("=") for pair in _listed("verbs", "irregular"))
    if low in irregular:
        return (irregular[low],)
    if low in _listed("verbs", "fixed") or low.endswith(("ed", "ing")) or not low.isalpha():
        return (low,)
    third = _third_person(low)
    return (low, third) if low in _listed("verbs", "either") else (third,)


def _third_person(low: str) -> str:
    if re.search(r"(?:s|sh|ch|x|z|o)$", low):
        return low + "es"
    if re.search(r"[^aeiou]y$", low):
        return low[:-1] + "ies"
    return low + "s"


def _with_subject(places: list[tuple[str, ...]], subject: str, before: str) -> Lattice:
    """A clause that does not begin with its subject, made to; empty where that would be guessing."""
    first = places[0][0]
    low = first.lower().strip(",;:")
    if low in _listed("openings", "they"):
        return _of_relative(places, subject, before)
    if low in _listed("openings", "no_topic"):
        return ()
    gerund = low.endswith("ing") and len(low) > 5 and low not in _listed("openings", "no_participle")
    if gerund and not any(place[0].lower() in _listed("verbs", "after_gerund") for place in places[1:9]):
        return ((subject,), ("is",), (low,), *places[1:])
    if len(places) > 2 and (low.endswith("ed") or low in _listed("openings", "own_verb") | _listed("verbs", "fixed")):
        return ((subject,), _verb(low), *places[1:])
    if low in ("the", "a", "an") and len(places) > 3:
        return ((f"{subject}'s",), *places[1:])
    return ((subject,), ("says",), *places) if len(places) > 2 else ()


def _of_relative(places: list[tuple[str, ...]], subject: str, before: str) -> Lattice:
    """ "She works nights" after "my wife …" is about the wife; after anything else it is left alone."""
    relatives = _relative().findall(before)
    if not relatives:
        return ()
    first = places[0][0].lower()
    start: list[tuple[str, ...]] = [(f"{subject}'s",), (relatives[-1],)]
    verb = {"he's": "is", "she's": "is", "they're": "are", "they've": "have"}.get(first)
    if verb is not None:
        start.append((verb,))
    elif first in ("his", "her", "their"):
        start[-1] = (f"{relatives[-1]}'s",)
    return (*start, *places[1:])


@cache
def _relative() -> re.Pattern[str]:
    listed = sorted(_listed("people", "relatives"), key=len, reverse=True)
    return re.compile(rf"\b(?i:my|our) ((?:[\w-]+ )?(?:{'|'.join(listed)})\b(?: [A-ZÀ-Þ][\w'-]+)?)")


def _wish(clause: str, subject: str) -> Lattice | None:
    """A standing order to the assistant said of the person: "never use emoji": User wants the assistant to never …"""
    plain = clause.replace("’", "'")
    found = _order().match(plain)
    if found is None or not (found["adverb"] or found["negation"] or _standing().search(plain)):
        return None
    verb, *rest = plain[found.end() :].split()
    if not rest:
        return None
    order = "not to" if found["negation"] else f"to {found['adverb'].lower()}" if found["adverb"] else "to"
    if found["negation"] == "stop":  # "stop suggesting …" is not "not to suggesting"
        order, verb = "to stop", verb.lower()
    places: list[tuple[str, ...]] = [(f"{subject} wants the assistant {order}",), (verb.lower(),)]
    own_verb = False
    for token in rest:
        own_verb = _place(places, token, subject, own_verb)
    return tuple(places)


@cache
def _order() -> re.Pattern[str]:
    table = rules.load("clauses").table["wishes"]
    one, *several = _phrases(table["polite"])
    polite = "|".join(sorted((*one.split(), *several), key=len, reverse=True))
    verbs = "|".join(table["verbs"].split())
    return re.compile(
        rf"(?:(?:{polite})\s+)*(?:(?P<adverb>always|never)\s+|(?P<negation>don't|do not|stop)\s+)?(?:please\s+|pls\s+)?"
        rf"(?=(?:{verbs})\b|(?<=stop )\w+ing\b)",
        re.IGNORECASE,
    )


@cache
def _standing() -> re.Pattern[str]:
    return _whole_words(_phrases(rules.load("clauses").table["wishes"]["standing"]))


def _whole_words(phrases: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?!\w)", re.IGNORECASE)


# ------------------------------------------------------------------ which clauses are worth keeping


def worth_keeping(text: str, *, before: Message | None, after: Message | None) -> list[Clause]:
    """The clauses of a user's message that probably hold something lasting, in order.

    ``before`` and ``after`` are the neighbouring messages: an assistant's "Noted" tells, and so does its question.
    """
    table = rules.load("extract").table["keep"]
    every = clauses(text)
    kept = []
    for position, clause in enumerate(every):
        given = signals(text, every, position, before, after)
        if (
            _is_plain(clause)
            or probability(given, word_set(clause.text), table["weights"], table["words"]) >= table["threshold"]
        ):
            kept.append(clause)
    return kept


def _is_plain(clause: Clause) -> bool:
    """A plain statement about oneself: "I work at a print shop", "my wife is called Ines"."""
    return not clause.question and _plain().match(clause.text.replace("’", "'")) is not None


@cache
def _plain() -> re.Pattern[str]:
    return re.compile(f"(?i:{'|'.join(rules.load('clauses').table['plain']['patterns'])})")


def probability(
    given: Mapping[str, float], said: frozenset[str], weights: Mapping[str, float], word_weights: Mapping[str, float]
) -> float:
    """Logistic model over the signals and the words of a clause; in (0, 1)."""
    total = sum(weights.get(name, 0.0) * value for name, value in given.items())
    total += sum(word_weights.get(word, 0.0) for word in said)
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, total))))


def word_set(text: str) -> frozenset[str]:
    """The words of a clause, lower case, straight apostrophes."""
    return frozenset(_words(text))


def signals(
    text: str, every: Sequence[Clause], position: int, before: Message | None, after: Message | None
) -> dict[str, float]:
    """What can be seen at a clause without understanding it, by name."""
    clause = every[position]
    said = _words(clause.text)
    seen = dict(_clause_signals(clause, said, frozenset(said)))
    reply = after.content.lower() if after is not None else ""
    seen |= {
        "answers_question": before is not None and before.role == "assistant" and "?" in before.content,
        "begins": before is None,
        "noted": any(sign in reply for sign in _phrases(rules.load("clauses").table["signals"]["noted"])),
        "long_reply": len(reply) > 150,
        "clauses": min(len(every), 10) / 5,
        "only_clause": len(every) == 1,
        "first_clause": position == 0,
        "last_clause": position == len(every) - 1,
        "message_asks": "?" in text,
        "message_ends_asking": text.rstrip().endswith("?"),
        "message_first_person": re.search(rf"\b{_FIRST_PERSON}", text, re.IGNORECASE) is not None,
        "message_length": min(len(text), 800) / 400,
    }
    return {name: float(value) for name, value in seen.items()}


def _clause_signals(clause: Clause, said: Sequence[str], have: frozenset[str]) -> Iterator[tuple[str, float]]:
    text, low, first = clause.text, f" {' '.join(said)} ", said[0] if said else ""
    names = re.findall(r"(?<=\w )[A-ZÀ-Þ][a-zà-ÿ]+", text)
    yield "constant", 1.0
    yield "length", min(len(said), 30) / 10
    yield "short", len(said) <= 3
    yield "long", len(said) > 25
    yield "question", clause.question
    yield "opens_like_question", first in _listed("signals", "asking")
    yield "i", bool(have & {"i", "i'm", "i've", "im", "ive"})
    yield "i_will", bool(have & {"i'll", "i'd"})
    yield "we", bool(have & {"we", "we're", "we've", "we'll", "our", "us"})
    yield "my", "my" in have
    yield "my_first", first in ("my", "our")
    yield "i_first", first in ("i", "i'm", "i've", "im", "we", "we're", "we've")
    yield "me", "me" in have
    yield "you", bool(have & {"you", "your", "you're", "u"})
    yield "third_first", first in _listed("signals", "third_first")
    yield "if", " if " in low or first == "imagine" or "suppose" in have
    yield "number", bool(re.search(r"\d", text))
    yield "numbers", len(re.findall(r"\d+", text)) >= 2
    yield "name", bool(names)
    yield "names", len(names) >= 2
    yield "lasting", bool(have & _listed("signals", "lasting"))
    yield "kin", bool(have & _listed("signals", "kin"))
    yield "state", bool(have & _listed("signals", "state"))
    yield "thinking", any(f" {p} " in low for p in _phrases(rules.load("clauses").table["signals"]["thinking"]))
    yield "imperative", first in _listed("signals", "imperative")
    yield "wish", _wish(text, "User") is not None
    yield "please", bool(have & {"please", "pls", "plz"})
    yield "quoted", bool(re.search('["“”]', text))
    yield "code", bool(re.search(r"[`{}<>=|]|://", text))
    yield "thanks", bool(have & {"thanks", "thank", "lol", "haha", "cheers", "ok", "okay"})


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower().replace("’", "'"))
