"""The prompts of the tuned model: short, without instructions or examples, the same in training and at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase

from localmem import clauses, dates, prompts, rules
from localmem.types import Instant, Message, Prompt, Span

_FACT_BEFORE_MAX, _FACT_BEFORE_CHARS = 2, 120  # messages shown before the one with the marked words
_WINDOW_CHARS = 160  # of the message itself
_WISH_CHARS_MAX = 600  # a forget request stands at the beginning or the end of a message


def speaks(generator_id: str) -> bool:
    """Whether a generator was trained on these prompts; the patterns are data (``rules/extract.toml``)."""
    patterns = rules.load("extract").table["reading"]["tuned"]
    return any(fnmatchcase(generator_id.lower(), pattern) for pattern in patterns)


def fact_prompt(said: Sequence[Message], span: Span, before: Sequence[Message], event_at: Instant) -> Prompt:
    """The day, what was said before (``before``: oldest first), the words around the span, and those to be told.

    Each date phrase is followed by what it means, worked out by rule: a small model copies dates well and computes
    them badly.
    """
    message = said[span.message]
    start, end = _around(message.content, span)
    earlier = [m for m in (*before, *said[: span.message]) if m.role != "system"][-_FACT_BEFORE_MAX:]
    shown = [replace(m, content=_end(m.content, _FACT_BEFORE_CHARS)) for m in earlier]
    shown.append(replace(message, content=message.content[start:end]))
    day = _day(event_at)
    return prompts.render(
        "fact",
        said_on=f"{day} {datetime.fromisoformat(day):%a}",
        earlier="".join(f"< {_dated_line(m, event_at)}\n" for m in shown),
        marked=_dated_line(replace(message, content=message.content[span.start : span.end]), event_at),
    )


def _around(text: str, span: Span) -> tuple[int, int]:
    """The sentences of the span with two before and one after, within some hundred characters around it."""
    first = max(0, span.start - 2 * _WINDOW_CHARS)  # the text may be long
    near = text[first : span.end + _WINDOW_CHARS]
    every = clauses.sentences(near) or [(0, len(near))]
    held = [i for i, (a, b) in enumerate(every) if a < span.end - first and b > span.start - first] or [0]
    start, end = every[max(0, held[0] - 2)][0], every[min(len(every) - 1, held[-1] + 1)][1]
    before = _end(text[min(first + start, span.start) : span.start], _WINDOW_CHARS)
    after = _shortened(text[span.end : max(first + end, span.end)], _WINDOW_CHARS // 2)
    return span.start - len(before), span.end + len(after)


def _end(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[-chars_max:].partition(" ")[2] or text[-chars_max:]


def wish_prompt(said: Sequence[Message], recent: Sequence[Message]) -> Prompt:
    """What people said, with what stood before it, to be read for a request to forget."""
    return prompts.render(
        "wish",
        earlier="".join(f"< {_line(m, _shortened(m.content, 160))}\n" for m in recent[-2:]),
        messages="\n".join(_line(m, _ends(m.content)) for m in said if m.role == "user"),
    )


def stance_prompt(new: str, known: str) -> Prompt:
    """A new fact beside one known memory. The new one comes first: all its neighbours share it."""
    return prompts.render("stance", new=_one_line(new), known=_one_line(known))


def asked(request: str) -> str:
    """A forget request in the place of the new fact."""
    return f"User asks: {_one_line(request)}"


def reword_prompt(stance: str, known: Sequence[str], new: str) -> Prompt:
    """The memories that a fact refines or changes, to be told with it in one sentence."""
    told = "\n".join(f"old: {_one_line(text)}" for text in known)
    return prompts.render("reword", stance=stance, known=told, new=_one_line(new))


def _dated_line(message: Message, event_at: Instant) -> str:
    said_at = event_at if message.said_at is None else message.said_at
    return _line(message, dates.annotated(message.content.strip(), said_at))


def _line(message: Message, text: str) -> str:
    """Tool results and documents are shown as quotations: nobody in the conversation said them.

    Lines of a text are set in by a blank, so that none can pass for the turn of another speaker.
    """
    text, name = text.strip(), _one_line(message.name or "")
    if message.role in ("tool", "document"):
        return f"{message.role}: > " + text.replace("\n", "\n > ")
    return f"{name or message.role}: " + text.replace("\n", "\n ")


def _shortened(text: str, chars_max: int) -> str:
    if len(text) <= chars_max:
        return text
    return text[:chars_max].rpartition(" ")[0] or text[:chars_max]  # scripts without blanks


def _ends(text: str) -> str:
    """A long text without its middle."""
    if len(text) <= _WISH_CHARS_MAX:
        return text
    half = _WISH_CHARS_MAX // 2
    return f"{_shortened(text, half)} … {text[-half:].partition(' ')[2] or text[-half:]}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _day(at: Instant) -> str:
    return dates.to_iso(at)[:10]
