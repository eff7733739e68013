"""Find the words of the conversation that a fact comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from localmem.support.evidence import SENTENCE, content
from localmem.support.quantities import numbers_in
from localmem.types import Message, Span

_CLAUSE = re.compile(r"[^,:()–—]+")


def align(fact_text: str, messages: Sequence[Message]) -> tuple[Span, str] | None:
    """The sentence or clause that supports a fact best: where it stands, and its exact words. None: nothing in
    common.

    By shared stems; the user's messages come before the assistant's, the named speaker's before the others', and of
    equal ones the shorter.
    """
    wanted = content(fact_text) | frozenset(numbers_in(fact_text))
    best: tuple[float, int, Span, str] | None = None
    for n, message in enumerate(messages):
        weight = _weight(message, fact_text)
        for start, end in _pieces(message.content):
            piece = message.content[start:end]
            shared = len(wanted & (content(piece) | frozenset(numbers_in(piece)))) * weight
            if shared and (best is None or (shared, -len(piece)) > best[:2]):
                best = (shared, -len(piece), Span(n, start, end), piece)
    return (best[2], best[3]) if best else None


def _weight(message: Message, fact: str) -> float:
    if message.role == "assistant" and not message.name and not fact.startswith("Assistant"):
        return 0.6
    if message.name and not fact.startswith("User"):
        return 1.0 if message.name.split()[0] in fact else 0.7
    return 1.0


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Sentences, runs of two clauses, clauses: characters [start, end) without blanks around."""
    for sentence in SENTENCE.finditer(text):
        clauses = [(m.start() + sentence.start(), m.end() + sentence.start()) for m in _CLAUSE.finditer(sentence[0])]
        spans = {(sentence.start(), sentence.end()), *clauses, *((a[0], b[1]) for a, b in pairwise(clauses))}
        for start, end in sorted(spans):
            piece = text[start:end]
            left, right = len(piece) - len(piece.lstrip()), len(piece.rstrip())
            if left < right:
                yield start + left, start + right
