"""profile(): what is known in a few lines; a session's summary; context() with both."""

from __future__ import annotations

from conftest import Opener
from doubles import Listener, texts

from localmem.memory import Memory
from localmem.profile import Line, by_weight
from localmem.types import Actor, Kind

ANN = {"user_id": "ann"}


def line(number: int, kind: Kind = Kind.SEMANTIC, actor: Actor = Actor.USER, times: int = 1) -> Line:
    return Line(f"m{number}", number, f"fact {number}", kind, actor, number, times)


def test_what_lasts_was_said_again_by_the_person_and_lately_comes_first() -> None:
    def first(*lines: Line, session: bool = False) -> int:
        return by_weight(lines, session=session)[0].version

    assert first(line(1), line(2)) == 2
    assert first(line(1), line(2, Kind.EPISODIC)) == 1
    assert first(line(1), line(2, Kind.EPISODIC), session=True) == 2
    assert first(line(1), line(2, actor=Actor.ASSISTANT)) == 1
    assert first(line(1, times=4), line(2)) == 1


def test_a_profile_names_its_memories(memory: Memory) -> None:
    for text in ("User keeps bees", "User plays the cello in a quartet", "User is allergic to hazelnuts"):
        memory.add(text, infer=False, **ANN)
    memory.add("User rows", infer=False, user_id="ben")
    profile = memory.profile(**ANN)
    assert sorted(texts(profile)) == [
        "User is allergic to hazelnuts",
        "User keeps bees",
        "User plays the cello in a quartet",
    ]
    assert profile["text"] == "".join(f"- {each['memory']}\n" for each in profile["results"])
    assert all(memory.get(each["id"])["memory"] == each["memory"] for each in profile["results"])  # type: ignore[index]
    assert memory.bound(**ANN).profile() == profile
    assert memory.profile(user_id="nobody") == {"text": "", "results": []}


def test_no_line_outlives_its_memory(memory: Memory) -> None:
    memory.add("User lives in Faro", infer=False, **ANN)
    [line] = memory.profile(**ANN)["results"]
    memory.update(line["id"], "User lives in Porto")
    assert texts(memory.profile(**ANN)) == ["User lives in Porto"]
    memory.delete(line["id"])
    assert texts(memory.profile(**ANN)) == []


def test_it_stays_within_its_tokens_and_says_nothing_twice(memory: Memory) -> None:
    for number in range(30):
        memory.add(f"User once baked cake number {number} in kitchen {number}", infer=False, **ANN)
    memory.add("User keeps bees", infer=False, **ANN)
    memory.add("User keeps bees!", infer=False, **ANN)
    for tokens in (0, 20, 100):
        assert len(memory.profile(max_tokens=tokens, **ANN)["text"]) <= tokens * 4
    shown = memory.profile(max_tokens=2_000, **ANN)["text"]
    assert shown.count("keeps bees") == 1


def test_a_session_in_order_of_time(memory: Memory) -> None:
    day = {"run_id": "monday", **ANN}
    memory.add("User asked about ferries", infer=False, timestamp="2025-01-06T10:00Z", **day)
    memory.add("User booked the ferry to Horta", infer=False, timestamp="2025-01-06T10:05Z", **day)
    memory.add("User packed a tent", infer=False, timestamp="2025-01-06T09:00Z", **day)
    memory.add("User rows", infer=False, **ANN)
    assert texts(memory.profile(**day)) == [
        "User packed a tent",
        "User asked about ferries",
        "User booked the ferry to Horta",
    ]


def test_context_tells_what_is_known_in_general_after_the_hits(memory: Memory) -> None:
    for number in range(30):
        memory.add(f"User has seen ferry number {number}", infer=False, timestamp="2024-01-01", **ANN)
    memory.add("User is allergic to hazelnuts", infer=False, timestamp="2025-01-01", **ANN)
    block = memory.context("ferry number 7", max_tokens=200, limit=5, **ANN)
    hits, general = block.split("\nIn general:\n")
    assert "ferry number 7" in hits
    assert "hazelnuts" not in hits
    assert "2025-01-01: User is allergic to hazelnuts" in general
    assert len(set(block.split("\n"))) == len(block.split("\n"))  # no line twice
    assert "hazelnuts" not in memory.context("ferry number 7", limit=5, general=False, **ANN)
    assert "hazelnuts" not in memory.context("ferry number 7", limit=5, threshold=0.0, **ANN)
    tight = memory.context("ferry number 7", max_tokens=30, **ANN)
    assert "ferry number 7" in tight.split("\n")[1]


def test_extraction_is_shown_it(open_memory: Opener, listener: Listener) -> None:
    memory = open_memory(generator=listener)
    memory.add("User is allergic to hazelnuts", infer=False, **ANN)
    memory.add("I sail on Sundays", **ANN)
    assert "Known:\n- User is allergic to hazelnuts" in listener.shown
