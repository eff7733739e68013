"""Fit the small linear models of localmem on authored examples and write them as rule data.

    python scripts/fit_rules.py keep   EXTRACT.jsonl             -> localmem/rules/extract.toml
    python scripts/fit_rules.py decide DECIDE.jsonl [--model GGUF] -> localmem/rules/decide.toml

Rows are split by the sha256 of their id modulo 10: below 8 fits, 8 sets thresholds, 9 is left for
scripts/eval_pipeline.py. Deterministic.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from localmem import clauses, decide, relate, rules
from localmem.types import Embedder, Fact, Generator, Message, Neighbour

RULES = Path(__file__).resolve().parent.parent / "localmem" / "rules"
FIT, CALIBRATE, TEST = range(3)
Row = dict[str, Any]


def part_of(identity: str) -> int:
    """Which split an id belongs to."""
    bucket = int(hashlib.sha256(identity.encode()).hexdigest(), 16) % 10
    return FIT if bucket < 8 else CALIBRATE if bucket == 8 else TEST


def read(path: Path, part: int | None = None) -> list[Row]:
    """The rows of a JSON lines file, of one split or of all."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows if part is None else [row for row in rows if part_of(row["id"]) == part]


def message(fields: Row) -> Message:
    """A message as the data sets write it."""
    return Message(fields["role"], fields["content"], fields.get("name"))


def logistic(features: np.ndarray, labels: np.ndarray, ridge: float, steps: int = 20) -> np.ndarray:
    """Weights (d,) of a ridge-regularised logistic regression, by Newton's method; features (n, d), labels (n,)."""
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        slope = features.T @ (chance - labels) + ridge * weights
        curve = (features * (chance * (1 - chance))[:, None]).T @ features + ridge * np.eye(len(weights))
        weights -= np.linalg.solve(curve, slope)
    return weights


# ------------------------------------------------------------------ which clauses are worth keeping


def clause_examples(rows: Sequence[Row]) -> list[tuple[dict[str, float], frozenset[str], bool]]:
    """(signals, words, whether a gold quote lies on the clause) of each clause of the user messages."""
    found = []
    for row in rows:
        said = [message(m) for m in row["messages"]]
        before = message(row["recent"][-1]) if row["recent"] else None
        for position, spoken in enumerate(said):
            after = said[position + 1] if position + 1 < len(said) else None
            if spoken.role == "user":
                quotes = _quote_spans(spoken.content, row["facts"])
                every = clauses.clauses(spoken.content)
                for index, clause in enumerate(every):
                    given = clauses.signals(spoken.content, every, index, before, after)
                    found.append((given, clauses.word_set(clause.text), _covered(clause, quotes)))
            before = spoken
    return found


def _quote_spans(text: str, facts: Sequence[Row]) -> list[tuple[int, int]]:
    starts = ((text.find(fact["quote"]), len(fact["quote"])) for fact in facts)
    return [(start, start + length) for start, length in starts if start >= 0 and length]


def _covered(clause: clauses.Clause, quotes: Sequence[tuple[int, int]]) -> bool:
    for start, end in quotes:
        shared = min(clause.end, end) - max(clause.start, start)
        if shared >= 0.5 * (clause.end - clause.start) or shared >= 0.6 * (end - start):
            return True
    return False


def fit_keep(path: Path, words_min: int, ridge: float, threshold: float) -> None:
    """Fit `clauses.worth_keeping` and write its weights."""
    examples = clause_examples(read(path, FIT))
    names = list(examples[0][0])
    counts = collections.Counter(word for _, said, _ in examples for word in said)
    vocabulary = sorted(word for word, count in counts.items() if count >= words_min and not word.isdigit())
    features = np.array(
        [[given[n] for n in names] + [float(word in said) for word in vocabulary] for given, said, _ in examples]
    )
    labels = np.array([float(kept) for *_, kept in examples])
    weights = logistic(features, labels, ridge)
    table = dict(zip(names, weights[: len(names)], strict=True))
    word_table = dict(zip(vocabulary, weights[len(names) :], strict=True))
    _write_keep(table, word_table, threshold)
    held_out = clause_examples(read(path, CALIBRATE))
    chances = np.array([clauses.probability(given, said, table, word_table) for given, said, _ in held_out])
    truth = np.array([kept for *_, kept in held_out])
    for cut in (0.3, 0.4, 0.5, 0.6, 0.7):
        hits = int(((chances >= cut) & truth).sum())
        print(f"threshold {cut}: precision {hits}/{int((chances >= cut).sum())}, recall {hits}/{int(truth.sum())}")


