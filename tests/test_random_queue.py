"""Random runs of all that can happen to what waits, against plain lists of what each person should be left with.

Two Memories with workers share a file. Words come in one by one or many at once, waiting or not, out of order; people ask
to have everything forgotten; models fail; the worker is paused; Memories are closed and opened; workers die.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Opener
from doubles import Listener, texts
from test_queue import until
from test_worker import hasty

from localmem import store_queue
from localmem.errors import GeneratorError, GeneratorUnavailableError, LocalmemError
from localmem.memory import Memory
from localmem.testing import FixedClock
from localmem.types import Prompt

__all__ = ["hasty"]  # a fixture

PEOPLE = ("ann", "ben", "cleo")
FORGET = "Please forget everything about me."
STEPS = 60


class Moody(Listener):
    """A model that fails with the error it is given, None for none."""

    error: type[Exception] | None = None

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        if self.error is not None:
            raise self.error("told to fail")
        return super().generate(prompt, grammar=grammar, tokens_max=tokens_max)


class Run:
    """One random run: the store, and what it should come to."""

    def __init__(self, open_memory: Opener, clock: FixedClock, seed: int) -> None:
        self.chance, self.clock, self.open = random.Random(seed), clock, open_memory
        self.models = [Moody(), Moody()]
        self.memories = [self._opened(0), self._opened(1)]
        self.said: dict[str, list[tuple[int, str]]] = {person: [] for person in PEOPLE}  # (when, what)
        self.episodes = 0

    def _opened(self, which: int) -> Memory:
        return self.open(generator=self.models[which], durability="process")

    @property
    def one(self) -> Memory:
        return self.chance.choice(self.memories)

    def words(self, person: str) -> tuple[str, int]:
        """Something to say, and when it was said: a second on, or some time back."""
        self.clock.advance(1)
        self.episodes += 1
        when = self.clock() // 1_000_000 - self.chance.choice((0, 0, 0, 1_000))
        text = f"note {self.episodes} of {person}"
        self.said[person].append((when, text))
        return f"fact: {text}", when

    def add(self) -> None:
        person = self.chance.choice(PEOPLE)
        text, when = self.words(person)
        self.one.add(text, timestamp=when, wait=False, user_id=person)

    def add_and_wait(self) -> None:
        person = self.chance.choice(PEOPLE)
        text, when = self.words(person)
        try:
            self.one.add(text, timestamp=when, user_id=person)
        except LocalmemError as error:
            assert getattr(error, "episode_id", None), error

    def add_many(self) -> None:
        given = []
        for person in self.chance.choices(PEOPLE, k=4):
            text, when = self.words(person)
            given.append({"messages": text, "timestamp": when, "user_id": person})
        self.one.add_many(given)

    def forget(self) -> None:
        """Nobody speaks of an earlier time after this, so that what is left does not hang on who reads when.

        While words of the person are being read, the request waits as well: see test_waiting.py for one that does not.
        """
        self.clock.advance(2_000)
        person = self.chance.choice(PEOPLE)
        self.episodes += 1
        self.one.add(FORGET, wait=not self.one.pending(user_id=person), user_id=person)
        self.said[person].clear()
        self.clock.advance(2_000)

    def fail(self) -> None:
        self.chance.choice(self.models).error = self.chance.choice((GeneratorError, GeneratorUnavailableError))

    def mend(self) -> None:
        self.chance.choice(self.models).error = None

    def reopen(self) -> None:
        which = self.chance.randrange(2)
        self.memories[which].close()
        self.memories[which] = self._opened(which)

    def die(self) -> None:
        """Whoever holds the lease, its beat is that of somebody who is not there."""
        with self.one._engine.store.write() as tx:
            if store_queue.lease(tx) is None:
                store_queue.take_lease(tx, "nobody", 1, self.clock(), None)
                store_queue.begin(tx, "nobody", self.clock())

    def pause(self) -> None:
        self.one.pause_worker()

    def go_on(self) -> None:
        self.one.resume_worker()

    def wait(self) -> None:
        self.one.flush(timeout=self.chance.choice((0, 0.05, 0.2)))
        self.clock.advance(self.chance.choice((0, 15, 700, -300)))

    def look(self) -> None:
        """What waits is found, and what was forgotten is not told."""
        told = self.one.stats()
        assert told["episodes"] == self.episodes
        person = self.chance.choice(PEOPLE)
        for _, text in self.said[person][-3:]:
            hits = self.one.search(text, user_id=person, limit=50)["results"]
            assert any(text in hit["memory"] for hit in hits), text

    def end(self) -> None:
        """Mend everything, and wait."""
        for model in self.models:
            model.error = None
        self.one.resume_worker()

        def all_read() -> bool:
            self.clock.advance(store_queue.CLAIM_S)
            return bool(self.one.flush(timeout=0.2)["flushed"])

        until(all_read, 60)
        self.one.resume()
        assert self.one.stats()["queue"] == {"waiting": 0, "set_aside": 0, "oldest_at": None}
        for person in PEOPLE:
            assert sorted(texts(self.one.get_all(user_id=person))) == sorted(text for _, text in self.said[person])
            read = [each["episode_id"] for each in self.one.decisions(user_id=person)]
            assert len(read) == len(set(read))  # each once


def steps(run: Run) -> list[Callable[[], Any]]:
    often = [run.add, run.add, run.add, run.add_many, run.add_and_wait, run.wait, run.wait, run.look]
    return [*often, run.forget, run.fail, run.mend, run.mend, run.reopen, run.die, run.pause, run.go_on, run.go_on]


@pytest.mark.usefixtures("scripted", "hasty")
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 10))])
def test_each_person_is_left_with_what_was_said(open_memory: Opener, clock: FixedClock, seed: int) -> None:
    run = Run(open_memory, clock, seed)
    for _ in range(STEPS):
        run.chance.choice(steps(run))()
        time.sleep(run.chance.choice((0, 0, 0.02)))
    run.end()
    assert run.one.check() == []
