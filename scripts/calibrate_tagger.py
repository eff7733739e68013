"""Fit from which chances on words become a mark, on the rows kept for calibration, and write it as rule data.

    python scripts/calibrate_tagger.py ROWS.jsonl… [--dry]

Reads rows whose id falls to part 8 of ten (scripts/fit_rules.py). A mark is right when it shares half of the characters
that it and the quote of a gold fact hold together, each quote counted once. Of all bounds with few enough messages
marked that hold nothing to keep, it takes those with the best F1. Writes localmem/rules/marks.toml.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))

from data import quoted
from fit_rules import CALIBRATE, RULES, read

from localmem import marks, report
from localmem.embed import default_tagger
from localmem.types import Span, TaggedWord, Tagger

FALSE_POSITIVES_MAX = 0.08  # of messages with nothing to keep; of some of these marks the generator makes no fact
OVERLAP_MIN = 0.5
Tagged = list[tuple[marks.Stretch, list[TaggedWord]]]
Case = tuple[Tagged, list[Span]]  # what the tagger says, gold quotes


def cases_of(rows: Sequence[dict[str, Any]], tagger: Tagger) -> Iterator[Case]:
    for row in rows:
        said, recent = ([report.message(m) for m in row[key]] for key in ("messages", "recent"))
        every = list(marks.stretches(said, recent[-1] if recent else None))
        tagged = tagger.tag([(stretch.around, stretch.text) for stretch in every])
        quotes = [quote for fact in row["facts"] if (quote := quoted(fact["quote"], said))]
        yield list(zip(every, tagged, strict=True)), quotes


def matched(found: Sequence[Span], gold: Sequence[Span]) -> int:
    left = list(gold)
    for span in found:
        hit = next((quote for quote in left if _overlap(span, quote) >= OVERLAP_MIN), None)
        if hit is not None:
            left.remove(hit)
    return len(gold) - len(left)


def _overlap(a: Span, b: Span) -> float:
    shared = min(a.end, b.end) - max(a.start, b.start)
    return shared / (max(a.end, b.end) - min(a.start, b.start)) if a.message == b.message and shared > 0 else 0.0


def outcome(cases: Sequence[Case], word: float, begins: float, mark: float) -> tuple[int, int, int, int, int]:
    """(marks right, found, quotes, messages with nothing to keep that got one, these messages)."""
    total = np.zeros(5, dtype=int)
    for tagged, gold in cases:
        every = [m for stretch, words in tagged for m in marks.marks_of(stretch, words, word=word, begins=begins)]
        found = [m.span for m in every if m.chance >= mark]
        total += (matched(found, gold), len(found), len(gold), not gold and bool(found), not gold)
    right, said, meant, idle, empty = total.tolist()
    return right, said, meant, idle, empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--dry", action="store_true", help="print only")
    given = parser.parse_args()
    tagger = default_tagger()
    if tagger is None:
        parser.error("the manifest names no tagger")
    rows = [row for path in given.paths for row in read(path, CALIBRATE) if "messages" in row]
    cases = list(cases_of(rows, tagger))
    told = []
    for bounds in itertools.product((0.3, 0.4, 0.5, 0.6), (0.3, 0.4, 0.5, 0.6), np.arange(0.4, 0.96, 0.05)):
        right, found, gold, idle, empty = outcome(cases, *map(float, bounds))
        if idle <= FALSE_POSITIVES_MAX * empty:
            told.append((2 * right / (found + gold), bounds, (right, found, gold, idle, empty)))
    f1, (word, begins, mark), (right, found, gold, idle, empty) = max(told)
    print(f"{len(rows)} rows; word {word:.2f}, begins {begins:.2f}, mark {mark:.2f}: {right} right of {found} marks, "
          f"{gold} quotes, F1 {f1:.3f}; {idle} of {empty} idle messages marked")  # fmt: skip
    if not given.dry:
        text = (
            "# Written by scripts/calibrate_tagger.py. Chances in [0, 1] from which a word is kept, a fact\n"
            "# begins, and the words of a fact are worth keeping together.\n"
            f'tagger = "{tagger.id}"\nword = {word:.2f}\nbegins = {begins:.2f}\nmark = {mark:.2f}\n'
        )
        (RULES / "marks.toml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
