"""Rows read of a damaged file (store_salvage.py) put into a new one, so that every invariant holds.

What is missing around a row is put up again: an episode or a memory from its index entries and from what points to it,
a message as a turn whose words are not kept. Where rows contradict each other the past wins: a memory is live only if
its head is there and nothing says that it ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from localmem import rank
from localmem.store_apply import RETRACTION, USER_REQUEST
from localmem.store_audit import HEAD, KEY, Signer, begin_anew, read_texts
from localmem.store_salvage import LOST_AND_FOUND, Found

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Instant

LOST_HEAD = "salvage"  # tombstone reason: the current wording was lost, and an older one is not true today
_KEYS = {  # of the tables whose rows may have to be left out
    **dict.fromkeys(("episode", "message", "memory", "version", "evidence", "decision", "purge"), "id"),
    "contested": "memory_id, other_id",
}


def mend(tx: Tx, found: Found, now: Instant) -> None:
    """Fill the empty tables of a new file from the temporary ones; tell in ``found`` what could not be kept."""
    for statement in _VOTES:
        tx.execute(statement)
    _settle_numbers(tx, "message", "episode_id", "position")
    _settle_numbers(tx, "version", "memory_id", "number")
    _rebuild_episodes(tx, found, now)
    _rebuild_memories(tx, found, now)
    for statement in _FILLING:
        tx.execute(statement, {"now": now} if ":now" in statement else ())
    _name(tx)
    tx.execute(_STATISTICS)
    _compare(tx, found)
    for table, key in _KEYS.items():
        statement = f"select count(*) from temp.found_{table} where ({key}) not in (select {key} from {table})"
        [(found.tables[table].left_out,)] = tx.execute(statement).fetchall()


def enter(tx: Tx, signer: Signer, now: Instant, detail: dict[str, Any], settings: Mapping[str, str]) -> None:
    """Begin the chain once more, now with all that was found, and tell it where the file comes from.

    Of the few entries that a new file begins with nothing is lost. ``settings`` are those that are taken over.
    """
    tx.execute("delete from audit")
    tx.execute("delete from setting where name in (?, ?)", (KEY, HEAD))
    tx.executemany("insert or replace into setting (name, value) values (?, ?)", list(settings.items()))
    trail = begin_anew(tx, signer, now)
    if "audit_reads" in settings:
        trail.add("audit_reads", detail={"on": settings["audit_reads"] == "1"})
    trail.add("salvage", detail=detail)
    trail.close()


def told(tx: Tx) -> dict[str, int]:
    """Numbers of what is in the new file, for the person."""
    names = ("memories", "turns", "headless", "nobodys")
    [row] = tx.execute(_TOLD, {"run": LOST_AND_FOUND, "reason": LOST_HEAD}).fetchall()
    return dict(zip(names, row, strict=True))


_TOLD = """
select (select count(*) from memory), (select count(*) from message where dropped_at is null),
  (select count(*) from memory where delete_reason = :reason),
  (select count(*) from memory where user_id is null and agent_id is null and run_id = :run)
    + (select count(*) from message t join episode e on e.id = t.episode_id
       where e.user_id is null and e.agent_id is null and e.run_id = :run)
"""


# -------------------------------------------------------------------- settled

# Whose a row is stands in it twice, as ids and as a number. Most rows of a number, with the owner's own, are right:
# ids that nobody has are damaged ones, and must not become another person.
_TOKEN = "coalesce('u:' || {0}.user_id, 'a:' || {0}.agent_id, 'r:' || {0}.run_id)"
_VOTES = (
    "create temp table whose (owner_id integer primary key, token text)",
    f"""
insert or ignore into temp.whose
select owner_id, token from (
  select m.owner_id, {_TOKEN.format("m")} as token from temp.found_memory m
  union all select e.owner_id, {_TOKEN.format("e")} from temp.found_episode e
  union all select id, token from temp.found_owner
  union all select id, token from temp.hint_owner)
where owner_id is not null and token is not null group by owner_id, token order by count(*) desc, token
""",
    *(
        f"""
update temp.found_{table} as x set
  user_id = iif(w.token like 'u:%', substr(w.token, 3), null),
  agent_id = iif(w.token like 'a:%', substr(w.token, 3), x.agent_id),
  run_id = iif(w.token like 'r:%', substr(w.token, 3), x.run_id)
