"""``Name: text`` transcripts with dates in headings, in brackets, before or behind the name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from localmem.config import Limits
from localmem.errors import InvalidInputError
from localmem.transcript_parts import ROLE_WORDS, TAKES, Conversation, Dates, Turn, checked
from localmem.types import Instant, Message

PREAMBLE_LINES_MAX = 20  # lines before the first speaker of a transcript
NAME_CHARS_MAX, NAME_WORDS_MAX = 40, 4
HEADING_CHARS_MAX = 60
NOT_SPEAKERS = {"http", "https", "note", "notes", "ps", "p.s", "re", "fwd", "subject", "edit", "todo", "tip"}
NOT_SPEAKERS |= {
    "warning",
    "example",
    "e.g",
    "i.e",
    "url",
    "update",
    "important",
    "question",
    "answer",
    "date",
    "day",
    "session",
}

_STAMP = r"\[(?P<stamp>[^\]\n]{3,40})\]|(?P<bare>\d[\d/.\-: ,T\u202f]{5,24}(?:[ap]\.?m\.?)?)(?=\s)"
_STAMPED = re.compile(rf"^[\u200e\s]*(?:{_STAMP})\s*(?:[-–—]\s*)?(?P<rest>.*)$", re.S | re.I)
_NAMED = re.compile(
    rf"^\s*(?:\*\*|__)?(?P<name>[^\s:：*#>\[(][^:：\n\[(]{{0,{NAME_CHARS_MAX - 1}}}?)\s*"
    r"(?:[(\[](?P<stamp>[^)\]\n]{3,40})[)\]])?\s*(?:\*\*|__)?(?::(?:\*\*|__)?(?=\s|$)|：)\s*(?P<text>.*)$",
    re.S,
)
_HEADING = re.compile(r"^\s*(?P<marks>[#=\-–—*\[(_]*)\s*(?P<text>.*?)\s*[#=\-–—*\])_]*\s*$")
_HEADING_WORDS = re.compile(r"^(?:session|conversation|chat|day|date|on)\b\s*\d{0,3}\s*[-–—:,.(]*\s*", re.I)


@dataclass(slots=True)
class _Line:
    """One line of a transcript, as far as it can be told alone."""

    number: int
    text: str
    stamp: str | None = None
    name: str | None = None
    said: str = ""


@dataclass(slots=True)
class TextReader:
    """Reads ``Name: text`` transcripts with dates in headings, in brackets, before or behind the name."""

    name: str
    dates: Dates
    limits: Limits
    left_out: int = 0
    sessions: list[list[Turn]] = field(default_factory=lambda: [[]])
    day: Instant | None = None

    def read(self, text: str) -> tuple[list[Conversation], int]:
        lines = [_line(number, line) for number, line in enumerate(text.splitlines(), 1)]
        self.dates.learn([line.stamp for line in lines if line.stamp and line.name])
        speakers = _speakers(lines)
        for line in lines:
            self._take(line, speakers)
        if not any(self.sessions):
            raise InvalidInputError(f"{self.name} has no line like `Ana: Good morning`, and it is not JSON; {TAKES}")
        sessions = tuple(tuple(self._finished(session)) for session in self.sessions)
        return [Conversation(tuple(session for session in sessions if session))], self.left_out

    def _take(self, line: _Line, speakers: frozenset[str]) -> None:
        if line.name in speakers:
            self.sessions[-1].append(self._turn(line))
        elif not line.text.strip():
            self._continue("")
        elif self._is_heading(line.text):
            self.sessions.append([])
        elif self.sessions[-1] and not (line.stamp and line.name is None and self._stamp(line) is not None):
            self._continue(line.text)
        else:  # a title, or what a chat program says itself: "[…] Ana joined the group"
            self.left_out += 1
            if not any(self.sessions) and self.left_out > PREAMBLE_LINES_MAX:
                raise InvalidInputError(
                    f"{self.name}, line {line.number}: still no line like `Ana: Good morning`; {TAKES}"
                )

    def _turn(self, line: _Line) -> Turn:
        assert line.name is not None
        said_at = self.dates.read(line.stamp, f"{self.name}, line {line.number}", self.day) if line.stamp else self.day
        if said_at is not None:
            self.day = said_at
        role = ROLE_WORDS.get(line.name.casefold())
        message = Message(role or "user", line.said, None if role else line.name)
        return Turn(message, said_at, f"{self.name}, line {line.number}")

    def _continue(self, text: str) -> None:
        if self.sessions[-1]:
            last = self.sessions[-1][-1]
            content = f"{last.message.content}\n{text.rstrip()}"
            self.sessions[-1][-1] = replace(last, message=replace(last.message, content=content))

    def _finished(self, turns: Sequence[Turn]) -> Iterator[Turn]:
        """The turns with their text trimmed and checked; those that say nothing are left out."""
        for turn in turns:
            content = re.sub(r"\n{3,}", "\n\n", turn.message.content).strip()
            if not content or turn.message.role == "system":
                self.left_out += 1
                continue
            yield replace(turn, message=replace(turn.message, content=checked(content, turn.place, self.limits)))

    def _is_heading(self, text: str) -> bool:
        """A date on a line of its own, or a heading with or without one. Sets the day."""
        if len(text.strip()) > HEADING_CHARS_MAX:
            return False
        m = _HEADING.match(text)
        if m is None:
            return False
        words = _HEADING_WORDS.sub("", m["text"])
        day = self.dates.loose(words) if re.search(r"\d{4}|\d/\d", words) else None
        if day is not None:
            self.day = day
        # Two marks at least: one dash begins a list entry inside a message.
        return day is not None or "#" in m["marks"] or len(m["marks"]) >= 3

    def _stamp(self, line: _Line) -> Instant | None:
        return self.dates.loose(line.stamp) if line.stamp else None


def _line(number: int, text: str) -> _Line:
    head, tail = text[:200], text[200:]  # what tells a line's kind stands at its beginning
    stamped = _STAMPED.match(head)
    stamp = (stamped["stamp"] or stamped["bare"]) if stamped else None
    if stamp is not None and not re.search(r"\d", stamp):
        stamped = stamp = None
    named = _NAMED.match(stamped["rest"] if stamped else head)
    if named is None:
        return _Line(number, text, stamp)
    behind = named["stamp"]
    if behind is not None and not re.search(r"\d", behind):
        behind = None
    name = named["name"].strip(" *_~\u200e")
    return _Line(number, text, stamp or behind, name or None, (named["text"] or "") + tail)


def _speakers(lines: Sequence[_Line]) -> frozenset[str]:
    """The names that speak. "Remember this: …" inside a message must not become a person."""
    counts = Counter(line.name for line in lines if line.name)
    # Where lines carry a date, only those begin a message.
    dated = {line.name for line in lines if line.name and line.stamp}
    if sum(bool(line.stamp) for line in lines if line.name) * 2 >= sum(counts.values()) > 0:
        return frozenset(dated)
    return frozenset(name for name, count in counts.items() if _is_name(name, count))


def _is_name(name: str, count: int) -> bool:
    key, words = name.casefold(), name.split()
    if key in ROLE_WORDS:
        return True
    if key in NOT_SPEAKERS or len(words) > NAME_WORDS_MAX or not name[0].isalpha():
        return False
    return count >= 2 or not any(word[0].islower() for word in words)
