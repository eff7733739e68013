"""Build the judge or the tagger in models/minilm: a network of scripts/train that reads two texts, in int8.

    python scripts/build_pairs.py judge WEIGHTS.safetensors
    python scripts/build_pairs.py tagger WEIGHTS.safetensors

Checked before anything is written: the float graph gives the scores of a numpy float32 BERT that shares no code with
it (to 0.001), and the int8 graph the same answers as the float graph, 97 of 100 at least.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from minilm_onnx import PAIR_TOKENS_MAX, TOKENS_MAX, build_judge, build_tagger, reference_states, runner, write_split

from localmem import marks
from localmem.report import message
from localmem.types import TAGGED_KINDS

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = ROOT / "models" / "minilm"
TAGGER_OUTPUTS = len(TAGGED_KINDS) + 1
PEAKS_OF, COMPARED, SAME_MIN = 60, 600, 0.97  # pairs
Pairs = list[tuple[str, str]]


def decision_pairs(folder: Path) -> Pairs:
    """(new fact, known memory) of the decision rows."""
    rows = _rows(folder, "*decide*.jsonl")
    return [(row["fact"], known["text"]) for row in rows if "fact" in row for known in row["existing"]]


def message_pairs(folder: Path) -> Pairs:
    """(what stands around, what was said) of the extraction rows."""
    return [
        (stretch.around, stretch.text)
        for row in _rows(folder, "*extract*.jsonl")
        for stretch in marks.stretches([message(one) for one in row["messages"]], None)
    ]


def _rows(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.open(encoding="utf-8")]


def answers(scores: np.ndarray) -> np.ndarray:
    """The judge's likeliest label; of the tagger, for each token whether it is kept."""
    return scores.argmax(keepdims=True) if scores.ndim == 1 else scores[:, :-1].max(-1) > 0


MODELS = {
    "judge": (decision_pairs, build_judge, PAIR_TOKENS_MAX),
    "tagger": (message_pairs, build_tagger, TOKENS_MAX),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT / "models" / "training", help="folder with gold rows")
    parser.add_argument("--out", type=Path, default=NETWORKS)
    given = parser.parse_args()
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights = load_file(given.weights)
    tokenizer = Tokenizer.from_file(str(NETWORKS / "tokenizer.json"))
    pairs_in, build, tokens_max = MODELS[given.model]
    tokenizer.enable_truncation(tokens_max)
    tokenizer.no_padding()
    pairs = pairs_in(given.data)
    random.Random(1).shuffle(pairs)
    codes = [(one.ids, one.type_ids) for one in tokenizer.encode_batch(pairs[: PEAKS_OF + COMPARED])]
    peaks: dict[str, np.ndarray] = {}
    for ids, segments in codes[:PEAKS_OF]:
        reference_states(weights, ids, peaks, segments)
    float_run, int8 = runner(build(weights, None)), build(weights, peaks)
    int8_run = runner(int8)
    furthest = max(float(np.abs(float_run(*code) - _reference(weights, *code)).max()) for code in codes[:PEAKS_OF])
    if furthest > 1e-3:
        raise SystemExit(f"the float graph's scores are {furthest:.4f} off the reference's")
    scores = [(float_run(*code), int8_run(*code)) for code in codes[PEAKS_OF:]]
    same = float(np.concatenate([answers(plain) == answers(coarse) for plain, coarse in scores]).mean())
    moved = float(np.mean([np.abs(plain - coarse).max() for plain, coarse in scores]))
    print(f"float graph within {furthest:.1e} of the reference")
    print(f"int8: the same {same:.1%} of the answers about {len(scores)} pairs, scores moved by {moved:.3f} on average")
    if same < SAME_MIN:
        raise SystemExit("int8 loses too much")
    write_split(int8, given.out / f"{given.model}.onnx")


def _reference(weights: dict[str, np.ndarray], ids: list[int], segments: list[int]) -> np.ndarray:
    states = reference_states(weights, ids, segments=segments)
    read = states if len(weights["head.bias"]) == TAGGER_OUTPUTS else states.mean(0)
    return np.asarray(read @ weights["head.weight"].T + weights["head.bias"])


if __name__ == "__main__":
    main()
