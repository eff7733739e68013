"""Episodes that wait for their facts to be extracted: which is next, what became of it, and who may read them.

One worker of all the processes that have a file open holds the lease (worker.py). Nothing here enters the audit chain:
what a queue does changes no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localmem import store_passages
from localmem.store_apply import blob_of
from localmem.store_audit import settings_of
from localmem.store_pools import scope_ids, within
from localmem.types import EpisodeId, Instant, Op, Scope

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Vectors

FAILURES_MAX = 5  # then an episode is set aside; with the delays below after two and a half minutes
DEATHS_MAX = 3  # of workers over the same episode, before it is set aside
DELAY_S, DELAY_MAX_S = 10, 600  # before the second try; doubled with each further one
CLAIM_S = 900  # how long a worker leaves an episode alone that an add() in some process is reading
CRASHED = "Crashed"  # in place of an error's class: the process died each time
PAUSED = "worker_paused"  # setting
_WAITS = "state = 'pending' and set_aside_at is null"
# Nobody sets a due time further ahead than CLAIM_S: what seems to be due later still was set by a clock that was wrong.
_DUE = f"(due_at <= ?1 or due_at > ?1 + {CLAIM_S * 1_000_000})"
_WITHIN = within("e")


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits in a scope, or in the file. Times in microseconds."""

    waiting: int
    set_aside: int
    oldest_at: Instant | None  # when the words came in that have waited longest


@dataclass(frozen=True, slots=True)
class Lease:
    """Who reads what waits, as the file tells it."""

    holder: str
    beat: int
    pid: int
    since: Instant
    seen_at: Instant
    done: int

    @property
    def pulse(self) -> tuple[str, int]:
        """What changes while the holder lives."""
        return self.holder, self.beat


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one episode is. ``state``: waiting, set_aside or done. ``ahead``: how many come before it."""

    scope: Scope
    state: str
    event_at: Instant
    attempts: int
    error: str | None
    ahead: int
    changes: tuple[tuple[str, str, Op], ...]  # (memory id, text, event), of one that is done


# -------------------------------------------------------------------- the lease


def lease(tx: Tx) -> Lease | None:
    """Who holds it, dead or alive; None where nobody does."""
    row = tx.execute("select holder, beat, pid, since, seen_at, done from worker").fetchone()
    return None if row is None else Lease(*row)


def take_lease(tx: Tx, holder: str, pid: int, now: Instant, dead: Lease | None) -> bool:
    """Become the holder, unless somebody is; ``dead``: of whom the caller knows that the beat stands still."""
    found = lease(tx)
    if found is not None and (dead is None or found.pulse != dead.pulse):
        return False
    tx.execute("insert or replace into worker values (1, ?, 0, ?, ?, ?, 0)", (holder, pid, now, now))
    return True


def beat(tx: Tx, holder: str, now: Instant) -> bool:
    """Show that the holder is alive. False: the lease is somebody else's by now."""
    tx.execute("update worker set beat = beat + 1, seen_at = ? where holder = ?", (now, holder))
    return bool(tx.changes())


def release(tx: Tx, holder: str) -> None:
    """Give the lease back."""
    tx.execute("delete from worker where holder = ?", (holder,))


def is_paused(tx: Tx) -> bool:
    """Whether a person stopped the file's worker, whichever process it would be in."""
    return PAUSED in settings_of(tx)


def pause(tx: Tx, paused: bool) -> None:
    """Stop the file's worker after the episode it is at, or let one work again."""
    if paused:
        tx.execute("insert or replace into setting (name, value) values (?, '1')", (PAUSED,))
    else:
        tx.execute("delete from setting where name = ?", (PAUSED,))


# -------------------------------------------------------------------- what is next, and what became of it


def is_due(tx: Tx, now: Instant) -> bool:
    """Whether a worker would find something to read."""
    return tx.execute(f"select 1 from episode where {_WAITS} and {_DUE} limit 1", (now,)).fetchone() is not None


