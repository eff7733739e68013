"""The calls that Memory and a bound handle share: arguments checked, scopes held, answers in mem0's shapes."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from localmem import inputs, shapes, store_pools, store_queue, store_read
from localmem.config import Limits
from localmem.custody import Custody
from localmem.dates import to_iso
from localmem.errors import (
    ConflictError,
    InvalidInputError,
    InvalidTypeError,
    ScopeError,
)
from localmem.handle import only_ids, unknown
from localmem.ingest import remember, resume, store_verbatim
from localmem.profile import Line, compose, one_line
from localmem.queued import Queued
from localmem.search import context
from localmem.shapes import Results, Shape
from localmem.store_apply import OwnerMovedError, Plan, neighbour_of, stated
from localmem.store_passages import later_passages
from localmem.store_purge import Selection
from localmem.tools import dispatch, schema
from localmem.types import (
    Change,
    Decision,
    Instant,
    MemoryRecord,
    Op,
    Scope,
)

if TYPE_CHECKING:
    from localmem.types import Vector, Vectors


class Surface(Custody, Queued):
    """add, search and all that goes with them."""

    # ---------------------------------------------------------------- writing

    def add(
        self,
        messages: Any,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        infer: bool = True,
        timestamp: Any = None,
        expires_at: Any = None,
        wait: bool = True,
        keep: bool = False,
    ) -> Results:
        """Remember an exchange: extract its facts and reconcile each with what is known.

        messages: a str, a message dict ``{"role", "content", "name"?}`` or a list of them. infer=False stores each
        message as it is. timestamp: when it was said (ISO 8601, datetime, date, Unix seconds; naive is UTC), now if
        not given. wait=False: record it and return at once ``{"results": [], "episode_id", "status": "waiting"}``; its
        words are found from then on, the worker extracts their facts, see status() and flush(). keep=True: somebody
        asked for it to be remembered, so that what gives no fact is kept as it stands. Otherwise returns
        ``{"results": [{"id", "memory", "event"}], "episode_id"}`` with events ADD, UPDATE, DELETE. Raises
        InvalidInputError before anything is written; GeneratorError, MissingExtraError or
        ModelNotFoundError with ``episode_id`` when the words are kept and wait for resume().
        """
        if not isinstance(wait, bool):
            raise InvalidTypeError(f"wait must be True or False, not {type(wait).__name__}")
        if not isinstance(keep, bool):
            raise InvalidTypeError(f"keep must be True or False, not {type(keep).__name__}")
        given = {
            "messages": messages, "user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id,
            "metadata": metadata, "timestamp": timestamp, "expires_at": expires_at, "keep": keep,
        }  # fmt: skip
        said = self._said(given, infer=infer)
        if infer and not wait:
            return self._enqueue(said)
        try:
            added = (remember if infer else store_verbatim)(self._engine, said)
        finally:  # a request is carried out before the rest of its message is read, which may fail
            self._erase_forgotten(said.scope)
        told = [shapes.change_dict(change) for change in added.changes if change.event is not Op.NOOP]
        return Results(results=told, episode_id=added.episode_id)

    def update(
        self,
        memory_id: str,
        data: str | None = None,
        *,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        timestamp: Any = None,
    ) -> Shape:
        """Write a new version of a memory by hand; the old one stays in its history. metadata, if given, replaces.

        Raises NotFoundError for an unknown id.
        """
        given = inputs.one_of(data, text, "data", "text", None)
        if isinstance(given, Mapping):  # mem0's REST habit
            given = given.get("text", given.get("data"))
        if given is None and metadata is None:
            raise InvalidInputError("update needs data (the new text), metadata, or both")
        limits = self._engine.limits
        if given is not None:
            inputs.clean_text(given, "data", bytes_max=limits.memory_bytes_max, limit="memory_bytes_max")
        replaced = None if metadata is None else inputs.metadata(metadata, limits)
        event_at = inputs.instant(timestamp, "timestamp")
        changes = self._by_hand(memory_id, Op.UPDATE, given, event_at, replaced)
        return Results(message="Memory updated successfully!", results=[shapes.change_dict(c) for c in changes])

    def delete(self, memory_id: str) -> Shape:
        """Take a memory out of use. It leaves search at once and stays in history until purged, at once with
        erase_on_delete; purge(memory_id=…) erases it.

        Raises NotFoundError for an unknown or already deleted id.
        """
        changes = self._by_hand(memory_id, Op.DELETE, "", None, None)
        erased = self._purge(Selection(memories=tuple(c.id for c in changes if c.id))) if self._erases else None
        told = {} if erased is None else {"purge": erased}
        return Results(message="Memory deleted successfully!", results=[shapes.change_dict(c) for c in changes], **told)

    def delete_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
    ) -> Shape:
        """Delete every memory of a scope. The scope must be named; reset() empties the whole file.

        As in mem0 this takes them out of use: their words stay in the history. What waits there to be read is not read
        any more. purge() of the same scope erases all of it.
        """
        scope = self._writable(user_id=user_id, agent_id=agent_id, run_id=run_id, session_id=session_id)
        now = self._engine.clock()
        with self._engine.store.snapshot() as tx:
            within = store_pools.reach(tx, scope, now)
            targets = tuple(store_read.targets(tx, within)) if within else ()
            waits = store_queue.waiting(tx, scope, now)
        decision = Decision(stated("", now), Op.DELETE, targets, reason="manual")
        plan = Plan(scope, (decision,), {}, "manual", now, dismiss=True)
        changes = self._engine.store.apply(plan, now) if targets or waits else ()
        deleted = sum(change.event is Op.DELETE for change in changes or ())
        told: Shape = {"hint": "the words stay in the file's history; purge() of the same scope erases them"}
        if self._erases:
            told = {"purge": self._purge(Selection(scope))}
        return Results(message="Memories deleted successfully!", deleted=deleted, results=[], **told)

    def resume(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        limit: int | None = None,
    ) -> Results:
        """Finish what a failure left pending, in event order; each episode exactly once.

        Without ids: the whole file (a bound handle: its scope). limit: at most that many episodes; without ids and a
        limit all of them, and first the purges that are incomplete. Returns the changes, ``episodes`` and ``purges``,
        the numbers finished.
        """
        ids = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id}
        scope = self._writable(**ids) if any(ids.values()) or self._within else None
        most = None if limit is None else inputs.limit(limit, "limit", self._engine.limits)
        purges = self.finish_purges() if scope is None and limit is None else []
        done = resume(self._engine, scope, most)
        told = [shapes.change_dict(c) for added in done for c in added.changes if c.event is not Op.NOOP]
        self._erase_forgotten(scope)
        complete = sum(each["complete"] for each in purges)
        return Results(results=told, episodes=len(done), purges=complete)

    # ---------------------------------------------------------------- reading

    def preload(self) -> None:
        """Load the embedder now rather than with the first call that needs it, which takes half a second longer."""
        self._check_open()
        self._engine.embedder.embed_query("preload")

    def search(
        self,
        query: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        limit: int | None = None,
        top_k: int | None = None,
        filters: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        include: str = "pending",
        as_of: Any = None,
        known_at: Any = None,
        reference_date: Any = None,
        explain: bool = False,
    ) -> Results:
        """The memories that matter for a query, best first: ``{"results": [{"id", "memory", "score", …}]}``.

        limit (or top_k): at most that many, 10 if not given. filters: a boolean tree over metadata; ids may stand in
        it too. include: "facts", "pending" (facts and turns not extracted yet), "episodes", "all" or "history".
        as_of: what was valid then; known_at: what the file knew then; reference_date: what "now" means. explain: each
        hit's "signals", the score and place in each pool and how they add up.
        """
        question = self._question(
            query,
            self._scope(filters, user_id=user_id, agent_id=agent_id, run_id=run_id, session_id=session_id),
            limit=inputs.one_of(limit, top_k, "limit", "top_k", 10),
            filters=filters,
            threshold=threshold,
            include=include,
            as_of=as_of,
            known_at=known_at,
            reference_date=reference_date,
            explain=explain,
        )
        hits = self._search(question)
        self._shown("search", question.scope, [hit.shown for hit in hits])
        return Results(results=[shapes.hit_dict(hit, explain=explain) for hit in hits])

    def context(
        self,
        query: str,
        *,
        max_tokens: int = 500,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
        filters: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        general: bool = True,
    ) -> str:
        """What matters for a query as a fenced block to put into a prompt as data, about max_tokens long at most.

        After the hits stands what is known in general, as profile() has it, in a fourth of the tokens or what the hits
        leave; not where filters or a threshold choose the hits, or with general=False. Stored text can't close the
        fence. "" when nothing is found.
        """
        scope = self._scope(filters, user_id=user_id, agent_id=agent_id, run_id=run_id, session_id=session_id)
        tokens = inputs.limit(max_tokens, "max_tokens", Limits(result_limit_max=10**9))
        question = self._question(query, scope, limit=limit, filters=filters, threshold=threshold)
        hits = self._search(question)
        wanted = general and not question.filters and threshold is None
        known = self._known(scope, tokens) if wanted else []
        self._shown("context", scope, list(dict.fromkeys([*(hit.shown for hit in hits), *(line.id for line in known)])))
        return context(hits, known, max_tokens=tokens)

    def profile(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        max_tokens: int = 200,
    ) -> Shape:
        """What is known about somebody, in about max_tokens at most: {"text", "results": [{"id", "memory", "since"}]}.

        Live memories, not generated: what lasts, was said by the person, again, or lately comes first. With a run_id a
        session's summary: what was kept of it, in order of time.
        """
        scope = self._scope(None, user_id=user_id, agent_id=agent_id, run_id=run_id, session_id=session_id)
        known = self._known(scope, inputs.limit(max_tokens, "max_tokens", Limits(result_limit_max=10**9)))
        self._shown("profile", scope, [line.id for line in known])
        return {
            "text": "".join(f"- {one_line(line.text)}\n" for line in known),
            "results": [{"id": line.id, "memory": line.text, "since": to_iso(line.since)} for line in known],
        }

    def get(self, memory_id: str) -> Shape | None:
        """One memory, or None when the id is unknown or deleted."""
        self._check_open()
        with self._engine.store.snapshot() as tx:
            record = store_read.get(tx, inputs.memory_id(memory_id))
        if record is None or not self._is_mine(record.scope):
            return None
        self._shown("get", record.scope, [record.id])
        return shapes.record_dict(record)

    def get_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        limit: int | None = None,
        top_k: int | None = None,
        filters: Mapping[str, Any] | None = None,
        as_of: Any = None,
        known_at: Any = None,
    ) -> Results:
        """Every memory of a scope, oldest first; all of them unless limited."""
        scope = self._scope(filters, user_id=user_id, agent_id=agent_id, run_id=run_id, session_id=session_id)
        wanted = inputs.one_of(limit, top_k, "limit", "top_k", None)
        if wanted is not None:
            wanted = inputs.limit(wanted, "limit", self._engine.limits)
        options = {
            "filters": self._condition(filters),
            "as_of": inputs.instant(as_of, "as_of"),
            "known_at": inputs.instant(known_at, "known_at"),
        }
        with self._engine.store.snapshot() as tx:
            within = store_pools.reach(tx, scope, self._engine.clock(), **options)
            found = [] if within is None else store_read.list_all(tx, within, wanted)
        self._shown("get_all", scope, [record.id for record in found])
        return Results(results=[shapes.record_dict(record) for record in found])

    def page(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        limit: int = 20,
        offset: int = 0,
        newest_first: bool = False,
    ) -> Results:
        """Some of the memories of a scope, in the order they came in: {"results", "total", "offset", "more"}.

        limit: at most that many. offset: how many to skip. ``more``: whether any are left behind these.
        """
        scope = self._scope(None, user_id=user_id, agent_id=agent_id, run_id=run_id, session_id=session_id)
        most = inputs.limit(limit, "limit", self._engine.limits)
        skipped = inputs.limit(offset, "offset", Limits(result_limit_max=2**40))
        found, total = list[MemoryRecord](), 0
        with self._engine.store.snapshot() as tx:
            within = store_pools.reach(tx, scope, self._engine.clock())
            if within is not None:
                found, total = store_read.page(tx, within, most, skipped, newest_first=newest_first)
        self._shown("page", scope, [record.id for record in found])
        told = [shapes.record_dict(record) for record in found]
        return Results(results=told, total=total, offset=skipped, more=skipped + len(found) < total)

    def history(self, memory_id: str) -> list[Shape]:
        """Every version of a memory in order, with dates, reason and evidence. Raises NotFoundError."""
        self._check_open()
        wanted = inputs.memory_id(memory_id)
        with self._engine.store.snapshot() as tx:
            scope = store_read.scope_of(tx, wanted)
            if scope is None or not self._is_mine(scope):
                raise unknown(wanted)
            found = store_read.history(tx, wanted)
        self._shown("history", scope, [wanted])
        return [shapes.version_dict(version) for version in found]

    def all_versions(self, **ids: Any) -> list[Shape]:
        """Superseded and deleted versions of a scope, oldest first; what its author took back is not among them."""
        scope = self._scope(None, **only_ids(ids))
        with self._engine.store.snapshot() as tx:
            within = store_pools.reach(tx, scope, self._engine.clock())
            found = store_read.past_versions(tx, within) if within else []
        self._shown("all_versions", scope, list(dict.fromkeys(record.id for record in found)))
        return [shapes.record_dict(record) for record in found]

    def decisions(
        self, *, episode_id: str | None = None, unsupported: bool | None = None, limit: int | None = None, **ids: Any
    ) -> list[Shape]:
        """The decision log of a scope: fact, operation, targets, probabilities, guards, fingerprint.

        unsupported=True lists the facts that the support guard kept out of the memories.
        """
        scope = self._scope(None, **only_ids(ids))
        if episode_id is not None:
            episode_id = inputs.identifier(episode_id, "episode_id", self._engine.limits)
        if unsupported is not None and not isinstance(unsupported, bool):
            raise InvalidTypeError(f"unsupported must be True, False or None, not {type(unsupported).__name__}")
        if limit is not None:
            limit = inputs.limit(limit, "limit", self._engine.limits)
        with self._engine.store.snapshot() as tx:
            found = store_read.decisions(tx, scope, episode_id=episode_id, unsupported=unsupported, limit=limit)
        self._shown("decisions", scope, list(dict.fromkeys(each for one in found for each in one.targets)))
        return [shapes.decision_dict(decision) for decision in found]

    def pending(self, **ids: Any) -> list[Shape]:
        """Episodes that wait for the worker or resume(), in event order, each with why and since how many attempts."""
        scope = self._scope_or_file(ids)
        with self._engine.store.snapshot() as tx:
            episodes = [store_read.episode(tx, episode_id) for episode_id in store_read.pending(tx, scope)]
        return [
            {
                "episode_id": episode.id,
                **shapes.scope_dict(episode.scope),
                "messages": len(episode.messages),
                "said_at": to_iso(episode.event_at),
                "attempts": episode.attempts,
                "error": episode.error,
                "set_aside": episode.set_aside,
            }
            for episode in episodes
        ]

    def ingested(self, **ids: Any) -> set[str]:
        """The ``source_id`` in the metadata of every add to exactly this scope: what `localmem ingest` fed already."""
        scope = self._scope(None, **only_ids(ids))
        with self._engine.store.snapshot() as tx:
            return store_read.ingested(tx, scope)

    def contested(self, **ids: Any) -> Results:
        """Memories that contradict another one by a decision in doubt; ``contested_with`` names the others."""
        scope = self._scope(None, **only_ids(ids))
        with self._engine.store.snapshot() as tx:
            within = store_pools.reach(tx, scope, self._engine.clock())
            found = store_read.contested(tx, within) if within else []
        self._shown("contested", scope, [record.id for record in found])
        return Results(results=[shapes.record_dict(record) for record in found])

    # ---------------------------------------------------------------- tools for a model

    def tools_schema(self, style: str = "openai", tools: str = "core") -> list[Shape]:
        """The tools that a model gets for this memory, as a request to it wants them. Bound handles only: ScopeError.

        style: "openai" or "anthropic". tools: "core", or "full" with what explains and with OpenMemory's names. A
        read-only handle has none that write.
        """
        self._bound_only("tools_schema")
        return schema(style, tools, writes=self._may_write)

    def dispatch(self, name: str, arguments: Mapping[str, Any] | str | None = None, tools: str = "core") -> Shape:
        """Carry out a model's tool call and return what it is to read. Bound handles only: ScopeError.

        arguments: as the model sent them, a dict or JSON text. tools: of which set it may call, the one that it was
        shown. What the model got wrong, and any error of localmem's, is answered as {"error": {"type", "message"}} and
        never raised.
        """
        within = self._bound_only("dispatch")
        return dispatch(
            self, name, arguments, within=within, tools=tools, writes=self._may_write,
            bytes_max=self._engine.limits.message_bytes_max, now=self._engine.clock(),
        )  # fmt: skip

    # ---------------------------------------------------------------- inside

    def _worker_now(self) -> Shape:
        """Who reads what waits, as stats()["worker"], without counting what is kept."""
        with self._engine.store.snapshot() as tx:
            lease, paused = store_queue.lease(tx), store_queue.is_paused(tx)
        return self._worker_shape(lease, paused)

    def _known(self, scope: Scope, tokens_max: int) -> list[Line]:
        with self._engine.store.snapshot() as tx:
            return compose(tx, scope, self._engine.clock(), tokens_max=tokens_max)

    def _bound_only(self, call: str) -> Scope:
        """The scope of a bound handle: a model must not be able to choose whose memory it reads."""
        self._check_open()
        if self._within is None:
            raise ScopeError(f"{call}() is for a model: call it on a bound handle, memory.bound(user_id=…)")
        return self._within

    def _mine(self, memory_id: Any) -> MemoryRecord:
        """The head of a memory that is to be changed; a foreign id is answered exactly like an unknown one."""
        self._check_open()
        if not self._may_write:
            raise ScopeError("this handle is read-only")
        wanted = inputs.memory_id(memory_id)
        with self._engine.store.snapshot() as tx:
            record = store_read.get(tx, wanted)
        if record is None or not self._is_mine(record.scope):
            raise unknown(wanted)
        return record

    def _by_hand(
        self, memory_id: str, op: Op, text: str | None, event_at: Instant | None, metadata: Mapping[str, Any] | None
    ) -> tuple[Change, ...]:
        """A change by hand goes through the same apply() as a model's decision. text None: keep the wording.

        The last writer wins; a memory that someone else deleted meanwhile is not found.
        """
        engine = self._engine
        vectors: dict[str, Vector] = {}
        passages: dict[str, Vectors] = {}
        deadline = time.monotonic() + engine.limits.lock_wait_s
        while True:
            record = self._mine(memory_id)
            wording = record.text if text is None else text
            when = max(engine.clock(), record.valid_from) if event_at is None else event_at
            target = neighbour_of(record.id, record.version, record.text, record.valid_from)
            decision = Decision(stated(wording, when), op, (target,), text=wording or None, reason="manual")
            if wording and wording not in vectors:
                vectors = {wording: engine.embedder.embed_passages([wording])[0]}
                passages = later_passages(engine.embedder, vectors)
            plan = Plan(
                record.scope, (decision,), vectors, "manual", when, metadata=metadata, guard_targets=True,
                passages=passages,
            )  # fmt: skip
            try:
                return engine.store.apply(plan, engine.clock()) or ()
            except OwnerMovedError:  # another writer was faster: look again, after a moment of its own length
                if time.monotonic() > deadline:
                    raise ConflictError(f"memory {record.id} kept changing; nothing was written, try again") from None
                time.sleep(random.uniform(0, 0.005))
