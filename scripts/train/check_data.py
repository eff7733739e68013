"""Check the gold rows: their form, their quotes, repetitions, and words shared with files kept for evaluation.

    python scripts/train/check_data.py models/training/*.jsonl models/training/recall/*.jsonl --against EVALUATION.jsonl

Prints every fault and the counts by author, language and form; ends with 1 when there is a fault.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RUN_WORDS = 7  # a run of so many words in both is an overlap
FACT_WORDS_MAX, UPDATE_WORDS_MAX = 30, 36
OPS = {
    "unrelated": "ADD",
    "coexists": "ADD",
    "duplicates": "NOOP",
    "entails": "NOOP",
    "nothing": "NOOP",
    "refines": "UPDATE",
    "changes": "UPDATE",
    "corrects": "UPDATE",
    "retracts": "DELETE",
    "forget": "DELETE",
}
SCOPES = ("none", "last", "thing", "topic", "everything")
Row = dict[str, Any]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def runs(text: str) -> set[str]:
    """All runs of RUN_WORDS words, lower case, without marks."""
    words = re.findall(r"[^\W_]+", text.lower())
    return {" ".join(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)}


def faults(row: Row, reserved: set[str]) -> Iterator[str]:
    yield from _FAULTS[form(row)](row)
    for text in strings(row):
        if shared := runs(text) & reserved:
            yield f"shares with an evaluation file: {min(shared)}"


def _extract_faults(row: Row) -> Iterator[str]:
    said = [message["content"] for message in (*row["recent"], *row["messages"])]  # a "yes" confirms what was asked
    for fact in row["facts"]:
        if not any(fact["quote"] in text for text in said):
            yield f"quote is no part of a message: {fact['quote'][:60]}"
        if fact["kind"] not in ("semantic", "episodic", "procedural"):
            yield f"kind {fact['kind']}"
        if len(fact["text"].split()) > FACT_WORDS_MAX:
            yield f"long fact: {fact['text'][:60]}"
    wish = row.get("forget")
    if wish and (wish["scope"] not in SCOPES or (wish["scope"] in ("thing", "topic")) != bool(wish["what"])):
        yield f"forget {wish}"


def _decide_faults(row: Row) -> Iterator[str]:
    op, targets = row["op"], row["targets"]
    if OPS.get(row["relation"]) != op:
        yield f"{row['relation']} is not {op}"
    if bool(targets) != (op != "ADD" and row["relation"] != "nothing"):
        yield f"{op} with targets {targets}"
    if any(not 0 <= target < len(row["existing"]) for target in targets):
        yield f"targets {targets} of {len(row['existing'])}"
    if (op == "UPDATE") != bool(row.get("text")):
        yield f"{op} and text {row.get('text')}"
    if row.get("text") and len(row["text"].split()) > UPDATE_WORDS_MAX:
        yield f"long text: {row['text'][:60]}"
    if ("fact" in row) == ("request" in row):
        yield "neither fact nor request, or both"


def _pair_faults(row: Row) -> Iterator[str]:
    if not row["negatives"] or row["positive"] in row["negatives"]:
        yield "no negatives, or the positive among them"


def _talk_faults(row: Row) -> Iterator[str]:
    turns = [turn for session in row["sessions"] for turn in session["turns"]]
    if [turn["n"] for turn in turns] != list(range(1, len(turns) + 1)):
        yield "turns are not numbered through"
    if len({turn["speaker"] for turn in turns}) != 2:
        yield "not two speakers"
    yield from _question_faults(row, len(turns))


def _list_faults(row: Row) -> Iterator[str]:
    answered = {place for one in row["questions"] for place in one["evidence"]}
    if answered != set(range(1, len(row["statements"]) + 1)):
        yield "a statement without a query"
    yield from _question_faults(row, len(row["statements"]))


def _question_faults(row: Row, texts: int) -> Iterator[str]:
    for one in row["questions"]:
        if not one["evidence"] or not all(1 <= place <= texts for place in one["evidence"]):
            yield f"evidence {one['evidence']} of {texts}: {one['query'][:60]}"


_FAULTS = {
    "extract": _extract_faults,
    "decide": _decide_faults,
    "pair": _pair_faults,
    "talk": _talk_faults,
    "list": _list_faults,
}


def form(row: Row) -> str:
    if "form" in row:
        return str(row["form"])
    return "extract" if "messages" in row else "pair" if "positive" in row else "decide"


def language(row: Row) -> str:
    tags = [tag[5:] for tag in row.get("tags", ()) if tag.startswith("lang:")]
    return tags[0] if tags else "en"


def counted(rows: Iterable[Row]) -> dict[str, collections.Counter[str]]:
    """Counts by author (first letter of the id), language and form."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows:
        kind = form(row)
        counts["author"][f"{row['id'].split('-')[0] if kind != 'pair' else 'R'} {kind}"] += 1
        counts["language"][f"{language(row)} {kind}"] += 1
        if kind == "extract":
            counts["extract"]["nothing to keep" if not row["facts"] else "facts"] += 1
            counts["extract"]["facts in all"] += len(row["facts"])
            counts["extract"]["named people"] += any("name" in message for message in row["messages"])
            counts["forget"][row["forget"]["scope"] if "forget" in row else "unmarked"] += 1
        elif kind in ("talk", "list"):
            counts["questions"].update(one["type"] for one in row["questions"])
        elif kind == "decide":
            counts["relation"][row["relation"]] += 1
            counts["decide"][f"{min(len(row['targets']), 3)} targets"] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--against", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    reserved: set[str] = set()
    for path in given.against:
        for line in path.read_text(encoding="utf-8").splitlines():
            for text in strings(json.loads(line)):
                reserved |= runs(text)
    bad, ids = 0, set()
    for path in given.paths:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            found = list(faults(row, reserved))
            if row["id"] in ids:
                found.append("the id is used twice")
            ids.add(row["id"])
            bad += len(found)
            for fault in found:
                print(f"{path.name} {row['id']}: {fault}")
        print(f"{path.name}: {len(rows)} rows")
        for what, counts in counted(rows).items():
            print(f"  {what}:", ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))
    print(f"{bad} faults; {len(reserved)} runs of {RUN_WORDS} words reserved")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
