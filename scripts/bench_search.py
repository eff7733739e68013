"""How fast search is as memories grow, beside what one would otherwise pick: same texts, vectors, owners and machine.

    python scripts/bench_search.py [--sizes 1000 10000 100000] [--owners 1] [--peers] [--queries 200] [--out FILE]
    python scripts/bench_search.py --sizes 1000000 --owners 10000

Invented memories, spread evenly over the owners; vectors of 384 numbers around 300 topics, made from the text without
a model, so that what is timed is the search alone. A query is for one owner's 10 best. localmem searches by meaning,
words and names; the others by meaning alone, as they do out of the box. --peers needs the extra "bench"; what is not
installed is left out.

Recall: of the 100 rows with the highest cosine, those that localmem's vector pool finds. A few queries are asked before
any is timed; each system runs in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from bench import machine, questions, sentences

DIM, TOPICS, LIMIT, POOL = 384, 300, 10, 100
BATCH = 500
Search = Callable[[str, str], Any]


def vector(text: str) -> np.ndarray:
    """The unit vector of a text, float32 (DIM,): the same in every process."""
    draw = np.random.default_rng(zlib.crc32(text.encode()))
    found = topics()[draw.integers(TOPICS)] + 0.8 * draw.standard_normal(DIM, dtype=np.float32)
    return np.asarray(found / np.linalg.norm(found), np.float32)


@cache
def topics() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((TOPICS, DIM)).astype(np.float32) + np.float32(0.3)


class Given:
    """`vector` as an embedder."""

    id, dim, sha256 = "given", DIM, "0" * 64

    def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([vector(text) for text in texts])

    def embed_query(self, text: str) -> np.ndarray:
        return vector(text)


# ---------------------------------------------------------------- the systems: fill a folder, then yield a search


@contextlib.contextmanager
def with_localmem(folder: Path, memories: Mapping[str, Sequence[str]]) -> Iterator[Search]:
    from localmem import Memory

    with Memory(folder / "memory.db", embedder=Given(), generator="none", durability="process") as memory:
        for owner, texts in memories.items():
            for start in range(0, len(texts), BATCH):
                memory.add(list(texts[start : start + BATCH]), user_id=owner, infer=False)
        yield lambda query, owner: memory.search(query, user_id=owner, limit=LIMIT)


@contextlib.contextmanager
def with_chroma(folder: Path, memories: Mapping[str, Sequence[str]]) -> Iterator[Search]:
    import chromadb

    client = chromadb.PersistentClient(str(folder), settings=chromadb.Settings(anonymized_telemetry=False))
    table = client.create_collection("memories", metadata={"hnsw:space": "cosine"})
    for owner, texts in memories.items():
        for start in range(0, len(texts), BATCH):
            some = list(texts[start : start + BATCH])
            table.add(
                ids=[f"{owner}-{start + i}" for i in range(len(some))],
                embeddings=[vector(text).tolist() for text in some],
                documents=some,
                metadatas=[{"user": owner}] * len(some),
            )
    yield lambda query, owner: table.query(
        query_embeddings=[vector(query).tolist()], n_results=LIMIT, where={"user": owner}
    )


@contextlib.contextmanager
def with_lancedb(folder: Path, memories: Mapping[str, Sequence[str]]) -> Iterator[Search]:
    import lancedb

    def rows() -> Iterator[list[dict[str, Any]]]:
        waiting = []
        for owner, texts in memories.items():
            for text in texts:
                waiting.append({"vector": vector(text), "text": text, "user": owner})
                if len(waiting) >= 20 * BATCH:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting

    parts = rows()
    table = lancedb.connect(str(folder)).create_table("memories", data=next(parts))
    for part in parts:
        table.add(part)

    def search(query: str, owner: str) -> Any:
        found = table.search(vector(query)).distance_type("cosine").where(f"user = '{owner}'", prefilter=True)
        return found.limit(LIMIT).to_list()

    yield search


@contextlib.contextmanager
def with_langgraph(folder: Path, memories: Mapping[str, Sequence[str]]) -> Iterator[Search]:
    with contextlib.suppress(ImportError):  # where this Python's own sqlite3 can't load extensions
        sys.modules["sqlite3"] = __import__("pysqlite3")
    import sqlite3

    from langgraph.store.base import PutOp
    from langgraph.store.sqlite import SqliteStore

    def embed(texts: Sequence[str]) -> list[list[float]]:
        return [vector(text).tolist() for text in texts]

    connection = sqlite3.connect(str(folder / "store.db"), check_same_thread=False, isolation_level=None)
    store = SqliteStore(connection, index={"dims": DIM, "embed": embed, "fields": ["text"]})
    store.setup()
    for owner, texts in memories.items():
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            store.batch([PutOp(("memories", owner), str(start + i), {"text": text}) for i, text in enumerate(some)])
    yield lambda query, owner: store.search(("memories", owner), query=query, limit=LIMIT)
    connection.close()


@contextlib.contextmanager
def with_mem0(folder: Path, memories: Mapping[str, Sequence[str]]) -> Iterator[Search]:
    os.environ |= {"MEM0_TELEMETRY": "False", "OPENAI_API_KEY": "none", "MEM0_DIR": str(folder / "mem0")}
    from mem0 import Memory

    class Embedding:
        config = None

        def embed(self, text: str, memory_action: str | None = None) -> list[float]:
            found: list[float] = vector(text).tolist()
            return found

        def embed_batch(self, texts: Sequence[str], memory_action: str | None = None) -> list[list[float]]:
            return [self.embed(text) for text in texts]

    qdrant = {
        "path": str(folder / "qdrant"),
        "collection_name": "memories",
        "embedding_model_dims": DIM,
        "on_disk": True,
    }
    memory = Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": {**qdrant, "on_disk": True}},
            "history_db_path": str(folder / "history.db"),
            "llm": {"provider": "openai", "config": {}},
            "embedder": {"provider": "openai", "config": {}},
        }
    )
    memory.embedding_model = Embedding()
    for owner, texts in memories.items():
        for text in texts:
            memory.add(text, user_id=owner, infer=False)
    yield lambda query, owner: memory.search(query, filters={"user_id": owner}, top_k=LIMIT)


SYSTEMS = {
    "localmem": (with_localmem, "localmem"),
    "langgraph": (with_langgraph, "langgraph-checkpoint-sqlite"),
    "chromadb": (with_chroma, "chromadb"),
    "lancedb": (with_lancedb, "lancedb"),
    "mem0": (with_mem0, "mem0ai"),
}


# ---------------------------------------------------------------- measuring


def measured(size: int, owners: int, queries: int, systems: Sequence[str], scratch: Path) -> Iterator[dict[str, Any]]:
    """One row for each system at this size, each in a process of its own: two SQLite libraries in one crash."""
    for name in systems:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
            yield apart.submit(one, name, size, owners, queries, scratch / f"{name}-{size}").result()


def one(name: str, size: int, owners: int, queries: int, folder: Path) -> dict[str, Any]:
    """Fill one system and ask it."""
    texts = list(sentences(random.Random(size), size))
    memories = {f"user{number}": texts[number::owners] for number in range(owners)}
    asked = [(query, f"user{number % owners}") for number, query in enumerate(questions(queries))]
    folder.mkdir()
    began = time.perf_counter()
    took = []
    with SYSTEMS[name][0](folder, memories) as search:
        filled = time.perf_counter() - began
        for query, owner in asked[:5]:
            search(query, owner)
        for query, owner in asked:
            began = time.perf_counter()
            search(query, owner)
            took.append((time.perf_counter() - began) * 1e3)
    size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    row = {"system": name, "memories": size, "owners": owners, "fill_s": filled, "bytes": size_bytes}
    row |= {"p50_ms": statistics.median(took), "p95_ms": sorted(took)[int(len(took) * 0.95)], "queries": len(took)}
    if name != "localmem":
        return row
    path = folder / "memory.db"
    return {**row, "recall": recall(path, memories, asked[:50]), "turn_bytes": turn_bytes(path)}


def turn_bytes(path: Path) -> int:
    """What the words as they were said take beside the memories: episodes, messages, evidence and their indexes."""
    from localmem import Memory

    like = ("episode%", "message%", "evidence%", "turn\\_%", "sqlite\\_autoindex\\_e%", "sqlite\\_autoindex\\_message%")
    where = " or ".join(f"name like '{one}' escape '\\'" for one in like)
    with Memory(path, embedder=Given(), generator="none") as memory, memory._engine.store.snapshot() as tx:
        [(found,)] = tx.execute(f"select sum(pgsize) from dbstat where {where}")
    return int(found)


def recall(path: Path, memories: Mapping[str, Sequence[str]], asked: Sequence[tuple[str, str]]) -> float:
    """Mean share of an owner's POOL nearest memories that the vector pool holds."""
    from localmem import Memory, store_pools
    from localmem.types import Scope

    shares = []
    with Memory(path, embedder=Given(), generator="none") as memory:
        store = memory._engine.store
        for query, owner in asked:
            cosines = np.stack([vector(text) for text in memories[owner]]) @ vector(query)
            nearest = {memories[owner][i] for i in np.argsort(-cosines)[:POOL]}
            with store.snapshot() as tx:
                within = store_pools.reach(tx, Scope(owner), time.time_ns() // 1000)
                assert within is not None
                found = store_pools.vector_pool(tx, within, vector(query), POOL, store.matrices)
                wanted = json.dumps(list(found))
                rows = tx.execute("select text from version where id in (select value from json_each(?))", (wanted,))
                shares.append(len(nearest & {text for (text,) in rows}) / len(nearest))
    return statistics.mean(shares)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    ours = next((row["p50_ms"] for row in rows if row["system"] == "localmem"), None)
    for row in rows:
        ratio = f"{row['p50_ms'] / ours:6.1f} x" if ours else ""
        note = ""
        if "recall" in row:
            turns = row["turn_bytes"] / row["memories"] / 1e3
            note = f", {turns:.2f} of them for the turns  recall {row['recall']:.4f}"
        print(
            f"{row['memories']:>9,} of {row['owners']:>6,}  {row['system']:<10} p50 {row['p50_ms']:8.2f} ms  "
            f"p95 {row['p95_ms']:8.2f} ms {ratio}  filled in {row['fill_s']:7.1f} s  "
            f"{row['bytes'] / row['memories'] / 1e3:6.2f} KB each{note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--owners", type=int, default=1)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--peers", action="store_true", help="the other systems too, those that are installed")
    parser.add_argument("--out", type=Path, help="keep the numbers as JSON")
    given = parser.parse_args()
    packages = {name: package for name, (_, package) in SYSTEMS.items() if name == "localmem" or given.peers}
    there = [name for name, package in packages.items() if name == "localmem" or _version(package)]
    facts = {**machine(), "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    facts["systems"] = {name: _version(packages[name]) for name in there}
    print(json.dumps(facts["systems"]), facts.get("cpu"), facts["date"])
    if missing := sorted(set(packages) - set(there)):
        print(f"not installed: {', '.join(missing)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-search-") as scratch:
        for size in given.sizes:
            found = list(measured(size, given.owners, given.queries, there, Path(scratch)))
            print_rows(found)
            rows += found
    if given.out:
        given.out.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
