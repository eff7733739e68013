"""The vectors of owners with many memories, in memory: where a scan of the file would take tens of milliseconds.

A row is kept as signs of random projections, compared by counting bits, and as 8-bit levels, which put the best of
those in order (Charikar 2002, "Similarity estimation techniques from rounding algorithms"). 100,000 rows of 384 numbers
take 50 MB. Rows are only ever added: whether one may be seen is for the caller to ask of the file.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from localmem.db import Tx

if TYPE_CHECKING:
    from localmem.types import Vector, Vectors

ROWS_MIN = 2_000  # memories of an owner from which on this is faster than vec0
BYTES_MAX = 512_000_000  # of all owners of a store; the one not asked for longest goes first
SIGNS = 2  # for each number of a vector
SHORTLIST = 2_000  # rows by bits that are put in order by levels, or 25 times what is wanted
_FRESH_SHARE = 0.25  # more new rows than this share: read the owner's vectors anew


class Matrix:
    """Rows to search. `add` while another thread searches is fine; two threads must not add at once."""

    def __init__(self, dim: int, mean: Vector) -> None:
        self._mean, self._turn = mean, _projection(dim)
        self._count = 0
        self._arrays = _Arrays.of(0, dim)

    @property
    def bytes(self) -> int:
        return self._arrays.bytes

    @property
    def rows(self) -> int:
        return self._count

    def add(self, ids: Any, vectors: Vectors) -> None:
        """``ids`` int64 (rows,), ``vectors`` float32 (rows, dim)."""
        start, stop = self._count, self._count + len(ids)
        if stop > len(self._arrays.ids):
            self._arrays = self._arrays.grown(max(stop, start * 3 // 2))
        rows = self._arrays
        peaks = np.maximum(np.abs(vectors).max(axis=1), 1e-9)
        rows.ids[start:stop] = ids
        rows.scales[start:stop] = peaks / 127
        rows.levels[start:stop] = np.rint(vectors / peaks[:, None] * 127)
        rows.signs[start:stop] = self._signs(vectors)
        self._count = stop  # a search under way goes on with the rows it began with

    def nearest(self, query: Vector, k: int) -> list[int]:
        """Ids of about the k rows with the highest cosine, best first."""
        count, rows = self._count, self._arrays
        best = np.arange(count)
        if count > (wanted := max(SHORTLIST, 25 * k)):
            differing = _ones(rows.signs[:count] ^ self._signs(query[None])[0])
            best = np.argpartition(differing, wanted)[:wanted]
        cosines = (rows.levels[best].astype(np.float32) @ query) * rows.scales[best]
        order = np.argsort(-cosines, kind="stable")[:k]
        found: list[int] = rows.ids[best[order]].tolist()
        return found

    def _signs(self, vectors: Vectors) -> Any:
        return np.packbits((vectors - self._mean) @ self._turn > 0, axis=1).view(np.uint64)


@dataclass(frozen=True)
class _Arrays:
    ids: Any  # int64 (rows,)
    signs: Any  # uint64 (rows, SIGNS * dim / 64)
    levels: Any  # int8 (rows, dim)
    scales: Any  # float32 (rows,)

    @classmethod
    def of(cls, rows: int, dim: int) -> _Arrays:
        words = -(-SIGNS * dim // 64)
        return cls(
            np.empty(rows, np.int64),
            np.empty((rows, words), np.uint64),
            np.empty((rows, dim), np.int8),
            np.empty(rows, np.float32),
        )

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (self.ids, self.signs, self.levels, self.scales))

    def grown(self, rows: int) -> _Arrays:
        wider = _Arrays.of(rows, self.levels.shape[1])
        for name in ("ids", "signs", "levels", "scales"):
            getattr(wider, name)[: len(self.ids)] = getattr(self, name)
        return wider


@cache
def _projection(dim: int) -> Any:
    """Orthogonal directions, (dim, SIGNS * dim rounded up to whole words); the same in every process."""
    random = np.random.default_rng(7)
    width = -(-SIGNS * dim // 64) * 64
    blocks = [np.linalg.qr(random.standard_normal((dim, dim)))[0] for _ in range(-(-width // dim))]
    return np.concatenate(blocks, axis=1)[:, :width].astype(np.float32)


def _ones(words: Any) -> Any:
    """Number of one bits of each row of uint64."""
    if hasattr(np, "bitwise_count"):  # from numpy 2 on
        return np.bitwise_count(words).sum(axis=1, dtype=np.uint16)
    return _bits_of_16()[words.view(np.uint16)].sum(axis=1, dtype=np.uint16)


@cache
def _bits_of_16() -> Any:
    return np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


# -------------------------------------------------------------------- owners


@dataclass(slots=True)
class _Held:
    matrix: Matrix
    revision: int
    newest: int  # id of the newest version it knows of, of any owner
    epoch: str | None


class Matrices:
    """The matrices of one store's owners: made when first asked for, brought up to date by each search."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def nearest(self, tx: Tx, owner: int, query: Vector, k: int) -> list[int] | None:
        """Ids of about the k nearest versions of an owner, seen or not; None where it has too few for this."""
        [(revision, documents, epoch)] = tx.execute(
            "select revision, documents, (select value from setting where name = 'epoch') from owner where id = ?",
            (owner,),
        ).fetchall()
        if documents < ROWS_MIN:
            return None
        with self._lock:
            held = self._held.pop(owner, None)
            if held is None or held.epoch != epoch:
                held = self._read(tx, owner, revision, epoch)
            elif held.revision != revision:
                held = self._updated(tx, owner, held, revision)
            self._held[owner] = held
            while len(self._held) > 1 and sum(each.matrix.bytes for each in self._held.values()) > BYTES_MAX:
                self._held.popitem(last=False)
        return held.matrix.nearest(query, k)

    def _read(self, tx: Tx, owner: int, revision: int, epoch: str | None) -> _Held:
        newest = _newest(tx)
        ids, vectors = self._rows(tx.execute("select rowid, embedding from memory_vec where owner_id = ?", (owner,)))
        matrix = Matrix(self._dim, vectors.mean(axis=0))
        matrix.add(ids, vectors)
        return _Held(matrix, revision, newest, epoch)

    def _updated(self, tx: Tx, owner: int, held: _Held, revision: int) -> _Held:
        fresh = tx.execute(
            "select v.id from version v cross join memory m on m.id = v.memory_id where v.id > ? and m.owner_id = ?",
            (held.newest, owner),
        ).fetchall()
        if len(fresh) > _FRESH_SHARE * held.matrix.rows:
            return self._read(tx, owner, revision, held.epoch)
        newest = _newest(tx)
        if fresh:
            wanted = json.dumps([row for (row,) in fresh])
            held.matrix.add(
                *self._rows(
                    tx.execute(
                        "select x.rowid, x.embedding from json_each(?) j cross join memory_vec x on x.rowid = j.value",
                        (wanted,),
                    )
                )
            )
        return _Held(held.matrix, revision, max(newest, held.newest), held.epoch)

    def _rows(self, rows: Any) -> tuple[Any, Vectors]:
        pairs = rows.fetchall()
        ids = np.array([row for row, _ in pairs], np.int64)
        vectors = np.frombuffer(b"".join(blob for _, blob in pairs), "<f4").reshape(len(pairs), self._dim)
        return ids, vectors


def _newest(tx: Tx) -> int:
    [(newest,)] = tx.execute("select coalesce(max(id), 0) from version").fetchall()
    return int(newest)
