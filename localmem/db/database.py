"""The connections of one file, and its transactions.

One writer behind a lock and a pool of readers; a connection is used by one thread at a time. No connection lives
through a fork: they are closed before it and opened again, on both sides, when next needed.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from localmem.db import opening, schema
from localmem.db.driver import Tx, apsw, check_driver, translate
from localmem.errors import (
    ClosedError,
    ConflictError,
    KeyRefusedError,
    LocalmemError,
    LockedError,
    NotOurFileError,
    ReadOnlyError,
    SchemaError,
)
from localmem.keys import KEY_BYTES, Key

WRITER_CACHE_KIB, READER_CACHE_KIB = 262_144, 65_536
IDLE_READERS_MAX = 8


class Database:
    """One SQLite file (or a private in-memory one) and its connections.

    path: the file, or None for memory. durability: "power" (synchronous=FULL) or "process" (NORMAL).
    key: of an encrypted file. lock_wait_s: how long a write waits for other processes before LockedError. vfs: name
    of a registered SQLite VFS, for tests. Raises the errors of ``errors.py``; a file that is not ours is never
    written to.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        key: Key | None = None,
        durability: str = "power",
        lock_wait_s: float = 30.0,
        vfs: str | None = None,
    ) -> None:
        check_driver()
        self.path = path
        # What lies beside a file lies beside the one that a link leads to: SQLite follows links too.
        self.file = None if path is None else Path(os.path.realpath(path))
        self.durability = durability
        self.lock_wait_s = lock_wait_s
        self.key = key
        self._closed = False
        self._lock = threading.RLock()
        self._pool = threading.Condition()
        self._idle: list[apsw.Connection] = []
        self._out = 0  # readers in use
        self._writer: apsw.Connection | None = None
        self.read_only = self.file is not None and opening.is_read_only(self.file)
        if self.file is not None and not self.read_only:
            opening.create_private(self.file)
        self.opening = opening.Opening(self.file, durability, lock_wait_s, self.read_only, vfs)
        with self._mapped():
            self._writer = self._first_connection()
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
            with schema.whole(writer):
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

    def derived(self, label: str) -> bytes | None:
        """32 bytes made of the file's key for another use (HKDF's idea: an HMAC of a label); None without a key."""
        if self.opening.raw_key is None:
            return None
        secret = bytes.fromhex(self.opening.raw_key.removeprefix("raw:")[: 2 * KEY_BYTES])
        return hmac.digest(secret, f"localmem {label}".encode(), "sha256")

    @contextlib.contextmanager
    def only_connection(self) -> Iterator[apsw.Connection]:
        """The writer, with every reader of this process closed; waits for those in use. LockedError if they stay."""
        with self._mapped(), self._lock:
            with self._pool:
                if not self._pool.wait_for(lambda: self._out == 0, timeout=self.lock_wait_s):
                    raise LockedError(
                        f"another thread went on reading {self.path} for {self.lock_wait_s:g} s; try again"
                    )
                for reader in self._idle:
                    reader.close()
                self._idle = []
            yield self._the_writer()

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

    def _first_connection(self) -> apsw.Connection:
        """A connection to a file that has our schema. Another process may make the same file meanwhile, with a salt
        of its own: then once more."""
        while True:
            header = self._unlock()
            try:
                return self._prepared(self.opening.connect(WRITER_CACHE_KIB))
            except apsw.NotADBError:
                if self.file is None or header or not opening.header_of(self.file, self.opening.vfs):
                    raise

    def _prepared(self, writer: apsw.Connection) -> apsw.Connection:
        try:
            self._prepare(writer)
        except BaseException:
            writer.close()
            raise
        return writer

    def _unlock(self) -> bytes:
        """Find out how the file is to be opened; returns its header as it was."""
        if self.file is None:
            return b""
        header = opening.header_of(self.file, self.opening.vfs)
        self._file = _identity_of(self.file)
        raw_key = opening.raw_key(self.file, header, self.key, self.opening.vfs)
        self.opening = replace(self.opening, raw_key=raw_key)
        return header

    def _connect(self, cache_kib: int) -> apsw.Connection:
        """One more connection. It has read something: from then on nobody can put another file in this one's place."""
        connection = self.opening.connect(cache_kib)
        try:
            connection.execute("select 1 from sqlite_schema limit 1").fetchall()
            if self.file is not None and _identity_of(self.file) != self._file:
                raise ConflictError(f"{self.path} was replaced by another file meanwhile; open it again")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, writer: apsw.Connection) -> None:
        application, version, empty = schema.identity(writer)
        if not empty and application != schema.APPLICATION_ID:
            raise NotOurFileError(f"{self.path} is a SQLite file of another program; give localmem a path of its own")
        if version > schema.SCHEMA_VERSION:
            raise SchemaError(
                f"{self.path} has schema {version}, this localmem knows {schema.SCHEMA_VERSION}: "
                "upgrade localmem to open it"
            )
        if self.file is not None and not self.read_only:
            opening.until_free(lambda: writer.execute("pragma journal_mode = wal").fetchall(), self.lock_wait_s)
            if self.key is not None and opening.header_of(self.file, self.opening.vfs).startswith(opening.PLAIN):
                raise KeyRefusedError(f"{self.path} was not encrypted though a key was given; nothing was written")
        if version < schema.SCHEMA_VERSION:
            if self.read_only:
                raise ReadOnlyError(f"{self.path} is read-only and has schema {version}; it can't be migrated")
            schema.migrate(writer)

    # ---------------------------------------------------------------- errors

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except LocalmemError:
            raise
        except apsw.Error as error:
            raise translate(error, self.path or ":memory:", self.lock_wait_s, encrypted=self.key is not None) from error


def _identity_of(path: Path) -> tuple[int, int]:
    """Which file a name stands for: another one after a rename over it."""
    found = path.stat()
    return found.st_dev, found.st_ino


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
