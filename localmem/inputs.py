"""What a caller may hand in, checked once at the border: both mem0 dialects, with errors that name the argument."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localmem import keys
from localmem.config import DURABILITIES, PRESETS, RETENTIONS, Limits, settings
from localmem.dates import parse_instant
from localmem.errors import InvalidInputError, InvalidTypeError, ScopeError, TooLargeError
from localmem.keys import Key
from localmem.types import JSON, Instant, Message, Scope

ROLES = ("user", "assistant", "system", "tool", "document")
OTHER_ROLES = {"developer": "system", "function": "tool", "human": "user", "ai": "assistant"}
_BROKEN = re.compile("[\ud800-\udfff\0]")


def clean_text(value: Any, argument: str, *, bytes_max: int, limit: str) -> str:
    """A str that can be stored: not blank, no NUL, no lone surrogates, within the named limit (UTF-8 bytes)."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"{argument} must be a str, not {type(value).__name__}")
    if not value.strip():
        raise InvalidInputError(f"{argument} is empty; give some text")
    broken = _BROKEN.search(value)
    if broken:
        what = "a NUL character" if broken[0] == "\0" else "a lone surrogate (not valid Unicode)"
        raise InvalidInputError(f"{argument} holds {what} at position {broken.start()}; remove or replace it")
    size = len(value.encode())
    if size > bytes_max:
        raise TooLargeError(
            f"{argument} has {size:,} bytes, the limit is {bytes_max:,}; "
            f"shorten it or pass Memory(limits=Limits({limit}={size}))"
        )
    return value


def memory_text(value: Any, argument: str, limits: Limits) -> str:
    """The text of one memory, within its limit. Raises as `clean_text`."""
    return clean_text(value, argument, bytes_max=limits.memory_bytes_max, limit="memory_bytes_max")


def identifier(value: Any, argument: str, limits: Limits) -> str | None:
    """An id: None, a non-blank str, or an int (mem0 code passes database ids), as str."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return clean_text(value, argument, bytes_max=limits.id_bytes_max, limit="id_bytes_max").strip()


def scope(ids: Mapping[str, Any], limits: Limits) -> Scope:
    """user_id, agent_id, run_id (session_id is another word for it). At least one is needed: ScopeError."""
    found = {name: identifier(ids.get(name), name, limits) for name in ("user_id", "agent_id", "run_id", "session_id")}
    run_id, session_id = found["run_id"], found.pop("session_id")
    if run_id and session_id and run_id != session_id:
        raise ScopeError("run_id and session_id are two words for the same id, and two different values were given")
    made = Scope(found["user_id"], found["agent_id"], run_id or session_id)
    if made == Scope():
        raise ScopeError("no scope was given: pass at least one of user_id, agent_id, run_id, e.g. user_id='alice'")
    return made


def messages(value: Any, limits: Limits) -> list[Message]:
    """A str, one message dict, or a list of either, as messages. Each has a role, content, maybe a name."""
    entries = value if isinstance(value, list | tuple) else [value]
    if not entries:
        raise InvalidInputError("messages is empty; give a str, a message dict or a list of them")
    if len(entries) > limits.messages_max:
        raise TooLargeError(
            f"messages has {len(entries):,} entries, the limit is {limits.messages_max:,} in one add; "
            "add them in several calls, or raise Limits.messages_max"
        )
    return [_message(entry, f"messages[{i}]", limits) for i, entry in enumerate(entries)]


def _message(entry: Any, place: str, limits: Limits) -> Message:
    if isinstance(entry, str):
        entry = {"role": "user", "content": entry}
    if not isinstance(entry, Mapping):
        raise InvalidTypeError(f"{place} must be a dict with role and content, or a str, not {type(entry).__name__}")
    role = entry.get("role", "user")
    role = OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise InvalidInputError(f"{place}.role is {role!r:.40}; use one of {', '.join(ROLES)}")
    content = _joined(entry.get("content"), place)
    content = clean_text(content, f"{place}.content", bytes_max=limits.message_bytes_max, limit="message_bytes_max")
    return Message(role, content, identifier(entry.get("name"), f"{place}.name", limits))


def _joined(content: Any, place: str) -> Any:
    """OpenAI's list of text parts as one text; a part that is no text can't be remembered."""
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise InvalidInputError(f"{place}.content[{i}] is not a text part; only text can be remembered")
        texts.append(text)
    return "\n".join(texts)


def metadata(value: Any, limits: Limits) -> dict[str, JSON]:
    """A JSON-able dict with str keys. Identity keys in it are kept as they are and never set the scope."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"metadata must be a dict, not {type(value).__name__}")
    if not all(isinstance(key, str) for key in value):
        raise InvalidTypeError("metadata must have str keys")
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"metadata can't be written as JSON: {type(error).__name__}") from None
    if _BROKEN.search(text) or "\\u0000" in text:
        raise InvalidInputError("metadata holds a NUL character or a lone surrogate")
    if len(text.encode()) > limits.metadata_bytes_max:
        raise TooLargeError(
            f"metadata has {len(text.encode()):,} bytes as JSON, the limit is {limits.metadata_bytes_max:,}; "
            "shorten it or raise Limits.metadata_bytes_max"
        )
    return json.loads(text)  # type: ignore[no-any-return]


