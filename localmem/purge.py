"""The erasing story: rows go in one transaction, the file is written anew, and what it holds then is proven.

1 select the rows, take needles of them, delete, prove that no row or index tells of them     one transaction
2 write the file anew without free pages, empty the WAL                 other connections are waited for
3 prove the structure, and seek the needles in the raw bytes
4 enter it in the audit chain, sign the certificate                                           one transaction
stopped between 1 and 4 -> the purge is `incomplete`; resume() goes on at 2 with the needles laid aside
"""

from __future__ import annotations

import glob
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmem import __version__, files, store_purge, store_queue
from localmem.dates import to_iso
from localmem.db import raw_file
from localmem.errors import LocalmemError, StorageError
from localmem.needles import Needles
from localmem.store_apply import new_id
from localmem.store_audit import FILE, GONE, Signer, Trail, key_id_of, ranges, settings_of, signature
from localmem.store_purge import Selection
from localmem.store_verify import hash_at

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.store import Store
    from localmem.types import Instant, Scope

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
    purge_id, counts = _delete(store, selection, clock())
    if purge_id is None:
        return Purged(None, {})
    reasons = {each.id: each.reason for each in finish(store, clock)}
    with store.snapshot() as tx:  # another program may have been faster
        [done] = [each for each in store_purge.purges(tx) if each["id"] == purge_id]
    reason = "" if done["certificate"] else done["reason"] or reasons.get(purge_id, "")
    return Purged(purge_id, counts, done["certificate"], reason)


def finish(store: Store, clock: Callable[[], Instant], *, without_raw: bool = False) -> list[Purged]:
    """Go on with every purge of the file that is incomplete.

    without_raw: also where the pieces to be sought are lost; the certificate says that the file was not searched.
    """
    with store.snapshot() as tx:
        waiting = store_purge.purges(tx, "incomplete")
    if not waiting:
        return []
    proofs: dict[str, dict[str, Any]] = {}
    try:
        reason = raw_file.compact(store.db)
        if not reason:
            proofs = _prove(store, waiting)
    except StorageError as error:  # the rows are gone all the same
        reason = str(error)
    if without_raw:
        for proof in proofs.values():
            proof["raw"]["waived"] = "pieces" not in proof["raw"]
    return [_ended(store, each, proofs.get(each["id"]), reason, clock()) for each in waiting]


def _ended(
    store: Store, waiting: Mapping[str, Any], proof: Mapping[str, Any] | None, reason: str, now: Instant
) -> Purged:
    try:
        return _end(store, waiting, proof, reason, now)
    except StorageError as error:  # nor can it be put down that it waits: it is put down that it was begun
        return Purged(waiting["id"], waiting["detail"]["counts"], None, reason or str(error))


# -------------------------------------------------------------------- 1 delete


def _delete(store: Store, selection: Selection, now: Instant) -> tuple[str | None, Mapping[str, int]]:
    """The purge's id, None when nothing is selected; and how many rows of which table."""
    purge_id, secret = new_id(now), secrets.token_bytes(32)
    aside = _aside(store, purge_id)
    try:
        with store.change(now) as (tx, trail):
            if not store_purge.select(tx, selection):
                return None, {}
            pieces, of = store_purge.needles(tx)
            sought = Needles.of(pieces, secret)
            _lay_aside(aside, sought)
            names = [trail.name(each) for each in selection.memories]
            gone = store_purge.text_entries(tx)
            counts = store_purge.erase(tx, now)
            left, terms = store_purge.traces(tx)
            if left:
                raise StorageError(f"the purge left {', '.join(left)}; nothing was changed, please report this")
            for each in selection.memories:
                trail.add("purge", subject=each)
            trail.add(
                "purge",
                owner=None if selection.scope is None else selection.scope.owner,
                detail={"what": selection.kind, "rows": counts, GONE: ranges(gone)},
            )
            unread = store_queue.queue(tx, selection.scope)
            detail = {
                "what": selection.kind,
                "scope": _named(trail, selection.scope),
                "memories": names,
                "counts": counts,
                "logical": {"ok": True, "terms_read": terms},
                "sampled_from": of,
                # a request to forget that is not read yet may mean what stays
                "pending_episodes": unread.waiting + unread.set_aside,
                "entry": trail.head.seq,
            }
            store_purge.note(tx, purge_id, now, detail, secret)
    except BaseException:
        if aside is not None and not _is_noted(store, purge_id):
            aside.unlink(missing_ok=True)
        raise
    return purge_id, counts


def _named(trail: Trail, scope: Scope | None) -> dict[str, str]:
    """The keyed hash of the owner, and of the ids by which it was narrowed."""
    if scope is None:
        return {}
    narrowed = {"agent_id": scope.agent_id, "run_id": scope.run_id}
    ids = {name: f"{name} {value}" for name, value in narrowed.items() if value is not None}
    return {name: trail.name(value) for name, value in {"owner": scope.owner, **ids}.items()}


def _is_noted(store: Store, purge_id: str) -> bool:
    """Whether the rows are gone in spite of an error: then what is to be sought must stay."""
    try:
        with store.snapshot() as tx:
            return any(each["id"] == purge_id for each in store_purge.purges(tx, "incomplete"))
    except LocalmemError:
        return True


def _aside(store: Store, purge_id: str) -> Path | None:
    """Where the needles of a purge lie until it is done: sealed with a secret that stands in the file."""
    return None if store.db.file is None else Path(f"{store.db.file}-purge-{purge_id}")


def _lay_aside(aside: Path | None, sought: Needles) -> None:
    if aside is None:
        return
    try:
        files.write_new(aside, sought.seal())
        files.sync_folder(aside.parent)
    except OSError as error:
        raise StorageError(f"{aside} can't be written: {error.strerror}; nothing was purged") from None


