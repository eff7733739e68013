"""What mem0 leaves on a disk, read: its local Qdrant folder, JSON of its get_all() or export, OpenMemory's export.

Every source comes to the same: memories with mem0's payload keys, and a count of what could not be read. Nothing here
touches a store, and nothing is written.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from localmem.errors import CorruptFileError, InvalidInputError, TooLargeError
from localmem.mem0_points import RefusedPointError, read_point
from localmem.store_mem0 import Event, events, points

FILE_BYTES_MAX = 1_000_000_000  # of a JSON file, and of each file in a zip once it is unpacked
UNREADABLE = "unreadable: "
ENTITIES, TELEMETRY = "_entities", "mem0migrations"  # collections of mem0 that hold no memories
TAKES = (
    "give mem0's Qdrant folder (vector_store.config.path, by default /tmp/qdrant), a JSON file of what get_all() "
    "returned, or OpenMemory's export (a zip)"
)


@dataclass(frozen=True, slots=True)
class Found:
    """One memory as mem0 had it: ``payload`` with data, ids, times, role and the metadata all on one level."""

    id: str
    payload: dict[str, Any]


@dataclass(slots=True)
class Source:
    """A source as read. ``history``: mem0's events by memory; ``history_file``: where they were, None if there are none
    to be had. ``history_sought``: it is of a kind that has a history, and none was found nor waived. ``skipped``: how
    many could not be read, by reason."""

    name: str
    memories: list[Found] = field(default_factory=list)
    history: dict[str, list[Event]] = field(default_factory=dict)
    history_file: Path | None = None
    history_sought: bool = False
    skipped: Counter[str] = field(default_factory=Counter)


def read(path: Path, *, collection: str | None = None, history: Path | Literal[False] | None = None) -> Source:
    """Read a source. collection: only this one of a Qdrant folder. history: mem0's history.db, where it does not lie in
    the folder or beside it; False reads none. InvalidInputError for another file or folder; the errors of db.foreign
    for a damaged one.
    """
    if not path.exists():
        raise InvalidInputError(f"there is no {path}; {TAKES}")
    if collection is not None and not _is_qdrant(path):
        raise InvalidInputError(f"a collection is one of a Qdrant folder, and {path} is none")
    source = _folder(path, collection) if _is_qdrant(path) else _file(path)
    if history is False:
        return source
    if history is not None and not history.is_file():
        raise InvalidInputError(f"there is no history {history}")
    places = _histories(path) if history is None else [history]
    source.history_file = next((place for place in places if place.is_file()), None)
    source.history_sought = bool(places) and source.history_file is None
    for event in events(source.history_file) if source.history_file else ():
        source.history.setdefault(event.memory_id, []).append(event)
    return source


# -------------------------------------------------------------------- a Qdrant folder


def _is_qdrant(path: Path) -> bool:
    return path.is_dir() or path.name == "storage.sqlite"


def _collections(path: Path) -> dict[str, Path]:
    """The collections of a folder, or of what lies in it or around it: name -> its SQLite file."""
    if path.is_file():
        return {path.parent.name: path}
    if (path / "storage.sqlite").is_file():
        return {path.name: path / "storage.sqlite"}
    for folder in (path / "collection", path / "qdrant" / "collection", path):
        found = {each.parent.name: each for each in sorted(folder.glob("*/storage.sqlite"))}
        if found:
            return found
    return {}


def _folder(path: Path, collection: str | None) -> Source:
    there = _collections(path)
    held = [name for name in there if not name.endswith(ENTITIES) and name != TELEMETRY]
    if collection is not None and collection not in there:
        raise InvalidInputError(f"{path} has no collection {collection!r:.60}; it has {', '.join(held) or 'none'}")
    if not held and collection is None:
        raise InvalidInputError(f"{path} holds no collection of Qdrant's local mode; {TAKES}")
    source, seen = Source(path.name), set[str]()
    for name in held if collection is None else [collection]:
        for found in _points(there[name], source.skipped):
            if found.id not in seen:  # the latest writing of a point comes first
                seen.add(found.id)
                source.memories.append(found)
    source.memories.reverse()  # in the order of writing
    return source


def _points(file: Path, skipped: Counter[str]) -> Iterator[Found]:
    for data in points(file):
        if data is None:
            skipped[f"{UNREADABLE}a point is too large, or no bytes"] += 1
            continue
        try:
            point = read_point(data)
        except RefusedPointError as error:
            skipped[f"{UNREADABLE}{error}"] += 1
            continue
        if "linked_memory_ids" not in point.payload:  # an entity of mem0 2.x, which localmem finds by itself
            yield Found(point.id, dict(point.payload))


def _histories(path: Path) -> list[Path]:
    """Where mem0's history.db may lie: in the folder, or beside it."""
    folder = path if path.is_dir() else path.parent
    if folder.parent.name == "collection":  # one collection of a Qdrant folder
        folder = folder.parent.parent
    return [folder / "history.db", folder.parent / "history.db"] if _is_qdrant(path) else []


