"""Order of time: a history fed in order, reversed, shuffled or finished late ends with the same heads (DESIGN section 3)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import Opener
from doubles import Listener, following_scripts, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from localmem.errors import GeneratorError
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}


def lives(town: str) -> str:
    return f"fact: User lives in {town} | changes: User lives in"


def left() -> str:
    return "fact: User no longer lives in town | retracts: User lives in"


def pet(name: str) -> str:
    return f"fact: User's cat is called {name} | changes: User's cat is called"


def hobby(name: str) -> str:
    return f"fact: User enjoys {name}"


Event = tuple[int, str]  # day of January 2025, what was said


def feed(memory: Memory, events: Sequence[Event]) -> list[str]:
    """The heads after these events, in this order of arrival."""
    for day, said in events:
        memory.add(said, timestamp=f"2025-01-{day:02d}", **ANN)
        memory._engine.clock.advance(1)  # type: ignore[attr-defined]
    return states(memory)


def states(memory: Memory, as_of: str | None = None) -> list[str]:
    """What holds. That something ended is told only where what ended was not known yet."""
    return sorted(text for text in texts(memory.get_all(as_of=as_of, **ANN)) if "no longer" not in text)


def fresh() -> Memory:
    return Memory(":memory:", embedder=HashEmbedder(), generator=ScriptedGenerator(), clock=FixedClock())


HISTORIES: dict[str, tuple[list[Event], list[str]]] = {
    "changes": (
        [(1, lives("Porto")), (2, lives("Lisbon")), (3, lives("Faro")), (4, lives("Braga"))],
        ["User lives in Braga"],
    ),
    "a change back": (
        [(1, lives("Porto")), (2, lives("Lisbon")), (3, lives("Porto"))],
        ["User lives in Porto"],
    ),
    "there and back twice": (
        [(1, lives("Porto")), (2, lives("Lisbon")), (3, lives("Porto")), (4, lives("Lisbon"))],
        ["User lives in Lisbon"],
    ),
    "said again between changes": (
        [(1, lives("Porto")), (2, lives("Porto")), (3, lives("Lisbon")), (4, lives("Lisbon"))],
        ["User lives in Lisbon"],
    ),
    "retracted": ([(1, lives("Porto")), (2, left())], []),
    "changed, then retracted": ([(1, lives("Porto")), (2, lives("Lisbon")), (3, left())], []),
    "retracted, then said anew": ([(1, lives("Porto")), (2, left()), (3, lives("Lisbon"))], ["User lives in Lisbon"]),
    "retracted, then the same again": (
        [(1, lives("Porto")), (2, left()), (3, lives("Porto"))],
        ["User lives in Porto"],
    ),
    "retracted before anything was said": ([(1, left()), (2, lives("Porto"))], ["User lives in Porto"]),
    "retracted twice": ([(1, lives("Porto")), (2, left()), (3, left())], []),
    "two threads": (
        [(1, lives("Porto")), (2, pet("Brine")), (3, lives("Faro")), (4, pet("Gale"))],
        ["User lives in Faro", "User's cat is called Gale"],
    ),
    "no changes": (
        [(1, hobby("chess")), (2, hobby("rowing")), (3, hobby("chess")), (4, hobby("baking"))],
        ["User enjoys baking", "User enjoys chess", "User enjoys rowing"],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_every_order_of_arrival_ends_alike(scripted: None, name: str) -> None:
    events, expected = HISTORIES[name]
    wrong = {}
    for order in itertools.permutations(events):
        with fresh() as memory:
            heads = feed(memory, order)
            assert memory.check() == []
        if heads != expected:
            wrong["  ".join(f"{day}: {said[6:40]}" for day, said in order)] = heads
    assert wrong == {}


# A retraction that arrives after what was said later leaves no trace of its own, so the days between read otherwise.
WITHOUT_GAPS = [name for name in HISTORIES if not name.startswith("retracted, then") and name != "retracted twice"]


@pytest.mark.parametrize("name", WITHOUT_GAPS)
def test_the_past_reads_the_same_in_order_and_reversed(scripted: None, name: str) -> None:
    """as_of as well as the heads: what held on each day."""
    events, _ = HISTORIES[name]
    told: list[list[list[str]]] = []
    for order in (events, events[::-1]):
        with fresh() as memory:
            feed(memory, order)
            told.append([states(memory, f"2025-01-{day:02d}T12:00:00") for day in range(1, 6)])
    assert told[0] == told[1]


def test_a_long_history_in_many_shuffles(scripted: None) -> None:
    towns = ["Porto", "Lisbon", "Faro", "Braga", "Coimbra", "Aveiro"]
    events = [(day, lives(towns[day % 6])) for day in range(1, 9)] + [
        (day, hobby(f"game {day}")) for day in range(9, 13)
    ]
    events.append((13, left()))
    events += [(14, lives("Tavira")), (15, pet("Brine")), (16, pet("Gale"))]
    with fresh() as memory:
        expected = feed(memory, events)
    assert expected == sorted(
        ["User lives in Tavira", "User's cat is called Gale", *(f"User enjoys game {day}" for day in range(9, 13))]
    )
    dice = random.Random(11)
    for _ in range(25):
        shuffled = dice.sample(events, len(events))
        with fresh() as memory:
            assert feed(memory, shuffled) == expected, shuffled
            assert memory.check() == []


SAID = st.one_of(
    st.sampled_from(["Porto", "Lisbon", "Faro"]).map(lives),
    st.just(left()),
    st.sampled_from(["Brine", "Gale"]).map(pet),
    st.sampled_from(["chess", "rowing"]).map(hobby),
)


@settings(max_examples=100)
@given(st.lists(SAID, min_size=2, max_size=7), st.randoms(use_true_random=False))
def test_any_history_in_any_order(said: list[str], dice: random.Random) -> None:
    events = list(enumerate(said, start=1))
    with following_scripts():
        with fresh() as memory:
            expected = feed(memory, events)
            assert memory.check() == []
        with fresh() as memory:
            shuffled = dice.sample(events, len(events))
            assert feed(memory, shuffled) == expected, shuffled
            assert memory.check() == []


@pytest.mark.parametrize("name", HISTORIES)
def test_pending_episodes_finished_late(open_memory: Opener, scripted: None, name: str) -> None:
    """Every other episode waits for its model while the others go through."""
    events, expected = HISTORIES[name]
    for kept_back in (0, 1):
        generator = Listener()
        memory = open_memory(f"{kept_back}.db", generator=generator)
        for position, (day, said) in enumerate(events):
            generator.fail = position % 2 == kept_back
            if generator.fail:
                with pytest.raises(GeneratorError):
                    memory.add(said, timestamp=f"2025-01-{day:02d}", **ANN)
            else:
                memory.add(said, timestamp=f"2025-01-{day:02d}", **ANN)
        generator.fail = False
        memory.resume()
        assert states(memory) == expected
        assert memory.check() == []


def test_old_chats_imported_after_live_use(story: Memory) -> None:
    story.add(lives("Faro"), timestamp="2025-02-20", **ANN)
    result = story.add(lives("Porto"), timestamp="2024-02-20", **ANN)
    assert texts(story.get_all(**ANN)) == ["User lives in Faro"]
    assert result["results"] == []  # nothing of what is current changed
    assert texts(story.get_all(as_of="2024-06-01", **ANN)) == ["User lives in Porto"]
    assert texts(story.search("where did User live", as_of="2024-06-01", **ANN)) == ["User lives in Porto"]
    assert [entry["memory"] for entry in story.all_versions(**ANN)] == ["User lives in Porto"]
    memory_id = story.get_all(**ANN)["results"][0]["id"]
    assert {entry["new_memory"] for entry in story.history(memory_id)} == {"User lives in Faro", "User lives in Porto"}


def test_an_older_retraction_leaves_a_newer_memory(story: Memory) -> None:
    story.add(lives("Faro"), timestamp="2025-02-20", **ANN)
    assert story.add(left(), timestamp="2025-01-20", **ANN)["results"] == []
    assert texts(story.get_all(**ANN)) == ["User lives in Faro"]


def test_a_confirmation_of_the_past_moves_the_beginning(story: Memory) -> None:
    """The same fact said earlier: it held from then on."""
    story.add("fact: User enjoys chess", timestamp="2025-02-20", **ANN)
    story.add("fact: User enjoys chess", timestamp="2024-02-20", **ANN)
    assert texts(story.get_all(as_of="2024-06-01", **ANN)) == ["User enjoys chess"]
    assert texts(story.get_all(as_of="2024-01-01", **ANN)) == []


def test_messages_without_a_time_are_ordered_by_arrival(story: Memory, clock: FixedClock) -> None:
    for town in ("Porto", "Lisbon", "Faro"):
        story.add(lives(town), **ANN)
        clock.advance(1)
    assert texts(story.get_all(**ANN)) == ["User lives in Faro"]


def test_equal_times_are_ordered_by_arrival(story: Memory) -> None:
    for town in ("Porto", "Lisbon", "Faro"):
        story.add(lives(town), timestamp="2025-01-01", **ANN)
    assert texts(story.get_all(**ANN)) == ["User lives in Faro"]
    told: list[Any] = story.history(story.get_all(**ANN)["results"][0]["id"])
    assert [entry["new_memory"] for entry in told] == [
        "User lives in Porto",
        "User lives in Lisbon",
        "User lives in Faro",
    ]