def instant(value: Any, argument: str) -> Instant | None:
    """ISO 8601, datetime, date or Unix seconds; naive times are UTC. None stays None."""
    if value is None:
        return None
    try:
        return parse_instant(value)
    except InvalidInputError as error:
        raise InvalidInputError(f"{argument}: {error}") from None


def limit(value: Any, argument: str, limits: Limits) -> int:
    """A whole number from 0 to Limits.result_limit_max."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{argument} must be a whole number, not {type(value).__name__}")
    if not 0 <= value <= limits.result_limit_max:
        raise InvalidInputError(f"{argument} must be between 0 and {limits.result_limit_max:,}, not {value}")
    return value


def one_of(value: Any, other: Any, argument: str, other_argument: str, default: Any) -> Any:
    """The value of an argument that has two names in mem0's two dialects."""
    if value is not None and other is not None and value != other:
        raise InvalidInputError(f"{argument} and {other_argument} are two words for the same thing; give one of them")
    return value if value is not None else other if other is not None else default


def threshold(value: Any) -> float | None:
    """None or a number in [0, 1]."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTypeError(f"threshold must be a number between 0 and 1, not {type(value).__name__}")
    if not 0 <= value <= 1:
        raise InvalidInputError(f"threshold must be between 0 and 1, not {value}")
    return float(value)


def memory_id(value: Any) -> str:
    """A memory id; what it names is looked up later, so any str goes."""
    if not isinstance(value, str):
        raise InvalidTypeError(f"memory_id must be a str, not {type(value).__name__}")
    return value.strip().lower()


def durability(value: Any) -> None:
    """Raise InvalidInputError unless it is one of config.DURABILITIES."""
    if value not in DURABILITIES:
        raise InvalidInputError(f"durability must be one of {', '.join(DURABILITIES)}, not {value!r:.40}")


def retention(given: Any, preset: Any) -> str | None:
    """The retention asked for, itself or by a preset; None where neither says one."""
    if preset is not None and preset not in PRESETS:
        raise InvalidInputError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r:.40}")
    if given is not None and given not in RETENTIONS:
        raise InvalidInputError(f"retention must be one of {', '.join(RETENTIONS)}, not {given!r:.40}")
    return given if given is not None or preset is None else PRESETS[preset].get("retention")


def store_key(given: Any) -> Key | None:
    """The key of a store: the one given, else what the environment names; None for a store without one."""
    if given is not None:
        return keys.key_of(given)
    found = settings()
    named = [found.key, found.key_file, found.keychain]
    if sum(each is not None for each in named) > 1:
        raise InvalidInputError("set only one of LOCALMEM_KEY, LOCALMEM_KEY_FILE and LOCALMEM_KEYCHAIN")
    if found.key_file is not None:
        return keys.from_file(found.key_file)
    return keys.from_keychain(found.keychain) if found.keychain is not None else keys.key_of(found.key)


def audit_key(given: Any) -> Key | None:
    """The key that signs the audit chain: the one given, else what the environment names."""
    if given is not None:
        return keys.key_of(given)
    found = settings()
    if found.audit_key_file is not None and found.audit_keychain is not None:
        raise InvalidInputError("set only one of LOCALMEM_AUDIT_KEY_FILE and LOCALMEM_AUDIT_KEYCHAIN")
    if found.audit_key_file is not None:
        return keys.from_file(found.audit_key_file)
    return None if found.audit_keychain is None else keys.from_keychain(found.audit_keychain)


def checkpoint(given: Any) -> Path | None:
    """The checkpoint file of the audit chain: the one given, else that of LOCALMEM_CHECKPOINT."""
    wanted = settings().checkpoint if given is None else given
    if wanted is None:
        return None
    if not isinstance(wanted, str | os.PathLike):
        raise InvalidTypeError(f"checkpoint must be a str or Path, not {type(wanted).__name__}")
    return Path(wanted).expanduser().absolute()


def actor(given: Any, limits: Limits) -> str:
    """Who acts, as the audit chain names them: the one given, else LOCALMEM_ACTOR; "" for nobody in particular."""
    wanted = settings().actor if given is None else given
    if wanted == "":
        return ""
    return clean_text(wanted, "actor", bytes_max=limits.id_bytes_max, limit="id_bytes_max").strip()


def store_path(path: str | os.PathLike[str] | None) -> Path | None:
    """The file of a store: None is the one in the user's data folder, whose folder is made; ":memory:" gives None."""
    if path is None:
        home = settings().home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return settings().store
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(f"path must be a str or Path, not {type(path).__name__}")
    text = os.fspath(path)
    if text == ":memory:":
        return None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise InvalidInputError("path is empty; give a file name, ':memory:', or leave it out for the default place")
    return Path(text).expanduser().absolute()


