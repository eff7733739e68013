"""The file itself: opening, refusing, closing, locking, forking, rebuilding; and what the threads of one program do."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest
import sqlite_vec
from conftest import Opener
from doubles import Listener, OtherEmbedder, texts

from localmem.config import Limits
from localmem.db import SCHEMA_VERSION
from localmem.errors import (
    ClosedError,
    CorruptFileError,
    EmbedderMismatchError,
    InvalidInputError,
    LocalmemError,
    LockedError,
    NotOurFileError,
    ReadOnlyError,
    SchemaError,
    StorageError,
)
from localmem.memory import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}
ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def raw(path: Path) -> Iterator[apsw.Connection]:
    """The file as SQLite shows it, with sqlite-vec."""
    connection = apsw.Connection(str(path))
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    try:
        yield connection
    finally:
        connection.close()


def count(path: Path, table: str) -> int:
    with raw(path) as connection:
        return int(connection.execute(f"select count(*) from {table}").fetchone()[0])


# -- opening and closing


def test_what_was_added_is_there_after_reopening(open_memory: Opener) -> None:
    with open_memory() as memory:
        memory.add("the boat is called Selkie", infer=False, metadata={"n": 1}, **ANN)
        before = memory.get_all(**ANN)
        found = memory.search("Selkie", **ANN)
    with open_memory() as memory:
        assert memory.get_all(**ANN) == before
        assert memory.search("Selkie", **ANN) == found
        assert texts(found) == ["the boat is called Selkie"]


def test_every_call_after_close_says_so(open_memory: Opener) -> None:
    memory = open_memory()
    added = memory.add("tea", infer=False, **ANN)
    bound = memory.bound(**ANN)
    memory_id = added["results"][0]["id"]
    memory.close()
    memory.close()
    for handle in (memory, bound):
        for call in (
            lambda h: h.add("x", infer=False, **ANN),
            lambda h: h.add("x", **ANN),
            lambda h: h.search("tea", **ANN),
            lambda h: h.context("tea", **ANN),
            lambda h: h.get(memory_id),
            lambda h: h.get_all(**ANN),
            lambda h: h.update(memory_id, "x"),
            lambda h: h.delete(memory_id),
            lambda h: h.delete_all(**ANN),
            lambda h: h.history(memory_id),
            lambda h: h.all_versions(**ANN),
            lambda h: h.decisions(**ANN),
            lambda h: h.pending(**ANN),
            lambda h: h.contested(**ANN),
            lambda h: h.resume(**ANN),
        ):
            with pytest.raises(ClosedError, match="closed"):
                call(handle)
    for call in (memory.check, memory.reindex, memory.reset, lambda: memory.bound(**ANN)):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_closing_a_bound_handle_leaves_the_memory_open(memory: Memory) -> None:
    with contextlib.closing(memory.bound(**ANN)) as bound:
        bound.add("tea", infer=False)
    assert texts(memory.get_all(**ANN)) == ["tea"]


def test_a_given_generator_is_not_closed_with_the_memory(open_memory: Opener) -> None:
    class Closing(ScriptedGenerator):
        closed = False

        def close(self) -> None:
            self.closed = True

    generator = Closing()
    with open_memory(generator=generator) as memory:
        memory.add("hello", **ANN)
    assert not generator.closed


def test_memory_only_store_writes_no_file(open_memory: Opener, tmp_path: Path) -> None:
    memory = open_memory(":memory:")
    memory.add("tea", infer=False, **ANN)
    memory.add("coffee", infer=False, user_id="bob")
    assert memory.path is None
    assert texts(memory.search("tea", **ANN)) == ["tea"]
    assert memory.check() == []
    assert list(tmp_path.iterdir()) == []
    other = open_memory(":memory:")
    assert texts(other.get_all(**ANN)) == []


def test_the_default_place_is_localmem_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "deep" / "home"))
    with Memory(embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
        memory.add("tea", infer=False, **ANN)
        assert memory.path == tmp_path / "deep" / "home" / "localmem.db"
        assert memory.path.exists()


def test_path_may_be_str_relative_or_with_odd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_memory: Opener
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain.db", "with space & ü?#%20.db", "日本.db", "file:odd.db"):
        with Memory(name, embedder=HashEmbedder()) as memory:
            memory.add("tea", infer=False, **ANN)
            assert memory.path == tmp_path / name
        assert (tmp_path / name).is_file()
        with Memory(tmp_path / name, embedder=HashEmbedder()) as memory:
            assert texts(memory.get_all(**ANN)) == ["tea"]


def test_the_file_is_private_to_its_owner(memory: Memory) -> None:
    assert memory.path is not None
    memory.add("tea", infer=False, **ANN)
    for path in memory.path.parent.glob("memory.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_file_names_itself(memory: Memory) -> None:
    assert memory.path is not None
    with raw(memory.path) as connection:
        assert connection.pragma("application_id") == 0x6C6D656D
        assert connection.pragma("user_version") == SCHEMA_VERSION
        assert connection.pragma("journal_mode") == "wal"
        settings = dict(connection.execute("select name, value from setting"))
    assert {name for name in settings if not name.startswith("embedder_")} == {
        "audit_head",
        "audit_key",
        "audit_names",
        "file_id",
    }
    assert {name: value for name, value in settings.items() if name.startswith("embedder_")} == {
        "embedder_id": "hash",
        "embedder_dim": "64",
        "embedder_sha256": HashEmbedder().sha256,
    }


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
def test_durability_is_sqlites_synchronous(open_memory: Opener, durability: str, synchronous: int) -> None:
    memory = open_memory(durability=durability)
    with memory._engine.store.db.write() as tx:
        assert tx.execute("pragma synchronous").fetchone() == (synchronous,)


def test_power_is_the_default_durability(memory: Memory) -> None:
    with memory._engine.store.db.write() as tx:
        assert tx.execute("pragma synchronous").fetchone() == (2,)


# -- files that can't be used


def test_a_file_of_another_program_is_refused_and_left_alone(open_memory: Opener, tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table invoice (id integer)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(NotOurFileError, match=r"theirs\.db .*another program"):
        open_memory("theirs.db", sound=False)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.db"]


def test_an_empty_file_becomes_a_store(open_memory: Opener, tmp_path: Path) -> None:
    (tmp_path / "memory.db").touch()
    open_memory().add("tea", infer=False, **ANN)


@pytest.mark.parametrize("content", [b"just some text, no database at all\n" * 100, b"\x00" * 5000, b"milk, eggs\n"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(
    open_memory: Opener, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(NotOurFileError, match=r"notes\.txt"):
        open_memory("notes.txt", sound=False)
    assert path.read_bytes() == content


def test_a_damaged_file_is_an_error_never_a_wrong_answer(open_memory: Opener, tmp_path: Path) -> None:
    with open_memory(sound=False) as memory:
        for number in range(60):
            memory.add(f"note {number} about ships and harbours", infer=False, **ANN)
    path = tmp_path / "memory.db"
    whole = bytearray(path.read_bytes())
    pages = len(whole) // 4096
    dice = random.Random(7)
    seen = set()
    for _ in range(12):
        broken = bytearray(whole)
        for page in dice.sample(range(1, pages), k=pages // 2):
            broken[page * 4096 : (page + 1) * 4096] = dice.randbytes(4096)
        path.write_bytes(broken)
        try:
            with open_memory(sound=False) as memory:
                complaints = memory.check()
            assert complaints
            seen.add("check")
        except (CorruptFileError, NotOurFileError, StorageError) as error:
            assert "memory.db" in str(error)
            seen.add(type(error).__name__)
    assert "CorruptFileError" in seen


def test_a_cut_file_is_an_error(open_memory: Opener, tmp_path: Path) -> None:
    with open_memory(sound=False) as memory:
        for number in range(40):
            memory.add(f"note {number}", infer=False, **ANN)
    path = tmp_path / "memory.db"
    path.write_bytes(path.read_bytes()[: 4096 * 5])
    with pytest.raises(StorageError, match=r"memory\.db"):  # noqa: PT012
        memory = open_memory(sound=False)
        memory.search("note", **ANN)
        memory.get_all(**ANN)
        memory.check()


def test_a_newer_schema_is_refused_and_left_alone(open_memory: Opener, tmp_path: Path) -> None:
    with open_memory(sound=False) as memory:
        memory.add("tea", infer=False, **ANN)
    with raw(tmp_path / "memory.db") as connection:
        connection.execute("pragma user_version = 99")
    with pytest.raises(SchemaError, match=r"schema 99.*upgrade localmem"):
        open_memory(sound=False)
    with raw(tmp_path / "memory.db") as connection:
        assert connection.pragma("user_version") == 99
        connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
    with open_memory() as memory:
        assert texts(memory.get_all(**ANN)) == ["tea"]


def test_a_folder_is_refused(open_memory: Opener, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError, match=r"folder.* is a folder"):
        open_memory("folder", sound=False)


def test_a_missing_folder_is_named(open_memory: Opener) -> None:
    with pytest.raises(StorageError, match=r"nowhere.* does not exist"):
        open_memory("nowhere/memory.db", sound=False)


def test_a_dangling_link_or_device_is_an_error(open_memory: Opener, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "gone" / "target.db")
    with pytest.raises(LocalmemError, match="gone does not exist"):
        open_memory("link.db", sound=False)


@pytest.fixture
def locked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No path may be written, which chmod can't bring about for the superuser."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and real(path, mode, **more))


@pytest.fixture
def written(open_memory: Opener) -> dict[str, str]:
    """A store with one memory, closed again; its id."""
    with open_memory() as memory:
        return {"id": memory.add("the boat is called Selkie", infer=False, **ANN)["results"][0]["id"]}


def test_a_read_only_file_can_be_read(open_memory: Opener, written: dict[str, str], locked_up: None) -> None:
    with open_memory(sound=False) as memory:
        assert texts(memory.search("Selkie", **ANN)) == ["the boat is called Selkie"]
        assert memory.get(written["id"]) is not None
        assert memory.check() == []


def test_a_read_only_file_refuses_every_write(
    open_memory: Opener, written: dict[str, str], locked_up: None, tmp_path: Path
) -> None:
    before = (tmp_path / "memory.db").read_bytes()
    with open_memory(sound=False) as memory:
        for write in (
            lambda: memory.add("x", infer=False, **ANN),
            lambda: memory.add("x", **ANN),
            lambda: memory.update(written["id"], "x"),
            lambda: memory.delete(written["id"]),
            lambda: memory.delete_all(**ANN),
            memory.reset,
            memory.reindex,
        ):
            with pytest.raises(ReadOnlyError, match=r"memory\.db is read-only"):
                write()
    assert (tmp_path / "memory.db").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["memory.db"]


def test_a_read_only_file_with_a_live_wal_shows_what_the_wal_holds(
    open_memory: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_memory()
    writer.add("still in the log", infer=False, **ANN)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and real(path, mode, **more))
    reader = open_memory(sound=False)
    assert texts(reader.get_all(**ANN)) == ["still in the log"]
    reader.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anything")
def test_a_read_only_folder_for_a_new_file_is_named(open_memory: Opener, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ReadOnlyError, match="closed"):
        open_memory("closed/memory.db", sound=False)


# -- the embedder of a file


@pytest.mark.parametrize("embedder", [OtherEmbedder(), HashEmbedder(dim=32)], ids=["other model", "other width"])
def test_another_embedder_is_refused_and_nothing_mixed(
    open_memory: Opener, written: dict[str, str], embedder: HashEmbedder, tmp_path: Path
) -> None:
    with pytest.raises(EmbedderMismatchError, match=r"'hash' \(64 dimensions.*can't be mixed.*reembed"):
        open_memory(embedder=embedder, sound=False)
    assert count(tmp_path / "memory.db", "memory_vec") == 1
    with open_memory() as memory:
        assert texts(memory.search("Selkie", **ANN)) == ["the boat is called Selkie"]


def test_an_empty_store_keeps_its_first_embedder_too(open_memory: Opener) -> None:
    open_memory().close()
    with pytest.raises(EmbedderMismatchError):
        open_memory(embedder=OtherEmbedder(), sound=False)


# -- check and reindex

BREAKS = {
    "a vector gone": "delete from memory_vec where rowid = (select min(id) from version)",
    "a vector marked dead": "update memory_vec set live = 0 where rowid = (select min(id) from version)",
    "a vector with another end": "update memory_vec set expires_at = 5 where rowid = (select min(id) from version)",
    "a turn's vector gone": "delete from turn_vec",
    "a stray vector": (
        "insert into memory_vec (rowid, embedding, owner_id, live, valid_from, valid_to, expires_at, agent, run) "
        "select 999, embedding, owner_id, 1, valid_from, valid_to, expires_at, '', '' from memory_vec limit 1"
    ),
    "words gone": (
        "insert into memory_fts (memory_fts, rowid, owner, text, grams) "
        "select 'delete', id, owner, text, grams from memory_words limit 1"
    ),
    "turn words gone": (
        "insert into turn_fts (turn_fts, rowid, owner, text, grams) "
        "select 'delete', id, owner, text, grams from turn_words limit 1"
    ),
}
NOT_DERIVED = {
    "another text under the words": "update version set text = 'quite another wording' where id = 1",
    "a head of another memory": "update memory set head = 0 where seq = 1",
    "a head marked past": "update version set superseded_at = recorded_at where id = 1",
    "a version numbered twice over": "update version set number = 7 where id = 1",
    "a version that ends too early": "update version set valid_to = valid_from - 1 where id = 1",
    "a memory of another owner": "update memory set user_id = 'eve' where seq = 1",
    "an episode of another owner": "update episode set agent_id = 'x', user_id = null where seq = 1",
    "an episode without messages": (
        "insert into episode (id, seq, owner_id, user_id, event_at, recorded_at, state, mode, metadata) "
        "select 'e', 99, owner_id, user_id, 1, 1, 'done', 'infer', '{}' from episode limit 1"
    ),
    "one-sided contradiction": (
        "insert into contested (memory_id, other_id) select a.id, b.id from memory a, memory b where a.seq = 1 "
        "and b.seq = 2"
    ),
    "evidence past the end": "update evidence set stop = 10000 where id = 1",
    "a pending verbatim episode": "update episode set state = 'pending' where mode = 'verbatim'",
}


def _filled(open_memory: Opener) -> Memory:
    memory = open_memory(sound=False, generator=Listener(fail=True))
    for text in ("the boat is called Selkie", "the harbour is Vigo", "the cat is called Brine"):
        memory.add(text, infer=False, **ANN)
    with contextlib.suppress(LocalmemError):
        memory.add("a turn that waits for its model", **ANN)
    assert memory.check() == []
    return memory


@pytest.mark.parametrize("name", [*BREAKS, *NOT_DERIVED])
def test_check_sees_each_kind_of_damage(open_memory: Opener, tmp_path: Path, name: str) -> None:
    memory = _filled(open_memory)
    with raw(tmp_path / "memory.db") as connection:
        connection.execute({**BREAKS, **NOT_DERIVED}[name])
        assert connection.total_changes() > 0
    assert memory.check() != []


@pytest.mark.parametrize("name", BREAKS)
def test_reindex_mends_what_is_derived(open_memory: Opener, tmp_path: Path, name: str) -> None:
    memory = _filled(open_memory)
    before = memory.search("boat harbour cat turn", include="all", **ANN)
    with raw(tmp_path / "memory.db") as connection:
        connection.execute(BREAKS[name])
    memory.reindex()
    assert memory.check() == []
    assert memory.search("boat harbour cat turn", include="all", **ANN) == before


def test_reindex_makes_everything_again_when_the_vectors_are_gone(open_memory: Opener, tmp_path: Path) -> None:
    memory = _filled(open_memory)
    before = memory.search("boat", include="all", **ANN)
    with raw(tmp_path / "memory.db") as connection:
        connection.execute("drop table memory_vec; drop table turn_vec")
    memory.reindex()
    assert memory.check() == []
    assert memory.search("boat", include="all", **ANN) == before


# -- other processes' locks


HOLDER = """
import sys, time, apsw
c = apsw.Connection(sys.argv[1])
c.execute("begin immediate")
print("held", flush=True)
sys.stdin.readline()
c.execute("rollback")
print("free", flush=True)
"""


@contextlib.contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the write lock until it is told to let go (a line on its stdin)."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    try:
        yield holder
    finally:
        holder.stdin.close()
        holder.wait(timeout=30)
        holder.stdout.close()


def test_a_write_waits_for_another_process(memory: Memory) -> None:
    assert memory.path is not None
    with held_by_another_process(memory.path) as holder:
        assert holder.stdin is not None
        threading.Timer(0.7, holder.stdin.write, ["go\n"]).start()
        threading.Timer(0.8, holder.stdin.flush).start()
        memory.add("waited for", infer=False, **ANN)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "free\n"
    assert texts(memory.get_all(**ANN)) == ["waited for"]


def test_a_lock_that_stays_is_an_error_and_nothing_is_written(open_memory: Opener) -> None:
    memory = open_memory(limits=Limits(lock_wait_s=0.2))
    kept = memory.add("before", infer=False, **ANN)["results"][0]["id"]
    assert memory.path is not None
    with held_by_another_process(memory.path):
        for write in (
            lambda: memory.add("while locked", infer=False, **ANN),
            lambda: memory.add("while locked", **ANN),
            lambda: memory.update(kept, "while locked"),
            lambda: memory.delete(kept),
            lambda: memory.delete_all(**ANN),
            memory.reset,
        ):
            with pytest.raises(LockedError, match=r"locked by another process for 0\.2 s.*lock_wait_s"):
                write()
        assert texts(memory.search("before", **ANN)) == ["before"]  # reading goes on
    assert texts(memory.get_all(**ANN)) == ["before"]
    assert count(memory.path, "episode") == 1
    memory.add("afterwards", infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == ["before", "afterwards"]


def test_readers_are_not_held_up_by_a_writer_of_this_program(memory: Memory) -> None:
    memory.add("before", infer=False, **ANN)
    with memory._engine.store.db.write(), ThreadPoolExecutor(1) as pool:
        assert texts(pool.submit(memory.search, "before", **ANN).result(timeout=30)) == ["before"]


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from doubles import add_many
add_many(sys.argv[1], int(sys.argv[3]), 100000)
"""


