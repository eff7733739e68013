"""The turns that wait, held in memory between searches: whatever happens to the file, a search finds what it would
find without them, and a Memory that was open all along what one that is opened now finds."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from doubles import texts

from localmem import store_queue, store_waiting
from localmem.ingest import settle
from localmem.memory import Memory
from localmem.testing import FixedClock

ANN, BEN = {"user_id": "ann"}, {"user_id": "ben"}
WORDS = ["boat", "tea", "Selkie", "Porto", "cello", "garden", "blue", "seven", "train", "library", "Mara", "bakery"]
QUERIES = ("where is the boat Selkie", "tea in Porto", "Mara and the library", "what did you say about the cello")


def found(memory: Memory, **ids: Any) -> list[Any]:
    return [memory.search(query, limit=30, explain=True, **ids)["results"] for query in QUERIES]


def without_holding(memory: Memory, monkeypatch: pytest.MonkeyPatch, **ids: Any) -> list[Any]:
    with monkeypatch.context() as patch:
        patch.setattr(store_waiting, "ROWS_MAX", 0)
        patch.setattr(memory._engine.store, "waiting", store_waiting.Waiting(memory._engine.store.dim))
        return found(memory, **ids)


class Story:
    """Random things that happen to a file, through one of two Memories that have it open."""

    def __init__(self, source: random.Random, memories: list[Memory], clock: FixedClock) -> None:
        self.source, self.memories, self.clock = source, memories, clock
        self.steps = [self.wait, self.wait, self.wait_long, self.several, self.verbatim, self.read, self.forget]
        self.steps += [self.delete, self.purge, self.reindex, self.talk, self.settle]

    @property
    def memory(self) -> Memory:
        return self.source.choice(self.memories)

    def said(self, count: int = 6) -> str:
        return " ".join(self.source.choice(WORDS) for _ in range(count))

    def exchange(self) -> list[dict[str, str]]:
        roles = self.source.choice([["user"], ["user", "assistant"], ["system", "user", "assistant", "tool"]])
        return [{"role": role, "content": self.said()} for role in roles]

    def step(self) -> str:
        self.clock.advance(self.source.choice([1, 600, 90_000]))
        chosen = self.source.choice(self.steps)
        chosen()
        return chosen.__name__

    def wait(self) -> None:
        self.memory.add(self.exchange(), wait=False, **self.source.choice([ANN, ANN, BEN]))

    def wait_long(self) -> None:
        """Its vectors are made later."""
        self.memory.add([{"role": "user", "content": self.said(90)}], wait=False, **ANN)

    def settle(self) -> None:
        """As a worker does before it reads: nothing else in the file changes."""
        memory = self.memory
        with memory._engine.store.snapshot() as tx:
            owing = store_queue.owing(tx, 5)
        for episode_id in owing:
            settle(memory._engine, episode_id)

    def several(self) -> None:
        self.memory.add_many([self.exchange() for _ in range(5)], **ANN, run_id=self.source.choice(["r1", "r2"]))

    def talk(self) -> None:
        self.memory.add(self.exchange(), wait=False, expires_at=self.clock() / 1e6 + 5_000, **ANN, agent_id="guide")

    def verbatim(self) -> None:
        self.memory.add(self.said(), infer=False, **ANN)

    def read(self) -> None:
        self.memory.resume(**ANN, limit=self.source.choice([1, 3]))

    def forget(self) -> None:
        self.memory.add(f"Forget everything about {self.source.choice(WORDS)}.", **ANN)

    def delete(self) -> None:
        for each in self.memory.get_all(**ANN)["results"][:2]:
            self.memory.delete(each["id"])

    def purge(self) -> None:
        if self.source.random() < 0.3:
            self.memory.purge(requested=True)
        elif self.source.random() < 0.2:
            self.memory.purge(**ANN)

    def reindex(self) -> None:
        if self.source.random() < 0.3:
            self.memory.reindex()


@pytest.mark.parametrize(("seed", "steps", "many"), [*[(seed, 40, 0) for seed in range(6)], (6, 12, 130), (7, 12, 130)])
def test_the_same_is_found_whatever_happens(
    open_memory: Opener, clock: FixedClock, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int, many: int
) -> None:
    """``many``: that wait from the beginning, more than a search looks at."""
    memories = [open_memory(worker=False) for _ in range(2)]
    story = Story(random.Random(seed), memories, clock)
    memories[0].add_many([story.exchange() for _ in range(many)], **ANN)
    happened = []
    for _ in range(steps):
        happened.append(story.step())
        for ids in (ANN, BEN, {**ANN, "run_id": "r1"}):
            held = [found(memory, **ids) for memory in memories]
            assert held[0] == held[1] == without_holding(story.memory, monkeypatch, **ids), happened


def test_an_owner_with_too_many_is_searched_in_the_file(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_waiting, "ROWS_MAX", 3)
    memory = open_memory(worker=False)
    memory.add_many(["the boat", "the tea"], **ANN)
    assert sorted(texts(memory.search("the boat", **ANN))) == ["the boat", "the tea"]
    memory.add_many(["a garden", "a train"], **ANN)
    assert len(texts(memory.search("the boat", **ANN))) == 4
    assert not memory._engine.store.waiting._held


def test_what_is_held_has_a_limit(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = open_memory(worker=False)
    for number in range(5):
        memory.add(f"boat number {number}", wait=False, user_id=f"user{number}")
    monkeypatch.setattr(store_waiting, "BYTES_MAX", 64 * 4 * 2)  # two turns of a small embedder
    for number in [*range(5), 0]:
        assert texts(memory.search("boat", user_id=f"user{number}")) == [f"boat number {number}"]
    assert len(memory._engine.store.waiting._held) == 2


def test_searches_in_several_threads_while_it_grows(open_memory: Opener, tmp_path: Path) -> None:
    """Each finds what was there when it began, and nobody an error."""
    memory = open_memory(worker=False)
    memory.add_many([f"boat number {number}" for number in range(50)], **ANN)
    wrong: list[object] = []
    stop = threading.Event()

    def search() -> None:
        least = 50
        while not stop.is_set():
            try:
                count = len(memory.search("boat number", limit=500, **ANN)["results"])
            except Exception as error:
                wrong.append(error)
                return
            if count < least:
                wrong.append((least, count))
            least = count

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(50, 90):
        memory.add(f"boat number {number}", wait=False, **ANN)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(memory.search("boat number", limit=500, **ANN)["results"]) == 90
