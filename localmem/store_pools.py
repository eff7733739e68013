"""Pools for search and neighbours for reconciling: which rows a read may see, and the nearest of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from localmem import rank, store_passages, timing
from localmem.db import Tx
from localmem.filters import ANY, Condition
from localmem.store_apply import Snapshot
from localmem.store_matrix import Matrices
from localmem.types import Actor, Instant, Neighbour, Scope

if TYPE_CHECKING:
    from localmem.types import Vector

POOL = 100  # rows a pool hands to the fusion
EXACT_MAX = 2_000  # filters that leave fewer rows are answered by exact distances over those
KNN_MAX = 4_096  # vec0's own limit of k
SESSION_GAP = 6 * 3_600 * 1_000_000  # microseconds; turns further apart belong to different talks
ASSISTANTS = ("assistant", "ai", "bot", "chatbot")  # as speakers of turns
COMMON_TERM_ROWS_MIN = 300  # a term in fewer rows than this is never too common to look up


@dataclass(frozen=True, slots=True)
class Reach:
    """Which rows a read may see. ``owner`` is None where the scope does not name the owner: correct, slower.

    Every id given must match, ids not given are free (DESIGN section 4). ``history`` lets superseded and deleted
    versions in, ``as_of`` those valid then, ``known_at`` those the file showed then. ``during`` leaves those that began
    within a span.
    """

    scope: Scope
    owner: int | None
    now: Instant
    filters: Condition = ANY
    history: bool = False
    as_of: Instant | None = None
    known_at: Instant | None = None
    during: timing.Span | None = None

    @property
    def heads_only(self) -> bool:
        return not self.history and self.as_of is None and self.known_at is None

    def where(self) -> Condition:
        """The whole reach as SQL over ``memory m join version v``."""
        parts, bindings = ["v.suppressed = 0", "m.delete_reason is not 'retraction'"], list[Any]()

        def need(sql: str, *values: Any) -> None:
            parts.append(sql)
            bindings.extend(values)

        if self.owner is not None:
            need("m.owner_id = ?", self.owner)
        for column, value in (
            ("m.user_id", self.scope.user_id),
            ("m.agent_id", self.scope.agent_id),
            ("m.run_id", self.scope.run_id),
        ):
            if value is not None:
                need(f"{column} = ?", value)
        need("(m.expires_at is null or m.expires_at > ?)", self.now)
        if self.heads_only:
            need("m.head = v.id and m.deleted_at is null")
        if self.as_of is not None:
            need("v.valid_from <= ? and (v.valid_to is null or v.valid_to > ?)", self.as_of, self.as_of)
        if self.known_at is not None:
            need(
                "v.recorded_at <= ? and (v.superseded_at is null or v.superseded_at > ?)", self.known_at, self.known_at
            )
        for sql, instant in self.began():
            need(f"v.{sql}", instant)
        if self.filters:
            need(self.filters.sql, *self.filters.bindings)
        return Condition(" and ".join(parts), tuple(bindings))

    def began(self) -> list[tuple[str, Instant]]:
        """The conditions of ``during``."""
        bounds = (("valid_from >= ?", self.during.start), ("valid_from < ?", self.during.stop)) if self.during else ()
        return [(sql, value) for sql, value in bounds if value is not None]

    @property
    def needs_rows(self) -> bool:
        """Whether a condition has to be checked on base rows, because vec0's metadata columns can't answer it."""
        return (
            bool(self.filters) or self.known_at is not None or (self.owner is None and self.scope.user_id is not None)
        )


def reach(tx: Tx, scope: Scope, now: Instant, **options: Any) -> Reach | None:
    """Resolve a scope; None when its owner has never been seen, so nothing can be found."""
    if scope.user_id is None:  # rows of a user may carry this agent or run as well
        return Reach(scope, None, now, **options)
    row = tx.execute("select id from owner where token = ?", (scope.owner,)).fetchone()
    return None if row is None else Reach(scope, row[0], now, **options)


# -------------------------------------------------------------------- pools


def vector_pool(
    tx: Tx, within: Reach, query: Vector, k: int = POOL, matrices: Matrices | None = None
) -> dict[int, float]:
    """Version id -> cosine of the k nearest versions in reach. ``matrices``: of the store, for its large owners."""
    if matrices is not None and within.owner is not None and within.during is None and _decided_by_index(within):
        found = _in_memory(tx, within, within.owner, query, k, matrices)
        if found is not None:
            return found
    if not within.needs_rows:
        return _knn(tx, within, query, k)
    where = within.where()
    (few,) = tx.execute(
        f"select count(*) from (select 1 from memory m join version v on v.memory_id = m.id where {where.sql} limit ?)",
        (*where.bindings, EXACT_MAX + 1),
    ).fetchone()
    if few <= EXACT_MAX:
        return _exact(tx, where, query, k)
    return _widening(tx, within, where, query, k)


def _in_memory(tx: Tx, within: Reach, owner: int, query: Vector, k: int, matrices: Matrices) -> dict[int, float] | None:
    """The rows found may be past or expired by now: ask for more until enough can be seen, or all have been."""
    wanted = k + k // 4 + 10
    while (near := matrices.nearest(tx, owner, query, wanted)) is not None:
        exact = cosines(tx, near, query, within.where())  # 8-bit levels confuse neighbours that are 0.001 apart
        if len(exact) >= k or len(near) < wanted:
            return dict(sorted(exact.items(), key=lambda item: (-item[1], item[0]))[:k])
        wanted *= 4
    return None


def _knn(tx: Tx, within: Reach, query: Vector, k: int) -> dict[int, float]:
    """Visibility is decided inside the KNN: conditions joined afterwards would cut below k (DESIGN section 7)."""
    visible = {
        "live = ?": 1 if within.heads_only else None,
        "valid_from <= ?": within.as_of,
        "valid_to > ?": within.as_of,
        "expires_at > ?": within.now,
        **dict(within.began()),
    }
    near = nearest(tx, "memory_vec", within, visible, query, k)
    if within.heads_only:
        return near
    unseen = _ghosts(tx, list(near))
    return {row: cosine for row, cosine in near.items() if row not in unseen}


def nearest(
    tx: Tx, table: str, within: Reach, visible: Mapping[str, int | None], query: Vector, k: int
) -> dict[int, float]:
    """Row id -> cosine of the k nearest rows of a vec0 table in scope; a condition whose value is None is left out."""
    scoped = {"owner_id = ?": within.owner, "agent = ?": within.scope.agent_id, "run = ?": within.scope.run_id}
    given = {sql: value for sql, value in {**scoped, **visible}.items() if value is not None}
    rows = tx.execute(
        f"select rowid, distance from {table} where {' and '.join(['embedding match ?', 'k = ?', *given])}",
        (query.tobytes(), min(k, KNN_MAX), *given.values()),
    )
    return {row: 1.0 - distance for row, distance in rows}


def _ghosts(tx: Tx, versions: Sequence[int]) -> set[int]:
    rows = tx.execute(
        "select v.id from json_each(?) j join version v on v.id = j.value join memory m on m.id = v.memory_id "
        "where m.delete_reason = 'retraction' and v.number = 1",
        (json.dumps(list(versions)),),
    )
    return {row for (row,) in rows}


def _exact(tx: Tx, where: Condition, query: Vector, k: int) -> dict[int, float]:
    rows = tx.execute(
        "select rowid, distance from memory_vec where embedding match ? and k = ? and rowid in "
        f"(select v.id from memory m join version v on v.memory_id = m.id where {where.sql})",
        (query.tobytes(), min(k, KNN_MAX), *where.bindings),
    )
    return {row: 1.0 - distance for row, distance in rows}


def _widening(tx: Tx, within: Reach, where: Condition, query: Vector, k: int) -> dict[int, float]:
    """Many rows match the filter: ask for more neighbours until enough of them pass, or all have been seen."""
    loose = replace(within, filters=ANY, known_at=None, history=within.history or within.known_at is not None)
    wide = k * 4
    while True:
        near = _knn(tx, loose, query, wide)
        passed = keep(tx, where, near)
        if len(passed) >= k or len(near) < min(wide, KNN_MAX) or wide >= KNN_MAX:
            return dict(list(passed.items())[:k])
        wide *= 4


def keep(tx: Tx, where: Condition, scored: Mapping[int, float]) -> dict[int, float]:
    """The scored versions that are in reach, in their order."""
    rows = tx.execute(  # cross join: from these ids on, not over all of the owner's rows
        "select v.id from json_each(?) j cross join version v on v.id = j.value "
        f"cross join memory m on m.id = v.memory_id where {where.sql}",
        (json.dumps(list(scored)), *where.bindings),
    )
    allowed = {row for (row,) in rows}
    return {row: score for row, score in scored.items() if row in allowed}


@dataclass(frozen=True, slots=True)
class WordQuery:
    """The words of one query among one owner's rows. Made by `word_query`.

    File-wide bm25() would let other owners' words change these scores, so FTS only selects.
    """

    postings: Sequence[frozenset[int]]  # the versions that hold each word
    documents: int
    average_words: float

    @property
    def spread(self) -> float:
        return rank.spread(self.postings, self.documents)

    def scores(self, tx: Tx, versions: Sequence[int]) -> dict[int, float]:
        """Version id -> BM25 share in [0, 1], from the statistics of the owner's rows alone."""
        lengths = tx.execute(
            "select id, words from version where id in (select value from json_each(?))", (json.dumps(list(versions)),)
        )
        return rank.bm25(
            self.postings, dict(lengths.fetchall()), documents=self.documents, average_words=self.average_words
        )

    def pool(self, tx: Tx, within: Reach, k: int) -> dict[int, float]:
        """The k best versions in reach and their scores, best first."""
        wide = k * 4
        best = rank.rarest_first(self.postings, self.documents, keep=wide)
        if not _decided_by_index(within) or _has_expired(tx, within):
            held = len(frozenset().union(*self.postings))
            # What is out of sight must take no place: more until k can be seen, or all have been looked at.
            while len(seen := keep(tx, within.where(), best)) < k and wide < held:
                wide *= 4
                best = rank.rarest_first(self.postings, self.documents, keep=wide)
            best = seen
        scores = self.scores(tx, list(best)[: k * 2])
        return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k])


