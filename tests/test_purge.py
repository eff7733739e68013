"""Purge: what goes, what stays, what lies on the disk before and after, and the certificate of it."""

from __future__ import annotations

import contextlib
import hmac
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Opener
from doubles import Listener, texts

from localmem import Memory, ingest, reembed, store_matrix, store_purge, store_vectors
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
from localmem.store_audit import name_of
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
    "turn": "windlass in a long turn without a fact",
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
    return b"\n".join(
        [
            *found,
            *(
                path.read_bytes()
                for path in database.path.parent.rglob("*")
                if path.is_file() and path != database.path
            ),
        ]
    )


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
        change(
            memory.add(c["deleted"] if name == "deleted" else "to be changed", infer=False, **ANN)["results"][0]["id"]
        )
    memory.add(f"fact: {c['taken back']}", **ANN)
    memory.add(f"Please forget everything I told you about the {word('taken back')}.", **ANN)
    memory.add(f"fact: {c['cjk']}", **ANN)
    memory.add(f"{c['long']} {'and so on ' * 40}{c['later']}", infer=False, **ANN)
    memory.add(f"{c['turn']} {'and so on ' * 40}", **ANN)
    listener.fail = True
    with pytest.raises(GeneratorError):
        memory.add(f"fact: {c['pending']}", **NARROW)
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
    plain = {
        table: [name for name, kind in columns.items() if kind == store_purge.PLAIN]
        for table, columns in REGISTRY.items()
    }
    for table, names in plain.items():
        for row in rows(memory, f"select {', '.join(names)}, 0 from {table}") if names else ():
            content = b"|".join(each if isinstance(each, bytes) else str(each).encode() for each in row)
            assert words_left(content) == [], table


def test_a_purge_of_the_only_owner_empties_every_column_that_holds_anything_of_people(planted: Plant) -> None:
    memory = planted(None)
    held = [
        (t, name) for t, columns in REGISTRY.items() for name, kind in columns.items() if kind in (TEXT, VECTOR, SCOPE)
    ]
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
    with opened(tmp_path / "memory.db", key=key) as again:
        assert shown(again, **BOB) == others
        assert sound(again)


def closed(memory: Memory, folder: Path) -> Iterator[bytes]:
    """What lies there once it is closed: one file."""
    memory.close()
    assert [path.name for path in folder.iterdir()] == ["memory.db"]
    yield (folder / "memory.db").read_bytes()


def test_one_memory_goes_with_all_that_was_said_of_it_and_the_rest_stays(
    open_memory: Opener, listener: Listener, scripted: None, key: bytes | None, tmp_path: Path, clock: FixedClock
) -> None:
    memory = open_memory(generator=listener, embedder=Dense(), **({} if key is None else {"key": key}))
    c = CANARY
    said = [
        {"role": "user", "content": "fact: tea stands in the kitchen"},
        {
            "role": "user",
            "content": f"{c['chatter']}\nfact: {c['old']}\nfact: harbour is north\nfact: {c['unsupported']} | unsupported",
            "name": c["name"],
        },
        {"role": "assistant", "content": c["assistant"]},
    ]
    first = {each["memory"]: each["id"] for each in memory.add(said, metadata={"n": 1}, **ANN)["results"]}
    wanted = first[c["old"]]
    memory.add(f"fact: {c['new']} | changes: gnomonic", **ANN)
    memory.add(f"{c['again']}\nfact: {c['new']}", **ANN)
    memory.add(f"fact: {c['other']} by the pier | contests: second version", **ANN)
    memory.update(wanted, c["by hand"], metadata={"note": c["its metadata"]})
    before, kept = windows(vectors(memory)), first["tea stands in the kitchen"]
    done(memory.purge(memory_id=wanted, **ANN))
    gone = before - windows(vectors(memory))
    assert len(gone) > 20
    for after in (lying(memory), *closed(memory, tmp_path)):
        assert words_left(after, {name: c[name] for name in c if name not in ("user", "other")}) == []
        assert {window for window in gone if window in after} == set()
    with opened(tmp_path / "memory.db", key=key) as again:
        left = ["tea stands in the kitchen", "harbour is north", f"{c['other']} by the pier"]
        assert texts(again.get_all(**ANN)) == left
        assert texts(again.search("tea kitchen", limit=1, **ANN)) == left[:1]
        [version] = again.history(kept)
        assert [each["quote"] for each in version["evidence"]] == ["fact: tea stands in the kitchen"]
        [version] = again.history(first["harbour is north"])  # heard in the turn that went
        [evidence] = version["evidence"]
        assert (evidence["quote"], evidence["message"], evidence["said_at"]) == ("", 1, "2025-03-01T00:00:00Z")
        assert version["new_memory"] == "harbour is north"
        assert {each["quote"] for each in again.decisions(**ANN) if each["fact"] == "harbour is north"} == {""}
        assert "contested_with" not in repr(again.get_all(**ANN))
        turns = "select role, content <> '' from message where episode_id = (select id from episode where seq = 1)"
        assert sorted(rows(again, turns)) == [("assistant", 0), ("user", 0), ("user", 1)]
        with pytest.raises(NotFoundError):
            again.history(wanted)
        assert wanted not in repr(everything(again))
        assert sound(again)


