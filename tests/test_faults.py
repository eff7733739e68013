"""Every write path of Memory under every fault below SQLite, and killed at sampled statements.

Afterwards the file is sound (check() is empty) and holds what it held before or what it should hold after. Where the
story has two writes (the words first, their facts later), a pending episode may lie between; resume() finishes it once.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import faults
import pytest

from localmem import ingest, prompts
from localmem.db import schema
from localmem.errors import GeneratorError, LocalmemError
from localmem.memory import Memory
from localmem.store import Store
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator
from localmem.types import Prompt

POINTS_MAX = 9  # writes, and as many other operations, of each kind of fault; the first and the last always
KILLS_MAX = 16  # statements of one action
ANN = {"user_id": "ann"}


# what the file holds


@dataclass(frozen=True, slots=True)
class State:
    """What a user could tell apart, without ids and times of recording."""

    memories: tuple[Any, ...] = ()
    episodes: tuple[Any, ...] = ()
    decisions: tuple[Any, ...] = ()
    revisions: tuple[Any, ...] = ()
    tables: tuple[str, ...] = ()


def observe(path: Path) -> State:
    """The state of a sound file. Fails where check() finds something broken."""
    state = read_state(path)
    if path.exists():
        with memory_at(path) as memory:
            assert memory.check() == []
    return state


def read_state(path: Path) -> State:
    """Read by plain SQL, so that Memory cannot hide from itself what it wrote."""
    if not path.exists():
        return State()
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        tables = tuple(name for (name,) in connection.execute("select name from sqlite_schema order by name"))
        if "episode" not in tables:
            return State(tables=tables)

        def rows(sql: str) -> tuple[Any, ...]:
            return tuple(connection.execute(sql).fetchall())

        return State(
            memories=rows(
                "select m.seq, o.token, m.agent_id, m.run_id, m.metadata, m.deleted_at is null, m.delete_reason, "
                "m.confirmed_at, v.number, v.text, v.valid_from, v.valid_to, v.superseded_at is null, v.reason, "
                "v.suppressed, m.head = v.id, (select count(*) from contested c where c.memory_id = m.id), "
                "(select group_concat(kind || start || '-' || stop) from evidence e where e.version_id = v.id) "
                "from memory m join owner o on o.id = m.owner_id join version v on v.memory_id = m.id "
                "order by m.seq, v.number"
            ),
            episodes=rows(
                "select e.seq, o.token, e.state, e.mode, t.position, t.role, t.content, t.suppressed_at is null "
                "from episode e join owner o on o.id = e.owner_id join message t on t.episode_id = e.id "
                "order by e.seq, t.position"
            ),
            decisions=rows(
                "select e.seq, d.position, d.fact, d.op, d.text, json_array_length(d.targets), d.suppressed, "
                "d.unsupported from decision d join episode e on e.id = d.episode_id order by d.id"
            ),
            revisions=rows("select token, revision from owner order by token"),
            tables=tables,
        )


def is_pending(now: State, before: State) -> bool:
    """The words are safe and wait for resume(); nothing has been made of them yet."""
    new = now.episodes[len(before.episodes) :]
    return (
        bool(new)
        and all(state == "pending" for _, _, state, *_ in new)
        and now.episodes[: len(before.episodes)] == before.episodes
        and (now.memories, now.decisions) == (before.memories, before.decisions)
    )


# what is done to the file

Change = Callable[[Memory], object]


def memory_at(
    path: Path,
    vfs: str | None = None,
    generator: ScriptedGenerator | None = None,
    durability: str = "power",
    worker: bool = False,
) -> Memory:
    return Memory(
        path,
        embedder=HashEmbedder(),
        generator=generator or scripted(),
        durability=durability,
        clock=FixedClock(),
        vfs=vfs,
        worker=worker,
    )


def doing(change: Change) -> faults.Act:
    """Open, change, promise, close."""

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with memory_at(path, vfs.name) as memory:
            change(memory)
            acknowledge()

    return act


def complete(memory: Memory, change: Change) -> None:
    """What a user does next: resume what is pending (twice, to see that once is enough), else try again."""
    if waiting := memory.pending():
        assert memory.resume()["episodes"] == len(waiting)
        assert memory.resume()["episodes"] == 0
    else:
        change(memory)


def completing(change: Change) -> Callable[[Path], None]:
    """`complete` on the file."""

    def finish(path: Path) -> None:
        with memory_at(path) as memory:
            complete(memory, change)

    return finish


# the story used throughout: four facts that become ADD, UPDATE, DELETE and NOOP

KNOWN = ("User lives in Porto", "User has a dog called Rex", "User drinks oat milk")
SAID = "I live in Lisbon now, not in Porto. I no longer have a dog called Rex. I play the cello. I drink oat milk."
FACTS = (
    "User plays the cello",
    "User lives in Lisbon now",
    "User no longer has a dog called Rex",
    "User drinks oat milk",
)

SCRIPT = {"boat": ["User bought a small boat"], "Lisbon": FACTS}


def scripted() -> ScriptedGenerator:
    return ScriptedGenerator(SCRIPT, labels=relations)


def relations(prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
    """Log-probabilities: Lisbon changes Porto, the second Rex retracts the first, all else is unrelated."""
    known, _, new = prompt.turns[-1][1].partition("New:")
    if "Porto" in known and "Lisbon" in new:
        meant = "changes"
    elif "Rex" in known and "Rex" in new:
        meant = "retracts"
    else:
        meant = "unrelated"
    likely = prompts.load("relation").labels[meant]
    return tuple(-0.01 if label == likely else -12.0 for label in labels)


def nothing(path: Path) -> None:
    """The file is not there yet."""


def known(path: Path) -> None:
    """A file with Ann's memories, and one of Bob's that must not move."""
    with memory_at(path) as memory:
        for text in KNOWN:
            memory.add(text, infer=False, timestamp=1_700_000_000, **ANN)
        memory.add("User lives in Porto", infer=False, user_id="bob")


def half_told(path: Path) -> None:
    """`known`, and the story's words recorded while the model was broken."""
    known(path)
    broken = ScriptedGenerator(fail=True)
    with memory_at(path, generator=broken) as memory, pytest.raises(GeneratorError):
        tell(memory)


