"""Random operations in several scopes against a plain dict: whatever happens, Memory shows what the dict holds."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from doubles import Listener, following_scripts
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from localmem.errors import GeneratorError, NotFoundError, ScopeError
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder

SCOPES: list[dict[str, str]] = [
    {"user_id": "ann"},
    {"user_id": "ann", "agent_id": "cook"},
    {"user_id": "ann", "run_id": "r1"},
    {"user_id": "ann", "agent_id": "cook", "run_id": "r1"},
    {"user_id": "bob"},
    {"user_id": "bob", "agent_id": "cook"},
    {"agent_id": "cook"},
    {"agent_id": "cook", "run_id": "r1"},
    {"run_id": "r1"},
    {"user_id": "r1"},
]
READS = [*SCOPES, {"user_id": "ann", "run_id": "r2"}, {"run_id": "r2"}, {"user_id": "eve"}]
WORDS = ["selkie", "brine", "gale", "harbour", "lamp", "rowing", "chess", "tea", "rain", "salt"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
METADATA = st.one_of(
    st.none(), st.fixed_dictionaries({}, optional={"n": st.integers(0, 3), "tag": st.sampled_from("ab")})
)
scopes = st.sampled_from(SCOPES)
CHECK_EVERY = 4


@dataclasses.dataclass
class Row:
    """One memory as the dict knows it."""

    scope: dict[str, str]
    texts: list[str]
    metadata: dict[str, Any]
    expires_at: int | None = None
    deleted: bool = False

    @property
    def text(self) -> str:
        return self.texts[-1]


def owner(scope: dict[str, str]) -> tuple[str, str]:
    name = next(name for name in ("user_id", "agent_id", "run_id") if name in scope)
    return name, scope[name]


def inside(row: dict[str, str], wanted: dict[str, str]) -> bool:
    return all(row.get(name) == value for name, value in wanted.items())


class AgainstADict(RuleBasedStateMachine):
    """Verbatim and reconciled adds, changes by hand, deletions, failures of the model, time, reopening, rebuilding."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="localmem-model-")
        self.clock = FixedClock()
        self.generator = Listener()
        self.scripts = following_scripts()
        self.scripts.__enter__()
        self.rows: dict[str, Row] = {}
        self.waiting: list[tuple[dict[str, str], str]] = []  # pending episodes: scope and fact, in order of arrival
        self.steps = 0
        self.memory = self._open()

    def _open(self) -> Memory:
        return Memory(
            Path(self.folder.name) / "memory.db",
            embedder=HashEmbedder(),
            generator=self.generator,
            clock=self.clock,
            durability="process",
        )

    def teardown(self) -> None:
        try:
            if not self.memory._closed:
                assert self.memory.check() == []
        finally:
            self.memory.close()
            self.scripts.__exit__(None, None, None)
            self.folder.cleanup()

    # -- what the dict says

    def live(self, wanted: dict[str, str]) -> dict[str, Row]:
        return {
            memory_id: row
            for memory_id, row in self.rows.items()
            if not row.deleted
            and inside(row.scope, wanted)
            and (row.expires_at is None or row.expires_at > self.clock.now)
        }

    def reconciled_with(self, scope: dict[str, str], text: str) -> bool:
        """Whether the fact is an exact duplicate of a row that its scope is reconciled with."""
        return any(
            row.text == text
            and owner(row.scope) == owner(scope)
            and row.scope.get("run_id") in (None, scope.get("run_id"))
            and row.scope.get("agent_id") in (None, scope.get("agent_id"))
            for row in self.live({}).values()
        )

    def learn(self, scope: dict[str, str], text: str, results: list[dict[str, Any]]) -> None:
        if self.reconciled_with(scope, text):
            assert results == []
            return
        assert [entry["event"] for entry in results] == ["ADD"]
        self.rows[results[0]["id"]] = Row(scope, [text], {})

    def some_row(self, data: Any) -> tuple[str, Row]:
        memory_id = data.draw(st.sampled_from(sorted(self.rows)), label="memory")
        return memory_id, self.rows[memory_id]

    # -- what may happen

    @initialize()
    def begin(self) -> None:
        self.memory.add("selkie", infer=False, user_id="ann")
        (entry,) = self.memory.get_all(user_id="ann")["results"]
        self.rows[entry["id"]] = Row({"user_id": "ann"}, ["selkie"], {})

    @rule(scope=scopes, texts=st.lists(TEXTS, min_size=1, max_size=3), metadata=METADATA, days=st.sampled_from([0, 2]))
    def add_verbatim(self, scope: dict[str, str], texts: list[str], metadata: Any, days: int) -> None:
        self.clock.advance(1)
        expires_at = self.clock.now + days * 86_400_000_000 if days else None
        result = self.memory.add(
            texts,
            infer=False,
            metadata=metadata,
            expires_at=None if expires_at is None else expires_at / 1e6,
            **scope,  # type: ignore[arg-type]
        )
        for text, entry in zip(texts, result["results"], strict=True):
            self.rows[entry["id"]] = Row(scope, [text], metadata or {}, expires_at)

    @rule(scope=scopes, text=TEXTS)
    def add_fact(self, scope: dict[str, str], text: str) -> None:
        self.clock.advance(1)
        self.generator.fail = False
        result = self.memory.add(f"well\nfact: {text}", **scope)  # type: ignore[arg-type]
        self.learn(scope, text, result["results"])

    @rule(scope=scopes, text=TEXTS)
    def add_with_a_broken_model(self, scope: dict[str, str], text: str) -> None:
        self.clock.advance(1)
        self.generator.fail = True
        try:
            self.memory.add(f"fact: {text}", **scope)  # type: ignore[arg-type]
        except GeneratorError as error:
            assert error.episode_id
        else:
            raise AssertionError("the model was told to fail")
        self.waiting.append((scope, text))

    @rule()
    def resume(self) -> None:
        self.clock.advance(1)
        self.generator.fail = False
        result = self.memory.resume()
        assert result["episodes"] == len(self.waiting)
        told = {entry["id"]: entry["memory"] for entry in result["results"]}
        self.waiting, waiting = [], self.waiting
        for memory_id, text in told.items():
            entry = self.memory.get(memory_id)
            assert entry is not None
            scope = {name: entry[name] for name in ("user_id", "agent_id", "run_id") if name in entry}
            assert (scope, text) in waiting
            waiting.remove((scope, text))
            self.rows[memory_id] = Row(scope, [text], {})
        for scope, text in waiting:  # what brought nothing new was known
            assert self.reconciled_with(scope, text), (scope, text)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), text=TEXTS, metadata=METADATA)
    def update(self, data: Any, text: str, metadata: Any) -> None:
        self.clock.advance(1)
        memory_id, row = self.some_row(data)
        if row.deleted:
            self.refused(lambda: self.memory.update(memory_id, text))
            return
        self.memory.update(memory_id, text, metadata=metadata)
        row.texts.append(text)
        row.metadata = row.metadata if metadata is None else metadata

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        self.clock.advance(1)
        memory_id, row = self.some_row(data)
        if row.deleted:
            self.refused(lambda: self.memory.delete(memory_id))
            return
        self.memory.delete(memory_id)
        row.deleted = True

    @rule(scope=scopes)
    def delete_all(self, scope: dict[str, str]) -> None:
        self.clock.advance(1)
        expected = self.live(scope)
        assert self.memory.delete_all(**scope)["deleted"] == len(expected)
        for row in expected.values():
            row.deleted = True

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), scope=scopes)
    def a_foreign_handle_changes_nothing(self, data: Any, scope: dict[str, str]) -> None:
        memory_id, row = self.some_row(data)
        handle = self.memory.bound(**scope)
        if inside(row.scope, scope):
            return
        assert handle.get(memory_id) is None
        self.refused(lambda: handle.update(memory_id, "stolen"))
        self.refused(lambda: handle.delete(memory_id))
        self.refused(lambda: handle.history(memory_id))

    def refused(self, call: Any) -> None:
        try:
            call()
        except (NotFoundError, ScopeError):
            return
        raise AssertionError("the call went through")

    @rule(hours=st.sampled_from([1, 30]))
    def time_passes(self, hours: int) -> None:
        self.clock.advance(hours * 3600)

    @rule()
    def reopen(self) -> None:
        self.memory.close()
        self.memory = self._open()

    @rule()
    def reindex(self) -> None:
        self.memory.reindex()

    @rule(really=st.sampled_from([False, False, True]))
    def reset(self, really: bool) -> None:
        if not really:
            return
        self.memory.reset()
        self.rows.clear()
        self.waiting.clear()

    # -- what must hold

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def history_tells_every_wording(self, data: Any) -> None:
        memory_id, row = self.some_row(data)
        told = self.memory.history(memory_id)
        assert [entry["new_memory"] for entry in told if entry["event"] != "DELETE"] == row.texts
        assert any(entry["event"] == "DELETE" for entry in told) is row.deleted

    @rule(wanted=st.sampled_from(READS), query=TEXTS, n=st.integers(0, 3))
    def searching(self, wanted: dict[str, str], query: str, n: int) -> None:
        live = self.live(wanted)
        hits = self.memory.search(query, include="facts", limit=1000, **wanted)["results"]  # type: ignore[arg-type]
        found = {hit["id"]: hit["memory"] for hit in hits}
        assert len(found) == len(hits)
        assert found.items() <= {memory_id: row.text for memory_id, row in live.items()}.items()
        asked = set(query.split())
        for memory_id, row in live.items():
            if asked & set(row.text.split()):
                assert memory_id in found, (query, row)
        hits = self.memory.search(query, include="facts", limit=1000, filters={"n": n}, **wanted)["results"]  # type: ignore[arg-type]
        assert {hit["id"] for hit in hits} <= {i for i, row in live.items() if row.metadata.get("n") == n}
        listed = self.memory.get_all(filters={"n": {"gte": n}}, **wanted)["results"]  # type: ignore[arg-type]
        assert [e["id"] for e in listed] == [i for i, row in live.items() if row.metadata.get("n", -1) >= n]

    @rule(wanted=st.sampled_from(READS))
    def listing(self, wanted: dict[str, str]) -> None:
        listed = self.memory.get_all(**wanted)["results"]  # type: ignore[arg-type]
        shown = [(e["id"], e["memory"], e["metadata"], e["version"]) for e in listed]
        assert shown == [(i, row.text, row.metadata, len(row.texts)) for i, row in self.live(wanted).items()]
        for entry in listed:
            assert {n: entry[n] for n in ("user_id", "agent_id", "run_id") if n in entry} == self.rows[
                entry["id"]
            ].scope
        versions = [entry["memory"] for entry in self.memory.all_versions(**wanted)]
        past = [
            text
            for row in self.rows.values()
            if inside(row.scope, wanted) and (row.expires_at is None or row.expires_at > self.clock.now)
            for text in (row.texts if row.deleted else row.texts[:-1])
        ]
        assert versions == past

    @invariant()
    def the_file_is_sound(self) -> None:
        self.steps += 1
        if self.steps % CHECK_EVERY == 0:
            assert self.memory.check() == []

    @invariant()
    def the_same_episodes_wait(self) -> None:
        assert len(self.memory.pending()) == len(self.waiting)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
