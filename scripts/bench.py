"""The speed of localmem on this machine: ``python3 scripts/bench.py [--quick] [--out FILE] [--only WORD …]``.

Prints each measured line beside its target and keeps them, with the machine's facts, as JSON. Nothing here is asserted
in a test: a number holds for the machine and the load it was taken on. --quick shrinks the stores by 20.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmem import Memory
    from localmem.types import Generator, Prompt, Vector, Vectors

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".localmem"
AUTHORED = ROOT.parent / "shared" / "data" / "train" / "authored" / "extract.jsonl"
VENV_PYTHON = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
SEED = 20260301
MESSAGES_PER_ADD = 500


@dataclass(frozen=True)
class Line:
    """One measurement. ``value`` and ``target`` in ``unit``; a target is an upper bound, None means: for reference."""

    name: str
    value: float
    unit: str
    target: float | None = None
    note: str = ""


@dataclass
class Bench:
    """Sizes, the scratch folder, and what was measured so far."""

    folder: Path
    shrink: int
    lines: list[Line] = field(default_factory=list)

    def keep(self, line: Line) -> None:
        self.lines.append(line)
        show(line)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure localmem on this machine.")
    parser.add_argument("--quick", action="store_true", help="stores 20 times smaller")
    parser.add_argument("--out", type=Path, default=ROOT / "bench.json", help="where to keep the numbers")
    parser.add_argument("--only", nargs="*", choices=[*PARTS], help="measure these parts only")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # what a fresh process measures about itself
    asked = parser.parse_args()
    if importlib.util.find_spec("localmem") is None or importlib.util.find_spec("numpy") is None:
        if not VENV_PYTHON.exists() or Path(sys.executable) == VENV_PYTHON:
            print("localmem is not installed yet: run python3 scripts/quickstart.py first", file=sys.stderr)
            return 1
        return subprocess.run([VENV_PYTHON, __file__, *sys.argv[1:]], check=False).returncode
    os.environ.setdefault("LOCALMEM_HOME", str(HOME))
    if asked.child:
        print(json.dumps(CHILDREN[asked.child[0]](Path(asked.child[1]))))
        return 0
    facts = machine()
    print("  ".join(f"{name}: {value}" for name, value in facts.items() if name not in ("versions", "load_1_min")))
    HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=HOME) as folder:  # the disk the stores would be on
        bench = Bench(Path(folder), 20 if asked.quick else 1)
        for name, part in PARTS.items():
            if not asked.only or name in asked.only:
                part(bench)
    kept = {"machine": facts, "quick": asked.quick, "lines": [asdict(line) for line in bench.lines]}
    asked.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"\nkept in {asked.out}")
    return 0


# -- the parts --------------------------------------------------------------------------------------------------------


def imports(bench: Bench) -> None:
    for name, target in (("import localmem", 60.0), ("from localmem import Memory", None)):
        code = f"import time; began = time.perf_counter(); {name}; print(time.perf_counter() - began)"
        took = [float(fresh(["-c", code])) for _ in range(3 if bench.shrink > 1 else 10)]
        bench.keep(Line(name, min(took) * 1e3, "ms", target, f"best of {len(took)} fresh processes"))


def disk(bench: Bench) -> None:
    with probe(bench.folder) as fsync:
        took = timed([functools.partial(fsync, None)] * 100)
    bench.keep(Line("the disk's own fsync of 4 KB, p50", took, "ms", note="same folder as the stores"))


def embedding(bench: Bench) -> None:
    real = embedder()
    real.embed_query("warm")
    took = timed([functools.partial(real.embed_query, text) for text in questions(200)])
    bench.keep(Line("one short text embedded, p50", took, "ms", 5.0, "about 7 words"))


def adds(bench: Bench) -> None:
    """add(infer=False) into a store of 1,000, each commit durable against a power cut."""
    path = bench.folder / "adds.db"
    fill(path, {"ann": 1000 // bench.shrink})
    texts = list(sentences(random.Random(SEED + 1), 200 // min(bench.shrink, 4)))
    with opened(path, durability="power") as memory, probe(bench.folder) as fsync_once:
        add = functools.partial(memory.add, user_id="ann", infer=False)
        whole, own, fsync = in_turns(texts, add, lambda text: embedder().embed_passages([text]), fsync_once)
    note = f"{whole:.1f} in all = embedding {own:.1f} + fsync {fsync:.1f} + the rest; durability power"
    bench.keep(Line("add(infer=False) beyond embedding and one fsync, p50", whole - own - fsync, "ms", 1.0, note))


def searches(bench: Bench) -> None:
    """Warm and cold searches in one file: an owner with 1,000 memories, one with 10,000, the rest of 1,000 each."""
    size = 100_000 // bench.shrink
    owners = {"ann": 1000, "max": 10_000 // bench.shrink}
    rest = size - sum(owners.values())
    owners |= {f"o{number}": min(1000, rest - start) for number, start in enumerate(range(0, rest, 1000))}
    path = bench.folder / "searches.db"
    began = time.perf_counter()
    fill(path, owners)
    took = time.perf_counter() - began
    name = f"filling, per memory ({size:,} in the file)"
    bench.keep(
        Line(name, took / size * 1e3, "ms", note=f"{took:.0f} s, {path.stat().st_size / size / 1e3:.1f} KB each")
    )
    cold = [json.loads(fresh([__file__, "--child", "cold", str(path)])) for _ in range(5)]
    best = min(cold, key=lambda each: each["wall_s"])
    note = (
        f"inside: import {best['import_s']:.2f}, open {best['open_s']:.2f}, search {best['search_s']:.2f} s; best of 5"
    )
    bench.keep(Line("open + first search of a cold process", best["wall_s"], "s", 0.8, note))
    with opened(path) as memory:
        for owner, target in (("ann", 3.0), ("max", 12.0)):
            search = functools.partial(memory.search, user_id=owner, limit=10)
            search("warm")
            whole, own = in_turns(questions(200), search, embedder().embed_query)
            name = f"search beyond embedding, owner of {owners[owner]:,}, p50"
            bench.keep(Line(name, whole - own, "ms", target, f"{whole:.1f} in all, embedding {own:.1f}"))


def models(bench: Bench) -> None:
    """add with the model for everyday exchanges, and where its time goes."""
    from localmem import Memory
    from localmem.llm import open_generator

    with contextlib.closing(open_generator(None)) as real:
        generator = Stopwatch(real)
        exchanges = everyday(real, 5 if bench.shrink > 1 else 15)
        with Memory(bench.folder / "models.db", generator=generator) as memory:
            began = time.perf_counter()
            memory.add("Hello there!", user_id="warm")
            load = time.perf_counter() - began
            whole, generating, scoring, kept = [], [], [], 0
            for number, messages in enumerate(exchanges):
                generator.reset()
                began = time.perf_counter()
                added = memory.add(messages, user_id="ann", timestamp=f"2026-03-{1 + number:02d}T09:00:00Z")
                whole.append(time.perf_counter() - began)
                kept += len(added["results"])
                generating.append(generator.generating_s)
                scoring.append(generator.scoring_s)
    note = f"median of {len(whole)}, slowest {max(whole):.1f} s; {kept} memories changed"
    bench.keep(Line("add with the model, an everyday exchange", statistics.median(whole), "s", 3.0, note))
    bench.keep(Line("  of it: writing facts", statistics.median(generating), "s"))
    bench.keep(Line("  of it: scoring labels", statistics.median(scoring), "s"))
    bench.keep(Line("first add of a process, model not loaded yet", load, "s"))


def resident(bench: Bench) -> None:
    size = 50_000 // bench.shrink
    path = bench.folder / "resident.db"
    fill(path, {f"o{number}": 1000 for number in range(max(1, size // 1000))})
    told = json.loads(fresh([__file__, "--child", "resident", str(path)]))
    name = f"resident, both models and {size:,} memories"
    note = f"{told['anonymous_mb']:.0f} own, {told['file_mb']:.0f} files mapped; peak {told['peak_mb']:.0f}"
    bench.keep(Line(name, told["resident_mb"], "MB", 600.0, note))


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "imports": imports,
    "disk": disk,
    "embedding": embedding,
    "adds": adds,
    "searches": searches,
    "models": models,
    "resident": resident,
}


# -- what a fresh process tells about itself --------------------------------------------------------------------------


def cold(path: Path) -> dict[str, float]:
    began = time.perf_counter()
    from localmem import Memory

    imported = time.perf_counter()
    memory = Memory(path)
    opened_at = time.perf_counter()
    memory.search("what did she buy", user_id="ann", limit=10)
    found = time.perf_counter()
    return {
        "import_s": imported - began,
        "open_s": opened_at - imported,
        "search_s": found - opened_at,
        "wall_s": time.time() - process_began(),
    }


def process_began() -> float:
    """When this process started, seconds since 1970: the parent writes it into the environment."""
    return float(os.environ["LOCALMEM_BENCH_BEGAN"])


def resident_child(path: Path) -> dict[str, float]:
    from localmem import Memory

    with Memory(path) as memory:
        for query in questions(20):
            memory.search(query, user_id="o0", limit=10)
        memory.add("I moved to Utrecht last week and started at the city library.", user_id="o0")
        memory.search("where did she move", user_id="o0", limit=10)
        kb = {
            line.split(":")[0]: int(line.split()[1])
            for line in Path("/proc/self/status").read_text("utf-8").splitlines()
            if line.startswith(("VmRSS", "VmHWM", "RssAnon", "RssFile"))
        }
    return {
        "resident_mb": kb["VmRSS"] / 1e3,
        "peak_mb": kb["VmHWM"] / 1e3,
        "anonymous_mb": kb["RssAnon"] / 1e3,
        "file_mb": kb["RssFile"] / 1e3,
    }


CHILDREN: Mapping[str, Callable[[Path], dict[str, float]]] = {"cold": cold, "resident": resident_child}


def fresh(arguments: Sequence[str]) -> str:
    """What a new Python prints."""
    env = {**os.environ, "LOCALMEM_BENCH_BEGAN": str(time.time()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a measuring process failed:\n{done.stderr}")
    return done.stdout.strip()


# -- tools ------------------------------------------------------------------------------------------------------------


class Filler:
    """The real embedder, except that the texts named in ``known`` get random unit vectors: a store fills quickly."""

    def __init__(self, real: Any) -> None:
        import numpy as np

        self.real = real
        self.known: set[str] = set()
        self.random = np.random.default_rng(SEED)
        self.id, self.dim, self.sha256 = real.id, real.dim, real.sha256

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        if not self.known.issuperset(texts):
            return self.real.embed_passages(texts)
        rows = self.random.standard_normal((len(texts), self.dim)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_query(self, text: str) -> Vector:
        return self.real.embed_query(text)


class Stopwatch:
    """A generator that passes every call on and adds up the seconds."""

    def __init__(self, real: Generator) -> None:
        self.real = real
        self.reset()

    def reset(self) -> None:
        self.generating_s = self.scoring_s = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        return functools.partial(self._scored, found) if name.startswith("score_") else found

    def _scored(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            self.scoring_s += time.perf_counter() - began

    @property
    def id(self) -> str:
        return self.real.id

    def fingerprint(self) -> Mapping[str, str]:
        return self.real.fingerprint()

    def count_tokens(self, text: str) -> int:
        return self.real.count_tokens(text)

    def close(self) -> None:
        self.real.close()

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        began = time.perf_counter()
        try:
            return self.real.generate(prompt, grammar=grammar, tokens_max=tokens_max)
        finally:
            self.generating_s += time.perf_counter() - began

    def score_labels(self, prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
        return self._scored(self.real.score_labels, prompt, labels)


@functools.cache
def embedder() -> Any:
    from localmem.embed import default_embedder

    return default_embedder()


@contextlib.contextmanager
def opened(path: Path, **options: Any) -> Iterator[Memory]:
    from localmem import Memory

    with Memory(path, embedder=embedder(), **options) as memory:
        yield memory


def fill(path: Path, owners: Mapping[str, int]) -> None:
    """Give each owner that many memories, through the public API."""
    from localmem import Memory

    source = random.Random(SEED)
    filler = Filler(embedder())
    total = sum(owners.values())
    done = 0
    with Memory(path, embedder=filler, durability="process") as memory:
        for owner, count in owners.items():
            texts = list(sentences(source, count))
            filler.known = set(texts)
            for start in range(0, count, MESSAGES_PER_ADD):
                part = texts[start : start + MESSAGES_PER_ADD]
                memory.add([{"role": "user", "content": text} for text in part], user_id=owner, infer=False)
                done += len(part)
                if sys.stderr.isatty():
                    print(f"\r\033[K  filling {done:,} of {total:,}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


WHO = ("User", "User's sister", "User's neighbour", "User's manager", "User's friend Tom", "User's aunt")
DOES = ("likes", "bought", "repaired", "sold", "talks about", "is looking for", "plans", "has finished", "avoids")
ASKS = ("when is the {} due", "what did she say about the {}", "who has the {} and the {}", "anything new on {} or {}")
WORDS = 4000  # of the invented vocabulary; the n-th is used about 1/n as often as the first, as in real text


def vocabulary() -> list[str]:
    """Invented nouns, the frequent ones first."""
    source = random.Random(SEED)
    starts, middles, ends = ("b br d f g k l m p pl r s st t tr v", "a e i o u ea oo", "n r l m nd st ck")
    parts = [each.split() for each in (starts, middles, ends, middles, ends)]
    words: dict[str, None] = {}
    while len(words) < WORDS:
        words["".join(map(source.choice, parts))] = None
    return list(words)


def nouns(source: random.Random, count: int) -> Iterator[str]:
    """Words as a text would use them: rank n with a probability of about 1/n."""
    words = vocabulary()
    return iter(source.choices(words, weights=[1 / (rank + 8) for rank in range(len(words))], k=count))


def sentences(source: random.Random, count: int) -> Iterator[str]:
    """Invented memories, all different, about 11 words long."""
    drawn = nouns(source, count * 3)
    for _ in range(count):
        who, does = source.choice(WHO), source.choice(DOES)
        yield f"{who} {does} the {next(drawn)} {next(drawn)} near {next(drawn)} since {source.randrange(10**9)}"


def questions(count: int) -> list[str]:
    """Queries with words that the memories hold, all different."""
    source = random.Random(SEED + 2)
    drawn = nouns(source, count * 2)
    return [source.choice(ASKS).format(next(drawn), next(drawn)) for _ in range(count)]


BUILT_IN = (
    "I've been a nurse at the children's ward for six years and I work nights from Sunday to Wednesday.",
    "We adopted a greyhound called Pixel in March, she hates stairs and sleeps on my side of the bed.",
    "My brother Deniz moves to Oslo in August, so I'm taking over his allotment behind the station.",
    "I'm allergic to hazelnuts, almonds are fine though. Could you suggest something for a birthday cake?",
    "I switched from the tram to cycling, it takes me 25 minutes to the office in Leiden now.",
)


def everyday(generator: Any, count: int) -> list[list[dict[str, str]]]:
    """Exchanges near the authored data's median: about 43 tokens in and 33 tokens of facts."""
    if not AUTHORED.exists():
        return [[{"role": "user", "content": text}] for text in BUILT_IN]
    near = []
    for line in AUTHORED.read_text("utf-8").splitlines():
        row = json.loads(line)
        if not row["facts"] or any("name" in message for message in row["messages"]):
            continue
        words = sum(len(message["content"].split()) for message in row["messages"])
        if not 20 <= words <= 50:
            continue
        tokens_in = sum(generator.count_tokens(message["content"]) for message in row["messages"])
        tokens_out = sum(generator.count_tokens(fact["text"]) for fact in row["facts"])
        if 36 <= tokens_in <= 50 and 26 <= tokens_out <= 40:
            near.append(row["messages"])
    return random.Random(SEED).sample(near, min(count, len(near)))


