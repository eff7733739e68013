"""What the file holds: the embedder's identity, episodes, and apply(), the one place where memories change.

The changes themselves are in store_apply.py, reads in store_pools.py and store_read.py, invariants in store_check.py,
vectors made anew in store_vectors.py.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localmem import rank, store_queue
from localmem.db import Database, Tx, sql_file
from localmem.errors import AuditError, EmbedderMismatchError, KeyRefusedError, NotFoundError, StorageError
from localmem.store_apply import (
    Changes,
    Plan,
    neighbour_of,
    new_id,
    owner_row,
    refuse_if_moved,
    refuse_if_taken_back,
    refuse_if_targets_moved,
    stated,
    to_json,
)
from localmem.store_audit import (
    BROKEN,
    FILE,
    GONE,
    KEY,
    Checkpoint,
    Signer,
    Text,
    Trail,
    begin,
    key_id_of,
    ranges,
    settings_of,
    text_entries,
)
from localmem.store_matrix import Matrices
from localmem.store_turns import drop_turns, retention_of
from localmem.store_verify import verify
from localmem.store_waiting import Waiting
from localmem.store_words import delete_fts, insert_fts
from localmem.types import (
    JSON,
    Change,
    Decision,
    Embedder,
    EpisodeId,
    Instant,
    Message,
    Op,
    Scope,
)

if TYPE_CHECKING:
    from localmem.types import Vector, Vectors


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """An episode as recorded. ``mode``: infer or verbatim. ``state``: pending or done."""

    id: EpisodeId
    scope: Scope
    messages: tuple[Message, ...]
    event_at: Instant
    recorded_at: Instant
    state: str
    metadata: Mapping[str, JSON]
    expires_at: Instant | None
    attempts: int
    error: str | None
    set_aside: bool = False  # failed too often: no worker takes it up again
    owes_vectors: bool = False  # some of its turns are found by their words alone so far
    taken_back: frozenset[int] = frozenset()  # positions of messages that are suppressed
    keep: bool = False  # somebody asked for it to be remembered


@dataclass(frozen=True, slots=True)
class Incoming:
    """One episode to be recorded. ``vectors``: of its messages, by position; those without one are owed.
    ``passages``: of long ones, by text."""

    scope: Scope
    messages: Sequence[Message]
    event_at: Instant
    vectors: Mapping[int, Vector]
    passages: Mapping[str, Vectors]
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    expires_at: Instant | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Verbatim:
    """An episode whose messages are memories as they are. ``later``: what its last memory came to say, in order of
    time; the plan's vectors are of these texts too."""

    plan: Plan
    messages: tuple[Message, ...]
    later: tuple[tuple[str, Instant], ...] = ()


SourcesOf = Callable[[Tx, Scope], set[str]]  # the source_ids that were added to a scope


class _Known:
    """What was added before, looked up once for each scope."""

    def __init__(self, tx: Tx, sources_of: SourcesOf | None) -> None:
        self._tx, self._sources_of = tx, sources_of
        self._found: dict[Scope, set[str]] = {}

    def holds(self, scope: Scope, metadata: Mapping[str, JSON]) -> bool:
        """Whether an episode of this source_id is there."""
        source_id = metadata.get("source_id")
        if self._sources_of is None or not isinstance(source_id, str):
            return False
        if scope not in self._found:
            self._found[scope] = self._sources_of(self._tx, scope)
        return source_id in self._found[scope]


