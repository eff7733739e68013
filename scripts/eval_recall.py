"""Recall of search at turn level: conversations with questions in, a table out.

    python scripts/eval_recall.py locomo_dev.jsonl beam_dev.jsonl prefeval_dev.jsonl …
                                  [--ablate] [--embedder NAME] [--json OUT.json] [--plot OUT.svg]

Each conversation is one user; each turn one ``add(infer=False)`` of "Speaker: text [shares caption]" at its own time
or its session's date; each question one ``search(limit=50)`` with default settings. R@k: mean share of a question's
evidence turns among the first k hits; a question without evidence is left out. Rows of one run: words alone (BM25),
vectors alone, both fused; with --ablate also fused without one of its parts each. --embedder: another one that comes
with localmem. --plot: recall against the tokens of the hits. Of preferences one topic is one user; of MADial's rows
all memories are one user's, each dialogue a query.

Nothing but speaker, text, caption and time of a turn is stored; questions and labels are for scoring.
"""

from __future__ import annotations

import argparse
import contextlib
import html
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

from localmem import Memory, dates, rank, store_pools
from localmem.types import Scope

KS = (1, 5, 10, 20, 50)
ROWS = ("words", "vectors", "fused")
ABLATIONS = {  # row of the table -> what of localmem/rank.py counts nothing then
    "no words": ("WORD_WEIGHT",),
    "no names": ("MENTION_WEIGHT",),
    "no time": ("TIME_WEIGHT", "RECENT_WEIGHT", "PAST_WEIGHT"),
    "no turns beside": ("LIFT",),
    "no last line": ("LAST_LINE",),
    "no less for assistants": ("ASSISTANT_LESS",),
}

LABEL = 1 + max(map(len, ABLATIONS))  # width of the first column


@dataclass(frozen=True)
class Query:
    text: str
    evidence: frozenset[str]  # turn ids; none: not counted in a recall
    category: str
    answerable: bool = True


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
    tokens: dict[int, list[int]] = field(default_factory=lambda: {k: [] for k in KS})  # of the first k hits

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
        Query(
            one["question"],
            frozenset(one["evidence"]),
            str(one.get("category") or one.get("type")),
            one.get("answerable", True),
        )
        for one in row["qa"]
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


