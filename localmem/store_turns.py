"""Raw turns: which are found for a query, and which stay in the file once they are extracted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from localmem import rank, store_passages, store_pools
from localmem.config import RETENTIONS
from localmem.filters import Condition
from localmem.store_audit import GONE, ranges
from localmem.store_waiting import Held, Waiting
from localmem.store_words import delete_fts
from localmem.types import Scope, TurnRecord

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.store_audit import Trail
    from localmem.store_pools import Reach
    from localmem.types import EpisodeId, Instant, Vector

_SEEN = "t.suppressed_at is null and t.dropped_at is null and e.mode = 'infer' and t.role <> 'system'"


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns that one query may find. Made by `turns_of`. Suppressed and dropped ones are in no index."""

    within: Reach
    pending_only: bool
    postings: Sequence[frozenset[int]]  # the messages that hold each word of the query
    documents: int

    @property
    def spread(self) -> float:
        return rank.spread(self.postings, self.documents)

    def near(self, tx: Tx, query: Vector, k: int = store_pools.POOL) -> dict[int, float]:
        """Message id -> cosine of the k nearest, of long ones that of their best passage where that is nearer."""
        where = _where(self.within, pending_only=self.pending_only)
        seen = f"cross join message t on t.id = p.id cross join episode e on e.id = t.episode_id where {where.sql}"
        condition = Condition(seen, where.bindings)
        later = store_passages.nearest(tx, store_passages.TURNS, self.within.owner, condition, query, k)
        near = self._nearest(tx, query, k)
        return {row: max(near.get(row, -1.0), later.get(row, -1.0)) for row in near.keys() | later.keys()}

    def _nearest(self, tx: Tx, query: Vector, k: int) -> dict[int, float]:
        state = {"pending = ?": 1 if self.pending_only else None}
        return store_pools.nearest(tx, "turn_vec", self.within, state, query, k)

    def cosines(self, tx: Tx, query: Vector, messages: Sequence[int]) -> dict[int, float]:
        """Message id -> cosine, of those that have a vector."""
        return store_pools.cosines(tx, messages, query, table="turn_vec")

    def by_words(self, k: int = store_pools.POOL) -> list[int]:
        """The k messages that hold the rarest words of the query."""
        return list(rank.rarest_first(self.postings, self.documents, keep=k))

    def scores(self, tx: Tx, messages: Sequence[int]) -> dict[int, float]:
        """Message id -> BM25 share in [0, 1] among these turns."""
        lengths = self._words(tx, messages)
        average = sum(lengths.values()) / max(len(lengths), 1)
        return rank.bm25(self.postings, lengths, documents=self.documents, average_words=average)

    def _words(self, tx: Tx, messages: Sequence[int]) -> dict[int, int]:
        contents = tx.execute(
            "select id, content from message where id in (select value from json_each(?))",
            (json.dumps(list(messages)),),
        )
        return {row: rank.word_count(content) for row, content in contents}

    def beside(self, tx: Tx, messages: Sequence[int]) -> set[tuple[int, int]]:
        """Pairs of turns, one said right after the other in the same talk, of which one is among the messages.

        The next turn is the next message of the same add, or the first of the owner's next one with the same agent and
        run, within SESSION_GAP.
        """
        rows = tx.execute(_BESIDE, (json.dumps(list(messages)),)).fetchall()
        pairs = {(before, row) for row, before, _ in rows} | {(row, after) for row, _, after in rows}
        found = _places(tx, self.within, {row for pair in pairs for row in pair if row is not None}, self.pending_only)
        return store_pools.of_one_talk(pairs, found)


@dataclass(frozen=True, slots=True)
class WaitingTurns(Turns):
    """The same of one owner's turns that wait, most of it without the file."""

    held: Held
    nearness: Any  # cosines, float64 (columns,)

    def _nearest(self, tx: Tx, query: Vector, k: int) -> dict[int, float]:
        distances = np.where(np.isnan(self.nearness), np.inf, -self.nearness)
        if k >= len(distances):
            return self._with_vector(np.arange(len(distances)))
        farthest = np.partition(distances, k - 1)[k - 1]
        nearer, as_far = np.flatnonzero(distances < farthest), np.flatnonzero(distances == farthest)
        return self._with_vector(np.concatenate([nearer, as_far[: k - len(nearer)]]))  # the first of equals, as in vec0

    def cosines(self, tx: Tx, query: Vector, messages: Sequence[int]) -> dict[int, float]:
        place = self.held.place
        return self._with_vector([place[row] for row in messages if row in place])

    def _with_vector(self, columns: Any) -> dict[int, float]:
        found = zip(self.held.ids[columns].tolist(), self.nearness[columns].tolist(), strict=True)
        return {row: cosine for row, cosine in found if cosine == cosine}  # no NaN

    def _words(self, tx: Tx, messages: Sequence[int]) -> dict[int, int]:
        words = self.held.words
        return {row: words[row] for row in messages}

    def beside(self, tx: Tx, messages: Sequence[int]) -> set[tuple[int, int]]:
        return {pair for row in messages for pair in self.held.beside[row]}


