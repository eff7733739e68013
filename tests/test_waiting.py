"""What waits and whom it is of: order and expiry, requests to forget, erasing, and who may not read it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from doubles import Listener, texts
from test_queue import Failing, Gate, until

from localmem import store_queue, worker
from localmem.errors import GeneratorError, GeneratorUnavailableError
from localmem.memory import Memory
from localmem.testing import FixedClock

ANN, BEN = {"user_id": "ann"}, {"user_id": "ben"}
DAY_S = 86_400
LONG = "User keeps " + "very noisy peacocks " * 60  # more than is embedded before add(wait=False) returns

pytestmark = pytest.mark.usefixtures("scripted")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats, looks and pauses of a test's length."""
    for name, seconds in {
        "BEAT_S": 0.1, "STALE_S": 0.6, "POLL_S": 0.05, "TROUBLE_S": 0.05, "TROUBLE_MAX_S": 0.2
    }.items():  # fmt: skip
        monkeypatch.setattr(worker, name, seconds)


def read_all(open_memory: Opener, **options: Any) -> Memory:
    """A Memory whose worker has read all that waited."""
    memory = open_memory(**{"generator": Listener(), **options})
    assert memory.flush(timeout=20) == {"flushed": True, "waiting": 0, "set_aside": 0}
    return memory


class TestTimes:
    def test_what_has_expired_before_it_is_read(self, open_memory: Opener, clock: FixedClock) -> None:
        with open_memory(worker=False) as memory:
            soon = clock() // 1_000_000 + 60
            memory.add("fact: User is in the bath", expires_at=soon, wait=False, **ANN)
            memory.add("fact: User sails", wait=False, **ANN)
            clock.advance(DAY_S)
            assert "bath" not in str(memory.search("bath", **ANN)["results"])
        memory = read_all(open_memory)
        assert texts(memory.get_all(**ANN)) == ["User sails"]
        assert "bath" not in str(memory.search("bath", **ANN)["results"])

    def test_said_in_the_future_it_is_read_now(self, open_memory: Opener, clock: FixedClock) -> None:
        with open_memory(worker=False) as memory:
            future = clock() // 1_000_000 + 400 * DAY_S
            memory.add("fact: User moves to Faro | changes: moves", timestamp=future, wait=False, **ANN)
            memory.add("fact: User moves to Porto", wait=False, **ANN)
        memory = read_all(open_memory)
        assert texts(memory.get_all(**ANN)) == ["User moves to Faro"]  # the later event, though it came in first

    def test_a_clock_set_back_puts_nothing_off(self, open_memory: Opener, clock: FixedClock) -> None:
        memory = open_memory(generator=Failing("poison"))
        bad = memory.add("fact: User drinks poison", wait=False, **ANN)["episode_id"]
        until(lambda: memory.status(bad)["attempts"] == 1)
        clock.advance(-5 * 3600)
        until(lambda: memory.status(bad)["attempts"] > 1)
        later = memory.add("fact: User rows", wait=False, **BEN)["episode_id"]
        until(lambda: memory.status(later)["state"] == "done")

    def test_a_claim_holds_for_its_time_and_no_longer(self, open_memory: Opener, clock: FixedClock) -> None:
        """An add() that was cut off: its words are read by the worker once nobody can be reading them any more."""
        gate = Gate()
        with open_memory(worker=False, generator=gate) as memory:
            thread = threading.Thread(target=lambda: memory.add("fact: User sails", **ANN), daemon=True)
            thread.start()
            until(lambda: gate.asked)
            other = open_memory(generator=Listener())
            other.start_worker()
            time.sleep(0.5)
            assert len(other.pending()) == 1
            clock.advance(store_queue.CLAIM_S)
            assert other.flush(timeout=20)["flushed"]
            gate.open.set()
            thread.join(20)
        assert texts(other.get_all(**ANN)) == ["User sails"]


