"""The read story of DESIGN section 3: embed the query, one snapshot, fuse the union of the pools, cut."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from localmem import rank, store_pools, store_read, store_turns, timing
from localmem.filters import ANY, Condition
from localmem.profile import BYTES_PER_TOKEN, Line, one_line
from localmem.store import Store
from localmem.store_matrix import Matrices
from localmem.store_waiting import Waiting
from localmem.types import Embedder, Hit, Instant, Reranker, Scope, TurnRecord

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Vector

INCLUDES = ("facts", "pending", "episodes", "all", "history")
EVENT_POOL, EVENT_EVIDENCE_MIN = 20, 5.2  # memories that may tell of an event; the evidence from which one does
# "What did you recommend?", "the assistant's list"
_ABOUT_ASSISTANT = re.compile(r"\b(?:you|your|yours|assistant|assistant's|ai|bot)\b", re.IGNORECASE)
RERANKED = 20  # best hits that a reranker reads
TIMED_MAX = 100  # best rows whose own dates are read, where the query asks for a time
IN_GENERAL = "In general:"  # before what is known whatever was asked
PROFILE_SHARE = 0.25  # of a context at most, unless the hits leave more free


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
    explain: bool = False


def search(store: Store, embedder: Embedder, question: Question, reranker: Reranker | None = None) -> list[Hit]:
    """The hits of a question, best first, at most ``limit``; scores in [0, 1]. Never writes."""
    query = _query_vector(embedder, question.text)
    asked = timing.asked(question.text, question.now)
    event = embedder.embed_query(asked.event) if asked.event else None
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
        if event is not None:
            asked = asked.beside(_happened(tx, within, asked.event, event))
        if question.include != "episodes":
            hits += _facts(tx, within, question, query, asked, store.matrices)
        most = question.limit if reranker is None else max(question.limit, RERANKED)
        turns = question.include in ("episodes", "all") or (
            question.include == "pending" and store_turns.has_pending(tx, within)
        )
        if turns and not question.filters:
            hits += _turns(tx, within, question, query, asked, store.waiting, most)
    hits.sort(key=lambda hit: -hit.score)
    if reranker is not None:
        hits = _reranked(reranker, question, hits)
    floor = 0.0 if question.threshold is None else question.threshold
    return [hit for hit in hits if hit.score >= floor][: question.limit]


def _query_vector(embedder: Embedder, text: str) -> Vector:
    """The unit vector of a query. Of several lines, as a talk is, the last counts more: the next reply is to it."""
    whole = embedder.embed_query(text)
    *before, last = [line for line in text.splitlines() if line.strip()]
    if not before:
        return whole
    mixed = (1 - rank.LAST_LINE) * whole + rank.LAST_LINE * embedder.embed_query(last)
    vector: Vector = (mixed / np.linalg.norm(mixed)).astype(np.float32)
    return vector


def _reranked(reranker: Reranker, question: Question, hits: list[Hit]) -> list[Hit]:
    """The first RERANKED in the reranker's order and with its scores; those behind them score no higher."""
    first, rest = hits[:RERANKED], hits[RERANKED:]
    scores = [min(1.0, max(0.0, float(score))) for score in reranker.rerank(question.text, [hit.text for hit in first])]
    read = [
        replace(hit, score=score, signals={**hit.signals, "reranked": round(score, 4)} if question.explain else {})
        for hit, score in zip(first, scores, strict=True)
    ]
    least = min(scores, default=1.0)
    return sorted(read, key=lambda hit: -hit.score) + [replace(hit, score=min(hit.score, least)) for hit in rest]


