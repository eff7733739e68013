"""What every handle on a file is made of: the scope it is held in, and how arguments become one question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from localmem import inputs, store_pools
from localmem.config import Limits
from localmem.errors import InvalidInputError, InvalidTypeError, NotFoundError, ScopeError
from localmem.filters import Condition, compile_filters, split_scope
from localmem.ingest import Engine
from localmem.search import INCLUDES, Question, search
from localmem.types import Hit, Scope

IDS = ("user_id", "agent_id", "run_id", "session_id")


class Handle(ABC):
    """One file as seen from a scope. ``_within`` is the scope a handle can't leave."""

    _engine: Engine
    _within: Scope | None = None
    _may_write: bool = True
    _may_purge: bool = True
    _erases: bool = False  # what is deleted is purged at once

    def _scope(self, filters: Mapping[str, Any] | None, **ids: Any) -> Scope:
        """The scope of a call: ids given at the top or inside filters, held within the handle's own scope."""
        self._check_open()
        in_filters, _ = split_scope(filters)
        given = {name: ids.get(name) for name in IDS}
        for name, value in in_filters.items():
            given[name] = inputs.one_of(given[name], value, name, f"filters.{name}", None)
        if self._within is None:
            return inputs.scope(given, self._engine.limits)
        return narrowed(self._within, given, self._engine.limits)

    def _writable(self, **ids: Any) -> Scope:
        if not self._may_write:
            raise ScopeError("this handle is read-only")
        return self._scope(None, **ids)

    def _is_mine(self, scope: Scope) -> bool:
        return self._within is None or store_pools.matches(self._within, scope)

    def _question(self, query: Any, scope: Scope, **options: Any) -> Question:
        limits = self._engine.limits
        if not isinstance(query, str):
            raise InvalidTypeError(f"query must be a str, not {type(query).__name__}")
        if len(query) > limits.query_chars_max:
            raise InvalidInputError(
                f"query has {len(query):,} characters, the limit is {limits.query_chars_max:,} (Limits.query_chars_max)"
            )
        include = options.get("include", "pending")
        if include not in INCLUDES:
            raise InvalidInputError(f"include must be one of {', '.join(INCLUDES)}, not {include!r:.40}")
        now = inputs.instant(options.get("reference_date"), "reference_date")
        return Question(
            text=inputs.clean_text(query, "query", bytes_max=limits.query_chars_max * 4, limit="query_chars_max"),
            scope=scope,
            limit=inputs.limit(options.get("limit", 10), "limit", limits),
            now=self._engine.clock() if now is None else now,
            include=include,
            threshold=inputs.threshold(options.get("threshold")),
            filters=self._condition(options.get("filters")),
            as_of=inputs.instant(options.get("as_of"), "as_of"),
            known_at=inputs.instant(options.get("known_at"), "known_at"),
            explain=bool(options.get("explain")),
        )

    def _search(self, question: Question) -> list[Hit]:
        engine = self._engine
        return search(engine.store, engine.embedder, question, engine.reranker) if question.limit else []

    def _condition(self, filters: Mapping[str, Any] | None) -> Condition:
        _, rest = split_scope(filters)
        return compile_filters(rest, nodes_max=self._engine.limits.filter_nodes_max) if rest else Condition()

    def _shown(self, op: str, scope: Scope, ids: list[str]) -> None:
        """Enter a read in the audit chain, where the file says so: before the answer is given, or there is none."""
        store = self._engine.store
        if store.audits_reads:
            store.enter(op, self._engine.clock(), owner=scope.owner, seen=ids)

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ClosedError once the Memory is closed."""


# -------------------------------------------------------------------- scopes


def narrowed(within: Scope, given: Mapping[str, Any], limits: Limits) -> Scope:
    """The handle's scope, perhaps narrowed by further ids; another value of a fixed id is refused."""
    run = inputs.one_of(given.get("run_id"), given.get("session_id"), "run_id", "session_id", None)
    asked = {"user_id": given.get("user_id"), "agent_id": given.get("agent_id"), "run_id": run}
    fixed = {"user_id": within.user_id, "agent_id": within.agent_id, "run_id": within.run_id}
    for name, value in asked.items():
        if value is not None and fixed[name] is not None and inputs.identifier(value, name, limits) != fixed[name]:
            raise ScopeError(f"this handle is bound to one {name}; another one was given")
    return inputs.scope({name: fixed[name] or asked[name] for name in fixed}, limits)


def only_ids(ids: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(ids) - set(IDS)
    if unknown:
        raise InvalidTypeError(f"unknown argument {sorted(unknown)[0]!r}; the ids are {', '.join(IDS)}")
    return dict(ids)


def unknown(memory_id: str) -> NotFoundError:
    return NotFoundError(f"no memory has the id {memory_id!r:.60}")