_BESIDE = """
select t.id,
  coalesce(
    (select o.id from message o where o.episode_id = t.episode_id and o.position = t.position - 1),
    (select o.id from episode b join message o on o.episode_id = b.id
     where b.owner_id = e.owner_id and b.seq < e.seq order by b.seq desc, o.position desc limit 1)),
  coalesce(
    (select o.id from message o where o.episode_id = t.episode_id and o.position = t.position + 1),
    (select o.id from episode b join message o on o.episode_id = b.id
     where b.owner_id = e.owner_id and b.seq > e.seq order by b.seq, o.position limit 1))
from json_each(?) j cross join message t on t.id = j.value cross join episode e on e.id = t.episode_id
"""


def turns_of(tx: Tx, within: Reach, text: str, query: Vector, *, pending_only: bool, waiting: Waiting) -> Turns:
    """What a query may find among the raw turns in reach. ``waiting``: what the store holds in memory."""
    owner = within.owner if pending_only and within.scope.agent_id is None and within.scope.run_id is None else None
    held = None if owner is None else waiting.of(tx, owner)
    inside = _inside(within, pending_only=pending_only)
    if held is None:
        [(documents,)] = tx.execute(f"select count(*) from ({inside.sql})", inside.bindings).fetchall()
    else:
        documents = held.documents
    prefix = store_pools.owner_expression(within, "p" if pending_only else "px")
    only = inside if within.owner is None else None
    postings = store_pools.postings(tx, "turn_fts", prefix, rank.terms(text), documents, only)
    if held is None:
        return Turns(within, pending_only, postings, documents)
    return WaitingTurns(within, pending_only, postings, documents, held, held.cosines(query))


def has_pending(tx: Tx, within: Reach) -> bool:
    """Whether any turn in scope still waits for extraction."""
    inside = _inside(within, pending_only=True)
    return tx.execute(f"{inside.sql} limit 1", inside.bindings).fetchone() is not None


def _inside(within: Reach, *, pending_only: bool) -> Condition:
    """A statement of the message ids in scope."""
    where = _where(within, pending_only=pending_only)
    sql = f"select t.id from episode e join message t on t.episode_id = e.id where {where.sql}"
    return Condition(sql, where.bindings)


def _where(within: Reach, *, pending_only: bool) -> Condition:
    wanted = (
        ("e.owner_id = ?", within.owner),
        ("e.agent_id = ?", within.scope.agent_id),
        ("e.run_id = ?", within.scope.run_id),
    )
    given = [(sql, value) for sql, value in wanted if value is not None]
    where = " and ".join([sql for sql, _ in given] + (["e.state = 'pending'"] if pending_only else []))
    return Condition(where, tuple(value for _, value in given))


def _places(tx: Tx, within: Reach, messages: set[int], pending_only: bool) -> dict[int, tuple[Any, ...]]:
    """Message id -> (when, agent, run) of those in reach."""
    where = _where(within, pending_only=pending_only)
    rows = tx.execute(
        "select t.id, e.event_at, e.agent_id, e.run_id from json_each(?) j cross join message t on t.id = j.value "
        f"cross join episode e on e.id = t.episode_id where {_SEEN} and {where.sql}",
        (json.dumps(sorted(messages)), *where.bindings),
    )
    return {row: tuple(place) for row, *place in rows}


def records(tx: Tx, within: Reach, messages: Sequence[int]) -> dict[int, TurnRecord]:
    """The raw turns in reach among these messages; those whose time to be kept has passed are not."""
    rows = tx.execute(
        "select t.id, t.episode_id, t.position, t.role, t.name, t.content, e.user_id, e.agent_id, e.run_id, "
        "e.event_at, iif(e.state = 'pending', 'pending', 'extracted'), "
        "exists (select 1 from evidence x where x.message_id = t.id) and not exists (select 1 from evidence x "
        "join version v on v.id = x.version_id join memory m on m.head = v.id and m.deleted_at is null "
        "where x.message_id = t.id) "
        "from json_each(?) j join message t on t.id = j.value "
        f"join episode e on e.id = t.episode_id where {_SEEN} and (e.expires_at is null or e.expires_at > ?)",
        (json.dumps(list(messages)), within.now),
    )
    found = {}
    for row_id, episode_id, position, role, name, content, user, agent, run, event_at, state, past in rows:
        scope = Scope(user, agent, run)
        if store_pools.matches(within.scope, scope):
            found[row_id] = TurnRecord(episode_id, position, role, name, content, scope, event_at, state, bool(past))
    return found


# -------------------------------------------------------------------- retention


def retention_of(tx: Tx) -> str:
    """The file's setting, one of config.RETENTIONS."""
    row = tx.execute("select value from setting where name = 'retention'").fetchone()
    return RETENTIONS[0] if row is None else str(row[0])


def drop_turns(tx: Tx, trail: Trail, now: Instant, episode_id: EpisodeId | None = None) -> int:
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
    entries = tx.execute(f"select entry from message where entry is not null and id {these}", (ids,)).fetchall()
    if entries:
        trail.add("drop", detail={"retention": retention, GONE: ranges(entry for (entry,) in entries)})
    tx.execute(
        f"update message set content = '', grams = null, entry = null, salt = null, dropped_at = ? where id {these}",
        (now, ids),
    )
    return len(rows)
