"""The audit chain: what each change enters and in whose name; and what is found when the file was in other hands.

The adversaries have the file and all of SQLite, but not the key: 500 cases of each kind, with a fixed seed. They work
on copies in memory of one file with a signed chain; the recipe of the chain is written down here once more, so that the
library is not asked about itself. What the chain does not cover is written down too, in tests whose names say so.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import hmac
import json
import os
import random
import re
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import faults
import pytest
from conftest import Opener
from doubles import Listener, OtherEmbedder, add_many, following_scripts, texts
from test_processes import side_by_side

from localmem import decrypt, encrypt, keys, reembed, rekey
from localmem.config import RETENTIONS
from localmem.db.schema import migrations
from localmem.errors import (
    AuditError,
    ClosedError,
    GeneratorError,
    InvalidInputError,
    InvalidTypeError,
    KeyRefusedError,
    LocalmemError,
    NotFoundError,
    ReadOnlyError,
    ScopeError,
    StorageError,
    TooLargeError,
)
from localmem.memory import Memory
from localmem.purge import doubts
from localmem.store_apply import Plan, neighbour_of, stated
from localmem.store_audit import Checkpoint, Signer
from localmem.store_purge import REGISTRY
from localmem.store_verify import Verdict, verify
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator
from localmem.types import Decision, Op, Scope

RAW, OTHER = bytes(range(32)), bytes(range(100, 132))
CASES = 500  # of each adversary
ANN, BOB = {"user_id": "ann"}, {"user_id": "bob"}
HEX = re.compile(r"([0-9a-f]{16}){1,2}")
NO_CHAIN = "the file has no audit chain, or its settings were changed by another program"
NO_LINE = "the checkpoint file has no line of this file"
NOT_SIGNED = "the end of the chain is not signed with the key given"
SCHEMA_2 = Path(__file__).parent / "data" / "schema2.db.gz"

pytestmark = pytest.mark.usefixtures("scripted")


# -------------------------------------------------------------------- the chain, read by plain SQL


class Row(NamedTuple):
    """One entry as it stands in the file."""

    seq: int
    at: int
    actor: str
    op: str
    owner: bytes | None
    subject: bytes | None
    decision_id: int | None
    commitment: bytes | None
    detail: str | None
    mac: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.detail or "{}")


def rows_of(file: apsw.Connection) -> list[Row]:
    return [Row(*row) for row in file.execute(f"select {', '.join(Row._fields)} from audit order by seq")]


@contextlib.contextmanager
def at(path: Path | None) -> Iterator[apsw.Connection]:
    """The file, for whoever has SQLite and no localmem."""
    with contextlib.closing(apsw.Connection(str(path))) as file:
        yield file


def chain(path: Path | None) -> list[Row]:
    with at(path) as file:
        return rows_of(file)


def setting(file: apsw.Connection, name: str) -> str:
    [(value,)] = file.execute("select value from setting where name = ?", (name,)).fetchall()
    return str(value)


def entered(memory: Memory, act: Callable[[], object]) -> list[Row]:
    """The entries that an action makes."""
    before = len(chain(memory.path))
    act()
    return chain(memory.path)[before:]


def told(rows: Sequence[Row]) -> list[tuple[str, Any]]:
    return [(row.op, row.told) for row in rows]


def words_of(rows: Sequence[Row]) -> list[str]:
    """Operation and reason of each."""
    return [f"{row.op} {row.told.get('reason', '')}".strip() for row in rows]


def hashes(rows: Sequence[Row]) -> list[bytes]:
    """H of each entry, by the recipe alone."""
    found, before = [], bytes(32)
    for row in rows:
        fields = [value.hex() if isinstance(value, bytes) else value for value in row[:-1]]
        before = hashlib.sha256(before + json.dumps(fields, separators=(",", ":")).encode()).digest()
        found.append(before)
    return found


def mac_of(secret: bytes | None, hashed: bytes) -> bytes:
    return hashed if secret is None else hmac.digest(secret, hashed, "sha256")


def key_id(secret: bytes | None) -> str:
    return "" if secret is None else hmac.digest(secret, b"localmem audit key", "sha256")[:8].hex()


def name_of(place: Memory | Path | apsw.Connection | None, name: str, key: bytes | None = RAW) -> bytes:
    """The keyed hash of an owner or an id in a file: its secret stands under the key, if there is one."""
    if isinstance(place, Memory):
        place = place.path
    if isinstance(place, Path):
        with contextlib.closing(apsw.Connection(str(place))) as file:
            return name_of(file, name, key)
    assert place is not None
    kept, file_id = setting(place, "audit_names"), setting(place, "file_id")
    secret = bytes.fromhex(kept.removeprefix("key:"))
    if key is not None and kept.startswith("key:"):
        pad = hmac.digest(key, b"localmem names " + file_id.encode(), "sha256")
        secret = bytes(one ^ other for one, other in zip(secret, pad, strict=True))
    return hmac.digest(secret, b"name " + name.encode(), "sha256")[:8]


TEXTS = {  # row, entry, salt, whose, of which memory or episode, number, user, agent, run, said by, name, text
    "version": (
        "select v.id, v.entry, v.salt, o.token, m.id, number, user_id, agent_id, run_id, actor, null, text "
        "from version v join memory m on m.id = memory_id join owner o on o.id = owner_id"
    ),
    "message": (
        "select t.id, t.entry, t.salt, o.token, e.id, position, user_id, agent_id, run_id, role, name, content "
        "from message t join episode e on e.id = episode_id join owner o on o.id = owner_id where dropped_at is null"
    ),
}


class Committed(NamedTuple):
    """A text of the file: its table and row, the id of its memory or episode, what should stand for it in the chain."""

    table: str
    row: int
    subject: str
    commitment: bytes


def committed(file: apsw.Connection) -> dict[int, Committed]:
    """Each text, by the number of the entry that it names."""
    return {
        entry: Committed(table, row, place[1], hashlib.sha256(salt + json.dumps([table, *place]).encode()).digest())
        for table, statement in TEXTS.items()
        for row, entry, salt, *place in file.execute(statement)
    }


def numbers_of(ranges: Sequence[Any]) -> list[int]:
    """[5, [9, 12]] is 5, 9, 10, 11, 12."""
    pairs = [each if isinstance(each, list) else [each, each] for each in ranges]
    return [number for first, last in pairs for number in range(first, last + 1)]


def mark_mac(secret: bytes | None, line: dict[str, Any]) -> str:
    """The signature of a checkpoint's line, which no entry's can be taken for."""
    body = json.dumps([line[name] for name in ("file", "seq", "at", "head")]).encode()
    labelled = hashlib.sha256(b"localmem checkpoint\0" + hashlib.sha256(body).digest()).digest()
    return mac_of(secret, labelled).hex()


# -------------------------------------------------------------------- what is entered


def begin(memory: Memory) -> None:
    memory.add("Ann keeps bees", infer=False, **ANN)
    memory.add("fact: User lives in Porto", timestamp="2025-01-10", **ANN)


def id_of(memory: Memory, word: str) -> str:
    return next(str(each["id"]) for each in memory.get_all(**ANN)["results"] if word in each["memory"])


CHANGES: dict[str, tuple[Callable[[Memory], object], list[str]]] = {
    "verbatim": (
        lambda m: m.add(
            [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "one"}, "two"], infer=False, **ANN
        ),
        ["turn", "turn", "turn", "add verbatim", "add verbatim"],
    ),
    "model": (lambda m: m.add("fact: User rows | x\nfact: User hums", **ANN), ["turn", "add model", "add model"]),
    "chatter": (lambda m: m.add("how is the weather?", **ANN), ["turn"]),
    "unsupported": (lambda m: m.add("fact: User rows | unsupported", **ANN), ["turn"]),
    "by hand": (lambda m: m.update(id_of(m, "bees"), "Ann keeps ants"), ["update manual"]),
    "metadata": (lambda m: m.update(id_of(m, "bees"), metadata={"a": 1}), ["update manual"]),
    "changed": (lambda m: m.add("fact: User lives in Faro | changes: Porto", **ANN), ["turn", "update model"]),
    "earlier": (
        lambda m: m.add("fact: User lives in Lagos | changes: Porto", timestamp="2025-01-02", **ANN),
        ["turn", "earlier model"],
    ),
    "an ending first": (
        lambda m: m.add("fact: User no longer sails | retracts: sails", **ANN),
        ["turn", "add model", "add model", "delete retraction"],
    ),
    "said again": (lambda m: m.add("fact: User lives in Porto", **ANN), ["turn", "confirm"]),
    "contradiction": (lambda m: m.add("fact: User lives in Rome | contests: Porto", **ANN), ["turn", "add model"]),
    "deleted": (lambda m: m.delete(id_of(m, "bees")), ["delete manual"]),
    "all deleted": (lambda m: m.delete_all(**ANN), ["delete manual", "delete manual"]),
    "nothing to delete": (lambda m: m.delete_all(**BOB), []),
    "forgotten": (
        lambda m: m.add("Please forget that.", **ANN),
        ["turn", "delete user_request", "suppress", "suppress"],
    ),
    "what is no change": (
        lambda m: (m.search("bees", **ANN), m.check(), m.verify_audit(), m.pending(), m.resume()),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_entered(open_memory: Opener, name: str) -> None:
    act, expected = CHANGES[name]
    with open_memory(generator=Listener(), audit_key=RAW, actor="tester") as memory:
        begin(memory)
        found = entered(memory, lambda: act(memory))
        assert words_of(found) == expected
        for row in found:
            assert (row.actor, row.at) == ("tester", memory._engine.clock())
            assert row.owner == name_of(memory, "u:ann")
            assert row.subject is not None
            assert (row.commitment is not None) == (row.op in ("turn", "add", "update", "earlier"))
            assert (row.decision_id is not None) == (row.told.get("reason") in ("model", "retraction", "user_request") or row.op == "confirm")  # fmt: skip
        verdict = memory.verify_audit()
        assert (verdict["ok"], verdict["entries"], verdict["signed"]) == (True, verdict["signed"], verdict["entries"])


def test_retention_reset_reads_and_export_are_entered(open_memory: Opener) -> None:
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        begin(memory)
        memory.add(["how is the weather?", "and the bees?"], **ANN)
        assert told(entered(memory, lambda: memory.retain("evidence"))) == [
            ("retention", {"retention": "evidence"}),
            ("drop", {"retention": "evidence", "texts": [[6, 7]]}),
        ]
        added = entered(memory, lambda: memory.add("drizzle", **ANN))
        assert told(added) == [("turn", {}), ("drop", {"retention": "evidence", "texts": [added[0].seq]})]
        assert told(entered(memory, lambda: memory.retain("all"))) == [("retention", {"retention": "all"})]
        assert told(entered(memory, memory.audit_log)) == [("audit_export", {})]
        [whose] = entered(memory, lambda: memory.audit_log(**ANN))
        assert whose.owner == name_of(memory, "u:ann")
        assert told(entered(memory, memory.reset)) == [("reset", {"memories": 2, "texts": [[2, 5]]})]
        assert memory.verify_audit()["texts"] == 0
        begin(memory)
        assert memory.verify_audit()["problems"] == []
    for wanted in (True, False):
        with open_memory(audit_key=RAW, audit_reads=wanted) as memory:
            assert told(chain(memory.path)[-1:]) == [("audit_reads", {"on": wanted})]
            assert told(entered(memory, lambda wanted=wanted: open_memory(audit_key=RAW, audit_reads=wanted))) == []


def test_merged_memories_are_entered_without_naming_each_other(open_memory: Opener) -> None:
    """By a plan itself: the scripts of the messages know no merging."""
    with open_memory(audit_key=RAW) as memory:
        for text in ("Ann keeps bees", "Ann has hives"):
            memory.add(text, infer=False, **ANN)
        found = memory.get_all(**ANN)["results"]
        now, embedder = memory._engine.clock(), HashEmbedder()
        both = tuple(neighbour_of(each["id"], 1, each["memory"], now) for each in found)
        text = "Ann keeps bees in hives"
        decision = Decision(stated(text, now), Op.UPDATE, both)
        plan = Plan(Scope("ann"), (decision,), {text: embedder.embed_passages([text])[0]}, "model", now)
        rows = entered(memory, lambda: memory._engine.store.apply(plan, now))
        assert words_of(rows) == ["update model", "delete merged"]


def test_a_purge_takes_the_salts_with_the_texts(open_memory: Opener) -> None:
    """The commitments stay, and nothing can be guessed from them any more."""
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        begin(memory)
        memory.add("Bob rows", infer=False, **BOB)
        with at(memory.path) as file:
            salts = [salt for (salt,) in file.execute("select salt from version union all select salt from message")]
        assert len(salts) == 6
        before = chain(memory.path)
        purge, done = entered(memory, lambda: memory.purge(**ANN))
        assert (purge.op, purge.owner, purge.told["texts"]) == ("purge", name_of(memory, "u:ann"), [[2, 5]])
        assert (done.op, done.told) == ("purge_done", {"purge": purge.seq})
        verdict, path = memory.verify_audit(), memory.path
        assert (verdict["problems"], verdict["signed"], verdict["texts"]) == ([], len(before) + 2, 2)
    assert path is not None
    content = path.read_bytes()
    assert sum(salt in content for salt in salts) == 2  # Bob's
    assert all(row.commitment in content for row in before if row.commitment)


def test_what_waits_is_entered_when_it_is_finished(open_memory: Opener) -> None:
    with open_memory(generator=Listener(fail=True), audit_key=RAW) as memory:

        def fail() -> None:
            with pytest.raises(GeneratorError):
                memory.add("fact: User rows", **ANN)

        assert words_of(entered(memory, fail)) == ["turn"]
    with open_memory(generator=Listener(), audit_key=RAW, actor="later") as memory:
        done = entered(memory, memory.resume)
        assert [(row.op, row.actor) for row in done] == [("add", "later")]


def test_an_entry_commits_to_its_text_and_the_chain_to_every_entry(open_memory: Opener) -> None:
    """The whole recipe, without the library."""
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        begin(memory)
        memory.update(id_of(memory, "bees"), "Ann keeps ants — 蟻")
        path = memory.path
    rows = chain(path)
    with at(path) as file:
        found = committed(file)
        assert setting(file, "audit_head") == f"{len(rows)}:{hashes(rows)[-1].hex()}"
        assert setting(file, "audit_key") == key_id(RAW)
        assert (rows[0].told["key"], rows[0].told["file"]) == (key_id(RAW), setting(file, "file_id"))
        salts = [salt for (salt,) in file.execute("select salt from version union all select salt from message")]
        subjects = {text.subject: name_of(file, text.subject) for text in found.values()}
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert [row.mac for row in rows] == [mac_of(RAW, hashed) for hashed in hashes(rows)]
    assert {row.seq: (row.commitment, row.subject) for row in rows if row.commitment} == {
        entry: (text.commitment, subjects[text.subject]) for entry, text in found.items()
    }
    assert len(set(salts)) == len(salts) == 5
    assert {len(salt) for salt in salts} == {16}


def leaves(value: Any) -> list[Any]:
    """All that stands in a piece of JSON."""
    if isinstance(value, dict):
        return [leaf for pair in value.items() for leaf in (pair[0], *leaves(pair[1]))]
    return [leaf for each in value for leaf in leaves(each)] if isinstance(value, list) else [value]


def test_the_words_of_an_entry_are_few(open_memory: Opener, tmp_path: Path) -> None:
    """detail holds numbers, switches, keyed hashes and words of this list."""
    known = {
        "reason": {"model", "manual", "verbatim", "user_request", "retraction", "retracted", "merged", "before"},
        "retention": set(RETENTIONS),
        "key": {""},  # none
        "rows": set(REGISTRY),  # tables
        "what": {"scope", "memories", "requested"},
        "from": {"plain", "encrypted"},
        "to": {"plain", "encrypted"},
    }
    with open_memory(generator=Listener()) as memory:
        begin(memory)
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        memory.sign_audit()
        memory.audit_reads(True)
        for act, _ in CHANGES.values():
            begin(memory)
            act(memory)
        for read in READS.values():
            begin(memory)
            read(memory, id_of(memory, "bees"))
        memory.audit_log()
        memory.purge(requested=True)
        memory.purge(memory_id=id_of(memory, "bees"))
        memory.purge(**ANN)
        begin(memory)
        memory.retain("none")
        memory.reindex()
        memory.reset()
    path = tmp_path / "memory.db"
    encrypt(path, RAW, audit_key=RAW)
    reembed(path, OtherEmbedder(), key=RAW, audit_key=RAW)
    with open_memory(key=RAW, audit_key=RAW, embedder=OtherEmbedder()) as memory:
        log = memory.audit_log()
    for entry in log:
        for name, value in entry["detail"].items():
            for each in leaves(value):
                allowed = isinstance(each, bool | int) or each in known.get(name, ()) or HEX.fullmatch(each)
                assert allowed, (entry["op"], name, value)
    assert {entry["op"] for entry in log} >= {
        "begin", "key", "turn", "add", "update", "earlier", "confirm", "delete", "suppress", "retention", "drop",
        "reset", "audit_reads", "audit_export", "purge", "purge_done", "reindex", "reembed", "rekey", *READS,
    }  # fmt: skip


def test_another_key_of_the_file_is_entered(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"

    def opened(**options: Any) -> Memory:
        return Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator(), **options)

    with opened() as memory:
        memory.add("Ann keeps bees", infer=False, **ANN)
        assert memory.verify_audit()["key_id"] == ""
    encrypt(path, "a passphrase", actor="keeper")
    rekey(path, "a passphrase", RAW, actor="keeper")
    with opened(key=RAW) as memory:
        verdict, log = memory.verify_audit(), memory.audit_log()
    assert [entry["op"] for entry in log] == ["begin", "turn", "add", "key", "rekey", "key", "rekey", "audit_export"]
    assert [entry["actor"] for entry in log] == ["", "", "", *["keeper"] * 4, ""]
    assert log[4]["detail"] == {"from": "plain", "to": "encrypted"}
    assert (verdict["ok"], verdict["entries"], verdict["signed"]) == (True, 7, 2)
    assert verdict["key_id"] == log[5]["detail"]["key"] != log[3]["detail"]["key"]
    with opened(key=RAW, audit_key=OTHER) as memory:
        assert memory.verify_audit()["problems"] == [NOT_SIGNED]


# -------------------------------------------------------------------- who


def test_the_actor(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMEM_ACTOR", "of the environment")
    with open_memory() as memory:
        assert [row.actor for row in chain(memory.path)] == ["of the environment"]
    with open_memory(actor=" app ") as memory:

        def actors(act: Callable[[], object]) -> set[str]:
            return {row.actor for row in entered(memory, act)}

        bot = memory.bound(actor="bot", **ANN)
        assert actors(lambda: memory.add("one", infer=False, **ANN)) == {"app"}
        assert actors(lambda: bot.add("fact: two", **ANN)) == {"bot"}
        assert actors(bot.audit_log) == {"bot"}
        assert actors(lambda: memory.bound(**ANN).delete_all()) == {"app"}
    with open_memory(actor="") as memory:
        memory.add("three", infer=False, **ANN)
        assert chain(memory.path)[-1].actor == ""


def test_a_narrower_handle_acts_in_the_same_name(open_memory: Opener) -> None:
    with open_memory(actor="app") as memory:
        bot = memory.bound(actor="bot", **ANN)
        for narrow, actor in ((bot.bound(run_id="r"), "bot"), (bot.bound(run_id="r", actor="part"), "part")):
            rows = entered(memory, lambda narrow=narrow: narrow.add("one", infer=False))
            assert {row.actor for row in rows} == {actor}


@pytest.mark.parametrize(("actor", "error"), [("a\0b", InvalidInputError), ("x" * 300, TooLargeError), ("  ", InvalidInputError), (7, InvalidTypeError)])  # fmt: skip
def test_actors_that_are_none(open_memory: Opener, actor: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="actor"):
        open_memory(actor=actor, sound=False)
    with open_memory() as memory, pytest.raises(error, match="actor"):
        memory.bound(actor=actor, **ANN)


# -------------------------------------------------------------------- with the change or not at all


def test_what_is_refused_enters_nothing(open_memory: Opener) -> None:
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        begin(memory)
        bees = id_of(memory, "bees")
        reading = memory.bound(read_only=True, **ANN)
        before = chain(memory.path)
        refused: list[tuple[type[Exception], Callable[[], object]]] = [
            (InvalidInputError, lambda: memory.add("  ", **ANN)),
            (ScopeError, lambda: memory.add("x", infer=False)),
            (InvalidInputError, lambda: memory.add("x", infer=False, metadata={"a": float("nan")}, **ANN)),
            (TooLargeError, lambda: memory.add("x" * 2_000_000, infer=False, **ANN)),
            (NotFoundError, lambda: memory.update("nobody", "x")),
            (NotFoundError, lambda: memory.delete("nobody")),
            (NotFoundError, lambda: memory.bound(**BOB).delete(bees)),
            (NotFoundError, lambda: memory.history("nobody")),
            (ScopeError, lambda: reading.add("x", infer=False)),
            (ScopeError, lambda: reading.delete(bees)),
            (ScopeError, lambda: memory.bound(**ANN).reset()),
            (ScopeError, lambda: memory.bound(**ANN).verify_audit()),
            (ScopeError, lambda: memory.bound(**ANN).audit_log(**BOB)),
            (InvalidInputError, lambda: memory.retain("some")),
            (InvalidInputError, lambda: memory.audit_log(limit=-1)),
            (InvalidTypeError, lambda: memory.audit_log(nobody="ann")),
        ]
        for error, attempt in refused:
            with pytest.raises(error):
                attempt()
        assert chain(memory.path) == before


def test_a_change_that_fails_half_way_leaves_no_entry(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        begin(memory)
        before, shown = chain(memory.path), texts(memory.get_all(**ANN))

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        for place in ("Changes._evidence", "Trail.close"):
            monkeypatch.setattr(f"localmem.store{'_apply' if 'Changes' in place else '_audit'}.{place}", fail)
            for attempt in (
                lambda: memory.add(["one", "two"], infer=False, **ANN),
                lambda: memory.update(id_of(memory, "bees"), "Ann keeps ants"),
            ):
                with pytest.raises(ZeroDivisionError):
                    attempt()
            monkeypatch.undo()
        assert chain(memory.path) == before
        assert texts(memory.get_all(**ANN)) == shown
        memory.add("three", infer=False, **ANN)
        assert memory.verify_audit()["problems"] == []


def test_every_fault_leaves_a_change_with_its_entries_or_neither(tmp_path: Path) -> None:
    def opened(path: Path, vfs: str | None = None) -> Memory:
        return Memory(
            path, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW, clock=FixedClock(), vfs=vfs
        )  # fmt: skip

    def make(path: Path) -> None:
        with opened(path) as memory:
            begin(memory)

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with opened(path, vfs.name) as memory:
            memory.add(["Ann keeps ants", "Ann keeps cats"], infer=False, **ANN)
            acknowledge()

    def observe(path: Path) -> tuple[int, tuple[str, ...]]:
        with opened(path) as memory:
            verdict = memory.verify_audit()
            assert verdict["problems"] == []
            return verdict["signed"], tuple(texts(memory.get_all(**ANN)))

    swept = faults.sweep(
        tmp_path, make=make, act=act, observe=observe, errors=(LocalmemError,), kinds=("io", "torn_stop", "power"),
        points_max=6,
    )  # fmt: skip
    assert swept.after[0] == swept.before[0] + 4


# -------------------------------------------------------------------- many at once, old files, files not to be written


def test_eight_threads_make_one_chain(open_memory: Opener, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with open_memory(audit_key=RAW, checkpoint=mark, durability="process") as memory:

        def work(number: int) -> None:
            handle = memory.bound(actor=f"thread {number}", user_id=f"user {number % 3}")
            for each in range(4):
                handle.add(f"note {each} of thread {number}", infer=False)

        assert at_once(work, 8) == [None] * 8
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["signed"], verdict["checkpoints"]) == ([], 1 + 2 * 32, 1 + 32)
        assert Counter(row.actor for row in chain(memory.path)) == {"": 1} | {f"thread {n}": 8 for n in range(8)}


def test_two_processes_make_one_chain(
    open_memory: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """They also race to begin it; key, checkpoint and name come from the environment."""
    (tmp_path / "key").write_text(RAW.hex())
    for name, value in {"AUDIT_KEY_FILE": tmp_path / "key", "CHECKPOINT": tmp_path / "mark", "ACTOR": "worker"}.items():
        monkeypatch.setenv(f"LOCALMEM_{name}", str(value))
    with side_by_side(*((add_many, (str(tmp_path / "memory.db"), worker, 20)) for worker in range(2))):
        pass
    with open_memory() as memory:
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["signed"]) == ([], 1 + 2 * 40)
        assert 40 < verdict["checkpoints"] <= 40 + 3  # and one where an opening saw another end than the last line's
        assert verdict["key_id"] == key_id(RAW)
        assert {row.actor for row in chain(memory.path)} == {"worker"}


def before_there_was_one(path: Path, statement: str = "") -> Path:
    """A file of schema 2, which knows no chain."""
    path.write_bytes(gzip.decompress(SCHEMA_2.read_bytes()))
    with at(path) as file:
        file.execute(statement)
    return path


def test_a_file_from_before_there_was_a_chain(open_memory: Opener, tmp_path: Path) -> None:
    before_there_was_one(tmp_path / "memory.db")
    with open_memory(generator=Listener(), actor="upgrade") as memory:
        rows = chain(memory.path)
        with at(memory.path) as file:
            [(versions,)] = file.execute("select count(*) from version").fetchall()
            [(turns,)] = file.execute("select count(*) from message where dropped_at is null").fetchall()
            [(deleted,)] = file.execute("select count(*) from memory where deleted_at is not null").fetchall()
            [(salts,)] = file.execute(
                "select (select count(distinct salt) from version) + (select count(distinct salt) from message)"
            ).fetchall()
        assert told(rows[versions + turns + 1 :]) == [("delete", {"reason": "before"})] * deleted
        ops = [row.op for row in rows[: versions + turns + 1]]
        assert ops == ["begin"] + [op for op in ops if op in ("found", "found_head")]
        assert versions > 3
        assert turns > 3
        assert salts == versions + turns
        assert {row.actor for row in rows} == {"upgrade"}
        assert all(row.owner and row.subject and (row.commitment or row.op == "delete") for row in rows[1:])
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["entries"], verdict["texts"]) == ([], len(rows), versions + turns)
        memory.resume()
        memory.delete_all(**ANN)
        assert memory.verify_audit()["problems"] == []


def test_the_settings_of_a_file_from_before_are_entered(open_memory: Opener, tmp_path: Path) -> None:
    before_there_was_one(tmp_path / "memory.db", "insert into setting (name, value) values ('retention', 'evidence')")
    with open_memory() as memory:
        file = memory.verify_audit()
        assert (file["ok"], memory.retention) == (True, "evidence")
        rows = chain(memory.path)
        assert told(rows[-1:]) == [("retention", {"retention": "evidence"})]
        with at(memory.path) as there:
            assert (rows[0].told["key"], rows[0].told["file"]) == ("", setting(there, "file_id"))


@pytest.fixture
def locked_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on no path may be written, which chmod can't bring about for the superuser."""

    def lock() -> None:
        real = os.access
        monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and real(path, mode, **more))

    return lock


