"""An installation that can't work says what is wrong and what to type, before any file is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from localmem.errors import InstallationError
from localmem.memory import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator

ROOT = Path(__file__).resolve().parent.parent
CURE = "pip uninstall -y apsw apsw-sqlite3mc && pip install apsw-sqlite3mc"

# What pip may leave in site-packages/apsw: the plain package, or after `pip uninstall apsw` the ruins of both.
PLAIN = """
compile_options = ("ENABLE_FTS5", "THREADSAFE=1")
class Error(Exception): pass
class Connection:
    def __init__(self, *args, **kwargs): raise Error("not to be opened")
    def load_extension(self, *args): pass
"""
PACKAGES = {"plain": PLAIN, "emptied": "", "broken": "from ._missing import Connection\n"}

OPEN = """
import sys
from localmem.errors import InstallationError
try:
    from localmem import Memory
    from localmem.testing import HashEmbedder, ScriptedGenerator
    Memory(sys.argv[1], embedder=HashEmbedder(), generator=ScriptedGenerator())
except InstallationError as error:
    print(error)
"""


@pytest.fixture(params=PACKAGES)
def clashing(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds another apsw."""
    package = tmp_path / "site" / "apsw"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGES[request.param])
    return {**os.environ, "PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}"}


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_memory_names_the_clash_and_the_cure(clashing: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "memory.db"
    done = run(["-c", OPEN, str(store)], clashing)
    assert (done.returncode, done.stderr) == (0, "")
    assert "apsw" in done.stdout
    assert CURE in done.stdout
    assert not store.exists()


def test_the_command_line_says_it_in_one_line(clashing: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "memory.db"
    done = run(["-m", "localmem", "--db", str(store), "add", "--no-infer", "I keep bees"], clashing)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    [line] = done.stderr.splitlines()
    assert CURE in line
    assert not store.exists()


def test_the_command_line_says_it_as_json(clashing: dict[str, str], tmp_path: Path) -> None:
    done = run(["-m", "localmem", "--db", str(tmp_path / "memory.db"), "add", "--json", "--no-infer", "Bees"], clashing)
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "InstallationError"
    assert CURE in error["message"]


# -- one part missing


class _NoExtensions:
    """A Connection of a build without SQLITE_ENABLE_LOAD_EXTENSION."""


def test_each_missing_part_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_fts5 = tuple(option for option in apsw.compile_options if option != "ENABLE_FTS5")
    assert len(without_fts5) < len(apsw.compile_options)
    missing = {
        "mc_version": (None, "encryption"),
        "compile_options": (without_fts5, "FTS5"),
        "Connection": (_NoExtensions, "extension loading"),
    }
    names = {name for _, name in missing.values()}
    for attribute, (value, named) in missing.items():
        with monkeypatch.context() as patched:
            if value is None:
                patched.delattr(apsw, attribute)
            else:
                patched.setattr(apsw, attribute, value)
            with pytest.raises(InstallationError) as raised:
                Memory(tmp_path / "memory.db", embedder=HashEmbedder(), generator=ScriptedGenerator())
        message = str(raised.value)
        assert [name for name in sorted(names) if name in message] == [named]
        assert CURE in message
        assert not (tmp_path / "memory.db").exists()
    with Memory(tmp_path / "memory.db", embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
        assert memory.check() == []


def test_a_memory_only_store_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(apsw, "mc_version")
    with pytest.raises(InstallationError, match="apsw-sqlite3mc"):
        Memory(":memory:", embedder=HashEmbedder(), generator=ScriptedGenerator())
