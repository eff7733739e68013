"""Does this machine's model answer like the reference's? 40 prompts and the answers of the reference machine.

What a 4-bit model, an adapter and a processor's own kernels make together may differ between machines. The file
``probe.json`` lies beside the manifest and is written by ``scripts/train/make_probe.py``. A prompt is scored alone:
beside others its probabilities move (`LlamaGenerator.score_labels_many`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localmem import prompts
from localmem.errors import ModelFileError, ModelNotFoundError
from localmem.manifest import REINSTALL, manifest
from localmem.types import Generator, Prompt

FILE = "probe.json"
FORM = 1  # of the file
SURE_MIN = 0.8  # probability of the reference's label from which another one here is a failure
PROBABILITY_DIGITS = 4  # of what is told; the file's own rounding is finer
_TOKENS_MAX = {"wish": 48, "reword": 64}  # about those of run time
_MAKE = "python scripts/train/make_probe.py"

Progress = Callable[[int, str], None]  # gets the number of prompts done and the id of the last one


@dataclass(frozen=True, slots=True)
class Answer:
    """What a generator says to one prompt: whatever its prompt file has, labels, a grammar or both, is asked for."""

    labels: Mapping[str, float]  # meaning -> log-probability; empty where nothing is scored
    text: str | None  # the greedy reply; None where none is written


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt, whole, so that it stays the same when the code that renders prompts changes."""

    id: str
    prompt: str  # name of its prompt file
    turns: tuple[tuple[str, str], ...]
    subjects: tuple[str, ...]  # whom a reply may be about; empty where the grammar does not ask
    expected: Answer