def test_a_read_only_file(open_memory: Opener, tmp_path: Path, locked_up: Callable[[], None]) -> None:
    mark = tmp_path / "mark"
    with open_memory(audit_key=RAW, checkpoint=mark, generator=Listener()) as memory:
        begin(memory)
    locked_up()
    with open_memory(audit_key=RAW, sound=False) as memory:
        verdict = memory.verify_audit(mark)
        assert (verdict["problems"], verdict["signed"], verdict["checkpoints"]) == ([], 5, 4)
        assert len(memory.audit_log()) == 5
        assert texts(memory.search("bees", **ANN))[0] == "Ann keeps bees"
    with open_memory(sound=False) as memory:  # which takes no key into use
        assert memory.verify_audit()["key_given"] is False
    with open_memory(audit_key=OTHER, sound=False) as memory:
        assert memory.verify_audit()["problems"] == [NOT_SIGNED]


# -------------------------------------------------------------------- reads


READS: dict[str, Callable[[Any, str], Any]] = {
    "search": lambda m, i: m.search("bees", **ANN),
    "context": lambda m, i: m.context("bees", **ANN),
    "get": lambda m, i: m.get(i),
    "get_all": lambda m, i: m.get_all(**ANN),
    "page": lambda m, i: m.page(limit=1, newest_first=True, **ANN),
    "history": lambda m, i: m.history(i),
    "all_versions": lambda m, i: m.all_versions(**ANN),
    "decisions": lambda m, i: m.decisions(**ANN),
    "contested": lambda m, i: m.contested(**ANN),
}


@pytest.mark.parametrize("op", READS)
def test_a_read_is_entered_where_the_file_says_so(open_memory: Opener, op: str) -> None:
    read = READS[op]
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        begin(memory)
        memory.add("fact: User lives in Rome | contests: Porto", **ANN)
        memory.update(id_of(memory, "bees"), "Ann keeps bees and ants")
        bees = id_of(memory, "bees")
        assert entered(memory, lambda: read(memory, bees)) == []
    with open_memory(generator=Listener(), audit_key=RAW, audit_reads=True):
        pass
    with open_memory(generator=Listener(), audit_key=RAW) as memory:  # the setting stands in the file
        for handle in (memory, memory.bound(read_only=True, actor="reader", **ANN)):
            [row] = entered(memory, lambda handle=handle: read(handle, bees))
            assert (row.op, row.owner) == (op, name_of(memory, "u:ann"))
            assert row.actor == ("" if handle is memory else "reader")
        shown = {
            "search": {each["id"] for each in memory.search("bees", **ANN)["results"]},
            "context": {each["id"] for each in memory.search("bees", limit=20, **ANN)["results"]},
            "get_all": {each["id"] for each in memory.get_all(**ANN)["results"]},
            "page": {memory.get_all(**ANN)["results"][-1]["id"]},
            "contested": {each["id"] for each in memory.contested(**ANN)["results"]},
            "decisions": set(),
        }.get(op, {bees})
        assert sorted(row.told.get("seen", [])) == sorted(name_of(memory, each).hex() for each in shown)
    with open_memory(generator=Listener(), audit_key=RAW, audit_reads=False) as memory:
        assert entered(memory, lambda: read(memory, bees)) == []


def test_a_read_that_finds_nothing_tells_so(open_memory: Opener) -> None:
    with open_memory(audit_key=RAW, audit_reads=True) as memory:
        assert told(entered(memory, lambda: memory.search("bees", **BOB))) == [("search", {})]
        assert told(entered(memory, lambda: memory.get_all(**BOB))) == [("get_all", {})]
        assert entered(memory, lambda: memory.get("nobody")) == []  # nobody's memory was seen


def test_a_read_that_can_not_be_entered_gives_no_answer(
    open_memory: Opener, tmp_path: Path, locked_up: Callable[[], None]
) -> None:
    with open_memory(generator=Listener(), audit_key=RAW, audit_reads=True) as memory:
        begin(memory)
        bees = id_of(memory, "bees")
    with open_memory(sound=False, generator=Listener()) as memory:
        for read in READS.values():
            with pytest.raises(KeyRefusedError, match="signed with the key"):
                read(memory, bees)
    before = (tmp_path / "memory.db").read_bytes()
    locked_up()
    with open_memory(sound=False, generator=Listener(), audit_key=RAW) as memory:
        for read in READS.values():
            with pytest.raises(ReadOnlyError, match=r"memory\.db is read-only"):
                read(memory, bees)
    assert (tmp_path / "memory.db").read_bytes() == before


# -------------------------------------------------------------------- what the chain tells to whom


