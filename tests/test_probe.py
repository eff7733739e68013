"""The probe: does this machine's model answer like the reference's? Scripted generators, and (``model``) the real one."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from localmem import artifacts, gbnf, llm, manifest, probe, prompts
from localmem.cli import cli
from localmem.errors import GeneratorError, LocalmemError, ModelFileError, ModelNotFoundError
from localmem.llm import adapter_sha256
from localmem.probe import Answer, Case, LabelDifference, Outcome, Probe, TextDifference
from localmem.testing import ScriptedGenerator
from localmem.types import Prompt

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train" / "make_probe.py"
ADAPTER, BASE = "a" * 64, "b" * 64
PROMPTS = {"stance": 22, "wish": 10, "reword": 8}  # how many of each are shipped


def chances(name: str, **given: float) -> dict[str, float]:
    """Log-probabilities of a prompt's labels; those not given share what is left."""
    labels = prompts.load(name).labels
    left = (1 - sum(given.values())) / max(1, len(labels) - len(given))
    return {label: math.log(given.get(label, left)) for label in labels}


def case(id: str, expected: Answer) -> Case:
    name = id.partition("-")[0]
    return Case(id, name, (("system", name), ("user", f"say {id}")), ("User",), expected)


CASES = (
    case("reword-tea", Answer({}, "User drinks green tea")),
    case("stance-sure", Answer(chances("stance", changes=0.9), None)),
    case("stance-open", Answer(chances("stance", refines=0.45, changes=0.4), None)),
    case("wish-all", Answer(chances("wish", everything=0.8), "everything")),
    case("reword-hat", Answer({}, "User's hat is red")),
)
SAME = {each.id: each.expected for each in CASES}


@pytest.fixture
def reference() -> Probe:
    return Probe(
        form=probe.FORM,
        made_on="2025-03-01",
        machine="an abacus",
        fingerprint={"generator": "llama:base+localmem", "model_sha256": BASE, "adapter": ADAPTER},
        prompt_versions={name: prompts.load(name).version for name in ("stance", "wish", "reword")},
        cases=CASES,
    )


