"""Reads of single things and lists: records, history, episodes, the decision log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localmem.db import Tx
from localmem.errors import NotFoundError
from localmem.store import EpisodeRecord
from localmem.store_apply import FORGET
from localmem.store_pools import Reach, matches
from localmem.types import (
    JSON,
    Actor,
    EpisodeId,
    EvidenceRecord,
    Instant,
    Kind,
    MemoryId,
    MemoryRecord,
    Message,
    Neighbour,
    Op,
    Scope,
    VersionRecord,
)

# -------------------------------------------------------------------- records

_RECORD = (
    "select v.id, m.id, m.user_id, m.agent_id, m.run_id, v.text, v.number, m.kind, m.actor, m.metadata, m.created_at, "
    "v.recorded_at, v.valid_from, v.valid_to, m.expires_at, m.deleted_at, m.delete_reason, m.head = v.id, v.hash "
    "from memory m join version v on v.memory_id = m.id "
)


def _record(row: tuple[Any, ...]) -> MemoryRecord:
    return MemoryRecord(
        id=row[1],
        scope=Scope(row[2], row[3], row[4]),
        text=row[5],
        version=row[6],
        kind=Kind(row[7]),
        actor=Actor(row[8]),
        metadata=json.loads(row[9]),
        created_at=row[10],
        updated_at=row[11],
        valid_from=row[12],
        valid_to=row[13],
        expires_at=row[14],
        deleted_at=row[15],
        delete_reason=row[16],
    )


def records(tx: Tx, within: Reach, versions: Sequence[int]) -> dict[int, tuple[MemoryRecord, bool]]:
    """Version id -> (record, whether it is superseded or deleted), of those in reach."""
    where = within.where()
    # cross join: starting from the owner's memories would read all of them (9 ms at 10,000) for a few versions
    chosen = _RECORD.replace(
        "from memory m join version v on v.memory_id = m.id", "from version v cross join memory m on m.id = v.memory_id"
    )
    rows = tx.execute(
        f"{chosen} where v.id in (select value from json_each(?)) and {where.sql}",
        (json.dumps(list(versions)), *where.bindings),
    ).fetchall()
    found = {row[0]: (_record(row), not row[17] or row[15] is not None) for row in rows}
    return _with_contested(tx, found)


def sources(tx: Tx, versions: Sequence[int]) -> dict[int, tuple[tuple[EpisodeId, int], ...]]:
    """Version id -> (episode, position) of each turn it was said in, earliest first, but for what was taken back."""
    found: dict[int, tuple[tuple[EpisodeId, int], ...]] = {}
    for version, episode, position in tx.execute(
        "select distinct x.version_id, t.episode_id, t.position from json_each(?) j "
        "cross join evidence x on x.version_id = j.value join message t on t.id = x.message_id "
        "where coalesce(t.suppressed_at, t.dropped_at) is null order by x.event_at, t.id",
        (json.dumps(list(versions)),),
    ):
        found[version] = (*found.get(version, ()), (episode, position))
    return found


def _with_contested(tx: Tx, found: Mapping[int, tuple[MemoryRecord, bool]]) -> dict[int, tuple[MemoryRecord, bool]]:
    ids = json.dumps([record.id for record, _ in found.values()])
    others: dict[str, list[str]] = {}
    for one, other in tx.execute(
        "select memory_id, other_id from contested where memory_id in (select value from json_each(?))", (ids,)
    ):
        others.setdefault(one, []).append(other)
    return {
        version: (replace(record, contested_with=tuple(others[record.id])) if record.id in others else record, past)
        for version, (record, past) in found.items()
    }


def get(tx: Tx, memory_id: MemoryId) -> MemoryRecord | None:
    """The head of a memory, or None when unknown or deleted."""
    row = tx.execute(f"{_RECORD} where m.id = ? and m.head = v.id and m.deleted_at is null", (memory_id,)).fetchone()
    if row is None:
        return None
    return _with_contested(tx, {0: (_record(row), False)})[0][0]


def scope_of(tx: Tx, memory_id: MemoryId) -> Scope | None:
    """The scope of a memory, deleted ones too (their history can be read); None for an unknown id."""
    row = tx.execute("select user_id, agent_id, run_id from memory where id = ?", (memory_id,)).fetchone()
    return None if row is None else Scope(*row)


def list_all(tx: Tx, within: Reach, limit: int | None) -> list[MemoryRecord]:
    """Memories in reach, oldest first."""
    where = within.where()
    rows = tx.execute(
        f"{_RECORD} where {where.sql} order by m.seq, v.number limit ?",
        (*where.bindings, -1 if limit is None else limit),
    ).fetchall()
    found = _with_contested(tx, {row[0]: (_record(row), False) for row in rows})
    return [record for record, _ in found.values()]


def page(tx: Tx, within: Reach, limit: int, offset: int, *, newest_first: bool) -> tuple[list[MemoryRecord], int]:
    """Some of the memories in reach, and how many there are in all."""
    where = within.where()
    total = tx.execute(
        f"select count(*) from memory m join version v on v.memory_id = m.id where {where.sql}", where.bindings
    ).fetchone()[0]
    order = "m.seq desc, v.number desc" if newest_first else "m.seq, v.number"
    rows = tx.execute(
        f"{_RECORD} where {where.sql} order by {order} limit ? offset ?", (*where.bindings, limit, offset)
    ).fetchall()
    found = _with_contested(tx, {row[0]: (_record(row), False) for row in rows})
    return [record for record, _ in found.values()], total


def targets(tx: Tx, within: Reach) -> list[Neighbour]:
    """Every head in reach as a target of a change."""
    return [Neighbour(r.id, r.version, r.text, 1.0, r.valid_from, r.actor) for r in list_all(tx, within, None)]


def targets_ever(tx: Tx, within: Reach) -> list[Neighbour]:
    """As targets(), with the deleted memories whose words still stand in history: a forget request means them too."""
    gone = {r.id: r for r in past_versions(tx, within) if r.deleted_at is not None}
    return targets(tx, within) + [
        Neighbour(r.id, r.version, r.text, 1.0, r.valid_from, r.actor, deleted=True) for r in gone.values()
    ]


def contested(tx: Tx, within: Reach) -> list[MemoryRecord]:
    """Memories in reach that contradict another one, by a decision that was in doubt."""
    return [record for record in list_all(tx, within, None) if record.contested_with]


# -------------------------------------------------------------------- history


def history(tx: Tx, memory_id: MemoryId) -> list[VersionRecord]:
    """The life of one memory in the order of recording, its deletion last. Raises NotFoundError."""
    rows = tx.execute(
        "select v.id, v.number, iif(v.suppressed, '', v.text), v.valid_from, v.valid_to, v.recorded_at, "
        "v.superseded_at, v.reason, m.actor, "
        "m.deleted_at, m.delete_reason, m.delete_event_at, m.head = v.id "
        "from memory m join version v on v.memory_id = m.id where m.id = ? order by v.number",
        (memory_id,),
    ).fetchall()
    if not rows:
        raise NotFoundError(f"no memory has the id {memory_id}")
    told, previous = [], None
    for version, number, text, valid_from, valid_to, recorded, superseded, reason, actor, *_ in rows:
        event = Op.ADD if number == 1 else Op.UPDATE
        told.append(
            VersionRecord(
                memory_id,
                number,
                event,
                text,
                previous,
                valid_from,
                valid_to,
                recorded,
                superseded,
                reason,
                Actor(actor),
                _evidence(tx, version),
            )
        )
        previous = text
    head = next(row for row in rows if row[12])
    if head[9] is not None:
        told.append(
            VersionRecord(
                memory_id,
                head[1],
                Op.DELETE,
                "",
                head[2],
                head[11],
                None,
                head[9],
                None,
                head[10] or "",
                Actor(head[8]),
            )
        )
    return told


def _evidence(tx: Tx, version_id: int) -> tuple[EvidenceRecord, ...]:
    rows = tx.execute(
        "select t.episode_id, t.position, e.start, e.stop, "
        "iif(t.suppressed_at is null, substr(t.content, e.start + 1, e.stop - e.start), null), e.event_at, e.kind "
        "from evidence e join message t on t.id = e.message_id where e.version_id = ? order by e.event_at, e.id",
        (version_id,),
    )
    return tuple(EvidenceRecord(*row) for row in rows)


def past_versions(tx: Tx, within: Reach) -> list[MemoryRecord]:
    """Superseded and deleted versions in reach, oldest first; what its author took back is not among them."""
    where = replace(within, history=True).where()
    rows = tx.execute(
        f"{_RECORD} where {where.sql} and not (m.head = v.id and m.deleted_at is null) order by m.seq, v.number",
        where.bindings,
    )
    return [_record(row) for row in rows]


# -------------------------------------------------------------------- episodes and decisions


def pending(tx: Tx, scope: Scope | None) -> list[EpisodeId]:
    """Episodes not finished yet, in order of event time within each owner."""
    rows = tx.execute(
        "select id, user_id, agent_id, run_id from episode where state = 'pending' order by owner_id, event_at, seq"
    )
    return [id_ for id_, *ids in rows if scope is None or matches(scope, Scope(*ids))]


def episode(tx: Tx, episode_id: EpisodeId) -> EpisodeRecord:
    """Raises NotFoundError. Suppressed messages come with empty content."""
    row = tx.execute(
        "select user_id, agent_id, run_id, event_at, recorded_at, state, metadata, expires_at, attempts, error, "
        "set_aside_at is not null, owes_vectors, keep from episode where id = ?",
        (episode_id,),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"no episode has the id {episode_id}")
    messages = tx.execute(
        "select role, iif(suppressed_at is null, content, ''), name, suppressed_at from message "
        "where episode_id = ? order by position",
        (episode_id,),
    ).fetchall()
    return EpisodeRecord(
        episode_id,
        Scope(*row[:3]),
        tuple(Message(*m) for *m, _ in messages),
        row[3],
        row[4],
        row[5],
        json.loads(row[6]),
        row[7],
        row[8],
        row[9],
        bool(row[10]),
        bool(row[11]),
        frozenset(position for position, message in enumerate(messages) if message[3] is not None),
        bool(row[12]),
    )


def ingested(tx: Tx, scope: Scope) -> set[str]:
    """Every source_id that stands in the metadata of the scope's own episodes."""
    rows = tx.execute(
        "select distinct json_extract(e.metadata, '$.source_id') from episode e join owner o on o.id = e.owner_id "
        "where o.token = ? and e.user_id is ? and e.agent_id is ? and e.run_id is ? "
        "and json_type(e.metadata, '$.source_id') = 'text'",
        (scope.owner, scope.user_id, scope.agent_id, scope.run_id),
    )
    return {source_id for (source_id,) in rows}