class TestForgetting:
    def test_a_request_waits_for_what_was_said_before_it(self, open_memory: Opener, clock: FixedClock) -> None:
        with open_memory(worker=False) as memory:
            memory.add("fact: User plays the cello", wait=False, **ANN)
            memory.add("fact: User sails", wait=False, **ANN)
            memory.add("Please forget that I play the cello.", wait=False, **ANN)
        memory = read_all(open_memory)
        assert texts(memory.get_all(**ANN)) == ["User sails"]
        assert "cello" not in str(memory.search("cello", include="all", **ANN)["results"])

    @pytest.mark.parametrize("kind", ["everything about me", "that I sail"])
    def test_a_request_that_does_not_wait_holds_for_what_waits(self, open_memory: Opener, kind: str) -> None:
        with open_memory(worker=False) as memory:
            memory.add("fact: I sail", wait=False, **ANN)
            memory.add(f"Please forget {kind}.", **ANN)
            assert memory.search("sail", include="all", **ANN)["results"] == []
        memory = read_all(open_memory)
        assert memory.get_all(**ANN)["results"] == []

    @pytest.mark.parametrize("kind", ["everything about me", "that I sail"])
    def test_a_request_that_does_not_wait_holds_for_what_is_being_read(self, open_memory: Opener, kind: str) -> None:
        """It is carried out in the middle of the reading: nothing may be made of those words afterwards."""
        gate = Gate()
        memory = open_memory(generator=gate)
        memory.add("fact: I sail", wait=False, **ANN)
        until(lambda: gate.asked)
        open_memory(worker=False).add(f"Please forget {kind}.", **ANN)
        gate.open.set()
        assert memory.flush(timeout=20)["flushed"]
        assert memory.get_all(**ANN)["results"] == []
        assert memory.search("sail", include="all", **ANN)["results"] == []

    def test_a_request_stands_behind_words_that_fail(self, open_memory: Opener, clock: FixedClock) -> None:
        """They are suppressed with it once they are set aside, and resume() makes no memory of them."""
        model = Failing("poison")
        memory = open_memory(generator=model)
        bad = memory.add("fact: User drinks poison", wait=False, **ANN)["episode_id"]
        memory.add("Please forget everything about me.", wait=False, **ANN)
        for attempt in range(1, store_queue.FAILURES_MAX + 1):
            until(lambda n=attempt: memory.status(bad)["attempts"] == n)
            clock.advance(store_queue.DELAY_MAX_S)
        assert memory.flush(timeout=20) == {"flushed": True, "waiting": 0, "set_aside": 1}
        assert "poison" not in str(memory.search("poison", include="all", **ANN)["results"])
        model.words = "never said"
        memory.resume()
        assert memory.get_all(**ANN)["results"] == []
        assert memory.stats()["queue"]["set_aside"] == 0

    def test_forgetting_what_is_not_embedded_yet(self, open_memory: Opener) -> None:
        with open_memory(worker=False) as memory:
            memory.add(f"fact: {LONG}", wait=False, **ANN)
            memory.add("Please forget everything about me.", wait=False, **ANN)
        memory = read_all(open_memory)
        assert memory.search("peacocks", include="all", **ANN)["results"] == []
        assert memory.check() == []

    @pytest.mark.parametrize("retention", ["none", "evidence"])
    def test_words_that_are_not_kept_and_owe_a_vector(self, open_memory: Opener, retention: str) -> None:
        with open_memory(worker=False, retention=retention) as memory:
            memory.add([{"role": "user", "content": f"fact: {LONG}"}, {"role": "assistant", "content": LONG}],
                       wait=False, **ANN)  # fmt: skip
            assert memory.search("peacocks", **ANN)["results"][0]["turn"]
        memory = read_all(open_memory)
        assert texts(memory.get_all(**ANN)) == [LONG.strip()]
        turns = memory.search("peacocks", include="episodes", **ANN)["results"]
        assert len(turns) == (0 if retention == "none" else 1)

    @pytest.mark.parametrize("error", [GeneratorError, GeneratorUnavailableError])
    def test_a_request_is_erased_although_the_rest_of_its_message_can_not_be_read(
        self, open_memory: Opener, error: type[Exception]
    ) -> None:
        """As add() does: with erase_on_delete, what was asked to be forgotten does not wait for the model."""
        memory = open_memory(generator=Failing("boat", error), erase_on_delete=True)
        memory.add("User plays the cello", infer=False, **ANN)
        memory.add("Please forget that I play the cello. I bought a small boat.", wait=False, **ANN)
        until(lambda: memory.get_all(**ANN)["results"] == [])
        until(lambda: [each["state"] for each in memory.purges()] == ["done"])

    def test_a_reader_that_does_not_erase_leaves_it_to_whoever_does(self, open_memory: Opener) -> None:
        """The words are out of use at once, and in the file until the one that erases has done its next reading."""
        eraser = open_memory(generator=Listener(), erase_on_delete=True, worker=False)
        eraser.add("User plays the cello", infer=False, **ANN)
        eraser.add("Please forget that I play the cello.", wait=False, **ANN)
        reader = read_all(open_memory)
        assert reader.get_all(**ANN)["results"] == []
        assert eraser.purges() == []
        eraser.add("fact: User sails", **ANN)
        assert [each["state"] for each in eraser.purges()] == ["done"]

    def test_all_of_a_scope_is_deleted_while_words_of_it_wait(self, open_memory: Opener) -> None:
        """What waits there never becomes a memory. purge() takes the words as well."""
        with open_memory(worker=False) as memory:
            memory.add("User rows", infer=False, **ANN)
            memory.add("fact: User sails", wait=False, **ANN)
            memory.add("fact: User swims", wait=False, **BEN)
            memory.delete_all(**ANN)
            assert [each["user_id"] for each in memory.pending()] == ["ben"]
            assert memory.search("sails", **ANN)["results"] == []
        memory = read_all(open_memory)
        assert texts(memory.get_all(**ANN)) == []
        with open_memory(worker=False) as other:
            other.add("fact: User swims", wait=False, **ANN)
            other.purge(**ANN)
        assert memory.flush(timeout=20)["flushed"]
        assert memory.get_all(**ANN)["results"] == []


