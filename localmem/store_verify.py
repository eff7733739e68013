"""The audit chain read again: is every entry there, unchanged and signed, and are the texts those it commits to.

Whatever stands in the file, reading it ends with sentences: text columns are read as bytes, numbers are looked at.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from localmem.errors import KeyRefusedError
from localmem.store_audit import (
    FILE,
    GONE,
    KEY,
    NAMES,
    SALT_BYTES,
    START,
    TEXT_OPS,
    Entry,
    Signer,
    head_of,
    key_id_of,
    mac_of,
    mark_mac,
    names_id,
    names_secret,
    read_texts,
    settings_of,
)
from localmem.store_audit import name_of as hashed_name

if TYPE_CHECKING:
    from localmem.db import Tx

_ENTRIES = (
    "select seq, cast(at as integer), cast(actor as blob), cast(op as blob), cast(owner as blob), "
    "cast(subject as blob), cast(decision_id as integer), cast(commitment as blob), cast(detail as blob), "
    "cast(mac as blob) from audit"
)


@dataclass(slots=True)
class Verdict:
    """What verifying came to. ``problems``: sentences, none where all is well."""

    problems: list[str] = field(default_factory=list)
    entries: int = 0
    signed: int = 0  # the last so many entries are signed with the key given, and vouch for those before
    key_id: str = ""  # of the key that the chain is signed with; "": none, the macs are a checksum
    key_given: bool = False
    head: str = START.hex()  # H of the last entry, hex
    texts: int = 0  # texts compared with what the chain commits to
    checkpoints: int = 0  # lines of the checkpoint file that agree


@dataclass(slots=True)
class _Read:
    """What the entries came to say, in their order."""

    hashes: dict[int, str] = field(default_factory=dict)  # H of the entries asked for
    texts: dict[int, tuple[str, bytes | None]] = field(default_factory=dict)  # entry -> op, commitment
    gone: list[tuple[int, int]] = field(default_factory=list)  # entries whose texts were taken out, as ranges
    deleted: set[bytes | None] = field(default_factory=set)  # subjects
    settings: dict[str, str] = field(default_factory=dict)


def verify(tx: Tx, signer: Signer, checkpoint: Sequence[str] | None = None) -> Verdict:
    """Read the whole chain. ``checkpoint``: the lines of an external checkpoint file, None without one."""
    settings = settings_of(tx)
    try:
        file_id, ends = bytes.fromhex(settings[FILE]), head_of(settings)
        names_secret(signer, settings)
    except (KeyError, ValueError):
        return Verdict(["the file has no audit chain, or its settings were changed by another program"])
    secret = signer.secret(file_id)
    verdict = Verdict(key_id=settings.get(KEY, ""), key_given=secret is not None)
    marks = _marks(checkpoint, settings[FILE], secret, verdict)
    read = _walk(tx, secret, verdict, {mark["seq"] for mark in marks})
    if (ends.seq, ends.hash.hex()) != (verdict.entries, verdict.head):
        verdict.problems.append(
            f"the file says that its chain ends at entry {ends.seq}; what is there ends at entry {verdict.entries}"
            + (" with another hash" if ends.seq == verdict.entries else "")
        )
    _compare_settings(settings, signer, read, verdict)
    _compare_marks(marks, read.hashes, verdict)
    _compare_texts(tx, read, verdict)
    _compare_deleted(tx, signer, settings, read, verdict)
    return verdict


# -------------------------------------------------------------------- entries


def _walk(tx: Tx, secret: bytes | None, verdict: Verdict, wanted: set[int]) -> _Read:
    """Go through the entries. Those after a "begin" or "key" entry that names the key given, and is signed with it,
    must be signed too; macs of other keys can't be looked at, but what they covered is covered by those that come."""
    own, read = key_id_of(secret), _Read()
    hashed, expected, signing, broken = START, 1, False, False

    def wrong(sentence: str) -> None:
        nonlocal broken
        if not broken:
            verdict.problems.append(sentence)
        broken = True

    for seq, *fields, mac in tx.execute(f"{_ENTRIES} order by seq"):
        if seq != expected:
            names = f"entry {expected} is" if seq - expected == 1 else f"entries {expected} to {seq - 1} are"
            wrong(f"{names} missing")
        entry, expected = _entry(seq, fields), seq + 1
        verdict.entries = seq
        if entry is None:
            wrong(f"entry {seq} was changed: it can't be read")
            continue
        hashed = entry.after(hashed)
        if seq in wanted:
            read.hashes[seq] = hashed.hex()
        detail = _told(entry)
        _note(read, entry, detail)
        genuine = mac == mac_of(secret, hashed)
        if entry.op in ("begin", "key"):
            claims = detail.get("key") == own
            if claims and not genuine:
                first = seq if signing or seq == 1 else 1
                which = f"entry {seq}" if first == seq else f"one of the entries 1 to {seq}"
                wrong(f"{which} was changed, put in or moved; it and all after it can't be trusted")
            signing, verdict.signed = claims, 0
        elif signing and not genuine:
            wrong(f"entry {seq} was changed, put in or moved; it and all after it can't be trusted")
        verdict.signed += signing and not broken and secret is not None
    verdict.head = hashed.hex()
    if secret is not None and not signing:
        verdict.problems.append("the end of the chain is not signed with the key given")
    return read


