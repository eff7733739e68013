"""What keeping a file costs: encryption, the audit chain, a purge with its proof. One run, one machine.

    python scripts/bench_file.py [--memories 100000] [--owners 20] [--queries 200] [--out FILE]

Opening: with and without a key, the first connection of a process and each further one (median of 9 processes).
Search: the same store plain and encrypted, in turn, warm, and right after another process has written. Purge: one
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
        "search_ms": searching(plain, hidden, given),
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


def searching(plain: Path, hidden: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds (median), the two stores in turn: of one owner, all of whose pages stay in the cache; of all owners,
    whose pages do not; and of one owner right after another process wrote."""
    asked = questions(given.queries)
    with opened(plain) as one, opened(hidden, key=KEY) as other:
        memories = {"plain": one, "encrypted": other}

        def ask(name: str, n: int, owner: int) -> float:
            began = time.perf_counter()
            memories[name].search(asked[n % len(asked)], user_id=f"owner{owner}", limit=LIMIT)
            return (time.perf_counter() - began) * 1000

        def compared(owners: int, before: Callable[[str], None] = lambda name: None) -> dict[str, float]:
            times: dict[str, list[float]] = {name: [] for name in memories}
            for n in range(given.queries + 2 * owners):
                for name in memories:
                    before(name)
                    took = ask(name, n, n % owners)
                    if n >= 2 * owners:  # those before warm the caches
                        times[name].append(took)
            return {name: round(statistics.median(each), 2) for name, each in times.items()}

        found = {"one owner": compared(1), f"all {given.owners} in turn": compared(given.owners)}
        with writing(plain) as write_plain, writing(hidden, key=KEY) as write_hidden:
            writers = {"plain": write_plain, "encrypted": write_hidden}
            found["one owner, after another process wrote"] = compared(1, lambda name: writers[name]())
    return found


@contextmanager
def writing(path: Path, **options: Any) -> Iterator[Callable[[], None]]:
    """A call that has another process write a memory."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); from bench_file import opened\n"
        "with opened(sys.argv[2], **json.loads(sys.argv[3])) as memory:\n"
        "    for line in sys.stdin:\n"
        "        memory.add(line.strip(), user_id='owner1', agent_id='bench', infer=False); print('done', flush=True)\n"
    )
    arguments = [str(Path(__file__).parent), str(path), json.dumps(options)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told, answers = process.stdin, process.stdout

    def write() -> None:
        told.write(f"written meanwhile {time.perf_counter_ns()}\n")
        told.flush()
        answers.readline()

    yield write
    told.close()
    process.wait()


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
