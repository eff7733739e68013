"""A file as it lies on the disk: made small and whole, its free pages and side files counted, its bytes read."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmem.db import opening, whole_file
from localmem.db.database import Database
from localmem.db.driver import apsw
from localmem.errors import LockedError


@dataclass(frozen=True, slots=True)
class Structure:
    """What could hold old pages: 0, 0, nothing, nothing once a file was made compact."""

    free_pages: int
    wal_bytes: int
    journals: tuple[str, ...]  # names of side files that hold pages
    leftovers: tuple[str, ...]  # names of copies that a rewriting left

    @property
    def clean(self) -> bool:
        return not (self.free_pages or self.wal_bytes or self.journals or self.leftovers)


def compact(database: Database) -> str:
    """Write the file anew without free pages, and empty its WAL; "" or why that could not be done."""
    with database.only_connection() as writer:
        if database.file is None:
            writer.execute("vacuum")
            return ""
        reason = _no_room(database.file)
        if reason:
            return reason
        try:
            writer.execute("vacuum")
            [(busy, _, _)] = writer.execute("pragma wal_checkpoint(truncate)").fetchall()
        except (apsw.BusyError, apsw.LockedError):
            return f"another program kept the file locked for {database.lock_wait_s:g} s"
        except apsw.FullError:
            return "the disk is full: writing the file anew needs twice its size"
        return f"another program went on reading the file for {database.lock_wait_s:g} s" if busy else ""


def settle(database: Database) -> None:
    """Bring what was committed from the WAL into the file and empty that, if nobody reads."""
    with contextlib.suppress(apsw.Error, LockedError), database.only_connection() as writer:
        writer.execute("pragma wal_checkpoint(truncate)").fetchall()


def _no_room(path: Path) -> str:
    """VACUUM holds the new file in memory (no temporary file may tell what is in an encrypted one), then in the WAL."""
    wal = Path(f"{path}-wal")
    size = path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    free = shutil.disk_usage(path.parent).free
    if free < 2 * size:
        return f"the disk has {free >> 20} MiB free; writing the file anew needs {2 * size >> 20} MiB"
    memory = _free_memory()
    if memory is not None and memory < 1.5 * size:
        return f"{memory >> 20} MiB of memory are free; writing the file anew needs {3 * size >> 21} MiB"
    return ""


def _free_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


@contextlib.contextmanager
def still(database: Database) -> Iterator[apsw.Connection]:
    """The writer, while nobody else can write. Nothing is written."""
    with database.only_connection() as writer:
        writer.execute("begin immediate")
        try:
            yield writer
        finally:
            writer.execute("rollback")


def structure(database: Database, writer: apsw.Connection) -> Structure:
    free = int(str(writer.pragma("freelist_count")))
    if database.file is None:
        return Structure(free, 0, (), ())
    wal, journal = Path(f"{database.file}-wal"), Path(f"{database.file}-journal")
    return Structure(
        free,
        wal.stat().st_size if wal.exists() else 0,
        (journal.name,) if journal.exists() else (),
        tuple(each.name for each in whole_file.leftovers(database.file)),
    )


def scans(database: Database) -> Iterator[tuple[str, Callable[[int, int], bytes], int]]:
    """(what it is, read(amount, offset), bytes) of the file as it lies there and, of an encrypted one, of its pages as
    SQLite sees them."""
    if database.file is None:
        return
    file = opening.bare_file(database.file, database.opening.vfs)
    try:
        yield "file", file.xRead, file.xFileSize()
    finally:
        file.xClose()
    if database.opening.raw_key is not None:
        with _decrypted(database) as (read, size):
            yield "decrypted pages", read, size


@contextlib.contextmanager
def _decrypted(database: Database) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    """A VFS above the one that decrypts sees what that gives to SQLite: every page, free ones and their unused ends."""
    assert database.file is not None
    assert database.opening.raw_key is not None
    shim = shim_over(database.opening.vfs or apsw.vfs_names()[0])
    connection = apsw.Connection(os.fspath(database.file), flags=apsw.SQLITE_OPEN_READONLY, vfs=shim.name)
    try:
        opening.unlock(connection, database.opening.raw_key)
        page, file = int(str(connection.pragma("page_size"))), shim.opened[-1]
        yield (lambda amount, offset: _aligned(file, page, amount, offset)), file.xFileSize()
    finally:
        connection.close()
        shim.opened.clear()


def _aligned(file: Any, page: int, amount: int, offset: int) -> bytes:
    first, last = offset // page, (offset + amount - 1) // page
    content = b"".join(bytes(file.xRead(page, n * page)) for n in range(first, last + 1))
    return content[offset - first * page : offset - first * page + amount]


class _Shim(apsw.VFS):
    def __init__(self, base: str) -> None:
        self.base, self.name = base, f"localmem-pages-{base}"
        self.opened: list[apsw.VFSFile] = []
        super().__init__(self.name, base=base)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        file = apsw.VFSFile(self.base, name, flags)
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            self.opened.append(file)
        return file


_shims: dict[str, _Shim] = {}  # by the VFS they stand on; SQLite keeps a pointer to each for the life of the process


def shim_over(base: str) -> _Shim:
    """A VFS above that one, which remembers the files that were opened through it."""
    if base not in _shims:
        _shims[base] = _Shim(base)
    return _shims[base]
