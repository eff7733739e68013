"""The erasing story: rows go in one transaction, the file is written anew, and what it holds then is proven.

1 select the rows, take needles of them, delete, prove that no row or index tells of them     one transaction
2 write the file anew without free pages, empty the WAL                 other connections are waited for
3 prove the structure, and seek the needles in the raw bytes
4 enter it in the audit chain, sign the certificate                                           one transaction
stopped between 1 and 4 -> the purge is `incomplete`; resume() goes on at 2 with the needles laid aside
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmem import __version__, store_purge
from localmem.dates import to_iso
from localmem.db import raw_file
from localmem.errors import StorageError
from localmem.needles import Needles
from localmem.store import settings_of
from localmem.store_apply import new_id
from localmem.store_audit import TEXTS_GONE, Signer, key_id_of, mac_of
from localmem.store_purge import Selection
from localmem.store_verify import has_entry

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.store import Store
    from localmem.types import Instant

LIMITS = (
    "Proven for this file and its side files (-wal, -shm, -journal), at this moment. Not for backups, exports and "
    "copies, snapshots and journals of the file system, swap and memory of running programs, or cells that a flash "
    "disk has set aside. Texts of fewer than 8 bytes and what stands between the pieces sought can't be told from "
    "other bytes of the file; the proof for them is that no row holds them and no page of before is left."
)
_STILL_TRIES = 5


@dataclass(frozen=True, slots=True)
class Purged:
    """What one purge came to. ``certificate`` None: there was nothing, or it is incomplete, for ``reason``."""

    id: str | None
    counts: Mapping[str, int]
    certificate: Mapping[str, Any] | None = None
    reason: str = ""


def purge(store: Store, selection: Selection, clock: Callable[[], Instant]) -> Purged:
    """Erase a selection. What was committed is gone from every row and index; see `finish` for the file itself."""
    purge_id = _delete(store, selection, clock())
    if purge_id is None:
        return Purged(None, {})
    return next(each for each in finish(store, clock) if each.id == purge_id)


def finish(store: Store, clock: Callable[[], Instant]) -> list[Purged]:
    """Go on with every purge of the file that is incomplete."""
    with store.snapshot() as tx:
        waiting = store_purge.purges(tx, "incomplete")
    if not waiting:
        return []
    reason = raw_file.compact(store.db)
    proofs = {} if reason else _prove(store, waiting)
    return [_end(store, each, proofs.get(each["id"]), reason, clock()) for each in waiting]


# -------------------------------------------------------------------- 1 delete


def _delete(store: Store, selection: Selection, now: Instant) -> str | None:
    """The purge's id; None when nothing is selected."""
    purge_id, secret = new_id(now), secrets.token_bytes(32)
    aside = _aside(store, purge_id)
    try:
        with store.change(now) as (tx, trail):
            if not store_purge.select(tx, selection):
                return None
            sought = Needles.of(store_purge.needles(tx), secret)
            _lay_aside(aside, sought)
            names = [trail.name(each) for each in selection.memories]
            owner = None if selection.scope is None else trail.name(selection.scope.owner)
            gone = store_purge.texts(tx)
            counts = store_purge.erase(tx, now)
            left, terms = store_purge.traces(tx)
            if left:
                raise StorageError(f"the purge left {', '.join(left)}; nothing was changed, please report this")
            for each in selection.memories:
                trail.add("purge", subject=each)
            trail.add(
                "purge",
                owner=None if selection.scope is None else selection.scope.owner,
                detail={"what": selection.kind, TEXTS_GONE: gone, **counts},
            )
            detail = {
                "what": selection.kind,
                "owner": owner,
                "memories": names,
                "counts": counts,
                "logical": {"ok": True, "terms_read": terms},
                "entry": trail.head.seq,
            }
            store_purge.note(tx, purge_id, now, detail, secret)
    except BaseException:
        aside.unlink(missing_ok=True) if aside else None
        raise
    return purge_id


def _aside(store: Store, purge_id: str) -> Path | None:
    """Where the needles of a purge lie until it is done: sealed with a secret that stands in the file."""
    return None if store.db.path is None else Path(f"{store.db.path}-purge-{purge_id}")


def _lay_aside(aside: Path | None, sought: Needles) -> None:
    if aside is None:
        return
    try:
        with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(sought.seal())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{aside} can't be written: {error.strerror}; nothing was purged") from None


# -------------------------------------------------------------------- 3 prove


