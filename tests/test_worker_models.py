"""The worker and models that fail: over one message, each third time, for want of a model; who is told of it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import Opener
from doubles import Listener, texts
from test_queue import Failing, Gate, until
from test_worker import hasty

from localmem import store_queue
from localmem.config import WorkerOptions
from localmem.errors import GeneratorError, GeneratorUnavailableError, MissingExtraError, ModelNotFoundError
from localmem.testing import FixedClock, HashEmbedder
from localmem.types import Prompt

__all__ = ["hasty"]  # a fixture

ANN, BEN = {"user_id": "ann"}, {"user_id": "ben"}
LONG = "User keeps " + "very noisy peacocks " * 60  # more than is embedded before add(wait=False) returns


class EveryThird(Listener):
    """A model that fails each third time it is asked."""

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        said = super().generate(prompt, grammar=grammar, tokens_max=tokens_max)
        if len(self.prompts) % 3 == 0:
            raise GeneratorError("told to fail")
        return said


class Hasher(HashEmbedder):
    """An embedder that fails over some words, as a tokenizer may: its error repeats them."""

    def __init__(self, poison: str) -> None:
        super().__init__()
        self.poison = poison

    def embed_passages(self, texts: Sequence[str]) -> Any:
        for text in texts:
            if self.poison in text:
                raise ValueError(f"no tokens for {text}")
        return super().embed_passages(texts)


@pytest.mark.usefixtures("scripted", "hasty")
class TestModels:
    def test_a_poisoned_message_among_fifty_others(self, open_memory: Opener, clock: FixedClock) -> None:
        """It holds up its owner alone, is set aside in the end, and nobody else's is touched."""
        memory = open_memory(generator=Failing("poison"))
        added = memory.add_many(
            [
                {"messages": f"fact: note {n}" + (" of poison" if n == 17 else ""), "user_id": f"u{n % 5}"}
                for n in range(51)
            ]
        )["episodes"]
        bad = added[17]
        until(lambda: memory.stats()["queue"]["waiting"] == 7)  # it, and what its owner said after it
        assert {each["user_id"] for each in memory.pending()} == {"u2"}
        for attempt in range(1, store_queue.FAILURES_MAX + 1):
            until(lambda n=attempt: memory.status(bad)["attempts"] == n)
            clock.advance(store_queue.DELAY_MAX_S)
        assert memory.flush() == {"flushed": True, "waiting": 0, "set_aside": 1}
        assert memory.status(bad)["state"] == "set_aside"
        found = sorted(text for n in range(5) for text in texts(memory.get_all(user_id=f"u{n}")))
        assert found == sorted(f"note {n}" for n in range(51) if n != 17)

    def test_a_model_that_fails_each_third_time(self, open_memory: Opener, clock: FixedClock) -> None:
        memory = open_memory(generator=EveryThird())
        memory.add_many([{"messages": f"fact: note {n}", "user_id": f"u{n % 4}"} for n in range(24)])

        def read() -> bool:
            clock.advance(store_queue.DELAY_S)
            return not memory.stats()["queue"]["waiting"]

        until(read)
        assert memory.stats()["queue"]["set_aside"] == 0
        for owner in range(4):  # in their order
            assert texts(memory.get_all(user_id=f"u{owner}")) == [f"note {n}" for n in range(24) if n % 4 == owner]

    def test_an_embedder_that_fails_over_some_words_holds_up_nobody_else(
        self, open_memory: Opener, clock: FixedClock, capfd: pytest.CaptureFixture[str]
    ) -> None:
        embedder = Hasher("")
        with open_memory(embedder=HashEmbedder(), worker=False) as memory:
            bad = memory.add(f"fact: {LONG} poison", wait=False, **ANN)["episode_id"]
            memory.add("fact: User sails", wait=False, **BEN)
        embedder.poison = "poison"
        memory = open_memory(embedder=embedder, generator=Gate(open_=True))
        memory.start_worker()
        until(lambda: texts(memory.get_all(**BEN)) == ["User sails"])
        for attempt in range(1, store_queue.FAILURES_MAX + 1):
            until(lambda n=attempt: memory.status(bad)["attempts"] == n)
            clock.advance(store_queue.DELAY_MAX_S)
        assert memory.flush()["set_aside"] == 1
        memory.add("fact: User rows", wait=False, **BEN)
        assert memory.flush(timeout=20)["flushed"]
        assert "peacocks" not in "".join(capfd.readouterr())
        embedder.poison = "never said"
        assert memory.resume()["episodes"] == 1

    def test_nothing_of_what_was_said_reaches_a_log(
        self, open_memory: Opener, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        class Talking(Listener):
            def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
                raise RuntimeError(f"can't read {prompt.turns}")

        caplog.set_level(logging.DEBUG)
        memory = open_memory(generator=Talking())
        added = memory.add("fact: User lives in Faro", wait=False, **ANN)["episode_id"]
        until(lambda: memory.status(added)["attempts"])
        assert memory.status(added)["error"] == "RuntimeError"
        memory.close()
        assert "Faro" not in "".join(capfd.readouterr()) + caplog.text

    def test_a_model_that_is_there_again_is_asked_at_the_next_flush(self, open_memory: Opener) -> None:
        model = Failing(error=GeneratorUnavailableError)
        memory = open_memory(generator=model)
        memory.add("fact: User sails", wait=False, **ANN)
        until(lambda: (memory.stats()["worker"]["trouble"] or {}).get("type") == "GeneratorUnavailableError")
        model.words = "never said"
        assert memory.flush()["flushed"]
        assert memory.stats()["worker"]["trouble"] is None

    def test_who_can_not_read_waits_for_whoever_can(self, open_memory: Opener) -> None:
        blind = open_memory(generator=Failing(error=ModelNotFoundError))
        blind.add("fact: User sails", wait=False, **ANN)
        until(lambda: blind.stats()["worker"]["trouble"])
        gate = Gate()
        seeing = open_memory(generator=gate)
        seeing.start_worker()
        until(lambda: gate.asked)
        threading.Timer(0.5, gate.open.set).start()
        assert blind.flush()["flushed"]

    def test_an_extra_that_is_missing_is_told_before_anything_is_recorded(
        self, open_memory: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "psutil", None)
        memory = open_memory(worker=WorkerOptions(on_battery=False))
        for call in (lambda: memory.add("x", wait=False, **ANN), lambda: memory.add_many(["x"], **ANN)):
            with pytest.raises(MissingExtraError, match="battery"):
                call()
        assert memory.stats()["episodes"] == 0
