"""The report card of a chat model: what it extracts, decides and hears, how fast it is and how much memory it takes.

The cases (``report_cases.jsonl``) are for this alone: no model is trained and nothing is fitted on them. What a case
came to is a Counter; their sum over all cases, or over a group of them, gives every rate (`rates`). A case on which
the generator fails keeps nothing: its facts count as missed, its operation as wrong.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from localmem import __version__, artifacts, config, dates, llm, words
from localmem.config import Limits
from localmem.decide import decide_all, policy_for
from localmem.embed import default_judge, default_tagger
from localmem.errors import GeneratorError, InstallationError, InvalidInputError
from localmem.extract import ExtractContext, Extraction, extract, reading_of
from localmem.llm_model import check_gguf
from localmem.memory import Memory
from localmem.types import Decision, Embedder, Fact, Generator, Instant, Judge, Message, Neighbour, Op, Prompt, Tagger
from localmem.wishes import request_in

MATCH_F1 = 0.6  # token F1 from which a fact is the gold one
ADDS_MAX = 12  # cases with something to keep that also go through a real Memory
CASES = Path(__file__).with_name("report_cases.jsonl")
_Z = 1.959963984540054  # two-sided 95 % of the normal distribution
_REFUSED_SHOWN = 200  # characters of a generator's own words about a failure
_SPEED_ROUNDS, _SPEED_CHARS = 3, 600
_SPEED_GRAMMAR = "root ::= [a-z ]{100}"  # some 25 tokens, whatever the model would like to say

Row = Mapping[str, Any]
Progress = Callable[[int, str], None]  # (steps done, what is being measured)
T = TypeVar("T")


# -------------------------------------------------------------------- facts and rates


def token_f1(a: str, b: str) -> float:
    """F1 of the two texts' folded words."""
    first, second = (Counter(t.folded for t in words.tokens(text)) for text in (a, b))
    shared = sum((first & second).values())
    return 2 * shared / (sum(first.values()) + sum(second.values())) if shared else 0.0


def matched(found: Sequence[str], gold: Sequence[str]) -> int:
    """How many gold facts are met by a found one of their own, best pairs first."""
    pairs = sorted(((token_f1(f, g), i, j) for i, f in enumerate(found) for j, g in enumerate(gold)), reverse=True)
    used: set[tuple[str, int]] = set()
    hits = 0
    for score, i, j in pairs:
        if score >= MATCH_F1 and ("found", i) not in used and ("gold", j) not in used:
            used |= {("found", i), ("gold", j)}
            hits += 1
    return hits


def share(part: float, whole: float) -> str:
    """part/whole with its percentage."""
    return f"{part:g}/{whole:g} ({100 * part / whole:.1f} %)" if whole else f"{part:g}/0"


def wilson(part: float, whole: float) -> tuple[float, float]:
    """The 95 % interval of a share after Wilson; (0, 1) where nothing was counted."""
    if whole <= 0:
        return 0.0, 1.0
    rate, slack = part / whole, _Z * _Z / whole
    middle = (rate + slack / 2) / (1 + slack)
    reach = _Z * math.sqrt((rate * (1 - rate) + slack / 4) / whole) / (1 + slack)
    return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True, slots=True)
class Measure:
    """A rate: the counts it is made of. ``per_case``: counts that one observation adds to the whole."""

    name: str
    title: str
    part: str
    whole: str
    low_is_good: bool = False
    per_case: int = 1


EXTRACTION = (
    Measure("precision", "facts that are right", "right", "found"),
    Measure("recall", "gold facts found", "right", "gold"),
    Measure("f1", "F1 of facts", "right_twice", "found_and_gold", per_case=2),
    Measure("noise", "idle turns with facts", "noisy", "idle", low_is_good=True),
    Measure("unsupported", "facts without evidence", "refused", "worded", low_is_good=True),
)
FORGETTING = (
    Measure("forget_heard", "forget requests heard", "heard", "requests"),
    Measure("forget_false", "forget false alarms", "alarms", "no_requests", low_is_good=True),
)
DECISION = (
    Measure("operation", "operations right", "op_right", "decisions"),
    Measure("targets", "their targets right", "on_target", "aimed"),
    Measure("destructive", "destructive errors", "destroyed", "decisions", low_is_good=True),
)
MEASURES = (*EXTRACTION, *FORGETTING, *DECISION)


