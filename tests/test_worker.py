"""The worker in hard weather: faults and deaths at every step, locks, full disks, other writers, forks.

Models that fail are in test_worker_models.py, the programs around it in test_worker_processes.py, and what it does with
people's words in test_waiting.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import faults
import pytest
from conftest import Opener
from doubles import Listener, OtherEmbedder, following_scripts, texts
from test_faults import (
    ANN,
    SAID,
    STORY_LIVE,
    DeadlyGenerator,
    State,
    after_call,
    known,
    live,
    memory_at,
    observe,
)
from test_faults import scripted as story_model
from test_queue import Gate, until

from localmem import ingest, reembed, store_queue, worker
from localmem.aio import AsyncMemory
from localmem.config import Limits, WorkerOptions
from localmem.encryption import encrypt, rekey
from localmem.errors import (
    ClosedError,
    EmbedderMismatchError,
    LocalmemError,
    LockedError,
    ReadOnlyError,
)
from localmem.memory import Memory
from localmem.store import Store
from localmem.testing import HashEmbedder
from localmem.worker import Worker

BEN = {"user_id": "ben"}
LONG = "User keeps " + "very noisy peacocks " * 60  # more than is embedded before add(wait=False) returns


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats, looks and pauses of a test's length."""
    monkeypatch.setattr(worker, "BEAT_S", 0.1)
    monkeypatch.setattr(worker, "STALE_S", 0.4)
    monkeypatch.setattr(worker, "POLL_S", 0.05)
    monkeypatch.setattr(worker, "TROUBLE_S", 0.05)
    monkeypatch.setattr(worker, "TROUBLE_MAX_S", 0.2)


# -------------------------------------------------------------------- faults and deaths at every step


def waiting(path: Path) -> None:
    """`known`, and the story's words, which wait; some of them without a vector."""
    known(path)
    with memory_at(path) as memory:
        memory.add([{"role": "user", "content": SAID}, {"role": "assistant", "content": LONG}], wait=False, **ANN)


def sound(path: Path) -> State:
    """The state; nothing of it may be set aside."""
    state = observe(path)
    with memory_at(path) as memory:
        assert memory.stats()["queue"]["set_aside"] == 0
    return state


def by_hand(memory: Memory) -> None:
    """Every step of the worker, one after another, in this thread."""
    reader = Worker(memory._engine, WorkerOptions())
    try:
        assert reader._hold()
        reader._settle_vectors()
        while reader._finish_next():
            pass
    finally:
        reader._let_go()
        reader.stop()
    if reader.trouble is not None:
        raise reader.trouble


def read_on(path: Path) -> None:
    """What the next program does: wait until it may take over, and read."""
    with memory_at(path, worker=True) as memory:
        assert memory.flush(timeout=20)["flushed"]


@pytest.mark.usefixtures("hasty")
class TestFaults:
    @pytest.mark.slow
    def test_at_each_write_of_the_worker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(worker, "BEAT_S", 60.0)  # its writes would come at any time
                with memory_at(path, vfs.name) as memory:
                    by_hand(memory)
                    acknowledge()

        swept = faults.sweep(
            tmp_path,
            make=waiting,
            act=act,
            observe=sound,
            errors=(LocalmemError,),
            finish=read_on,
            points_max=9,
        )
        assert isinstance(swept.after, State)
        assert live(swept.after) == STORY_LIVE
        assert len({outcome.now for outcome in swept.outcomes}) == 2  # before and after, and nothing between

    def test_the_worker_goes_on_once_the_disk_works_again(self, tmp_path: Path) -> None:
        """In the same process, without being told."""
        troubles = Counter[str]()

        def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
            with memory_at(path, vfs.name, worker=True) as memory:
                memory.start_worker()
                until(lambda: not memory.stats()["queue"]["waiting"] or memory.stats()["worker"]["trouble"])
                troubles[(memory.stats()["worker"]["trouble"] or {"type": ""})["type"]] += 1
                vfs.lift()
                assert memory.flush(timeout=20)["flushed"]
                acknowledge()

        faults.sweep(
            tmp_path,
            make=waiting,
            act=act,
            observe=sound,
            errors=(LocalmemError,),
            kinds=faults.ERROR_KINDS,
            finish=read_on,
            points_max=12,
        )
        assert troubles["StorageError"] > 5

    @pytest.mark.slow
    def test_killed_at_sampled_statements(self, tmp_path: Path) -> None:
        def act(path: Path, acknowledge: faults.Acknowledge) -> None:
            with memory_at(path) as memory:
                by_hand(memory)
                acknowledge()

        ends = faults.sweep_kills(tmp_path, make=waiting, act=act, observe=sound, finish=read_on, points_max=10)
        assert len(ends) > 5