def _remove_stale(store: Store, tx: Any) -> None:
    """Needles that were laid aside for a purge that then didn't happen. Nobody else is purging at this moment."""
    if store.db.file is None:
        return
    begun = {_aside(store, each["id"]) for each in store_purge.purges(tx, "incomplete")}
    for each in asides(store.db.file):
        if each not in begun:
            each.unlink(missing_ok=True)


def asides(path: Path) -> list[Path]:
    """The files with needles that lie beside a store."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}-purge-*"))


# -------------------------------------------------------------------- 3 prove


def _prove(store: Store, waiting: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Structure and raw bytes, while nobody writes; by purge."""
    for _ in range(_STILL_TRIES):
        with raw_file.still(store.db) as tx:
            _remove_stale(store, tx)
            found = raw_file.structure(store.db, tx)
            if found.clean:
                return {each["id"]: {"structural": _told(found), "raw": _raw(store, tx, each)} for each in waiting}
        reason = raw_file.compact(store.db)  # somebody wrote in between
        if reason:
            break
    return {each["id"]: {"structural": _told(found), "raw": {"ok": False}} for each in waiting}


def _told(found: raw_file.Structure) -> dict[str, Any]:
    return {
        "ok": found.clean,
        "free_pages": found.free_pages,
        "wal_bytes": found.wal_bytes,
        "journals": list(found.journals),
        "leftovers": list(found.leftovers),
    }


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
        "of_records": waiting["detail"]["sampled_from"],
        "found": len(left),
        "still_said_elsewhere": len(shared),
    }


# -------------------------------------------------------------------- 4 certify


def _end(
    store: Store, waiting: Mapping[str, Any], proof: Mapping[str, Any] | None, reason: str, now: Instant
) -> Purged:
    detail, purge_id = waiting["detail"], waiting["id"]
    proven = (
        proof is not None and proof["structural"]["ok"] and (proof["raw"]["ok"] or proof["raw"].get("waived", False))
    )
    with store.change(now) as (tx, trail):
        there = store_purge.certificate_of(tx, purge_id)
        if there is not None:  # another program was faster
            return Purged(purge_id, detail["counts"], there)
        if proof is None or not proven:
            why = reason or _what_failed(proof)
            trail.add("purge_incomplete", detail={"purge": detail["entry"]})
            store_purge.note_reason(tx, purge_id, why)
            return Purged(purge_id, detail["counts"], None, why)
        trail.add("purge_done", detail={"purge": detail["entry"]})
        certificate = {
            "certificate": "localmem purge",
            "version": 1,
            "id": purge_id,
            "file": trail.file_id,
            "software": f"localmem {__version__}",
            "requested_at": to_iso(waiting["at"]),
            "completed_at": to_iso(now),
            "what": {name: detail[name] for name in ("what", "scope", "memories")},
            "rows": detail["counts"],
            "pending_episodes": detail["pending_episodes"],
            "logical": detail["logical"],
            **proof,
            "chain": {"purge": detail["entry"], "done": trail.head.seq, "head": trail.head.hash.hex()},
            "limits": LIMITS,
            "key_id": trail.key_id,
        }
        certificate["mac"] = trail.signed("certificate", _canonical(certificate)).hex()
        store_purge.note_done(tx, purge_id, certificate)
    aside = _aside(store, purge_id)
    if aside is not None:
        aside.unlink(missing_ok=True)
    raw_file.settle(store.db)  # the secret of the pieces was in the row
    return Purged(purge_id, detail["counts"], certificate)


def _what_failed(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return "it was not proven"
    if not proof["structural"]["ok"]:
        found = proof["structural"]
        copies = f"; a rekeying left {', '.join(found['leftovers'])}: delete it" if found["leftovers"] else ""
        return (
            f"there are {found['free_pages']} free pages, {found['wal_bytes']} bytes of WAL and "
            f"{len(found['journals'])} journals, as other programs keep writing{copies}"
        )
    return proof["raw"].get("note") or f"{proof['raw']['found']} pieces of what was purged are still in the file"


def doubts(tx: Tx, signer: Signer, certificate: Mapping[str, Any]) -> list[str]:
    """What speaks against a certificate, as sentences; [] for one of this file that is as it was signed."""
    settings = settings_of(tx)
    if not settings.get(FILE) or certificate.get("file") != settings[FILE]:
        return ["it is not a certificate of this file"]
    found = []
    body = {name: value for name, value in certificate.items() if name != "mac"}
    secret = signer.secret(bytes.fromhex(settings[FILE]))
    if certificate.get("key_id") != key_id_of(secret):
        found.append(f"it is signed with the key {certificate.get('key_id') or '(none)'}, another one was given")
    elif not _is_genuine(body, secret, certificate.get("mac")):
        found.append("it was changed after it was signed")
    chain = certificate.get("chain")
    place = chain if isinstance(chain, Mapping) and isinstance(chain.get("done"), int) else {"done": 0}
    if place.get("head") is None or hash_at(tx, place["done"], "purge_done") != place["head"]:
        found.append("the audit chain has no entry of it, or was changed before that")
    return found


def _is_genuine(body: Mapping[str, Any], secret: bytes | None, mac: Any) -> bool:
    try:
        expected = signature(secret, "certificate", _canonical(body)).hex()
    except (TypeError, ValueError, RecursionError):
        return False
    return hmac.compare_digest(expected.encode(), str(mac).encode("utf-8", "replace"))


def _canonical(body: Mapping[str, Any]) -> bytes:
    """32 bytes that stand for a certificate. TypeError or ValueError for what JSON doesn't know."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).digest()
