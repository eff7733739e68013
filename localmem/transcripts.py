"""Conversation files as exchanges, ready for add(): OpenAI-style JSON, JSONL, chat exports and ``Name: text``.

Reading is strict where a guess could change what is remembered (a role, a date, broken text) and says the line or
message; messages without any text are left out and counted. Nothing here touches a store.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from localmem.config import Limits
from localmem.errors import InvalidInputError, TooLargeError
from localmem.transcript_json import JsonReader
from localmem.transcript_parts import TAKES, Conversation, Dates, Turn
from localmem.transcript_text import TextReader
from localmem.types import Instant, Message

FILE_BYTES_MAX = 1_000_000_000  # a file is read whole
SOURCE_ID_HEX = 24  # 96 bits


@dataclass(frozen=True, slots=True)
class Transcript:
    """A file as read. ``left_out`` counts messages or lines without anything to remember."""

    name: str
    conversations: tuple[Conversation, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Exchange:
    """What goes into one add(). ``number`` counts from 1 in the file; ``source_id`` is the same on every reading."""

    messages: tuple[Message, ...]
    said_at: Instant | None
    number: int
    source_id: str
    conversation: str | None = None
    owner: str | None = None


def read(path: Path, *, date_order: str | None = None, limits: Limits | None = None) -> Transcript:
    """Read a conversation file. date_order ("dmy" or "mdy") settles dates like 5/6/2023.

    Raises InvalidInputError naming the file and the line or message, and what would be right.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; give the conversation file itself")
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            raise TooLargeError(f"{path} has {size:,} bytes, the limit is {FILE_BYTES_MAX:,}; split it")
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read: {error.strerror or type(error).__name__}") from None
    return parse(raw, path.name, date_order=date_order, limits=limits)


def parse(raw: bytes, name: str, *, date_order: str | None = None, limits: Limits | None = None) -> Transcript:
    """The same for bytes already read; ``name`` stands in errors and in the memories' ``source``."""
    text = _decoded(raw, name)
    if not text.strip():
        raise InvalidInputError(f"{name} is empty; {TAKES}")
    reader = JsonReader if _looks_like_json(text) else TextReader
    conversations, left_out = reader(name, Dates(date_order), limits or Limits()).read(text)
    if not any(turn for conversation in conversations for session in conversation.sessions for turn in session):
        raise InvalidInputError(f"{name} holds no message with text in it; {TAKES}")
    return Transcript(name, tuple(conversations), left_out)


def exchanges(transcript: Transcript, by: str | int = "exchange", *, infer: bool = True) -> list[Exchange]:
    """The file cut into what goes into one add() each.

    by: "exchange" (a user's message with the replies that follow it; between named people that is each turn alone),
    "turn", "session", or that many messages. A session's end always ends an exchange.
    """
    cut, seen = list[Exchange](), Counter[str]()
    for conversation in transcript.conversations:
        # Where a file has no dates, its first words tell it from another one that also says "Good morning".
        first = next((turn.message.content for session in conversation.sessions for turn in session), None)
        for session in conversation.sessions:
            for group in _groups(session, by):
                said_at = next((turn.said_at for turn in group if turn.said_at is not None), None)
                words = json.dumps([[t.message.role, t.message.name, t.message.content] for t in group])
                base = json.dumps([conversation.id, first if said_at is None else said_at, words, infer])
                seen[base] += 1
                source_id = hashlib.sha256(f"{base}#{seen[base]}".encode()).hexdigest()[:SOURCE_ID_HEX]
                messages = tuple(turn.message for turn in group)
                cut.append(Exchange(messages, said_at, len(cut) + 1, source_id, conversation.id, conversation.owner))
    return cut


def _groups(session: Sequence[Turn], by: str | int) -> Iterator[list[Turn]]:
    most = Limits().messages_max
    if isinstance(by, int):
        most = min(by, most)
    elif by == "turn":
        most = 1
    group: list[Turn] = []
    for turn in session:
        # A greeting by the assistant goes with the user's first words, not alone.
        answered = any(other.message.role == "user" for other in group)
        if group and (len(group) >= most or (by == "exchange" and turn.message.role == "user" and answered)):
            yield group
            group = []
        group.append(turn)
    if group:
        yield group


def _decoded(raw: bytes, name: str) -> str:
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{name} is not UTF-8 text (byte {error.start:,}); save it as UTF-8, or give the conversation file"
        ) from None
    if "\0" in text:
        raise InvalidInputError(f"{name} is a binary file (NUL at character {text.index(chr(0)):,}); {TAKES}")
    return text


def _looks_like_json(text: str) -> bool:
    """A transcript may begin with a bracket too: ``[2025-03-01 09:12] Ana: …``."""
    return re.match(r"""\s*(?:\{|\[\s*[\[{"\]])""", text) is not None
