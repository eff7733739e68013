"""The calls of whoever answers for what is kept: erase it and prove it, hand it out, tell who did what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from localmem import inputs, shapes, store_export, store_pools, store_purge, store_read, store_verify
from localmem.dates import to_iso
from localmem.errors import ConflictError, InvalidInputError, InvalidTypeError, ScopeError
from localmem.handle import Handle, only_ids, unknown
from localmem.purge import Purged, finish, purge
from localmem.shapes import Results, Shape
from localmem.store_purge import Selection
from localmem.types import Scope


class Custody(Handle):
    """purge, purges, export and audit_log, of a Memory and of its bound handles."""

    def purge(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        memory_id: str | Sequence[str] | None = None,
        query: str | None = None,
        confirm: str | None = None,
        requested: bool = False,
        limit: int = 10,
    ) -> Results:
        """Erase for good, and prove it. What goes, history and evidence included, is one of

        - everything of a scope, when ids alone are given;
        - ``memory_id``: these memories, the turns they were said in, and the assistant's answers to those;
        - ``query``: the memories that a search finds, superseded and deleted ones too. The first call shows them and
          purges nothing; called again with its ``confirm``, the same memories go;
        - ``requested``: what people asked to forget, in the scope or, without ids, in the file.

        Returns {"results": [], "purged": rows by table, "complete", "certificate"}. Where ``complete`` is False the
        rows are gone, and ``reason`` says what kept the file from being written anew: call resume() later.
        """
        if not self._may_purge:
            raise ScopeError("this handle may not purge; ask for bound(…, purge=True)")
        ids = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id}
        named = any(value is not None for value in ids.values())
        within = self._writable(**ids) if named or self._within is not None else None
        if sum((memory_id is not None, query is not None, requested)) > 1:
            raise InvalidInputError("give one of memory_id, query and requested")
        if confirm is not None and query is None:
            raise InvalidInputError("confirm goes with the query whose memories it is for")
        if memory_id is not None:
            if not isinstance(memory_id, str | list | tuple):
                raise InvalidTypeError(f"memory_id must be a str or a list of them, not {type(memory_id).__name__}")
            given = [memory_id] if isinstance(memory_id, str) else list(memory_id)
            return self._purge(Selection(memories=self._purgeable(given, within)))
        if query is not None:
            return self._purge_found(query, self._writable(**ids), limit, confirm)
        if within is None and not requested:
            raise ScopeError("purge needs a scope (user_id, agent_id, run_id), memory_id, query, or requested=True")
        return self._purge(Selection(within, requested=bool(requested)))

    def purges(self) -> list[Shape]:
        """The purges of the file, oldest first: id, state, reason, certificate. None of them tells what was purged."""
        self._check_open()
        if self._within is not None:
            raise ScopeError("purges() tells of the whole file; call it on the Memory itself")
        with self._engine.store.snapshot() as tx:
            found = store_purge.purges(tx)
        told = ("id", "state", "reason", "certificate")
        return [{"at": to_iso(each["at"]), **{name: each[name] for name in told}} for each in found]

    def finish_purges(self, *, without_raw_proof: bool = False) -> list[Shape]:
        """Go on with every incomplete purge of the file: {"id", "complete", "reason", "certificate"} of each.

        without_raw_proof: bring to an end also those whose pieces to be sought are lost (the file was moved, say);
        their certificates tell that the raw file was not searched.
        """
        self._check_open()
        if self._within is not None:
            raise ScopeError("finish_purges() is for the whole file; call it on the Memory itself")
        done = finish(self._engine.store, self._engine.clock, without_raw=bool(without_raw_proof))
        return [
            {"id": each.id, "complete": not each.reason, "reason": each.reason, "certificate": each.certificate}
            for each in done
        ]

    def export(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
    ) -> list[Shape]:
        """Everything the file holds of a scope, also what no search shows: to answer a person who asks for it.

        Records with "record" memory (all versions, and where they were said), episode (the messages as they came) and
        decision. Vectors, which are made of the texts, are left out. The export is entered in the audit chain.
        """
        ids = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id}
        scope = self._scope(None, **ids)
        store = self._engine.store
        with store.snapshot() as tx:
            found = list(store_export.export(tx, scope))
        if not store.db.read_only or store.audits_reads:
            store.enter("export", self._engine.clock(), owner=scope.owner)
        return found

    def audit_log(self, *, memory_id: str | None = None, limit: int | None = None, **ids: Any) -> list[Shape]:
        """Entries of the audit chain, oldest first, of the owner of a scope; a Memory without ids: all.

        memory_id: those that changed this memory or showed it. limit: at most that many, from the first.
        Each has seq, at, actor, op, owner, subject, decision_id, commitment, detail, mac. Owners, memories and episodes
        are named by keyed hash. The reading is entered itself.
        """
        whole = self._within is None and not any(only_ids(ids).values())
        scope = None if whole else self._scope(None, **only_ids(ids))
        self._check_open()
        most = None if limit is None else inputs.limit(limit, "limit", self._engine.limits)
        about = None if memory_id is None else inputs.memory_id(memory_id)
        store, owner = self._engine.store, None if scope is None else scope.owner
        if not store.db.read_only or store.audits_reads:
            store.enter("audit_export", self._engine.clock(), owner=owner)
        with store.snapshot() as tx:
            found = list(store_verify.entries(tx, store.signer, owner, about, most))
        return [{**each, "at": to_iso(each["at"])} for each in found]

    # ---------------------------------------------------------------- inside

    def _erase_forgotten(self, scope: Scope | None) -> None:
        """With erase_on_delete: what people asked to forget is purged at once."""
        if not self._erases:
            return
        with self._engine.store.snapshot() as tx:
            some = store_purge.has_requested(tx, scope)
        if some:
            self._purge(Selection(scope, requested=True))

    def _purge(self, selection: Selection | None) -> Results:
        """Erase a selection and tell of it; None is nothing."""
        done = Purged(None, {})
        if selection is not None:
            done = purge(self._engine.store, selection, self._engine.clock)
        told: Shape = {"purged": dict(done.counts), "complete": not done.reason, "certificate": done.certificate}
        if done.reason:
            told["reason"] = done.reason
        message = "Nothing to purge" if done.id is None else "Purged" if not done.reason else "Purged, not yet proven"
        return Results(message=message, results=[], **told)

    def _purgeable(self, given: Sequence[Any], within: Scope | None) -> tuple[str, ...]:
        """Ids of memories in the scope, deleted ones included; a foreign one is answered like an unknown one."""
        wanted = tuple(dict.fromkeys(inputs.memory_id(each) for each in given))
        if not wanted:
            raise InvalidInputError("memory_id is empty; give the ids of the memories to purge")
        with self._engine.store.snapshot() as tx:
            for each in wanted:
                scope = store_read.scope_of(tx, each)
                if scope is None or not (within is None or store_pools.matches(within, scope)):
                    raise unknown(each)
        return wanted

    def _purge_found(self, query: str, scope: Scope, limit: int, confirm: str | None) -> Results:
        question = self._question(query, scope, limit=limit, include="history")
        hits = [hit for hit in self._search(question) if hit.record is not None]
        ids = tuple(dict.fromkeys(hit.shown for hit in hits))
        token = f"{len(ids)}-{hashlib.sha256(' '.join(sorted(ids)).encode()).hexdigest()[:12]}"
        if confirm is None:
            self._shown("purge_query", scope, list(ids))
            told = [shapes.hit_dict(hit, explain=False) for hit in hits]
            return Results(message="Nothing was purged yet: call again with confirm", results=told, confirm=token)
        if confirm != token:
            raise ConflictError("confirm is not that of the memories that are found now; look at them again")
        return self._purge(Selection(memories=ids) if ids else None)