def _entry(seq: int, fields: Sequence[Any]) -> Entry | None:
    at, actor, op, owner, subject, decision_id, commitment, detail = fields
    try:
        texts = [None if each is None else each.decode() for each in (actor, op, detail)]
        return Entry(seq, at, str(texts[0]), str(texts[1]), owner, subject, decision_id, commitment, texts[2])
    except (UnicodeDecodeError, AttributeError, TypeError, ValueError):
        return None


def _told(entry: Entry) -> Mapping[str, Any]:
    try:
        detail = json.loads(entry.detail or "{}")
    except (ValueError, RecursionError):
        return {}
    return detail if isinstance(detail, dict) else {}


_ENTERED = {"key": KEY, "file": FILE, "names": NAMES, "retention": "retention", "on": "audit_reads"}  # settings


def _note(read: _Read, entry: Entry, detail: Mapping[str, Any]) -> None:
    if entry.op in TEXT_OPS:
        read.texts[entry.seq] = (entry.op, entry.commitment)
    elif entry.op == "delete":
        read.deleted.add(entry.subject)
    if entry.op in ("begin", "key", "retention", "audit_reads"):
        for name, setting in (
            ("key", KEY),
            ("file", FILE),
            ("names", NAMES),
            ("retention", "retention"),
            ("on", "audit_reads"),
        ):
            if name in detail:
                value = detail[name]
                read.settings[setting] = str(int(value)) if isinstance(value, bool) else str(value)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        for each in detail.get(GONE, ()):
            first, last = each if isinstance(each, list) else (each, each)
            read.gone.append((int(first), min(int(last), entry.seq)))


def _is_gone(ranges: Sequence[tuple[int, int]], seq: int) -> bool:
    """ranges: in order, none within another."""
    place = bisect.bisect_right(ranges, (seq, sys.maxsize)) - 1
    return place >= 0 and ranges[place][0] <= seq <= ranges[place][1]


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        elif first <= last:
            found.append((first, last))
    return found


def _compare_settings(settings: Mapping[str, str], signer: Signer, read: _Read, verdict: Verdict) -> None:
    """What the file says of itself must be what was entered last."""
    for name, usual in ((KEY, ""), (FILE, ""), (NAMES, ""), ("retention", "all"), ("audit_reads", "0")):
        said, entered = settings.get(name, usual), read.settings.get(name, usual)
        if name == NAMES:
            given = key_id_of(signer.secret(bytes.fromhex(settings[FILE]))) == settings.get(KEY, "")
            secret = names_secret(signer, settings)
            if settings.get(KEY, "") and (secret is None or not given):
                continue  # it stands under a key that was not given
            said = "under a key" if secret is None else names_id(secret)
        if said != entered:
            verdict.problems.append(f"the setting {name} was changed by another program: it was {entered or 'empty'}")


# -------------------------------------------------------------------- the checkpoint file


def _marks(lines: Sequence[str] | None, file_id: str, secret: bytes | None, verdict: Verdict) -> list[dict[str, Any]]:
    """The lines that are of this file."""
    marks = []
    for number, line in enumerate(lines or (), 1):
        try:
            mark = json.loads(line)
            found = {"file": mark["file"], "seq": int(mark["seq"]), "at": str(mark["at"]), "head": str(mark["head"])}
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            if line.startswith('{"file": ') and not line.endswith("}"):
                continue  # torn by a power cut, before its change was told to be stored
            verdict.problems.append(f"line {number} of the checkpoint file can't be read")
            continue
        if found["file"] != file_id:
            continue
        if mark.get("key") == key_id_of(secret) and mark.get("mac") != mark_mac(secret, found):
            verdict.problems.append(f"line {number} of the checkpoint file was changed")
        marks.append(found)
    if lines is not None and not marks:
        verdict.problems.append("the checkpoint file has no line of this file")
    return marks


def _compare_marks(marks: Sequence[dict[str, Any]], hashes: Mapping[int, str], verdict: Verdict) -> None:
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


