"""What is derived from the base tables, made again: by the file's own embedder, or by another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from localmem.db import Database, Tx, sql_file
from localmem.errors import ConflictError
from localmem.store import Store, identity, settings_of
from localmem.store_apply import blob_of
from localmem.types import FOREVER, Embedder

if TYPE_CHECKING:
    from localmem.types import Vectors

BATCH = 64  # texts embedded between two commits of reembed()
_TEXTS = {
    "memory_vec": "select id, text from version where suppressed = 0",
    "turn_vec": "select id, text from turn_words",
}
_INSERTS = {  # from a table or view "made" of ids and vectors
    "memory_vec": (
        "insert into memory_vec (rowid, embedding, owner_id, live, valid_from, valid_to, expires_at, agent, run) "
        "select v.id, made.vector, m.owner_id, m.head = v.id and m.deleted_at is null, v.valid_from, "
        f"coalesce(v.valid_to, {FOREVER}), coalesce(m.expires_at, {FOREVER}), coalesce(m.agent_id, ''), "
        "coalesce(m.run_id, '') from {made} made join version v on v.id = made.id join memory m on m.id = v.memory_id "
        "where v.suppressed = 0"
    ),
    "turn_vec": (
        "insert into turn_vec (rowid, embedding, owner_id, pending, agent, run) "
        "select w.id, made.vector, e.owner_id, e.state = 'pending', coalesce(e.agent_id, ''), coalesce(e.run_id, '') "
        "from {made} made join turn_words w on w.id = made.id join message t on t.id = w.id "
        "join episode e on e.id = t.episode_id"
    ),
}


def reindex(store: Store, embed: Callable[[Sequence[str]], Vectors]) -> None:
    """Rebuild both vector tables and both word indexes in one transaction.

    Vectors that can still be read are kept, lost ones are made again by ``embed`` before the transaction begins.
    """
    made: dict[str, dict[int, bytes]] = {"memory_vec": {}, "turn_vec": {}}
    while True:
        with store.snapshot() as tx:
            lost = _lost(tx, made)
        for table, texts in lost.items():
            vectors = embed(list(texts.values())) if texts else ()
            made[table].update({row: vector.tobytes() for row, vector in zip(texts, vectors, strict=True)})
        with store.write() as tx:
            if not any(_lost(tx, made).values()):  # else something came in meanwhile: embed that too
                _rebuild(tx, store.dim, made)
                return


def _lost(tx: Tx, made: Mapping[str, Mapping[int, bytes]]) -> dict[str, dict[int, str]]:
    """Row id -> text of everything without a readable vector, for each vector table."""
    lost = {}
    for table, statement in _TEXTS.items():
        kept = _readable(tx, table)
        lost[table] = {row: text for row, text in tx.execute(statement) if row not in kept and row not in made[table]}
    return lost


def _readable(tx: Tx, table: str) -> dict[int, bytes]:
    try:
        return dict(tx.execute(f"select rowid, embedding from {table}").fetchall())
    except Exception:  # whatever is wrong with the derived table, it can be made again
        return {}


def _rebuild(tx: Tx, dim: int, made: Mapping[str, Mapping[int, bytes]]) -> None:
    kept = {table: {**_readable(tx, table), **made[table]} for table in _TEXTS}
    _empty_tables(tx, dim)
    for table, statement in _INSERTS.items():
        tx.executemany(statement.format(made="(select ? as id, ? as vector)"), list(kept[table].items()))
    tx.execute("insert into memory_fts (memory_fts) values ('rebuild')")
    tx.execute("insert into turn_fts (turn_fts) values ('rebuild')")


def _empty_tables(tx: Tx, dim: int) -> None:
    tx.execute("drop table if exists memory_vec")
    tx.execute("drop table if exists turn_vec")
    tx.execute(sql_file("vectors.sql").format(dim=dim))


# -------------------------------------------------------------------- another embedder


def reembed(db: Database, embedder: Embedder, progress: Callable[[int, int], None]) -> dict[str, int]:
    """Make every vector anew with this embedder and switch to it; how many of each table this call made.

    The vectors stand aside until the last is there: until then the file works as before, and a call that was cut off
    is taken up where it ended. ``progress`` gets (vectors there, vectors wanted). Nothing is made where the file holds
    this embedder's vectors already. ConflictError: another call began to make those of another embedder.
    """
    wanted, made = identity(embedder), dict.fromkeys(_TEXTS, 0)
    with db.write() as tx:
        found = settings_of(tx)
        if not found.items() >= wanted.items() and found.get("reembedding") != embedder.sha256:
            tx.execute("delete from reembedded")
            tx.execute("insert or replace into setting (name, value) values ('reembedding', ?)", (embedder.sha256,))
    while True:
        with db.snapshot() as tx:
            if _switched(tx, wanted):
                return made
            missing = {table: _missing(tx, table) for table in _TEXTS}
            progress(*_counts(tx))
        vectors = {
            table: dict(zip(texts, map(blob_of, embedder.embed_passages(list(texts.values()))), strict=True))
            for table, texts in missing.items()
            if texts
        }
        with db.write() as tx:
            if _switched(tx, wanted):
                return made
            for table, rows in vectors.items():
                made[table] += _keep(tx, table, rows)
            if not any(_missing(tx, table) for table in _TEXTS):
                progress(*_counts(tx))
                _switch(tx, wanted)


def _switched(tx: Tx, wanted: Mapping[str, str]) -> bool:
    """Whether the file holds this embedder's vectors. ConflictError when another one's are being made."""
    found = settings_of(tx)
    if found.items() >= wanted.items():
        return True
    if found.get("reembedding") != wanted["embedder_sha256"]:
        raise ConflictError("the vectors are being made anew for another embedder meanwhile; wait, or try again")
    return False


def _missing(tx: Tx, table: str) -> dict[int, str]:
    """Row id -> text of the next texts without a new vector. Ids grow and vectors are made in their order."""
    after = "coalesce((select max(id) from reembedded where kind = ?), 0)"
    rows = tx.execute(f"select id, text from ({_TEXTS[table]}) where id > {after} order by id limit {BATCH}", (table,))
    return dict(rows.fetchall())


def _counts(tx: Tx) -> tuple[int, int]:
    there = "select count(*) from reembedded"
    wanted = " + ".join(f"(select count(*) from ({statement}))" for statement in _TEXTS.values())
    [counts] = tx.execute(f"select ({there}), {wanted}").fetchall()
    return int(counts[0]), int(counts[1])


def _keep(tx: Tx, table: str, vectors: Mapping[int, bytes]) -> int:
    """Put vectors aside, but for texts that were taken back meanwhile; how many."""
    ids = {row for (row,) in tx.execute(f"select id from ({_TEXTS[table]}) where id >= ?", (min(vectors),))}
    rows = [(table, row, vector) for row, vector in vectors.items() if row in ids]
    tx.executemany("insert or replace into reembedded (kind, id, vector) values (?, ?, ?)", rows)
    return len(rows)


def _switch(tx: Tx, wanted: Mapping[str, str]) -> None:
    _empty_tables(tx, int(wanted["embedder_dim"]))
    for table, statement in _INSERTS.items():
        tx.execute(statement.format(made=f"(select id, vector from reembedded where kind = '{table}')"))
    tx.executemany("insert or replace into setting (name, value) values (?, ?)", list(wanted.items()))
    tx.execute("delete from setting where name = 'reembedding'")
    tx.execute("delete from reembedded")
