"""apsw and sqlite-vec, found and checked; their errors as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from localmem.errors import (
    CorruptFileError,
    InstallationError,
    KeyRefusedError,
    LocalmemError,
    LockedError,
    NotOurFileError,
    ReadOnlyError,
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


def translate(error: apsw.Error, path: Path | str, lock_wait_s: float, *, encrypted: bool = False) -> LocalmemError:
    """The error of our tree for one of SQLite's, saying what to do. Never carries bound values."""
    code = f"{type(error).__name__}, extended code {getattr(error, 'extendedresult', 0)}"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return LockedError(
            f"{path} stayed locked by another process for {lock_wait_s:g} s; try again, or raise Limits.lock_wait_s"
        )
    if isinstance(error, apsw.NotADBError) and encrypted:
        return KeyRefusedError(
            f"{path} can't be opened with this key. Either the key is another one than the file was made with, or the "
            "file is not encrypted by localmem, or its header is damaged: these can't be told apart. Try the right "
            "key; if it is right, restore a backup, or run `localmem salvage OUT`"
        )
    if isinstance(error, apsw.NotADBError):
        return NotOurFileError(
            f"{path} is not a localmem file, or its header is damaged; nothing was changed. If it is one, "
            "restore a backup, or run `localmem salvage OUT`"
        )
    if isinstance(error, apsw.CorruptError):
        return CorruptFileError(
            f"{path} is damaged ({code}); restore a backup, or run `localmem salvage OUT`, which writes what "
            "can be read into a new file"
        )
    if isinstance(error, apsw.ReadOnlyError):
        return ReadOnlyError(f"{path} or its folder is read-only ({code}); nothing was written")
    if isinstance(error, apsw.FullError):
        return StorageError(f"the disk of {path} is full; nothing was written. Free some space and try again")
    if isinstance(error, apsw.CantOpenError):
        return StorageError(f"{path} can't be opened ({code}); check that the folder exists and may be written")
    if isinstance(error, apsw.IOError):
        return StorageError(f"reading or writing {path} failed ({code}); nothing was half-written")
    return StorageError(f"SQLite refused a statement on {path} ({code}); nothing was written")


check_driver()

__all__ = ["APSW_CURE", "Tx", "apsw", "check_driver", "sqlite_vec", "translate"]
