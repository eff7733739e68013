"""Damaged files: every damage is seen, and everything that does not stand on a damaged page is saved into a sound one.

One file with all that a file can hold is made once, without and with a key, and damaged anew for each test.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import json
import random
import shutil
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
from doubles import Listener, OtherEmbedder, following_scripts, texts

from localmem import Memory
from localmem import salvaging as module
from localmem.db import btree, damaged
from localmem.errors import (
    ConflictError,
    GeneratorError,
    InvalidInputError,
    KeyRefusedError,
    LocalmemError,
    NotOurFileError,
    SchemaError,
    StorageError,
)
from localmem.keys import key_of
from localmem.salvaging import salvage
from localmem.store_mending import LOST_HEAD
from localmem.store_salvage import LOST_AND_FOUND, TABLES, shapes
from localmem.testing import FixedClock, HashEmbedder

PAGE = 4096
KEY, AUDIT = bytes(range(32)), bytes(range(40, 72))
ANN = {"user_id": "ann"}
OLD = Path(__file__).parent / "data" / "schema2.db.gz"
LONG = "overflow " * 2_000  # on pages of its own


def opened(path: Path, key: Any = None, **options: Any) -> Memory:
    return Memory(
        path, embedder=HashEmbedder(16), generator=Listener(), clock=FixedClock(), durability="process", key=key,
        **options,
    )  # fmt: skip


def fill(memory: Memory) -> None:
    """Several hundred memories of seven people, and one of everything else."""
    ids = []
    for number in range(280):
        scope = {"user_id": f"u{number % 7}"}
        scope |= {"agent_id": "agent"} if number % 3 == 0 else {}
        scope |= {"run_id": f"run {number % 2}"} if number % 5 == 0 else {}
        added = memory.add(
            f"note {number} about the ships in harbour {number % 11}" + (LONG if number == 100 else ""),
            infer=False,
            metadata={"number": number},
            expires_at="2099-01-01" if number % 4 == 0 else None,
            **scope,
        )
        ids.append(added["results"][0]["id"])
    for number in range(0, 280, 6):
        memory.update(ids[number], f"changed {number}")
    for number in range(0, 280, 13):
        memory.delete(ids[number])
    with following_scripts():
        for line in (
            "the kettle is red",
            "the kettle is blue | changes: kettle",
            "the cat is called Brine",
            "the cat is called Miso | contests: cat",
            "the boat sails | unsupported",
            "rhubarb is eaten no longer | retracts: nothing",
        ):
            memory.add(
                [{"role": "user", "content": f"fact: {line}"}, {"role": "assistant", "content": "I see."}], **ANN
            )
        memory.add("fact: a sousaphone stands in the hall", **ANN)
        memory.add("Please forget everything I told you about the sousaphone.", **ANN)
    gone = memory.add("to be purged", infer=False, **ANN)["results"][0]["id"]
    assert memory.purge(memory_id=gone)["complete"]
    memory.audit_reads(True)
    generator = memory._generator_spec[0]
    assert isinstance(generator, Listener)
    generator.fail = True
    with pytest.raises(GeneratorError):
        memory.add("waits for a model", **ANN)
    generator.fail = False


@dataclass(frozen=True)
class Filled:
    """A whole file, and what of it stands where."""

    content: bytes
    key: Any
    texts: dict[int, set[str]]  # page -> the texts of versions and messages on it
    names: dict[int, str]  # page -> table or index
    state: State


@dataclass(frozen=True)
class State:
    """All that people can see of a file."""

    versions: dict[tuple[str, str], tuple[Any, ...]]  # (memory, text) -> (is live, whose, when it expires, …)
    turns: dict[tuple[str, int, str], tuple[Any, ...]]  # (episode, position, text) -> (state, whose, suppressed)

    @property
    def live(self) -> set[tuple[str, str]]:
        return {place for place, told in self.versions.items() if told[0]}


def state(path: Path, key: Any = None) -> State:
    with opened(path, key) as memory, memory._engine.store.snapshot() as tx:
        versions = tx.execute(
            "select m.id, v.text, m.head = v.id and m.deleted_at is null, m.user_id, m.agent_id, m.run_id, "
            "m.expires_at, v.suppressed, v.valid_from from version v join memory m on m.id = v.memory_id"
        ).fetchall()
        turns = tx.execute(
            "select e.id, t.position, t.content, e.state, e.user_id, e.agent_id, e.run_id, t.suppressed_at is null "
            "from message t join episode e on e.id = t.episode_id where t.dropped_at is null"
        ).fetchall()
    return State(
        {(memory_id, text): tuple(told) for memory_id, text, *told in versions},
        {(episode_id, position, text): tuple(told) for episode_id, position, text, *told in turns},
    )


@contextlib.contextmanager
def pages_of(path: Path, key: Any) -> Iterator[btree.Pages]:
    copy = path.with_name("pages")
    copy.unlink(missing_ok=True)
    damaged.copy(path, copy)
    with damaged.opened(copy, key_of(key), path) as found:
        yield found.pages


def make(folder: Path, key: Any) -> Filled:
    path = folder / "memory.db"
    with opened(path, key) as memory:
        fill(memory)
        assert memory.check() == []
    tables, _ = shapes(None)
    content: dict[int, set[str]] = collections.defaultdict(set)
    with pages_of(path, key) as pages:
        names = dict(btree.trees(pages).of)
        for page, name in names.items():
            if name in ("version", "message"):
                column = tables[name].columns.index("text" if name == "version" else "content")
                content[page] = {str(cell.values[column]) for cell in pages.cells(page)}
    return Filled(path.read_bytes(), key, content, names, state(path, key))


@pytest.fixture(scope="module", params=[None, KEY], ids=["plain", "encrypted"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    return make(tmp_path_factory.mktemp("filled"), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    return make(tmp_path_factory.mktemp("plain"), None)


# -------------------------------------------------------------------- what must hold


def save(path: Path, key: Any = None, out: str = "out.db", **options: Any) -> dict[str, Any]:
    return salvage(path, path.parent / out, key=key, **{"embedder": HashEmbedder(16), **options})


def assert_sound(path: Path, key: Any = None, **options: Any) -> None:
    copy = path.with_name("sound.db")
    shutil.copy(path, copy)
    with opened(copy, key, **options) as memory:
        assert memory.check() == []
        assert memory.verify_audit()["problems"] == []
        memory.add("it can be written to", infer=False, **ANN)
        assert memory.check() == []


def assert_seen(path: Path, key: Any) -> None:
    """That the file is damaged is found by opening it or by check()."""
    copy = path.with_name("seen.db")
    shutil.copy(path, copy)
    try:
        with opened(copy, key) as memory:
            problems = memory.check()
    except LocalmemError as error:
        assert "seen.db" in str(error)
    else:
        assert problems
        assert "localmem salvage OUT" in problems[-1]


def assert_saved(filled: Filled, path: Path, damaged_pages: set[int]) -> dict[str, Any]:
    """All that does not stand on these pages is in the new file, as it was; nothing lost looks as if it were whole."""
    found = save(path, filled.key)
    assert found["problems"] == []
    assert_sound(path.with_name("out.db"), filled.key)
    now = state(path.with_name("out.db"), filled.key)
    may_go = set().union(*(filled.texts.get(page, set()) for page in damaged_pages))
    if not damaged_pages <= set(filled.names):  # a page of a long text, whose trees don't lead there
        may_go |= {text for _, text in filled.state.versions if LONG in text}
    before = filled.state
    assert [place for place in before.versions if place not in now.versions and place[1] not in may_go] == []
    assert [place for place in before.turns if place not in now.turns and place[2] not in may_go] == []
    assert [place for place in now.live - before.live if place in before.versions] == [], "what was over came back"
    scopes = [place for place, told in now.versions.items() if before.versions.get(place, told)[1:5] != told[1:5]]
    assert scopes == [], "another owner, or another expiry"
    lost = [*(set(before.versions) - set(now.versions)), *(set(before.turns) - set(now.turns))]
    assert not (lost and found["complete"])
    return found


def zeroed(page: bytes, dice: random.Random) -> bytes:
    return bytes(len(page))


def randomised(page: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(len(page))


def flipped(page: bytes, dice: random.Random) -> bytes:
    made = bytearray(page)
    for _ in range(20):
        made[dice.randrange(len(made))] ^= 1 << dice.randrange(8)
    return bytes(made)


Harm = Callable[[bytes, random.Random], bytes]


def harm(filled: Filled, path: Path, page: int, how: Harm) -> None:
    content = bytearray(filled.content)
    content[(page - 1) * PAGE : page * PAGE] = how(content[(page - 1) * PAGE : page * PAGE], random.Random(page))
    path.write_bytes(content)


# -------------------------------------------------------------------- pages are read as SQLite reads them


def test_every_row_of_every_tree_is_read_as_sqlite_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    for key in (None, KEY):
        path.unlink(missing_ok=True)
        with opened(path, key) as memory:
            fill(memory)  # the WAL stays beside the file while it is open
            connection = memory._engine.store.db._writer
            assert connection is not None
            with pages_of(path, key) as pages:
                known = btree.trees(pages)
                rows: dict[str, list[Any]] = collections.defaultdict(list)
                for page, name in known.of.items():
                    rows[name] += pages.cells(page)
            assert (pages.cells_lost, known.damaged) == (0, {})
            tables = connection.execute("select name from sqlite_schema where type = 'table' and rootpage > 0")
            for (name,) in tables.fetchall():
                wanted = [  # a REAL that is whole stands in the file as an INTEGER
                    tuple(int(value) if isinstance(value, float) and value == int(value) else value for value in row)
                    for row in connection.execute(f'select * from "{name}"').fetchall()
                ]
                found = [
                    tuple(c.rowid if n == 0 and value is None else value for n, value in enumerate(c.values))
                    for c in rows[name]
                ]
                assert sorted(map(repr, found)) == sorted(map(repr, wanted)), name


def test_every_row_is_known_by_its_shape_alone(filled: Filled, tmp_path: Path) -> None:
    """Of no other table, and of no index."""
    (tmp_path / "memory.db").write_bytes(filled.content)
    tables, _ = shapes(None)
    with pages_of(tmp_path / "memory.db", filled.key) as pages:
        for page, name in filled.names.items():
            leaf = btree.TABLE_LEAF if pages.kind(page) == btree.TABLE_LEAF else btree.INDEX_LEAF
            for cell in pages.cells(page):
                fitting = [each.name for each in tables.values() if each.leaf == leaf and each.row(cell)]
                assert fitting == ([name] if name in TABLES else []), name


def test_rowids_that_break_the_order_are_found() -> None:
    assert btree._ascending([1, 2, 3]) == {1, 2, 3}
    assert btree._ascending([10, 11, 76, 13, 14]) == {10, 11, 13, 14}
    assert btree._ascending([5, 5, 6]) == {5, 6}
    assert btree._ascending([]) == set()


@pytest.mark.parametrize("seed", range(20))
def test_no_bytes_make_the_reading_fail(seed: int) -> None:
    dice = random.Random(seed)
    kinds = bytes((btree.TABLE_LEAF, btree.INDEX_LEAF, btree.TABLE_INNER, btree.INDEX_INNER))
    made = [bytes([dice.choice(kinds)]) + dice.randbytes(PAGE - 1) for _ in range(50)]
    pages = btree.Pages(lambda number: made[number - 1] if 1 <= number <= 50 else None, 50, PAGE)
    assert len(btree.trees(pages).damaged) <= 50
    for number in range(1, 51):
        list(pages.cells(number))


# -------------------------------------------------------------------- whole files


def test_a_whole_file_is_saved_whole(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(filled.content)
    found = save(path, filled.key)
    assert found["complete"]
    assert (found["altered"], found["pages"], found["problems"], found["notes"]) == ([], [], [], [])
    assert state(tmp_path / "out.db", filled.key) == filled.state
    with opened(path, filled.key) as before, opened(tmp_path / "out.db", filled.key) as after:
        for owner in ("ann", "u0", "u3"):
            for call in ("get_all", "all_versions", "contested"):
                assert getattr(after, call)(user_id=owner) == getattr(before, call)(user_id=owner)
            told = [[{**each, "id": 0} for each in memory.decisions(user_id=owner)] for memory in (before, after)]
            assert told[0] == told[1]
        for each in before.get_all(user_id="u0")["results"]:
            assert after.history(each["id"]) == before.history(each["id"])
        assert texts(after.search("kettle", **ANN))[0] == "the kettle is blue"
        assert "sousaphone" not in repr([after.search("sousaphone", include=i, **ANN) for i in ("all", "history")])
        assert [each["certificate"] for each in after.purges()] == [each["certificate"] for each in before.purges()]
        assert after.audits_reads
    assert_sound(tmp_path / "out.db", filled.key)
    assert (tmp_path / "out.db").stat().st_mode & 0o777 == 0o600


def test_the_damaged_file_is_only_read(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    harm(filled, path, 9, zeroed)
    before = path.read_bytes()
    save(path, filled.key)
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["memory.db", "out.db"]


# -------------------------------------------------------------------- single pages

BASE = ("setting", "owner", "episode", "message", "memory", "version", "evidence", "contested", "decision", "audit",
        "purge")  # fmt: skip
DERIVED = ("memory_fts_data", "memory_vec_vector_chunks00", "memory_vec_rowids", "turn_fts_data", "mention",
           "memory_by_owner", "sqlite_autoindex_version_1", "sqlite_autoindex_message_1")  # fmt: skip


@pytest.mark.parametrize("how", [zeroed, flipped])
@pytest.mark.parametrize("table", [*BASE, *DERIVED, "sqlite_schema"])
def test_one_damaged_page(filled: Filled, tmp_path: Path, table: str, how: Harm) -> None:
    """The first page of each tree, from which all others are reached, and one at the end."""
    path, of_table = tmp_path / "memory.db", sorted(page for page, name in filled.names.items() if name == table)
    for page in {of_table[0], of_table[-1]}:
        (tmp_path / "out.db").unlink(missing_ok=True)
        harm(filled, path, page, how)
        if how is not flipped:  # a bit in a text of a file without a key is no damage to SQLite
            assert_seen(path, filled.key)
            found = assert_saved(filled, path, {page})
            if table in DERIVED:
                assert found["complete"], found
            if table not in ("sqlite_schema", "setting") and page != of_table[0]:
                assert {"page": page, "of": table} in found["pages"]
        elif filled.key is not None:
            assert_seen(path, filled.key)
            assert_saved(filled, path, {page})
        else:
            assert save(path)["problems"] == []
            assert_sound(tmp_path / "out.db")


@pytest.mark.slow
@pytest.mark.parametrize("how", [zeroed, randomised, flipped])
def test_every_page(filled: Filled, tmp_path: Path, how: Harm) -> None:
    for page in range(1, len(filled.content) // PAGE + 1, 4):
        harm(filled, tmp_path / "memory.db", page, how)
        (tmp_path / "out.db").unlink(missing_ok=True)
        if how is flipped and filled.key is None:
            assert save(tmp_path / "memory.db")["problems"] == [], page
            assert_sound(tmp_path / "out.db")
        else:
            assert_saved(filled, tmp_path / "memory.db", {page})


@pytest.mark.parametrize("share", [2, 5])
def test_many_damaged_pages(filled: Filled, tmp_path: Path, share: int) -> None:
    path, content = tmp_path / "memory.db", bytearray(filled.content)
    gone = set(random.Random(share).sample(range(1, len(content) // PAGE + 1), len(content) // PAGE // share))
    for page in gone:
        content[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    found = save(path, filled.key)
    assert (found["problems"], found["complete"]) == ([], False)
    assert_sound(tmp_path / "out.db", filled.key)
    now, before = state(tmp_path / "out.db", filled.key), filled.state
    texts_left = set().union(*(told for page, told in filled.texts.items() if page not in gone)) - {""}
    texts_left = {text for text in texts_left if LONG not in text}
    assert texts_left - {text for _, text in now.versions} - {text for *_, text in now.turns} == set()
    assert [place for place in now.live - before.live if place in before.versions] == []


# -------------------------------------------------------------------- what is put up again


def pages_named(filled: Filled, *names: str) -> list[int]:
    return [page for page, name in filled.names.items() if name in names]


def without(filled: Filled, path: Path, *names: str) -> None:
    """The file without any page of these tables and indexes."""
    content = bytearray(filled.content)
    for page in pages_named(filled, *names):
        content[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(content)


def test_memories_come_back_from_their_versions_and_indexes(filled: Filled, tmp_path: Path) -> None:
    """Whose they are, when they expire, and that they are deleted; metadata is lost."""
    path = tmp_path / "memory.db"
    without(filled, path, "memory")
    found = assert_saved(filled, path, set())
    assert found["tables"]["memory"]["rebuilt"] == found["tables"]["memory"]["lost"] > 280
    assert state(tmp_path / "out.db", filled.key).live == filled.state.live
    with opened(tmp_path / "out.db", filled.key) as memory:
        assert memory.get_all(user_id="u1")["results"][0]["metadata"] in ({}, None)
        assert "sousaphone" not in repr([memory.search("sousaphone", include=i, **ANN) for i in ("all", "history")])


def test_episodes_come_back_from_their_turns(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    without(filled, path, "episode")
    found = assert_saved(filled, path, set())
    assert found["tables"]["episode"]["rebuilt"] > 280
    now = state(tmp_path / "out.db", filled.key)
    assert {place: told[1] for place, told in now.turns.items()} == {
        place: told[1] for place, told in filled.state.turns.items()
    }


def test_an_older_wording_does_not_come_back_as_true_today(filled: Filled, tmp_path: Path) -> None:
    """Where the page of the current one is lost: the memory is deleted, the older one is in its history."""
    path = tmp_path / "memory.db"
    [page] = {page for page, told in filled.texts.items() if "changed 6" in told and filled.names[page] == "version"}
    harm(filled, path, page, zeroed)
    found = assert_saved(filled, path, {page})
    assert any("lost their current wording" in note for note in found["notes"])
    with opened(tmp_path / "out.db", filled.key) as memory:
        assert not any(text.startswith("note 6 ") for text in texts(memory.get_all(user_id="u6")))
        [old] = [each for each in memory.all_versions(user_id="u6") if each["memory"].startswith("note 6 ")]
        assert memory.history(old["id"])[-1]["event"] == "DELETE"
        with memory._engine.store.snapshot() as tx:
            reasons = dict(tx.execute("select id, delete_reason from memory").fetchall())
        assert reasons[old["id"]] == LOST_HEAD


def test_turns_that_are_lost_keep_their_places(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    [page] = {page for page, told in filled.texts.items() if "fact: the kettle is red" in told}
    harm(filled, path, page, zeroed)
    assert_saved(filled, path, {page})
    with opened(tmp_path / "out.db", filled.key) as memory:
        [kettle] = [each for each in memory.get_all(**ANN)["results"] if "kettle" in each["memory"]]
        assert memory.history(kettle["id"])[0]["evidence"][0]["quote"] == ""  # said, and the words are not kept


def test_what_is_nobodys_is_not_thrown_away(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    keep = {"message", "version", "sqlite_schema", "setting"}
    without(filled, path, *({*filled.names.values()} - keep))
    found = save(path, filled.key)
    assert found["problems"] == []
    assert any(LOST_AND_FOUND in note for note in found["notes"])
    assert_sound(tmp_path / "out.db", filled.key)
    with opened(tmp_path / "out.db", filled.key) as memory:
        assert memory.get_all(user_id="u1")["results"] == []
        there = texts(memory.get_all(run_id=LOST_AND_FOUND))
    assert "note 1 about the ships in harbour 1" in there


def test_without_a_schema_rows_are_known_by_their_shape(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    without(filled, path, "sqlite_schema")
    found = assert_saved(filled, path, {1})
    assert not found["complete"]  # what is lost can't be counted
    assert state(tmp_path / "out.db", filled.key) == filled.state


# -------------------------------------------------------------------- texts that were changed


def test_a_changed_text_is_named(plain: Filled, tmp_path: Path) -> None:
    """SQLite can't see a wrong byte in a text; its hash and the audit chain can."""
    path, content = tmp_path / "memory.db", bytearray(plain.content)
    for text in (b"note 17 about", b"fact: the cat is called Brine"):
        at = content.find(text)
        while at >= 0:
            content[at + 2] ^= 1
            at = content.find(text, at + 1)
    path.write_bytes(content)
    found = save(path)
    assert not found["complete"]
    kinds = collections.Counter(each["of"] for each in found["altered"])
    assert kinds["version"] == 1
    assert kinds["message"] >= 2
    assert_sound(tmp_path / "out.db")