# -------------------------------------------------------------------- files


def _file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read: {error.strerror or type(error).__name__}") from None
    _refuse_large(raw, str(path))
    if raw.startswith(b"PK\x03\x04"):
        return _open_memory(path, raw)
    return _listed(path.name, _entries(raw, str(path)))


def _refuse_large(raw: bytes, name: str) -> None:
    if len(raw) > FILE_BYTES_MAX:
        raise TooLargeError(f"{name} has more than {FILE_BYTES_MAX:,} bytes; split it")


def _entries(raw: bytes, name: str) -> list[Any]:
    """The entries of a JSON list, of {"results": […]} or its like, or of JSONL."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInputError(f"{name} is not UTF-8 text; {TAKES}") from None
    try:
        read: Any = json.loads(text)
    except RecursionError:
        raise InvalidInputError(f"{name} is nested too deep") from None
    except ValueError as error:
        return _lines(text, name, error)
    if isinstance(read, Mapping):
        lists = (read[key] for key in ("results", "memories", "items", "data") if isinstance(read.get(key), list))
        read = next(lists, [read] if "memory" in read else None)
    if not isinstance(read, list):
        raise InvalidInputError(f"{name} holds no list of memories, nor {{'results': […]}}; {TAKES}")
    return read


def _lines(text: str, name: str, whole: ValueError) -> list[Any]:
    told = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                told.append(json.loads(line))
            except (ValueError, RecursionError):
                where = f"line {number}" if told else f"{whole}"
                raise InvalidInputError(f"{name} is no JSON ({where}); {TAKES}") from None
    if not told:
        raise InvalidInputError(f"{name} is empty; {TAKES}")
    return told


_TEXTS = ("data", "memory", "content", "text")  # mem0's payload, its results, OpenMemory, its REST API


def _listed(name: str, entries: Sequence[Any]) -> Source:
    source, seen = Source(name), set[str]()
    for entry in entries:
        found = _found(entry)
        if isinstance(found, str):
            source.skipped[found] += 1
        elif found.id not in seen:
            seen.add(found.id)
            source.memories.append(found)
    return source


def _found(entry: Any) -> Found | str:
    """An entry as a memory, or why it is none."""
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
        return f"{UNREADABLE}an entry is no dict"
    given = entry.get("id")
    if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
        return f"{UNREADABLE}an entry has no id"
    if entry.get("state") not in (None, "active"):
        return f"it is {str(entry['state'])[:20]} in OpenMemory"
    inner = {**_dict(entry.get("metadata")), **_dict(entry.get("metadata_"))}
    payload = {key: value for key, value in inner.items() if key not in _NOT_FROM_METADATA}
    payload |= {k: v for k, v in entry.items() if k not in _LEFT_OUT and k not in _TEXTS and v not in (None, [], {})}
    payload["data"] = next((entry[key] for key in _TEXTS if key in entry), None)
    return Found(str(given), payload)


_NOT_FROM_METADATA = ("user_id", "agent_id", "run_id", "data", "hash", "id")  # they never set the scope
_LEFT_OUT = ("id", "metadata", "metadata_", "score", "score_details", "state", "app_id", "hash")


def _dict(value: Any) -> dict[str, Any]:
    return {k: v for k, v in value.items() if isinstance(k, str)} if isinstance(value, Mapping) else {}


def _open_memory(path: Path, raw: bytes) -> Source:
    """OpenMemory's export: memories.json says whose they are, memories.jsonl.gz has them with their categories."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            listed = json.loads(_member(archive, "memories.json") or b"null")
            packed = _member(archive, "memories.jsonl.gz")
        if packed is not None:
            with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
                packed = file.read(FILE_BYTES_MAX + 1)
            _refuse_large(packed, f"{path}: memories.jsonl.gz")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise CorruptFileError(f"{path} is a damaged zip ({type(error).__name__})") from None
    except (ValueError, RecursionError):
        raise InvalidInputError(f"{path}: memories.json is no JSON") from None
    if not isinstance(listed, Mapping):
        raise InvalidInputError(f"{path} holds no memories.json; {TAKES}")
    owner = _dict(listed.get("user")).get("user_id")
    entries = _entries(packed, f"{path}: memories.jsonl.gz") if packed else listed.get("memories") or []
    if not isinstance(entries, list):
        raise InvalidInputError(f"{path}: memories.json holds no list of memories")
    return _listed(path.name, [{**each, "user_id": owner} if isinstance(each, Mapping) else each for each in entries])


def _member(archive: zipfile.ZipFile, name: str) -> bytes | None:
    """A file of the archive, wherever in it."""
    for each in archive.namelist():
        if each.rsplit("/", 1)[-1] == name:
            with archive.open(each) as file:
                content = file.read(FILE_BYTES_MAX + 1)
            _refuse_large(content, name)
            return content
    return None
