"""What is left of a damaged file, made into a sound one: rows are known by their shape, what is missing around them is
put up again from other rows and from the indexes, and what contradicts itself is settled towards the past: a memory
whose current wording is lost must not come back with an older one as if that were true today.

Vectors, word indexes, names and statistics are made anew: a wrong byte in them could not be seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from localmem import rank
from localmem.db import schema
from localmem.db.btree import INDEX_INNER, INDEX_LEAF, TABLE_LEAF, Cell, Garbled, Trees, trees
from localmem.db.opening import Opening
from localmem.errors import NotOurFileError, SchemaError

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.db.btree import Value
    from localmem.db.damaged import Opened

# Of which nothing can be made anew. The audit chain is read to tell how much of it there is; see salvaging.py.
TABLES = (
    "setting", "owner", "episode", "message", "memory", "version", "evidence", "contested", "decision", "audit", "purge"
)  # fmt: skip
LOST_AND_FOUND = "salvaged"  # run_id of what nobody's name could be found for
_TYPES: dict[str, tuple[type, ...]] = {"INTEGER": (int,), "TEXT": (str,), "BLOB": (bytes,), "REAL": (int, float)}
_JSON = {  # columns of JSON, and what stands for nothing
    "metadata": "{}", "probabilities": "{}", "fingerprint": "{}", "guards": "[]", "neighbours": "[]", "targets": "[]",
    "detail": "{}",
}  # fmt: skip
_WORDS = {*_JSON, "text", "content", "grams", "fact", "quote", "name", "reason", "error", "actor", "certificate"}
# Entries of these indexes tell of rows that are lost: (table, its columns).
_HINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hint_owner": ("owner", ("token", "id")),
    "hint_memory": ("memory", ("owner_id", "seq", "id")),
    "hint_agent": ("memory", ("agent_id", "seq", "id")),
    "hint_run": ("memory", ("run_id", "seq", "id")),
    "hint_expiring": ("memory", ("owner_id", "expires_at", "id")),
    "hint_taken_back": ("memory", ("owner_id", "delete_event_at", "id")),
    "hint_head": ("memory", ("head", "id")),
    "hint_episode": ("episode", ("owner_id", "seq", "id")),
    "hint_pending": ("episode", ("owner_id", "event_at", "seq", "id")),
    "hint_message": ("message", ("episode_id", "position", "id")),
    "hint_version": ("version", ("memory_id", "number", "id")),
}
# By what rows with texts are told apart, since a wrong number of one must not take the place of another.
_PLACES = {"message": ("episode_id", "position"), "version": ("memory_id", "number")}
_EARLIEST, _LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999  # of the years 1 to 9999, in microseconds


@dataclass(frozen=True, slots=True)
class Shape:
    """What a row of a table, or an entry of an index, looks like on its page."""

    name: str
    table: str
    columns: tuple[str, ...]  # in the order of the record
    types: tuple[tuple[type, ...], ...]
    needed: tuple[bool, ...]  # never null
    key: tuple[str, ...]
    leaf: int  # TABLE_LEAF, or INDEX_LEAF of an index and of a table without rowids
    alias: int | None  # the column that is the rowid, and null in the record
    shortest: int  # rows of before a column was added end before it
    whole: bool = True  # False: an index of some rows only

    def is_on(self, table: str, columns: tuple[str, ...]) -> bool:
        """Whether it is the index of these columns."""
        return (self.table, self.columns) == (table, columns) and self.name != table

    @property
    def _rowid(self) -> str | None:
        return None if self.alias is None else self.columns[self.alias]

    def row(self, cell: Cell) -> tuple[Value, ...] | None:
        """The values of a row in the order of the columns; None where it is no row of this table."""
        values = list(cell.values)
        if not self.shortest <= len(values) <= len(self.columns):
            return None
        values += [None] * (len(self.columns) - len(values))
        if self.alias is not None:
            if values[self.alias] is not None:
                return None
            values[self.alias] = cell.rowid
        for value, types, needed, column in zip(values, self.types, self.needed, self.columns, strict=True):
            if value is None:
                if needed and column != self._rowid:
                    return None
            elif type(value) is Garbled:
                if column not in _WORDS:
                    return None
            elif type(value) not in types:
                return None
        return tuple(values)


@dataclass(slots=True)
class Tally:
    """Of one table. ``whole``: it is known that every row is there that was in the file."""

    read: int = 0
    lost: int = 0  # as far as an index, or the numbers of what is left, tell
    rebuilt: int = 0  # rows put up again from others: what only they told is lost
    left_out: int = 0  # rows that mean nothing without others that are lost
    whole: bool = True


@dataclass(slots=True)
class Found:
    """What was read of a damaged file."""

    tables: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in TABLES})
    damaged: dict[int, str] = field(default_factory=dict)  # page -> the table or index it is of, "" where unknown
    altered: list[dict[str, Any]] = field(default_factory=list)  # texts that are not as they were written
    settings: dict[str, str] = field(default_factory=dict)
    incomplete_purges: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing is lost that can't be made anew."""
        return not self.altered and all(
            tally.whole and not (tally.lost or tally.rebuilt or tally.left_out) for tally in self.tables.values()
        )


