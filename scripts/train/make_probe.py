"""Write models/probe.json: the prompts of probe_cases.jsonl, and what the shipped model answers on this machine.

    python scripts/train/make_probe.py [--model BASE.gguf --adapter ADAPTER.gguf]

To be run on the reference machine whenever the adapter or a prompt of the tuned model changed. `localmem models verify
--probe` compares other machines with it. The people in the prompts are invented.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localmem import artifacts, probe, prompts, tuned
from localmem.llm import LlamaGenerator
from localmem.probe import Answer, Case, Probe
from localmem.types import Message

CASES = Path(__file__).with_name("probe_cases.jsonl")
TARGET = Path(__file__).resolve().parents[2] / "models" / probe.FILE
LOG_DIGITS = 6  # finer than any machine repeats


def main() -> int:
    options = parser().parse_args()
    model = options.model or artifacts.generator_path()
    generator = LlamaGenerator(model, adapter=options.adapter or artifacts.adapter_path())
    if not tuned.speaks(generator.id):
        print(f"{generator.id} is not the tuned model: give --adapter localmem….gguf", file=sys.stderr)
        return 1
    if model.name != (usual := artifacts.manifest().generator.requantised):
        print(f"warning: users run {usual}, this reference is made with {model.name}", file=sys.stderr)
    cases = []
    for line in CASES.read_text(encoding="utf-8").splitlines():
        cases.append(answered(generator, case_of(json.loads(line))))
        print(f"{len(cases):2} {summary(cases[-1])}", file=sys.stderr)
    text = json.dumps(made_of(generator, cases).to_dict(), ensure_ascii=False, indent=1) + "\n"
    generator.close()
    options.out.write_text(text, encoding="utf-8", newline="\n")
    print(f"{options.out}: {len(cases)} prompts, {len(text.encode()):,} bytes", file=sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Record the reference machine's answers to the probe's prompts.")
    made.add_argument("--model", type=Path, help="base GGUF; by default the installed one")
    made.add_argument("--adapter", type=Path, help="adapter GGUF or a folder of them; by default the manifest's")
    made.add_argument("--out", type=Path, default=TARGET)
    return made


def made_of(generator: LlamaGenerator, cases: Sequence[Case]) -> Probe:
    return Probe(
        form=probe.FORM,
        made_on=f"{datetime.now(UTC):%Y-%m-%d}",
        machine=machine(),
        fingerprint=dict(generator.fingerprint()),
        prompt_versions={name: prompts.load(name).version for name in sorted({case.prompt for case in cases})},
        cases=tuple(cases),
    )


def case_of(row: Mapping[str, Any]) -> Case:
    """The prompt as run time would render it, its answer still open."""
    said, earlier = messages(row.get("messages", ())), messages(row.get("earlier", ()))
    subjects: tuple[str, ...] = ()
    if row["prompt"] == "wish":
        prompt = tuned.wish_prompt(said, earlier)
    elif row["prompt"] == "stance":
        prompt = tuned.stance_prompt(row["fact"] if "fact" in row else tuned.asked(row["request"]), row["known"])
    else:
        prompt = tuned.reword_prompt(row["stance"], [row["known"]], row["fact"])
        subjects = tuple(sorted({subject_of(row["known"]), subject_of(row["fact"])}))
    return Case(row["id"], prompt.name, prompt.turns, subjects, Answer({}, None))


def messages(rows: Any) -> list[Message]:
    return [Message(row["role"], row["content"], row.get("name")) for row in rows]


def subject_of(text: str) -> str:
    return text.partition(" ")[0].removesuffix("'s")


def answered(generator: LlamaGenerator, case: Case) -> Case:
    """The case with this machine's answer. Asked twice: what does not repeat here can't be asked of others."""
    found, again = probe.answer(generator, case), probe.answer(generator, case)
    if found != again:
        raise SystemExit(f"{case.id}: two answers of this machine differ: {found} and {again}")
    labels = {label: round(score, LOG_DIGITS) for label, score in found.labels.items()}
    return replace(case, expected=replace(found, labels=labels))


def summary(case: Case) -> str:
    """A line for the person who makes the probe and judges whether its answers are worth keeping."""
    chances = "  ".join(f"{label} {math.exp(score):.2f}" for label, score in case.expected.labels.items())
    text = "" if case.expected.text is None else repr(case.expected.text)
    return f"{case.id:<18} {chances} {text}"


def machine() -> str:
    """Processor, system and architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or "unknown processor"
    return f"{processor}, {platform.system()} {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main())
