"""The report card of a model: figures worked out by hand, failures counted and not raised, files and errors as a
person meets them; and the evaluation script that shares its figures."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from localmem import embed, report, terminal
from localmem.cli import cli
from localmem.cli import models as models_cli
from localmem.errors import GeneratorError, InvalidInputError, ModelFileError, ModelNotFoundError
from localmem.llm import LlamaGenerator
from localmem.report import Rate, rates, wilson
from localmem.testing import HashEmbedder, ScriptedGenerator
from localmem.types import Prompt

ROOT = Path(__file__).resolve().parent.parent
NOW = 1_780_000_000_000_000


def turn(identity: str, text: str, facts: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """An extraction case of one user message."""
    told = [{"text": fact, "quote": text, "kind": "semantic", "about": "user"} for fact in facts]
    said = [{"role": "user", "content": text}]
    return {
        "id": identity,
        "at": "2026-01-05T10:00:00Z",
        "recent": [],
        "messages": said,
        "facts": told,
        "tags": [],
        **more,
    }


def choice(identity: str, fact: str, known: Sequence[str], op: str, *targets: int, **more: Any) -> dict[str, Any]:
    """A decision case."""
    existing = [{"text": text, "at": "2025-01-01"} for text in known]
    return {
        "id": identity,
        "at": "2026-01-05",
        "fact": fact,
        "existing": existing,
        "op": op,
        "targets": list(targets),
        "relation": "",
        "tags": [],
        **more,
    }


CASES = [
    turn("T-1", "I keep two ferrets in Lund.", ["User keeps two ferrets in Lund"]),
    turn("T-2", "My sister plays the viola in Bergen.", ["User's sister plays the viola in Bergen"]),
    turn("T-3", "Lovely weather in Cork today!"),
    turn("T-4", "thanks, that helped"),
    turn("T-5", "Please forget everything you know about me.", forget={"scope": "everything", "what": ""}),
    turn("T-6", "forget it, wrong window", forget={"scope": "none", "what": ""}),
    choice("T-7", "User owns a kayak", ["User owns a kayak."], "NOOP", 0),
    choice("T-8", "User owns a kayak", ["User reads novels"], "ADD"),
    choice("T-9", "User sold the kayak", ["User owns a kayak", "User reads novels"], "UPDATE", 0),
]
SCRIPT = {  # what the generator answers where a message holds the key
    "ferrets": ["User keeps two ferrets in Lund", "User has a castle in Spain"],  # one right, one nobody said
    "Cork": ["User says lovely weather in Cork today"],  # nothing to keep, and kept
}


class Failing(ScriptedGenerator):
    """Fails where the messages to be read (not those before them) hold the word."""

    def __init__(self, word: str, facts: dict[str, list[str]] | None = None) -> None:
        super().__init__(facts or {})
        self.word = word
        self.closed = False

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        if self.word in prompt.turns[-1][1].rpartition("New:\n")[2]:
            raise GeneratorError("the pretend model broke")
        return super().generate(prompt, grammar=grammar, tokens_max=tokens_max)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine cases whose figures can be worked out by hand, in place of the package's own."""
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in CASES), encoding="utf-8")
    monkeypatch.setattr(report, "CASES", file)


def card_of(generator: Any, **how: Any) -> report.Card:
    return report.measure(generator, HashEmbedder(), now=NOW, **how)


def counted(card: report.Card) -> dict[str, tuple[int, int]]:
    return {rate.measure.name: (rate.part, rate.whole) for rate in card.rates}


# -------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [  # roots of (part/whole - p)² = z² p (1 - p) / whole, found by bisection
        (0, 10, 0.0, 0.27753),
        (8, 10, 0.49016, 0.94332),
        (10, 10, 0.72247, 1.0),
        (97, 150, 0.56738, 0.71863),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(part: int, whole: int, low: float, high: float) -> None:
    assert wilson(part, whole) == pytest.approx((low, high), abs=1e-5)


def test_a_gold_fact_is_met_once_and_by_the_best() -> None:
    gold = ["User lives in Ghent", "User has a dog called Miso"]
    assert report.matched(["User lives in Ghent", "User lives in Ghent now"], gold) == 1
    assert report.matched(["User has a dog Miso", "User lives in Ghent"], gold) == 2
    assert report.matched(["User likes trains"], gold) == 0
    assert report.matched([], gold) == 0
    assert report.token_f1("User lives in Ghent", "user LIVES in Ghent") == 1.0
    assert report.matched(["Ida owns red kayaks"], ["Ida owns blue canoes"]) == 0  # half of the words
    assert report.matched(["Ida owns two red kayaks"], ["Ida owns two blue canoes"]) == 1  # 0.6 of them


