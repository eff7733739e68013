"""Whether a decision sees the memory it is about, and what it decides, when the owner has hundreds of others.

    python scripts/eval_neighbours.py ROWS.jsonl… [--part test|calibrate|all] [--cases 201] [--model M --adapter A]

The memories of ``--cases`` decision rows are stored for one owner, as they stand; then each row's fact is asked for
its neighbours, as `add` asks (k = Limits.neighbours_per_fact), and decided on. Target recall: gold targets among the
neighbours. A row of several targets counts once for each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from eval_pipeline import PARTS, share
from fit_rules import read

from localmem import Memory, dates, store_pools
from localmem.config import Limits
from localmem.decide import decide_all
from localmem.embed import default_embedder, default_judge
from localmem.llm import LlamaGenerator
from localmem.types import Fact, Generator, Op, Scope

Row = dict[str, Any]


def measure(rows: Sequence[Row], generator: Generator | None, counts: dict[str, int]) -> None:
    """Add one owner's figures to the counts."""
    embedder = default_embedder()
    scope = Scope(user_id="owner")
    with tempfile.TemporaryDirectory() as folder, Memory(Path(folder) / "m.db", generator="none") as memory:
        for row in rows:
            for old in row["existing"]:
                memory.add(old["text"], user_id="owner", infer=False, timestamp=old["at"])
        for row in rows:
            at = dates.parse_instant(row["at"])
            vector = embedder.embed_passages([row["fact"]])[0]
            with memory._engine.store.db.snapshot() as tx:
                near = store_pools.neighbours(
                    tx, scope, row["fact"], vector, event_at=at, now=at, k=Limits().neighbours_per_fact
                )
            wanted = {row["existing"][target]["text"] for target in row["targets"]}
            counts["targets"] += len(wanted)
            counts["seen"] += len(wanted & {other.text for other in near})
            decision = decide_all(generator, [Fact(row["fact"], event_at=at)], [near], judge=default_judge())[0]
            counts["rows"] += 1
            counts["right"] += decision.op.value == row["op"]
            hit = {other.text for other in decision.targets} <= wanted
            counts["right with its target"] += decision.op.value == row["op"] and (hit or decision.op is Op.ADD)
            counts["destructive"] += decision.op in (Op.UPDATE, Op.DELETE) and row["op"] in ("ADD", "NOOP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--part", choices=PARTS, default="test")
    parser.add_argument("--cases", type=int, default=201, help="rows that share an owner")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--adapter", type=Path)
    given = parser.parse_args()
    rows = [row for path in given.paths for row in read(path, PARTS[given.part]) if "fact" in row]
    generator = LlamaGenerator(given.model, adapter=given.adapter) if given.model else None
    counts = dict.fromkeys(("targets", "seen", "rows", "right", "right with its target", "destructive"), 0)
    for start in range(0, len(rows), given.cases):
        measure(rows[start : start + given.cases], generator, counts)
    print("target recall", share(counts["seen"], counts["targets"]))
    for what in ("right", "right with its target", "destructive"):
        print(f"operation {what}", share(counts[what], counts["rows"]))


if __name__ == "__main__":
    main()