def _prove(store: Store, waiting: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Structure and raw bytes, while nobody writes; by purge."""
    for _ in range(_STILL_TRIES):
        with raw_file.still(store.db) as tx:
            found = raw_file.structure(store.db, tx)
            if found.clean:
                structure = {"ok": True, "free_pages": 0, "wal_bytes": 0, "journals": [], "leftovers": []}
                return {each["id"]: {"structural": structure, "raw": _raw(store, tx, each)} for each in waiting}
        reason = raw_file.compact(store.db)  # somebody wrote in between
        if reason:
            break
    structure = {
        "ok": False,
        "free_pages": found.free_pages,
        "wal_bytes": found.wal_bytes,
        "journals": list(found.journals),
        "leftovers": list(found.leftovers),
    }
    return {each["id"]: {"structural": structure, "raw": {"ok": False}} for each in waiting}


def _raw(store: Store, tx: Any, waiting: Mapping[str, Any]) -> dict[str, Any]:
    """Seek the needles of one purge in the bytes of the file."""
    aside = _aside(store, waiting["id"])
    if aside is None:
        return {"ok": True, "read": [], "note": "a memory-only store has no file"}
    try:
        sought = Needles.open(aside.read_bytes(), waiting["secret"])
    except (OSError, ValueError):
        return {"ok": False, "note": "the pieces to be sought are lost; the file could not be searched for them"}
    hits: set[bytes] = set()
    read = []
    for name, reading, size in raw_file.scans(store.db):
        hits |= sought.scan(reading, size)
        read.append({"what": name, "bytes": size})
    shared = hits & store_purge.still_said(tx, sought) if hits else set()
    left = hits - shared
    return {
        "ok": not left,
        "read": read,
        "pieces": len(sought),
        "records": sought.records_count,
        "found": len(left),
        "still_said_elsewhere": len(shared),
    }


# -------------------------------------------------------------------- 4 certify


def _end(
    store: Store, waiting: Mapping[str, Any], proof: Mapping[str, Any] | None, reason: str, now: Instant
) -> Purged:
    detail, purge_id = waiting["detail"], waiting["id"]
    if proof is None or not (proof["structural"]["ok"] and proof["raw"]["ok"]):
        why = reason or _what_failed(proof)
        with store.change(now) as (tx, trail):
            trail.add("purge_incomplete", detail={"purge": detail["entry"]})
            store_purge.note_reason(tx, purge_id, why)
        return Purged(purge_id, detail["counts"], None, why)
    with store.change(now) as (tx, trail):
        trail.add("purge_done", detail={"purge": detail["entry"]})
        certificate = {
            "certificate": "localmem purge",
            "version": 1,
            "id": purge_id,
            "file": trail.file_id,
            "software": f"localmem {__version__}",
            "requested_at": to_iso(waiting["at"]),
            "completed_at": to_iso(now),
            "what": {name: detail[name] for name in ("what", "owner", "memories")},
            "rows": detail["counts"],
            "logical": detail["logical"],
            **proof,
            "chain": {"purge": detail["entry"], "done": trail.head.seq, "head": trail.head.hash.hex()},
            "limits": LIMITS,
            "key_id": trail.key_id,
        }
        certificate["mac"] = trail.signed(_canonical(certificate)).hex()
        store_purge.note_done(tx, purge_id, certificate)
    aside = _aside(store, purge_id)
    if aside is not None:
        aside.unlink(missing_ok=True)
    return Purged(purge_id, detail["counts"], certificate)


def _what_failed(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return "it was not proven"
    if not proof["structural"]["ok"]:
        found = proof["structural"]
        return (
            f"there are {found['free_pages']} free pages, {found['wal_bytes']} bytes of WAL, {len(found['journals'])} "
            f"journals and {len(found['leftovers'])} copies that a rekeying left: other programs kept writing"
        )
    return proof["raw"].get("note") or f"{proof['raw']['found']} pieces of what was purged are still in the file"


def doubts(tx: Tx, signer: Signer, certificate: Mapping[str, Any]) -> list[str]:
    """What speaks against a certificate, as sentences; [] for one of this file that is as it was signed."""
    settings = settings_of(tx)
    if certificate.get("file") != settings["file_id"]:
        return ["it is not a certificate of this file"]
    found = []
    body = {name: value for name, value in certificate.items() if name != "mac"}
    secret = signer.secret(bytes.fromhex(settings["file_id"]))
    if certificate.get("key_id") != key_id_of(secret):
        found.append(f"it is signed with the key {certificate.get('key_id') or '(none)'}, another one was given")
    elif not hmac.compare_digest(mac_of(secret, _canonical(body)).hex(), str(certificate.get("mac"))):
        found.append("it was changed after it was signed")
    chain = certificate.get("chain")
    if not isinstance(chain, Mapping) or not has_entry(tx, chain.get("done"), "purge_done"):
        found.append("the audit chain has no entry of it")
    return found


def _canonical(body: Mapping[str, Any]) -> bytes:
    """32 bytes that stand for a certificate."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).digest()