def test_f1_counts_each_fact_once_for_its_interval() -> None:
    (f1,) = [rate for rate in rates(Counter(right_twice=8, found_and_gold=20)) if rate.measure.name == "f1"]
    assert f1.value == pytest.approx(0.4)
    assert (f1.low, f1.high) == wilson(4, 10)


def test_the_figures_of_a_small_set(small: None) -> None:
    card = card_of(ScriptedGenerator(SCRIPT))
    assert counted(card) == {
        "precision": (1, 2),
        "recall": (1, 2),
        "f1": (2, 4),
        "noise": (1, 4),
        "unsupported": (1, 3),
        "forget_heard": (1, 1),
        "forget_false": (0, 5),
        "operation": (2, 3),
        "targets": (1, 1),
        "destructive": (0, 3),
    }
    assert card.failed == {"extract": 0, "decide": 0, "add": 0}
    assert (card.cases["extract"], card.cases["decide"], card.cases["add"]) == (6, 3, 2)
    assert card.reading == "whole"
    assert not card.worthless
    assert card.speed.adds == 2
    assert card.speed.add_s_slowest >= card.speed.add_s_median > 0  # type: ignore[operator]


def decision(op: str, *targets: str, gold: str, at: list[int]) -> Counter[str]:
    made: Any = SimpleNamespace(op=report.Op(op), targets=[SimpleNamespace(id=i) for i in targets], contested=())
    return report.decide_counts({"op": gold, "targets": at}, made)


def test_destructive_and_targets() -> None:
    """A destructive error is an UPDATE or DELETE where gold says ADD or NOOP; targets count where there are some."""
    assert decision("UPDATE", "0", gold="ADD", at=[])["destroyed"] == 1
    assert decision("DELETE", "0", gold="NOOP", at=[0])["destroyed"] == 1
    assert decision("DELETE", "0", gold="UPDATE", at=[0])["destroyed"] == 0
    assert decision("ADD", gold="DELETE", at=[0])["destroyed"] == 0
    right = decision("DELETE", "0", gold="DELETE", at=[0, 1])
    wrong = decision("DELETE", "0", "2", gold="DELETE", at=[0, 1])
    none = decision("NOOP", gold="NOOP", at=[0])
    added = decision("ADD", gold="ADD", at=[])
    assert [(c["op_right"], c["aimed"], c["on_target"]) for c in (right, wrong, none, added)] == [
        (1, 1, 1),
        (1, 1, 0),
        (1, 1, 0),
        (1, 0, 0),
    ]


def test_a_false_alarm_and_an_unheard_request() -> None:
    asked, other = CASES[4], CASES[2]
    assert report.forget_counts(asked, False) == Counter(requests=1)
    assert report.forget_counts(other, True) == Counter(no_requests=1, alarms=1)
    assert report.forget_counts(CASES[5], False) == Counter(no_requests=1)
    assert report.forget_counts(asked, None) == Counter(requests=1)


def test_rows_are_bounded_and_the_same_each_time(small: None) -> None:
    first, again = report.read_cases(2), report.read_cases(2)
    assert first == again
    assert [len(rows) for rows in first] == [2, 2]
    told: list[int] = []
    card = card_of(ScriptedGenerator(), rows_max=2, progress=lambda done, note: told.append(done))
    assert (card.cases["extract"], card.cases["decide"]) == (2, 2)
    assert told == list(range(1, report.steps(2) + 1))


def test_speeds_are_told_by_the_clock_that_is_handed_in(small: None) -> None:
    class Slow(ScriptedGenerator):
        now = 0.0

        def generate(self, prompt: Prompt, **how: Any) -> str:
            Slow.now += 5.0
            reply: str = super().generate(prompt, **how)
            return "x" * 79 if prompt.name == "speed" else reply

        def score_labels(self, prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
            Slow.now += 4.0
            return super().score_labels(prompt, labels)

    generator = Slow()
    card = card_of(generator, timer=lambda: Slow.now)
    said = " ".join(m["content"] for row in report.read_cases()[0] for m in row["messages"])
    assert card.speed.prompt_tokens_per_s == pytest.approx(generator.count_tokens(said) / 4)
    assert card.speed.reply_tokens_per_s == pytest.approx(20 / 1)  # 5 s less the 4 s of the prompt
    assert card.speed.add_s_median == pytest.approx(5.0)
    shown = [report._speed_prompt(text).turns for text in ("0a x", "0b x")]
    assert shown[0] != shown[1]  # a server must not answer from its cache


def test_resident_memory_is_in_bytes_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=300_000))
    monkeypatch.setattr(sys, "platform", "linux")
    assert report.resident_bytes() == 300_000 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert report.resident_bytes() == 300_000


