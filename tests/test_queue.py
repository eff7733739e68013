"""What waits: add(wait=False), add_many, flush, status, stats, and the one worker of a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import pytest
from conftest import Opener
from doubles import Listener, texts

from localmem import store_queue
from localmem.errors import (
    ConflictError,
    GeneratorError,
    GeneratorUnavailableError,
    InvalidInputError,
    InvalidTypeError,
    NotFoundError,
    ScopeError,
)
from localmem.memory import Memory
from localmem.testing import FixedClock, ScriptedGenerator
from localmem.types import Prompt

ANN, BEN = {"user_id": "ann"}, {"user_id": "ben"}


class Gate(Listener):
    """A generator that answers only once its gate is open; counts who asks."""

    def __init__(self, open_: bool = False) -> None:
        super().__init__()
        self.open, self.asked = threading.Event(), 0
        if open_:
            self.open.set()

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        self.asked += 1
        assert self.open.wait(30)
        return super().generate(prompt, grammar=grammar, tokens_max=tokens_max)


class Failing(Listener):
    """A generator that fails over some words, or with some error over all."""

    def __init__(self, words: str = "", error: type[Exception] = GeneratorError) -> None:
        super().__init__()
        self.words, self.error, self.seen = words, error, list[str]()

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        said = prompt.turns[-1][1]
        self.seen.append(said)
        if self.words in said:
            raise self.error("told to fail")
        return super().generate(prompt, grammar=grammar, tokens_max=tokens_max)


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.mark.usefixtures("scripted")
class TestAsking:
    def test_words_are_found_before_they_are_read(self, open_memory: Opener) -> None:
        gate = Gate()
        memory = open_memory(generator=gate)
        added = memory.add("fact: User lives in Faro", wait=False, **ANN)
        assert added == {"results": [], "episode_id": added["episode_id"], "status": "waiting"}
        assert memory.search("Faro", **ANN)["results"][0]["turn"] is True
        assert memory.status(added["episode_id"])["state"] == "waiting"
        assert memory.stats()["queue"]["waiting"] == 1
        gate.open.set()
        assert memory.flush(timeout=20) == {"flushed": True, "waiting": 0, "set_aside": 0}
        assert texts(memory.get_all(**ANN)) == ["User lives in Faro"]
        status = memory.status(added["episode_id"])
        [told] = status["results"]
        assert (status["state"], told["memory"], told["event"]) == ("done", "User lives in Faro", "ADD")
        assert memory.stats()["worker"]["state"] == "working"

    def test_what_one_process_left_the_next_one_reads(self, open_memory: Opener) -> None:
        with open_memory(generator=Gate(), worker=False) as memory:
            added = memory.add("fact: User lives in Faro", wait=False, **ANN)
            assert memory.stats()["worker"]["state"] == "none"
            with pytest.raises(ConflictError, match="worker=False"):
                memory.start_worker()
        memory = open_memory(generator=Gate(open_=True))
        memory.start_worker()
        until(lambda: memory.status(added["episode_id"])["state"] == "done")
        assert texts(memory.get_all(**ANN)) == ["User lives in Faro"]

    def test_many_at_once(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Gate(open_=True))
        given = [
            "fact: User lives in Faro",
            [{"role": "user", "content": "fact: User sails"}, {"role": "assistant", "content": "Nice."}],
            {"messages": "fact: User rows", "timestamp": "2024-05-01", "metadata": {"source": "diary"}},
        ]
        added = memory.add_many(given, metadata={"by": "import"}, **ANN)
        assert added["status"] == "waiting"
        assert [len(each) for each in added["episodes"]] == [36] * 3
        assert memory.flush(timeout=20)["flushed"]
        found = {each["memory"]: each for each in memory.get_all(**ANN)["results"]}
        assert set(found) == {"User lives in Faro", "User sails", "User rows"}
        assert found["User rows"]["metadata"] == {"by": "import", "source": "diary"}
        assert found["User rows"]["valid_from"].startswith("2024-05-01")

    def test_each_exchange_may_have_an_owner(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Gate(open_=True))
        memory.add_many([{"messages": "fact: User sails", **ANN}, {"messages": "fact: User rows", **BEN}])
        memory.flush(timeout=20)
        assert (texts(memory.get_all(**ANN)), texts(memory.get_all(**BEN))) == (["User sails"], ["User rows"])

    @pytest.mark.parametrize(
        ("given", "error", "words"),
        [
            ("one exchange", InvalidTypeError, "add() takes one"),
            ({"messages": "x"}, InvalidTypeError, "add() takes one"),
            (["fine", {"messages": "x", "user": "ann"}], InvalidTypeError, "exchanges[1] has 'user'"),
            (["fine", {"messages": "x", "timestamp": "noon"}], InvalidInputError, "exchanges[1]: timestamp"),
            (["fine", ""], InvalidInputError, "exchanges[1]: "),
            (["fine", {"messages": "x", "metadata": ["y"]}], InvalidInputError, "exchanges[1]: metadata"),
            (["fine", {"messages": "x", "user_id": "ben"}], InvalidInputError, "exchanges[1].user_id"),
        ],
    )
    def test_one_wrong_exchange_and_none_is_recorded(
        self, open_memory: Opener, given: object, error: type[Exception], words: str
    ) -> None:
        memory = open_memory(worker=False)
        with pytest.raises(error) as raised:
            memory.add_many(given, **ANN)  # type: ignore[arg-type]
        assert words in str(raised.value)
        assert memory.stats()["episodes"] == 0

    def test_nothing_is_many_too(self, open_memory: Opener) -> None:
        memory = open_memory(worker=False)
        assert memory.add_many([], **ANN)["episodes"] == []
        assert memory.flush(timeout=0)["flushed"] is True

    def test_what_is_there_is_left_out(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Gate(open_=True))
        given = [{"messages": f"fact: User has {n} hens", "metadata": {"source_id": f"chat:{n}"}} for n in range(3)]
        memory.add_many(given[:2], once=True, **ANN)
        again = memory.add_many(given, once=True, **ANN)["episodes"]
        assert [each is None for each in again] == [True, True, False]
        assert memory.flush(timeout=20)["flushed"]
        assert len(memory.get_all(**ANN)["results"]) == 3

    def test_verbatim_does_not_wait(self, open_memory: Opener) -> None:
        memory = open_memory()
        added = memory.add("Allergic to nuts", infer=False, wait=False, **ANN)
        assert texts(added) == ["Allergic to nuts"]
        status = memory.status(added["episode_id"])
        assert (status["state"], texts(status)) == ("done", ["Allergic to nuts"])

    def test_a_bound_handle_knows_of_its_own_alone(self, open_memory: Opener) -> None:
        memory = open_memory(worker=False)
        bens = memory.add("fact: User rows", wait=False, **BEN)["episode_id"]
        ann = memory.bound(**ANN)
        mine = ann.add("fact: User sails", wait=False)["episode_id"]
        assert ann.status(mine)["ahead"] == 0
        assert memory.status(mine)["ahead"] == 1
        assert ann.stats()["queue"]["waiting"] == 1
        unknown = bens[:-4] + "0000"
        said = []
        for each in (bens, unknown):
            with pytest.raises(NotFoundError) as raised:
                ann.status(each)
            said.append(str(raised.value).replace(each, "…"))
        assert said[0] == said[1]
        with pytest.raises(ScopeError):
            ann.pause_worker()
        with pytest.raises(ScopeError):
            memory.bound(read_only=True, **ANN).add("x", wait=False)

    def test_long_words_are_found_at_once_and_by_meaning_soon(self, open_memory: Opener) -> None:
        gate = Gate()
        long = "fact: User keeps " + "very noisy peacocks " * 60
        with open_memory(generator=gate, worker=False) as memory:
            memory.add(
                [{"role": "user", "content": long}, {"role": "assistant", "content": "Lovely"}], wait=False, **ANN
            )
            assert memory.check() == []
            [hit] = memory.search("peacocks", **ANN)["results"][:1]
            assert hit["turn"] is True
            with memory._engine.store.snapshot() as tx:
                [episode_id] = store_queue.owing(tx, 9)
        memory = open_memory(generator=gate)
        memory.start_worker()

        def settled() -> bool:
            with memory._engine.store.snapshot() as tx:
                return not store_queue.owing(tx, 9)

        until(settled)
        assert memory.status(episode_id)["state"] == "waiting"
        assert memory.check() == []
        gate.open.set()
        assert memory.flush(timeout=20)["flushed"]


@pytest.mark.usefixtures("scripted")
class TestOrder:
    def test_each_owner_in_the_order_of_events(self, open_memory: Opener) -> None:
        listener = Failing("never said")
        memory = open_memory(generator=listener, worker=False)
        memory.add("fact: User is third", timestamp="2025-01-03", wait=False, **ANN)
        memory.add("fact: User is first", timestamp="2025-01-01", wait=False, **ANN)
        memory.add("fact: User is ben", timestamp="2025-01-09", wait=False, **BEN)
        memory.add("fact: User is second", timestamp="2025-01-02", wait=False, **ANN)
        memory.close()
        memory = open_memory(generator=listener)
        assert memory.flush(timeout=20)["flushed"]
        said = [word for text in listener.seen for word in ("first", "second", "third") if f"is {word}" in text]
        assert list(dict.fromkeys(said)) == ["first", "second", "third"]

    def test_one_that_fails_holds_back_its_owner_alone_until_it_is_set_aside(
        self, open_memory: Opener, clock: FixedClock
    ) -> None:
        memory = open_memory(generator=Failing("poison"))
        bad = memory.add("fact: User drinks poison", timestamp="2025-01-01", wait=False, **ANN)["episode_id"]
        until(lambda: memory.status(bad)["attempts"] == 1)
        later = memory.add("fact: User sails", wait=False, **ANN)["episode_id"]
        other = memory.add("fact: User rows", wait=False, **BEN)["episode_id"]
        until(lambda: memory.status(other)["state"] == "done")
        assert memory.status(later)["state"] == "waiting"
        for attempt in range(2, store_queue.FAILURES_MAX + 1):
            clock.advance(store_queue.DELAY_MAX_S)
            until(lambda n=attempt: memory.status(bad)["attempts"] == n)
        status = memory.status(bad)
        assert (status["state"], status["error"]) == ("set_aside", "GeneratorError")
        until(lambda: memory.status(later)["state"] == "done")
        assert memory.flush() == {"flushed": True, "waiting": 0, "set_aside": 1}
        assert memory.pending()[0]["set_aside"] is True
        assert memory.search("poison", **ANN)["results"][0]["turn"] is True  # its words are still found
        memory.close()
        mended = open_memory(generator=Listener())
        assert mended.resume()["episodes"] == 1
        assert mended.status(bad)["state"] == "done"

    def test_delays_grow(self, open_memory: Opener, clock: FixedClock) -> None:
        memory = open_memory(generator=Failing("poison"))
        bad = memory.add("fact: User drinks poison", wait=False, **ANN)["episode_id"]
        until(lambda: memory.status(bad)["attempts"] == 1)
        clock.advance(store_queue.DELAY_S - 1)
        memory.start_worker()
        time.sleep(0.3)
        assert memory.status(bad)["attempts"] == 1
        clock.advance(1)
        memory.start_worker()
        until(lambda: memory.status(bad)["attempts"] == 2)

    def test_a_missing_model_is_nobodys_fault(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Failing(error=GeneratorUnavailableError))
        given = [memory.add(f"fact: User has {n} hens", wait=False, **ANN)["episode_id"] for n in (1, 2)]
        until(lambda: memory.stats()["worker"]["trouble"])
        assert memory.stats()["worker"]["trouble"]["type"] == "GeneratorUnavailableError"
        with pytest.raises(GeneratorUnavailableError):
            memory.flush()
        assert memory.flush(timeout=0.1)["flushed"] is False
        assert [memory.status(each)["state"] for each in given] == ["waiting", "waiting"]
        memory.close()
        mended = open_memory(generator=Listener())
        assert mended.flush(timeout=20)["flushed"]

    def test_the_worker_leaves_what_an_add_is_reading(self, open_memory: Opener) -> None:
        gate = Gate()
        memory = open_memory(generator=gate)
        memory.start_worker()
        results: list[Mapping[str, object]] = []
        thread = threading.Thread(target=lambda: results.append(memory.add("fact: User sails", **ANN)))
        thread.start()
        until(lambda: gate.asked)
        time.sleep(1.5)
        assert gate.asked == 1
        gate.open.set()
        thread.join(20)
        assert texts(results[0]) == ["User sails"]


@pytest.mark.usefixtures("scripted")
class TestTheWorker:
    def test_paused_for_all_who_open_the_file(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Gate(open_=True))
        memory.pause_worker()
        added = memory.add("fact: User sails", wait=False, **ANN)["episode_id"]
        with pytest.raises(ConflictError, match="paused"):
            memory.flush()
        assert memory.flush(timeout=0.3) == {"flushed": False, "waiting": 1, "set_aside": 0}
        memory.close()
        memory = open_memory(generator=Gate(open_=True))
        memory.start_worker()
        time.sleep(0.5)
        assert (memory.status(added)["state"], memory.stats()["worker"]["state"]) == ("waiting", "paused")
        memory.resume_worker()
        assert memory.flush(timeout=20)["flushed"]

    def test_closing_leaves_what_is_half_read(self, open_memory: Opener) -> None:
        gate = Gate()
        memory = open_memory(generator=gate)
        added = memory.add("fact: User sails. " + "fact: User rows", wait=False, **ANN)["episode_id"]
        until(lambda: gate.asked)
        closing = threading.Thread(target=memory.close)
        closing.start()
        gate.open.set()  # its reply comes, and the next question is not asked
        closing.join(20)
        assert not closing.is_alive()
        memory = open_memory(generator=Gate(open_=True), worker=False)
        status = memory.status(added)
        assert status["state"] == "done" or (status["state"], status["attempts"]) == ("waiting", 0)
        assert memory.stats()["worker"]["state"] == "none"  # the lease was given back

    def test_two_that_have_the_file_open_read_nothing_twice(self, open_memory: Opener) -> None:
        first, second = Gate(open_=True), Gate(open_=True)
        one, two = open_memory(generator=first), open_memory(generator=second)
        one.add_many([f"fact: User has {n} hens" for n in range(8)], user_id="a")
        two.add_many([f"fact: User has {n} cows" for n in range(8)], user_id="b")
        assert one.flush(timeout=30)["flushed"]
        assert two.flush(timeout=30)["flushed"]
        assert first.asked + second.asked == 16
        assert min(first.asked, second.asked) == 0
        assert len(one.get_all(user_id="a")["results"]) == len(one.get_all(user_id="b")["results"]) == 8

    def test_an_episode_over_which_workers_die_is_set_aside(self, open_memory: Opener) -> None:
        with open_memory(worker=False) as memory:
            added = memory.add("fact: User sails", wait=False, **ANN)["episode_id"]
            for _ in range(store_queue.DEATHS_MAX):
                with memory._engine.store.write() as tx:  # a worker that takes it up and is never heard of again
                    tx.execute("delete from worker")
                    assert store_queue.take_lease(tx, "dead", 1, 0, None)
                    assert store_queue.begin(tx, "dead", memory._engine.clock()) == added
            with memory._engine.store.write() as tx:
                assert store_queue.begin(tx, "dead", memory._engine.clock()) is None
                store_queue.release(tx, "dead")
            status = memory.status(added)
            assert (status["state"], status["error"]) == ("set_aside", "Crashed")

    def test_what_was_asked_to_be_forgotten_is_erased_by_the_worker_too(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Gate(open_=True), erase_on_delete=True)
        memory.add("Allergic to hazelnuts", infer=False, **ANN)
        memory.add("Please forget everything about me.", wait=False, **ANN)
        assert memory.flush(timeout=20)["flushed"]
        until(lambda: memory.purges())
        assert memory.get_all(**ANN)["results"] == []

    def test_in_memory_only(self, open_memory: Opener) -> None:
        memory = open_memory(":memory:", generator=Gate(open_=True))
        memory.add("fact: User sails", wait=False, **ANN)
        assert memory.flush(timeout=20)["flushed"]
        assert texts(memory.get_all(**ANN)) == ["User sails"]


def test_waiting_for_nobody_is_refused(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localmem.queued.STALE_S", 0.2)
    memory: Memory = open_memory(generator=ScriptedGenerator(), worker=False)
    memory.add("fact: User sails", wait=False, **ANN)
    with pytest.raises(ConflictError, match="localmem worker"):
        memory.flush()
    with pytest.raises(InvalidInputError):
        memory.flush(timeout=-1)
    memory.resume()
