"""The schema of a file: which it has, and the steps to the newest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import resources

from localmem.db.driver import apsw

APPLICATION_ID = 0x6C6D656D  # "lmem"
SCHEMA_VERSION = 9  # the number of the newest file in sql/


def identity(writer: apsw.Connection) -> tuple[int, int, bool]:
    """(application id, schema version, whether the file is empty)."""
    statement = (
        "select a.application_id, u.user_version, (select count(*) from sqlite_schema) "
        "from pragma_application_id a, pragma_user_version u"
    )
    [row] = writer.execute(statement).fetchall()
    application, version, objects = (int(str(value)) for value in row)
    return application, version, objects == 0


def migrate(writer: apsw.Connection) -> None:
    """Every step that is missing, in one transaction."""
    with whole(writer):
        _, version, _ = identity(writer)  # another process may have been faster
        for number, statements in migrations(after=version):
            writer.execute(statements)
            writer.execute(f"pragma user_version = {number}")
        writer.execute(f"pragma application_id = {APPLICATION_ID}")


@contextlib.contextmanager
def whole(writer: apsw.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT. A COMMIT that fails leaves the transaction open (full disk): it is rolled back too."""
    writer.execute("begin immediate")
    try:
        yield
        writer.execute("commit")
    except BaseException:
        if writer.in_transaction:
            writer.execute("rollback")
        raise


def migrations(after: int) -> list[tuple[int, str]]:
    """(number, SQL) of every schema step above ``after``, in order."""
    folder = resources.files("localmem") / "sql"
    steps = [(int(f.name[:4]), f.read_text("utf-8")) for f in folder.iterdir() if f.name[:4].isdigit()]
    return sorted(step for step in steps if step[0] > after)


def sql_file(name: str) -> str:
    """The text of one file of ``localmem/sql``."""
    return (resources.files("localmem") / "sql" / name).read_text("utf-8")
