"""Importing from mem0: stores made by mem0ai 1.0.11 and 2.2.1 (tests/data/mem0), lists, exports, and what is broken.

The stores are made by ``python tests/mem0_driver.py store FOLDER`` in an environment with mem0ai.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import shlex
import shutil
import sqlite3
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Opener
from doubles import texts
from hypothesis import given
from hypothesis import strategies as st

from localmem.cli import cli
from localmem.compat.mem0 import Memory as CompatMemory
from localmem.errors import CorruptFileError, InvalidInputError, LocalmemError, ScopeError
from localmem.mem0_import import import_mem0
from localmem.mem0_points import RefusedPointError, read_point
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator

DATA = Path(__file__).resolve().parent / "data" / "mem0"
VERSIONS = ("1.x", "2.x")
ANN = {"user_id": "ann"}


@pytest.fixture
def store(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a recorded store, as mem0 lays it out: qdrant/ and history.db."""

    def copy(version: str) -> Path:
        folder = tmp_path / f"mem0-{version}"
        shutil.copytree(DATA / version, folder)
        (folder / "history.sqlite").rename(folder / "history.db")
        return folder

    return copy


def state(memory: Memory) -> list[tuple[Any, ...]]:
    """What a file holds for the people and agents of the stores."""
    scopes = ({"user_id": "ann"}, {"user_id": "oleg"}, {"agent_id": "desk"})
    found = [each for ids in scopes for each in memory.get_all(**ids)["results"]]
    return sorted({(each["id"], each["memory"], each["version"]) for each in found})


# -- stores of the real packages


@pytest.mark.parametrize("version", VERSIONS)
def test_a_store_of_the_real_package(memory: Memory, store: Callable[[str], Path], version: str) -> None:
    told = import_mem0(memory, store(version))
    assert (told["found"], told["added"], told["known"], told["versions"], told["skipped"]) == (5, 5, 0, 7, {})
    assert told["owners"] == [
        {"agent_id": "desk", "memories": 1},
        {"agent_id": "desk", "run_id": "r1", "user_id": "ann", "memories": 1},
        {"user_id": "ann", "memories": 2},
        {"user_id": "oleg", "memories": 1},
    ]
    ann = {each["memory"]: each for each in memory.get_all(**ANN)["results"]}
    assert set(ann) == {
        "User lives in Porto",
        "I drink green tea",
        "User is called 王小明",
    }  # the boat was deleted there
    porto, tea = ann["User lives in Porto"], ann["I drink green tea"]
    assert porto["metadata"]["topic"] == "home"
    assert porto["metadata"]["source_id"] == f"mem0:{porto['metadata']['mem0_id']}"
    assert porto["valid_from"].startswith("2026-11-22T18:39:4")
    assert porto["metadata"]["created_at"].startswith(porto["valid_from"][:-1])
    assert tea["metadata"].get("sure") is (True if version == "2.x" else None)  # 1.x had lost it itself
    assert [row["new_memory"] for row in memory.history(tea["id"])] == [
        "I drink coffee",
        "I drink tea",
        "I drink green tea",
    ]
    (borscht,) = memory.get_all(user_id="oleg")["results"]
    assert (borscht["memory"], borscht["metadata"]["actor_id"], borscht["metadata"]["role"]) == (
        "Я люблю борщ 🍲",
        "Олег",
        "user",
    )
    assert texts(memory.search("борщ", user_id="oleg")) == ["Я люблю борщ 🍲"]
    assert ann["User is called 王小明"]["run_id"] == "r1"


@pytest.mark.parametrize("version", VERSIONS)
def test_again_adds_nothing_and_brings_nothing_back(memory: Memory, store: Callable[[str], Path], version: str) -> None:
    folder = store(version)
    import_mem0(memory, folder)
    (borscht,) = memory.get_all(user_id="oleg")["results"]
    memory.delete(borscht["id"])
    before = state(memory)
    told = import_mem0(memory, folder)
    assert (told["added"], told["known"]) == (0, 5)
    assert state(memory) == before