def test_a_bound_handle_sees_its_owners_entries_alone(open_memory: Opener) -> None:
    with open_memory(generator=Listener(), audit_key=RAW, audit_reads=True) as memory:
        begin(memory)
        memory.add("Bob rows", infer=False, **BOB)
        memory.search("bees", **ANN)
        memory.retain("evidence")
        own = memory.bound(**ANN).audit_log()
        everything = memory.audit_log()
        assert {entry["owner"] for entry in own} == {name_of(memory, "u:ann").hex()}
        assert [entry["op"] for entry in own] == ["turn", "add", "turn", "add", "search", "audit_export"]
        assert memory.audit_log(limit=2, **BOB) == [e for e in everything if e["owner"] == name_of(memory, "u:bob").hex()][:2]  # fmt: skip
        assert memory.bound(user_id="nobody").audit_log() == memory.audit_log(user_id="nobody")[:1]
        assert [entry["seq"] for entry in everything] == list(range(1, len(everything) + 1))
        assert everything[0]["at"] == "2025-03-01T00:00:00Z"
        rows = [id_of(memory, "bees"), memory.get_all(**BOB)["results"][0]["id"]]
        assert [entry["op"] for entry in memory.bound(**ANN).audit_log(memory_id=rows[0])] == [
            "add",
            "search",
            "get_all",
        ]
        assert memory.bound(**ANN).audit_log(memory_id=rows[1]) == []
        assert set(everything[0]) == set(Row._fields)


def test_nothing_anybody_said_or_is_called_stands_in_the_chain(open_memory: Opener, tmp_path: Path) -> None:
    names = {"user_id": "canary-user", "agent_id": "canary-agent", "run_id": "canary-run"}
    mark = tmp_path / "mark"
    with open_memory(generator=Listener(), audit_key=RAW, audit_reads=True, checkpoint=mark) as memory:
        said = {"role": "user", "name": "canary-name", "content": "fact: canary-text sings"}
        memory.add(said, metadata={"canary-key": "canary-value"}, **names)
        memory.add("canary-verbatim", infer=False, metadata={"canary-key": "canary-value"}, **names)
        [first, _] = memory.get_all(**names)["results"]
        memory.update(first["id"], "canary-update", metadata={"canary-new": 1})
        memory.add("fact: canary-late | changes: canary-update", **names)
        memory.search("canary-query", filters={"canary-key": "canary-value"}, **names)
        memory.delete(first["id"])
        memory.add("Please forget that.", **names)
        memory.retain("none")
        path = memory.path
    with at(path) as file:
        ids = [
            value
            for statement in (
                "select id from memory", "select id from episode", "select text from version", "select hash from version",
                "select token from owner",
            )
            for (value,) in file.execute(statement)
        ]  # fmt: skip
    content = "\n".join(repr(row) for row in chain(path)) + mark.read_text()
    content += content.encode().hex()  # and not as hex either
    blobs = b"".join(value for row in chain(path) for value in row if isinstance(value, bytes))
    assert len(ids) > 10
    for each in ["canary", "forget", *ids]:
        for form in (each, each.replace("-", ""), each.encode().hex()):
            assert form not in content
        assert each.encode() not in blobs


def test_names_are_hashed_with_a_secret_of_each_file(open_memory: Opener) -> None:
    """Which stands in the file under the key, where there is one."""
    found = {}
    for name, key in {"a": RAW, "b": OTHER, "c": RAW, "d": None, "e": None}.items():
        with open_memory(f"{name}.db", audit_key=key) as memory:
            for text in ("one", "two"):
                memory.add(text, infer=False, **ANN)
            memory.add("three", infer=False, **BOB)
            owners = [row.owner for row in chain(memory.path) if row.op == "add"]
            assert owners[0] == owners[1] != owners[2]
            found[name] = owners[0]
            with contextlib.closing(apsw.Connection(str(memory.path))) as file:
                assert setting(file, "audit_names").startswith("key:") is (key is not None)
            assert owners[0] == name_of(memory, "u:ann", key)
    assert len(set(found.values())) == 5


def test_the_audit_key_is_nowhere_in_the_files(open_memory: Opener, tmp_path: Path) -> None:
    passphrase = "the passphrase of the audit"
    for name, key in (("raw.db", RAW), ("words.db", passphrase)):
        mark = tmp_path / f"{name}.mark"
        with open_memory(name, audit_key=key, checkpoint=mark, generator=Listener()) as memory:
            begin(memory)
            memory.audit_log()
            with at(memory.path) as file:
                secret = keys.Key(passphrase=passphrase).raw(bytes.fromhex(setting(file, "file_id")))
            beside = [each for each in tmp_path.iterdir() if each.name.startswith(name)]
            assert len(beside) > 2  # the journal too
            for each in beside:
                content = each.read_bytes()
                for form in (RAW, secret, passphrase.encode()):
                    assert form not in content
                    assert form.hex().encode() not in content
            assert repr(memory._engine.store.signer).count("key") == 0


def test_another_key_or_none_may_read_and_not_write(open_memory: Opener) -> None:
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        begin(memory)
        bees = id_of(memory, "bees")
        before = memory.path.read_bytes() if memory.path else b""
        rows, owned = chain(memory.path), texts(memory.get_all(**ANN))
    for key in (None, OTHER, "some passphrase"):
        with open_memory(generator=Listener(), audit_key=key, sound=False) as memory:
            writes: list[Callable[[], object]] = [
                lambda m=memory: m.add("x", infer=False, **ANN),
                lambda m=memory: m.add("fact: x", **ANN),
                lambda m=memory: m.update(bees, "x"),
                lambda m=memory: m.delete(bees),
                lambda m=memory: m.delete_all(**ANN),
                lambda m=memory: m.retain("none"),
                lambda m=memory: m.audit_log(),
                lambda m=memory: m.reset(),
            ]
            for write in writes:
                with pytest.raises(KeyRefusedError, match=f"signed with the key {key_id(RAW)}.*nothing was written"):
                    write()
            assert texts(memory.get_all(**ANN)) == owned
            assert memory.get(bees) is not None
            assert memory.search("bees", **ANN)["results"]
            assert memory.pending() == []
            verdict = memory.verify_audit()
            assert (verdict["key_given"], verdict["signed"], verdict["key_id"]) == (key is not None, 0, key_id(RAW))
            assert verdict["problems"][:1] == ([] if key is None else [NOT_SIGNED])
        with pytest.raises(KeyRefusedError):
            open_memory(audit_key=key, audit_reads=True, sound=False)
    with open_memory(audit_key=RAW) as memory:
        assert chain(memory.path) == rows
        assert (memory.path.read_bytes() if memory.path else b"")[100:] != b"" != before


def test_without_a_key_the_chain_is_a_checksum(open_memory: Opener) -> None:
    with open_memory(generator=Listener()) as memory:
        begin(memory)
        verdict, rows = memory.verify_audit(), chain(memory.path)
        assert (verdict["ok"], verdict["key_given"], verdict["key_id"], verdict["signed"]) == (True, False, "", 0)
        assert [row.mac for row in rows] == hashes(rows)
        assert verdict["head"] == hashes(rows)[-1].hex()
        with at(memory.path) as file:
            file.execute("update audit set actor = 'mallory' where seq = 3")
            assert judged(file, key=None).problems[0].startswith("entry 3 was changed")
            put(file, resigned(rows_of(file), None))  # which anybody can do
            assert judged(file, key=None).problems == []
            assert judged(file, key=RAW).problems[0] == NOT_SIGNED
            file.execute("update audit set actor = '' where seq = 3")
            put(file, resigned(rows_of(file), None))


def test_a_file_without_a_chain_says_so(tmp_path: Path) -> None:
    with at(tmp_path / "memory.db") as file:
        for _, statements in migrations(after=0):
            file.execute(statements)
        assert verify(file, Signer()).problems == [NO_CHAIN]


# -------------------------------------------------------------------- a file for the adversaries


@dataclass(frozen=True, slots=True)
class Made:
    """A file with a signed chain, its checkpoint file's lines, and what both were after each change."""

    content: bytes
    lines: list[str]
    steps: list[tuple[bytes, int]]  # the file's bytes, how many lines
    quiet: int  # entries after this one brought texts only, took none


