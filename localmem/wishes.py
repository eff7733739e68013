"""Forget requests as the tuned model understands them, in whatever words; the rules of `forget` know the plain ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from localmem import clauses, decide, prompts, tuned
from localmem.forget import ForgetRequest, blanked, detect, weighty
from localmem.types import Generator, Judge, Message, Prompt, Relation, Span

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
    return understood(generator, messages, recent)


def understood(generator: Generator, messages: Sequence[Message], recent: Sequence[Message]) -> ForgetRequest | None:
    """The request to forget that a tuned model reads in the messages, the last one first."""
    bound = decide.policy_for(generator.id).wished_min
    for position in range(len(messages) - 1, -1, -1):
        said = messages[position]
        if said.role == "user" and said.content.strip():
            before = [*recent, *messages[:position]]
            chance = wished(generator, tuned.wish_prompt([said], before))
            request = _request(generator, said, position, before, chance) if chance >= bound else None
            if request is not None:
                return request
    return None


def meant(generator: Generator, request: str, texts: Sequence[str], judge: Judge | None = None) -> list[bool]:
    """Which of the memories a request asks to forget, by the tuned model and the judge."""
    bound = decide.policy_for(generator.id, judge.id if judge else None).meant_min
    return [chance >= bound for chance in meant_chances(generator, request, texts, judge)]


def meant_chances(generator: Generator, request: str, texts: Sequence[str], judge: Judge | None) -> list[float]:
    """The probability of each memory to be meant by a request: the mean of what both models say."""
    pairs = [(tuned.asked(request), text) for text in texts]
    told = [math.exp(row[Relation.RETRACTS]) for row in decide.stance_scores(generator, pairs)]
    if judge is None:
        return told
    judged = [math.exp(row[Relation.RETRACTS]) for row in judge.relations(pairs)]
    return [(a + b) / 2 for a, b in zip(told, judged, strict=True)]


def wished(generator: Generator, prompt: Prompt) -> float:
    """The probability that a message asks to forget something; ``prompt`` is a `tuned.wish_prompt`."""
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
    places = _places(generator, said, before)
    first, *more = (Span(position, start, end) for start, end in places)
    ahead = weighty(said.content[: first.start])
    own = kind == "last" and bool(ahead)
    return ForgetRequest(
        kind="topic" if kind == "thing" else kind,
        query=what.strip(),
        message=position,
        span=first,
        confidence=chance,
        remainder="" if own else weighty(blanked(said.content, (first, *more))),
        own=own,
        more=tuple(more),
    )


def _places(generator: Generator, said: Message, before: Sequence[Message]) -> list[tuple[int, int]]:
    """The sentences that hold the request: those that alone are one; the whole message where none is."""
    text = said.content
    every = clauses.sentences(text)
    if len(every) < 2:
        return [(0, len(text))]
    alone = [
        wished(generator, tuned.wish_prompt([Message("user", text[start:end], said.name)], before))
        for start, end in every
    ]
    return [place for place, chance in zip(every, alone, strict=True) if chance >= 0.5] or [(0, len(text))]