def begin(tx: Tx, holder: str, now: Instant) -> EpisodeId | None:
    """The next episode that is due, noted as begun; None where there is none, or the lease was lost.

    Of each owner the earliest in event time, of those the one that came in first: later ones of an owner wait for
    one that failed until it is set aside. Whatever was begun too often without an end is set aside here.
    """
    found = lease(tx)
    if found is None or found.holder != holder:
        return None
    tx.execute(
        f"update episode set set_aside_at = ?, error = ? where {_WAITS} and begun >= ?", (now, CRASHED, DEATHS_MAX)
    )
    row = tx.execute(
        f"select id from episode e indexed by episode_waiting where {_WAITS} and {_DUE} and not exists (select 1 "
        "from episode b where b.state = 'pending' and b.set_aside_at is null and b.owner_id = e.owner_id "
        "and (b.event_at, b.seq) < (e.event_at, e.seq)) order by seq limit 1",
        (now,),
    ).fetchone()
    if row is None:
        return None
    tx.execute("update episode set begun = begun + 1 where id = ?", row)
    return str(row[0])


def ended(tx: Tx, holder: str, episode_id: EpisodeId, *, done: bool) -> None:
    """An episode that was begun came to an end, or was given back: whoever began it lives."""
    tx.execute("update episode set begun = 0 where id = ?", (episode_id,))
    if done:
        tx.execute("update worker set done = done + 1 where holder = ?", (holder,))


def failed(tx: Tx, episode_id: EpisodeId, error: str, now: Instant, *, blamed: bool) -> None:
    """Note why an episode is still pending: the error's class name, never its text.

    ``blamed``: its own words may be the cause. It is tried again later, and set aside after FAILURES_MAX times.
    """
    row = tx.execute("select failures from episode where id = ? and state = 'pending'", (episode_id,)).fetchone()
    if row is None:
        return
    failures = row[0] + int(blamed)
    delay_s = min(DELAY_S * 2 ** max(0, failures - 1), DELAY_MAX_S) if blamed else 0
    tx.execute(
        "update episode set attempts = attempts + 1, error = ?, failures = ?, due_at = ?, "
        "set_aside_at = iif(? >= ?, coalesce(set_aside_at, ?), set_aside_at) where id = ?",
        (error, failures, now + delay_s * 1_000_000, failures, FAILURES_MAX, now, episode_id),
    )


def claimed(now: Instant) -> Instant:
    """When an episode is due that somebody reads at once: until then no worker takes it up."""
    return now + CLAIM_S * 1_000_000


def claim(tx: Tx, episode_id: EpisodeId, now: Instant) -> None:
    """Somebody reads it at once."""
    tx.execute("update episode set due_at = ? where id = ? and state = 'pending'", (claimed(now), episode_id))


# -------------------------------------------------------------------- vectors that are owed


def owing(tx: Tx, limit: int) -> list[EpisodeId]:
    """Episodes of which some turns have no vector yet, first come first."""
    rows = tx.execute("select id from episode where owes_vectors = 1 order by seq limit ?", (limit,))
    return [each for (each,) in rows]


def unembedded(tx: Tx, episode_id: EpisodeId) -> dict[int, str]:
    """Message id -> words of the turns of an episode that are without a vector."""
    rows = tx.execute(
        "select w.id, w.text from message t join turn_words w on w.id = t.id join episode e on e.id = t.episode_id "
        "where t.episode_id = ? and e.owes_vectors = 1 and not exists (select 1 from turn_vec x where x.rowid = w.id)",
        (episode_id,),
    )
    return dict(rows.fetchall())


def settle_vectors(tx: Tx, episode_id: EpisodeId, vectors: Mapping[int, Any], passages: Mapping[int, Vectors]) -> None:
    """Write the vectors that an episode owes, by message id; what another was faster with, or was taken back, stays."""
    left = unembedded(tx, episode_id)
    if not left.keys() <= vectors.keys():
        return  # the file was made anew meanwhile: it is still owing
    for row in left:
        insert_turn_vector(tx, row, vectors[row], passages.get(row, ()))
    tx.execute("update episode set owes_vectors = 0 where id = ?", (episode_id,))


def insert_turn_vector(tx: Tx, message_id: int, vector: Any, passages: Vectors | Sequence[Any]) -> None:
    """The vector of a turn, and of what stands beyond the beginning of a long one."""
    [(owner, pending, agent, run)] = tx.execute(
        "select e.owner_id, e.state = 'pending', coalesce(e.agent_id, ''), coalesce(e.run_id, '') "
        "from message t join episode e on e.id = t.episode_id where t.id = ?",
        (message_id,),
    ).fetchall()
    tx.execute(
        "insert into turn_vec (rowid, embedding, owner_id, pending, agent, run) values (?, ?, ?, ?, ?, ?)",
        (message_id, blob_of(vector), owner, pending, agent, run),
    )
    store_passages.keep(tx, store_passages.TURNS, owner, message_id, passages)