def test_two_imports_at_once_add_each_memory_once(open_memory: Opener, store: Callable[[str], Path]) -> None:
    folder, other, faster = store("2.x"), open_memory(), list[Any]()

    def meanwhile(done: int, total: int) -> None:
        faster.append(import_mem0(other, folder))

    told = import_mem0(open_memory(), folder, progress=meanwhile)
    assert [(each["added"], each["known"], len(each["owners"])) for each in (faster[0], told)] == [(5, 0, 4), (0, 5, 0)]
    assert len(state(other)) == 5


@pytest.mark.parametrize("inside", ["", "qdrant", "qdrant/collection/mem0", "qdrant/collection/mem0/storage.sqlite"])
def test_the_folder_may_be_named_from_anywhere(memory: Memory, store: Callable[[str], Path], inside: str) -> None:
    folder = store("2.x")
    told = import_mem0(memory, folder / inside)
    assert (told["added"], told["versions"]) == (5, 7)


def test_without_its_history_nothing_is_written_unless_it_is_said(
    memory: Memory, store: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = store("2.x")
    history = (folder / "history.db").rename(tmp_path / "elsewhere.db")
    seen = import_mem0(memory, folder, dry_run=True)
    assert (seen["history"], seen["history_missing"], seen["added"], seen["versions"]) == (None, True, 5, 5)
    with pytest.raises(InvalidInputError, match=r"nothing was written: no history\.db.*--history FILE.*--no-history"):
        import_mem0(memory, folder)
    assert state(memory) == []
    told = import_mem0(memory, folder, history=history)
    assert (told["added"], told["versions"], told["history"]) == (5, 7, str(history))
    again = import_mem0(memory, folder)  # nothing is left that could have former texts
    assert (again["known"], again["history_missing"]) == (5, False)


def test_waived_its_history_a_memory_has_one_text(memory: Memory, store: Callable[[str], Path]) -> None:
    told = import_mem0(memory, store("2.x"), history=False)
    assert (told["versions"], told["history"], told["history_missing"]) == (5, None, False)
    tea = next(each for each in memory.get_all(**ANN)["results"] if "tea" in each["memory"])
    assert tea["valid_from"][:-1] == tea["metadata"]["created_at"][:-6]


@pytest.mark.parametrize("history", [True, 7, b"history.db"])
def test_a_history_that_is_none(memory: Memory, store: Callable[[str], Path], history: Any) -> None:
    with pytest.raises(InvalidInputError, match="history must be"):
        import_mem0(memory, store("2.x"), history=history)


def test_a_dry_run_says_the_same_and_writes_nothing(memory: Memory, store: Callable[[str], Path]) -> None:
    folder = store("1.x")
    seen = import_mem0(memory, folder, dry_run=True)
    assert (state(memory), memory.audit_log()[-1]["op"]) == ([], "audit_export")
    assert {**seen, "dry_run": False} == import_mem0(memory, folder)


def test_the_store_itself_is_left_as_it_was(memory: Memory, store: Callable[[str], Path]) -> None:
    folder = store("2.x")
    before = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    import_mem0(memory, folder)
    assert {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()} == before


def test_a_read_only_folder_can_be_read(memory: Memory, store: Callable[[str], Path]) -> None:
    folder = store("2.x")
    for each in (*folder.rglob("*"), folder):
        each.chmod(0o555 if each.is_dir() else 0o444)
    assert import_mem0(memory, folder)["added"] == 5
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755)


def test_the_compat_module_shows_them_as_mem0_did(tmp_path: Path, store: Callable[[str], Path]) -> None:
    options: dict[str, Any] = {"embedder": HashEmbedder(), "generator": ScriptedGenerator(), "clock": FixedClock()}
    with CompatMemory(path=tmp_path / "m.db", **options) as memory:
        import_mem0(memory.local, store("2.x"))
        (borscht,) = memory.get_all(user_id="oleg")["results"]
        assert (borscht["role"], borscht["actor_id"]) == ("user", "Олег")
        assert borscht["created_at"].startswith("2026-11-22T18:39:4")
        assert set(borscht["metadata"]) == {"mem0_id", "source", "source_id"}
        tea = next(each for each in memory.get_all(**ANN)["results"] if "tea" in each["memory"])
        rows = memory.history(tea["id"])
        assert [(row["event"], row["old_memory"]) for row in rows] == [
            ("ADD", None),
            ("UPDATE", "I drink coffee"),
            ("UPDATE", "I drink tea"),
        ]
        assert rows[0]["created_at"] == rows[0]["updated_at"] == tea["created_at"] < rows[2]["updated_at"]