from temp.whose w where w.owner_id = x.owner_id and {_TOKEN.format("x")} not in (select token from temp.whose)
"""
        for table in ("memory", "episode")
    ),
)


def _settle_numbers(tx: Tx, table: str, parent: str, place: str) -> None:
    """Give a row whose number was out of order on its page, or which shares it with another one, the number that an
    index has for it, else a new one."""
    in_doubt = tx.execute(
        f"select x.rowid, h.id from temp.found_{table} x left join temp.hint_{table} h on h.{parent} = x.{parent} "
        f"and h.{place} = x.{place} where x.id is null or (x.id in (select id from temp.found_{table} group by id "
        "having count(*) > 1) and h.id is not x.id)"
    ).fetchall()
    for row, hinted in in_doubt:
        [(taken, new)] = tx.execute(
            f"select exists (select 1 from temp.found_{table} where id = ?), (select max(id) + 1 from "
            f"(select id from temp.found_{table} union all select id from temp.hint_{table}))",
            (hinted,),
        ).fetchall()
        number = (new or 1) if hinted is None or taken else hinted
        tx.execute(f"update temp.found_{table} set id = ? where rowid = ?", (number, row))


# -------------------------------------------------------------------- put up again


def _rebuild_episodes(tx: Tx, found: Found, now: Instant) -> None:
    """The episodes of turns that are there without them. Metadata and expiry are lost."""
    missing = tx.execute(
        "select distinct episode_id from temp.found_message where episode_id not in (select id from temp.found_episode)"
    ).fetchall()
    for (episode_id,) in missing:
        [(pending, pending_at, said_at, verbatim)] = tx.execute(_WHEN, (episode_id,)).fetchall()
        made_at = _made_at(episode_id, now)
        tx.execute(
            "insert into temp.found_episode (id, seq, user_id, agent_id, run_id, event_at, recorded_at, state, mode, "
            "metadata, attempts, rebuilt) values (?1, (select seq from temp.hint_episode where id = ?1), ?2, ?3, ?4, "
            "?5, ?6, ?7, ?8, '{}', 0, 1)",
            (
                episode_id,
                *_scope_of_episode(tx, episode_id),
                pending_at or said_at or made_at,
                made_at,
                "pending" if pending else "done",
                "verbatim" if verbatim else "infer",
            ),
        )
    found.tables["episode"].rebuilt = len(missing)


_WHEN = """
select exists (select 1 from temp.hint_pending where id = ?1),
  (select event_at from temp.hint_pending where id = ?1),
  (select min(x.event_at) from temp.found_message t join temp.found_evidence x on x.message_id = t.id
   where t.episode_id = ?1),
  exists (select 1 from temp.found_message t join temp.found_evidence x on x.message_id = t.id and x.kind = 'support'
   join temp.found_version v on v.id = x.version_id where t.episode_id = ?1 and v.reason = 'verbatim')
