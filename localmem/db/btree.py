"""SQLite's b-tree pages read one by one, so that a damaged page takes its own rows with it and nothing else.

SQLite itself gives up a scan at the first page that is wrong. The format is that of https://sqlite.org/fileformat2.html,
sections 1.5 to 2.6; nothing here writes.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

Value: TypeAlias = int | float | str | bytes | None

TABLE_INNER, TABLE_LEAF, INDEX_INNER, INDEX_LEAF = 5, 13, 2, 10  # the first byte of a page
_KINDS = {TABLE_INNER: TABLE_LEAF, TABLE_LEAF: TABLE_LEAF, INDEX_INNER: INDEX_LEAF, INDEX_LEAF: INDEX_LEAF}
_HEADER_BYTES = 100  # of the file, before the b-tree header of page 1
_COLUMNS_MAX = 64  # of a row; localmem's largest table has 20


class Garbled(str):
    """A text some of whose bytes were no text: those are replaced."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a table, or one entry of an index.

    ``rowid``: None in an index and in a table without rowids, and where it is out of order, so another one than it was.
    """

    rowid: int | None
    values: tuple[Value, ...]


@dataclass(slots=True)
class Pages:
    """The pages of a file, by number from 1. ``read`` gives None for one that can't be had."""

    read: Callable[[int], bytes | None]
    count: int
    usable: int  # bytes of a page that SQLite uses; an encrypted one keeps the rest for its nonce and tag
    cells_lost: int = 0  # cells on readable pages that made no sense

    def kind(self, number: int) -> int | None:
        """TABLE_LEAF, INDEX_LEAF, … of a page; None for any other page and for one that can't be read."""
        page = self.read(number)
        kind = None if page is None else page[_start(number)]
        return kind if kind in _KINDS else None

    def cells(self, number: int) -> Iterator[Cell]:
        """What is on a leaf, or on an inner page of an index, as far as it can be read."""
        page, start = self.read(number), _start(number)
        if page is None or page[start] not in (TABLE_LEAF, INDEX_LEAF, INDEX_INNER):
            return
        found = []
        for at in _pointers(page, start, self.usable):
            try:
                found.append(self._cell(page, at, page[start]))
            except (IndexError, ValueError):
                self.cells_lost += 1
        right = _ascending([cell.rowid for cell in found if cell.rowid is not None])
        for cell in found:
            yield cell if cell.rowid is None or cell.rowid in right else Cell(None, cell.values)

    def children(self, number: int) -> Iterator[int]:
        """The pages below an inner page."""
        page, start = self.read(number), _start(number)
        if page is None or page[start] not in (TABLE_INNER, INDEX_INNER):
            return
        for at in _pointers(page, start, self.usable):
            yield int.from_bytes(page[at : at + 4], "big")
        yield int.from_bytes(page[start + 8 : start + 12], "big")

    def _cell(self, page: bytes, at: int, kind: int) -> Cell:
        if kind == INDEX_INNER:
            at += 4
        length, at = _varint(page, at)
        rowid = None
        if kind == TABLE_LEAF:
            rowid, at = _varint(page, at)
        here = self._local(length, kind)
        if at + here > self.usable:
            raise ValueError("a cell that runs over the end of its page")
        payload = page[at : at + here]
        if here < length:
            payload += self._overflow(int.from_bytes(page[at + here : at + here + 4], "big"), length - here)
        return Cell(rowid, _record(payload))

    def _local(self, length: int, kind: int) -> int:
        """How many bytes of a payload stand on the page itself."""
        if not 0 < length <= self.count * self.usable:
            raise ValueError("a payload larger than the file, or empty")
        most = self.usable - 35 if kind == TABLE_LEAF else (self.usable - 12) * 64 // 255 - 23
        if length <= most:
            return length
        least = (self.usable - 12) * 32 // 255 - 23
        fitting = least + (length - least) % (self.usable - 4)
        return fitting if fitting <= most else least

    def _overflow(self, number: int, length: int) -> bytes:
        parts, left = list[bytes](), length
        while left > 0:
            page = self.read(number) if 1 < number <= self.count else None
            if page is None:
                raise ValueError("a page of a long value can't be read")
            parts.append(page[4 : min(self.usable, 4 + left)])
            left -= len(parts[-1])
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)


