"""The calls around what waits: recorded now, read by the file's worker; who that is, and how far it is."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from localmem import inputs, shapes, store_queue
from localmem.config import Limits
from localmem.dates import to_iso
from localmem.errors import ConflictError, InvalidInputError, InvalidTypeError, NotFoundError, ReadOnlyError, ScopeError
from localmem.handle import IDS, Handle, only_ids
from localmem.ingest import Said, enqueue, store_all_verbatim
from localmem.shapes import Results, Shape
from localmem.worker import STALE_S

if TYPE_CHECKING:
    from localmem.store_queue import Lease
    from localmem.types import Instant, Scope
    from localmem.worker import Worker

EAGER_CHARS = 400  # of an exchange that are embedded before wait=False returns, about 10 ms; the rest right after it
UNSEEN_S = 60  # a worker whose beat was raised longer ago is dead, as far as stats() tells; a take-over takes 6 s
LOOK_S = 0.2  # between two looks of flush() at what other processes do
_FIELDS = {"messages", "metadata", "timestamp", "expires_at", *IDS}


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
        infer: bool = True,
        once: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Results:
        """Record many exchanges, all or none, and leave their reading to the worker; infer=False stores them as they
        are.

        Each is what ``add`` takes as messages, or a dict {"messages", "timestamp"?, "metadata"?, "expires_at"?} with
        ids of its own where the call names none; with infer=False also ``later``, what its last message came to say:
        [{"text", "timestamp"}] in order of time, which become versions of its memory. once: leave out what has a
        ``source_id`` in its metadata that was added to the same scope before. progress gets (texts embedded, texts).
        Returns {"results", "episodes", "status"}: the changes, each exchange's episode id or None where it was left
        out, "waiting" or "done". InvalidInputError names the place of a wrong one, and nothing is recorded.
        """
        if isinstance(exchanges, str | bytes | Mapping) or not isinstance(exchanges, Iterable):
            raise InvalidTypeError(f"exchanges must be a list of them, not {type(exchanges).__name__}; add() takes one")
        ids = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id}
        said = [self._exchange(each, f"exchanges[{i}]", ids, metadata, infer) for i, each in enumerate(exchanges)]
        if not infer:
            done = store_all_verbatim(self._engine, said, progress or _unheard, once=once) if said else []
            told = [shapes.change_dict(change) for added in done if added for change in added.changes]
            return Results(results=told, episodes=[added and added.episode_id for added in done], status="done")
        worker = self._stand_by()  # first: what keeps it from that is told before anything is recorded
        found = enqueue(self._engine, said, chars_max=EAGER_CHARS, once=once) if said else []
        if worker is not None:
            worker.wake()
        return Results(results=[], episodes=found, status="waiting")

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
        worker = self._stand_by()
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
                rests = worker is not None and worker.rests and (lease is None or stands)
                _refuse_to_wait(trouble, paused, rests=rests, alone=worker is None and stands)
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
        "worker": {"state", "pid", "since", "done", "read_here", "trouble"}}. The worker's ``state``: "working",
        "paused", or "none" where no process reads now; ``read_here`` counts what this process has read; ``trouble`` is
        {"type", "message"} of the error that keeps it from reading on.
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

        Raises ScopeError on a read-only handle, ReadOnlyError for a read-only file, ConflictError where the Memory was
        opened with worker=False.
        """
        if not self._may_write:
            raise ScopeError("this handle is read-only")
        if self._engine.store.db.read_only:
            raise ReadOnlyError(f"{self._engine.store.db.path} is read-only: nothing can be written of what is read")
        worker = self._stand_by()
        if worker is None:
            raise ConflictError("this Memory was opened with worker=False; open it without, or run `localmem worker`")
        worker.wake()

    def pause_worker(self) -> None:
        """Let nothing more be read, in whichever process, after the episode that is under way. Kept in the file."""
        self._set_paused(True)

    def resume_worker(self) -> None:
        """Let the worker go on."""
        self._set_paused(False)
        worker = self._stand_by()
        if worker is not None:
            worker.wake()

    # ---------------------------------------------------------------- inside

    @abstractmethod
    def _stand_by(self) -> Worker | None:
        """This process's worker, standing by from now on; None where it takes no part."""

    def _enqueue(self, said: Said) -> Results:
        """``add(wait=False)``."""
        worker = self._stand_by()  # as in add_many
        [episode_id] = enqueue(self._engine, [said], chars_max=EAGER_CHARS)
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

    def _exchange(
        self, given: Any, place: str, ids: Mapping[str, Any], metadata: Mapping[str, Any] | None, infer: bool
    ) -> Said:
        """One of many, with what the call says of all of them."""
        entry = given if isinstance(given, Mapping) and "messages" in given else {"messages": given}
        known = _FIELDS if infer else _FIELDS | {"later"}
        if wrong := set(entry) - known:
            name = sorted(map(str, wrong))[0]
            raise InvalidTypeError(f"{place} has {name!r:.40}; it may have {', '.join(sorted(known))}")
        own = {name: inputs.one_of(ids[name], entry.get(name), name, f"{place}.{name}", None) for name in IDS}
        limits = self._engine.limits
        try:
            both = inputs.metadata(metadata, limits) | inputs.metadata(entry.get("metadata"), limits)
            return self._said({**entry, **own, "metadata": both}, infer=infer)
        except InvalidInputError as error:
            raise type(error)(f"{place}: {error}") from None

    def _said(self, given: Mapping[str, Any], *, infer: bool) -> Said:
        """add()'s arguments, checked."""
        limits = self._engine.limits
        scope = self._writable(**{name: given.get(name) for name in IDS})
        messages = inputs.messages(given["messages"], limits)
        if not infer:  # each becomes a memory
            for i, message in enumerate(messages):
                inputs.memory_text(message.content, f"messages[{i}].content", limits)
        later = tuple(_later(each, limits) for each in given.get("later") or ())
        if later and messages[-1].role == "system":
            raise InvalidInputError("later follows a message of the system, which is no memory")
        event_at = inputs.instant(given.get("timestamp"), "timestamp")
        return Said(
            scope,
            tuple(messages),
            self._engine.clock() if event_at is None else event_at,
            inputs.metadata(given.get("metadata"), limits),
            inputs.instant(given.get("expires_at"), "expires_at"),
            later,
            keep=given.get("keep", False),
        )

    def _worker_shape(self, lease: Lease | None, paused: bool) -> Shape:
        worker = self._standing_by()
        found = None if worker is None else worker.trouble
        trouble = None if found is None else {"type": type(found).__name__, "message": str(found)}
        unseen = lease is None or self._engine.clock() - lease.seen_at > UNSEEN_S * 1_000_000
        state = "paused" if paused else "none" if unseen else "working"
        told: Shape = {"state": state, "pid": None, "since": None, "done": 0}
        told |= {"read_here": worker.done if worker else 0, "trouble": trouble}
        if lease is not None and not unseen:
            told |= {"pid": lease.pid, "since": to_iso(lease.since), "done": lease.done}
        return told

    def _set_paused(self, paused: bool) -> None:
        self._check_open()
        if self._within is not None:
            raise ScopeError("the worker reads for the whole file; pause it on the Memory itself")
        with self._engine.store.write() as tx:
            store_queue.pause(tx, paused)


def _refuse_to_wait(trouble: Exception | None, paused: bool, *, rests: bool, alone: bool) -> None:
    """Raise what would make waiting without a timeout last for ever."""
    if paused:
        raise ConflictError("the worker is paused: resume_worker() lets it go on, flush(timeout=…) waits for a while")
    if trouble is not None:
        raise trouble
    if rests:
        raise ConflictError("the machine is on battery, where nothing is read: plug it in, or flush(timeout=…)")
    if alone:
        raise ConflictError("no process reads this file: run `localmem worker`, or open it without worker=False")


def _later(value: Any, limits: Limits) -> tuple[str, Instant]:
    """One of an exchange's later wordings: its text, and since when."""
    if not isinstance(value, Mapping):
        raise InvalidTypeError(f"later must hold dicts with text and timestamp, not {type(value).__name__}")
    text = inputs.memory_text(value.get("text"), "later.text", limits)
    since = inputs.instant(value.get("timestamp"), "later.timestamp")
    if since is None:
        raise InvalidInputError("later.timestamp is missing; say since when it was so")
    return text, since


def _unheard(done: int, total: int) -> None:
    """Nobody wants to know how far it is."""
