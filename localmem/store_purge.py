"""Erasing: which rows hold what a person said or what was made of it, and how all of one selection goes at once.

The registry names every column of every table. A test compares it with the schema, so that a new table or column has to
be put down here, and with what `erase` leaves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from localmem.needles import NEEDLE_BYTES_MIN, RECORDS_MAX, Needles, spread, text_needles, vector_needles
from localmem.store_apply import new_id, to_json
from localmem.store_pools import scope_ids, within
from localmem.types import Scope

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.needles import Record
    from localmem.types import JSON, Instant, MemoryId

TEXT = "text"  # what was said, or made of it
VECTOR = "vector"  # an embedding of it, from which much of it can be guessed
SCOPE = "scope"  # who: ids and names that the application gave
PLAIN = "plain"  # numbers, times, states, random ids; names of the settings
_BATCH_BYTES = 4 << 20
INDEX = "index"  # a virtual table's own columns: rebuilt from the others

REGISTRY: dict[str, dict[str, str]] = {
    "setting": dict.fromkeys(("name", "value"), PLAIN),
    "owner": {"token": SCOPE, **dict.fromkeys(("id", "revision", "documents", "words"), PLAIN)},
    "episode": {
        **dict.fromkeys(("user_id", "agent_id", "run_id"), SCOPE),
        "metadata": TEXT,
        **dict.fromkeys(
            (
                "id", "seq", "owner_id", "event_at", "recorded_at", "state", "mode", "expires_at", "error", "attempts",
                "due_at", "begun", "failures", "set_aside_at", "keep", "owes_vectors",
            ),
            PLAIN,
        ),
    },
    "worker": dict.fromkeys(("id", "holder", "beat", "pid", "since", "seen_at", "done"), PLAIN),
    "message": {
        **dict.fromkeys(("content", "grams"), TEXT),
        "name": SCOPE,
        **dict.fromkeys(("id", "episode_id", "position", "role", "suppressed_at"), PLAIN),
        **dict.fromkeys(("dropped_at", "entry", "salt"), PLAIN),
    },
    "memory": {
        **dict.fromkeys(("user_id", "agent_id", "run_id"), SCOPE),
        "metadata": TEXT,
        **dict.fromkeys(
            (
                "id", "seq", "owner_id", "kind", "actor", "created_at", "expires_at", "head", "deleted_at",
                "delete_event_at", "delete_reason", "delete_decision", "confirmed_at",
            ),
            PLAIN,
        ),
    },
    "version": {
        **dict.fromkeys(("text", "hash", "grams"), TEXT),
        **dict.fromkeys(
            (
                "id", "memory_id", "number", "words", "valid_from", "valid_to", "recorded_at", "superseded_at",
                "reason", "decision_id", "suppressed", "entry", "salt",
            ),
            PLAIN,
        ),
    },
    "evidence": dict.fromkeys(("id", "version_id", "message_id", "start", "stop", "kind", "event_at"), PLAIN),
    "mention": {"name": TEXT, **dict.fromkeys(("owner_id", "version_id"), PLAIN)},
    "contested": dict.fromkeys(("memory_id", "other_id", "decision_id"), PLAIN),
    "decision": {
        **dict.fromkeys(("fact", "quote", "text"), TEXT),
        **dict.fromkeys(
            (
                "id", "episode_id", "owner_id", "position", "message", "op", "targets", "confidence", "probabilities",
                "guards", "neighbours", "fingerprint", "reason", "unsupported", "suppressed", "at",
            ),
            PLAIN,
        ),
    },
    "passage": {"vector": VECTOR, **dict.fromkeys(("kind", "owner_id", "id", "number"), PLAIN)},
    "reembedded": {"vector": VECTOR, **dict.fromkeys(("kind", "id", "number"), PLAIN)},
    "audit": dict.fromkeys(
        ("seq", "at", "actor", "op", "owner", "subject", "decision_id", "commitment", "detail", "mac"), PLAIN
    ),
    "purge": dict.fromkeys(("id", "at", "state", "reason", "detail", "secret", "certificate"), PLAIN),
    "memory_fts": dict.fromkeys(("owner", "text", "grams"), INDEX),
    "turn_fts": dict.fromkeys(("owner", "text", "grams"), INDEX),
    "memory_vec": {
        "embedding": VECTOR,
        **dict.fromkeys(("agent", "run"), SCOPE),
        **dict.fromkeys(("owner_id", "live", "valid_from", "valid_to", "expires_at"), PLAIN),
    },
    "turn_vec": {
        "embedding": VECTOR,
        **dict.fromkeys(("agent", "run"), SCOPE),
        **dict.fromkeys(("owner_id", "pending"), PLAIN),
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to go: everything of a scope, certain memories with what they were said in, or what people took back.

    ``requested``: memories and turns whose author asked to forget them, in the scope or, without one, in the file.
    """

    scope: Scope | None = None
    memories: tuple[MemoryId, ...] = ()
    requested: bool = False

    @property
    def kind(self) -> str:
        """scope, memories or requested."""
        return "requested" if self.requested else "memories" if self.memories else "scope"


