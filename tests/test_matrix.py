"""Large owners are searched in memory: as right as the file, right after every write, within a budget."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Opener
from doubles import texts

from localmem import Memory, store_matrix, store_pools
from localmem.embed import integer_products
from localmem.store_matrix import Matrix
from localmem.testing import HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}


def clustered(rows: int, dim: int = 384) -> Any:
    """Unit vectors as texts have them: around some hundred topics, all leaning one way."""
    random = np.random.default_rng(3)
    topics = random.standard_normal((300, dim)) + 0.3
    return unit(topics[random.integers(300, size=rows)] + 0.8 * random.standard_normal((rows, dim)))


def unit(vectors: Any) -> Any:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# -- the matrix alone


@pytest.mark.parametrize("dim", [384, 1024, 96])
def test_recall_against_exact(dim: int) -> None:
    vectors = clustered(20_000, dim)
    queries = unit(vectors[:40] + 0.7 * unit(np.random.default_rng(5).standard_normal((40, dim))))
    matrix = Matrix(dim)
    matrix.add(np.arange(20_000) * 3, vectors)
    found = 0
    for query in queries:
        exact = set((np.argsort(-(vectors @ query))[:100] * 3).tolist())
        near = matrix.nearest(query, 135)  # of which the file's own cosines choose
        assert len(near) == 135
        found += len(exact & set(near))
    assert found / 4_000 >= 0.999


def test_rows_added_later_are_found() -> None:
    vectors = clustered(900)
    matrix = Matrix(384)
    for start in range(0, 900, 90):
        matrix.add(np.arange(start, start + 90), vectors[start : start + 90])
    assert matrix.rows == 900
    assert [matrix.nearest(vectors[row], 1) for row in (0, 89, 90, 450, 899)] == [[0], [89], [90], [450], [899]]
    assert len(matrix.nearest(vectors[0], 5_000)) == 900


@pytest.mark.parametrize("dim", [1, 7, 64, 384])
def test_products_are_exact(dim: int) -> None:
    """Also where processors without VNNI would saturate: all levels at their ends."""
    random = np.random.default_rng(1)
    rows = random.integers(0, 256, (300, dim)).astype(np.uint8)
    rows[:100], rows[100:150] = 255, 0
    for query in (np.full(dim, 64), np.full(dim, -64), random.integers(-64, 65, dim), np.zeros(dim)):
        levels = query.astype(np.int8)
        assert (integer_products()(rows, levels) == (rows.astype(int) - 128) @ levels.astype(int)).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_products_in_a_forked_child() -> None:
    rows, query = np.full((5_000, 384), 129, np.uint8), np.ones(384, np.int8)
    assert integer_products()(rows, query).tolist() == [384] * 5_000
    child = os.fork()
    if child == 0:
        os._exit(0 if integer_products()(rows, query).tolist() == [384] * 5_000 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- in a store


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_matrix, "ROWS_MIN", 40)


@pytest.fixture
def fleet(open_memory: Opener) -> Memory:
    """60 boats of Ann's, 50 of Bob's."""
    memory = open_memory(durability="process")
    memory.add([f"boat {n} lies at pier {n % 7} beside {n + 1}" for n in range(60)], infer=False, **ANN)
    memory.add([f"boat {n} lies at pier {n % 7} beside {n + 1}" for n in range(50)], infer=False, user_id="bob")
    return memory


def held(memory: Memory) -> dict[int, int]:
    """Owner -> rows in memory."""
    return {owner: each.matrix.rows for owner, each in memory._engine.store.matrices._held.items()}


def near(memory: Memory, query: str, user: str = "ann") -> tuple[list[str], list[str]]:
    """(the texts nearest to a query from memory, the same from the file)."""
    engine = memory._engine
    vector = engine.embedder.embed_query(query)
    with engine.store.snapshot() as tx:
        within = store_pools.reach(tx, memory._scope(None, user_id=user), engine.clock())
        assert within is not None
        said = dict(tx.execute("select id, text from version").fetchall())
        pools = [store_pools.vector_pool(tx, within, vector, 12, some) for some in (engine.store.matrices, None)]
        inside, file = ([(round(cosine, 4), said[row]) for row, cosine in pool.items()] for pool in pools)
    assert [cosine for cosine, _ in inside] == [cosine for cosine, _ in file]
    return [text for _, text in inside], [text for _, text in file]


def test_the_same_memories_as_from_the_file(fleet: Memory) -> None:
    for query in ("boat 17 at pier 3", "pier 5", "beside 31"):
        inside, file = near(fleet, query)
        assert set(inside[:5]) == set(file[:5])
    assert list(held(fleet).values()) == [60]
    assert texts(fleet.search("boat 17 lies at pier 3 beside 18", limit=1, **ANN)) == [
        "boat 17 lies at pier 3 beside 18"
    ]


def test_small_owners_stay_in_the_file(fleet: Memory) -> None:
    fleet.add("one kite", infer=False, user_id="cleo")
    assert texts(fleet.search("kite", user_id="cleo")) == ["one kite"]
    assert held(fleet) == {}


def test_right_after_every_change(fleet: Memory, clock: Any) -> None:
    fleet.search("boat", **ANN)
    added = fleet.add("a kayak in the shed", infer=False, expires_at="2025-03-02", **ANN)["results"][0]["id"]
    assert texts(fleet.search("kayak shed", limit=1, **ANN)) == ["a kayak in the shed"]
    fleet.update(added, "a canoe in the attic")
    assert near(fleet, "canoe attic")[0][0] == "a canoe in the attic"
    assert "a kayak in the shed" not in near(fleet, "kayak shed")[0]
    clock.advance(3 * 86_400)
    assert "a canoe in the attic" not in near(fleet, "canoe attic")[0]  # expired
    first = fleet.search("boat 3 lies at pier 3 beside 4", limit=1, **ANN)["results"][0]
    fleet.delete(first["id"])
    assert first["memory"] not in near(fleet, first["memory"])[0]
    assert list(held(fleet).values()) == [62]


def test_right_after_another_process_wrote(fleet: Memory) -> None:
    fleet.search("boat", **ANN)
    with Memory(fleet.path, embedder=HashEmbedder(), generator=ScriptedGenerator()) as other:
        other.add("a submarine under the ice", infer=False, **ANN)
        other.add("a zeppelin", infer=False, user_id="bob")
    assert near(fleet, "submarine under the ice")[0][0] == "a submarine under the ice"
    assert near(fleet, "a zeppelin", "bob")[0][0] == "a zeppelin"


def test_right_after_a_reset_by_another_process(fleet: Memory) -> None:
    fleet.search("boat", **ANN)
    with Memory(fleet.path, embedder=HashEmbedder(), generator=ScriptedGenerator()) as other:
        other.reset()
        other.add([f"plane {n} at gate {n % 5}" for n in range(59)], infer=False, **ANN)
        other.add("plane 59 at gate 4", infer=False, **ANN)  # as many revisions as before
    assert near(fleet, "plane 17 at gate 2")[0][0] == "plane 17 at gate 2"
    assert list(held(fleet).values()) == [60]


def test_most_of_it_deleted(fleet: Memory) -> None:
    fleet.search("boat", **ANN)
    for each in fleet.get_all(**ANN)["results"][:15]:
        fleet.delete(each["id"])
    inside, file = near(fleet, "boat 2 lies at pier 2 beside 3")
    assert len(inside) == len(file) == 12


def test_the_owner_not_asked_for_longest_goes_first(fleet: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.search("boat", **ANN)
    monkeypatch.setattr(store_matrix, "BYTES_MAX", 1)
    fleet.search("boat", user_id="bob")
    assert list(held(fleet).values()) == [50]
    fleet.search("boat", **ANN)
    assert list(held(fleet).values()) == [60]


def test_many_threads_while_one_writes(fleet: Memory, tmp_path: Path) -> None:
    wrong: list[Any] = []

    def look() -> None:
        for _ in range(15):
            found = texts(fleet.search("boat 17 lies at pier 3 beside 18", limit=1, **ANN))
            wrong.extend(found if found != ["boat 17 lies at pier 3 beside 18"] else [])

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(60):
        fleet.add(f"crate {number} of the harbour office", infer=False, **ANN)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert near(fleet, "crate 59 of the harbour office")[0][0] == "crate 59 of the harbour office"