FIRST: tuple[Callable[[Memory], object], ...] = (
    begin,
    lambda m: m.add(["it drizzles", "fact: User hums"], **ANN),
    lambda m: m.retain("evidence"),  # the first is dropped
    lambda m: m.retain("all"),
    lambda m: m._engine.store.audit_reads(True, m._engine.clock()),
    lambda m: m.search("bees", **ANN),
    lambda m: m.get_all(**ANN),
    lambda m: m._engine.store.audit_reads(False, m._engine.clock()),
)
THEN: tuple[Callable[[Memory], object], ...] = (
    lambda m: m.add(["Bob rows", {"role": "assistant", "content": "He does"}], infer=False, **BOB),
    lambda m: m.add("fact: User lives in Faro | changes: Porto", **ANN),
    lambda m: m.add("fact: User lives in Lagos | changes: Faro", timestamp="2025-01-02", **ANN),
    lambda m: m.update(id_of(m, "bees"), "Ann keeps ants"),
    lambda m: m.add("fact: User hums", **ANN),
    lambda m: m.delete(id_of(m, "hums")),
    lambda m: m.add("fact: User's boat is called Selkie", **ANN),
    lambda m: m.add("Please forget that.", **ANN),
    lambda m: m.audit_log(),
    *(lambda m, n=n: m.add(f"fact: User owns boat number {n}", user_id=f"user {n % 3}") for n in range(8)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("audit")
    path, mark, clock = folder / "memory.db", folder / "mark", FixedClock()
    steps, quiet = [], 0
    with following_scripts():
        for number, step in enumerate((*FIRST, *THEN)):
            clock.advance(60)
            with Memory(
                path, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW, checkpoint=mark, clock=clock,
                actor=f"actor {number % 3}", durability="process",
            ) as memory:  # fmt: skip
                step(memory)
            content = bytearray(path.read_bytes())
            content[18:20] = b"\1\1"  # no WAL: SQLite reads such bytes in memory
            steps.append((bytes(content), len(mark.read_text().splitlines())))
            quiet = len(chain(path)) if number < len(FIRST) else quiet
    return Made(steps[-1][0], mark.read_text().splitlines(), steps, quiet)


@contextlib.contextmanager
def copied(content: bytes) -> Iterator[apsw.Connection]:
    with contextlib.closing(apsw.Connection(":memory:")) as file:
        file.deserialize("main", content)
        yield file


@contextlib.contextmanager
def copy_of(path: Path) -> Iterator[apsw.Connection]:
    """The same of a file that is closed; what is done to the copy the file knows nothing of."""
    content = bytearray(path.read_bytes())
    content[18:20] = b"\1\1"  # no WAL: SQLite reads such bytes in memory
    with copied(bytes(content)) as file:
        yield file


def judged(file: apsw.Connection, lines: Sequence[str] | None = None, key: bytes | None = RAW) -> Verdict:
    return verify(file, Signer(key=keys.key_of(key)), lines)


def put(file: apsw.Connection, rows: Sequence[Row], *, head: bool = True) -> None:
    """Put these entries in place of those there, and if wished say that they end the chain: that needs no key."""
    file.execute("delete from audit")
    marks = ", ".join("?" * len(Row._fields))
    file.executemany(f"insert into audit ({', '.join(Row._fields)}) values ({marks})", rows)
    if head:
        value = f"{rows[-1].seq}:{hashes(rows)[-1].hex()}" if rows else ""
        file.execute("update setting set value = ? where name = 'audit_head'", (value,))


def numbered(rows: Sequence[Row]) -> list[Row]:
    return [row._replace(seq=number) for number, row in enumerate(rows, 1)]


def resigned(rows: Sequence[Row], secret: bytes | None) -> list[Row]:
    """The chain made anew over these entries."""
    rows = numbered(rows)
    return [row._replace(mac=mac_of(secret, hashed)) for row, hashed in zip(rows, hashes(rows), strict=True)]


def first_wrong(before: Sequence[Row], after: Sequence[Row]) -> int:
    """The number of the first entry that is not as it was; one more than there are, where the end is missing."""
    pairs = zip(before, after, strict=False)
    return next((n for n, (old, new) in enumerate(pairs, 1) if old != new), min(len(before), len(after)) + 1)


def is_named(problems: Sequence[str], first: int, left: int, *, renamed: bool = False) -> bool:
    """Whether what was found names the first wrong entry; ``left``: how many entries are there; ``renamed``: it says
    that another key came, from where on nothing can be said but that."""
    among = re.match(r"one of the entries 1 to (\d+) was changed", problems[0])  # it says that the key came with it
    if among:
        return 1 <= first <= int(among[1])
    if problems[0] == NOT_SIGNED:
        return first == 1 or renamed
    if first > left:
        return f"what is there ends at entry {left}" in problems[0]
    return re.match(f"(entry {first}|entries {first} to -?\\d+) ", problems[0]) is not None


def says_another_key(rows: Sequence[Row], first: int) -> bool:
    row = next((row for row in rows if row.seq == first), None)
    if row is None or row.op not in ("begin", "key"):
        return False
    with contextlib.suppress(ValueError, AttributeError):
        return bool(row.told.get("key") != key_id(RAW))
    return True


Attack = Callable[[apsw.Connection, random.Random], None]


def all_found(made: Made, attack: Attack) -> None:
    """The untouched copy is sound; what was done to it is found and named in each case."""
    missed = []
    with copied(made.content) as file:
        before = rows_of(file)
        assert judged(file).problems == []
    for number in range(CASES):
        chance = random.Random(number)
        with copied(made.content) as file:
            attack(file, chance)
            after = rows_of(file)
            assert after != before
            problems, first = judged(file).problems, first_wrong(before, after)
        if not problems or not is_named(problems, first, len(after), renamed=says_another_key(after, first)):
            missed.append(f"case {number}, entry {first}: {problems}")
    assert missed == []


def found_by_memory(path: Path, **options: Any) -> bool:
    """What an application sees: an error that says what is the matter, or problems."""
    options = {"audit_key": RAW, "embedder": HashEmbedder(), "generator": Listener(), **options}
    try:
        with Memory(path, **options) as memory:
            return bool(memory.verify_audit()["problems"])
    except LocalmemError:
        return True


@pytest.fixture
def stolen(made: Made, tmp_path: Path) -> Path:
    """A copy on the disk."""
    (tmp_path / "stolen.db").write_bytes(made.content)
    return tmp_path / "stolen.db"


def test_the_file_of_the_adversaries(made: Made, stolen: Path) -> None:
    with copied(made.content) as file:
        verdict = judged(file, made.lines)
        [(versions, turns)] = file.execute(
            "select (select count(*) from version), (select count(*) from message where salt is not null)"
        ).fetchall()
    assert (verdict.problems, verdict.signed, verdict.checkpoints) == ([], verdict.entries, len(made.lines))
    assert verdict.texts == versions + turns
    assert verdict.entries - made.quiet > 30
    assert verdict.entries > 45
    assert not found_by_memory(stolen)


# -------------------------------------------------------------------- adversaries: the entries


def records_of(content: bytes, macs: set[bytes]) -> list[tuple[int, range]]:
    """(number, place in the file) of each entry, from SQLite's file format: table leaves, whose cells end with a mac."""

    def varint(place: int) -> tuple[int, int]:
        value = 0
        while True:
            value, place = value << 7 | content[place] & 0x7F, place + 1
            if content[place - 1] < 0x80:
                return value, place

    found = []
    for page in range(4096, len(content), 4096):
        if content[page] != 0x0D:  # a table's leaf
            continue
        for cell in range(int.from_bytes(content[page + 3 : page + 5], "big")):
            pointer = page + 8 + 2 * cell
            start = page + int.from_bytes(content[pointer : pointer + 2], "big")
            size, place = varint(start)
            seq, place = varint(place)
            if content[place + size - 32 : place + size] in macs:
                found.append((seq, range(start, place + size)))
    return sorted(found, key=lambda record: record[0])


def as_text(row: Row) -> Row:
    """A text with the code of a blob, or of another kind of NULL, is the same text to whoever reads it."""
    texts = {name: getattr(row, name) for name in ("actor", "op", "detail")}
    return row._replace(**{name: each.decode() for name, each in texts.items() if isinstance(each, bytes)})


def test_a_byte_changed_inside_a_record_is_found(made: Made) -> None:
    with copied(made.content) as file:
        before = rows_of(file)
    places = records_of(made.content, {row.mac for row in before})
    assert [seq for seq, _ in places] == [row.seq for row in before]
    missed, named, cases, chance = [], 0, 0, random.Random(1)
    while cases < CASES:
        seq, record = chance.choice(places)
        place, flip = chance.choice(record), chance.randrange(1, 256)
        content = bytearray(made.content)
        content[place] ^= flip
        with copied(bytes(content)) as file:
            with contextlib.suppress(apsw.Error, UnicodeDecodeError):
                if [as_text(row) for row in rows_of(file)] == before:  # no entry says anything else
                    continue
            try:
                problems = judged(file).problems
            except apsw.Error:
                problems = None
        cases += 1
        if problems is not None and not (problems and is_named(problems, seq, len(before))):
            missed.append(f"byte {place - record.start} of entry {seq}, {flip:#04x}: {problems}")
        named += problems is not None
    assert missed == []
    assert named > CASES * 0.6


@pytest.mark.parametrize("back", [1, 20, 40, 60, 70, 80])
def test_an_application_is_told_of_a_byte(made: Made, stolen: Path, back: int) -> None:
    with copied(made.content) as file:
        record = records_of(made.content, {row.mac for row in rows_of(file)})[20][1]
    content = bytearray(made.content)
    content[record[-back]] ^= 1
    stolen.write_bytes(content)
    assert found_by_memory(stolen)


def other_value(name: str, rows: Sequence[Row], chance: random.Random) -> Any:
    """Something that could stand in a column."""
    some = [getattr(row, name) for row in rows]
    return {
        "seq": lambda: len(rows) + chance.randrange(1, 9),
        "at": lambda: chance.choice([chance.choice(some) + chance.choice([-1, 1, 60_000_000]), 0]),
        "actor": lambda: chance.choice(["mallory", "", "actor 0", "actor 1 "]),
        "op": lambda: chance.choice([*some, "purge"]),
        "owner": lambda: chance.choice([*some, chance.randbytes(8)]),
        "subject": lambda: chance.choice([*some, chance.randbytes(8), None]),
        "decision_id": lambda: chance.choice([*some, chance.randrange(99)]),
        "commitment": lambda: chance.choice([*some, chance.randbytes(32)]),
        "detail": lambda: chance.choice([*some, "{}", '{"texts":[1]}', "no JSON", '[["key"]]', f'{{"key":"{key_id(RAW)}"}}']),
        "mac": lambda: chance.choice([*some, chance.randbytes(32), b""]),
    }[name]()  # fmt: skip


def test_a_changed_column_is_found(made: Made) -> None:
    names = iter(Row._fields * CASES)  # each in its turn

    def change(file: apsw.Connection, chance: random.Random) -> None:
        rows, name = rows_of(file), next(names)
        row = chance.choice(rows)
        value = getattr(row, name)
        while value == getattr(row, name):
            value = other_value(name, rows, chance)
        file.execute(f"update audit set {name} = ? where seq = ?", (value, row.seq))
        if chance.random() < 0.5:
            put(file, rows_of(file))

    all_found(made, change)


def test_removed_entries_are_found(made: Made) -> None:
    """Some of them, their gap left or closed. The last ones alone, with the head put right, are a cut: see below."""

    def remove(file: apsw.Connection, chance: random.Random) -> None:
        rows = rows_of(file)
        gone = {chance.randrange(len(rows) - 1)}
        if chance.random() < 0.5:
            first = min(gone)
            gone |= set(range(first, min(first + chance.randrange(1, 9), len(rows) - 1)))
        if chance.random() < 0.3:
            gone |= {chance.randrange(len(rows) - 1) for _ in range(5)}
        left = [row for place, row in enumerate(rows) if place not in gone]
        put(file, numbered(left) if chance.random() < 0.5 else left, head=chance.random() < 0.5)

    all_found(made, remove)


def test_a_cut_end_with_the_head_left_as_it_was_is_found(made: Made) -> None:
    with copied(made.content) as file:
        count = len(rows_of(file))

    def cut(file: apsw.Connection, chance: random.Random) -> None:
        put(file, rows_of(file)[: chance.randrange(1, count)], head=False)

    all_found(made, cut)


def test_inserted_entries_are_found(made: Made) -> None:
    def insert(file: apsw.Connection, chance: random.Random) -> None:
        rows = rows_of(file)
        place, source = chance.randrange(len(rows) + 1), chance.choice(rows)
        new = source._replace(
            actor=chance.choice([source.actor, "mallory"]), op=chance.choice([source.op, "add", "key", "drop"])
        )
        if chance.random() < 0.3:
            new = new._replace(detail=chance.choice([f'{{"key":"{key_id(RAW)}"}}', '{"texts":[[2,9]]}']))
        if place < len(rows) and new[1:] == rows[place][1:]:
            new = new._replace(actor="somebody")
        after = numbered([*rows[:place], new, *rows[place:]])
        hashed = hashes(after)[place]
        forged = [source.mac, hashed, chance.randbytes(32), mac_of(OTHER, hashed)]
        after[place] = after[place]._replace(mac=chance.choice(forged))
        put(file, after)

    all_found(made, insert)


def test_reordered_entries_are_found(made: Made) -> None:
    def reorder(file: apsw.Connection, chance: random.Random) -> None:
        rows = rows_of(file)
        after = list(rows)
        if chance.random() < 0.6:
            one, two = chance.sample(range(len(rows)), 2)
            after[one], after[two] = after[two], after[one]
        else:
            start = chance.randrange(len(rows) - 2)
            part = after[start : start + chance.randrange(2, 12)]
            while part == after[start : start + len(part)]:
                chance.shuffle(part)
            after[start : start + len(part)] = part
        put(file, numbered(after), head=chance.random() < 0.5)

    all_found(made, reorder)


def test_a_chain_made_anew_without_the_key_is_found(made: Made) -> None:
    """After a change of whatever, all macs are made anew as checksums or with a key of their own, and the settings say
    the same; the entry that names the key may be left, or changed too."""

    def anew(file: apsw.Connection, chance: random.Random) -> None:
        rows = rows_of(file)
        place, name = chance.randrange(1, len(rows)), chance.choice(["at", "actor", "op", "owner", "detail", "gone"])
        if name == "gone":
            del rows[place]
        else:
            rows[place] = rows[place]._replace(**{name: other_value(name, rows, chance)})
        secret = chance.choice([None, OTHER, chance.randbytes(32)])
        if chance.random() < 0.5:
            rows[0] = rows[0]._replace(detail=json.dumps({"key": key_id(secret)}, separators=(",", ":")))
        put(file, resigned(rows, secret))
        said = chance.choice([key_id(RAW), key_id(secret)])
        file.execute("update setting set value = ? where name = 'audit_key'", (said,))
        if chance.random() < 0.2:
            file.execute("delete from setting where name = 'audit_key'")

    all_found(made, anew)


def test_an_application_is_told_of_a_chain_made_anew_with_another_key(stolen: Path) -> None:
    with at(stolen) as file:
        rows = [row._replace(actor="mallory") for row in rows_of(file)]
        put(file, resigned([rows[0]._replace(detail=json.dumps({"key": key_id(OTHER)})), *rows[1:]], OTHER))
        file.execute("update setting set value = ? where name = 'audit_key'", (key_id(OTHER),))
    assert found_by_memory(stolen)


def test_writing_on_hides_nothing(stolen: Path) -> None:
    """The application goes on from the forged head; its entries are signed, those before are not."""
    with at(stolen) as file:
        rows = rows_of(file)
        put(file, [*rows[:29], rows[29]._replace(actor="mallory"), *rows[30:]])
    for _ in range(2):
        with Memory(stolen, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW) as memory:
            with contextlib.suppress(LocalmemError):
                memory.add("one", infer=False, **ANN)
            assert memory.verify_audit()["problems"][0].startswith("entry 30 was changed")


def test_an_entry_that_names_the_key_blurs_nothing(made: Made) -> None:
    """Put in at the end it is not signed itself; what was changed is named, not "one of the entries 1 to" the last."""
    with copied(made.content) as file:
        rows = rows_of(file)
        rows[29] = rows[29]._replace(actor="mallory")
        put(file, [*rows, rows[-1]._replace(seq=len(rows) + 1, op="key", detail=f'{{"key":"{key_id(RAW)}"}}')])
        assert judged(file).problems[0].startswith("entry 30 was changed")


def test_an_application_is_told_of_an_empty_chain(stolen: Path) -> None:
    with at(stolen) as file:
        put(file, [])
    assert found_by_memory(stolen)


@pytest.mark.parametrize("whole", [False, True])
def test_an_application_is_told_of_a_chain_made_anew_as_a_checksum(stolen: Path, whole: bool) -> None:
    """The same as above, but that the file says its chain was never signed; and the application goes on with it."""
    with at(stolen) as file:
        rows = rows_of(file)
        rows[30] = rows[30]._replace(actor="mallory")
        if whole:
            ids = [memory_id for (memory_id,) in file.execute("select id from memory")]
            before, secret = {each: name_of(file, each) for each in ids}, os.urandom(32)
            file.execute("update setting set value = ? where name = 'audit_names'", (secret.hex(),))
            named = {before[each]: name_of(file, each) for each in ids}  # as without a key
            names = hashlib.sha256(b"localmem names " + secret).hexdigest()[:16]
            began = {**rows[0].told, "key": "", "names": names}
            rows[0] = rows[0]._replace(detail=json.dumps(began, separators=(",", ":")))
            rows = resigned([row._replace(subject=named.get(row.subject, row.subject)) for row in rows], None)
        put(file, rows)
        file.execute("update setting set value = '' where name = 'audit_key'")
        assert (judged(file, key=None).problems == []) is whole  # without a key nobody can tell
    with Memory(stolen, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW) as memory:
        before = chain(stolen)
        with pytest.raises(KeyRefusedError, match="localmem audit sign"):
            memory.add("one", infer=False, **ANN)
        problem = memory.verify_audit()["problems"][0]
        assert problem == NOT_SIGNED if whole else problem.startswith("entry 31 was changed")
    assert chain(stolen) == before


@pytest.mark.parametrize("names", ["'audit_key', 'audit_head'", "'audit_key', 'audit_head', 'file_id'"])
def test_an_application_is_told_that_the_whole_chain_is_gone(stolen: Path, names: str) -> None:
    """One is begun, and not signed: what it vouches for, somebody else may have put there."""
    with at(stolen) as file:
        file.execute("delete from audit")
        file.execute(f"delete from setting where name in ({names})")
        file.execute("update version set text = 'forged' where id = 1")
    for _ in range(2):
        with Memory(stolen, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW) as memory:
            assert memory.verify_audit()["problems"] == [NOT_SIGNED]
            with pytest.raises(KeyRefusedError, match="localmem audit sign"):
                memory.add("one", infer=False, **ANN)


def test_a_setting_that_is_gone_costs_no_proof(stolen: Path) -> None:
    """Put back, the file is as sound as it was."""
    with at(stolen) as file:
        file.execute("delete from setting where name = 'audit_key'")
    assert found_by_memory(stolen)
    with at(stolen) as file:
        file.execute("insert or replace into setting (name, value) values ('audit_key', ?)", (key_id(RAW),))
        assert judged(file).problems == []


def test_a_file_whose_settings_are_gone_can_be_opened(stolen: Path) -> None:
    with at(stolen) as file:
        file.execute("delete from setting where name in ('audit_key', 'audit_head')")
    with Memory(stolen, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW) as memory:
        assert memory.verify_audit()["problems"] != []
        assert memory.get_all(**ANN)["results"]


# -------------------------------------------------------------------- adversaries: the texts


def test_changed_texts_are_found(made: Made) -> None:
    """Each is named: the memory and its version, or the episode and its message; of what is gone, its entry."""
    attacks = {**TEXT_ATTACKS, "given back": give_back(made.steps[1][0])}
    missed, kinds = [], Counter[str]()
    with copied(made.content) as file:
        assert judged(file).problems == []
    for number in range(CASES):
        chance = random.Random(number)
        with copied(made.content) as file:
            kind = list(attacks)[number % len(attacks)]
            named = attacks[kind](file, chance)
            problems = judged(file).problems
        kinds[kind] += 1
        missed += [f"case {number}, {kind}: {each!r} is not in {problems}" for each in named if each not in problems]
    assert missed == []
    assert min(kinds.values()) >= CASES // len(attacks)


class Place(NamedTuple):
    """A text of the file at random: its row, the entry that commits to it, its salt, and how it is named."""

    table: str
    row: int
    entry: int
    salt: bytes
    name: str
    number: int

    @property
    def changed(self) -> list[str]:
        return [f"the text of {self.name} {self.number} is not the one that was recorded"]


def a_version(file: apsw.Connection, chance: random.Random) -> Place:
    rows = file.execute("select id, entry, salt, memory_id, number from version").fetchall()
    row, entry, salt, memory_id, number = chance.choice(rows)
    return Place("version", row, entry, salt, f"memory {memory_id}, version", number)


def a_turn(file: apsw.Connection, chance: random.Random) -> Place:
    statement = "select id, entry, salt, episode_id, position from message where dropped_at is null"
    row, entry, salt, episode_id, position = chance.choice(file.execute(statement).fetchall())
    return Place("message", row, entry, salt, f"episode {episode_id}, message", position)


def lost(*entries: int) -> str:
    numbers = ", ".join(map(str, sorted(entries)))
    return f"{len(entries)} texts that were recorded are not there any more, and no entry took them out: of entry {numbers}"


def put_in(place: Place, number: int) -> list[str]:
    return [f"{place.name} {number} is not in the chain: it was put in by another program"]


def new_salt(file: apsw.Connection, chance: random.Random) -> bytes:
    """A random one, that of another text, one too short or too long."""
    salts = [salt for (salt,) in file.execute("select salt from version union select salt from message") if salt]
    return chance.choice([chance.randbytes(16), chance.choice(salts), chance.randbytes(chance.randrange(40))])


def change_version(file: apsw.Connection, chance: random.Random) -> list[str]:
    place = a_version(file, chance)
    changed = chance.choice(["text || '!'", "'Ann owes Mallory money'", "''", "substr(text, 2)", "upper(text)"])
    file.execute(f"update version set text = {changed} where id = ?", (place.row,))
    if chance.random() < 0.5:
        file.execute("update version set salt = ? where id = ?", (new_salt(file, chance), place.row))
    return place.changed


def change_turn(file: apsw.Connection, chance: random.Random) -> list[str]:
    place = a_turn(file, chance)
    changed = chance.choice(["content || '!'", "'Mallory is to be trusted'", "''", "substr(content, 2)"])
    file.execute(f"update message set content = {changed} where id = ?", (place.row,))
    if chance.random() < 0.5:
        file.execute("update message set salt = ? where id = ?", (new_salt(file, chance), place.row))
    return place.changed


def change_salt(file: apsw.Connection, chance: random.Random) -> list[str]:
    place = chance.choice([a_version, a_turn])(file, chance)
    file.execute(f"update {place.table} set salt = randomblob(16) where id = ?", (place.row,))
    return place.changed


def change_entry(file: apsw.Connection, chance: random.Random) -> list[str]:
    """It says that another entry commits to it, or that none does."""
    place, other = chance.choice([a_version, a_turn])(file, chance), a_turn(file, chance)
    if chance.random() < 0.5 and other.entry != place.entry:
        file.execute(f"update {place.table} set entry = ? where id = ?", (other.entry, place.row))
        return [lost(place.entry), f"the text of {place.name} {place.number} is not the one that was recorded"]
    column = chance.choice(["entry", "salt"])
    file.execute(f"update {place.table} set {column} = null where id = ?", (place.row,))
    return [*put_in(place, place.number), lost(place.entry)]


def change_place(file: apsw.Connection, chance: random.Random) -> list[str]:
    """Whose words they are, and in whose mouth: of a memory or of a talk."""
    if chance.random() < 0.5:
        place = a_version(file, chance)
        column = chance.choice(
            ["user_id = 'mallory'", "user_id = null", "agent_id = 'nurse'", "run_id = 'r'", "actor = 'document'"]
        )
        file.execute(
            f"update memory set {column} where id = (select memory_id from version where id = ?)", (place.row,)
        )
        return place.changed
    place = a_turn(file, chance)
    column = chance.choice(
        ["user_id = 'mallory'", "agent_id = 'nurse'", "run_id = 'r'", "role = 'tool'", "name = 'Mallory'"]
    )
    if column.startswith(("role", "name")):
        file.execute(f"update message set {column} where id = ?", (place.row,))
    else:
        file.execute(
            f"update episode set {column} where id = (select episode_id from message where id = ?)", (place.row,)
        )
    return place.changed


def exchange(file: apsw.Connection, chance: random.Random) -> list[str]:
    """Two texts change places, with salt and entry."""
    table, column, pick = chance.choice([("version", "text", a_version), ("message", "content", a_turn)])
    one, two = pick(file, chance), pick(file, chance)
    if one == two:
        return exchange(file, chance)
    select, update = (
        f"select {column}, salt, entry from {table} where id = ?",
        f"update {table} set {column} = ?, salt = ?, entry = ? where id = ?",
    )
    [first], [second] = file.execute(select, (one.row,)).fetchall(), file.execute(select, (two.row,)).fetchall()
    file.execute(update, (*second, one.row))
    file.execute(update, (*first, two.row))
    return one.changed + two.changed


def lose(table: str) -> Callable[[apsw.Connection, random.Random], list[str]]:
    def attack(file: apsw.Connection, chance: random.Random) -> list[str]:
        rows = file.execute(f"select id, entry from {table} where salt is not null").fetchall()
        gone = chance.sample(rows, chance.randrange(2, 6))
        file.executemany(f"delete from {table} where id = ?", [(row,) for row, _ in gone])
        return [lost(*(entry for _, entry in gone))]

    return attack


def insert_version(file: apsw.Connection, chance: random.Random) -> list[str]:
    place, other = a_version(file, chance), a_version(file, chance)
    copy = chance.random() < 0.3  # a second one with its salt and entry
    entry = place.entry if copy else chance.choice([other.entry, None])
    file.execute(
        "insert into version (memory_id, number, text, hash, words, valid_from, recorded_at, reason, entry, salt) "
        f"select memory_id, number + 100, {'text' if copy else 'text || 1'}, hash, words, valid_from, recorded_at, "
        "reason, ?2, ?3 from version where id = ?1",
        (place.row, entry, place.salt if copy else new_salt(file, chance)),
    )
    new = place._replace(number=place.number + 100)
    return put_in(new, new.number) if entry is None else new.changed


def insert_turn(file: apsw.Connection, chance: random.Random) -> list[str]:
    place, other = a_turn(file, chance), a_turn(file, chance)
    entry = chance.choice([other.entry, None])
    file.execute(
        "insert into message (episode_id, position, role, content, entry, salt) "
        "select episode_id, position + 100, role, 'Mallory is kind', ?2, ?3 from message where id = ?1",
        (place.row, entry, new_salt(file, chance)),
    )
    new = place._replace(number=place.number + 100)
    return put_in(new, new.number) if entry is None else new.changed


def hide_turn(file: apsw.Connection, chance: random.Random) -> list[str]:
    """Say that its words were dropped, and drop them or not."""
    place = a_turn(file, chance)
    file.execute("update message set dropped_at = 1 where id = ?", (place.row,))
    if chance.random() < 0.5:
        file.execute("update message set content = '', entry = null, salt = null where id = ?", (place.row,))
        return [lost(place.entry)]
    return [lost(place.entry), f"{place.name} {place.number} has words that were not kept"]


def give_back(content: bytes) -> Callable[[apsw.Connection, random.Random], list[str]]:
    """What was dropped, from an older copy; as a rule something else goes."""
    with copied(content) as past:
        dropped = past.execute("select id, content, entry, salt from message").fetchall()

    def attack(file: apsw.Connection, chance: random.Random) -> list[str]:
        statement = "select id, episode_id, position from message where dropped_at is not null"
        [(row, episode_id, position)] = file.execute(statement).fetchall()
        [(words, entry, salt)] = [rest for old, *rest in dropped if old == row]
        place = chance.choice([a_version, a_turn])(file, chance)
        update = "update message set content = ?, entry = ?, salt = ?, dropped_at = null where id = ?"
        file.execute(update, (words, entry, salt, row))
        found = [f"the text of episode {episode_id}, message {position} was taken out, and is there again"]
        if chance.random() < 0.7:
            file.execute(f"delete from {place.table} where id = ?", (place.row,))
            found.append(lost(place.entry))
        return found

    return attack


TEXT_ATTACKS: dict[str, Callable[[apsw.Connection, random.Random], list[str]]] = {
    "version changed": change_version,
    "turn changed": change_turn,
    "salt changed": change_salt,
    "entry changed": change_entry,
    "place changed": change_place,
    "exchanged": exchange,
    "version lost": lose("version"),
    "turn lost": lose("message"),
    "version inserted": insert_version,
    "turn inserted": insert_turn,
    "turn hidden": hide_turn,
}


def test_an_application_is_told_of_a_changed_text(stolen: Path) -> None:
    with at(stolen) as file:
        change_version(file, random.Random(5))
    assert found_by_memory(stolen)


def test_of_many_lost_texts_the_first_are_named(made: Made) -> None:
    with copied(made.content) as file:
        entries = sorted(entry for entry, text in committed(file).items() if text.table == "message")
        file.execute("delete from message where salt is not null")
        some = ", ".join(map(str, entries[:5]))
        assert [each for each in judged(file).problems if each.endswith(f": of entry {some}, …")] != []


def test_a_text_without_its_beginning_is_found(made: Made) -> None:
    with copied(made.content) as file:
        file.execute(
            "update version set salt = cast(salt || cast(substr(text, 1, 4) as blob) as blob), text = substr(text, 5)"
        )
        assert len(judged(file).problems) == file.changes()


@pytest.mark.parametrize("table", ["version", "message"])
@pytest.mark.parametrize("entry", ["entry", "null"])
def test_texts_that_changed_places_are_found(made: Made, table: str, entry: str) -> None:
    """Each with its salt: of two persons, of two versions, of what was said and what was answered."""
    column = {"version": "text", "message": "content"}[table]
    with copied(made.content) as file:
        rows = file.execute(f"select id, {column}, salt, {entry} from {table} where salt is not null").fetchall()
        file.executemany(
            f"update {table} set {column} = ?, salt = ?, entry = ? where id = ?",
            [(*other, row) for (row, *_), (_, *other) in zip(rows, reversed(rows), strict=True)],
        )
        assert len(judged(file).problems) >= len(rows) - 1


BESIDE = {
    "a memory given away": (
        "update memory set owner_id = (select id from owner where token = 'u:bob'), user_id = 'bob' where user_id = 'ann'"
    ),
    "another person": "update memory set user_id = 'bob' where user_id = 'ann'",
    "another mouth": "update message set role = 'user' where role = 'assistant'",
    "another token": "update owner set token = 'u:mallory' where token = 'u:ann'",
    "brought back": (
        "update memory set deleted_at = null, delete_event_at = null, delete_reason = null where delete_reason = 'manual'"
    ),
    "put out of use": (
        "update memory set deleted_at = 1, delete_event_at = 1, delete_reason = 'manual' where deleted_at is null"
    ),
    "an old version first": (
        "update memory set head = (select min(id) from version where memory_id = memory.id) where id in (select m.id "
        "from memory m join version v on v.id = m.head where v.number > 1)"
    ),
    "a number": "update version set number = number + 100",
    "a position": "update message set position = position + 100",
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_texts(made: Made, name: str) -> None:
    """Memories given away, brought back or put out of use; an old version put first, another mouth."""
    with copied(made.content) as file:
        before = file.total_changes()
        file.execute(BESIDE[name])
        assert file.total_changes() > before
        assert judged(file).problems != []


NOT_COVERED = {
    "when a version was true": "update version set valid_from = 0, valid_to = 1 where id = 1",
    "what a decision was about": "update decision set fact = 'Mallory is kind'",
    "what a decision quotes": "update decision set quote = 'Mallory is kind'",
    "metadata of a memory": """update memory set metadata = '{"trusted": true}'""",
    "metadata of an episode": """update episode set metadata = '{"trusted": true}'""",
    "when a talk was": "update episode set event_at = 1",
    "what was taken back": "update message set suppressed_at = null",
    "what a memory is good for": "update memory set kind = 'procedural', expires_at = 1",
    "why it was deleted": "update memory set delete_reason = 'user_request' where deleted_at is not null",
    "where it was said": "delete from evidence",
    "who said dropped words": "update message set role = 'assistant', name = 'Ann' where dropped_at is not null",
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_is_not_covered_by_the_chain(made: Made, name: str) -> None:
    """README says so. Where this fails the chain covers more than it did: move the case to BESIDE."""
    with copied(made.content) as file:
        before = file.total_changes()
        file.execute(NOT_COVERED[name])
        assert file.total_changes() > before
        assert judged(file).problems == []


def test_a_memory_whose_head_is_nowhere_is_found(made: Made, stolen: Path) -> None:
    """It is in no list and no answer any more, as if it were deleted."""
    with copied(made.content) as file:
        file.execute(
            "update memory set head = 9999 where deleted_at is null and user_id = 'bob' and head = (select max(head) from memory where user_id = 'bob')"
        )
        assert file.changes() == 1
        assert judged(file).problems != []


def test_another_head_in_a_file_from_before_is_found(open_memory: Opener, tmp_path: Path) -> None:
    before_there_was_one(tmp_path / "memory.db")
    with open_memory(sound=False) as memory:
        assert memory.verify_audit()["ok"]
        with at(memory.path) as file:
            file.execute(
                "update memory set head = (select min(id) from version where memory_id = memory.id) where head <> (select min(id) from version where memory_id = memory.id)"
            )
            assert file.changes() > 0
        assert memory.verify_audit()["problems"] != []


def test_a_turn_that_became_a_memory_is_found(made: Made) -> None:
    """What the assistant said, as if it were known of its user: a memory with the id of the episode."""
    with copied(made.content) as file:
        [turn] = file.execute("select id, episode_id from message where role = 'assistant'").fetchall()
        file.execute(
            "insert into memory (id, seq, owner_id, user_id, kind, actor, metadata, created_at, head) "
            "select id, 9999, owner_id, user_id, 'semantic', 'assistant', '{}', 1, 9999 from episode where id = ?",
            (turn[1],),
        )
        file.execute(
            "insert into version (id, memory_id, number, text, hash, words, valid_from, recorded_at, reason, entry, salt) "
            "select 9999, episode_id, position, content, '', 1, 1, 1, 'model', entry, salt from message where id = ?",
            (turn[0],),
        )
        file.execute("delete from message where id = ?", (turn[0],))
        assert judged(file).problems == [f"the text of memory {turn[1]}, version 1 is not the one that was recorded"]


@pytest.mark.parametrize(
    "words",
    [
        "content = 'Mallory is kind'",
        "grams = 'Ma'",
        "salt = randomblob(16)",
        "entry = 2",
        "content = char(0) || 'Mallory is kind'",
    ],
)
def test_words_in_a_dropped_turn_are_found(made: Made, words: str) -> None:
    with copied(made.content) as file:
        [(episode_id, position)] = file.execute(
            "select episode_id, position from message where dropped_at is not null"
        ).fetchall()
        file.execute(f"update message set {words} where dropped_at is not null")
        assert judged(file).problems == [f"episode {episode_id}, message {position} has words that were not kept"]


def test_a_text_given_back_for_another_is_found(made: Made) -> None:
    """From an older copy comes what was dropped since; something else goes. The chain knows which went, not how many."""
    with copied(made.content) as file:
        [(row,)] = file.execute("select id from message where dropped_at is not null").fetchall()
        with copied(made.steps[1][0]) as past:
            [(content, entry, salt)] = past.execute(
                "select content, entry, salt from message where id = ?", (row,)
            ).fetchall()
        assert content == "it drizzles"
        update = "update message set content = ?, entry = ?, salt = ?, dropped_at = null where id = ?"
        file.execute(update, (content, entry, salt, row))
        [(gone,)] = file.execute("select entry from version where id = 1").fetchall()
        file.execute("delete from version where id = 1")
        found = judged(file).problems
        assert lost(gone) in found
        assert any(each.endswith("was taken out, and is there again") for each in found)


def test_a_memory_given_back_after_a_purge_is_found(open_memory: Opener, tmp_path: Path) -> None:
    """The rows of before, put back into the file of after."""
    with open_memory(audit_key=RAW) as memory:
        for text in ("one", "two"):
            memory.add(text, infer=False, **ANN)
        [first, _] = [each["id"] for each in memory.get_all(**ANN)["results"]]
        path = memory.path
        with at(path) as file:
            file.execute("vacuum into ?", (str(tmp_path / "before.db"),))
        memory.purge(memory_id=first)
    assert path is not None
    stolen = tmp_path / "stolen.db"
    stolen.write_bytes(path.read_bytes())
    with at(stolen) as file:
        file.execute("attach ? as past", (str(tmp_path / "before.db"),))
        for table, which in (("memory", "id"), ("version", "memory_id")):
            file.execute(f"insert into {table} select * from past.{table} where {which} = ?", (first,))
        [problem] = judged(file).problems
        assert problem == f"the text of memory {first}, version 1 was taken out, and is there again"


# -------------------------------------------------------------------- adversaries: the settings, values out of place


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("audit_reads", "1", "0"),
        ("retention", "none", "all"),
        ("audit_key", "0123456789abcdef", key_id(RAW)),
        ("audit_key", "", key_id(RAW)),
        ("file_id", "00" * 16, None),
    ],
)
def test_a_changed_setting_is_found(made: Made, name: str, value: str, was: str | None) -> None:
    with copied(made.content) as file:
        was = was or setting(file, name)
        file.execute("insert or replace into setting (name, value) values (?, ?)", (name, value))
        assert f"the setting {name} was changed by another program: it was {was}" in judged(file).problems
        file.execute("delete from setting where name = ?", (name,))
        assert (judged(file).problems == []) is (name in ("audit_reads", "retention"))  # as if they had never been set


def test_memories_given_back_with_other_names_are_found(open_memory: Opener) -> None:
    """What was deleted before the chain was signed is named by the file's own secret."""
    path = unsigned(open_memory)
    with open_memory(audit_key=RAW) as memory:
        memory.sign_audit()
    with copy_of(path) as file:
        file.execute("update memory set deleted_at = null, delete_event_at = null, delete_reason = null")
        assert len(judged(file).problems) == 1
        file.execute("update setting set value = ? where name = 'audit_names'", ("00" * 32,))
        assert judged(file).problems != []


def test_a_setting_that_was_made_and_is_gone_is_found(open_memory: Opener) -> None:
    with open_memory(audit_key=RAW, audit_reads=True, retention="evidence") as memory:
        path = memory.path
    assert path is not None
    with copy_of(path) as file:
        file.execute("delete from setting where name in ('audit_reads', 'retention')")
        assert judged(file).problems == [
            "the setting retention was changed by another program: it was evidence",
            "the setting audit_reads was changed by another program: it was 1",
        ]


def test_settings_are_compared_without_a_key_too(open_memory: Opener) -> None:
    with open_memory() as memory, at(memory.path) as file:
        file.execute("insert into setting (name, value) values ('audit_reads', '1')")
        assert len(judged(file, key=None).problems) == 1
        file.execute("delete from setting where name = 'audit_reads'")


@pytest.mark.parametrize(
    "statement",
    [
        "update setting set value = 'x' where name = 'audit_head'",
        "update setting set value = '5:zz' where name = 'audit_head'",
        "update setting set value = '' where name = 'audit_head'",
        "update setting set value = printf('%.*c', 5000, '9') where name = 'audit_head'",
        "update setting set value = 'zz' where name = 'file_id'",
        "update setting set value = '' where name = 'file_id'",
        "delete from setting where name = 'file_id'",
        "update setting set value = 'zz' where name = 'audit_names'",
        "delete from setting where name = 'audit_names'",
        "delete from setting where name = 'audit_head'",
        "update setting set value = cast(x'ff' as text) where name = 'audit_head'",
        "insert or replace into setting values ('retention', cast(x'ff' as text))",
        "update audit set actor = cast(x'ff' as text) where seq = 9",
        "update audit set op = cast(x'ff' as text) where seq = 9",
        "update audit set detail = cast(x'ff' as text) where seq = 9",
        "update audit set detail = printf('%.*c', 100000, '[') where seq = 9",
        "update audit set detail = printf('%.*c', 5000, '9') where seq = 9",
        "update audit set detail = '7' where seq = 9",
        "update audit set detail = '{\"texts\":1e999}' where seq = 9",
        'update audit set detail = \'{"texts":"all"}\' where seq = 9',
        "update audit set detail = '{\"texts\":[NaN,null,{},[[]]]}' where seq = 9",
        "update audit set detail = '{\"texts\":[[1,2,3]]}' where seq = 9",
        "update audit set detail = '{\"texts\":[1e999]}' where seq = 9",
        "update audit set detail = '{\"texts\":[[1,1e999]]}' where seq = 9",
        "update audit set detail = '{\"key\":[{}]}', op = 'key' where seq = 9",
        "update audit set at = 9223372036854775807 where seq = 9",
        "update audit set at = -9223372036854775808 where seq = 9",
        "update audit set decision_id = 9223372036854775807 where seq = 9",
        "update audit set commitment = x'', owner = x'', subject = x'' where seq = 9",
        "update audit set seq = 9223372036854775807 where seq = 9",
        "drop table audit",
        "update version set text = cast(x'ff' as text) where id = 2",
        "update version set entry = -9223372036854775808 where id = 2",
        "update version set memory_id = cast(x'ff' as text) where id = 2",
        "update memory set actor = 'tool', agent_id = cast(x'ff' as text)",
        "update owner set token = cast(x'ff' as text) where id = 1",
        "update message set content = cast(x'ff' as text) where id = 2",
        "update message set name = cast(x'ff' as text) where id = 2",
        "update message set content = content || char(0) || 'more' where id = 2",
    ],
)
def test_values_that_can_not_be_are_problems_and_no_surprise(stolen: Path, statement: str) -> None:
    with at(stolen) as file:
        file.execute(statement)
    assert found_by_memory(stolen)


def test_ranges_that_never_end_cost_nothing(made: Made) -> None:
    """With seq and detail of 2^62 verifying would eat all the memory of the machine."""
    with copied(made.content) as file:
        last = rows_of(file)[-1]
        put(file, [*rows_of(file), last._replace(seq=300_000, op="drop", detail='{"texts":[[1,299999]]}')])
        tracemalloc.start()
        try:
            assert judged(file).problems != []
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert most < 2_000_000


NO_TEXT = "cast(x'ff' as text)"  # what stands where, in a file whose tables were made less strict
LOOSE = {
    "setting": ("value", "name = 'audit_key'"),
    **{f"audit.{name}": (name, "seq = 9") for name in Row._fields[1:]},
    **{f"version.{name}": (name, "id = 2") for name in ("memory_id", "number", "text", "entry", "salt")},
    **{
        f"message.{name}": (name, "id = 2")
        for name in ("episode_id", "position", "role", "name", "content", "entry", "salt")
    },
    **{f"memory.{name}": (name, "user_id = 'bob'") for name in ("owner_id", "user_id", "agent_id", "run_id", "actor")},
    **{f"episode.{name}": (name, "user_id = 'bob'") for name in ("owner_id", "user_id", "agent_id", "run_id")},
    "owner.token": ("token", "id = 1"),
}


@pytest.fixture(scope="module")
def loose(made: Made, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file with tables that take whatever is put into them, as a changed byte of a record brings it about too."""
    path = tmp_path_factory.mktemp("loose") / "memory.db"
    path.write_bytes(made.content)
    with at(path) as file:
        file.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
        file.execute(
            "pragma writable_schema = on; update sqlite_schema set "
            "sql = replace(replace(sql, ') strict, without rowid', ') without rowid'), ') strict', ')')"
        )
    return path.read_bytes()


@pytest.mark.parametrize(
    "place",
    list(LOOSE),
)
def test_whatever_stands_in_a_column_becomes_a_sentence(loose: bytes, place: str) -> None:
    table, (column, where) = place.partition(".")[0], LOOSE[place]
    for value in (NO_TEXT, "'sixteen letters!'", "x'ff'", "1.5", "9e999", "9223372036854775807", "''"):
        with copied(loose) as file:
            assert judged(file).problems == []
            file.execute("pragma ignore_check_constraints = on")
            file.execute(f"update {table} set {column} = {value} where {where}")
            assert judged(file).problems != [], value


BROKEN_SETTINGS = {
    "update setting set value = 'x' where name = 'audit_head'": ValueError,
    "update setting set value = 'zz' where name = 'file_id'": ValueError,
    "delete from setting where name = 'file_id'": KeyError,
    "update setting set value = 'zz' where name = 'audit_names'": ValueError,
    "delete from setting where name = 'audit_names'": KeyError,
    "delete from setting where name = 'audit_head'": None,
}


@pytest.mark.parametrize(
    "statement",
    list(BROKEN_SETTINGS),
)
def test_who_writes_into_a_file_with_broken_settings_is_told(stolen: Path, mark: Path, statement: str) -> None:
    """Every call raises an error of localmem, or works."""
    with at(stolen) as file:
        file.execute(statement)
    calls: list[Callable[[Memory], object]] = [
        lambda m: m.add("one", infer=False, **ANN),
        lambda m: m.sign_audit(RAW),
        lambda m: m.audit_log(),
        lambda m: m.verify_certificate({"file": "x"}),
    ]
    for checkpoint in (None, mark):
        for call in calls:
            with (
                contextlib.suppress(LocalmemError),
                Memory(stolen, embedder=HashEmbedder(), audit_key=RAW, checkpoint=checkpoint) as memory,
            ):
                call(memory)


# -------------------------------------------------------------------- adversaries: an older chain


def cut_off(file: apsw.Connection, count: int) -> int:
    """Take the last entries out with what they did, and put the head right; how many are left."""
    rows = rows_of(file)
    for entry, text in committed(file).items():
        if entry > len(rows) - count:
            file.execute(f"delete from {text.table} where id = ?", (text.row,))
    file.execute("delete from memory where id not in (select memory_id from version)")
    heads = "select v.id from version v join audit a on a.seq = v.entry where v.memory_id = memory.id and a.op in ('add', 'update') order by a.seq desc limit 1"
    file.execute(f"update memory set head = ({heads}) where head not in (select id from version)")
    deleted = {row.subject for row in rows[:-count] if row.op == "delete"}
    for (memory_id,) in file.execute("select id from memory where deleted_at is not null").fetchall():
        if name_of(file, memory_id) not in deleted:
            file.execute("update memory set deleted_at = null, delete_event_at = null where id = ?", (memory_id,))
    put(file, rows[:-count])
    return len(rows) - count


def test_a_cut_end_is_found_with_a_checkpoint(made: Made) -> None:
    with copied(made.content) as file:
        most = len(rows_of(file)) - made.quiet
    ends = [json.loads(line)["seq"] for line in made.lines]
    for number in range(CASES):
        chance = random.Random(number)
        with copied(made.content) as file:
            left = cut_off(file, chance.randrange(1, most))
            known = chance.choice([n for n, seq in enumerate(ends, 1) if seq > left])  # when it was cut
            problems = judged(file, made.lines[:known]).problems
        assert f"knows entry {ends[known - 1]} " in problems[0], number
        assert f"the chain ends at entry {left}: its end was cut off, or an older copy" in problems[0], number


def test_an_older_copy_is_found_with_a_checkpoint(made: Made) -> None:
    ends = [json.loads(line)["seq"] for line in made.lines]
    for number in range(CASES):
        chance = random.Random(number)
        content, lines = chance.choice(made.steps[:-1])
        known = chance.randrange(lines + 1, len(ends) + 1)
        with copied(content) as file:
            problems = judged(file, made.lines[:known]).problems
        assert f"knows entry {ends[known - 1]} " in problems[0], number
        assert "or an older copy of the file was put back" in problems[0], number


def test_neither_is_found_without_one(made: Made) -> None:
    """Nothing in the file can tell: it was like that once. So README and verify() say that a checkpoint is needed.

    Every cut and every older copy there is.
    """
    with copied(made.content) as file:
        most = len(rows_of(file)) - made.quiet
    for count in range(1, most):
        with copied(made.content) as file:
            cut_off(file, count)
            assert judged(file).problems == [], count
    for content, lines in made.steps:
        with copied(content) as file:
            assert judged(file).problems == judged(file, made.lines[:lines]).problems == [], lines


@pytest.mark.parametrize("step", [len(FIRST), len(FIRST) + 3, len(FIRST) + 9])
def test_an_older_copy_that_went_on_is_found_with_a_checkpoint(made: Made, tmp_path: Path, step: int) -> None:
    """The application wrote on, beyond the entries that were there before."""
    path, mark = tmp_path / "memory.db", tmp_path / "mark"
    path.write_bytes(made.steps[step][0])
    mark.write_text("".join(f"{line}\n" for line in made.lines))
    with Memory(path, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW, checkpoint=mark) as memory:
        assert "older copy" in memory.verify_audit()["problems"][0]
        for number in range(25):
            memory.add(f"note {number}", infer=False, **ANN)
        [problem] = memory.verify_audit()["problems"]
        assert re.fullmatch(r"the chain up to entry \d+ is not the one of the checkpoint file", problem)
    with Memory(path, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW) as memory:
        assert memory.verify_audit()["problems"] == []
        assert memory.verify_audit(mark)["problems"] == [problem]


# -------------------------------------------------------------------- the checkpoint file


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def lines_of(mark: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mark.read_text().splitlines()]


def test_each_change_appends_a_line(open_memory: Opener, mark: Path) -> None:
    with open_memory(audit_key=RAW, checkpoint=mark, generator=Listener()) as memory:
        assert mark.stat().st_mode & 0o777 == 0o600
        begin(memory)
        memory.delete(id_of(memory, "bees"))
        memory.audit_log()
        memory.search("bees", **ANN)
        rows, lines = chain(memory.path), lines_of(mark)
        assert [line["seq"] for line in lines] == [1, 3, 4, 5, 6, 7]
        assert [line["head"] for line in lines] == [hashes(rows)[line["seq"] - 1].hex() for line in lines]
        assert [line["mac"] for line in lines] == [mark_mac(RAW, line) for line in lines]
        assert {line["mac"] for line in lines}.isdisjoint(row.mac.hex() for row in rows)
        assert {(line["at"], line["file"], line["key"]) for line in lines} == {
            ("2025-03-01T00:00:00Z", rows[0].told["file"], key_id(RAW))
        }
        assert memory.verify_audit()["checkpoints"] == 6
    with open_memory(audit_key=RAW) as memory:
        assert memory.verify_audit()["checkpoints"] == 0
        assert memory.verify_audit(str(mark))["checkpoints"] == 6


def test_opening_appends_a_line_where_the_last_tells_of_another_end(open_memory: Opener, mark: Path) -> None:
    def opened(**options: Any) -> list[int]:
        with open_memory(checkpoint=mark, **options):
            return [line["seq"] for line in lines_of(mark)]

    with open_memory(audit_key=RAW) as memory:
        memory.add("one", infer=False, **ANN)  # which no line tells of
    assert opened(audit_key=RAW) == [3]
    assert opened(audit_key=RAW) == [3]
    assert opened(sound=False) == [3]  # who may not write makes no mark
    assert opened(audit_key=OTHER, sound=False) == [3]
    with open_memory(audit_key=RAW) as memory:
        memory.add("two", infer=False, **ANN)
    assert opened(audit_key=RAW) == [3, 5]


def test_what_is_written_meanwhile_is_no_older_copy(open_memory: Opener, mark: Path) -> None:
    """Another program's change lands between the two: the line is there, the entry is not in the snapshot."""
    with (
        open_memory(audit_key=RAW, checkpoint=mark) as memory,
        open_memory(audit_key=RAW, checkpoint=mark) as other,
    ):
        store = memory._engine.store
        lines = store.checkpoint_lines

        def late(*place: Any) -> Any:
            other.add("one", infer=False, **ANN)
            return lines(*place)

        store.checkpoint_lines = late  # type: ignore[method-assign]
        assert memory.verify_audit()["problems"] == []


def test_a_checkpoint_file_of_several_files(open_memory: Opener, mark: Path) -> None:
    for _ in range(2):
        for name in ("one.db", "two.db"):
            with open_memory(name, audit_key=RAW, checkpoint=mark) as memory:
                memory.add("one", infer=False, **ANN)
                verdict = memory.verify_audit()
                assert verdict["problems"] == []
    assert (verdict["checkpoints"], len(lines_of(mark))) == (4, 8)  # at opening, and of each change


def test_a_checkpoint_file_that_is_damaged(open_memory: Opener, mark: Path) -> None:
    with open_memory(audit_key=RAW, checkpoint=mark, generator=Listener()) as memory:
        begin(memory)
        sound = mark.read_text()
        unread = ["line 5 of the checkpoint file can't be read"]
        for tail in (
            '{"seq": 4, "at": "2025',
            "garbage\n",
            "\n",
            "[]\n",
            "7\n",
            "null\n",
            '{"seq": "x"}\n',
            '{"file": "f", "seq": 1e999, "at": "", "head": ""}\n',
            "[" * 100_000,
            "9" * 5000,
            "\x00\x01",
        ):
            mark.write_text(sound + tail)
            verdict = memory.verify_audit()
            assert (verdict["problems"], verdict["checkpoints"], verdict["signed"]) == (unread, 4, 5)
        mark.write_bytes(b"\xff\xfe\n" * 2 + sound.encode())
        assert memory.verify_audit()["problems"] == [
            "line 1 of the checkpoint file can't be read", "line 2 of the checkpoint file can't be read"
        ]  # fmt: skip
        for content in ("", '{"file": "another", "seq": 1, "at": "", "head": ""}\n'):
            mark.write_text(content)
            assert memory.verify_audit()["problems"] == [NO_LINE]
        mark.write_text(sound)
        assert memory.verify_audit()["problems"] == []


def test_a_changed_line_is_named(open_memory: Opener, mark: Path) -> None:
    """Also one that tells of less, to go with an older copy; one that another key is said to have signed says nothing
    of its own key, but what it tells must be so all the same."""
    with open_memory(audit_key=RAW, checkpoint=mark, generator=Listener()) as memory:
        begin(memory)
        lines = lines_of(mark)

        def told_of(number: int, **changed: Any) -> list[str]:
            after = [{**line, **(changed if n == number else {})} for n, line in enumerate(lines, 1)]
            mark.write_text("".join(f"{json.dumps(line)}\n" for line in after))
            return list(memory.verify_audit()["problems"])

        named = "line 2 of the checkpoint file was changed"
        assert told_of(2, at="2025-03-01T00:00:01Z") == [named]
        assert told_of(2, mac="") == told_of(2, mac=None) == told_of(2, mac=lines[0]["mac"]) == [named]
        assert told_of(2, mac=chain(memory.path)[2].mac.hex()) == [named]
        assert told_of(4, seq=lines[0]["seq"], head=lines[0]["head"])[0] == "line 4 of the checkpoint file was changed"
        other = "the chain up to entry 3 is not the one of the checkpoint file"
        assert told_of(2, head="0" + lines[1]["head"][1:] + "0") == [named, other]
        assert told_of(2, head=lines[0]["head"], key="") == [other]
        assert told_of(2, seq=99, key="")[0].startswith("the checkpoint file knows entry 99 of 2025-03-01")
        assert told_of(2) == []


def test_the_checkpoint_file_of_another_file(open_memory: Opener, mark: Path) -> None:
    """Also where the other was signed with the same key and stands in the place of the first."""
    with open_memory("other.db", audit_key=RAW, checkpoint=mark, generator=Listener()) as memory:
        begin(memory)
    with open_memory(audit_key=RAW, generator=Listener()) as memory:
        assert memory.verify_audit(mark)["problems"] == [NO_LINE]
        begin(memory)
        assert memory.verify_audit(mark)["problems"] == [NO_LINE]


def test_a_checkpoint_file_that_is_missing_or_in_the_way(open_memory: Opener, tmp_path: Path, mark: Path) -> None:
    with open_memory() as memory:
        with pytest.raises(StorageError, match="the checkpoint file .*nowhere can't be read"):
            memory.verify_audit(tmp_path / "nowhere")
        with pytest.raises(InvalidTypeError, match="checkpoint"):
            memory.verify_audit(7)  # type: ignore[arg-type]
    for place in (tmp_path, tmp_path / "nowhere" / "mark"):
        with pytest.raises(StorageError, match="the checkpoint file .* can't be written"):
            open_memory(checkpoint=place)


def test_a_checkpoint_that_can_not_be_written_says_what_is_stored(open_memory: Opener, mark: Path) -> None:
    """The change is not taken back: its line is missing, which no later verifying minds."""
    place = mark.parent / "elsewhere"
    place.mkdir()
    with open_memory(audit_key=RAW, checkpoint=place / "mark") as memory:
        memory.add("one", infer=False, **ANN)
        place.rename(mark.parent / "away")
        with pytest.raises(StorageError, match="the change is stored, but the checkpoint file .* could not be written"):
            memory.add("two", infer=False, **ANN)
        (mark.parent / "away").rename(place)
        assert texts(memory.get_all(**ANN)) == ["one", "two"]
        assert memory.verify_audit()["problems"] == []
        memory.add("three", infer=False, **ANN)
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["checkpoints"]) == ([], 3)


def test_a_death_before_the_line_is_written_does_no_harm(
    open_memory: Opener, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_memory(audit_key=RAW, checkpoint=mark) as memory:
        monkeypatch.setattr(Checkpoint, "append", lambda *_: None)
        memory.add("one", infer=False, **ANN)
        monkeypatch.undo()
        memory.add("two", infer=False, **ANN)
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["checkpoints"], verdict["entries"]) == ([], 2, 5)


def test_what_follows_a_torn_line_stands_on_its_own(open_memory: Opener, mark: Path) -> None:
    with open_memory(audit_key=RAW, checkpoint=mark) as memory:
        memory.add("one", infer=False, **ANN)
    mark.write_text(mark.read_text()[:-20])  # a power cut
    with open_memory(audit_key=RAW, checkpoint=mark) as memory:
        memory.add("two", infer=False, **ANN)
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["checkpoints"]) == ([], 3)  # of line 2 the change was not told either
        assert [json.loads(line)["seq"] for line in mark.read_text().splitlines()[2:]] == [3, 5]


def test_whatever_the_checkpoint_file_ends_with_the_file_is_opened(open_memory: Opener, mark: Path) -> None:
    for tail in ("", "\n", "7", "[]", '{"head": 1}', "\x00", "9" * 5000, "[" * 5000):
        mark.write_text(tail)
        with open_memory(audit_key=RAW, checkpoint=mark):
            assert json.loads(mark.read_text().splitlines()[-1])["seq"] == 1


def test_a_line_that_is_written_in_part_is_written_on(
    open_memory: Opener, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with open_memory(audit_key=RAW, checkpoint=mark) as memory:
        monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:40]))
        memory.add("one", infer=False, **ANN)
        monkeypatch.undo()
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["checkpoints"]) == ([], 2)