def test_bytes_that_are_no_text_are_replaced(plain: Filled, tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(plain.content.replace(b"note 19 about", b"note \xff\xfe about"))
    found = save(tmp_path / "memory.db")
    assert found["altered"]
    assert_sound(tmp_path / "out.db")
    with opened(tmp_path / "out.db") as memory:
        assert any("\N{REPLACEMENT CHARACTER}" in text for text in texts(memory.get_all(user_id="u5")))


# -------------------------------------------------------------------- headers, ends, WAL


@pytest.mark.parametrize("amount", [16, 100, PAGE])
def test_a_damaged_header(filled: Filled, tmp_path: Path, amount: int) -> None:
    """With the key itself, not a passphrase, an encrypted file needs none of it."""
    path = tmp_path / "memory.db"
    path.write_bytes(bytes(amount) + filled.content[amount:])
    assert_seen(path, filled.key)
    assert_saved(filled, path, {1})
    if amount < PAGE:
        assert state(tmp_path / "out.db", filled.key) == filled.state


@pytest.mark.parametrize("pages", [3, 40, 90.5])
def test_a_file_that_was_cut_off(filled: Filled, tmp_path: Path, pages: float) -> None:
    path, size = tmp_path / "memory.db", int(pages * PAGE)
    path.write_bytes(filled.content[:size])
    assert_seen(path, filled.key)
    try:
        found = assert_saved(filled, path, set(range(int(pages) + 1, len(filled.content) // PAGE + 2)))
    except NotOurFileError:
        assert pages == 3  # nothing but the beginning of the schema
        return
    assert not found["complete"]


@pytest.fixture
def running(tmp_path: Path, filled: Filled) -> Path:
    """A copy of a file, taken while a program had it open: its last adds are in the WAL alone."""
    path, live = tmp_path / "memory.db", tmp_path / "live.db"
    live.write_bytes(filled.content)
    with opened(live, filled.key) as memory:
        for number in range(5):
            memory.add(f"in the log {number}", infer=False, **ANN)
        shutil.copy(live, path)
        shutil.copy(f"{live}-wal", f"{path}-wal")
    return path


def in_the_log(path: Path, key: Any) -> int:
    with opened(path, key) as memory:
        return sum(text.startswith("in the log") for text in texts(memory.get_all(**ANN)))


def test_what_is_in_the_wal_is_saved(filled: Filled, running: Path) -> None:
    found = save(running, filled.key)
    assert (found["complete"], found["notes"]) == (True, [])
    assert in_the_log(running.with_name("out.db"), filled.key) == 5


def test_a_lost_wal_takes_only_what_it_held(filled: Filled, running: Path) -> None:
    Path(f"{running}-wal").unlink()
    save(running, filled.key)
    now = state(running.with_name("out.db"), filled.key)
    assert now == filled.state
    assert in_the_log(running.with_name("out.db"), filled.key) == 0


def test_a_damaged_wal_counts_up_to_the_damage(filled: Filled, running: Path) -> None:
    wal = Path(f"{running}-wal")
    content = bytearray(wal.read_bytes())
    frames = [at for at in range(32, len(content), 24 + PAGE) if content[at + 8 : at + 16] == content[16:24]]
    content[frames[len(frames) // 2] + 100] ^= 1
    wal.write_bytes(content)
    found = save(running, filled.key)
    assert not found["complete"]
    assert any("-wal file is damaged" in note for note in found["notes"])
    assert_sound(running.with_name("out.db"), filled.key)
    assert 0 < in_the_log(running.with_name("out.db"), filled.key) < 5


# -------------------------------------------------------------------- keys


@pytest.mark.parametrize("wrong", [bytes(range(1, 33)), "a passphrase", None], ids=["bytes", "passphrase", "none"])
def test_a_wrong_key_is_refused(filled: Filled, tmp_path: Path, wrong: Any) -> None:
    if filled.key is None and wrong is None:
        return
    (tmp_path / "memory.db").write_bytes(filled.content)
    with pytest.raises(KeyRefusedError):
        save(tmp_path / "memory.db", wrong)
    assert [each.name for each in tmp_path.iterdir()] == ["memory.db"]


def test_a_passphrase_needs_the_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with opened(path, "correct horse") as memory:
        memory.add("the boat is called Selkie", infer=False, **ANN)
    assert save(path, "correct horse")["complete"]
    with opened(tmp_path / "out.db", "correct horse") as memory:
        assert texts(memory.get_all(**ANN)) == ["the boat is called Selkie"]
    path.write_bytes(bytes(16) + path.read_bytes()[16:])
    with pytest.raises(KeyRefusedError, match="first 16 bytes"):
        save(path, "correct horse", "other.db")


def test_an_encrypted_file_stays_encrypted(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(filled.content)
    save(tmp_path / "memory.db", filled.key)
    assert (b"note 17" in (tmp_path / "out.db").read_bytes()) is (filled.key is None)


# -------------------------------------------------------------------- the audit chain


def entries(path: Path, **options: Any) -> list[dict[str, Any]]:
    with opened(path, **options) as memory:
        return memory.audit_log()


def test_the_chain_begins_anew_and_says_why(filled: Filled, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(filled.content)
    with opened(path, filled.key) as memory:
        head = memory.verify_audit()["head"]
    save(path, filled.key)
    found = entries(tmp_path / "out.db", key=filled.key)
    assert found[0]["op"] == "begin"
    [told] = [each for each in found if each["op"] == "salvage"]
    assert told["detail"]["head"].endswith(head)
    assert sum(each["op"].startswith("found") for each in found) > 600


def test_it_is_signed_with_the_key_that_signed_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with opened(path, audit_key=AUDIT) as memory:
        memory.add("the boat is called Selkie", infer=False, **ANN)
    assert save(path, audit_key=AUDIT)["notes"] == []
    assert_sound(tmp_path / "out.db", audit_key=AUDIT)
    with opened(tmp_path / "out.db", audit_key=AUDIT) as memory:
        verdict = memory.verify_audit()
        assert verdict["signed"] == verdict["entries"]


def test_another_key_does_not_vouch_for_it(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with opened(path) as memory:
        memory.add("the boat is called Selkie", infer=False, **ANN)
    assert any("not signed" in note for note in save(path, audit_key=AUDIT)["notes"])
    with opened(tmp_path / "out.db") as memory:
        assert memory.verify_audit()["signed"] == 0


# -------------------------------------------------------------------- lines of JSON


def test_lines_of_json(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(filled.content)
    found = save(tmp_path / "memory.db", filled.key, "out.jsonl")
    assert found["complete"]
    assert bool(found["notes"]) is (filled.key is not None)  # that it is not encrypted
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    kinds = collections.Counter(each["record"] for each in lines)
    assert kinds["memory"] == found["memories"]
    [kettle] = [each for each in lines if each["record"] == "memory" and "kettle" in repr(each)]
    assert [each["memory"] for each in kettle["versions"]] == ["the kettle is red", "the kettle is blue"]
    assert kettle["user_id"] == "ann"
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in tmp_path.iterdir()) == ["memory.db", "out.jsonl"]


# -------------------------------------------------------------------- other files, other circumstances


def test_a_file_of_an_earlier_schema(tmp_path: Path) -> None:
    path, whole = tmp_path / "memory.db", gzip.decompress(OLD.read_bytes())
    path.write_bytes(whole)
    found = salvage(path, tmp_path / "out.db", embedder=HashEmbedder())
    assert (found["problems"], found["complete"]) == ([], True)
    with Memory(tmp_path / "out.db", embedder=HashEmbedder(), generator=Listener()) as memory:
        assert memory.check() == []
        assert texts(memory.get_all(**ANN))[:2] == ["User lives in Faro", "User keeps bees"]
        assert "barrow" not in repr([memory.search("barrow", include=i, **ANN) for i in ("history", "all")])
        assert len(memory.pending()) == 1


def test_a_newer_schema_is_refused(plain: Filled, tmp_path: Path) -> None:
    content = bytearray(plain.content)
    content[60:64] = (99).to_bytes(4, "big")
    (tmp_path / "memory.db").write_bytes(content)
    with pytest.raises(SchemaError, match="schema 99"):
        save(tmp_path / "memory.db")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(tmp_path / "other.db"))) as connection:
        connection.execute("create table t (x); insert into t values (1)")
    (tmp_path / "text.db").write_text("tea\n" * 5_000)
    (tmp_path / "empty.db").write_bytes(b"")
    for name, error in (("other.db", NotOurFileError), ("text.db", KeyRefusedError), ("empty.db", LocalmemError)):
        with pytest.raises(error):
            save(tmp_path / name)
    with pytest.raises(InvalidInputError, match="there is no file"):
        save(tmp_path / "nowhere.db")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.db", "other.db", "text.db"]


@pytest.mark.parametrize("out", ["memory.db", "there.db", "nowhere/out.db", "there.jsonl"])
def test_nothing_is_written_over(plain: Filled, tmp_path: Path, out: str) -> None:
    (tmp_path / "memory.db").write_bytes(plain.content)
    for name in ("there.db", "there.jsonl"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InvalidInputError):
        save(tmp_path / "memory.db", None, out)
    assert (tmp_path / "there.db").read_text() == (tmp_path / "there.jsonl").read_text() == "mine"


def test_any_embedder_will_do(plain: Filled, tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(plain.content)
    found = save(tmp_path / "memory.db", embedder=OtherEmbedder())
    assert found["notes"] == ["the vectors were made by hash, those of the new file by other"]


def test_a_full_disk_is_told_before(plain: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.db").write_bytes(plain.content)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match="MiB free, salvaging needs"):
        save(tmp_path / "memory.db")


def test_a_program_that_is_writing_is_told(plain: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.db"
    path.write_bytes(plain.content)
    states = iter([[(1, 1)], [(2, 2)]])
    monkeypatch.setattr(damaged, "_state", lambda place: next(states))
    with pytest.raises(ConflictError, match="is writing"):
        save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["memory.db"]


class BadSector:
    """A file as apsw has it, of which one page can't be read from the disk."""

    def __init__(self, path: Path, page: int) -> None:
        self.content, self.bad = path.read_bytes(), range((page - 1) * PAGE, page * PAGE)

    def xFileSize(self) -> int:
        return len(self.content)

    def xRead(self, amount: int, offset: int) -> bytes:
        if max(offset, self.bad.start) < min(offset + amount, self.bad.stop):
            raise apsw.IOError("bad sector")
        return self.content[offset : offset + amount]

    def xClose(self) -> None:
        """Nothing is open."""


def test_a_bad_sector(plain: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, page = tmp_path / "memory.db", pages_named(plain, "version")[-1]
    path.write_bytes(plain.content)
    monkeypatch.setattr(damaged.opening, "bare_file", lambda place, vfs=None: BadSector(place, page))
    found = save(path)
    assert "the disk did not give 1 pages" in found["notes"]
    assert (found["complete"], found["problems"]) == (False, [])
    assert_sound(tmp_path / "out.db")


def test_an_incomplete_purge_is_told(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with opened(path) as memory:
        memory.add("the boat is called Selkie", infer=False, **ANN)
        with memory._engine.store.write() as tx:
            tx.execute("insert into purge (id, at, state, detail) values ('p', 1, 'incomplete', '{}')")
    found = save(path)
    assert any("destroy it" in note for note in found["notes"])
    with opened(tmp_path / "out.db") as memory:
        assert memory.purges() == []
