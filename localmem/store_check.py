"""The invariants of the file as SQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from localmem.db import translate
from localmem.errors import CorruptFileError, NotOurFileError
from localmem.store import Store
from localmem.types import FOREVER

if TYPE_CHECKING:
    from localmem.db import Tx

# Each statement selects what is wrong: a name for it (an id or a number), nothing when all is well.
INVARIANTS: dict[str, str] = {
    "a memory's head is another memory's version": (
        "select m.id from memory m join version v on v.id = m.head where v.memory_id <> m.id"
    ),
    "a memory without its head": "select id from memory where head not in (select id from version)",
    "a live head that is marked as past": (
        "select m.id from memory m join version v on v.id = m.head "
        "where m.deleted_at is null and (v.valid_to is not null or v.superseded_at is not null)"
    ),
    "a deleted memory whose head has no end": (
        "select m.id from memory m join version v on v.id = m.head "
        "where m.deleted_at is not null and (v.valid_to is null or v.superseded_at is null)"
    ),
    "a past version that is not marked as past": (
        "select v.id from version v join memory m on m.id = v.memory_id "
        "where m.head <> v.id and v.superseded_at is null"
    ),
    "a version later than the head": (
        "select v.id from version v join memory m on m.id = v.memory_id join version h on h.id = m.head "
        "where v.valid_from > h.valid_from and m.deleted_at is null"
    ),
    "a version that ends before it begins": (
        "select id from version where valid_to < valid_from or superseded_at < recorded_at"
    ),
    "versions not numbered from 1": (
        "select memory_id from version group by memory_id having min(number) <> 1 or max(number) <> count(*)"
    ),
    "a vector of the wrong size": (
        "select x.rowid from memory_vec x, setting s "
        "where s.name = 'embedder_dim' and vec_length(x.embedding) <> s.value"
    ),
    "a memory under another owner": (
        "select m.id from memory m join owner o on o.id = m.owner_id where o.token <> "
        "coalesce('u:' || m.user_id, 'a:' || m.agent_id, 'r:' || m.run_id)"
    ),
    "an owner's statistics that differ from its memories": (
        "select o.id from owner o left join (select m.owner_id, count(*) n, sum(v.words) w from memory m "
        "join version v on v.id = m.head where m.deleted_at is null group by m.owner_id) c on c.owner_id = o.id "
        "where o.documents <> coalesce(c.n, 0) or o.words <> coalesce(c.w, 0)"
    ),
    "an episode under another owner": (
        "select e.id from episode e join owner o on o.id = e.owner_id where o.token <> "
        "coalesce('u:' || e.user_id, 'a:' || e.agent_id, 'r:' || e.run_id)"
    ),
    "an episode without messages": "select id from episode where id not in (select episode_id from message)",
    "a verbatim episode that is not done": "select id from episode where mode = 'verbatim' and state <> 'done'",
    "an episode that is done and set aside": (
        "select id from episode where state = 'done' and set_aside_at is not null"
    ),
    "messages not numbered from 0": (
        "select episode_id from message group by episode_id having min(position) <> 0 or max(position) <> count(*) - 1"
    ),
    "evidence beyond the end of its message": (
        "select e.id from evidence e join message t on t.id = e.message_id "
        "where t.dropped_at is null and e.stop > length(t.content)"
    ),
    "a turn whose words were dropped and are still there": (
        "select id from message where dropped_at is not null and (content <> '' or grams is not null)"
    ),
    "a contradiction marked on one side only": (
        "select memory_id from contested c where not exists "
        "(select 1 from contested d where d.memory_id = c.other_id and d.other_id = c.memory_id)"
    ),
    "a contradiction with a deleted memory": (
        "select c.memory_id from contested c join memory m on m.id = c.memory_id where m.deleted_at is not null"
    ),
    "a suppressed version that can still be found by its names": (
        "select x.version_id from mention x join version v on v.id = x.version_id where v.suppressed = 1"
    ),
    "a version without its vector, or with one that tells otherwise when it is live and valid": (
        "select v.id from version v join memory m on m.id = v.memory_id left join memory_vec x on x.rowid = v.id "
        "where v.suppressed = 0 and (x.rowid is null or x.owner_id <> m.owner_id "
        "or x.live <> (m.head = v.id and m.deleted_at is null) or x.valid_from <> v.valid_from "
        f"or x.valid_to <> coalesce(v.valid_to, {FOREVER}) or x.expires_at <> coalesce(m.expires_at, {FOREVER}) "
        "or x.agent <> coalesce(m.agent_id, '') or x.run <> coalesce(m.run_id, ''))"
    ),
    "a vector without its version": (
        "select x.rowid from memory_vec x left join version v on v.id = x.rowid where v.id is null or v.suppressed = 1"
    ),
    "a passage whose text is not there": (
        "select p.id from passage p left join version v on v.id = p.id and p.kind = 'memory_vec' and v.suppressed = 0 "
        "left join turn_words w on w.id = p.id and p.kind = 'turn_vec' where v.id is null and w.id is null"
    ),
    "a turn without its vector": (
        "select w.id from turn_words w left join turn_vec x on x.rowid = w.id join message t on t.id = w.id "
        "join episode e on e.id = t.episode_id "
        "where iif(x.rowid is null, e.owes_vectors = 0, x.pending <> (w.owner like 'p%'))"
    ),
    "a turn's vector without its turn": (
        "select x.rowid from turn_vec x left join turn_words w on w.id = x.rowid where w.id is null"
    ),
}


def check(store: Store) -> list[str]:
    """Broken invariants as sentences with up to three examples each; [] for a sound file.

    What can't be read is such a sentence too: a damaged page must not hide what is wrong elsewhere.
    """
    found: list[str] = []
    try:
        with store.snapshot(fresh=True) as tx:
            found += _looked_at(tx)
    except CorruptFileError as error:  # not even its settings can be read
        return [str(error)]
    found += [] if store.db.read_only else _check_words(store)
    return [*found, RESTORE] if any(each.startswith("SQLite: ") for each in found) else found


RESTORE = (
    "the file is damaged: restore a backup, or run `localmem salvage OUT`, which writes a new file of what is left"
)


def _looked_at(tx: Tx) -> list[str]:
    rows = [str(row) for (row,) in _asked(tx, "pragma integrity_check(10)") if row != "ok"]
    found = [f"SQLite: {row.removeprefix(_WHERE).replace(chr(10), '; ')}" for row in rows]
    for row in _asked(tx, "pragma foreign_key_check"):
        found.append(f"foreign key of {row[0]} row {row[1]}" if len(row) > 1 else f"foreign keys: {row[0]}")
    for sentence, statement in INVARIANTS.items():
        examples = [str(row) for (row,) in _asked(tx, f"{statement} limit 3")]
        if examples:
            found.append(f"{sentence}: {', '.join(examples)}")
    return found


_WHERE = "*** in database main ***\n"


def _asked(tx: Tx, statement: str) -> Iterator[tuple[Any, ...]]:
    """The rows; where the file itself stops them, a last one that says so."""
    try:
        yield from tx.execute(statement)
    except Exception as error:
        cause: Any = error
        of_the_file = isinstance(translate(cause, "", 0), CorruptFileError | NotOurFileError)
        if not of_the_file and type(error).__name__ != "SQLError":  # as sqlite-vec says of its broken tables
            raise
        yield (f"not all of it can be read ({type(error).__name__})",)


def _check_words(store: Store) -> list[str]:
    """FTS5 compares an index with its content only through a write statement, though it writes nothing."""
    found = []
    for table in ("memory_fts", "turn_fts"):
        try:
            with store.write() as tx:
                tx.execute(f"insert into {table} ({table}, rank) values ('integrity-check', 1)")
        except CorruptFileError:
            found.append(f"the word index {table} differs from its texts; reindex() rebuilds it")
    return found