@dataclass(frozen=True, slots=True)
class Probe:
    """The prompts, the reference's answers, and what gave them."""

    form: int
    made_on: str  # day
    machine: str  # processor and system of the reference
    fingerprint: Mapping[str, str]  # of its generator
    prompt_versions: Mapping[str, str]  # by the prompt file's name
    cases: tuple[Case, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of the file; `load` reads it back."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LabelDifference:
    """Another label is the likeliest here. Each probability is that of its own machine's label."""

    id: str
    expected: str
    expected_probability: float
    found: str
    found_probability: float

    @property
    def failure(self) -> bool:
        """Whether the reference was sure; where it was in doubt, rounding may tip the scale."""
        return self.expected_probability >= SURE_MIN


@dataclass(frozen=True, slots=True)
class TextDifference:
    """Another reply here: a notice, since one token that was a close choice changes all that follow it."""

    id: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How this machine's answers compare with the reference's."""

    asked: int  # prompts
    labels: tuple[LabelDifference, ...]
    texts: tuple[TextDifference, ...]
    shift_max: float  # largest difference of a label's probability, in [0, 1]
    shift_id: str  # the prompt where it was found; "" where nothing shifted
    generator: str  # id of the generator that was asked
    reference: str  # id of the reference's
    same_base: bool  # the model file is byte for byte the reference's; one requantised here often is not

    @property
    def failed(self) -> bool:
        """Whether a label differs of which the reference was sure."""
        return any(difference.failure for difference in self.labels)

    def to_dict(self) -> dict[str, Any]:
        """The shape that the command line prints."""
        labels = [{**asdict(difference), "failure": difference.failure} for difference in self.labels]
        return {**asdict(self), "labels": labels, "failed": self.failed}


# ------------------------------------------------------------------ the file


def load(folder: Path | None = None) -> Probe:
    """The probe beside the manifest in ``folder``, by default the package's own.

    Raises ModelNotFoundError where there is none, ModelFileError when it can't be understood.
    """
    path = manifest(folder).folder / FILE
    try:
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ModelNotFoundError(f"the probe {path} is missing; {REINSTALL}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path} can't be understood ({type(error).__name__}: {error}); {REINSTALL}") from error


def _parsed(table: Mapping[str, Any]) -> Probe:
    if table["form"] != FORM:
        raise ValueError(f"its form is {table['form']}, this localmem reads {FORM}")
    if not table["cases"]:
        raise ValueError("it holds no prompts")
    versions = dict(table["prompt_versions"].items())
    return Probe(
        form=FORM,
        made_on=str(table["made_on"]),
        machine=str(table["machine"]),
        fingerprint=dict(table["fingerprint"].items()),
        prompt_versions=versions,
        cases=tuple(_case(row, versions) for row in table["cases"]),
    )


def _case(row: Mapping[str, Any], versions: Mapping[str, str]) -> Case:
    expected = row["expected"]
    if row["prompt"] not in versions:
        raise ValueError(f"prompt {row['id']} is of {row['prompt']!r}, which has no version there")
    return Case(
        id=row["id"],
        prompt=row["prompt"],
        turns=tuple((role, text) for role, text in row["turns"]),
        subjects=tuple(row["subjects"]),
        expected=Answer(
            labels={meaning: float(score) for meaning, score in expected["labels"].items()},
            text=expected["text"],
        ),
    )


# ------------------------------------------------------------------ asking


def answer(generator: Generator, case: Case) -> Answer:
    """What the generator says to the prompt, alone. Raises GeneratorError when the model fails."""
    file = prompts.load(case.prompt)
    prompt = Prompt(case.prompt, file.version, case.turns)
    labels: dict[str, float] = {}
    if file.labels:
        scores = generator.score_labels(prompt, list(file.labels.values()))
        labels = dict(zip(file.labels, scores, strict=True))
    if file.grammar is None:
        return Answer(labels, None)
    whom = file.grammar_placeholders
    grammar = prompts.grammar(case.prompt, subjects=case.subjects) if whom else prompts.grammar(case.prompt)
    reply = generator.generate(prompt, grammar=grammar, tokens_max=_TOKENS_MAX[case.prompt])
    return Answer(labels, reply.strip())  # a last line's end means nothing to those who read the reply


def run(generator: Generator, probe: Probe, *, progress: Progress | None = None) -> Outcome:
    """Ask all prompts of the probe and compare the answers with the reference's.

    Raises ModelFileError when the probe is for another model, GeneratorError when the model fails.
    """
    check_fits(generator, probe)
    found: list[tuple[Case, Answer]] = []
    for case in probe.cases:
        found.append((case, answer(generator, case)))
        if progress is not None:
            progress(len(found), case.id)
    shift_max, shift_id = max((_shift(case.expected, here), case.id) for case, here in found)
    return Outcome(
        asked=len(found),
        labels=tuple(other for case, here in found for other in _other_label(case, here)),
        texts=tuple(other for case, here in found for other in _other_text(case, here)),
        shift_max=shift_max,
        shift_id=shift_id if shift_max > 0 else "",
        generator=generator.id,
        reference=probe.fingerprint["generator"],
        same_base=generator.fingerprint().get("model_sha256") == probe.fingerprint["model_sha256"],
    )


def check_fits(generator: Generator, probe: Probe) -> None:
    """ModelFileError when the generator's adapter or a prompt file is not the one that the probe was made with.

    The base model's file may differ: its faster form is made on each machine.
    """
    wanted, given = probe.fingerprint["adapter"], generator.fingerprint().get("adapter", "")
    if given != wanted:
        raise ModelFileError(
            f"the probe {FILE} is for another model: it was made with adapter {_short(wanted)}, {generator.id} has "
            f"adapter {_short(given)}; leave the generator out to probe the default one; after training: {_MAKE}"
        )
    others = sorted(name for name, version in probe.prompt_versions.items() if prompts.load(name).version != version)
    if others:
        raise ModelFileError(
            f"the probe {FILE} is for another model: it was made with other versions of the prompts "
            f"{', '.join(others)}; {REINSTALL}; after changing a prompt: {_MAKE}"
        )


def _short(sha256: str) -> str:
    return f"{sha256[:12]}…" if sha256 else "none"


# ------------------------------------------------------------------ comparing


def _shift(expected: Answer, found: Answer) -> float:
    """The largest difference of a label's probability."""
    moved = (abs(math.exp(score) - math.exp(found.labels[label])) for label, score in expected.labels.items())
    return round(max(moved, default=0.0), PROBABILITY_DIGITS)


def _other_label(case: Case, found: Answer) -> Iterator[LabelDifference]:
    if case.expected.labels:
        (there, there_probability), (here, here_probability) = _likeliest(case.expected), _likeliest(found)
        if there != here:
            yield LabelDifference(case.id, there, there_probability, here, here_probability)


def _likeliest(told: Answer) -> tuple[str, float]:
    label = max(told.labels, key=lambda each: told.labels[each])
    return label, round(math.exp(told.labels[label]), PROBABILITY_DIGITS)


def _other_text(case: Case, found: Answer) -> Iterator[TextDifference]:
    if case.expected.text is not None and found.text is not None and case.expected.text != found.text:
        yield TextDifference(case.id, case.expected.text, found.text)
