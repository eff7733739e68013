"""The worker among several programs: who reads, what happens when that one is killed, stopped, forked or ends.

Whatever happens to programs, each episode that was promised is read exactly once.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from conftest import Opener
from doubles import texts
from programs import Program, programs

from localmem import store_queue
from localmem.errors import NotFoundError
from localmem.memory import Memory

ANN, BEN = {"user_id": "ann"}, {"user_id": "ben"}
PROCESSES, EACH, KILLS = 8, 250, 4
TAKEN_OVER_S = 60.0  # never as long as this: the beats stand still for 6 s, and the others look every second

Starter = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """start(name, **options): a program on the test's file, a hasty one if not told otherwise.

    Nothing that one of them was told may reach its stderr.
    """
    path = tmp_path / "memory.db"
    with programs() as running:

        def starter(name: str = "program", **options: Any) -> Program:
            running.append(Program(path, name=name, **{"hasty": True, **options}))
            return running[-1]

        yield starter
    for errors in tmp_path.glob("*.err"):
        assert errors.read_text() == ""


def holder(path: Path) -> int | None:
    """The pid of the worker, as the file tells."""
    with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        connection.set_busy_timeout(20_000)
        found = connection.execute("select pid from worker").fetchall()
    return found[0][0] if found else None


def until(condition: Callable[[], Any], seconds: float = TAKEN_OVER_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


def done_once(memory: Memory, episodes: list[str]) -> None:
    """Each of them is read, and told of a change that the audit chain knows."""
    assert [each for each in episodes if memory.status(each)["state"] != "done"] == []
    assert memory.stats()["queue"] == {"waiting": 0, "set_aside": 0, "oldest_at": None}
    assert memory.check() == []
    assert memory.verify_audit()["problems"] == []


def held(start: Starter, name: str = "first", **options: Any) -> tuple[Program, str]:
    """A program that is the worker and is in the middle of reading, and what it reads."""
    program = start(name, **options)
    program.call("hold")
    episode_id = program.call("add", "fact: User lives in Faro", wait=False, **ANN)["episode_id"]
    until(lambda: program.call("asked"))
    return program, str(episode_id)


class TestTheOneThatReads:
    def test_is_killed_and_another_takes_over(
        self, start: Starter, open_memory: Opener, record_property: Callable[[str, object], None]
    ) -> None:
        first, reading = held(start, hasty=False)
        other = start("second", hasty=False)
        waiting = other.call("add", "fact: User sails", wait=False, **BEN)["episode_id"]
        assert other.call("flush", 0.5)["flushed"] is False
        assert other.call("asked") == []
        first.kill()
        killed = time.monotonic()
        assert other.call("flush", TAKEN_OVER_S)["flushed"]
        record_property("taken_over_s", round(time.monotonic() - killed, 1))
        assert len(other.call("asked")) == 2
        memory = open_memory(worker=False)
        done_once(memory, [reading, waiting])
        assert (texts(memory.get_all(**ANN)), texts(memory.get_all(**BEN))) == (["User lives in Faro"], ["User sails"])

    def test_is_stopped_taken_over_and_goes_on(self, start: Starter, open_memory: Opener) -> None:
        first, reading = held(start)
        first.tell("let_go")  # it comes to this once it goes on
        first.send(signal.SIGSTOP)
        other = start("second")
        later = other.call("add", "fact: User sails", wait=False, **ANN)["episode_id"]
        assert other.call("flush", TAKEN_OVER_S)["flushed"]
        first.send(signal.SIGCONT)
        first.answer()
        last = first.call("add", "fact: User rows", wait=False, **ANN)["episode_id"]
        assert first.call("flush", TAKEN_OVER_S)["flushed"]
        memory = open_memory(worker=False)
        done_once(memory, [reading, later, last])
        assert texts(memory.get_all(**ANN)) == ["User lives in Faro", "User sails", "User rows"]
        assert len(memory.decisions(**ANN)) == 3

    def test_ends_without_closing_and_gives_the_lease_back(self, start: Starter, open_memory: Opener) -> None:
        first, reading = held(start)
        first.tell("let_go")
        assert first.end() == 0
        memory = open_memory(worker=False)
        assert memory.stats()["worker"]["state"] == "none"
        status = memory.status(reading)
        assert (status["state"], status["attempts"]) in (("done", 0), ("waiting", 0))

    def test_is_told_to_end_by_a_signal(self, start: Starter, open_memory: Opener) -> None:
        """SIGTERM ends Python as SIGKILL does: no exit handler runs, and the beats tell."""
        first, reading = held(start)
        first.send(signal.SIGTERM)
        assert first.end() == -signal.SIGTERM
        other = start("second")
        assert other.call("flush", TAKEN_OVER_S)["flushed"]
        done_once(open_memory(worker=False), [reading])

    def test_forks_in_the_middle(self, start: Starter, open_memory: Opener) -> None:
        """The child has no copy of the thread: it stands by with one of its own, and ends without the parent's."""
        first = start("first")
        first.call("let_go", 0.5)
        reading = [first.call("add", f"fact: User has {n} hens", wait=False, **ANN)["episode_id"] for n in range(4)]
        until(lambda: first.call("asked"))
        assert first.call("fork_and_add", "fact: User sails", **BEN) == 0
        assert first.call("flush", TAKEN_OVER_S)["flushed"]
        memory = open_memory(worker=False)
        done_once(memory, reading)
        assert texts(memory.get_all(**ANN)) == [f"User has {n} hens" for n in range(4)]
        assert texts(memory.get_all(**BEN)) == ["User sails"]

    @pytest.mark.slow
    def test_dies_over_one_episode_again_and_again(self, start: Starter, open_memory: Opener) -> None:
        """It is set aside and holds up no other; a person's resume() reads it all the same."""
        for _ in range(store_queue.DEATHS_MAX):
            first = start("first")
            first.call("hold")
            if not first.call("stats")["episodes"]:
                deadly = first.call("add", "fact: User lives in Faro", wait=False, **ANN)["episode_id"]
                later = first.call("add", "fact: User sails", wait=False, **ANN)["episode_id"]
            first.call("start_worker")
            until(lambda it=first: it.call("asked"))
            first.kill()
        last = start("last")
        assert last.call("flush", TAKEN_OVER_S) == {"flushed": True, "waiting": 0, "set_aside": 1}
        assert last.call("status", deadly)["state"] == "set_aside"
        assert last.call("status", deadly)["error"] == "Crashed"
        assert last.call("status", later)["state"] == "done"
        assert last.call("resume")["episodes"] == 1
        done_once(open_memory(worker=False), [deadly, later])

    def test_is_paused_by_another(self, start: Starter) -> None:
        first, _ = held(start)
        other = start("second")
        other.call("pause_worker")
        waiting = other.call("add", "fact: User sails", wait=False, **BEN)["episode_id"]
        first.call("let_go")
        until(lambda: other.call("stats")["queue"]["waiting"] == 1)  # what was under way is read to its end
        time.sleep(1)
        assert other.call("status", waiting)["state"] == "waiting"
        assert other.call("stats")["worker"]["state"] == "paused"
        other.call("resume_worker")
        assert other.call("flush", TAKEN_OVER_S)["flushed"]


