"""Purge in hard weather: what its proof sees, how it ends where it cannot be had, faults and deaths at every step."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import faults
import pytest
from conftest import Opener
from doubles import texts
from test_purge import (
    ANN,
    BOB,
    CANARY,
    KEY,
    Dense,
    Plant,
    checkpoint,
    done,
    everything,
    key,
    lying,
    opened,
    planted,
    rows,
    sound,
    words_left,
)

from localmem import Limits, Memory, purge, store_purge
from localmem.db import raw_file
from localmem.errors import LocalmemError, LockedError, ScopeError, StorageError
from localmem.needles import Needles
from localmem.store_purge import Selection
from localmem.testing import FixedClock
from localmem.types import Scope

__all__ = ["key", "planted"]  # fixtures

TEA = "tea stands in the hall by the green kettle"
COMPOUND = "donaudampfschifffahrtsgesellschaft"  # one word of more than 16 letters
SECRET = bytes(range(16))
MINE = Selection(Scope(ANN["user_id"]))


class UndoError(Exception):
    pass


@contextlib.contextmanager
def undone(memory: Memory) -> Iterator[Any]:
    """A write transaction of which nothing stays."""
    with contextlib.suppress(UndoError), memory._engine.store.db.write() as tx:
        yield tx
        raise UndoError


def filled(open_memory: Opener, **options: Any) -> Memory:
    """A canary of Ann's and a text of Bob's."""
    memory = open_memory(embedder=Dense(), **options)
    memory.add(CANARY["verbatim"], infer=False, **ANN)
    memory.add(TEA, infer=False, **BOB)
    return memory


def aside(memory: Memory) -> list[Path]:
    """Where the pieces sought lie until a purge is done."""
    assert memory.path is not None
    return sorted(memory.path.parent.glob("*-purge-*"))


def incomplete(memory: Memory, purged: Any) -> str:
    """Why a purge is not at its end; its rows are gone all the same, and it is noted."""
    assert (purged["complete"], purged["certificate"]) == (False, None)
    assert rows(memory, "select text from version") == [TEA]
    assert [(each["state"], each["reason"], each["certificate"]) for each in memory.purges()] == [
        ("incomplete", purged["reason"], None)
    ]
    assert len(aside(memory)) == 1
    assert sound(memory)
    return str(purged["reason"])


def finished(memory: Memory) -> None:
    """resume() brings the one purge that waits to its end."""
    assert memory.resume()["purges"] == 1
    [purge] = memory.purges()
    assert (purge["state"], purge["reason"]) == ("done", None)
    done({"complete": True, "certificate": purge["certificate"]})
    assert memory.verify_certificate(purge["certificate"])["ok"]
    assert words_left(lying(memory)) == []
    assert aside(memory) == []
    assert memory.resume()["purges"] == 0
    assert sound(memory)


# -------------------------------------------------------------------- the scanner


def test_every_piece_is_found_before_the_purge(planted: Plant, key: bytes | None) -> None:
    memory = planted(key)
    with undone(memory) as tx:
        assert store_purge.select(tx, MINE) > 30
        found, _ = store_purge.needles(tx)
    sought = Needles.of(found, SECRET)
    assert {str(record).split()[0] for record, _ in found} == {
        "version", "message", "decision", "metadata", "passage", "owner", "agent", "new"
    }  # fmt: skip
    wal = Path(f"{memory.path}-wal").read_bytes()
    assert len(sought.find(wal)) > (len(sought) // 2 if key is None else -1)
    assert key is None or not sought.find(wal)
    checkpoint(memory)
    hits = {what: sought.scan(read, size) for what, read, size in raw_file.scans(memory._engine.store.db)}
    assert hits.pop("file" if key is None else "decrypted pages") == {needle for _, needle in found}
    assert list(hits.values()) == [set()] * (key is not None)  # of an encrypted file there is nothing to be read


def test_of_many_records_some_are_sought(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        memory.add(f"cup number {n} stands on the shelf", infer=False, **ANN)
    monkeypatch.setattr(store_purge, "RECORDS_MAX", 24)
    certificate = done(memory.purge(**ANN))
    assert 4 < certificate["raw"]["records"] <= 24


def test_words_of_an_index_that_was_not_told_are_seen_by_the_logical_proof(memory: Memory) -> None:
    memory.add(CANARY["verbatim"], infer=False, **ANN)
    memory.add(TEA, infer=False, **BOB)
    with undone(memory) as tx:
        store_purge.select(tx, MINE)
        assert store_purge.traces(tx)[0] != []  # everything is there
        tx.execute(
            "pragma defer_foreign_keys = on; delete from memory_vec where rowid = 1; delete from evidence where id = 1"
        )
        tx.execute(
            "delete from mention where version_id = 1; delete from version where id = 1; delete from message where id = 1"
        )
        tx.execute("delete from memory where owner_id = 1; delete from episode where owner_id = 1")
        left, terms = store_purge.traces(tx)
        assert left == ["7 terms of memory_fts that stand in no text"]
        assert terms > 10
    assert sound(memory)


class Forgetful:
    """A transaction that does not build the word indexes anew."""

    def __init__(self, tx: Any) -> None:
        self._tx = tx

    def execute(self, statement: str, bindings: Any = ()) -> Any:
        return None if "'rebuild'" in statement else self._tx.execute(statement, bindings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


@pytest.fixture
def without_rebuild(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    real = store_purge.erase
    monkeypatch.setattr(store_purge, "erase", lambda tx, now: real(Forgetful(tx), now))
    return monkeypatch


def test_where_the_logical_proof_fails_nothing_is_changed(open_memory: Opener, without_rebuild: Any) -> None:
    memory = filled(open_memory)
    before = everything(memory)
    with pytest.raises(StorageError, match=r"left 7 terms of memory_fts.*nothing was changed"):
        memory.purge(**ANN)
    assert everything(memory) == before
    assert memory.purges() == aside(memory) == []


@pytest.mark.parametrize("word", [COMPOUND, "velociped"])
def test_of_an_index_the_raw_proof_sees_long_words_only(
    open_memory: Opener, without_rebuild: pytest.MonkeyPatch, word: str
) -> None:
    """Why the logical proof comes first: a term in an index is not a piece of 16 bytes of a text."""
    memory = open_memory(embedder=Dense())
    memory.add(TEA, infer=False, **BOB)
    memory.add(f"{word} stands there", infer=False, **ANN)
    without_rebuild.setattr(store_purge, "traces", lambda tx: ([], 0))
    purged = memory.purge(**ANN)
    assert word[:7].encode() in lying(memory)  # stemmed
    assert purged["complete"] is (word != COMPOUND)
    if word == COMPOUND:
        assert purged["reason"].endswith("pieces of what was purged are still in the file")
    memory.reindex()
    assert memory.resume()["purges"] == (word == COMPOUND)
    assert sound(memory)


def test_an_index_without_secure_delete_is_built_anew(memory: Memory) -> None:
    """Then a deleted row's words stay in old segments, where neither fts5vocab nor a search shows them."""
    with memory._engine.store.db.write() as tx:
        for index in ("memory_fts", "turn_fts"):
            tx.execute(f"insert into {index} ({index}, rank) values ('secure-delete', 0)")
    memory.add(TEA, infer=False, **BOB)
    one = memory.add(CANARY["verbatim"], infer=False, **ANN)["results"][0]["id"]
    memory.update(one, CANARY["by hand"])
    memory.delete(one)
    done(memory.purge(**ANN))
    assert words_left(lying(memory)) == []


