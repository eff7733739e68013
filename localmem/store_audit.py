"""The audit chain: one entry for each change, written in the change's own transaction.

Entry n stands for H(n) = SHA-256(H(n-1), entry n); its mac is HMAC-SHA-256 of H(n) under a key that is never in the
file, or H(n) itself where there is none, a checksum. So a mac covers everything before it, entries that were signed
with an earlier key too. Of texts the chain has SHA-256(salt, place, text): the salt lies beside the text and goes with
it, then nothing can be guessed from the entry, and the chain can still be verified.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmem.dates import to_iso
from localmem.errors import AuditError, KeyRefusedError, StorageError
from localmem.keys import Key

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import JSON, Instant

SALT_BYTES, NAME_BYTES, SECRET_BYTES = 16, 8, 32
START = bytes(32)  # H(0)
TEXT_OPS = ("found", "found_head", "turn", "add", "update", "earlier")  # entries that carry the commitment to a text
GONE = "texts"  # in the detail of an entry: the entries whose texts it took out of the file, as ranges
_UNDER_KEY = "key:"
HEAD, FILE, KEY, NAMES = "audit_head", "file_id", "audit_key", "audit_names"  # settings


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends: the number of its entries, H of the last."""

    seq: int = 0
    hash: bytes = START


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the chain."""

    seq: int
    at: Instant
    actor: str
    op: str
    owner: bytes | None = None
    subject: bytes | None = None
    decision_id: int | None = None
    commitment: bytes | None = None
    detail: str | None = None

    def after(self, before: bytes) -> bytes:
        """H of this entry, 32 bytes, given H of the one before."""
        fields = [
            self.seq, self.at, self.actor, self.op, _hex(self.owner), _hex(self.subject), self.decision_id,
            _hex(self.commitment), self.detail,
        ]  # fmt: skip
        return hashlib.sha256(before + json.dumps(fields, separators=(",", ":")).encode()).digest()


@dataclass(frozen=True, slots=True)
class Signer:
    """What an application writes its entries with: its name, and a key that is not in the file (None: a checksum)."""

    key: Key | None = field(default=None, repr=False)
    derived: bytes | None = field(default=None, repr=False)  # of an encrypted file's key, where no other was given
    actor: str = ""

    def secret(self, file_id: bytes) -> bytes | None:
        """32 bytes."""
        return self.derived if self.key is None else self.key.raw(file_id)


class Trail:
    """Entries of one write transaction.

    Raises KeyRefusedError where the chain is signed with another key, or not yet with the one given: to sign what
    somebody else may have written is not done in passing. ``replacing``: who signed so far, where that is to change.
    """

    def __init__(
        self, tx: Tx, signer: Signer, now: Instant, *, replacing: Signer | None = None, new: bool = False
    ) -> None:
        self._tx, self._actor, self._now = tx, signer.actor, now
        settings = settings_of(tx)
        try:
            self.head, self.file_id = head_of(settings), settings[FILE]
            file_id = bytes.fromhex(self.file_id)
            self._secret = signer.secret(file_id)
            self.key_id, known = key_id_of(self._secret), settings.get(KEY)
            so_far = signer if known == self.key_id else replacing or signer
            names = names_secret(so_far, settings)
        except (KeyError, ValueError):
            raise AuditError(BROKEN) from None
        if known == self.key_id:
            if names is None:
                raise AuditError(BROKEN)
            self._names = names
            return
        if names is None or (not new and (replacing is None or key_id_of(replacing.secret(file_id)) != known)):
            raise KeyRefusedError(_another_key(known))
        self._names = names
        changed = [(KEY, self.key_id), (NAMES, _kept_names(signer, settings, names))]
        tx.executemany("insert or replace into setting (name, value) values (?, ?)", changed)
        if not new:
            self.add("key", detail={"key": self.key_id})

    def add(
        self,
        op: str,
        *,
        owner: str | None = None,
        subject: str | None = None,
        decision_id: int | None = None,
        commitment: bytes | None = None,
        detail: Mapping[str, JSON] | None = None,
    ) -> None:
        """Append an entry. owner: a token such as "u:ann"; subject: an id. Both are written as keyed hashes."""
        entry = Entry(
            self.head.seq + 1,
            self._now,
            self._actor,
            op,
            None if owner is None else name_of(self._names, owner),
            None if subject is None else name_of(self._names, subject),
            decision_id,
            commitment,
            None if not detail else json.dumps(detail, sort_keys=True, separators=(",", ":")),
        )
        self.head = Head(entry.seq, entry.after(self.head.hash))
        self._tx.execute(
            "insert into audit (seq, at, actor, op, owner, subject, decision_id, commitment, detail, mac) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.seq,
                entry.at,
                entry.actor,
                entry.op,
                entry.owner,
                entry.subject,
                entry.decision_id,
                entry.commitment,
                entry.detail,
                mac_of(self._secret, self.head.hash),
            ),
        )

    def text(self, op: str, text: Text, **named: Any) -> tuple[int, bytes]:
        """Append an entry that commits to a text: its number and the text's new salt, to be kept beside the text."""
        salt = os.urandom(SALT_BYTES)
        self.add(op, owner=text.owner, subject=text.subject, commitment=text.commitment(salt), **named)
        return self.head.seq, salt

    @property
    def names_id(self) -> str:
        """Tells what names are hashed with from another such secret: 16 hex digits."""
        return names_id(self._names)

    def name(self, name: str) -> str:
        """The keyed hash of an id or an owner's token, hex: as the chain names it."""
        return name_of(self._names, name).hex()

    def signed(self, label: str, hashed: bytes) -> bytes:
        """The mac of 32 bytes that are no entry's, but what the label says."""
        return signature(self._secret, label, hashed)

    def close(self) -> None:
        """Write where the chain ends now."""
        value = f"{self.head.seq}:{self.head.hash.hex()}"
        self._tx.execute("insert or replace into setting (name, value) values (?, ?)", (HEAD, value))

    def checkpoint(self) -> str:
        """A line of an external checkpoint file: how far the chain goes, signed."""
        line = {"file": self.file_id, "seq": self.head.seq, "at": to_iso(self._now), "head": self.head.hash.hex()}
        return json.dumps({**line, "key": self.key_id, "mac": mark_mac(self._secret, line)})


