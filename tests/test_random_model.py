"""A random run against a plain model: whatever happens in whatever order, the file shows what was written.

The model keeps one Entry a memory and knows only the rules of the documentation: each id given must match and ids
not given are free; what is older than the head takes its place in the past; deleted and expired is not shown.
Extraction and decisions follow the scripts of doubles.py, so the model is told what was decided, checks that the
right neighbours were shown, and predicts what the file makes of it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from doubles import Listener, follow_decide, following_scripts, parse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from localmem import ingest, rank, secrets
from localmem.config import Limits
from localmem.dates import to_iso
from localmem.errors import GeneratorError, NotFoundError, ScopeError
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder
from localmem.types import Decision, Fact, Instant, Neighbour, Op, Scope

SECOND = 1_000_000
SHOWN_MAX = Limits().neighbours_per_fact
CANDIDATES_MAX = 4 * SHOWN_MAX  # of one owner, so many are looked at for sure
EMBEDDER = HashEmbedder()
UNKNOWN_ID = "01900000-0000-7000-8000-000000000000"

# -------------------------------------------------------------------- what is drawn

SCOPES = [
    Scope(user, agent, run)
    for user, agent, run in product((None, "ann", "bob"), (None, "chef"), (None, "r1", "r2"))
    if (user, agent, run) != (None, None, None)
]
ASKED = [*SCOPES, Scope("nobody"), Scope("ann", "nobody"), Scope(None, None, "nobody")]
WORDS = (
    "User the a tea coffee boat Rome Zoë's café кот й 東京に住む 🐈 42 v1.2-b 3,5 «Nord» drop-table 'x' \"y\" AND NOT *"
)


def storable(text: str) -> bool:
    """Not blank, and not masked as a secret."""
    return bool(text.strip()) and secrets.mask(text, text).text == text


any_scope, asked_scope = st.sampled_from(SCOPES), st.sampled_from(ASKED)
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.one_of(
    st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=6).map(" ".join),
    st.text(characters, min_size=1, max_size=40),
).filter(storable)
said_at = st.none() | st.integers(-40, 40)  # seconds from now
expiry = st.one_of(st.none(), st.none(), st.integers(-20, 60))  # seconds from now
tags = st.fixed_dictionaries({}, optional={"tag": st.sampled_from(["red", "blue"]), "rank": st.integers(0, 3)})
leaves = st.one_of(
    st.builds(lambda tag: {"tag": tag}, st.sampled_from(["red", "blue"])),
    st.builds(lambda tag: {"tag": {"ne": tag}}, st.sampled_from(["red", "blue"])),
    st.builds(lambda tags: {"tag": {"in": tags}}, st.lists(st.sampled_from(["red", "blue"]), min_size=1)),
    st.builds(lambda n: {"rank": {"gte": n}}, st.integers(0, 3)),
    st.builds(lambda n: {"rank": {"lt": n}}, st.integers(0, 3)),
    st.builds(lambda b: {"rank": {"exists": b}}, st.booleans()),
)
filter_trees = st.one_of(
    leaves,
    st.builds(lambda a, b: {"AND": [a, b]}, leaves, leaves),
    st.builds(lambda a, b: {"OR": [a, b]}, leaves, leaves),
    st.builds(lambda a: {"NOT": a}, leaves),
)
things = st.sampled_from(["tea", "boats", "Rome"])
fact_texts = st.builds("User {} {}".format, st.sampled_from(["likes", "has", "hates", "sells", "paints"]), things)
directives = st.one_of(
    st.just(""),
    st.builds(" | changes: {}".format, things),
    st.builds(" | retracts: {}".format, things),
    st.builds(" | contests: {}".format, things),
    st.just(" | unsupported"),
)
script_lines = st.builds(lambda text, directive: f"fact: {text}{directive}", fact_texts, directives)
scripts = st.lists(script_lines | st.just("nothing much today"), min_size=1, max_size=4).map("\n".join)
picks = st.integers(0, 10_000)


def passes(metadata: Mapping[str, Any], tree: Mapping[str, Any] | None) -> bool:
    """What filters mean, said once more."""
    if tree is None:
        return True
    ((name, wanted),) = tree.items()
    if name == "AND":
        return all(passes(metadata, branch) for branch in wanted)
    if name == "OR":
        return any(passes(metadata, branch) for branch in wanted)
    if name == "NOT":
        return not passes(metadata, wanted)
    if not isinstance(wanted, Mapping):
        wanted = {"eq": wanted}
    ((operator, operand),) = wanted.items()
    if name not in metadata:
        return operator == "ne" or (operator == "exists" and not operand)
    value = metadata[name]
    return {
        "eq": lambda: value == operand,
        "ne": lambda: value != operand,
        "in": lambda: value in operand,
        "gte": lambda: value >= operand,
        "lt": lambda: value < operand,
        "exists": lambda: operand,
    }[operator]()


# -------------------------------------------------------------------- the model


@dataclass
class Entry:
    """What one memory should be. ``versions`` holds the texts by number, from 1, ``begins`` when each became true."""

    id: str | None  # None: a ghost, nobody was told of it yet
    scope: Scope
    versions: list[str]
    begins: list[Instant]
    metadata: dict[str, Any]
    expires_at: Instant | None
    said: list[Instant] = field(default_factory=list)  # when the head's text was said; by hand it was not
    head: int = 1
    deleted: bool = False
    delete_event_at: Instant = 0
    ghost: bool = False  # the tombstone of what had ended before it was known

    @property
    def text(self) -> str:
        return self.versions[self.head - 1]

    @property
    def valid_from(self) -> Instant:
        return self.begins[self.head - 1]

    def begin(self, at: Instant) -> None:
        self.begins[self.head - 1] = at

    def keep_earlier(self, text: str, at: Instant) -> str:
        """A version that never was the head."""
        self.versions.append(text)
        self.begins.append(at)
        self.ghost = False
        return "NOOP"

    def was_said_after(self, at: Instant) -> bool:
        return any(said > at for said in self.said)

    def split(self, at: Instant) -> None:
        """The head was said before and again after: what was before becomes a version of its own."""
        if at > self.valid_from:
            self.keep_earlier(self.text, self.valid_from)
        self.begin(min(said for said in self.said if said > at))

    def history(self) -> list[tuple[str, str | None, str | None, int]]:
        """(event, old, new, version) of every step."""
        steps: list[tuple[str, str | None, str | None, int]] = []
        for i, text in enumerate(self.versions):
            steps.append(("UPDATE" if i else "ADD", self.versions[i - 1] if i else None, text, i + 1))
        if self.deleted:
            steps.append(("DELETE", self.text, None, self.head))
        return steps


@dataclass
class Episode:
    """An add that is not finished yet."""

    id: str
    scope: Scope
    content: str
    event_at: Instant
    metadata: dict[str, Any]
    expires_at: Instant | None


@dataclass
class Model:
    """All memories ever, in the order they were made."""

    clock: FixedClock
    entries: list[Entry] = field(default_factory=list)
    pending: list[Episode] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)  # in the order they were first seen
    contested: set[frozenset[str]] = field(default_factory=set)

    def see(self, scope: Scope) -> None:
        if scope.owner not in self.owners:
            self.owners.append(scope.owner)

    def shown(self, scope: Scope, tree: Mapping[str, Any] | None = None) -> list[Entry]:
        return [e for e in self.entries if not e.deleted and self._in_reach(e, scope) and passes(e.metadata, tree)]

    def past(self, scope: Scope) -> list[tuple[str, int]]:
        """(text, number) of every superseded or deleted version."""
        return [
            (text, i + 1)
            for e in self.entries
            if not e.ghost and self._in_reach(e, scope)
            for i, text in enumerate(e.versions)
            if e.deleted or i + 1 != e.head
        ]

    def _in_reach(self, entry: Entry, scope: Scope) -> bool:
        return within(scope, entry.scope) and not self.expired(entry)

    def expired(self, entry: Entry) -> bool:
        return entry.expires_at is not None and entry.expires_at <= self.clock.now

    def waiting(self, scope: Scope) -> list[Episode]:
        """Pending episodes in the order they are to be finished."""
        found = [episode for episode in self.pending if within(scope, episode.scope)]
        return sorted(found, key=lambda episode: (self.owners.index(episode.scope.owner), episode.event_at))

    # -- changes; each returns the event that a caller is told

    def add(self, entry: Entry) -> str:
        self.see(entry.scope)
        self.entries.append(entry)
        return "ADD"

    def update(
        self, entry: Entry, text: str, at: Instant, metadata: Mapping[str, Any] | None = None, *, by_hand: bool = False
    ) -> str:
        if entry.deleted or at < entry.valid_from:
            return entry.keep_earlier(text, at)
        if not by_hand and entry.was_said_after(at):
            entry.split(at)
            return entry.keep_earlier(text, at)
        entry.versions.append(text)
        entry.begins.append(at)
        entry.head, entry.said = len(entry.versions), [] if by_hand else [at]
        if metadata is not None:
            entry.metadata = dict(metadata)
        self._settle(entry)
        return "UPDATE"

    def retract(self, entry: Entry, at: Instant) -> str:
        """A deletion by what was said: only of what was said before it."""
        if entry.deleted or at < entry.valid_from:
            return "NOOP"
        if entry.was_said_after(at):
            entry.split(at)
            return "NOOP"
        return self.delete(entry, at)

    def delete(self, entry: Entry, at: Instant) -> str:
        entry.deleted, entry.delete_event_at = True, max(at, entry.valid_from)
        self._settle(entry)
        return "DELETE"

    def confirm(self, entry: Entry, fact: Fact) -> str:
        at = fact.event_at
        if entry.deleted:
            return entry.keep_earlier(fact.text, at)
        entry.said.append(at)
        if at < entry.valid_from:
            others = [begin for i, begin in enumerate(entry.begins) if i + 1 != entry.head]
            if any(at < begin <= entry.valid_from for begin in others):
                return entry.keep_earlier(fact.text, at)
            entry.begin(at)
        return "NOOP"

    def _settle(self, entry: Entry) -> None:
        self.contested = {pair for pair in self.contested if entry.id not in pair}

    # -- an episode

    def neighbours(self, scope: Scope, event_at: Instant) -> list[Entry]:
        """Whom a fact of this scope may meet."""
        return [
            e
            for e in self.entries
            if e.scope.owner == scope.owner
            and e.scope.run_id in (None, scope.run_id)
            and e.scope.agent_id in (None, scope.agent_id)
            and (e.delete_event_at > event_at if e.deleted else not self.expired(e))
        ]

    def check_neighbours(self, episode: Episode, near: Sequence[Neighbour]) -> None:
        allowed = self.neighbours(episode.scope, episode.event_at)
        for neighbour in near:
            entry = self._named(neighbour, allowed)
            assert (entry.text, entry.deleted, entry.head) == (neighbour.text, neighbour.deleted, neighbour.version)
        assert len({neighbour.id for neighbour in near}) == len(near)
        owned = [e for e in self.entries if e.scope.owner == episode.scope.owner and not e.deleted]
        if len(owned) <= CANDIDATES_MAX:
            assert len(near) == min(len(allowed), SHOWN_MAX)

    def _named(self, neighbour: Neighbour, allowed: Sequence[Entry]) -> Entry:
        """The entry of a neighbour; a ghost gets its name when it is first met."""
        for entry in allowed:
            if entry.id == neighbour.id:
                return entry
        for entry in allowed:
            same = (entry.text, entry.valid_from, entry.scope.agent_id, entry.scope.run_id)
            seen = (neighbour.text, neighbour.event_at, neighbour.agent_id, neighbour.run_id)
            if entry.id is None and entry.ghost and same == seen:
                entry.id = neighbour.id
                return entry
        raise AssertionError(f"a foreign neighbour was shown: {neighbour}")

    def by_id(self, memory_id: str) -> Entry:
        (entry,) = [e for e in self.entries if e.id == memory_id]
        return entry

    def decide(self, episode: Episode, decision: Decision, told: Iterator[Mapping[str, Any]]) -> None:
        """Carry out one decision; ``told`` are the entries of the results that are still to come."""
        fact = decision.fact
        if decision.op is Op.ADD:
            change = next(told)
            self.add(self._made(episode, fact.text, change["id"]))
            expect(change, "ADD", fact.text)
            still = [n.id for n in decision.contested if not self.by_id(n.id).deleted]
            self.contested |= {frozenset((change["id"], other)) for other in still}
            if decision.ends:
                self._end(episode, decision.ends)
        elif decision.op is Op.UPDATE:
            entry = self.by_id(decision.targets[0].id)
            if self.update(entry, decision.text or fact.text, fact.event_at) == "UPDATE":
                expect(next(told), "UPDATE", entry.text, entry.id)
        elif decision.op is Op.DELETE:
            for target in decision.targets:
                entry = self.by_id(target.id)
                if self.retract(entry, fact.event_at) == "DELETE":
                    expect(next(told), "DELETE", entry.text, entry.id)
        elif decision.targets:
            self.confirm(self.by_id(decision.targets[0].id), fact)

    def _end(self, episode: Episode, text: str) -> None:
        """The tombstone of what had ended before it was known."""
        ghost = self._made(episode, text, None)
        ghost.ghost = ghost.deleted = True
        ghost.delete_event_at = episode.event_at
        self.add(ghost)

    def _made(self, episode: Episode, text: str, memory_id: str | None) -> Entry:
        scope, metadata = episode.scope, dict(episode.metadata)
        at = episode.event_at
        return Entry(memory_id, scope, [text], [at], metadata, episode.expires_at, [at])


def within(asked: Scope, held: Scope) -> bool:
    """Each id given must match; ids not given are free."""
    pairs = ((asked.user_id, held.user_id), (asked.agent_id, held.agent_id), (asked.run_id, held.run_id))
    return all(want in (None, have) for want, have in pairs)


def expect(change: Mapping[str, Any], event: str, text: str, memory_id: str | None = None) -> None:
    assert (change["event"], change["memory"]) == (event, text)
    assert memory_id in (None, change["id"])


def ids_of(scope: Scope) -> dict[str, str]:
    pairs = {"user_id": scope.user_id, "agent_id": scope.agent_id, "run_id": scope.run_id}
    return {name: value for name, value in pairs.items() if value is not None}


def proposed(content: str) -> list[str]:
    """The facts of a script that reach the decision: near duplicates of an earlier one don't."""
    lines = [line for line in map(parse, content.split("\n")) if line and "unsupported" not in line.directives]
    kept: list[str] = []
    for line in lines:
        vector = EMBEDDER.embed_query(line.text)
        if all(float(vector @ EMBEDDER.embed_query(other)) < rank.NEAR_DUPLICATE_COSINE for other in kept):
            kept.append(line.text)
    return kept