def opened(path: Path, **options: Any) -> Memory:
    return Memory(path, **{"embedder": Dense(), "generator": Listener(), "clock": FixedClock(), **options})


@pytest.mark.parametrize("ids", [{}, ANN], ids=["whole file", "scope"])
def test_what_was_taken_back_goes_on_request(
    open_memory: Opener, listener: Listener, scripted: None, ids: dict[str, str]
) -> None:
    memory = open_memory(generator=listener, embedder=Dense())
    memory.add("fact: tea stands in the kitchen", **ANN)
    for whose in (ANN, BOB):
        memory.add(
            [
                {"role": "user", "content": f"fact: {CANARY['taken back']} {whose['user_id']}"},
                {"role": "assistant", "content": f"{CANARY['assistant']} of the sousaphone"},
            ],
            **whose,
        )
        memory.add(f"{CANARY['chatter']}, dear sousaphone", **whose)  # said of it, but no memory
        memory.add("Please forget everything I told you about the sousaphone.", **whose)
    assert rows(memory, "select count(*) from memory where delete_reason = 'user_request'") == [2]
    others, taken = shown(memory, **BOB), {name: CANARY[name] for name in ("taken back", "assistant", "chatter")}
    done(memory.purge(requested=True, **ids))
    if ids:
        assert words_left(lying(memory), taken) == list(taken)  # Bob's
        assert shown(memory, **BOB) == others
        done(memory.purge(requested=True, **BOB))
    assert words_left(lying(memory), taken) == []
    assert texts(memory.get_all(**ANN)) == ["tea stands in the kitchen"]
    assert memory.purge(requested=True) == {
        "message": "Nothing to purge",
        "results": [],
        "purged": {},
        "complete": True,
        "certificate": None,
    }


def test_what_waits_is_read_without_what_was_purged_of_it(story: Memory, listener: Listener) -> None:
    listener.fail = True
    for said in ("fact: the boat is called sousaphone", "fact: tea stands in the kitchen"):
        with pytest.raises(GeneratorError):
            story.add(said, timestamp="2025-01-01", **ANN)
    story.add("Please forget everything I told you about the sousaphone.", **ANN)
    done(story.purge(requested=True))
    assert b"sousaphone" not in lying(story)
    listener.fail = False
    story.resume()
    assert story.pending() == []
    assert texts(story.get_all(**ANN)) == ["tea stands in the kitchen"]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("memory_id"),
        pytest.param("requested"),
        "user_id",
    ],
)
def test_an_ending_goes_with_what_it_ended(story: Memory, given: str) -> None:
    """Of "no longer eats rhubarb" the file also keeps an unseen "eats rhubarb"."""
    [added] = story.add("fact: User no longer eats rhubarb | retracts: nothing", **ANN)["results"]
    assert rows(story, "select text from version") == ["User no longer eats rhubarb", "User eats rhubarb"]
    if given == "requested":
        story.add("Please forget everything I told you about the rhubarb.", **ANN)
    done(story.purge(**{given: {"memory_id": added["id"], "requested": True, **ANN}[given]}))
    assert b"rhubarb" not in lying(story)


@pytest.mark.parametrize(
    "beside",
    [False, pytest.param(True)],
)
def test_the_metadata_of_a_memory_does_not_stay_in_its_talk(story: Memory, beside: bool) -> None:
    said = [{"role": "user", "content": "hello"}] * beside + [{"role": "user", "content": "fact: tea is hot"}]
    [added] = story.add(said, metadata={"note": CANARY["metadata"]}, **ANN)["results"]
    done(story.purge(memory_id=added["id"]))
    assert words_left(lying(story)) == ["user"]