def begin(tx: Tx, signer: Signer, now: Instant) -> None:
    """Begin the chain of a file that has none.

    In a file that holds something already it is not signed: with a key that would vouch for what somebody else may
    have put there. `localmem audit sign` does so when it is asked.
    """
    if KEY in settings_of(tx) or tx.execute("select 1 from audit limit 1").fetchone() is not None:
        return  # entries without their settings: verify() says so, and who writes is told
    empty = tx.execute("select 1 from episode union all select 1 from memory limit 1").fetchone() is None
    begin_anew(tx, signer if empty else Signer(actor=signer.actor), now).close()


def begin_anew(tx: Tx, signer: Signer, now: Instant) -> Trail:
    """Each text that the file holds already gets its entry, and each memory that is deleted, and the settings."""
    tx.execute("insert or ignore into setting (name, value) values (?, ?)", (FILE, os.urandom(SALT_BYTES).hex()))
    tx.execute("insert or replace into setting (name, value) values (?, ?)", (NAMES, os.urandom(SECRET_BYTES).hex()))
    trail = Trail(tx, signer, now, new=True)
    trail.add("begin", detail={"key": trail.key_id, "file": trail.file_id, "names": trail.names_id})
    heads = {row for (row,) in tx.execute("select head from memory")}
    for table in TEXTS:
        for row, _, _, text in read_texts(tx, table):
            entry, salt = trail.text("found_head" if table == "version" and row in heads else "found", text)
            tx.execute(f"update {table} set entry = ?, salt = ? where id = ?", (entry, salt, row))
    for owner, memory_id in tx.execute(
        "select o.token, m.id from memory m join owner o on o.id = m.owner_id where m.deleted_at is not null"
    ).fetchall():
        trail.add("delete", owner=owner, subject=memory_id, detail={"reason": "before"})
    retention = tx.execute("select value from setting where name = 'retention'").fetchone()
    if retention is not None:
        trail.add("retention", detail={"retention": retention[0]})
    return trail


