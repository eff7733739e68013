"""The one border between dataclasses and mem0's JSON-able shapes; memory.py and the command line share it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from localmem.dates import to_iso
from localmem.store_read import DecisionRecord
from localmem.types import Change, Hit, Instant, MemoryRecord, Op, Scope, TurnRecord, VersionRecord

Shape = dict[str, Any]


class Results(dict[str, Any]):
    """A plain ``{"results": [...]}`` that also iterates over its hits, an older habit of mem0's users.

    keys(), items(), ``[]``, ``**``, ``==`` and json work as with any dict.
    """

    def __iter__(self) -> Iterator[Any]:
        return iter(self["results"])


def change_dict(change: Change) -> Shape:
    """An entry of add()'s results: id, memory, event, and previous_memory of an UPDATE or DELETE."""
    shape: Shape = {"id": change.id, "memory": change.text, "event": str(change.event)}
    if change.previous is not None and change.event is not Op.NOOP:
        shape["previous_memory"] = change.previous
    if change.contested:
        shape["contested"] = True
    return shape


def record_dict(record: MemoryRecord) -> Shape:
    """An entry of get() and get_all(): mem0's keys, then localmem's own."""
    shape: Shape = {
        "id": record.id,
        "memory": record.text,
        "hash": hashlib.md5(record.text.encode(), usedforsecurity=False).hexdigest(),
        "metadata": dict(record.metadata),
        "created_at": to_iso(record.created_at),
        "updated_at": to_iso(record.updated_at),
        **scope_dict(record.scope),
        "kind": str(record.kind),
        "actor": str(record.actor),
        "version": record.version,
        "valid_from": to_iso(record.valid_from),
    }
    if record.valid_to is not None:
        shape["valid_to"] = to_iso(record.valid_to)
    if record.expires_at is not None:
        shape["expires_at"] = to_iso(record.expires_at)
    if record.contested_with:
        shape["contested_with"] = list(record.contested_with)
    return shape


def hit_dict(hit: Hit, *, explain: bool = False) -> Shape:
    """An entry of search(): a memory, or a raw turn (``"turn": True``, no id), with its score in [0, 1]."""
    shape = record_dict(hit.record) if hit.record else _turn_dict(hit.turn, hit.text)
    shape["score"] = round(hit.score, 6)
    if hit.sources:
        shape["sources"] = [{"episode_id": episode, "message": position} for episode, position in hit.sources]
    if hit.superseded:
        shape["superseded"] = True
    if explain:
        shape["signals"] = dict(hit.signals)
    return shape


def _turn_dict(turn: TurnRecord | None, text: str) -> Shape:
    assert turn is not None
    return {
        "id": None,
        "memory": text,
        "turn": True,
        "state": turn.state,
        "episode_id": turn.episode_id,
        "message": turn.position,
        "role": turn.role,
        "metadata": {},
        "created_at": to_iso(turn.event_at),
        "updated_at": None,
        **scope_dict(turn.scope),
    }


def version_dict(version: VersionRecord) -> Shape:
    """An entry of history(): mem0's keys, then when it was true, why it changed and what supports it."""
    return {
        "id": f"{version.memory_id}:{version.version}:{version.event}",
        "memory_id": version.memory_id,
        "old_memory": version.previous,
        "new_memory": version.text or None,
        "event": str(version.event),
        "created_at": to_iso(version.recorded_at),
        "updated_at": to_iso(version.superseded_at) if version.superseded_at else None,
        "is_deleted": version.event is Op.DELETE,
        "version": version.version,
        "valid_from": to_iso(version.valid_from),
        "valid_to": _iso(version.valid_to),
        "reason": version.reason,
        "actor": str(version.actor),
        "evidence": [
            {
                "episode_id": e.episode_id,
                "message": e.message,
                "start": e.start,
                "end": e.end,
                "quote": e.quote,
                "said_at": to_iso(e.event_at),
                "kind": e.kind,
            }
            for e in version.evidence
        ],
    }


def decision_dict(decision: DecisionRecord) -> Shape:
    """An entry of decisions(): the decision log."""
    return {
        "id": decision.id,
        "episode_id": decision.episode_id,
        "fact": decision.fact,
        "quote": decision.quote,
        "op": str(decision.op),
        "targets": list(decision.targets),
        "text": decision.text,
        "confidence": decision.confidence,
        "probabilities": dict(decision.probabilities),
        "guards": list(decision.guards),
        "neighbours": [{"id": i, "version": v, "cosine": c} for i, v, c in decision.neighbours],
        "fingerprint": dict(decision.fingerprint),
        "reason": decision.reason,
        "unsupported": decision.unsupported,
        "at": to_iso(decision.at),
    }


def scope_dict(scope: Scope) -> Shape:
    """The ids that are set."""
    ids = {"user_id": scope.user_id, "agent_id": scope.agent_id, "run_id": scope.run_id}
    return {name: value for name, value in ids.items() if value is not None}


def _iso(instant: Instant | None) -> str | None:
    return None if instant is None else to_iso(instant)