# -- lists and exports

ENTRY = {"id": "m1", "memory": "I like tea", "user_id": "ann", "created_at": "2024-05-06T07:08:09+00:00"}


def listed(tmp_path: Path, content: Any, name: str = "all.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


@pytest.mark.parametrize(
    "content",
    [
        [ENTRY],
        {"results": [ENTRY]},
        {"memories": [ENTRY], "relations": []},
        {"items": [{**ENTRY, "memory": None, "content": "I like tea", "created_at": 1714979289, "state": "active"}]},
        ENTRY,
        json.dumps(ENTRY) + "\n\n" + json.dumps({**ENTRY, "id": "m1"}) + "\n",
        "\ufeff" + json.dumps([ENTRY]),
    ],
)
def test_lists(memory: Memory, tmp_path: Path, content: Any) -> None:
    if isinstance(content, dict) and "items" in content:
        content["items"][0].pop("memory")
    assert import_mem0(memory, listed(tmp_path, content))["added"] == 1
    (tea,) = memory.get_all(**ANN)["results"]
    assert (tea["memory"], tea["valid_from"]) == ("I like tea", "2024-05-06T07:08:09Z")


def test_what_get_all_returned_comes_back_whole(memory: Memory, tmp_path: Path) -> None:
    options: dict[str, Any] = {"embedder": HashEmbedder(), "generator": ScriptedGenerator(), "clock": FixedClock()}
    with CompatMemory(path=tmp_path / "m.db", **options) as other:
        talk = [{"role": "user", "content": "I like tea", "name": "Bea"}, {"role": "assistant", "content": "Noted"}]
        other.add(talk, infer=False, metadata={"topic": "drinks"}, agent_id="desk", **ANN)
        exported = other.get_all(**ANN)
    assert import_mem0(memory, listed(tmp_path, exported))["added"] == 2
    tea, noted = memory.get_all(user_id="ann", agent_id="desk")["results"]
    assert (tea["metadata"]["topic"], tea["metadata"]["actor_id"], noted["actor"]) == ("drinks", "Bea", "assistant")


def test_scope_comes_from_the_ids_alone(memory: Memory, tmp_path: Path) -> None:
    forged = {**ENTRY, "metadata": {"user_id": "eve", "agent_id": "eve", "n": 1}}
    import_mem0(memory, listed(tmp_path, [forged]))
    assert texts(memory.get_all(user_id="eve")) == texts(memory.get_all(agent_id="eve")) == []
    assert texts(memory.get_all(**ANN)) == ["I like tea"]


def test_memories_without_ids_are_counted_or_given_to_somebody(memory: Memory, tmp_path: Path) -> None:
    nobody = [{**ENTRY, "id": f"m{n}", "user_id": user} for n, user in enumerate(["ann", None, "", "  "])]
    path = listed(tmp_path, nobody)
    told = import_mem0(memory, path)
    assert told["added"] == 1
    ((reason, count),) = told["skipped"].items()
    assert (count, "--user ID" in reason) == (3, True)
    told = import_mem0(memory, path, user_id="bob")
    assert (told["added"], told["known"], told["owners"]) == (3, 1, [{"user_id": "bob", "memories": 3}])


def test_what_can_not_be_taken_is_counted_and_the_rest_is_taken(memory: Memory, tmp_path: Path) -> None:
    entries: list[Any] = [
        ENTRY,
        {**ENTRY, "id": "blank", "memory": " "},
        {**ENTRY, "id": "none", "memory": None},
        {**ENTRY, "id": "number", "memory": 7},
        {**ENTRY, "id": "nul", "memory": "a\0b"},
        {**ENTRY, "id": "surrogate", "memory": "\ud800"},
        {**ENTRY, "id": "large", "memory": "x" * 1_000_001},
        {**ENTRY, "id": "metadata", "metadata": {"x": "y" * 70_000}},
        {**ENTRY, "id": "owner", "user_id": "u" * 300},
        {**ENTRY, "id": "ends", "expiration_date": "soon"},
        {**ENTRY, "id": "gone", "state": "deleted"},
        {**ENTRY, "id": None},
        "I like tea",
        7,
    ]
    told = import_mem0(memory, listed(tmp_path, entries))
    assert (told["found"], told["added"], sum(told["skipped"].values())) == (14, 1, 13)
    assert "x" * 20 not in json.dumps(told)
    assert texts(memory.get_all(**ANN)) == ["I like tea"]


def test_expiry_and_times_that_can_not_be_read(memory: Memory, tmp_path: Path) -> None:
    entries = [
        {**ENTRY, "id": "over", "memory": "milk", "expiration_date": "2024-06-01"},
        {**ENTRY, "id": "lasts", "memory": "wine", "expiration_date": "2099-06-01"},
        {**ENTRY, "id": "when", "memory": "rum", "created_at": "yesterday"},
    ]
    assert import_mem0(memory, listed(tmp_path, entries))["added"] == 3
    assert texts(memory.get_all(**ANN)) == ["wine", "rum"]
    assert memory.get_all(**ANN)["results"][1]["valid_from"] == "2025-03-01T00:00:00Z"


def test_open_memorys_export(memory: Memory, tmp_path: Path) -> None:
    lines = [
        {"id": "a", "content": "I like tea", "metadata": {"k": 1}, "created_at": "2024-05-06T07:08:09+00:00",
         "updated_at": None, "state": "active", "app": "cursor", "categories": ["drinks"]},
        {"id": "b", "content": "old", "metadata": {}, "created_at": None, "state": "archived", "app": None, "categories": []},
    ]  # fmt: skip
    packed = gzip.compress("\n".join(json.dumps(each) for each in lines).encode())
    whole = {"user": {"id": "0b", "user_id": "ann"}, "memories": [{**lines[0], "user_id": "0b", "app_id": "7"}]}
    path = tmp_path / "memories_export_ann.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("memories.json", json.dumps(whole))
        archive.writestr("memories.jsonl.gz", packed)
    told = import_mem0(memory, path)
    assert (told["added"], told["skipped"]) == (1, {"it is archived in OpenMemory": 1})
    (tea,) = memory.get_all(**ANN)["results"]
    assert (tea["memory"], tea["metadata"]["app"], tea["metadata"]["categories"], tea["metadata"]["k"]) == (
        "I like tea", "cursor", ["drinks"], 1,
    )  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:  # an export without the lines
        archive.writestr("export/memories.json", json.dumps(whole))
    assert import_mem0(memory, path)["known"] == 1


# -- broken and wrong files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty|no JSON"),
        ("{", "no JSON"),
        ("I like tea", "no JSON"),
        ('{"a": 1}', "no list"),
        ("7", "no list"),
        ("[" * 100_000, "nested|no JSON"),
        (json.dumps(ENTRY) + "\n{broken\n", "no JSON"),
    ],
)
def test_files_that_are_no_list(memory: Memory, tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        import_mem0(memory, listed(tmp_path, content))


def test_wrong_paths_say_what_is_taken(memory: Memory, tmp_path: Path, store: Callable[[str], Path]) -> None:
    folder = store("2.x")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(InvalidInputError, match="give mem0's Qdrant folder"):
            import_mem0(memory, path)
    with pytest.raises(InvalidInputError, match="no collection 'notes'; it has mem0"):
        import_mem0(memory, folder, collection="notes")
    with pytest.raises(InvalidInputError, match="is none"):
        import_mem0(memory, listed(tmp_path, [ENTRY]), collection="mem0")
    with pytest.raises(InvalidInputError, match="no history"):
        import_mem0(memory, folder, history=tmp_path / "missing.db")
    with pytest.raises(InvalidInputError, match="no table 'history'"):
        import_mem0(memory, folder, history=folder / "qdrant/collection/mem0/storage.sqlite")
    with pytest.raises(InvalidInputError, match="path must be"):
        import_mem0(memory, 7)  # type: ignore[arg-type]
    shutil.copy(folder / "history.db", folder / "qdrant/collection/mem0/storage.sqlite")
    with pytest.raises(InvalidInputError, match="no table 'points'"):
        import_mem0(memory, folder)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        import_mem0(memory, tmp_path / "binary.json")
    with sqlite3.connect(tmp_path / "older.db") as older:
        older.execute("create table history (id text, memory_id text, prev_value text, new_value text)")
    older.close()
    with pytest.raises(InvalidInputError, match="another mem0"):
        import_mem0(memory, store("1.x"), history=tmp_path / "older.db")
    assert state(memory) == []


@pytest.mark.parametrize("file", ["qdrant/collection/mem0/storage.sqlite", "history.db"])
def test_a_damaged_file_is_named_and_nothing_is_written(
    memory: Memory, store: Callable[[str], Path], file: str
) -> None:
    path = store("2.x") / file
    whole = path.read_bytes()
    for damaged in (b"nonsense" * 1_000, whole[:5_000], whole[:4_096] + b"\xff" * (len(whole) - 4_096)):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match=path.name):
            import_mem0(memory, path.parents[len(Path(file).parents) - 1])
        assert state(memory) == []


