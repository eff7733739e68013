"""Several processes on one file: nothing lost, nothing twice, and nobody is told that the database is locked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from doubles import add_many, add_same_facts, texts

from localmem.testing import ScriptedGenerator

ANN = {"user_id": "ann"}
WORKERS = 8


def run_all(target: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
    """Each set of arguments in a process of its own, all at once; every one must end well."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=target, args=given) for given in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


@pytest.mark.slow
def test_eight_processes_add_two_hundred_each_and_nothing_is_lost(open_memory: Opener, tmp_path: Path) -> None:
    """They also race to create the file."""
    run_all(add_many, [(str(tmp_path / "memory.db"), worker, 200) for worker in range(WORKERS)])
    with open_memory() as memory:
        found = texts(memory.get_all(**ANN))
        assert len(found) == WORKERS * 200
        assert set(found) == {f"note {n} of worker {w}" for w in range(WORKERS) for n in range(200)}
        assert texts(memory.search("note 199 of worker 7", limit=1, **ANN)) == ["note 199 of worker 7"]
        assert memory.check() == []


@pytest.mark.slow
def test_eight_processes_learn_the_same_fifty_facts(open_memory: Opener, tmp_path: Path) -> None:
    run_all(add_same_facts, [(str(tmp_path / "memory.db"), 50)] * WORKERS)
    with open_memory() as memory:
        assert sorted(texts(memory.get_all(**ANN))) == sorted(f"User owns boat number {n}" for n in range(50))
        assert memory.pending() == []
        decisions = memory.decisions(**ANN)
        assert len(decisions) == WORKERS * 50
        assert sum(d["op"] == "ADD" for d in decisions) == 50
        assert memory.check() == []


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from doubles import add_many
add_many(sys.argv[1], int(sys.argv[3]), 100000)
"""


def test_processes_killed_while_writing_leave_a_sound_file(open_memory: Opener, tmp_path: Path) -> None:
    """SIGKILL at no particular moment; what was there before stays, and the file goes on being used."""
    path = tmp_path / "memory.db"
    with open_memory(durability="process") as memory:
        memory.add("before", infer=False, **ANN)
        for round_ in range(4):
            count = len(memory.get_all(**ANN)["results"])
            writer = subprocess.Popen([sys.executable, "-c", WRITER, path, Path(__file__).parent, str(round_)])
            deadline = time.monotonic() + 60
            while len(memory.get_all(**ANN)["results"]) < count + 5 and time.monotonic() < deadline:
                time.sleep(0.01 + 0.007 * round_)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert memory.check() == []
            found = texts(memory.get_all(**ANN))
            assert len(found) >= count + 5
            assert found[0] == "before"
            numbers = [int(text.split()[1]) for text in found if text.endswith(f"worker {round_}")]
            assert numbers == list(range(len(numbers)))  # no gap: each add was whole


def test_one_process_sees_what_another_wrote(open_memory: Opener, tmp_path: Path) -> None:
    with open_memory() as memory:
        assert texts(memory.search("note", **ANN)) == []
        run_all(add_many, [(str(tmp_path / "memory.db"), 0, 3)])
        assert texts(memory.get_all(**ANN)) == [f"note {n} of worker 0" for n in range(3)]
        assert texts(memory.search("note 2", limit=1, **ANN)) == ["note 2 of worker 0"]
        memory.reset()
        run_all(add_many, [(str(tmp_path / "memory.db"), 1, 2)])
        assert texts(memory.get_all(**ANN)) == ["note 0 of worker 1", "note 1 of worker 1"]


CLOSER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from localmem.memory import Memory
from localmem.testing import HashEmbedder
memory = Memory(Path(sys.argv[1]), embedder=HashEmbedder())
memory.add("left open", infer=False, user_id="ann")
"""


def test_a_program_that_never_closes_loses_nothing(open_memory: Opener, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    done = subprocess.run(
        [sys.executable, "-c", CLOSER, path, Path(__file__).parent], capture_output=True, text=True, env=os.environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open_memory(generator=ScriptedGenerator()) as memory:
        assert texts(memory.get_all(**ANN)) == ["left open"]
