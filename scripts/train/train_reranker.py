"""Train a cross-encoder that reads a query and a text together, and measure what it would do for search.

    python scripts/train/train_reranker.py --wheel MINILM.whl --data models/training/recall --out RUN [--questions 4000]

Each question with its evidence, with the texts of its own talk or list that the shipped embedder takes for the nearest
though they don't answer it, and with one drawn at random; the loss is of each pair by itself. Held out: of the texts of
a question's own talk or list the first 20 by cosine, in the order of cosine and of cosine + share * score.

    python scripts/train/train_reranker.py --wheel … --measure RUN/weights.safetensors --eval DATA.jsonl …

measures it in search itself, as `Memory(reranker=…)` of float weights would act, for the files that
scripts/eval_recall.py reads.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cross import CrossEncoder, Encoded, arguments, encoded, made, train
from data import CALIBRATE, part
from minilm_onnx import TOKENS_MAX
from torch.nn import functional as F
from train_embedder import Group, groups

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import eval_recall

from localmem import Memory, rank
from localmem.embed import default_embedder

HARD, RERANKED = 3, 20
SHARES = (0.0, 0.5, 1.0, 2.0, 4.0)  # of the score beside the evidence (see rank.py)

Pair = tuple[str, str, int]


def nearest(group: Group) -> list[list[int]]:
    """For each question the places of the group's texts, nearest first."""
    embedder = default_embedder()
    texts = embedder.embed_passages(group.texts)
    asked = embedder.embed_passages([text for text, _ in group.questions])
    return [np.argsort(-row, kind="stable").tolist() for row in asked @ texts.T]


def pairs_of(every: Sequence[Group], questions: int, draw: random.Random) -> list[Pair]:
    """Pairs of so many questions, drawn at random, evenly over talks and lists."""
    found: list[Pair] = []
    asked = [(group, place) for group in every for place in range(len(group.questions))]
    wanted = set(draw.sample(range(len(asked)), min(questions, len(asked))))
    chosen = [one for i, one in enumerate(asked) if i in wanted]
    orders = {group.id: nearest(group) for group in {group.id: group for group, _ in chosen}.values()}
    for group, place in chosen:
        text, evidence = group.questions[place]
        others = [i for i in orders[group.id][place] if i not in evidence]
        hard = others[:HARD] + ([draw.choice(others[HARD:])] if others[HARD:] else [])
        found += [(text, group.texts[i], 1) for i in evidence] + [(text, group.texts[i], 0) for i in hard]
    return found


@torch.no_grad()
def scores_of(model: CrossEncoder, pairs: Sequence[Encoded]) -> np.ndarray:
    """The score of each pair."""
    model.eval()
    found = np.empty(len(pairs), np.float32)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    start = 0
    while start < len(order):
        length = len(pairs[order[start]][0])
        some = [i for i in order[start : start + max(1, 4000 // length)] if len(pairs[i][0]) == length]
        tokens, segments = (torch.tensor([pairs[i][part] for i in some]) for part in (0, 1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found[some] = model(tokens, segments)[:, 0].float().numpy()
        start += len(some)
    return found


def held_out(model: CrossEncoder, every: Sequence[Group], tokenizer: Any) -> dict[str, list[float]]:
    """Share of the score -> R@5 and R@10 of held-out questions."""
    embedder = default_embedder()
    recalls: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
    for group in every:
        texts = embedder.embed_passages(group.texts)
        for (text, evidence), query in zip(
            group.questions, embedder.embed_passages([q for q, _ in group.questions]), strict=True
        ):
            cosines = texts @ query
            first = np.argsort(-cosines, kind="stable")[:RERANKED].tolist()
            scores = scores_of(model, encoded([(text, group.texts[i], 0) for i in first], tokenizer))
            for share, values in recalls.items():
                said = rank.VECTOR_WEIGHT * cosines[first] + share * scores
                best = [first[i] for i in np.argsort(-said, kind="stable")]
                values.append((_share(evidence, best[:5]), _share(evidence, best[:10])))
    model.train()
    return {str(share): np.mean(values, axis=0).round(4).tolist() for share, values in recalls.items()}


def _share(evidence: frozenset[int], found: Sequence[int]) -> float:
    return len(evidence & set(found)) / len(evidence)


def measured(model: CrossEncoder, tokenizer: Any, paths: Sequence[Path]) -> None:
    """R@5 and R@10 of search with the first 20 hits put in order by evidence and score together, and what it costs."""
    for path in paths:
        recalls: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
        seconds = []
        for talk in eval_recall.conversations(path):
            with tempfile.TemporaryDirectory() as folder, Memory(Path(folder) / "m.db", generator="none") as memory:
                for turn, text, when in talk.turns:
                    memory.add(text, user_id="u", infer=False, metadata={"turn": turn}, timestamp=when)
                for query in filter(lambda one: one.evidence, talk.queries):
                    hits = memory.search(query.text, user_id="u", limit=RERANKED, explain=True)["results"]
                    began = time.perf_counter()
                    pairs = encoded([(query.text, hit["memory"], 0) for hit in hits], tokenizer)
                    scores = scores_of(model, pairs)
                    seconds.append(time.perf_counter() - began)
                    known = np.array([hit["signals"]["evidence"] for hit in hits])
                    for share, values in recalls.items():
                        best = [
                            hits[i]["metadata"]["turn"] for i in np.argsort(-(known + share * scores), kind="stable")
                        ]
                        ten = [len(query.evidence & set(best[:k])) / len(query.evidence) for k in (5, 10)]
                        values.append((ten[0], ten[1]))
        told = {str(share): np.mean(values, axis=0).round(4).tolist() for share, values in recalls.items()}
        line = {"file": path.stem, "questions": len(seconds), "ms": round(statistics.median(seconds) * 1e3, 1), **told}
        print(json.dumps(line), flush=True)


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--questions", type=int, default=4000, help="drawn at random to learn from")
    parser.add_argument("--measure", type=Path, help="weights of a run; no training")
    parser.add_argument("--eval", type=Path, nargs="+", default=[], help="files of scripts/eval_recall.py")
    for action in parser._actions:
        if action.dest in ("data", "out"):
            action.required = False
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    options.start = options.measure or options.start
    model, tokenizer = made(options, 1, TOKENS_MAX)
    if options.measure is None:
        files = [file for path in options.data for file in ([path] if path.is_file() else sorted(path.glob("*.jsonl")))]
        every = list(groups(files))
        training = pairs_of(
            [g for g in every if part(g.id) < CALIBRATE], options.questions, random.Random(options.seed)
        )
        held = [g for g in every if part(g.id) == CALIBRATE and len(g.questions) > 1]
        print(json.dumps({"pairs": len(training)}), flush=True)
        train(
            model,
            encoded(training, tokenizer),
            options,
            lambda scores, labels: F.binary_cross_entropy_with_logits(scores[:, 0], labels.float()),
            lambda: held_out(model, held, tokenizer),
        )
    measured(model, tokenizer, options.eval)


if __name__ == "__main__":
    main()
