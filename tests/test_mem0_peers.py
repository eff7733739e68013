"""The compat module against the real mem0ai 1.x and 2.x: the same calls, and every difference has its reason here.

The outcomes of the real packages are recorded in tests/data/mem0_calls.json, so that this runs without them. With
LOCALMEM_PEERS set (or .venv-peers there) the recordings are made anew and compared with those, marker ``peers``. It
names a Python environment with mem0ai and qdrant-client, or several with the path separator between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from doubles import following_scripts
from mem0_calls import SCENARIOS, play

from localmem.compat.mem0 import AsyncMemory, Memory
from localmem.errors import GeneratorError
from localmem.testing import HashEmbedder, ScriptedGenerator
from localmem.types import Prompt

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "data" / "mem0_calls.json"
VERSIONS = ("1.x", "2.x")

# (scenario, step, version) -> why ours is not as mem0's. "*" is every step, or both versions. A line that no longer
# tells a difference fails the tests, as a difference without a line does.
NEVER_UPDATES = (
    "mem0 2.x adds beside what is known; here a changed fact replaces the old one, which stays in its history"
)
NO_TIME = "mem0 2.x leaves updated_at of an inferred ADD empty; here it is the time of the event, as in 1.x"
SUMMARY = "a procedure is kept as the conversation itself: localmem has no model write free summaries"
CRASH = (
    "mem0 fails inside on it; here texts in a list and parts of text are understood, and messages without text or role "
    "are passed over, as in 2.x"
)
LOSES = (
    "mem0 1.x loses the metadata that an update does not name; here, as in 2.x and by 1.x's own description, it stays"
)
SCOPE = "identity keys in metadata set or move the scope in mem0 1.x; here, as in 2.x, they don't"
DIFFERENCES: dict[tuple[str, str, str], str] = {
    ("add metadata with ids", "get", "1.x"): SCOPE,
    ("add with a blank id", "add", "1.x"): "a blank id would be an owner nobody can name; refused as in 2.x",
    ("add with a number as id", "get", "1.x"): "mem0 1.x gives a number back as a number; here ids are text, as in 2.x",
    ("add blank text", "add", "*"): "mem0 stores an empty memory; here nothing is stored",
    ("add a list of texts", "add", "*"): CRASH,
    ("add a message without content", "add", "1.x"): CRASH,
    ("add only messages without content", "inferred", "1.x"): CRASH,
    ("add only messages without content", "verbatim", "1.x"): CRASH,
    ("add a message without role", "inferred", "1.x"): CRASH,
    ("add a message without role", "verbatim", "1.x"): CRASH,
    ("add text parts", "add", "1.x"): CRASH,
    ("add a procedure", "*", "*"): SUMMARY,
    ("infer", "history", "2.x"): NO_TIME,
    ("infer an update", "lisbon", "2.x"): NEVER_UPDATES,
    ("infer an update", "history", "2.x"): NEVER_UPDATES,
    ("infer an update", "get_all 2.x", "2.x"): NEVER_UPDATES,
    ("infer a deletion", "add", "2.x"): NEVER_UPDATES,
    ("infer a deletion", "get", "2.x"): NEVER_UPDATES,
    ("infer a deletion", "history", "2.x"): NEVER_UPDATES,
    ("infer a deletion", "get_all 2.x", "2.x"): NEVER_UPDATES,
    ("search a blank query", "search 1.x", "1.x"): "mem0 1.x answers a blank query with anything; refused as in 2.x",
    ("search no text", "search 1.x", "1.x"): "mem0 1.x fails inside (AttributeError); here it is told as a wrong type",
    ("update", "get", "1.x"): LOSES,
    ("update with metadata", "get", "1.x"): f"{LOSES}; {SCOPE}",
    ("project", "project.update", "1.x"): "mem0 1.x has no project (AttributeError); here it refuses as in 2.x",
}

# Memory() without ``strict`` takes what either version takes, and shows what both have: further differences to what
# each of them answers. Its errors are those of DIFFERENCES, or no errors.
ATTRIBUTED = "attributed_to is told with version='2.x' or strict='2.x'; 1.x has it not"
OTHER = "mem0 1.x refuses the call before, which is of 2.x, and here it is carried out"
LENIENT: dict[tuple[str, str, str], str] = {
    ("infer", "get", "2.x"): ATTRIBUTED,
    ("infer", "get_all 2.x", "2.x"): ATTRIBUTED,
    ("infer the same twice", "get_all 2.x", "2.x"): ATTRIBUTED,
    ("update by text", "get", "1.x"): OTHER,
    ("update metadata alone", "get", "1.x"): OTHER,
}


class Model(ScriptedGenerator):
    """Fails when it is told to."""

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        if "the model fails" in prompt.turns[-1][1]:
            raise GeneratorError("the scripted model was told to fail")
        return super().generate(prompt, grammar=grammar, tokens_max=tokens_max)


@cache
def recorded() -> dict[str, Any]:
    """Version ("1.x") -> {"version", "outcomes"}."""
    found: dict[str, Any] = json.loads(RECORDED.read_text("utf-8"))
    return found


def ours(tmp_path: Path, scenario: str, **options: Any) -> dict[str, Any]:
    """The outcomes of a scenario on localmem."""
    kind: Any = AsyncMemory if scenario.startswith("async") else Memory
    models = {"embedder": HashEmbedder(), "generator": Model()}
    with following_scripts():
        memory = kind.from_config({"path": str(tmp_path / "localmem.db")}, **models, **options)
        try:
            return play(memory, SCENARIOS[scenario])
        finally:
            assert memory.local.check() == []
            memory.close()


def same(our: Any, their: Any) -> bool:
    """Whether a program that runs on theirs runs on ours: the same result, or an error that the same handler catches."""
    if "error" not in their or "error" not in our:
        return bool(our == their)
    catchable = set(their["error"]) <= set(our["error"])
    return catchable and their["code"] in (None, our["code"])


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("version", VERSIONS)
def test_strict_is_as_that_version(tmp_path: Path, version: str, scenario: str) -> None:
    theirs = recorded()[version]["outcomes"][scenario]
    found = ours(tmp_path, scenario, strict=version)
    assert list(found) == list(theirs)
    differ = {name for name in theirs if not same(found[name], theirs[name])}
    listed = set(noted(DIFFERENCES, scenario, version, theirs))
    assert differ == listed, "\n".join(
        f"{name}\n  mem0 {version}: {theirs[name]}\n  ours: {found[name]}" for name in sorted(differ ^ listed)
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("version", VERSIONS)
def test_without_strict_what_ran_on_mem0_runs(tmp_path: Path, version: str, scenario: str) -> None:
    """What either version answers is answered alike; the defaults of neither get into the other's way."""
    theirs = recorded()[version]["outcomes"][scenario]
    found = ours(tmp_path, scenario)
    answered = {name for name, their in theirs.items() if "error" not in their}
    differ = {name for name in answered if not same(found[name], theirs[name])}
    listed = answered & set(noted({**DIFFERENCES, **LENIENT}, scenario, version, theirs))
    assert differ == listed, "\n".join(
        f"{name}\n  mem0 {version}: {theirs[name]}\n  ours: {found[name]}" for name in sorted(differ ^ listed)
    )


