"""Train localmem's adapter: gold rows in, a LoRA adapter in GGUF out.

    python scripts/train/train.py --base BASE.gguf --data models/training --out RUN

Everything that decides the result is on the command line and written to RUN/log.jsonl. A run that was stopped goes on
from its last checkpoint when the same command is given again. The loss is taken on replies and labels only.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import CALIBRATE, Example, Tokeniser, decide_examples, extract_examples, part, read
from llama import Llama, Lora, read_adapter, write_adapter
from torch import Tensor
from torch.nn import functional as F

from localmem.llm import LlamaGenerator

TASKS = ("wish", "stance", "reword")
TOKENS_MAX = 480  # longer examples are left out of training
FIRST_WEIGHT = 4.0  # the first token of a reply says whether there is anything to keep


@dataclass(frozen=True)
class Batch:
    """Padded tensors of examples of one form. ``at``: flat places whose next token or label is ``wanted``."""

    form: str  # reply or label
    tokens: Tensor
    positions: Tensor
    mask: Tensor | None
    at: Tensor
    wanted: Tensor
    weight: Tensor  # of each place in the loss


def reply_batch(examples: Sequence[Example]) -> Batch:
    length = max(map(len, examples)) - 1
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    at, wanted, weight = [], [], []
    for row, example in enumerate(examples):
        whole = example.shared + example.reply
        tokens[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        start = len(example.shared) - 1
        at += [row * length + start + step for step in range(len(example.reply))]
        wanted += example.reply
        weight += [FIRST_WEIGHT] + [1.0] * (len(example.reply) - 1)
    positions = torch.arange(length).expand(len(examples), length)
    return Batch("reply", tokens, positions, None, torch.tensor(at), torch.tensor(wanted), torch.tensor(weight))


def label_batch(examples: Sequence[Example]) -> Batch:
    """Branches of an example stand side by side; each sees the shared tokens and itself only."""
    length = max(map(len, examples))
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    positions = torch.zeros(len(examples), length, dtype=torch.long)
    mask = torch.zeros(len(examples), 1, length, length, dtype=torch.bool)
    mask[:, 0] = torch.eye(length, dtype=torch.bool)
    at, wanted = [], []
    for row, example in enumerate(examples):
        size = len(example.shared)
        tokens[row, :size] = torch.tensor(example.shared)
        positions[row, :size] = torch.arange(size)
        mask[row, 0, :size, :size] = torch.ones(size, size).tril().bool()
        start = size
        for branch in example.branches:
            end = start + len(branch.tokens)
            tokens[row, start:end] = torch.tensor(branch.tokens)
            positions[row, start:end] = torch.arange(size, size + end - start)
            mask[row, 0, start:end, :size] = True
            mask[row, 0, start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
            at.append(row * length + end - 1)
            wanted.append(branch.label)
            start = end
    return Batch("label", tokens, positions, mask, torch.tensor(at), torch.tensor(wanted), torch.ones(len(at)))


def batches(examples: Sequence[Example], tokens_max: int, draw: random.Random) -> list[Batch]:
    """Examples of about equal length together, at most ``tokens_max`` padded tokens a batch, batches shuffled."""
    made: list[Batch] = []
    for form, build in (("reply", reply_batch), ("label", label_batch)):
        chosen = [e for e in examples if bool(e.branches) == (form == "label")]
        chosen.sort(key=lambda example: len(example) + draw.random() * 8)
        group: list[Example] = []
        for example in chosen:
            if group and (len(group) + 1) * len(example) > tokens_max:
                made.append(build(group))
                group = []
            group.append(example)
        if group:
            made.append(build(group))
    draw.shuffle(made)
    return made


def loss_of(model: Llama, batch: Batch, labels: Tensor, device: torch.device) -> Tensor:
    mask = None if batch.mask is None else batch.mask.to(device)
    hidden = model(batch.tokens.to(device), batch.positions.to(device), mask)
    picked = hidden.reshape(-1, hidden.shape[-1])[batch.at.to(device)]
    scores = model.logits(picked, labels.to(device) if batch.form == "label" else None)
    weight = batch.weight.to(device)
    losses = F.cross_entropy(scores, batch.wanted.to(device), reduction="none")
    return (losses * weight).sum() / weight.sum()


def rate_at(step: int, steps: int, options: argparse.Namespace) -> float:
    """Linear warm-up, then constant, then linear to zero over the last ``--cool`` share of the steps."""
    warm = min(1.0, (step + 1) / options.warmup)
    cool = min(1.0, (steps - step) / max(1.0, options.cool * steps))
    return options.rate * warm * cool


@torch.no_grad()
def measured(model: Llama, examples: Sequence[Example], labels: Tensor, device: torch.device) -> dict[str, float]:
    """Mean loss of each task, and the share of right labels."""
    model.eval()
    result: dict[str, float] = {}
    for task in sorted({example.task for example in examples}):
        own = [example for example in examples if example.task == task]
        found = [
            (loss_of(model, batch, labels, device).item(), len(batch.wanted))
            for batch in batches(own, 2000, random.Random(0))
        ]
        result[task] = round(sum(loss * n for loss, n in found) / sum(n for _, n in found), 4)
    model.train()
    return result


class Run:
    """A training run in its folder: state.pt (weights, optimiser, place), mean.pt, log.jsonl, adapter.gguf."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.out
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Llama(options.base, Lora(options.rank, options.alpha, options.dropout)).to(self.device)
        if options.compile:
            for block in self.model.blocks:
                block.compile(dynamic=True)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if ".b." not in name], "share": 1.0},
            {"params": [p for name, p in named if ".b." in name], "share": options.b_rate},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.step = 0
        if options.start:
            self._begin_with(options.start)
        self.mean = {name: p.detach().clone() for name, p in named}  # of the weights on the way
        if (self.folder / "state.pt").exists():
            self._load(self.folder / "state.pt", weights_only=False)

    def _load(self, path: Path, *, weights_only: bool) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        if not weights_only:
            self.optimiser.load_state_dict(state["optimiser"])
            self.mean, self.step = state["mean"], state["step"]

    def _begin_with(self, path: Path) -> None:
        """Take the weights of another run: its state.pt, or an adapter in GGUF."""
        if path.suffix != ".gguf":
            self._load(path, weights_only=True)
            return
        given = read_adapter(path)
        with torch.no_grad():
            for name, a, b in self.model.adapter():
                a.copy_(given[f"{name}.lora_a"])
                b.copy_(given[f"{name}.lora_b"])

    def save(self) -> None:
        """A checkpoint to go on from, and the mean as an adapter and as weights to start another run from."""
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step}
        _put(self.folder / "state.pt", {**state, "mean": self.mean})
        with self.averaged():
            _put(self.folder / "mean.pt", {"model": self.model.state_dict()})
            write_adapter(self.model, self.folder / "adapter.gguf")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While entered, the model has the mean of its weights on the way (Polyak and Juditsky 1992), exponentially
        forgotten."""
        now = {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.mean}
        self._take(self.mean)
        yield
        self._take(now)

    @torch.no_grad()
    def _take(self, weights: dict[str, Tensor]) -> None:
        for name, p in self.model.named_parameters():
            if name in weights:
                p.copy_(weights[name])

    @torch.no_grad()
    def _average(self) -> None:
        for name, p in self.model.named_parameters():
            if name in self.mean:
                self.mean[name].lerp_(p, 1 / self.options.mean_of)

    def note(self, **fields: Any) -> None:
        line = json.dumps({"step": self.step, **fields})
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)

    def train(self, examples: Sequence[Example], held_out: Sequence[Example], labels: Tensor) -> None:
        options = self.options
        plan = list(self._plan(examples))[: options.steps]
        began = saved = time.monotonic()
        seen, losses = 0, {"reply": [0.0], "label": [0.0]}
        for step in range(self.step, len(plan)):
            for group in self.optimiser.param_groups:
                group["lr"] = group["share"] * rate_at(step, len(plan), options)
            for batch in plan[step]:
                loss = loss_of(self.model, batch, labels, self.device)
                (loss / len(plan[step])).backward()
                losses[batch.form].append(loss.item())
                seen += batch.tokens.numel()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self._average()
            self.step = step + 1
            if self.step % 20 == 0:
                last = {form: values[-options.log_of :] for form, values in losses.items()}
                means = {form: round(sum(values) / len(values), 3) for form, values in last.items()}
                pace = seen / (time.monotonic() - began)
                minutes = round((time.monotonic() - began) / 60, 1)
                self.note(of=len(plan), **means, tokens_per_s=round(pace), minutes=minutes)
            if self.step == len(plan) or time.monotonic() - saved > options.save_every * 60:
                self.save()
                with self.averaged():
                    self.note(held_out=measured(self.model, held_out, labels, self.device))
                saved = time.monotonic()

    def _plan(self, examples: Sequence[Example]) -> Iterator[list[Batch]]:
        """The batches of every step of every pass, the same for the same seed."""
        for turn in range(self.options.passes):
            made = batches(examples, self.options.batch_tokens, random.Random(self.options.seed * 1000 + turn))
            for start in range(0, len(made), self.options.accumulate):
                yield made[start : start + self.options.accumulate]


def _put(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".tmp")
    torch.save(state, part)
    part.rename(path)


def main() -> None:
    options = arguments()
    generator = LlamaGenerator(options.base, threads=2)
    tokeniser = Tokeniser(generator)
    extract_rows = read(sorted(path for folder in options.data for path in folder.glob("*extract*.jsonl")))
    decide_rows = read(sorted(path for folder in options.data for path in folder.glob("*decide*.jsonl")))
    labels = torch.tensor(tokeniser.labels("stance"))
    made: dict[bool, list[Example]] = {True: [], False: []}
    for training, chosen in made.items():
        for rows, build in ((extract_rows, extract_examples), (decide_rows, decide_examples)):
            own = [row for row in rows if (part(row["id"]) < CALIBRATE if training else part(row["id"]) == CALIBRATE)]
            made_of = build(own, tokeniser, options.seed)
            chosen += [e for e in made_of if e.task in options.tasks and len(e) <= TOKENS_MAX]
    generator.close()
    held_out = made[False][:: max(1, len(made[False]) // options.held_out)]
    run = Run(options)
    total = sum(map(len, made[True]))
    counts = {task: sum(e.task == task for e in made[True]) for task in sorted({e.task for e in made[True]})}
    run.note(options={k: str(v) for k, v in vars(options).items()}, examples=counts, tokens=total)
    run.train(made[True], held_out, labels)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="GGUF the adapter is for (Q4_0 as installed)")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder with *extract*.jsonl, *decide*.jsonl"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; goes on where it stopped")
    parser.add_argument(
        "--start", type=Path, help="state.pt or mean.pt of another run, or an adapter, to take the weights from"
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="what the adapter shall learn")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--dropout", type=float, default=0.0, help="of what enters the additions")
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--b-rate", type=float, default=1.0, help="rate of B over that of A (LoRA+, arXiv:2402.12354)")
    parser.add_argument("--steps", type=int, help="at most this many, where the passes are more")
    parser.add_argument("--warmup", type=int, default=20, help="steps")
    parser.add_argument("--cool", type=float, default=0.3, help="share of the steps at the end with falling rate")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=1500, help="padded tokens of one batch")
    parser.add_argument("--accumulate", type=int, default=2, help="batches of one optimiser step")
    parser.add_argument("--held-out", type=int, default=300, help="calibration examples measured on the way")
    parser.add_argument("--save-every", type=float, default=15.0, help="minutes between checkpoints")
    parser.add_argument("--compile", action="store_true", help="about a tenth faster on a CPU, needs a C++ compiler")
    parser.add_argument("--mean-of", type=float, default=1.0, help="steps whose weights are averaged; 1: the last ones")
    parser.add_argument("--log-of", type=int, default=40, help="batches of each form whose mean loss is logged")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
