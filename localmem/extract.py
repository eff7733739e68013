"""Messages to facts: what was said that is worth keeping, each with the words that prove it.

The generator reads a part of the messages at a time and answers with one fact a line, under a grammar, so that a
malformed reply cannot occur. The evidence is not generated: it is found afterwards as an exact substring. What can't
be found is kept apart as unsupported and never becomes a memory.

A small model can't do that: it mixes up who did what. With localmem's own, tuned one a tagger marks the words worth
keeping (``localmem.marks``), and they are told as they were said: turned to the third person by rule, else quoted.
Other small models (data: ``rules/extract.toml``) are led clause by clause: fitted weights choose the clauses to keep,
and the model only chooses between wordings made of the person's own words, so that it can't invent.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from localmem import clauses, dates, gbnf, marks, prompts, retell, rules, support, tuned, words
from localmem.config import Limits
from localmem.types import Actor, Fact, Generator, Instant, Kind, Message, Span, Tagger

FACT_CHARS_MAX = 200
_NEAR_CHARS = 600  # around a mark
_TOLD_CHARS_MAX = 180  # of words that are told together
_QUOTED_WORDS_MIN = 2  # fewer content words say nothing by themselves
_ANSWER_CHARS, _QUESTION_CHARS_MAX = 40, 160  # how early an answer begins, and how much is told of its question
_KNOWN = ("known",)  # no guard: the fact only repeats what was said before
USER, ASSISTANT = "User", "Assistant"
TUNED, BY_CLAUSE, WHOLE = "tuned", "clauses", "whole"
_SPEAKING = ("user", "assistant", "tool", "document")
_ACTORS = {"assistant": Actor.ASSISTANT, "tool": Actor.TOOL, "document": Actor.DOCUMENT}


@dataclass(frozen=True, slots=True)
class ExtractContext:
    """What was known and said before: summary lines as composed, and the last messages, newest first."""

    summary: tuple[str, ...] = ()
    recent: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Extraction:
    """``facts`` in the order they were said. ``unsupported``: a fact and the names of the guards it failed."""

    facts: tuple[Fact, ...] = ()
    unsupported: tuple[tuple[Fact, tuple[str, ...]], ...] = ()
    fingerprint: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of one message, small enough to be read at once: characters from ``offset`` of message ``index``."""

    index: int
    offset: int
    message: Message


@dataclass(frozen=True, slots=True)
class _Draft:
    """A worded fact; ``span`` where the wording was made from known words, else still to be found."""

    text: str
    span: Span | None = None
    kind: Kind | None = None


def extract(
    generator: Generator,
    messages: Sequence[Message],
    *,
    context: ExtractContext,
    event_at: Instant,
    limits: Limits,
    tagger: Tagger | None = None,
) -> Extraction:
    """The facts in the messages, said at ``event_at``; with the tuned model what the ``tagger`` marks.

    Raises GeneratorError when the model fails.
    """
    reading = reading_of(generator.id)
    fingerprint = _fingerprint(reading)
    found: list[tuple[Fact, tuple[str, ...]]] = []
    if reading == TUNED:  # read without the model
        found += _marked_facts(tagger, messages, context, event_at, limits)
        if tagger is not None:
            fingerprint |= {"extract_tagger": tagger.id, "extract_marks": rules.load("marks").version}
    else:
        shown = _shown_context(generator, context, limits)
        for part in _parts(generator, messages, limits.part_tokens_max):
            if reading == BY_CLAUSE:
                drafts = _clause_drafts(generator, part, shown)
            else:
                drafts = _whole_drafts(generator, part, shown, limits)
            found.extend(_examined(draft, part, shown, event_at) for draft in drafts)
    facts = _once([fact for fact, guards in found if not guards])
    refused = [(fact, guards) for fact, guards in found if guards and guards != _KNOWN]
    return Extraction(facts, tuple(refused), fingerprint)