def test_damaged_zips(memory: Memory, tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("memories.json", json.dumps({"user": {"user_id": "ann"}, "memories": [ENTRY] * 50}))
    raw = made.getvalue()
    path = tmp_path / "export.zip"
    for damaged in (raw[:60], raw[:40] + b"\0" * 20 + raw[60:], b"PK\x03\x04"):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="damaged zip"):
            import_mem0(memory, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InvalidInputError, match=r"no memories\.json"):
        import_mem0(memory, path)


# -- points


@pytest.fixture
def models() -> Iterator[Any]:
    """Classes under the names that qdrant-client pickles its points with, in pydantic's way."""
    names = ("qdrant_client", "qdrant_client.http", "qdrant_client.http.models", "qdrant_client.http.models.models")
    made = {name: types.ModuleType(name) for name in names}

    class Model:
        def __init__(self, **fields: Any) -> None:
            self.fields = fields

        def __reduce_ex__(self, protocol: Any) -> Any:
            state = {"__dict__": self.fields, "__pydantic_fields_set__": set(self.fields), "__pydantic_extra__": None}
            import copyreg

            return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]

    last = made[names[-1]]
    for name in ("PointStruct", "SparseVector", "Filter"):
        setattr(last, name, type(name, (Model,), {"__module__": names[-1], "__qualname__": name}))
    sys.modules.update(made)
    yield last
    for name in names:
        del sys.modules[name]