"""
_BEGAN_THERE = """
select m.user_id, m.agent_id, m.run_id, m.owner_id from temp.found_message t
join temp.found_evidence x on x.message_id = t.id and x.kind = 'support'
join temp.found_version v on v.id = x.version_id and v.number = 1
join temp.found_memory m on m.id = v.memory_id where t.episode_id = ?
"""
_OWNERS_OF_EPISODE = """
select owner_id from temp.hint_episode where id = ?1
union select owner_id from temp.hint_pending where id = ?1
union select owner_id from temp.found_decision where episode_id = ?1
"""


def _scope_of_episode(tx: Tx, episode_id: str) -> tuple[str | None, str | None, str | None]:
    """Whose an episode was: as of the memories that began in it, where they agree; else the owner alone."""
    began = set(tx.execute(_BEGAN_THERE, (episode_id,)).fetchall())
    owners = [owner for (owner,) in tx.execute(_OWNERS_OF_EPISODE, (episode_id,))] or [owner for *_, owner in began]
    scopes = {(user, agent, run) for user, agent, run, owner in began if owner in owners}
    return scopes.pop() if len(scopes) == 1 else _owner_ids(tx, owners[0] if owners else None)


def _rebuild_memories(tx: Tx, found: Found, now: Instant) -> None:
    """The memories of versions that are there without them. Metadata, kind and who said it are lost."""
    missing = tx.execute(
        "select distinct memory_id from temp.found_version where memory_id not in (select id from temp.found_memory)"
    ).fetchall()
    for (memory_id,) in missing:
        [row] = tx.execute(_HINTED, (memory_id,)).fetchall()
        seq, owner, agent, run, expires_at, taken_back, head, created_at = row
        user, other_agent, other_run = _owner_ids(tx, owner)
        deleted = (None, None, None) if taken_back is None else (now, taken_back, USER_REQUEST)
        tx.execute(
            "insert into temp.found_memory (id, seq, owner_id, user_id, agent_id, run_id, kind, actor, metadata, "
            "created_at, expires_at, head, deleted_at, delete_event_at, delete_reason, rebuilt) "
            "values (?, ?, ?, ?, ?, ?, 'semantic', 'user', '{}', ?, ?, ?, ?, ?, ?, 1)",
            (
                memory_id, seq, owner, user, agent or other_agent, run or other_run, created_at, expires_at, head,
                *deleted,
            ),
        )  # fmt: skip
    found.tables["memory"].rebuilt = len(missing)


_HINTED = """
select (select seq from temp.hint_memory where id = ?1),
  coalesce(
    (select owner_id from temp.hint_memory where id = ?1),
    (select owner_id from temp.hint_expiring where id = ?1),
    (select d.owner_id from temp.found_version v join temp.found_decision d on d.id = v.decision_id
     where v.memory_id = ?1 limit 1),
    (select e.owner_id from temp.found_version v join temp.found_evidence x on x.version_id = v.id
     join temp.found_message t on t.id = x.message_id join temp.found_episode e on e.id = t.episode_id
     where v.memory_id = ?1 limit 1)),
  (select agent_id from temp.hint_agent where id = ?1),
  (select run_id from temp.hint_run where id = ?1),
  (select expires_at from temp.hint_expiring where id = ?1),
  (select delete_event_at from temp.hint_taken_back where id = ?1),
  coalesce(
    (select head from temp.hint_head where id = ?1),
    (select iif(count(*) = 1, max(id), null) from temp.found_version where memory_id = ?1 and superseded_at is null)),
  (select min(recorded_at) from temp.found_version where memory_id = ?1)
"""


def _owner_ids(tx: Tx, owner: int | None) -> tuple[str | None, str | None, str | None]:
    """(user, agent, run) as an owner's token tells; the lost and found where nothing does."""
    row = tx.execute("select token from temp.whose where owner_id = ?", (owner,)).fetchone()
    kind, _, name = ("r", "", LOST_AND_FOUND) if row is None else str(row[0]).partition(":")
    return (name if kind == "u" else None), (name if kind == "a" else None), (name if kind == "r" else None)


def _made_at(uuid: str, now: Instant) -> Instant:
    """When a UUIDv7 was made, as it says itself."""
    try:
        return min(now, int(uuid.replace("-", "")[:12], 16) * 1000)
    except ValueError:
        return now


# -------------------------------------------------------------------- into their tables