def reading_of(generator_id: str) -> str:
    """How this model reads: by its own training; clause by clause, where it would invent facts; else whole."""
    if tuned.speaks(generator_id):
        return TUNED
    patterns = rules.load("extract").table["reading"]["by_clause"]
    adapted = "+" in generator_id  # llama:MODEL+ADAPTER
    led = not adapted and any(fnmatchcase(generator_id.lower(), pattern) for pattern in patterns)
    return BY_CLAUSE if led else WHOLE


def _fingerprint(reading: str) -> dict[str, str]:
    if reading == TUNED:
        return {"extract_rules": rules.load("clauses").version, "extract_reading": reading}
    return {
        "extract_prompt": prompts.load("extract").version,
        "extract_rules": rules.load("extract").version,
        "extract_reading": reading,
    }


# ------------------------------------------------------------------ what the model is shown


def _shown_context(generator: Generator, context: ExtractContext, limits: Limits) -> ExtractContext:
    """Within ``limits.context_tokens``: the last messages, newest first, then the summary from its top."""
    left = limits.context_tokens
    recent: list[Message] = []
    for message in context.recent[: limits.context_messages_max]:
        if message.role not in _SPEAKING:
            continue
        bound = limits.assistant_context_tokens if message.role == "assistant" else limits.context_tokens
        content, cost = _cut(generator, message.content, min(bound, left))
        if not content:
            break
        recent.append(replace(message, content=content))
        left -= cost
    summary: list[str] = []
    for line in context.summary:
        cost = generator.count_tokens(line) + 2
        if cost > left:
            break
        summary.append(line)
        left -= cost
    return ExtractContext(tuple(summary), tuple(recent))


def _cut(generator: Generator, text: str, tokens_max: int) -> tuple[str, int]:
    """(the text or its beginning, its tokens): at most about ``tokens_max``, cut between words, empty if none fit."""
    cost = generator.count_tokens(text)
    while cost > tokens_max and text:
        keep = int(len(text) * tokens_max / cost)
        text = text[: min(keep, len(text) - 1)].rpartition(" ")[0]
        cost = generator.count_tokens(text) if text else 0
    return text, cost


def _parts(generator: Generator, messages: Sequence[Message], tokens_max: int) -> Iterator[list[_Piece]]:
    """The messages, in order, in groups of at most ``tokens_max`` tokens; system messages are not read."""
    part: list[_Piece] = []
    used = 0
    for index, message in enumerate(messages):
        if message.role not in _SPEAKING or not message.content.strip():
            continue
        for offset, text, cost in _split(generator, message.content, tokens_max):
            if part and used + cost > tokens_max:
                yield part
                part, used = [], 0
            part.append(_Piece(index, offset, replace(message, content=text)))
            used += cost
    if part:
        yield part


def _split(generator: Generator, text: str, tokens_max: int) -> Iterator[tuple[int, str, int]]:
    """(offset, part, tokens) of a text, cut at sentence ends; a sentence longer than a part is cut between words."""
    cost = generator.count_tokens(text)
    if cost <= tokens_max:
        yield 0, text, cost
        return
    start = end = used = 0
    for begin, stop in _bounded(generator, text, tokens_max):
        cost = generator.count_tokens(text[begin:stop]) + 1
        if end > start and used + cost > tokens_max:
            yield start, text[start:end], used
            start, used = begin, 0
        end = stop
        used += cost
    if end > start:
        yield start, text[start:end], used