def test_what_waits_keeps_its_metadata(story: Memory, listener: Listener) -> None:
    """Of a talk of which a part was purged: the rest gets it when it is read."""
    listener.fail = True
    said = [{"role": "user", "content": f"fact: {each}"} for each in ("the boat is called sousaphone", "tea is hot")]
    with pytest.raises(GeneratorError):
        story.add(said, metadata={"topic": "evening"}, timestamp="2025-01-01", **ANN)
    story.add("Please forget everything I told you about the sousaphone.", **ANN)
    done(story.purge(requested=True))
    listener.fail = False
    story.resume()
    assert [(each["memory"], each["metadata"]) for each in story.get_all(**ANN)] == [
        ("tea is hot", {"topic": "evening"})
    ]


def test_no_name_of_the_metadata_is_an_exception(story: Memory) -> None:
    [added] = story.add("fact: tea is hot", metadata={"source_id": CANARY["metadata"]}, **ANN)["results"]
    done(story.purge(memory_id=added["id"]))
    assert words_left(lying(story)) == ["user"]


def test_the_speaker_of_a_turn_that_was_not_kept_goes_too(story: Memory) -> None:
    story.retain("none")
    said = {"role": "user", "content": "fact: tea stands in the kitchen", "name": CANARY["name"]}
    [added] = story.add(said, **ANN)["results"]
    done(story.purge(memory_id=added["id"]))
    assert words_left(lying(story)) == ["user"]


def test_a_request_that_was_carried_out_is_not_carried_out_again_after_a_purge(
    story: Memory, listener: Listener
) -> None:
    story.add("fact: User's boat is called Selkie", **ANN)
    listener.fail = True
    with pytest.raises(GeneratorError):
        story.add("Please forget everything I told you about the boat.\nfact: User moved to Faro", **ANN)
    done(story.purge(requested=True))
    story.add("fact: User's boat is called Selkie", infer=False, **ANN)  # said anew
    listener.fail = False
    story.resume()
    assert texts(story.get_all(**ANN)) == ["fact: User's boat is called Selkie", "User moved to Faro"]


