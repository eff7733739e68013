"""Which embedder a store works with, and the change to another one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from localmem import inputs, store_vectors
from localmem.config import DURABILITIES, Limits
from localmem.db import Database, Tx
from localmem.errors import InvalidInputError, InvalidTypeError
from localmem.keys import Key
from localmem.manifest import manifest
from localmem.store_audit import Signer, Trail, begin, settings_of
from localmem.types import Embedder


def embedder_for(database: Database, given: Embedder | str | None) -> Embedder:
    """The embedder given, or the one of that name that comes with localmem.

    None: the one the file was written with if it comes with localmem, else the one for new files.
    """
    from localmem.embed import default_embedder, packaged_embedder

    if isinstance(given, str):
        return packaged_embedder(given)
    if given is not None:
        return given
    with database.snapshot() as tx:
        found = settings_of(tx).get("embedder_id")
    return packaged_embedder(found) if found in names() else default_embedder()


def names() -> list[str]:
    """Of the embedders that come with localmem, the one for new files first."""
    return [entry.name for entry in manifest().embedders]


def checked(embedder: Any) -> Embedder | str | None:
    """Raise InvalidTypeError unless it is an Embedder, a name or None."""
    if embedder is not None and not isinstance(embedder, Embedder | str):
        raise InvalidTypeError(
            f"embedder must be a localmem.types.Embedder or one of {', '.join(names())}, not {type(embedder).__name__}"
        )
    return embedder


def reembed(
    path: str | os.PathLike[str] | None = None,
    embedder: Embedder | str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    durability: str = DURABILITIES[0],
    key: Key | str | bytes | None = None,
    audit_key: Key | str | bytes | None = None,
    actor: str | None = None,
) -> dict[str, Any]:
    """Make all vectors of a store anew with another embedder, and switch to it at once when the last is there.

    ``path``, ``key``, ``audit_key``, ``actor`` as of Memory. ``embedder``: an Embedder, or the name of one that comes
    with localmem; None is the one for new stores. The store works as before until the switch; a call that was cut off
    is taken up where it ended. ``progress`` gets (vectors there, vectors wanted). Afterwards a Memory that was open
    raises EmbedderMismatchError: open it again. Returns {"embedder", "previous", "memories", "turns"}: ids, and how
    many vectors this call made.
    """
    inputs.durability(durability)
    wanted = checked(embedder)
    file = inputs.store_path(path)
    if file is None or not file.exists():
        raise InvalidInputError(f"there is no store {file or ':memory:'} whose vectors could be made anew")
    signing, who = inputs.audit_key(audit_key), inputs.actor(actor, Limits())
    database = Database(file, key=inputs.store_key(key), durability=durability)

    def enter(tx: Tx) -> None:
        trail = Trail(tx, Signer(signing, database.derived("audit"), who), time.time_ns() // 1000)
        trail.add("reembed")
        trail.close()

    try:
        with database.write() as tx:  # an audit key that is missing is told before the work, not after it
            begin(tx, Signer(actor=who), time.time_ns() // 1000)
            Trail(tx, Signer(signing, database.derived("audit"), who), 0)
            previous = settings_of(tx).get("embedder_id")
        using = embedder_for(database, wanted or names()[0])
        made = store_vectors.reembed(database, using, progress or (lambda done, total: None), enter)
    finally:
        database.close()
    return {"embedder": using.id, "previous": previous, "memories": made["memory_vec"], "turns": made["turn_vec"]}
