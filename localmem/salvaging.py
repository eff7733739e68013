"""What can be read of a damaged file, as a new sound one: copied, read page by page, mended, indexed and checked.

The damaged file is only read, and stays as it is: what an incomplete purge was to erase may still be in it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from localmem import embedders, inputs, store_check, store_export, store_mending, store_salvage, store_vectors
from localmem.config import DURABILITIES, RETENTIONS, Limits
from localmem.db import Database, damaged
from localmem.errors import InvalidInputError, ReadOnlyError, StorageError
from localmem.files import sync_folder
from localmem.keys import Key
from localmem.store import Store
from localmem.store_audit import FILE, HEAD, KEY, Signer, key_id_of
from localmem.store_salvage import Found
from localmem.types import Embedder, Instant, Scope

LINES = ".jsonl"  # how a name ends that is to get lines of JSON instead of a store
_KEPT = {"retention": RETENTIONS, "audit_reads": ("0", "1")}  # settings that are taken over

Progress = Callable[[str], None]  # gets one line of words at a time


def salvage(
    path: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    key: Key | str | bytes | None = None,
    audit_key: Key | str | bytes | None = None,
    actor: str | None = None,
    embedder: Embedder | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write what can be read of a damaged file into a new store, or as JSON lines where ``out`` ends in .jsonl.

    ``out`` must not exist; a store has the same key as the damaged file. No other program may write to that meanwhile.
    ``embedder`` as of Memory: all vectors are made anew. Returns {"out", "complete", "memories", "turns", "pages",
    "tables", "altered", "problems", "notes"}. Raises InvalidInputError, KeyRefusedError for a wrong key,
    NotOurFileError where nothing of localmem is to be found, StorageError when the disk is full.
    """
    source, target = inputs.existing_store(path), _not_there(out)
    given, say = embedders.checked(embedder), progress or (lambda words: None)
    opened_with, signing, who = inputs.store_key(key), inputs.audit_key(audit_key), inputs.actor(actor, Limits())
    as_store, now = target.suffix != LINES, time.time_ns() // 1000
    with _workplace(source, target) as place:
        say(f"copying {source}")
        copied = damaged.copy(source, place / "copy.db")
        made = Database(place / "new.db", key=opened_with, durability=DURABILITIES[1])
        try:
            with damaged.opened(place / "copy.db", opened_with, source) as pages, made.write() as tx:
                say(f"reading {pages.pages.count:,} pages")
                found = store_salvage.gather(tx, pages)
            notes = _about(copied, found, encrypted=opened_with is not None, as_store=as_store)
            using = _embedder(made, given, found, notes)
            store = Store(made, using, now=now, signer=_signer(made, signing, who, found, notes))
            told = _fill(store, found, now)
            problems = _finish(store, using, say) if as_store else []
            if not as_store:
                _write_lines(store, target)
        finally:
            made.close()
        if as_store:
            _put(place / "new.db", target)
    return {
        "out": str(target),
        "complete": found.complete and not (copied.commits_lost or copied.unreadable or problems),
        "memories": told["memories"],
        "turns": told["turns"],
        "pages": [{"page": number, "of": name} for number, name in sorted(found.damaged.items())],
        "tables": {name: asdict(tally) for name, tally in found.tables.items()},
        "altered": found.altered,
        "problems": problems,
        "notes": notes + _about_rows(told),
    }


# -------------------------------------------------------------------- the new file


def _embedder(made: Database, given: Embedder | str | None, found: Found, notes: list[str]) -> Embedder:
    """The one given, else that of the damaged file where it comes with localmem. Any would do: all vectors are new."""
    before = found.settings.get("embedder_id")
    using = embedders.embedder_for(made, given or (before if before in embedders.names() else None))
    if before not in (None, using.id):
        notes.append(f"the vectors were made by {before}, those of the new file by {using.id}")
    return using


def _signer(made: Database, key: Key | None, who: str, found: Found, notes: list[str]) -> Signer:
    """What signs the new chain: the key that signed the old one, or that of an encrypted file, whose pages vouch for
    themselves. Another one would vouch for what anybody may have put into the file."""
    if key is not None and not _signed_with(key, found.settings):
        notes.append("the old audit chain was not signed with the key given, so the new one is not; see `audit sign`")
        key = None
    return Signer(key, made.derived("audit"), who)


