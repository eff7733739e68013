"""Bringing mem0's memories over: all of them in one transaction, and those that came before are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from localmem import inputs
from localmem.config import Limits
from localmem.dates import parse_instant, to_iso
from localmem.errors import InvalidInputError
from localmem.mem0_files import Found, Source, read
from localmem.types import Instant

if TYPE_CHECKING:
    from localmem.memory import Memory

IDS = ("user_id", "agent_id", "run_id")
WITHOUT_IDS = "without user_id, agent_id or run_id: name whose they are (--user ID, or user_id=…) to take them too"
WITHOUT_TEXT = "without text"
UNUSABLE = "unusable: "
_NOT_METADATA = ("data", "hash", "id", "text_lemmatized", "updated_at", *IDS)
_ACTORS = {"assistant": "assistant", "tool": "tool"}

Progress = Callable[[int, int], object]
Owner = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Plan:
    """What an import would do. ``entries`` are add_many()'s, each with its owner's ids in ``owners``."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    known: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def keep(self, episodes: Sequence[str | None]) -> None:
        """Count what another import was faster with as known."""
        pairs = zip(self.entries, self.owners, episodes, strict=True)
        kept = [(entry, owner) for entry, owner, episode in pairs if episode is not None]
        self.known += len(self.entries) - len(kept)
        self.entries, self.owners = [entry for entry, _ in kept], [owner for _, owner in kept]


def import_mem0(
    memory: Memory,
    path: str | os.PathLike[str],
    *,
    collection: str | None = None,
    history: str | os.PathLike[str] | Literal[False] | None = None,
    user_id: str | None = None,
    agent_id: str | None = None,
    run_id: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Add the memories of a mem0 store to a Memory, each as it is, with its metadata, times and former texts.

    path: mem0's Qdrant folder, a JSON file of what get_all() returned, or OpenMemory's export. collection: only this
    one of the folder. history: mem0's history.db, looked for in the folder and beside it; where it is not found, a
    folder is not imported without history=False, since a memory that is here once gets its former texts never after.
    user_id, agent_id, run_id: whose the memories are that have no id; without them those are skipped. dry_run: only say
    what would be done. progress gets (texts embedded, texts).

    created_at becomes the time from which a memory was true; ``mem0_id`` in its metadata is its former id. One that was
    brought over before is not added again, also if it was deleted here. All is written in one transaction.

    Returns {"source", "history": its file or None, "history_missing", "found", "added", "known", "versions",
    "skipped": {reason: count}, "owners": [{ids, "memories"}], "dry_run"}. Of a dry run, "added" and "versions" are what
    would be added, and "history_missing" says that without a history it would be refused. InvalidInputError for another
    file or folder and for a history not found, CorruptFileError for a damaged file: nothing is written.
    """
    place = history if history is None or history is False else _path(history, "history")
    source = read(_path(path, "path"), collection=collection, history=place)
    given = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
    plan = _planned(memory, source, {name: value for name, value in given.items() if value is not None})
    missing = source.history_sought and bool(plan.entries)
    if missing and not dry_run:
        raise InvalidInputError(f"nothing was written: {without_history(source.name)}")
    if plan.entries and not dry_run:
        plan.keep(memory.add_many(plan.entries, infer=False, once=True, progress=progress)["episodes"])
    counts = Counter(plan.owners)
    return {
        "source": source.name,
        "history": None if source.history_file is None else str(source.history_file),
        "history_missing": missing,
        "found": len(source.memories) + sum(source.skipped.values()),
        "added": len(plan.entries),
        "known": plan.known,
        "versions": len(plan.entries) + sum(len(entry.get("later", ())) for entry in plan.entries),
        "skipped": dict(sorted((source.skipped + plan.skipped).items())),
        "owners": [{**dict(owner), "memories": count} for owner, count in sorted(counts.items())],
        "dry_run": dry_run,
    }


def without_history(name: str) -> str:
    """What to do where mem0's history was not found."""
    return (
        f"no history.db in {name} or beside it, and without it the former texts stay behind for good; name it with "
        "--history FILE or history=… (mem0's own place is ~/.mem0/history.db), or go without it: --no-history or "
        "history=False"
    )


def _path(given: Any, argument: str) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise InvalidInputError(f"{argument} must be a str or Path, not {type(given).__name__}")
    return Path(os.fspath(given)).expanduser()


def _planned(memory: Memory, source: Source, default: Mapping[str, str]) -> _Plan:
    plan, known = _Plan(), dict[Owner, set[str]]()
    for found in source.memories:
        text = found.payload.get("data")
        if not isinstance(text, str) or not text.strip():
            plan.skipped[WITHOUT_TEXT] += 1
            continue
        ids = {n: str(found.payload[n]).strip() for n in IDS if _is_id(found.payload.get(n))} or default
        if not ids:
            plan.skipped[WITHOUT_IDS] += 1
            continue
        try:
            entry = _entry(found, ids, source)
            _check(entry)
        except InvalidInputError as error:
            plan.skipped[f"{UNUSABLE}{error}"] += 1
            continue
        owner = tuple(sorted(ids.items()))
        if owner not in known:
            known[owner] = memory.ingested(**ids)
        if entry["metadata"]["source_id"] in known[owner]:
            plan.known += 1
            continue
        plan.entries.append(entry)
        plan.owners.append(owner)
    return plan


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())


