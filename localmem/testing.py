"""Public test doubles: a generator that answers by script, an embedder that hashes, a clock that stands still."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localmem.errors import GeneratorError, InvalidInputError
from localmem.types import Instant, Prompt

if TYPE_CHECKING:
    from localmem.memory import Memory
    from localmem.types import Vector, Vectors


class HashEmbedder:
    """Bags of hashed words as unit vectors: equal texts are equal, shared words are near. Needs no model file."""

    id = "hash"

    def __init__(self, dim: int = 64) -> None:
        self.dim = dim
        self.sha256 = hashlib.sha256(f"hash-{dim}".encode()).hexdigest()

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """One float32 row per text, shape (len(texts), dim), unit length. Blank text: InvalidInputError."""
        import numpy as np

        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            if not text.strip():
                raise InvalidInputError("a blank text has no embedding")
            for word in text.casefold().split():
                digest = hashlib.blake2b(word.strip(".,!?;:").encode(), digest_size=8).digest()
                row[digest[0] % self.dim] += 1.0 if digest[1] % 2 else -1.0
                row[digest[2] % self.dim] += 0.5
            row[0] += 1e-3  # never a zero vector
            row /= np.linalg.norm(row)
        return rows

    def embed_query(self, text: str) -> Vector:
        """One float32 row, shape (dim,), unit length."""
        row: Vector = self.embed_passages([text])[0]
        return row


class FixedClock:
    """A clock that only moves when told to, in microseconds since 1970."""

    def __init__(self, start: Instant = 1_740_787_200_000_000) -> None:  # 2025-03-01T00:00:00Z
        self.now = start

    def __call__(self) -> Instant:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock by some seconds; a negative number turns it back."""
        self.now += round(seconds * 1_000_000)


class ScriptedGenerator:
    """A Generator that answers from a script.

    facts: what extraction answers, by the first key found in the rendered prompt's last turn; a missing key answers
    "nothing". labels: called with the prompt and the labels, returns log-probabilities; the first label is certain
    if not given. fail: raise GeneratorError on every call, as a broken model would.
    """

    id = "scripted"

    def __init__(
        self,
        facts: Mapping[str, Sequence[str]] | None = None,
        *,
        labels: Callable[[Prompt, Sequence[str]], Sequence[float]] | None = None,
        fail: bool = False,
    ) -> None:
        self.facts = dict(facts or {})
        self.labels = labels
        self.fail = fail
        self.calls: list[tuple[str, str]] = []  # (kind, prompt name)
        self._lock = threading.Lock()

    def fingerprint(self) -> Mapping[str, str]:
        """What the decision log keeps of this generator."""
        return {"generator": self.id}

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        """The scripted facts as lines, or NONE."""
        self._note("generate", prompt)
        said = prompt.turns[-1][1]
        for key, facts in self.facts.items():
            if key in said:
                return "".join(f"- {fact}\n" for fact in facts) or "NONE"
        return "NONE"

    def score_labels(self, prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
        """Log-probabilities over the labels."""
        self._note("score_labels", prompt)
        if self.labels is not None:
            return tuple(self.labels(prompt, labels))
        rest = 1e-6
        first = math.log(1 - rest * (len(labels) - 1)) if len(labels) > 1 else 0.0
        return (first, *[math.log(rest)] * (len(labels) - 1))

    def count_tokens(self, text: str) -> int:
        """A rough count: four characters a token."""
        return len(text) // 4 + 1

    def close(self) -> None:
        """Nothing to release."""

    def _note(self, kind: str, prompt: Prompt) -> None:
        with self._lock:
            self.calls.append((kind, prompt.name))
        if self.fail:
            raise GeneratorError("the scripted generator was told to fail")


_shared: dict[str, Any] = {}


def eval_factory() -> Memory:
    """A fresh in-memory Memory in the default configuration; the models are loaded once and shared."""
    from localmem.embed import default_embedder
    from localmem.llm import open_generator
    from localmem.memory import Memory

    if not _shared:
        _shared["embedder"] = default_embedder()
        _shared["generator"] = open_generator(None)
    return Memory(":memory:", embedder=_shared["embedder"], generator=_shared["generator"])
