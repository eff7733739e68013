"""The one importer of apsw and sqlite-vec: open, migrate, write(), snapshot(), error mapping.

One writer behind a lock and a pool of readers; a connection is used by one thread at a time. No connection lives
through a fork: they are closed before it and opened again, on both sides, when next needed.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from localmem.errors import (
    ClosedError,
    CorruptFileError,
    InstallationError,
    InvalidInputError,
    LocalmemError,
    LockedError,
    NotOurFileError,
    ReadOnlyError,
    SchemaError,
    StorageError,
)

APSW_CURE = "pip uninstall -y apsw apsw-sqlite3mc && pip install apsw-sqlite3mc"
try:
    import apsw
except ImportError as error:
    raise InstallationError(f"apsw can't be imported ({error}). Cure: {APSW_CURE}") from error
try:
    import sqlite_vec
except ImportError as error:
    raise InstallationError(f"sqlite-vec can't be imported ({error}). Cure: pip install sqlite-vec") from error

APPLICATION_ID = 0x6C6D656D  # "lmem"
SCHEMA_VERSION = 6  # the number of the newest file in sql/
WRITER_CACHE_KIB, READER_CACHE_KIB = 262_144, 65_536
IDLE_READERS_MAX = 8


class Tx(Protocol):
    """What a transaction offers: bound SQL in, rows (tuples) out."""

    def execute(self, statements: str, bindings: Any = ()) -> Any: ...
    def executemany(self, statements: str, bindings: Any) -> Any: ...
    def changes(self) -> int: ...
    def last_insert_rowid(self) -> int: ...


def check_driver() -> None:
    """Raise InstallationError unless apsw is the apsw-sqlite3mc build with FTS5 and extension loading.

    Plain ``apsw`` installs the same package folder and silently overwrites it (DESIGN section 2).
    """
    missing = []
    if not hasattr(apsw, "mc_version"):
        missing.append("the encryption of apsw-sqlite3mc")
    options = getattr(apsw, "compile_options", ())
    if "ENABLE_FTS5" not in options:
        missing.append("FTS5")
    if not hasattr(getattr(apsw, "Connection", None), "load_extension"):
        missing.append("extension loading")
    if missing:
        raise InstallationError(
            f"the installed apsw lacks {', '.join(missing)}: another package has overwritten apsw-sqlite3mc. "
            f"Cure: {APSW_CURE}"
        )


class Database:
    """One SQLite file (or a private in-memory one) and its connections.

    path: the file, or None for memory. durability: "power" (synchronous=FULL) or "process" (NORMAL).
    lock_wait_s: how long a write waits for other processes before LockedError. vfs: name of a registered
    SQLite VFS, for tests. Raises the errors of ``errors.py``; a file that is not ours is never written to.
    """

    def __init__(
        self, path: Path | None, *, durability: str = "power", lock_wait_s: float = 30.0, vfs: str | None = None
    ) -> None:
        check_driver()
        self.path = path
        self.durability = durability
        self.lock_wait_s = lock_wait_s
        self._vfs = vfs
        self._closed = False
        self._lock = threading.RLock()
        self._pool = threading.Condition()
        self._idle: list[apsw.Connection] = []
        self._out = 0  # readers in use
        self._writer: apsw.Connection | None = None
        self.read_only = path is not None and _is_read_only(path)
        if path is not None and not self.read_only:
            _create_private(path)
        if path is not None:
            _refuse_other_formats(path)
        with self._mapped():
            self._writer = self._connect(WRITER_CACHE_KIB)
            try:
                self._prepare(self._writer)
            except BaseException:
                self._writer.close()
                raise
        with _opened_lock:
            _opened.add(self)

    # ---------------------------------------------------------------- transactions

    @contextlib.contextmanager
    def write(self) -> Iterator[Tx]:
        """One BEGIN IMMEDIATE transaction: lands whole or not at all. No model work belongs inside."""
        with self._mapped(), self._lock:
            if self.read_only:
                raise ReadOnlyError(f"{self.path} is read-only; copy it to a writable folder to change it")
            writer = self._the_writer()
            with _whole(writer):
                yield writer

    @contextlib.contextmanager
    def snapshot(self, *, fresh: bool = False) -> Iterator[Tx]:
        """One consistent view for several reads; writers are not held up and not seen.

        fresh: on a connection of its own (an integrity check through one that has read an FTS5 index before another
        connection emptied it reports corruption that is not there; SQLite 3.54).
        """
        with self._mapped():
            if self.path is None:  # a second connection to ":memory:" would see an empty file
                with self._lock:
                    yield self._the_writer()
                return
            reader = self._take_reader(fresh)
            try:
                reader.execute("begin")
                yield reader
            finally:
                try:
                    if reader.in_transaction:
                        reader.execute("rollback")
                finally:
                    self._give_back(reader)

    def close(self) -> None:
        """Close every connection of this process. Safe to call twice and from any thread."""
        with self._lock:
            self._closed = True
            with self._pool:
                idle, self._idle = self._idle, []
            connections = [*idle, *([self._writer] if self._writer else [])]
            self._writer = None
            with self._mapped(), contextlib.ExitStack() as closing:  # one that fails must not keep the others open
                for connection in connections:
                    closing.callback(connection.close)

    # ---------------------------------------------------------------- connections

    def _the_writer(self) -> apsw.Connection:
        if self._closed:
            raise ClosedError("this Memory was closed; open a new one")
        if self._writer is None:
            self._writer = self._connect(WRITER_CACHE_KIB)
        return self._writer

    def _take_reader(self, fresh: bool) -> apsw.Connection:
        with self._pool:
            if self._closed:
                raise ClosedError("this Memory was closed; open a new one")
            self._out += 1
            if self._idle and not fresh:
                return self._idle.pop()
        try:
            return self._connect(READER_CACHE_KIB)
        except BaseException:
            self._give_back(None)
            raise

    def _give_back(self, reader: apsw.Connection | None) -> None:
        with self._pool:
            self._out -= 1
            self._pool.notify_all()
            if reader is not None and not self._closed and len(self._idle) < IDLE_READERS_MAX:
                self._idle.append(reader)
                return
        if reader is not None:
            reader.close()

    # ---------------------------------------------------------------- fork

    def _before_fork(self) -> None:
        """Finish what runs and close every connection of a file: a child that inherited one would share locks with
        its parent that the kernel knows nothing of (seen: the child hangs, or writes into a WAL that is gone)."""
        self._lock.acquire()
        self._pool.acquire()
        self._pool.wait_for(lambda: self._out == 0, timeout=self.lock_wait_s)
        if self.path is not None and not (self._writer and self._writer.in_transaction):
            for connection in [*self._idle, *([self._writer] if self._writer else [])]:
                connection.close()
            self._idle, self._writer = [], None

    def _after_fork_in_parent(self) -> None:
        self._pool.release()
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._lock, self._pool = threading.RLock(), threading.Condition()
        self._out = 0

    # ---------------------------------------------------------------- opening

    def _connect(self, cache_kib: int) -> apsw.Connection:
        connection = apsw.Connection(*self._target(), vfs=self._vfs)
        try:
            self._set_up(connection, cache_kib)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: apsw.Connection, cache_kib: int) -> None:
        connection.set_busy_handler(_Patience(self.lock_wait_s))
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.enable_load_extension(False)
        connection.create_scalar_function("casefold", _casefold, 1, deterministic=True)  # lower() knows ASCII only
        connection.execute(f"pragma cache_size = -{cache_kib}")
        connection.execute("pragma temp_store = memory")
        connection.execute("pragma foreign_keys = on")
        connection.execute(f"pragma synchronous = {'full' if self.durability == 'power' else 'normal'}")

    def _target(self) -> tuple[str, int]:
        if self.path is None:
            return ":memory:", apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        if self.read_only:
            wal = Path(f"{self.path}-wal")
            immutable = "" if wal.exists() and wal.stat().st_size else "&immutable=1"
            uri = f"{self.path.resolve().as_uri()}?mode=ro{immutable}"
            return uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        return os.fspath(self.path), apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE

    # ---------------------------------------------------------------- schema

    def _prepare(self, writer: apsw.Connection) -> None:
        application, version, empty = self._identity(writer)
        if not empty and application != APPLICATION_ID:
            raise NotOurFileError(f"{self.path} is a SQLite file of another program; give localmem a path of its own")
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"{self.path} has schema {version}, this localmem knows {SCHEMA_VERSION}: upgrade localmem to open it"
            )
        if self.path is not None and not self.read_only:
            _until_free(lambda: writer.execute("pragma journal_mode = wal").fetchall(), self.lock_wait_s)
        if version < SCHEMA_VERSION:
            if self.read_only:
                raise ReadOnlyError(f"{self.path} is read-only and has schema {version}; it can't be migrated")
            self._migrate(writer)

    def _identity(self, writer: apsw.Connection) -> tuple[int, int, bool]:
        statement = (
            "select a.application_id, u.user_version, (select count(*) from sqlite_schema) "
            "from pragma_application_id a, pragma_user_version u"
        )
        [row] = writer.execute(statement).fetchall()
        application, version, objects = (int(str(value)) for value in row)
        return application, version, objects == 0

    def _migrate(self, writer: apsw.Connection) -> None:
        with _whole(writer):
            _, version, _ = self._identity(writer)  # another process may have been faster
            for number, statements in migrations(after=version):
                writer.execute(statements)
                writer.execute(f"pragma user_version = {number}")
            writer.execute(f"pragma application_id = {APPLICATION_ID}")

    # ---------------------------------------------------------------- errors

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except LocalmemError:
            raise
        except apsw.Error as error:
            raise translate(error, self.path or ":memory:", self.lock_wait_s) from error


@contextlib.contextmanager
def _whole(writer: apsw.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT. A COMMIT that fails leaves the transaction open (full disk): it is rolled back too."""
    writer.execute("begin immediate")
    try:
        yield
        writer.execute("commit")
    except BaseException:
        if writer.in_transaction:
            writer.execute("rollback")
        raise