def timed(calls: Sequence[Callable[[], object]]) -> float:
    """The median of the calls' times, milliseconds."""
    took = []
    for call in calls:
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def in_turns(texts: Sequence[str], *calls: Callable[[str], object]) -> list[float]:
    """The median of each call in ms, taken in turns so that a busy machine slows them alike.

    Each call gets the text with another ending: whatever is cached by text, none helps another.
    """
    took: list[list[float]] = [[] for _ in calls]
    for text in texts:
        for number, call in enumerate(calls):
            argument = f"{text}{'s' * number}"
            began = time.perf_counter()
            call(argument)
            took[number].append(time.perf_counter() - began)
    return [statistics.median(times) * 1e3 for times in took]


@contextlib.contextmanager
def probe(folder: Path) -> Iterator[Callable[[object], None]]:
    """A call that writes 4 KB and waits until the disk has them."""
    path = folder / "fsync.probe"
    with path.open("wb") as file:

        def once(_: object) -> None:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

        yield once
    path.unlink()


def machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    libraries = ("localmem", "apsw-sqlite3mc", "sqlite-vec", "onnxruntime", "tokenizers", "numpy", "llama-cpp-python")
    versions = {}
    for library in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    info = Path("/proc/cpuinfo")
    named = [
        line.split(":", 1)[1].strip() for line in info.read_text("utf-8").splitlines() if line.startswith("model name")
    ]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": named[0] if named else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_1_min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def show(line: Line) -> None:
    """One row of the table; the note goes below when the window is narrow."""
    width = shutil.get_terminal_size((100, 20)).columns
    target = "" if line.target is None else f"<= {line.target:g}"
    verdict = "" if line.target is None else ("ok" if line.value <= line.target else "above")
    row = f"{line.name:<58} {line.value:>9.2f} {line.unit:<3} {target:>8} {verdict:<5}"
    note = f"  {line.note}" if line.note else ""
    print(row + note if len(row + note) <= width else f"{row}\n    {line.note}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
