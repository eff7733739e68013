"""add(keep=True): what somebody asked to be remembered is remembered."""

from __future__ import annotations

import pytest
from conftest import Opener
from doubles import Listener, texts

from localmem.errors import InvalidTypeError
from localmem.extract import FACT_CHARS_MAX, Extraction
from localmem.memory import Memory
from localmem.notes import kept
from localmem.types import Fact, Message, Span

ANN = {"user_id": "ann"}


def told(text: str, role: str = "user", found: Extraction | None = None) -> list[str]:
    return [fact.text for fact in kept(found or Extraction(), [Message(role, text)], 1_740_787_200_000_000).facts]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("User prefers green tea.", ["User prefers green tea"]),
        ("The user lives in Porto. The user's name is Ann.", ["User lives in Porto", "User's name is Ann"]),
        ("user moved to Faro yesterday", ["User moved to Faro on 2025-02-28"]),
        ("Wife: Maria", ["Wife: Maria"]),
        ("I am allergic to hazelnuts", ["User is allergic to hazelnuts"]),
        ("hi I like tea", ["hi I like tea"]),
        ("Where do I live?", []),
        ("Forget about Porto", []),
        ("please forget everything about me", []),
        ("…", []),
        ("Ich mag Tee. Er ist grün.", ["Ich mag Tee. Er ist grün"]),
        ("Users like it", ["Users like it"]),  # not about this one
    ],
)
def test_what_is_kept_of_a_note(text: str, wanted: list[str]) -> None:
    assert told(text) == wanted


def test_what_was_extracted_stands() -> None:
    fact = Fact("User likes tea", "I like tea", Span(0, 3, 13))
    assert told("hi I like tea", found=Extraction((fact,))) == ["User likes tea"]


def test_long_words_are_kept_in_pieces_and_each_has_its_place() -> None:
    text = " ".join(f"Harbour {n} has a crane of {n} tons." for n in range(40)) + " " + "pier " * 100
    facts = kept(Extraction(), [Message("document", text)], 0).facts
    assert all(len(fact.text) <= FACT_CHARS_MAX for fact in facts)
    assert " ".join(fact.quote for fact in facts).split() == text.split()
    for fact in facts:
        assert fact.span is not None
        assert text[fact.span.start : fact.span.end] == fact.quote


def test_in_ordinary_talk_nothing_changes(open_memory: Opener) -> None:
    memory = open_memory(generator=Listener())
    assert memory.add("The user clicks on save and sees an error.", **ANN)["results"] == []
    added = memory.add("The user clicks on save and sees an error.", keep=True, **ANN)
    assert texts(added) == ["User clicks on save and sees an error"]
    again = memory.add("The user clicks on save and sees an error.", keep=True, **ANN)
    assert texts(again) == []  # known


def test_it_may_wait(open_memory: Opener) -> None:
    memory = open_memory(generator=Listener())
    added = memory.add("Wife: Maria", keep=True, wait=False, **ANN)
    assert memory.flush(timeout=20)["flushed"]
    assert texts(memory.status(added["episode_id"])) == ["Wife: Maria"]
    assert texts(memory.search("Maria", **ANN)) == ["Wife: Maria"]


def test_misuse(memory: Memory) -> None:
    with pytest.raises(InvalidTypeError):
        memory.add("x", keep="yes", **ANN)  # type: ignore[arg-type]
