"""What keeping a file costs: encryption, the audit chain, a purge with its proof. One run, one machine.

    python scripts/bench_file.py [--memories 100000] [--owners 20] [--queries 200] [--out FILE]

Opening: with and without a key, the first connection of a process and each further one (median of 9 processes).
Search: the same store plain and encrypted, warm, and the first search after another process has written. Purge: one
owner of many, then everything: of all memories; with the parts it is made of. Invented memories and vectors, as in
bench_search.py, so that no model is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench import machine, questions, sentences
from bench_search import BATCH, LIMIT, Given

KEY = "raw:" + "5e" * 32
OPENING = """
import json, sys, time
from localmem.memory import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator
options = {"embedder": HashEmbedder(), "generator": ScriptedGenerator(), **json.loads(sys.argv[2])}
import localmem.search, localmem.embed
began = time.perf_counter()
memory = Memory(sys.argv[1], **options)
first = time.perf_counter() - began
database = memory._engine.store.db
began = time.perf_counter()
for _ in range(20):
    database._connect(65536).close()
print(json.dumps([first * 1000, (time.perf_counter() - began) / 20 * 1000]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--owners", type=int, default=20)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="localmem-bench-") as folder:
        found = {
            "machine": machine(),
            "memories": given.memories,
            "owners": given.owners,
            "opening_ms": opening(Path(folder)),
            **stores(Path(folder), given),
        }
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def opening(folder: Path) -> dict[str, Any]:
    """Milliseconds of the first connection and of a further one, by kind of key."""
    found = {}
    for name, options in (("plain", {}), ("raw key", {"key": KEY}), ("passphrase", {"key": "correct horse battery"})):
        store = folder / f"{name}.db"
        times = [_child(OPENING, str(store), json.dumps(options)) for _ in range(10)][1:]  # the first makes the file
        found[name] = [round(statistics.median(each), 2) for each in zip(*times, strict=True)]
    return found


def _child(code: str, *arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def stores(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    from localmem import encrypt

    plain, hidden = folder / "store.db", folder / "encrypted.db"
    with timed() as filling:
        fill(plain, given.memories, given.owners)
    shutil.copy(plain, hidden)
    with timed() as encrypting:
        encrypt(hidden, KEY)
    found: dict[str, Any] = {
        "filling_s": filling(),
        "megabytes": round(plain.stat().st_size / 1e6, 1),
        "encrypting_s": encrypting(),
        "search_ms": {"plain": searching(plain, given), "encrypted": searching(hidden, given, key=KEY)},
        "verify_s": {},
        "purge_s": {},
    }
    for name, path, options in (("plain", plain, {}), ("encrypted", hidden, {"key": KEY})):
        with opened(path, **options) as memory:
            with timed() as verifying:
                assert memory.verify_audit()["ok"]
            found["verify_s"][name] = verifying()
            with timed() as one:
                assert memory.purge(user_id="owner0")["complete"]
            rest = memory.bound(agent_id="bench", purge=True)
            with timed() as all_of_them:
                done = rest.purge()
            assert done["complete"], done
            found["purge_s"][name] = {f"one owner of {given.owners}": one(), "all the others": all_of_them()}
            found["purge_s"][name]["rows"] = done["purged"]["memory"]
    return found


def fill(path: Path, memories: int, owners: int) -> None:
    texts = list(sentences(random.Random(5), memories))
    with opened(path) as memory:
        for start in range(0, memories, BATCH):
            owner = f"owner{start // BATCH % owners}"
            memory.add(texts[start : start + BATCH], user_id=owner, agent_id="bench", infer=False)


def searching(path: Path, given: argparse.Namespace, **options: Any) -> dict[str, float]:
    """Milliseconds (median): warm, and right after another process wrote."""
    asked = questions(given.queries)
    write = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from bench_file import opened\n"
        "with opened(sys.argv[2], **json.loads(sys.argv[3])) as memory:\n"
        "    for line in sys.stdin:\n"
        "        memory.add(line.strip(), user_id='owner1', agent_id='bench', infer=False); print('done', flush=True)\n"
    )
    arguments = [str(Path(__file__).parent), str(path), json.dumps(options)]
    other = subprocess.Popen(
        [sys.executable, "-c", write, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    with opened(path, **options) as memory:

        def ask(n: int) -> float:
            began = time.perf_counter()
            memory.search(asked[n % len(asked)], user_id=f"owner{n % given.owners}", limit=LIMIT)
            return (time.perf_counter() - began) * 1000

        for n in range(2 * given.owners):
            ask(n)
        warm = [ask(n) for n in range(given.queries)]
        after = []
        for n in range(40):
            other.stdin.write(f"written meanwhile {n}\n")
            other.stdin.flush()
            other.stdout.readline()
            after.append(ask(n))
        other.stdin.close()
        other.wait()
    return {"warm": round(statistics.median(warm), 2), "after another wrote": round(statistics.median(after), 2)}


@contextmanager
def opened(path: Any, **options: Any) -> Iterator[Any]:
    from localmem import Memory

    with Memory(path, embedder=Given(), generator="none", durability="process", **options) as memory:
        yield memory


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    began, took = time.perf_counter(), list[float]()
    yield lambda: round(took[0], 2)
    took.append(time.perf_counter() - began)


if __name__ == "__main__":
    os.environ.pop("LOCALMEM_KEY", None)
    main()
