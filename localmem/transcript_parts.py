"""What a conversation file is made of: turns, conversations, and the reading of its dates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localmem import inputs
from localmem.config import Limits
from localmem.dates import parse_instant, parse_loose
from localmem.errors import InvalidInputError
from localmem.types import Instant, Message

ROLE_WORDS = {
    "user": "user",
    "human": "user",
    "me": "user",
    "you": "user",  # how chat pages call their reader
    "assistant": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "claude": "assistant",
    "gemini": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "document": "document",
}
TAKES = (
    'localmem reads a list of messages, {"messages": […]}, a list of such conversations, one of these a line (JSONL), '
    "and text with one `Name: text` a line"
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a file. ``place`` says where it stands, for errors; ``said_at`` None: the file does not say."""

    message: Message
    said_at: Instant | None
    place: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What belongs together: sessions in order. ``owner`` is the user the file itself names, if it does."""

    sessions: tuple[tuple[Turn, ...], ...]
    id: str | None = None
    owner: str | None = None


@dataclass(slots=True)
class Dates:
    """Reads the dates of one file. ``order`` of day and month is given, or learned from the file."""

    order: str | None = None

    _SLASHES = re.compile(r"(?<!\d)(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})(?!\d)")
    CLOCK = re.compile(r"^(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\.\d+)? ?([ap]\.?m\.?)?$", re.I)

    def learn(self, stamps: Sequence[str]) -> None:
        """Which of day and month comes first, by what can't be a month, else by which order runs forward in time."""
        found = [tuple(map(int, m.groups())) for stamp in stamps if (m := self._SLASHES.search(stamp))]
        if self.order or not found:
            return
        possible = {
            order: days
            for order, place in (("dmy", 1), ("mdy", 0))
            if all(1 <= one[place] <= 12 and 1 <= one[1 - place] <= 31 for one in found)
            and (days := [(one[2], one[place], one[1 - place]) for one in found])
        }
        forward = [order for order, days in possible.items() if days == sorted(days)]
        fitting = list(possible) if len(possible) == 1 else forward
        if len(fitting) == 1:
            self.order = fitting[0]

    def read(self, value: Any, place: str, day: Instant | None = None) -> Instant | None:
        """A date in any of the usual shapes; a clock time alone counts within ``day``. Raises InvalidInputError."""
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InvalidInputError(f"{place}: the date is {type(value).__name__}; give ISO 8601 text or Unix seconds")
        if isinstance(value, str) and re.fullmatch(r"\d{9,13}(\.\d+)?", value.strip()):
            value = float(value)
        if isinstance(value, int | float):
            # Milliseconds, as JavaScript writes them: as seconds they would lie beyond the year 5000.
            return parse_instant(value / 1000 if abs(value) > 10**11 else value)
        if clock := self.CLOCK.match(value.strip()):
            return None if day is None else _at_clock(day, clock)
        found = self.loose(value)
        if found is not None:
            return found
        if self._SLASHES.search(value):
            raise InvalidInputError(
                f"{place}: the date {value!r:.40} can be read two ways; say which with --date-order dmy or mdy"
            )
        raise InvalidInputError(
            f"{place}: {value!r:.40} is not a date; give ISO 8601 (2025-03-01T09:12) or Unix seconds"
        )

    def loose(self, text: str) -> Instant | None:
        """A whole date with or without a time, or None."""
        plain = re.sub(r"\((?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\)", " ", text, flags=re.I).replace("\u202f", " ")
        plain = re.sub(r"\b([A-Za-z]{3,9})-(\d{1,2})-(\d{4})\b", r"\1 \2, \3", plain)
        if self.order:
            plain = self._SLASHES.sub(self._as_iso, plain)
        return parse_loose(plain)

    def _as_iso(self, m: re.Match[str]) -> str:
        one, two, year = m.groups()
        day, month = (one, two) if self.order == "dmy" else (two, one)
        return f"{year if len(year) == 4 else '20' + year}-{int(month):02}-{int(day):02}"


def _at_clock(day: Instant, clock: re.Match[str]) -> Instant:
    hour, minute, second, half = int(clock[1]), int(clock[2]), int(clock[3] or 0), (clock[4] or "").lower()
    if half and hour <= 12:
        hour = hour % 12 + (12 if half[0] == "p" else 0)
    day_us = 86_400_000_000
    return day - day % day_us + ((hour * 60 + minute) * 60 + second) * 1_000_000


def checked(content: str, place: str, limits: Limits) -> str:
    return inputs.clean_text(content, place, bytes_max=limits.message_bytes_max, limit="message_bytes_max")