@pytest.mark.parametrize("whole", [True, False], ids=["scope", "memory"])
@pytest.mark.parametrize("step", ["extract", "decide_all"])
def test_a_purge_in_the_middle_of_an_add_wins(
    story: Memory, whole: bool, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = story.add("fact: the boat is called sousaphone", **ANN)["results"][0]["id"]
    real = getattr(ingest, step)

    def then_purge(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        monkeypatch.setattr(ingest, step, real)
        done(story.purge(**(ANN if whole else {"memory_id": one})))
        return found

    monkeypatch.setattr(ingest, step, then_purge)
    with pytest.raises(NotFoundError) if whole else contextlib.nullcontext():
        story.add("fact: the boat lies in the harbour | changes: boat called", **ANN)
    assert texts(story.get_all(**ANN)) == ([] if whole else ["the boat lies in the harbour"])
    assert b"sousaphone" not in lying(story)
    assert rows(story, "select targets, neighbours from decision") == ([] if whole else [("[]", "[]")])
    assert sound(story)


def test_a_purge_while_vectors_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.db"
    monkeypatch.setattr(store_vectors, "BATCH", 2)
    with opened(path) as memory:
        for n in range(6):
            memory.add(f"quokkafer {n} sleeps", infer=False, **ANN)
            memory.add(f"tea {n} stands", infer=False, **BOB)

        class Slow(Dense):
            def embed_passages(self, texts: Sequence[str]) -> Any:
                if self.left == 10**9 - 4:  # its third batch is under way
                    done(memory.purge(**ANN))
                return super().embed_passages(texts)

        slow = Slow(96)
        made = windows([row.tobytes() for row in slow.embed_passages([f"quokkafer {n} sleeps" for n in range(6)])])
        slow.left = 10**9
        reembed(path, slow)
    with opened(path, embedder=Dense(96)) as memory:
        assert rows(memory, "select count(*) from memory_vec") == [6]
        content = lying(memory)
        assert {window for window in made if window in content} == set()
        assert sound(memory)


# -------------------------------------------------------------------- what is selected

SCOPES = [
    {name: value for name, value in (("user_id", u), ("agent_id", a), ("run_id", r)) if value}
    for u in ("ann", "bob", "")
    for a in ("nurse", "")
    for r in ("r1", "")
    if u or a or r
]


def fill(memory: Memory) -> None:
    for ids in SCOPES:
        memory.add(f"tea with {' and '.join(ids.values())}", infer=False, **ids)


@pytest.mark.parametrize(
    "ids",
    [
        {"user_id": "ann"},
        {"agent_id": "nurse"},
        {"run_id": "r1"},
        {"session_id": "r1"},
        {"user_id": "ann", "agent_id": "nurse"},
        {"user_id": "ann", "run_id": "r1"},
        {"agent_id": "nurse", "session_id": "r1"},
        {"user_id": "ann", "agent_id": "nurse", "run_id": "r1"},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("bound", [False, True], ids=["ids", "handle"])
def test_a_scope_goes_and_no_other(memory: Memory, ids: dict[str, str], bound: bool) -> None:
    fill(memory)
    wanted = {"run_id" if name == "session_id" else name: value for name, value in ids.items()}
    left = [each for each in SCOPES if not wanted.items() <= each.items()]
    purged = memory.bound(purge=True, **ids).purge() if bound else memory.purge(**ids)
    assert purged["purged"] == done(purged)["rows"]
    assert {purged["purged"][name] for name in ("memory", "version", "episode", "message", "evidence")} == (
        {len(SCOPES) - len(left)}
    )
    assert rows(memory, "select text from version order by id") == [
        f"tea with {' and '.join(e.values())}" for e in left
    ]
    assert memory.purge(**ids)["message"] == "Nothing to purge"
    assert sound(memory)


def test_a_memory_of_a_wider_scope_stays_without_what_the_narrow_talk_said_of_it(story: Memory) -> None:
    story.add("fact: User owns a kettle", **ANN)
    story.add("fact: User lives in Porto", **ANN)
    story.add("quokkafer\nfact: User owns a kettle", run_id="r1", **ANN)  # confirms
    story.add("quokkafer\nfact: User left Porto | retracts: lives Porto", agent_id="nurse", **ANN)
    assert rows(story, "select kind from evidence order by id") == ["support", "support", "confirm", "confirm"]
    for narrow in ({"run_id": "r1"}, {"agent_id": "nurse"}):
        done(story.purge(**narrow, **ANN))
        assert sound(story)
    assert words_left(lying(story)) == ["user"]
    assert texts(story.get_all(**ANN)) == ["User owns a kettle"]
    assert rows(story, "select kind from evidence") == ["support", "support"]
    assert rows(story, "select text, delete_reason, delete_decision from memory m join version v on v.id = head where deleted_at is not null") == [
        ("User lives in Porto", "retracted", None)
    ]  # fmt: skip


def test_single_memories_go_deleted_and_superseded_ones_too(memory: Memory) -> None:
    said = [f"cup number {n} stands on the shelf" for n in range(6)]
    ids = [memory.add(each, infer=False, **ANN)["results"][0]["id"] for each in said]
    memory.delete(ids[1])
    memory.update(ids[2], "the cup on the shelf is broken")
    done(memory.purge(memory_id=ids[1]))
    purged = memory.purge(memory_id=[ids[2], ids[3].upper(), ids[3]], **ANN)
    assert purged["purged"]["version"] == 3
    assert len(done(purged)["what"]["memories"]) == 2
    assert texts(memory.get_all(**ANN)) == [said[0], said[4], said[5]]
    content = lying(memory)
    assert [each for each in said if each.encode() in content] == [said[0], said[4], said[5]]
    assert b"broken" not in content
    assert sound(memory)


def test_a_mistake_changes_nothing(memory: Memory) -> None:
    known = memory.add("tea in the hall", infer=False, **ANN)["results"][0]["id"]
    foreign = memory.add("tea in the hall", infer=False, **BOB)["results"][0]["id"]
    before, unknown = everything(memory), "01954f00-b000-7dd4-8bc3-07642c25874f"
    mistakes: list[tuple[type[Exception], dict[str, Any]]] = [
        (ScopeError, {}),
        (ScopeError, {"query": "tea"}),
        (NotFoundError, {"memory_id": unknown}),
        (NotFoundError, {"memory_id": ""}),
        (NotFoundError, {"memory_id": [known, unknown]}),
        (NotFoundError, {"memory_id": foreign, **ANN}),
        (InvalidInputError, {"memory_id": []}),
        (InvalidTypeError, {"memory_id": [7]}),
        (InvalidInputError, {"memory_id": known, "query": "tea", **ANN}),
        (InvalidInputError, {"memory_id": known, "requested": True}),
        (InvalidInputError, {"query": "tea", "requested": True, **ANN}),
        (InvalidInputError, {"query": " ", **ANN}),
        (InvalidTypeError, {"query": 7, **ANN}),
        (ScopeError, {"run_id": "a", "session_id": "b"}),
        (InvalidInputError, {"user_id": "  "}),
    ]
    for error, given in mistakes:
        with pytest.raises(error):
            memory.purge(**given)
    assert everything(memory) == before
    assert memory.purges() == []


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"user_id": "", "requested": True}, id="no user"),
        pytest.param({"user_id": 0, "requested": True}, id="user 0"),
        pytest.param({"memory_id": 7}, id="number"),
        pytest.param({"confirm": "1-ab", **ANN}, id="confirm"),
    ],
)
def test_a_mistake_does_not_widen_a_purge(story: Memory, given: dict[str, Any]) -> None:
    story.add("fact: tea in the hall", **ANN)
    story.add("Please forget everything I told you about the tea.", **ANN)
    before = rows(story, "select text from version")
    with contextlib.suppress(InvalidInputError):  # user 0 is a user of whom there is nothing
        story.purge(**given)
    assert rows(story, "select text from version") == before


