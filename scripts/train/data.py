"""Gold rows to training examples: exactly the prompts that localmem asks at run time, as token ids.

A row of ``extract.jsonl`` that asks to forget something, and a share of the others, becomes one of `wish`.
A row of ``decide.jsonl`` becomes one of `stance` whose branches are its memories, and for an UPDATE one of `reword`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localmem import prompts, tuned
from localmem.llm import LlamaGenerator
from localmem.types import Message, Prompt, Span

CALIBRATE, TEST = 8, 9  # of ten parts
STANCES = {
    "duplicates": "same",
    "entails": "same",
    "refines": "refines",
    "changes": "changes",
    "corrects": "changes",
    "retracts": "retracts",
    "forget": "retracts",
}
OTHERS_SHARE = 0.5  # rows that get a memory of another row beside their own
WISHES_NONE = 0.35  # everyday messages that are shown as no forget request
WISHES_TIMES = 3  # how often a marked one is shown in a pass: they are few


@dataclass(frozen=True, slots=True)
class Branch:
    """One continuation of the shared tokens, and the place of its label among the task's labels."""

    tokens: tuple[int, ...]
    label: int


@dataclass(frozen=True, slots=True)
class Example:
    """``shared`` tokens, then a ``reply`` to write or ``branches`` to label, each seeing only the shared part."""

    task: str
    id: str
    shared: tuple[int, ...]
    reply: tuple[int, ...] = ()
    branches: tuple[Branch, ...] = ()

    def __len__(self) -> int:
        return len(self.shared) + len(self.reply) + sum(len(branch.tokens) for branch in self.branches)


@dataclass
class Tokeniser:
    """Prompts and replies as the runtime's own tokens."""

    generator: LlamaGenerator
    end: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.generator._call(lambda model: model.tokenise("<|im_end|>", special=True))

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        encoded = self.generator._call(lambda model: model.encode(prompt))
        return encoded.prefix + encoded.rest

    def reply(self, text: str) -> tuple[int, ...]:
        return self.generator._call(lambda model: model.tokenise(text, special=False)) + self.end

    def labels(self, prompt: str) -> list[int]:
        """The token of each label, in the order of the prompt file."""
        symbols = prompts.load(prompt).labels.values()
        return self.generator._call(lambda model: [model.label_token(symbol) for symbol in symbols])


def part(row_id: str) -> int:
    """0 to 9 by hash: 9 is for test, 8 for calibration, the rest for training."""
    return int(hashlib.sha256(row_id.encode()).hexdigest(), 16) % 10


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def messages(rows: Iterable[dict[str, Any]]) -> list[Message]:
    return [Message(row["role"], row["content"], name=row.get("name")) for row in rows]


def quoted(text: str, said: Sequence[Message]) -> Span | None:
    """Where a gold quote stands; None where no message holds it."""
    for index, message in enumerate(said):
        start = message.content.find(text)
        if start >= 0:
            return Span(index, start, start + len(text))
    return None


def extract_examples(rows: Sequence[dict[str, Any]], tokeniser: Tokeniser, seed: int) -> Iterator[Example]:
    draw = random.Random(seed)
    for row in rows:
        said, recent = messages(row["messages"]), messages(row["recent"])
        times = WISHES_TIMES if "forget" in row else int(draw.random() < WISHES_NONE)
        if times:
            shared = tokeniser.prompt(tuned.wish_prompt(said, recent))
            yield from [Example("wish", row["id"], shared, tokeniser.reply(wish_reply(row)))] * times


def wish_reply(row: dict[str, Any]) -> str:
    wish = row.get("forget", {"scope": "none"})
    return f"{wish['scope']}\n{wish['what']}" if wish["scope"] in ("thing", "topic") else wish["scope"]


def decide_examples(rows: Sequence[dict[str, Any]], tokeniser: Tokeniser, seed: int) -> Iterator[Example]:
    draw = random.Random(seed)
    others = [memory for row in rows for memory in row["existing"]]
    order = list(prompts.load("stance").labels)
    for row in rows:
        known = list(row["existing"])
        stances = ["other"] * len(known)
        for target in row["targets"]:
            stances[target] = STANCES[row["relation"]]
        if draw.random() < OTHERS_SHARE and row["relation"] != "forget":
            known.append(draw.choice(others))
            stances.append("other")
        new = row["fact"] if "fact" in row else tuned.asked(row["request"])
        texts = [tokeniser.prompt(tuned.stance_prompt(new, memory["text"])) for memory in known]
        shared = _common(texts)
        branches = [
            Branch(text[len(shared) :], order.index(stance)) for text, stance in zip(texts, stances, strict=True)
        ]
        yield Example("stance", row["id"], shared, branches=tuple(branches))
        if row["op"] == "UPDATE" and row.get("text") and "fact" in row:
            targets = [known[target] for target in row["targets"]]
            prompt = tuned.reword_prompt(STANCES[row["relation"]], [memory["text"] for memory in targets], new)
            yield Example("reword", row["id"], tokeniser.prompt(prompt), tokeniser.reply(row["text"]))


def _common(texts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The beginning that all share, one token short of the shortest."""
    length = 0
    while length < min(map(len, texts)) - 1 and len({text[length] for text in texts}) == 1:
        length += 1
    return texts[0][:length]
