"""README.md as a test: every ```python block runs, every ``$ localmem …`` line of a console block exits 0 and prints
what stands below it, but for ids, times and sizes.

The blocks of one section share a namespace, the console lines of one section a folder; each section starts with an
empty LOCALMEM_HOME. ``<!-- no-test -->`` on a line before a block leaves it out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from localmem import config

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MODELS = config.settings().models


@dataclass
class Section:
    """The blocks under one heading, in order: (language, first line number, source)."""

    title: str
    blocks: list[tuple[str, int, str]] = field(default_factory=list)


def sections() -> Iterator[Section]:
    """The README's sections that have something to run."""
    section = Section("top")
    lines = iter(enumerate(README.read_text("utf-8").splitlines() if README.exists() else [], start=1))
    skip = False
    for number, line in lines:
        if line.startswith("#"):
            if section.blocks:
                yield section
            section = Section(line.lstrip("# "))
        elif line.strip() == "<!-- no-test -->":
            skip = True
        elif opened := re.match(r"```(\w*)", line):
            body = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                body.append(inner)
            if not skip and opened[1] in ("python", "console"):
                section.blocks.append((opened[1], number + 1, "\n".join(body)))
            skip = False
    if section.blocks:
        yield section


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """(command, the output shown below it) of the ``$ `` lines of a console block, continued lines joined."""
    command, shown = "", list[str]()
    for line in [*block.replace("\\\n", " ").splitlines(), "$ "]:
        if not line.startswith("$ "):
            shown.append(line)
            continue
        if re.search(r"\blocalmem\b|^export ", command):
            yield command, shown
        command, shown = line[2:], []


def masked(lines: list[str]) -> list[str]:
    """Output without what differs from run to run: ids, hashes, times, sizes."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{8,64}\b", "#", "\n".join(lines))
    return re.sub(r"[0-9][0-9,.:TZ-]*", "#", text).splitlines()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a LOCALMEM_HOME that has the models and nothing else."""
    folder = tmp_path / "home"
    folder.mkdir()
    if MODELS.is_dir():
        (folder / "models").symlink_to(MODELS, target_is_directory=True)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    launcher = bin_ / "localmem"
    code = "import sys; from localmem.cli import main; sys.argv[0] = 'localmem'; sys.exit(main())"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n', encoding="utf-8")
    launcher.chmod(0o755)
    work = tmp_path / "work"
    (work / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "sample_chat.json", work / "scripts")
    shutil.copy(ROOT / "scripts" / "sample_chat.json", work / "chat.json")
    monkeypatch.setenv("LOCALMEM_HOME", str(folder))
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("LOCALMEM_GENERATOR", raising=False)
    monkeypatch.chdir(work)
    return folder


@pytest.mark.model
@pytest.mark.skipif(os.name == "nt", reason="the console lines are for a POSIX shell")
@pytest.mark.parametrize("section", [pytest.param(each, id=each.title) for each in sections()])
def test_section_runs(section: Section, home: Path) -> None:
    pytest.importorskip("llama_cpp")
    if not any(MODELS.glob("**/*.gguf")):
        pytest.skip("the base model is not installed: localmem models install")
    namespace: dict[str, object] = {"__name__": "readme"}
    for language, line, source in section.blocks:
        if language == "python":
            exec(compile("\n" * (line - 1) + source, str(README), "exec"), namespace)
            continue
        run_console(source, line)


def run_console(source: str, line: int) -> None:
    """Each command in a shell, which goes on with what the ones before it exported."""
    shell = shutil.which("bash") or "sh"
    kept = Path("exported.sh")
    for command, shown in commands(source):
        before = f". ./{kept}; " if kept.exists() else ""
        after = f"; export -p > {kept}" if command.startswith("export ") else ""
        done = subprocess.run(
            [shell, "-c", f"{'set -o pipefail; ' if 'bash' in shell else ''}{before}{command}{after}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"README.md, line {line}: $ {command}\n{done.stdout}"
        if shown:
            assert masked(done.stdout.splitlines()) == masked(shown), f"README.md, line {line}: $ {command}"


def test_readme_has_samples() -> None:
    """The parser still sees them: a README whose blocks all vanish would pass every other test."""
    languages = {language for section in sections() for language, _, _ in section.blocks}
    assert languages == {"python", "console"}


def test_readme_links_lead_somewhere() -> None:
    """Relative links and the files named in ``code`` that look like paths of this repository exist."""
    text = README.read_text("utf-8")
    linked = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    named = re.findall(r"`((?:scripts|models|tests|localmem)/[\w./-]+\.(?:py|txt|toml|json|md))`", text)
    missing = [path for path in [*linked, *named] if not (ROOT / path).exists()]
    assert not missing
