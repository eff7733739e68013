"""No network, no file outside the store's folder, no output: watched from below Python, with the real models.

ONNX Runtime, llama.cpp and SQLite run below Python, so audit hooks and mocks do not see them (DESIGN section 7). The
strongest watch that this machine offers is taken, and the test says which.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from localmem import artifacts
from localmem.config import settings
from localmem.errors import LocalmemError

ROOT = Path(__file__).resolve().parent.parent
TRACED = "%network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"

HOOK = """
import sys
def _hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        sys.stderr.write("network: " + event + "\\n")
sys.addaudithook(_hook)
"""

PROGRAM = """
import json, sys
from localmem import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator

path, embedder, generator = json.loads(sys.argv[1])
options = {}
if not embedder:
    options["embedder"] = HashEmbedder()
if not generator:
    options["generator"] = ScriptedGenerator({"Porto": ["User lives in Porto"]})
with Memory(path, **options) as memory:
    memory.add("I moved to Porto last week and my sister Ana lives there too.", user_id="ann")
    memory.add("My boat is called Selkie.", user_id="ann", infer=False)
    assert memory.search("what is the boat called?", user_id="ann")["results"]
    assert "Selkie" in memory.context("boat", user_id="ann")
    assert memory.decisions(user_id="ann") or not generator
    assert memory.check() == []
    memory.reindex()
assert ("llama_cpp" in sys.modules) == generator
assert ("onnxruntime" in sys.modules) == embedder
"""


@dataclass(frozen=True)
class Watched:
    """What a watched program did."""

    how: str
    returncode: int
    stdout: str
    stderr: str
    inet: tuple[str, ...]  # traced calls that touch IPv4, IPv6 or a name server
    written: tuple[str, ...]  # paths opened for writing or made, as traced


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


def _watch() -> tuple[str, list[str]]:
    """(in words, command prefix): the strongest that works here."""
    no_network = ["unshare", "-rn"] if _works("unshare", "-rn", "true") else []
    for options in (["-f", "--seccomp-bpf"], ["-f"]):
        if shutil.which("strace") and _works(*no_network, "strace", *options, "-e", "trace=%network", "true"):
            words = "strace" + (" inside a network namespace without interfaces" if no_network else "")
            return words, [*no_network, "strace", *options, "-e", f"trace={TRACED}", "-o", "TRACE"]
    if no_network:
        return "a network namespace without interfaces, and the audit hook", no_network
    return "the audit hook only, which sees nothing below Python", []


def _run(program: str, folder: Path, *arguments: str) -> Watched:
    """Run a Python program as a user with an empty HOME would, watched."""
    how, prefix = _watch()
    trace = folder / "trace.log"
    script = folder / "program.py"
    script.write_text(HOOK + program)
    for name in ("home", "tmp", "work", "store"):
        (folder / name).mkdir(exist_ok=True)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LOCALMEM_HOME": str(folder / "localmem"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }
    assert "CI" not in env  # ONNX Runtime is quiet where CI is set
    command = [trace.as_posix() if part == "TRACE" else part for part in prefix]
    done = subprocess.run(
        [*command, sys.executable, script, *arguments],
        cwd=folder / "work",
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    inet = tuple(line for line in lines if re.search(r"AF_INET|AF_PACKET|sin6?_port|/run/systemd/resolve|nscd", line))
    return Watched(how, done.returncode, done.stdout, done.stderr, inet, tuple(_written(lines, folder / "work")))


def _written(lines: list[str], cwd: Path) -> list[str]:
    """Paths that traced calls opened for writing, made or renamed to, without failed calls."""
    found = []
    for line in lines:
        if re.search(r"= -1 E", line) or not re.search(
            r"O_WRONLY|O_RDWR|O_CREAT|\b(creat|mkdir|mkdirat|rename\w*|link|linkat|symlink\w*)\(", line
        ):
            continue
        found += [str(cwd / name) for name in re.findall(r'"((?:[^"\\]|\\.)+)"', line)[-1:]]
    return found


def _listing(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in sorted(folder.rglob("*"))
    }


def _has(check: Callable[[], object]) -> bool:
    try:
        check()
    except (LocalmemError, OSError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.model
def test_open_add_search_and_model_touch_nothing_but_the_store(
    tmp_path: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    embedder = _has(artifacts.embedder_files)
    generator = importlib.util.find_spec("llama_cpp") is not None and _has(artifacts.generator_path)
    home = tmp_path / "localmem"
    home.mkdir()
    models = settings().models
    if models.is_dir():
        (home / "models").symlink_to(models, target_is_directory=True)
    before = {name: _listing(tmp_path / name) for name in ("localmem",)} | {"models": _listing(models)}
    store = tmp_path / "store" / "memory.db"
    done = _run(PROGRAM, tmp_path, json.dumps([str(store), embedder, generator]))
    told = f"{done.how}; embedder {'ONNX' if embedder else 'hashed'}, generator {'GGUF' if generator else 'scripted'}"
    record_property("watched by", told)
    with capsys.disabled():
        print(f"\nsilence watched by: {told}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert done.inet == ()
    allowed = (str(tmp_path / "store"), "/dev/null", "/proc/self/", "/dev/tty")
    assert [path for path in done.written if not path.startswith(allowed)] == []
    for name in ("home", "tmp", "work"):
        assert _listing(tmp_path / name) == {}
    assert {"localmem": _listing(home), "models": _listing(models)} == before
    assert {path.name for path in store.parent.iterdir()} == {"memory.db"}


TALKS = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    s.connect(("192.0.2.1", 9))
except OSError:
    pass
open("left-behind", "w").close()
"""


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    """A program that connects and leaves a file is caught, by whatever watch this machine offers."""
    done = _run(TALKS, tmp_path)
    assert done.inet or "network: socket.connect" in done.stderr
    assert _listing(tmp_path / "work") == {"left-behind": 0}
    if "strace" in done.how:
        assert done.inet
        assert str(tmp_path / "work" / "left-behind") in done.written


def test_importing_the_package_is_silent_and_light(tmp_path: Path) -> None:
    heavy = ["numpy", "onnxruntime", "tokenizers", "llama_cpp", "apsw", "sqlite_vec", "dateparser", "click", "rich"]
    done = _run(f"import localmem, sys\nprint([name for name in {heavy} if name in sys.modules])", tmp_path)
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert done.inet == ()
    for name in ("home", "tmp", "work", "store"):
        assert _listing(tmp_path / name) == {}
    assert not (tmp_path / "localmem").exists()