def test_a_query_shows_first_and_purges_when_confirmed(memory: Memory) -> None:
    for text in ("the green kettle leaks", "the green kettle was sold", "a boat lies in the harbour"):
        memory.add(text, infer=False, **ANN)
    memory.delete(memory.search("kettle sold", limit=1, **ANN)["results"][0]["id"])
    memory.add("the green kettle leaks", infer=False, **BOB)
    before = everything(memory)
    found = memory.purge(query="green kettle", limit=2, **ANN)
    assert sorted(texts(found)) == ["the green kettle leaks", "the green kettle was sold"]
    token = found["confirm"]
    for given in ({"limit": 3, **ANN}, {"limit": 2, **BOB}, {"limit": 1, **ANN}):
        with pytest.raises(ConflictError):
            memory.purge(query="green kettle", confirm=token, **given)
    assert everything(memory) == before
    late = memory.add("green kettle", infer=False, **ANN)["results"][0]["id"]
    with pytest.raises(ConflictError):  # something else would be found now
        memory.purge(query="green kettle", confirm=token, limit=2, **ANN)
    assert memory.purges() == []
    done(memory.purge(memory_id=late))
    done(memory.purge(query="green kettle", confirm=token, limit=2, **ANN))
    assert texts(memory.get_all(**ANN)) == ["a boat lies in the harbour"]
    assert rows(memory, "select text from version order by id") == [
        "a boat lies in the harbour",
        "the green kettle leaks",
    ]
    assert sound(memory)


def test_a_query_that_finds_nothing_is_answered_like_any_purge_of_nothing(memory: Memory) -> None:
    token = memory.purge(query="kettle", **ANN)["confirm"]
    assert memory.purge(query="kettle", confirm=token, **ANN) == memory.purge(**ANN)


def test_what_a_query_shows_is_entered_as_a_read(open_memory: Opener) -> None:
    memory = open_memory(audit_reads=True)
    memory.add("the green kettle leaks", infer=False, **ANN)
    before = memory.verify_audit()["entries"]
    assert memory.purge(query="kettle", **ANN)["results"]
    assert memory.verify_audit()["entries"] == before + 1


# -------------------------------------------------------------------- other owners


def test_other_owners_find_the_same_before_and_after(story: Memory) -> None:
    same = ["fact: tea stands in the hall by the pier", "tea for the pier, and no fact", "fact: the hall is cold"]
    owners: list[dict[str, str]] = [BOB, {"user_id": "cleo", "run_id": "r1"}, {"agent_id": "nurse"}]
    for ids in (ANN, *owners):
        for n, text in enumerate(same):
            story.add(text, timestamp=f"2025-01-0{n + 1}", **ids)
        story.add(f"fact: {next(iter(ids.values()))} drinks tea from the hall", **ids)
        story.add("fact: the hall is warm now | changes: hall cold", **ids)
    before = [shown(story, **ids) for ids in owners]
    certificate = done(story.purge(**ANN))
    assert certificate["raw"]["still_said_elsewhere"] > 10  # texts and vectors of the others
    assert [shown(story, **ids) for ids in owners] == before
    story.reindex()
    assert [shown(story, **ids) for ids in owners] == before
    assert sound(story)


