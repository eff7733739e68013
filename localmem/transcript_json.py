"""JSON and JSONL conversations, with the key names of OpenAI, of the common exports and of the public benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localmem import inputs
from localmem.config import Limits
from localmem.errors import InvalidInputError, InvalidTypeError
from localmem.transcript_parts import ROLE_WORDS, TAKES, Conversation, Dates, Turn, checked
from localmem.types import Instant, Message

_CONVERSATION_KEYS = ("messages", "turns", "chat_messages", "sessions", "mapping")
_DATE_KEYS = ("timestamp", "created_at", "create_time", "said_at", "datetime", "date", "time")
_ID_KEYS = ("conversation_id", "conv_id", "thread_id", "uuid", "id")


@dataclass(slots=True)
class JsonReader:
    """Reads JSON and JSONL, with the key names of OpenAI, of the common exports and of the public benchmarks."""

    name: str
    dates: Dates
    limits: Limits
    left_out: int = 0

    def read(self, text: str) -> tuple[list[Conversation], int]:
        try:
            value = json.loads(text)
        except RecursionError:
            raise InvalidInputError(f"{self.name} is nested too deeply to be a conversation; {TAKES}") from None
        except json.JSONDecodeError as error:
            if not self._is_jsonl(text):
                raise InvalidInputError(
                    f"{self.name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
                ) from None
            return self._lines(text), self.left_out
        return self._whole(value), self.left_out

    def _is_jsonl(self, text: str) -> bool:
        lines = text.strip().split("\n", 1)
        try:
            return len(lines) > 1 and isinstance(json.loads(lines[0]), list | dict)
        except (ValueError, RecursionError):
            return False

    def _lines(self, text: str) -> list[Conversation]:
        """One conversation a line, or one message a line; messages in a row are one conversation."""
        conversations: list[Conversation] = []
        loose: list[tuple[Any, str]] = []
        for number, line in enumerate(text.split("\n"), 1):
            place = f"{self.name}, line {number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                raise InvalidInputError(f"{place} is not valid JSON: {what}") from None
            if _is_conversation(value):
                conversations += self._loose(loose)
                loose = []
                conversations.append(self._conversation(value, place))
            else:
                loose.append((value, place))
        return conversations + self._loose(loose)

    def _loose(self, entries: Sequence[tuple[Any, str]]) -> list[Conversation]:
        return [Conversation((self._turns(entries, None),))] if entries else []

    def _whole(self, value: Any) -> list[Conversation]:
        if isinstance(value, dict) and isinstance(value.get("conversations"), list):
            value = value["conversations"]
        if _is_conversation(value) and not (isinstance(value, list) and value and _is_conversation(value[0])):
            return [self._conversation(value, self.name)]
        if isinstance(value, list) and value:
            return [self._conversation(entry, f"{self.name}, conversation {i}") for i, entry in enumerate(value, 1)]
        if isinstance(value, dict) and _text_key(value):
            return [Conversation((self._turns([(value, self.name)], None),))]
        found = f"the keys {', '.join(map(repr, list(value)[:5]))}" if value and isinstance(value, dict) else "nothing"
        raise InvalidInputError(f"{self.name} holds {found}, no messages; {TAKES}")

    def _conversation(self, value: Any, place: str) -> Conversation:
        if not _is_conversation(value):
            raise InvalidInputError(f'{place} has no "messages"; {TAKES}')
        if isinstance(value, list):
            return Conversation((self._turns(_placed(value, place), None),))
        id_ = next((str(value[key]) for key in _ID_KEYS if isinstance(value.get(key), str | int)), None)
        began = self._date(value, place)
        sessions = tuple(self._sessions(value, place, began))
        turns = [turn for session in sessions for turn in session]
        named = bool(turns) and all(turn.message.role == "user" and turn.message.name for turn in turns)
        owner = value.get("user_id")
        if owner is not None and (not isinstance(owner, str | int) or isinstance(owner, bool)):
            raise InvalidTypeError(f'{place}: "user_id" must be text, not {type(owner).__name__}')
        return Conversation(sessions, id_, str(owner) if owner is not None else id_ if named else None)

    def _sessions(self, value: Mapping[str, Any], place: str, began: Instant | None) -> Iterator[tuple[Turn, ...]]:
        key = next(key for key in _CONVERSATION_KEYS if key in value)
        entries = _branch(value) if key == "mapping" else value[key]
        if not isinstance(entries, list):
            raise InvalidInputError(f'{place}: "{key}" must be a list, not {type(entries).__name__}')
        if key != "sessions":
            yield self._turns(_placed(entries, place), began)
            return
        for i, entry in enumerate(entries, 1):
            here = f"{place}, session {i}"
            if isinstance(entry, list):
                yield self._turns(_placed(entry, here), began)
            elif isinstance(entry, dict) and _is_conversation(entry):
                yield from self._sessions(entry, here, self._date(entry, here) or began)
            else:
                raise InvalidInputError(f'{here} has no "messages" or "turns"')

    def _turns(self, entries: Sequence[tuple[Any, str]], began: Instant | None) -> tuple[Turn, ...]:
        turns, now = [], began
        for entry, place in entries:
            turn = self._turn(entry, place, now)
            if turn is None:
                self.left_out += 1
                continue
            now = turn.said_at if turn.said_at is not None else now
            turns.append(turn)
        return tuple(turns)

    def _turn(self, entry: Any, place: str, now: Instant | None) -> Turn | None:
        """One message, or None when it says nothing: a system prompt, a tool call, a picture."""
        if not isinstance(entry, dict):
            raise InvalidTypeError(f"{place} is {type(entry).__name__}; a message is an object with role and content")
        role, name = _speaker(entry, place)
        said_at = self._date(entry, place, now)
        content = _content(entry, place)
        if role == "system" or not content.strip():
            return None
        content = checked(content, place, self.limits)
        return Turn(Message(role, content, name), said_at if said_at is not None else now, place)

    def _date(self, entry: Mapping[str, Any], place: str, day: Instant | None = None) -> Instant | None:
        key = next((key for key in _DATE_KEYS if entry.get(key) not in (None, "")), None)
        return None if key is None else self.dates.read(entry[key], f'{place}: "{key}"', day)


def _is_conversation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(isinstance(value.get(key), list | dict) for key in _CONVERSATION_KEYS)
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _placed(entries: Sequence[Any], place: str) -> list[tuple[Any, str]]:
    return [(entry, f"{place}, message {i}") for i, entry in enumerate(entries, 1)]


def _text_key(entry: Mapping[str, Any]) -> str | None:
    return next((key for key in ("content", "text", "body", "message") if key in entry), None)


def _speaker(entry: Mapping[str, Any], place: str) -> tuple[str, str | None]:
    """(role, name). An unknown role is refused; under "speaker" or "sender" any name goes and is a user's."""
    name = entry.get("name")
    name = name.strip() or None if isinstance(name, str) else None
    given = entry.get("role", entry.get("author"))
    if isinstance(given, dict):
        given = given.get("role")
    if isinstance(given, str) and "role" in entry:
        role = ROLE_WORDS.get(given.casefold())
        if role is None:
            raise InvalidInputError(f"{place}: the role is {given!r:.40}; use one of {', '.join(inputs.ROLES)}")
        return role, name
    said_by = next((entry[key] for key in ("speaker", "sender", "author", "from") if entry.get(key)), given)
    if isinstance(said_by, dict):
        said_by = said_by.get("role")
    if not isinstance(said_by, str) or not said_by.strip():
        if name is not None:
            return "user", name
        raise InvalidInputError(
            f'{place} has no "role"; use one of {", ".join(inputs.ROLES)}, or "speaker" with a name'
        )
    role = ROLE_WORDS.get(said_by.strip().casefold())
    return (role, name) if role else ("user", said_by.strip())