def measure(
    talk: Conversation, tallies: dict[str, Tally], seconds: list[float], wholes: list[int], embedder: str | None = None
) -> None:
    """Store one conversation and ask its questions. ``wholes``: the tokens of the whole, for each question."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory(Path(folder) / "m.db", generator="none", embedder=embedder) as memory,
    ):
        for turn, text, when in talk.turns:
            memory.add(
                [{"role": "user", "content": text}],
                user_id=talk.name, infer=False, metadata={"turn": turn}, timestamp=when,
            )  # fmt: skip
        whole = sum(len(text) for _, text, _ in talk.turns) // 4
        for query in filter(lambda one: one.evidence, talk.queries):
            began = time.perf_counter()
            found = memory.search(query.text, user_id=talk.name, limit=KS[-1])["results"]
            seconds.append(time.perf_counter() - began)
            wholes.append(whole)
            tallies["fused"].add([hit["metadata"]["turn"] for hit in found], query)
            for k, tokens in tallies["fused"].tokens.items():
                tokens.append(sum(len(hit["memory"]) for hit in found[:k]) // 4)
            for row in tallies.keys() & ABLATIONS.keys():
                with without(ABLATIONS[row]):
                    found = memory.search(query.text, user_id=talk.name, limit=KS[-1])["results"]
                tallies[row].add([hit["metadata"]["turn"] for hit in found], query)
            for row, turns in pools(memory, talk.name, query.text).items():
                tallies[row].add(turns, query)


@contextlib.contextmanager
def without(constants: Sequence[str]) -> Iterator[None]:
    """While these weights are 0."""
    kept = {name: getattr(rank, name) for name in constants}
    for name in constants:
        setattr(rank, name, 0.0)
    yield
    for name, value in kept.items():
        setattr(rank, name, value)


def pools(memory: Memory, user: str, text: str) -> dict[str, list[str]]:
    """The turn ids by words alone and by vectors alone."""
    engine = memory._engine
    vector = engine.embedder.embed_query(text)
    with engine.store.snapshot() as tx:
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
    parser.add_argument("--ablate", action="store_true", help="rows without a part each")
    parser.add_argument("--embedder", help="the name of one that comes with localmem")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    parser.add_argument("--plot", type=Path, help="recall against tokens, as SVG")
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    for path in given.paths:
        rows = [*ROWS, *(ABLATIONS if given.ablate else ())]
        tallies, seconds, wholes = {row: Tally() for row in rows}, list[float](), list[int]()
        talks = conversations(path)
        for talk in talks:
            measure(talk, tallies, seconds, wholes, given.embedder)
        figures[path.stem] = told(path.stem, talks, tallies, seconds, wholes)
    if given.plot:
        given.plot.write_text(plotted(figures), "utf-8")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return 0


def told(
    name: str, talks: Sequence[Conversation], tallies: dict[str, Tally], seconds: Sequence[float],
    wholes: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """Print one data set's table; the same as JSON."""
    questions, turns = len(seconds), sum(len(talk.turns) for talk in talks)
    print(f"\n{name}: {questions} questions with evidence, {turns} turns in {len(talks)} stores")
    rows = {row: tally.row() for row, tally in tallies.items()}
    print(f"{'':{LABEL}}" + "".join(f"{figure:>9}" for figure in rows["fused"]))
    for row, values in rows.items():
        print(f"{row:{LABEL}}" + "".join(f"{value:9.3f}" for value in values.values()))
    categories = tallies["fused"].by_category()
    print("fused, by category (R@5 / R@10):", "; ".join(
        f"{one} {five:.3f} / {ten:.3f} of {count}" for one, (count, five, ten) in categories.items()))  # fmt: skip
    ordered = sorted(seconds)
    p50, p95 = (1000 * ordered[int(share * (questions - 1))] for share in (0.5, 0.95))
    tokens = {k: statistics.fmean(counts) for k, counts in tallies["fused"].tokens.items()}
    whole = statistics.fmean(wholes)
    print(
        f"search {p50:.1f} ms p50, {p95:.1f} ms p95; ten hits {tokens[10]:.0f} of {whole:.0f} tokens (characters / 4)"
    )
    return {
        "questions": questions, "turns": turns, "stores": len(talks), "rows": rows, "categories": categories,
        "ms": {"p50": p50, "p95": p95}, "tokens": {**tokens, "whole": whole},
    }  # fmt: skip


WIDTH, HEIGHT, EDGE = 640, 400, 50
COLOURS = ("#1b6ca8", "#c0582b", "#3a7d44", "#7b4b94", "#555555")


def plotted(figures: dict[str, Any]) -> str:
    """A line for each data set: recall of the fused hits over the share of all tokens that they are (log scale)."""
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{EDGE}" y="20">Recall of the first 1, 5, 10, 20, 50 hits over their share of all tokens</text>',
    ]

    def place(share: float, recall: float) -> str:
        across = EDGE + (WIDTH - 2 * EDGE) * (math.log10(max(share, 0.001)) + 3) / 3
        return f"{across:.1f},{HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * recall:.1f}"

    for tenth in range(0, 11, 2):
        left, right = place(0.001, tenth / 10), place(1.0, tenth / 10)
        lines.append(f'<path d="M{left}L{right}" stroke="#dddddd"/>')
        lines.append(f'<text x="10" y="{left.split(",")[1]}">{tenth / 10:.1f}</text>')
    for share in (0.001, 0.01, 0.1, 1.0):
        lines.append(f'<text x="{place(share, 0).split(",")[0]}" y="{HEIGHT - 25}">{share:.1%}</text>')
    for number, (name, figure) in enumerate(figures.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(figure["tokens"][k] / figure["tokens"]["whole"], figure["rows"]["fused"][f"R@{k}"]) for k in KS]
        lines.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(
            f'<text x="{WIDTH - 180}" y="{HEIGHT - 60 - 16 * number}" fill="{colour}">{html.escape(name)}</text>'
        )
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    sys.exit(main())
