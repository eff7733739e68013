"""Which turns stay in the file once they are extracted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from localmem import store_passages
from localmem.config import RETENTIONS
from localmem.store_apply import delete_fts

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import EpisodeId, Instant


def retention_of(tx: Tx) -> str:
    """The file's setting, one of config.RETENTIONS."""
    row = tx.execute("select value from setting where name = 'retention'").fetchone()
    return RETENTIONS[0] if row is None else str(row[0])


def drop_turns(tx: Tx, now: Instant, episode_id: EpisodeId | None = None) -> int:
    """Take the words of finished turns out of the file as its retention says; how many turns it took them of.

    Of one episode, or of all. "evidence" keeps the turns that some version was said in. Their places stay, so that
    evidence still tells when and where something was said.
    """
    retention = retention_of(tx)
    if retention == "all":
        return 0
    cited = "exists (select 1 from evidence x where x.message_id = t.id)"
    rows = tx.execute(
        "select t.id, w.owner, w.text, w.grams from episode e cross join message t on t.episode_id = e.id "
        "left join turn_words w on w.id = t.id where (?1 is null or e.id = ?1) and e.state = 'done' "
        f"and t.dropped_at is null{f' and not {cited}' if retention == 'evidence' else ''}",
        (episode_id,),
    ).fetchall()
    for message_id, owner, text, grams in rows:
        if owner is not None:
            delete_fts(tx, "turn_fts", message_id, owner, text, grams)
    messages = [message_id for message_id, *_ in rows]
    store_passages.forget(tx, store_passages.TURNS, messages)
    ids, these = json.dumps(messages), "in (select value from json_each(?))"
    tx.execute(
        "update decision set quote = '' where id in (select d.id from json_each(?) j "
        "cross join message t on t.id = j.value "
        "join decision d on d.episode_id = t.episode_id and d.message = t.position)",
        (ids,),
    )
    tx.execute(f"update message set content = '', grams = null, dropped_at = {now} where id {these}", (ids,))
    return len(rows)
