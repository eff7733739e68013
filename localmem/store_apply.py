"""One plan of changes carried out inside an open write transaction: versions, tombstones, evidence, suppression."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from localmem import rank, store_passages
from localmem import store_forgetting as forgetting
from localmem.db import Tx
from localmem.errors import ConflictError, NotFoundError
from localmem.store_audit import Text, Trail
from localmem.store_words import delete_fts, insert_fts
from localmem.types import (
    FOREVER,
    JSON,
    Change,
    Decision,
    EpisodeId,
    Fact,
    Instant,
    MemoryId,
    Neighbour,
    Op,
    Scope,
    Span,
)

if TYPE_CHECKING:
    from localmem.types import Vector, Vectors

USER_REQUEST = "user_request"  # tombstone reason: the person asked to forget it
FORGET = "forget"  # guard of a forget request's decision: its text repeats words that are being taken back
RETRACTION = "retraction"  # reason of the unseen tombstone that an ending leaves of what was not known
_REASONS = (USER_REQUEST, RETRACTION, "retracted", "manual")  # of deletions, as the audit chain names them


class OwnerMovedError(ConflictError):
    """The owner's memories changed after the snapshot in a way that matters; look again."""


class TakenBackError(ConflictError):
    """Words that a plan was made of were taken back meanwhile; read again what is left."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a set of decisions was based on."""

    revision: int
    newest_version: int  # the greatest version id of the file at that moment


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one apply() writes. ``vectors`` maps each text that may become a version to its vector."""

    scope: Scope
    decisions: tuple[Decision, ...]
    vectors: Mapping[str, Vector]
    reason: str  # model, manual, verbatim
    event_at: Instant
    episode_id: EpisodeId | None = None
    snapshot: Snapshot | None = None
    metadata: Mapping[str, JSON] | None = None  # of new memories; for a manual UPDATE: replaces
    expires_at: Instant | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    log: bool = False  # write the decision log
    suppress: tuple[tuple[EpisodeId, int], ...] = ()  # messages taken back
    finish: bool = True  # False: the episode goes on after this plan
    guard_targets: bool = False  # a change by hand: only of the version that was read
    passages: Mapping[str, Vectors] = field(default_factory=dict)  # of long texts, see store_passages.py
    taken_back: frozenset[int] | None = None  # of its episode's messages, which were left out when it was read
    dismiss: bool = False  # what waits in the scope is not read any more


def new_id(now: Instant) -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, 74 random bits."""
    value = (now // 1000 & (2**48 - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def to_json(value: JSON) -> str:
    """Compact JSON text as stored. NaN and infinity are refused with ValueError."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class Changes:
    """One run over a plan's decisions inside an open write transaction."""

    def __init__(self, tx: Tx, trail: Trail, plan: Plan, now: Instant, episode_id: EpisodeId | None) -> None:
        self.tx, self.trail, self.plan, self.now, self.episode_id = tx, trail, plan, now, episode_id
        self.owner = owner_row(tx, plan.scope)
        self.messages = _message_ids(tx, episode_id)
        self.changed: set[int] = set()  # owners
        self._tokens: dict[int, str] = {}  # of owners, by their id

    def run(self) -> list[Change]:
        changes: list[Change] = []
        for position, decision in enumerate(self.plan.decisions):
            log_id = self._log(position, decision) if self.plan.log else None
            if not decision.unsupported:
                changes += self._change(decision, log_id)
        self._suppress()
        for owner in self.changed:
            self.tx.execute("update owner set revision = revision + 1 where id = ?", (owner,))
        return changes

    def _change(self, decision: Decision, log_id: int | None) -> list[Change]:
        if decision.op is Op.ADD:
            return [self._add(decision, log_id)]
        if decision.op is Op.UPDATE:
            return self._update(decision, log_id)
        if decision.op is Op.DELETE:
            return [self._delete(target.id, decision.fact, log_id, decision.reason) for target in decision.targets]
        return self._noop(decision, log_id)

    # -- ADD

    def _add(self, decision: Decision, log_id: int | None) -> Change:
        fact, plan = decision.fact, self.plan
        memory_id = self._insert_memory(fact, log_id, decision.text or fact.text)
        for other in decision.contested:
            if self._row(other.id).deleted_at is None:
                contest(self.tx, memory_id, other.id, log_id)
        if decision.ends:
            self._ghost(decision.ends, fact, log_id)
        return Change(
            Op.ADD,
            memory_id,
            decision.text or fact.text,
            version=1,
            reason=decision.reason or plan.reason,
            contested=bool(decision.contested),
        )

    def _insert_memory(self, fact: Fact, log_id: int | None, text: str) -> MemoryId:
        memory_id, scope = new_id(self.now), self.plan.scope
        (seq,) = self.tx.execute("select coalesce(max(seq), 0) + 1 from memory").fetchone()
        version_id, _ = self._next_version(memory_id)
        self.tx.execute(
            "insert into memory (id, seq, owner_id, user_id, agent_id, run_id, kind, actor, metadata, created_at, "
            "expires_at, head) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                memory_id,
                seq,
                self.owner,
                scope.user_id,
                scope.agent_id,
                scope.run_id,
                str(fact.kind),
                str(fact.actor),
                to_json(dict(self.plan.metadata or {})),
                self.now,
                self.plan.expires_at,
                version_id,
            ),
        )
        self._insert_version("add", memory_id, version_id, 1, text, fact, None, None, log_id)
        return memory_id

    def _insert_version(
        self,
        op: str,
        memory_id: MemoryId,
        version_id: int,
        number: int,
        text: str,
        fact: Fact,
        valid_to: Instant | None,
        superseded_at: Instant | None,
        log_id: int | None,
        vector: bytes | None = None,
    ) -> None:
        """One version with its vector, words, mentions and evidence. It is live unless superseded_at is given."""
        grams = rank.grams(text)
        vector = vector or blob_of(self.plan.vectors[text])
        row = _memory_row(self.tx, memory_id)
        reason = {"reason": self.plan.reason}
        place = (row.user_id, row.agent_id, row.run_id, row.actor, None)
        which = Text("version", self._token(row.owner_id), row.id, number, *place, text)
        entry, salt = self.trail.text(op, which, decision_id=log_id, detail=reason)
        self.tx.execute(
            "insert into version (id, memory_id, number, text, hash, grams, words, valid_from, valid_to, "
            "recorded_at, superseded_at, reason, decision_id, entry, salt) values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                version_id,
                memory_id,
                number,
                text,
                hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
                grams,
                rank.word_count(text),
                fact.event_at,
                valid_to,
                self.now,
                superseded_at,
                self.plan.reason,
                log_id,
                entry,
                salt,
            ),
        )
        live = superseded_at is None
        self.tx.execute(
            "insert into memory_vec (rowid, embedding, owner_id, live, valid_from, valid_to, expires_at, agent, run) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                version_id,
                vector,
                row.owner_id,
                int(live),
                fact.event_at,
                FOREVER if valid_to is None else valid_to,
                FOREVER if row.expires_at is None else row.expires_at,
                row.agent_id or "",
                row.run_id or "",
            ),
        )
        later = self.plan.passages.get(text, ())
        store_passages.keep(self.tx, store_passages.MEMORIES, row.owner_id, version_id, later)
        insert_fts(self.tx, "memory_fts", version_id, f"{'o' if live else 'h'}{row.owner_id}", text, grams)
        self.tx.executemany(
            "insert into mention (owner_id, name, version_id) values (?, ?, ?)",
            [(row.owner_id, name, version_id) for name in rank.mentions(text)],
        )
        self._evidence(version_id, fact, "support")
        self.changed.add(row.owner_id)
        if live:
            self._count(row.owner_id, 1, rank.word_count(text))

    # -- UPDATE

    def _update(self, decision: Decision, log_id: int | None) -> list[Change]:
        target, *others = decision.targets
        text, fact = decision.text or decision.fact.text, decision.fact
        row = self._row(target.id)
        changes = [self._supersede(row, text, fact, log_id, decision.reason)]
        changes += [
            self._delete(other.id, fact, log_id, f"merged into {target.id}")
            for other in others
            if other.id != target.id
        ]
        return changes

    def _supersede(self, row: _Row, text: str, fact: Fact, log_id: int | None, reason: str) -> Change:
        if row.delete_reason == USER_REQUEST:
            return self._taken_back(row, fact)
        version_id, number = self._next_version(row.id)
        if row.deleted_at is not None or fact.event_at < row.valid_from:
            return self._insert_earlier(row, version_id, number, text, fact, log_id)
        if fact.event_at < self._last_said(row):
            self._split(row, fact.event_at, log_id)
            version_id, number = self._next_version(row.id)
            return self._insert_earlier(self._row(row.id), version_id, number, text, fact, log_id)
        self._retire(row, valid_to=fact.event_at)
        self.tx.execute("update memory set head = ? where id = ?", (version_id, row.id))
        if self.plan.metadata is not None and self.plan.reason == "manual":
            self.tx.execute("update memory set metadata = ? where id = ?", (to_json(dict(self.plan.metadata)), row.id))
        self._insert_version("update", row.id, version_id, number, text, fact, None, None, log_id)
        _clear_contested(self.tx, row.id)
        return Change(Op.UPDATE, row.id, text, row.text, number, reason or self.plan.reason)

    def _last_said(self, row: _Row) -> Instant:
        """When the head's text was last said: a change before that does not end it. By hand the last writer wins."""
        if self.plan.reason != "model":
            return row.valid_from
        [(said,)] = self.tx.execute("select max(event_at) from evidence where version_id = ?", (row.head,)).fetchall()
        return max(row.valid_from, said or row.valid_from)

    def _split(self, row: _Row, event_at: Instant, log_id: int | None) -> None:
        """The head was said before event_at and again after it: the time before becomes a version of its own."""
        [(again,)] = self.tx.execute(
            "select min(event_at) from evidence where version_id = ? and event_at > ?", (row.head, event_at)
        ).fetchall()
        [(vector,)] = self.tx.execute("select embedding from memory_vec where rowid = ?", (row.head,)).fetchall()
        if event_at > row.valid_from:
            version_id, number = self._next_version(row.id)
            earlier = Fact(text=row.text, event_at=row.valid_from)
            self._insert_version(
                "earlier", row.id, version_id, number, row.text, earlier, event_at, self.now, log_id, vector
            )
            store_passages.copy(self.tx, row.head, version_id)
        self._begin_head(row, again)

    def _begin_head(self, row: _Row, valid_from: Instant) -> None:
        self.tx.execute("update version set valid_from = ? where id = ?", (valid_from, row.head))
        self.tx.execute("update memory_vec set valid_from = ? where rowid = ?", (valid_from, row.head))
        self.changed.add(row.owner_id)

    def _insert_earlier(
        self, row: _Row, version_id: int, number: int, text: str, fact: Fact, log_id: int | None
    ) -> Change:
        """Order of time: a fact older than the head never becomes head, it takes its place in the past."""
        before = self.tx.execute(
            "select id, valid_to from version where memory_id = ? and valid_from <= ? "
            "order by valid_from desc, number desc limit 1",
            (row.id, fact.event_at),
        ).fetchone()
        (after,) = self.tx.execute(
            "select min(valid_from) from version where memory_id = ? and valid_from > ?", (row.id, fact.event_at)
        ).fetchone()
        valid_to = after if after is not None else row.delete_event_at
        if row.delete_reason == RETRACTION:  # what had ended is known now: from here on an ordinary tombstone
            self.tx.execute("update memory set delete_reason = 'retracted' where id = ?", (row.id,))
            insert_fts(self.tx, "memory_fts", row.head, f"h{row.owner_id}", row.text, row.grams)
        if before is not None:
            self.tx.execute("update version set valid_to = ? where id = ?", (fact.event_at, before[0]))
            self.tx.execute("update memory_vec set valid_to = ? where rowid = ?", (fact.event_at, before[0]))
        self._insert_version("earlier", row.id, version_id, number, text, fact, valid_to, self.now, log_id)
        return Change(Op.NOOP, row.id, row.text, text, number, "older than the current version: kept as an earlier one")

    # -- DELETE

    def _delete(self, memory_id: MemoryId, fact: Fact, log_id: int | None, reason: str) -> Change:
        row = self._row(memory_id)
        if row.deleted_at is not None and reason == USER_REQUEST and row.delete_reason != USER_REQUEST:
            self.tx.execute("update memory set delete_reason = ? where id = ?", (USER_REQUEST, row.id))
            forgetting.suppress_memory(self.tx, self.now, row.id)
            self.trail.add("delete", **self._named(row), decision_id=log_id, detail={"reason": USER_REQUEST})
            self.changed.add(row.owner_id)
            return Change(Op.DELETE, row.id, row.text, row.text, row.number, USER_REQUEST)
        if row.deleted_at is not None:
            return Change(Op.NOOP, row.id, row.text, reason="already deleted")
        if fact.event_at < row.valid_from and self.plan.reason == "model":
            return Change(Op.NOOP, row.id, row.text, reason="the memory is newer than the retraction")
        if self.plan.reason == "model" and fact.event_at < self._last_said(row):
            self._split(row, fact.event_at, log_id)
            return Change(Op.NOOP, row.id, row.text, reason="the memory was said again after the retraction")
        event_at = max(fact.event_at, row.valid_from)
        self._retire(row, valid_to=event_at)
        why = reason or self.plan.reason
        self._bury(row.id, event_at, why, log_id)
        self._evidence(row.head, fact, "confirm")
        _clear_contested(self.tx, row.id)
        if why == USER_REQUEST:
            forgetting.suppress_memory(self.tx, self.now, row.id)
        return Change(Op.DELETE, row.id, row.text, row.text, row.number, why)

    def _bury(self, memory_id: MemoryId, event_at: Instant, why: str, log_id: int | None) -> None:
        self.tx.execute(
            "update memory set deleted_at = ?, delete_event_at = ?, delete_reason = ?, delete_decision = ? "
            "where id = ?",
            (self.now, event_at, why, log_id, memory_id),
        )
        reason = "merged" if why.startswith("merged") else why if why in _REASONS else "model"
        self.trail.add("delete", **self._named(self._row(memory_id)), decision_id=log_id, detail={"reason": reason})

    def _retire(self, row: _Row, *, valid_to: Instant) -> None:
        """The head stops being searchable as current; its text and vector stay for history."""
        self.tx.execute(
            "update version set valid_to = ?, superseded_at = ? where id = ?",
            (valid_to, max(self.now, row.recorded_at), row.head),
        )
        self.tx.execute("update memory_vec set live = 0, valid_to = ? where rowid = ?", (valid_to, row.head))
        delete_fts(self.tx, "memory_fts", row.head, f"o{row.owner_id}", row.text, row.grams)
        insert_fts(self.tx, "memory_fts", row.head, f"h{row.owner_id}", row.text, row.grams)
        self.changed.add(row.owner_id)
        self._count(row.owner_id, -1, -rank.word_count(row.text))

    def _count(self, owner: int, documents: int, words: int) -> None:
        """The owner's BM25 statistics, over live heads."""
        self.tx.execute(
            "update owner set documents = documents + ?, words = words + ? where id = ?", (documents, words, owner)
        )

    # -- NOOP

    def _noop(self, decision: Decision, log_id: int | None) -> list[Change]:
        fact = decision.fact
        if not decision.targets:
            return [Change(Op.NOOP, None, fact.text, reason=decision.reason)]
        row = self._row(decision.targets[0].id)
        if row.delete_reason == USER_REQUEST:
            return [self._taken_back(row, fact)]
        if row.deleted_at is not None:  # said before it was deleted, heard after
            version_id, number = self._next_version(row.id)
            return [self._insert_earlier(row, version_id, number, fact.text, fact, log_id)]
        self._evidence(row.head, fact, "confirm")
        self.trail.add("confirm", **self._named(row), decision_id=log_id)
        self.tx.execute(
            "update memory set confirmed_at = max(coalesce(confirmed_at, 0), ?) where id = ?", (fact.event_at, row.id)
        )
        if fact.event_at < row.valid_from:
            self._begin_earlier(row, fact, log_id)
        return [Change(Op.NOOP, row.id, row.text, reason=decision.reason)]

    def _begin_earlier(self, row: _Row, fact: Fact, log_id: int | None) -> None:
        """The head was said before its time began: it begins then, unless something else was true in between."""
        [(between,)] = self.tx.execute(
            "select count(*) from version where memory_id = ? and id <> ? and valid_from > ? and valid_from <= ?",
            (row.id, row.head, fact.event_at, row.valid_from),
        ).fetchall()
        if between:
            version_id, number = self._next_version(row.id)
            self._insert_earlier(row, version_id, number, fact.text, fact, log_id)
            return
        ended = self.tx.execute(
            "select id from version where memory_id = ? and id <> ? and valid_to = ?",
            (row.id, row.head, row.valid_from),
        ).fetchall()
        for (version_id,) in ended:
            self.tx.execute("update version set valid_to = ? where id = ?", (fact.event_at, version_id))
            self.tx.execute("update memory_vec set valid_to = ? where rowid = ?", (fact.event_at, version_id))
        self._begin_head(row, fact.event_at)

    def _ghost(self, text: str, fact: Fact, log_id: int | None) -> None:
        """An ending before its fact: an unseen tombstone, so that the older fact can't become head when it comes."""
        memory_id = self._insert_memory(fact, log_id, text)
        row = self._row(memory_id)
        delete_fts(self.tx, "memory_fts", row.head, f"o{row.owner_id}", row.text, row.grams)
        self._count(row.owner_id, -1, -rank.word_count(text))
        self.tx.execute("update memory_vec set live = 0, valid_to = ? where rowid = ?", (fact.event_at, row.head))
        self.tx.execute(
            "update version set valid_to = valid_from, superseded_at = ? where id = ?", (self.now, row.head)
        )
        self._bury(memory_id, fact.event_at, RETRACTION, log_id)

    # -- forgetting

    def _suppress(self) -> None:
        for episode_id, position in self.plan.suppress:
            self.trail.add("suppress", owner=self.plan.scope.owner, subject=episode_id)
            row = self.tx.execute(
                "select id from message where episode_id = ? and position = ?", (episode_id, position)
            ).fetchone()
            if row is not None:
                forgetting.suppress_message(self.tx, self.now, row[0])

    def _taken_back(self, row: _Row, fact: Fact) -> Change:
        """Said before its author asked to forget it, heard after: it goes the same way at once."""
        if fact.span is not None and fact.span.message in self.messages:
            forgetting.suppress_message(self.tx, self.now, self.messages[fact.span.message])
            self.trail.add("suppress", **self._named(row))
        return Change(Op.NOOP, row.id, "", reason="taken back by its author")

    # -- shared

    def _evidence(self, version_id: int, fact: Fact, kind: str) -> None:
        if fact.span is None or fact.span.message not in self.messages:
            return
        self.tx.execute(
            "insert or ignore into evidence (version_id, message_id, start, stop, kind, event_at) "
            "values (?, ?, ?, ?, ?, ?)",
            (version_id, self.messages[fact.span.message], fact.span.start, fact.span.end, kind, fact.event_at),
        )

    def _named(self, row: _Row) -> dict[str, Any]:
        """Whose a memory is and which, as an entry of the audit chain is told."""
        return {"owner": self._token(row.owner_id), "subject": row.id}

    def _token(self, owner: int) -> str:
        if owner not in self._tokens:
            [(self._tokens[owner],)] = self.tx.execute("select token from owner where id = ?", (owner,)).fetchall()
        return self._tokens[owner]

    def _row(self, memory_id: MemoryId) -> _Row:
        return _memory_row(self.tx, memory_id)

    def _next_version(self, memory_id: MemoryId) -> tuple[int, int]:
        """(version id, number). Ids are never used again, not even after a reset."""
        [(version_id, number)] = self.tx.execute(
            "select max(coalesce((select max(id) from version), 0), "
            "coalesce((select seq from sqlite_sequence where name = 'version'), 0)) + 1, "
            "coalesce((select max(number) from version where memory_id = ?), 0) + 1",
            (memory_id,),
        ).fetchall()
        return version_id, number

    def _log(self, position: int, decision: Decision) -> int:
        fact = decision.fact
        self.tx.execute(
            "insert into decision (episode_id, owner_id, position, message, fact, quote, op, targets, text, "
            "confidence, probabilities, guards, neighbours, fingerprint, reason, unsupported, suppressed, at) "
            "values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                self.episode_id,
                self.owner,
                position,
                None if fact.span is None else fact.span.message,
                fact.text,
                fact.quote,
                str(decision.op),
                to_json([target.id for target in decision.targets]),
                decision.text,
                decision.confidence,
                to_json({name: round(p, 4) for name, p in decision.probabilities.items()}),
                to_json(list(decision.guards)),
                to_json([[n.id, n.version, round(n.cosine, 4)] for n in decision.neighbours]),
                to_json(dict(self.plan.fingerprint)),
                decision.reason,
                int(decision.unsupported),
                int(FORGET in decision.guards),
                self.now,
            ),
        )
        return self.tx.last_insert_rowid()