def told(path: Path) -> None:
    """`known`, and the story."""
    known(path)
    with memory_at(path) as memory:
        tell(memory)


def tell(memory: Memory) -> object:
    return memory.add([{"role": "user", "content": SAID}], **ANN)


def the_one(memory: Memory, word: str) -> str:
    """The id of Ann's memory with this word."""
    (found,) = [entry["id"] for entry in memory.get_all(**ANN)["results"] if word in entry["memory"]]
    return str(found)


# every write path

STORY_LIVE = ("User lives in Lisbon now", "User drinks oat milk", "User plays the cello")
LATER = 1_750_000_000  # seconds since 1970, after the story


@dataclass(frozen=True, slots=True)
class WritePath:
    """What the file holds before, what is done, and Ann's live memories afterwards, oldest first."""

    make: Callable[[Path], None]
    change: Change
    live: tuple[str, ...]
    between: faults.Between = faults.never


def add_verbatim(memory: Memory) -> object:
    said = [{"role": "user", "content": "User sails on Sundays"}, {"role": "assistant", "content": "Noted: Sundays"}]
    return memory.add(said, infer=False, metadata={"source": "log"}, **ANN)


def add_several(memory: Memory) -> object:
    later = [{"text": "User sails on Mondays", "timestamp": LATER}]
    sails = {"messages": "User sails on Sundays", "timestamp": 1_700_000_000, "later": later, **ANN}
    many = [sails, {"messages": "User rows", **ANN}, {"messages": "User rows", "user_id": "bob"}]
    return memory.add_many(many, infer=False)