KEYED: dict[str, tuple[Any, Callable[..., object]]] = {
    "encrypt": (None, lambda path, **options: encrypt(path, OTHER, **options)),
    "rekey": (OTHER, lambda path, **options: rekey(path, OTHER, RAW, **options)),
    "decrypt": (RAW, lambda path, **options: decrypt(path, RAW, **options)),
}


@pytest.mark.parametrize("named", ["by the caller", "by the environment"])
def test_a_file_put_back_from_before_another_key_is_found(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """The copy in clear, or under a key that is known to others, in place of the encrypted one."""
    path = tmp_path / "memory.db"
    options = {"checkpoint": mark} if named == "by the caller" else {}
    if not options:
        monkeypatch.setenv("LOCALMEM_CHECKPOINT", str(mark))

    def opened(key: Any) -> Memory:
        return Memory(path, embedder=HashEmbedder(), generator=Listener(), key=key, audit_key=RAW, checkpoint=mark)

    with opened(None) as memory:
        begin(memory)
    for key, act in KEYED.values():
        before, count = path.read_bytes(), len(lines_of(mark))
        act(path, audit_key=RAW, **options)
        after = path.read_bytes()
        assert len(lines_of(mark)) == count + 1
        path.write_bytes(before)
        with opened(key) as memory:
            [problem] = memory.verify_audit()["problems"]
            assert problem.endswith("its end was cut off, or an older copy of the file was put back")
        mark.write_text("".join(f"{json.dumps(line)}\n" for line in lines_of(mark)[: count + 1]))
        path.write_bytes(after)
    with opened(None) as memory:
        assert memory.verify_audit()["problems"] == []


# -------------------------------------------------------------------- signing


def unsigned(open_memory: Opener, **options: Any) -> Path:
    """A file whose chain is a checksum, with a memory that is there, one that changed and one that is deleted."""
    with open_memory(generator=Listener(), **options) as memory:
        begin(memory)
        memory.update(id_of(memory, "bees"), "Ann keeps ants")
        memory.add("Bob rows", infer=False, **BOB)
        memory.delete_all(**BOB)
        assert memory.path is not None
        return memory.path


WRITES: dict[str, Callable[[Memory], object]] = {
    "verbatim": lambda m: m.add("x", infer=False, **ANN),
    "inferred": lambda m: m.add("fact: x", **ANN),
    "update": lambda m: m.update(id_of(m, "ants"), "x"),
    "delete": lambda m: m.delete(id_of(m, "ants")),
    "delete_all": lambda m: m.delete_all(**ANN),
    "retain": lambda m: m.retain("none"),
    "audit_reads": lambda m: m.audit_reads(True),
    "audit_log": lambda m: m.audit_log(),
    "export": lambda m: m.export(**ANN),
    "purge": lambda m: m.purge(**ANN),
    "reset": lambda m: m.reset(),
}


@pytest.mark.parametrize("name", WRITES)
def test_who_has_a_key_writes_nothing_into_a_chain_that_is_not_signed(open_memory: Opener, name: str) -> None:
    path = unsigned(open_memory)
    with open_memory(generator=Listener(), audit_key=RAW, sound=False) as memory:
        before = path.read_bytes()
        with pytest.raises(
            KeyRefusedError, match=r"not signed with the key given; nothing was written.*localmem audit sign"
        ):
            WRITES[name](memory)
        assert texts(memory.get_all(**ANN)) == ["Ann keeps ants", "User lives in Porto"]
        assert memory.search("ants", **ANN)["results"]
        assert path.read_bytes() == before
    for options in ({"audit_reads": True}, {"retention": "none"}, {"preset": "regulated"}):
        with pytest.raises(KeyRefusedError, match="localmem audit sign"):
            open_memory(audit_key=RAW, sound=False, **options)


def settings_of(path: Path) -> dict[str, str]:
    with at(path) as file:
        return dict(file.execute("select name, value from setting where name <> 'epoch'").fetchall())


@pytest.mark.parametrize("key", [RAW, "a passphrase of the audit"])
def test_opening_with_a_key_signs_nothing(open_memory: Opener, mark: Path, key: Any) -> None:
    path = unsigned(open_memory)
    before, settings = chain(path), settings_of(path)
    for _ in range(3):
        with open_memory(audit_key=key, checkpoint=mark, sound=False) as memory:
            verdict = memory.verify_audit()
            assert (verdict["problems"], verdict["signed"]) == ([NO_LINE, NOT_SIGNED], 0)
            assert (verdict["key_id"], verdict["key_given"]) == ("", True)
    assert (chain(path), settings_of(path)) == (before, settings)
    assert mark.read_bytes() == b""
    with open_memory() as memory:  # who has no key goes on
        memory.add("one", infer=False, **ANN)
        assert memory.verify_audit()["problems"] == []


def test_a_file_from_before_is_not_signed_by_opening_it_with_a_key(open_memory: Opener, tmp_path: Path) -> None:
    path = before_there_was_one(tmp_path / "memory.db")
    with open_memory(audit_key=RAW, actor="upgrade", sound=False) as memory:
        rows = chain(path)
        assert memory.verify_audit()["problems"] == [NOT_SIGNED]
    assert [row.mac for row in rows] == hashes(rows)
    assert rows[0].told["key"] == settings_of(path)["audit_key"] == ""
    with open_memory(generator=Listener(), audit_key=RAW, sound=False) as memory:
        assert chain(path) == rows
        with pytest.raises(KeyRefusedError, match="localmem audit sign"):
            memory.resume()
        assert chain(path) == rows
    with open_memory(generator=Listener(), audit_key=RAW, actor="keeper") as memory:
        assert memory.sign_audit() == {"key_id": key_id(RAW)}
        assert [(row.op, row.actor, row.told) for row in chain(path)[len(rows) :]] == [
            ("key", "keeper", {"key": key_id(RAW)})
        ]
        memory.resume()
        memory.delete_all(**ANN)
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["signed"]) == ([], verdict["entries"] - len(rows))


