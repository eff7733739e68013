"""The read story of DESIGN section 3: embed the query, one snapshot, fuse the union of the pools, cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from localmem import rank, store_pools, store_read
from localmem.filters import ANY, Condition
from localmem.store import Store
from localmem.types import Embedder, Hit, Instant, Scope, TurnRecord

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Vector

INCLUDES = ("facts", "pending", "episodes", "all", "history")
CONTEXT_BYTES_PER_TOKEN = 3  # a careful estimate: English is about 4.3, other languages less


@dataclass(frozen=True, slots=True)
class Question:
    """One search. ``include``: facts; pending = facts and turns not extracted yet (the default); episodes = raw
    turns; all = facts and every raw turn; history = facts and their superseded or deleted versions."""

    text: str
    scope: Scope
    limit: int
    now: Instant
    include: str = "pending"
    threshold: float | None = None
    filters: Condition = ANY
    as_of: Instant | None = None
    known_at: Instant | None = None


def search(store: Store, embedder: Embedder, question: Question) -> list[Hit]:
    """The hits of a question, best first, at most ``limit``; scores in [0, 1]. Never writes."""
    query = embedder.embed_query(question.text)
    with store.snapshot() as tx:
        within = store_pools.reach(
            tx,
            question.scope,
            question.now,
            filters=question.filters,
            history=question.include == "history",
            as_of=question.as_of,
            known_at=question.known_at,
        )
        if within is None:
            return []
        hits: list[Hit] = []
        if question.include != "episodes":
            hits += _facts(tx, within, question, query)
        turns = question.include in ("episodes", "all") or (
            question.include == "pending" and store_pools.has_pending(tx, within)
        )
        if turns and not question.filters:
            hits += _turns(tx, within, question, query)
    floor = 0.0 if question.threshold is None else question.threshold
    hits = [hit for hit in hits if hit.score >= floor]
    return sorted(hits, key=lambda hit: -hit.score)[: question.limit]


def _facts(tx: Tx, within: store_pools.Reach, question: Question, query: Vector) -> list[Hit]:
    pool = max(store_pools.POOL, question.limit * 2)
    words = store_pools.word_query(tx, within, question.text)
    spread = words.spread
    near = store_pools.vector_pool(tx, within, query, pool)
    found = {*near, *words.pool(tx, within, pool), *store_pools.mention_pool(tx, within, question.text, pool)}

    def fused(rows: set[int]) -> dict[int, dict[str, float]]:
        some = list(rows)
        cosines = store_pools.cosines(tx, list(rows - near.keys()), query)
        cosines |= {row: near[row] for row in rows & near.keys()}
        named = store_pools.mention_shares(tx, within, question.text, some)
        return rank.fuse(cosines, words.scores(tx, some), named, spread=spread)

    signals = fused(found)
    beside = store_pools.beside(tx, within, list(signals)[:pool])
    signals |= fused({row for pair in beside for row in pair} - found)
    evidence = rank.lifted({row: each["fused"] for row, each in signals.items()}, beside)
    best = sorted(evidence, key=lambda row: (-evidence[row], row))[
        : question.limit * 2 + 10
    ]  # a few may drop out as expired
    records = store_read.records(tx, within, best)
    return [
        Hit(record, rank.score(evidence[row]), record.text, superseded=past, signals=_signals(signals[row]))
        for row in best
        if row in records
        for record, past in [records[row]]
    ]


def _turns(tx: Tx, within: store_pools.Reach, question: Question, query: Vector) -> list[Hit]:
    by_vector, by_words, spread = store_pools.turn_pool(
        tx, within, question.text, query, pending_only=question.include == "pending"
    )
    fused = rank.fuse(by_vector, by_words, {}, spread=spread)
    found = store_pools.turns(tx, within, list(fused))
    hits = []
    for row, turn in found.items():
        if question.as_of is not None and turn.event_at > question.as_of:
            continue
        score = rank.score(fused[row]["fused"])
        hits.append(Hit(None, score, _spoken(turn), turn=turn, signals=_signals(fused[row])))
    return hits


def _spoken(turn: TurnRecord) -> str:
    return f"{turn.name}: {turn.text}" if turn.name else turn.text


def _signals(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: round(score, 4) for name, score in scores.items()}


# -------------------------------------------------------------------- context for a prompt


def context(hits: list[Hit], *, max_tokens: int) -> str:
    """Hits as a fenced block that a prompt can hold as data; "" without hits.

    Stored text is escaped (``<`` ``>`` ``&`` as entities, one line each), so it can't close the fence. Lines are
    added best first while the block stays within about max_tokens.
    """
    opening, closing = "<memories>", "</memories>"
    budget = max_tokens * CONTEXT_BYTES_PER_TOKEN - len(opening) - len(closing) - 2
    lines: list[str] = []
    for hit in hits:
        line = f"- {_date(hit)}: {_escaped(hit.text)}"
        if len(line.encode()) + 1 > budget:
            break
        budget -= len(line.encode()) + 1
        lines.append(line)
    return "\n".join([opening, *lines, closing]) if lines else ""


def _date(hit: Hit) -> str:
    instant = hit.record.valid_from if hit.record else hit.turn.event_at if hit.turn else 0
    return datetime.fromtimestamp(instant / 1_000_000, UTC).strftime("%Y-%m-%d")


def _escaped(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
