"""Everything the file holds of a scope, for a request of access: also what no search shows any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from localmem.dates import to_iso
from localmem.store_pools import scope_ids, within

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Instant, Scope


def export(tx: Tx, scope: Scope) -> Iterator[dict[str, Any]]:
    """Records of kind "memory" (with every version and what it was said in), "episode" (with its messages), and
    "decision", each kind in the order of recording. Times are ISO 8601."""
    ids = scope_ids(scope)
    yield from _memories(tx, ids)
    yield from _episodes(tx, ids)
    yield from _decisions(tx, ids)


def _memories(tx: Tx, ids: tuple[str | None, ...]) -> Iterator[dict[str, Any]]:
    rows = tx.execute(
        "select id, user_id, agent_id, run_id, kind, actor, metadata, created_at, expires_at, deleted_at, "
        f"delete_reason from memory m where {within('m')} order by seq",
        ids,
    ).fetchall()
    for memory_id, user, agent, run, kind, actor, metadata, created, expires, deleted, reason in rows:
        yield {
            "record": "memory",
            "id": memory_id,
            "user_id": user,
            "agent_id": agent,
            "run_id": run,
            "kind": kind,
            "said_by": actor,
            "metadata": json.loads(metadata),
            "created_at": to_iso(created),
            "expires_at": _iso(expires),
            "deleted_at": _iso(deleted),
            "delete_reason": reason,
            "versions": list(_versions(tx, memory_id)),
        }


def _versions(tx: Tx, memory_id: str) -> Iterator[dict[str, Any]]:
    rows = tx.execute(
        "select id, number, text, valid_from, valid_to, recorded_at, superseded_at, reason from version "
        "where memory_id = ? order by number",
        (memory_id,),
    ).fetchall()
    for row, number, text, valid_from, valid_to, recorded, superseded, reason in rows:
        said = tx.execute(
            "select t.episode_id, t.position from evidence e join message t on t.id = e.message_id "
            "where e.version_id = ? order by t.id",
            (row,),
        )
        yield {
            "version": number,
            "memory": text,
            "valid_from": to_iso(valid_from),
            "valid_to": _iso(valid_to),
            "recorded_at": to_iso(recorded),
            "superseded_at": _iso(superseded),
            "reason": reason,
            "said_in": [{"episode_id": episode, "message": position} for episode, position in said],
        }


def _episodes(tx: Tx, ids: tuple[str | None, ...]) -> Iterator[dict[str, Any]]:
    rows = tx.execute(
        "select id, user_id, agent_id, run_id, event_at, recorded_at, state, metadata from episode e "
        f"where {within('e')} order by seq",
        ids,
    ).fetchall()
    for episode_id, user, agent, run, event_at, recorded, state, metadata in rows:
        messages = tx.execute(
            "select position, role, name, content, suppressed_at, dropped_at from message where episode_id = ? "
            "order by position",
            (episode_id,),
        )
        yield {
            "record": "episode",
            "id": episode_id,
            "user_id": user,
            "agent_id": agent,
            "run_id": run,
            "said_at": to_iso(event_at),
            "recorded_at": to_iso(recorded),
            "state": state,
            "metadata": json.loads(metadata),
            "messages": [
                {
                    "message": position,
                    "role": role,
                    "name": name,
                    "content": content,
                    "taken_back_at": _iso(suppressed),
                    "not_kept_since": _iso(dropped),
                }
                for position, role, name, content, suppressed, dropped in messages
            ],
        }


def _decisions(tx: Tx, ids: tuple[str | None, ...]) -> Iterator[dict[str, Any]]:
    rows = tx.execute(
        "select d.id, d.episode_id, d.message, d.op, d.fact, d.quote, d.text, d.targets, d.confidence, d.reason, "
        "d.unsupported, d.at from decision d join episode e on e.id = d.episode_id "
        f"where {within('e')} order by d.id",
        ids,
    )
    for row, episode_id, message, op, fact, quote, text, targets, confidence, reason, unsupported, at in rows:
        yield {
            "record": "decision",
            "id": row,
            "episode_id": episode_id,
            "message": message,
            "operation": op,
            "fact": fact,
            "quote": quote,
            "text": text,
            "memories": json.loads(targets),
            "confidence": confidence,
            "reason": reason,
            "kept_out": bool(unsupported),
            "at": to_iso(at),
        }


def _iso(at: Instant | None) -> str | None:
    return None if at is None else to_iso(at)
