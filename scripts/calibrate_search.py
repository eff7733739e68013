"""Fit how evidence becomes a score, so that a score says how likely a hit answers the query: prints rank.py's numbers.

    python scripts/calibrate_search.py models/training/recall/{talks,lists}.jsonl [--check CONVERSATIONS.jsonl …]

Held-out talks and lists (ids whose sha256 modulo 10 is 8; 9 for the check) are searched three times: each as a store
of its own, all held-out ones as one user's, and all rows of the files as one user's. What counts is whether a hit is
among a question's evidence; questions that nothing answers count with every hit wrong. --check: files of
eval_recall.py, whose questions take no part in the fit. Reliability is given by tenths of the score with the expected
calibration error (Guo et al. 2017, arXiv:1706.04599), and how well the best score tells questions with an answer from
those without (area under the ROC curve, and how many of each are left at a threshold): those that have none, which are
made to look alike, and the questions of the next conversation, of which this store knows nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from eval_recall import conversations
from fit_rules import CALIBRATE, TEST, logistic, part_of

from localmem import Memory, rank

LIMIT = 50
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Source:
    """Texts of one talk, list or conversation with their times, and (query, places of its evidence)."""

    id: str
    texts: list[tuple[str, Any]]
    asked: list[tuple[str, frozenset[int]]]


@dataclass(frozen=True)
class Found:
    """The hits of one query: evidence and whether each answers it; how many memories there were."""

    evidence: list[float]
    right: list[bool]
    documents: int
    answerable: bool


def sources(paths: Sequence[Path]) -> Iterator[Source]:
    """Our own talks and lists."""
    for path in paths:
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            texts = [
                (f"{turn['speaker']}: {turn['text']}", session["at"])
                for session in row.get("sessions", ())
                for turn in session["turns"]
            ] or [(text, None) for text in row["statements"]]
            asked = [
                (one["query"], frozenset() if one["type"] == "none" else frozenset(n - 1 for n in one["evidence"]))
                for one in row["questions"]
            ]
            yield Source(row["id"], texts, asked)


def searched(stored: Sequence[Source], asked: Sequence[Source]) -> Iterator[Found]:
    """All of ``stored`` as one user's memories; the questions of ``asked``, which are among them."""
    with Memory(":memory:", generator="none") as memory:
        places: dict[str, tuple[str, int]] = {}
        for source in stored:
            for place, (text, at) in enumerate(source.texts):
                added = memory.add(text, user_id="u", run_id=source.id, infer=False, timestamp=at)["results"]
                places[added[0]["id"]] = (source.id, place)
        for source in asked:
            for query, evidence in source.asked:
                hits = memory.search(query, user_id="u", limit=LIMIT, explain=True)["results"]
                where = [places[hit["id"]] for hit in hits]
                yield Found(
                    [hit["signals"]["evidence"] for hit in hits],
                    [name == source.id and place in evidence for name, place in where],
                    len(places),
                    bool(evidence),
                )


def every(found: Iterable[Found]) -> tuple[np.ndarray, np.ndarray]:
    """(rows of evidence, ln(documents / 100), 1; whether right)."""
    rows = [
        (evidence, math.log(one.documents / 100), 1.0, right)
        for one in found
        for evidence, right in zip(one.evidence, one.right, strict=True)
    ]
    table = np.array(rows, float)
    return table[:, :3], table[:, 3]


def report(name: str, found: Sequence[Found]) -> None:
    """Reliability of the scores as rank.py makes them, and what a threshold leaves."""
    scores = np.array([rank.score(e, one.documents) for one in found for e in one.evidence])
    right = np.array([each for one in found for each in one.right], float)
    tenth = np.minimum((scores * 10).astype(int), 9)
    groups = [(t / 10, tenth == t) for t in range(10) if (tenth == t).any()]
    error = sum(abs(scores[some].mean() - right[some].mean()) * some.mean() for _, some in groups)
    print(f"{name}: {len(found)} questions, {len(scores)} hits, expected calibration error {error:.3f}")
    for low, some in groups:
        print(f"  score {low:.1f}-{low + 0.1:.1f}: {int(some.sum()):6d} hits, {right[some].mean():.2f} right")
    best = {True: list[float](), False: list[float]()}
    for one in found:
        best[one.answerable].append(max((rank.score(e, one.documents) for e in one.evidence), default=0.0))
    if best[True] and best[False]:
        yes, no = np.array(best[True]), np.array(best[False])
        area = ((yes[:, None] > no) + 0.5 * (yes[:, None] == no)).mean()
        print(f"  with an answer {len(yes)}, without {len(no)}: area under the curve {area:.3f}; best hit above")
        print("   ", "  ".join(f"{t}: {(yes >= t).mean():.2f}/{(no >= t).mean():.2f}" for t in THRESHOLDS))


def of_conversations(path: Path) -> Iterator[Source]:
    for talk in conversations(path):
        places = {turn: place for place, (turn, _, _) in enumerate(talk.turns)}
        asked = [
            (one.text, frozenset(places[turn] for turn in one.evidence) if one.answerable else frozenset[int]())
            for one in talk.queries
            if one.evidence or not one.answerable
        ]
        yield Source(talk.name, [(text, at) for _, text, at in talk.turns], asked)


def strangers(talks: Sequence[Source]) -> Iterator[Found]:
    """Each conversation asked the questions of the next one."""
    for talk, other in zip(talks, [*talks[1:], *talks[:1]], strict=True):
        for one in searched([talk], [other]):
            yield replace(one, answerable=False, right=[False] * len(one.right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+", help="talks and lists")
    parser.add_argument("--check", type=Path, nargs="*", default=[], help="conversations of eval_recall.py")
    given = parser.parse_args()
    all_of_them = list(sources(given.rows))
    found: dict[int, list[Found]] = {}
    for part in (CALIBRATE, TEST):
        held = [source for source in all_of_them if part_of(source.id) == part]
        found[part] = [one for source in held for one in searched([source], [source])]
        found[part] += searched(held, held)
        found[part] += searched(all_of_them, held)
    slope, growth, constant = logistic(*every(found[CALIBRATE]), ridge=1e-6)
    print(f"SCORE_SLOPE, SCORE_MIDDLE, SCORE_GROWTH = {slope:.2f}, {-constant / slope:.2f}, {-growth / slope:.2f}")
    report("held out, fitted on", found[CALIBRATE])
    report("held out", found[TEST])
    for path in given.check:
        talks = list(of_conversations(path))
        own = [one for talk in talks for one in searched([talk], [talk])]
        report(path.stem, own)
        answered = [one for one in own if one.answerable]
        report(f"{path.stem}, with the questions of other conversations", answered + list(strangers(talks)))


if __name__ == "__main__":
    main()
