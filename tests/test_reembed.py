"""Another embedder for a store: made bit by bit, in place all at once, nothing mixed, nothing lost."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import faults
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Opener
from doubles import OtherEmbedder, texts

from localmem import Memory, reembed, store_vectors
from localmem.cli import cli
from localmem.db import Database
from localmem.embed import packaged_embedder
from localmem.embedders import names
from localmem.errors import (
    ConflictError,
    EmbedderMismatchError,
    InvalidInputError,
    InvalidTypeError,
    LocalmemError,
    ReadOnlyError,
)
from localmem.testing import HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}
WIDE = HashEmbedder(dim=96)
SAID = (
    "the kettle is green",
    "my brother sails to Malta in June",
    "parking costs nine euros near the theatre",
    "old letters lie in the attic",
    "Greta teaches physics on Tuesdays",
    "we planted three plum trees behind the shed",
    "a boat called Selkie leaks at the stern",
    "coffee after four keeps me awake",
    "letterbox key hangs beside the clock",
)


class Wide(HashEmbedder):
    """Fails at a text, or calls back before each batch."""

    def __init__(self, *, fails_at: int = -1) -> None:
        super().__init__(96)
        self.seen: list[str] = []
        self.fails_at = fails_at
        self.before: list[Any] = []

    def embed_passages(self, texts: Sequence[str]) -> Any:
        while self.before:
            self.before.pop()()
        if 0 <= self.fails_at <= len(self.seen) + len(texts):
            raise MemoryError("no room for the model")
        self.seen += texts
        return super().embed_passages(texts)


@pytest.fixture
def path(open_memory: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of HashEmbedder with 9 memories (one of them updated, one deleted) and a pending turn."""
    monkeypatch.setattr(store_vectors, "BATCH", 4)
    fill(tmp_path / "memory.db")
    return tmp_path / "memory.db"


def fill(path: Path) -> None:
    with memory_at(path) as memory:
        for text in SAID:
            memory.add(text, infer=False, **ANN)
        ids = {each["memory"]: each["id"] for each in memory.get_all(**ANN)["results"]}
        memory.update(ids[SAID[6]], "the boat Selkie was sold")
        memory.delete(ids[SAID[1]])
        with contextlib.suppress(LocalmemError):
            memory.add("a harbour turn that waits", **ANN)


def memory_at(path: Path, embedder: Any = None) -> Memory:
    return Memory(path, embedder=embedder or HashEmbedder(), generator=ScriptedGenerator(fail=True))


def vectors(path: Path) -> dict[str, list[tuple[int, bytes]]]:
    with Memory(path, embedder=WIDE)._engine.store.snapshot() as tx:
        return {
            table: tx.execute(f"select rowid, embedding from {table} order by rowid").fetchall()
            for table in ("memory_vec", "turn_vec")
        }


def aside(path: Path) -> int:
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        [(rows,)] = connection.execute("select count(*) from reembedded")
        return int(rows)


def test_every_vector_is_the_new_embedders(path: Path) -> None:
    told: list[tuple[int, int]] = []
    done = reembed(path, WIDE, progress=lambda there, wanted: told.append((there, wanted)))
    assert done == {"embedder": "hash", "previous": "hash", "memories": 10, "turns": 1}
    assert told[0] == (0, 11)
    assert told[-1] == (11, 11)
    assert told == sorted(told)
    with memory_at(path, WIDE) as memory:
        assert memory.check() == []
        with memory._engine.store.snapshot() as tx:
            said = dict(tx.execute("select id, text from version").fetchall())
        assert texts(memory.search("kettle green", limit=1, **ANN)) == ["the kettle is green"]
        assert "the boat Selkie was sold" in texts(memory.search("boat sold", **ANN))
        waiting = memory.search("harbour turn", include="episodes", **ANN)
        assert texts(waiting) == ["a harbour turn that waits"]
    for row, vector in vectors(path)["memory_vec"]:
        assert np.array_equal(np.frombuffer(vector, "<f4"), WIDE.embed_query(said[row]))
    assert aside(path) == 0


