"""Forget requests as the tuned model understands them, in whatever words; the rules of `forget` know the plain ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from localmem import clauses, decide, prompts, tuned
from localmem.forget import ForgetRequest, detect
from localmem.types import Generator, Message, Prompt, Relation, Span

WISHED_MIN = 0.6  # probability of a request from which it is carried out
MEANT_MIN = 0.5  # probability that a memory is meant by it
_TOKENS_MAX = 48


def request_in(
    generator: Generator | None, messages: Sequence[Message], recent: Sequence[Message]
) -> ForgetRequest | None:
    """The request to forget in the messages; ``recent``: what was said before, oldest first.

    By the rules where their words are plain. Otherwise the tuned model is asked; without one, what is in doubt is no
    request. Raises GeneratorError when the model fails.
    """
    found = detect(messages)
    if found is not None and not found.ambiguous:
        return found
    if generator is None or not tuned.speaks(generator.id):
        return None
    for position in range(len(messages) - 1, -1, -1):
        said = messages[position]
        if said.role == "user" and said.content.strip():
            before = [*recent, *messages[:position]]
            chance = _wished(generator, tuned.wish_prompt([said], before))
            if chance >= WISHED_MIN:
                return _request(generator, said, position, before, chance)
    return None


def meant(generator: Generator, request: str, texts: Sequence[str]) -> list[bool]:
    """Which of the memories a request asks to forget, by the tuned model."""
    file = prompts.load("stance")
    asked = [tuned.stance_prompt(tuned.asked(request), text) for text in texts]
    place = list(file.labels).index(Relation.RETRACTS.value)
    rows = decide.score_many(generator, asked, list(file.labels.values()))
    return [math.exp(row[place]) >= MEANT_MIN for row in rows]


def _wished(generator: Generator, prompt: Prompt) -> float:
    labels = prompts.load("wish").labels
    scores = generator.score_labels(prompt, list(labels.values()))
    return 1.0 - math.exp(scores[list(labels).index("none")])


def _request(
    generator: Generator, said: Message, position: int, before: Sequence[Message], chance: float
) -> ForgetRequest | None:
    prompt = tuned.wish_prompt([said], before)
    reply = generator.generate(prompt, grammar=prompts.grammar("wish"), tokens_max=_TOKENS_MAX)
    kind, _, what = reply.strip().partition("\n")
    if kind == "none":
        return None
    start, end = _place(generator, said, before)
    rest = f"{said.content[:start]} {said.content[end:]}".strip()
    own = kind == "last" and bool(said.content[:start].strip())
    return ForgetRequest(
        kind="topic" if kind == "thing" else kind,
        query=what.strip(),
        message=position,
        span=Span(position, start, end),
        confidence=chance,
        remainder="" if own else rest,
        own=own,
    )


def _place(generator: Generator, said: Message, before: Sequence[Message]) -> tuple[int, int]:
    """The sentences that hold the request: those that alone are one; the whole message where none is."""
    text = said.content
    every = clauses.sentences(text)
    if len(every) < 2:
        return 0, len(text)
    alone = [
        _wished(generator, tuned.wish_prompt([Message("user", text[start:end], said.name)], before))
        for start, end in every
    ]
    own = [place for place, chance in zip(every, alone, strict=True) if chance >= 0.5]
    return (own[0][0], own[-1][1]) if own else (0, len(text))