def test_a_new_file_is_signed_from_its_first_entry(open_memory: Opener) -> None:
    """Also one that somebody opened without a key before, as long as nothing was put into it: it was not signed then."""
    with open_memory(audit_key=RAW) as memory:
        [row] = chain(memory.path)
        assert (row.op, row.told["key"], row.mac) == ("begin", key_id(RAW), mac_of(RAW, hashes([row])[0]))
    with open_memory("other.db"):
        pass
    with open_memory("other.db", audit_key=RAW, sound=False) as memory:
        assert memory.verify_audit()["problems"] == [NOT_SIGNED]
    with open_memory("other.db", audit_key=RAW) as memory:
        memory.sign_audit()
        assert memory.verify_audit()["signed"] == 1


def test_signing(open_memory: Opener) -> None:
    path = unsigned(open_memory)
    before = chain(path)
    with open_memory(generator=Listener(), audit_key=RAW, actor="keeper") as memory:
        assert memory.sign_audit() == {"key_id": key_id(RAW)}
        rows = chain(path)
        assert rows[:-1] == before
        assert (rows[-1].op, rows[-1].actor, rows[-1].told) == ("key", "keeper", {"key": key_id(RAW)})
        assert rows[-1].mac == mac_of(RAW, hashes(rows)[-1])
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["signed"], verdict["key_id"]) == ([], 1, key_id(RAW))
        assert words_of(entered(memory, lambda: memory.add("Ann keeps cats", infer=False, **ANN))) == [
            "turn",
            "add verbatim",
        ]
        assert (memory.verify_audit()["signed"], memory.verify_audit()["ok"]) == (3, True)
        ops = [entry["op"] for entry in memory.bound(**ANN).audit_log()]
        assert ops == [row.op for row in before if row.op != "begin" and row.owner == before[1].owner] + [
            "turn",
            "add",
            "audit_export",
        ]
    with open_memory(sound=False) as memory, pytest.raises(KeyRefusedError, match=f"signed with the key {key_id(RAW)}"):
        memory.add("one", infer=False, **ANN)


