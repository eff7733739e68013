"""Nothing leaves the machine and nothing lies about: a whole working day in a process of its own, watched from outside.

The watched process runs in a network namespace of its own without any network where the kernel allows that (unshare),
and below strace where that is installed; Python's audit hook listens inside in any case. Which it was stands in the
test's properties and in its output (pytest -rP). onnxruntime's native telemetry shows in strace only, and hides
where CI is set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from localmem import artifacts
from localmem.errors import LocalmemError

ROOT = Path(__file__).resolve().parent.parent
NETWORK = re.compile(r"\bAF_INET6?\b|\bAF_PACKET\b")
WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT")
FILE_CALLS = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
PATHS = re.compile(r'"([^"]*)"')
HARMLESS = re.compile(r"/dev/(?:null|tty)|/proc/self/.*")

# The audit hook must stand before anything of localmem is imported.
LISTEN = """
import json, os, sys
heard, telemetry = [], []
def listen(event, args):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")):
        heard.append([event, repr(args)])
    elif event == "import" and args[0] == "onnxruntime" and not telemetry:
        telemetry.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.addaudithook(listen)
"""

JOB = (
    LISTEN
    + """
store, model, report = sys.argv[1:]
from localmem import Memory
if model:
    generator = model
else:
    from localmem.testing import ScriptedGenerator
    generator = ScriptedGenerator({"Miso": ["User has a cat called Miso"]})
user = {"user_id": "ann"}
with Memory(store, generator=generator) as memory:
    memory.add("Ann plays the cello on Tuesdays", infer=False, **user)
    added = memory.add("I moved to Porto last week. I have a cat called Miso.", **user)
    found = memory.search("Which instrument does she play?", **user)["results"]
    told = memory.context("cat", **user)
    sound = memory.check()
with Memory(store, generator=generator) as memory:
    found += memory.search("cello", **user)["results"]
with open(report, "w") as file:
    json.dump({
        "heard": heard, "telemetry": telemetry, "found": [hit["memory"] for hit in found], "sound": sound,
        "added": added["results"], "libraries": [n for n in ("onnxruntime", "llama_cpp") if n in sys.modules],
    }, file)
"""
)


# -- watching a process


@dataclass(frozen=True)
class Watched:
    """What a process did, as far as it could be seen."""

    how: str  # "unshare -rn + strace + audit hook", or what of it there was
    done: subprocess.CompletedProcess[str]
    trace: list[str]  # of strace; empty without it
    before: dict[str, list[str]]  # the folders that are nobody's business
    after: dict[str, list[str]]
    report: dict[str, Any]
    model: str  # the GGUF, or "" for the scripted generator

    @property
    def calls_to_the_network(self) -> list[str]:
        return [line for line in self.trace if NETWORK.search(line)]

    def written_outside(self, *allowed: Path) -> list[str]:
        """The traced calls that made or opened a file for writing anywhere but below ``allowed``."""
        calls = (line for line in self.trace if _writes(line) and "= -1 " not in line)
        return [line for line in calls if not all(_allowed(path, allowed) for path in PATHS.findall(line))]


def _allowed(path: str, allowed: tuple[Path, ...]) -> bool:
    return HARMLESS.fullmatch(path) is not None or any(Path(path).is_relative_to(place) for place in allowed)


def _writes(line: str) -> bool:
    if " open" in line:
        return bool(WRITING.search(line))
    return re.search(r"\b(creat|mkdir|rename|link|symlink|mknod)\w*\(", line) is not None


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False).returncode == 0


def _wrapping(trace: Path) -> tuple[list[str], str]:
    """The command to put before the watched one, and its name: as much as this machine allows."""
    alone = ["unshare", "-rn"] if _works("unshare", "-rn") else []
    tracing = ["strace", "-f", "-qq", "-s", "300", "-o", str(trace), "-e", f"trace=%network,{FILE_CALLS}"]
    traced = tracing if _works(*alone, *tracing) else []
    names = ["unshare -rn"] * bool(alone) + ["strace"] * bool(traced) + ["audit hook"]
    return [*alone, *traced], " + ".join(names)


def watch(folder: Path, code: str, *arguments: str, model: str = "") -> Watched:
    """Run Python code as a stranger would: nothing in the environment, an empty home, no CI, no network."""
    outside = {name: folder / name for name in ("home", "tmp", "cwd")}
    for place in outside.values():
        place.mkdir()
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",  # an installed package has its .pyc files already
        "HOME": str(outside["home"]),
        "TMPDIR": str(outside["tmp"]),
        "LANG": "C.UTF-8",
    }
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    trace, report = folder / "trace", folder / "report.json"
    wrapping, how = _wrapping(trace)
    trace.unlink(missing_ok=True)  # of the trial
    before = _listings(outside)
    done = subprocess.run(
        [*wrapping, sys.executable, "-c", code, *arguments, str(report)],
        env=environment,
        cwd=outside["cwd"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Watched(
        how=how,
        done=done,
        trace=trace.read_text(errors="replace").splitlines() if trace.exists() else [],
        before=before,
        after=_listings(outside),
        report=json.loads(report.read_text()) if report.exists() else {},
        model=model,
    )


def _listings(folders: dict[str, Path]) -> dict[str, list[str]]:
    return {name: sorted(str(path.relative_to(top)) for path in top.rglob("*")) for name, top in folders.items()}


def _model() -> str:
    """The installed GGUF, or "" where there is none or nothing to run it with."""
    if find_spec("llama_cpp") is None:
        return ""
    try:
        return str(artifacts.generator_path())
    except LocalmemError:
        return ""


# -- the day


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def day(store_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Open, add with and without a model, search, context, check, close, open again: once for all tests here."""
    model = _model()
    folder = tmp_path_factory.mktemp("watched")
    return watch(folder, JOB, str(store_folder / "memory.db"), model, model=model)