_WITHIN = within()
_TEMPORARY = {  # ids of what goes, in memory
    "gone_memory": "text",
    "gone_version": "integer",
    "gone_message": "integer",
    "gone_episode": "text",
    "gone_decision": "integer",
}


def has_requested(tx: Tx, scope: Scope | None) -> bool:
    """Whether there is anything that people asked to forget."""
    row = tx.execute(
        f"select 1 from memory where delete_reason = 'user_request' and {_WITHIN} union all "
        f"select 1 from episode e where {_WITHIN} and exists (select 1 from message t where t.episode_id = e.id "
        "and t.suppressed_at is not null and t.dropped_at is null) limit 1",
        scope_ids(scope),
    ).fetchone()
    return row is not None


def select(tx: Tx, selection: Selection) -> int:
    """Note in temporary tables what goes with a selection; how many memories, turns and decisions that is."""
    for name, kind in _TEMPORARY.items():
        tx.execute(f"create temp table if not exists {name} (id {kind} primary key) without rowid")
        tx.execute(f"delete from temp.{name}")
    if selection.memories or selection.requested:
        _select_memories(tx, selection)
    elif selection.scope is not None:
        _select_scope(tx, selection.scope)
    else:
        raise ValueError("a selection needs a scope, memories or requested")
    [(count,)] = tx.execute(
        "select (select count(*) from temp.gone_memory) + (select count(*) from temp.gone_message) "
        "+ (select count(*) from temp.gone_decision)"
    ).fetchall()
    return int(count)


def _select_scope(tx: Tx, scope: Scope) -> None:
    """Each id given must match, as in reading; ids not given are free."""
    ids = scope_ids(scope)
    tx.execute(f"insert into temp.gone_memory select id from memory where {_WITHIN}", ids)
    tx.execute(f"insert into temp.gone_episode select id from episode where {_WITHIN}", ids)
    tx.execute(
        "insert into temp.gone_message select id from message where episode_id in (select id from temp.gone_episode)"
    )
    _select_versions(tx)
    tx.execute(
        "insert or ignore into temp.gone_decision select id from decision "
        "where episode_id in (select id from temp.gone_episode)"
    )
    _select_decisions(tx)


def _select_memories(tx: Tx, selection: Selection) -> None:
    if selection.requested:
        scope = selection.scope or Scope()
        ids = scope_ids(scope)
        tx.execute(
            f"insert into temp.gone_memory select id from memory where delete_reason = 'user_request' and {_WITHIN}",
            ids,
        )
        tx.execute(
            "insert into temp.gone_message select id from message where suppressed_at is not null "
            f"and (dropped_at is null or name is not null) and episode_id in (select id from episode where {_WITHIN})",
            ids,
        )
        tx.execute(
            "insert into temp.gone_decision select id from decision where suppressed = 1 "
            f"and episode_id in (select id from episode where {_WITHIN})",
            ids,
        )
    else:
        tx.execute(
            "insert into temp.gone_memory select id from memory where id in (select value from json_each(?))",
            (json.dumps(list(selection.memories)),),
        )
    _select_versions(tx)
    tx.execute(  # the turns they were said in, and the assistant's answers to these, which repeat them
        "insert or ignore into temp.gone_message select message_id from evidence "
        "where version_id in (select id from temp.gone_version)"
    )
    tx.execute(
        "insert or ignore into temp.gone_message select a.id from message t join message a "
        "on a.episode_id = t.episode_id and a.position > t.position "
        "where t.id in (select id from temp.gone_message) and t.role = 'user' and a.role = 'assistant'"
    )
    tx.execute(  # an ending leaves an unseen tombstone of what had ended, whose id nobody knows
        "insert or ignore into temp.gone_memory select m.id from evidence e join version v on v.id = e.version_id "
        "join memory m on m.id = v.memory_id where e.message_id in (select id from temp.gone_message) "
        "and m.delete_reason = 'retraction'"
    )
    _select_versions(tx)
    _select_decisions(tx)
    tx.execute(  # that a request was carried out must be known until the rest of its message is read
        "delete from temp.gone_decision where id in (select d.id from decision d "
        "join episode e on e.id = d.episode_id where e.state = 'pending' "
        "and exists (select 1 from json_each(d.guards) where value = 'forget'))"
    )


