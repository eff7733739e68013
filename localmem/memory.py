"""class Memory: one file, its models and its lifetime; handles bound to a scope. The calls are in surface.py."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from localmem import embedders, inputs, store_check, store_vectors
from localmem.config import RETENTIONS, Limits
from localmem.db import Database
from localmem.errors import (
    ClosedError,
    GeneratorError,
    InvalidInputError,
    InvalidTypeError,
    ScopeError,
)
from localmem.ingest import Engine
from localmem.shapes import Results, Shape
from localmem.store import Store
from localmem.surface import Surface, narrowed, only_ids
from localmem.types import (
    Embedder,
    Generator,
    Instant,
    Judge,
    Reranker,
    Scope,
    Tagger,
)


class Memory(Surface):
    """Long-term memory in one SQLite file.

    path: the file; None is the user's data folder, ":memory:" is private and gone at close. generator: a GGUF's path,
    the URL of an OpenAI-compatible server on loopback, or a Generator; None is LOCALMEM_GENERATOR or the installed
    model. It is loaded when first needed. embedder: an Embedder, or the name of one that comes with localmem; None is
    the one the file was written with, for a new file the default. reranker: puts the best hits of a search in order;
    none comes with localmem. durability: "power" (survives a power cut) or "process" (survives kill -9). retention:
    which turns keep their words once they are extracted, "all", "evidence" (those that a memory was said in) or
    "none"; written into the file and carried out on what it holds, None is as it says. preset: "regulated" is
    retention="evidence". clock: microseconds since 1970, for tests.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        embedder: Embedder | str | None = None,
        generator: str | os.PathLike[str] | Generator | None = None,
        reranker: Reranker | None = None,
        durability: str = "power",
        retention: str | None = None,
        preset: str | None = None,
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
        self._closed = False
        self._generator: Generator | None = None
        self._generator_spec = (generator, allow_remote)
        self._generator_lock = threading.Lock()
        chosen = limits or Limits()
        database = Database(inputs.store_path(path), durability=durability, lock_wait_s=chosen.lock_wait_s, vfs=vfs)
        try:
            using = embedders.embedder_for(database, wanted)
            store = Store(database, using)
            if wished is not None and wished != store.retention:
                store.retain(wished, (clock or _now)())
        except BaseException:
            database.close()
            raise
        self._engine = Engine(store, using, self._open_generator, *_pair_models(), clock or _now, chosen, reranker)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """A Memory from a dict: this class's own arguments, or mem0's sections of which the usable parts are taken."""
        return cls(**{**inputs.options(config or {}), **options})

    @property
    def path(self) -> Path | None:
        """The file, or None for a memory-only store."""
        return self._engine.store.db.path

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
    ) -> BoundMemory:
        """A handle with the same API that can't leave its scope. For everything that talks to a model or a network."""
        ids = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id, "session_id": session_id}
        return BoundMemory(self, self._scope(None, **ids), read_only=read_only)

    def check(self) -> list[str]:
        """Broken invariants of the file as sentences; an empty list is a sound file."""
        self._check_open()
        return store_check.check(self._engine.store)

    def reindex(self) -> None:
        """Rebuild the vector and word indexes from the base tables; lost vectors are embedded again, and long texts of
        files made before they were cut into passages get theirs."""
        self._check_open()
        store_vectors.reindex(self._engine.store, self._engine.embedder)

    def reset(self) -> Shape:
        """Delete everything in the file, history included. There is no way back."""
        self._check_open()
        return Results(message="Memory reset successfully!", deleted=self._engine.store.reset(), results=[])

    def close(self) -> None:
        """Release the file and the model. Safe to call twice."""
        if self._closed:
            return
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
                raise GeneratorError("the generator is set to 'none': name a GGUF or a server, or use infer=False")
            return self._generator

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Memory was closed; open a new one")


class BoundMemory(Surface):
    """A view of a Memory that can't leave its scope; made by ``Memory.bound()``. Closing it leaves the Memory open."""

    def __init__(self, memory: Memory, within: Scope, *, read_only: bool) -> None:
        self._memory = memory
        self._engine = memory._engine
        self._within = within
        self._may_write = not read_only

    def bound(self, *, read_only: bool = False, **ids: Any) -> BoundMemory:
        """A narrower handle."""
        scope = narrowed(self._within or Scope(), only_ids(ids), self._engine.limits)
        return BoundMemory(self._memory, scope, read_only=read_only or not self._may_write)

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


# -------------------------------------------------------------------- helpers


def _now() -> Instant:
    return time.time_ns() // 1000


def _pair_models() -> tuple[Judge | None, Tagger | None]:
    from localmem.embed import default_judge, default_tagger

    return default_judge(), default_tagger()


__all__ = ["BoundMemory", "Memory"]
