"""Long texts: vectors of what stands beyond the tokens that an embedder reads at once.

They are 8-bit numbers in a plain table, read whole for an owner: what may be seen is decided in the same statement.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from localmem.filters import Condition
from localmem.types import Embedder, PassageEmbedder

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Vector, Vectors

MEMORIES, TURNS = "memory_vec", "turn_vec"  # kinds, by the table of the first vectors
TOKENS_READ_MIN = 250  # no embedder here reads fewer; a token has a character at least
# Taken off the cosine of a passage: the more of them a text has, the likelier one is near by chance.
PASSAGE_DISCOUNT = 0.1


def later_passages(embedder: Embedder, texts: Iterable[str]) -> dict[str, Vectors]:
    """Text -> a vector for each of its passages but the first; nothing for those that are read whole."""
    if not isinstance(embedder, PassageEmbedder):
        return {}
    cut = {text: list(embedder.later_passages(text)) for text in set(texts) if len(text) > TOKENS_READ_MIN}
    return {text: embedder.embed_passages(passages) for text, passages in cut.items() if passages}


def blobs(vectors: Vectors | Sequence[Vector]) -> list[bytes]:
    """8-bit numbers of each vector. Raises ValueError for one that is not finite, or zero."""
    rows = np.asarray(vectors, dtype="<f4")
    peaks = np.abs(rows).max(axis=1, keepdims=True) if len(rows) else rows
    if not (np.isfinite(peaks).all() and (peaks > 0).all()):
        raise ValueError("an embedding must be finite and not zero")
    return [row.tobytes() for row in np.rint(rows / peaks * 127).astype(np.int8)]


def keep(tx: Tx, kind: str, owner: int, row: int, vectors: Vectors | Sequence[Vector]) -> None:
    """Write the passages of one version or message."""
    tx.executemany(
        "insert into passage (kind, owner_id, id, number, vector) values (?, ?, ?, ?, ?)",
        [(kind, owner, row, number, blob) for number, blob in enumerate(blobs(vectors), 1)],
    )


def copy(tx: Tx, version: int, to: int) -> None:
    """A version of the same words as another has the same passages."""
    tx.execute(
        "insert into passage (kind, owner_id, id, number, vector) "
        "select kind, owner_id, ?, number, vector from passage where kind = ? and id = ?",
        (to, MEMORIES, version),
    )


def forget(tx: Tx, kind: str, rows: Sequence[int]) -> None:
    """Take every vector of these versions or messages out of the file, those being made anew too."""
    ids = json.dumps(list(rows))
    tx.executemany(f"delete from {kind} where rowid = ?", [(row,) for row in rows])
    for table in ("passage", "reembedded"):
        tx.execute(f"delete from {table} where kind = ? and id in (select value from json_each(?))", (kind, ids))


def nearest(tx: Tx, kind: str, owner: int | None, seen: Condition, query: Vector, k: int) -> dict[int, float]:
    """Row id -> cosine of its best passage, less PASSAGE_DISCOUNT, of the k best rows of an owner (None: of all).

    seen: which rows count, as the end of a statement "from passage p".
    """
    whose, bindings = ("", ()) if owner is None else (" and p.owner_id = ?", (owner,))
    some = f"select 1 from passage p where p.kind = ?{whose} limit 1"
    if tx.execute(some, (kind, *bindings)).fetchone() is None:  # most have no long text
        return {}
    rows = tx.execute(
        "select p.id, max(1.0 - vec_distance_cosine(vec_int8(p.vector), vec_int8(?))) "
        f"from passage p {seen.sql} and p.kind = ?{whose} group by p.id order by 2 desc limit ?",
        (blobs([query])[0], *seen.bindings, kind, *bindings, k),
    )
    return {row: cosine - PASSAGE_DISCOUNT for row, cosine in rows}
