"""Several programs on one file at once: nothing lost, nothing twice, nothing seen half-written, nobody turned away."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from doubles import add_many, add_same_facts, following_scripts, texts

from localmem.memory import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator

WORKERS = 8
PARTS = 3  # of each add that a reader may not see half of
ANN = {"user_id": "ann"}
SPAWN = multiprocessing.get_context("spawn")  # fork would share this process's connections

Task = tuple[Callable[..., None], tuple[Any, ...]]


# -- running processes side by side


@contextlib.contextmanager
def side_by_side(*tasks: Task, timeout_s: float = 240) -> Iterator[None]:
    """Run each task in a process of its own, all let go at once; at the end each must have ended without an error."""
    start, failures = SPAWN.Barrier(len(tasks)), SPAWN.Queue()
    workers = [SPAWN.Process(target=_run, args=(start, failures, *task), daemon=True) for task in tasks]
    for worker in workers:
        worker.start()
    try:
        yield
        said = [failures.get(timeout=timeout_s) for _ in workers]
        for worker in workers:
            worker.join(timeout=timeout_s)
    finally:
        for worker in workers:
            worker.kill()
    assert [failure for failure in said if failure] == []
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def _run(start: Barrier, failures: Any, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        start.wait(timeout=120)
        work(*args)
    except BaseException:
        failures.put(traceback.format_exc())
    else:
        failures.put("")


def _open(path: str) -> Memory:
    return Memory(Path(path), embedder=HashEmbedder(), generator=ScriptedGenerator(), durability="process")


# -- writers beside writers


def test_eight_processes_adding_different_things_lose_nothing(open_memory: Opener, tmp_path: Path) -> None:
    """The file does not exist when they begin, so they also race to make it."""
    path, each = tmp_path / "memory.db", 200
    with side_by_side(*((add_many, (str(path), worker, each)) for worker in range(WORKERS))):
        pass
    memory = open_memory()
    expected = [f"note {number} of worker {worker}" for worker in range(WORKERS) for number in range(each)]
    kept = texts(memory.get_all(**ANN))
    assert sorted(kept) == sorted(expected)
    for worker in range(WORKERS):  # and each one's own in its order
        own = [text for text in kept if text.endswith(f"worker {worker}")]
        assert own == [f"note {number} of worker {worker}" for number in range(each)]
    assert "note 7 of worker 3" in texts(memory.search("note 7 of worker 3", **ANN))
    assert memory.check() == []


def test_eight_processes_adding_the_same_facts_leave_each_once(open_memory: Opener, tmp_path: Path) -> None:
    path, facts = tmp_path / "memory.db", 50
    with side_by_side(*((add_same_facts, (str(path), facts)) for _ in range(WORKERS))):
        pass
    memory = open_memory()
    assert Counter(texts(memory.get_all(**ANN))) == Counter(
        f"User owns boat number {number}" for number in range(facts)
    )
    assert memory.pending() == []
    assert memory.all_versions(**ANN) == []
    assert memory.check() == []


def test_eight_processes_changing_one_memory_leave_one_line_of_versions(open_memory: Opener) -> None:
    each = 20
    with open_memory(durability="process") as memory:
        [added] = memory.add("counted by nobody", infer=False, **ANN)["results"]
        path, memory_id = str(memory.path), added["id"]
    with side_by_side(*((update_many, (path, memory_id, worker, each)) for worker in range(WORKERS))):
        pass
    memory = open_memory()
    versions = [version["new_memory"] for version in memory.history(memory_id)]
    expected = [f"counted to {number} by {worker}" for worker in range(WORKERS) for number in range(each)]
    assert versions[0] == "counted by nobody"
    assert sorted(versions[1:]) == sorted(expected)
    assert texts(memory.get_all(**ANN)) == versions[-1:]


def update_many(path: str, memory_id: str, worker: int, count: int) -> None:
    """``count`` new versions of one memory."""
    with _open(path) as memory:
        for number in range(count):
            memory.update(memory_id, f"counted to {number} by {worker}")


# -- readers beside writers


@pytest.mark.parametrize("infer", [False, True], ids=["verbatim", "whole story"])
def test_a_reader_beside_writers_sees_whole_adds_only(open_memory: Opener, infer: bool) -> None:
    writers, each = 3, 40
    with open_memory(durability="process") as memory:
        [added] = memory.add("version 0", infer=False, user_id="changing")["results"]
        path = str(memory.path)
    stop = SPAWN.Event()
    tasks: list[Task] = [(add_in_parts, (path, writer, each, infer)) for writer in range(writers)]
    with side_by_side(
        (write_then_stop, (path, added["id"], tasks, stop)),
        *tasks[1:],
        (read_until, (path, added["id"], writers, stop)),
    ):
        pass
    memory = open_memory()
    assert len(memory.get_all(**ANN)["results"]) == writers * each * PARTS
    assert memory.pending() == []


def add_in_parts(path: str, writer: int, count: int, infer: bool) -> None:
    """``count`` adds of PARTS memories each."""
    with following_scripts(), _open(path) as memory:
        for number in range(count):
            said = [f"fact: part {part} of {writer}x{number}" for part in range(PARTS)]
            messages = [{"role": "user", "content": line if infer else line.removeprefix("fact: ")} for line in said]
            memory.add(messages, infer=infer, metadata={"add": f"{writer}x{number}"}, **ANN)


def write_then_stop(path: str, changing: str, tasks: list[Task], stop: Event) -> None:
    """The first writer's task with an update after it, then tell the reader that it may end."""
    try:
        work, args = tasks[0]
        work(*args)
        with _open(path) as memory:
            for number in range(1, 30):
                memory.update(changing, f"version {number}")
    finally:
        stop.set()


def read_until(path: str, changing: str, writers: int, stop: Event) -> None:
    """Read in every way while others write: each add is there whole or not at all, what changes is there once."""
    with _open(path) as memory:
        rounds, version = 0, 0
        while not stop.is_set() or rounds < 3:
            seen = Counter(entry["metadata"]["add"] for entry in memory.get_all(**ANN)["results"])
            assert set(seen.values()) <= {PARTS}, f"get_all saw half an add: {seen}"
            for writer in range(writers):
                number = sum(name.startswith(f"{writer}x") for name in seen)
                for name in (f"{writer}x{number}", f"{writer}x{number + 1}"):  # the ones being written just now
                    found = memory.search(f"part of {name}", filters={"add": name}, include="facts", **ANN)
                    assert len(found["results"]) in (0, PARTS), f"search saw half of {name}"
            [head] = texts(memory.search("version", user_id="changing"))
            [again] = texts(memory.get_all(user_id="changing"))
            assert version <= int(head.split()[1]) <= int(again.split()[1])
            version = int(again.split()[1])
            assert memory.get(changing) is not None
            memory.pending()
            rounds += 1
        assert memory.check() == []