# -------------------------------------------------------------------- residue


def free_page(writer: Any) -> None:
    writer.execute("pragma secure_delete = off").fetchall()
    writer.execute("create table note (text)")
    writer.executemany("insert into note values (?)", [(CANARY["verbatim"],)] * 300)
    writer.execute("drop table note")
    writer.execute("pragma secure_delete = on").fetchall()
    writer.execute("pragma wal_checkpoint(truncate)").fetchall()


def wal_frame(writer: Any) -> None:
    writer.execute("create table note (text); insert into note values (?)", (CANARY["verbatim"],))
    writer.execute("pragma wal_checkpoint(truncate)").fetchall()
    writer.execute("drop table note; vacuum")


def other_table(writer: Any) -> None:
    writer.execute("create table note (text); insert into note values (?)", (CANARY["verbatim"],))
    writer.execute("pragma wal_checkpoint(truncate)").fetchall()


def vector(writer: Any) -> None:
    [row] = Dense().embed_passages([CANARY["verbatim"]])
    writer.execute("create table note (vector); insert into note values (?)", (row.tobytes(),))
    writer.execute("pragma wal_checkpoint(truncate)").fetchall()


RESIDUES: dict[str, tuple[Callable[[Any], None], str]] = {
    "free page": (free_page, "free pages, 0 bytes of WAL"),
    "WAL frame": (wal_frame, "there are 0 free pages, "),
    "row of another table": (other_table, " pieces of what was purged are still in the file"),
    "vector": (vector, " pieces of what was purged are still in the file"),
}