def point(models: Any, payload: Any = None, **fields: Any) -> Any:
    payload = {"data": "I like tea", "user_id": "ann"} if payload is None else payload
    return models.PointStruct(**{"id": "m1", "vector": [0.25, 0.5] * 8, "payload": payload, **fields})


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_and_every_value_of_json(models: Any, protocol: int) -> None:
    payload = {
        "data": "Я люблю 王 " + "x" * 70_000, "none": None, "yes": True, "no": False, "small": 7, "byte": 200, "short": 60_000,
        "int": -70_000, "long": 2**70, "real": 1.5, "list": [0.5, 0.25, [], {}], "tuple": (1, 2, 3, 4), "dict": {"a": {"b": [1]}},
        "one": (1,), "": "", "again": "Я люблю",
    }  # fmt: skip
    vectors = {"": [0.1] * 300, "bm25": models.SparseVector(indices=[1, 2], values=[0.5, 0.5])}
    found = read_point(pickle.dumps(point(models, payload, vector=vectors), protocol=protocol))
    assert found.payload == {**payload, "tuple": [1, 2, 3, 4], "one": [1]}
    assert read_point(pickle.dumps(point(models, id=7), protocol=protocol)).id == "7"


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_point_is_ever_called(models: Any, tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "was-here"
    calls = [
        (os.system, (f"touch {mark}",)),
        (eval, (f"open({str(mark)!r}, 'w')",)),
        (open, (str(mark), "w")),
        (getattr, ("", "upper")),
        (__import__, ("os",)),
    ]
    for made in calls:
        for bad in (Evil(made), point(models, {"data": Evil(made)}), point(models, vector=Evil(made))):
            with pytest.raises(RefusedPointError, match="which no point needs"):
                read_point(pickle.dumps(bad, protocol=protocol))
    assert not mark.exists()
    with pytest.raises(RefusedPointError):
        read_point(pickle.dumps(models.Filter(id="m1", payload={}), protocol=protocol))
    with pytest.raises(RefusedPointError):
        read_point(pickle.dumps(point(models, {"data": {1, 2}}), protocol=protocol))


def test_bombs_stay_small(models: Any) -> None:
    lots: list[Any] = ["x"]
    for _ in range(60):
        lots = [lots, lots]
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    round_: list[Any] = []
    round_.append(round_)
    for payload in ({"data": lots}, {"data": deep}, {"data": round_}):
        with pytest.raises(RefusedPointError, match="too large or nested too deep"):
            read_point(pickle.dumps(point(models, payload), protocol=4))
    head = b"\x80\x04"
    for bomb in (
        head + b"Nr\xff\xff\xff\xff.",  # a memo of four billion places
        head + b"B\xff\xff\xff\xff.",
        head + b"\x8e" + b"\xff" * 8 + b".",
        head + b")" + b"\x85" * 1_000_000 + b"N\x93.",  # a name that is a million tuples deep
        head + b"(" * 100_000 + b".",
    ):
        with pytest.raises(RefusedPointError):
            read_point(bomb)


@given(st.data())
def test_damaged_points_are_refused_or_read(data: st.DataObject) -> None:
    whole = next(iter(_points_of("2.x")))
    cut = data.draw(st.integers(0, len(whole)))
    raw = bytearray(whole[:cut] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RefusedPointError):
        json.dumps(read_point(bytes(raw)).payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(RefusedPointError):
        read_point(b"\x80\x04" + raw)


def _points_of(version: str) -> list[bytes]:
    with sqlite3.connect(
        f"file:{DATA / version / 'qdrant/collection/mem0/storage.sqlite'}?immutable=1", uri=True
    ) as db:
        return [each for (each,) in db.execute("select point from points order by rowid")]


def collection(folder: Path, name: str, points: list[Any]) -> Path:
    """A collection as Qdrant's local mode writes it."""
    place = folder / "collection" / name
    place.mkdir(parents=True)
    with sqlite3.connect(place / "storage.sqlite") as db:
        db.execute("create table points (id text primary key, point blob)")
        rows = [
            (str(n), each if isinstance(each, bytes | int | None) else pickle.dumps(each))
            for n, each in enumerate(points)
        ]
        db.executemany("insert into points values (?, ?)", rows)
    db.close()
    return folder


def test_unreadable_points_are_counted(memory: Memory, models: Any, tmp_path: Path) -> None:
    evil = point(models, {"data": Evil((os.system, ("true",)))})
    large = point(models, {"data": "x" * 16_100_000, "user_id": "ann"})
    folder = collection(
        tmp_path, "mem0", [point(models), evil, b"", b"garbage", None, 7, large, point(models, id="m2")]
    )
    told = import_mem0(memory, folder, history=False)
    assert (told["found"], told["added"], sum(told["skipped"].values())) == (8, 2, 6)
    assert all(reason.startswith("unreadable: ") for reason in told["skipped"])


def test_collections(memory: Memory, models: Any, tmp_path: Path) -> None:
    collection(tmp_path, "mem0", [point(models)])
    collection(tmp_path, "notes", [point(models, {"data": "I row", "user_id": "ann"}, id="n1", vector=[0.5] * 1536)])
    collection(
        tmp_path,
        "mem0_entities",
        [point(models, {"data": "tea", "user_id": "ann", "linked_memory_ids": ["m1"]}, id="e")],
    )
    collection(tmp_path, "mem0migrations", [point(models, {"data": "tea", "user_id": "t"}, id="t")])
    assert import_mem0(memory, tmp_path, collection="notes", history=False)["added"] == 1
    assert texts(memory.get_all(**ANN)) == ["I row"]
    told = import_mem0(memory, tmp_path, history=False)
    assert (told["found"], told["added"], told["known"]) == (2, 1, 1)
    assert texts(memory.get_all(**ANN)) == ["I row", "I like tea"]


def test_the_latest_copy_of_a_point_counts(memory: Memory, models: Any, tmp_path: Path) -> None:
    older, newer = point(models), point(models, {"data": "I like coffee", "user_id": "ann"})
    assert import_mem0(memory, collection(tmp_path, "mem0", [older, newer]), history=False)["added"] == 1
    assert texts(memory.get_all(**ANN)) == ["I like coffee"]


def test_ten_thousand_points(open_memory: Opener, models: Any, tmp_path: Path) -> None:
    points = [
        point(models, {"data": f"note {n} of {n % 7}", "user_id": f"u{n % 7}", "created_at": "2024-01-02T03:04:05+00:00"}, id=f"m{n}")
        for n in range(10_000)
    ]  # fmt: skip
    folder = collection(tmp_path, "mem0", points)
    memory = open_memory(durability="process")
    heard: list[tuple[int, int]] = []
    told = import_mem0(memory, folder, history=False, progress=lambda *step: heard.append(step))
    assert (told["added"], heard[-1], len(told["owners"])) == (10_000, (10_000, 10_000), 7)
    assert len(memory.get_all(user_id="u3")["results"]) == 1_429
    assert texts(memory.search("note 4321 of 2", user_id="u2", limit=1)) == ["note 4321 of 2"]
    assert import_mem0(memory, folder)["added"] == 0


def test_a_bound_handle_imports_into_its_scope_alone(memory: Memory, store: Callable[[str], Path]) -> None:
    with pytest.raises(ScopeError):
        import_mem0(memory.bound(**ANN), store("2.x"))  # type: ignore[arg-type]
    assert state(memory) == []


# -- the command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command on a store of the test's folder."""

    def made(path: str | None, **options: Any) -> Memory:
        return Memory(path, **{**options, "embedder": HashEmbedder(), "generator": ScriptedGenerator()})

    monkeypatch.setattr("localmem.cli.options.make_memory", made)
    monkeypatch.setenv("LOCALMEM_DB", str(tmp_path / "store.db"))
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "home"))

    def command(*args: str) -> Any:
        return CliRunner().invoke(cli, [str(each) for each in args])

    return command