def _facts(
    tx: Tx,
    within: store_pools.Reach,
    question: Question,
    query: Vector,
    asked: timing.Asked,
    matrices: Matrices,
) -> list[Hit]:
    pool = max(store_pools.POOL, question.limit * 2)
    words = store_pools.word_query(tx, within, question.text)
    spread = words.spread
    near = store_pools.vector_pool(tx, within, query, pool, matrices)
    for span in asked.spans:
        near |= store_pools.vector_pool(tx, replace(within, during=span), query, pool)
    later = store_pools.passage_pool(tx, within, query, pool)
    found = {*near, *later, *words.pool(tx, within, pool), *store_pools.mention_pool(tx, within, question.text, pool)}

    def fused(rows: set[int]) -> dict[int, dict[str, float]]:
        some = list(rows)
        cosines = store_pools.cosines(tx, list(rows - near.keys()), query)
        cosines |= {row: near[row] for row in rows & near.keys()}
        cosines |= {row: max(cosines[row], later[row]) for row in rows & later.keys()}
        named = store_pools.mention_shares(tx, within, question.text, some)
        return rank.fuse(cosines, words.scores(tx, some), named, spread=spread)

    signals = fused(found)
    beside = store_pools.beside(tx, within, list(signals)[:pool])
    signals |= fused({row for pair in beside for row in pair} - found)
    lifted = rank.lifted({row: each["fused"] for row, each in signals.items()}, beside)
    evidence = _timed(asked, question, lifted, lambda rows: store_pools.times(tx, rows))
    said = store_pools.by_assistant(tx, _best_first(evidence)[: question.limit * 4 + 20])
    evidence = _by_others(question, evidence, said)
    best = _best_first(evidence)[: question.limit * 2 + 5]  # some may be repeats
    records, sources = store_read.records(tx, within, best), store_read.sources(tx, best)
    asked_for = rank.key(question.text)  # these very words are answers, however often they were kept
    texts = {row: records[row][0].text for row in best if row in records}
    varied = rank.varied(evidence, {row: text for row, text in texts.items() if rank.key(text) != asked_for})
    told = _signals(signals, varied) if question.explain else {}
    hits, score = list[Hit](), 1.0
    for row in _best_first({row: varied[row] for row in texts}):
        record, past = records[row]
        score = min(score, rank.score(evidence[row], words.documents))  # a repeat is as likely, but goes behind
        signs = told.get(row, {})
        hits.append(Hit(record, score, record.text, superseded=past, signals=signs, sources=sources.get(row, ())))
    return hits


def _by_others(question: Question, evidence: Mapping[int, float], said: Collection[int]) -> Mapping[int, float]:
    """The evidence, less for what an assistant said, unless the query asks for that."""
    if not said or _ABOUT_ASSISTANT.search(question.text):
        return evidence
    return {row: value - rank.ASSISTANT_LESS * (row in said) for row, value in evidence.items()}


def _happened(tx: Tx, within: store_pools.Reach, event: str, vector: Vector) -> Instant | None:
    """When the event was that a query's time is told by; None where no memory tells of it."""
    near = store_pools.vector_pool(tx, within, vector, EVENT_POOL)
    words = store_pools.word_query(tx, within, event)
    fused = rank.fuse(near, words.scores(tx, list(near)), {}, spread=words.spread)
    best = next(iter(fused), None)
    if best is None or fused[best]["fused"] < EVENT_EVIDENCE_MIN:
        return None
    return store_pools.times(tx, [best])[best][0]


def _timed(
    asked: timing.Asked,
    question: Question,
    evidence: Mapping[int, float],
    times_of: Callable[[list[int]], Mapping[int, tuple[Instant, str, bool]]],
) -> Mapping[int, float]:
    """The evidence with what the time says that the query asks for, where it asks for one.

    ``times_of``: row -> (since when, text, whether it is past) of these rows.
    """
    past = asked.past and question.include == "history"
    if not evidence or not (asked.spans or asked.recent or past):
        return evidence
    times = times_of(_best_first(evidence))
    fits, ages = dict[int, float](), dict[int, float]()
    if asked.spans:
        for place, (row, (at, text, _)) in enumerate(times.items()):
            fits[row] = asked.fit(timing.moments(text, at) if place < TIMED_MAX else (at,))
    elif asked.recent:
        newest, oldest = max(at for at, _, _ in times.values()), min(at for at, _, _ in times.values())
        ages = {row: (newest - at) / max(1, newest - oldest) for row, (at, _, _) in times.items()}
    return rank.timed(evidence, fits, ages, {row for row, (_, _, gone) in times.items() if past and gone})


def _turns(
    tx: Tx,
    within: store_pools.Reach,
    question: Question,
    query: Vector,
    asked: timing.Asked,
    waiting: Waiting,
    hits_max: int,
) -> list[Hit]:
    """The first ``hits_max`` of them, at least."""
    pending_only = question.include == "pending"
    turns = store_turns.turns_of(tx, within, question.text, query, pending_only=pending_only, waiting=waiting)
    near = turns.near(tx, query)

    def fused(rows: set[int]) -> dict[int, dict[str, float]]:
        cosines = turns.cosines(tx, query, list(rows - near.keys()))
        cosines |= {row: near[row] for row in rows & near.keys()}
        return rank.fuse(cosines, turns.scores(tx, list(rows)), {}, spread=turns.spread)

    found = {*near, *turns.by_words()}
    signals = fused(found)
    beside = turns.beside(tx, list(signals)[: store_pools.POOL])
    signals |= fused({row for pair in beside for row in pair} - found)
    lifted = rank.lifted({row: each["fused"] for row, each in signals.items()}, beside)
    shown = _best_turns(tx, within, question, asked, lifted, hits_max)
    evidence = {**lifted, **{row: found for row, (_, found) in shown.items()}}
    told = _signals(signals, evidence) if question.explain else {}
    return [
        Hit(
            None, rank.score(found, turns.documents), _spoken(turn), turn=turn, superseded=turn.superseded,
            signals=told.get(row, {}),
        )
        for row, (turn, found) in shown.items()
    ]  # fmt: skip