def _select_versions(tx: Tx) -> None:
    tx.execute(
        "insert or ignore into temp.gone_version select id from version "
        "where memory_id in (select id from temp.gone_memory)"
    )


def _select_decisions(tx: Tx) -> None:
    """Those about these memories; those heard in these turns, unless what they led to stays."""
    tx.execute(
        "insert or ignore into temp.gone_decision "
        "select decision_id from version where id in (select id from temp.gone_version) and decision_id is not null "
        "union select delete_decision from memory where id in (select id from temp.gone_memory) "
        "and delete_decision is not null "
        "union select d.id from decision d, json_each(d.targets) j where j.value in (select id from temp.gone_memory)"
    )
    tx.execute(
        "insert or ignore into temp.gone_decision select d.id from temp.gone_message g join message t on t.id = g.id "
        "join decision d on d.episode_id = t.episode_id and (d.message is null or d.message = t.position) "
        "where d.id not in (select decision_id from version where decision_id is not null "
        "and id not in (select id from temp.gone_version)) "
        "and d.id not in (select delete_decision from memory where delete_decision is not null "
        "and id not in (select id from temp.gone_memory))"
    )


# -------------------------------------------------------------------- erasing


def text_entries(tx: Tx) -> list[int]:
    """The entries of the audit chain that commit to texts of the selection."""
    rows = tx.execute(
        "select entry from version where id in (select id from temp.gone_version) "
        "union all select entry from message where id in (select id from temp.gone_message)"
    )
    return [entry for (entry,) in rows if entry is not None]


def erase(tx: Tx, now: Instant) -> dict[str, int]:
    """Delete all that was selected, and build the word indexes anew; how many rows of which table.

    Turns of talks that stay become empty: that something was said there, and when, is still known.
    """
    counts: dict[str, int] = {}
    for table, ids in (("memory_vec", "gone_version"), ("turn_vec", "gone_message")):  # vec0 finds single rows fast
        tx.executemany(f"delete from {table} where rowid = ?", tx.execute(f"select id from temp.{ids}").fetchall())
    for name, statement in _ERASING:
        tx.execute(statement, {"now": now} if ":now" in statement else ())
        if name:
            counts[name] = counts.get(name, 0) + tx.changes()
    for index in ("memory_fts", "turn_fts"):
        tx.execute(f"insert into {index} ({index}) values ('rebuild')")
    tx.execute(
        "update owner set revision = revision + 1, documents = (select count(*) from memory m "
        "where m.owner_id = owner.id and m.deleted_at is null), words = (select coalesce(sum(v.words), 0) "
        "from memory m join version v on v.id = m.head where m.owner_id = owner.id and m.deleted_at is null) "
        "where id in (select owner_id from temp.gone_owner)"
    )
    tx.execute(
        "delete from owner where id in (select owner_id from temp.gone_owner) "
        "and id not in (select owner_id from memory) and id not in (select owner_id from episode) "
        "and id not in (select owner_id from decision)"
    )
    counts["owner"] = tx.changes()
    tx.execute("drop table temp.gone_owner")
    # What other processes hold of these owners in memory is not to be used again, not for a new owner of the same id.
    tx.execute("insert or replace into setting (name, value) values ('epoch', ?)", (new_id(0),))
    return {name: count for name, count in counts.items() if count}


