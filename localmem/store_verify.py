"""The audit chain read again: is every entry there, unchanged and signed, and are the texts those it commits to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from localmem.store_audit import (
    START,
    TEXT_OPS,
    TEXTS,
    TEXTS_GONE,
    Entry,
    Signer,
    commitment_of,
    head_of,
    key_id_of,
    mac_of,
    names_key,
)
from localmem.store_audit import name_of as hashed_name

if TYPE_CHECKING:
    from localmem.db import Tx

_COLUMNS = "seq, at, actor, op, owner, subject, decision_id, commitment, detail, mac"


@dataclass(slots=True)
class Verdict:
    """What verifying came to. ``problems``: sentences, none where all is well."""

    problems: list[str] = field(default_factory=list)
    entries: int = 0
    signed: int = 0  # the last so many entries are signed with the key given, and vouch for those before
    key_id: str = ""  # of the key that the chain is signed with; "": none, the macs are a checksum
    key_given: bool = False
    head: str = ""  # H of the last entry, hex
    texts: int = 0  # texts compared with what the chain commits to
    checkpoints: int = 0  # lines of the checkpoint file that agree


def verify(tx: Tx, signer: Signer, checkpoint: Sequence[str] = ()) -> Verdict:
    """Read the whole chain. ``checkpoint``: the lines of an external checkpoint file."""
    settings = dict(tx.execute("select name, value from setting").fetchall())
    if "file_id" not in settings:
        return Verdict(["the file has no audit chain"])
    file_id = bytes.fromhex(settings["file_id"])
    secret = signer.secret(file_id)
    verdict = Verdict(key_id=settings.get("audit_key", ""), key_given=secret is not None)
    marks = _marks(checkpoint, verdict)
    hashes = _walk(tx, secret, verdict, {mark["seq"] for mark in marks})
    ends = head_of(settings)
    if (ends.seq, ends.hash.hex()) != (verdict.entries, verdict.head):
        verdict.problems.append(
            f"the file says that its chain ends at entry {ends.seq}; what is there ends at entry {verdict.entries}"
            + (" with another hash" if ends.seq == verdict.entries else "")
        )
    _compare_marks(marks, hashes, verdict)
    _compare_texts(tx, verdict)
    _compare_deleted(tx, signer, file_id, verdict)
    return verdict


def _walk(tx: Tx, secret: bytes | None, verdict: Verdict, wanted: set[int]) -> dict[int, str]:
    """Go through the entries; H of those wanted."""
    start = _first_signed(tx, key_id_of(secret))
    if start is None and secret is not None:
        verdict.problems.append("no entry of the chain is signed with the key given")
    hashed, expected, broken, hashes = START, 1, False, {}
    for *fields, mac in tx.execute(f"select {_COLUMNS} from audit order by seq"):
        entry = Entry(*fields)
        if entry.seq != expected and not broken:
            names = f"{expected} to {entry.seq - 1} are" if entry.seq - expected > 1 else f"{expected} is"
            verdict.problems.append(f"entry {names} missing")
            broken = True
        hashed, expected = entry.after(hashed), entry.seq + 1
        if entry.seq in wanted:
            hashes[entry.seq] = hashed.hex()
        verdict.entries = entry.seq
        if broken or start is None or entry.seq < start or (secret is None and verdict.key_id):
            continue
        if mac != mac_of(secret, hashed):
            which = f"entry {entry.seq}" if entry.seq == 1 or entry.seq > start else f"one of the entries 1 to {start}"
            verdict.problems.append(f"{which} was changed, put in or moved; it and all after it can't be trusted")
            broken = True
        elif secret is not None:
            verdict.signed += 1
    verdict.head = hashed.hex()
    return hashes


def _first_signed(tx: Tx, key_id: str) -> int | None:
    """Where the last run of entries begins that are signed with this key ("": none): macs before it are of others."""
    [(seq,)] = tx.execute(
        "select max(seq) from audit where op in ('begin', 'key') and json_valid(detail) and detail ->> 'key' = ?",
        (key_id,),
    ).fetchall()
    return None if seq is None else int(seq)


def _marks(lines: Sequence[str], verdict: Verdict) -> list[dict[str, Any]]:
    marks = []
    for number, line in enumerate(lines, 1):
        try:
            mark = json.loads(line)
            marks.append({"seq": int(mark["seq"]), "head": str(mark["head"]), "at": str(mark["at"])})
        except (ValueError, KeyError, TypeError):
            verdict.problems.append(f"line {number} of the checkpoint file can't be read")
    return marks


def _compare_marks(marks: Sequence[dict[str, Any]], hashes: dict[int, str], verdict: Verdict) -> None:
    beyond = [mark for mark in marks if mark["seq"] > verdict.entries]
    if beyond:
        last = max(beyond, key=lambda mark: int(mark["seq"]))
        verdict.problems.append(
            f"the checkpoint file knows entry {last['seq']} of {last['at']}, the chain ends at entry "
            f"{verdict.entries}: its end was cut off, or an older copy of the file was put back"
        )
    for mark in marks:
        if mark["seq"] <= verdict.entries and hashes.get(mark["seq"]) != mark["head"]:
            verdict.problems.append(f"the chain up to entry {mark['seq']} is not the one of the checkpoint file")
            return
    verdict.checkpoints = len(marks) - len(beyond)


# -------------------------------------------------------------------- texts


def _compare_texts(tx: Tx, verdict: Verdict) -> None:
    """Every text must be one that the chain commits to; every commitment stands for a text, or for one that a later
    entry took out."""
    promised = Counter(
        commitment
        for (commitment,) in tx.execute(
            f"select commitment from audit where op in ({', '.join('?' * len(TEXT_OPS))})", TEXT_OPS
        )
    )
    for name, commitment in _texts(tx):
        if commitment is None:
            verdict.problems.append(f"{name} is not in the chain: it was put in by another program")
        elif not promised[commitment]:
            verdict.problems.append(f"the text of {name} is not the one that was recorded")
        else:
            promised[commitment] -= 1
            verdict.texts += 1
    missing, gone = sum(promised.values()), _gone(tx)
    if missing != gone:
        verdict.problems.append(
            f"{missing} texts that were recorded are not there any more; the chain tells of {gone} that were taken out"
        )


def _texts(tx: Tx) -> Iterator[tuple[str, bytes | None]]:
    """(what it is, its commitment; None without a salt) of every text in the file."""
    for table, (kind, part) in {"version": ("memory", "version"), "message": ("episode", "message")}.items():
        for _, salt, owner, subject, number, text in tx.execute(TEXTS[table]):
            commitment = None if salt is None else commitment_of(salt, owner, subject, number, text)
            yield f"{kind} {subject}, {part} {number}", commitment


def _compare_deleted(tx: Tx, signer: Signer, file_id: bytes, verdict: Verdict) -> None:
    """A memory is deleted where the chain says so, and only there. Without the key that names memories in the chain,
    nothing can be said of it."""
    if verdict.key_id and not verdict.key_given:
        return
    keys = [names_key(signer, file_id), names_key(Signer(), file_id)]
    entered = {subject for (subject,) in tx.execute("select subject from audit where op = 'delete'")}
    for memory_id, deleted in tx.execute("select id, deleted_at is not null from memory"):
        told = any(hashed_name(key, memory_id) in entered for key in keys)
        if told and not deleted:
            verdict.problems.append(f"memory {memory_id} was deleted, and is there again")
        elif deleted and not told:
            verdict.problems.append(f"memory {memory_id} was deleted by another program")


def _gone(tx: Tx) -> int:
    [(gone,)] = tx.execute(
        f"select coalesce(sum(detail ->> '{TEXTS_GONE}'), 0) from audit where json_valid(detail)"
    ).fetchall()
    return int(gone)


# -------------------------------------------------------------------- reading


def entries(tx: Tx, signer: Signer, owner: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The chain as dicts, oldest first; of one owner's token, or all."""
    settings = dict(tx.execute("select name, value from setting").fetchall())
    file_id = bytes.fromhex(settings["file_id"])
    keys = {names_key(signer, file_id), names_key(Signer(), file_id)}  # before a key was given, and since
    names = [hashed_name(key, owner).hex() for key in keys] if owner is not None else None
    for *fields, mac in tx.execute(
        f"select {_COLUMNS} from audit where ?1 is null or hex(owner) in "
        "(select upper(value) from json_each(?1)) order by seq limit ?2",
        (None if names is None else json.dumps(names), -1 if limit is None else limit),
    ):
        entry = Entry(*fields)
        yield {
            "seq": entry.seq,
            "at": entry.at,
            "actor": entry.actor,
            "op": entry.op,
            "owner": None if entry.owner is None else entry.owner.hex(),
            "subject": None if entry.subject is None else entry.subject.hex(),
            "decision_id": entry.decision_id,
            "commitment": None if entry.commitment is None else entry.commitment.hex(),
            "detail": _read(entry.detail),
            "mac": mac.hex(),
        }


def has_entry(tx: Tx, seq: Any, op: str) -> bool:
    """Whether the chain has this operation at this place."""
    return tx.execute("select 1 from audit where seq = ? and op = ?", (str(seq), op)).fetchone() is not None


def _read(detail: str | None) -> Any:
    try:
        return json.loads(detail or "{}")
    except ValueError:  # somebody wrote into it; verify() says so
        return detail