def translate(error: apsw.Error, path: Path | str, lock_wait_s: float) -> LocalmemError:
    """The error of our tree for one of SQLite's, saying what to do. Never carries bound values."""
    code = f"{type(error).__name__}, extended code {getattr(error, 'extendedresult', 0)}"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return LockedError(
            f"{path} stayed locked by another process for {lock_wait_s:g} s; try again, or raise Limits.lock_wait_s"
        )
    if isinstance(error, apsw.NotADBError):
        return NotOurFileError(f"{path} is not a localmem file, or its header is damaged; nothing was changed")
    if isinstance(error, apsw.CorruptError):
        return CorruptFileError(f"{path} is damaged ({code}); restore a backup, or export what `localmem list` shows")
    if isinstance(error, apsw.ReadOnlyError):
        return ReadOnlyError(f"{path} or its folder is read-only ({code}); nothing was written")
    if isinstance(error, apsw.FullError):
        return StorageError(f"the disk of {path} is full; nothing was written. Free some space and try again")
    if isinstance(error, apsw.CantOpenError):
        return StorageError(f"{path} can't be opened ({code}); check that the folder exists and may be written")
    if isinstance(error, apsw.IOError):
        return StorageError(f"reading or writing {path} failed ({code}); nothing was half-written")
    return StorageError(f"SQLite refused a statement on {path} ({code}); nothing was written")


