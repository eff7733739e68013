"""What is known about somebody, or was said in a session, in a few lines: live memories, chosen and put in order.

Nothing is generated, so nothing can be invented; and nothing is kept, so no line outlives its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from localmem import store_matrix, store_pools, store_read
from localmem.types import Actor, Instant, Kind, MemoryId, Scope

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Vector

MEMORIES_MAX = 2_000  # newest ones that are weighed, with all that was said more than once; 3 ms
SAME_COSINE = 0.85  # a line this near to one that is in says it again
BYTES_PER_TOKEN = 3  # a careful estimate: English is about 4.3, other languages less
# Set by hand: what lasts comes before what happened, what the person said before what others told, what was said
# again before what was said once, the newer before the older.
_BY_KIND = {Kind.SEMANTIC: 1.0, Kind.PROCEDURAL: 0.8, Kind.EPISODIC: 0.4}
_SAID_AGAIN, _NEWEST, _BY_OTHERS = 0.5, 0.6, -0.4


@dataclass(frozen=True, slots=True)
class Line:
    """A live memory that may stand in a profile. ``times``: how often it was said or confirmed."""

    id: MemoryId
    version: int
    text: str
    kind: Kind
    actor: Actor
    since: Instant
    times: int


def compose(tx: Tx, scope: Scope, now: Instant, *, tokens_max: int, lines_max: int = 1_000) -> list[Line]:
    """The lines of a scope that matter most, best first; those of a session in order of time."""
    within = store_pools.reach(tx, scope, now)
    if within is None:
        return []
    session = scope.run_id is not None
    found = [Line(*row) for row in store_read.profile_rows(tx, within, MEMORIES_MAX)]
    chosen: list[Line] = []
    kept: list[Vector] = []
    left = tokens_max * BYTES_PER_TOKEN
    for line in by_weight(found, session=session):
        cost = len(line.text.encode()) + 3
        if cost > left or len(chosen) == lines_max:
            break
        vector = store_matrix.vector_of(tx, line.version)
        if vector is not None and any(float(np.dot(vector, other)) >= SAME_COSINE for other in kept):
            continue
        kept += [] if vector is None else [vector]
        chosen.append(line)
        left -= cost
    return sorted(chosen, key=lambda line: (line.since, line.version)) if session else chosen


def one_line(text: str) -> str:
    """The text without breaks."""
    return " ".join(text.split())


def by_weight(lines: Iterable[Line], *, session: bool) -> list[Line]:
    """Heaviest first. In a session what happened weighs as much as what lasts."""
    oldest_first = sorted(lines, key=lambda line: (line.since, line.version))
    place = {line.version: i for i, line in enumerate(oldest_first, 1)}

    def weight(line: Line) -> float:
        kind = 1.0 if session else _BY_KIND[line.kind]
        others = 0.0 if line.actor is Actor.USER else _BY_OTHERS
        return kind + others + _SAID_AGAIN * math.log2(line.times) + _NEWEST * place[line.version] / len(place)

    return sorted(oldest_first, key=lambda line: (-weight(line), -place[line.version]))