def test_a_new_owner_in_the_place_of_a_purged_one_finds_its_own(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_matrix, "ROWS_MIN", 0)  # what is held in memory of an owner goes by its number
    memory.add("tea in the hall", infer=False, **ANN)
    [old] = rows(memory, "select id from owner")
    assert texts(memory.search("quite other words", **ANN)) == ["tea in the hall"]
    done(memory.purge(**ANN))
    memory.add("a boat in the harbour", infer=False, **BOB)
    assert rows(memory, "select id from owner") == [old]
    assert texts(memory.search("quite other words", **BOB)) == ["a boat in the harbour"]
    assert texts(memory.search("tea in the hall", include="all", **BOB)) == ["a boat in the harbour"]


# -------------------------------------------------------------------- certificate


def test_a_certificate_is_genuine_and_tells_nobody_anything(open_memory: Opener, clock: FixedClock) -> None:
    memory = open_memory(audit_key=AUDIT, actor="the office")
    memory.add(CANARY["fact"], infer=False, metadata={"note": CANARY["metadata"]}, **NARROW)
    one = memory.add(CANARY["old"], infer=False, **BOB)["results"][0]["id"]
    clock.advance(60)
    certificates = [done(memory.purge(**NARROW))]
    clock.advance(60)
    certificates.append(done(memory.purge(memory_id=one)))
    entries = {each["seq"]: each for each in memory.audit_log()}
    for certificate in certificates:
        told = json.dumps(certificate)
        assert words_left(told.encode()) == []
        assert not [secret for secret in (one, "bob", "the office", AUDIT.hex()) if secret in told]
        assert memory.verify_certificate(json.loads(told)) == {"ok": True, "problems": [], "signed": True}
        assert certificate["requested_at"] == certificate["completed_at"]
        begun, ended = entries[certificate["chain"]["purge"]], entries[certificate["chain"]["done"]]
        assert (begun["op"], ended["op"], begun["owner"]) == (
            "purge",
            "purge_done",
            certificate["what"]["scope"].get("owner"),
        )
        assert begun["detail"]["rows"]["memory"] == certificate["rows"]["memory"] == 1
        assert "backups" in certificate["limits"]
    named = [each["subject"] for each in entries.values() if each["op"] == "purge" and each["subject"]]
    assert named == certificates[1]["what"]["memories"]
    listed = [
        {"id": each["id"], "at": f"2025-03-01T00:0{n}:00Z", "state": "done", "reason": None, "certificate": each}
        for n, each in enumerate(certificates, 1)
    ]
    assert memory.purges() == listed
    memory.close()
    with open_memory(audit_key=AUDIT) as again:
        assert again.purges() == listed
        assert again.verify_certificate(listed[0]["certificate"])["ok"]
    with open_memory("other.db", audit_key=AUDIT) as other:
        assert other.verify_certificate(certificates[0])["problems"] == ["it is not a certificate of this file"]


def test_the_chain_stood_where_the_certificate_says(open_memory: Opener, tmp_path: Path) -> None:
    memory = open_memory(audit_key=AUDIT, checkpoint=tmp_path / "checkpoints")
    memory.add("tea in the hall", infer=False, **ANN)
    certificate = done(memory.purge(**ANN))
    last = json.loads((tmp_path / "checkpoints").read_text().splitlines()[-1])
    assert (last["seq"], last["head"]) == (certificate["chain"]["done"], certificate["chain"]["head"])


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a certificate."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield (*at, name)
        yield from leaves(each, (*at, name))