def migrations(after: int) -> list[tuple[int, str]]:
    """(number, SQL) of every schema step above ``after``, in order."""
    folder = resources.files("localmem") / "sql"
    steps = [(int(f.name[:4]), f.read_text("utf-8")) for f in folder.iterdir() if f.name[:4].isdigit()]
    return sorted(step for step in steps if step[0] > after)


def sql_file(name: str) -> str:
    """The text of one file of ``localmem/sql``."""
    return (resources.files("localmem") / "sql" / name).read_text("utf-8")


class _Patience:
    """SQLite busy handler: sleeps with jitter until the wait is over; a steady pause would starve someone."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._deadline = 0.0

    def __call__(self, count: int) -> bool:
        now = time.monotonic()
        if count == 0:
            self._deadline = now + self._wait_s
        if now >= self._deadline:
            return False
        time.sleep(min(0.05, 0.0005 * 2 ** min(count, 7)) * random.uniform(0.5, 1.5))
        return True


def _until_free(step: Any, wait_s: float) -> None:
    """Repeat a step that SQLite answers with BUSY without asking the busy handler (the switch to WAL)."""
    patience, count = _Patience(wait_s), 0
    while True:
        try:
            step()
            return
        except (apsw.BusyError, apsw.LockedError):
            if not patience(count):
                raise
            count += 1


def _casefold(*values: Any) -> Any:
    (value,) = values
    return value.casefold() if isinstance(value, str) else value


def _is_read_only(path: Path) -> bool:
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _create_private(path: Path) -> None:
    """Make the file readable by its owner alone; SQLite gives its side files the same mode."""
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; give the path of a file in it, e.g. {path / 'memory.db'}")
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} does not exist; create it first, or give another path")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise ReadOnlyError(f"{path} can't be created: {error.strerror}") from error


def _refuse_other_formats(path: Path) -> None:
    """SQLite takes any file of less than a page for an empty database and would write over it.

    A larger one is left to SQLite: closing a live file here would drop this process's locks on it (POSIX).
    """
    if not path.exists() or path.stat().st_size >= 4096:
        return
    try:
        with path.open("rb") as file:
            header = file.read(16)
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}") from error
    if header and header != b"SQLite format 3\0":
        raise NotOurFileError(f"{path} is not a localmem file, or its header is damaged; nothing was changed")


_opened: weakref.WeakSet[Database] = weakref.WeakSet()
_opened_lock = threading.Lock()
_forking: list[Database] = []


def _before_fork() -> None:
    _opened_lock.acquire()
    _forking.extend(_opened)
    for database in _forking:
        database._before_fork()


def _after_fork_in_parent() -> None:
    for database in reversed(_forking):
        database._after_fork_in_parent()
    _forking.clear()
    _opened_lock.release()


def _after_fork_in_child() -> None:
    global _opened_lock
    _opened_lock = threading.Lock()
    for database in _forking:
        database._after_fork_in_child()
    _forking.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