@dataclass(frozen=True, slots=True)
class Rate:
    """One measure as counted, with its 95 % interval."""

    measure: Measure
    part: int
    whole: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """part / whole; None where nothing was counted."""
        return self.part / self.whole if self.whole else None

    def to_dict(self) -> dict[str, Any]:
        """{"part", "whole", "rate", "low", "high", "low_is_good"}; "rate" is null where nothing was counted."""
        return {
            "part": self.part,
            "whole": self.whole,
            "rate": self.value,
            "low": self.low,
            "high": self.high,
            "low_is_good": self.measure.low_is_good,
        }

    def __str__(self) -> str:
        return f"{share(self.part, self.whole)} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def rates(counts: Mapping[str, int], measures: Sequence[Measure] = MEASURES) -> list[Rate]:
    """Each measure of the summed counts."""
    found = []
    for each in measures:
        part, whole = counts.get(each.part, 0), counts.get(each.whole, 0)
        low, high = wilson(part / each.per_case, whole / each.per_case)
        found.append(Rate(each, part, whole, low, high))
    return found


# -------------------------------------------------------------------- one case


def message(fields: Row) -> Message:
    """A message as the cases write it."""
    return Message(fields["role"], fields["content"], fields.get("name"))


def extracted(generator: Generator, row: Row, *, tagger: Tagger | None = None) -> Extraction:
    """What extraction makes of one case. Raises GeneratorError."""
    return extract(
        generator,
        [message(m) for m in row["messages"]],
        context=ExtractContext(recent=tuple(message(m) for m in reversed(row.get("recent", ())))),
        event_at=dates.parse_instant(row["at"]),
        limits=Limits(),
        tagger=tagger,
    )


def decided(generator: Generator | None, embedder: Embedder, row: Row, *, judge: Judge | None = None) -> Decision:
    """What is decided about one case's fact beside its neighbours. Raises GeneratorError."""
    vectors = embedder.embed_passages([row["fact"], *(old["text"] for old in row["existing"])])
    near = [
        Neighbour(str(i), 1, old["text"], float(vectors[0] @ vectors[i + 1]), dates.parse_instant(old["at"]))
        for i, old in enumerate(row["existing"])
    ]
    fact = Fact(row["fact"], event_at=dates.parse_instant(row["at"]))
    policy = policy_for(generator.id if generator else None, judge.id if judge else None, embedder.id)
    return decide_all(generator, [fact], [near], judge=judge, policy=policy)[0]


def hears_request(generator: Generator | None, row: Row) -> bool:
    """Whether a request to forget is heard in one case. Raises GeneratorError."""
    said, recent = ([message(m) for m in row.get(key, ())] for key in ("messages", "recent"))
    return request_in(generator, said, recent) is not None


def extract_counts(row: Row, result: Extraction | None) -> Counter[str]:
    """What one case's extraction came to; None: the generator failed."""
    gold = [fact["text"] for fact in row["facts"]]
    if result is None:
        return Counter(rows=1, failed=1, gold=len(gold), found_and_gold=len(gold))
    found = [fact.text for fact in result.facts]
    right = matched(found, gold)
    return Counter(
        rows=1,
        found=len(found),
        gold=len(gold),
        right=right,
        right_twice=2 * right,
        found_and_gold=len(found) + len(gold),
        idle=int(not gold),
        noisy=int(bool(found) and not gold),
        refused=len(result.unsupported),
        worded=len(found) + len(result.unsupported),
    )


def forget_counts(row: Row, heard: bool | None) -> Counter[str]:
    """Whether a request, where there is one, was heard; None: the generator failed."""
    asked = row.get("forget", {}).get("scope", "none") != "none"
    return Counter(
        requests=int(asked),
        no_requests=int(not asked),
        heard=int(asked and bool(heard)),
        alarms=int(not asked and bool(heard)),
    )


def decide_counts(row: Row, decision: Decision | None) -> Counter[str]:
    """What one case's decision came to; None: the generator failed. ``GOLD>CHOSEN`` counts the operations."""
    if decision is None:
        return Counter({"rows": 1, "failed": 1, "decisions": 1, f"{row['op']}>failed": 1})
    right = decision.op.value == row["op"]
    chosen = {int(target.id) for target in decision.targets}
    aimed = right and bool(row["targets"])
    return Counter(
        {
            "rows": 1,
            "decisions": 1,
            "op_right": int(right),
            "aimed": int(aimed),
            "on_target": int(aimed and bool(chosen) and chosen <= set(row["targets"])),
            "destroyed": int(decision.op in (Op.UPDATE, Op.DELETE) and row["op"] in ("ADD", "NOOP")),
            "contested": int(bool(decision.contested)),
            f"{row['op']}>{decision.op.value}": 1,
        }
    )


