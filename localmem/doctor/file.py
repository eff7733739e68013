"""The store: who may read it, what lies beside it, whether it is whole and can be trusted. Its texts are not told."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from localmem import embedders
from localmem.config import settings
from localmem.db import opening, whole_file
from localmem.doctor.finding import FAILED, NOTE, OK, WARNING, Finding
from localmem.errors import LocalmemError

if TYPE_CHECKING:
    from localmem.memory import Memory

_SPARE = 3  # times the file's size: a purge and a rekeying write it anew
_PROBLEMS_TOLD = 3
_PURGE = "-purge-"  # between the name of a store and a purge's id: what is sought in the raw file until it is done


def look(path: Path, opened: Callable[[], Memory]) -> list[Finding]:
    """Everything about one store. ``opened`` opens it, and may fail."""
    if not path.exists():
        return [*_key_files(), Finding("store", NOTE, f"there is no store at {path} yet")]
    found = [_encryption(path), *_permissions(path), *_key_files(), _disk(path)]
    try:
        memory = opened()
    except LocalmemError as error:
        return [*found, Finding("store", FAILED, str(error), _CURES.get(type(error).__name__, ""))]
    with memory:
        for each in (_integrity, _audit, _vectors, _unfinished, _leftovers):
            try:
                found += each(path, memory)
            except LocalmemError as error:  # a page that can't be read must not hide the rest
                found.append(Finding(each.__name__.strip("_"), FAILED, str(error), _SALVAGE))
    return found


_SALVAGE = "restore a backup, or run `localmem salvage OUT`, which writes what can be read into a new file"
_CURES = {
    "CorruptFileError": _SALVAGE,
    "NotOurFileError": _SALVAGE,
    "KeyRefusedError": "give the key: --key-file, --keychain or --ask-key, or LOCALMEM_KEY_FILE",
    "LockedError": "close the other program",
}


# -------------------------------------------------------------------- outside


def _encryption(path: Path) -> Finding:
    size = f"{path.stat().st_size:,} bytes"
    try:
        header = opening.header_of(path)
    except Exception as error:  # not a file, or not ours to read
        return Finding("store", FAILED, f"{path} can't be read ({type(error).__name__})")
    if not header:
        return Finding("store", NOTE, f"{path}, empty")
    if header.startswith(opening.PLAIN):
        return Finding("store", OK, f"{path}, {size}, not encrypted: who can read the file can read all in it")
    return Finding("store", OK, f"{path}, {size}, encrypted")


def _permissions(path: Path) -> list[Finding]:
    """0600 for files and 0700 for the folder, as localmem makes them. Access lists beyond that are not looked at."""
    if os.name != "posix":
        return [Finding("permissions", NOTE, "who may read the file can't be told on this system")]
    beside = [each for ending in ("-wal", "-shm") if (each := Path(f"{path}{ending}")).exists()]
    found = [_too_open(each, "600") for each in (path, *beside)]
    found.append(_too_open(path.parent, "700"))
    wrong = [each for each in found if each is not None]
    return wrong or [Finding("permissions", OK, "only you can read the file, what lies beside it, and its folder")]


def _too_open(place: Path, wanted: str) -> Finding | None:
    mode = stat.S_IMODE(place.stat().st_mode)
    if not mode & 0o077:
        return None
    text = f"others may look into {place}: its mode is {mode:04o}, not 0{wanted}"
    return Finding("permissions", WARNING, text, f"chmod {wanted} {shlex.quote(str(place))}")


def _key_files() -> list[Finding]:
    known = settings()
    named = {"LOCALMEM_KEY_FILE": known.key_file, "LOCALMEM_AUDIT_KEY_FILE": known.audit_key_file}
    found = []
    for variable, name in named.items():
        if name is None:
            continue
        place = Path(name).expanduser()
        if not place.is_file() or not os.access(place, os.R_OK):
            text = f"{variable} names {place}, which is not there or can't be read"
            found.append(Finding("key file", FAILED, text, f"bring the file back, or unset {variable}"))
        elif os.name == "posix" and (wrong := _too_open(place, "600")) is not None:
            found.append(Finding("key file", WARNING, wrong.text, wrong.cure))
        else:
            found.append(Finding("key file", OK, f"{place} ({variable}) can be read by you alone"))
    return found


def _disk(path: Path) -> Finding:
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    text = f"{free >> 20:,} MiB are free beside a file of {size >> 20:,} MiB"
    if free < _SPARE * size:
        return Finding(
            "disk", WARNING, f"{text}; a purge or a new key needs up to {_SPARE} times its size", "free space"
        )
    return Finding("disk", OK, text)


# -------------------------------------------------------------------- inside


def _integrity(path: Path, memory: Memory) -> list[Finding]:
    problems = memory.check()
    if not problems:
        return [Finding("integrity", OK, "no invariant of the file is broken")]
    more = f" and {len(problems) - _PROBLEMS_TOLD} more" if len(problems) > _PROBLEMS_TOLD else ""
    return [Finding("integrity", FAILED, f"{'; '.join(problems[:_PROBLEMS_TOLD])}{more}", _SALVAGE)]


def _audit(path: Path, memory: Memory) -> list[Finding]:
    verdict = memory.verify_audit()
    if verdict["problems"]:
        problems = verdict["problems"]
        text = "; ".join(problems[:_PROBLEMS_TOLD])
        return [Finding("audit", FAILED, text, "see `localmem audit verify`; compare with a backup")]
    entries = f"{verdict['entries']:,} entries"
    if not verdict["key_id"]:
        text = f"{entries}, not signed: a checksum, which finds damage but no forgery"
        return [Finding("audit", OK, text)]
    if not verdict["key_given"]:
        text = f"{entries}, signed with key {verdict['key_id']}, which was not given: only compared as a checksum"
        return [Finding("audit", NOTE, text, "give --audit-key-file or LOCALMEM_AUDIT_KEY_FILE")]
    return [Finding("audit", OK, f"{entries}, signed with key {verdict['key_id']}, all as they were written")]


def _vectors(path: Path, memory: Memory) -> list[Finding]:
    name, packaged = memory._engine.embedder.id, embedders.names()
    if name not in packaged:
        text = f"the vectors are those of {name}, which does not come with localmem"
        return [Finding("vectors", NOTE, text, "`localmem reembed` makes them anew with one that does")]
    if name != packaged[0]:
        return [Finding("vectors", NOTE, f"the vectors are those of {name}, not of the newest, {packaged[0]}",
                        "`localmem reembed` makes them anew")]  # fmt: skip
    return [Finding("vectors", OK, f"the vectors are those of {name}")]


def _unfinished(path: Path, memory: Memory) -> list[Finding]:
    found = []
    pending = len(memory.pending())
    if pending:
        found.append(
            Finding("pending", NOTE, f"{pending} adds wait for a model", "`localmem resume` goes on with them")
        )
    waiting = [each for each in memory.purges() if each["state"] != "done"]
    if waiting:
        text = f"{len(waiting)} purges are incomplete: {waiting[0]['reason'] or 'they were cut off'}"
        found.append(Finding("purges", WARNING, text, "`localmem resume` goes on with them"))
    return found or [Finding("pending", OK, "no add and no purge waits to be finished")]


def _leftovers(path: Path, memory: Memory) -> list[Finding]:
    """Files that a cut-off rewriting or a purge that is over left beside the store."""
    waiting = {each["id"] for each in memory.purges() if each["state"] != "done"}
    names = [each.name for each in path.parent.iterdir() if each.name.startswith(f"{path.name}{_PURGE}")]
    stale = [path.parent / name for name in names if name.partition(_PURGE)[2] not in waiting]
    left = [*whole_file.leftovers(path), *stale]
    if not left:
        return [Finding("leftovers", OK, "nothing is left of an interrupted purge or change of the key")]
    cure = f"rm {' '.join(shlex.quote(str(each)) for each in left)}"
    return [
        Finding("leftovers", WARNING, f"left by an interrupted purge or change of the key: {len(left)} files", cure)
    ]
