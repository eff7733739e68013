"""Purge: what goes, what stays, what lies on the disk before and after, and the certificate of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Opener
from doubles import Listener, texts

from localmem import Memory, reembed, store_purge, store_vectors
from localmem.db import raw_file
from localmem.errors import (
    ConflictError,
    GeneratorError,
    InvalidInputError,
    InvalidTypeError,
    NotFoundError,
    ReadOnlyError,
    ScopeError,
)
from localmem.needles import vector_needles
from localmem.rank import grams
from localmem.store_audit import Signer, name_of, names_key
from localmem.store_purge import REGISTRY, SCOPE, TEXT, VECTOR
from localmem.testing import FixedClock, HashEmbedder

KEY, AUDIT = bytes(range(32)), bytes(range(50, 82))
BOB = {"user_id": "bob"}
ANN = {"user_id": "anneliese of the user ids"}
NARROW = {**ANN, "agent_id": "fizzlewick of the agent ids", "run_id": "carbuncle of the run ids"}
INCLUDES = ("facts", "pending", "episodes", "all", "history")

# One text for each way into the file; its first word stands in no other text.
CANARY = {
    "verbatim": "quokkafer sleeps in the verbatim hammock",
    "metadata": "zimtstern is what the metadata says",
    "expiring": "ephemerid lives until the year 2030",
    "name": "pumpernickel of the speakers",
    "system": "mossbeard is what the system is called",
    "chatter": "drizzling again, and no fact in it",
    "fact": "velociped stands in the hall of facts",
    "unsupported": "hobgoblin was kept out of the memories",
    "assistant": "tintinnabulum, said the assistant",
    "tool": "oscillograph, answered the tool",
    "old": "gnomonic was the first version by the pier",
    "new": "jacaranda is the second version by the pier",
    "lost": "xylophone was lost at the old mill",
    "loss": "wainscot says it was lost at the old mill",
    "side": "kaleidoscope is one side of the quarrel",
    "other": "labyrinth is the other side of the quarrel",
    "again": "yesterday this was said for the second time",
    "ending": "rhubarb is eaten no longer, which nobody knew",
    "by hand": "isinglass was written by hand",
    "its metadata": "underwing is the metadata by hand",
    "deleted": "nincompoop was deleted by hand",
    "taken back": "sousaphone is what was taken back",
    "cjk": "鶴見川の河童は胡瓜が好き",
    "long": "beginning of a long text",
    "later": "millrace far behind the beginning",
    "pending": "eiderdown waits for its extraction",
    "user": ANN["user_id"],
    "agent": NARROW["agent_id"],
    "run": NARROW["run_id"],
}
QUERY = "thistledown is only ever searched for"


class Dense(HashEmbedder):
    """Vectors without zeros, no two with bytes in common; cuts long texts. ``fails_after`` so many texts."""

    id = "dense"

    def __init__(self, dim: int = 64, *, fails_after: int = 10**9) -> None:
        super().__init__(dim)
        self.sha256 = f"{dim:064x}"
        self.left = fails_after

    def embed_passages(self, texts: Sequence[str]) -> Any:
        self.left -= len(texts)
        if self.left < 0:
            raise MemoryError("no room for the model")
        rows = super().embed_passages(texts)
        for row, text in zip(rows, texts, strict=True):
            row += 0.02 * np.random.default_rng(list(text.encode())).standard_normal(self.dim, np.float32)
            row /= np.linalg.norm(row)
        return rows

    def later_passages(self, text: str) -> list[str]:
        return [text[at : at + 200] for at in range(250, len(text), 200)]


# -------------------------------------------------------------------- looking


def rows(memory: Memory, statement: str) -> list[Any]:
    with memory._engine.store.snapshot() as tx:
        return [row if len(row) > 1 else row[0] for row in tx.execute(statement).fetchall()]


def everything(memory: Memory) -> dict[str, list[Any]]:
    """Every row of the file."""
    return {table: rows(memory, f"select * from {table}") for table in REGISTRY}


def checkpoint(memory: Memory) -> None:
    with memory._engine.store.db.only_connection() as writer:
        assert writer.execute("pragma wal_checkpoint(truncate)").fetchall()[0][0] == 0


def lying(memory: Memory) -> bytes:
    """The bytes of every file in the folder; of an encrypted file also what its pages decrypt to."""
    database = memory._engine.store.db
    assert database.path is not None
    found = [bytes(read(size, 0)) for _, read, size in raw_file.scans(database)]
    return b"\n".join([*found, *(path.read_bytes() for path in database.path.parent.iterdir() if path != database.path)])


def vectors(memory: Memory) -> list[bytes]:
    """Every vector of the file."""
    tables = {"memory_vec": "embedding", "turn_vec": "embedding", "passage": "vector", "reembedded": "vector"}
    return [blob for table, name in tables.items() for blob in rows(memory, f"select {name} from {table}")]


def windows(blobs: Sequence[bytes]) -> set[bytes]:
    return {window for blob in blobs for window in vector_needles(blob)}


def words_left(content: bytes, canaries: dict[str, str] = CANARY) -> list[str]:
    """The canaries of which there is anything: the words index writes small letters, and only stems."""
    small = content.lower()
    return [name for name, text in canaries.items() if text.split()[0][:8].encode() in small]


def shown(memory: Memory, **ids: str) -> str:
    """All that the calls of a scope show, scores included."""
    found: list[Any] = [memory.get_all(**ids), memory.all_versions(**ids), memory.decisions(**ids)]
    found += [memory.history(each["id"]) for each in memory.get_all(**ids)]
    for query in ("the pier", "velociped", "tea in the hall", "quokkafer sleeps in the verbatim hammock"):
        found += [memory.search(query, include=include, limit=50, explain=True, **ids) for include in INCLUDES]
    return json.dumps(found)


def sound(memory: Memory) -> bool:
    return memory.check() == [] and memory.verify_audit()["problems"] == []


def done(purged: Any) -> dict[str, Any]:
    """The certificate of a purge that is at its end."""
    assert purged["complete"], purged
    assert "reason" not in purged
    certificate = purged["certificate"]
    assert [certificate[name]["ok"] for name in ("logical", "structural", "raw")] == [True] * 3
    return dict(certificate)


# -------------------------------------------------------------------- planting


def plant(memory: Memory, listener: Listener, path: Path, key: bytes | None, patch: pytest.MonkeyPatch) -> None:
    """Each canary by its own way; at last a change of the embedder that stops half-way."""
    c = CANARY

    def word(name: str) -> str:
        return c[name].split()[0]

    memory.add(c["verbatim"], infer=False, metadata={"note": c["metadata"]}, **ANN)
    memory.add(c["expiring"], infer=False, expires_at="2030-01-01", **NARROW)
    said = [f"{c['chatter']}", f"fact: {c['fact']}", f"fact: {c['unsupported']} | unsupported"]
    memory.add(
        [
            {"role": "system", "content": c["system"]},
            {"role": "user", "content": "\n".join(said), "name": c["name"]},
            {"role": "assistant", "content": c["assistant"]},
            {"role": "tool", "content": c["tool"]},
        ],
        metadata={"note": c["metadata"]},
        **ANN,
    )
    for line in (
        c["old"],
        f"{c['new']} | changes: {word('old')}",
        c["lost"],
        f"{c['loss']} | retracts: {word('lost')}",
        c["side"],
        f"{c['other']} | contests: {word('side')}",
        f"{c['ending']} | retracts: nothing",
    ):
        memory.add(f"fact: {line}", **ANN)
    memory.add(f"{c['again']}\nfact: {c['fact']}", **ANN)
    for name, change in (
        ("by hand", lambda of: memory.update(of, c["by hand"], metadata={"note": c["its metadata"]})),
        ("deleted", memory.delete),
    ):
        change(memory.add(c["deleted"] if name == "deleted" else "to be changed", infer=False, **ANN)["results"][0]["id"])
    memory.add(f"fact: {c['taken back']}", **ANN)
    memory.add(f"Please forget everything I told you about the {word('taken back')}.", **ANN)
    memory.add(f"fact: {c['cjk']}", **ANN)
    memory.add(f"{c['long']} {'and so on ' * 40}{c['later']}", infer=False, **ANN)
    listener.fail = True
    with pytest.raises(GeneratorError):
        memory.add(f"fact: {c['pending']}", **ANN)
    listener.fail = False
    memory.search(QUERY, **ANN)
    patch.setattr(store_vectors, "BATCH", 4)
    with pytest.raises(MemoryError):
        reembed(path, Dense(96, fails_after=len(vectors(memory)) - 2), key=key)


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    return request.param  # type: ignore[no-any-return]


Plant = Callable[[bytes | None], Memory]


@pytest.fixture
def planted(
    open_memory: Opener, listener: Listener, scripted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Plant:
    """Make a file in which every canary was planted."""

    def make(key: bytes | None) -> Memory:
        options = {} if key is None else {"key": key}
        memory = open_memory(generator=listener, embedder=Dense(), audit_reads=True, **options)
        plant(memory, listener, tmp_path / "memory.db", key, monkeypatch)
        return memory

    return make


# -------------------------------------------------------------------- registry


def test_the_registry_names_every_column_of_every_table(memory: Memory) -> None:
    listed = rows(memory, "select name, type from pragma_table_list where schema = 'main' and type <> 'shadow'")
    virtual = tuple(f"{name}_" for name, kind in listed if kind == "virtual")  # vec0 does not own up to all its shadows
    found = {
        name: set(rows(memory, f"select name from pragma_table_xinfo('{name}') where hidden <> 1")) - {"rowid"}
        for name, kind in listed
        if kind in ("table", "virtual") and not name.startswith(("sqlite_", *virtual))
    }
    assert found == {table: set(columns) for table, columns in REGISTRY.items()}
    assert {kind for columns in REGISTRY.values() for kind in columns.values()} == {
        TEXT, VECTOR, SCOPE, store_purge.PLAIN, store_purge.INDEX
    }  # fmt: skip


def test_no_other_column_holds_what_anybody_said(planted: Plant) -> None:
    memory = planted(None)
    plain = {table: [name for name, kind in columns.items() if kind == store_purge.PLAIN] for table, columns in REGISTRY.items()}
    for table, names in plain.items():
        for row in rows(memory, f"select {', '.join(names)}, 0 from {table}") if names else ():
            content = b"|".join(each if isinstance(each, bytes) else str(each).encode() for each in row)
            assert words_left(content) == [], table


def test_a_purge_of_the_only_owner_empties_every_column_that_holds_anything_of_people(planted: Plant) -> None:
    memory = planted(None)
    held = [(t, name) for t, columns in REGISTRY.items() for name, kind in columns.items() if kind in (TEXT, VECTOR, SCOPE)]
    counts = "select count(*) from {} where {} is not null and {} not in ('', '{{}}')"
    assert [each for each in held if not rows(memory, counts.format(each[0], each[1], each[1]))[0]] == []
    done(memory.purge(**ANN))
    assert {each: rows(memory, f"select count(*) from {each[0]}") for each in held} == {each: [0] for each in held}
    assert rows(memory, "select count(*) from evidence union all select count(*) from contested") == [0, 0]
    assert sound(memory)


# -------------------------------------------------------------------- canaries


@pytest.mark.parametrize("retention", ["all", "evidence", "none"])
def test_every_canary_lies_in_the_file_before_and_none_after(
    planted: Plant, key: bytes | None, retention: str, tmp_path: Path
) -> None:
    memory = planted(key)
    made = windows(vectors(memory))
    memory.add("tea in the hall", infer=False, **BOB)
    if retention != "all":
        memory.retain(retention)
    if key is not None:
        checkpoint(memory)
    before = lying(memory)
    if retention == "all":
        assert [name for name, text in CANARY.items() if text.encode() not in before] == []
        assert str(grams(CANARY["cjk"])).encode() in before
        assert len(made) > 80
        assert {window for window in made if window not in before} == set()
    assert QUERY.split()[0].encode() not in before.lower()
    others = shown(memory, **BOB)
    certificate = done(memory.purge(**ANN))
    for after in (lying(memory), *closed(memory, tmp_path)):
        assert words_left(after) == []
        assert str(grams(CANARY["cjk"])).encode() not in after
        assert {window for window in made if window in after} == set()
        assert b"tea in the hall" in after or key is not None
    assert certificate["raw"]["found"] == 0
    assert [each["what"] for each in certificate["raw"]["read"]] == ["file"] + ["decrypted pages"] * (key is not None)
    with Memory(tmp_path / "memory.db", embedder=Dense(), generator=Listener(), key=key, clock=FixedClock()) as again:
        assert shown(again, **BOB) == others
        assert sound(again)


def closed(memory: Memory, folder: Path) -> Iterator[bytes]:
    """What lies there once it is closed: one file."""
    memory.close()
    assert [path.name for path in folder.iterdir()] == ["memory.db"]
    yield (folder / "memory.db").read_bytes()