class TestWhoMayRead:
    def test_a_program_without_the_audit_key_takes_nothing_up(self, open_memory: Opener, clock: FixedClock) -> None:
        """It could not write what it makes of the words; that is not their fault."""
        key = bytes(range(32))
        with open_memory(worker=False, audit_key=key) as memory:
            added = memory.add_many([f"fact: note {n}" for n in range(3)], **ANN)["episodes"]
        with open_memory(generator=Listener(), sound=False) as stranger:
            stranger.start_worker()
            for _ in range(store_queue.FAILURES_MAX * 4):
                clock.advance(store_queue.DELAY_MAX_S)
                time.sleep(0.1)
            assert stranger.stats()["queue"] == {**stranger.stats()["queue"], "waiting": 3, "set_aside": 0}
            assert stranger.stats()["worker"]["trouble"]["type"] == "KeyRefusedError"
        memory = open_memory(generator=Listener(), audit_key=key)
        assert memory.flush(timeout=20)["flushed"]
        assert [memory.status(each)["state"] for each in added] == ["done"] * 3

    def test_encrypted_and_signed_by_two_programs(self, open_memory: Opener, tmp_path: Path) -> None:
        keys = {"key": "a pass phrase", "audit_key": bytes(range(32))}
        one = open_memory(generator=Listener(), actor="one", **keys)
        two = open_memory(generator=Listener(), actor="two", **keys)
        for n in range(6):
            (one, two)[n % 2].add(f"fact: note {n} {LONG}", wait=False, **ANN)
        assert one.flush(timeout=20)["flushed"]
        assert two.flush(timeout=20)["flushed"]
        assert texts(one.get_all(**ANN)) == [f"note {n} {LONG}".strip() for n in range(6)]
        assert one.verify_audit()["ok"]
        assert b"peacocks" not in b"".join(each.read_bytes() for each in tmp_path.glob("memory.db*"))


class TestTelling:
    def test_a_holder_that_is_dead_is_not_told_to_be_working(self, open_memory: Opener, clock: FixedClock) -> None:
        with open_memory(worker=False) as memory:
            with memory._engine.store.write() as tx:
                assert store_queue.take_lease(tx, "dead", 1, clock(), None)
            assert memory.stats()["worker"]["state"] == "working"
            clock.advance(DAY_S)
            assert memory.stats()["worker"]["state"] == "none"

    def test_flush_counts_what_came_before_it_alone(self, open_memory: Opener) -> None:
        gate = Gate()
        memory = open_memory(generator=gate)
        memory.add("fact: User sails", wait=False, **ANN)
        until(lambda: gate.asked)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(memory.flush(timeout=20)))
        thread.start()
        time.sleep(0.3)
        memory.add("fact: User rows", wait=False, **BEN)
        memory.pause_worker()  # what is under way is read to its end
        gate.open.set()
        thread.join(20)
        assert found == [{"flushed": True, "waiting": 0, "set_aside": 0}]
        assert memory.stats()["queue"]["waiting"] == 1
        memory.resume_worker()

    def test_flush_of_a_scope(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Failing("rows", GeneratorError))
        memory.add_many([{"messages": "fact: User sails", **ANN}, {"messages": "fact: User rows", **BEN}])
        assert memory.flush(timeout=20, **ANN) == {"flushed": True, "waiting": 0, "set_aside": 0}
        assert memory.flush(timeout=0, **BEN) == {"flushed": False, "waiting": 1, "set_aside": 0}
        assert memory.bound(**ANN).flush(timeout=0)["flushed"] is True
