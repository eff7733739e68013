"""The machine and what is installed on it: versions, models, processor, telemetry.

Nothing here imports the database at its head: that it can't be imported is one of the findings.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from localmem import __version__, artifacts
from localmem.artifacts import ModelStatus
from localmem.doctor.finding import FAILED, NOTE, OK, WARNING, Finding
from localmem.doctor.workday import talkative
from localmem.errors import GeneratorError, LocalmemError, MissingExtraError, ModelFileError, ModelNotFoundError
from localmem.manifest import REINSTALL

_LIBRARIES = ("apsw-sqlite3mc", "sqlite-vec", "onnxruntime", "tokenizers", "numpy")
_TALKATIVE_FROM = (1, 29)  # onnxruntime sends telemetry from native code
_QUIET_ONNXRUNTIME = "pip install 'onnxruntime<1.29'"
_REBUILD = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
# What a build of llama.cpp says it uses -> the processor's flags for it, as Linux names them. AMX is left out: it is
# not used (llm_model.py), and compilers don't use it on their own.
_FLAGS = {
    "SSE3": ("pni",),
    "SSSE3": ("ssse3",),
    "AVX": ("avx",),
    "AVX_VNNI": ("avx_vnni",),
    "AVX2": ("avx2",),
    "F16C": ("f16c",),
    "FMA": ("fma",),
    "BMI2": ("bmi2",),
    "AVX512": ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"),
    "AVX512_VBMI": ("avx512vbmi",),
    "AVX512_VNNI": ("avx512_vnni",),
    "AVX512_BF16": ("avx512_bf16",),
    "NEON": ("asimd",),
    "ARM_FMA": ("asimd",),
    "FP16_VA": ("asimdhp",),
    "DOTPROD": ("asimddp",),
    "MATMUL_INT8": ("i8mm",),
    "SVE": ("sve",),
    "SME": ("sme",),
}
# Of those onnxruntime takes the best it finds for products of whole numbers, when it runs.
_KERNELS = ("avx512_vnni", "avx_vnni", "avx512f", "avx2", "avx", "sse4_1", "i8mm", "asimddp", "asimd")
_SENDERS = ("OTEL_EXPORTER_", "SENTRY_DSN", "DD_AGENT_", "DD_TRACE_", "NEW_RELIC_", "POSTHOG_")  # beginnings of names
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")

Progress = Callable[[str], None]


def versions() -> list[Finding]:
    """Python, the system, and the libraries."""
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    found = [Finding("python", OK, f"localmem {__version__}, Python {platform.python_version()}, {system}")]
    there = {name: _version(name) for name in _LIBRARIES}
    missing = [name for name, version in there.items() if version is None]
    if missing:
        cure = "pip install --force-reinstall localmem"
        return [*found, Finding("libraries", FAILED, f"not installed: {', '.join(missing)}", cure)]
    llama = _version("llama-cpp-python")
    there["llama-cpp-python"] = llama or "is not installed: add() needs it to extract facts"
    told = ", ".join(f"{name} {version}" for name, version in there.items())
    return [*found, Finding("libraries", OK if llama else NOTE, told, "" if llama else "pip install 'localmem[llm]'")]


def driver() -> Finding:
    """Whether the SQLite that is imported is the one with encryption; apsw and apsw-sqlite3mc overwrite each other."""
    try:
        from localmem.db import driver
    except LocalmemError as error:
        return Finding("database driver", FAILED, str(error))
    try:
        driver.check_driver()
    except LocalmemError as error:
        return Finding("database driver", FAILED, str(error), driver.APSW_CURE)
    text = f"SQLite {driver.apsw.sqlite_lib_version()} with {getattr(driver.apsw, 'mc_version', 'no cipher')}"
    if _version("apsw") is not None:
        both = f"{text}; but apsw is installed beside apsw-sqlite3mc, and each overwrites the other"
        return Finding("database driver", WARNING, both, driver.APSW_CURE)
    return Finding("database driver", OK, text)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# -------------------------------------------------------------------- models


def models() -> list[Finding]:
    """Every model file's sha256, computed again."""
    try:
        found = artifacts.verify()
    except LocalmemError as error:
        return [Finding("models", FAILED, str(error))]
    right = [each.name for each in found if each.sha256_ok]
    told = [Finding("models", OK, f"as the manifest has them: {', '.join(right)}")] if right else []
    return told + [wrong for each in found if (wrong := _not_right(each)) is not None]


def _not_right(status: ModelStatus) -> Finding | None:
    install = status.kind == "generator"
    cure = artifacts.INSTALL if install else REINSTALL
    if not status.installed:
        text = f"the {status.kind} {status.name} is not installed"
        return Finding("models", NOTE if install else FAILED, text, cure)
    if status.sha256_ok is False:
        text = f"the {status.kind} {status.name} is damaged: {status.path} is not the file it should be"
        return Finding("models", FAILED, text, cure)
    if status.sha256_ok is None:
        text = f"{status.path} was not put there by `localmem models import`: there is nothing to compare it with"
        return Finding("models", NOTE, text)
    return None