_STAYING = "(select id from temp.gone_message) and episode_id not in (select id from temp.gone_episode)"
_ERASING: tuple[tuple[str, str], ...] = (
    (
        "",
        "create temp table gone_owner as select owner_id from memory where id in (select id from temp.gone_memory) "
        "union select owner_id from episode where id in (select id from temp.gone_episode)",
    ),
    ("passage", "delete from passage where kind = 'memory_vec' and id in (select id from temp.gone_version)"),
    ("passage", "delete from passage where kind = 'turn_vec' and id in (select id from temp.gone_message)"),
    ("reembedded", "delete from reembedded where kind = 'memory_vec' and id in (select id from temp.gone_version)"),
    ("reembedded", "delete from reembedded where kind = 'turn_vec' and id in (select id from temp.gone_message)"),
    ("evidence", "delete from evidence where version_id in (select id from temp.gone_version)"),
    (
        "evidence",
        "delete from evidence where message_id in (select id from message "
        "where episode_id in (select id from temp.gone_episode))",
    ),
    ("mention", "delete from mention where version_id in (select id from temp.gone_version)"),
    (
        "contested",
        "delete from contested where memory_id in (select id from temp.gone_memory) "
        "or other_id in (select id from temp.gone_memory)",
    ),
    (
        "",
        "update contested set decision_id = null where decision_id in (select id from temp.gone_decision)",
    ),
    ("", "update memory set delete_decision = null where delete_decision in (select id from temp.gone_decision)"),
    ("", "update version set decision_id = null where decision_id in (select id from temp.gone_decision)"),
    ("version", "delete from version where id in (select id from temp.gone_version)"),
    ("memory", "delete from memory where id in (select id from temp.gone_memory)"),
    ("decision", "delete from decision where id in (select id from temp.gone_decision)"),
    (
        "decision",
        "update decision set quote = '' where quote <> '' and id in (select d.id from temp.gone_message g "
        "join message t on t.id = g.id join decision d on d.episode_id = t.episode_id "
        "and (d.message is null or d.message = t.position))",
    ),
    (
        "",
        "update decision set neighbours = (select json_group_array(json(value)) from json_each(neighbours) "
        "where value ->> 0 not in (select id from temp.gone_memory)) where exists (select 1 from json_each(neighbours) "
        "where value ->> 0 in (select id from temp.gone_memory))",
    ),
    ("message", "delete from message where episode_id in (select id from temp.gone_episode)"),
    (
        "message",
        "update message set content = '', grams = null, name = null, entry = null, salt = null, "
        f"dropped_at = coalesce(dropped_at, :now) where id in {_STAYING}",
    ),
    ("episode", "delete from episode where id in (select id from temp.gone_episode)"),
    (
        "",
        "update decision set targets = (select json_group_array(value) from json_each(targets) "
        "where value not in (select id from temp.gone_memory)) where exists (select 1 from json_each(targets) "
        "where value in (select id from temp.gone_memory))",
    ),
    (  # it was given for what went, too; what still waits in the talk needs it
        "",
        "update episode set metadata = '{}' where id in (select episode_id from message "
        "where id in (select id from temp.gone_message)) and (state = 'done' or not exists "
        "(select 1 from message t where t.episode_id = episode.id and t.dropped_at is null))",
    ),
    (  # nothing is left of what was added there
        "",
        "update episode set state = 'done', error = null, set_aside_at = null where id in (select episode_id "
        "from message where id in (select id from temp.gone_message)) and not exists (select 1 from message t "
        "where t.episode_id = episode.id and t.dropped_at is null)",
    ),
)


# -------------------------------------------------------------------- proof


