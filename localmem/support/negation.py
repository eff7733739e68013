"""Does the fact say no where its quote does, and only there?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from localmem import rules, words
from localmem.support.evidence import SENTENCE, word_list


def negation_agrees(fact: str, quote: str) -> bool:
    """A fact says no only where its quote does, and what the quote denies the fact doesn't state."""
    in_fact, in_quote = _turns(fact), _turns(quote)
    return (
        not _says_the_opposite(fact, quote)
        and not _denies_what_is_said(in_fact, in_quote)
        and not _states_what_is_denied(in_fact, in_quote)
    )


def sentence_around(quote: str, said: Sequence[str]) -> str:
    """The quote with the rest of its sentences: "Things I can't eat: raw onion" belongs to a quote of "raw onion"."""
    for text in said:
        start = text.find(quote)
        if start >= 0:
            end = start + len(quote)
            pieces = [m for m in SENTENCE.finditer(text) if m.start() < end and m.end() > start]
            return text[min([start, *(m.start() for m in pieces)]) : max([end, *(m.end() for m in pieces)])]
    return quote


NEAR_WORDS = 6  # how far a cue reaches, in words


@dataclass(frozen=True, slots=True)
class _Turns:
    """A text word by word: stems, where it says no, and where it says no or a word of that meaning."""

    stems: tuple[str, ...]  # "" for words without content
    breaks: frozenset[int]  # words that begin a new clause
    negations: tuple[int, ...]
    turned: tuple[int, ...]

    def denied(self, place: int) -> frozenset[str]:
        """The next two content words of the clause: what a negation is about. None where two undo each other."""
        if any(0 < abs(place - other) <= NEAR_WORDS for other in self.negations):
            return frozenset()
        found: list[str] = []
        for n in range(place + 1, min(place + 1 + NEAR_WORDS, len(self.stems))):
            if n in self.breaks or len(found) == 2:
                break
            found += [self.stems[n]] if self.stems[n] else []
        return frozenset(found)

    def near(self, place: int) -> bool:
        return any(abs(place - cue) <= NEAR_WORDS for cue in self.turned)


def _denies_what_is_said(fact: _Turns, quote: _Turns) -> bool:
    """Whether the fact denies a word that the quote states with no cue near it."""
    for place in fact.negations:
        denied = fact.denied(place)
        said = [n for n, stem in enumerate(quote.stems) if stem in denied]
        # "mm, not inches": in a contrast the denied side may stand in the quote with a cue of any kind.
        if place not in fact.breaks and said and not any(quote.near(n) for n in said):
            return True
    return False


def _states_what_is_denied(fact: _Turns, quote: _Turns) -> bool:
    """Whether the fact states two words that the quote denies together, with no cue near them."""
    for place in quote.negations:
        denied = quote.denied(place)
        said = [n for n, stem in enumerate(fact.stems) if stem in denied]
        if len(denied) > 1 and denied <= set(fact.stems) and not any(fact.near(n) for n in said):
            return True
    return False


def _says_the_opposite(fact: str, quote: str) -> bool:
    """Whether the fact has "started X" where the quote has "stopped X" and nowhere "started X"; and so on."""
    for one, other in _opposites():
        for verb, counter in ((one, other), (other, one)):
            wanted = _objects(fact, verb)
            if wanted & _objects(quote, counter) - _objects(quote, verb):
                return True
    return False


@cache
def _opposites() -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    pairs = rules.load("support").table["opposites"]
    return tuple((frozenset(one.split()), frozenset(other.split())) for one, other in pairs)


@lru_cache(maxsize=256)
def _objects(text: str, verbs: frozenset[str]) -> frozenset[str]:
    """Stems of the first content word after each of the verbs, at most three words on."""
    spoken = [token.folded for token in words.tokens(text)]
    skipped = words.all_stop_words() | word_list("light")
    found = set()
    for place, word in enumerate(spoken):
        if word in verbs:
            after = (later for later in spoken[place + 1 : place + 4] if later not in skipped)
            found.add(words.stem(next(after, "")))
    return frozenset(found - {""})


@cache
def _negations(languages: tuple[str, ...]) -> frozenset[str]:
    table = rules.load("support").table["negation"]
    return frozenset(word for language in languages for word in table[language].split())


@cache
def _reversing() -> frozenset[str]:
    return words.stems(rules.load("support").table["reversing"].split())


@lru_cache(maxsize=256)
def _turns(text: str) -> _Turns:
    spoken = words.tokens(text)
    cues = _negations(words.guess_languages(text))
    negations = tuple(n for n, token in enumerate(spoken) if _negates(token, cues, text))
    turned = tuple(n for n, token in enumerate(spoken) if n in negations or words.stem(token.folded) in _reversing())
    skipped = words.all_stop_words() | cues | word_list("light")
    stems = tuple("" if t.folded in skipped or n in negations else words.stem(t.folded) for n, t in enumerate(spoken))
    between = [text[a.end : b.start] for a, b in pairwise(spoken)]
    breaks = {n + 1 for n, gap in enumerate(between) if re.search(r"[,;:.!?()\n–—]", gap)}
    breaks |= {n for n, token in enumerate(spoken) if token.folded in word_list("joining")}
    return _Turns(stems, frozenset(breaks), negations, turned)


def _negates(token: words.Token, cues: frozenset[str], text: str) -> bool:
    if token.folded in ("no", "nope", "nah", "nein", "non", "nee") and _NO_TO_A_QUESTION.match(text[token.end :]):
        return False
    return token.folded in cues or token.folded.endswith("n't")


# "claim no. HH-77310"; "no, she's in Pune", "no he eats anything": an answer, not a denial of what follows.
_NO_TO_A_QUESTION = re.compile(
    r"(?i)\. ?[A-Z]*-?\d|,? (?:i|he|she|it|we|they|that|this|er|sie|es|il|elle|\w+['’]s|i['’]m|the|my)\b"
)
