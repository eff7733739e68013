"""The prompts of the tuned model: short, without instructions or examples, the same in training and at run time."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from localmem import prompts, rules
from localmem.types import Message, Prompt

_WISH_CHARS_MAX = 600  # a forget request stands at the beginning or the end of a message


def speaks(generator_id: str) -> bool:
    """Whether a generator was trained on these prompts; the patterns are data (``rules/extract.toml``)."""
    patterns = rules.load("extract").table["reading"]["tuned"]
    return any(fnmatchcase(generator_id.lower(), pattern) for pattern in patterns)


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
