"""Measure the two model phases, extraction and decision, on the authored examples held out from fitting.

    python scripts/eval_pipeline.py extract ROWS.jsonl… --model MODEL.gguf [--adapter A.gguf] [--rows 150] [--show 10]
    python scripts/eval_pipeline.py decide  ROWS.jsonl… --model MODEL.gguf [--adapter A.gguf] [--rows 300]
                                            [--by tag|lang|author] [--json]

Held out: ids whose sha256 modulo 10 is 9 (see scripts/fit_rules.py); 8 with ``--part calibrate``; ``--part all`` for
files that are for testing only. A fact is right when its token F1 with a gold fact is 0.6 or more, each gold fact
counted once. Rows with "forget" are also asked for a request to forget (`wishes.request_in`); decision rows with
"request" for the memories that it means (`wishes.meant`, needs a model) and not for an operation.

Every rate is printed with its counts and its 95 % interval after Wilson. ``--by`` prints them again for each tag, each
language (tag lang:xx, else en) or each author (the id up to its first hyphen). ``--json`` prints one object instead:
{"phase", "rows", "seconds_each", "rates": {NAME: {"part", "whole", "rate", "low", "high", "low_is_good"}}, "counts",
"by": {GROUP: {"rows", "rates", "counts"}}}; what --show shows then goes to stderr. A row on which the generator fails
counts as missed.
"""

from __future__ import annotations

import argparse
import collections
import functools
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fit_rules import CALIBRATE, TEST, read

from localmem import report, wishes
from localmem.embed import default_embedder, default_judge, default_tagger
from localmem.errors import GeneratorError
from localmem.extract import Extraction
from localmem.llm import LlamaGenerator
from localmem.report import Measure, share
from localmem.types import Decision, Embedder, Generator, Judge, Op, Tagger

__all__ = ["PARTS", "share"]  # also what scripts/eval_neighbours.py takes from here

PARTS = {"test": TEST, "calibrate": CALIBRATE, "all": None}
MEANING = (  # of a request to forget, by memory and by request
    Measure("meant_precision", "memories forgotten that were meant", "meant_right", "meant_found"),
    Measure("meant_recall", "memories meant that were forgotten", "meant_right", "meant_gold"),
    Measure("meant_exact", "requests with exactly the right ones", "meant_exact", "meant_rows"),
    Measure("meant_wrong", "requests that took another one", "meant_wrong", "meant_rows", low_is_good=True),
)
MEASURES = {"extract": (*report.EXTRACTION, *report.FORGETTING), "decide": (*report.DECISION, *MEANING)}
Row = dict[str, Any]
Counts = collections.Counter[str]
Show = Callable[..., None]


def groups_of(row: Row, by: str) -> list[str]:
    """The groups of a row: its tags, its language, or its author."""
    if by == "tag":
        return [*dict.fromkeys(row.get("tags") or ["(none)"])]
    if by == "author":
        return [str(row["id"]).partition("-")[0]]
    languages = (re.fullmatch(r"lang[:-](\w+)", tag) for tag in row.get("tags") or ())
    return [next((found[1] for found in languages if found), "en")]


def measure_extract(generator: Generator, tagger: Tagger | None, row: Row, show: Show | None) -> Counts:
    """What one row's facts, and its request to forget, came to."""
    counts: Counts = collections.Counter()
    result: Extraction | None = None
    try:
        result = report.extracted(generator, row, tagger=tagger)
        if "forget" in row:
            heard = report.hears_request(generator, row)
            counts += report.forget_counts(row, heard)
            counts[f"{row['forget']['scope']}>{'heard' if heard else 'not heard'}"] += 1
    except GeneratorError as error:
        if "forget" in row:
            counts += report.forget_counts(row, None)
        _told(row, error)
        result = None
    if show is not None and result is not None:
        _show_facts(row, result, show)
    return counts + report.extract_counts(row, result)


def _told(row: Row, error: GeneratorError) -> None:
    print(f"{row['id']}: {error}", file=sys.stderr)


def _show_facts(row: Row, result: Extraction, show: Show) -> None:
    show("#", row["id"], " | ".join(f"{m['role']}: {m['content'][:300]}" for m in row["messages"]))
    show("  gold  ", *(fact["text"] for fact in row["facts"]), sep="\n    ")
    show("  found ", *(fact.text for fact in result.facts), sep="\n    ")
    show("  refused", *((fact.text, guards) for fact, guards in result.unsupported), sep="\n    ")


