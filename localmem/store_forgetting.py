"""What a person takes back leaves every search layer, later prompt and decision log at once, and waits for purge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localmem import store_passages
from localmem.store_words import delete_fts

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Instant, MemoryId


def suppress_message(tx: Tx, now: Instant, message_id: int) -> None:
    """Take the words out of every search layer, later prompt and decision log; they wait for purge.

    The assistant's answers in the same exchange repeat them, so they go as well.
    """
    echoes = tx.execute(
        "select e.id from message t join message e on e.episode_id = t.episode_id and e.position > t.position "
        "where t.id = ? and t.role = 'user' and e.role = 'assistant' and e.suppressed_at is null",
        (message_id,),
    ).fetchall()
    for (each,) in [(message_id,), *echoes]:
        _suppress_one(tx, now, each)


def _suppress_one(tx: Tx, now: Instant, message_id: int) -> None:
    indexed = tx.execute("select owner, text, grams from turn_words where id = ?", (message_id,)).fetchone()
    if indexed is not None:
        delete_fts(tx, "turn_fts", message_id, *indexed)
        store_passages.forget(tx, store_passages.TURNS, [message_id])
    tx.execute("update message set suppressed_at = ? where id = ? and suppressed_at is null", (now, message_id))
    tx.execute(
        "update decision set suppressed = 1 where id in (select d.id from message t join decision d "
        "on d.episode_id = t.episode_id and (d.message is null or d.message = t.position) where t.id = ?)",
        (message_id,),
    )


def suppress_memory(tx: Tx, now: Instant, memory_id: MemoryId) -> None:
    rows = tx.execute(
        "select v.id, w.owner, w.text, w.grams from version v join memory_words w on w.id = v.id where v.memory_id = ?",
        (memory_id,),
    ).fetchall()
    for version_id, owner, text, grams in rows:
        delete_fts(tx, "memory_fts", version_id, owner, text, grams)
    its = tx.execute("select id from version where memory_id = ?", (memory_id,)).fetchall()
    store_passages.forget(tx, store_passages.MEMORIES, [version_id for (version_id,) in its])
    tx.execute("update version set suppressed = 1 where memory_id = ?", (memory_id,))
    tx.executemany("delete from mention where version_id = ?", its)
    tx.execute(
        "update decision set suppressed = 1 where owner_id = (select owner_id from memory where id = ?1) "
        "and exists (select 1 from json_each(targets) where value = ?1)",
        (memory_id,),
    )
    for (message_id,) in tx.execute(
        "select distinct e.message_id from evidence e join version v on v.id = e.version_id where v.memory_id = ?",
        (memory_id,),
    ).fetchall():
        suppress_message(tx, now, message_id)