@dataclass(frozen=True, slots=True)
class _Row:
    """A memory joined with its head, as the write path needs it."""

    id: MemoryId
    owner_id: int
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    actor: str
    expires_at: Instant | None
    deleted_at: Instant | None
    delete_event_at: Instant | None
    delete_reason: str | None
    head: int
    number: int
    text: str
    grams: str | None
    valid_from: Instant
    recorded_at: Instant


def _memory_row(tx: Tx, memory_id: MemoryId) -> _Row:
    """Raises NotFoundError for an unknown id. Inside an insert the head may not be there yet: its fields are empty."""
    row = tx.execute(
        "select m.id, m.owner_id, m.user_id, m.agent_id, m.run_id, m.actor, m.expires_at, "
        "m.deleted_at, m.delete_event_at, m.delete_reason, m.head, "
        "coalesce(v.number, 0), coalesce(v.text, ''), v.grams, coalesce(v.valid_from, 0), coalesce(v.recorded_at, 0) "
        "from memory m left join version v on v.id = m.head where m.id = ?",
        (memory_id,),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"no memory has the id {memory_id}")
    return _Row(*row)


def owner_row(tx: Tx, scope: Scope) -> int:
    tx.execute("insert into owner (token) values (?) on conflict do nothing", (scope.owner,))
    return int(tx.execute("select id from owner where token = ?", (scope.owner,)).fetchone()[0])


