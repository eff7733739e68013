"""A process watched from outside: which calls to the network it tries, and which files it writes.

It runs in a network namespace of its own without any network where the kernel allows that (unshare), and below strace
where that is installed; Python's audit hook listens inside in any case. What native libraries do, such as
onnxruntime's telemetry, is seen by the first two alone. The command `doctor --airgap` and the tests of silence use it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
# Sockets of one machine's own programs, and of its kernel (addresses of network cards), lead nowhere.
_NETWORK = re.compile(r"\bsocket\((?!AF_UNIX|AF_LOCAL|AF_NETLINK)|sa_family=(?!AF_UNIX|AF_LOCAL|AF_NETLINK|AF_UNSPEC)")
_FOR_WRITING = re.compile(r"O_WRONLY|O_RDWR|O_CREAT")
_MAKING = re.compile(r"\b(?:creat|mkdir|rename|link|symlink|mknod)\w*\(")
_CALLS = "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
_PATHS = re.compile(r'"([^"]*)"')
_HARMLESS = re.compile(r"/dev/(?:null|tty)|/proc/self/.*")
_FOLDERS = ("home", "tmp", "cwd")  # of the watched process; nothing is to be left in them

# Put before the watched code: the hook must stand before anything of localmem is imported. ``heard``: what Python
# asked of the network; ``telemetry``: what ORT_DISABLE_TELEMETRY was when onnxruntime was imported.
LISTEN = """
import json, os, sys
heard, telemetry = [], []
def listen(event, args):
    if event == "socket.__new__" and args[1] == 1:  # AF_UNIX: asyncio wakes its own threads through a pair of them
        return
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")):
        heard.append([event, repr(args)])
    elif event == "import" and args[0] == "onnxruntime" and not telemetry:
        telemetry.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.addaudithook(listen)
"""


@dataclass(frozen=True)
class Watched:
    """What a process did, as far as it could be seen."""

    how: tuple[str, ...]  # of "unshare -rn", "strace", "audit hook" those there were
    done: subprocess.CompletedProcess[str]
    trace: list[str]  # of strace; empty without it
    before: dict[str, list[str]]  # what was in its home, temporary and working folder
    after: dict[str, list[str]]
    report: dict[str, Any]  # what it wrote about itself

    @property
    def by(self) -> str:
        """How it was watched, in words."""
        return " + ".join(self.how)

    @property
    def calls_to_the_network(self) -> list[str]:
        """The traced calls for a socket that could lead to another machine."""
        return [line for line in self.trace if _NETWORK.search(line)]

    def written_outside(self, *allowed: Path) -> list[str]:
        """The traced calls that made or opened a file for writing anywhere but below ``allowed``."""
        calls = (line for line in self.trace if _writes(line) and "= -1 " not in line)
        return [line for line in calls if not all(_is_below(path, allowed) for path in _PATHS.findall(line))]


def watch(
    folder: Path,
    code: str,
    *arguments: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout_s: float = 300.0,
) -> Watched:
    """Run Python code as a stranger would: nothing in the environment, an empty home, no CI, no network.

    ``folder`` is empty and gets its home, temporary and working folder, the trace, and report.json, which the code
    writes: its path is the last argument.
    """
    for name in _FOLDERS:
        (folder / name).mkdir()
    trace, report = folder / "trace", folder / "report.json"
    wrapping, how = _wrapping(trace)
    trace.unlink(missing_ok=True)  # of the trial
    before = _listings(folder)
    done = subprocess.run(
        [*wrapping, sys.executable, "-c", code, *arguments, str(report)],
        env={**_bare_environment(folder), **environment},
        cwd=folder / "cwd",
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Watched(
        how=how,
        done=done,
        trace=trace.read_text(errors="replace").splitlines() if trace.exists() else [],
        before=before,
        after=_listings(folder),
        report=json.loads(report.read_text()) if report.exists() else {},
    )


def _bare_environment(folder: Path) -> dict[str, str]:
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    return {
        **kept,
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",  # an installed package has its .pyc files already
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
    }


def _wrapping(trace: Path) -> tuple[list[str], tuple[str, ...]]:
    """The command to put before the watched one, and its names: as much as this machine allows."""
    alone = ["unshare", "-rn"] if _works("unshare", "-rn") else []
    tracing = ["strace", "-f", "-qq", "-s", "300", "-o", str(trace), "-e", f"trace=%network,{_CALLS}"]
    traced = tracing if _works(*alone, *tracing) else []
    return [*alone, *traced], (*["unshare -rn"] * bool(alone), *["strace"] * bool(traced), "audit hook")


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run([*command, "true"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _listings(folder: Path) -> dict[str, list[str]]:
    found = {}
    for name in _FOLDERS:
        found[name] = sorted(str(path.relative_to(folder / name)) for path in (folder / name).rglob("*"))
    return found


def _writes(line: str) -> bool:
    return bool(_FOR_WRITING.search(line)) if " open" in line else _MAKING.search(line) is not None


def _is_below(path: str, allowed: Iterable[Path]) -> bool:
    return _HARMLESS.fullmatch(path) is not None or any(Path(path).is_relative_to(place) for place in allowed)
