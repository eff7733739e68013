"""Paths, limits with their units, and the environment, read in this one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from localmem.errors import InvalidInputError

DURABILITIES = ("power", "process")  # synchronous=FULL / NORMAL, DESIGN section 2
RETENTIONS = ("all", "evidence", "none")  # which turns stay once they are extracted, the most first
PRESETS = {"regulated": {"retention": "evidence"}}  # named settings: arguments of Memory where none are given
STORE_NAME = "localmem.db"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one Memory. Pass ``Memory(limits=Limits(message_bytes_max=…))`` to move one."""

    message_bytes_max: int = 1_000_000  # one message, UTF-8
    messages_max: int = 1_000  # in one add
    memory_bytes_max: int = 1_000_000  # the text of one memory stored by hand or with infer=False, as of a message
    metadata_bytes_max: int = 65_536  # JSON of one memory
    id_bytes_max: int = 256  # user_id, agent_id, run_id
    query_chars_max: int = 100_000  # longer queries are refused; the embedder reads the first 256 tokens
    filter_nodes_max: int = 200
    result_limit_max: int = 10_000
    lock_wait_s: float = 30.0  # how long a write waits for other processes
    reconcile_rounds_max: int = 5  # snapshot again when the owner moved; then ConflictError
    neighbours_per_fact: int = 12  # shown to the decision
    facts_per_episode_max: int = 40
    context_tokens: int = 200  # extraction: composed summary and last messages together
    context_messages_max: int = 10
    assistant_context_tokens: int = 60  # an assistant turn is cut to this in the context
    part_tokens_max: int = 700  # a longer message is read by the generator in parts
    reply_tokens_max: int = 256  # one extraction reply

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            numbers = (int, float) if each.name == "lock_wait_s" else (int,)
            if isinstance(value, bool) or not isinstance(value, numbers) or not 0 < value <= 2**40:
                kind = "number of seconds" if each.name == "lock_wait_s" else "whole number"
                raise InvalidInputError(f"Limits.{each.name} must be a positive {kind}, not {value!r:.40}")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a Memory takes part in reading what waits: ``Memory(worker=WorkerOptions(on_battery=False))``.

    on_battery: False stops while the machine runs on battery; needs the extra ``battery``.
    """

    on_battery: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.on_battery, bool):
            raise InvalidInputError(f"WorkerOptions.on_battery must be True or False, not {self.on_battery!r:.40}")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. ``LOCALMEM_HOME`` overrides every path outside the project."""

    home: Path
    cache: Path
    generator: str | None
    generator_threads: int | None
    key: str | None = field(default=None, repr=False)
    key_file: str | None = None
    keychain: str | None = None  # name of an entry in the system's keychain
    audit_key_file: str | None = None
    audit_keychain: str | None = None
    checkpoint: str | None = None
    actor: str = ""
    mcp_token: str | None = field(default=None, repr=False)

    @property
    def store(self) -> Path:
        return self.home / STORE_NAME

    @property
    def models(self) -> Path:
        return self.home / "models"


def settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read LOCALMEM_HOME, _GENERATOR, _THREADS, _KEY, _KEY_FILE, _KEYCHAIN, _AUDIT_KEY_FILE, _AUDIT_KEYCHAIN,
    _CHECKPOINT, _ACTOR and _MCP_TOKEN.

    Raises InvalidInputError for a LOCALMEM_THREADS that is no positive whole number.
    """
    env = os.environ if environ is None else environ
    home = env.get("LOCALMEM_HOME")
    if home:
        data = cache = Path(home).expanduser()
    else:
        import platformdirs

        data = Path(platformdirs.user_data_dir("localmem", appauthor=False))
        cache = Path(platformdirs.user_cache_dir("localmem", appauthor=False))
    return Settings(
        home=data,
        cache=cache,
        generator=env.get("LOCALMEM_GENERATOR") or None,
        generator_threads=_threads(env.get("LOCALMEM_THREADS")),
        key=env.get("LOCALMEM_KEY") or None,
        key_file=env.get("LOCALMEM_KEY_FILE") or None,
        keychain=env.get("LOCALMEM_KEYCHAIN") or None,
        audit_key_file=env.get("LOCALMEM_AUDIT_KEY_FILE") or None,
        audit_keychain=env.get("LOCALMEM_AUDIT_KEYCHAIN") or None,
        checkpoint=env.get("LOCALMEM_CHECKPOINT") or None,
        actor=env.get("LOCALMEM_ACTOR") or "",
        mcp_token=env.get("LOCALMEM_MCP_TOKEN") or None,
    )


def _threads(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise InvalidInputError(f"LOCALMEM_THREADS must be a whole number of at least 1, not {text!r}")
    return int(text)