def word_query(tx: Tx, within: Reach, query: str) -> WordQuery:
    documents, average = _document_statistics(tx, within)
    prefix = owner_expression(within, "o" if within.heads_only else "oh")
    found = postings(tx, "memory_fts", prefix, rank.terms(query), documents, _versions_in(within))
    return WordQuery(found, documents, average)


def word_pool(tx: Tx, within: Reach, query: str, k: int = POOL) -> dict[int, float]:
    """Version id -> BM25 share in [0, 1] of the k best versions in reach, best first."""
    return word_query(tx, within, query).pool(tx, within, k)


def cosines(
    tx: Tx, rows: Sequence[int], query: Vector, where: Condition = ANY, *, table: str = "memory_vec"
) -> dict[int, float]:
    """Row id -> cosine to the query, for these rows of a vec0 table; ``where``: only versions in reach."""
    seen = "cross join version v on v.id = j.value cross join memory m on m.id = v.memory_id " if where else ""
    found = tx.execute(
        f"select x.rowid, 1.0 - vec_distance_cosine(x.embedding, ?) from json_each(?) j {seen}"
        f"cross join {table} x on x.rowid = j.value"  # a join in this order looks rows up, "in" reads them all
        f"{f' where {where.sql}' if where else ''}",
        (query.tobytes(), json.dumps(list(rows)), *where.bindings),
    )
    return dict(found.fetchall())