# -------------------------------------------------------------------- shapes


def shapes(number: int | None) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """(tables, indexes on them) of a schema, None: of the newest. SchemaError for one that is newer than this program.

    Read from an empty file of that schema, so that no second list of columns has to be kept.
    """
    newest = schema.SCHEMA_VERSION
    if number is not None and number > newest:
        raise SchemaError(f"the file has schema {number}, this localmem knows {newest}: upgrade localmem")
    tables: dict[str, Shape] = {}
    connection = Opening(None, "process", 0.0).connect(1024)
    with contextlib.closing(connection):
        for step, statements in schema.migrations(after=0):
            if step <= (number or newest):
                connection.execute(statements)
                before = {name: shape.shortest for name, shape in tables.items()}
                tables = {name: _table(connection, name, before) for name in _tables(connection)}
        indexes = {shape.name: shape for each in tables.values() for shape in _indexes(connection, each)}
    return tables, indexes


def _tables(tx: Tx) -> list[str]:
    there = {name for (name,) in tx.execute("select name from sqlite_schema where type = 'table'")}
    return [name for name in TABLES if name in there]


def _table(tx: Tx, name: str, before: Mapping[str, int]) -> Shape:
    columns = tx.execute(f"select name, type, \"notnull\", pk from pragma_table_xinfo('{name}')").fetchall()
    [(without_rowid,)] = tx.execute("select wr from pragma_table_list where name = ?", (name,)).fetchall()
    keys = [column for column in columns if column[3]]
    if without_rowid:  # its record begins with the key
        columns = [*sorted(keys, key=lambda column: int(column[3])), *(c for c in columns if not c[3])]
    alias = None if without_rowid or len(keys) != 1 or keys[0][1] != "INTEGER" else columns.index(keys[0])
    return Shape(
        name,
        name,
        tuple(column[0] for column in columns),
        tuple(_TYPES[column[1]] for column in columns),
        tuple(bool(column[2] or column[3]) for column in columns),
        tuple(column[0] for column in keys),
        INDEX_LEAF if without_rowid else TABLE_LEAF,
        alias,
        min(len(columns), before.get(name, len(columns))),
    )


def _indexes(tx: Tx, table: Shape) -> Iterator[Shape]:
    types = dict(zip(table.columns, table.types, strict=True))
    for name, partial in tx.execute(f"select name, partial from pragma_index_list('{table.name}')").fetchall():
        rows = tx.execute(f"select name from pragma_index_xinfo('{name}') order by seqno").fetchall()
        columns = tuple(column or table.key[0] for (column,) in rows)  # without a name: the rowid
        yield Shape(
            name,
            table.name,
            columns,
            tuple(types[column] for column in columns),
            tuple(False for _ in columns),
            columns,
            INDEX_LEAF,
            None,
            len(columns),
            not partial,
        )


# -------------------------------------------------------------------- reading


def gather(tx: Tx, source: Opened) -> Found:
    """Read every row that is left into temporary tables (found_<table>, hint_…). Raises NotOurFileError for none."""
    tables, indexes = shapes(source.schema)
    newest, _ = shapes(None)
    _make_room(tx, newest)
    known = trees(source.pages)
    reading = _Reading(tx, tables, indexes, newest)
    # Rows of pages that no tree leads to come last: a page out of use must not put its rows before those in use.
    for number in [*known.of, *(each for each in range(1, source.pages.count + 1) if each not in known.of)]:
        reading.page(source, number, known.of.get(number))
    found = reading.found
    if not any(tally.read for tally in found.tables.values()):
        raise NotOurFileError("nothing of localmem could be read in the file: it is of another program, or all is lost")
    found.damaged = {**dict.fromkeys(source.unreadable, ""), **known.damaged}
    _count(tx, known, reading)
    found.settings = dict(tx.execute("select name, value from temp.found_setting").fetchall())
    [(found.incomplete_purges,)] = tx.execute("select count(*) from temp.found_purge where state <> 'done'").fetchall()
    return found


def _make_room(tx: Tx, tables: Mapping[str, Shape]) -> None:
    for name, shape in tables.items():
        key = ", ".join(_PLACES.get(name, shape.key))
        tx.execute(f"create temp table found_{name} ({', '.join(shape.columns)}, rebuilt, primary key ({key}))")
        if name in _PLACES:
            tx.execute(f"create index temp.found_{name}_ids on found_{name} (id)")
    for name, (_, columns) in _HINTS.items():
        tx.execute(f"create temp table {name} ({', '.join(columns)}, primary key ({', '.join(columns)}))")
        tx.execute(f"create index temp.{name}_ids on {name} ({columns[-1]})")


