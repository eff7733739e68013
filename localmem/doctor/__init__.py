"""Is everything as it should be? The files, the libraries, the processor, the store; and with airgap, whether a whole
working day stays on the machine, proven by the strongest watch that the system allows.

watch.py watches a process, workday.py is the job it does, machine.py and file.py look at what is there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmem import artifacts
from localmem.doctor import machine, watch, workday
from localmem.doctor.finding import FAILED, OK, WARNING, Finding
from localmem.errors import LocalmemError

if TYPE_CHECKING:
    from localmem.memory import Memory

_TOLD = 3  # of the calls that should not have been
_SURE = ("unshare -rn", "strace")  # either sees what native code does

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found. ``proof``: how the working day was watched, and what was seen."""

    findings: tuple[Finding, ...]
    proof: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return all(finding.state != FAILED for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The shape that the command line prints."""
        shape = {"ok": self.ok, "findings": [finding.to_dict() for finding in self.findings]}
        return shape if self.proof is None else {**shape, "proof": self.proof}


def examine(
    path: Path,
    opened: Callable[[], Memory],
    *,
    airgap: bool = False,
    generator: str | None = None,
    progress: Progress = lambda words: None,
) -> Report:
    """Look at the machine and at the store at ``path``, which ``opened`` opens; nothing is repaired.

    ``generator`` as of Memory: what is probed. ``airgap``: also run a working day on a store of its own, watched.
    """
    found = [*machine.versions(), machine.driver()]
    progress("computing the sha256 of the models")
    found += [*machine.models(), *machine.processor()]
    if not any(each.name == "processor" and each.state == FAILED for each in found):  # it would be killed
        found.append(machine.probe(generator, progress))
    if all(each.state != FAILED for each in found if each.name == "database driver"):
        from localmem.doctor import file

        progress(f"reading {path}")
        found += file.look(path, opened)
    found += machine.telemetry(airgap=airgap)
    if not airgap:
        return Report(tuple(found))
    progress("running a working day, watched")
    told, proof = _airgap()
    return Report((*found, *told), proof)


def _airgap() -> tuple[list[Finding], dict[str, Any]]:
    model = _model()
    with tempfile.TemporaryDirectory(prefix="localmem-doctor-") as name:
        folder = Path(name).resolve()
        store, place = folder / "store", folder / "watched"
        store.mkdir(mode=0o700)
        place.mkdir()
        seen = watch.watch(place, watch.LISTEN + workday.CODE, str(store), model)
        written = seen.written_outside(store, place / "report.json")
        left = sorted(name for names in seen.after.values() for name in names)
        found = _judged(seen, written, left)
    proof = {
        "by": list(seen.how),
        "steps": seen.report.get("steps", []),
        "generator": Path(model).name if model else None,
        "network": seen.calls_to_the_network + [" ".join(each) for each in seen.report.get("heard", [])],
        "files": written + left,
    }
    return found, proof


def _judged(seen: watch.Watched, written: list[str], left: list[str]) -> list[Finding]:
    calls = seen.calls_to_the_network + [" ".join(each) for each in seen.report.get("heard", [])]
    found = []
    if calls:
        text = f"a call to the network was tried, {len(calls)} in all: {'; '.join(calls[:_TOLD])}"
        found.append(Finding("airgap", FAILED, text, "find out which library does it: see the proof with --json"))
    if written or left:
        text = f"files were written outside the store's folder: {'; '.join([*written, *left][:_TOLD])}"
        found.append(Finding("airgap", FAILED, text, "find out which library does it: see the proof with --json"))
    if any(wish != "1" for wish in seen.report.get("telemetry", [])):
        text = "onnxruntime was imported before it was told to send no telemetry"
        found.append(Finding("airgap", FAILED, text, "look for a .pth file or sitecustomize that imports it"))
    if seen.done.returncode != 0 or seen.report.get("wrong"):
        last = (seen.done.stderr.strip().splitlines() or [f"exit {seen.done.returncode}"])[-1]
        text = f"the working day failed: {'; '.join(seen.report.get('wrong') or [last])}"
        found.append(Finding("airgap", FAILED, text, "run `localmem check`, and see the proof with --json"))
    if found:
        return found
    text = f"{', '.join(seen.report['steps'])}: no call to the network and no file outside, watched by {seen.by}"
    if not any(each in seen.how for each in _SURE):
        cure = "install strace, or allow user namespaces (unshare), for a proof"
        return [Finding("airgap", WARNING, f"{text}, which does not see native code", cure)]
    return [Finding("airgap", OK, text)]


def _model() -> str:
    """The installed GGUF, or "" where there is none or nothing to run it with."""
    if find_spec("llama_cpp") is None:
        return ""
    try:
        return str(artifacts.generator_path())
    except LocalmemError:
        return ""


__all__ = ["Finding", "Report", "examine"]