def _signed_with(key: Key, settings: Mapping[str, str]) -> bool:
    try:
        file_id = bytes.fromhex(settings[FILE])
    except (KeyError, ValueError):  # lost
        return False
    return key_id_of(key.raw(file_id)) == settings.get(KEY)


def _fill(store: Store, found: Found, now: Instant) -> dict[str, int]:
    """All rows and the new audit chain, in one transaction."""
    with store.write() as tx:
        store_mending.mend(tx, found, now)
        settings = {name: found.settings.get(name) for name, values in _KEPT.items()}
        kept = {name: value for name, value in settings.items() if value in _KEPT[name]}
        detail = {
            "file": found.settings.get(FILE),
            "head": found.settings.get(HEAD),
            "lost": {name: tally.lost for name, tally in found.tables.items() if tally.lost},
        }
        store_mending.enter(tx, store.signer, now, detail, kept)
        return store_mending.told(tx)


def _finish(store: Store, using: Embedder, say: Progress) -> list[str]:
    """Vectors and word indexes; the broken invariants that are left."""
    say("making vectors and word indexes")
    store_vectors.reindex(store, using)
    return store_check.check(store)


def _write_lines(store: Store, target: Path) -> None:
    try:
        with os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            with store.snapshot() as tx:
                for record in store_export.export(tx, Scope()):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{target} can't be written: {error.strerror or error}") from None


def _put(new: Path, target: Path) -> None:
    """Under its name at once, whole and on the disk."""
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    _not_there(target)
    os.replace(new, target)
    sync_folder(target.parent)


# -------------------------------------------------------------------- in words


def _about(copied: damaged.Copied, found: Found, *, encrypted: bool, as_store: bool) -> list[str]:
    notes = []
    if copied.unreadable:
        notes.append(f"the disk did not give {copied.unreadable} pages")
    if copied.commits_lost:
        notes.append(f"the -wal file is damaged: what its last {copied.commits_lost} transactions wrote is lost")
    if copied.has_journal:
        notes.append("there is a -journal beside the damaged file, which was not used")
    if not found.tables["setting"].whole and "retention" not in found.settings:
        notes.append("the file's settings are lost: turns are kept again unless `localmem retention` says otherwise")
    if found.incomplete_purges:
        notes.append(
            f"{found.incomplete_purges} purges of the damaged file are incomplete: it may still hold what was to be "
            "erased, so destroy it and its copies"
        )
    if encrypted and not as_store:
        notes.append("the damaged file is encrypted, what was written is not")
    return notes


def _about_rows(told: Mapping[str, int]) -> list[str]:
    notes = []
    if told["headless"]:
        notes.append(
            f"{told['headless']} memories have lost their current wording: they are deleted, what is left of them is "
            "in their history (`localmem list --deleted`)"
        )
    if told["nobodys"]:
        notes.append(
            f"of {told['nobodys']} memories and turns it is not known any more whose they are: they are under the run "
            f"{store_salvage.LOST_AND_FOUND!r} (`localmem list --run {store_salvage.LOST_AND_FOUND}`)"
        )
    return notes


# -------------------------------------------------------------------- files


def _not_there(out: str | os.PathLike[str]) -> Path:
    target = inputs.store_path(out)
    if target is None or target.exists():
        raise InvalidInputError(f"{target or ':memory:'} can't be written over; name a new file")
    if not target.parent.is_dir():
        raise InvalidInputError(f"the folder {target.parent} does not exist; create it first, or name another file")
    return target


@contextmanager
def _workplace(source: Path, target: Path) -> Iterator[Path]:
    """A folder beside the new file, for its owner alone, gone afterwards."""
    needed = 2 * sum(each.stat().st_size for each in (source, Path(f"{source}-wal")) if each.exists())
    if (free := shutil.disk_usage(target.parent).free) < needed:
        raise StorageError(f"{target.parent} has {free >> 20} MiB free, salvaging needs {needed >> 20} MiB")
    try:
        place = Path(tempfile.mkdtemp(prefix=f"{target.name}.salvage-", dir=target.parent))
    except OSError as error:
        raise ReadOnlyError(f"{target.parent} can't be written: {error.strerror}") from None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