def test_until_the_switch_the_store_works_as_before(path: Path) -> None:
    with pytest.raises(MemoryError):
        reembed(path, Wide(fails_at=9))
    assert aside(path) > 0
    with memory_at(path) as memory:
        assert memory.check() == []
        assert texts(memory.search("letterbox key", limit=1, **ANN)) == [SAID[8]]
        memory.add("a boat that came late", infer=False, **ANN)
    with pytest.raises(EmbedderMismatchError):
        memory_at(path, WIDE)


def test_what_was_cut_off_is_taken_up_where_it_ended(path: Path) -> None:
    first = Wide(fails_at=9)
    with pytest.raises(MemoryError):
        reembed(path, first)
    second = Wide()
    done = reembed(path, second)
    assert sorted([*first.seen, *second.seen]) == sorted(set(first.seen) | set(second.seen))  # none made twice
    assert done["memories"] + done["turns"] == len(second.seen) == 11 - len(first.seen)
    with memory_at(path, WIDE) as memory:
        assert memory.check() == []


def test_vectors_of_a_third_embedder_are_not_taken_for_the_wanted_ones(path: Path) -> None:
    class Third(Wide):
        def __init__(self) -> None:
            super().__init__(fails_at=9)
            self.sha256 = "3" * 64

    with pytest.raises(MemoryError):
        reembed(path, Third())
    assert reembed(path, WIDE)["memories"] == 10


def test_what_comes_in_and_what_is_taken_back_meanwhile(path: Path) -> None:
    wide = Wide()

    def meanwhile() -> None:
        with memory_at(path) as memory:
            memory.add("tram ticket is late", infer=False, **ANN)
            memory.add("Please forget that the kettle is green", **ANN)  # plain words need no model

    wide.before.append(meanwhile)
    reembed(path, wide)
    with memory_at(path, WIDE) as memory:
        assert memory.check() == []
        assert texts(memory.search("tram ticket late", limit=1, **ANN)) == ["tram ticket is late"]
        assert "the kettle is green" not in texts(memory.search("kettle", include="all", **ANN))


def test_text_taken_back_leaves_no_vector_aside(path: Path) -> None:
    with pytest.raises(MemoryError):
        reembed(path, Wide(fails_at=10))
    before = aside(path)
    with memory_at(path) as memory:
        memory.add("Please forget that the kettle is green", **ANN)
    assert aside(path) == before - 1


def test_an_open_memory_says_that_the_vectors_changed(path: Path) -> None:
    with memory_at(path) as memory:
        reembed(path, WIDE)
        for call in (
            lambda: memory.search("boat", **ANN),
            lambda: memory.add("one more boat", infer=False, **ANN),
            lambda: memory.get_all(**ANN),
        ):
            with pytest.raises(EmbedderMismatchError, match=r"'hash' \(96 dimensions"):
                call()
    assert "one more boat" not in str(vectors(path))
    with memory_at(path, WIDE) as memory:
        assert "one more boat" not in texts(memory.get_all(**ANN))


def test_nothing_is_made_twice_for_the_same_embedder(path: Path) -> None:
    same = reembed(path, HashEmbedder())
    assert (same["memories"], same["turns"]) == (0, 0)
    assert aside(path) == 0
    with memory_at(path) as memory:
        assert memory.check() == []


def test_two_at_once_for_different_embedders(path: Path) -> None:
    wide, other = Wide(), OtherEmbedder()
    wide.before.append(lambda: reembed(path, other))
    with pytest.raises(ConflictError, match="another embedder"):
        reembed(path, wide)
    with memory_at(path, other) as memory:
        assert memory.check() == []
    assert aside(path) == 0


def test_two_at_once_for_the_same_embedder(path: Path) -> None:
    wide = Wide()
    wide.before.append(lambda: reembed(path, WIDE))
    reembed(path, wide)
    with memory_at(path, WIDE) as memory:
        assert memory.check() == []
    assert aside(path) == 0


@pytest.mark.parametrize("place", ["nowhere.db", ":memory:"])
def test_a_store_that_is_not_there(tmp_path: Path, place: str) -> None:
    with pytest.raises(InvalidInputError, match="there is no store"):
        reembed(tmp_path / place if place != ":memory:" else place, WIDE)
    assert not (tmp_path / place).exists()


