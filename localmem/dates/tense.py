"""Past or to come: what a day without its year, or a weekday without its week, most likely means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from localmem.dates.languages import Language


@dataclass(frozen=True, slots=True)
class _Weights:
    """How much the nearest cue counts, how fast it fades (in characters), how much nearness in time counts."""

    cue: float
    fades: float
    near: float


# Fitted on the authored examples (ids with sha256 % 10 < 8): 0.93 of weekdays, 0.97 of months, 0.99 of days with a
# month.
_WEIGHTS = {
    "weekday": _Weights(2, 30, 0.5),
    "month": _Weights(4, 15, 1),
    "month_day": _Weights(1, 20, 0.5),
    "dom": _Weights(2, 20, 0.25),
}
_AFTER = 0.3  # a cue after the phrase counts less than one before


@dataclass(frozen=True, slots=True)
class Lean:
    """Where a phrase points when little is said; ``forced`` (-1 or 1) whatever is said."""

    forced: int = 0
    coming: float = 0.5  # what is to come is talked about more than what was


AS_SAID = Lean()
IN_FACTS = Lean(coming=1.5)  # a fact of the past is put in the past tense: "User has physio on Tuesday" is to come
PAST, COMING = Lean(forced=-1), Lean(forced=1)


class Tense:
    """Which way a phrase points, by the nearest cue of its sentence. Looked up only where it is asked."""

    def __init__(self, language: Language, text: str, start: int, end: int, lean: Lean) -> None:
        self._language, self._text, self._start, self._end = language, text, start, end
        self.forced, self._coming = lean.forced, lean.coming

    def place(self, candidates: Sequence[date], today: date, kind: str) -> date:
        """Of the same day in neighbouring years, months or weeks the one that is meant."""
        past = [day for day in candidates if day <= today]
        coming = [day for day in candidates if day >= today]
        if not past or not coming:
            return min(candidates, key=lambda day: abs((day - today).days))
        if self.forced:
            return min(coming) if self.forced > 0 else max(past)
        weights = _WEIGHTS[kind]
        behind, ahead = (today - max(past)).days, (min(coming) - today).days
        lean = (
            self.lean(weights.fades) * weights.cue + weights.near * math.log((behind + 1) / (ahead + 1)) + self._coming
        )
        return min(coming) if lean > 0 else max(past)

    def lean(self, fades: float = 30) -> float:
        """-1 (past) to 1 (to come): the nearest cue before the phrase, else after it, less with distance."""
        if self.forced:
            return float(self.forced)
        before, after = self._sentence()
        if cues := self._cues(before):
            place, sign = cues[-1]
            return sign * math.exp((place - len(before)) / fades)
        if cues := self._cues(after):
            return _AFTER * cues[0][1] * math.exp(-cues[0][0] / fades)
        return 0.0

    def _sentence(self) -> tuple[str, str]:
        """What stands before the phrase, it included (its own preposition is a cue), and after it, in its sentence."""
        left = self._text[max(0, self._start - 120) : self._start]
        cut = max((m.end() for m in re.finditer(r"[.!?;\n]+(?:\s|$)", left)), default=0)
        right = self._text[self._end : self._end + 80]
        stop = re.search(r"[.!?;\n](?:\s|$)", right)
        return left[cut:] + self._text[self._start : self._end], right[: stop.start()] if stop else right

    def _cues(self, part: str) -> list[tuple[int, int]]:
        """(end of the cue, -1 past or 1 to come), in order of place."""
        coming = {m.start(): m.end() for m in self._language.future.finditer(part)}
        past = {m.start(): m.end() for m in self._language.past.finditer(part) if m.start() not in coming}
        return sorted([(end, 1) for end in coming.values()] + [(end, -1) for end in past.values()])


def nearest(candidates: Sequence[date], today: date, sign: int) -> date:
    """The last before today, or the first after it, as the words said."""
    past = [day for day in candidates if day <= today]
    coming = [day for day in candidates if day >= today]
    if sign < 0:
        return max(past) if past else min(candidates)
    return min(coming) if coming else max(candidates)
