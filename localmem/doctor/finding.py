"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OK, NOTE, WARNING, FAILED = "ok", "note", "warning", "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence or two about one thing. ``cure``: what to do, where it is not ok. Never what a memory says."""

    name: str
    state: str  # ok; note: worth knowing; warning: should be cured; failed: must be
    text: str
    cure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The shape that the command line prints."""
        shape = {"name": self.name, "state": self.state, "text": self.text}
        return {**shape, "cure": self.cure} if self.cure else shape
