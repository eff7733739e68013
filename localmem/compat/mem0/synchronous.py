"""mem0's Memory, answered by a localmem file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from types import TracebackType
from typing import Any, Self

import localmem
from localmem.compat.mem0 import messages as talk
from localmem.compat.mem0 import shapes
from localmem.compat.mem0.configs.base import MemoryConfig, config_of
from localmem.compat.mem0.dialects import IDS, ONE, TWO, Dialect, dialect_of, identifier, ids_of, limit_of, refuse
from localmem.compat.mem0.exceptions import MemoryNotFoundError, ValidationError, told_as_mem0, without_scope
from localmem.config import Limits
from localmem.errors import NotFoundError
from localmem.shapes import Shape

PROCEDURAL = "procedural_memory"
UNSET: Any = object()  # of an argument that may be None


class Project:
    """mem0's ``memory.project``, which its open source refuses too."""

    def update(self, **_: Any) -> None:
        """Raises ValidationError, a ValueError, as mem0's open source does."""
        raise ValidationError(
            "a project's settings are those of mem0's platform; there are none here", "VALIDATION_004"
        )


class Memory:
    """mem0's Memory on one local file. ``local`` is the localmem.Memory beneath: history with evidence, forgetting,
    export, audit and everything else that mem0 has no words for.

    config: mem0's MemoryConfig or dict, see configs/base.py for what of it is used. version: "1.x" or "2.x" decides
    where both can't be had at once (defaults, ``attributed_to``); None answers each call in the dialect it is made in.
    strict: refuse what that version of mem0 refuses. options: localmem.Memory's arguments, before those of config.
    """

    def __init__(
        self, config: MemoryConfig | Mapping[str, Any] | None = None, *, version: str | None = None,
        strict: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.config = config_of(config)
        self.api_version = self.config.version
        self._strict = dialect_of(strict, "strict")
        self._dialect = self._strict or dialect_of(version or self.config.version, "version")
        self.enable_graph = bool(self.config.section("graph_store").config)
        self._today = options.get("clock")
        with told_as_mem0():
            chosen = self.config.options(options)
            _tell_of_mem0s(chosen.get("path"))
            self.local = localmem.Memory(**chosen)

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any], **options: Any) -> Self:
        """A Memory from mem0's configuration as a dict."""
        return cls(config_of(config_dict), **options)

    @property
    def project(self) -> Project:
        """Refuses every change, as in mem0's open source."""
        return Project()

    # ---------------------------------------------------------------- writing

    def add(
        self,
        messages: Any,
        *,
        user_id: Any = None,
        agent_id: Any = None,
        run_id: Any = None,
        metadata: Mapping[str, Any] | None = None,
        timestamp: Any = None,
        expiration_date: Any = None,
        infer: bool = True,
        memory_type: str | None = None,
        prompt: str | None = None,
    ) -> Shape:
        """Remember messages: ``{"results": [{"id", "memory", "event"}]}``.

        infer=False stores each message as it is. memory_type="procedural_memory" with an agent_id stores the messages
        together as one memory. timestamp: when it was said. prompt is not used. Raises ValidationError (a ValueError),
        LLMError when the model failed: the words are kept, and ``local.resume()`` goes on with them. LLMError too where
        no model is installed.
        """
        refuse(self._strict, "add", {"timestamp": timestamp, "expiration_date": expiration_date})
        ids = self._ids({"user_id": user_id, "agent_id": agent_id, "run_id": run_id})
        if not ids:
            raise without_scope("At least one of 'user_id', 'agent_id', or 'run_id' must be provided.")
        if memory_type is not None and memory_type != PROCEDURAL:
            raise ValidationError(
                f"memory_type must be '{PROCEDURAL}' or left out, not {memory_type!r:.40}", "VALIDATION_002"
            )
        said = talk.said(messages)
        if prompt is not None:
            warnings.warn("localmem extracts with its own prompt; the prompt of add() is not used", stacklevel=2)
        kept = _without_ids(metadata)
        if expiration_date is not None:
            kept[shapes.EXPIRY] = _date(expiration_date)
        with told_as_mem0(by_model=infer):
            if memory_type and "agent_id" in ids:
                results = self._add_procedure(said, ids, kept, timestamp)
            elif infer:
                results = self._add_facts(said, ids, kept, timestamp)
            else:
                results = self._add_verbatim(said, ids, kept, timestamp)
        added: Shape = {"results": results}
        return {**added, "relations": {"deleted_entities": [], "added_entities": []}} if self.enable_graph else added

    def _add_facts(self, said: list[talk.Said], ids: Shape, kept: Shape, timestamp: Any) -> list[Shape]:
        read = [each for each in said if talk.known(each)]
        if not read:
            return []
        added = self.local.add(read, metadata=kept, timestamp=timestamp, **ids)
        return [shapes.change_dict(change) for change in added["results"]]

    def _add_verbatim(self, said: list[talk.Said], ids: Shape, kept: Shape, timestamp: Any) -> list[Shape]:
        def entry(message: talk.Said) -> Shape:
            who = {shapes.ACTOR: message["name"]} if "name" in message else {}
            about = {**kept, shapes.ROLE: message["role"], **who}
            return {"messages": talk.stored(message), "metadata": about, "timestamp": timestamp, **ids}

        added = self.local.add_many([entry(message) for message in said], infer=False)
        return [shapes.verbatim_dict(*each) for each in zip(added["results"], said, strict=True)]

    def _add_procedure(self, said: list[talk.Said], ids: Shape, kept: Shape, timestamp: Any) -> list[Shape]:
        if not said:
            return []
        about = {**kept, "memory_type": PROCEDURAL}
        added = self.local.add(talk.as_one_text(said), metadata=about, infer=False, timestamp=timestamp, **ids)
        return [shapes.change_dict(change) for change in added["results"]]

    def update(
        self,
        memory_id: str,
        data: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expiration_date: Any = UNSET,
        text: str | None = None,
    ) -> Shape:
        """Give a memory another text (data or text), further metadata, or an end. What it said stays in its history.

        ValueError for an unknown id, and where nothing is given.
        """
        refuse(self._strict, "update", {"text": text})
        if self._strict is ONE and (data is None or expiration_date is not UNSET):
            raise TypeError("Memory.update() of mem0 1.x takes data and metadata")
        wording = data if text is None else text
        if wording is None and metadata is None and expiration_date is UNSET:
            raise ValidationError(
                "At least one of text, metadata, or expiration_date must be provided.", "VALIDATION_004"
            )
        with told_as_mem0():
            changed = _without_ids(metadata)
            if expiration_date is not UNSET:
                changed[shapes.EXPIRY] = None if expiration_date is None else _date(expiration_date)
            merged = {**self._there(memory_id)["metadata"], **changed} if changed else None
            if wording is None and merged is None:
                return {"message": "Memory updated successfully!"}
            self.local.update(memory_id, wording, metadata=merged)
        return {"message": "Memory updated successfully!"}

    def delete(self, memory_id: str) -> Shape:
        """Delete a memory; its history stays. ValueError for an unknown id. ``local.purge()`` erases for good."""
        with told_as_mem0():
            self.local.delete(memory_id)
        return {"message": "Memory deleted successfully!"}

    def delete_all(self, user_id: Any = None, agent_id: Any = None, run_id: Any = None) -> Shape:
        """Delete every memory of these ids. ValueError without any; reset() empties the file."""
        ids = self._ids({"user_id": user_id, "agent_id": agent_id, "run_id": run_id})
        if not ids:
            raise without_scope("At least one id is required to delete all memories; reset() empties the whole file.")
        with told_as_mem0():
            self.local.delete_all(**ids)
        return {"message": "Memories deleted successfully!"}

    def reset(self) -> None:
        """Delete everything in the file, history included. ``local.path`` is the file."""
        with told_as_mem0():
            self.local.reset()

    # ---------------------------------------------------------------- reading

    def get(self, memory_id: str) -> Shape | None:
        """One memory, None for an unknown id."""
        with told_as_mem0():
            record = self.local.get(memory_id)
        return None if record is None else self._told(record, score=True)

    def get_all(
        self,
        *,
        user_id: Any = None,
        agent_id: Any = None,
        run_id: Any = None,
        filters: Mapping[str, Any] | None = None,
        limit: int | None = None,
        top_k: int | None = None,
        show_expired: bool | None = None,
        **more: Any,
    ) -> Shape:
        """The memories of these ids, at the top (1.x) or inside filters (2.x): at most limit (100) or top_k (20)."""
        asked = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
        ids, rest, most = self._scope("get_all", asked, filters, limit, top_k, {"show_expired": show_expired}, more)
        with told_as_mem0():
            some = None if most > Limits().result_limit_max else most
            found = self.local.get_all(filters=rest or None, limit=some, **ids)["results"]
            if not show_expired and any(self._has_expired(each) for each in found):
                found = self.local.get_all(filters=self._unexpired(rest), limit=some, **ids)["results"]
        return self._with_relations([self._told(record, score=False) for record in found[:most]])

    def search(
        self,
        query: str,
        *,
        user_id: Any = None,
        agent_id: Any = None,
        run_id: Any = None,
        limit: int | None = None,
        top_k: int | None = None,
        filters: Mapping[str, Any] | None = None,
        threshold: float | None = None,
        rerank: bool | None = None,
        explain: bool | None = None,
        reference_date: Any = None,
        show_expired: bool | None = None,
        **more: Any,
    ) -> Shape:
        """The memories that matter for a query, best first, of these ids at the top (1.x) or inside filters (2.x).

        At most limit (100) or top_k (20). threshold: of localmem's scores, which tell how likely a hit answers the
        query; nothing is cut off if it is not given. A reranker given to localmem is always used.
        """
        asked = {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}
        others = {"explain": explain, "reference_date": reference_date, "show_expired": show_expired}
        ids, rest, most = self._scope("search", asked, filters, limit, top_k, others, more)
        options: Shape = {
            "limit": min(most, Limits().result_limit_max),
            "threshold": threshold,
            "include": "facts",
            "reference_date": reference_date,
            "explain": bool(explain),
            **ids,
        }
        with told_as_mem0():
            found = self.local.search(query, filters=rest or None, **options)["results"]
            if not show_expired and any(self._has_expired(each) for each in found):
                found = self.local.search(query, filters=self._unexpired(rest), **options)["results"]
        return self._with_relations([self._told(record, score=True) for record in found])

    def history(self, memory_id: str) -> list[Shape]:
        """What happened to a memory, a row for each ADD, UPDATE and DELETE; none for an unknown id."""
        with told_as_mem0():
            try:
                versions = self.local.history(memory_id)
            except NotFoundError:
                return []
            return shapes.history_rows(versions, self.local.get(memory_id))

    def chat(self, query: str) -> None:
        """NotImplementedError, as in mem0."""
        raise NotImplementedError("Chat function not implemented yet.")

    def close(self) -> None:
        """Release the file and the model. Safe to call twice."""
        self.local.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- inside

    def _ids(self, given: Mapping[str, Any]) -> dict[str, str]:
        """The ids of a writing call."""
        return {name: identifier(self._strict, value, name) for name, value in given.items() if value is not None}

    def _scope(
        self, method: str, asked: Mapping[str, Any], filters: Mapping[str, Any] | None, limit: Any, top_k: Any,
        others: Mapping[str, Any], more: Mapping[str, Any],
    ) -> tuple[Shape, Shape, int]:  # fmt: skip
        """(ids, further filters, most results) of a reading call, in the dialect that it is made in."""
        if more and self._strict is ONE:
            raise TypeError(f"Memory.{method}() got an unexpected keyword argument {sorted(more)[0]!r}")
        if more:  # 2.x takes and ignores them
            warnings.warn(f"{method}() takes no notice of {', '.join(sorted(more))}", stacklevel=3)
        refuse(self._strict, method, {**asked, "limit": limit, "top_k": top_k, **others})
        ids, rest = ids_of(self._strict, method, asked, filters)
        spoken = self._dialect or (ONE if any(asked[name] is not None for name in IDS) else TWO)
        return ids, rest, limit_of(limit, top_k, ignored=self._strict is TWO, default=spoken.limit)

    def _told(self, record: Shape, *, score: bool) -> Shape:
        dialect: Dialect | None = self._dialect
        return shapes.memory_dict(record, score=score, attributed=dialect is TWO)

    def _with_relations(self, results: list[Shape]) -> Shape:
        found: Shape = {"results": results}
        return {**found, "relations": []} if self.enable_graph else found

    def _there(self, memory_id: str) -> Shape:
        record = self.local.get(memory_id)
        if record is None:
            raise MemoryNotFoundError(f"Memory with id {memory_id!r:.60} not found", "MEM_404")
        return record

    def _has_expired(self, record: Shape) -> bool:
        ends = record["metadata"].get(shapes.EXPIRY)
        return isinstance(ends, str) and ends < self._date_of_today()

    def _unexpired(self, rest: Mapping[str, Any]) -> Shape:
        """The filters, and that a memory has not expired."""
        return {"AND": [dict(rest), {"NOT": [{shapes.EXPIRY: {"lt": self._date_of_today()}}]}]}

    def _date_of_today(self) -> str:
        if self._today is None:
            return datetime.now(UTC).date().isoformat()
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._today())).date().isoformat()


def _without_ids(metadata: Mapping[str, Any] | None) -> Shape:
    """Metadata can't say whose a memory is: those keys are dropped, as mem0 2.x does."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise ValidationError(f"metadata must be a dict, not {type(metadata).__name__}", "VALIDATION_003")
    return {name: value for name, value in metadata.items() if name not in shapes.IDENTITY}


def _date(value: Any) -> str:
    """YYYY-MM-DD of a date, a datetime or such text."""
    if isinstance(value, datetime):
        return value.date().isoformat()
    if isinstance(value, date):
        return value.isoformat()
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        raise ValidationError("expiration_date must be a date, or text as 2027-01-31", "VALIDATION_004") from None


def _tell_of_mem0s(path: Any) -> None:
    """Say how to bring mem0's own memories over where a new file comes to lie beside them."""
    from pathlib import Path

    if path in (None, ":memory:") or not isinstance(path, Path) or path.exists():
        return
    if (path.parent / "collection").is_dir():
        warnings.warn(
            f"{path.parent} holds memories of mem0, and {path.name} begins empty; bring them over with: "
            f"localmem import mem0 {path.parent} --file {path}",
            stacklevel=5,
        )