def _write_keep(weights: dict[str, float], word_weights: dict[str, float], threshold: float) -> None:
    lines = [
        "# Written by scripts/fit_rules.py keep. Which models are led clause by clause, and which clauses are kept.",
        "[reading]",
        "# Lower-case patterns of generator ids. Trained on the prompts of localmem/tuned.py:",
        'tuned = ["llama:*+localmem*"]',
        "# Without an adapter, these invent facts when asked for all at once:",
        'by_clause = ["llama:*smollm2-135m*", "llama:*smollm2-360m*", "llama:default"]',
        "",
        "[keep]",
        f"threshold = {threshold}",
        "",
        "[keep.weights]",
        *(f"{name} = {value:.3f}" for name, value in weights.items()),
        "",
        "[keep.words]",
        *(f"{json.dumps(word, ensure_ascii=False)} = {value:.3f}" for word, value in word_weights.items()),
    ]
    (RULES / "extract.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ------------------------------------------------------------------ how a fact stands to a memory

Pair = tuple[Row, int, dict[str, float], dict[str, float], int]  # row, position, signals, model's odds, class
CLASSES = (decide.NONE, decide.SAME, decide.CHANGES, decide.RETRACTS)
_CLASS_OF = {"ADD": 0, "NOOP": 1, "UPDATE": 2, "DELETE": 3}
LABEL_WEIGHT_MIN = 0.05
DESTRUCTIVE_MAX = 0.02  # share of UPDATE or DELETE where gold says ADD or NOOP, out of fold


def decide_pairs(rows: Sequence[Row], embedder: Embedder) -> list[Pair]:
    """Every (fact, existing memory) with its signals, no log-odds of a model yet, and the gold class."""
    texts = sorted({text for row in rows for text in (row["fact"], *(old["text"] for old in row["existing"]))})
    vectors = dict(zip(texts, embedder.embed_passages(texts), strict=True))
    near = [
        [_neighbour(i, o, float(vectors[row["fact"]] @ vectors[o["text"]])) for i, o in enumerate(row["existing"])]
        for row in rows
    ]
    found: list[Pair] = []
    for row, others in zip(rows, near, strict=True):
        for position, other in enumerate(others):
            gold = _CLASS_OF[row["op"]] if position in row["targets"] else 0
            seen = relate.signals(row["fact"], other.text, other.cosine, [one.cosine for one in others])
            found.append((row, position, seen, decide.label_odds({}), gold))
    return found


def _neighbour(position: int, old: Row, cosine: float) -> Neighbour:
    return Neighbour(id=str(position), version=1, text=old["text"], cosine=cosine, event_at=0)


def softmax(features: np.ndarray, classes: np.ndarray, ridge: float, steps: int = 500) -> np.ndarray:
    """Weights (d, 3) of the classes after the first, whose weights stay zero; full-batch Adam."""
    count, width = features.shape
    weights = np.zeros((width, len(CLASSES)))
    truth = np.eye(len(CLASSES))[classes]
    mean = np.zeros_like(weights)
    square = np.zeros_like(weights)
    for step in range(1, steps + 1):
        slope = features.T @ (_softmax(features @ weights) - truth) / count + ridge / count * weights
        slope[:, 0] = 0.0
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope * slope
        rate = 0.05 if step < steps * 0.7 else 0.01
        weights -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return weights[:, 1:]


def _softmax(totals: np.ndarray) -> np.ndarray:
    powers = np.exp(totals - totals.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def label_fit(pairs: Sequence[Pair]) -> tuple[float, dict[str, float]]:
    """(signal scale, label weight of each class): what a model's scores add to out-of-fold totals."""
    totals = np.array([[seen[c] for c in CLASSES[1:]] for _, _, seen, _, _ in pairs])
    odds = np.array([[given[c] for c in CLASSES[1:]] for *_, given, _ in pairs])
    gold = np.array([pair[4] for pair in pairs])
    best = np.array([1.0, 0.0, 0.0, 0.0])
    rate = 0.3
    loss = _loss(best, totals, odds, gold)
    while rate > 0.01:
        moved = False
        for axis in range(4):
            for step in (rate, -rate):
                tried = best.copy()
                tried[axis] += step
                if (found := _loss(tried, totals, odds, gold)) < loss - 1e-7:
                    best, loss, moved = tried, found, True
        rate = rate if moved else rate / 2
    # A score that speaks against its own class is noise of the sample; a trace is left for the model to be heard.
    return float(best[0]), {c: max(LABEL_WEIGHT_MIN, float(w)) for c, w in zip(CLASSES[1:], best[1:], strict=True)}


def _loss(given: np.ndarray, totals: np.ndarray, odds: np.ndarray, gold: np.ndarray) -> float:
    logits = np.column_stack([np.zeros(len(gold)), given[0] * totals + given[1:] * odds])
    chance = _softmax(logits)[np.arange(len(gold)), gold]
    return float(-np.log(np.maximum(chance, 1e-9)).mean() + 0.001 * (given[1:] ** 2).sum())


def outcome(pairs: Sequence[Pair], policy: decide.Policy) -> tuple[int, int, int]:
    """(rows, right operations, destructive errors) when the strongest class beyond its bound decides."""
    by_row: dict[str, tuple[Row, list[dict[str, float]]]] = {}
    for row, _, seen, odds, _ in pairs:
        by_row.setdefault(row["id"], (row, []))[1].append(decide.chances(seen, odds, policy))
    right = wrong = 0
    for row, views in by_row.values():
        chosen = _strongest_op(views, policy.accept)
        right += chosen == row["op"]
        wrong += chosen in ("UPDATE", "DELETE") and row["op"] in ("ADD", "NOOP")
    return len(by_row), right, wrong


def _strongest_op(views: Sequence[Mapping[str, float]], accept: Mapping[str, float]) -> str:
    passing = [
        (v[c] / accept[c], op)
        for v in views
        for c, op in zip(CLASSES[1:], ("NOOP", "UPDATE", "DELETE"), strict=True)
        if v[c] >= accept[c]
    ]
    return max(passing)[1] if passing else "ADD"


def bounds(pairs: Sequence[Pair], policy: decide.Policy) -> dict[str, float]:
    """The bounds with the most right operations among those with few enough destructive errors."""
    by_row: dict[str, tuple[str, list[dict[str, float]]]] = {}
    for row, _, seen, odds, _ in pairs:
        by_row.setdefault(row["id"], (row["op"], []))[1].append(decide.chances(seen, odds, policy))
    best, chosen = -1, dict.fromkeys(CLASSES[1:], 0.9)
    for same, changes, retracts in itertools.product(
        np.arange(0.2, 0.75, 0.05), np.arange(0.3, 0.95, 0.05), np.arange(0.25, 0.95, 0.05)
    ):
        accept = {decide.SAME: float(same), decide.CHANGES: float(changes), decide.RETRACTS: float(retracts)}
        picks = [(_strongest_op(views, accept), op) for op, views in by_row.values()]
        wrong = sum(pick in ("UPDATE", "DELETE") and op in ("ADD", "NOOP") for pick, op in picks)
        right = sum(pick == op for pick, op in picks)
        if wrong <= DESTRUCTIVE_MAX * len(picks) and right > best:
            best, chosen = right, accept
    return chosen


def fit_decide(path: Path, model: Path | None, ridge: float, sample: int) -> None:
    """Fit the weights of `decide` without a model, then what this model's label scores add; write both."""
    from localmem.embed import default_embedder

    embedder = default_embedder()
    rows = read(path, FIT)
    pairs = decide_pairs(rows, embedder)
    names = [name for name in pairs[0][2] if name != "crowd"]  # scripts/calibrate.py fits that for each model
    features = np.array([[seen[name] for name in names] for _, _, seen, _, _ in pairs])
    fitted = softmax(features, np.array([pair[4] for pair in pairs]), ridge)
    weights = {
        c: {n: round(float(w), 3) for n, w in zip(names, fitted[:, i], strict=True)} for i, c in enumerate(CLASSES[1:])
    }
    held = out_of_fold([*pairs, *decide_pairs(read(path, CALIBRATE), embedder)], names, ridge)
    fits = [_fit("none", 1.0, dict.fromkeys(CLASSES[1:], 0.0), held)]
    if model is not None:
        from localmem.llm import LlamaGenerator

        generator = LlamaGenerator(model)
        chosen = sorted(held, key=lambda pair: hashlib.sha256(pair[0]["id"].encode()).hexdigest()[::-1])
        ids = set(list(dict.fromkeys(pair[0]["id"] for pair in chosen))[:sample])
        scored = _with_odds([pair for pair in chosen if pair[0]["id"] in ids], generator)
        scale, label_weights = label_fit(scored)
        # The scores of a sample are too few to set bounds by; those of the signals alone are kept.
        fits.append(
            {
                **fits[0],
                "pattern": f"{generator.id.lower().split('.')[0]}*",
                "signal_scale": scale,
                "labels": label_weights,
            }
        )
        policy = _policy(scale, label_weights, fits[0]["accept"])
        alone = replace(policy, label_weights=_ZERO, signal_scale=1.0)
        print(
            f"labels {label_weights}, scale {scale:.2f}: (rows, right, destructive)",
            outcome(scored, policy),
            "alone",
            outcome(scored, alone),
        )
        generator.close()
    _write_decide(weights, fits, embedder.id)


def _with_odds(pairs: Sequence[Pair], generator: Generator) -> list[Pair]:
    asked = [(Fact(row["fact"]), _neighbour(i, row["existing"][i], 0.0)) for row, i, *_ in pairs]
    scores = decide.relation_scores(generator, asked, calibrated=True)
    return [(*pair[:3], decide.label_odds(given), pair[4]) for pair, given in zip(pairs, scores, strict=True)]


_SELF = {name: {name: 1.0} for name in CLASSES[1:]}  # weights for signals that are totals already
_ZERO = dict.fromkeys(CLASSES[1:], 0.0)


def _policy(scale: float, labels: Mapping[str, float], accept: Mapping[str, float]) -> decide.Policy:
    return decide.Policy(_SELF, labels, _ZERO, scale, True, accept, {}, 0.92, 0.3, 4)


def out_of_fold(pairs: Sequence[Pair], names: Sequence[str], ridge: float, folds: int = 5) -> list[Pair]:
    """The pairs with each fold's totals from weights fitted without it, as three signals that stand for themselves."""
    fold = np.array([int(hashlib.sha256(pair[0]["id"].encode()).hexdigest()[:8], 16) % folds for pair in pairs])
    features = np.array([[seen[name] for name in names] for _, _, seen, _, _ in pairs])
    classes = np.array([pair[4] for pair in pairs])
    totals = np.zeros((len(pairs), 3))
    for held in range(folds):
        totals[fold == held] = features[fold == held] @ softmax(features[fold != held], classes[fold != held], ridge)
    return [
        (row, position, dict(zip(CLASSES[1:], totals[i], strict=True)), odds, gold)
        for i, (row, position, _, odds, gold) in enumerate(pairs)
    ]


def _fit(pattern: str, scale: float, label_weights: dict[str, float], held: Sequence[Pair]) -> dict[str, Any]:
    """A table of the rule file, its bounds set on totals of rows that were not fitted on."""
    policy = _policy(scale, label_weights, {})
    accept = bounds(held, policy)
    count, right, wrong = outcome(held, replace(policy, accept=accept))
    print(f"{pattern}: bounds {accept}: {right}/{count} right, {wrong} destructive, out of fold")
    return {"pattern": pattern, "calibrated": True, "signal_scale": scale, "labels": label_weights, "accept": accept}


def _write_decide(weights: dict[str, dict[str, float]], fits: list[dict[str, Any]], embedder_id: str) -> None:
    lines = [
        "# Written by scripts/fit_rules.py decide. Probabilities and cosines in [0, 1].",
        f'embedder = "{embedder_id}"  # whose cosines the weights were fitted on',
        "duplicate_cosine = 0.92  # a NOOP in doubt stands from here on",
        "cosine_min = 0.3  # neighbours further off are not asked about",
        "asked_max = 4",
    ]
    # Last: any able model. Its label scores count for themselves, the signals half.
    able = {
        "pattern": "*", "calibrated": False, "signal_scale": 0.5, "labels": dict.fromkeys(CLASSES[1:], 1.0),
        "accept": {decide.SAME: 0.5, decide.CHANGES: 0.55, decide.RETRACTS: 0.55},
    }  # fmt: skip
    for fit in (*fits, able):
        doubt = {c: round(0.75 * bound, 3) for c, bound in fit["accept"].items()}
        lines += [
            "",
            "[[models]]",
            f'pattern = "{fit["pattern"]}"  # of a lower-case generator id',
            f"calibrated = {str(fit['calibrated']).lower()}",
            f"signal_scale = {fit['signal_scale']:.3f}",
            *(
                f"{key} = {{{', '.join(f'{c} = {v:.3f}' for c, v in value.items())}}}"
                for key, value in (("labels", fit["labels"]), ("accept", fit["accept"]), ("doubt", doubt))
            ),
        ]
    for name, table in weights.items():
        lines += ["", f"[weights.{name}]", *(f"{json.dumps(signal)} = {value:.3f}" for signal, value in table.items())]
    (RULES / "decide.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rules.load.cache_clear()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    keep = commands.add_parser("keep")
    keep.add_argument("path", type=Path)
    keep.add_argument("--words-min", type=int, default=40)
    keep.add_argument("--ridge", type=float, default=5.0)
    keep.add_argument("--threshold", type=float, default=0.6)
    keep.set_defaults(run=lambda given: fit_keep(given.path, given.words_min, given.ridge, given.threshold))
    choose = commands.add_parser("decide")
    choose.add_argument("path", type=Path)
    choose.add_argument("--model", type=Path)
    choose.add_argument("--ridge", type=float, default=4.0)
    choose.add_argument("--sample", type=int, default=250)
    choose.set_defaults(run=lambda given: fit_decide(given.path, given.model, given.ridge, given.sample))
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
