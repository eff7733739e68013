"""Measure the two model phases, extraction and decision, on the authored examples held out from fitting.

    python scripts/eval_pipeline.py extract EXTRACT.jsonl --model MODEL.gguf [--rows 150] [--show 10]
    python scripts/eval_pipeline.py decide  DECIDE.jsonl  --model MODEL.gguf [--rows 300]

Held out: ids whose sha256 modulo 10 is 9 (see scripts/fit_rules.py). A fact is right when its token F1 with a gold fact
is 0.6 or more, each gold fact counted once. Every figure is printed with its counts.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fit_rules import TEST, message, read

from localmem import dates, words
from localmem.config import Limits
from localmem.decide import decide_all
from localmem.extract import ExtractContext, Extraction, extract
from localmem.llm import LlamaGenerator
from localmem.types import Fact, Generator, Neighbour, Op

MATCH_F1 = 0.6
Row = dict[str, Any]


def share(part: float, whole: float) -> str:
    """part/whole with its percentage."""
    return f"{part:g}/{whole:g} ({100 * part / whole:.1f} %)" if whole else f"{part:g}/0"


def token_f1(a: str, b: str) -> float:
    """F1 of the two texts' folded words."""
    first, second = (collections.Counter(t.folded for t in words.tokens(text)) for text in (a, b))
    shared = sum((first & second).values())
    return 2 * shared / (sum(first.values()) + sum(second.values())) if shared else 0.0


def matched(found: Sequence[str], gold: Sequence[str]) -> int:
    """How many gold facts are met by a found one of their own, best pairs first."""
    pairs = sorted(((token_f1(f, g), i, j) for i, f in enumerate(found) for j, g in enumerate(gold)), reverse=True)
    used: set[tuple[str, int]] = set()
    hits = 0
    for score, i, j in pairs:
        if score >= MATCH_F1 and ("found", i) not in used and ("gold", j) not in used:
            used |= {("found", i), ("gold", j)}
            hits += 1
    return hits


def extracted(generator: Generator, row: Row) -> Extraction:
    """What extraction makes of one authored row."""
    return extract(
        generator,
        [message(m) for m in row["messages"]],
        context=ExtractContext(recent=tuple(message(m) for m in reversed(row["recent"]))),
        event_at=dates.parse_instant(row["at"]),
        limits=Limits(),
    )


def measure_extract(generator: Generator, rows: Sequence[Row], show: int) -> None:
    """Precision, recall and F1 of facts; silence on rows with nothing to keep."""
    count: collections.Counter[str] = collections.Counter()
    started = time.perf_counter()
    for number, row in enumerate(rows):
        result = extracted(generator, row)
        found, gold = [fact.text for fact in result.facts], [fact["text"] for fact in row["facts"]]
        count["found"] += len(found)
        count["gold"] += len(gold)
        count["hits"] += matched(found, gold)
        count["refused"] += len(result.unsupported)
        if not gold:
            count["empty"] += 1
            count["noisy"] += bool(found)
            count["noise"] += len(found)
        if number < show:
            _show(row, result, gold)
    seconds = (time.perf_counter() - started) / max(1, len(rows))
    precision, recall = count["hits"] / max(1, count["found"]), count["hits"] / max(1, count["gold"])
    print(f"rows {len(rows)}, {seconds:.2f} s each")
    print(f"precision {share(count['hits'], count['found'])}, recall {share(count['hits'], count['gold'])}, ", end="")
    print(f"F1 {2 * precision * recall / max(1e-9, precision + recall):.3f}")
    print(f"rows with nothing to keep that gave facts: {share(count['noisy'], count['empty'])}, {count['noise']} facts")
    print(f"unsupported: {share(count['refused'], count['refused'] + count['found'])} of all worded facts")


def _show(row: Row, result: Extraction, gold: Sequence[str]) -> None:
    print("#", " | ".join(f"{m['role']}: {m['content'][:300]}" for m in row["messages"]))
    print("  gold  ", *gold, sep="\n    ")
    print("  found ", *(fact.text for fact in result.facts), sep="\n    ")
    print("  refused", *((fact.text, guards) for fact, guards in result.unsupported), sep="\n    ")


def measure_decide(generator: Generator | None, rows: Sequence[Row], show: int) -> None:
    """Operation accuracy, destructive errors, targets, by operation."""
    from localmem.embed import default_embedder

    embedder = default_embedder()
    table: collections.Counter[tuple[str, str]] = collections.Counter()
    right = destructive = on_target = contested = 0
    started = time.perf_counter()
    for number, row in enumerate(rows):
        texts = [row["fact"], *(old["text"] for old in row["existing"])]
        vectors = embedder.embed_passages(texts)
        near = [
            Neighbour(str(i), 1, old["text"], float(vectors[0] @ vectors[i + 1]), dates.parse_instant(old["at"]))
            for i, old in enumerate(row["existing"])
        ]
        fact = Fact(row["fact"], event_at=dates.parse_instant(row["at"]))
        decision = decide_all(generator, [fact], [near])[0]
        table[row["op"], decision.op.value] += 1
        contested += bool(decision.contested)
        destructive += decision.op in (Op.UPDATE, Op.DELETE) and row["op"] in ("ADD", "NOOP")
        if decision.op.value == row["op"]:
            right += 1
            on_target += {int(t.id) for t in decision.targets} <= set(row["targets"])
        if number < show:
            print(
                row["op"],
                decision.op,
                decision.reason,
                "|",
                row["fact"],
                "|",
                [t.text for t in decision.targets],
                "|",
                decision.text,
                "|",
                row.get("text"),
            )
    print(f"rows {len(rows)}, {(time.perf_counter() - started) / max(1, len(rows)):.2f} s each")
    print(f"operation right {share(right, len(rows))}, targets right among those {share(on_target, right)}")
    print(f"UPDATE or DELETE where gold says ADD or NOOP {share(destructive, len(rows))}; contested {contested}")
    for gold in Op:
        print(f"  gold {gold.value:7}", *(f"{op.value} {table[gold.value, op.value]:4}" for op in Op))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("extract", "decide"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", type=Path, help="a chat GGUF; decide works without one")
    parser.add_argument("--rows", type=int, default=150, help="at most this many held-out rows")
    parser.add_argument("--show", type=int, default=0, help="print this many rows with their answers")
    given = parser.parse_args()
    generator = LlamaGenerator(given.model) if given.model else None
    rows = read(given.path, TEST)[: given.rows]
    if given.phase == "decide":
        measure_decide(generator, rows, given.show)
    elif generator is None:
        parser.error("extract needs --model")
    else:
        measure_extract(generator, rows, given.show)
    if generator is not None:
        generator.close()


if __name__ == "__main__":
    main()
