"""The fault harness itself, on plain apsw: it must find a broken writer and leave a sound one alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import apsw
import faults
import pytest

OLD, NEW = ("old",) * 30, ("new",) * 30
LONG = "x" * 3000  # about one row a page, so that a transaction is many writes


def connect(path: Path, vfs: str | None = None, journal: str = "wal", synchronous: str = "full") -> apsw.Connection:
    connection = apsw.Connection(str(path), vfs=vfs)
    try:
        connection.pragma("journal_mode", journal)
        connection.pragma("synchronous", synchronous)
    except apsw.Error:
        connection.close()
        raise
    return connection


def make(path: Path) -> None:
    connection = connect(path)
    connection.execute("create table if not exists fact(word text, body text)")
    with connection:
        connection.executemany("insert into fact values(?, ?)", [(word, LONG) for word in OLD])
    connection.close()


def observe(path: Path) -> tuple[str, ...]:
    connection = apsw.Connection(str(path))
    try:
        assert connection.pragma("integrity_check") == "ok"
        if not connection.pragma("schema_version"):
            return ()
        return tuple(word for (word,) in connection.execute("select word from fact order by rowid"))
    finally:
        connection.close()


def rename_all(connection: apsw.Connection) -> None:
    with connection:
        connection.execute("update fact set word = 'new', body = ?", (LONG.upper(),))


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_a_sound_transaction_survives_every_fault(tmp_path: Path, journal: str) -> None:
    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(connect(path, vfs.name, journal)) as connection:
            rename_all(connection)
            acknowledge()

    # Outside WAL mode SQLite does not sync the folder after deleting a journal (synchronous=FULL, not EXTRA):
    # a promised commit may be undone by a power cut, so only the kinds without it are swept there.
    kinds = faults.KINDS if journal == "wal" else (*faults.ERROR_KINDS, "stop", "torn_stop")
    swept = faults.sweep(
        tmp_path, make=make, act=act, observe=observe, errors=(apsw.Error,), kinds=kinds, points_max=25
    )
    assert (swept.before, swept.after) == (OLD, NEW)
    seen = {outcome.now for outcome in swept.outcomes}
    assert seen == {OLD, NEW}
    assert {operation.verb for operation in swept.operations} >= {"write", "sync"}
    assert {outcome.kind for outcome in swept.outcomes if outcome.operation} == set(kinds)


def test_two_commits_for_one_action_are_found(tmp_path: Path) -> None:
    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(connect(path, vfs.name)) as connection:
            for rowid in (1, 2):
                connection.execute("update fact set word = 'new' where rowid % 2 = ?", (rowid % 2,))
            acknowledge()

    for kind in ("io", "stop", "power"):
        with pytest.raises(AssertionError, match="neither before"):
            faults.sweep(tmp_path, make=make, act=act, observe=observe, errors=(apsw.Error,), kinds=(kind,))


def test_a_promise_without_a_sync_is_found(tmp_path: Path) -> None:
    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(connect(path, vfs.name, synchronous="normal")) as connection:
            rename_all(connection)
            acknowledge()

    with pytest.raises(AssertionError, match="promised"):
        faults.sweep(tmp_path, make=make, act=act, observe=observe, errors=(apsw.Error,), kinds=("power",))


def test_writes_without_any_journal_are_found_torn(tmp_path: Path) -> None:
    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(connect(path, vfs.name, journal="off")) as connection:
            rename_all(connection)
            acknowledge()

    for kind in ("io", "torn_stop", "power_torn"):
        with pytest.raises(AssertionError, match="broke"):
            faults.sweep(tmp_path, make=make, act=act, observe=observe, errors=(apsw.Error,), kinds=(kind,))


def test_the_wrong_error_and_a_leaked_connection_are_found(tmp_path: Path) -> None:
    leaked = []

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        connection = connect(path, vfs.name)
        try:
            rename_all(connection)
        except apsw.Error:
            leaked.append(connection)
            raise
        acknowledge()
        connection.close()

    with pytest.raises(AssertionError, match="stayed open"):
        faults.sweep(tmp_path, make=make, act=act, observe=observe, errors=(apsw.Error,), kinds=("io",), points_max=3)
    with pytest.raises(AssertionError, match="not one of OSError"):
        faults.sweep(
            tmp_path,
            make=make,
            act=lambda path, vfs, acknowledge: rename_and_close(path, vfs.name),
            observe=observe,
            errors=(OSError,),
            kinds=("io",),
            points_max=3,
        )
    for connection in leaked:
        connection.close()


def rename_and_close(path: Path, vfs: str | None = None) -> None:
    with contextlib.closing(connect(path, vfs)) as connection:
        rename_all(connection)


def test_finish_must_reach_the_state_after(tmp_path: Path) -> None:
    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        rename_and_close(path, vfs.name)
        acknowledge()

    def again(path: Path) -> None:
        rename_and_close(path)

    swept = faults.sweep(
        tmp_path, make=make, act=act, observe=observe, errors=(apsw.Error,), finish=again, points_max=6
    )
    assert any(outcome.now == OLD for outcome in swept.outcomes)
    with pytest.raises(AssertionError, match="finished as"):
        faults.sweep(
            tmp_path,
            make=make,
            act=act,
            observe=observe,
            errors=(apsw.Error,),
            finish=lambda path: None,
            kinds=("power",),
            points_max=6,
        )


def test_an_encrypted_file_survives_too(tmp_path: Path) -> None:
    @contextlib.contextmanager
    def unlocked(path: Path, vfs: str | None = None) -> Iterator[apsw.Connection]:
        with contextlib.closing(apsw.Connection(str(path), vfs=vfs)) as connection:
            connection.pragma("key", "raw:" + "ab" * 32)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full")
            yield connection

    def make_secret(path: Path) -> None:
        with unlocked(path) as connection, connection:
            connection.execute("create table fact(word text, body text)")
            connection.executemany("insert into fact values(?, ?)", [(word, LONG) for word in OLD])

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with unlocked(path, vfs.name) as connection:
            rename_all(connection)
            acknowledge()

    def observe_secret(path: Path) -> tuple[str, ...]:
        assert not path.read_bytes().startswith(b"SQLite format 3")
        with unlocked(path) as connection:
            assert connection.pragma("integrity_check") == "ok"
            return tuple(word for (word,) in connection.execute("select word from fact order by rowid"))

    swept = faults.sweep(
        tmp_path, make=make_secret, act=act, observe=observe_secret, errors=(apsw.Error,), points_max=8
    )
    assert (swept.before, swept.after) == (OLD, NEW)


def test_a_new_file_is_whole_or_absent(tmp_path: Path) -> None:
    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(connect(path, vfs.name)) as connection:
            with connection:
                connection.execute("create table fact(word text, body text)")
                connection.executemany("insert into fact values(?, ?)", [(word, LONG) for word in OLD])
            acknowledge()

    swept = faults.sweep(
        tmp_path, make=lambda path: None, act=act, observe=observe, errors=(apsw.Error,), points_max=25
    )
    assert (swept.before, swept.after) == ((), OLD)


def test_a_cut_undoes_exactly_what_was_not_synced(tmp_path: Path) -> None:
    vfs, path = faults.FaultVFS(), tmp_path / "a.db"
    make(path)
    connection = connect(path, vfs.name, synchronous="normal")
    rename_all(connection)  # in the WAL, not synced
    with vfs.counting() as operations:
        connection.execute("pragma wal_checkpoint(passive)").fetchall()
    assert [operation.verb for operation in operations if operation.verb == "sync"] == ["sync", "sync"]
    connection.execute("insert into fact values('late', '')")
    vfs.cut("power")
    with pytest.raises(apsw.Error):
        connection.execute("insert into fact values('dead', '')")
    with contextlib.suppress(apsw.Error):
        connection.close()
    vfs.reboot()
    assert vfs.open_files == 0
    assert observe(path) == NEW  # synced by the checkpoint; the late row is gone


def test_a_full_disk_heals(tmp_path: Path) -> None:
    vfs, path = faults.FaultVFS(), tmp_path / "a.db"
    make(path)
    connection = connect(path, vfs.name)
    vfs.plan("full", 1)
    for _ in range(2):
        with pytest.raises(apsw.FullError):
            rename_all(connection)
    vfs.lift()
    rename_all(connection)
    connection.close()
    assert observe(path) == NEW


@pytest.mark.parametrize(("kind", "at"), [("meteor", 1), ("io", 0)])
def test_a_plan_that_makes_no_sense_is_refused(kind: str, at: int) -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        faults.FaultVFS().plan(kind, at)


def test_torn_survivors_depend_only_on_the_seed(tmp_path: Path) -> None:
    def left(seed: int) -> bytes:
        path = tmp_path / f"{seed}.db"
        path.unlink(missing_ok=True)
        make(path)
        vfs = faults.FaultVFS(seed=seed)
        connection = connect(path, vfs.name, journal="off")
        vfs.plan("power_torn", 20)
        with contextlib.suppress(apsw.Error):
            rename_all(connection)
        with contextlib.suppress(apsw.Error):
            connection.close()
        vfs.reboot()
        return path.read_bytes()

    assert left(1) == left(1)
    assert left(1) != left(2)


def test_kills_find_the_two_commits_and_pass_the_one(tmp_path: Path) -> None:
    def once(path: Path, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(connect(path)) as connection:
            rename_all(connection)
            acknowledge()
            connection.execute("select count(*) from fact").fetchall()

    def twice(path: Path, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(connect(path)) as connection:
            connection.execute("update fact set word = 'new' where rowid = 1")
            connection.execute("update fact set word = 'new'")
            acknowledge()

    ends = faults.sweep_kills(tmp_path, make=make, act=once, observe=observe)
    assert {end.acknowledged for end in ends} == {False, True}
    with pytest.raises(AssertionError, match="killed at statement"):
        faults.sweep_kills(tmp_path, make=make, act=twice, observe=observe)


def test_a_child_reports_its_promise_its_statements_and_its_error(tmp_path: Path) -> None:
    def fails(acknowledge: faults.Acknowledge) -> None:
        apsw.Connection(":memory:").execute("select 1; select 2").fetchall()
        acknowledge()
        raise KeyError("seen by the parent")

    end = faults.run_child(fails)
    assert (end.killed, end.acknowledged, end.statements) == (False, True, 2)
    assert "seen by the parent" in end.error
    dead = faults.run_child(lambda acknowledge: faults.die())
    assert (dead.killed, dead.acknowledged) == (True, False)
    with pytest.raises(AssertionError, match="longer than"):
        faults.run_child(lambda acknowledge: __import__("time").sleep(30), timeout_s=0.3)


def test_sampled_points_hold_both_ends_and_move_with_the_shift() -> None:
    values = range(1, 101)
    plain, moved = faults.spaced(values, 5), faults.spaced(values, 5, shift=0.5)
    assert plain == [1, 26, 51, 75, 100]
    assert (moved[0], moved[-1], len(moved)) == (1, 100, 5)
    assert not set(plain[1:-1]) & set(moved[1:-1])
    assert faults.spaced([3, 4], 5) == [3, 4]