def _content(entry: Mapping[str, Any], place: str) -> str:
    """The text of a message; parts that are no text (pictures, calls) count as nothing."""
    key = _text_key(entry)
    if key is None:
        if any(other in entry for other in ("tool_calls", "function_call", "refusal")):
            return ""
        raise InvalidInputError(f'{place} has no "content"')
    value = entry[key]
    if isinstance(value, dict):
        value = value.get("parts", [value])
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        return "\n".join(part for part in parts if isinstance(part, str))
    if value is not None and not isinstance(value, str):
        raise InvalidTypeError(f'{place}: "{key}" must be text, not {type(value).__name__}')
    return value or ""


def _branch(value: Mapping[str, Any]) -> list[Any]:
    """ChatGPT's export keeps a tree of edits: the messages from the root to the leaf that was last shown."""
    nodes, path = value["mapping"], list[Any]()
    if not isinstance(nodes, dict):
        return []
    here = value.get("current_node")
    if not isinstance(here, str) or here not in nodes:  # no leaf named: the last one without children
        here = next((id_ for id_ in reversed(nodes) if not (nodes[id_] or {}).get("children")), None)
    while isinstance(here, str) and isinstance(nodes.get(here), dict) and len(path) <= len(nodes):
        if isinstance(nodes[here].get("message"), dict):
            path.append(nodes[here]["message"])
        here = nodes[here].get("parent")
    return path[::-1]
