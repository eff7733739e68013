"""Reading what waits, in the background: one worker for each file, however many processes have it open.

Every process that wants to may become the worker. Who holds the lease raises a beat in the file every BEAT_S seconds;
the others look every POLL_S, and take over once it has stood still for STALE_S by their own clock, so that nothing
depends on clocks that agree. Two that believe to be it do the same work twice and write it once: see ingest.finish.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from localmem import store_queue
from localmem.config import WorkerOptions
from localmem.errors import ClosedError, LocalmemError, MissingExtraError
from localmem.ingest import UNAVAILABLE, Engine, finish, settle
from localmem.store_queue import Lease
from localmem.types import EpisodeId, Generator

BEAT_S, STALE_S = 2.0, 6.0
POLL_S = 1.0  # between two looks of a process that is not the worker
IDLE_S = 60.0  # without anything to read, until the lease is given back
TROUBLE_S, TROUBLE_MAX_S = 2.0, 60.0  # pause while no model can be had, doubled each time
OWING_MAX = 64  # episodes whose vectors are made before the next one is read


class Worker:
    """The part that one process takes in it: a thread that stands by, and reads while it holds the lease.

    erase: called from the thread at each look, whoever reads: takes out of the file what people asked to forget.
    """

    def __init__(self, engine: Engine, options: WorkerOptions, erase: Callable[[], None] | None = None) -> None:
        if not options.on_battery:
            on_battery()  # MissingExtraError here rather than in a thread
        actor = engine.store.signer.actor
        self._stop = threading.Event()
        self._engine = replace(
            engine,
            store=engine.store.acting_as(f"{actor}/worker" if actor else "worker"),
            generator=lambda: cast(Generator, _Yielding(engine.generator(), self._stop)),
        )
        self._options, self._erase = options, erase
        self._wake = threading.Event()
        self._moved = threading.Condition()  # an episode came to its end, or the worker got into trouble or out of it
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self.done = 0  # episodes that were finished here
        self._trouble: Exception | None = None
        self._troubles, self._troubled_at, self._not_before = 0, 0.0, 0.0
        self._holder: str | None = None
        self._seen: tuple[Lease, float] | None = None  # of another one, since when it stands like this
        self._unsettled: set[EpisodeId] = set()  # whose words can't be embedded
        self._unended: set[EpisodeId] = set()  # given back, which could not be noted: the file was locked or full

    # ---------------------------------------------------------------- from other threads

    @property
    def trouble(self) -> Exception | None:
        """Why this process can't read on, while it is the worker: no model, a full disk."""
        return self._trouble

    def trouble_since(self, when: float) -> Exception | None:
        """The trouble, if it came about after a moment of time.monotonic()."""
        return self._trouble if self._troubled_at > when else None

    @property
    def rests(self) -> bool:
        """Whether it reads nothing now, as the machine is on battery."""
        return not self._options.on_battery and on_battery()

    @property
    def alive(self) -> bool:
        """Whether the thread stands by or reads; a forked process has no copy of it."""
        return self._thread is not None and self._thread.is_alive() and not self.is_of_another_process

    @property
    def is_of_another_process(self) -> bool:
        """Whether this process was forked from the one that made it: its locks are of no use here."""
        return self._pid != os.getpid()

    def start(self) -> None:
        """Stand by, if not done yet."""
        if self.alive or self._stop.is_set():
            return
        self._thread = threading.Thread(target=self._run, name="localmem-worker", daemon=True)
        _standing_by.add(self)
        self._thread.start()

    def wake(self) -> None:
        """Something came in: look at once."""
        self._wake.set()

    def hurry(self) -> None:
        """Somebody waits: try at once, whatever the trouble was before."""
        self._not_before = 0.0
        self._wake.set()

    def wait(self, timeout_s: float) -> None:
        """Until an episode came to its end here, or the time is up."""
        with self._moved:
            self._moved.wait(timeout_s)

    def stop(self) -> None:
        """End after the model's next reply at the latest; what is half read waits on. Gives the lease back."""
        if self.is_of_another_process:  # there it goes on, and its locks may have been held when this one was forked
            return
        self._stop.set()
        self._wake.set()
        if self.alive and self._thread is not threading.current_thread() and self._thread is not None:
            self._thread.join()

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            woken = self._wake.wait(POLL_S)
            self._wake.clear()
            try:
                if woken:
                    self._settle_vectors()
                if self._hold():
                    self._read()
                elif self._erase is not None:
                    self._erase()
            except ClosedError:
                break
            except LocalmemError as error:  # a locked or full file: look again later
                self._pause(error)
            except Stopping:
                break
            except Exception as error:  # whose text may be what somebody said: a thread's end would print it
                self._pause(LocalmemError(f"the worker failed ({type(error).__name__}); it tries again later"))
        self._let_go()

    def _settle_vectors(self) -> None:
        with self._engine.store.snapshot() as tx:
            owing = store_queue.owing(tx, OWING_MAX)
        for episode_id in (each for each in owing if each not in self._unsettled):
            if self._stop.is_set():
                raise Stopping
            try:
                settle(self._engine, episode_id)
            except UNAVAILABLE:
                raise
            except Exception:  # it must hold up no other; when it is read it fails again, and that is noted with it
                self._unsettled.add(episode_id)

    # -- becoming the worker, and staying it

    def _hold(self) -> bool:
        """Try to become the worker, where there is something to do."""
        store, now = self._engine.store, self._engine.clock()
        with store.snapshot() as tx:
            found = store_queue.lease(tx)
            due = store_queue.is_due(tx, now) and not store_queue.is_paused(tx)
        dead = self._stands_still(found)
        if not due or time.monotonic() < self._not_before or self.rests or (found is not None and dead is None):
            return False
        holder = uuid.uuid4().hex
        with store.write() as tx:
            if not store_queue.take_lease(tx, holder, os.getpid(), now, dead):
                return False
        self._holder, self._seen = holder, None
        threading.Thread(target=self._beat, args=(holder,), name="localmem-beat", daemon=True).start()
        return True

    def _stands_still(self, found: Lease | None) -> Lease | None:
        """The lease, where its beat has not moved for too long."""
        now = time.monotonic()
        if found is None or self._seen is None or found.pulse != self._seen[0].pulse:
            self._seen = None if found is None else (found, now)
            return None
        return found if now - self._seen[1] >= STALE_S else None

    def _beat(self, holder: str) -> None:
        """Show that the worker lives, until it is somebody else."""
        while not self._stop.wait(BEAT_S) and self._holder == holder:
            try:
                with self._engine.store.write() as tx:
                    mine = store_queue.beat(tx, holder, self._engine.clock())
            except ClosedError:
                return
            except LocalmemError:  # locked or full: others see the beat stand still, and some work is done twice
                continue
            if not mine and self._holder == holder:
                self._holder = None

    def _let_go(self) -> None:
        holder, self._holder = self._holder, None
        if holder is None:
            return
        with contextlib.suppress(LocalmemError), self._engine.store.write() as tx:  # else it is seen to stand still
            store_queue.release(tx, holder)

    # -- reading

    def _read(self) -> None:
        """Read what is due, one episode after another, until there has been nothing for a while."""
        idle_since = time.monotonic()
        try:
            while self._may_go_on() and time.monotonic() - idle_since < IDLE_S:
                self._settle_vectors()
                read = self._finish_next()
                if self._erase is not None:
                    self._erase()
                if not read:
                    self._wake.wait(POLL_S)
                    self._wake.clear()
                    continue
                idle_since = time.monotonic()
        finally:
            self._let_go()

    def _finish_next(self) -> bool:
        """Read the next episode, if one is due. What is raised says why no other can be read either."""
        store, holder, done = self._engine.store, self._holder, False
        with store.snapshot() as tx:
            due = store_queue.is_due(tx, self._engine.clock())
        if not due or holder is None:
            return False
        with store.write() as tx:
            for each in self._unended:  # else it would look as if a worker had died over it
                store_queue.ended(tx, holder, each, done=False)
            episode_id = store_queue.begin(tx, holder, self._engine.clock())
        self._unended.clear()
        if episode_id is None:
            return False
        self._unended.add(episode_id)
        try:
            finish(self._engine, episode_id)
            done = True
        except UNAVAILABLE:
            raise
        except LocalmemError:
            pass  # noted with the episode, where status() tells it
        finally:
            with store.write() as tx:
                store_queue.ended(tx, holder, episode_id, done=done)
            self._unended.clear()
            self.done += int(done)
        self._trouble, self._troubles = None, 0
        self._tell()
        return True

    def _may_go_on(self) -> bool:
        with self._engine.store.snapshot() as tx:
            paused = store_queue.is_paused(tx)
        return self._holder is not None and not (paused or self._stop.is_set() or self.rests)

    def _pause(self, trouble: Exception) -> None:
        """Leave it to others for a while: they may have the model or the space that is missing here."""
        self._troubled_at = time.monotonic()
        self._not_before = self._troubled_at + min(TROUBLE_S * 2**self._troubles, TROUBLE_MAX_S)
        self._trouble, self._troubles = trouble, min(self._troubles + 1, 10)
        self._tell()

    def _tell(self) -> None:
        with self._moved:
            self._moved.notify_all()


class Stopping(BaseException):
    """The worker was told to stop. No Exception: it is no failure of the episode that is being read."""


class _Yielding:
    """A generator that ends the work between two replies once the worker is to stop."""

    def __init__(self, generator: Generator, stop: threading.Event) -> None:
        self._generator, self._stop = generator, stop

    def __getattr__(self, name: str) -> Any:  # id, fingerprint, count_tokens, and what is optional
        value = getattr(self._generator, name)
        if name in ("generate", "score_labels", "score_labels_many") and self._stop.is_set():
            raise Stopping
        return value


def on_battery() -> bool:
    """Whether the machine runs on its battery now; False where it has none."""
    try:
        import psutil
    except ImportError as error:
        raise MissingExtraError("to stop on battery needs: pip install 'localmem[battery]'") from error
    state = psutil.sensors_battery()
    return state is not None and not state.power_plugged


_standing_by: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread that is inside the model when the interpreter ends would crash it."""
    for worker in list(_standing_by):
        worker.stop()
