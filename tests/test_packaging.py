"""What lands in the wheel: code, data and models, and nothing that belongs to building them."""

from __future__ import annotations

import email
import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_code_data_and_models(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    tracked = {
        f"localmem/{path.relative_to(ROOT / 'localmem').as_posix()}"
        for path in (ROOT / "localmem").rglob("*")
        if path.is_file() and not any(part == "__pycache__" or part[0] == "." for part in path.parts[len(ROOT.parts) :])
    }
    assert tracked <= names, f"missing: {sorted(tracked - names)}"
    assert "localmem/py.typed" in names
    for folder, suffix in (("sql", ".sql"), ("rules", ".toml"), ("prompts", ".gbnf")):
        assert any(name.startswith(f"localmem/{folder}/") and name.endswith(suffix) for name in names), folder
    assert "localmem/_models/manifest.toml" in names
    assert any(name.startswith("localmem/_models/minilm/") and name.endswith(".onnx") for name in names)
    assert any(name.startswith("localmem/_models/minilm/") and "NOTICE" in name.upper() for name in names)
    assert any(name.startswith("localmem/_models/adapter/localmem-") for name in names)


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    strangers = [name for name in names if not name.startswith(("localmem/", "localmem-"))]
    assert not strangers
    assert not [name for name in names if "training" in name or "__pycache__" in name or name.endswith(".db")]
    assert all("_models/adapter/" in name for name in names if name.endswith(".gguf"))  # the base model is installed
    # a table of words of 12 MB, networks of 11 MB each, two adapters of 10 MB
    assert sum(entry.file_size for entry in wheel.infolist()) < 85e6


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Name"] == "localmem"
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra" not in each]
    assert len(required) == len(project["dependencies"])
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())
    (name,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "localmem = localmem.cli:main" in wheel.read(name).decode()


def test_wheel_works_on_its_own(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """The unpacked wheel finds its own embedder, away from the checkout."""
    wheel.extractall(tmp_path / "site")
    code = (
        "import localmem, sys; from localmem import Memory\n"
        "assert localmem.__file__.startswith(sys.argv[1]), localmem.__file__\n"
        "m = Memory(':memory:'); m.add('Ann likes green tea', user_id='ann', infer=False)\n"
        "print(m.search('tea', user_id='ann')['results'][0]['memory']); m.close()"
    )
    env = {"PYTHONPATH": str(tmp_path / "site"), "LOCALMEM_HOME": str(tmp_path / "home"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Ann likes green tea"


def test_pins_cover_every_dependency() -> None:
    """constraints.txt pins each direct dependency, inside the bounds of pyproject.toml."""
    requirements = pytest.importorskip("packaging.requirements")
    lines = (ROOT / "scripts" / "constraints.txt").read_text("utf-8").splitlines()
    pins = {
        line.split("==")[0].lower().replace("_", "-"): line.split("==")[1] for line in lines if line and line[0] != "#"
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["llm"], *extras["mcp"], *extras["examples"], *extras["test"]]:
        wanted = requirements.Requirement(text)
        pinned = pins.get(wanted.name.lower().replace("_", "-"))
        assert pinned, f"{wanted.name} is not pinned"
        assert wanted.specifier.contains(pinned), f"{wanted.name}=={pinned} is outside {wanted.specifier}"