@pytest.mark.parametrize("options", [{"audit_key": AUDIT}, {}], ids=["key", "checksum"])
def test_any_change_of_a_certificate_is_noticed(open_memory: Opener, options: dict[str, Any]) -> None:
    memory = open_memory(**options)
    one = memory.add("tea in the hall", infer=False, **ANN)["results"][0]["id"]
    certificate = done(memory.purge(memory_id=one))
    assert bool(certificate["key_id"]) is bool(options)
    assert len(list(leaves(certificate))) > 30
    for path in leaves(certificate):
        for value in ("another", None, 7):
            changed = json.loads(json.dumps(certificate))
            place = changed
            for step in path[:-1]:
                place = place[step]
            if place[path[-1]] == value:
                continue
            place[path[-1]] = value
            assert memory.verify_certificate(changed)["ok"] is False, path
    assert memory.verify_certificate({**certificate, "more": 1})["ok"] is False
    assert memory.verify_certificate({})["ok"] is False
    with pytest.raises(InvalidTypeError):
        memory.verify_certificate(json.dumps(certificate))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"mac": "é"}, {"rows": {1: 2, "a": 3}}, {"limits": b"bytes"}], ids=repr)
def test_what_is_no_certificate_at_all_is_answered_and_raises_nothing(memory: Memory, bad: dict[str, Any]) -> None:
    memory.add("tea in the hall", infer=False, **ANN)
    certificate = done(memory.purge(**ANN))
    assert memory.verify_certificate({**certificate, **bad})["ok"] is False


def test_without_the_key_a_certificate_is_not_taken_for_a_genuine_one(open_memory: Opener) -> None:
    with open_memory(audit_key=AUDIT) as memory:
        memory.add("tea in the hall", infer=False, **ANN)
        signed = done(memory.purge(**ANN))
    for options in ({}, {"audit_key": KEY}):
        with open_memory(sound=False, **options) as memory:
            assert "another one was given" in repr(memory.verify_certificate(signed)["problems"])
            assert memory.purges()[0]["certificate"] == signed


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="none"),
        pytest.param({"key": KEY}, id="file key"),
        pytest.param({"audit_key": AUDIT}, id="audit key"),
    ],
)
def test_whose_words_went_cannot_be_guessed_from_the_certificate_alone(open_memory: Opener, options: Any) -> None:
    memory = open_memory(**options)
    memory.add("tea in the hall", infer=False, **BOB)
    certificate = done(memory.purge(**BOB))
    known = bytes.fromhex(certificate["file"])
    guesses = {name_of(hmac.digest(key, b"localmem audit names", "sha256"), "u:bob").hex() for key in (known, b"")}
    assert certificate["what"]["scope"]["owner"] not in guesses


def test_a_certificate_says_when_no_more_than_a_run_was_purged(memory: Memory) -> None:
    fill(memory)
    narrow, whole = done(memory.purge(user_id="ann", run_id="r1")), done(memory.purge(user_id="ann"))
    assert narrow["what"] != whole["what"]


# -------------------------------------------------------------------- erasing at once


def test_erase_on_delete(open_memory: Opener, listener: Listener, scripted: None) -> None:
    memory = open_memory(erase_on_delete=True, generator=listener)
    one = memory.add(CANARY["verbatim"], infer=False, **ANN)["results"][0]["id"]
    memory.add(f"fact: {CANARY['fact']}", **ANN)
    memory.add(f"fact: {CANARY['taken back']}", **ANN)
    told = memory.delete(one)
    assert told["results"][0]["event"] == "DELETE"
    done(told["purge"])
    with pytest.raises(NotFoundError):
        memory.history(one)
    memory.add("Please forget everything I told you about the sousaphone.", **ANN)
    assert words_left(lying(memory)) == ["fact", "user"]
    gone = memory.delete_all(**ANN)
    assert (gone["deleted"], "hint" in dict(gone)) == (1, False)
    done(gone["purge"])
    assert words_left(lying(memory)) == []
    assert [each["state"] for each in memory.purges()] == ["done"] * 3
    with pytest.raises(InvalidTypeError, match="erase_on_delete"):
        open_memory("other.db", erase_on_delete="yes", sound=False)


@pytest.mark.parametrize(
    ("known", "model"),
    [
        pytest.param("fact: ", "works", id="memory"),
        pytest.param("", "works", id="turn"),
        pytest.param("fact: ", "fails", id="memory, broken model"),
        pytest.param("fact: ", "is mended", id="memory, resumed"),
        pytest.param("", "is mended", id="turn, resumed"),
    ],
)
def test_erase_on_delete_leaves_nothing_that_was_taken_back(
    open_memory: Opener, listener: Listener, scripted: None, known: str, model: str
) -> None:
    memory = open_memory(erase_on_delete=True, generator=listener)
    memory.add(f"{known}{CANARY['taken back']}", **ANN)
    listener.fail = model != "works"
    with contextlib.suppress(GeneratorError):
        memory.add("Please forget everything I told you about the sousaphone.\nfact: tea is hot", **ANN)
    if model == "is mended":
        listener.fail = False
        assert memory.resume()["episodes"] == 1
    assert CANARY["taken back"].encode() not in lying(memory)
    if model != "fails":  # then the request itself waits in its episode
        assert b"sousaphone" not in lying(memory)


