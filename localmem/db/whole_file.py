"""What needs a file for itself: written anew under another key, and renamed over the old one."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from localmem.db import opening
from localmem.db.database import READER_CACHE_KIB, Database
from localmem.db.driver import apsw
from localmem.errors import CorruptFileError, InvalidInputError, LockedError, ReadOnlyError, StorageError
from localmem.files import sync_folder
from localmem.keys import SALT_BYTES, Key

_NEW = ".new-"  # between a file's name and a random one: the file that is to take its place
_BLOCK_BYTES = 1 << 20


@contextlib.contextmanager
def alone(database: Database) -> Iterator[apsw.Connection]:
    """The writer of a file that no other connection of any process has open. LockedError where one stays.

    The journal is part of the file then: there is no WAL beside it.
    """
    if database.file is None:
        raise InvalidInputError("a memory-only store has no file; nothing to do")
    if database.read_only:
        raise ReadOnlyError(f"{database.file} is read-only; copy it to a writable folder to change it")
    with database.only_connection() as writer:
        try:
            # SQLite leaves WAL mode only where no other connection is open, in this process or another.
            opening.until_free(lambda: writer.execute("pragma journal_mode = delete").fetchall(), database.lock_wait_s)
        except (apsw.BusyError, apsw.LockedError):
            raise LockedError(
                f"another program has {database.file} open; close it and try again (waited {database.lock_wait_s:g} s)"
            ) from None
        writer.execute("pragma locking_mode = exclusive; begin exclusive; commit")
        try:
            yield writer
        finally:
            with contextlib.suppress(apsw.Error):  # where the disk fails, the next opening sets it
                writer.execute("pragma locking_mode = normal; pragma journal_mode = wal").fetchall()


def rewrite(
    database: Database, key: Key | None, finish: Callable[[Path, Key | None], None], *, overwrite: bool = False
) -> None:
    """Write the file anew under another key (None: without one), and put the new one in its place.

    The new file is written beside the old one, compared with it table by table, handed to ``finish`` (its path and
    key), synced and renamed over the old one; until then the old one is as it was. overwrite: the old one's bytes are
    overwritten with zeros afterwards. The database is closed then, also when it fails.
    """
    try:
        with alone(database) as writer:
            assert database.file is not None
            _remove_leftovers(database.file)
            new = database.file.with_name(f"{database.file.name}{_NEW}{secrets.token_hex(4)}")
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            try:
                _copy_into(writer, new, key)
                _compare(writer, database, new, key)
                finish(new, key)
                _put_in_place(new, database.file, overwrite=overwrite)
            except BaseException:
                _remove_leftovers(database.file)
                raise
    finally:
        database.close()


def leftovers(path: Path) -> list[Path]:
    """Files of a rewriting that was cut off."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}{_NEW}*"))


def _remove_leftovers(path: Path) -> None:
    for each in leftovers(path):
        each.unlink(missing_ok=True)


def _copy_into(writer: apsw.Connection, new: Path, key: Key | None) -> None:
    salt = os.urandom(SALT_BYTES)
    secret = "" if key is None else f"raw:{key.raw(salt).hex()}{salt.hex()}"
    try:
        writer.execute("vacuum into ?", (f"{new.as_uri()}?cipher={opening.CIPHER}&key={secret}",))
    except apsw.CantOpenError:  # whose text shows the key
        raise StorageError(f"{new} can't be written; check that the folder may be written") from None


def _compare(writer: apsw.Connection, database: Database, new: Path, key: Key | None) -> None:
    """Raise CorruptFileError unless the new file is sound, has what the old one has, and is encrypted if it should."""
    header = opening.header_of(new, database.opening.vfs)
    if header.startswith(opening.PLAIN) is not (key is None):
        raise CorruptFileError(f"{new} was not written as asked; nothing was changed")
    raw_key = opening.raw_key(new, header, key, database.opening.vfs)
    made = opening.Opening(new, database.durability, database.lock_wait_s, False, database.opening.vfs, raw_key)
    with contextlib.closing(made.connect(READER_CACHE_KIB)) as reader:
        if reader.execute("pragma integrity_check(1)").fetchall() != [("ok",)]:
            raise CorruptFileError(f"the copy of {database.file} is not sound; nothing was changed")
        for (table,) in writer.execute("select name from sqlite_schema where type = 'table'").fetchall():
            count = f'select count(*) from "{table}"'
            if writer.execute(count).fetchall() != reader.execute(count).fetchall():
                raise CorruptFileError(f"the copy of {database.file} lacks rows of {table}; nothing was changed")


def _put_in_place(new: Path, path: Path, *, overwrite: bool) -> None:
    if Path(f"{new}-wal").exists():  # closing it has brought all into the file, or the disk fails
        raise StorageError(f"{new} could not be written to its end; nothing was changed")
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    old = os.open(path, os.O_RDWR) if overwrite else None
    try:
        os.replace(new, path)
        sync_folder(path.parent)
        if old is not None:
            _overwrite(old)
    finally:
        if old is not None:
            os.close(old)


def _overwrite(handle: int) -> None:
    left = os.fstat(handle).st_size
    while left > 0:
        left -= os.write(handle, bytes(min(left, _BLOCK_BYTES)))
    os.fsync(handle)