# -------------------------------------------------------------------- texts


@dataclass(frozen=True, slots=True)
class Text:
    """A text with its place, all of which never changes: moved anywhere else it is another one's words."""

    kind: str  # the table
    owner: str  # token
    subject: str  # id of the memory or episode
    number: int  # of the version, or position of the message
    user: str | None
    agent: str | None
    run: str | None
    said_by: str  # actor of the memory, role of the message
    name: str | None  # of who said the message
    text: str

    def commitment(self, salt: bytes) -> bytes:
        """SHA-256 of salt, place and text, 32 bytes."""
        fields = [
            self.kind, self.owner, self.subject, self.number, self.user, self.agent, self.run, self.said_by, self.name,
            self.text,
        ]  # fmt: skip
        return hashlib.sha256(salt + json.dumps(fields).encode()).digest()


BROKEN = (
    "the settings of the audit chain were changed by another program; nothing was written. `localmem audit verify` "
    "tells what is wrong, a backup restores it"
)
TEXTS = {  # of the rows whose texts the chain commits to. As bytes: what is no text any more must not stop the reading
    "version": (
        "select v.id, iif(typeof(v.entry) = 'integer', v.entry, null), cast(v.salt as blob), cast(o.token as blob), "
        "cast(m.id as blob), "
        "iif(typeof(v.number) = 'integer', v.number, null), cast(m.user_id as blob), "
        "cast(m.agent_id as blob), cast(m.run_id as blob), cast(m.actor as blob), null, cast(v.text as blob) "
        "from version v join memory m on m.id = v.memory_id join owner o on o.id = m.owner_id order by v.id"
    ),
    "message": (
        "select t.id, iif(typeof(t.entry) = 'integer', t.entry, null), cast(t.salt as blob), cast(o.token as blob), "
        "cast(e.id as blob), "
        "iif(typeof(t.position) = 'integer', t.position, null), cast(e.user_id as blob), "
        "cast(e.agent_id as blob), cast(e.run_id as blob), cast(t.role as blob), cast(t.name as blob), "
        "cast(t.content as blob) from message t join episode e on e.id = t.episode_id "
        "join owner o on o.id = e.owner_id where t.dropped_at is null order by t.id"
    ),
}


def read_texts(tx: Tx, table: str) -> Iterator[tuple[int, int | None, bytes | None, Text]]:
    """(row, entry, salt, text) of every text of a table."""
    for row, entry, salt, *fields in tx.execute(TEXTS[table]).fetchall():
        values: list[Any] = [decoded(each) if isinstance(each, bytes) else each for each in fields]
        yield row, entry, salt, Text(table, *values)


def decoded(value: bytes) -> str:
    """Text as it stands in the file; what is not UTF-8 as U+FFFD."""
    return value.decode("utf-8", "replace")


def ranges(numbers: Iterable[int]) -> list[int | list[int]]:
    """Whole numbers as a short list: [5, [9, 12]] is 5, 9, 10, 11, 12."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [first if first == last else [first, last] for first, last in found]


def text_entries(tx: Tx) -> list[int]:
    """The entries that commit to the texts of the file."""
    both = "select entry from version union all select entry from message"
    return [entry for (entry,) in tx.execute(both) if entry is not None]


# -------------------------------------------------------------------- outside


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file outside, to which each change appends how far the chain goes: what was cut off its end is known then."""

    path: Path
    durable: bool  # synced before the call returns

    def touch(self) -> None:
        """Raise StorageError unless it can be written."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        except OSError as error:
            raise StorageError(f"the checkpoint file {self.path} can't be written: {error.strerror}") from None

    def last_head(self) -> str | None:
        """The head that the last line tells of; None where it can't be read."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 1_000))
                return str(json.loads(file.read().splitlines()[-1])["head"])
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
            return None

    def append(self, trail: Trail) -> None:
        """Raise StorageError, which says that the change stands, where the line can't be written."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
            try:
                self._append(handle, f"{trail.checkpoint()}\n".encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise StorageError(
                f"the change is stored, but the checkpoint file {self.path} could not be written: {error.strerror}"
            ) from None

    def _append(self, handle: int, line: bytes) -> None:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # a line that was torn: this one stands apart
            line = b"\n" + line
        while line:  # in one piece as a rule, so that lines of several processes don't mix
            line = line[os.write(handle, line) :]
        if self.durable:
            os.fsync(handle)


# -------------------------------------------------------------------- hashes


def name_of(key: bytes, name: str) -> bytes:
    """The keyed hash of an owner's token or an id, 8 bytes."""
    return hmac.digest(key, b"name " + name.encode(), "sha256")[:NAME_BYTES]