def _entry(found: Found, ids: Mapping[str, str], source: Source) -> dict[str, Any]:
    """The memory as add_many() takes it."""
    payload = found.payload
    texts = _texts(payload, source.history.get(found.id, ()))
    about = {name: value for name, value in payload.items() if name not in _NOT_METADATA}
    entry: dict[str, Any] = {
        "messages": {"role": _role(payload), "content": texts[0][0]},
        "metadata": {**about, "source": "mem0", "source_id": f"mem0:{found.id}", "mem0_id": found.id},
        **ids,
    }
    if texts[0][1] is not None:
        entry["timestamp"] = to_iso(texts[0][1])
    if len(texts) > 1:
        entry["later"] = [{"text": text, "timestamp": to_iso(since or 0)} for text, since in texts[1:]]
    ends = payload.get("expiration_date")
    if isinstance(ends, str):  # the last day on which it is shown
        try:
            entry["expires_at"] = date.fromisoformat(ends) + timedelta(days=1)
        except (ValueError, OverflowError):
            raise InvalidInputError("its expiration_date is no date") from None
    return entry


def _role(payload: Mapping[str, Any]) -> str:
    said_by = payload.get("role") or payload.get("attributed_to") or "user"
    return _ACTORS.get(str(said_by), "user")


def _texts(payload: Mapping[str, Any], history: Sequence[Any]) -> list[tuple[str, Instant | None]]:
    """What the memory said and since when, the oldest first; the last is what it says now. Without a time that can be
    read there is one text alone: an order could only be guessed."""
    now, created = str(payload["data"]), _instant(payload.get("created_at"))
    if created is None:
        return [(now, None)]
    texts: list[tuple[str, Instant]] = []
    for event in history:
        since = _instant(event.updated_at if event.event == "UPDATE" else event.created_at)
        if event.event == "UPDATE" and event.old and not texts:
            texts.append((event.old, created))
        if event.event in ("ADD", "UPDATE") and event.new and event.new.strip():
            texts.append((event.new, created if not texts or since is None else since))
    if not texts or texts[-1][0] != now:
        changed = _instant(payload.get("updated_at"))
        texts.append((now, created if not texts or changed is None else changed))
    told: list[tuple[str, Instant | None]] = []
    latest = created
    for text, since in texts:
        if told and told[-1][0] == text:  # its metadata was changed
            continue
        latest = max(latest, since)
        told.append((text, latest))
    return told


def _instant(value: Any) -> Instant | None:
    """A time as mem0 and OpenMemory write it: ISO 8601, or Unix seconds."""
    try:
        return None if value is None else parse_instant(value)
    except InvalidInputError:
        return None


def _check(entry: Mapping[str, Any]) -> None:
    """Raise InvalidInputError where add_many() would: one memory that can't be had must not keep the others out."""
    limits = Limits()
    inputs.scope({name: entry.get(name) for name in IDS}, limits)
    inputs.metadata(entry["metadata"], limits)
    wordings = [entry["messages"]["content"], *(each["text"] for each in entry.get("later", ()))]
    for wording in wordings:
        inputs.memory_text(wording, "its text", limits)


__all__ = ["import_mem0"]