def probe(generator: str | None, progress: Progress) -> Finding:
    """Whether the model answers 40 prompts as on the reference machine; a label it was sure of must be the same."""
    from localmem import llm
    from localmem import probe as probing

    try:
        asked = llm.open_generator(generator)
        if asked is None:
            return Finding("probe", NOTE, "not run: the generator is set to 'none'")
        try:
            progress("asking the model 40 prompts")
            outcome = probing.run(asked, probing.load())
        finally:
            asked.close()
    except (MissingExtraError, ModelNotFoundError, ModelFileError) as error:
        return Finding("probe", NOTE, f"not run: {error}")
    except GeneratorError as error:
        return Finding("probe", FAILED, f"the model failed: {error}", "run `localmem models verify`")
    text = (
        f"{outcome.asked} prompts, other labels {len(outcome.labels)}, other texts {len(outcome.texts)}, largest "
        f"difference of a probability {outcome.shift_max:.3f}"
    )
    if outcome.failed:
        cure = "run `localmem models verify --probe` for the prompts, and `localmem models install` again"
        return Finding("probe", FAILED, f"{text}: the model chooses otherwise where the reference was sure", cure)
    return Finding("probe", OK, text)


# -------------------------------------------------------------------- processor


def processor() -> list[Finding]:
    """What the native libraries were built for, beside what this processor has."""
    flags = cpu_flags()
    return [_llama_build(flags), _onnx_kernels(flags)]


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """The processor's features as Linux names them; None on other systems."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return frozenset(found[1].split()) if found else None


def needed(system_info: str) -> list[str]:
    """The features that a build of llama.cpp says it uses, of those known here."""
    told = dict(re.findall(r"(\w+) = (\d+)", system_info))
    return [name for name in _FLAGS if told.get(name, "0") != "0"]


def _llama_build(flags: frozenset[str] | None) -> Finding:
    if find_spec("llama_cpp") is None:
        return Finding("processor", NOTE, "llama.cpp is not installed", "pip install 'localmem[llm]'")
    # In a process of its own: a build for another processor may be killed as soon as it is loaded.
    code = "import sys, llama_cpp; sys.stdout.write(llama_cpp.llama_print_system_info().decode())"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("processor", FAILED, f"llama.cpp could not be asked ({type(error).__name__})", _REBUILD)
    if done.returncode != 0:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
        text = f"llama.cpp can't be loaded ({how}): it was built for another processor, or a library of it is missing"
        return Finding("processor", FAILED, text, _REBUILD)
    uses = needed(done.stdout)
    if flags is None:
        return Finding(
            "processor", NOTE, f"llama.cpp uses {' '.join(uses)}; what this processor has can't be told here"
        )
    missing = [name for name in uses if not flags.issuperset(_FLAGS[name])]
    if missing:
        return Finding(
            "processor", FAILED, f"llama.cpp needs {' '.join(missing)}, which this processor lacks", _REBUILD
        )
    return Finding("processor", OK, f"llama.cpp uses {' '.join(uses) or 'nothing special'}; this processor has it")


def _onnx_kernels(flags: frozenset[str] | None) -> Finding:
    if flags is None:
        return Finding("processor", NOTE, "what onnxruntime finds to use can't be told here; it needs nothing special")
    best = next((name for name in _KERNELS if name in flags), "nothing special")
    return Finding("processor", OK, f"onnxruntime needs nothing special and takes the best there is, here {best}")


# -------------------------------------------------------------------- telemetry


def telemetry(*, airgap: bool, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """What could make this process phone home."""
    found = [_onnx_telemetry(airgap, environ)]
    senders = sorted(name for name in environ if name.startswith(_SENDERS))
    if senders:
        text = f"set in the environment, for libraries that report to a server: {', '.join(senders)}"
        found.append(Finding("telemetry", WARNING, text, f"unset {' '.join(senders)}"))
    proxies = sorted(name for name in environ if name.lower() in _PROXIES and environ[name])
    if proxies:
        text = f"{', '.join(proxies)} set: only pip uses it, in `localmem models install`"
        found.append(Finding("telemetry", NOTE, text))
    if libraries := talkative():
        text = f"libraries for the network were imported, though not by localmem: {', '.join(libraries)}"
        found.append(Finding("telemetry", WARNING, text, "look for a .pth file or sitecustomize that imports them"))
    return found


def _onnx_telemetry(airgap: bool, environ: Mapping[str, str]) -> Finding:
    version = _version("onnxruntime")
    if version is None:
        return Finding("telemetry", FAILED, "onnxruntime is not installed", _QUIET_ONNXRUNTIME)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= _TALKATIVE_FROM:
        text = f"onnxruntime {version} sends telemetry from native code"
        return Finding("telemetry", FAILED if airgap else WARNING, text, _QUIET_ONNXRUNTIME)
    wish = environ.get("ORT_DISABLE_TELEMETRY", "1")  # which localmem sets, unless it is set otherwise
    if wish != "1":
        text = f"ORT_DISABLE_TELEMETRY is {wish!r:.20}, which lets onnxruntime send telemetry where it can"
        return Finding("telemetry", FAILED if airgap else WARNING, text, "unset ORT_DISABLE_TELEMETRY")
    return Finding("telemetry", OK, f"onnxruntime {version} sends none, and is told not to before it is loaded")
