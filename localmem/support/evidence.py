"""What a conversation holds, read once for all guards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from localmem import rules, words
from localmem.types import Instant

SENTENCE = re.compile(r"[^.!?;\n]+(?:[.!?;](?=\S)[^.!?;\n]*)*[.!?]*")


@dataclass(frozen=True)
class Evidence:
    """The conversation, read once for all guards."""

    text: str
    folded: frozenset[str]  # words, their parts, without diacritics
    stems: frozenset[str]
    squeezed: str  # letters and digits only
    numbers: frozenset[str]
    at: Instant


def parts_of(folded: str) -> tuple[str, ...]:
    """A word, and what is left of it without a possessive or an elision."""
    head, apostrophe, tail = folded.partition("'")
    return (folded, head, tail) if apostrophe else (folded,)


def squeeze(text: str) -> str:
    """Letters and digits only, without case and diacritics: ``EU-3`` and ``eu 3`` compare equal."""
    return re.sub(r"[^0-9a-z]+", "", words.bare(text))


def begins_alike(word: str, known: Iterable[str]) -> bool:
    """Whether a word shares its first four letters (five of a long one) with a known one: Poland and Polish."""
    if len(word) < 4:
        return False
    head = word[: 4 if len(word) < 7 else 5]
    return any(other.startswith(head) for other in known)


def content(text: str) -> frozenset[str]:
    """The stems of the words that carry the meaning: no function words, no numbers, nothing under three letters."""
    found = (part for token in words.tokens(text) for part in parts_of(token.folded)[:1])
    skipped = words.all_stop_words() | {"user", "assistant", "user's"}
    return words.stems(word for word in found if word not in skipped and not word.isdigit() and len(word) > 2)


@cache
def kin() -> tuple[frozenset[str], ...]:
    """Words for one relative, a set each: mother, mum, mama …"""
    return tuple(frozenset(row.split()) for row in rules.load("support").table["kin"])


@cache
def word_list(name: str) -> frozenset[str]:
    """One word list of ``rules/support.toml`` as a set."""
    return frozenset(rules.load("support").table[name].split())
