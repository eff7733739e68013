"""The plain apsw package overwrites apsw-sqlite3mc without a word; opening a store must say so and name the cure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from localmem import db
from localmem.errors import InstallationError

PLAIN = '''
"""What the plain apsw package looks like from outside: no mc_version."""
import importlib.util, pathlib, sys

_here = pathlib.Path(__file__).resolve().parent.parent
_path = [p for p in sys.path if pathlib.Path(p).resolve() != _here]
_spec = importlib.machinery.PathFinder.find_spec("apsw", _path)
_real = importlib.util.module_from_spec(_spec)
sys.modules["apsw"] = _real
_spec.loader.exec_module(_real)
for _name in {removed!r}:
    if hasattr(_real, _name):
        delattr(_real, _name)
if "ENABLE_FTS5" in {removed!r}:
    _real.compile_options = tuple(o for o in _real.compile_options if o != "ENABLE_FTS5")
'''

OPEN = """
import sys
from localmem import Memory
from localmem.testing import HashEmbedder
try:
    Memory(sys.argv[1], embedder=HashEmbedder())
except Exception as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


def _open_with(folder: Path, removed: list[str]) -> str:
    """What opening a store says when an apsw stands first on the path that lacks these names."""
    package = folder / "site" / "apsw"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        PLAIN.format(removed=removed).replace("import importlib.util", "import importlib.machinery, importlib.util")
    )
    program = folder / "program.py"
    program.write_text(OPEN)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, program, folder / "memory.db"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{folder / 'site'}:{root}", "PATH": "", "LOCALMEM_HOME": str(folder / "home")},
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("removed", "missing"), [(["mc_version"], "encryption"), (["mc_version", "ENABLE_FTS5"], "encryption.*FTS5")]
)
def test_a_plain_apsw_is_named_with_its_cure(tmp_path: Path, removed: list[str], missing: str) -> None:
    said = _open_with(tmp_path, removed)
    assert said.startswith("InstallationError"), said
    assert "pip uninstall -y apsw apsw-sqlite3mc && pip install apsw-sqlite3mc" in said
    import re

    assert re.search(missing, said)
    assert not (tmp_path / "memory.db").exists()


def test_the_right_package_opens_under_the_same_circumstances(tmp_path: Path) -> None:
    assert _open_with(tmp_path, []) == "opened\n"
    assert (tmp_path / "memory.db").exists()


def test_a_driver_without_extensions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        """As a build without load_extension has it."""

    monkeypatch.setattr(apsw, "Connection", Connection)
    with pytest.raises(InstallationError, match="extension loading.*pip install apsw-sqlite3mc"):
        db.check_driver()


def test_the_installed_driver_is_the_right_one() -> None:
    db.check_driver()
    assert apsw.mc_version