def by_assistant(tx: Tx, versions: Sequence[int]) -> set[int]:
    """Those of the versions that an assistant said: its own message, or a turn that opens with such a speaker."""
    opens = " or ".join(f"v.text like '{name}: %'" for name in ASSISTANTS)
    rows = tx.execute(
        "select v.id from json_each(?) j cross join version v on v.id = j.value "
        "cross join memory m on m.id = v.memory_id "
        f"where m.actor = 'assistant' or (v.reason = 'verbatim' and ({opens}))",
        (json.dumps(list(versions)),),
    )
    return {row for (row,) in rows}


def times(tx: Tx, versions: Sequence[int]) -> dict[int, tuple[Instant, str, bool]]:
    """Version id -> (since when it is valid, its text, whether it is superseded or deleted)."""
    rows = tx.execute(
        "select v.id, v.valid_from, v.text, m.head <> v.id or m.deleted_at is not null "
        "from json_each(?) j cross join version v on v.id = j.value cross join memory m on m.id = v.memory_id",
        (json.dumps(list(versions)),),
    )
    return {row: (at, text, bool(past)) for row, at, text, past in rows}


def beside(tx: Tx, within: Reach, versions: Sequence[int]) -> set[tuple[int, int]]:
    """Pairs of turns of a talk, one right after the other, of which at least one is among the versions.

    A turn of a talk was stored as it was said and opens with who says it; the next was stored next, with the same
    agent and run, and said within SESSION_GAP.
    """
    before = "select p.head from memory p where p.owner_id = m.owner_id and p.seq < m.seq order by p.seq desc limit 1"
    after = "select n.head from memory n where n.owner_id = m.owner_id and n.seq > m.seq order by n.seq limit 1"
    turns = _turns_of_talk(tx, within, versions)
    rows = tx.execute(
        f"select v.id, ({before}), ({after}) from json_each(?) j cross join version v on v.id = j.value "
        "cross join memory m on m.id = v.memory_id",
        (json.dumps(list(turns)),),
    ).fetchall()
    pairs = {(first, version) for version, first, _ in rows} | {(version, second) for version, _, second in rows}
    near = {version for pair in pairs for version in pair if version is not None}
    turns |= _turns_of_talk(tx, within, near - turns.keys())
    return of_one_talk(pairs, turns)