def _bounded(generator: Generator, text: str, tokens_max: int) -> Iterator[tuple[int, int]]:
    for begin, stop in clauses.sentences(text):
        while generator.count_tokens(text[begin:stop]) > tokens_max:
            piece, _ = _cut(generator, text[begin:stop], tokens_max)
            size = len(piece) or max(1, tokens_max // 2)  # no blank to cut at
            yield begin, begin + size
            begin += size
        if begin < stop:
            yield begin, stop


def _lines(messages: Sequence[Message]) -> str:
    return "\n".join(f"{marks.speaker(m)}: {_quoted(m)}" for m in messages)


def _quoted(message: Message) -> str:
    """Tool results and documents are shown as quotations: nobody in the conversation said them."""
    if message.role in ("tool", "document"):
        return "> " + message.content.strip().replace("\n", "\n> ")
    return message.content.strip()


def _subjects(messages: Sequence[Message]) -> tuple[str, ...]:
    """Whom a fact may be about: the named people, where people are named, else User; and Assistant."""
    names = tuple(dict.fromkeys(_name(m) for m in messages if m.role == "user"))
    return (*names, ASSISTANT) if any(m.role == "assistant" for m in messages) or not names else names


def _name(message: Message) -> str:
    return " ".join(message.name.split()) if message.name and message.name.strip() else USER


# ------------------------------------------------------------------ reading a part whole


def _whole_drafts(
    generator: Generator, part: Sequence[_Piece], context: ExtractContext, limits: Limits
) -> Iterator[_Draft]:
    said = [piece.message for piece in part]
    block = ""
    if context.summary:
        block += "Known:\n" + "".join(f"- {line}\n" for line in context.summary)
    if context.recent:
        block += f"Earlier:\n{_lines(context.recent[::-1])}\n"
    reply = generator.generate(
        prompts.render("extract", context=block, messages=_lines(said)),
        grammar=prompts.grammar("extract", subjects=_subjects(said)),
        tokens_max=limits.reply_tokens_max,
    )
    if reply.strip() == "NONE":
        return
    for line in reply.splitlines():
        if line.startswith("- "):
            yield _Draft(line[2:])


# ------------------------------------------------------------------ reading what is marked


def _marked_facts(
    tagger: Tagger | None,
    messages: Sequence[Message],
    context: ExtractContext,
    event_at: Instant,
    limits: Limits,
) -> Iterator[tuple[Fact, tuple[str, ...]]]:
    """Each mark in the third person where the rules can, else quoted.

    The tuned model told them more fluently, and of 1,566 facts it told 650 were wrong; of these 89 of 1,643.
    """
    before = next((m for m in context.recent if m.role in _SPEAKING), None)
    kept, last = 0, Span(-1, 0, 0)
    for mark in _joined(marks.marked(tagger, messages, before), messages):
        if kept == limits.facts_per_episode_max:
            return
        first = mark.span.message != last.message
        told = _retold(mark, messages, context, event_at) or _quoted_fact(mark, messages, before, event_at, first)
        if told is not None:
            kept, last = kept + (not told[1]), mark.span
            yield told


def _joined(found: Sequence[marks.Mark], messages: Sequence[Message]) -> list[marks.Mark]:
    """The marks, those that can't be told by themselves with what stands before them."""
    joined: list[marks.Mark] = []
    for mark in (part for one in found for part in _by_sentence(one, messages)):
        span, text = mark.span, messages[mark.span.message].content
        last = joined[-1] if joined and joined[-1].span.message == span.message else None
        start = _told_from(mark, messages)
        if last and start < last.span.end:
            if last.kind is mark.kind and span.end - last.span.start <= _TOLD_CHARS_MAX:
                joined[-1] = replace(last, span=replace(span, start=last.span.start))
                continue
            start = last.span.end
        if start < span.start and span.end - start <= _TOLD_CHARS_MAX:
            mark = replace(mark, span=marks.trimmed(text, replace(span, start=start)))
        joined.append(mark)
    return joined


def _by_sentence(mark: marks.Mark, messages: Sequence[Message]) -> Iterator[marks.Mark]:
    """A mark of several sentences, cut before each that can be told by itself: one memory for each fact."""
    span, text = mark.span, messages[mark.span.message].content
    starts = [span.start]
    for start, _ in clauses.sentences(text[span.start : span.end])[1:]:
        rest = replace(mark, span=replace(span, start=span.start + start))
        ended = text[: rest.span.start].rstrip(" ").endswith((".", "!", "?"))
        if ended and _stands_alone(rest, messages):
            starts.append(rest.span.start)
    starts += [joint.end() for joint in _AND_ANOTHER.finditer(text, span.start, span.end)]
    starts += [
        joint.end() for joint in _AND_I.finditer(text, span.start, span.end) if _two_facts(mark, joint, messages)
    ]
    for start, end in itertools.pairwise([*sorted(set(starts)), span.end]):
        part = Span(span.message, start, end)
        yield replace(mark, span=part if end == span.end else marks.trimmed(text, part))


def _two_facts(mark: marks.Mark, joint: re.Match[str], messages: Sequence[Message]) -> bool:
    """Whether what stands before a joint and what stands after it can each be told by itself."""
    span = mark.span
    before = replace(mark, span=replace(span, end=joint.start()))
    after = replace(mark, span=replace(span, start=joint.end()))
    return _stands_alone(after, messages) and bool(_wording(before, messages, None))


def _stands_alone(mark: marks.Mark, messages: Sequence[Message]) -> bool:
    """Whether a mark can be told by itself, without what stands before it."""
    return bool(_wording(mark, messages, None)) and _told_from(mark, messages) == mark.span.start


# "My name is John and I live in Berlin": when he moves his name stays.
_AND_I = re.compile(r",? (?:and|but) (?=(?:I|my|we|our)\b)")

# "Petra is vegetarian and Emil can't have nuts": two people, two memories.
_SAYS = r"(?:is|are|was|were|has|had|can|can['’]t|cannot|will|won['’]t|does|doesn['’]t|did|didn['’]t|[a-z]{2,}(?:s|ed))"
_NAMED = rf"[A-ZÀ-Þ][\w'’-]{{1,30}} {_SAYS} "
_NAMED_FIRST = re.compile(_NAMED)
_AND_ANOTHER = re.compile(rf"(?<!\w){_NAMED}[^.!?;\n]{{2,80}}?,? (?:and|but|while) (?={_NAMED})")


def _told_from(mark: marks.Mark, messages: Sequence[Message]) -> int:
    """Where the words begin without which a mark can't be understood: its sentence, or the one before it."""
    span, text = mark.span, messages[mark.span.message].content
    marked, told = text[span.start : span.end], _wording(mark, messages, None) is not None
    if _LEANING.match(marked) and not (told and retell.names_relative(marked)):
        return _sentence_start(text, max(0, _sentence_start(text, span.start) - 2))
    held = _HEDGE.search(text[max(0, span.start - _NEAR_CHARS) : span.start])
    stands = told or _NAMED_FIRST.match(marked)
    return span.start if stands and not held else _sentence_start(text, span.start)


# Words before a clause without which it would say too much: "I'm not sure if", "my sister says".
_HEDGE = re.compile(
    r"\b(?:make sure|not sure|unsure|wonder(?:ing)?|whether|if|unless|says?|said|thinks?|claims?|pretend(?:ing)?"
    r"|imagine)(?: (?:if|that|whether))?\s*$",
    re.IGNORECASE,
)


def _sentence_start(text: str, position: int) -> int:
    near = max(0, position - _NEAR_CHARS)
    every = [start for start, _ in clauses.sentences(text[near : position + _NEAR_CHARS]) if near + start <= position]
    return near + every[-1] if every else position


def _wording(mark: marks.Mark, messages: Sequence[Message], at: Instant | None) -> str | None:
    """The words marked in the third person, by rule; with the values of dates where it is given when it was said."""
    message, span = messages[mark.span.message], mark.span
    text = message.content[span.start : span.end]
    return retell.told(
        text if at is None else dates.as_said(text, at),
        _name(message),
        before=message.content[max(0, span.start - _NEAR_CHARS) : span.start],
        standing=mark.kind is Kind.PROCEDURAL,
    )


def _retold(
    mark: marks.Mark, messages: Sequence[Message], context: ExtractContext, event_at: Instant
) -> tuple[Fact, tuple[str, ...]] | None:
    wording = _wording(mark, messages, _said_at(messages[mark.span.message], event_at))
    if wording is None or len(wording) > FACT_CHARS_MAX:
        return None
    fact, guards = _examined(_Draft(wording, mark.span, mark.kind), _near(messages, mark.span), context, event_at)
    return None if guards and guards != _KNOWN else (fact, guards)


def _quoted_fact(
    mark: marks.Mark, messages: Sequence[Message], before: Message | None, event_at: Instant, first: bool
) -> tuple[Fact, tuple[str, ...]] | None:
    """The words marked as the person said them; the ``first`` of a message with the question they answer."""
    span, message = mark.span, messages[mark.span.message]
    earlier = next((m for m in reversed(messages[: span.message]) if m.role != "system"), before)
    asked = _question(earlier, message)
    if asked and first and span.start <= _ANSWER_CHARS:
        span = replace(span, start=len(message.content) - len(message.content.lstrip()))
    else:
        asked = ""
    quote = message.content[span.start : span.end].strip()
    text = " ".join(dates.as_said(quote, _said_at(message, event_at)).split()).replace('"', "'")
    enough = len(support.content(text)) >= (1 if asked else _QUOTED_WORDS_MIN) or (asked and _ANSWER.match(text))
    if len(text) > FACT_CHARS_MAX or not enough:
        return None
    said = dates.SAID_ON.sub("", text)
    who = f'{_name(message)}, asked "{asked}", said' if asked else f"{_name(message)} said"
    told = f'{who}: "{said}"{text[len(said) :]}'
    return Fact(told, quote=quote, span=span, kind=mark.kind, actor=Actor.USER, event_at=event_at), ()


_ANSWER = re.compile(r"(?:yes|yep|yeah|no|nope|ja|nein|oui|non|sí|si|sì|sim|não|nee)\b", re.IGNORECASE)


def _question(earlier: Message | None, message: Message) -> str:
    """What the one before asked, "" when nothing: the last question of their message."""
    if earlier is None or earlier.role not in ("user", "assistant") or marks.speaker(earlier) == marks.speaker(message):
        return ""
    near = earlier.content[-_NEAR_CHARS:].rstrip()
    asked = [near[start:end] for start, end in clauses.sentences(near) if near[:end].endswith("?")]
    text = " ".join(asked[-1].split()).replace('"', "'") if asked else ""
    return text if len(text) <= _QUESTION_CHARS_MAX else ""


# What needs the sentence before to be understood: "he plays the clarinet", "I do it on Mondays".
_LEANING = re.compile(
    r"(?:(?i:and|but|so) )?(?:(?i:(?:my|our)(?: \w+)? ones?|his|her|its|their|that|this|these|those|one|both|there"
    r"|er|sie|es|il|elle|ils|lui|lei|ella|él|ele|ela|hij|zij|ze)"
    r"|(?:(?!(?:my|our|the|an?|all|every) )[a-z'’]+ |I(?:['’]\w+)? ){0,4}(?i:he|she|it|they|him|them))(?:['’]\w+)?\b",
)


def _said_at(message: Message, event_at: Instant) -> Instant:
    return event_at if message.said_at is None else message.said_at


def _near(messages: Sequence[Message], span: Span) -> list[_Piece]:
    """What stands around a mark, as its evidence: of its own message, and of the others."""
    pieces = []
    for index in range(max(0, span.message - 2), min(len(messages), span.message + 2)):
        message = messages[index]
        if message.role in _SPEAKING:
            first, last = (span.start, span.end) if index == span.message else (0, 0)
            start = max(0, first - _NEAR_CHARS)
            pieces.append(_Piece(index, start, replace(message, content=message.content[start : last + _NEAR_CHARS])))
    return pieces


# ------------------------------------------------------------------ reading clause by clause


def _clause_drafts(generator: Generator, part: Sequence[_Piece], context: ExtractContext) -> Iterator[_Draft]:
    before: Message | None = context.recent[0] if context.recent else None
    said = [piece.message for piece in part]
    for position, piece in enumerate(part):
        if piece.message.role == "user":
            after = said[position + 1] if position + 1 < len(said) else None
            for clause in clauses.worth_keeping(piece.message.content, before=before, after=after):
                lattice = retell.restate(
                    clause.text, _name(piece.message), before=piece.message.content[: clause.start]
                )
                if lattice:
                    start, end = piece.offset + clause.start, piece.offset + clause.end
                    yield _Draft(_worded(generator, clause.text, lattice), Span(piece.index, start, end))
        before = piece.message


def _worded(generator: Generator, clause: str, lattice: retell.Lattice) -> str:
    """The wording the model finds best among those of the lattice; no call where there is only one."""
    if all(len(place) == 1 for place in lattice):
        return retell.likeliest(lattice)
    reply = generator.generate(
        prompts.render("restate", clause=clause),
        grammar=_lattice_grammar(lattice),
        tokens_max=8 + 6 * len(lattice),
    )
    return reply.strip()


def _lattice_grammar(lattice: retell.Lattice) -> str:
    """GBNF of exactly the wordings of the lattice."""
    places = (gbnf.literal(place[0]) if len(place) == 1 else gbnf.choice(place) for place in lattice)
    return "root ::= " + ' " " '.join(places) + "\n"


# ------------------------------------------------------------------ examining a draft


def _examined(
    draft: _Draft, part: Sequence[_Piece], context: ExtractContext, event_at: Instant
) -> tuple[Fact, tuple[str, ...]]:
    """The finished fact and the guards it failed; ``("known",)`` where it only repeats the context."""
    said = [piece.message for piece in part]
    text = _tidy(draft.text) if draft.kind else _tidy(dates.rewrite(_tidy(draft.text), event_at))
    span, quote = _evidence(draft, text, part, said, context)
    speaker = said[_position(part, span)] if span else None
    text = _said_by(speaker, text, quote, said)
    role = "user" if speaker is None or (speaker.name and speaker.role == "assistant") else speaker.role
    actor = Actor.ASSISTANT if text.startswith(ASSISTANT) else _ACTORS.get(role, Actor.USER)
    fact = Fact(text=text, quote=quote, span=span, kind=draft.kind or kind_of(text), actor=actor, event_at=event_at)
    if not _has_content(text):
        return fact, ("empty",)
    if span is None and _repeats(text, context):
        return fact, _KNOWN
    if role == "assistant" and not text.startswith(ASSISTANT):
        return fact, ("assistant_only",)
    if text.startswith(ASSISTANT) and role != "assistant":
        return fact, ("not_promised",)
    if span is None:  # nobody said it: 1 % of authored facts fall here, and most of what a model invents
        return fact, ("evidence",)
    history = [*context.summary, *(m.content for m in context.recent)]
    return fact, tuple(support.check(text, quote, said, history, event_at))


def _said_by(speaker: Message | None, text: str, quote: str, said: Sequence[Message]) -> str:
    """The fact about who said it: between two named people a small model takes one's "I" for the other.

    Of 1,044 authored facts of named talk, one is about the other person without you, we or a name in its quote.
    """
    name = " ".join((speaker.name or "").split()) if speaker else ""
    others = {" ".join((m.name or "").split()) for m in said} - {name, ""}
    other = next((one for one in others if re.match(rf"{re.escape(one)}\b", text)), None)
    if not name or other is None or other in quote or not _FIRST_PERSON.search(quote) or _OTHER_PERSON.search(quote):
        return text
    return name + text[len(other) :]


_FIRST_PERSON = re.compile(r"\b(?:i|i['’](?:m|ve|d|ll)|my|mine|me|myself)\b", re.IGNORECASE)
_OTHER_PERSON = re.compile(r"\b(?:you|your|yours|you['’]\w+)\b", re.IGNORECASE)


def _evidence(
    draft: _Draft, text: str, part: Sequence[_Piece], said: Sequence[Message], context: ExtractContext
) -> tuple[Span | None, str]:
    """Where the draft's words were said, in positions of the episode; (None, "") when nowhere."""
    if draft.span is not None:
        piece = part[_position(part, draft.span)]
        return draft.span, piece.message.content[draft.span.start - piece.offset : draft.span.end - piece.offset]
    found = support.align(text, said) or _confirmation(text, said, context)
    if found is None:
        return None, ""
    local, quote = found
    piece = part[local.message]
    return Span(piece.index, local.start + piece.offset, local.end + piece.offset), quote


def _position(part: Sequence[_Piece], span: Span) -> int:
    return next(
        i
        for i, p in enumerate(part)
        if p.index == span.message and p.offset <= span.start < p.offset + len(p.message.content)
    )


def _confirmation(text: str, said: Sequence[Message], context: ExtractContext) -> tuple[Span, str] | None:
    """The "yes" of a user to an assistant's question that holds the fact's words."""
    before = context.recent[0] if context.recent else None
    for position, message in enumerate(said):
        asked = said[position - 1] if position else before
        if message.role == "user" and asked is not None and asked.role == "assistant" and "?" in asked.content:
            yes = re.match(_CONFIRMING, message.content.strip(), re.IGNORECASE)
            if yes and support.align(text, [asked]) is not None:
                start = message.content.index(yes.group())
                return Span(position, start, start + len(yes.group())), yes.group()
    return None


_CONFIRMING = (
    r"(?:yes|yep|yeah|yup|right|correct|exactly|indeed|sure|of course|that's (?:it|right|the one)|true|both|all of"
    r"|ja|genau|oui|sí|si|sì|sim)\b[^\n]{0,60}"
)


def _tidy(text: str) -> str:
    """One line, single blanks, no closing marks, at most FACT_CHARS_MAX characters cut between words."""
    text = " ".join(text.split()).rstrip(" .,;:!-–—")
    if len(text) <= FACT_CHARS_MAX:
        return text
    return text[: FACT_CHARS_MAX + 1].rpartition(" ")[0].rstrip(" .,;:!-–—")


def _has_content(text: str) -> bool:
    """More than its subject and function words."""
    stop = words.all_stop_words()
    return sum(1 for token in words.tokens(text)[1:] if token.folded not in stop) >= 1


def _repeats(text: str, context: ExtractContext) -> bool:
    same = words.fold(text).rstrip(".")
    if any(words.fold(line).rstrip(".") == same for line in context.summary):
        return True
    known = [Message("user", line) for line in context.summary]
    return support.align(text, [*known, *context.recent]) is not None


_DATED = re.compile(
    r"\b(?:19|20)\d\d-[01]\d(?:-[0-3]\d)?\b"
    r"|\b(?:in|on|since|until|from|by)\s+(?:January|February|March|April|May|June|July|August|September|October|"
    r"November|December)\b",
)
_BEHAVIOUR = re.compile(
    r"\b(?:wants?|asks?|prefers?|likes?|wishes)\b.{0,40}\b(?:the assistant|answers?|answered|repl(?:y|ies)|responses?|"
    r"reminders?|to be (?:called|addressed|reminded|asked))\b|\bthe assistant (?:should|must|may|is to|to)\b",
    re.IGNORECASE,
)


def kind_of(text: str) -> Kind:
    """procedural: how the assistant should behave. episodic: carries a date. Else semantic."""
    if _BEHAVIOUR.search(text):
        return Kind.PROCEDURAL
    return Kind.EPISODIC if _DATED.search(text) else Kind.SEMANTIC


def _once(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Without those whose words, apart from case and closing marks, were there before."""
    seen: dict[str, Fact] = {}
    for fact in facts:
        seen.setdefault(words.fold(fact.text), fact)
    return tuple(seen.values())