# -------------------------------------------------------------------- the card


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens in a second, seconds of an add; None where it could not be measured."""

    prompt_tokens_per_s: float | None = None
    reply_tokens_per_s: float | None = None
    adds: int = 0
    add_s_median: float | None = None
    add_s_slowest: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Card:
    """Everything that was measured of one model on one machine."""

    model: Mapping[str, str]  # as the generator's fingerprint has it
    reading: str  # how extraction leads this model: tuned, clauses, whole
    embedder: Mapping[str, str]
    machine: Mapping[str, Any]
    measured_at: Instant
    cases: Mapping[str, Any]
    counts: Mapping[str, int]
    failed: Mapping[str, int]  # extract, decide, add -> cases on which the generator failed
    failure: str  # the first one's words, "" without any
    speed: Speed
    resident_bytes: int | None  # of this process at its largest, embedder and store included

    @property
    def rates(self) -> list[Rate]:
        """Every measure."""
        return rates(self.counts)

    @property
    def worthless(self) -> bool:
        """Whether the generator failed on every case."""
        return all(self.failed[phase] >= self.cases[phase] for phase in self.failed)

    def to_dict(self) -> dict[str, Any]:
        """The shape of ``localmem models report --json``."""
        return {
            "model": dict(self.model),
            "reading": self.reading,
            "embedder": dict(self.embedder),
            "machine": dict(self.machine),
            "date": dates.to_iso(self.measured_at),
            "localmem": __version__,
            "cases": dict(self.cases),
            "rates": {rate.measure.name: rate.to_dict() for rate in self.rates},
            "failed": dict(self.failed),
            "failure": self.failure,
            "speed": {name: getattr(self.speed, name) for name in Speed.__slots__},
            "resident_bytes": self.resident_bytes,
        }


def open_model(spec: str | None, adapter: Path | None = None) -> Generator:
    """The generator to report on: a GGUF's path, a server's URL, or None for the default with its own adapter.

    ``adapter``: a LoRA GGUF or a folder of them in place of the default's. What is wrong with a file shows here:
    ModelNotFoundError, ModelFileError; InvalidInputError where there is no model or the adapter can't be used.
    """
    settings = config.settings()
    named = settings.generator if spec is None else spec
    if named == "none":
        raise InvalidInputError("the generator is set to 'none'; name a GGUF or a server's URL to report on")
    if named is not None and "://" in named:
        if adapter is not None:
            raise InvalidInputError(f"a server loads its adapters itself; leave out --adapter {adapter}")
        return _opened(named)
    if named is not None and not named.strip():
        raise InvalidInputError("the model's path is empty; name a GGUF or a server's URL, or leave it out")
    path = artifacts.generator_path() if named is None else Path(named).expanduser()
    check_gguf(path)
    if adapter is None:
        return _opened(named)
    for file in llm.adapter_files(adapter).values():
        check_gguf(file)
    return llm.LlamaGenerator(path, adapter=adapter, threads=settings.generator_threads)


def _opened(spec: str | None) -> Generator:
    generator = llm.open_generator(spec)
    assert generator is not None  # only "none" gives that
    return generator


def read_cases(rows_max: int | None = None) -> tuple[list[Row], list[Row]]:
    """(extraction, decision) cases of the package, at most ``rows_max`` of each, always the same ones."""
    try:
        rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InstallationError(f"{CASES} can't be read ({error}); reinstall localmem") from error
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())  # so that a few are of every sort
    return [row for row in rows if "facts" in row][:rows_max], [row for row in rows if "fact" in row][:rows_max]


def steps(rows_max: int | None = None) -> int:
    """How many steps `measure` reports to its ``progress``."""
    reading, deciding = read_cases(rows_max)
    return 1 + len(reading) + len(deciding) + len(_to_add(reading))


def _to_add(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["facts"]][:ADDS_MAX]


@dataclass(slots=True)
class _Work:
    """What is handed from phase to phase: the counts so far, the failures, the steps."""

    progress: Progress
    timer: Callable[[], float]
    done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failure: str = ""

    def step(self, note: str) -> None:
        self.done += 1
        self.progress(self.done, note)

    def tried(self, work: Callable[[], T]) -> T | None:
        """The work's result; None where the generator failed."""
        try:
            return work()
        except GeneratorError as error:
            self.failure = self.failure or str(error)[:_REFUSED_SHOWN]
            return None