# -------------------------------------------------------------------- the random run

Call = tuple[Sequence[Fact], Sequence[Sequence[Neighbour]], Sequence[Decision]]


class RandomRun(RuleBasedStateMachine):
    """Every rule does the same to the file and to the model, and compares what came back."""

    def __init__(self) -> None:
        super().__init__()
        self.leaving = contextlib.ExitStack()
        folder = self.leaving.enter_context(tempfile.TemporaryDirectory(prefix="localmem-random-"))
        self.leaving.enter_context(following_scripts())
        self.leaving.enter_context(mock.patch.object(ingest, "decide_all", self._decide))
        self.path = Path(folder) / "memory.db"
        self.clock, self.generator = FixedClock(), Listener()
        self.model = Model(self.clock)
        self.calls: list[Call] = []
        self.steps = 0
        self.homes = SCOPES
        self.memory = self._open()

    def _open(self) -> Memory:
        return Memory(self.path, embedder=EMBEDDER, generator=self.generator, clock=self.clock, durability="process")

    def _decide(self, generator: Any, facts: Any, near: Any, **options: Any) -> list[Decision]:
        decisions = follow_decide(generator, facts, near, **options)
        self.calls.append((facts, near, decisions))
        return decisions

    def teardown(self) -> None:
        try:
            assert self.memory.check() == []
            self.memory.close()
            self.memory = self._open()
            self._compare_everything()
        finally:
            self.memory.close()
            self.leaving.close()

    def _compare_everything(self) -> None:
        for scope in ASKED:
            self._compare(self.memory.get_all(**ids_of(scope)), self.model.shown(scope))
        for entry in self.model.entries:
            self._compare_history(entry)

    @initialize(homes=st.lists(any_scope, min_size=1, max_size=4, unique=True))
    def choose(self, homes: list[Scope]) -> None:
        """Few scopes a run, so that memories meet."""
        self.homes = homes

    # -- help

    def _at(self, seconds: int | None) -> int | None:
        """Unix seconds, as a caller would give them."""
        return None if seconds is None else self.clock.now // SECOND + seconds

    def _event_at(self, seconds: int | None) -> Instant:
        at = self._at(seconds)
        return self.clock.now if at is None else at * SECOND

    def _home(self, pick: int) -> Scope:
        return self.homes[pick % len(self.homes)]

    def _pick(self, pick: int) -> Entry:
        named = [e for e in self.model.entries if e.id is not None]
        return named[pick % len(named)]

    def _episode(self, scope: Scope, content: str, metadata: Any, said: int | None, expires: int | None) -> Episode:
        end = self._at(expires)
        return Episode("", scope, content, self._event_at(said), metadata, None if end is None else end * SECOND)

    def _compare(self, found: Any, wanted: Sequence[Entry]) -> None:
        assert [record["id"] for record in found["results"]] == [entry.id for entry in wanted]
        for record, entry in zip(found["results"], wanted, strict=True):
            self._compare_record(record, entry)

    def _compare_record(self, record: Mapping[str, Any], entry: Entry) -> None:
        assert (record["id"], record["memory"], record["version"]) == (entry.id, entry.text, entry.head)
        assert record["metadata"] == entry.metadata
        assert record["valid_from"] == to_iso(entry.valid_from)
        assert record.get("expires_at") == (None if entry.expires_at is None else to_iso(entry.expires_at))
        assert {name: record[name] for name in ("user_id", "agent_id", "run_id") if name in record} == ids_of(
            entry.scope
        )
        others = {other for pair in self.model.contested if entry.id in pair for other in pair} - {entry.id}
        assert set(record.get("contested_with", ())) == others

    def _compare_history(self, entry: Entry) -> None:
        if entry.id is None:
            return
        told = self.memory.history(entry.id)
        assert [(s["event"], s["old_memory"], s["new_memory"], s["version"]) for s in told] == entry.history()

    def _follow(self, episodes: Sequence[Episode], results: Sequence[Mapping[str, Any]]) -> None:
        """What the scripts decided, episode by episode, against what the caller was told."""
        told, calls, self.calls = iter(results), self.calls, []
        assert len(calls) == len(episodes)
        for episode, (facts, near, decisions) in zip(episodes, calls, strict=True):
            assert [fact.text for fact in facts] == proposed(episode.content)
            for shown in near:
                self.model.check_neighbours(episode, shown)
            for decision in decisions:
                self.model.decide(episode, decision, told)
        assert list(told) == []

    # -- writing

    @rule(home=picks, said=st.lists(texts, min_size=1, max_size=3), metadata=tags, at=said_at, ends=expiry)
    def add_verbatim(self, home: int, said: list[str], metadata: Any, at: int | None, ends: int | None) -> None:
        scope = self._home(home)
        whole = "\n".join(said)
        said = [secrets.mask(text, whole).text for text in said]
        added = self.memory.add(
            [{"role": "user", "content": text} for text in said],
            **ids_of(scope),
            metadata=metadata,
            infer=False,
            timestamp=self._at(at),
            expires_at=self._at(ends),
        )
        assert len(added["results"]) == len(said)
        episode = self._episode(scope, "", metadata, at, ends)
        for text, change in zip(said, added["results"], strict=True):
            expect(change, self.model.add(self.model._made(episode, text, change["id"])), text)

    @rule(home=picks, script=scripts, metadata=tags, at=said_at, ends=expiry, broken=st.sampled_from([0, 0, 1]))
    def add_scripted(
        self, home: int, script: str, metadata: Any, at: int | None, ends: int | None, broken: int
    ) -> None:
        scope = self._home(home)
        options = {"metadata": metadata, "timestamp": self._at(at), "expires_at": self._at(ends), **ids_of(scope)}
        episode = self._episode(scope, script, metadata, at, ends)
        self.model.see(scope)
        self.generator.fail = bool(broken)
        try:
            added = self.memory.add(script, **options)
        except GeneratorError as error:
            assert broken
            episode.id = error.episode_id
            self.model.pending.append(episode)
            return
        finally:
            self.generator.fail = False
        assert not broken
        self._follow([episode], added["results"])

    @rule(home=picks, scripted=st.lists(st.tuples(scripts, said_at), min_size=2, max_size=4))
    def add_several(self, home: int, scripted: list[tuple[str, int | None]]) -> None:
        """More reconciling, out of the order of time."""
        for script, at in scripted:
            self.add_scripted(home, script, {}, at, None, 0)

    @rule(scope=st.none() | asked_scope, limit=st.none() | st.integers(0, 3))
    def resume(self, scope: Scope | None, limit: int | None) -> None:
        waiting = self.model.waiting(scope or Scope())[:limit]
        resumed = self.memory.resume(**ids_of(scope or Scope()), limit=limit)
        assert resumed["episodes"] == len(waiting)
        self._follow(waiting, resumed["results"])
        self.model.pending = [episode for episode in self.model.pending if episode not in waiting]

    @precondition(lambda self: any(e.id for e in self.model.entries))
    @rule(pick=picks, text=st.none() | texts, metadata=st.none() | tags, at=said_at)
    def update(self, pick: int, text: str | None, metadata: Any, at: int | None) -> None:
        entry = self._pick(pick)
        if text is None and metadata is None:
            metadata = {}
        if entry.deleted:
            with pytest.raises(NotFoundError):
                self.memory.update(entry.id, text, metadata=metadata, timestamp=self._at(at))
            return
        when = max(self.clock.now, entry.valid_from) if at is None else self._event_at(at)
        told = self.memory.update(entry.id, text, metadata=metadata, timestamp=self._at(at))["results"]
        event = self.model.update(entry, entry.text if text is None else text, when, metadata, by_hand=True)
        assert [(change["id"], change["event"], change["memory"]) for change in told] == [(entry.id, event, entry.text)]

    @precondition(lambda self: any(e.id for e in self.model.entries))
    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        entry = self._pick(pick)
        if entry.deleted:
            with pytest.raises(NotFoundError):
                self.memory.delete(entry.id)
            return
        told = self.memory.delete(entry.id)["results"]
        self.model.delete(entry, self.clock.now)
        assert [(change["id"], change["event"]) for change in told] == [(entry.id, "DELETE")]
        assert self.memory.get(entry.id) is None

    @rule(scope=asked_scope, bound=st.booleans())
    def delete_all(self, scope: Scope, bound: bool) -> None:
        gone = self.model.shown(scope)
        told = self.memory.bound(**ids_of(scope)).delete_all() if bound else self.memory.delete_all(**ids_of(scope))
        assert told["deleted"] == len(gone)
        for entry in gone:
            self.model.see(scope)
            self.model.delete(entry, self.clock.now)

    # -- reading

    @rule(scope=asked_scope, tree=st.none() | filter_trees, limit=st.none() | st.integers(0, 5), inside=st.booleans())
    def get_all(self, scope: Scope, tree: Any, limit: int | None, inside: bool) -> None:
        wanted = self.model.shown(scope, tree)
        if inside:  # the 2.x dialect
            found = self.memory.get_all(filters={**ids_of(scope), **(tree or {})}, top_k=limit)
        else:
            found = self.memory.get_all(**ids_of(scope), filters=tree, limit=limit)
        self._compare(found, wanted[:limit])

    @rule(scope=asked_scope)
    def list_past_and_pending(self, scope: Scope) -> None:
        told = self.memory.all_versions(**ids_of(scope))
        assert [(record["memory"], record["version"]) for record in told] == self.model.past(scope)
        waiting = [entry["episode_id"] for entry in self.memory.pending(**ids_of(scope))]
        assert waiting == [episode.id for episode in self.model.waiting(scope)]
        contested = [e.id for e in self.model.shown(scope) if any(e.id in pair for pair in self.model.contested)]
        assert [record["id"] for record in self.memory.contested(**ids_of(scope))] == contested

    @precondition(lambda self: any(e.id for e in self.model.entries))
    @rule(pick=picks)
    def get_and_history(self, pick: int) -> None:
        entry = self._pick(pick)
        record = self.memory.get(entry.id)
        assert (record is None) == entry.deleted
        if record is not None:
            self._compare_record(record, entry)
        self._compare_history(entry)

    @rule(
        scope=st.none() | asked_scope,
        home=picks,
        query=texts | fact_texts,
        tree=st.none() | filter_trees,
        limit=st.none() | st.just(3),
    )
    def search(self, scope: Scope | None, home: int, query: str, tree: Any, limit: int | None) -> None:
        scope = scope or self._home(home)
        shown = {entry.id: entry for entry in self.model.shown(scope, tree)}
        turns = [] if tree else [episode.content for episode in self.model.waiting(scope)]
        everything = len(shown) + len(turns)
        found = self.memory.search(query, **ids_of(scope), filters=tree, limit=everything if limit is None else limit)
        hits = found["results"]
        assert len(hits) == (everything if limit is None else min(limit, everything))
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        memories = [hit["id"] for hit in hits if hit["id"] is not None]
        assert len(set(memories)) == len(memories)
        assert set(memories) <= set(shown)
        said = sorted(hit["memory"] for hit in hits if hit["id"] is None)
        assert said == sorted(turns) if limit is None else set(said) <= set(turns)
        for hit in hits:
            if hit["id"] is not None:
                self._compare_record(hit, shown[hit["id"]])

    @precondition(lambda self: any(e.id for e in self.model.entries))
    @rule(pick=picks, scope=asked_scope)
    def search_by_its_own_text(self, pick: int, scope: Scope) -> None:
        """Found in its scope, above all that is less like it; in another scope never."""
        entry = self._pick(pick)
        hits = self.memory.search(entry.text, **ids_of(entry.scope), limit=10)["results"]
        if entry in self.model.shown(entry.scope):
            crowded = len(hits) == 10 and hits[-1]["score"] >= 0.5  # ten others that are as near
            assert crowded or [hit["score"] for hit in hits if hit["id"] == entry.id] >= [0.5]
        else:
            assert entry.id not in [hit["id"] for hit in hits]
        if entry not in self.model.shown(scope):
            assert entry.id not in [hit["id"] for hit in self.memory.search(entry.text, **ids_of(scope), limit=500)]
            assert entry.id not in [hit["id"] for hit in self.memory.search(entry.text, **ids_of(scope), include="all")]

    # -- bound handles

    @precondition(lambda self: any(e.id for e in self.model.entries))
    @rule(pick=picks, scope=asked_scope, read_only=st.booleans())
    def bound_by_id(self, pick: int, scope: Scope, read_only: bool) -> None:
        """A foreign id is answered exactly like an unknown one; one's own exactly like without the handle."""
        entry = self._pick(pick)
        handle = self.memory.bound(**ids_of(scope), read_only=read_only)
        self._compare(handle.get_all(), self.model.shown(scope))
        if within(scope, entry.scope):
            assert handle.get(entry.id) == self.memory.get(entry.id)
            assert handle.history(entry.id) == self.memory.history(entry.id)
        else:
            assert handle.get(entry.id) is handle.get(UNKNOWN_ID) is None
            writing = [] if read_only else [handle.delete, lambda memory_id: handle.update(memory_id, "mine")]
            for call in (handle.history, *writing):
                assert answer(call, entry.id) == answer(call, UNKNOWN_ID)
        if read_only:
            for call in (lambda: handle.delete(entry.id), lambda: handle.add("x", infer=False), handle.delete_all):
                with pytest.raises(ScopeError):
                    call()
        other = next(s for s in SCOPES if s.user_id and s.user_id != scope.user_id)
        if scope.user_id:
            with pytest.raises(ScopeError):
                handle.get_all(user_id=other.user_id)

    @rule(scope=any_scope, inner=any_scope, text=texts)
    def bound_add_and_search(self, scope: Scope, inner: Scope, text: str) -> None:
        """A handle's own ids are always part of the scope."""
        merged = {}
        for name in ("user_id", "agent_id", "run_id"):
            fixed, asked = ids_of(scope).get(name), ids_of(inner).get(name)
            if fixed and asked and fixed != asked:
                with pytest.raises(ScopeError):
                    self.memory.bound(**ids_of(scope)).add(text, **ids_of(inner), infer=False)
                return
            merged[name] = fixed or asked
        where = Scope(**merged)
        handle = self.memory.bound(**ids_of(scope))
        added = handle.add(text, **ids_of(inner), infer=False)
        now = self.clock.now
        entry = Entry(added["results"][0]["id"], where, [text], [now], {}, None, [now])
        self.model.add(entry)
        assert handle.search(text, limit=500) == self.memory.search(text, **ids_of(scope), limit=500)

    # -- time, and the file itself

    @rule(seconds=st.integers(-90, 120))
    def clock_moves(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def reopen(self) -> None:
        self.memory.close()
        self.memory = self._open()

    @rule()
    def reindex(self) -> None:
        self.memory.reindex()
        assert self.memory.check() == []

    @invariant()
    def the_file_is_sound(self) -> None:
        self.steps += 1
        if self.steps % 8 == 0:
            assert self.memory.check() == []


def answer(call: Any, memory_id: str) -> tuple[type[BaseException], str]:
    """The error of a call, without the id that it names."""
    with pytest.raises(NotFoundError) as caught:
        call(memory_id)
    return caught.type, str(caught.value).replace(memory_id, "…")


RandomRun.TestCase.settings = settings(max_examples=60, stateful_step_count=50)
test_random_run = RandomRun.TestCase


# -------------------------------------------------------------------- isolation

PAIRS = [  # (mine, another owner's): no row of the second can be in reach of the first
    (Scope("ann"), Scope("bob")),
    (Scope("ann"), Scope("bob", "chef", "r1")),
    (Scope("ann", "chef"), Scope("bob", "chef")),
    (Scope("ann", None, "r1"), Scope(None, "chef", "r1")),
    (Scope(None, "chef"), Scope("bob")),
    (Scope(None, "chef"), Scope(None, "guide", "r1")),
    (Scope(None, None, "r1"), Scope("bob", None, "r2")),
]
Write = tuple[str, str, int]
writes = st.lists(
    st.tuples(st.sampled_from(["verbatim", "scripted", "broken", "update", "delete"]), texts, picks), max_size=6
)


def carry_out(memory: Memory, generator: Listener, scope: Scope, write: Write) -> None:
    """One write in a scope."""
    kind, text, pick = write
    held = memory.get_all(**ids_of(scope))["results"]
    if kind == "verbatim" or (kind in ("update", "delete") and not held):
        memory.add(text, **ids_of(scope), infer=False)
    elif kind == "scripted":
        memory.add(f"fact: User likes {text.split()[0]}", **ids_of(scope))
    elif kind == "broken":
        generator.fail = True
        with contextlib.suppress(GeneratorError):
            memory.add(f"fact: {text}", **ids_of(scope))
        generator.fail = False
    elif kind == "update":
        memory.update(held[pick % len(held)]["id"], text)
    else:
        memory.delete(held[pick % len(held)]["id"])


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
@settings(max_examples=12)
@given(my_writes=writes, their_writes=writes.filter(bool), queries=st.lists(texts, min_size=1, max_size=2))
def test_what_others_write_changes_nothing_of_mine(
    mine: Scope, theirs: Scope, my_writes: list[Write], their_writes: list[Write], queries: list[str]
) -> None:
    """Ids, texts and scores: not even a score may tell of another owner's words."""
    generator = Listener()
    with (
        following_scripts(),
        Memory(":memory:", embedder=EMBEDDER, generator=generator, clock=FixedClock()) as memory,
    ):
        for write in my_writes:
            carry_out(memory, generator, mine, write)
        queries = [*queries, *(text for _, text, _ in my_writes)]

        def seen() -> list[Any]:
            asked = [
                memory.search(q, **ids_of(mine), include=i) for q in queries for i in ("pending", "all", "history")
            ]
            return [*asked, memory.get_all(**ids_of(mine)), memory.context(queries[0], **ids_of(mine))]

        before = seen()
        for write in their_writes:
            carry_out(memory, generator, theirs, write)
        assert seen() == before
        memory.reindex()
        assert seen() == before
