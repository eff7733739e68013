"""Build models/judge: the cross-encoder of scripts/train/train_judge.py as one int8 ONNX file.

    python scripts/build_judge.py WEIGHTS.safetensors --data models/training

Checked before anything is written: the float graph gives the scores of a numpy float32 BERT that shares no code with
it (to 0.001), and the int8 graph the same likeliest label as the float graph for at least 97 of 100 pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path

import numpy as np
from minilm_onnx import PAIR_TOKENS_MAX, build_judge, reference_mean, runner

ROOT = Path(__file__).resolve().parent.parent
PEAKS_OF, COMPARED, SAME_MIN = 60, 600, 0.97  # pairs


def pairs_in(folder: Path) -> list[tuple[str, str]]:
    """(new, known) of the decision rows, in an order of their own."""
    rows = [json.loads(line) for path in sorted(folder.glob("*decide*.jsonl")) for line in path.open(encoding="utf-8")]
    found = [(row["fact"], known["text"]) for row in rows if "fact" in row for known in row["existing"]]
    random.Random(1).shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT / "models" / "training", help="folder with decision rows")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "judge")
    given = parser.parse_args()
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights = load_file(given.weights)
    tokenizer = Tokenizer.from_file(str(ROOT / "models" / "embedder" / "tokenizer.json"))
    tokenizer.enable_truncation(PAIR_TOKENS_MAX)
    tokenizer.no_padding()
    codes = [(one.ids, one.type_ids) for one in tokenizer.encode_batch(pairs_in(given.data)[: PEAKS_OF + COMPARED])]
    peaks: dict[str, np.ndarray] = {}
    for ids, segments in codes[:PEAKS_OF]:
        reference_mean(weights, ids, peaks, segments)
    float_run, int8 = runner(build_judge(weights, None)), build_judge(weights, peaks)
    int8_run = runner(int8)
    furthest = max(float(np.abs(float_run(*code) - _reference(weights, *code)).max()) for code in codes[:PEAKS_OF])
    if furthest > 1e-3:
        raise SystemExit(f"the float graph's scores are {furthest:.4f} off the reference's")
    scores = [(float_run(*code), int8_run(*code)) for code in codes[PEAKS_OF:]]
    same = float(np.mean([plain.argmax() == coarse.argmax() for plain, coarse in scores]))
    moved = float(np.mean([np.abs(plain - coarse).max() for plain, coarse in scores]))
    print(f"float graph within {furthest:.1e} of the reference")
    print(f"int8: same label for {same:.1%} of {len(scores)} pairs, scores moved by {moved:.3f} on average")
    if same < SAME_MIN:
        raise SystemExit("int8 loses too much")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "judge_int8.onnx").write_bytes(int8)
    print(f"judge_int8.onnx: bytes {len(int8)} sha256 {hashlib.sha256(int8).hexdigest()}")


def _reference(weights: dict[str, np.ndarray], ids: list[int], segments: list[int]) -> np.ndarray:
    mean = reference_mean(weights, ids, segments=segments)
    return np.asarray(mean @ weights["head.weight"].T + weights["head.bias"])


if __name__ == "__main__":
    main()
