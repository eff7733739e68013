"""A file under another key: encrypt, rekey, decrypt. Each writes a new file and puts it in the old one's place."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from localmem import inputs, keys
from localmem.config import Limits
from localmem.db import Database, Tx, whole_file
from localmem.errors import AuditError, InvalidInputError, KeyRefusedError
from localmem.keys import Key
from localmem.store_audit import Checkpoint, Signer, Trail, begin
from localmem.store_verify import verify


def encrypt(path: str | os.PathLike[str] | None, new_key: Key | str | bytes, **options: Any) -> dict[str, Any]:
    """Give a file without a key one. Options as of `rekey`."""
    place = inputs.existing_store(path)
    wanted = keys.key_of(new_key)
    if wanted is None:
        raise InvalidInputError("encrypting needs a key: a passphrase or 32 bytes")
    return _rewrite(place, None, wanted, **options)


def decrypt(
    path: str | os.PathLike[str] | None, key: Key | str | bytes | None = None, **options: Any
) -> dict[str, Any]:
    """Write a file without its key. Options as of `rekey`."""
    return _rewrite(inputs.existing_store(path), _known(key), None, **options)


def rekey(
    path: str | os.PathLike[str] | None,
    key: Key | str | bytes | None,
    new_key: Key | str | bytes,
    *,
    overwrite: bool = False,
    audit_key: Key | str | bytes | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    actor: str | None = None,
    lock_wait_s: float = Limits().lock_wait_s,
    vfs: str | None = None,
) -> dict[str, Any]:
    """Write an encrypted file anew under another key; ``key`` None is as the environment says.

    Nothing is changed in place: the new file is written beside the old one, compared with it, synced and renamed over
    it. No other program may have the file open: LockedError after ``lock_wait_s`` seconds. overwrite: the old file's
    bytes are overwritten with zeros after that. Returns {"path", "encrypted", "bytes"}.
    """
    place, wanted = inputs.existing_store(path), keys.key_of(new_key)
    if wanted is None:
        raise InvalidInputError("rekeying needs a new key: a passphrase or 32 bytes; decrypt() takes the key away")
    return _rewrite(
        place, _known(key), wanted, overwrite=overwrite, audit_key=audit_key, checkpoint=checkpoint, actor=actor,
        lock_wait_s=lock_wait_s, vfs=vfs,
    )  # fmt: skip


def _rewrite(
    path: Path,
    key: Key | None,
    new_key: Key | None,
    *,
    overwrite: bool = False,
    audit_key: Key | str | bytes | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    actor: str | None = None,
    lock_wait_s: float = Limits().lock_wait_s,
    vfs: str | None = None,
) -> dict[str, Any]:
    signing, who = inputs.audit_key(audit_key), inputs.actor(actor, Limits())
    database = Database(path, key=key, lock_wait_s=lock_wait_s, vfs=vfs)
    now, outside = time.time_ns() // 1000, inputs.checkpoint(checkpoint)
    entered: list[Trail] = []
    before = Signer(signing, database.derived("audit"), who)

    def enter(new: Path, made_with: Key | None) -> None:
        """The change's own entry, in the new file: signed with the new key, where the old one was the file's."""
        made = Database(new, key=made_with, lock_wait_s=lock_wait_s, vfs=vfs)
        try:
            with made.write() as tx:
                after = Signer(signing, made.derived("audit"), who)
                begin(tx, before, now)
                Trail(tx, before, now)  # KeyRefusedError, where it is signed with another key
                _refuse_to_vouch(tx, before)
                trail = Trail(tx, after, now, replacing=before)
                trail.add("rekey", detail={"from": _state(key), "to": _state(made_with)})
                trail.close()
                entered.append(trail)
        finally:
            made.close()

    whole_file.rewrite(database, new_key, enter, overwrite=overwrite)
    if outside is not None:
        Checkpoint(outside, durable=True).append(entered[0])
    return {"path": str(path), "encrypted": new_key is not None, "bytes": path.stat().st_size}


def _refuse_to_vouch(tx: Tx, before: Signer) -> None:
    """A chain that does not verify is not signed anew in passing."""
    problems = verify(tx, before).problems
    if problems:
        raise AuditError(f"the audit chain does not verify, so nothing was changed: {'; '.join(problems[:3])}")


def _state(key: Key | None) -> str:
    return "plain" if key is None else "encrypted"


def _known(key: Key | str | bytes | None) -> Key:
    found = inputs.store_key(key)
    if found is None:
        raise KeyRefusedError("the key that the file has now is missing: give key=…, or set LOCALMEM_KEY_FILE")
    return found