# -------------------------------------------------------------------- looking


def queue(tx: Tx, scope: Scope | None, upto: int | None = None) -> Queue:
    """What waits. ``upto``: only what had come in by then, as `newest` told."""
    [row] = tx.execute(
        "select count(*) filter (where e.set_aside_at is null), count(*) filter (where e.set_aside_at is not null), "
        "min(iif(e.set_aside_at is null, e.recorded_at, null)) "
        f"from episode e where e.state = 'pending' and {_WITHIN} and (?4 is null or e.seq <= ?4)",
        (*scope_ids(scope), upto),
    ).fetchall()
    return Queue(*row)


def waiting(tx: Tx, scope: Scope, now: Instant) -> list[EpisodeId]:
    """The episodes of a scope that wait to be read, those that were set aside too, but not what an add() reads now."""
    rows = tx.execute(
        f"select e.id from episode e where e.state = 'pending' and {_WITHIN} and (e.attempts > 0 or e.due_at <= ?4)",
        (*scope_ids(scope), now),
    )
    return [each for (each,) in rows]


def newest(tx: Tx) -> int:
    """The place in the order of arrival of what came in last."""
    [(seq,)] = tx.execute("select coalesce(max(seq), 0) from episode").fetchall()
    return int(seq)


def progress(tx: Tx, episode_id: EpisodeId, bounds: Scope | None) -> Progress | None:
    """How far an episode is; None for an unknown one, or one beyond the scope. ``ahead`` counts in the scope alone."""
    row = tx.execute(
        "select e.user_id, e.agent_id, e.run_id, e.event_at, e.attempts, e.error, e.seq, "
        "iif(e.state = 'done', 'done', iif(e.set_aside_at is null, 'waiting', 'set_aside')) "
        f"from episode e where {_WITHIN} and e.id = ?4",
        (*scope_ids(bounds), episode_id),
    ).fetchone()
    if row is None:
        return None
    *ids, event_at, attempts, error, seq, state = row
    ahead = queue(tx, bounds, seq - 1).waiting if state == "waiting" else 0
    changes = _changes(tx, episode_id) if state == "done" else ()
    return Progress(Scope(*ids), state, event_at, attempts, error, ahead, changes)


def _changes(tx: Tx, episode_id: EpisodeId) -> tuple[tuple[str, str, Op], ...]:
    """What an episode changed, but for what its author took back since."""
    rows = tx.execute(
        "select v.memory_id, v.text, iif(v.number = 1, 'ADD', 'UPDATE'), v.id from decision d "
        "join version v on v.decision_id = d.id join memory m on m.id = v.memory_id "
        "where d.episode_id = ?1 and v.suppressed = 0 and m.delete_reason is not 'retraction' "
        "union all select v.memory_id, v.text, 'ADD', v.id from message t join evidence x on x.message_id = t.id "
        "join version v on v.id = x.version_id where t.episode_id = ?1 and v.reason = 'verbatim' and v.suppressed = 0 "
        "union all select m.id, v.text, 'DELETE', v.id from decision d join memory m on m.delete_decision = d.id "
        "join version v on v.id = m.head where d.episode_id = ?1 and v.suppressed = 0 "
        "and m.delete_reason is not 'retraction' order by 4",
        (episode_id,),
    )
    return tuple((memory_id, text, Op(event)) for memory_id, text, event, _ in rows)


def counts(tx: Tx, scope: Scope | None) -> dict[str, int]:
    """How much a scope, or the file, holds: live memories, their versions, episodes and turns."""
    ids = scope_ids(scope)
    memory, episode = within("m"), _WITHIN
    asked = {
        "memories": f"select count(*) from memory m where m.deleted_at is null and {memory}",
        "deleted": f"select count(*) from memory m where m.deleted_at is not null and {memory}",
        "versions": f"select count(*) from version v join memory m on m.id = v.memory_id where {memory}",
        "episodes": f"select count(*) from episode e where {episode}",
        "messages": f"select count(*) from message t join episode e on e.id = t.episode_id where {episode}",
    }
    return {name: int(tx.execute(sql, ids).fetchall()[0][0]) for name, sql in asked.items()}