def forgotten_words(tx: Tx, episode_id: EpisodeId) -> list[str]:
    """The forget requests of an episode that were carried out already (its other words may still wait)."""
    rows = tx.execute(
        "select fact from decision where episode_id = ? and exists (select 1 from json_each(guards) where value = ?)",
        (episode_id, FORGET),
    )
    return [words for (words,) in rows]


def recent_messages(tx: Tx, scope: Scope, *, before: EpisodeId, limit: int) -> tuple[Message, ...]:
    """The owner's last messages that happened before this episode, newest first, none that was taken back."""
    rows = tx.execute(
        "select t.role, t.content, t.name, e.event_at from episode e join message t on t.episode_id = e.id "
        "join owner o on o.id = e.owner_id, (select event_at, seq from episode where id = ?1) b "
        "where o.token = ?2 and (e.event_at < b.event_at or (e.event_at = b.event_at and e.seq < b.seq)) "
        "and e.run_id is ?3 and e.agent_id is ?4 and coalesce(t.suppressed_at, t.dropped_at) is null "
        "and t.role <> 'system' "
        "order by e.event_at desc, e.seq desc, t.position desc limit ?5",
        (before, scope.owner, scope.run_id, scope.agent_id, limit),
    )
    return tuple(Message(*row) for row in rows)