def test_bad_embedders(path: Path) -> None:
    with pytest.raises(InvalidTypeError, match="embedder must be"):
        reembed(path, 7)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"no embedder 'gpt'.*there are: .*all-MiniLM-L6-v2-int8"):
        reembed(path, "gpt")
    with pytest.raises(InvalidInputError, match="durability"):
        reembed(path, WIDE, durability="none")
    assert aside(path) == 0


def test_a_read_only_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localmem.db.opening.is_read_only", lambda file: True)
    with pytest.raises(ReadOnlyError):
        reembed(path, WIDE)


def test_whole_or_not_at_all_under_every_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted anywhere, the store is sound with the old vectors or the new ones, and a second call ends it."""
    monkeypatch.setattr(store_vectors, "BATCH", 4)

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with contextlib.closing(Database(path, vfs=vfs.name)) as database:
            store_vectors.reembed(database, WIDE, lambda there, wanted: None)
            acknowledge()

    def observe(path: Path) -> tuple[list[str], list[str]]:
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            [(dim,)] = connection.execute("select value from setting where name = 'embedder_dim'")
        with memory_at(path, HashEmbedder(dim=int(dim))) as memory:
            return [dim], memory.check()

    swept = faults.sweep(
        tmp_path,
        make=fill,
        act=act,
        observe=observe,
        errors=(LocalmemError,),
        finish=lambda path: reembed(path, WIDE),
        points_max=9,
    )
    assert (swept.before, swept.after) == ((["64"], []), (["96"], []))


# -- the embedders that come with localmem


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A store of the last embedder that comes with localmem."""
    path = tmp_path / "shipped.db"
    with Memory(path, embedder=names()[-1]) as memory:
        memory.add("Ann keeps bees on the roof", infer=False, **ANN)
    return path


def test_a_store_is_opened_with_the_embedder_it_was_written_with(shipped: Path) -> None:
    with Memory(shipped) as memory:
        assert memory._engine.embedder is packaged_embedder(names()[-1])
        assert texts(memory.search("insects", **ANN)) == ["Ann keeps bees on the roof"]
    with Memory(":memory:") as memory:
        assert memory._engine.embedder is packaged_embedder(names()[0])


def test_by_default_the_embedder_of_new_stores_is_taken(shipped: Path) -> None:
    assert reembed(shipped)["embedder"] == names()[0]
    with Memory(shipped) as memory:
        assert memory._engine.embedder is packaged_embedder(names()[0])
        assert texts(memory.search("insects", **ANN)) == ["Ann keeps bees on the roof"]


def test_unknown_embedders_of_a_memory(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there are: "):
        Memory(tmp_path / "memory.db", embedder="gpt")
    with pytest.raises(InvalidTypeError, match="embedder must be"):
        Memory(tmp_path / "memory.db", embedder=3)  # type: ignore[arg-type]


def command(*words: str) -> Any:
    return CliRunner().invoke(cli, list(words))


def test_the_command(shipped: Path, path: Path) -> None:
    already = command("reembed", names()[-1], "--file", str(shipped))
    assert already.output == f"the vectors are those of {names()[-1]} already\n"
    made = command("reembed", "--file", str(path), "-q")
    assert (made.exit_code, made.output) == (0, f"hash -> {names()[0]}: 10 memories, 1 turns\n")
    again = command("reembed", "--file", str(path), "--json")
    assert json.loads(again.output) == {"embedder": names()[0], "previous": names()[0], "memories": 0, "turns": 0}
    assert "the boat Selkie was sold" in command("search", "boat", "--user", "ann", "--file", str(path)).output


def test_the_command_misused(shipped: Path, tmp_path: Path) -> None:
    missing = command("reembed", "--file", str(tmp_path / "none.db"))
    assert (missing.exit_code, "there is no file" in missing.output) == (1, True)
    unknown = command("reembed", "gpt", "--file", str(shipped))
    assert (unknown.exit_code, f"there are: {names()[0]}" in unknown.output) == (1, True)