def _best_turns(
    tx: Tx,
    within: store_pools.Reach,
    question: Question,
    asked: timing.Asked,
    lifted: Mapping[int, float],
    hits_max: int,
) -> dict[int, tuple[TurnRecord, float]]:
    """The turns in reach that may be among the hits, with their evidence, in the order of ``lifted``.

    Only a time that is asked for adds to that. Without one, turns are read best first until none of those that are
    unread can come before enough of those that are.
    """
    best = _best_first(lifted)
    step = len(best) if asked.spans or asked.recent else hits_max * 2
    shown: dict[int, tuple[TurnRecord, float]] = {}
    for start in range(0, len(best), step or 1):
        some = store_turns.records(tx, within, best[start : start + step])
        evidence = _timed(asked, question, {row: lifted[row] for row in some}, partial(_said, some))
        evidence = _by_others(question, evidence, {row for row, turn in some.items() if turn.role == "assistant"})
        shown |= {
            row: (turn, evidence[row])
            for row, turn in some.items()
            if question.as_of is None or turn.event_at <= question.as_of
        }
        left = best[start + step : start + step + 1]
        if left and sum(evidence >= lifted[left[0]] for _, evidence in shown.values()) >= hits_max:
            break
    return shown


def _said(turns: Mapping[int, TurnRecord], rows: Iterable[int]) -> dict[int, tuple[Instant, str, bool]]:
    return {row: (turns[row].event_at, turns[row].text, False) for row in rows}


def _best_first(scores: Mapping[int, float]) -> list[int]:
    return sorted(scores, key=lambda row: (-scores[row], row))


def _spoken(turn: TurnRecord) -> str:
    return f"{turn.name}: {turn.text}" if turn.name else turn.text


def _signals(signals: Mapping[int, Mapping[str, float]], evidence: Mapping[int, float]) -> dict[int, dict[str, float]]:
    """What `explain` shows: score and place (from 1) in each pool, all fused, then with turns beside and time."""
    told = {row: {name: round(score, 4) for name, score in each.items()} for row, each in signals.items()}
    for pool in ("vector", "words", "mentions"):
        held = {row: each[pool] for row, each in signals.items() if each[pool] > 0}
        for place, row in enumerate(_best_first(held), 1):
            told[row][f"{pool}_rank"] = place
    for row, each in told.items():
        each["evidence"] = round(evidence[row], 4)
    return told


# -------------------------------------------------------------------- context for a prompt


def context(hits: Sequence[Hit], known: Sequence[Line], *, max_tokens: int) -> str:
    """Hits as a fenced block that a prompt can hold as data, then what is known in general; "" without either.

    Stored text is escaped (``<`` ``>`` ``&`` as entities, one line each), so it can't close the fence. Lines are
    added best first while the block stays within about max_tokens; a PROFILE_SHARE of them is held free for what is
    known in general.
    """
    opening, closing = "<memories>", "</memories>"
    budget = max_tokens * BYTES_PER_TOKEN - len(opening) - len(closing) - 2
    held = min(_cost([IN_GENERAL, *(_line(each.since, each.text) for each in known)]), int(budget * PROFILE_SHARE))
    near = _cut([_line(_when(hit), hit.text) for hit in hits], budget - held * bool(known))
    shown = {hit.record.id for hit in hits[: len(near)] if hit.record}
    rest = [_line(each.since, each.text) for each in known if each.id not in shown]
    general = _cut(rest, budget - _cost(near) - _cost([IN_GENERAL]))
    lines = [*near, *([IN_GENERAL, *general] if general else [])]
    return "\n".join([opening, *lines, closing]) if lines else ""


def _cut(lines: Sequence[str], bytes_max: int) -> Sequence[str]:
    """The first lines, as many as fit."""
    sizes = itertools.accumulate(_cost([line]) for line in lines)
    return lines[: sum(size <= bytes_max for size in sizes)]


def _cost(lines: Sequence[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _line(at: Instant, text: str) -> str:
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"- {datetime.fromtimestamp(at / 1_000_000, UTC):%Y-%m-%d}: {escaped}"


def _when(hit: Hit) -> Instant:
    return hit.record.valid_from if hit.record else hit.turn.event_at if hit.turn else 0
