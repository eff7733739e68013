"""A SQLite file of another program, only read: nothing in its schema is trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from localmem.db.driver import Tx, apsw, check_driver
from localmem.errors import CorruptFileError, LockedError, StorageError


@contextlib.contextmanager
def foreign(path: Path) -> Iterator[Tx]:
    """One consistent view of the file. LockedError while its program writes, CorruptFileError for a damaged one or one
    that is no SQLite file, StorageError where it can't be read."""
    check_driver()
    connection = None
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        connection.set_busy_timeout(5_000)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        connection.execute("pragma trusted_schema = off")
        connection.execute("begin")
        yield connection
    except (apsw.BusyError, apsw.LockedError):
        raise LockedError(f"{path} is being written to; close the program that uses it and try again") from None
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise CorruptFileError(f"{path} is damaged, or no SQLite file ({type(error).__name__})") from None
    except apsw.Error as error:
        code = f"{type(error).__name__}, extended code {getattr(error, 'extendedresult', 0)}"
        hint = "check that it may be read; if its program was killed while writing, let that open it once"
        raise StorageError(f"{path} can't be read ({code}); {hint}") from None
    finally:
        if connection is not None:
            connection.close()


def tables(tx: Tx) -> set[str]:
    """The names of its tables; a view that only looks like one is not among them."""
    return {name for (name,) in tx.execute("select name from sqlite_schema where type = 'table'")}