def _message_ids(tx: Tx, episode_id: EpisodeId | None) -> dict[int, int]:
    if episode_id is None:
        return {}
    return dict(tx.execute("select position, id from message where episode_id = ?", (episode_id,)).fetchall())


def contest(tx: Tx, one: MemoryId, other: MemoryId, log_id: int | None) -> None:
    tx.executemany(
        "insert or ignore into contested (memory_id, other_id, decision_id) values (?, ?, ?)",
        [(one, other, log_id), (other, one, log_id)],
    )


def _clear_contested(tx: Tx, memory_id: MemoryId) -> None:
    tx.execute("delete from contested where memory_id = ?1 or other_id = ?1", (memory_id,))


def blob_of(vector: Any) -> bytes:
    """float32 bytes of a unit vector; vec0 checks bytes only, so shape and numbers are checked here."""
    array = np.ascontiguousarray(vector, dtype="<f4")
    if array.ndim != 1 or not np.isfinite(array).all() or not array.any():
        raise ValueError(f"an embedding must be one finite, non-zero row, not shape {array.shape}")
    return array.tobytes()


def refuse_if_moved(tx: Tx, plan: Plan) -> None:
    """Step 6's second look: only what appeared after the snapshot, and only where it matters to a decision."""
    assert plan.snapshot is not None
    row = tx.execute("select id, revision from owner where token = ?", (plan.scope.owner,)).fetchone()
    if row is None or row[1] == plan.snapshot.revision:
        return
    refuse_if_targets_moved(tx, plan)
    fresh = tx.execute(
        "select v.text, x.embedding from version v join memory m on m.head = v.id join memory_vec x on x.rowid = v.id "
        "where v.id > ? and m.owner_id = ? and m.deleted_at is null",
        (plan.snapshot.newest_version, row[0]),
    ).fetchall()
    proposed = [d for d in plan.decisions if d.op in (Op.ADD, Op.UPDATE) and not d.unsupported]
    for decision in proposed:
        text = decision.text or decision.fact.text
        vector = np.asarray(plan.vectors[text], dtype="f4")
        for other, blob in fresh:
            near = float(vector @ np.frombuffer(blob, dtype="<f4"))
            if rank.key(other) == rank.key(text) or near >= rank.NEAR_DUPLICATE_COSINE:
                raise OwnerMovedError("a near duplicate was stored meanwhile")