class Store:
    """The write side of one localmem file. Every public method is one transaction."""

    def __init__(
        self,
        db: Database,
        embedder: Embedder,
        *,
        now: Instant,
        signer: Signer | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.db = db
        self.signer = signer or Signer()
        self._checkpoint = checkpoint
        self.dim = embedder.dim
        self.matrices = Matrices(embedder.dim)
        self.waiting = Waiting(embedder.dim)
        self._embedder = identity(embedder)
        self._claim()
        self._begin_audit(now)

    # ---------------------------------------------------------------- the file's embedder

    def _claim(self) -> None:
        """Write the embedder's identity into a new file; refuse a file written with another one."""
        with self.db.snapshot() as tx:
            found = settings_of(tx)
        if not found and not self.db.read_only:
            with self.db.write() as tx:
                found = settings_of(tx)  # another process may have been faster
                if not found:
                    tx.execute(sql_file("vectors.sql").format(dim=self.dim))
                    tx.executemany("insert into setting (name, value) values (?, ?)", list(self._embedder.items()))
                    found = self._embedder
        self._compare(found)

    def _compare(self, found: Mapping[str, str]) -> None:
        if found.items() >= self._embedder.items():
            return
        raise EmbedderMismatchError(
            f"{self.db.path or ':memory:'} holds vectors of the embedder {_described(found)}, and can't be mixed with "
            f"those of {_described(self._embedder)}. Open it with the embedder it was made with, or make its vectors "
            "anew with another one: localmem.reembed(path, embedder)"
        )

    @contextlib.contextmanager
    def write(self) -> Iterator[Tx]:
        """One transaction; EmbedderMismatchError when another process has made the file's vectors anew meanwhile."""
        with self.db.write() as tx:
            self._compare(settings_of(tx))
            yield tx

    @contextlib.contextmanager
    def change(self, now: Instant) -> Iterator[tuple[Tx, Trail]]:
        """One transaction whose entries in the audit chain land with it."""
        with self.write() as tx:
            trail = Trail(tx, self.signer, now)
            yield tx, trail
            trail.close()
        if self._checkpoint is not None:
            self._checkpoint.append(trail)

    def checkpoint_lines(self, path: Path | None = None) -> list[str] | None:
        """The lines of a checkpoint file, of the store's own if no other is named; StorageError without it."""
        found = path or (self._checkpoint.path if self._checkpoint is not None else None)
        if found is None:
            return None
        try:
            return found.read_text("utf-8", errors="replace").splitlines()
        except OSError as error:
            raise StorageError(f"the checkpoint file {found} can't be read: {error.strerror}") from None

    @property
    def audits_reads(self) -> bool:
        """Whether reads are entered in the audit chain. A setting of the file, for all who open it."""
        with self.db.snapshot() as tx:
            return settings_of(tx).get("audit_reads") == "1"

    def audit_reads(self, wanted: bool, now: Instant) -> None:
        """Enter reads from now on, or no longer."""
        with self.change(now) as (tx, trail):
            tx.execute("insert or replace into setting (name, value) values ('audit_reads', ?)", (str(int(wanted)),))
            trail.add("audit_reads", detail={"on": wanted})

    def enter(self, op: str, now: Instant, *, owner: str | None = None, seen: Sequence[str] = ()) -> None:
        """An entry of its own in the audit chain, for what changes nothing: a read, an export. ``seen``: memory ids."""
        with self.change(now) as (_, trail):
            trail.add(op, owner=owner, detail={"seen": [trail.name(each) for each in seen]} if seen else None)

    def acting_as(self, actor: str) -> Store:
        """The same store, whose entries in the audit chain name this actor."""
        other = copy.copy(self)
        other.signer = replace(self.signer, actor=actor)
        return other

    def _begin_audit(self, now: Instant) -> None:
        """Begin the chain of a new file, or of one from before there was one; tell the checkpoint file where it is."""
        with self.db.snapshot() as tx:
            begun = KEY in settings_of(tx)
        if self.db.read_only:
            return
        if not begun:
            with self.db.write() as tx:
                begin(tx, self.signer, now)
        if self._checkpoint is None:
            return
        self._checkpoint.touch()
        with self.db.snapshot() as tx, contextlib.suppress(KeyRefusedError):  # who may not write makes no mark
            trail = Trail(tx, self.signer, now)
            if self._checkpoint.last_head() != trail.head.hash.hex():
                self._checkpoint.append(trail)

    def is_signed_by(self, signer: Signer) -> bool:
        """Whether the file says that its chain is signed with this key, or with none where it has none."""
        with self.snapshot() as tx:
            settings = settings_of(tx)
        try:
            return settings.get(KEY, "") == key_id_of(signer.secret(bytes.fromhex(settings[FILE])))
        except (KeyError, ValueError):
            raise AuditError(BROKEN) from None

    def sign_audit(self, previous: Signer, now: Instant) -> None:
        """Sign the chain with this store's key from now on, after it was verified with the one so far.

        AuditError where it does not verify: to sign it would vouch for it.
        """
        lines = self.checkpoint_lines()
        with self.write() as tx:
            problems = verify(tx, previous, lines).problems
            if problems:
                raise AuditError(f"the chain does not verify, so it was not signed: {'; '.join(problems[:3])}")
            trail = Trail(tx, self.signer, now, replacing=previous)
            trail.close()
        if self._checkpoint is not None:
            self._checkpoint.append(trail)

    @contextlib.contextmanager
    def snapshot(self, *, fresh: bool = False) -> Iterator[Tx]:
        """One consistent view for several reads; raises as `write` does."""
        with self.db.snapshot(fresh=fresh) as tx:
            self._compare(settings_of(tx))
            yield tx

    # ---------------------------------------------------------------- episodes

    def record_episodes(
        self,
        coming: Sequence[Incoming],
        now: Instant,
        *,
        due_at: Instant = 0,
        unless: SourcesOf | None = None,
    ) -> list[EpisodeId | None]:
        """Write words down as ``pending`` before anything is made of them: all of these episodes, or none.

        due_at: before then no worker takes them up. unless: which source_ids a scope has; an episode whose metadata
        has one of them is left out, None in its place.
        """
        with self.change(now) as (tx, trail):
            known = _Known(tx, unless)
            return [
                None if known.holds(each.scope, each.metadata) else _record(tx, trail, each, now, due_at)
                for each in coming
            ]

    def record_verbatim(
        self, recordings: Sequence[Verbatim], now: Instant, *, unless: SourcesOf | None = None
    ) -> list[tuple[EpisodeId, list[Change]] | None]:
        """``infer=False``: episodes and one memory a message, in one transaction. Decision i is message i's.

        unless: as of `record_episodes`.
        """
        with self.change(now) as (tx, trail):
            known = _Known(tx, unless)
            return [
                None
                if known.holds(each.plan.scope, each.plan.metadata or {})
                else _record_verbatim(tx, trail, each, now)
                for each in recordings
            ]

    def episode_failed(self, episode_id: EpisodeId, error: str, now: Instant, *, blamed: bool = True) -> None:
        """Note why an episode is still pending, see `store_queue.failed`."""
        with self.write() as tx:
            store_queue.failed(tx, episode_id, error, now, blamed=blamed)

    # ---------------------------------------------------------------- retention

    @property
    def retention(self) -> str:
        """Which turns stay once they are extracted: one of config.RETENTIONS. Kept in the file, for all who open it."""
        with self.snapshot() as tx:
            return retention_of(tx)

    def retain(self, retention: str, now: Instant) -> int:
        """Set the file's retention; how many turns of earlier episodes it took the words of. There is no way back."""
        with self.change(now) as (tx, trail):
            tx.execute("insert or replace into setting (name, value) values ('retention', ?)", (retention,))
            trail.add("retention", detail={"retention": retention})
            return drop_turns(tx, trail, now)

    # ---------------------------------------------------------------- change

    def apply(self, plan: Plan, now: Instant) -> tuple[Change, ...] | None:
        """Write all decisions of a plan, or nothing.

        None: the plan's episode was finished by someone else meanwhile. Raises OwnerMovedError when the owner
        changed after ``plan.snapshot`` in a way that touches these decisions, NotFoundError for an unknown target
        of a manual change.
        """
        with self.change(now) as (tx, trail):
            if plan.episode_id is not None and _episode_state(tx, plan.episode_id) != "pending":
                return None
            refuse_if_taken_back(tx, plan)
            if plan.guard_targets:
                refuse_if_targets_moved(tx, plan)
            if plan.snapshot is not None:
                refuse_if_moved(tx, plan)
            changes = Changes(tx, trail, plan, now, plan.episode_id).run()
            if plan.episode_id is not None and plan.finish:
                _finish_episode(tx, plan.episode_id)
                drop_turns(tx, trail, now, plan.episode_id)
            if plan.dismiss:
                _dismiss(tx, trail, plan.scope, now)
            return tuple(changes)

    def reset(self, now: Instant) -> int:
        """Delete everything in the file but the audit chain, history included; returns how many memories there were."""
        with self.change(now) as (tx, trail):
            (count,) = tx.execute("select count(*) from memory").fetchone()
            trail.add("reset", detail={"memories": count, GONE: ranges(text_entries(tx))})
            tx.execute("delete from memory_vec")
            tx.execute("delete from turn_vec")
            tx.execute("delete from passage")
            tx.execute("update memory set delete_decision = null")
            tx.execute("delete from reembedded")
            for table in ("contested", "mention", "evidence", "version", "memory", "decision", "message", "episode"):
                tx.execute(f"delete from {table}")
            tx.execute("delete from owner")  # whose ids begin anew
            tx.execute("insert or replace into setting (name, value) values ('epoch', ?)", (new_id(0),))
            for index in ("memory_fts", "turn_fts"):  # 'delete-all' leaves other connections with a stale structure
                tx.execute(f"insert into {index} ({index}) values ('rebuild')")
            return int(count)


def identity(embedder: Embedder) -> dict[str, str]:
    """The settings that say whose vectors a file holds."""
    return {"embedder_id": embedder.id, "embedder_dim": str(embedder.dim), "embedder_sha256": embedder.sha256}


def _described(settings: Mapping[str, str]) -> str:
    name, dim, sha256 = (str(settings.get(f"embedder_{part}")) for part in ("id", "dim", "sha256"))
    return f"{name!r} ({dim} dimensions, sha256 {sha256[:12]}…)"


def _record(tx: Tx, trail: Trail, coming: Incoming, now: Instant, due_at: Instant) -> EpisodeId:
    scope, messages = coming.scope, coming.messages
    episode_id = _insert_episode(
        tx, trail, scope, messages, coming.event_at, now, "infer", coming.metadata, coming.expires_at
    )
    owner = owner_row(tx, scope)
    rows = tx.execute(
        "select id, position, content, grams from message where episode_id = ? and role <> 'system' order by position",
        (episode_id,),
    ).fetchall()
    for message_id, position, content, grams in rows:
        insert_fts(tx, "turn_fts", message_id, f"p{owner}", content, grams)
        if position in coming.vectors:
            passages = coming.passages.get(content, ())
            store_queue.insert_turn_vector(tx, message_id, coming.vectors[position], passages)
    owes = any(position not in coming.vectors for _, position, *_ in rows)
    tx.execute(
        "update episode set due_at = ?, keep = ?, owes_vectors = ? where id = ?",
        (due_at, int(coming.keep), int(owes), episode_id),
    )
    return episode_id


def _insert_episode(
    tx: Tx,
    trail: Trail,
    scope: Scope,
    messages: Sequence[Message],
    event_at: Instant,
    now: Instant,
    mode: str,
    metadata: Mapping[str, JSON],
    expires_at: Instant | None,
) -> EpisodeId:
    episode_id = new_id(now)
    tx.execute(
        "insert into episode (id, seq, owner_id, user_id, agent_id, run_id, event_at, recorded_at, state, mode, "
        "metadata, expires_at) values (?, (select coalesce(max(seq), 0) + 1 from episode), ?, ?, ?, ?, ?, ?, "
        "'pending', ?, ?, ?)",
        (
            episode_id,
            owner_row(tx, scope),
            scope.user_id,
            scope.agent_id,
            scope.run_id,
            event_at,
            now,
            mode,
            to_json(dict(metadata)),
            expires_at,
        ),
    )
    for i, m in enumerate(messages):
        ids = (scope.user_id, scope.agent_id, scope.run_id)
        entry, salt = trail.text("turn", Text("message", scope.owner, episode_id, i, *ids, m.role, m.name, m.content))
        grams = rank.grams(m.content) if mode == "infer" else None
        tx.execute(
            "insert into message (episode_id, position, role, name, content, grams, entry, salt) "
            "values (?, ?, ?, ?, ?, ?, ?, ?)",
            (episode_id, i, m.role, m.name, m.content, grams, entry, salt),
        )
    return episode_id


def _record_verbatim(tx: Tx, trail: Trail, told: Verbatim, now: Instant) -> tuple[EpisodeId, list[Change]]:
    plan = told.plan
    episode_id = _insert_episode(
        tx, trail, plan.scope, told.messages, plan.event_at, now, "verbatim", plan.metadata or {}, plan.expires_at
    )
    changes = Changes(tx, trail, plan, now, episode_id).run()
    for text, event_at in told.later:
        head = changes[-1]
        target = neighbour_of(str(head.id), head.version or 1, head.text, plan.event_at)
        decision = Decision(stated(text, event_at), Op.UPDATE, (target,), text=text, reason="manual")
        later = replace(plan, decisions=(decision,), reason="manual", metadata=None, event_at=event_at)
        changes += Changes(tx, trail, later, now, None).run()
    tx.execute("update episode set state = 'done' where id = ?", (episode_id,))
    drop_turns(tx, trail, now, episode_id)
    return episode_id, changes


def _episode_state(tx: Tx, episode_id: EpisodeId) -> str:
    row = tx.execute("select state from episode where id = ?", (episode_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"no episode has the id {episode_id}; the store was reset or purged meanwhile")
    return str(row[0])


def _dismiss(tx: Tx, trail: Trail, scope: Scope, now: Instant) -> None:
    """Let what waits in a scope wait no longer, without reading it."""
    waiting = store_queue.waiting(tx, scope, now)
    for episode_id in waiting:
        _finish_episode(tx, episode_id)
        drop_turns(tx, trail, now, episode_id)
    if waiting:
        trail.add("dismiss", owner=scope.owner, detail={"episodes": len(waiting)})


def _finish_episode(tx: Tx, episode_id: EpisodeId) -> None:
    """Pending turns become extracted ones: found only when asked for."""
    indexed = tx.execute(
        "select w.id, w.owner, w.text, w.grams from turn_words w join message t on t.id = w.id where t.episode_id = ?",
        (episode_id,),
    ).fetchall()
    tx.execute(
        "update episode set state = 'done', error = null, set_aside_at = null where id = ?",
        (episode_id,),
    )
    for message_id, owner, text, grams in indexed:
        delete_fts(tx, "turn_fts", message_id, owner, text, grams)
        insert_fts(tx, "turn_fts", message_id, "x" + owner[1:], text, grams)
        tx.execute("update turn_vec set pending = 0 where rowid = ?", (message_id,))