class _Reading:
    """Rows on their way from pages into temporary tables."""

    def __init__(
        self, tx: Tx, tables: Mapping[str, Shape], indexes: Mapping[str, Shape], newest: Mapping[str, Shape]
    ) -> None:
        self.tx, self.tables, self.indexes, self.newest = tx, tables, indexes, newest
        self.found = Found()
        self.hints = {
            each.name: name for name, wanted in _HINTS.items() for each in indexes.values() if each.is_on(*wanted)
        }
        self.entries: dict[str, int] = {}  # of each index
        self.unread: set[str] = set()  # tables and indexes of which a cell made no sense
        self.unnumbered: set[str] = set()  # tables of which a row has lost its number

    def page(self, source: Opened, number: int, name: str | None) -> None:
        """Read a page that belongs to a table or index, or where that is not known."""
        kind, lost = source.pages.kind(number), source.pages.cells_lost
        if kind not in (TABLE_LEAF, INDEX_LEAF, INDEX_INNER):
            return
        leaf = TABLE_LEAF if kind == TABLE_LEAF else INDEX_LEAF
        for cell in source.pages.cells(number):
            if name is not None and name in self.indexes:
                self._entry(self.indexes[name], cell)
            elif not self._row(leaf, cell) and name is not None:
                self.unread.add(name)
        if source.pages.cells_lost > lost and name is not None:
            self.unread.add(name)

    def _entry(self, index: Shape, cell: Cell) -> None:
        values = index.row(cell)
        if values is None:
            self.unread.add(index.name)
            return
        self.entries[index.name] = self.entries.get(index.name, 0) + 1
        if index.name in self.hints:
            places = ", ".join("?" * len(values))
            self.tx.execute(f"insert or ignore into temp.{self.hints[index.name]} values ({places})", values)

    def _row(self, leaf: int, cell: Cell) -> bool:
        """Put a row where it belongs. By its own shape alone, since a wrong pointer may lead to a page of another."""
        for shape in self.tables.values():
            values = shape.row(cell) if shape.leaf == leaf else None
            if values is not None:
                self._keep(shape, values)
                return True
        return False

    def _keep(self, shape: Shape, values: Sequence[Value]) -> None:
        known = self.newest[shape.name].columns  # an older schema had others
        row = {name: value for name, value in zip(shape.columns, values, strict=True) if name in known}
        if shape.alias is not None and values[shape.alias] is None:
            self.unnumbered.add(shape.name)
        self._mend(shape.name, row)
        names, places = ", ".join(row), ", ".join("?" * len(row))
        self.tx.execute(
            f"insert or ignore into temp.found_{shape.name} ({names}) values ({places})", tuple(row.values())
        )
        self.found.tables[shape.name].read += self.tx.changes()

    def _mend(self, table: str, row: dict[str, Any]) -> None:
        """What can be made anew of a row's own text is; a text that is not as it was written is noted. A time that is
        none becomes another one of the row's."""
        times = [name for name in row if name.endswith("_at") or name in ("valid_from", "valid_to", "at")]
        right = [row[name] for name in times if row[name] is not None and _EARLIEST <= row[name] <= _LATEST]
        row.update({name: (right or [0])[0] for name in times if row[name] is not None and row[name] not in right})
        place = _PLACES.get(table)
        text = row.get("content" if table == "message" else "text")
        if place is not None and text is not None:
            altered = type(text) is Garbled
            if table == "version":
                made = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
                altered = altered or made != row["hash"]
                row.update(hash=made, words=rank.word_count(text), grams=rank.grams(text))
            if altered:
                self.found.altered.append({"of": table, "id": row[place[0]], "number": row[place[1]]})
        for column, nothing in _JSON.items():
            if row.get(column) is not None and not _is_json(row[column], type(json.loads(nothing))):
                row[column] = nothing


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except ValueError:
        return False


def _count(tx: Tx, known: Trees, reading: _Reading) -> None:
    """How many rows are lost, by the indexes that have an entry for each."""
    broken = {*known.damaged.values(), *reading.unread}
    for name in reading.tables:
        tally = reading.found.tables[name]
        full = [each for each in reading.indexes.values() if each.table == name and each.whole]
        counts = {each.name: reading.entries.get(each.name, 0) for each in full if each.name in known.roots}
        tally.lost = max(0, *(count - tally.read for count in counts.values()), 0)
        by_index = any(count == tally.read and index not in broken for index, count in counts.items())
        by_pages = name in known.roots and name not in broken
        tally.whole = name not in reading.unnumbered and (by_index or by_pages)
    [(last, rows)] = tx.execute("select coalesce(max(seq), 0), count(*) from temp.found_audit").fetchall()
    told = tx.execute("select value from temp.found_setting where name = 'audit_head'").fetchone()
    end = max(int(last), _leading_number(told[0]) if told else 0)  # its numbers have no gaps
    reading.found.tables["audit"].lost = max(0, end - int(rows))


def _leading_number(text: str) -> int:
    digits = text.partition(":")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 16 else 0
