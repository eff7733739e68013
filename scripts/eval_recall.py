"""Recall of search at turn level: conversations with questions in, a table out.

    python scripts/eval_recall.py locomo_dev.jsonl beam_dev.jsonl prefeval_dev.jsonl … [--limit 50] [--json OUT.json]

Each conversation is one user; each turn one ``add(infer=False)`` of "Speaker: text [shares caption]" at its own time
or its session's date; each question one ``search(limit=50)`` with default settings. R@k: mean share of a question's
evidence turns among the first k hits; a question without evidence is left out. Rows of one run: words alone (BM25),
vectors alone, both fused. Of preferences one topic is one user; of MADial's rows all memories are one user's, each
dialogue a query.

Nothing but speaker, text, caption and time of a turn is stored; questions and labels are for scoring.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localmem import Memory, dates, store_pools
from localmem.types import Scope

KS = (1, 5, 10, 20, 50)
ROWS = ("words", "vectors", "fused")


@dataclass(frozen=True)
class Query:
    text: str
    evidence: frozenset[str]  # turn ids
    category: str


@dataclass(frozen=True)
class Conversation:
    """``turns``: (id, what is stored, when or None)."""

    name: str
    turns: Sequence[tuple[str, str, datetime | None]]
    queries: list[Query]


@dataclass
class Tally:
    """Of one row of the table: what each question scored."""

    recalls: dict[int, list[float]] = field(default_factory=lambda: {k: [] for k in KS})
    whole: list[bool] = field(default_factory=list)  # all evidence among the first ten
    gains: list[float] = field(default_factory=list)  # nDCG@10
    ranks: list[float] = field(default_factory=list)  # reciprocal rank of the first evidence
    categories: list[str] = field(default_factory=list)

    def add(self, found: Sequence[str], query: Query) -> None:
        for k in KS:
            self.recalls[k].append(len(query.evidence & set(found[:k])) / len(query.evidence))
        places = [place for place, turn in enumerate(found) if turn in query.evidence]
        ideal = sum(1 / math.log2(place + 2) for place in range(min(10, len(query.evidence))))
        self.gains.append(sum(1 / math.log2(place + 2) for place in places if place < 10) / ideal)
        self.ranks.append(1 / (places[0] + 1) if places else 0.0)
        self.whole.append(query.evidence <= set(found[:10]))
        self.categories.append(query.category)

    def row(self) -> dict[str, float]:
        means = {f"R@{k}": statistics.fmean(values) for k, values in self.recalls.items()}
        return {**means, "all@10": statistics.fmean(self.whole), "nDCG@10": statistics.fmean(self.gains),
                "MRR": statistics.fmean(self.ranks)}  # fmt: skip

    def by_category(self) -> dict[str, tuple[int, float, float]]:
        """category -> (questions, R@5, R@10)"""
        found: dict[str, tuple[int, float, float]] = {}
        for category in sorted(set(self.categories)):
            mine = [i for i, one in enumerate(self.categories) if one == category]
            five, ten = (statistics.fmean(self.recalls[k][i] for i in mine) for k in (5, 10))
            found[category] = (len(mine), five, ten)
        return found


# ---------------------------------------------------------------- reading


def conversations(path: Path) -> list[Conversation]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if "sessions" in rows[0]:
        return [_talk(row) for row in rows]
    if "preference" in rows[0]:
        return list(_topics(rows))
    if rows[0].get("kind") == "memory":
        return [_dialogues(path.stem, rows)]
    raise SystemExit(f"{path}: not a form this script knows; see --help")


def _talk(row: dict[str, Any]) -> Conversation:
    turns = []
    when = None
    for session in row["sessions"]:
        for turn in session["turns"]:
            when = _time(turn.get("time") or session.get("date")) or when
            caption = f" [shares {turn['caption']}]" if turn.get("caption") else ""
            turns.append((turn["id"], f"{turn['speaker']}: {turn['text']}{caption}", when))
    queries = [
        Query(one["question"], frozenset(one["evidence"]), str(one.get("category") or one.get("type")))
        for one in row["qa"]
        if one["evidence"]
    ]
    return Conversation(row["conv_id"], turns, queries)


def _topics(rows: Sequence[dict[str, Any]]) -> Iterator[Conversation]:
    for topic in sorted({row["topic"] for row in rows}):
        mine = [row for row in rows if row["topic"] == topic]
        turns = [(row["id"], row["preference"], None) for row in mine]
        yield Conversation(topic, turns, [Query(row["question"], frozenset([row["id"]]), topic) for row in mine])


def _dialogues(name: str, rows: Sequence[dict[str, Any]]) -> Conversation:
    turns = [(str(row["id"]), row["event"], _time(row["time"])) for row in rows if row["kind"] == "memory"]
    queries = [
        Query(_before(row["dialogue"], min(row["test_turn"])), frozenset(map(str, row["relevant"])), "dialogue")
        for row in rows
        if row["kind"] != "memory" and row["relevant"]
    ]
    return Conversation(name, turns, queries)


def _before(dialogue: Sequence[str], turn: int) -> str:
    """What was said until the turn in which the memory is wanted, without the marks of the format."""
    said = [re.sub(r"^<[^>]*>:?\s*", "", one).strip() for one in dialogue[:turn]]
    return "\n".join(filter(None, said))


def _time(text: str | None) -> datetime | None:
    instant = dates.parse_loose(text or "")
    return None if instant is None else datetime.fromtimestamp(instant / 1_000_000, UTC)


# ---------------------------------------------------------------- measuring


def measure(talk: Conversation, tallies: dict[str, Tally], seconds: list[float], shares: list[tuple[int, int]]) -> None:
    """Store one conversation and ask its questions. ``shares``: tokens of the first ten hits and of the whole."""
    with tempfile.TemporaryDirectory() as folder, Memory(Path(folder) / "m.db", generator="none") as memory:
        for turn, text, when in talk.turns:
            memory.add(
                [{"role": "user", "content": text}],
                user_id=talk.name, infer=False, metadata={"turn": turn}, timestamp=when,
            )  # fmt: skip
        whole = sum(len(text) for _, text, _ in talk.turns) // 4
        for query in talk.queries:
            began = time.perf_counter()
            found = memory.search(query.text, user_id=talk.name, limit=KS[-1])["results"]
            seconds.append(time.perf_counter() - began)
            tallies["fused"].add([hit["metadata"]["turn"] for hit in found], query)
            shares.append((sum(len(hit["memory"]) for hit in found[:10]) // 4, whole))
            for row, turns in pools(memory, talk.name, query.text).items():
                tallies[row].add(turns, query)


def pools(memory: Memory, user: str, text: str) -> dict[str, list[str]]:
    """The turn ids by words alone and by vectors alone."""
    engine = memory._engine
    vector = engine.embedder.embed_query(text)
    with engine.store.db.snapshot() as tx:
        within = store_pools.reach(tx, Scope(user_id=user), engine.clock())
        assert within is not None
        found = {
            "words": list(store_pools.word_pool(tx, within, text, KS[-1])),
            "vectors": list(store_pools.vector_pool(tx, within, vector, KS[-1])),
        }
        rows = tx.execute("select v.id, m.metadata ->> 'turn' from version v join memory m on m.id = v.memory_id")
        turns = dict(rows.fetchall())
    return {row: [turns[version] for version in versions] for row, versions in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="DATA.jsonl")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    for path in given.paths:
        tallies, seconds, shares = {row: Tally() for row in ROWS}, list[float](), list[tuple[int, int]]()
        talks = conversations(path)
        for talk in talks:
            measure(talk, tallies, seconds, shares)
        figures[path.stem] = told(path.stem, talks, tallies, seconds, shares)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return 0


def told(
    name: str, talks: Sequence[Conversation], tallies: dict[str, Tally], seconds: Sequence[float],
    shares: Sequence[tuple[int, int]],
) -> dict[str, Any]:  # fmt: skip
    """Print one data set's table; the same as JSON."""
    questions, turns = len(seconds), sum(len(talk.turns) for talk in talks)
    print(f"\n{name}: {questions} questions with evidence, {turns} turns in {len(talks)} stores")
    rows = {row: tally.row() for row, tally in tallies.items()}
    print(f"{'':9}" + "".join(f"{figure:>9}" for figure in rows["fused"]))
    for row, values in rows.items():
        print(f"{row:9}" + "".join(f"{value:9.3f}" for value in values.values()))
    categories = tallies["fused"].by_category()
    print("fused, by category (R@5 / R@10):", "; ".join(
        f"{one} {five:.3f} / {ten:.3f} of {count}" for one, (count, five, ten) in categories.items()))  # fmt: skip
    ordered = sorted(seconds)
    p50, p95 = (1000 * ordered[int(share * (questions - 1))] for share in (0.5, 0.95))
    tokens, whole = (statistics.fmean(pair[i] for pair in shares) for i in (0, 1))
    print(f"search {p50:.1f} ms p50, {p95:.1f} ms p95; ten hits {tokens:.0f} of {whole:.0f} tokens (characters / 4)")
    return {
        "questions": questions, "turns": turns, "stores": len(talks), "rows": rows, "categories": categories,
        "ms": {"p50": p50, "p95": p95}, "tokens": {"ten": tokens, "whole": whole},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
