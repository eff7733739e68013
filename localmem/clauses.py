"""Cut what a person wrote into clauses, and choose those worth keeping. Pure; English.

A small model asked for all facts at once invents them. Led clause by clause it can't: fitted weights choose the clauses
worth keeping, and the model only chooses between wordings made of the person's own words (`retell`). Word
lists are data (``rules/clauses.toml``), weights too (``rules/extract.toml``, written by scripts/fit_rules.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from localmem import rules
from localmem.retell import listed, phrases, wish
from localmem.types import Message

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
    talk = sorted([*table["lead"].split(), *phrases(table["lead_phrases"])], key=len, reverse=True)
    return re.compile(rf"(?:(?:{'|'.join(map(re.escape, talk))})\b[\s,.!:;…–—-]*)+", re.IGNORECASE)


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
        "noted": any(sign in reply for sign in phrases(rules.load("clauses").table["signals"]["noted"])),
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
    yield "opens_like_question", first in listed("signals", "asking")
    yield "i", bool(have & {"i", "i'm", "i've", "im", "ive"})
    yield "i_will", bool(have & {"i'll", "i'd"})
    yield "we", bool(have & {"we", "we're", "we've", "we'll", "our", "us"})
    yield "my", "my" in have
    yield "my_first", first in ("my", "our")
    yield "i_first", first in ("i", "i'm", "i've", "im", "we", "we're", "we've")
    yield "me", "me" in have
    yield "you", bool(have & {"you", "your", "you're", "u"})
    yield "third_first", first in listed("signals", "third_first")
    yield "if", " if " in low or first == "imagine" or "suppose" in have
    yield "number", bool(re.search(r"\d", text))
    yield "numbers", len(re.findall(r"\d+", text)) >= 2
    yield "name", bool(names)
    yield "names", len(names) >= 2
    yield "lasting", bool(have & listed("signals", "lasting"))
    yield "kin", bool(have & listed("signals", "kin"))
    yield "state", bool(have & listed("signals", "state"))
    yield "thinking", any(f" {p} " in low for p in phrases(rules.load("clauses").table["signals"]["thinking"]))
    yield "imperative", first in listed("signals", "imperative")
    yield "wish", wish(text, "User") is not None
    yield "please", bool(have & {"please", "pls", "plz"})
    yield "quoted", bool(re.search('["“”]', text))
    yield "code", bool(re.search(r"[`{}<>=|]|://", text))
    yield "thanks", bool(have & {"thanks", "thank", "lol", "haha", "cheers", "ok", "okay"})


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower().replace("’", "'"))