def traces(tx: Tx) -> tuple[list[str], int]:
    """What is left of the selection in any row or word index, as sentences ([]: nothing); how many terms were read."""
    found = []
    for what, statement in _TRACES.items():
        [(count,)] = tx.execute(f"select count(*) from ({statement})").fetchall()
        if count:
            found.append(f"{count} {what}")
    terms = 0
    for index, view in (("memory_fts", "memory_words"), ("turn_fts", "turn_words")):
        tx.execute(f"create virtual table temp.terms using fts5vocab (main, {index}, instance)")
        [(read, strange)] = tx.execute(
            f"select count(distinct term), count(*) filter (where doc not in (select id from {view})) from temp.terms"
        ).fetchall()
        tx.execute("drop table temp.terms")
        terms += read
        if strange:
            found.append(f"{strange} terms of {index} that stand in no text")
        else:  # every term is compared with the texts: CorruptFileError where they differ
            tx.execute(f"insert into {index} ({index}, rank) values ('integrity-check', 1)")
    return found, terms


_TRACES = {
    "memories": "select 1 from memory where id in (select id from temp.gone_memory)",
    "versions": "select 1 from version where memory_id in (select id from temp.gone_memory)",
    "vectors of memories": "select 1 from memory_vec where rowid in (select id from temp.gone_version)",
    "vectors of turns": "select 1 from turn_vec where rowid in (select id from temp.gone_message)",
    "passages": (
        "select 1 from passage where iif(kind = 'turn_vec', id in (select id from temp.gone_message), "
        "id in (select id from temp.gone_version))"
    ),
    "vectors on their way in": (
        "select 1 from reembedded where iif(kind = 'turn_vec', id in (select id from temp.gone_message), "
        "id in (select id from temp.gone_version))"
    ),
    "pieces of evidence": "select 1 from evidence where version_id in (select id from temp.gone_version)",
    "names": "select 1 from mention where version_id in (select id from temp.gone_version)",
    "contradictions": "select 1 from contested where memory_id in (select id from temp.gone_memory)",
    "decisions": "select 1 from decision where id in (select id from temp.gone_decision)",
    "decisions about them": (
        "select 1 from decision d, json_each(d.targets) j where j.value in (select id from temp.gone_memory)"
    ),
    "turns with words": (
        "select 1 from message where id in (select id from temp.gone_message) "
        "and (content <> '' or grams is not null or name is not null or salt is not null or entry is not null)"
    ),
    "episodes": "select 1 from episode where id in (select id from temp.gone_episode)",
}


