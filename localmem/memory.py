"""class Memory: one file, its models and its lifetime; handles bound to a scope. The calls are in surface.py."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from localmem import embedders, inputs, keys, store_check, store_vectors, store_verify
from localmem.config import DURABILITIES, RETENTIONS, Limits, WorkerOptions
from localmem.db import Database
from localmem.errors import (
    ClosedError,
    GeneratorUnavailableError,
    InvalidInputError,
    InvalidTypeError,
    KeyRefusedError,
    ScopeError,
)
from localmem.handle import narrowed, only_ids
from localmem.ingest import Engine
from localmem.keys import Key
from localmem.purge import doubts
from localmem.shapes import Results, Shape
from localmem.store import Store
from localmem.store_audit import Checkpoint, Signer
from localmem.surface import Surface
from localmem.types import (
    Embedder,
    Generator,
    Instant,
    Judge,
    Reranker,
    Scope,
    Tagger,
)
from localmem.worker import Worker


class Memory(Surface):
    """Long-term memory in one SQLite file.

    path: the file; None is the user's data folder, ":memory:" is private and gone at close. generator: a GGUF's path,
    the URL of an OpenAI-compatible server on loopback, or a Generator; None is LOCALMEM_GENERATOR or the installed
    model. It is loaded when first needed. embedder: an Embedder, or the name of one that comes with localmem; None is
    the one the file was written with, for a new file the default. reranker: puts the best hits of a search in order;
    none comes with localmem. durability: "power" (survives a power cut) or "process" (survives kill -9). retention:
    which turns keep their words once they are extracted, "all", "evidence" (those that a memory was said in) or
    "none"; written into the file and carried out on what it holds, None is as it says. preset: "regulated" is
    retention="evidence". key: encrypts the file, a passphrase or 32 bytes (LOCALMEM_KEY_FILE, LOCALMEM_KEY or
    LOCALMEM_KEYCHAIN if not given). audit_key: signs the audit chain; in an encrypted file that does a key made
    of the file's if none is given. checkpoint: a file to which each change appends how far the chain goes. audit_reads:
    whether reads are entered too; a setting of the file, None is as it says. actor: who acts, for the chain.
    erase_on_delete: what is deleted or asked to be forgotten through this Memory is purged at once. worker: whether
    this process may read what add(wait=False) left to be read, in a thread that begins with the first such call: one
    of all processes does. WorkerOptions says on what terms. clock: microseconds since 1970, for tests.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        key: Key | str | bytes | None = None,
        embedder: Embedder | str | None = None,
        generator: str | os.PathLike[str] | Generator | None = None,
        reranker: Reranker | None = None,
        durability: str = "power",
        retention: str | None = None,
        preset: str | None = None,
        audit_key: Key | str | bytes | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        audit_reads: bool | None = None,
        actor: str | None = None,
        erase_on_delete: bool = False,
        worker: bool | WorkerOptions = True,
        limits: Limits | None = None,
        allow_remote: bool = False,
        clock: Any = None,
        vfs: str | None = None,
    ) -> None:
        inputs.durability(durability)
        wished = inputs.retention(retention, preset)
        if limits is not None and not isinstance(limits, Limits):
            raise InvalidTypeError(f"limits must be a localmem.Limits, not {type(limits).__name__}")
        wanted = embedders.checked(embedder)
        if reranker is not None and not isinstance(reranker, Reranker):
            raise InvalidTypeError(f"reranker must be a localmem.types.Reranker, not {type(reranker).__name__}")
        if generator is not None and not isinstance(generator, str | os.PathLike | Generator):
            raise InvalidTypeError(
                f"generator must be a GGUF's path, a server's URL or a localmem.types.Generator, "
                f"not {type(generator).__name__}"
            )
        if clock is not None and not callable(clock):
            raise InvalidTypeError(f"clock must be a function without arguments, not {type(clock).__name__}")
        if not isinstance(allow_remote, bool):
            raise InvalidTypeError(f"allow_remote must be True or False, not {type(allow_remote).__name__}")
        if not isinstance(erase_on_delete, bool):
            raise InvalidTypeError(f"erase_on_delete must be True or False, not {type(erase_on_delete).__name__}")
        if not isinstance(worker, bool | WorkerOptions):
            raise InvalidTypeError(
                f"worker must be True, False or a localmem.WorkerOptions, not {type(worker).__name__}"
            )
        self._worker_options = WorkerOptions() if worker is True else worker or None
        self._worker: Worker | None = None
        self._worker_lock = threading.Lock()
        self._erases = erase_on_delete
        self._closed = False
        self._generator: Generator | None = None
        self._generator_spec = (generator, allow_remote)
        self._generator_lock = threading.Lock()
        chosen = limits or Limits()
        now = clock or _now
        place = inputs.store_path(path)
        signing, who, outside = inputs.audit_key(audit_key), inputs.actor(actor, chosen), inputs.checkpoint(checkpoint)
        database = Database(
            place,
            key=None if place is None else inputs.store_key(key),
            durability=durability,
            lock_wait_s=chosen.lock_wait_s,
            vfs=vfs,
        )
        try:
            using = embedders.embedder_for(database, wanted)
            signer = Signer(signing, database.derived("audit"), who)
            mark = None if outside is None else Checkpoint(outside, durability == DURABILITIES[0])
            store = Store(database, using, now=now(), signer=signer, checkpoint=mark)
            if wished is not None and wished != store.retention:
                store.retain(wished, now())
            if audit_reads is not None and audit_reads != store.audits_reads:
                store.audit_reads(audit_reads, now())
        except BaseException:
            database.close()
            raise
        self._engine = Engine(store, using, self._open_generator, *_pair_models(), now, chosen, reranker)
        _opened.add(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """A Memory from a dict: this class's own arguments, or mem0's sections of which the usable parts are taken."""
        return cls(**{**inputs.options(config or {}), **options})

    @property
    def path(self) -> Path | None:
        """The file, or None for a memory-only store."""
        return self._engine.store.db.path

    @property
    def read_only(self) -> bool:
        """Whether the file or its folder can't be written to, so that every call that writes raises ReadOnlyError."""
        return self._engine.store.db.read_only

    @property
    def retention(self) -> str:
        """Which turns keep their words once they are extracted: "all", "evidence" or "none"."""
        self._check_open()
        return self._engine.store.retention

    def retain(self, retention: str) -> Shape:
        """Change the file's retention. What it no longer covers is taken out at once; there is no way back."""
        self._check_open()
        wanted = inputs.retention(retention, None)
        if wanted is None:
            raise InvalidInputError(f"retention must be one of {', '.join(RETENTIONS)}")
        dropped = self._engine.store.retain(wanted, self._engine.clock())
        return Results(message=f"Retention is {wanted}", retention=wanted, dropped=dropped, results=[])

    def bound(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        session_id: str | None = None,
        read_only: bool = False,
        purge: bool = False,
        actor: str | None = None,
    ) -> BoundMemory:
        """A handle with the same API that can't leave its scope. For everything that talks to a model or a network.

        purge: whether it may erase for good. actor: who acts through it, for the audit chain.
        """
        ids = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id}
        return BoundMemory(self, self._scope(None, **ids), read_only=read_only, purge=purge, actor=actor)

    @property
    def audits_reads(self) -> bool:
        """Whether reads are entered in the audit chain. A setting of the file."""
        self._check_open()
        return self._engine.store.audits_reads

    def audit_reads(self, wanted: bool) -> None:
        """Enter reads in the audit chain from now on, or no longer."""
        self._check_open()
        if not isinstance(wanted, bool):
            raise InvalidTypeError(f"wanted must be True or False, not {type(wanted).__name__}")
        if wanted != self._engine.store.audits_reads:
            self._engine.store.audit_reads(wanted, self._engine.clock())

    def verify_audit(self, checkpoint: str | os.PathLike[str] | None = None) -> Shape:
        """Read the audit chain again: {"ok", "problems", "entries", "signed", "key_id", "key_given", "head", …}.

        ``checkpoint``: the external file, if not the one that this Memory writes. What was cut off the end, and an
        older copy of the file, are found with it alone. ``signed``: how many entries the key given vouches for;
        without a key the chain is a checksum, which anybody could make anew.
        """
        self._check_open()
        store = self._engine.store
        lines = store.checkpoint_lines(inputs.checkpoint(checkpoint))  # first: what is written meanwhile is no rollback
        with store.snapshot() as tx:
            verdict = store_verify.verify(tx, store.signer, lines)
        return {"ok": not verdict.problems, **asdict(verdict)}

    def verify_certificate(self, certificate: Mapping[str, Any]) -> Shape:
        """Whether a purge's certificate is genuine: {"ok", "signed", "problems"}. Needs the key that signed it."""
        self._check_open()
        if not isinstance(certificate, Mapping):
            raise InvalidTypeError(f"a certificate is a dict, not {type(certificate).__name__}")
        with self._engine.store.snapshot() as tx:
            problems = doubts(tx, self._engine.store.signer, certificate)
        return {"ok": not problems, "signed": bool(certificate.get("key_id")), "problems": problems}

    def sign_audit(self, previous_key: Key | str | bytes | None = None) -> Shape:
        """Sign the audit chain with this Memory's audit key from here on; entries before were not, or with another.

        ``previous_key``: what signed it so far; None for a checksum, or the key made of an encrypted file's. The chain
        is verified first: AuditError where that fails. Returns {"key_id"}.
        """
        self._check_open()
        store = self._engine.store
        if store.signer.key is None and store.signer.derived is None:
            raise KeyRefusedError("there is no key to sign with: open the file with audit_key=…")
        before = keys.key_of(previous_key)
        derived = store.db.derived("audit") if before is None else None
        candidates = (store.signer, Signer(before, derived), Signer(before))
        known = [each for each in candidates if store.is_signed_by(each)]
        if not known:
            raise KeyRefusedError("the audit chain is signed with another key: give it as previous_key")
        store.sign_audit(known[0], self._engine.clock())
        return {"key_id": self.verify_audit()["key_id"]}

    def check(self) -> list[str]:
        """Broken invariants of the file as sentences; an empty list is a sound file."""
        self._check_open()
        return store_check.check(self._engine.store)

    def reindex(self) -> None:
        """Rebuild the vector and word indexes from the base tables; lost vectors are embedded again, and long texts of
        files made before they were cut into passages get theirs."""
        self._check_open()
        store_vectors.reindex(self._engine.store, self._engine.embedder)
        self._engine.store.enter("reindex", self._engine.clock())

    def reset(self) -> Shape:
        """Delete everything in the file, history included. There is no way back."""
        self._check_open()
        return Results(
            message="Memory reset successfully!", deleted=self._engine.store.reset(self._engine.clock()), results=[]
        )

    def close(self) -> None:
        """Release the file and the model. Safe to call twice."""
        if self._closed:
            return
        with self._worker_lock:
            if self._worker is not None:
                self._worker.stop()
            self._closed = True
        with self._generator_lock:
            own = self._generator is not None and self._generator is not self._generator_spec[0]
            if own and self._generator is not None:
                self._generator.close()
            self._generator = None
        self._engine.store.db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_generator(self) -> Generator:
        from localmem.llm import open_generator

        with self._generator_lock:
            self._check_open()
            if self._generator is None:
                spec, allow_remote = self._generator_spec
                spec = Path(spec) if isinstance(spec, os.PathLike) else spec
                self._generator = open_generator(spec, allow_remote=allow_remote)
            if self._generator is None:
                raise GeneratorUnavailableError(
                    "the generator is set to 'none': name a GGUF or a server, or use infer=False"
                )
            return self._generator

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Memory was closed; open a new one")

    def _standing_by(self) -> Worker | None:
        return self._worker

    def _stand_by(self) -> Worker | None:
        if self._worker_options is None or self._engine.store.db.read_only:
            return None
        with self._worker_lock:
            self._check_open()
            if self._worker is None or self._worker.is_of_another_process:
                erase = partial(self._erase_forgotten, None) if self._erases else None
                self._worker = Worker(self._engine, self._worker_options, erase)
            self._worker.start()
            return self._worker