@pytest.fixture(autouse=True)
def said_how(request: pytest.FixtureRequest, record_property: Any) -> None:
    if "day" not in request.fixturenames:
        return
    day: Watched = request.getfixturevalue("day")
    generator = Path(day.model).name if day.model else "scripted generator"
    record_property("watched_by", day.how)
    record_property("generator", generator)
    print(f"watched by {day.how}; {generator}")


def test_the_day_was_a_real_one(day: Watched) -> None:
    assert day.done.returncode == 0, day.done.stderr
    assert "Ann plays the cello on Tuesdays" in day.report["found"]
    assert day.report["sound"] == []
    assert "onnxruntime" in day.report["libraries"]
    assert ("llama_cpp" in day.report["libraries"]) == bool(day.model)
    if not day.model:
        assert [change["memory"] for change in day.report["added"]] == ["User has a cat called Miso"]


def test_no_call_to_the_network(day: Watched) -> None:
    assert day.calls_to_the_network == []
    assert bool(day.trace) == ("strace" in day.how)


def test_python_hears_no_socket(day: Watched) -> None:
    assert day.report["heard"] == []


def test_telemetry_is_off_before_onnxruntime_is_imported(day: Watched) -> None:
    assert day.report["telemetry"] == ["1"]


def test_nothing_is_printed(day: Watched) -> None:
    assert (day.done.stdout, day.done.stderr) == ("", "")


def test_no_file_outside_the_stores_folder(day: Watched, store_folder: Path) -> None:
    assert day.after == day.before == {"home": [], "tmp": [], "cwd": []}
    assert [path.name for path in store_folder.iterdir()] == ["memory.db"]
    report = Path(day.done.args[-1])
    assert day.written_outside(store_folder, report) == []


# -- would it have been seen?

TALKATIVE = (
    LISTEN
    + """
import ctypes, pathlib, socket, tempfile
native = ctypes.CDLL(None)
if sys.argv[1] == "native":  # as onnxruntime does it: no audit event
    native.socket(2, 2, 0)
else:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("127.0.0.1", 9))
        except OSError:  # no network here
            pass
pathlib.Path(tempfile.gettempdir(), "left behind").write_text("")
print("noise")
json.dump({"heard": heard}, open(sys.argv[2], "w"))
"""
)


@pytest.mark.parametrize("way", ["python", "native"])
def test_what_is_not_silent_is_seen(tmp_path: Path, way: str) -> None:
    seen = watch(tmp_path, TALKATIVE, way)
    assert seen.done.stdout == "noise\n", seen.done.stderr
    assert seen.after["tmp"] == ["left behind"]
    assert bool(seen.report["heard"]) == (way == "python")
    if "strace" in seen.how:
        assert seen.calls_to_the_network
        assert any("left behind" in line for line in seen.written_outside(tmp_path / "report.json"))
    elif way == "native":
        pytest.skip("without strace a native call to the network is not seen")