def before_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """In place of the function: it kills its process."""

    def deadly(*args: Any, **options: Any) -> Any:
        faults.die()

    return deadly


STEPS: dict[str, tuple[Callable[..., Any], object, str] | str] = {
    "lease taken, not committed": (after_call, store_queue, "take_lease"),
    "lease taken": (after_call, Worker, "_hold"),
    "vectors settled, not committed": (after_call, store_queue, "settle_vectors"),
    "vectors settled": (after_call, Worker, "_settle_vectors"),
    "begun, not committed": (after_call, store_queue, "begin"),
    "begun": (before_call, worker, "finish"),
    "beaten, not committed": (after_call, store_queue, "beat"),
    "extracting": "generate",
    "extracted": (after_call, ingest, "extract"),
    "deciding": "score_labels",
    "decided": (after_call, ingest, "decide_all"),
    "applied": (after_call, Store, "apply"),
    "finished": (after_call, worker, "finish"),
    "ended, not committed": (after_call, store_queue, "ended"),
    "ended": (after_call, Worker, "_finish_next"),
    "released, not committed": (after_call, store_queue, "release"),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("step", STEPS)
def test_killed_between_two_steps_another_program_reads_it_once(tmp_path: Path, step: str) -> None:
    whole, path, where = tmp_path / "whole.db", tmp_path / "killed.db", STEPS[step]
    waiting(whole)
    read_on(whole)
    waiting(path)

    def job(_acknowledge: faults.Acknowledge) -> None:
        generator = DeadlyGenerator(where) if isinstance(where, str) else story_model()
        if not isinstance(where, str):
            deadly, home, name = where
            setattr(home, name, deadly(getattr(home, name)))  # in the child only
        with memory_at(path, generator=generator, worker=True) as memory:
            memory.start_worker()
            until(lambda: not memory.stats()["queue"]["waiting"])
            time.sleep(1)  # its beats come meanwhile; then it is closed, and gives the lease back

    end = faults.run_child(job)
    assert end.killed, end
    read_on(path)
    assert sound(path) == sound(whole)


# -------------------------------------------------------------------- locks, other threads, the end


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program writes meanwhile, and takes its time."""
    with contextlib.closing(apsw.Connection(str(path))) as other:
        other.set_busy_timeout(10_000)
        other.execute("begin immediate")
        try:
            yield
        finally:
            other.execute("rollback")


@pytest.mark.usefixtures("scripted", "hasty")
class TestLocks:
    def test_a_lock_that_is_held_for_long_counts_as_nobodys_death(self, open_memory: Opener, tmp_path: Path) -> None:
        """It comes while the model reads, more often than workers may die over one episode."""
        path, rounds = tmp_path / "memory.db", store_queue.DEATHS_MAX
        asked, go = threading.Semaphore(0), threading.Semaphore(0)

        def during() -> None:
            asked.release()
            assert go.acquire(timeout=20)

        memory = open_memory(generator=Listener(during=during), limits=Limits(lock_wait_s=0.1))
        added = memory.add("fact: User sails", wait=False, **ANN)["episode_id"]
        for _ in range(rounds):
            assert asked.acquire(timeout=20)
            with locked(path):
                before = memory._worker.trouble  # type: ignore[union-attr]
                go.release()
                until(lambda it=before: memory._worker.trouble is not it)  # type: ignore[union-attr]
                assert memory.stats()["worker"]["trouble"]["type"] == "LockedError"
        for _ in range(3):
            go.release()
        assert memory.flush(timeout=20) == {"flushed": True, "waiting": 0, "set_aside": 0}
        assert memory.status(added)["error"] is None
        assert texts(memory.get_all(**ANN)) == ["User sails"]

    def test_adding_from_many_threads_with_searching_and_waiting(self, open_memory: Opener) -> None:
        memory = open_memory(generator=Listener(), durability="process")
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for n in range(20):
                    memory.add(f"fact: note {n} of {number}", wait=False, user_id=f"u{number % 3}")
                    assert memory.search(f"note {n} of {number}", user_id=f"u{number % 3}")["results"]
                    if n % 7 == number:
                        memory.flush(timeout=0.05)
                        memory.stats()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert memory.flush(timeout=60) == {"flushed": True, "waiting": 0, "set_aside": 0}
        notes = [text for n in range(3) for text in texts(memory.get_all(user_id=f"u{n}"))]
        assert Counter(notes) == Counter(f"note {n} of {number}" for n in range(20) for number in range(6))

    def test_closing_while_others_add_search_and_wait(self, open_memory: Opener) -> None:
        """Each call works or says that the Memory was closed; what was promised is there."""
        memory = open_memory(generator=Listener(), durability="process")
        promised: list[str] = []
        failures: list[BaseException] = []

        def work(call: Callable[[], object]) -> None:
            while True:
                try:
                    call()
                except ClosedError:
                    return
                except BaseException as error:
                    failures.append(error)
                    return

        def add() -> None:
            text = f"note {len(promised)} {threading.get_ident()}"
            promised.append(memory.add(f"fact: {text}", wait=False, **ANN)["episode_id"])

        calls = (add, add, lambda: memory.search("note", **ANN), lambda: memory.flush(timeout=1), memory.flush)
        threads = [threading.Thread(target=work, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        until(lambda: len(promised) > 10)
        memory.close()
        for thread in threads:
            thread.join(20)
        assert failures == []
        assert not any(thread.is_alive() for thread in threads)
        again = open_memory(generator=Listener(), durability="process")
        assert again.stats()["episodes"] == len(promised)
        assert again.flush(timeout=60)["flushed"]
        assert len(again.get_all(**ANN)["results"]) == len(promised)

    def test_from_asyncio(self, open_memory: Opener, tmp_path: Path) -> None:
        async def talk() -> list[str]:
            path = tmp_path / "memory.db"
            async with AsyncMemory(path, embedder=HashEmbedder(), generator=Listener()) as memory:
                await asyncio.gather(*(memory.add(f"fact: note {n}", wait=False, **ANN) for n in range(20)))
                await memory.add_many([f"fact: note {n}" for n in range(20, 30)], **ANN)
                flushed, found = await asyncio.gather(memory.flush(timeout=30), memory.search("note", **ANN))
                assert flushed["flushed"]
                assert found["results"]
                return texts(await memory.get_all(**ANN))

        assert sorted(asyncio.run(talk())) == sorted(f"note {n}" for n in range(30))
        open_memory(worker=False)

    def test_a_file_that_is_read_only_has_no_worker(self, open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_memory(worker=False) as memory:
            added = memory.add("fact: User sails", wait=False, **ANN)["episode_id"]
        monkeypatch.setattr("localmem.db.opening.is_read_only", lambda file: True)
        with open_memory() as memory:
            assert memory.status(added)["state"] == "waiting"
            assert memory.stats()["queue"]["waiting"] == 1
            with pytest.raises(ReadOnlyError):
                memory.add("fact: User rows", wait=False, **ANN)
            with pytest.raises(ReadOnlyError):
                memory.start_worker()
            assert memory.flush(timeout=0.1)["flushed"] is False
        monkeypatch.undo()


# -------------------------------------------------------------------- when it rests, and what a fork takes along


class Battery:
    """In place of psutil, on a machine with a battery."""

    def __init__(self) -> None:
        self.power_plugged = True

    def sensors_battery(self) -> Battery:
        return self


@pytest.mark.usefixtures("scripted", "hasty")
class TestResting:
    def test_without_work_the_lease_is_given_back(self, open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker, "IDLE_S", 0.3)
        memory = open_memory(generator=Listener())
        for text in ("User sails", "User rows"):
            memory.add(f"fact: {text}", wait=False, **ANN)
            assert memory.flush(timeout=20)["flushed"]
            assert memory.stats()["worker"]["state"] == "working"
            until(lambda: memory.stats()["worker"]["state"] == "none")
        assert texts(memory.get_all(**ANN)) == ["User sails", "User rows"]

    def test_on_battery_it_rests_and_another_reads(self, open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
        battery = Battery()
        monkeypatch.setitem(sys.modules, "psutil", battery)
        resting = open_memory(generator=Listener(), worker=WorkerOptions(on_battery=False))
        resting.add("fact: User sails", wait=False, **ANN)
        assert resting.flush(timeout=20)["flushed"]
        battery.power_plugged = False
        until(lambda: resting.stats()["worker"]["state"] == "none")
        resting.add("fact: User rows", wait=False, **ANN)
        assert resting.flush(timeout=0.5) == {"flushed": False, "waiting": 1, "set_aside": 0}
        other = open_memory(generator=Listener())
        assert other.flush(timeout=20)["flushed"]
        battery.power_plugged = True
        resting.add("fact: User swims", wait=False, **ANN)
        assert resting.flush(timeout=20)["flushed"]
        assert texts(resting.get_all(**ANN)) == ["User sails", "User rows", "User swims"]

    def test_a_fork_takes_no_lock_of_the_thread_along(self, open_memory: Opener) -> None:
        """The thread may be inside any of its own locks at that moment; the child closes without asking for one."""
        memory = open_memory(generator=Gate(open_=True))
        memory.start_worker()
        reader = memory._worker
        assert reader is not None
        with reader._stop._cond, reader._wake._cond, reader._moved:

            def job(acknowledge: faults.Acknowledge) -> None:
                worker._stop_all()  # as the end of the interpreter does
                memory.close()
                acknowledge()

            end = faults.run_child(job, timeout_s=20)
        assert end.acknowledged, end.error
        assert reader.alive

    @pytest.mark.parametrize("lock", ["_worker_lock", "_generator_lock"])
    def test_a_fork_takes_no_lock_of_the_memory_along(self, open_memory: Opener, lock: str) -> None:
        """Another thread starts the worker, or the worker loads the model, at the moment of the fork."""
        memory = open_memory(generator=Listener())
        with getattr(memory, lock):

            def job(acknowledge: faults.Acknowledge) -> None:
                memory.add("fact: User sails", wait=False, **ANN)
                assert memory.flush(timeout=20)["flushed"]
                acknowledge()

            end = faults.run_child(job, timeout_s=3)
        assert end.acknowledged, end.error


# -------------------------------------------------------------------- while it reads, somebody else changes the file


@pytest.fixture
def reading(open_memory: Opener, scripted: None, hasty: None) -> Iterator[tuple[Memory, Gate]]:
    """A Memory whose worker is in the middle of Ann's words, and the gate that lets it go on."""
    gate = Gate()
    memory = open_memory(generator=gate)
    memory.add("fact: User lives in Faro", wait=False, **ANN)
    memory.add("fact: User rows", wait=False, **BEN)
    until(lambda: gate.asked)
    yield memory, gate
    gate.open.set()


class TestMeanwhile:
    def test_all_is_purged_of_whom_it_reads(self, reading: tuple[Memory, Gate], tmp_path: Path) -> None:
        memory, gate = reading
        done = memory.purge(**ANN)
        assert (done["complete"], done["purged"]["episode"]) == (True, 1)
        gate.open.set()
        assert memory.flush(timeout=20)["flushed"]
        assert (texts(memory.get_all(**ANN)), texts(memory.get_all(**BEN))) == ([], ["User rows"])
        memory.close()
        assert b"Faro" not in (tmp_path / "memory.db").read_bytes()

    def test_the_store_is_reset(self, reading: tuple[Memory, Gate]) -> None:
        memory, gate = reading
        memory.reset()
        gate.open.set()
        assert memory.flush(timeout=20) == {"flushed": True, "waiting": 0, "set_aside": 0}
        memory.add("fact: User sails", wait=False, **ANN)
        assert memory.flush(timeout=20)["flushed"]
        assert (texts(memory.get_all(**ANN)), memory.stats()["memories"]) == (["User sails"], 1)

    def test_it_is_resumed_by_hand(self, reading: tuple[Memory, Gate]) -> None:
        memory, gate = reading
        thread = threading.Thread(target=memory.resume)
        thread.start()
        until(lambda: gate.asked == 2)
        gate.open.set()
        thread.join(20)
        assert memory.flush(timeout=20)["flushed"]
        assert (texts(memory.get_all(**ANN)), texts(memory.get_all(**BEN))) == (["User lives in Faro"], ["User rows"])

    def test_it_is_reindexed(self, reading: tuple[Memory, Gate]) -> None:
        memory, gate = reading
        memory.reindex()
        gate.open.set()
        assert memory.flush(timeout=20)["flushed"]
        assert memory.check() == []
        assert texts(memory.search("Faro", **ANN))[0] == "User lives in Faro"

    def test_its_retention_changes_to_nothing(self, reading: tuple[Memory, Gate]) -> None:
        memory, gate = reading
        memory.retain("none")
        assert memory.search("Faro", **ANN)["results"][0]["turn"]  # what waits stays until it is read
        gate.open.set()
        assert memory.flush(timeout=20)["flushed"]
        assert memory.search("Faro", include="episodes", **ANN)["results"] == []
        assert texts(memory.get_all(**ANN)) == ["User lives in Faro"]

    def test_its_vectors_are_made_anew_with_another_embedder(
        self, reading: tuple[Memory, Gate], open_memory: Opener, tmp_path: Path
    ) -> None:
        memory, gate = reading
        path = tmp_path / "memory.db"
        with open_memory(worker=False) as other:
            other.add(f"fact: {LONG}", wait=False, **BEN)  # owes a vector
        reembed(path, OtherEmbedder())
        gate.open.set()
        with pytest.raises(EmbedderMismatchError):
            memory.flush(timeout=20)
        memory.close()
        memory = open_memory(embedder=OtherEmbedder(), generator=Gate(open_=True))
        assert memory.flush(timeout=20) == {"flushed": True, "waiting": 0, "set_aside": 0}
        assert texts(memory.get_all(**ANN)) == ["User lives in Faro"]
        assert texts(memory.get_all(**BEN)) == ["User rows", LONG.strip()]
        assert memory.check() == []

    @pytest.mark.parametrize("wanted", ["encrypt", "rekey"])
    def test_another_key_needs_the_file_alone(
        self, open_memory: Opener, scripted: None, hasty: None, tmp_path: Path, wanted: str
    ) -> None:
        """Refused while a worker stands by, and after close() it reads on under the new key."""
        path, old = tmp_path / "memory.db", {"key": "an old pass phrase"} if wanted == "rekey" else {}
        gate = Gate()
        memory = open_memory(generator=gate, sound=False, **old)
        memory.add("fact: User lives in Faro", wait=False, **ANN)
        until(lambda: gate.asked)

        def change() -> object:
            if wanted == "encrypt":
                return encrypt(path, "a new pass phrase", lock_wait_s=0.3)
            return rekey(path, old["key"], "a new pass phrase", lock_wait_s=0.3)

        with pytest.raises(LockedError):
            change()
        gate.open.set()
        memory.close()
        change()
        memory = open_memory(generator=Gate(open_=True), key="a new pass phrase")
        memory.add(f"fact: {LONG}", wait=False, **ANN)
        assert memory.flush(timeout=20)["flushed"]
        assert texts(memory.get_all(**ANN)) == ["User lives in Faro", LONG.strip()]
        assert b"Faro" not in path.read_bytes()

    def test_under_an_audit_key_its_changes_are_signed_as_the_workers(self, open_memory: Opener) -> None:
        memory = open_memory(audit_key=bytes(range(32)), actor="desk", generator=Gate(open_=True))
        with following_scripts():
            memory.add("fact: User sails", wait=False, **ANN)
            assert memory.flush(timeout=20)["flushed"]
        entries = memory.audit_log(**ANN)
        assert [(each["op"], each["actor"]) for each in entries if each["op"] in ("turn", "add")] == [
            ("turn", "desk"), ("add", "desk/worker"),
        ]  # fmt: skip
        assert memory.verify_audit()["ok"]