def add_with_a_broken_model(memory: Memory) -> None:
    broken = ScriptedGenerator(fail=True)
    memory._generator = broken
    with pytest.raises(GeneratorError):
        tell(memory)


def tell_and_go_on(memory: Memory) -> object:
    """The story, which is left to the worker; what the assistant says to it is too long to be embedded at once."""
    answer = {"role": "assistant", "content": "I see. " * 200}
    return memory.add([{"role": "user", "content": SAID}, answer], wait=False, **ANN)


def tell_many(memory: Memory) -> object:
    return memory.add_many(["I bought a small boat.", {"messages": SAID, "metadata": {"by": "import"}}], **ANN)


def ask_to_forget(memory: Memory) -> object:
    return memory.add("Please forget that I play the cello.", timestamp=LATER, **ANN)


def ask_to_forget_and_tell(memory: Memory) -> object:
    return memory.add("Please forget that I play the cello. I bought a small boat.", timestamp=LATER, **ANN)


def half_forgotten(now: State, before: State) -> bool:
    """The request is carried out in its own write; the other words of its message still wait."""
    return is_pending(now, before) or (
        bool(now.episodes) and now.episodes[-1][2] == "pending" and "User plays the cello" not in live(now)
    )


def half_made(now: State, _before: State) -> bool:
    """A new file has its tables; the vector tables come with the embedder's identity, in the next write."""
    return "episode" in now.tables and "memory_vec" not in now.tables and not now.episodes


WRITE_PATHS = {
    "first open": WritePath(nothing, lambda memory: None, (), half_made),
    "first add": WritePath(
        nothing, add_verbatim, ("User sails on Sundays", "Noted: Sundays"), lambda now, _: not now.episodes
    ),
    "add verbatim": WritePath(known, add_verbatim, (*KNOWN, "User sails on Sundays", "Noted: Sundays")),
    "add all": WritePath(known, add_several, (*KNOWN, "User sails on Mondays", "User rows")),
    "add": WritePath(known, tell, STORY_LIVE, is_pending),
    "add, broken model": WritePath(known, add_with_a_broken_model, KNOWN),
    "add, waiting": WritePath(known, tell_and_go_on, KNOWN),
    "add many": WritePath(known, tell_many, KNOWN),
    "forget": WritePath(told, ask_to_forget, STORY_LIVE[:2], is_pending),
    "forget and tell": WritePath(
        told, ask_to_forget_and_tell, (*STORY_LIVE[:2], "User bought a small boat"), half_forgotten
    ),
    "resume": WritePath(half_told, lambda memory: memory.resume(), STORY_LIVE),
    "update": WritePath(
        told,
        lambda memory: memory.update(the_one(memory, "cello"), "User plays the viola", metadata={"by": "hand"}),
        (*STORY_LIVE[:2], "User plays the viola"),
    ),
    "delete": WritePath(told, lambda memory: memory.delete(the_one(memory, "cello")), STORY_LIVE[:2]),
    "delete all": WritePath(told, lambda memory: memory.delete_all(**ANN), ()),
    "retain": WritePath(told, lambda memory: memory.retain("none"), STORY_LIVE),
    "reset": WritePath(told, lambda memory: memory.reset(), ()),
}


def live(state: State) -> tuple[str, ...]:
    """Ann's live memories, oldest first."""
    return tuple(row[9] for row in state.memories if row[1] == "u:ann" and row[5] and row[15])


def write_paths(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "path", [pytest.param(WRITE_PATHS[name], id=name.replace(" ", "-")) for name in names or WRITE_PATHS]
    )


@write_paths()
def test_a_write_path_survives_every_fault(tmp_path: Path, path: WritePath) -> None:
    swept = faults.sweep(
        tmp_path,
        make=path.make,
        act=doing(path.change),
        observe=observe,
        errors=(LocalmemError,),
        between=path.between,
        finish=completing(path.change),
        points_max=POINTS_MAX,
    )
    assert isinstance(swept.after, State)
    assert live(swept.after) == path.live
    assert swept.before != swept.after
    assert len({outcome.now for outcome in swept.outcomes}) > 1  # the faults did strike before and after the commit