def test_what_was_entered_before_the_signing_is_covered_by_it(open_memory: Opener) -> None:
    """Checksums can be made anew; the entry that names the key tells that they were."""
    path = unsigned(open_memory)
    with open_memory(generator=Listener(), audit_key=RAW) as memory:
        memory.sign_audit()
        memory.add("Ann keeps cats", infer=False, **ANN)
        [deleted] = [row.seq for row in chain(path) if row.op == "delete"]
    with copy_of(path) as file:
        rows, content = rows_of(file), file.serialize("main")
        [signing] = [row.seq for row in rows if row.op == "key"]
    missed = []
    for number in range(CASES):
        chance = random.Random(number)
        with copied(content) as file:
            after, kind = list(rows), number % 4
            place = chance.randrange(1, signing - 1)
            if kind == 0:
                name = chance.choice(["at", "actor", "op", "owner", "subject", "detail"])
                after[place] = rows[place]._replace(**{name: other_value(name, rows, chance)})
            elif kind == 1:
                del after[place]
            elif kind == 2:
                after.insert(place, rows[place]._replace(actor="mallory"))
            else:
                after[place], after[place - 1] = rows[place - 1], rows[place]
            if numbered(after) == rows:
                continue
            head = resigned(after, None)[: signing - 1]
            put(file, [*head, *numbered(after)[len(head) :]])
            problems = judged(file).problems
        first = first_wrong(rows, numbered(after))
        if not problems or not is_named(problems, first, len(after)):
            missed.append(f"case {number}, entry {first}: {problems[:2]}")
    assert missed == []
    with copied(content) as file:
        file.execute("update memory set deleted_at = null, delete_event_at = null, delete_reason = null")
        assert [each for each in judged(file).problems if each.endswith("was deleted, and is there again")] != []
    assert deleted < signing


FORGED = {
    "an entry": ("update audit set actor = 'mallory' where seq = 3", "entry 3 was changed"),
    "a text": ("update version set text = 'forged' where id = 1", "is not the one that was recorded"),
    "a lost text": ("delete from message where id = 1", "no entry took them out: of entry 2"),
    "an entry that is gone": ("delete from audit where seq = 3", "entry 3 is missing"),
    "a setting": (
        "insert or replace into setting (name, value) values ('audit_reads', '1')",
        "the setting audit_reads",
    ),
    "a memory that is back": ("update memory set deleted_at = null, delete_event_at = null", "is there again"),
    "the end": ("delete from audit where seq = (select max(seq) from audit)", "what is there ends at entry"),
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("previous", [None, OTHER], ids=["a checksum", "signed"])
def test_what_does_not_verify_is_not_signed(open_memory: Opener, previous: bytes | None, name: str) -> None:
    path = unsigned(open_memory, audit_key=previous)
    statement, told_of = FORGED[name]
    with at(path) as file:
        file.execute(statement)
    before, settings = chain(path), settings_of(path)
    with open_memory(audit_key=RAW, sound=False) as memory:
        with pytest.raises(AuditError, match=f"does not verify, so it was not signed: .*{told_of}"):
            memory.sign_audit(previous)
        assert memory.verify_audit()["ok"] is False
    assert (chain(path), settings_of(path)) == (before, settings)
    path.unlink()  # nobody is to look at it any more


@pytest.mark.parametrize(
    ("previous", "error", "match"),
    [
        (None, KeyRefusedError, "signed with another key: give it as previous_key"),
        (bytes(32), KeyRefusedError, "signed with another key: give it as previous_key"),
        ("a passphrase", KeyRefusedError, "signed with another key: give it as previous_key"),
        (b"short", InvalidInputError, "32"),
        (" ", InvalidInputError, "empty"),
        (7, InvalidTypeError, "key"),
    ],
)
def test_without_the_key_so_far_no_other_signs(
    open_memory: Opener, previous: Any, error: type[Exception], match: str
) -> None:
    path = unsigned(open_memory, audit_key=RAW)
    before = chain(path)
    with open_memory(audit_key=OTHER, sound=False) as memory, pytest.raises(error, match=match):
        memory.sign_audit(previous)
    assert chain(path) == before


def test_one_key_after_another(open_memory: Opener, mark: Path) -> None:
    """A passphrase follows the first, then 32 bytes; what was entered under each is covered by the last."""
    with open_memory(generator=Listener(), audit_key=RAW, checkpoint=mark) as memory:
        begin(memory)
    previous: Any = RAW
    for key in ("a passphrase of the audit", OTHER):
        with open_memory(generator=Listener(), audit_key=key, checkpoint=mark) as memory:
            assert memory.verify_audit()["problems"] == [NOT_SIGNED]
            done = memory.sign_audit(previous)
            memory.add("one", infer=False, **ANN)
            verdict = memory.verify_audit()
            assert (verdict["problems"], verdict["signed"], verdict["key_id"]) == ([], 3, done["key_id"])
            assert verdict["checkpoints"] == len(lines_of(mark))
        with open_memory(audit_key=previous, sound=False) as memory:
            assert memory.verify_audit()["problems"][0] == NOT_SIGNED
            with pytest.raises(KeyRefusedError, match=f"signed with the key {done['key_id']}"):
                memory.add("two", infer=False, **ANN)
        previous = key
    with at(memory.path) as file:
        assert [row.told["key"] for row in rows_of(file) if row.op == "key"][-1] == key_id(OTHER)
        for seq in (2, 7):  # of the first key and of the second
            file.execute("begin")
            file.execute("update audit set actor = 'mallory' where seq = ?", (seq,))
            put(file, rows_of(file))
            assert is_named(judged(file, key=OTHER).problems, seq, len(rows_of(file)))
            file.execute("rollback")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"audit_key": RAW}, {"audit_key": OTHER}),
        ({"audit_key": RAW}, {"audit_key": "a passphrase of the audit"}),
    ],
)
def test_a_memory_that_was_deleted_under_another_key(open_memory: Opener, before: Any, after: Any) -> None:
    """It is deleted as before, and that it is back is found as before."""
    path = unsigned(open_memory, **before)
    with open_memory(generator=Listener(), **after) as memory:
        memory.sign_audit(before["audit_key"])
        assert memory.verify_audit()["problems"] == []
    with copy_of(path) as file:
        file.execute("update memory set deleted_at = null, delete_event_at = null, delete_reason = null")
        [problem] = verify(file, Signer(key=keys.key_of(after["audit_key"]))).problems
        assert problem.endswith("was deleted, and is there again")


