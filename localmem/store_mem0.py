"""The SQLite files that mem0 leaves: the points of its local Qdrant, and its history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localmem.db.foreign import foreign, tables
from localmem.errors import InvalidInputError

POINT_BYTES_MAX = 16_000_000  # a point with 4,096 dimensions has 40 KB


@dataclass(frozen=True, slots=True)
class Event:
    """A row of mem0's history, times as they are written there."""

    memory_id: str
    old: str | None
    new: str | None
    event: str
    created_at: str | None
    updated_at: str | None


def points(path: Path) -> Iterator[bytes | None]:
    """The pickled points of a collection, the latest first; None for one that is too large or no bytes.

    InvalidInputError for another SQLite file; the errors of db.foreign.
    """
    with foreign(path) as tx:
        if "points" not in tables(tx):
            raise InvalidInputError(f"{path} is no collection of Qdrant's local mode: it has no table 'points'")
        rows = tx.execute(
            "select iif(typeof(point) = 'blob' and length(point) <= ?, point, null) from points order by rowid desc",
            (POINT_BYTES_MAX,),
        )
        for (point,) in rows:
            yield point


def events(path: Path) -> list[Event]:
    """mem0's history in the order of writing. InvalidInputError for another SQLite file; the errors of db.foreign."""
    with foreign(path) as tx:
        if "history" not in tables(tx):
            raise InvalidInputError(f"{path} is no history of mem0: it has no table 'history'")
        columns = {name for (name,) in tx.execute("select name from pragma_table_info('history')")}
        if not columns.issuperset(_COLUMNS):
            raise InvalidInputError(
                f"{path} is a history of another mem0 than 1.x and 2.x; open it once with one of them"
            )
        rows = tx.execute(
            "select memory_id, old_memory, new_memory, event, created_at, updated_at from history order by rowid"
        ).fetchall()
    return [Event(*row) for row in rows if isinstance(row[0], str) and all(_text(cell) for cell in row[1:])]


_COLUMNS = ("memory_id", "old_memory", "new_memory", "event", "created_at", "updated_at")


def _text(cell: object) -> bool:
    return cell is None or isinstance(cell, str)