def test_the_command(run: Callable[..., Any], store: Callable[[str], Path], tmp_path: Path) -> None:
    folder = store("2.x")
    dry = run("import", "mem0", folder, "--dry-run")
    assert (dry.exit_code, dry.stdout.splitlines()[0]) == (
        0,
        "mem0-2.x: 5 of 5 memories would be added, with 2 former texts",
    )
    assert "nothing was written" in dry.stderr
    assert not (tmp_path / "store.db").exists()
    done = run("import", "mem0", folder, "--quiet")
    assert done.stdout.splitlines() == [
        "mem0-2.x: 5 of 5 memories added, with 2 former texts",
        "  1  agent 'desk'",
        "  1  agent 'desk' run 'r1' user 'ann'",
        "  2  user 'ann'",
        "  1  user 'oleg'",
    ]
    assert "history" not in done.stderr
    again = run("import", "mem0", folder)
    assert again.stdout.strip() == "mem0-2.x: 0 of 5 memories added, 5 there already"
    as_json = json.loads(run("import", "mem0", folder, "--json", "--dry-run").stdout)
    assert (as_json["known"], as_json["dry_run"]) == (5, True)
    assert "I drink green tea" in run("search", "tea", "-u", "ann").stdout


def test_the_command_wants_to_know_of_a_history_that_is_not_there(
    run: Callable[..., Any], store: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = store("2.x")
    history = (folder / "history.db").rename(tmp_path / "elsewhere.db")
    told = run("import", "mem0", folder, "--dry-run")
    assert (told.exit_code, "--history FILE" in told.stderr, "--no-history" in told.stderr) == (0, True, True)
    refused = run("import", "mem0", folder)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "nothing was written: no history.db in mem0-2.x or beside it" in refused.stderr
    assert "--history FILE" in refused.stderr
    assert "--no-history" in refused.stderr
    assert json.loads(run("list", "-u", "ann", "--json").stdout)["results"] == []
    assert run("import", "mem0", folder, "--history", history, "--no-history").exit_code == 2
    named = run("import", "mem0", folder, "--history", history)
    assert "with 2 former texts" in named.stdout
    assert "--history" not in named.stderr
    assert json.loads(run("import", "mem0", folder, "--history", history, "--json").stdout)["history"] == str(history)


def test_the_command_leaves_a_history_behind_that_is_waived(
    run: Callable[..., Any], store: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = store("1.x")
    (folder / "history.db").unlink()
    assert "--history" not in run("import", "mem0", folder, "--dry-run", "--no-history").stderr
    told = run("import", "mem0", folder, "--no-history")
    assert told.stdout.splitlines()[0] == "mem0-1.x: 5 of 5 memories added"


def test_lists_and_exports_are_not_asked_for_a_history(run: Callable[..., Any], tmp_path: Path) -> None:
    told = run("import", "mem0", listed(tmp_path, [ENTRY]))
    assert (told.exit_code, "history" in told.stderr) == (0, False)


def test_the_command_says_how_to_look_at_them(
    run: Callable[..., Any], store: Callable[[str], Path], tmp_path: Path
) -> None:
    entries = [{**ENTRY, "user_id": "ann o'hara", "agent_id": "desk"}]
    dry = run("import", "mem0", listed(tmp_path, entries), "--dry-run")
    assert "look at them" not in dry.stderr
    told = run("import", "mem0", listed(tmp_path, entries))
    command = told.stderr.partition("look at them with: localmem ")[2]
    assert shlex.split(command) == [
        "list", "--user", "ann o'hara", "--agent", "desk", "--file", str(tmp_path / "store.db"),
    ]  # fmt: skip
    assert "I like tea" in run(*shlex.split(command)).stdout
    again = run("import", "mem0", listed(tmp_path, entries))
    assert "look at them" not in again.stderr
    assert "look at them" not in run("import", "mem0", store("2.x"), "--quiet").stderr


def test_the_command_names_who_gets_what_has_nobody(run: Callable[..., Any], tmp_path: Path) -> None:
    path = listed(tmp_path, [{**ENTRY, "user_id": None}, {**ENTRY, "id": "m2", "memory": ""}])
    told = run("import", "mem0", path)
    assert told.exit_code == 0
    assert "1 skipped, without user_id, agent_id or run_id: name whose they are (--user ID" in told.stdout
    assert "1 skipped, without text" in told.stdout
    assert run("import", "mem0", path, "--user", "ann").stdout.splitlines()[:2] == [
        "all.json: 1 of 2 memories added",
        "  1  user 'ann'",
    ]


def test_the_command_misused(run: Callable[..., Any], tmp_path: Path) -> None:
    missing = run("import", "mem0", tmp_path / "missing")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "give mem0's Qdrant folder" in missing.stderr
    assert run("import", "mem0").exit_code == 2
    assert "mem0" in run("import").stdout
    failed = run("import", "mem0", tmp_path / "missing", "--json")
    assert json.loads(failed.stderr)["error"]["type"] == "InvalidInputError"


def test_errors_are_ours(memory: Memory, tmp_path: Path) -> None:
    locked = collection(tmp_path, "mem0", [])
    assert import_mem0(memory, locked)["found"] == 0
    with pytest.raises(LocalmemError):
        import_mem0(memory, tmp_path / "collection" / "nowhere")
