"""localmem's records as mem0's dicts: the same keys, in the same order, and None where mem0 has None."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

Shape = dict[str, Any]

ROLE, ACTOR, EXPIRY = "role", "actor_id", "expiration_date"  # mem0 keeps them in the payload, we in the metadata
IDENTITY = ("user_id", "agent_id", "run_id", ACTOR)  # metadata may not set them
PROMOTED = (ROLE, "attributed_to", EXPIRY)  # beside the text, not in the metadata
INTERNAL = ("data", "hash", "created_at", "updated_at", "text_lemmatized", "id")  # of mem0's payload


def memory_dict(record: Mapping[str, Any], *, score: bool, attributed: bool) -> Shape:
    """An entry of get(), get_all() or search(). score: whether there is one, None for get(). attributed: whether 2.x's
    ``attributed_to`` is told."""
    kept: Shape = dict(record["metadata"])
    shape: Shape = {"id": record["id"], "memory": record["memory"], "hash": record["hash"], "metadata": None}
    if score:
        shape["score"] = record.get("score")
    shape["created_at"] = created_at(record)
    shape["updated_at"] = utc(record["valid_from"])
    shape.update({name: record[name] for name in IDENTITY if name in record})
    if attributed and ROLE not in kept and "memory_type" not in kept:
        kept.setdefault("attributed_to", record["actor"])
    shape.update({name: kept[name] for name in (ACTOR, *PROMOTED) if name in kept})
    extra = {name: value for name, value in kept.items() if name not in (*IDENTITY, *PROMOTED, *INTERNAL)}
    shape["metadata"] = extra or None
    if "signals" in record:
        shape["score_details"] = record["signals"]
    return shape


def created_at(record: Mapping[str, Any]) -> str:
    """When a memory was created: in mem0, if it came from there, else when it was said or, once changed, recorded."""
    said = record["metadata"].get("created_at")
    if isinstance(said, str) and said:
        return said
    return utc(record["valid_from"] if record["version"] == 1 else record["created_at"])


def utc(time: str) -> str:
    """mem0 writes UTC as +00:00."""
    return time[:-1] + "+00:00" if time.endswith("Z") else time


def change_dict(change: Mapping[str, Any]) -> Shape:
    """An entry of add()'s results with a model."""
    shape = {"id": change["id"], "memory": change["memory"], "event": change["event"]}
    if change["event"] == "UPDATE":
        shape["previous_memory"] = change.get("previous_memory")
    return shape


def verbatim_dict(change: Mapping[str, Any], message: Mapping[str, Any]) -> Shape:
    """An entry of add()'s results without a model."""
    told = {"id": change["id"], "memory": change["memory"], "event": "ADD"}
    return {**told, ACTOR: message.get("name") or None, ROLE: message["role"]}


def history_rows(versions: Sequence[Mapping[str, Any]], record: Mapping[str, Any] | None) -> list[Shape]:
    """history(): a row for each event. ``record``: the memory if it is still there, for what its metadata says."""
    kept: Mapping[str, Any] = {} if record is None else record["metadata"]
    first = versions[0]
    role = kept.get(ROLE, first["actor"] if first["reason"] == "verbatim" else None)
    created = utc(first["valid_from"])
    if isinstance(kept.get("created_at"), str):
        created = kept["created_at"]
    return [
        {
            "id": row_id(each),
            "memory_id": each["memory_id"],
            "old_memory": each["old_memory"],
            "new_memory": each["new_memory"],
            "event": each["event"],
            "created_at": created,
            "updated_at": utc(each["created_at"] if each["event"] == "DELETE" else each["valid_from"]),
            "is_deleted": each["is_deleted"],
            ACTOR: kept.get(ACTOR),
            ROLE: role,
        }
        for each in versions
    ]


def row_id(version: Mapping[str, Any]) -> str:
    """A UUID of its own for a row of the history, the same at every reading."""
    return str(uuid.uuid5(uuid.UUID(version["memory_id"]), version["id"]))