_FILLING = (
    # An owner keeps its number where it can: decisions name it by that.
    "insert or ignore into owner (id, token) select owner_id, token from temp.whose",
    f"""
insert or ignore into owner (token)
select {_TOKEN.format("m")} from temp.found_memory m where {_TOKEN.format("m")} is not null
union select {_TOKEN.format("e")} from temp.found_episode e where {_TOKEN.format("e")} is not null
""",
    # Without a single turn that is there, or known to have been, an episode tells nothing.
    f"""
insert or ignore into episode (id, seq, owner_id, user_id, agent_id, run_id, event_at, recorded_at, state, mode,
  metadata, expires_at, error, attempts)
select e.id, row_number() over (order by e.seq is null, e.seq, e.id), o.id, e.user_id, e.agent_id, e.run_id, e.event_at,
  e.recorded_at, iif(e.state = 'pending' and e.mode is not 'verbatim', 'pending', 'done'),
  iif(e.mode = 'verbatim', 'verbatim', 'infer'), e.metadata, e.expires_at, e.error, coalesce(e.attempts, 0)
from temp.found_episode e join owner o on o.token = {_TOKEN.format("e")}
where e.id in (select episode_id from temp.found_message union select episode_id from temp.hint_message)
""",
    """
insert or ignore into message (id, episode_id, position, role, name, content, grams, suppressed_at, dropped_at, entry,
  salt)
select id, episode_id, position, role, name, iif(dropped_at is null, content, ''), iif(dropped_at is null, grams, null),
  suppressed_at, dropped_at, entry, salt
from temp.found_message where position >= 0 and episode_id in (select id from episode)
""",
    # Turns that are lost stay as places: evidence still tells when and where something was said.
    """
insert or ignore into message (id, episode_id, position, role, content, dropped_at)
select iif(id in (select id from message), null, id), episode_id, position, 'user', '', :now
from temp.hint_message where position >= 0 and episode_id in (select id from episode)
order by id in (select id from message), id
""",
    """
insert into message (episode_id, position, role, content, dropped_at)
with recursive places (episode_id, position) as (
  select episode_id, max(position) - 1 from message group by episode_id having max(position) >= count(*)
  union all select episode_id, position - 1 from places where position > 0)
select episode_id, position, 'user', '', :now from places p
where position >= 0 and not exists
  (select 1 from message t where t.episode_id = p.episode_id and t.position = p.position)
""",
    """
update episode set state = 'done' where state = 'pending'
and not exists (select 1 from message t where t.episode_id = episode.id and t.dropped_at is null)
""",
    """
insert or ignore into decision (id, episode_id, owner_id, position, message, fact, quote, op, targets, text, confidence,
  probabilities, guards, neighbours, fingerprint, reason, unsupported, suppressed, at)
select id, iif(episode_id in (select id from episode), episode_id, null), owner_id, position, message, fact, quote, op,
  targets, text, confidence, probabilities, guards, neighbours, fingerprint, reason, unsupported, suppressed, at
from temp.found_decision where owner_id in (select id from owner) order by id is null, id
""",
    # Which version stands for a memory: its head where that is there, else the last of what is left. A version that
    # came before the head must not be taken for it, so where the head is lost the memory is not live.
    "create temp table life (id text primary key, head integer, live integer, forgotten integer) without rowid",
    f"""
insert into temp.life
select m.id,
  coalesce(h.id, (select v.id from temp.found_version v where v.memory_id = m.id
                  order by v.valid_from desc, v.number desc limit 1)),
  m.deleted_at is null and h.id is not null and h.superseded_at is null and h.valid_to is null,
  coalesce(m.delete_reason = '{USER_REQUEST}', 0)
    or exists (select 1 from temp.found_version v where v.memory_id = m.id and v.suppressed = 1)
from temp.found_memory m left join temp.found_version h on h.memory_id = m.id and h.id = coalesce(
  (select v.id from temp.found_version v where v.id = m.head and v.memory_id = m.id),
  (select head from temp.hint_head where id = m.id))
""",
    "update temp.life set live = 0 where forgotten",
    # What had ended before it was known leaves one version that was never valid (store_apply._ghost).
    f"""
insert or ignore into memory (id, seq, owner_id, user_id, agent_id, run_id, kind, actor, metadata, created_at,
  expires_at, head, deleted_at, delete_event_at, delete_reason, delete_decision, confirmed_at)
select m.id, row_number() over (order by m.seq is null, m.seq, m.id), o.id, m.user_id, m.agent_id, m.run_id,
  iif(m.kind in ('semantic', 'episodic', 'procedural'), m.kind, 'semantic'),
  iif(m.actor in ('user', 'assistant', 'tool', 'document'), m.actor, 'user'),
  m.metadata, m.created_at, m.expires_at, h.id,
  iif(l.live, null, coalesce(m.deleted_at, h.superseded_at, :now)),
  iif(l.live, null, coalesce(m.delete_event_at, h.valid_to, m.deleted_at, :now)),
  iif(l.live, null, iif(l.forgotten, '{USER_REQUEST}', coalesce(m.delete_reason,
    iif(h.valid_to = h.valid_from and h.number = 1 and coalesce(m.head, h.id) = h.id, '{RETRACTION}', '{LOST_HEAD}')))),
  iif(m.delete_decision in (select id from decision), m.delete_decision, null), m.confirmed_at
from temp.found_memory m join owner o on o.token = {_TOKEN.format("m")}
join temp.life l on l.id = m.id join temp.found_version h on h.id = l.head
""",
    """
insert or ignore into version (id, memory_id, number, text, hash, grams, words, valid_from, valid_to, recorded_at,
  superseded_at, reason, decision_id, suppressed, entry, salt)
select v.id, v.memory_id, row_number() over (partition by v.memory_id order by v.number, v.id), v.text, v.hash, v.grams,
  v.words, iif(l.live, min(v.valid_from, h.valid_from), v.valid_from),
  iif(v.id = h.id and l.live, null, max(v.valid_from, coalesce(v.valid_to, h.valid_from))), v.recorded_at,
  iif(v.id = h.id and l.live, null, max(v.recorded_at, coalesce(v.superseded_at, :now))), v.reason,
  iif(v.decision_id in (select id from decision), v.decision_id, null), l.forgotten, v.entry, v.salt
from temp.found_version v join temp.life l on l.id = v.memory_id join memory m on m.id = v.memory_id
join temp.found_version h on h.id = l.head
""",
    """
insert or ignore into evidence (id, version_id, message_id, start, stop, kind, event_at)
select x.id, x.version_id, x.message_id, x.start, x.stop, x.kind, x.event_at
from temp.found_evidence x join version v on v.id = x.version_id join message t on t.id = x.message_id
where x.start between 0 and x.stop and (t.dropped_at is not null or x.stop <= length(t.content))
order by x.id is null, x.id
""",
    # Found on one side, a contradiction is put up on the other.
    """
insert or ignore into contested (memory_id, other_id, decision_id)
select a.id, b.id, iif(c.decision_id in (select id from decision), c.decision_id, null)
from (select memory_id, other_id, decision_id from temp.found_contested
      union select other_id, memory_id, decision_id from temp.found_contested) c
join memory a on a.id = c.memory_id and a.deleted_at is null
join memory b on b.id = c.other_id and b.deleted_at is null where a.id <> b.id
""",
    # One that is incomplete is of the damaged file, whose bytes may still hold what was to go.
    """
insert or ignore into purge (id, at, state, detail, certificate)
select id, at, state, detail, certificate from temp.found_purge where state = 'done' and certificate is not null
""",
)
_STATISTICS = """
update owner set revision = 1,
  documents = (select count(*) from memory m where m.owner_id = owner.id and m.deleted_at is null),
  words = (select coalesce(sum(v.words), 0) from memory m join version v on v.id = m.head
           where m.owner_id = owner.id and m.deleted_at is null)
"""


