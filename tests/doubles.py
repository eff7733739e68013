"""Test doubles that child processes can import too: extraction and decisions that follow a script in the message.

Each line ``fact: TEXT`` of a message is one fact, anything else is chatter. After the text may stand, each after a bar:

    changes: WORDS      UPDATE the nearest neighbour that holds all of the words, ADD where there is none
    retracts: WORDS     DELETE all that hold them; where there is none, a recorded NOOP
    contests: WORDS     ADD beside them, both sides marked
    unsupported         kept in the decision log only

An exact duplicate of a neighbour is a NOOP, as in the real policy.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from localmem import forget, ingest, rank
from localmem.extract import ExtractContext, Extraction
from localmem.memory import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator
from localmem.types import Actor, Decision, Fact, Generator, Instant, Message, Neighbour, Op, Prompt, Span

ACTORS = {"assistant": Actor.ASSISTANT, "tool": Actor.TOOL, "document": Actor.DOCUMENT}


class Listener(ScriptedGenerator):
    """Keeps every prompt it was shown. ``during`` runs inside a call, as another program would meanwhile."""

    def __init__(self, *args: Any, during: Callable[[], object] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompts: list[str] = []
        self.during = during

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        self._hear(prompt)
        return super().generate(prompt, grammar=grammar, tokens_max=tokens_max)

    def score_labels(self, prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
        self._hear(prompt)
        return super().score_labels(prompt, labels)

    def _hear(self, prompt: Prompt) -> None:
        self.prompts.append("\n".join(content for _, content in prompt.turns))
        if self.during is not None:
            self.during()

    @property
    def shown(self) -> str:
        """Everything this generator has read."""
        return "\n".join(self.prompts)


class OtherEmbedder(HashEmbedder):
    """As wide as HashEmbedder, another model."""

    id = "other"

    def __init__(self, dim: int = 64) -> None:
        super().__init__(dim)
        self.sha256 = "0" * 64


@dataclass(frozen=True, slots=True)
class Line:
    """One ``fact:`` line of a message."""

    text: str
    directives: dict[str, str] = field(default_factory=dict)


def parse(line: str) -> Line | None:
    """The script of one line, None for chatter."""
    head, *rest = (part.strip() for part in line.split("|"))
    if not head.startswith("fact: "):
        return None
    pairs = (directive.partition(": ") for directive in rest)
    return Line(head.removeprefix("fact: "), {name: argument for name, _, argument in pairs})


def follow_extract(
    generator: Generator,
    messages: Sequence[Message],
    *,
    context: ExtractContext,
    event_at: Instant,
    limits: Any,
    tagger: object = None,
) -> Extraction:
    """In place of extract(): the facts that the messages themselves spell out. Asks the generator once."""
    said = "\n".join(message.content for message in messages)
    generator.generate(Prompt("extract", "0", (("user", said),)), grammar="", tokens_max=1)
    facts, refused = [], []
    for position, message in enumerate(messages):
        offset = 0
        for line in message.content.split("\n"):
            script = parse(line)
            if script is not None:
                span = Span(position, offset, offset + len(line))
                actor = ACTORS.get(message.role, Actor.USER)
                fact = Fact(script.text, line, span, actor=actor, event_at=event_at)
                if "unsupported" in script.directives:
                    refused.append((fact, ("words",)))
                else:
                    facts.append(fact)
            offset += len(line) + 1
    return Extraction(tuple(facts), tuple(refused), {"extract": "scripted"})


def follow_decide(
    generator: Generator,
    facts: Sequence[Fact],
    near: Sequence[Sequence[Neighbour]],
    judge: object = None,
    policy: object = None,
    changeable: Callable[[Neighbour], bool] | None = None,
) -> list[Decision]:
    """In place of decide_all(): what each fact's own line says."""
    return [_decide(fact, tuple(shown), changeable) for fact, shown in zip(facts, near, strict=True)]


def _decide(fact: Fact, near: tuple[Neighbour, ...], changeable: Callable[[Neighbour], bool] | None) -> Decision:
    line = parse(fact.quote)
    directives = line.directives if line else {}
    same = [n for n in near if rank.key(n.text) == rank.key(fact.text)]
    if same:
        return Decision(fact, Op.NOOP, (same[0],), neighbours=near, reason="exact duplicate")
    for directive, words in directives.items():
        wanted = set(words.split())
        meant = tuple(n for n in near if wanted <= set(n.text.split()) and (changeable is None or changeable(n)))
        if directive == "changes" and meant:
            return Decision(fact, Op.UPDATE, meant[:1], text=fact.text, neighbours=near)
        if directive == "retracts" and meant:
            return Decision(fact, Op.DELETE, meant, neighbours=near, reason="retracted")
        if directive == "retracts":
            return Decision(fact, Op.ADD, neighbours=near, ends=forget.retraction(fact.text) or fact.text)
        if directive == "contests" and meant:
            return Decision(fact, Op.ADD, contested=meant, neighbours=near)
    return Decision(fact, Op.ADD, neighbours=near)


@contextlib.contextmanager
def following_scripts() -> Iterator[None]:
    """Extraction and decisions follow the messages' scripts meanwhile, in this process."""
    with mock.patch.object(ingest, "extract", follow_extract), mock.patch.object(ingest, "decide_all", follow_decide):
        yield


# -- what child processes run (multiprocessing's spawn imports this module afresh)


def add_many(path: str, worker: int, count: int) -> None:
    """``count`` adds that no other worker makes."""
    with Memory(Path(path), embedder=HashEmbedder(), generator=ScriptedGenerator(), durability="process") as memory:
        for number in range(count):
            memory.add(f"note {number} of worker {worker}", user_id="ann", infer=False)


def add_same_facts(path: str, count: int) -> None:
    """The same facts as every other worker, through the whole write story."""
    with (
        following_scripts(),
        Memory(Path(path), embedder=HashEmbedder(), generator=ScriptedGenerator(), durability="process") as memory,
    ):
        for number in range(count):
            memory.add(f"fact: User owns boat number {number}", user_id="ann")


def resume_all(path: str) -> None:
    """Finish what is pending."""
    with (
        following_scripts(),
        Memory(Path(path), embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory,
    ):
        memory.resume()


def texts(found: Any) -> list[str]:
    """The memories of a result, in its order."""
    return [entry["memory"] for entry in found["results"]]


# -- the command line as a process, for what has to be one


class Moody(HashEmbedder):
    """Takes its time over texts that say so: "slowly" a second, "for ever" for ever. With LOUD set, prints while it
    works, as native libraries do."""

    def embed_passages(self, texts: Sequence[str]) -> Any:
        if os.environ.get("LOUD") and list(texts) != ["preload"]:
            os.write(1, b"noise from below\n")
            print("noise from Python")
        for text in texts:
            time.sleep(1 if "slowly" in text else 3600 if "for ever" in text else 0)
        return super().embed_passages(texts)


def main() -> None:
    """``localmem`` with pretend models."""
    from localmem.cli import main as command
    from localmem.cli import options

    def make_memory(path: str | None, **given: Any) -> Memory:
        if os.environ.get("LOUD"):
            os.write(1, b"noise on opening\n")
        return Memory(path, embedder=Moody(), **{**given, "generator": ScriptedGenerator()})

    options.make_memory = make_memory
    with following_scripts():
        command()


if __name__ == "__main__":
    main()
