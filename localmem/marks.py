"""The words of a conversation that are worth keeping, as the tagger marks them.

It reads a stretch of a message beside what stands around it, and gives each word the chance that it belongs to a fact
of each kind, and that a fact begins with it. Runs of such words are the marks; each becomes at most one fact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from localmem import clauses, rules
from localmem.types import TAGGED_KINDS, Kind, Message, Span, TaggedWord, Tagger

_STRETCH_CHARS = 480  # of a message, read at once
_DENSE = re.compile(r"[\u2e80-\ud7ff]{8}")  # scripts with a token for nearly every character
_BEFORE_CHARS, _AFTER_CHARS = 160, 80
_EDGE = r"""(?:[\s.,;:!?…()"“”'’]|[-–—](?!\d))"""  # what a mark does not begin or end with, nor with a joining word
_TRIMMED = re.compile(
    rf"{_EDGE}*(?:(?:and|but|so|or|plus)(?=[\s,:…]|$){_EDGE}*)?(?P<words>.*?)(?:{_EDGE}+(?:and|but|or|plus|because))?{_EDGE}*",
    re.DOTALL | re.IGNORECASE,
)
_CLOSING = {"(": ")", "“": "”"}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole sentences of one message, read at once: characters [start, end) of message ``index``."""

    index: int
    start: int
    around: str  # who speaks, what was said before, and how the answer begins
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Words that belong to one fact, with the mean of their chances in [0, 1]."""

    span: Span
    kind: Kind
    chance: float


def marked(tagger: Tagger | None, messages: Sequence[Message], before: Message | None) -> list[Mark]:
    """The marks in what people said, in order. ``before``: the message before the first.

    Without a tagger every clause is one. The bounds are of ``rules/marks.toml``, fitted by scripts/calibrate_tagger.py.
    """
    every = list(stretches(messages, before))
    if tagger is None:
        return [mark for stretch in every for mark in _clauses(stretch)]
    bounds = rules.load("marks").table
    tagged = tagger.tag([(stretch.around, stretch.text) for stretch in every])
    found = []
    for stretch, words in zip(every, tagged, strict=True):
        runs = marks_of(stretch, words, word=bounds["word"], begins=bounds["begins"])
        marks = [mark for mark in runs if mark.chance >= bounds["mark"]]
        found += sorted([*marks, *_sure(stretch, marks)], key=lambda mark: mark.span.start)
    return found


# What people say of themselves first, which the tagger misses where both stand in one sentence: "My name is John and I
# live in Berlin". Only plain sentences, of nobody's story.
_SURE = re.compile(
    r"(?:my name is|(?:i live|i am living|i['’]m living) in|i work (?:as|at|for)|i['’]?(?: a)?m (?:allergic to|vegan|"
    r"vegetarian)\b)[^.!?;:,\n]{0,60}?(?=[.!?;,\n]|$| (?:and|but) (?:i|my|we|our)\b)",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"(?:(?:hi|hello|hey)(?: there)?[,.!]? |.*,? (?:and|but) )?$", re.IGNORECASE | re.DOTALL)
_NOT_PLAIN = re.compile(
    r"[?\"“”]|\b(?:if|imagine|pretend|suppose|say|says|said|told|character|story|novel|song|poem|game|example|wish|joke"
    r"|kidding|used to|not)\b",
    re.IGNORECASE,
)


def _sure(stretch: Stretch, marks: Sequence[Mark]) -> Iterator[Mark]:
    """Statements that need no tagger, where it has marked nothing of their sentence."""
    for start, stop in clauses.sentences(stretch.text):
        sentence = stretch.text[start:stop]
        begin, end = stretch.start + start, stretch.start + stop
        if _NOT_PLAIN.search(sentence) or any(begin < mark.span.end and mark.span.start < end for mark in marks):
            continue
        for found in _SURE.finditer(sentence):
            if _BEGINS.match(sentence[: found.start()]):
                span = Span(stretch.index, begin + found.start(), begin + found.end())
                yield Mark(span, Kind.SEMANTIC, 1.0)


def stretches(messages: Sequence[Message], before: Message | None) -> Iterator[Stretch]:
    """What people said, cut between sentences; system messages, tools, documents and assistants are left out."""
    for index, message in enumerate(messages):
        if is_person(message):
            earlier = next((m for m in reversed(messages[:index]) if m.role != "system"), before)
            after = next((m for m in messages[index + 1 :] if m.role != "system"), None)
            for start, end in _cut(message.content):
                yield Stretch(index, start, _around(message, start, earlier, after), message.content[start:end])


def _around(message: Message, start: int, earlier: Message | None, after: Message | None) -> str:
    said = message.content[:start][-_BEFORE_CHARS:]
    lines = [f"{speaker(earlier)}: {earlier.content[-_BEFORE_CHARS:]}"] if earlier and not said else []
    lines.append(f"{speaker(message)}: {said}")
    if after is not None:
        lines.append(f"{speaker(after)}: {after.content[:_AFTER_CHARS]}")
    return " ".join(" ".join(lines).split())


def speaker(message: Message) -> str:
    return message.name or message.role


def is_person(message: Message) -> bool:
    """A user, or the other one of two named people who talk."""
    return message.role == "user" or (message.role == "assistant" and bool(message.name))


def _cut(text: str) -> Iterator[tuple[int, int]]:
    """[start, end) of runs of sentences of at most some hundred characters; a longer sentence is cut hard."""
    size = _STRETCH_CHARS // 3 if _DENSE.search(text) else _STRETCH_CHARS
    start = end = 0
    for begin, stop in clauses.sentences(text):
        while stop - begin > size:
            if end > start:
                yield start, end
            yield begin, begin + size
            begin += size
            start = end = begin
        if end > start and stop - start > size:
            yield start, end
            start = begin
        elif end <= start:
            start = begin
        end = stop
    if end > start:
        yield start, end


def marks_of(stretch: Stretch, words: Sequence[TaggedWord], *, word: float, begins: float) -> Iterator[Mark]:
    """The runs of words with a chance of at least ``word``. One word below it does not end a run; the word a fact
    ``begins`` with does, unless it is the second."""
    run: list[TaggedWord] = []
    missed: list[TaggedWord] = []
    for each in words:
        kept = max(each.kept.values()) >= word
        if run and (len(missed) > 1 or (kept and each.begins >= begins and len(run) > 1)):
            yield from _mark(stretch, run)
            run, missed = [], []
        if kept:
            run, missed = [*run, *missed, each], []
        elif run:
            missed = [*missed, each]
    if run:
        yield from _mark(stretch, run)


def trimmed(text: str, span: Span) -> Span:
    """Without blanks, marks and joining words at its ends."""
    found = _TRIMMED.fullmatch(text, span.start, span.end)
    return span if found is None else Span(span.message, *found.span("words"))


def _mark(stretch: Stretch, run: Sequence[TaggedWord]) -> Iterator[Mark]:
    words = trimmed(stretch.text, Span(stretch.index, run[0].start, run[-1].end))
    start, end = words.start, words.end
    for opening, closing in _CLOSING.items():
        if stretch.text.count(opening, start, end) > stretch.text.count(closing, start, end):
            end = max(end, 1 + stretch.text.find(closing, end, end + 3))
    if end > start:
        chances = {kind: sum(each.kept[kind] for each in run) for kind in TAGGED_KINDS}
        mean = sum(max(each.kept.values()) for each in run) / len(run)
        span = Span(stretch.index, stretch.start + start, stretch.start + end)
        yield Mark(span, max(chances, key=lambda kind: chances[kind]), mean)


def _clauses(stretch: Stretch) -> Iterator[Mark]:
    for clause in clauses.clauses(stretch.text):
        span = Span(stretch.index, stretch.start + clause.start, stretch.start + clause.end)
        yield Mark(span, Kind.SEMANTIC, 1.0)