def of_one_talk(pairs: Iterable[tuple[Any, Any]], turns: Mapping[int, tuple[Any, ...]]) -> set[tuple[int, int]]:
    """The pairs whose rows are both among the turns, of the same agent and run and within SESSION_GAP.

    ``turns``: row -> (when, agent, run). A row without one before or after it stands with None.
    """
    return {
        (one, two)
        for one, two in pairs
        if one in turns and two in turns
        if turns[one][1:] == turns[two][1:] and abs(turns[one][0] - turns[two][0]) <= SESSION_GAP
    }


def _turns_of_talk(tx: Tx, within: Reach, versions: Iterable[int]) -> dict[int, tuple[Instant, str | None, str | None]]:
    """Version id -> (when, agent, run) of those in reach that open with a speaker's name."""
    where = within.where()
    rows = tx.execute(  # cross join: from these ids on, not over all of the owner's rows
        "select v.id, v.text, v.valid_from, m.agent_id, m.run_id "
        "from json_each(?) j cross join version v on v.id = j.value "
        f"cross join memory m on m.id = v.memory_id where v.reason = 'verbatim' and {where.sql}",
        (json.dumps(list(versions)), *where.bindings),
    )
    return {id_: (at, agent, run) for id_, text, at, agent, run in rows if rank.speaker(text) is not None}


def _decided_by_index(within: Reach) -> bool:
    """Whether the owner token alone decides what is in reach, but for what has expired."""
    scoped = within.scope.agent_id is not None or within.scope.run_id is not None
    return within.owner is not None and within.heads_only and not within.filters and not scoped


def _has_expired(tx: Tx, within: Reach) -> bool:
    expired = "select 1 from memory where owner_id = ? and expires_at <= ? limit 1"
    return tx.execute(expired, (within.owner, within.now)).fetchone() is not None