class TestErasing:
    def test_a_purge_beside_a_reader_of_another_program(self, start: Starter, open_memory: Opener) -> None:
        """It is proven although the reader beats on, and the reader makes nothing of what is gone."""
        first, reading = held(start)
        other = start("second")
        other.call("add", "fact: User rows", wait=False, **BEN)
        done = other.call("purge", **ANN)
        assert (done["complete"], done["purged"]["episode"]) == (True, 1)
        first.call("let_go")
        assert other.call("flush", TAKEN_OVER_S) == {"flushed": True, "waiting": 0, "set_aside": 0}
        memory = open_memory(worker=False)
        assert (texts(memory.get_all(**ANN)), texts(memory.get_all(**BEN))) == ([], ["User rows"])
        with pytest.raises(NotFoundError):
            memory.status(reading)

    def test_a_store_that_is_reset_beside_a_reader(self, start: Starter, open_memory: Opener) -> None:
        first, _ = held(start)
        other = start("second")
        other.call("reset")
        first.call("let_go")
        other.call("add", "fact: User rows", wait=False, **BEN)
        assert other.call("flush", TAKEN_OVER_S) == {"flushed": True, "waiting": 0, "set_aside": 0}
        memory = open_memory(worker=False)
        assert (memory.stats()["memories"], texts(memory.get_all(**BEN))) == (1, ["User rows"])

    def test_who_erases_need_not_be_who_reads(self, start: Starter) -> None:
        eraser, reader = start("eraser", erase_on_delete=True), start("reader")
        eraser.call("add", "User plays the cello", infer=False, **ANN)
        reader.call("add", "fact: User sails", wait=False, **BEN)  # it is the worker from here on
        assert reader.call("flush", TAKEN_OVER_S)["flushed"]
        eraser.call("add", "Please forget that I play the cello.", wait=False, **ANN)
        assert eraser.call("flush", TAKEN_OVER_S)["flushed"]
        assert eraser.call("get_all", **ANN)["results"] == []
        deadline = time.monotonic() + TAKEN_OVER_S
        while [each["state"] for each in eraser.call("purges")] != ["done"]:
            assert time.monotonic() < deadline, "nothing was erased"
            time.sleep(0.1)


