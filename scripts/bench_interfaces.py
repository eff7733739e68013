"""How fast the ways in are: MCP over stdio, add(wait=False), and search while exchanges wait to be read.

    python scripts/bench_interfaces.py [--quick] [--memories 10000] [--waiting 1000] [--only WORD …] [--json FILE]

mcp      a server in a process of its own: from its start to its first answers, then one search and one add_memory after
         another, each from the request's first byte to the answer's last; the client is a few lines of JSON.
adds     add(wait=False), durable against a power cut, of short exchanges and of long ones.
queue    search of one owner's memories while nothing waits, and while exchanges of the same owner or of another one do:
         with the worker paused, with one at work in another process, and in this one; the stores are asked in turn.
handover a worker that reads is killed with SIGKILL; seconds until the one that stands by holds the lease, and has read.

The default embedder does its work in all of it. No model reads anything but where a worker is at work: then it is the
installed one. A target is an upper bound; numbers hold for the machine and the load they were taken on.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench import ROOT, Line, machine, questions, sentences, show

OWNER, OTHER = "ann", "bob"
BATCH = 500
LIMIT = 10
COMMAND = [sys.executable, "-m", "localmem"]
READING = {"generator": None, "worker": True}  # a Memory that reads with the installed model
STARTS, WARM_UP = 7, 5
LONG_WORDS = 600  # of a long exchange, about 4,000 characters
SHARE_MAX = 20.0  # percent that a search may take longer while exchanges wait


class Bench:
    """The scratch folder, how much of everything, and what was measured so far."""

    def __init__(self, folder: Path, memories: int, waiting: int, queries: int) -> None:
        self.folder, self.memories, self.waiting = folder, memories, waiting
        self.asked = questions(queries)
        self.lines: list[Line] = []
        self.texts = sentences(random.Random(5), memories + 10 * waiting + 200 * queries)
        self.base = folder / "base.db"
        with opened(self.base, durability="process") as memory:
            for start in range(0, memories, BATCH):
                some = [next(self.texts) for _ in range(min(BATCH, memories - start))]
                memory.add(some, user_id=OWNER, infer=False)

    def keep(self, name: str, value: float, unit: str, target: float | None = None, note: str = "") -> None:
        line = Line(name, round(value, 3), unit, target, note)
        self.lines.append(line)
        show(line)

    def keep_both(self, name: str, took: Sequence[float], target: float | None = None, note: str = "") -> None:
        """Milliseconds, p50 and p95."""
        self.keep(f"{name}, p50", statistics.median(took), "ms", target, note)
        self.keep(f"{name}, p95", p95(took), "ms")

    def copy(self, name: str, *, waits_for: str | None = None) -> Path:
        """The store again, with exchanges of an owner that wait."""
        path = self.folder / f"{name}.db"
        shutil.copy(self.base, path)
        if waits_for is not None:
            with opened(path, durability="process") as memory:
                memory.add_many([self.exchange() for _ in range(self.waiting)], user_id=waits_for)
        return path

    def exchange(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": next(self.texts)}, {"role": "assistant", "content": next(self.texts)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=10_000)
    parser.add_argument("--waiting", type=int, default=1_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=[*PARTS], help="measure these parts only")
    parser.add_argument("--quick", action="store_true", help="20 times fewer of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers as JSON")
    given = parser.parse_args()
    shrink = 20 if given.quick else 1
    sizes = {
        "memories": given.memories // shrink,
        "waiting": given.waiting // shrink,
        "queries": given.queries // shrink,
    }
    facts = machine()
    print("  ".join(f"{name}: {value}" for name, value in facts.items() if name != "versions"))
    with tempfile.TemporaryDirectory(prefix="bench-interfaces-") as folder:
        bench = Bench(Path(folder), **sizes)
        for name, part in PARTS.items():
            if not given.only or name in given.only:
                part(bench)
    if given.json:
        kept = {"machine": facts, **sizes, "lines": [asdict(line) for line in bench.lines]}
        given.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- MCP


class Client:
    """The other end of a server's stdin and stdout."""

    def __init__(self, store: Path) -> None:
        words = ["mcp", "--file", str(store), "--user", OWNER, "--quiet"]
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment("none")
        )
        self.count = 0

    def ask(self, method: str, **params: Any) -> Any:
        """The result of one request. RuntimeError for an error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.count += 1
        request = {"jsonrpc": "2.0", "id": self.count, "method": method, "params": params}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            answer = json.loads(line)
            if answer.get("id") == self.count:
                if "error" in answer or answer["result"].get("isError"):
                    raise RuntimeError(f"{method}: {answer}")
                return answer["result"]
        raise RuntimeError(f"the server ended before it answered {method}")

    def begin(self) -> None:
        info = {"name": "bench", "version": "1"}
        self.ask("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=info)
        assert self.process.stdin is not None
        self.process.stdin.write('{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')

    def call(self, tool: str, **arguments: Any) -> Any:
        return self.ask("tools/call", name=tool, arguments=arguments)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def mcp(bench: Bench) -> None:
    store = bench.copy("mcp")
    starts, firsts = [], []
    for _ in range(STARTS):
        began = time.perf_counter()
        client = Client(store)
        client.begin()
        starts.append(time.perf_counter() - began)
        found = client.call("search_memories", query=bench.asked[0])
        firsts.append(time.perf_counter() - began)
        assert found["structuredContent"]["results"], "nothing was found"
        client.end()
    note = f"median of {STARTS} processes"
    bench.keep("MCP server, start to its first answer (initialize)", statistics.median(starts), "s", 1.5, note)
    bench.keep("MCP server, start to its first search result", statistics.median(firsts), "s", 1.5, note)
    client = Client(store)
    client.begin()
    for query in bench.asked[:WARM_UP]:
        client.call("search_memories", query=query)
    took = [elapsed_ms(client.call, "search_memories", query=query) for query in bench.asked]
    bench.keep_both(f"MCP search_memories, round trip at {bench.memories:,}", took, 30, f"{len(took)} queries")
    took = [elapsed_ms(client.call, "add_memory", text=next(bench.texts)) for _ in bench.asked]
    bench.keep_both("MCP add_memory, round trip", took[WARM_UP:], 20, "durability power")
    client.end()


# ---------------------------------------------------------------- add(wait=False)


def adds(bench: Bench) -> None:
    with opened(bench.copy("adds"), durability="power", worker=True) as memory:
        for name, words in (("short", 0), ("long", LONG_WORDS)):
            exchanges = [longer(bench, words) for _ in bench.asked]
            took = [elapsed_ms(memory.add, each, user_id=OWNER, wait=False) for each in exchanges]
            chars = statistics.mean(sum(len(message["content"]) for message in each) for each in exchanges)
            note = f"about {chars:,.0f} characters in two messages; durability power"
            bench.keep_both(f"add(wait=False) of {name} exchanges", took[WARM_UP:], None, note)


def longer(bench: Bench, words_min: int) -> list[dict[str, str]]:
    exchange = bench.exchange()
    for message in exchange:
        while len(message["content"].split()) < words_min / 2:
            message["content"] += f". {next(bench.texts)}"
    return exchange


# ---------------------------------------------------------------- searching while exchanges wait


def queue(bench: Bench) -> None:
    stores = {
        "nothing waits": bench.copy("none"),
        f"{bench.waiting:,} of the same owner wait": bench.copy("same", waits_for=OWNER),
        f"{bench.waiting:,} of another owner wait": bench.copy("other", waits_for=OTHER),
    }
    compared(bench, "worker paused", in_turn(stores, bench.asked))
    nothing, *waiting = stores.items()
    for name, path in waiting:
        left = count_waiting(path)
        with reading(path):
            took = in_turn(dict([nothing, (name, path)]), bench.asked)
        note = f"{left - count_waiting(path)} were read meanwhile"
        compared(bench, "a worker of another process at work", took, note)
    for name, path in waiting:
        left = count_waiting(path)
        took = in_turn(dict([nothing, (name, path)]), bench.asked, at_work=name)
        compared(bench, "a worker of this process at work", took, f"{left - count_waiting(path)} were read meanwhile")


def count_waiting(path: Path) -> int:
    with opened(path) as memory:
        found: int = memory.stats()["queue"]["waiting"]
    return found


def in_turn(stores: Mapping[str, Path], asked: Sequence[str], at_work: str | None = None) -> dict[str, list[float]]:
    """Milliseconds of each search, by store, in one process; that of ``at_work`` is read here meanwhile."""
    took: dict[str, list[float]] = {name: [] for name in stores}
    with ExitStack() as stack:
        memories = {
            name: stack.enter_context(opened(path, **(READING if name == at_work else {})))
            for name, path in stores.items()
        }
        if at_work is not None:
            memories[at_work].start_worker()
            until(lambda: memories[at_work].stats()["worker"]["read_here"] > 0)
        for query in asked[:WARM_UP]:
            for memory in memories.values():
                memory.search(query, user_id=OWNER, limit=LIMIT)
        for query in asked:
            for name, memory in memories.items():
                took[name].append(elapsed_ms(memory.search, query, user_id=OWNER, limit=LIMIT))
    return took


def compared(bench: Bench, when: str, took: Mapping[str, Sequence[float]], note: str = "") -> None:
    """The first one, and by how much the others take longer."""
    plain, *others = took
    bench.keep_both(f"search, {plain}; {when}", took[plain])
    for name in others:
        bench.keep_both(f"search, {name}; {when}", took[name], None, note)
        more = (statistics.median(took[name]) / statistics.median(took[plain]) - 1) * 100
        bench.keep(f"search, {name}; {when}: longer by", more, "%", SHARE_MAX)


# ---------------------------------------------------------------- handing over


def handover(bench: Bench) -> None:
    """Workers look every second whether the beat of the other one moves, and wait until it has stood still for six."""
    path = bench.copy("handover", waits_for=OWNER)
    with opened(path) as memory, reading(path) as first, reading(path, wait=False) as second:
        time.sleep(5)  # until it stands by
        assert memory.stats()["worker"]["pid"] == first.pid
        first.kill()
        began = time.perf_counter()
        until(lambda: memory.stats()["worker"]["pid"] == second.pid)
        held = time.perf_counter() - began
        until(lambda: memory.stats()["worker"]["done"] > 0)
        bench.keep("worker killed with SIGKILL: another holds the lease after", held, "s", 10)
        bench.keep("worker killed with SIGKILL: another has read one after", time.perf_counter() - began, "s")
        assert memory.check() == []


@contextmanager
def reading(path: Path, *, wait: bool = True) -> Iterator[subprocess.Popen[str]]:
    """`localmem worker` on a store, with the installed model; ``wait`` until it has read an exchange."""
    process = subprocess.Popen(
        [*COMMAND, "worker", "--file", str(path), "--quiet"],
        text=True,
        env=environment(None),
        stdout=subprocess.DEVNULL,
    )
    try:
        if wait:
            with opened(path) as memory:
                until(lambda: memory.stats()["worker"]["done"] > 0)
        yield process
    finally:
        process.terminate()
        process.wait(60)


# ---------------------------------------------------------------- helpers


def opened(path: Path, **options: Any) -> Any:
    """A Memory that reads nothing itself unless told to."""
    from localmem import Memory

    return Memory(path, **{"generator": "none", "worker": False, **options})


def environment(generator: str | None) -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT)}
    found.pop("LOCALMEM_GENERATOR", None)
    return found if generator is None else {**found, "LOCALMEM_GENERATOR": generator}


def elapsed_ms(call: Callable[..., object], *arguments: Any, **options: Any) -> float:
    began = time.perf_counter()
    call(*arguments, **options)
    return (time.perf_counter() - began) * 1e3


def p95(took: Sequence[float]) -> float:
    return sorted(took)[int(len(took) * 0.95)]


def until(true: Callable[[], bool], timeout_s: float = 120) -> None:
    began = time.perf_counter()
    while not true():
        if time.perf_counter() - began > timeout_s:
            raise TimeoutError(f"nothing happened within {timeout_s} s")
        time.sleep(0.02)


PARTS: dict[str, Callable[[Bench], None]] = {"mcp": mcp, "adds": adds, "queue": queue, "handover": handover}

if __name__ == "__main__":
    main()
