"""Words that somebody asked to be remembered: what extraction makes nothing of is kept as it stands.

An assistant writes such notes in the third person ("User prefers green tea"), which are facts already, and in keywords
("Wife: Maria"). In ordinary talk neither is to be kept: there "the user" is somebody's customer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from localmem import clauses, dates, forget, retell, support
from localmem.extract import FACT_CHARS_MAX, Extraction
from localmem.types import Actor, Fact, Instant, Message, Span

_ABOUT_USER = re.compile(r"(?:the )?user(?P<own>['’]s)?\b(?=[ '’])", re.IGNORECASE)
_COMMAND = re.compile(r"(?:please |can you |could you )*(?:forget|delete|erase|remove|wipe)\b", re.IGNORECASE)
_ACTORS = {"assistant": Actor.ASSISTANT, "tool": Actor.TOOL, "document": Actor.DOCUMENT}


def kept(found: Extraction, messages: Sequence[Message], event_at: Instant) -> Extraction:
    """What was extracted, with a fact for each note among the messages, and of those that gave none all that they say.

    Questions and requests to forget are no notes.
    """
    facts: list[Fact] = []
    for position, message in enumerate(messages):
        own = [fact for fact in found.facts if fact.span is not None and fact.span.message == position]
        if message.role != "system":
            facts += _notes(position, message, event_at) or own or _as_it_stands(position, message, event_at)
    return replace(found, facts=tuple(facts))


def _notes(position: int, message: Message, event_at: Instant) -> list[Fact]:
    """Sentences that are all about the user, each a fact; [] where one is not."""
    sentences = clauses.sentences(message.content)
    if not all(_ABOUT_USER.match(message.content[start:stop]) for start, stop in sentences):
        return []
    return _facts(position, message, sentences, event_at)


def _as_it_stands(position: int, message: Message, event_at: Instant) -> list[Fact]:
    """All that a message says, in pieces of a fact's length; by rule in the third person, where it is one sentence."""
    text = message.content
    if not support.content(text) or text.rstrip().endswith("?") or _COMMAND.match(text) or forget.detect([message]):
        return []
    return _facts(position, message, list(_pieces(text)), event_at)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """[start, stop) of sentences together, as many as fit; a longer one is cut between words."""
    begun: tuple[int, int] | None = None
    for start, stop in clauses.sentences(text):
        if begun is not None and stop - begun[0] <= FACT_CHARS_MAX:
            begun = begun[0], stop
            continue
        if begun is not None:
            yield begun
        while stop - start > FACT_CHARS_MAX:
            cut = text.rfind(" ", start + 1, start + FACT_CHARS_MAX)
            cut = start + FACT_CHARS_MAX if cut < 0 else cut
            yield start, cut
            start = cut + (cut < stop and text[cut] == " ")
        begun = start, stop
    if begun is not None:
        yield begun


def _facts(position: int, message: Message, spans: Sequence[tuple[int, int]], event_at: Instant) -> list[Fact]:
    at = event_at if message.said_at is None else message.said_at
    return [
        Fact(
            text=_worded(dates.as_said(message.content[start:stop], at), message),
            quote=message.content[start:stop],
            span=Span(position, start, stop),
            actor=_ACTORS.get(message.role, Actor.USER),
            event_at=event_at,
        )
        for start, stop in spans
        if message.content[start:stop].strip()
    ]


def _worded(text: str, message: Message) -> str:
    plain = " ".join(text.split()).rstrip(" .")
    about = _ABOUT_USER.match(plain)
    if about is not None:
        return f"User{about['own'] or ''}{plain[about.end() :]}"
    told = retell.told(plain, "User") if message.role == "user" and not message.name else None
    return told if told and told.startswith("User") else plain