def postings(
    tx: Tx, table: str, prefix: str, expressions: Sequence[str], documents: int, only: Condition | None
) -> list[frozenset[int]]:
    """The rows that hold each term. A term in more than a seventh of the documents counts only if all are such.

    only: a statement of the row ids in reach, where the owner token does not say it (other owners' rows must neither
    count nor crowd out).
    """
    common = max(COMMON_TERM_ROWS_MIN, documents // 7)
    inside, bindings = (f" and rowid in ({only.sql})", only.bindings) if only else ("", ())
    found = [
        frozenset(
            row
            for (row,) in tx.execute(
                f"select rowid from {table} where {table} match ?{inside} limit ?",
                (f"{prefix}({expression})", *bindings, common + 1),
            )
        )
        for expression in expressions
    ]
    telling = [rows for rows in found if rows and len(rows) <= common]
    return telling or [rows for rows in found if rows]


def owner_expression(within: Reach, states: str) -> str:
    """The FTS5 condition of an owner's rows in some states, one letter each: see the views of the word indexes."""
    if within.owner is None:
        return ""
    tokens = [rank.quoted(f"{state}{within.owner}") for state in states]
    return f"owner : ({' OR '.join(tokens)}) AND "


def _document_statistics(tx: Tx, within: Reach) -> tuple[int, float]:
    """(documents, average words) of the owner's heads; without an owner, of the heads in reach."""
    if within.owner is None:
        where = replace(within, history=False, as_of=None, known_at=None, filters=ANY).where()
        statement = f"select count(*), sum(v.words) from memory m join version v on v.id = m.head where {where.sql}"
        [(documents, words)] = tx.execute(statement, where.bindings).fetchall()
    else:
        [(documents, words)] = tx.execute("select documents, words from owner where id = ?", (within.owner,)).fetchall()
    return documents or 0, (words or 0) / max(documents or 0, 1)


def _versions_in(within: Reach) -> Condition | None:
    if within.owner is not None:
        return None
    where = replace(within, filters=ANY).where()
    sql = f"select v.id from memory m join version v on v.memory_id = m.id where {where.sql}"
    return Condition(sql, where.bindings)


def mention_pool(tx: Tx, within: Reach, query: str, k: int = POOL) -> dict[int, float]:
    """Version id -> share of the query's mentions (names, identifiers, numbers) that the version holds."""
    names = rank.mentions(query)
    if not names or within.owner is None:
        return {}
    where = within.where()
    rows = tx.execute(
        "select v.id, count(*) * 1.0 / ? share from mention x join version v on v.id = x.version_id "
        "join memory m on m.id = v.memory_id where x.owner_id = ? and x.name in (select value from json_each(?)) "
        f"and {where.sql} group by v.id order by share desc, v.id limit ?",
        (len(names), within.owner, json.dumps(names), *where.bindings, k),
    )
    return dict(rows.fetchall())


def mention_shares(tx: Tx, within: Reach, query: str, versions: Sequence[int]) -> dict[int, float]:
    """Version id -> share of the query's mentions in it, for these versions, wherever the pool was cut."""
    names = rank.mentions(query)
    if not names or within.owner is None:
        return {}
    rows = tx.execute(
        "select version_id, count(*) * 1.0 / ? from mention where owner_id = ? "
        "and name in (select value from json_each(?)) and version_id in (select value from json_each(?)) "
        "group by version_id",
        (len(names), within.owner, json.dumps(names), json.dumps(list(versions))),
    )
    return dict(rows.fetchall())


def matches(wanted: Scope, found: Scope) -> bool:
    """Whether a row of the scope found may be seen from the scope wanted."""
    pairs = zip(
        (wanted.user_id, wanted.agent_id, wanted.run_id), (found.user_id, found.agent_id, found.run_id), strict=True
    )
    return all(want is None or want == have for want, have in pairs)


def within(alias: str = "") -> str:
    """The same as SQL over a table of that alias with the three ids, of which ?1 to ?3 are bound: see `scope_ids`."""
    of = f"{alias}." if alias else ""
    return " and ".join(f"(?{i} is null or {of}{name}_id = ?{i})" for i, name in enumerate(("user", "agent", "run"), 1))


def scope_ids(scope: Scope | None) -> tuple[str | None, str | None, str | None]:
    """What `within` binds; None is the whole file."""
    return (None, None, None) if scope is None else (scope.user_id, scope.agent_id, scope.run_id)


# -------------------------------------------------------------------- long texts


def passage_pool(tx: Tx, within: Reach, query: Vector, k: int = POOL) -> dict[int, float]:
    """Version id -> what its best later passage is worth as a cosine, of the k best versions in reach."""
    where = within.where()
    seen = f"cross join version v on v.id = p.id cross join memory m on m.id = v.memory_id where {where.sql}"
    condition = Condition(seen, where.bindings)
    return store_passages.nearest(tx, store_passages.MEMORIES, within.owner, condition, query, k)


# -------------------------------------------------------------------- neighbours


def take_snapshot(tx: Tx, scope: Scope) -> Snapshot:
    """The owner's revision and the newest version of the file, as this transaction sees them."""
    row = tx.execute("select revision from owner where token = ?", (scope.owner,)).fetchone()
    (newest,) = tx.execute("select coalesce(max(id), 0) from version").fetchone()
    return Snapshot(0 if row is None else row[0], newest)


def neighbours(
    tx: Tx,
    scope: Scope,
    text: str,
    vector: Vector,
    *,
    event_at: Instant,
    now: Instant,
    k: int,
    matrices: Matrices | None = None,
) -> tuple[Neighbour, ...]:
    """The k memories nearest to a fact of this scope, with which it is reconciled, nearest first.

    Union of vector, word and mention pools over the owner's rows whose run is the fact's or none, plus tombstones
    that became true after the fact: an older fact must not rise again.
    """
    row = tx.execute("select id from owner where token = ?", (scope.owner,)).fetchone()
    if row is None:
        return ()
    owned = Reach(Scope(), row[0], now)
    by_words = word_pool(tx, owned, text, k * 2)
    pools = [vector_pool(tx, owned, vector, k * 4, matrices), by_words, mention_pool(tx, owned, text, k * 2)]
    candidates = list({version for pool in pools for version in pool})
    rows = tx.execute(
        f"{_NEIGHBOUR} where v.id in (select value from json_each(?2)) and m.head = v.id and m.deleted_at is null "
        "and (m.run_id is null or m.run_id is ?3) and (m.agent_id is null or m.agent_id is ?4) "
        "and (m.expires_at is null or m.expires_at > ?5) "
        f"union all select * from ({_NEIGHBOUR} where m.owner_id = ?6 and m.delete_event_at > ?7 and v.suppressed = 0 "
        "and m.head = v.id and (m.run_id is null or m.run_id is ?3) and (m.agent_id is null or m.agent_id is ?4) "
        "order by 4 limit ?8)",
        (vector.tobytes(), json.dumps(candidates), scope.run_id, scope.agent_id, now, row[0], event_at, k),
    ).fetchall()
    found = [
        Neighbour(
            id_, number, text_, 1.0 - distance, valid_from, Actor(actor), agent, run, bool(deleted),
            by_words.get(version, 0.0),
        )
        for id_, number, text_, distance, valid_from, actor, agent, run, deleted, version in rows
    ]  # fmt: skip
    found.sort(key=lambda other: (-other.nearness, other.id))
    return (*found[:k], *_taken_back(tx, row[0], text, event_at))


def _taken_back(tx: Tx, owner: int, text: str, event_at: Instant) -> list[Neighbour]:
    """Memories of these very words that their author asked to forget after the fact was said."""
    rows = tx.execute(
        "select m.id, h.number, v.text, v.valid_from, m.actor, m.agent_id, m.run_id "
        "from memory m join version v on v.memory_id = m.id join version h on h.id = m.head "
        "where m.owner_id = ? and m.delete_reason = 'user_request' and m.delete_event_at > ?",
        (owner, event_at),
    )
    wanted = rank.key(text)
    same = (row for row in rows if rank.key(row[2]) == wanted)
    return [
        Neighbour(id_, number, text_, 1.0, valid_from, Actor(actor), agent, run, deleted=True)
        for id_, number, text_, valid_from, actor, agent, run in itertools.islice(same, 1)
    ]


_NEIGHBOUR = (
    "select m.id, v.number, v.text, vec_distance_cosine(x.embedding, ?1), v.valid_from, m.actor, m.agent_id, m.run_id, "
    "m.deleted_at is not null, v.id "
    "from version v join memory m on m.id = v.memory_id join memory_vec x on x.rowid = v.id"
)
