"""The audit chain: one entry for each change, written in the change's own transaction.

Entry n stands for H(n) = SHA-256(H(n-1), entry n); its mac is HMAC-SHA-256 of H(n) under a key that is never in the
file, or H(n) itself where there is none, a checksum. So a mac covers everything before it, entries that were signed
with an earlier key too. Of texts the chain has SHA-256(salt, text): the salt lies beside the text and goes with it,
then nothing can be guessed from the entry, and the chain can still be verified.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmem.dates import to_iso
from localmem.errors import KeyRefusedError, StorageError
from localmem.keys import Key

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import JSON, Instant

SALT_BYTES, NAME_BYTES = 16, 8
START = bytes(32)  # H(0)
TEXT_OPS = ("found", "turn", "add", "update", "earlier")  # entries that carry the commitment to a text
TEXTS_GONE = "texts_gone"  # in the detail of an entry: how many texts it took out of the file
_HEAD, _FILE, _KEY, _READS = "audit_head", "file_id", "audit_key", "audit_reads"


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
    """Entries of one write transaction. Raises KeyRefusedError where the chain is signed with another key."""

    def __init__(self, tx: Tx, signer: Signer, now: Instant, *, replacing: Signer | None = None) -> None:
        """replacing: who signed so far, where the key is to change."""
        self._tx, self._actor, self._now = tx, signer.actor, now
        settings = dict(tx.execute("select name, value from setting").fetchall())
        self.head = head_of(settings)
        self.file_id = settings[_FILE]
        file_id = bytes.fromhex(self.file_id)
        self._secret = signer.secret(file_id)
        self._names = names_key(signer, file_id)
        self.key_id = key_id_of(self._secret)
        known = settings.get(_KEY)
        if known == self.key_id:
            return
        if known and (replacing is None or key_id_of(replacing.secret(file_id)) != known):
            raise KeyRefusedError(another_key(known))
        tx.execute("insert or replace into setting (name, value) values (?, ?)", (_KEY, self.key_id))
        if self.head.seq:
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

    def text(self, op: str, text: str, *, owner: str, subject: str, number: int, **named: Any) -> bytes:
        """Append an entry that commits to a text, whose it is and which; its new salt, to be kept beside the text.

        number: of the version of a memory, or the position in an episode.
        """
        salt = os.urandom(SALT_BYTES)
        self.add(
            op, owner=owner, subject=subject, commitment=commitment_of(salt, owner, subject, number, text), **named
        )
        return salt

    def name(self, name: str) -> str:
        """The keyed hash of an id or an owner's token, hex: as the chain names it."""
        return name_of(self._names, name).hex()

    def signed(self, hashed: bytes) -> bytes:
        """The mac of 32 bytes."""
        return mac_of(self._secret, hashed)

    def close(self) -> None:
        """Write where the chain ends now."""
        value = f"{self.head.seq}:{self.head.hash.hex()}"
        self._tx.execute("insert or replace into setting (name, value) values (?, ?)", (_HEAD, value))

    def checkpoint(self) -> str:
        """The line of an external checkpoint file: how far the chain goes, signed."""
        line = {"seq": self.head.seq, "at": to_iso(self._now), "head": self.head.hash.hex()}
        return json.dumps({**line, "mac": mac_of(self._secret, self.head.hash).hex()})


def trail_of(tx: Tx, signer: Signer, now: Instant, *, replacing: Signer | None = None) -> Trail:
    """The trail of a transaction, on a chain that is begun where the file has none yet."""
    begun = tx.execute("select 1 from setting where name = ?", (_KEY,)).fetchone() is not None
    return Trail(tx, signer, now, replacing=replacing) if begun else _begin(tx, signer, now)


def _begin(tx: Tx, signer: Signer, now: Instant) -> Trail:
    """Each text that the file holds already gets its entry."""
    tx.execute("insert or ignore into setting (name, value) values (?, ?)", (_FILE, os.urandom(SALT_BYTES).hex()))
    trail = Trail(tx, signer, now)
    trail.add("begin", detail={"key": trail.key_id})
    for table, statement in TEXTS.items():
        for row, _, owner, subject, number, text in tx.execute(f"{statement} order by 1").fetchall():
            salt = trail.text("found", text, owner=owner, subject=subject, number=number)
            tx.execute(f"update {table} set salt = ? where id = ?", (salt, row))
    for owner, memory_id in tx.execute(
        "select o.token, m.id from memory m join owner o on o.id = m.owner_id where m.deleted_at is not null"
    ).fetchall():
        trail.add("delete", owner=owner, subject=memory_id, detail={"reason": "before"})
    return trail


TEXTS = {  # row, salt, owner, subject, number, text of all that the chain commits to
    "version": (
        "select v.id, v.salt, o.token, m.id, v.number, v.text from version v join memory m on m.id = v.memory_id "
        "join owner o on o.id = m.owner_id"
    ),
    "message": (
        "select t.id, t.salt, o.token, e.id, t.position, t.content from message t "
        "join episode e on e.id = t.episode_id join owner o on o.id = e.owner_id where t.dropped_at is null"
    ),
}


def count_texts(tx: Tx) -> int:
    """How many texts of the file the chain commits to."""
    both = "select (select count(*) from version) + (select count(*) from message where salt is not null)"
    [(count,)] = tx.execute(both).fetchall()
    return int(count)


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

    def append(self, trail: Trail) -> None:
        line = f"{trail.checkpoint()}\n".encode()
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            try:
                os.write(handle, line)  # at once: lines of several processes don't mix
                if self.durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise StorageError(
                f"the change is stored, but the checkpoint file {self.path} could not be written: {error.strerror}"
            ) from None


# -------------------------------------------------------------------- hashes


def commitment_of(salt: bytes, owner: str, subject: str, number: int, text: str) -> bytes:
    """SHA-256 of a text with its salt and its place, 32 bytes: with another place it is another one's words."""
    return hashlib.sha256(salt + json.dumps([owner, subject, number, text]).encode()).digest()


def name_of(key: bytes, name: str) -> bytes:
    """The keyed hash of an owner's token or an id, 8 bytes."""
    return hmac.digest(key, name.encode(), "sha256")[:NAME_BYTES]


def mac_of(secret: bytes | None, hashed: bytes) -> bytes:
    """32 bytes: HMAC-SHA-256 (RFC 2104) under the secret; without one the hash itself."""
    return hashed if secret is None else hmac.digest(secret, hashed, "sha256")


def key_id_of(secret: bytes | None) -> str:
    """Tells keys apart without telling anything of them: 16 hex digits; "" for none."""
    return "" if secret is None else hmac.digest(secret, b"localmem audit key", "sha256")[:8].hex()


def another_key(known: str) -> str:
    return (
        f"the audit chain of this file is signed with the key {known}, which was not given: pass audit_key=… or set "
        "LOCALMEM_AUDIT_KEY_FILE; nothing was written"
    )


def names_key(signer: Signer, file_id: bytes) -> bytes:
    """What owners and ids are hashed with. A key of its own keeps the names of the chain from whoever has the file
    alone; in an encrypted file they are behind its key, and a change of that key must not change them."""
    secret = signer.key.raw(file_id) if signer.key is not None else file_id
    return hmac.digest(secret, b"localmem audit names", "sha256")


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def head_of(settings: Mapping[str, str]) -> Head:
    seq, _, hashed = settings.get(_HEAD, "").partition(":")
    return Head(int(seq), bytes.fromhex(hashed)) if seq else Head()