def noted(table: dict[tuple[str, str, str], str], scenario: str, version: str, steps: Any) -> Iterator[str]:
    """The steps of a scenario that a table has a line for."""
    for where, name, which in table:
        if where == scenario and which in (version, "*"):
            yield from steps if name == "*" else [name]


def test_every_line_of_the_table_is_about_a_call() -> None:
    for table in (DIFFERENCES, LENIENT):
        for scenario, name, version in table:
            outcomes = recorded()["1.x"]["outcomes"][scenario]
            assert name == "*" or name in outcomes, (scenario, name)
            assert version in (*VERSIONS, "*")


def test_the_recordings_are_of_these_calls() -> None:
    for version in VERSIONS:
        assert recorded()[version]["version"].startswith(version[0])
        assert list(recorded()[version]["outcomes"]) == list(SCENARIOS)
    assert sum(len(steps) for steps in SCENARIOS.values()) > 150


# -- with the real packages


def environments() -> list[Path]:
    """The Pythons of the environments that have mem0ai."""
    named = os.environ.get("LOCALMEM_PEERS", str(HERE.parent / ".venv-peers")).split(os.pathsep)
    pythons = [Path(each) / ("Scripts/python.exe" if os.name == "nt" else "bin/python") for each in named if each]
    return [python for python in pythons if python.exists()]


def record(python: Path) -> dict[str, Any]:
    """The outcomes of the real package in an environment."""
    done = subprocess.run(
        [str(python), str(HERE / "mem0_driver.py"), "calls"], capture_output=True, text=True, check=True, timeout=600
    )
    outcomes: dict[str, Any] = json.loads(done.stdout)
    return outcomes


@pytest.mark.peers
@pytest.mark.slow
def test_the_recordings_are_what_the_packages_do() -> None:
    pythons = environments()
    if not pythons:
        pytest.skip("no environment with mem0ai: set LOCALMEM_PEERS")
    for python in pythons:
        made = record(python)
        known = recorded()[f"{made['version'][0]}.x"]
        assert made["outcomes"] == known["outcomes"], f"mem0ai {made['version']}, recorded with {known['version']}"


if __name__ == "__main__":  # python tests/test_mem0_peers.py ENVIRONMENT…: record anew
    made = [record(Path(each) / "bin" / "python") for each in sys.argv[1:]]
    fresh = {f"{each['version'][0]}.x": each for each in made}
    RECORDED.write_text(json.dumps(fresh, ensure_ascii=False, indent=0, sort_keys=False) + "\n", "utf-8")