@pytest.mark.parametrize("residue", RESIDUES)
def test_residue_is_seen(open_memory: Opener, key: bytes | None, residue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(open_memory, **({} if key is None else {"key": key}))
    plant, why = RESIDUES[residue]
    real, planted = raw_file.compact, []

    def compact(database: Any) -> str:
        if not planted:
            assert real(database) == ""
            with database.only_connection() as writer:
                plant(writer)
                planted.append(1)
        return ""

    monkeypatch.setattr(raw_file, "compact", compact)
    assert why in incomplete(memory, memory.purge(**ANN))
    if residue != "vector" and not (key and residue == "WAL frame"):
        assert CANARY["verbatim"].encode() in lying(memory)
    monkeypatch.undo()
    with memory._engine.store.db.only_connection() as writer:
        writer.execute("drop table if exists note")
    finished(memory)


def test_nothing_written_anew_is_nothing_proven(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(open_memory)
    monkeypatch.setattr(raw_file, "compact", lambda database: "")
    reason = incomplete(memory, memory.purge(**ANN))
    assert "0 bytes of WAL" not in reason
    monkeypatch.undo()
    finished(memory)


def test_a_copy_that_a_rekeying_left_is_reported(open_memory: Opener) -> None:
    memory = filled(open_memory)
    copy = Path(f"{memory.path}.new-0badcafe")
    shutil.copy(str(memory.path), copy)
    assert "a rekeying left memory.db.new-0badcafe: delete it" in incomplete(memory, memory.purge(**ANN))
    assert memory.resume()["purges"] == 0
    copy.unlink()
    finished(memory)


@pytest.mark.parametrize(
    ("said", "metadata"),
    [("verbatim", None), ("document", None), ("tea", {"reason": "manual"}), ("id text primary key", None)],
    ids=["a state", "a role", "a reason", "the schema"],
)
def test_words_that_the_file_itself_uses_do_not_hold_up_a_purge(
    memory: Memory, said: str, metadata: dict[str, Any] | None
) -> None:
    memory.add([{"role": "document", "content": TEA}], infer=False, **BOB)
    memory.delete(memory.add("a cup", infer=False, **BOB)["results"][0]["id"])
    memory.add(said, infer=False, metadata=metadata, **ANN)
    done(memory.purge(**ANN))


# -------------------------------------------------------------------- what keeps a purge from its end


@contextlib.contextmanager
def reader(memory: Memory) -> Iterator[None]:
    """Another program in the middle of reading."""
    connection = apsw.Connection(str(memory.path))
    try:
        connection.execute("begin; select count(*) from memory").fetchall()
        yield
    finally:
        connection.close()


@contextlib.contextmanager
def writer(memory: Memory) -> Iterator[None]:
    """Another program that holds the write lock."""
    connection = apsw.Connection(str(memory.path))
    try:
        connection.execute("begin immediate")
        yield
    finally:
        connection.close()


IMPATIENT = Limits(lock_wait_s=0.2)


@pytest.mark.parametrize("again", [False, True], ids=["same handle", "opened again"])
def test_a_reader_that_stays_is_reported_and_resume_ends_it(
    open_memory: Opener, tmp_path: Path, clock: FixedClock, again: bool
) -> None:
    memory = filled(open_memory, limits=IMPATIENT, sound=not again)
    with reader(memory):
        reason = incomplete(memory, memory.purge(**ANN))
        assert reason == "another program went on reading the file for 0.2 s"
        assert CANARY["verbatim"].encode() in lying(memory)
        assert texts(memory.search("quokkafer", include="all", **ANN)) == []
        clock.advance(60)
        assert memory.resume()["purges"] == 0
        assert incomplete(memory, {"complete": False, "certificate": None, "reason": reason}) == reason
    clock.advance(60)
    if again:
        memory.close()
        memory = filled_again(open_memory)
    finished(memory)
    [purge] = memory.purges()
    told = {name: purge["certificate"][name] for name in ("requested_at", "completed_at")}
    assert told == {"requested_at": "2025-03-01T00:00:00Z", "completed_at": "2025-03-01T00:02:00Z"}
    ops = [each["op"] for each in memory.audit_log() if each["op"].startswith("purge")]
    assert ops == ["purge", "purge_incomplete", "purge_incomplete", "purge_done"]


def filled_again(open_memory: Opener) -> Memory:
    return open_memory(embedder=Dense())


def test_a_short_reader_is_waited_for(open_memory: Opener) -> None:
    memory = filled(open_memory)
    ready, end = threading.Event(), threading.Event()

    def reading() -> None:
        with reader(memory):
            ready.set()
            end.wait(0.3)

    thread = threading.Thread(target=reading)
    thread.start()
    ready.wait()
    done(memory.purge(**ANN))
    thread.join()


def test_a_write_lock_held_by_another_program_changes_nothing(open_memory: Opener) -> None:
    memory = filled(open_memory, limits=IMPATIENT)
    before = everything(memory)
    with writer(memory), pytest.raises(LockedError):
        memory.purge(**ANN)
    assert everything(memory) == before
    assert memory.purges() == aside(memory) == []
    done(memory.purge(**ANN))


def test_a_write_lock_taken_after_the_rows_went_is_reported(
    open_memory: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it waits can't be put down either; that it was begun is."""
    memory = filled(open_memory, limits=IMPATIENT)
    real, taken = raw_file.compact, contextlib.ExitStack()

    def compact(database: Any) -> str:
        taken.enter_context(writer(memory))
        return real(database)

    monkeypatch.setattr(raw_file, "compact", compact)
    with taken:
        purged = memory.purge(**ANN)
    assert (purged["complete"], purged["certificate"]) == (False, None)
    assert "locked for 0.2 s" in purged["reason"]
    assert rows(memory, "select text from version") == [TEA]
    assert [each["state"] for each in memory.purges()] == ["incomplete"]
    monkeypatch.undo()
    finished(memory)


def test_a_thread_that_goes_on_reading_is_reported_too(open_memory: Opener) -> None:
    memory = filled(open_memory, limits=IMPATIENT)
    with memory._engine.store.snapshot() as tx:
        tx.execute("select count(*) from memory").fetchall()
        purged = memory.purge(**ANN)
    assert "reading" in incomplete(memory, purged)
    finished(memory)


def test_too_small_a_disk_or_memory_is_reported(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(open_memory)
    usage = shutil.disk_usage(memory.path.parent)  # type: ignore[union-attr]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    assert "the disk has 0 MiB free" in incomplete(memory, memory.purge(**ANN))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(raw_file, "_free_memory", lambda: 1_000)
    assert memory.resume()["purges"] == 0
    assert "0 MiB of memory are free" in memory.purges()[0]["reason"]
    monkeypatch.setattr(raw_file, "_free_memory", lambda: None)  # a system that does not tell
    finished(memory)


def test_what_still_lies_in_the_wal_counts_as_well(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(open_memory)
    usage = shutil.disk_usage(memory.path.parent)  # type: ignore[union-attr]
    [size] = rows(memory, "select page_count * page_size from pragma_page_count, pragma_page_size")
    assert size > 2 * memory.path.stat().st_size  # type: ignore[union-attr]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size // 2))
    assert "the disk has 0 MiB free" in incomplete(memory, memory.purge(**ANN))
    monkeypatch.undo()
    finished(memory)


def waiting(open_memory: Opener, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Memory:
    """A file with a purge that waits: the disk was full."""
    memory = filled(open_memory, **options)
    with monkeypatch.context() as patch:
        patch.setattr(raw_file, "compact", lambda database: "the disk is full")
        assert incomplete(memory, memory.purge(**ANN)) == "the disk is full"
    return memory


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [Path.unlink, damaged, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-1])],
)
def test_where_the_pieces_to_be_sought_are_lost_it_says_so(
    open_memory: Opener, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = waiting(open_memory, monkeypatch)
    [path] = aside(memory)
    harm(path)
    assert memory.resume()["purges"] == 0
    [purge] = memory.purges()
    assert (purge["state"], purge["certificate"]) == ("incomplete", None)
    assert purge["reason"] == "the pieces to be sought are lost; the file could not be searched for them"
    assert words_left(lying(memory)) == []
    assert sound(memory)


def test_what_lies_aside_tells_nothing(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = waiting(open_memory, monkeypatch)
    [path] = aside(memory)
    assert path.stat().st_mode & 0o777 == 0o600
    assert words_left(path.read_bytes()) == []
    assert b"version" not in path.read_bytes()
    finished(memory)


def test_a_new_purge_ends_an_older_one(open_memory: Opener, monkeypatch: pytest.MonkeyPatch, clock: FixedClock) -> None:
    memory = waiting(open_memory, monkeypatch)
    clock.advance(60)
    done(memory.purge(**BOB))
    first, second = memory.purges()
    assert [first["state"], second["state"]] == ["done", "done"]
    assert first["certificate"]["requested_at"] < second["certificate"]["requested_at"]
    assert first["certificate"]["chain"]["purge"] < second["certificate"]["chain"]["purge"]
    assert all(memory.verify_certificate(each["certificate"])["ok"] for each in (first, second))
    assert aside(memory) == []
    assert words_left(lying(memory)) == []


def test_a_bound_handle_leaves_the_purges_of_the_file_alone(
    open_memory: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = waiting(open_memory, monkeypatch)
    assert memory.bound(purge=True, **BOB).resume()["purges"] == 0
    assert memory.resume(**BOB)["purges"] == 0
    finished(memory)


def test_a_clock_that_goes_backwards_meanwhile(
    open_memory: Opener, monkeypatch: pytest.MonkeyPatch, clock: FixedClock
) -> None:
    memory = waiting(open_memory, monkeypatch)
    clock.advance(-86_400)
    finished(memory)
    [purge] = memory.purges()
    assert purge["certificate"]["completed_at"] < purge["certificate"]["requested_at"]
    clock.advance(-86_400)
    done(memory.purge(**BOB))
    assert all(memory.verify_certificate(each["certificate"])["ok"] for each in memory.purges())
    assert sound(memory)


def test_purges_are_listed_in_their_order_whatever_the_clock_says(open_memory: Opener, clock: FixedClock) -> None:
    memory = filled(open_memory)
    first = done(memory.purge(**ANN))
    clock.advance(-86_400)
    second = done(memory.purge(**BOB))
    assert [each["id"] for each in memory.purges()] == [first["id"], second["id"]]


def test_a_purge_that_waits_survives_a_new_key(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    from localmem import encrypt

    memory = waiting(open_memory, monkeypatch, sound=False)
    memory.close()
    encrypt(memory.path, KEY)
    finished(open_memory(embedder=Dense(), key=KEY))


# -------------------------------------------------------------------- several at once


def test_another_program_may_end_the_purge_first(
    open_memory: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = filled(open_memory)
    real = purge.finish

    def late(*args: Any) -> Any:
        monkeypatch.setattr(purge, "finish", real)
        with opened(tmp_path / "memory.db") as other:
            assert other.resume()["purges"] == 1
        return real(*args)

    monkeypatch.setattr(purge, "finish", late)
    done(memory.purge(**ANN))


def test_two_that_end_the_same_purge_leave_one_certificate(
    open_memory: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = filled(open_memory)
    real = raw_file.compact

    def late(database: Any) -> str:
        monkeypatch.setattr(raw_file, "compact", real)
        with opened(tmp_path / "memory.db") as other:
            assert other.resume()["purges"] == 1
        return real(database)

    monkeypatch.setattr(raw_file, "compact", late)
    done(memory.purge(**ANN))
    [only] = memory.purges()
    assert (only["state"], only["reason"]) == ("done", None)
    assert [e["op"] for e in memory.audit_log() if e["op"].startswith("purge")] == ["purge", "purge_done"]


def test_threads_purge_add_and_search_at_once(open_memory: Opener) -> None:
    memory = open_memory(embedder=Dense(), durability="process")
    owners = [f"owner number {n}" for n in range(3)]
    for owner in owners:
        for n in range(4):
            memory.add(f"{CANARY['verbatim']} {n} {owner}", infer=False, user_id=owner)
    results: list[Any] = []
    stop = threading.Event()

    def busy() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            memory.add(f"cup number {n} stands on the shelf", infer=False, **BOB)
            memory.search("cup", **BOB)
            stop.wait(0.01)

    def purging(owner: str) -> None:
        try:
            results.append(memory.purge(user_id=owner)["complete"])
        except BaseException as error:
            results.append(error)

    other = threading.Thread(target=busy)
    other.start()
    threads = [threading.Thread(target=purging, args=(owner,)) for owner in owners]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    stop.set()
    other.join()
    memory.resume()
    assert {each["state"] for each in memory.purges()} == {"done"}
    assert words_left(lying(memory)) == []
    assert aside(memory) == []
    assert len(results) == 3


# -------------------------------------------------------------------- what fails beside the file


def test_where_the_pieces_cannot_be_laid_aside_nothing_is_purged(
    open_memory: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = filled(open_memory)
    before = everything(memory)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="nothing was purged"):
        memory.purge(**ANN)
    assert everything(memory) == before
    assert memory.purges() == aside(memory) == []


def test_what_lies_aside_outlives_a_power_cut(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(open_memory)
    real, synced = os.fsync, list[bool]()
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(stat.S_ISDIR(os.fstat(handle).st_mode)), real(handle))
    )
    done(memory.purge(**ANN))
    assert synced == [False, True]  # the file, then its place in the folder


def test_a_file_behind_a_link_is_proven_with_its_own_wal(
    open_memory: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "memory.db").symlink_to(tmp_path / "real" / "memory.db")
    (tmp_path / "real" / "memory.db").touch()
    memory = filled(open_memory, sound=False)

    def compact(database: Any) -> str:
        with database.only_connection() as connection:
            connection.execute("vacuum")  # and no more: all lies in the WAL
        return ""

    monkeypatch.setattr(raw_file, "compact", compact)
    assert not memory.purge(**ANN)["complete"]


def test_a_checkpoint_file_that_fails_does_not_cost_the_proof(open_memory: Opener, tmp_path: Path) -> None:
    """The rows are gone by then: what is to be sought must stay."""
    (tmp_path / "outside").mkdir()
    memory = filled(open_memory, checkpoint=tmp_path / "outside" / "log")
    (tmp_path / "outside" / "log").unlink()
    (tmp_path / "outside" / "log").mkdir()
    with contextlib.suppress(StorageError):
        memory.purge(**ANN)
    assert rows(memory, "select text from version") == [TEA]
    (tmp_path / "outside" / "log").rmdir()
    finished(memory)


# -------------------------------------------------------------------- faults below SQLite


@dataclass(frozen=True, slots=True)
class State:
    """What the file holds: texts, and purges with whether they have a certificate."""

    texts: tuple[str, ...]
    purges: tuple[tuple[str, bool], ...]


BEFORE, AFTER = (CANARY["verbatim"], TEA), State((TEA,), (("done", True),))


def make(path: Path, key: bytes | None = None) -> None:
    with opened(path, key=key) as memory:
        memory.add(CANARY["verbatim"], infer=False, metadata={"note": CANARY["metadata"]}, **ANN)
        memory.add(TEA, infer=False, **BOB)


def observer(key: bytes | None) -> Callable[[Path], State]:
    def observe(path: Path) -> State:
        with opened(path, key=key) as memory:
            assert sound(memory)
            listed = tuple((each["state"], each["certificate"] is not None) for each in memory.purges())
            found = State(tuple(rows(memory, "select text from version order by id")), listed)
        if found.purges and found.purges[-1][0] == "done":
            for each in path.parent.glob(f"{path.name}*"):
                assert words_left(each.read_bytes()) == [], each
        return found

    return observe


def waits(now: Any, before: Any) -> bool:
    """The rows are gone and noted, the file is not written anew."""
    return bool(now == State((TEA,), (("incomplete", False),)))


def ending(key: bytes | None) -> Callable[[Path], None]:
    def finish(path: Path) -> None:
        with opened(path, key=key) as memory:
            if memory.purges():
                assert memory.resume()["purges"] == 1, memory.purges()
            else:
                done(memory.purge(**ANN))

    return finish


@contextlib.contextmanager
def power(vfs: faults.FaultVFS) -> Iterator[None]:
    """A machine that is off takes away no file either."""
    real = Path.unlink

    def unlink(path: Path, *args: Any, **options: Any) -> None:
        if not (vfs.dead and "-purge-" in path.name):
            real(path, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        yield


def test_a_purge_survives_every_fault(tmp_path: Path, key: bytes | None) -> None:
    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with power(vfs), opened(path, key=key, vfs=vfs.name) as memory:
            if memory.purge(**ANN)["complete"]:
                acknowledge()

    swept = faults.sweep(
        tmp_path,
        make=lambda path: make(path, key),
        act=act,
        observe=observer(key),
        errors=(LocalmemError,),
        between=waits,
        finish=ending(key),
        points_max=7,
    )
    assert (swept.before, swept.after) == (State(BEFORE, ()), AFTER)
    assert {outcome.now for outcome in swept.outcomes} >= {swept.before, State((TEA,), (("incomplete", False),)), AFTER}


def test_a_resumed_purge_survives_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(path: Path) -> None:
        make(path)
        with monkeypatch.context() as patch, opened(path) as memory:
            patch.setattr(raw_file, "compact", lambda database: "the disk is full")
            assert not memory.purge(**ANN)["complete"]

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        for each in path.parent.glob("start.db-purge-*"):
            shutil.copy(each, path.parent / each.name.replace("start", "work", 1))
        with power(vfs), opened(path, vfs=vfs.name) as memory:
            if memory.resume()["purges"]:
                acknowledge()

    swept = faults.sweep(
        tmp_path,
        make=begun,
        act=act,
        observe=observer(None),
        errors=(LocalmemError,),
        finish=ending(None),
        points_max=7,
    )
    assert (swept.before, swept.after) == (State((TEA,), (("incomplete", False),)), AFTER)


def test_a_purge_survives_a_kill_at_sampled_statements(tmp_path: Path) -> None:
    def act(path: Path, acknowledge: faults.Acknowledge) -> None:
        with opened(path) as memory:
            if memory.purge(**ANN)["complete"]:
                acknowledge()

    ends = faults.sweep_kills(
        tmp_path,
        make=make,
        act=act,
        observe=observer(None),
        between=waits,
        finish=ending(None),
        points_max=24,
    )
    assert len(ends) > 20


@pytest.mark.parametrize("step", ["_lay_aside", "_delete", "_prove"])
def test_a_death_leaves_nothing_lying_beside_the_file(tmp_path: Path, step: str) -> None:
    path = tmp_path / "memory.db"
    make(path)

    def job(acknowledge: faults.Acknowledge) -> None:
        real = getattr(purge, step)
        setattr(purge, step, lambda *args: (real(*args), faults.die()))  # in the child only
        with opened(tmp_path / "memory.db") as memory:
            memory.purge(**ANN)

    assert faults.run_child(job).killed
    ending(None)(path)
    assert [each.name for each in tmp_path.iterdir()] == ["memory.db"]


def test_each_step_is_marked_in_the_file(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an auditor reads of a purge that took two attempts."""
    memory = waiting(open_memory, monkeypatch)
    [told] = memory.finish_purges()
    assert (told["complete"], told["reason"]) == (True, "")
    assert memory.verify_certificate(told["certificate"])["ok"]
    with pytest.raises(ScopeError):
        memory.bound(purge=True, **BOB).finish_purges()
    told = [(each["op"], each["detail"]) for each in memory.audit_log() if each["op"].startswith("purge")]
    assert [op for op, _ in told] == ["purge", "purge_incomplete", "purge_done"]
    assert told[0][1]["what"] == "scope"
    assert json.dumps(told).count("quokkafer") == 0