def test_processes_killed_while_writing_leave_a_sound_file(open_memory: Opener, tmp_path: Path) -> None:
    """SIGKILL at no particular moment; what was there before stays, and the file goes on being used."""
    memory = open_memory(durability="process")
    memory.add("before", infer=False, **ANN)
    for worker in range(4):
        held = len(memory.get_all(**ANN)["results"])
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "memory.db", Path(__file__).parent, str(worker)], cwd=ROOT
        )
        deadline = time.monotonic() + 60
        while len(memory.get_all(**ANN)["results"]) < held + 5 and time.monotonic() < deadline:
            time.sleep(0.01 + 0.007 * worker)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert memory.check() == []
        kept = texts(memory.get_all(**ANN))
        assert len(kept) >= held + 5
        assert kept[0] == "before"
        numbers = [int(text.split()[1]) for text in kept if text.endswith(f"worker {worker}")]
        assert numbers == list(range(len(numbers)))  # no gap


def test_a_program_that_never_closes_loses_nothing(open_memory: Opener, tmp_path: Path) -> None:
    program = (
        "import sys; from localmem.memory import Memory; from localmem.testing import HashEmbedder\n"
        "memory = Memory(sys.argv[1], embedder=HashEmbedder())\n"
        "memory.add('left open', infer=False, user_id='ann')\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "memory.db"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert texts(open_memory().get_all(**ANN)) == ["left open"]


# -- threads and forks


@pytest.mark.parametrize("name", ["memory.db", ":memory:"])
def test_eight_threads_share_one_memory(open_memory: Opener, name: str) -> None:
    memory = open_memory(name, durability="process")
    ids: list[str] = [memory.add(f"shared {n}", infer=False, **ANN)["results"][0]["id"] for n in range(8)]
    problems: list[BaseException] = []

    def work(worker: int) -> None:
        dice = random.Random(worker)
        try:
            for number in range(12):
                memory.add(f"note {number} of thread {worker}", infer=False, user_id=f"user{worker % 2}")
                kind = dice.randrange(5)
                if kind == 0:
                    memory.search("note shared", user_id=f"user{worker % 2}")
                elif kind == 1:
                    memory.get_all(**ANN)
                elif kind == 2:
                    memory.update(ids[worker], f"shared {worker} changed {number}")
                elif kind == 3:
                    memory.history(ids[worker])
                else:
                    memory.context("note", user_id=f"user{worker % 2}")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    wanted = {f"note {number} of thread {worker}" for worker in range(8) for number in range(12)}
    found = texts(memory.get_all(user_id="user0")) + texts(memory.get_all(user_id="user1"))
    assert sorted(found) == sorted(wanted)
    assert len(texts(memory.get_all(**ANN))) == 8
    assert memory.check() == []


def test_threads_running_the_whole_story_lose_nothing(open_memory: Opener, scripted: None) -> None:
    memory = open_memory(durability="process")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: memory.add(f"fact: User owns boat number {n % 15}", **ANN), range(60)))
    assert sorted(texts(memory.get_all(**ANN))) == sorted(f"User owns boat number {n}" for n in range(15))
    assert memory.pending() == []


