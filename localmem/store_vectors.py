"""What is derived from the base tables, made again: by the file's own embedder, or by another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from localmem import store_passages
from localmem.db import Database, Tx, sql_file
from localmem.errors import ConflictError
from localmem.store import Store, identity
from localmem.store_apply import blob_of
from localmem.store_audit import settings_of
from localmem.types import FOREVER, Embedder

BATCH = 64  # texts embedded between two commits of reembed()
_TEXTS = {
    "memory_vec": "select id, text from version where suppressed = 0",
    "turn_vec": "select id, text from turn_words",
}
_OWNERS = {  # of a version or message that has a vector
    "memory_vec": (
        "select m.owner_id from version v join memory m on m.id = v.memory_id where v.id = ? and v.suppressed = 0"
    ),
    "turn_vec": (
        "select e.owner_id from turn_words w join message t on t.id = w.id join episode e on e.id = t.episode_id "
        "where w.id = ?"
    ),
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


def reindex(store: Store, embedder: Embedder) -> None:
    """Rebuild both vector tables and both word indexes in one transaction; then the passages that are missing.

    Vectors that can still be read are kept, lost ones are made again before the transaction begins.
    """
    made: dict[str, dict[int, bytes]] = {"memory_vec": {}, "turn_vec": {}}
    while True:
        with store.snapshot() as tx:
            lost = _lost(tx, made)
        for table, texts in lost.items():
            vectors = embedder.embed_passages(list(texts.values())) if texts else ()
            made[table].update({row: vector.tobytes() for row, vector in zip(texts, vectors, strict=True)})
        with store.write() as tx:
            if not any(_lost(tx, made).values()):  # else something came in meanwhile: embed that too
                _rebuild(tx, store.dim, made)
                break
    for kind in _TEXTS:
        _add_passages(store, embedder, kind)


def _add_passages(store: Store, embedder: Embedder, kind: str) -> None:
    """Make those of long texts that have none, as in files from before they were made."""
    last = 0
    while True:
        with store.snapshot() as tx:
            rows = tx.execute(
                f"select id, text from ({_TEXTS[kind]}) where id > ? and length(text) > ? "
                f"and id not in (select id from passage where kind = ?) order by id limit {BATCH}",
                (last, store_passages.TOKENS_READ_MIN, kind),
            ).fetchall()
        if not rows:
            return
        made = store_passages.later_passages(embedder, [text for _, text in rows])
        with store.write() as tx:
            for row, text in rows:
                for (owner,) in tx.execute(_OWNERS[kind], (row,)).fetchall() if text in made else ():
                    store_passages.keep(tx, kind, owner, row, made[text])
        last = rows[-1][0]


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


def reembed(
    db: Database,
    embedder: Embedder,
    progress: Callable[[int, int], None],
    switched: Callable[[Tx], None] = lambda tx: None,
) -> dict[str, int]:
    """Make every vector anew with this embedder and switch to it; how many of each table this call made.

    The vectors stand aside until the last is there: until then the file works as before, and a call that was cut off
    is taken up where it ended. ``progress`` gets (vectors there, vectors wanted), ``switched`` the transaction of the
    switch. Nothing is made where the file holds
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
        vectors = {table: _made(embedder, texts) for table, texts in missing.items() if texts}
        with db.write() as tx:
            if _switched(tx, wanted):
                return made
            for table, rows in vectors.items():
                made[table] += _keep(tx, table, rows)
            if not any(_missing(tx, table) for table in _TEXTS):
                progress(*_counts(tx))
                _switch(tx, wanted)
                switched(tx)


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
    there = "select count(*) from reembedded where number = 0"
    wanted = " + ".join(f"(select count(*) from ({statement}))" for statement in _TEXTS.values())
    [counts] = tx.execute(f"select ({there}), {wanted}").fetchall()
    return int(counts[0]), int(counts[1])


def _made(embedder: Embedder, texts: Mapping[int, str]) -> dict[int, list[bytes]]:
    """Row id -> the vector of its text, then those of its later passages."""
    passages = store_passages.later_passages(embedder, texts.values())
    vectors = embedder.embed_passages(list(texts.values()))
    return {
        row: [blob_of(vector), *store_passages.blobs(passages.get(text, ()))]
        for (row, text), vector in zip(texts.items(), vectors, strict=True)
    }


def _keep(tx: Tx, table: str, vectors: Mapping[int, Sequence[bytes]]) -> int:
    """Put vectors aside, but for texts that were taken back meanwhile; of how many texts."""
    ids = {row for (row,) in tx.execute(f"select id from ({_TEXTS[table]}) where id >= ?", (min(vectors),))}
    kept = {row: made for row, made in vectors.items() if row in ids}
    tx.executemany(
        "insert or replace into reembedded (kind, id, number, vector) values (?, ?, ?, ?)",
        [(table, row, number, vector) for row, made in kept.items() for number, vector in enumerate(made)],
    )
    return len(kept)


def _switch(tx: Tx, wanted: Mapping[str, str]) -> None:
    _empty_tables(tx, int(wanted["embedder_dim"]))
    for table, statement in _INSERTS.items():
        tx.execute(statement.format(made=f"(select id, vector from reembedded where kind = '{table}' and number = 0)"))
    tx.execute("delete from passage")
    for table, owner in _OWNERS.items():
        tx.execute(
            f"insert into passage select kind, ({owner.replace('?', 'x.id')}), id, number, vector "
            "from reembedded x where kind = ? and number > 0",
            (table,),
        )
    tx.executemany("insert or replace into setting (name, value) values (?, ?)", list(wanted.items()))
    tx.execute("delete from setting where name = 'reembedding'")
    tx.execute("delete from reembedded")
