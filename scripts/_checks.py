"""What test.py runs once ``.venv`` is ready: pytest, the other checks, and the two ends of the dependency bounds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from _setup import (
    BIN,
    HOME,
    PYTHON,
    ROOT,
    WINDOWS,
    SetupError,
    Step,
    clock,
    environment,
    paint,
    pip_line,
    prepare,
    say,
)

CHECKS = (  # before the tests, so that pytest's summary closes the output
    ("ruff check", ["-m", "ruff", "check", "."]),
    ("ruff format", ["-m", "ruff", "format", "--check", "."]),
    ("mypy --strict", ["-m", "mypy", "--strict", "localmem"]),
    ("layers", ["-m", "pytest", "-q", "tests/test_layers.py"]),
)
SLOWEST = ["--durations=10"]
SMOKE = ["-q", "-m", "not model and not slow"]
SMOKE += [f"tests/test_{name}.py" for name in ("smoke", "embed", "store", "filters", "search", "cli")]


def main(arguments: Sequence[str]) -> int:
    """Set up what is missing, then what the arguments ask for; 0 when everything passed."""
    wanted = [argument for argument in arguments if argument not in ("--all", "--bounds")]
    if wanted and wanted[0] in ("-h", "--help"):
        import __main__

        print((__main__.__doc__ or "").strip())
        return 0
    if "--bounds" in arguments:
        return bounds()
    prepare(["llm", "test"])
    failed = [name for name, command in CHECKS if not check(name, command)] if "--all" in arguments else []
    say("The tests" + (f": pytest {' '.join(wanted)}" if wanted else ""))
    began = time.monotonic()
    tests = subprocess.run([PYTHON, "-m", "pytest", *SLOWEST, *wanted], cwd=ROOT, env=environment(), check=False)
    if tests.returncode:
        failed.append("pytest")
    if "--all" in arguments:
        verdict = (
            f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(name for name, _ in CHECKS)}, pytest"
        )
        print(f"{paint(verdict, '31;1' if failed else '32;1')} · tests {clock(time.monotonic() - began)}", flush=True)
    return 1 if failed else 0


def check(name: str, command: Sequence[str]) -> bool:
    """Run one check in ``.venv``; its output only when it fails."""
    began = time.monotonic()
    done = subprocess.run(
        [PYTHON, *command],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    took = paint(f"· {clock(time.monotonic() - began)}", "2")
    print(f"{paint('x', '31;1') if done.returncode else paint('+', '32;1')} {name} {took}", flush=True)
    if done.returncode:
        print("\n".join(f"    {line}" for line in done.stdout.splitlines()), flush=True)
    return done.returncode == 0


# -- both ends of the bounds ------------------------------------------------------------------------------------------


def bounds() -> int:
    """The smoke test with the lowest and with the highest allowed libraries; 0 when it passed with both."""
    prepare(["llm", "test"])  # the embedder, the model and this Python are known to work before old libraries are tried
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    passed = [try_bounds(end, lowest) for end, lowest in (("lowest", lows(project["dependencies"])), ("highest", []))]
    return 0 if all(passed) else 1


def lows(requirements: Sequence[str]) -> list[str]:
    """``["numpy>=1.26,<3"]`` -> ``["numpy==1.26"]``. Raises SetupError for a requirement without a lower bound."""
    pins = []
    for requirement in requirements:
        found = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement)
        if not found:
            raise SetupError(f"pyproject.toml: {requirement!r} has no lower bound to test.")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


def try_bounds(end: str, pins: Sequence[str]) -> bool:
    folder = Path(tempfile.mkdtemp(prefix=f"localmem-{end}-"))
    python = folder / BIN.relative_to(BIN.parent) / ("python.exe" if WINDOWS else "python")
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    try:
        with Step(f"Installing the {end} allowed libraries") as step:
            step.call([sys.executable, "-m", "venv", folder], "the virtual environment could not be made")
            command: list[str | Path] = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            command += ["--upgrade", "--upgrade-strategy", "eager", "-c", folder / "constraints.txt"]
            wanted = ["-e", str(ROOT), "pytest>=8", "hypothesis>=6.100", "hatchling>=1.26"]
            step.call([*command, *wanted], f"the {end} allowed libraries do not install together", pip_line)
        listed = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
        names = {re.split(r"==", pin)[0].lower().replace("-", "_") for pin in pins} or direct()
        chosen = [line for line in listed.splitlines() if line.split("==")[0].lower().replace("-", "_") in names]
        print("  " + ", ".join(chosen), flush=True)
        env = {**environment(), "LOCALMEM_HOME": str(HOME)}
        done = subprocess.run([python, "-m", "pytest", *SMOKE], cwd=ROOT, env=env, check=False)
        mark = paint("x", "31;1") if done.returncode else paint("+", "32;1")
        print(f"{mark} smoke test with the {end} allowed libraries", flush=True)
        return done.returncode == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def direct() -> set[str]:
    """The names of the runtime dependencies, as pip freeze writes them, lower case with underscores."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {re.split(r"[<>=!~;\[ ]", each)[0].lower().replace("-", "_") for each in project["dependencies"]}
