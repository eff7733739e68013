"""Feeding the exchanges of a file into a Memory: each exactly once, interruptible, with a tally of what came of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from localmem.dates import to_iso
from localmem.errors import (
    ConflictError,
    GeneratorError,
    LocalmemError,
    MissingExtraError,
    ModelFileError,
    ModelNotFoundError,
)

if TYPE_CHECKING:
    from localmem.memory import Memory
    from localmem.transcripts import Exchange

FAILURES_IN_A_ROW_MAX = 5  # of the generator: a server that is down fails every time

_HOPELESS = (MissingExtraError, ModelNotFoundError, ModelFileError)


@dataclass(slots=True)
class Tally:
    """What feeding came to. ``events`` counts ADD, UPDATE, DELETE, NOOP and UNSUPPORTED; ``error`` ended it early."""

    total: int
    added: int = 0
    known: int = 0  # in the store since an earlier run
    resumed: int = 0  # left unfinished by an earlier run, finished now
    failed: int = 0  # kept, but the model failed: they wait for resume()
    pending: list[str] = field(default_factory=list)  # their episode ids
    events: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    interrupted: bool = False
    error: LocalmemError | None = None

    @property
    def done(self) -> int:
        """Exchanges that need nothing more from this run."""
        return self.added + self.known + self.failed

    def note(self) -> str:
        """The events as a person reads them in passing: ``+12 ~3 -1 =4``."""
        marks = {"ADD": "+", "UPDATE": "~", "DELETE": "-", "NOOP": "="}
        return " ".join(f"{mark}{self.events[event]}" for event, mark in marks.items() if self.events[event])

    def fail(self, error: LocalmemError) -> None:
        """Count an exchange whose words are kept and wait."""
        self.failed += 1
        if episode_id := getattr(error, "episode_id", None):
            self.pending.append(episode_id)


@dataclass(frozen=True, slots=True)
class Feeding:
    """How a file is fed. ``scope`` gives the ids of an exchange; ``timestamp`` is for those the file has no date of."""

    name: str
    scope: Callable[[Exchange], Mapping[str, Any]]
    infer: bool = True
    timestamp: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False


def feed(
    memory: Memory, exchanges: Sequence[Exchange], how: Feeding, told: Callable[[Tally], None] = lambda tally: None
) -> Tally:
    """Add what the store does not have yet, in order; ``told`` is called after each exchange.

    A failed generator leaves that exchange pending and goes on. A missing model, a failing store or the fifth failure
    in a row ends it with ``error`` set; Ctrl-C ends it with ``interrupted``. Running it again goes on from there.
    """
    tally, began = Tally(len(exchanges)), time.monotonic()
    try:
        _feed(memory, exchanges, how, tally, told)
    except KeyboardInterrupt:
        tally.interrupted = True
    except LocalmemError as error:
        if getattr(error, "episode_id", None):  # its words were written down before it failed
            tally.fail(error)
        tally.error = error
    tally.seconds = time.monotonic() - began
    return tally


def _feed(
    memory: Memory, exchanges: Sequence[Exchange], how: Feeding, tally: Tally, told: Callable[[Tally], None]
) -> None:
    in_store: dict[tuple[tuple[str, str], ...], set[str]] = {}
    in_a_row = 0
    for exchange in exchanges:
        scope = dict(how.scope(exchange))
        key = tuple(sorted(scope.items()))
        if key not in in_store:
            in_store[key] = set() if how.again else memory.ingested(**scope)
            if how.infer and any(one.source_id in in_store[key] for one in exchanges):
                finish(memory, scope, tally, told)
        if exchange.source_id in in_store[key]:
            tally.known += 1
            continue
        try:
            count(memory, _add(memory, exchange, how, scope), scope, tally)
        except (GeneratorError, ConflictError) as error:
            in_a_row += 1
            if in_a_row >= FAILURES_IN_A_ROW_MAX:
                raise
            tally.fail(error)
        else:
            in_a_row = 0
            tally.added += 1
        told(tally)


def finish(memory: Memory, scope: Mapping[str, Any], tally: Tally, told: Callable[[Tally], None]) -> None:
    """Resume what waits in a scope, one episode at a time. One that fails again is left for later, and so are those
    behind it; a model that is missing ends everything."""
    try:
        while True:
            done = memory.resume(limit=1, **scope)
            if not done["episodes"]:
                return
            tally.resumed += 1
            tally.events.update(change["event"] for change in done["results"])
            told(tally)
    except (GeneratorError, ConflictError):
        return


def _add(memory: Memory, exchange: Exchange, how: Feeding, scope: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = [
        {"role": m.role, "content": m.content, **({"name": m.name} if m.name else {})} for m in exchange.messages
    ]
    metadata = {"source": f"{how.name}#{exchange.number}", "source_id": exchange.source_id}
    if exchange.conversation is not None:
        metadata["conversation"] = exchange.conversation
    return memory.add(
        messages,
        metadata={**metadata, **how.metadata},
        infer=how.infer,
        timestamp=how.timestamp if exchange.said_at is None else to_iso(exchange.said_at),
        **scope,
    )


def count(memory: Memory, added: Mapping[str, Any], scope: Mapping[str, Any], tally: Tally) -> None:
    """Add one answer of add() to the tally. What changed nothing stands in the decision log alone."""
    tally.events.update(change["event"] for change in added["results"])
    for decision in memory.decisions(episode_id=added["episode_id"], **scope):
        if decision["unsupported"]:
            tally.events["UNSUPPORTED"] += 1
        elif decision["op"] == "NOOP":
            tally.events["NOOP"] += 1


__all__ = ["Feeding", "Tally", "count", "feed", "finish"]
