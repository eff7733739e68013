"""The turns of an owner that wait to be read, in memory: while many do, each search would read all of them again.

What is held is never shown: search reads the turns it shows from the file. It is compared with the file at each search,
and made anew where anything was written meanwhile; vectors and counts of words, which can't change, are taken over.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from localmem import rank, store_pools

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Vector

ROWS_MAX = 20_000  # turns of one owner; of more the file is searched
BYTES_MAX = 128_000_000  # of all owners of a store; the one not asked for longest goes first

Mark = tuple[Any, ...]
_MARK = """
select (select value from setting where name = 'epoch'),
  (select count(*) from episode indexed by episode_owing where owner_id = ?1 and owes_vectors = 1),
  (select max(seq) from audit), max(seq), count(*) from episode where owner_id = ?1 and state = 'pending'
"""
# The last column: the place in the order of arrival of the owner's exchange before, where that waits too.
_ROWS = """
select t.id, e.seq, t.position, e.event_at, e.agent_id, e.run_id,
  t.suppressed_at is null and t.dropped_at is null and e.mode = 'infer' and t.role <> 'system',
  (select iif(b.state = 'pending', b.seq, null) from episode b
   where b.owner_id = e.owner_id and b.seq < e.seq and exists (select 1 from message o where o.episode_id = b.id)
   order by b.seq desc limit 1)
from episode e join message t on t.episode_id = e.id
where e.owner_id = ? and e.state = 'pending' order by e.seq, t.position
"""


@dataclass(frozen=True, slots=True)
class Held:
    """The turns of one owner that wait. The columns of ``vectors`` are those that can be found, by ``place``."""

    mark: Mark
    rows: Sequence[tuple[Any, ...]]  # all of them, as _ROWS has them
    ids: Any  # int64 (columns,)
    place: dict[int, int]  # message id -> column
    vectors: Any  # float32 (dim, columns); zeros where there is none yet
    lengths: Any  # float64 (columns,), of the vectors
    words: dict[int, int]  # message id -> how many
    beside: dict[int, tuple[tuple[int, int], ...]]  # message id -> pairs with the turns right before and after it

    @property
    def documents(self) -> int:
        return len(self.rows)

    @property
    def bytes(self) -> int:
        return int(self.vectors.nbytes)

    def cosines(self, query: Vector) -> Any:
        """Of each column, float64 (columns,), as vec0 computes them: NaN where there is no vector yet."""
        products = np.einsum("ij,i->j", self.vectors, query).astype(np.float64)
        with np.errstate(invalid="ignore"):
            distances = 1.0 - products / (self.lengths * _length(query))
        return 1.0 - distances.astype(np.float32).astype(np.float64)


class Waiting:
    """What is held of one store's owners."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._held: OrderedDict[int, Held] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, tx: Tx, owner: int) -> Held | None:
        """The turns of an owner that wait, as this snapshot has them; None where there are none, or too many."""
        [mark] = tx.execute(_MARK, (owner,)).fetchall()
        with self._lock:
            held = self._held.pop(owner, None)
            if not mark[-1]:
                return None
            if held is None or held.mark != mark:
                held = self._read(tx, owner, mark, held)
            if held is not None:
                self._held[owner] = held
            while len(self._held) > 1 and sum(each.bytes for each in self._held.values()) > BYTES_MAX:
                self._held.popitem(last=False)
        return held

    def _read(self, tx: Tx, owner: int, mark: Mark, before: Held | None) -> Held | None:
        rows = tx.execute(_ROWS, (owner,)).fetchall()
        if len(rows) > ROWS_MAX:
            return None
        if before is not None and before.mark[0] == mark[0]:
            if before.rows == rows and not mark[1] and (before.lengths > 0).all():
                return replace(before, mark=mark)
        else:
            before = None
        ids = [row for row, *_, seen, _ in rows if seen]
        place = {row: column for column, row in enumerate(ids)}
        vectors = np.zeros((self._dim, len(ids)), np.float32)
        words = dict[int, int]()
        if before is not None:
            words = {row: count for row, count in before.words.items() if row in place}
            known = [row for row in words if before.lengths[before.place[row]] > 0]
            vectors[:, [place[row] for row in known]] = before.vectors[:, [before.place[row] for row in known]]
        else:
            known = []
        fresh = list(place.keys() - set(known))
        for row, blob in _vectors(tx, fresh):
            vectors[:, place[row]] = np.frombuffer(blob, np.float32)
        unread = json.dumps(list(place.keys() - words.keys()))
        contents = tx.execute("select id, content from message where id in (select value from json_each(?))", (unread,))
        words |= {row: rank.word_count(content) for row, content in contents}
        return Held(mark, rows, np.array(ids, np.int64), place, vectors, _lengths(vectors), words, _beside(rows))


def _vectors(tx: Tx, messages: Sequence[int]) -> Sequence[tuple[int, bytes]]:
    """Those of the messages that have one."""
    found: Sequence[tuple[int, bytes]] = tx.execute(
        "select x.rowid, x.embedding from json_each(?) j cross join turn_vec x on x.rowid = j.value",
        (json.dumps(list(messages)),),
    ).fetchall()
    return found


def _lengths(vectors: Any) -> Any:
    """Of each column, as vec0 computes it: squares are summed up one after another in single precision."""
    return np.sqrt(np.einsum("ij,ij->j", vectors, vectors).astype(np.float64))


def _length(vector: Vector) -> Any:
    return np.sqrt(np.float64(np.add.accumulate(vector * vector)[-1]))  # reduce() would not go one after another


def _beside(rows: Sequence[tuple[Any, ...]]) -> dict[int, tuple[tuple[int, int], ...]]:
    """As Turns.beside tells of each."""
    at = {(seq, position): row for row, seq, position, *_ in rows}
    last = {seq: row for row, seq, *_ in rows}
    first = {seq: row for row, seq, *_ in reversed(rows)}
    follows = {before: seq for _, seq, *_, before in rows if before is not None}
    talks = {row: tuple(place) for row, _, _, *place, seen, _ in rows if seen}
    found = {}
    for row, seq, position, *_, before in rows:
        one = at.get((seq, position - 1)) or last.get(before)
        other = at.get((seq, position + 1)) or first.get(follows.get(seq))
        found[row] = tuple(store_pools.of_one_talk([(one, row), (row, other)], talks))
    return found