def test_a_file_with_deletions_can_be_encrypted_and_signed_by_its_own_key(open_memory: Opener) -> None:
    path = unsigned(open_memory, audit_key=RAW)
    encrypt(path, OTHER, audit_key=RAW)
    with open_memory(key=OTHER) as memory:
        memory.sign_audit(RAW)
        assert memory.verify_audit()["problems"] == []


def test_an_owner_sees_what_was_entered_under_the_key_before(open_memory: Opener) -> None:
    with open_memory(audit_key=RAW) as memory:
        memory.add("one", infer=False, **ANN)
    with open_memory(audit_key=OTHER) as memory:
        memory.sign_audit(RAW)
        assert [entry["op"] for entry in memory.bound(**ANN).audit_log()] == ["turn", "add", "audit_export"]


def test_a_key_of_its_own_for_an_encrypted_file(open_memory: Opener) -> None:
    """From the key made of the file's to another; and the file's key changes after that without a word."""
    path = unsigned(open_memory, key=RAW)
    with open_memory(key=RAW, audit_key=OTHER) as memory:
        assert memory.verify_audit()["problems"] == [NOT_SIGNED]
        assert memory.sign_audit() == {"key_id": key_id(OTHER)}
        memory.add("one", infer=False, **ANN)
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["signed"], verdict["key_id"]) == ([], 3, key_id(OTHER))
        count = verdict["entries"]
    with open_memory(key=RAW, sound=False) as memory:
        with pytest.raises(KeyRefusedError, match=f"signed with the key {key_id(OTHER)}"):
            memory.add("two", infer=False, **ANN)
        assert memory.verify_audit()["problems"] == [NOT_SIGNED]
    rekey(path, RAW, OTHER, audit_key=OTHER)
    with open_memory(key=OTHER, audit_key=OTHER) as memory:
        memory.add("three", infer=False, **ANN)
        verdict = memory.verify_audit()
        assert (verdict["problems"], verdict["signed"], verdict["entries"]) == ([], 6, count + 3)
        assert [entry["op"] for entry in memory.audit_log()][-4:] == ["rekey", "turn", "add", "audit_export"]
    with open_memory(key=OTHER) as memory:  # and back to the file's own
        with pytest.raises(KeyRefusedError, match="give it as previous_key"):
            memory.sign_audit()
        memory.sign_audit(OTHER)
        memory.add("four", infer=False, **ANN)
        assert memory.verify_audit()["problems"] == []
        assert memory.verify_audit()["signed"] >= 3


def test_the_files_own_key_goes_and_comes_with_the_encryption(open_memory: Opener) -> None:
    path = unsigned(open_memory)
    ends: list[dict[str, Any]] = []
    for key, (before, act) in zip((OTHER, RAW, None), KEYED.values(), strict=True):
        assert before is None or ends
        act(path)
        with open_memory(key=key) as memory:
            verdict = memory.verify_audit()
            assert (verdict["problems"], verdict["signed"]) == ([], 2 if key else 0)
            ends.append(verdict)
            assert [row["op"] for row in memory.audit_log()][-3:] == ["key", "rekey", "audit_export"]
    assert len({each["key_id"] for each in ends}) == 3
    assert ends[-1]["key_id"] == ""


def test_what_does_not_verify_is_not_washed_clean_by_encrypting_it(open_memory: Opener) -> None:
    path = unsigned(open_memory)
    with at(path) as file:
        file.execute("update audit set actor = 'mallory' where seq = 3")
        put(file, rows_of(file))
        assert judged(file, key=None).problems[0].startswith("entry 3 was changed")
    with contextlib.suppress(AuditError):
        encrypt(path, RAW)
        with open_memory(key=RAW, sound=False) as memory:
            assert memory.verify_audit()["problems"] != []
    path.unlink()


@pytest.mark.parametrize(("key", "audit_key"), [(None, RAW), (RAW, OTHER)], ids=["in clear", "encrypted"])
def test_no_other_key_comes_with_the_encryption(open_memory: Opener, key: bytes | None, audit_key: bytes) -> None:
    """A key that does not sign so far is refused, and the file is left as it is."""
    path = unsigned(open_memory, key=key)

    def state() -> Any:
        with open_memory(key=key) as memory, memory._engine.store.snapshot() as tx:
            return rows_of(tx), tx.execute("select * from setting").fetchall(), path.stat().st_ino  # type: ignore[arg-type]

    before = state()
    with pytest.raises(KeyRefusedError, match="nothing was written"):
        encrypt(path, OTHER, audit_key=audit_key) if key is None else rekey(path, key, OTHER, audit_key=audit_key)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert state() == before


def test_what_is_signed_already_is_verified_and_left(open_memory: Opener) -> None:
    path = unsigned(open_memory, audit_key=RAW)
    before = chain(path)
    with open_memory(audit_key=RAW) as memory:
        assert memory.sign_audit(RAW) == {"key_id": key_id(RAW)}
    assert chain(path) == before
    with at(path) as file:
        file.execute("update audit set actor = 'mallory' where seq = 3")
    with open_memory(audit_key=RAW, sound=False) as memory, pytest.raises(AuditError, match="entry 3 was changed"):
        memory.sign_audit(RAW)
    with at(path) as file:
        file.execute("update audit set actor = '' where seq = 3")


def test_who_signs_twice_is_not_told_of_another_key(open_memory: Opener) -> None:
    with open_memory(audit_key=RAW) as memory:
        memory.add("one", infer=False, **ANN)
        before = chain(memory.path)
        assert memory.sign_audit() == {"key_id": key_id(RAW)}
        assert chain(memory.path) == before


@pytest.mark.parametrize("previous", [None, RAW], ids=["a checksum", "signed"])
def test_without_a_key_there_is_nothing_to_sign_with(open_memory: Opener, previous: bytes | None) -> None:
    with open_memory(audit_key=previous) as memory:
        memory.add("one", infer=False, **ANN)
        before = chain(memory.path)
    with open_memory(sound=False) as memory:
        with pytest.raises(KeyRefusedError):
            memory.sign_audit(previous)
        assert chain(memory.path) == before


def test_signing_is_told_to_the_checkpoint_file(open_memory: Opener, mark: Path) -> None:
    unsigned(open_memory, checkpoint=mark)
    count = len(lines_of(mark))
    with open_memory(audit_key=RAW, checkpoint=mark) as memory:
        memory.sign_audit()
        last = lines_of(mark)[-1]
        assert (len(lines_of(mark)), last["key"], last["mac"]) == (count + 1, key_id(RAW), mark_mac(RAW, last))
        assert memory.verify_audit()["problems"] == []
        assert memory.verify_audit()["checkpoints"] == count + 1


def test_what_the_checkpoint_file_speaks_against_is_not_signed(open_memory: Opener, mark: Path) -> None:
    """An older copy was put back: to sign it would vouch for it."""
    path = unsigned(open_memory, checkpoint=mark)
    before = path.read_bytes()
    with open_memory(checkpoint=mark) as memory:
        memory.add("one", infer=False, **ANN)
    path.write_bytes(before)
    with open_memory(audit_key=RAW, checkpoint=mark, sound=False) as memory:
        assert "older copy" in repr(memory.verify_audit()["problems"])
        with pytest.raises(AuditError, match="older copy"):
            memory.sign_audit()


def test_a_signing_that_fails_leaves_the_chain(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unsigned(open_memory)
    before, settings = chain(path), settings_of(path)
    with open_memory(audit_key=RAW, sound=False) as memory:

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("localmem.store_audit.Trail.close", fail)
        with pytest.raises(ZeroDivisionError):
            memory.sign_audit()
        monkeypatch.undo()
        assert (chain(path), settings_of(path)) == (before, settings)
        memory.sign_audit()
        assert memory.verify_audit()["problems"] == []


def test_who_may_not_sign(open_memory: Opener, locked_up: Callable[[], None]) -> None:
    path = unsigned(open_memory)
    before = path.read_bytes()
    with open_memory(audit_key=RAW, sound=False) as memory:
        assert not hasattr(memory.bound(**ANN), "sign_audit")
    with pytest.raises(ClosedError):
        memory.sign_audit()
    locked_up()
    with open_memory(audit_key=RAW, sound=False) as memory, pytest.raises(ReadOnlyError):
        memory.sign_audit()
    assert path.read_bytes() == before


def test_a_program_without_the_key_is_refused_once_another_has_signed(open_memory: Opener) -> None:
    unsigned(open_memory)
    with open_memory(sound=False) as going_on, open_memory(audit_key=RAW) as memory:
        going_on.add("one", infer=False, **ANN)
        memory.sign_audit()
        with pytest.raises(KeyRefusedError, match=f"signed with the key {key_id(RAW)}, which was not given"):
            going_on.add("two", infer=False, **ANN)
        assert memory.verify_audit()["problems"] == []


def at_once(work: Callable[[int], object], count: int = 6) -> list[BaseException | None]:
    """What each of the threads that begin together raised."""
    start, raised = threading.Barrier(count), dict[int, BaseException | None]()

    def run(number: int) -> None:
        start.wait(timeout=60)
        try:
            work(number)
            raised[number] = None
        except BaseException as error:
            raised[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return [raised[number] for number in range(count)]


@pytest.mark.parametrize("kind", ["new", "from before"])
def test_many_at_once_begin_one_chain(tmp_path: Path, mark: Path, kind: str) -> None:
    path = tmp_path / "memory.db"
    if kind == "from before":
        before_there_was_one(path)

    def work(number: int) -> None:
        with Memory(path, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW, checkpoint=mark) as memory:
            if kind == "new":
                memory.add(f"note {number}", infer=False, **ANN)

    assert at_once(work) == [None] * 6
    rows = chain(path)
    assert [row.op for row in rows].count("begin") == 1
    with Memory(path, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW, checkpoint=mark) as memory:
        verdict = memory.verify_audit()
    assert verdict["problems"] == ([] if kind == "new" else [NO_LINE, NOT_SIGNED])
    assert verdict["signed"] == (len(rows) if kind == "new" else 0)


def test_with_a_key_and_without_they_begin_one_chain(tmp_path: Path) -> None:
    """Whoever is first says whether it is signed; the others read, or are refused."""
    path = tmp_path / "memory.db"

    def work(number: int) -> None:
        key = RAW if number % 2 else None
        with Memory(path, embedder=HashEmbedder(), generator=Listener(), audit_key=key) as memory:
            memory.add(f"note {number}", infer=False, **ANN)

    raised = at_once(work)
    signed = settings_of(path)["audit_key"] == key_id(RAW)
    assert [type(each) for each in raised] == [
        KeyRefusedError if bool(n % 2) is not signed else type(None) for n in range(6)
    ]
    assert [row.op for row in chain(path)] == ["begin", *["turn", "add"] * 3]
    with at(path) as file:
        assert judged(file, key=RAW if signed else None).problems == []


def test_many_at_once_sign_once(open_memory: Opener) -> None:
    path = unsigned(open_memory)

    def work(number: int) -> None:
        with Memory(path, embedder=HashEmbedder(), generator=Listener(), audit_key=RAW) as memory:
            memory.sign_audit()

    assert all(each is None or isinstance(each, KeyRefusedError) for each in at_once(work))  # it was just signed
    rows = chain(path)
    assert [row.op for row in rows].count("key") == 1
    with at(path) as file:
        assert judged(file).problems == []


def test_reembedding_asks_for_the_audit_key_before_its_work(open_memory: Opener) -> None:
    class Counting(OtherEmbedder):
        asked = 0

        def embed_passages(self, texts: Sequence[str]) -> Any:
            Counting.asked += 1
            return super().embed_passages(texts)

    path = unsigned(open_memory, audit_key=RAW)
    before = chain(path)
    for key in (None, OTHER):
        with pytest.raises(KeyRefusedError, match="signed with the key"):
            reembed(path, Counting(), audit_key=key)
    assert (Counting.asked, chain(path)) == (0, before)
    with open_memory(audit_key=RAW) as memory:
        assert memory.search("ants", **ANN)["results"]
    reembed(path, Counting(), audit_key=RAW, actor="keeper")
    with Memory(path, embedder=Counting(), audit_key=RAW) as memory:
        assert [(row.op, row.actor) for row in chain(path)[len(before) :]] == [("reembed", "keeper")]
        assert memory.verify_audit()["problems"] == []
    path.unlink()


def test_a_file_from_before_is_reembedded_and_not_signed(tmp_path: Path) -> None:
    path = before_there_was_one(tmp_path / "memory.db")
    with pytest.raises(KeyRefusedError, match="localmem audit sign"):
        reembed(path, OtherEmbedder(), audit_key=RAW)
    reembed(path, OtherEmbedder())
    with at(path) as file:
        assert (setting(file, "audit_key"), rows_of(file)[-1].op) == ("", "reembed")
        assert judged(file, key=None).problems == []


def test_a_certificate_is_signed_as_nothing_else_is(open_memory: Opener) -> None:
    """By the recipe; its mac is no entry's and no checkpoint's, and theirs are none of its."""
    with open_memory(audit_key=RAW) as memory:
        memory.add("one", infer=False, **ANN)
        certificate = memory.purge(**ANN)["certificate"]
        rows = chain(memory.path)
        body = json.dumps(
            {name: each for name, each in certificate.items() if name != "mac"}, sort_keys=True, separators=(",", ":")
        )
        hashed = hashlib.sha256(body.encode()).digest()
        assert certificate["mac"] == mac_of(RAW, hashlib.sha256(b"localmem certificate\0" + hashed).digest()).hex()
        assert certificate["chain"] == {"purge": len(rows) - 1, "done": len(rows), "head": hashes(rows)[-1].hex()}
        assert memory.verify_certificate(certificate) == {"ok": True, "signed": True, "problems": []}
        for mac in (mac_of(RAW, hashed).hex(), rows[-1].mac.hex()):
            assert memory.verify_certificate({**certificate, "mac": mac})["problems"] == [
                "it was changed after it was signed"
            ]
        memory.sign_audit(RAW)
        memory.add("two", infer=False, **ANN)
        assert memory.verify_certificate(certificate)["ok"]
        with at(memory.path) as file:
            file.execute("begin; update audit set actor = 'mallory' where seq = 2")
            put(file, resigned(rows_of(file), None))
            assert "the audit chain has no entry of it, or was changed before that" in doubts(
                file, Signer(key=keys.key_of(RAW)), certificate
            )
            file.execute("rollback")


def test_a_certificate_of_an_entry_beyond_all_numbers(open_memory: Opener) -> None:
    with open_memory(audit_key=RAW) as memory:
        memory.add("one", infer=False, **ANN)
        certificate = memory.purge(**ANN)["certificate"]
        assert (
            memory.verify_certificate({**certificate, "chain": {**certificate["chain"], "done": 2**70}})["ok"] is False
        )


# -------------------------------------------------------------------- what was entered wrongly once


def test_what_the_model_deletes_is_not_called_merged(story: Memory) -> None:
    begin(story)
    rows = entered(story, lambda: story.add("fact: User left Porto | retracts: Porto", **ANN))
    assert words_of(rows) == ["turn", "delete retracted"]


def test_words_taken_back_before_they_were_heard_are_entered(story: Memory, clock: FixedClock) -> None:
    story.add("fact: User's boat is called Selkie", timestamp="2025-02-01", **ANN)
    story.add("Please forget that.", timestamp="2025-02-02", **ANN)
    rows = entered(story, lambda: story.add("fact: User's boat is called Selkie", timestamp="2025-01-01", **ANN))
    with at(story.path) as file:
        [(suppressed,)] = file.execute(
            "select suppressed_at is not null from message order by id desc limit 1"
        ).fetchall()  # fmt: skip
    assert suppressed
    assert [row.op for row in rows] == ["turn", "suppress"]
    assert story.verify_audit()["problems"] == []