def refuse_if_taken_back(tx: Tx, plan: Plan) -> None:
    """Raise TakenBackError when a message of the plan's episode was suppressed after it was read."""
    if plan.taken_back is None:
        return
    statement = "select position from message where episode_id = ? and suppressed_at is not null"
    if {position for (position,) in tx.execute(statement, (plan.episode_id,))} - plan.taken_back:
        raise TakenBackError(f"words of episode {plan.episode_id} were taken back while it was read")


def refuse_if_targets_moved(tx: Tx, plan: Plan) -> None:
    """Raise OwnerMovedError when a memory that a decision is about has another version now, or is deleted."""
    for decision in plan.decisions:
        for seen in (*decision.targets, *decision.contested):
            _refuse_if_target_moved(tx, seen)


def _refuse_if_target_moved(tx: Tx, seen: Neighbour) -> None:
    row = tx.execute(
        "select v.number, m.deleted_at from memory m join version v on v.id = m.head where m.id = ?", (seen.id,)
    ).fetchone()
    if row is None or row[0] != seen.version or (row[1] is not None) != seen.deleted:
        raise OwnerMovedError(f"memory {seen.id} moved from version {seen.version} meanwhile; search again")


def neighbour_of(memory_id: MemoryId, version: int, text: str, event_at: Instant) -> Neighbour:
    """A target given by hand rather than found: cosine 1."""
    return Neighbour(memory_id, version, text, 1.0, event_at)


def stated(text: str, event_at: Instant, message: int | None = None) -> Fact:
    """A fact stated by hand or stored verbatim, supported by the whole of one message where there is one."""
    span = None if message is None else Span(message, 0, len(text))
    return Fact(text=text, span=span, event_at=event_at)