def needles(tx: Tx) -> tuple[list[tuple[Record, bytes]], int]:
    """Pieces of what was selected, to be sought in the raw file, of at most RECORDS_MAX rows, evenly spread; and of how
    many rows they are a sample."""
    rows = {name: tx.execute(ids).fetchall() for name, ids, _ in _SOUGHT}
    found: list[tuple[Record, bytes]] = []
    left = RECORDS_MAX
    for place, (name, _, statement) in enumerate(sorted(_SOUGHT, key=lambda sought: len(rows[sought[0]]))):
        chosen = spread(rows[name], max(2, left // (len(_SOUGHT) - place)))  # what few rows leave, others may use
        left -= len(chosen)
        for (row,) in chosen:
            record: Record = f"{name} {row}"
            for values in tx.execute(statement, (row,)).fetchall():
                found += [(record, piece) for value in values for piece in _pieces(value)]
    return found, sum(map(len, rows.values()))


def _pieces(value: str | bytes | None) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield from vector_needles(value)
    elif value is not None and len(value.encode()) >= NEEDLE_BYTES_MIN:
        yield from text_needles(value)


_SOUGHT: tuple[tuple[str, str, str], ...] = (
    (
        "version",
        "select id from temp.gone_version",
        "select v.text, v.hash, v.grams, x.embedding from version v left join memory_vec x on x.rowid = v.id "
        "where v.id = ?",
    ),
    (
        "message",
        "select id from temp.gone_message",
        "select t.content, t.grams, t.name, x.embedding from message t left join turn_vec x on x.rowid = t.id "
        "where t.id = ?",
    ),
    (
        "decision",
        "select id from temp.gone_decision",
        "select fact, quote, text from decision where id = ?",
    ),
    (
        "metadata",
        "select id from temp.gone_memory union select id from temp.gone_episode",
        "select metadata from memory where id = ?1 and metadata <> '{}' "
        "union all select metadata from episode where id = ?1 and metadata <> '{}'",
    ),
    (
        "passage of version",
        "select distinct id from passage where kind = 'memory_vec' and id in (select id from temp.gone_version)",
        "select vector from passage where kind = 'memory_vec' and id = ? limit 4",
    ),
    (
        "passage of message",
        "select distinct id from passage where kind = 'turn_vec' and id in (select id from temp.gone_message)",
        "select vector from passage where kind = 'turn_vec' and id = ? limit 4",
    ),
    (
        "new vector",
        "select distinct id from reembedded where kind = 'memory_vec' and id in (select id from temp.gone_version)",
        "select vector from reembedded where kind = 'memory_vec' and id = ? limit 4",
    ),
    (
        "agent or run",
        "select agent_id from memory where id in (select id from temp.gone_memory) and agent_id is not null "
        "union select run_id from memory where id in (select id from temp.gone_memory) and run_id is not null "
        "union select agent_id from episode where id in (select id from temp.gone_episode) and agent_id is not null "
        "union select run_id from episode where id in (select id from temp.gone_episode) and run_id is not null",
        "select ?",
    ),
    (
        "owner",
        "select owner_id from memory where id in (select id from temp.gone_memory) "
        "union select owner_id from episode where id in (select id from temp.gone_episode)",
        "select token from owner where id = ?",
    ),
)


def still_said(tx: Tx, sought: Needles) -> set[bytes]:
    """Those needles that stand in what stays: somebody else said the same, or it was said elsewhere too."""
    found: set[bytes] = set()
    between = os.urandom(16)  # so that no needle is found in two values that are not beside each other in the file
    for values in _batches(_staying(tx)):
        found |= sought.find(between.join(values))
    return found


def _staying(tx: Tx) -> Iterator[bytes]:
    """All that the file says, value by value; its own words (states, roles, names of columns) too."""
    wanted = {
        table: [name for name, kind in columns.items() if kind is not INDEX] for table, columns in REGISTRY.items()
    }
    for table, names in {**wanted, "sqlite_schema": ["sql"]}.items():
        for row in tx.execute(f"select {', '.join(names)} from {table}") if names else ():
            yield from (value.encode() if isinstance(value, str) else value for value in row if _is_text(value))


def _is_text(value: object) -> TypeGuard[str | bytes]:
    return isinstance(value, str | bytes)


def _batches(values: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch, size = list[bytes](), 0
    for value in values:
        batch.append(value)
        size += len(value)
        if size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


# -------------------------------------------------------------------- purges of the file


def note(tx: Tx, purge_id: str, now: Instant, detail: JSON, secret: bytes) -> None:
    """Put down, in the transaction that deletes, that a purge is to be brought to its end."""
    tx.execute(
        "insert into purge (id, at, state, detail, secret) values (?, ?, 'incomplete', ?, ?)",
        (purge_id, now, to_json(detail), secret),
    )


def note_reason(tx: Tx, purge_id: str, reason: str) -> None:
    """Put down why a purge is not at its end."""
    tx.execute("update purge set reason = ? where id = ?", (reason, purge_id))


def certificate_of(tx: Tx, purge_id: str) -> Any:
    """The certificate of a purge that is done, else None."""
    [(certificate,)] = tx.execute("select certificate from purge where id = ?", (purge_id,)).fetchall()
    return None if certificate is None else json.loads(certificate)


def note_done(tx: Tx, purge_id: str, certificate: JSON) -> None:
    """Put down the certificate of a purge; what its needles were sealed with goes."""
    tx.execute(
        "update purge set state = 'done', reason = null, secret = null, certificate = ? where id = ?",
        (to_json(certificate), purge_id),
    )


def purges(tx: Tx, state: str | None = None) -> list[dict[str, Any]]:
    """The purges of the file in a state, or all, oldest first."""
    rows = tx.execute(
        "select id, at, state, reason, detail, secret, certificate from purge "
        "where ?1 is null or state = ?1 order by detail ->> 'entry', id",
        (state,),
    )
    return [
        {
            "id": purge_id,
            "at": at,
            "state": state,
            "reason": reason,
            "detail": json.loads(detail),
            "secret": secret,
            "certificate": None if certificate is None else json.loads(certificate),
        }
        for purge_id, at, state, reason, detail, secret, certificate in rows
    ]
