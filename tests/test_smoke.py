"""One walk through localmem with the packaged embedder and without a language model: what every supported set of
libraries must be able to do. ``scripts/test.py --bounds`` runs it with the lowest and the highest allowed ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localmem import Memory, secrets
from localmem.dates import parse_instant, parse_loose, to_iso
from localmem.errors import LocalmemError, NotFoundError, ScopeError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "smoke.db") as opened:
        yield opened


def test_add_search_update_delete_history(memory: Memory) -> None:
    for text in ("Ann plays the cello on Tuesdays", "Ann is allergic to hazelnuts", "Ann lives in Utrecht"):
        memory.add(text, user_id="ann", infer=False)
    memory.add("Bob plays the drums", user_id="bob", infer=False)

    hits = memory.search("Which instrument does she play?", user_id="ann", limit=1)["results"]
    assert [hit["memory"] for hit in hits] == ["Ann plays the cello on Tuesdays"]
    assert [hit["memory"] for hit in memory.search("hazelnuts", user_id="ann", limit=1)] == [
        "Ann is allergic to hazelnuts"
    ]

    cello = hits[0]["id"]
    memory.update(cello, "Ann plays the cello on Thursdays")
    assert [version["new_memory"] for version in memory.history(cello)] == [
        "Ann plays the cello on Tuesdays",
        "Ann plays the cello on Thursdays",
    ]
    memory.delete(cello)
    assert memory.get(cello) is None
    assert len(memory.get_all(user_id="ann")["results"]) == 2
    with pytest.raises(NotFoundError):
        memory.delete(cello)
    assert memory.check() == []


def test_filters_and_context(memory: Memory) -> None:
    memory.add("Ann wants short answers", user_id="ann", infer=False, metadata={"from": "form", "weight": 3})
    memory.add("Ann wants long walks", user_id="ann", infer=False, metadata={"from": "chat", "weight": 1})
    only = {"AND": [{"from": "form"}, {"weight": {"gte": 2}}]}
    hits = memory.search("what does Ann want", user_id="ann", filters=only)["results"]
    assert [hit["memory"] for hit in hits] == ["Ann wants short answers"]
    assert "Ann wants long walks" in memory.context("walks", user_id="ann", max_tokens=200)


def test_reopened_and_reindexed(tmp_path: Path) -> None:
    with Memory(tmp_path / "twice.db") as memory:
        memory.add("Ann keeps bees", user_id="ann", infer=False)
    with Memory(tmp_path / "twice.db") as memory:
        memory.reindex()
        assert memory.search("insects", user_id="ann")["results"][0]["memory"] == "Ann keeps bees"
        assert memory.check() == []


def test_bad_input_is_refused(memory: Memory) -> None:
    with pytest.raises(ScopeError):
        memory.add("Nobody's words")
    with pytest.raises(LocalmemError):
        memory.add([{"role": "pirate", "content": "arr"}], user_id="ann")


def test_secrets_are_masked(memory: Memory) -> None:
    token = "ghp" + "_" + "0123456789abcdefghijABCDEFGHIJ012345"
    assert token not in secrets.mask(f"my token is {token}", "").text
    memory.add(f"my token is {token}", user_id="ann", infer=False)
    assert token not in json.dumps(memory.get_all(user_id="ann"))


def test_dates() -> None:
    assert to_iso(parse_instant("2026-03-02")).startswith("2026-03-02T00:00:00")
    loose = parse_loose("2 марта 2026")  # a language without own rules: dateparser reads it
    assert loose == parse_instant("2026-03-02")


def test_command_line(tmp_path: Path) -> None:
    database = tmp_path / "cli.db"
    with Memory(database) as memory:
        memory.add("Ann keeps bees", user_id="ann", infer=False)
    command = [sys.executable, "-m", "localmem", "--db", str(database), "list", "--user", "ann", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [each["memory"] for each in json.loads(done.stdout)["results"]] == ["Ann keeps bees"]