def _name(tx: Tx) -> None:
    """The names that stand in each version, as when it was written."""
    rows = tx.execute(
        "select m.owner_id, v.id, v.text from version v join memory m on m.id = v.memory_id where v.suppressed = 0"
    )
    names = [(owner, name, version) for owner, version, text in rows for name in rank.mentions(text)]
    tx.executemany("insert or ignore into mention (owner_id, name, version_id) values (?, ?, ?)", names)


def _compare(tx: Tx, found: Found) -> None:
    """Note the texts that are not those the old chain committed to. Rows that were put up again have lost the place
    that a commitment names too, so they are not compared; a number that has changed since is the old one."""
    known = {(each["of"], each["id"], each["number"]) for each in found.altered}
    for table, number, parent in (("version", "number", "memory"), ("message", "position", "episode")):
        whole = {row for (row,) in tx.execute(f"select id from temp.found_{parent} where rebuilt is null")}
        before = dict(tx.execute(f"select id, {number} from temp.found_{table}").fetchall())
        for row, entry, salt, text in read_texts(tx, table):
            promised = tx.execute("select commitment from temp.found_audit where seq = ?", (entry,)).fetchone()
            if promised is None or promised[0] is None or salt is None or text.subject not in whole:
                continue
            place = (table, text.subject, before.get(row, text.number))
            if replace(text, number=place[2]).commitment(salt) != promised[0] and place not in known:
                found.altered.append(dict(zip(("of", "id", "number"), place, strict=True)))