def measure(
    generator: Generator,
    embedder: Embedder,
    *,
    now: Instant,
    rows_max: int | None = None,
    progress: Progress = lambda done, note: None,
    timer: Callable[[], float] = time.perf_counter,
) -> Card:
    """The card of one model. The generator stays open.

    A GeneratorError is counted and the next case taken; whatever keeps the model from loading, or a server from being
    reached at all, is raised.
    """
    reading, deciding = read_cases(rows_max)
    work = _Work(progress, timer)
    started = timer()
    speeds = _speeds(generator, reading, work)
    work.step("speed")
    _measure_extraction(generator, reading, work)
    _measure_decisions(generator, embedder, deciding, work)
    seconds = _seconds_of_adds(generator, embedder, _to_add(reading), work)
    return Card(
        model=dict(generator.fingerprint()),
        reading=reading_of(generator.id),
        embedder={"id": embedder.id, "sha256": embedder.sha256},
        machine=_machine(),
        measured_at=now,
        cases={
            "sha256": hashlib.sha256(CASES.read_bytes()).hexdigest(),
            "extract": len(reading),
            "decide": len(deciding),
            "add": len(_to_add(reading)),
        },
        counts=dict(work.counts),
        failed={phase: work.failed[phase] for phase in ("extract", "decide", "add")},
        failure=work.failure,
        speed=Speed(
            *speeds,
            adds=len(seconds),
            add_s_median=statistics.median(seconds) if seconds else None,
            add_s_slowest=max(seconds, default=None),
            total_s=timer() - started,
        ),
        resident_bytes=resident_bytes(),
    )


def _measure_extraction(generator: Generator, rows: Sequence[Row], work: _Work) -> None:
    for row in rows:
        result = work.tried(partial(extracted, generator, row, tagger=default_tagger()))
        heard = work.tried(partial(hears_request, generator, row))
        work.counts += extract_counts(row, result) + forget_counts(row, heard)
        work.failed["extract"] += result is None or heard is None
        work.step("facts")


def _measure_decisions(generator: Generator, embedder: Embedder, rows: Sequence[Row], work: _Work) -> None:
    for row in rows:
        decision = work.tried(partial(decided, generator, embedder, row, judge=default_judge()))
        work.counts += decide_counts(row, decision)
        work.failed["decide"] += decision is None
        work.step("decisions")


# -------------------------------------------------------------------- speed and memory


def _seconds_of_adds(generator: Generator, embedder: Embedder, rows: Sequence[Row], work: _Work) -> list[float]:
    """Seconds of each add, the whole of it: two commits that survive a power cut included."""
    seconds = []
    with (
        tempfile.TemporaryDirectory(prefix="localmem-report-", ignore_cleanup_errors=True) as folder,
        Memory(Path(folder) / "report.db", embedder=embedder, generator=generator) as memory,
    ):
        for row in rows:
            started = work.timer()
            added = work.tried(partial(memory.add, row["messages"], user_id="report", timestamp=row["at"]))
            if added is None:
                work.failed["add"] += 1
            else:
                seconds.append(work.timer() - started)
            work.step("adds")
    return seconds


def _speeds(generator: Generator, rows: Sequence[Row], work: _Work) -> tuple[float | None, float | None]:
    """(prompt, reply) tokens in a second, the medians of a few rounds.

    A prompt is timed by scoring it; a reply by the same prompt once more, with a reply, less that time. No two prompts
    are equal: a server would have kept the first.
    """
    text = " ".join(m["content"] for row in rows for m in row["messages"])[:_SPEED_CHARS]
    generator.count_tokens(text)  # loads the model
    prompt_rates, reply_rates = [], []
    for number in range(_SPEED_ROUNDS):
        try:
            started = work.timer()
            generator.score_labels(_speed_prompt(f"{number}a {text}"), ("A", "B"))
            scored = work.timer()
            reply = generator.generate(_speed_prompt(f"{number}b {text}"), grammar=_SPEED_GRAMMAR, tokens_max=200)
            replied = work.timer()
        except GeneratorError as error:
            if isinstance(error.__cause__, OSError):  # no server there: it would be missing for every case
                raise
            work.failure = work.failure or str(error)[:_REFUSED_SHOWN]
            continue
        prompt_s, reply_s = scored - started, replied - scored - (scored - started)
        if number and min(prompt_s, reply_s) > 0:  # the first round warms up
            prompt_rates.append(generator.count_tokens(text) / prompt_s)
            reply_rates.append(generator.count_tokens(reply) / reply_s)
    if not prompt_rates:
        return None, None
    return statistics.median(prompt_rates), statistics.median(reply_rates)