def _compare_texts(tx: Tx, read: _Read, verdict: Verdict) -> None:
    """Every text must be the one that its entry commits to; every such entry has its text, or a later entry that took
    it out."""
    seen: dict[int, str] = {}
    gone = _merged(read.gone)
    for table, (kind, part) in {"version": ("memory", "version"), "message": ("episode", "message")}.items():
        for _, entry, salt, text in read_texts(tx, table):
            name = f"{kind} {text.subject}, {part} {text.number}"
            if entry is None or salt is None:
                verdict.problems.append(f"{name} is not in the chain: it was put in by another program")
                continue
            _, commitment = read.texts.get(entry, ("", None))
            if commitment is None or len(salt) != SALT_BYTES or text.commitment(salt) != commitment or entry in seen:
                verdict.problems.append(f"the text of {name} is not the one that was recorded")
            elif _is_gone(gone, entry):
                verdict.problems.append(f"the text of {name} was taken out, and is there again")
            seen[entry] = name
    verdict.texts = len(seen)
    lost = sorted(entry for entry in read.texts.keys() - seen.keys() if not _is_gone(gone, entry))
    if lost:
        some = ", ".join(map(str, lost[:5])) + (", …" if len(lost) > 5 else "")
        verdict.problems.append(
            f"{len(lost)} texts that were recorded are not there any more, and no entry took them out: of entry {some}"
        )
    _compare_dropped(tx, verdict)
    _compare_heads(tx, read, verdict)


def _compare_dropped(tx: Tx, verdict: Verdict) -> None:
    rows = tx.execute(
        "select cast(episode_id as blob), position from message where dropped_at is not null "
        "and (content <> '' or grams is not null or salt is not null or entry is not null)"
    )
    for episode_id, position in rows:
        verdict.problems.append(f"episode {_decoded(episode_id)}, message {position} has words that were not kept")


def _compare_heads(tx: Tx, read: _Read, verdict: Verdict) -> None:
    """The head is the version that was entered last as one; earlier ones are entered as such."""
    rows = tx.execute(
        "select cast(m.id as blob), cast(h.entry as integer), (select max(v.entry) from version v "
        "where v.memory_id = m.id and v.entry in (select seq from audit where op in ('add', 'update', 'found_head'))) "
        "as entered from memory m left join version h on h.id = m.head and h.memory_id = m.id "
        "where h.entry is not entered and (entered is not null or h.id is null)"
    )
    for memory_id, _, entry in rows:
        name = f"memory {_decoded(memory_id)}"
        verdict.problems.append(f"{name} has another version as its head than that of entry {entry}")


def _compare_deleted(tx: Tx, signer: Signer, settings: Mapping[str, str], read: _Read, verdict: Verdict) -> None:
    """A memory is deleted where the chain says so, and only there. Without the key that names memories in the chain,
    nothing can be said of it."""
    secret = names_secret(signer, settings)
    if secret is None:
        return
    for row, deleted in tx.execute("select cast(id as blob), deleted_at is not null from memory"):
        memory_id = _decoded(row)
        told = hashed_name(secret, memory_id) in read.deleted
        if told and not deleted:
            verdict.problems.append(f"memory {memory_id} was deleted, and is there again")
        elif deleted and not told:
            verdict.problems.append(f"memory {memory_id} was deleted by another program")


# -------------------------------------------------------------------- reading


def entries(
    tx: Tx, signer: Signer, owner: str | None = None, subject: str | None = None, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """The chain as dicts, oldest first: of an owner's token, of what changed or showed a memory's id, or all of it."""
    settings = settings_of(tx)
    secret = names_secret(signer, settings)
    if secret is None and (owner is not None or subject is not None):
        raise KeyRefusedError("the chain names owners and memories by a key that was not given: pass audit_key=…")
    whose, which = (
        None if name is None or secret is None else hashed_name(secret, name).hex() for name in (owner, subject)
    )
    for seq, at, actor, op, named, about, decision_id, commitment, detail, mac in tx.execute(
        f"{_ENTRIES} where (?1 is null or lower(hex(owner)) = ?1) "
        "and (?2 is null or lower(hex(subject)) = ?2 or instr(detail, ?2)) order by seq limit ?3",
        (whose, which, -1 if limit is None else limit),
    ):
        yield {
            "seq": seq,
            "at": at,
            "actor": _decoded(actor),
            "op": _decoded(op),
            "owner": None if named is None else named.hex(),
            "subject": None if about is None else about.hex(),
            "decision_id": decision_id,
            "commitment": None if commitment is None else commitment.hex(),
            "detail": _json(_decoded(detail)),
            "mac": mac.hex(),
        }


def hash_at(tx: Tx, seq: int, op: str) -> str | None:
    """H of an entry of this operation, hex; None where the chain has no such one."""
    if not 0 < seq < 2**63:
        return None
    found = _walk(tx, None, Verdict(), {seq}).hashes.get(seq)
    here = tx.execute("select 1 from audit where seq = ? and op = ?", (seq, op)).fetchone()
    return None if here is None else found


def _json(detail: str) -> Any:
    try:
        return json.loads(detail or "{}")
    except (ValueError, RecursionError):  # somebody wrote into it; verify() says so
        return detail


def _decoded(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")
