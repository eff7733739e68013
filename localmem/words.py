"""Text normalisation shared by the pure text modules: fold, tokenise, stem, stop words, language guess."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from localmem import rules

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl")

_QUOTES = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'}
)
_TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a text: characters [start, end), and its folded form."""

    text: str
    start: int
    end: int
    folded: str


def straighten(text: str) -> str:
    """The same text with curly quotes and apostrophes made straight. The length stays, so positions stay."""
    return text.translate(_QUOTES)


def fold(text: str) -> str:
    """NFC, straight quotes, case folded. For comparing; positions may move."""
    if text.isascii():
        return text.replace("`", "'").lower()
    return unicodedata.normalize("NFC", straighten(text)).casefold()


def bare(text: str) -> str:
    """Folded, without diacritics: ``Zoë`` and ``zoe`` compare equal."""
    folded = fold(text)
    if folded.isascii():
        return folded
    parts = unicodedata.normalize("NFKD", folded)
    return "".join(c for c in parts if not unicodedata.combining(c))


def tokens(text: str) -> tuple[Token, ...]:
    """The words of a text in order. Apostrophes inside a word belong to it (``don't`` is one token)."""
    return tuple(Token(m[0], m.start(), m.end(), bare(m[0])) for m in _TOKEN.finditer(text))


def folded(text: str) -> list[str]:
    """The folded words of a text in order."""
    return [bare(word) for word in _TOKEN.findall(text)]


def count(text: str) -> int:
    """How many words a text has."""
    return len(_TOKEN.findall(text))


@cache
def stop_words(language: str) -> frozenset[str]:
    """Function words of one language, without diacritics; empty for a language without a list."""
    return frozenset(bare(rules.load("words").table["stop"].get(language, "")).split())


@cache
def all_stop_words() -> frozenset[str]:
    """Function words of every language with a list."""
    return frozenset().union(*(stop_words(language) for language in LANGUAGES))


def guess_languages(text: str) -> tuple[str, ...]:
    """Plausible languages of a text, likeliest first, by counting function words; all of them where none is found.

    A guess that is good enough to switch phrase rules on and off: ``hier`` is "here" in German, "yesterday" in French.
    """
    spoken = {part for token in tokens(text[:4000]) for part in _spoken(token.folded)}
    counts = {language: len(spoken & stop_words(language)) for language in LANGUAGES}
    top = max(counts.values())
    if top == 0:
        return LANGUAGES
    # A few words prove little: in "we met" both are Dutch, too. English stays in until it is clearly outnumbered.
    near = [lang for lang in LANGUAGES if counts[lang] >= max(1, top * (0.5 if lang == "en" else 0.75))]
    near += ["en"] if top < 2 and "en" not in near else []
    return tuple(sorted(near, key=lambda language: -counts[language]))


def _spoken(folded: str) -> tuple[str, ...]:
    """A word and, for an elision such as ``j'ai``, its two halves."""
    head, apostrophe, tail = folded.partition("'")
    return (folded, head, tail) if apostrophe and len(head) <= 2 and len(tail) > 1 else (folded,)


def stem(word: str) -> str:
    """A light English stem of one folded word: plurals, -ing, -ed, -ly, possessives. Other words stay themselves.

    Made for overlap, not for reading: two forms of a word should meet, two words rarely.
    """
    word = word.removesuffix("'s").removesuffix("'")
    if len(word) <= 3 or not word.isascii() or not word.isalpha():
        return word
    return _without_e(_without_suffix(_singular(word)))


def stems(words: Iterable[str]) -> frozenset[str]:
    """The set of stems of folded words."""
    return frozenset(stem(word) for word in words)


def _singular(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("ss", "us", "is")):
        return word
    return word.removesuffix("s")


def _without_suffix(word: str) -> str:
    for suffix in ("edly", "ingly", "ing", "ed", "ly"):
        rest = word.removesuffix(suffix)
        if rest != word and len(rest) >= 3 and re.search("[aeiouy]", rest):
            return _undoubled(rest)
    return word[:-1] + "i" if len(word) > 3 and word.endswith("y") else word


def _undoubled(rest: str) -> str:
    if len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "lsz":
        return rest[:-1]
    return rest[:-1] + "i" if len(rest) > 3 and rest.endswith("y") else rest


def _without_e(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