class TestClocks:
    """Programs on one file whose clocks differ by hours."""

    NOON, HOURS = 1_740_830_400, 5 * 3600

    @pytest.mark.parametrize(
        "ahead", [pytest.param(1, id="ahead"), pytest.param(-1, id="behind", marks=pytest.mark.slow)]
    )
    def test_a_lease_needs_no_clocks_that_agree(self, start: Starter, open_memory: Opener, ahead: int) -> None:
        first, reading = held(start, start_s=self.NOON + ahead * self.HOURS)
        other = start("second", start_s=self.NOON)
        waiting = other.call("add", "fact: User sails", wait=False, **BEN)["episode_id"]
        assert other.call("flush", 3)["flushed"] is False  # it lives, whatever its clock says
        assert other.call("asked") == []
        first.kill()
        assert other.call("flush", TAKEN_OVER_S)["flushed"]
        done_once(open_memory(worker=False), [reading, waiting])

    def test_an_add_cut_off_under_a_clock_ahead_waits_no_longer_than_others(
        self, start: Starter, open_memory: Opener
    ) -> None:
        first = start("first", start_s=self.NOON + self.HOURS)
        first.call("hold")
        first.tell("add", "fact: User lives in Faro", **ANN)
        until(lambda: first_asked(open_memory))
        first.kill()
        other = start("second", start_s=self.NOON)
        assert other.call("flush", TAKEN_OVER_S)["flushed"]
        assert texts(open_memory(worker=False).get_all(**ANN)) == ["User lives in Faro"]


def first_asked(open_memory: Opener) -> bool:
    """Whether an add() has recorded what it reads."""
    with open_memory(worker=False) as memory:
        return bool(memory.pending())


@pytest.mark.slow
def test_eight_programs_add_two_thousand_and_the_reader_is_killed_again_and_again(
    start: Starter, open_memory: Opener, tmp_path: Path
) -> None:
    path, pick = tmp_path / "memory.db", random.Random(7)
    running = {number: start(f"p{number}", hasty=False) for number in range(PROCESSES)}
    said = {number: [f"fact: note {n} of {number}" for n in range(EACH)] for number in range(PROCESSES)}

    def owner(number: int) -> dict[str, str]:
        return {"user_id": f"u{number % 6}"}  # some write for the same person

    for number, program in running.items():
        program.tell("let_go", 0.002)
        program.tell("add_each", said[number], **owner(number))
    killed = 0
    for _ in range(2 * KILLS):
        time.sleep(pick.uniform(0.5, 2.5))
        pid = until(lambda: holder(path))
        [number] = [number for number, program in running.items() if program.pid == pid] or [None]
        if number is None:  # the lease of one that was killed before
            continue
        running[number].kill()
        killed += 1
        promised = {line["text"] for line in running[number].lines if "added" in line}
        running[number] = start(f"p{number}", hasty=False)
        running[number].tell("add_each", [text for text in said[number] if text not in promised], **owner(number))
        if killed == KILLS:
            break
    memory = open_memory(worker=False)
    until(lambda: sum("added" in line for each in running.values() for line in each.lines) == PROCESSES * EACH, 120)
    until(lambda: not memory.stats()["queue"]["waiting"], 150)
    done_once(memory, [line["added"] for each in running.values() for line in each.lines if "added" in line])
    for number in range(6):
        notes = Counter(texts(memory.get_all(user_id=f"u{number}")))
        wanted = [text for other in said for text in said[other] if other % 6 == number]
        assert notes == Counter(text.removeprefix("fact: ") for text in wanted)
        read = [each["episode_id"] for each in memory.decisions(user_id=f"u{number}")]
        assert len(read) == len(set(read))
    assert killed >= 2
    for program in running.values():
        program.tell("close")
        assert program.end() == 0
    assert holder(path) is None