def _in_child(work: object) -> int:
    """Run a callable in a forked child; its exit status. A child that hangs is ended by SIGALRM after a minute."""
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(60)
        try:
            work()  # type: ignore[operator]
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_and_its_parent_both_go_on(memory: Memory) -> None:
    memory.add("from the parent", infer=False, **ANN)
    memory.search("parent", **ANN)

    def child() -> None:
        assert texts(memory.search("parent", **ANN)) == ["from the parent"]
        memory.add("from the child", infer=False, **ANN)
        assert len(memory.get_all(**ANN)["results"]) == 2
        assert memory.check() == []

    for _ in range(3):
        assert _in_child(child if len(memory.get_all(**ANN)["results"]) == 1 else lambda: memory.get_all(**ANN)) == 0
    memory.add("from the parent again", infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == ["from the parent", "from the child", "from the parent again"]


def test_parent_and_children_write_at_the_same_time(open_memory: Opener) -> None:
    memory = open_memory(durability="process")
    memory.add("before", infer=False, **ANN)
    pids = []
    for worker in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            signal.alarm(60)
            try:
                for number in range(15):
                    memory.add(f"child {worker} {number}", infer=False, **ANN)
                memory.close()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    for number in range(15):
        memory.add(f"parent {number}", infer=False, **ANN)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert len(set(texts(memory.get_all(**ANN)))) == 1 + 15 * 4


def test_a_child_that_closes_leaves_the_parents_memory_open(memory: Memory) -> None:
    memory.add("before", infer=False, **ANN)
    assert _in_child(memory.close) == 0
    memory.add("after", infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == ["before", "after"]


def test_a_child_goes_on_after_its_parent_closed(open_memory: Opener) -> None:
    """The last connection to close deletes the WAL; the child's must count."""
    memory = open_memory()
    memory.add("from the parent", infer=False, **ANN)
    child_wrote, parent_closed = multiprocessing.Event(), multiprocessing.Event()
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(60)
        try:
            memory.add("from the child", infer=False, **ANN)
            child_wrote.set()
            parent_closed.wait(timeout=30)
            memory.add("from the child again", infer=False, **ANN)
            assert memory.check() == []
            status = 0
        finally:
            os._exit(status)
    assert child_wrote.wait(timeout=30)
    memory.close()
    parent_closed.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with open_memory() as again:
        assert texts(again.get_all(**ANN)) == ["from the parent", "from the child", "from the child again"]


def test_a_memory_only_store_is_copied_into_the_child(open_memory: Opener) -> None:
    memory = open_memory(":memory:")
    memory.add("before", infer=False, **ANN)

    def child() -> None:
        memory.add("in the child", infer=False, **ANN)
        assert texts(memory.get_all(**ANN)) == ["before", "in the child"]
        assert memory.check() == []

    assert _in_child(child) == 0
    memory.add("after", infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == ["before", "after"]


def test_fork_while_another_thread_writes(open_memory: Opener) -> None:
    """The child's copy of the lock may be held for ever by a thread that does not exist there."""
    memory = open_memory(durability="process")
    stop = threading.Event()
    numbers = itertools.count()

    def write() -> None:
        while not stop.is_set():
            memory.add(f"thread {next(numbers)}", infer=False, **ANN)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for turn in range(5):
            time.sleep(0.02)
            name = f"child {turn}"
            assert _in_child(lambda name=name: memory.add(name, infer=False, user_id="child")) == 0
    finally:
        stop.set()
        thread.join()
    assert texts(memory.get_all(user_id="child")) == [f"child {turn}" for turn in range(5)]
    assert len(memory.get_all(**ANN)["results"]) == next(numbers)