def last_changed(tx: Tx, within: Reach, before: EpisodeId) -> list[MemoryId]:
    """Memories said or confirmed by the episode that came last before this one: what "forget that" means."""
    where = within.where()
    rows = tx.execute(
        "select distinct m.id from memory m join version v on v.memory_id = m.id "
        "join evidence x on x.version_id = v.id join message t on t.id = x.message_id "
        f"where {where.sql} and t.episode_id = ({_LAST_EPISODE})",
        (*where.bindings, before),
    )
    return [row for (row,) in rows]


_LAST_EPISODE = (
    "select e.id from episode e join episode b on b.id = ? and b.owner_id = e.owner_id "
    "and e.run_id is b.run_id and e.agent_id is b.agent_id "
    "where (e.event_at, e.seq) < (b.event_at, b.seq) order by e.event_at desc, e.seq desc limit 1"
)


def last_messages(tx: Tx, before: EpisodeId) -> list[tuple[EpisodeId, int]]:
    """(episode, position) of the messages in the episode that came last before this one."""
    rows = tx.execute(
        f"select episode_id, position from message where role <> 'system' and episode_id = ({_LAST_EPISODE})", (before,)
    )
    return [(episode_id, position) for episode_id, position in rows]


def owner_messages(tx: Tx, scope: Scope, *, before: EpisodeId) -> list[tuple[EpisodeId, int]]:
    """(episode, position) of every message in the scope that came before this episode."""
    return [(episode_id, position) for episode_id, position, _ in matching_messages(tx, scope, before=before)]


