"""Messages as mem0 takes them, made ready for localmem: what mem0 leaves out is left out here too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localmem.compat.mem0.exceptions import ArgumentTypeError
from localmem.inputs import OTHER_ROLES, ROLES

Said = dict[str, Any]


def said(messages: Any) -> list[Said]:
    """A str, a dict or a list of them as dicts with role, content and perhaps name. System messages, those without text
    or role and pictures are left out. ArgumentTypeError for anything else."""
    if isinstance(messages, str | Mapping):
        messages = [messages]
    if not isinstance(messages, list):
        raise ArgumentTypeError(
            "messages must be str, dict, or list[dict]",
            "VALIDATION_003",
            details={"provided_type": type(messages).__name__, "valid_types": ["str", "dict", "list[dict]"]},
            suggestion="Convert your input to a string, dictionary, or list of dictionaries.",
        )
    told = [_message(each, f"messages[{i}]") for i, each in enumerate(messages)]
    return [each for each in told if each is not None]


def _message(entry: Any, place: str) -> Said | None:
    if isinstance(entry, str):
        entry = {"role": "user", "content": entry}
    if not isinstance(entry, Mapping):
        raise ArgumentTypeError(
            f"{place} must be a dict with role and content, not {type(entry).__name__}", "VALIDATION_003"
        )
    role, content = entry.get("role"), _text(entry.get("content"))
    if not isinstance(role, str) or role == "system" or content is None or not content.strip():
        return None
    return {"role": role, "content": content, **({"name": entry["name"]} if entry.get("name") else {})}


def _text(content: Any) -> str | None:
    """The text of a message; of a list of parts the text ones, with a blank between."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    return " ".join(part for part in parts if isinstance(part, str)) or None


def known(message: Said) -> bool:
    """Whether localmem reads a message of this role; mem0's extraction too passes over others."""
    return message["role"] in (*ROLES, *OTHER_ROLES)


def stored(message: Said) -> Said:
    """The message under a role that localmem has; mem0's own is kept in the metadata."""
    return {**message, "role": message["role"] if known(message) else "document"}


def as_one_text(messages: list[Said]) -> str:
    """A conversation as one text, a line for each message."""
    return "\n".join(f"{each['role']}: {each['content']}" for each in messages)