# -------------------------------------------------------------------- a model that fails


def test_a_case_that_fails_is_counted_and_missed(small: None) -> None:
    card = card_of(Failing("viola", SCRIPT))
    assert card.failed == {"extract": 1, "decide": 0, "add": 1}
    assert card.failure == "the pretend model broke"
    assert counted(card)["recall"] == (1, 2)  # its fact is missed, not left out
    assert counted(card)["operation"] == (2, 3)
    assert card.speed.adds == 1
    assert "1 of 6 extract, 1 of 2 add" in report.summary(card)["failed"]
    assert not card.worthless


def test_a_model_that_only_fails_is_worth_nothing(small: None) -> None:
    card = card_of(ScriptedGenerator(fail=True))
    # a plain request to forget, the exact duplicate and the far neighbours need no model
    assert card.failed["extract"] == 6
    assert counted(card)["recall"] == (0, 2)
    assert counted(card)["noise"] == (0, 0)
    assert (card.speed.prompt_tokens_per_s, card.speed.adds, card.speed.add_s_median) == (None, 0, None)
    assert report.summary(card)["speed"].startswith("? prompt, ? reply")
    assert card.to_dict()["speed"]["add_s_median"] is None


def test_a_server_that_is_not_there_is_one_error(small: None) -> None:
    generator = report.open_model("http://127.0.0.1:9/v1")
    with pytest.raises(GeneratorError, match=r"127\.0\.0\.1:9"):
        card_of(generator)


# -------------------------------------------------------------------- the cases of the package


def test_the_cases_are_what_the_card_says() -> None:
    reading, deciding = report.read_cases()
    assert (len(reading), len(deciding)) == (60, 80)
    every = [*reading, *deciding]
    assert len({row["id"] for row in every}) == 140
    assert all(row["id"].startswith("R-") for row in every)
    asked = [row for row in reading if row.get("forget", {}).get("scope", "none") != "none"]
    idle = [row for row in reading if not row["facts"] and row not in asked]
    assert (len(asked), len(idle)) == (6, 25)
    assert sum(any(tag.startswith("lang:") for tag in row["tags"]) for row in every) >= 8
    assert Counter(row["op"] for row in deciding) == {"ADD": 28, "UPDATE": 26, "NOOP": 14, "DELETE": 12}


def test_every_gold_fact_is_said_and_every_target_exists() -> None:
    reading, deciding = report.read_cases()
    for row in reading:
        names = [m["name"] for m in row["messages"] if "name" in m] or ["User"]
        for fact in row["facts"]:
            assert any(fact["quote"] in m["content"] for m in row["messages"]), row["id"]
            assert fact["text"].startswith((*names, "Assistant")), row["id"]
            assert len(fact["text"].split()) <= 25, row["id"]
    for row in deciding:
        assert 2 <= len(row["existing"]) <= 6, row["id"]
        assert bool(row["targets"]) == (row["op"] != "ADD"), row["id"]
        assert all(0 <= target < len(row["existing"]) for target in row["targets"]), row["id"]
        assert ("text" in row) == (row["op"] == "UPDATE"), row["id"]


def test_the_cases_are_not_training_data() -> None:
    ours = {row["id"] for rows in report.read_cases() for row in rows}
    for file in sorted((ROOT / "models" / "training").glob("*.jsonl")):
        theirs = {json.loads(line)["id"] for line in file.read_text(encoding="utf-8").splitlines()}
        assert not ours & theirs, file.name