def matching_messages(tx: Tx, scope: Scope, *, before: EpisodeId) -> list[tuple[EpisodeId, int, str]]:
    """(episode, position, text) of every message in the scope that came before this episode."""
    rows = tx.execute(
        "select t.episode_id, t.position, t.content from message t join episode e on e.id = t.episode_id "
        "join owner o on o.id = e.owner_id, (select event_at, seq from episode where id = ?1) b "
        "where o.token = ?2 and (?3 is null or e.agent_id is ?3) and (?4 is null or e.run_id is ?4) "
        "and (e.event_at, e.seq) < (b.event_at, b.seq) and t.suppressed_at is null",
        (before, scope.owner, scope.agent_id, scope.run_id),
    )
    return [(episode_id, position, content) for episode_id, position, content in rows]


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One line of the decision log."""

    id: int
    episode_id: EpisodeId | None
    fact: str
    quote: str
    op: Op
    targets: tuple[MemoryId, ...]
    text: str | None
    confidence: float
    probabilities: Mapping[str, float]
    guards: tuple[str, ...]
    neighbours: tuple[tuple[MemoryId, int, float], ...]
    fingerprint: Mapping[str, JSON]
    reason: str
    unsupported: bool
    at: Instant


def decisions(
    tx: Tx,
    scope: Scope,
    *,
    episode_id: EpisodeId | None = None,
    unsupported: bool | None = None,
    limit: int | None = None,
) -> list[DecisionRecord]:
    """The decision log of a scope in order, without what was taken back."""
    rows = tx.execute(
        "select d.id, d.episode_id, d.fact, d.quote, d.op, d.targets, d.text, d.confidence, d.probabilities, d.guards, "
        "d.neighbours, d.fingerprint, d.reason, d.unsupported, d.at "
        "from decision d join episode e on e.id = d.episode_id "
        "where d.suppressed = 0 and (?1 is null or e.user_id is ?1) and (?2 is null or e.agent_id is ?2) "
        "and (?3 is null or e.run_id is ?3) and (?4 is null or d.episode_id = ?4) "
        "and (?5 is null or d.unsupported = ?5) "
        "order by d.id limit ?6",
        (
            scope.user_id,
            scope.agent_id,
            scope.run_id,
            episode_id,
            None if unsupported is None else int(unsupported),
            -1 if limit is None else limit,
        ),
    )
    return [_decision(row) for row in rows]


def _decision(row: tuple[Any, ...]) -> DecisionRecord:
    return DecisionRecord(
        id=row[0],
        episode_id=row[1],
        fact=row[2],
        quote=row[3],
        op=Op(row[4]),
        targets=tuple(json.loads(row[5])),
        text=row[6],
        confidence=row[7],
        probabilities=json.loads(row[8]),
        guards=tuple(json.loads(row[9])),
        neighbours=tuple((id_, version, cosine) for id_, version, cosine in json.loads(row[10])),
        fingerprint=json.loads(row[11]),
        reason=row[12],
        unsupported=bool(row[13]),
        at=row[14],
    )


def profile_rows(tx: Tx, within: Reach, limit: int) -> list[tuple[MemoryId, int, str, Kind, Actor, Instant, int]]:
    """The newest memories in reach, and all that were said again: id, version, text, kind, actor, since, how often."""
    where = within.where()
    heads = f"from memory m join version v on v.memory_id = m.id where {where.sql}"
    again = "(select count(*) from evidence x where x.version_id = m.head and x.kind = 'confirm')"
    rows = tx.execute(
        f"select m.id, v.id, v.text, m.kind, m.actor, v.valid_from, 1 + iif(m.confirmed_at is null, 0, {again}) "
        f"{heads} and (m.confirmed_at is not null or m.seq in (select m.seq {heads} order by m.seq desc limit ?))",
        (*where.bindings, *where.bindings, limit),
    )
    return [(each, version, text, Kind(kind), Actor(actor), *rest) for each, version, text, kind, actor, *rest in rows]