def mac_of(secret: bytes | None, hashed: bytes) -> bytes:
    """32 bytes: HMAC-SHA-256 (RFC 2104) under the secret; without one the hash itself."""
    return hashed if secret is None else hmac.digest(secret, hashed, "sha256")


def settings_of(tx: Tx) -> dict[str, str]:
    """What the file says of itself by name; nothing in a new one. What is no UTF-8 must not stop the reading."""
    return {name: decoded(value) for name, value in tx.execute("select name, cast(value as blob) from setting")}


def names_id(secret: bytes) -> str:
    """As `Trail.names_id`."""
    return hashlib.sha256(b"localmem names " + secret).hexdigest()[:16]


def key_id_of(secret: bytes | None) -> str:
    """Tells keys apart without telling anything of them: 16 hex digits; "" for none."""
    return "" if secret is None else hmac.digest(secret, b"localmem audit key", "sha256")[:8].hex()


def signature(secret: bytes | None, label: str, hashed: bytes) -> bytes:
    """32 bytes: `mac_of` for what is no entry, which no entry's mac can be taken for."""
    return mac_of(secret, hashlib.sha256(f"localmem {label}".encode() + b"\0" + hashed).digest())


def mark_mac(secret: bytes | None, line: Mapping[str, Any]) -> str:
    """The signature of a checkpoint's line, hex."""
    body = json.dumps([line.get(name) for name in ("file", "seq", "at", "head")]).encode()
    return signature(secret, "checkpoint", hashlib.sha256(body).digest()).hex()


def _another_key(known: str | None) -> str:
    if not known:
        return (
            "the audit chain of this file is not signed with the key given; nothing was written. `localmem audit sign` "
            "verifies it and signs it from here on"
        )
    return (
        f"the audit chain of this file is signed with the key {known}, which was not given; nothing was written. Pass "
        "audit_key=… or set LOCALMEM_AUDIT_KEY_FILE"
    )


def names_secret(signer: Signer, settings: Mapping[str, str]) -> bytes | None:
    """What owners and ids are hashed with, the same for the life of a file: 32 bytes.

    Where the application has a key of its own it stands in the file under that key, so that whoever has the file alone
    can't try names; then None without the key. ValueError, KeyError: it was changed.
    """
    kept = settings[NAMES]
    if not kept.startswith(_UNDER_KEY):
        return bytes.fromhex(kept)
    if signer.key is None:
        return None
    return _under(signer, settings, bytes.fromhex(kept.removeprefix(_UNDER_KEY)))


def _kept_names(signer: Signer, settings: Mapping[str, str], secret: bytes) -> str:
    """The secret as it is to stand in the file."""
    return secret.hex() if signer.key is None else _UNDER_KEY + _under(signer, settings, secret).hex()


def _under(signer: Signer, settings: Mapping[str, str], secret: bytes) -> bytes:
    """The secret under a pad made of the key and the file's id, which is used for nothing else; or back."""
    assert signer.key is not None
    pad = hmac.digest(
        signer.key.raw(bytes.fromhex(settings[FILE])), b"localmem names " + settings[FILE].encode(), "sha256"
    )
    return bytes(one ^ other for one, other in zip(secret, pad, strict=True))


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def head_of(settings: Mapping[str, str]) -> Head:
    seq, _, hashed = settings.get(HEAD, "").partition(":")
    return Head(int(seq), bytes.fromhex(hashed)) if seq else Head()