@dataclass(slots=True)
class Trees:
    """Which page belongs to which table or index, as far as the inner pages tell."""

    roots: dict[str, int]  # of each table and index, by name
    of: dict[int, str] = field(default_factory=dict)  # page -> name
    damaged: dict[int, str] = field(default_factory=dict)  # pages that should be there and are none


def trees(pages: Pages) -> Trees:
    """Walk all trees from the schema. Where that can't be read, nothing is known of whose pages are whose."""
    found = Trees({})
    _walk(pages, found, "sqlite_schema", 1)
    for number in list(found.of):
        for cell in pages.cells(number):
            match cell.values:
                case ("table" | "index", str(name), str(), int(root), *_) if root > 1:
                    found.roots[name] = root
    for name, root in found.roots.items():
        _walk(pages, found, name, root)
    return found


def _walk(pages: Pages, found: Trees, name: str, root: int) -> None:
    """Down one tree. All its pages are of one kind: an index or a table."""
    leaf, waiting = None, [root]
    while waiting:
        number = waiting.pop()
        if number in found.of:
            continue
        kind = pages.kind(number) if 1 <= number <= pages.count else None
        if kind is None or _KINDS[kind] != (leaf or _KINDS[kind]):
            found.damaged.setdefault(number, name)
            continue
        leaf, found.of[number] = _KINDS[kind], name
        waiting += pages.children(number)


# -------------------------------------------------------------------- bytes


def _start(number: int) -> int:
    """Where the b-tree header of a page begins."""
    return _HEADER_BYTES if number == 1 else 0


def _pointers(page: bytes, start: int, usable: int) -> Iterator[int]:
    """Where the cells of a page begin, those within it."""
    head = start + (12 if page[start] in (TABLE_INNER, INDEX_INNER) else 8)
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    for at in range(head, min(head + 2 * count, usable - 1), 2):
        place = int.from_bytes(page[at : at + 2], "big")
        if head + 2 * count <= place < usable:
            yield place


def _ascending(rowids: list[int]) -> set[int]:
    """The rowids of a page but those that break its order: as few as can be left out (patience sorting)."""
    if all(before < after for before, after in pairwise(rowids)):
        return set(rowids)
    tops, before = list[int](), dict[int, int | None]()  # of runs of each length, the smallest that ends one
    for rowid in dict.fromkeys(rowids):
        place = bisect_left(tops, rowid)
        before[rowid] = tops[place - 1] if place else None
        tops[place : place + 1] = [rowid]
    right, last = set[int](), tops[-1] if tops else None
    while last is not None:
        right.add(last)
        last = before[last]
    return right


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number at a place, where it ends). A signed one of 64 bits."""
    value = 0
    for n in range(9):
        byte = data[at + n]
        if n == 8:
            value = value << 8 | byte
            return value - (1 << 64) if value >> 63 else value, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n + 1
    raise AssertionError


_INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)


def _record(payload: bytes) -> tuple[Value, ...]:
    """The values of a row. ValueError where it is none."""
    body, at = _varint(payload, 0)
    if not 1 <= body <= len(payload):
        raise ValueError("a record whose header is longer than itself")
    types = []
    while at < body:
        kind, at = _varint(payload, at)
        types.append(kind)
    if at != body or len(types) > _COLUMNS_MAX:
        raise ValueError("a record whose header ends within a number")
    values, at = list[Value](), body
    for kind in types:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise ValueError("a record of another length than its values")
    return tuple(values)


def _value(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind == 7:
        return float(struct.unpack(">d", _piece(payload, at, 8))[0]), at + 8
    if kind < 7:
        size = _INTEGER_BYTES[kind]
        return int.from_bytes(_piece(payload, at, size), "big", signed=True), at + size
    if kind < 12:
        raise ValueError("a value of a kind that is not used in files")
    size = (kind - 12) // 2
    piece = _piece(payload, at, size)
    return (piece if kind % 2 == 0 else _text(piece)), at + size


def _piece(payload: bytes, at: int, size: int) -> bytes:
    piece = payload[at : at + size]
    if len(piece) != size:
        raise ValueError("a value that runs over the end of its record")
    return piece


def _text(piece: bytes) -> str:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return Garbled(piece.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}"))
    return Garbled(text.replace("\0", "\N{REPLACEMENT CHARACTER}")) if "\0" in text else text