class Machine(ScriptedGenerator):
    """A generator of the probe's adapter that answers each prompt of CASES as it is told."""

    id = "llama:base+localmem"

    def __init__(
        self, answers: Mapping[str, Answer] = SAME, *, adapter: str = ADAPTER, base: str = BASE, **options: Any
    ) -> None:
        super().__init__(**options)
        self.answers, self.adapter, self.base = answers, adapter, base

    def fingerprint(self) -> Mapping[str, str]:
        return {"generator": self.id, "model_sha256": self.base, "adapter": self.adapter}

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        super().generate(prompt, grammar=grammar, tokens_max=tokens_max)
        text = self._answer(prompt).text
        assert text is not None
        assert gbnf.parse(grammar).matches(text)
        return text + "\n"  # as some grammars allow

    def score_labels(self, prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
        super().score_labels(prompt, labels)
        assert list(labels) == list(prompts.load(prompt.name).labels.values())
        return tuple(self._answer(prompt).labels.values())

    def score_labels_many(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> list[tuple[float, ...]]:
        raise AssertionError("side by side, a 4-bit model's probabilities move")

    def _answer(self, prompt: Prompt) -> Answer:
        return self.answers[prompt.turns[-1][1].removeprefix("say ")]


def saying(id: str, **other: Any) -> Machine:
    """A machine that differs from the reference in one prompt."""
    return Machine({**SAME, id: replace(SAME[id], **other)})


def unchanged(asked: int, id: str) -> Outcome:
    return Outcome(
        asked=asked, labels=(), texts=(), shift_max=0.0, shift_id="", generator=id, reference=id, same_base=True
    )


class TestComparing:
    def test_the_same_answers(self, reference: Probe) -> None:
        machine, steps = Machine(), list[tuple[int, str]]()
        outcome = probe.run(machine, reference, progress=lambda done, id: steps.append((done, id)))
        assert outcome == unchanged(5, machine.id)
        assert not outcome.failed
        assert steps == list(enumerate(SAME, start=1))
        assert machine.calls == [
            ("generate", "reword"),
            ("score_labels", "stance"),
            ("score_labels", "stance"),
            ("score_labels", "wish"),
            ("generate", "wish"),
            ("generate", "reword"),
        ]

    def test_another_label_where_the_reference_was_sure_is_a_failure(self, reference: Probe) -> None:
        outcome = probe.run(saying("stance-sure", labels=chances("stance", retracts=0.7, changes=0.1)), reference)
        assert outcome.labels == (LabelDifference("stance-sure", "changes", 0.9, "retracts", 0.7),)
        assert outcome.failed
        assert (outcome.shift_max, outcome.shift_id) == (0.8, "stance-sure")
        assert outcome.to_dict()["failed"] is outcome.to_dict()["labels"][0]["failure"] is True

    def test_exactly_sure_is_sure(self, reference: Probe) -> None:
        assert probe.run(saying("wish-all", labels=chances("wish", none=0.9)), reference).failed

    def test_another_label_where_it_was_in_doubt_is_a_notice(self, reference: Probe) -> None:
        outcome = probe.run(saying("stance-open", labels=chances("stance", refines=0.42, changes=0.43)), reference)
        assert [(other.expected, other.found) for other in outcome.labels] == [("refines", "changes")]
        assert not outcome.failed

    def test_moved_probabilities_alone_are_told(self, reference: Probe) -> None:
        outcome = probe.run(saying("stance-sure", labels=chances("stance", changes=0.85, same=0.08)), reference)
        assert (outcome.labels, outcome.failed) == ((), False)
        assert (outcome.shift_max, outcome.shift_id) == (0.055, "stance-sure")

    @pytest.mark.parametrize(("id", "text"), [("wish-all", "last"), ("reword-tea", "User drinks black tea")])
    def test_another_text_is_a_notice(self, reference: Probe, id: str, text: str) -> None:
        outcome = probe.run(saying(id, text=text), reference)
        assert outcome.texts == (TextDifference(id, str(SAME[id].text), text),)
        assert not outcome.failed

    def test_a_base_made_here_is_told_and_no_error(self, reference: Probe) -> None:
        outcome = probe.run(
            Machine(base="c" * 64), replace(reference, fingerprint={**reference.fingerprint, "generator": "old"})
        )
        assert (outcome.same_base, outcome.generator, outcome.reference) == (False, "llama:base+localmem", "old")
        assert (outcome.labels, outcome.texts, outcome.failed) == ((), (), False)

    def test_an_outcome_is_json(self, reference: Probe) -> None:
        told = probe.run(saying("wish-all", text="none"), reference).to_dict()
        assert json.loads(json.dumps(told))["texts"] == [{"id": "wish-all", "expected": "everything", "found": "none"}]


class TestAnotherModel:
    @pytest.mark.parametrize(("adapter", "words"), [("", "has adapter none"), ("c" * 64, "has adapter cccccccccccc…")])
    def test_another_adapter(self, reference: Probe, adapter: str, words: str) -> None:
        machine = Machine(adapter=adapter)
        with pytest.raises(ModelFileError, match=f"for another model.* adapter aaaaaaaaaaaa….*{words}.*make_probe.py"):
            probe.run(machine, reference)
        assert machine.calls == []

    def test_a_generator_that_has_no_adapters(self, reference: Probe) -> None:
        with pytest.raises(ModelFileError, match="scripted has adapter none; leave the generator out"):
            probe.run(ScriptedGenerator(), reference)

    def test_other_prompts(self, reference: Probe) -> None:
        machine = Machine()
        old = replace(reference, prompt_versions={**reference.prompt_versions, "wish": "0" * 12, "reword": "1" * 12})
        with pytest.raises(ModelFileError, match="for another model.*prompts reword, wish;"):
            probe.run(machine, old)
        assert machine.calls == []

    def test_a_failing_model_is_no_difference(self, reference: Probe) -> None:
        with pytest.raises(GeneratorError, match="told to fail"):
            probe.run(Machine(fail=True), reference)


class TestFile:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A folder with the manifest and no probe."""
        shutil.copy(artifacts.manifest().folder / manifest.MANIFEST, tmp_path)
        return tmp_path

    def test_it_reads_what_was_written(self, folder: Path, reference: Probe) -> None:
        (folder / probe.FILE).write_text(json.dumps(reference.to_dict()), encoding="utf-8")
        assert probe.load(folder) == reference

    def test_without_a_file(self, folder: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"probe\.json is missing; reinstall localmem"):
            probe.load(folder)

    @pytest.mark.parametrize(
        "break_it",
        [
            lambda table: table.update(form=2),
            lambda table: table.update(cases=[]),
            lambda table: table.update(fingerprint=None),
            lambda table: table.pop("prompt_versions"),
            lambda table: table["prompt_versions"].pop("wish"),
            lambda table: table["cases"][0].pop("turns"),
            lambda table: table["cases"][1]["expected"]["labels"].update(same="likely"),
        ],
    )
    def test_a_broken_file_is_a_clear_error(
        self, folder: Path, reference: Probe, break_it: Callable[[dict[str, Any]], object]
    ) -> None:
        table = json.loads(json.dumps(reference.to_dict()))
        break_it(table)
        (folder / probe.FILE).write_text(json.dumps(table), encoding="utf-8")
        with pytest.raises(ModelFileError, match=r"probe\.json can't be understood .*reinstall localmem"):
            probe.load(folder)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
    def test_no_json_is_a_clear_error(self, folder: Path, content: bytes) -> None:
        (folder / probe.FILE).write_bytes(content)
        with pytest.raises(ModelFileError, match=r"probe\.json can't be understood"):
            probe.load(folder)


class TestShipped:
    def test_forty_prompts_with_possible_answers(self) -> None:
        shipped = probe.load()
        assert Counter(each.prompt for each in shipped.cases) == PROMPTS
        assert len({each.id for each in shipped.cases}) == len({each.turns for each in shipped.cases}) == 40
        for each in shipped.cases:
            file = prompts.load(each.prompt)
            assert set(each.expected.labels) == set(file.labels), each.id
            if file.labels:
                assert sum(map(math.exp, each.expected.labels.values())) == pytest.approx(1, abs=1e-5), each.id
            assert (each.expected.text is None) == (file.grammar is None), each.id
            if each.expected.text is not None:
                literals: dict[str, Any] = {"subjects": each.subjects} if file.grammar_placeholders else {}
                assert gbnf.parse(prompts.grammar(each.prompt, **literals)).matches(each.expected.text), each.id

    def test_it_is_of_the_prompts_and_the_adapter_that_are_shipped(self) -> None:
        """Fails after training or a change of a prompt until scripts/train/make_probe.py was run again."""
        shipped = probe.load()
        assert shipped.prompt_versions == {name: prompts.load(name).version for name in shipped.prompt_versions}
        adapter = artifacts.adapter_path()
        if adapter is None:
            pytest.skip("the manifest names no adapter")
        assert shipped.fingerprint["adapter"] == adapter_sha256(adapter)


class TestCommand:
    """`localmem models verify --probe`."""

    @pytest.fixture
    def verify(self, reference: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
        monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path))
        monkeypatch.setattr(probe, "load", lambda: reference)

        def verify(machine: Machine | None, *words: str) -> Result:
            monkeypatch.setattr(llm, "open_generator", lambda spec: machine)
            apart = (
                {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
            )  # click < 8.2
            return CliRunner(**apart).invoke(cli, ["models", "verify", "--probe", *words])

        return verify

    def test_the_same_answers(self, verify: Callable[..., Result]) -> None:
        done = verify(Machine())
        assert done.exit_code == 0
        assert (
            "probe: 5 prompts, other labels 0, other texts 0, largest difference of a probability 0.000\n"
            in done.stderr
        )
        assert "notice" not in done.stdout
        assert "failure" not in done.stdout
        assert verify(Machine(), "--quiet").stderr == ""

    def test_a_failure_and_notices(self, verify: Callable[..., Result]) -> None:
        labels = chances("stance", retracts=0.7, changes=0.1)
        other = {**SAME, "stance-sure": Answer(labels, None), "reword-tea": Answer({}, "User drinks mate")}
        done = verify(Machine(other, base="c" * 64))
        assert done.exit_code == 1
        assert "failure\tstance-sure\tchanges 0.90\tretracts 0.70\n" in done.stdout
        assert "notice\treword-tea\tUser drinks green tea\tUser drinks mate\n" in done.stdout
        assert "0.800 (stance-sure); the base model's file differs: llama:base+localmem here" in done.stderr

    def test_notices_alone_are_a_success(self, verify: Callable[..., Result]) -> None:
        done = verify(saying("wish-all", text="none"))
        assert done.exit_code == 0
        assert "notice\twish-all\teverything\tnone\n" in done.stdout

    def test_json(self, verify: Callable[..., Result]) -> None:
        told = json.loads(verify(saying("wish-all", text="none"), "--json").stdout)
        assert set(told) == {"models", "probe"}
        assert (told["probe"]["asked"], told["probe"]["failed"], len(told["probe"]["texts"])) == (5, False, 1)

    def test_another_model_is_an_error(self, verify: Callable[..., Result]) -> None:
        done = verify(Machine(adapter=""))
        assert done.exit_code == 1
        assert done.stderr.startswith("error: the probe probe.json is for another model")
        assert "error: there is no generator 'none'" in verify(None).stderr

    def test_a_damaged_file_is_not_asked(self, verify: Callable[..., Result], tmp_path: Path) -> None:
        (tmp_path / "mine.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(64))
        put = artifacts.import_file(tmp_path / "mine.gguf")
        put.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(65))
        machine = Machine()
        done = verify(machine)
        assert done.exit_code == 1
        assert "probe: not run" in done.stderr
        assert json.loads(verify(machine, "--json").stdout)["probe"] is None
        assert machine.calls == []


class TestMaking:
    @pytest.fixture
    def script(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("make_probe", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_the_shipped_prompts_are_those_of_the_cases(self, script: ModuleType) -> None:
        rows = [json.loads(line) for line in script.CASES.read_text(encoding="utf-8").splitlines()]
        assert [row["id"] for row in rows] == [each.id for each in probe.load().cases]

    def test_prompts_are_rendered_as_at_run_time(self, script: ModuleType) -> None:
        said = [{"role": "user", "name": "Ingrid", "content": "I start tomorrow"}]
        told = script.case_of({"id": "t", "prompt": "stance", "fact": "Ann sings", "known": "Ann\nhums"})
        assert told.turns[-1] == ("user", "new: Ann sings\nold: Ann hums")
        asked = script.case_of(
            {"id": "s", "prompt": "stance", "request": "lose my hat size", "known": "User has a hat"}
        )
        assert asked.turns[-1] == ("user", "new: User asks: lose my hat size\nold: User has a hat")
        for earlier, line in (([], ""), ([{"role": "assistant", "content": "Any news?"}], "< assistant: Any news?\n")):
            wish = script.case_of({"id": "w", "prompt": "wish", "earlier": earlier, "messages": said})
            assert wish.turns[-1] == ("user", f"{line}Ingrid: I start tomorrow")
        reword = {
            "id": "r",
            "prompt": "reword",
            "stance": "changes",
            "known": "Ann's hat is red",
            "fact": "Ann dyed it",
        }
        assert script.case_of(reword).subjects == ("Ann",)
        assert script.case_of(reword).turns[-1] == ("user", "changes\nold: Ann's hat is red\nnew: Ann dyed it")

    def test_the_cases_can_be_rendered(self, script: ModuleType) -> None:
        rows = [json.loads(line) for line in script.CASES.read_text(encoding="utf-8").splitlines()]
        made = [script.case_of(row) for row in rows]
        assert Counter(each.prompt for each in made) == PROMPTS
        assert len({each.id for each in made}) == len({each.turns for each in made}) == 40
        assert all(each.id.startswith(f"{each.prompt}-") for each in made)

    def test_answers_are_kept_rounded(self, script: ModuleType) -> None:
        kept = script.answered(Machine(), replace(CASES[1], expected=Answer({}, None))).expected
        assert kept.labels == {label: round(score, 6) for label, score in SAME["stance-sure"].labels.items()}

    def test_what_does_not_repeat_is_refused(self, script: ModuleType) -> None:
        answers = iter([SAME["reword-tea"], Answer({}, "User drinks tea")])

        class Wavering(Machine):
            def _answer(self, prompt: Prompt) -> Answer:
                return next(answers)

        with pytest.raises(SystemExit, match="reword-tea: two answers of this machine differ"):
            script.answered(Wavering(), CASES[0])

    def test_a_model_that_was_not_tuned_is_refused(
        self, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(artifacts, "adapter_path", lambda: None)
        monkeypatch.setattr("sys.argv", ["make_probe.py", "--model", "base.gguf", "--out", str(tmp_path / "p.json")])
        assert script.main() == 1
        assert "give --adapter" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.model
class TestRealModel:
    @pytest.fixture
    def gguf(self) -> Path:
        """The installed base model."""
        pytest.importorskip("llama_cpp")
        try:
            return artifacts.generator_path()
        except LocalmemError as error:
            pytest.skip(f"no base model: {type(error).__name__}")

    def test_a_machine_answers_like_itself(self, gguf: Path) -> None:
        from localmem.llm import LlamaGenerator

        shipped = probe.load()
        few = [next(each for each in shipped.cases if each.prompt == name) for name in ("stance", "wish", "reword")]
        generator = LlamaGenerator(gguf)
        cases = tuple(replace(each, expected=probe.answer(generator, each)) for each in few)
        generator.close()
        generator = LlamaGenerator(gguf, threads=1)
        own = replace(shipped, fingerprint=generator.fingerprint(), cases=cases[::-1])
        outcome = probe.run(generator, own)
        generator.close()
        assert outcome == unchanged(3, generator.id)

    @pytest.mark.slow
    def test_this_machine_answers_like_the_reference(self, gguf: Path) -> None:
        from localmem.llm import LlamaGenerator

        adapter = artifacts.adapter_path()
        if adapter is None:
            pytest.skip("the manifest names no adapter")
        generator = LlamaGenerator(gguf, adapter=adapter)
        outcome = probe.run(generator, probe.load())
        generator.close()
        assert not outcome.failed, [other for other in outcome.labels if other.failure]
