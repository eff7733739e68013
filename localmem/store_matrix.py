"""The vectors of owners with many memories, in memory: where a scan of the file would take tens of milliseconds.

A row is kept as 8-bit levels, which onnxruntime multiplies with the query's as whole numbers. 100,000 rows of 384
numbers take 40 MB. Rows are only ever added: whether one may be seen is for the caller to ask of the file.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from localmem.db import Tx
from localmem.embed import QUERY_LEVEL_MAX, integer_products

if TYPE_CHECKING:
    from localmem.types import Vector, Vectors

ROWS_MIN = 2_000  # memories of an owner from which on this is faster than vec0
BYTES_MAX = 512_000_000  # of all owners of a store; the one not asked for longest goes first
ZERO = 128  # what stands for 0 among the levels of a row
_FRESH_SHARE = 0.25  # more new rows than this share: read the owner's vectors anew


class Matrix:
    """Rows to search. `add` while another thread searches is fine; two threads must not add at once."""

    def __init__(self, dim: int) -> None:
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
        rows.levels[start:stop] = np.rint(vectors / peaks[:, None] * 127) + ZERO
        self._count = stop  # a search under way goes on with the rows it began with

    def nearest(self, query: Vector, k: int) -> list[int]:
        """Ids of about the k rows with the highest cosine, best first."""
        count, rows = self._count, self._arrays
        levels = np.rint(query / max(float(np.abs(query).max()), 1e-9) * QUERY_LEVEL_MAX).astype(np.int8)
        near = integer_products()(rows.levels[:count], levels) * rows.scales[:count]
        best = np.argpartition(-near, k)[:k] if count > k else np.arange(count)
        found: list[int] = rows.ids[best[np.argsort(-near[best], kind="stable")]].tolist()
        return found


@dataclass(frozen=True)
class _Arrays:
    ids: Any  # int64 (rows,)
    levels: Any  # uint8 (rows, dim)
    scales: Any  # float32 (rows,)

    @classmethod
    def of(cls, rows: int, dim: int) -> _Arrays:
        return cls(np.empty(rows, np.int64), np.empty((rows, dim), np.uint8), np.empty(rows, np.float32))

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (self.ids, self.levels, self.scales))

    def grown(self, rows: int) -> _Arrays:
        wider = _Arrays.of(rows, self.levels.shape[1])
        for name in ("ids", "levels", "scales"):
            getattr(wider, name)[: len(self.ids)] = getattr(self, name)
        return wider


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
        matrix = Matrix(self._dim)
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


def vector_of(tx: Tx, version: int) -> Vector | None:
    """The vector of one version, unit length; None where it has none."""
    row = tx.execute("select embedding from memory_vec where rowid = ?", (version,)).fetchone()
    return None if row is None else np.frombuffer(row[0], dtype=np.float32)