def measure_decide(
    generator: Generator | None, embedder: Embedder, judge: Judge | None, row: Row, show: Show | None
) -> Counts:
    """What one row's decision came to; of a request to forget, what it takes (nothing is measured without a model)."""
    if "request" in row:
        return _measure_meant(generator, judge, row, show) if generator is not None else collections.Counter()
    try:
        decision = report.decided(generator, embedder, row, judge=judge)
    except GeneratorError as error:
        _told(row, error)
        return report.decide_counts(row, None)
    if show is not None:
        _show_decision(row, decision, show)
    return report.decide_counts(row, decision)


def _measure_meant(generator: Generator, judge: Judge | None, row: Row, show: Show | None) -> Counts:
    gold, failed = set(row["targets"]), 0
    try:
        wanted = wishes.meant(generator, row["request"], [old["text"] for old in row["existing"]], judge)
    except GeneratorError as error:
        _told(row, error)
        wanted, failed = [], 1
    found = {place for place, meant in enumerate(wanted) if meant}
    if show is not None:
        show("FORGET", row["request"], "| gold", [row["existing"][i]["text"] for i in sorted(gold)], end=" ")
        show("| found", [row["existing"][i]["text"] for i in sorted(found)])
    return collections.Counter(
        rows=1,
        failed=failed,
        meant_rows=1,
        meant_found=len(found),
        meant_gold=len(gold),
        meant_right=len(found & gold),
        meant_exact=int(found == gold and not failed),
        meant_wrong=int(bool(found - gold)),
    )


def _show_decision(row: Row, decision: Decision, show: Show) -> None:
    show(
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


# ------------------------------------------------------------------ telling


def shape(counts: Counts, measures: Sequence[Measure]) -> dict[str, Any]:
    """The counts of some rows and their rates, as ``--json`` has them."""
    rates = {rate.measure.name: rate.to_dict() for rate in report.rates(counts, measures)}
    return {"rows": counts["rows"], "rates": rates, "counts": dict(sorted(counts.items()))}


def print_rates(counts: Counts, measures: Sequence[Measure], indent: str = "") -> None:
    """One line a rate; those of which nothing was counted are left out."""
    for rate in report.rates(counts, measures):
        if rate.whole:
            low = ", the lower the better" if rate.measure.low_is_good else ""
            print(f"{indent}{rate.measure.title}: {rate}{low}")


def print_all(phase: str, total: Counts, seconds_each: float, by: Mapping[str, Counts]) -> None:
    """The rates of all rows, the operations, and the rates of each group."""
    print(f"rows {total['rows']}, {seconds_each:.2f} s each, {total['failed']} failed")
    print_rates(total, MEASURES[phase])
    if phase == "decide":
        print(f"contested {total['contested']}")
        for gold in Op:
            print(f"  gold {gold.value:7}", *(f"{op.value} {total[f'{gold.value}>{op.value}']:4}" for op in Op))
    for group, counts in by.items():
        print(f"{group}: rows {counts['rows']}")
        print_rates(counts, MEASURES[phase], "  ")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("extract", "decide"))
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter of the model")
    parser.add_argument("--part", choices=PARTS, default="test")
    parser.add_argument("--model", type=Path, help="a chat GGUF; decide works without one")
    parser.add_argument("--rows", type=int, default=150, help="at most this many held-out rows")
    parser.add_argument("--show", type=int, default=0, help="print this many rows with their answers")
    parser.add_argument("--by", choices=("tag", "lang", "author"), help="the rates of each group too, largest first")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    if given.phase == "extract" and given.model is None:
        parser.error("extract needs --model")
    generator = LlamaGenerator(given.model, adapter=given.adapter) if given.model else None
    form = {"extract": "facts", "decide": "existing"}[given.phase]  # a file may hold rows of both phases
    rows = [row for path in given.paths for row in read(path, PARTS[given.part]) if form in row]
    rows = sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[: given.rows]
    if given.phase == "extract":
        measure = functools.partial(measure_extract, generator, default_tagger())
    else:
        measure = functools.partial(measure_decide, generator, default_embedder(), default_judge())
    show = functools.partial(print, file=sys.stderr if given.json else sys.stdout)
    total: Counts = collections.Counter()
    by: dict[str, Counts] = {}
    started = time.perf_counter()
    for number, row in enumerate(rows):
        counts = measure(row, show if number < given.show else None)
        total += counts
        for group in groups_of(row, given.by) if given.by else ():
            by[group] = by.get(group, collections.Counter()) + counts
    seconds_each = (time.perf_counter() - started) / max(1, len(rows))
    by = dict(sorted(by.items(), key=lambda item: (-item[1]["rows"], item[0])))
    if given.json:
        told = {"phase": given.phase, "seconds_each": seconds_each, **shape(total, MEASURES[given.phase])}
        told["by"] = {group: shape(counts, MEASURES[given.phase]) for group, counts in by.items()}
        print(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        print_all(given.phase, total, seconds_each, by)
    if generator is not None:
        generator.close()


if __name__ == "__main__":
    main()