# -------------------------------------------------------------------- as a command


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(*words, generator=None): the command; with a generator, that one in place of any that would be opened."""
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOCALMEM_GENERATOR", raising=False)
    monkeypatch.setattr(embed, "default_embedder", HashEmbedder)
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}  # click < 8.2
    runner = CliRunner(**apart)

    def run(*words: str, generator: Any = None, env: dict[str, str] | None = None) -> Ran:
        with monkeypatch.context() as patched:
            if generator is not None:
                patched.setattr(report, "open_model", lambda spec, adapter=None: generator)
            done = runner.invoke(cli, ["models", "report", *words], env=env)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Ran(done.exit_code, done.stdout, done.stderr)

    return run


def test_the_table_in_a_pipe(small: None, run: Run) -> None:
    generator = Failing("nothing", SCRIPT)
    ran = run(generator=generator)
    assert ran.code == 0
    lines = {cells[0]: cells[1:] for cells in (line.split("\t") for line in ran.out.splitlines())}
    low, high = wilson(1, 2)
    assert lines["precision"] == ["0.5000", f"{low:.4f}", f"{high:.4f}", "1", "2"]
    assert lines["forget_heard"][0] == "1.0000"
    assert lines["model"] == ["scripted"]
    assert lines["failed"] == ["0"]
    assert lines["measured"][0].endswith("reading whole")
    assert "█" not in ran.out
    assert generator.closed


def test_json_on_stdout_or_into_a_file(small: None, run: Run, tmp_path: Path) -> None:
    alone = run("--json", generator=ScriptedGenerator(SCRIPT))
    shape = json.loads(alone.out)
    assert list(shape) == [
        "model",
        "reading",
        "embedder",
        "machine",
        "date",
        "localmem",
        "cases",
        "rates",
        "failed",
        "failure",
        "speed",
        "resident_bytes",
    ]
    low, high = wilson(1, 4)
    noise = {"part": 1, "whole": 4, "rate": 0.25, "low": low, "high": high, "low_is_good": True}
    assert shape["rates"]["noise"] == noise
    assert shape["model"] == {"generator": "scripted"}
    assert shape["embedder"]["id"] == "hash"
    assert shape["machine"]["cpus"] >= 1
    file = tmp_path / "card.json"
    beside = run("some.gguf", "--json", str(file), generator=ScriptedGenerator(SCRIPT))
    assert beside.out.startswith("precision\t")
    assert beside.err.endswith(f"wrote {file}\n")  # where the machine is busy, progress stands before it
    assert json.loads(file.read_text())["rates"] == shape["rates"]
    assert run("--json", str(file), "--quiet", generator=ScriptedGenerator()).err == ""


def test_the_plot_is_whole_xml_whatever_the_model_is_called(small: None, run: Run, tmp_path: Path) -> None:
    class Named(ScriptedGenerator):
        id = 'llama:<b>&"evil\x1b[31m\udc80'

    file = tmp_path / "card.svg"
    assert run("--plot", str(file), generator=Named(SCRIPT)).code == 0
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == 'llama:<b>&"evil\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}'
    assert any(text and text.startswith("1/2 (50.0 %) [") for text in texts)
    bars = [
        node for node in root.iter("{http://www.w3.org/2000/svg}rect") if node.get("fill") in ("#2a78b5", "#c4622d")
    ]
    assert len(bars) == 10
    assert [float(bar.get("width", "")) for bar in bars[:2]] == [180.0, 180.0]  # half of the track
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 10  # each with its interval


def test_a_rate_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, targets = report.EXTRACTION[3], report.DECISION[1]
    monkeypatch.setattr(terminal, "can_show", lambda text: True)
    shown = models_cli._rate_cells(Rate(noise, 5, 20, *wilson(5, 20)))
    assert shown == ("idle turns with facts ↓", "25.0 %", "██▒▒▒▒▒▒▒···········", "11 – 47", "5/20")
    assert models_cli._rate_cells(Rate(targets, 0, 0, 0.0, 1.0)) == ("their targets right", "–", "", "", "0/0")
    monkeypatch.setattr(terminal, "can_show", lambda text: False)
    assert models_cli._bar(Rate(noise, 5, 20, *wilson(5, 20))) == "##+++++++..........."


def test_a_model_that_fails_everywhere_ends_with_1_and_a_card(
    small: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise GeneratorError("the pretend model broke")

    monkeypatch.setattr(report, "decided", broken)  # else an exact duplicate needs no model
    ran = run("--json", generator=ScriptedGenerator(fail=True))
    shape = json.loads(ran.out)
    assert ran.code == 1
    assert shape["failed"] == {"extract": 6, "decide": 3, "add": 2}
    assert shape["rates"]["operation"]["part"] == 0
    assert shape["rates"]["operation"]["whole"] == 3


def test_bad_files_are_one_line_and_1(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("not a model")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 64)
    gone = tmp_path / "gone.gguf"
    for words, kind, said in (
        ((str(gone),), "ModelNotFoundError", str(gone)),
        ((str(text),), "ModelFileError", "is not a GGUF file"),
        ((str(tmp_path),), "ModelFileError", "can't be read"),
        ((str(gguf), "--adapter", str(gone)), "ModelNotFoundError", str(gone)),
        ((str(gguf), "--adapter", str(text)), "ModelFileError", "is not a GGUF file"),
        (("none",), "InvalidInputError", "'none'"),
        (("",), "InvalidInputError", "empty"),
        (("http://127.0.0.1:9/v1", "--adapter", str(gguf)), "InvalidInputError", "--adapter"),
        (("http://models.example.org/v1",), "InvalidInputError", "not this machine"),
        ((), "ModelNotFoundError", "localmem models install"),
    ):
        plain, as_json = run(*words), run(*words, "--json")
        assert (plain.code, plain.out, as_json.code, as_json.out) == (1, "", 1, ""), words
        assert plain.err.startswith("error: ")
        assert plain.err.count("\n") == 1
        assert said in plain.err
        assert json.loads(as_json.err)["error"]["type"] == kind, words


@pytest.mark.parametrize(
    "words",
    [("--rows", "0"), ("--rows", "x"), ("--plot", "card.png"), ("--json", "missing/card.json"), ("a", "b")],
    ids=" ".join,
)
def test_misuse_is_2_before_anything_is_measured(run: Run, words: tuple[str, ...]) -> None:
    generator = ScriptedGenerator()
    ran = run(*words, generator=generator)
    assert (ran.code, ran.out, generator.calls) == (2, "", [])
    assert ran.err


def test_a_model_in_the_place_of_the_json_file_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    ran = run("--json", str(model), generator=ScriptedGenerator())
    assert ran.code == 2
    assert "name the model before the options" in ran.err
    assert model.read_bytes() == b"GGUF"


def test_a_file_that_cannot_be_written_is_told_after_the_card(small: None, run: Run, tmp_path: Path) -> None:
    taken = tmp_path / "folder.json"
    taken.mkdir()
    ran = run("--json", str(taken), generator=ScriptedGenerator())
    assert ran.code == 1
    assert ran.out.startswith("precision")
    assert json.loads(ran.err.splitlines()[-1])["error"]["type"] == "StorageError"


def test_which_model_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other, adapter = (tmp_path / name for name in ("one.gguf", "two.gguf", "localmem-x.gguf"))
    for file in (model, other, adapter):
        file.write_bytes(b"GGUF")
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOCALMEM_GENERATOR", str(other))
    assert report.open_model(str(model)).id == "llama:one"
    assert report.open_model(None).id == "llama:two"
    adapted = report.open_model(None, adapter)
    assert isinstance(adapted, LlamaGenerator)
    assert adapted.id == "llama:two+localmem-x"
    assert report.open_model("http://localhost:8080/v1#m").id == "server:m"
    monkeypatch.setenv("LOCALMEM_GENERATOR", "none")
    with pytest.raises(InvalidInputError):
        report.open_model(None)
    monkeypatch.delenv("LOCALMEM_GENERATOR")
    with pytest.raises(ModelNotFoundError):
        report.open_model(None, adapter)
    with pytest.raises(ModelFileError):
        report.open_model(str(model), tmp_path)


def test_the_path_wins_over_the_shared_option(small: None, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def open_model(spec: str | None, adapter: Path | None = None) -> ScriptedGenerator:
        asked.append((spec, adapter))
        return ScriptedGenerator()

    monkeypatch.setattr(report, "open_model", open_model)
    for words in (("one.gguf", "--generator", "two.gguf"), ("--generator", "two.gguf"), ("--adapter", "a.gguf")):
        assert run(*words).code == 0
    assert asked == [("one.gguf", None), ("two.gguf", None), (None, Path("a.gguf"))]


# -------------------------------------------------------------------- scripts/eval_pipeline.py


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import eval_pipeline

    return eval_pipeline


def evaluated(pipeline: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, generator: Any, *words: str) -> Any:
    monkeypatch.setattr(pipeline, "LlamaGenerator", lambda path, adapter=None: generator)
    monkeypatch.setattr(pipeline, "default_embedder", HashEmbedder)
    monkeypatch.setattr(sys, "argv", ["eval_pipeline.py", *words])
    pipeline.main()
    return capsys.readouterr()


def rows_file(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_extraction_by_language_author_and_tag(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows = [*CASES[:6], turn("Z-1", "Ich habe zwei Ziegen.", ["User hat zwei Ziegen"], tags=["lang:de", "pets"])]
    script = {**SCRIPT, "Ziegen": ["User hat zwei Ziegen"]}
    words = ["extract", rows_file(tmp_path, rows), "--model", "m.gguf", "--part", "all", "--json"]

    def told(by: str) -> Any:
        generator = ScriptedGenerator(script)
        return json.loads(evaluated(pipeline, monkeypatch, capsys, generator, *words, "--by", by).out)

    whole = told("lang")
    assert (whole["rows"], whole["rates"]["recall"]["part"], whole["rates"]["recall"]["whole"]) == (7, 2, 3)
    assert (whole["rates"]["recall"]["low"], whole["rates"]["recall"]["high"]) == wilson(2, 3)
    # only rows that say something about requests count: one request, one that only looks like one
    assert [whole["rates"][name]["whole"] for name in ("forget_heard", "forget_false")] == [1, 1]
    assert whole["rates"]["forget_heard"]["part"] == 1
    assert {group: found["rows"] for group, found in whole["by"].items()} == {"en": 6, "de": 1}
    assert whole["by"]["de"]["rates"]["precision"]["rate"] == 1.0
    assert {group: found["rows"] for group, found in told("author")["by"].items()} == {"T": 6, "Z": 1}
    tags = {group: found["rows"] for group, found in told("tag")["by"].items()}
    assert tags == {"(none)": 6, "lang:de": 1, "pets": 1}


def test_extraction_in_words_and_a_row_that_fails(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = ["extract", rows_file(tmp_path, CASES), "--model", "m.gguf", "--part", "all", "--show", "9"]
    said = evaluated(pipeline, monkeypatch, capsys, Failing("viola", SCRIPT), *words)
    assert "T-2: the pretend model broke" in said.err
    assert "1 failed" in said.out
    assert "gold facts found: 1/2 (50.0 %) [9.5, 90.5]" in said.out
    assert "User keeps two ferrets in Lund" in said.out  # --show
    assert "('evidence',)" in said.out


def test_decisions_and_requests_to_forget(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A request's memories are asked about one by one: those whose likeliest label is the last one are meant."""
    asked = choice("F-1", "", ["User's ex is Thibault", "User reads novels"], "DELETE", 0, request="forget my ex")
    nothing = choice("F-2", "", ["User's ex is Odile", "User sails"], "NOOP", request="forget it, wrong window")
    for row in (asked, nothing):
        del row["fact"]

    def labels(prompt: Prompt, options: Sequence[str]) -> list[float]:
        meant = "ex is" in prompt.turns[-1][1]
        return [-9.0] * (len(options) - 1) + [-0.001 if meant else -9.0]

    words = ["decide", rows_file(tmp_path, [*CASES, asked, nothing]), "--model", "m.gguf", "--part", "all", "--json"]
    told = json.loads(evaluated(pipeline, monkeypatch, capsys, ScriptedGenerator(labels=labels), *words).out)
    counts = {name: (rate["part"], rate["whole"]) for name, rate in told["rates"].items()}
    assert counts["meant_precision"] == (1, 2)
    assert counts["meant_recall"] == (1, 1)
    assert counts["meant_exact"] == (1, 2)
    assert counts["meant_wrong"] == (1, 2)
    assert counts["operation"][1] == 3  # the requests are not among the operations


def test_decide_needs_no_model_and_extract_does(tmp_path: Path) -> None:
    rows = rows_file(tmp_path, CASES)
    script = str(ROOT / "scripts" / "eval_pipeline.py")

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False, cwd=ROOT)

    done = ran("decide", rows, "--part", "all", "--by", "author", "--show", "1")
    assert done.returncode == 0, done.stderr
    assert "destructive errors: 0/3 (0.0 %) [0.0, 56.1], the lower the better" in done.stdout
    assert "T: rows 3" in done.stdout
    assert "gold NOOP    ADD    0 UPDATE    0 DELETE    0 NOOP    1" in done.stdout
    assert ran("extract", rows).returncode == 2