def existing_store(path: str | os.PathLike[str] | None) -> Path:
    """The file of a store that is there: InvalidInputError without it."""
    place = store_path(path)
    if place is None or not place.is_file():
        raise InvalidInputError(f"there is no file {place or ':memory:'}")
    return place


# -------------------------------------------------------------------- configuration


def _limits(given: Mapping[str, Any]) -> Limits:
    try:
        return Limits(**given)
    except TypeError:
        known = ", ".join(Limits.__slots__)
        raise InvalidInputError(f"config.limits has a name that is no limit; there are {known}") from None


OWN_OPTIONS = (
    "path", "key", "embedder", "generator", "reranker", "durability", "retention", "preset", "limits", "allow_remote",
    "audit_key", "checkpoint", "audit_reads", "actor", "erase_on_delete", "worker",
)  # fmt: skip


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Memory's arguments, read from its own keys and from what of mem0's sections means something here."""
    if not isinstance(config, Mapping):
        raise InvalidTypeError(f"config must be a dict, not {type(config).__name__}")
    chosen = {name: config[name] for name in OWN_OPTIONS if name in config and not isinstance(config[name], Mapping)}
    if isinstance(config.get("limits"), Mapping):
        chosen["limits"] = _limits(config["limits"])
    ignored = []
    for section, value in config.items():
        if section in chosen or value is None:
            continue
        inner = value.get("config") or {} if isinstance(value, Mapping) else {}
        base_url = next((inner[key] for key in inner if key.endswith("base_url")), None)
        if section == "llm" and isinstance(base_url, str):
            chosen["generator"] = base_url if base_url.rstrip("/").endswith("/v1") else base_url.rstrip("/") + "/v1"
        elif section != "version":
            ignored.append(section)
    if ignored:
        warnings.warn(
            f"localmem keeps everything in one local file; these config sections are ignored: {', '.join(ignored)}",
            stacklevel=4,
        )
    return chosen