def _speed_prompt(text: str) -> Prompt:
    return Prompt("speed", "", (("user", text),))


def resident_bytes() -> int | None:
    """The most memory this process ever held; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else int(most) * 1024  # bytes on macOS, KiB elsewhere


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "cores_used": llm.default_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }


# -------------------------------------------------------------------- drawing

_WIDTH, _LABEL, _TRACK, _ROW, _TOP = 780, 190, 360, 28, 70
_GOOD, _BAD, _INK, _PALE = "#2a78b5", "#c4622d", "#222222", "#e8e8e8"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg(card: Card) -> str:
    """The rates as bars with their intervals, one SVG image that needs nothing else."""
    bars = [rate for rate in card.rates if rate.whole]
    notes = [*summary(card).items()]
    height = _TOP + _ROW * len(bars) + 20 + 18 * len(notes) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(16, 28, card.model.get("generator", ""), size=17),
        _text(16, 52, "bar: rate; line: 95 % interval; orange: the lower the better"),
    ]
    for place, rate in enumerate(bars):
        lines += _bar(rate, _TOP + _ROW * place)
    for place, (name, value) in enumerate(notes):
        lines.append(_text(16, _TOP + _ROW * len(bars) + 26 + 18 * place, f"{name}: {value}"))
    return "\n".join([*lines, "</svg>\n"])


def _bar(rate: Rate, top: int) -> Iterator[str]:
    value = rate.value or 0.0
    colour = _BAD if rate.measure.low_is_good else _GOOD
    left, right = (_LABEL + _TRACK * edge for edge in (rate.low, rate.high))
    middle = top + 9
    yield _text(16, top + 14, rate.measure.title)
    yield f'<rect x="{_LABEL}" y="{top}" width="{_TRACK}" height="18" fill="{_PALE}"/>'
    yield f'<rect x="{_LABEL}" y="{top}" width="{_TRACK * value:.1f}" height="18" fill="{colour}"/>'
    line = f"M{left:.1f} {middle}H{right:.1f}M{left:.1f} {top + 4}v10M{right:.1f} {top + 4}v10"
    yield f'<path d="{line}" stroke="{_INK}" stroke-width="1.5"/>'
    yield _text(_LABEL + _TRACK + 12, top + 14, str(rate))


def _text(x: float, y: float, text: str, *, size: int = 13) -> str:
    shown = html.escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{_INK}">{shown}</text>'


def summary(card: Card) -> dict[str, str]:
    """What is no rate, in words: speed, memory, failures, and on what it was measured."""
    speed, machine, cases = card.speed, card.machine, card.cases
    adds = "not measured"
    if speed.add_s_median is not None and speed.add_s_slowest is not None:
        adds = f"{speed.add_s_median:.2f} s median, {speed.add_s_slowest:.2f} s slowest of {speed.adds}"
    failed = ", ".join(f"{count} of {cases[phase]} {phase}" for phase, count in card.failed.items() if count)
    memory = "not measured" if card.resident_bytes is None else f"{card.resident_bytes / 1e6:,.0f} MB"
    hashes = {"model": card.model.get("model_sha256", ""), "adapter": card.model.get("adapter", "")}
    return {
        "failed": f"{failed} ({card.failure})" if failed else "0",
        "speed": f"{_per_s(speed.prompt_tokens_per_s)} prompt, {_per_s(speed.reply_tokens_per_s)} reply tokens/s",
        "one add": adds,
        "memory": f"{memory} at most in this process, both models",
        "took": f"{speed.total_s:.0f} s for {cases['extract']} + {cases['decide']} cases and {cases['add']} adds",
        **{f"{name} sha256": value for name, value in hashes.items() if value},
        "machine": f"{machine['platform']}, {machine['cores_used']} of {machine['cpus']} CPUs, load {machine['load']}",
        "measured": f"{dates.to_iso(card.measured_at)}, localmem {__version__}, reading {card.reading}",
    }


def _per_s(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"