@write_paths("add verbatim", "add all", "add", "forget and tell", "update", "delete all", "reset")
def test_the_same_handle_works_after_a_failed_write(tmp_path: Path, path: WritePath) -> None:
    def act(file: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with memory_at(file, vfs.name) as memory:
            try:
                path.change(memory)
            except LocalmemError:
                vfs.lift()
                complete(memory, path.change)
            acknowledge()

    swept = faults.sweep(
        tmp_path,
        make=path.make,
        act=act,
        observe=observe,
        errors=(LocalmemError,),
        kinds=faults.ERROR_KINDS,
        points_max=POINTS_MAX,
    )
    assert any(outcome.acknowledged for outcome in swept.outcomes)


@write_paths("add verbatim", "add")
def test_process_durability_may_lose_the_last_commits_but_breaks_nothing(tmp_path: Path, path: WritePath) -> None:
    def act(file: Path, vfs: faults.FaultVFS, _acknowledge: faults.Acknowledge) -> None:
        with memory_at(file, vfs.name, durability="process") as memory:
            path.change(memory)  # not promised beyond the life of the process

    faults.sweep(
        tmp_path,
        make=path.make,
        act=act,
        observe=observe,
        errors=(LocalmemError,),
        between=path.between,
        finish=completing(path.change),
        kinds=("power", "power_torn"),
        points_max=POINTS_MAX,
    )


def test_an_error_that_leaves_an_episode_pending_names_it(tmp_path: Path) -> None:
    """Also where the note of the failure fails as well, because the disk is still full."""
    named: list[tuple[list[str], str | None]] = []

    def act(file: Path, vfs: faults.FaultVFS, _acknowledge: faults.Acknowledge) -> None:
        with memory_at(file, vfs.name) as memory:
            try:
                tell(memory)
            except LocalmemError as error:
                vfs.lift()
                waiting = [episode["episode_id"] for episode in memory.pending()]
                named.append((waiting, getattr(error, "episode_id", None)))
                raise

    faults.sweep(
        tmp_path,
        make=known,
        act=act,
        observe=observe,
        errors=(LocalmemError,),
        between=is_pending,
        kinds=("full",),
        points_max=1_000,  # the case is one write wide
    )
    assert any(waiting for waiting, _ in named)
    assert [(waiting, named_id) for waiting, named_id in named if waiting and waiting != [named_id]] == []


def test_a_file_left_by_a_crash_survives_faults_while_it_is_recovered(tmp_path: Path) -> None:
    def crashed(path: Path) -> None:
        known(path)

        def job(_acknowledge: faults.Acknowledge) -> None:
            memory = memory_at(path)
            tell(memory)
            faults.die()

        assert faults.run_child(job).killed
        assert Path(f"{path}-wal").stat().st_size > 0

    swept = faults.sweep(
        tmp_path,
        make=crashed,
        act=doing(add_verbatim),
        observe=observe,
        errors=(LocalmemError,),
        finish=completing(add_verbatim),
        points_max=POINTS_MAX,
    )
    assert isinstance(swept.after, State)
    assert live(swept.after) == (*STORY_LIVE, "User sails on Sundays", "Noted: Sundays")


def test_a_migration_lands_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invented schema step of several statements, on a file with content."""
    step = """
        create table mood (memory_id text primary key references memory, name text not null) strict;
        insert into mood select id, 'calm' from memory;
        alter table memory add column moods integer;
        update memory set moods = (select count(*) from mood where memory_id = id);
        create index memory_by_mood on memory (moods);
    """
    real, newest = schema.migrations, schema.SCHEMA_VERSION

    def old(path: Path) -> None:
        told(path)
        monkeypatch.setattr(schema, "SCHEMA_VERSION", newest + 1)
        monkeypatch.setattr(schema, "migrations", lambda after: [*real(after), (newest + 1, step)])

    swept = faults.sweep(
        tmp_path,
        make=old,
        act=doing(lambda memory: None),
        observe=observe,
        errors=(LocalmemError,),
        finish=completing(lambda memory: None),
        points_max=POINTS_MAX,
    )
    before, after = swept.before, swept.after
    assert isinstance(before, State)
    assert isinstance(after, State)
    assert set(after.tables) - set(before.tables) == {"mood", "memory_by_mood", "sqlite_autoindex_mood_1"}
    assert after.memories == before.memories


def test_reindex_repairs_whole_or_not_at_all(tmp_path: Path) -> None:
    def damaged(path: Path) -> None:
        told(path)
        with memory_at(path) as memory, memory._engine.store.db.write() as tx:
            tx.execute("delete from memory_vec where rowid = 1")
            tx.execute("insert into memory_fts (memory_fts) values ('delete-all')")

    def with_check(path: Path) -> tuple[State, tuple[str, ...]]:
        with memory_at(path) as memory:
            broken = tuple(memory.check())
        return read_state(path), broken

    swept = faults.sweep(
        tmp_path,
        make=damaged,
        act=doing(lambda memory: memory.reindex()),
        observe=with_check,
        errors=(LocalmemError,),
        finish=completing(lambda memory: memory.reindex()),
        points_max=POINTS_MAX,
    )
    assert swept.before != swept.after
    assert swept.after == (swept.before[0], ())  # type: ignore[index]


# killed with SIGKILL


@write_paths(
    "first open", "add verbatim", "add", "add, waiting", "add many", "forget and tell", "resume", "delete all", "reset"
)
def test_a_write_path_survives_a_kill_at_sampled_statements(tmp_path: Path, path: WritePath) -> None:
    def act(file: Path, acknowledge: faults.Acknowledge) -> None:
        with memory_at(file) as memory:
            path.change(memory)
            acknowledge()

    ends = faults.sweep_kills(
        tmp_path,
        make=path.make,
        act=act,
        observe=observe,
        between=path.between,
        finish=completing(path.change),
        points_max=KILLS_MAX,
    )
    assert len(ends) > 5


def after_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, killing its process as soon as it has done its work."""

    def deadly(*args: Any, **options: Any) -> Any:
        function(*args, **options)
        faults.die()

    return deadly


class DeadlyGenerator(ScriptedGenerator):
    """Kills its process in the middle of a call of the given kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(SCRIPT, labels=relations)
        self._deadly = kind

    def _note(self, kind: str, prompt: Prompt) -> None:
        if kind == self._deadly:
            faults.die()
        super()._note(kind, prompt)


STEPS: dict[str, tuple[object, str] | str] = {
    "recorded": (Store, "record_episodes"),
    "extracting": "generate",
    "extracted": (ingest, "extract"),
    "deciding": "score_labels",
    "decided": (ingest, "decide_all"),
    "applied": (Store, "apply"),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_between_the_steps_of_add_the_episode_is_finished_exactly_once(tmp_path: Path, step: str) -> None:
    whole, path, where = tmp_path / "whole.db", tmp_path / "killed.db", STEPS[step]
    told(whole)
    known(path)
    before, after = observe(path), observe(whole)

    def job(acknowledge: faults.Acknowledge) -> None:
        generator = scripted()
        if isinstance(where, str):
            generator = DeadlyGenerator(where)
        else:
            setattr(*where, after_call(getattr(*where)))  # in the child only
        with memory_at(path, generator=generator) as memory:
            tell(memory)
            acknowledge()

    end = faults.run_child(job)
    assert end.killed, end
    assert not end.acknowledged
    now = observe(path)
    if step == "applied":
        assert now == after
        return
    assert is_pending(now, before)
    with memory_at(path) as memory:
        assert memory.search("cello", **ANN)["results"][0]["memory"] == SAID  # the words are found
        assert memory.resume()["episodes"] == 1
        assert memory.resume()["episodes"] == 0
    assert observe(path) == after


# another writer between the steps


class InterruptedGenerator(ScriptedGenerator):
    """Lets someone else write in the middle of its first call of the given kind."""

    def __init__(self, kind: str, someone: Callable[[], object]) -> None:
        super().__init__(SCRIPT, labels=relations)
        self._kind, self._someone = kind, someone

    def _note(self, kind: str, prompt: Prompt) -> None:
        if kind == self._kind and not any(seen == kind for seen, _ in self.calls):
            super()._note(kind, prompt)
            self._someone()
        else:
            super()._note(kind, prompt)


def told_while(path: Path, kind: str, change: Change) -> State:
    """The story, with another handle making a change in the middle of it."""
    known(path)

    def someone() -> None:
        with memory_at(path) as other:
            change(other)

    with memory_at(path, generator=InterruptedGenerator(kind, someone)) as memory:
        tell(memory)
        assert memory.pending() == []
    return observe(path)


@pytest.mark.parametrize("kind", ["generate", "score_labels"])
def test_an_episode_resumed_twice_at_once_is_finished_once(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole.db"
    told(whole)
    assert told_while(tmp_path / "a.db", kind, lambda memory: memory.resume()) == observe(whole)


@pytest.mark.parametrize("kind", ["generate", "score_labels"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda memory: memory.delete(the_one(memory, "Porto")), id="deleted"),
        pytest.param(lambda memory: memory.update(the_one(memory, "Porto"), "User lives in Braga"), id="updated"),
        pytest.param(lambda memory: memory.delete_all(**ANN), id="all-deleted"),
        pytest.param(lambda memory: memory.add("User plays the cello", infer=False, **ANN), id="said-too"),
        pytest.param(lambda memory: memory.add("User lives in Porto", infer=False, user_id="bob"), id="someone-else"),
    ],
)
def test_what_the_story_says_holds_although_its_targets_moved(tmp_path: Path, kind: str, change: Change) -> None:
    texts = live(told_while(tmp_path / "a.db", kind, change))
    assert texts.count("User lives in Lisbon now") == texts.count("User plays the cello") == 1
    assert "User lives in Porto" not in texts
    assert "User has a dog called Rex" not in texts


def test_a_reset_in_the_middle_of_the_story_wins(tmp_path: Path) -> None:
    with pytest.raises(LocalmemError):
        told_while(tmp_path / "a.db", "generate", lambda memory: memory.reset())
    state = observe(tmp_path / "a.db")
    assert (state.memories, state.episodes) == ((), ())


# several connections


def test_a_second_handle_leaves_the_locks_of_the_first(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops all of the process's locks on it (SQLite's "how to corrupt", 2.2)."""
    path = tmp_path / "a.db"
    held = "try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)\nexcept OSError: print('held')"
    other = f"import fcntl, sys\nfile = open(sys.argv[1], 'rb+')\n{held}"

    def asked() -> str:
        return subprocess.run(
            [sys.executable, "-c", other, str(path)], capture_output=True, text=True, check=True
        ).stdout.strip()

    with memory_at(path) as memory:
        memory.add("User sails on Sundays", infer=False, **ANN)
        assert asked() == "held"
        memory_at(path).close()
        assert asked() == "held"


def test_a_fork_leaves_the_parents_connections_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    known(path)
    with memory_at(path) as memory:
        tell(memory)

        def job(acknowledge: faults.Acknowledge) -> None:
            memory.add("User sails on Sundays", infer=False, **ANN)
            acknowledge()
            memory.close()

        end = faults.run_child(job)
        assert end.acknowledged, end.error
        assert not end.error
        memory.add("User has a boat", infer=False, **ANN)
        texts = [entry["memory"] for entry in memory.get_all(**ANN)["results"]]
        assert texts == [*STORY_LIVE, "User sails on Sundays", "User has a boat"]
    assert live(observe(path)) == tuple(texts)