class BoundMemory(Surface):
    """A view of a Memory that can't leave its scope; made by ``Memory.bound()``. Closing it leaves the Memory open."""

    def __init__(
        self, memory: Memory, within: Scope, *, read_only: bool, purge: bool = False, actor: str | None = None
    ) -> None:
        self._memory = memory
        self._engine = memory._engine
        if actor is not None:
            who = inputs.actor(actor, self._engine.limits)
            self._engine = replace(self._engine, store=self._engine.store.acting_as(who))
        self._within = within
        self._may_write = not read_only
        self._may_purge = purge and not read_only
        self._erases = memory._erases

    def bound(
        self, *, read_only: bool = False, purge: bool = False, actor: str | None = None, **ids: Any
    ) -> BoundMemory:
        """A narrower handle, for the same actor unless another is named."""
        scope = narrowed(self._within or Scope(), only_ids(ids), self._engine.limits)
        who = self._engine.store.signer.actor if actor is None else actor
        may_not_write = read_only or not self._may_write
        return BoundMemory(self._memory, scope, read_only=may_not_write, purge=purge and self._may_purge, actor=who)

    def verify_audit(self, checkpoint: str | os.PathLike[str] | None = None) -> Shape:
        """Not on a bound handle."""
        raise ScopeError("verify_audit() reads the whole chain; call it on the Memory itself")

    def check(self) -> list[str]:
        """Not on a bound handle: it would tell about other owners."""
        raise ScopeError("check() looks at the whole file; call it on the Memory itself")

    def reindex(self) -> None:
        """Not on a bound handle."""
        raise ScopeError("reindex() touches the whole file; call it on the Memory itself")

    def retain(self, retention: str) -> Shape:
        """Not on a bound handle."""
        raise ScopeError("retain() is a setting of the whole file; call it on the Memory itself")

    def reset(self) -> Shape:
        """Not on a bound handle; delete_all() empties its scope."""
        raise ScopeError("reset() empties the whole file; delete_all() deletes what this handle can see")

    def close(self) -> None:
        """The Memory stays open; nothing of its own has to be released."""

    def _check_open(self) -> None:
        self._memory._check_open()

    def _stand_by(self) -> Worker | None:
        """The Memory's; a read-only handle starts none."""
        return self._memory._stand_by() if self._may_write else self._memory._standing_by()

    def _standing_by(self) -> Worker | None:
        return self._memory._standing_by()


# -------------------------------------------------------------------- helpers


_opened: weakref.WeakSet[Memory] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Threads that held a lock of these are not in the child, where nobody would ever let go of it."""
    for memory in list(_opened):
        memory._worker_lock, memory._generator_lock = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _now() -> Instant:
    return time.time_ns() // 1000


def _pair_models() -> tuple[Judge | None, Tagger | None]:
    from localmem.embed import default_judge, default_tagger

    return default_judge(), default_tagger()


__all__ = ["BoundMemory", "Memory"]