def test_without_it_deleting_keeps_the_history_and_says_how_to_purge(memory: Memory) -> None:
    one = memory.add(CANARY["verbatim"], infer=False, **ANN)["results"][0]["id"]
    memory.add(CANARY["fact"], infer=False, **ANN)
    assert "purge" not in dict(memory.delete(one))
    told = memory.delete_all(**ANN)
    assert told.keys() == {"message", "deleted", "results", "hint"}
    assert "purge()" in told["hint"]
    assert words_left(lying(memory)) == ["verbatim", "fact", "user"]
    assert memory.history(one)[0]["new_memory"] == CANARY["verbatim"]
    done(memory.purge(**ANN))
    assert words_left(lying(memory)) == []


# -------------------------------------------------------------------- handles and stores


def test_a_handle_purges_its_own_scope_and_only_where_it_may(memory: Memory) -> None:
    mine = memory.add("tea in the hall", infer=False, **ANN)["results"][0]["id"]
    foreign = memory.add("tea in the hall", infer=False, **BOB)["results"][0]["id"]
    before = everything(memory)
    for handle in (
        memory.bound(**ANN),
        memory.bound(read_only=True, purge=True, **ANN),
        memory.bound(**ANN).bound(purge=True),
        memory.bound(read_only=True, purge=True, **ANN).bound(purge=True),
    ):
        for given in ({}, {"memory_id": mine}, {"query": "tea"}, {"requested": True}):
            with pytest.raises(ScopeError):
                handle.purge(**given)
    handle = memory.bound(purge=True, **ANN)
    for given in ({}, {"memory_id": mine}, {"query": "tea"}, {"requested": True}):
        with pytest.raises(ScopeError):
            handle.purge(**given, user_id="bob")
    said = set()
    for unknown in (foreign, "01954f00-b000-7dd4-8bc3-07642c25874f"):
        with pytest.raises(NotFoundError) as raised:
            handle.purge(memory_id=unknown)
        said.add(str(raised.value).replace(unknown, ""))
    assert len(said) == 1
    with pytest.raises(ScopeError):
        handle.purges()
    assert everything(memory) == before
    assert texts(handle.purge(query="tea")) == ["tea in the hall"]
    assert handle.purge(requested=True)["message"] == "Nothing to purge"
    done(handle.bound(purge=True).purge(memory_id=mine))
    assert rows(memory, "select user_id from memory") == ["bob"]


def test_a_read_only_file_is_not_purged(open_memory: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_memory() as memory:
        one = memory.add("tea in the hall", infer=False, **ANN)["results"][0]["id"]
    before = (tmp_path / "memory.db").read_bytes()
    monkeypatch.setattr("localmem.db.opening.is_read_only", lambda file: True)
    with open_memory(sound=False) as memory:
        token = memory.purge(query="tea", **ANN)["confirm"]
        for given in (ANN, {"memory_id": one}, {"requested": True}, {"query": "tea", "confirm": token, **ANN}):
            with pytest.raises(ReadOnlyError):
                memory.purge(**given)
        assert memory.purges() == []
    assert (tmp_path / "memory.db").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["memory.db"]


@pytest.mark.parametrize("key_", [None, KEY], ids=["plain", "key"])
def test_a_store_in_memory(open_memory: Opener, key_: bytes | None) -> None:
    memory = open_memory(":memory:", key=key_)
    one = memory.add("tea in the hall", infer=False, **ANN)["results"][0]["id"]
    memory.add("tea in the garden", infer=False, **ANN)
    certificate = done(memory.purge(memory_id=one))
    assert certificate["raw"] == {"ok": True, "read": [], "note": "a memory-only store has no file"}
    assert memory.verify_certificate(certificate)["ok"]
    assert texts(memory.get_all(**ANN)) == ["tea in the garden"]
    done(memory.purge(**ANN))
    assert rows(memory, "select count(*) from memory") == [0]
