"""The calls around what waits: recorded now, read by the file's worker; who that is, and how far it is."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from localmem import inputs, store_queue
from localmem.dates import to_iso
from localmem.errors import ConflictError, InvalidInputError, InvalidTypeError, NotFoundError, ScopeError
from localmem.handle import Handle, only_ids
from localmem.ingest import incoming
from localmem.shapes import Results, Shape
from localmem.worker import STALE_S

if TYPE_CHECKING:
    from localmem.store import Incoming
    from localmem.store_queue import Lease
    from localmem.types import Scope
    from localmem.worker import Worker

EAGER_CHARS = 400  # of an exchange that are embedded before wait=False returns, about 10 ms; the rest right after it
UNSEEN_S = 60  # a worker whose beat was raised longer ago is dead, as far as stats() tells; a take-over takes 6 s
LOOK_S = 0.2  # between two looks of flush() at what other processes do
_IDS = ("user_id", "agent_id", "run_id", "session_id")
_FIELDS = {"messages", "metadata", "timestamp", "expires_at", *_IDS}


class Queued(Handle):
    """add_many, flush, status, stats and the worker, of a Memory and of its bound handles."""

    def add_many(
        self,
        exchanges: Iterable[Any],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Results:
        """Record many exchanges at once, all or none, and leave their reading to the worker.

        Each is what ``add`` takes as messages, or a dict {"messages", "timestamp"?, "metadata"?, "expires_at"?} with
        ids of its own where the call names none. Returns ``{"results": [{"episode_id"}], "status": "waiting"}`` in
        their order; InvalidInputError names the place of a wrong one, and nothing is recorded.
        """
        ids = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id}
        if isinstance(exchanges, str | bytes | Mapping) or not isinstance(exchanges, Iterable):
            raise InvalidTypeError(f"exchanges must be a list of them, not {type(exchanges).__name__}; add() takes one")
        coming = [self._exchange(each, f"exchanges[{i}]", ids, metadata) for i, each in enumerate(exchanges)]
        worker = self._wake()  # first: what keeps it from standing by is told before anything is recorded
        found = self._engine.store.record_episodes(coming, self._engine.clock()) if coming else []
        if worker is not None:
            worker.wake()
        return Results(results=[{"episode_id": each} for each in found], status="waiting")

    def flush(self, timeout: float | None = None, **ids: Any) -> Shape:
        """Wait until what was added so far has been read, by whichever process is the worker.

        timeout in seconds, None for ever. Returns {"flushed", "waiting", "set_aside"}; ``flushed`` is False when the
        time was up. Without a timeout, the error that keeps this process from reading is raised where no other reads,
        and ConflictError where the worker is paused or no process reads the file.
        """
        scope = self._scope_or_file(ids)
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0):
            raise InvalidInputError(f"timeout must be seconds from 0 on, or None, not {timeout!r:.40}")
        began, pulse, moved = time.monotonic(), None, time.monotonic()
        worker = self._wake()
        if worker is not None:
            worker.hurry()
        with self._engine.store.snapshot() as tx:
            upto = store_queue.newest(tx)
        while True:
            with self._engine.store.snapshot() as tx:
                left, lease = store_queue.queue(tx, scope, upto), store_queue.lease(tx)
                paused = store_queue.is_paused(tx)
            now = time.monotonic()
            if not left.waiting or (timeout is not None and now - began >= timeout):
                return {"flushed": not left.waiting, "waiting": left.waiting, "set_aside": left.set_aside}
            if lease is not None and lease.pulse != pulse:
                pulse, moved = lease.pulse, now
            if timeout is None:
                stands = now - moved > STALE_S
                trouble = None if worker is None or not (lease is None or stands) else worker.trouble_since(began)
                _refuse_to_wait(trouble, paused, alone=worker is None and stands)
            left_s = LOOK_S if timeout is None else min(LOOK_S, timeout - (now - began))
            worker.wait(left_s) if worker else time.sleep(left_s)

    def status(self, episode_id: str) -> Shape:
        """How far what was added is: {"episode_id", "state", "said_at", "attempts", "error", "ahead", "results"}.

        ``state``: "waiting", "set_aside" (failed too often; resume() tries again) or "done". ``ahead``: how many are
        before it. ``results``: what came of it, as add() tells. Raises NotFoundError.
        """
        self._check_open()
        wanted = inputs.memory_id(episode_id)
        with self._engine.store.snapshot() as tx:
            found = store_queue.progress(tx, wanted, self._within)
        if found is None:
            raise NotFoundError(f"no episode has the id {wanted!r:.60}")
        self._shown("status", found.scope, list(dict.fromkeys(each for each, *_ in found.changes)))
        return {
            "episode_id": wanted,
            "state": found.state,
            "said_at": to_iso(found.event_at),
            "attempts": found.attempts,
            "error": found.error,
            "ahead": found.ahead,
            "results": [{"id": each, "memory": text, "event": event.value} for each, text, event in found.changes],
        }

    def stats(self, **ids: Any) -> Shape:
        """How much is kept, what waits, and who reads it; of a scope, or of the file.

        {"memories", "deleted", "versions", "episodes", "messages", "queue": {"waiting", "set_aside", "oldest_at"},
        "worker": {"state", "pid", "since", "done", "trouble"}}. The worker's ``state``: "working", "paused", or "none"
        where no process reads; ``trouble`` is the error that keeps this process from it.
        """
        scope = self._scope_or_file(ids)
        with self._engine.store.snapshot() as tx:
            counts, waits = store_queue.counts(tx, scope), store_queue.queue(tx, scope)
            lease, paused = store_queue.lease(tx), store_queue.is_paused(tx)
        oldest = None if waits.oldest_at is None else to_iso(waits.oldest_at)
        return {
            **counts,
            "queue": {"waiting": waits.waiting, "set_aside": waits.set_aside, "oldest_at": oldest},
            "worker": self._worker_shape(lease, paused),
        }

    def start_worker(self) -> None:
        """Stand by to read what waits, as add(wait=False) and flush() do: one process of all becomes the worker.

        Raises ScopeError on a read-only handle, ConflictError where the Memory was opened with worker=False.
        """
        if self._wake() is None:
            raise ConflictError("this Memory was opened with worker=False; open it without, or run `localmem worker`")

    def pause_worker(self) -> None:
        """Let nothing more be read, in whichever process, after the episode that is under way. Kept in the file."""
        self._set_paused(True)

    def resume_worker(self) -> None:
        """Let the worker go on."""
        self._set_paused(False)
        self._wake()

    # ---------------------------------------------------------------- inside

    @abstractmethod
    def _wake(self) -> Worker | None:
        """This process's worker, standing by and told to look at once; None where it takes no part."""

    def _enqueue(
        self, messages: Any, ids: Mapping[str, Any], metadata: Mapping[str, Any] | None, when: Mapping[str, Any]
    ) -> Results:
        """``add(wait=False)``."""
        coming = self._incoming(messages, ids, metadata, when)
        worker = self._wake()  # as in add_many
        [episode_id] = self._engine.store.record_episodes([coming], self._engine.clock())
        if worker is not None:
            worker.wake()
        return Results(results=[], episode_id=episode_id, status="waiting")

    @abstractmethod
    def _standing_by(self) -> Worker | None:
        """This process's worker, if it was asked for so far."""

    def _scope_or_file(self, ids: Mapping[str, Any]) -> Scope | None:
        given = only_ids(ids)
        self._check_open()
        return self._scope(None, **given) if any(given.values()) or self._within else None

    def _exchange(self, given: Any, place: str, ids: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> Incoming:
        fields = given if isinstance(given, Mapping) and "messages" in given else {"messages": given}
        if wrong := set(fields) - _FIELDS:
            raise InvalidTypeError(
                f"{place} has the unknown field {sorted(wrong)[0]!r:.40}; it may have {sorted(_FIELDS)}"
            )
        own = {name: inputs.one_of(ids[name], fields.get(name), name, f"{place}.{name}", None) for name in _IDS}
        try:
            both = [inputs.metadata(each, self._engine.limits) for each in (metadata, fields.get("metadata"))]
            return self._incoming(fields["messages"], own, both[0] | both[1], fields)
        except InvalidInputError as error:
            raise type(error)(f"{place}: {error}") from None

    def _incoming(
        self, messages: Any, ids: Mapping[str, Any], metadata: Mapping[str, Any] | None, when: Mapping[str, Any]
    ) -> Incoming:
        """One exchange that is to wait, checked; ``when`` holds timestamp and expires_at."""
        limits = self._engine.limits
        scope = self._writable(**ids)
        said = inputs.messages(messages, limits)
        event_at = inputs.instant(when.get("timestamp"), "timestamp")
        return incoming(
            self._engine,
            scope,
            said,
            self._engine.clock() if event_at is None else event_at,
            inputs.metadata(metadata, limits),
            inputs.instant(when.get("expires_at"), "expires_at"),
            chars_max=EAGER_CHARS,
        )

    def _worker_shape(self, lease: Lease | None, paused: bool) -> Shape:
        worker = self._standing_by()
        trouble = None if worker is None or worker.trouble is None else type(worker.trouble).__name__
        unseen = lease is None or self._engine.clock() - lease.seen_at > UNSEEN_S * 1_000_000
        state = "paused" if paused else "none" if unseen else "working"
        told: Shape = {"state": state, "pid": None, "since": None, "done": 0, "trouble": trouble}
        if lease is not None and not unseen:
            told |= {"pid": lease.pid, "since": to_iso(lease.since), "done": lease.done}
        return told

    def _set_paused(self, paused: bool) -> None:
        self._check_open()
        if self._within is not None:
            raise ScopeError("the worker reads for the whole file; pause it on the Memory itself")
        with self._engine.store.write() as tx:
            store_queue.pause(tx, paused)


def _refuse_to_wait(trouble: Exception | None, paused: bool, *, alone: bool) -> None:
    """Raise what would make waiting without a timeout last for ever."""
    if paused:
        raise ConflictError("the worker is paused: resume_worker() lets it go on, flush(timeout=…) waits for a while")
    if trouble is not None:
        raise trouble
    if alone:
        raise ConflictError("no process reads this file: run `localmem worker`, or open it without worker=False")
