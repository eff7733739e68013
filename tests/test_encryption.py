"""A file with a key: what lies on the disk, what opens it, what the errors say, and the way to another key."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import faults
import pytest

from localmem import Memory, decrypt, encrypt, keys, rekey
from localmem.db import opening, whole_file
from localmem.errors import (
    InvalidInputError,
    InvalidTypeError,
    KeyRefusedError,
    LocalmemError,
    LockedError,
    MissingExtraError,
    NotOurFileError,
    StorageError,
)
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator

RAW, OTHER = bytes(range(32)), bytes(range(100, 132))
CANARY = "Zanzibar canary number seventeen sings"
ANN = {"user_id": "ann"}
ROOT = Path(__file__).resolve().parent.parent


def opened(path: Path, **options: Any) -> Memory:
    return Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator(), clock=FixedClock(), **options)


def fill(path: Path, key: Any = RAW) -> None:
    with opened(path, key=key) as memory:
        memory.add(CANARY, infer=False, **ANN)
        memory.add("Ann keeps bees", infer=False, metadata={"note": CANARY}, **ANN)


def found(path: Path, key: Any = RAW) -> list[str]:
    with opened(path, key=key) as memory:
        assert memory.check() == []
        verdict = memory.verify_audit()
        assert verdict["problems"] == []
        return sorted(each["memory"] for each in memory.get_all(**ANN)["results"])


BOTH = sorted([CANARY, "Ann keeps bees"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture(params=[RAW, f"raw:{RAW.hex()}", "correct horse battery staple"], ids=["bytes", "hex", "passphrase"])
def key(request: pytest.FixtureRequest) -> Any:
    return request.param


# -------------------------------------------------------------------- on the disk


def test_nothing_readable_is_on_the_disk_at_any_moment(path: Path, key: Any) -> None:
    with opened(path, key=key) as memory:
        memory.add(CANARY, infer=False, **ANN)
        beside = sorted(path.parent.iterdir())
        assert Path(f"{path}-wal") in beside
        for each in beside:
            content = each.read_bytes()
            assert b"canary" not in content, each
            assert not content.startswith(opening.PLAIN), each
    assert b"canary" not in path.read_bytes()
    assert found(path, key) == [CANARY]


def test_the_file_is_private(path: Path) -> None:
    fill(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_vfs_above_the_cipher_is_refused(path: Path) -> None:
    """It would write the WAL in the clear."""
    with pytest.raises(KeyRefusedError, match="multipleciphers-unix"):
        opened(path, key=RAW, vfs="unix")
    assert path.read_bytes() == b""


def test_a_store_in_memory_takes_no_harm_from_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMEM_KEY", "a passphrase")
    with Memory(":memory:", embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
        memory.add(CANARY, infer=False, **ANN)


# -------------------------------------------------------------------- what opens it


@pytest.mark.parametrize("wrong", [OTHER, "another passphrase", None], ids=["bytes", "passphrase", "none"])
def test_a_wrong_key_or_none_names_what_may_be_the_matter(path: Path, wrong: Any) -> None:
    fill(path)
    before = path.read_bytes()
    with pytest.raises(KeyRefusedError) as raised:
        opened(path, key=wrong)
    message = str(raised.value)
    assert "key" in message
    assert "header is damaged" in message
    assert path.read_bytes() == before


def test_a_damaged_header_looks_like_a_wrong_key(path: Path) -> None:
    fill(path)
    content = bytearray(path.read_bytes())
    content[30:60] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(KeyRefusedError, match=r"another one.*header is damaged.*restore a backup"):
        opened(path, key=RAW)
    content[16:24] = bytes(8)  # nor is it seen to be encrypted any more
    path.write_bytes(content)
    with pytest.raises(NotOurFileError, match="encrypted"):
        opened(path)


def test_a_plain_file_is_recognised_where_a_key_is_given(path: Path) -> None:
    with opened(path) as memory:
        memory.add(CANARY, infer=False, **ANN)
    before = path.read_bytes()
    with pytest.raises(KeyRefusedError, match="is not encrypted, and a key was given.*localmem encrypt"):
        opened(path, key=RAW)
    assert path.read_bytes() == before


def test_another_programs_file_is_left_alone(path: Path) -> None:
    path.write_bytes(os.urandom(9000))
    before = path.read_bytes()
    for given in (None, RAW):
        with pytest.raises((NotOurFileError, KeyRefusedError)):
            opened(path, key=given)
    assert path.read_bytes() == before


@pytest.mark.parametrize("key", ["", "   ", b"short", "raw:12", 7, ["list"]])
def test_keys_that_are_none(path: Path, key: Any) -> None:
    with pytest.raises(InvalidInputError):
        opened(path, key=key)
    assert not path.exists()


def test_a_composed_and_a_decomposed_passphrase_are_the_same(path: Path) -> None:
    fill(path, "caf\u00e9 au lait")
    assert found(path, "cafe\u0301 au lait") == BOTH


def test_two_processes_make_the_same_encrypted_file(path: Path) -> None:
    """Each draws a salt of its own; the second to come takes the first one's."""
    job = (
        "import sys; from localmem import Memory; from localmem.testing import HashEmbedder, ScriptedGenerator\n"
        "with Memory(sys.argv[1], key='a passphrase', embedder=HashEmbedder(), generator=ScriptedGenerator()) as m:\n"
        "    m.add('fact of ' + sys.argv[2], infer=False, user_id='ann')\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", job, str(path), str(n)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    for each in started:
        _, said = each.communicate(timeout=60)
        assert each.returncode == 0, said
    assert len(found(path, "a passphrase")) == 4


def test_threads_read_and_write_it(path: Path) -> None:
    with opened(path, key=RAW) as memory:
        threads = [threading.Thread(target=lambda n=n: memory.add(f"fact {n}", infer=False, **ANN)) for n in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(memory.search("fact", **ANN)["results"]) == 6


def test_a_forked_child_opens_it_again(path: Path) -> None:
    with opened(path, key="a passphrase") as memory:
        memory.add(CANARY, infer=False, **ANN)
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if memory.search("canary", **ANN)["results"] else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert memory.search("canary", **ANN)["results"]


# -------------------------------------------------------------------- where keys come from


@pytest.mark.parametrize(
    ("content", "raw"),
    [(RAW.hex().encode() + b"\n", True), (f"raw:{RAW.hex()}".encode(), True), (RAW, True), (b"two words\n", False)],
)
def test_a_key_file(path: Path, tmp_path: Path, content: bytes, raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    monkeypatch.setenv("LOCALMEM_KEY_FILE", str(file))
    fill(path, None)
    monkeypatch.delenv("LOCALMEM_KEY_FILE")
    assert found(path, RAW if raw else "two words") == BOTH


def test_a_passphrase_of_32_letters_in_a_file_is_a_passphrase(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abcdefghijklmnopqrstuvwxyz012345")
    assert repr(keys.from_file(tmp_path / "key")) == "Key(passphrase)"


def test_key_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="can't be read"):
        keys.from_file(tmp_path / "nowhere")
    for content in (b"", b"\n", b"\xff\xfe\x00"):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(KeyRefusedError):
            keys.from_file(tmp_path / "key")


def test_the_environment_may_name_one_key_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMEM_KEY", "one")
    monkeypatch.setenv("LOCALMEM_KEY_FILE", "two")
    with pytest.raises(InvalidInputError, match="only one"):
        opened(path)


def test_a_new_key_file_is_private_and_not_written_twice(tmp_path: Path) -> None:
    file = tmp_path / "key"
    keys.write_new(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert repr(keys.from_file(file)) == "Key(raw)"
    with pytest.raises(StorageError):
        keys.write_new(file)


class Keychain:
    """The part of keyring that is used."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, name: str) -> str | None:
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, secret: str) -> None:
        self.kept[service, name] = secret


@pytest.fixture
def keychain(monkeypatch: pytest.MonkeyPatch) -> Keychain:
    made, errors = Keychain(), types.ModuleType("keyring.errors")
    errors.KeyringError = type("KeyringError", (Exception,), {})  # type: ignore[attr-defined]
    made.errors = errors  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", made)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)
    return made


def test_the_systems_keychain(path: Path, keychain: Keychain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMEM_KEYCHAIN", "work")
    with pytest.raises(KeyRefusedError, match="no key 'work'"):
        fill(path, None)
    keys.write_new_to_keychain("work")
    fill(path, None)
    assert found(path, None) == BOTH
    with pytest.raises(KeyRefusedError, match="already"):
        keys.write_new_to_keychain("work")
    [secret] = keychain.kept.values()
    assert found(path, secret) == BOTH


def test_a_keychain_that_does_not_answer(keychain: Keychain, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(service: str, name: str) -> str:
        raise sys.modules["keyring.errors"].KeyringError("secret text of the system")

    monkeypatch.setattr(keychain, "get_password", locked)
    with pytest.raises(KeyRefusedError, match="did not answer") as raised:
        keys.from_keychain("work")
    assert "secret text" not in str(raised.value)


def test_without_keyring_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MissingExtraError, match=r"localmem\[keychain\]"):
        keys.from_keychain("work")


# -------------------------------------------------------------------- keys don't show


def test_a_key_does_not_show(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not in errors with all their causes, not in reprs, not in what SQLite traces of our own statements in errors."""
    secret = "the very secret passphrase"
    fill(path, secret)
    raw = keys.Key(passphrase=secret).raw(path.read_bytes()[:16]).hex()
    said = repr(keys.key_of(secret))
    attempts: list[Callable[[], Any]] = [
        lambda: opened(path, key=OTHER),
        lambda: rekey(path, OTHER, secret),
        lambda: opened(path.parent / "nowhere" / "memory.db", key=secret),
        lambda: encrypt(path, secret),
    ]
    for attempt in attempts:
        try:
            attempt()
        except LocalmemError as error:
            said += "".join(traceback.format_exception(error))
    said += "".join(capfd.readouterr())
    assert "Error" in said
    for each in (secret, raw, OTHER.hex(), RAW.hex()):
        assert each not in said
    with pytest.raises(TypeError):
        pickle.dumps(keys.key_of(secret))


def test_a_copy_that_cannot_be_written_does_not_show_its_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    real = Path.as_uri
    monkeypatch.setattr(Path, "as_uri", lambda each: real(each / "no such folder" / "x"))
    with pytest.raises(StorageError, match="can't be written") as raised:
        rekey(path, RAW, OTHER)
    assert OTHER.hex() not in "".join(traceback.format_exception(raised.value))
    monkeypatch.undo()
    assert found(path) == BOTH


# -------------------------------------------------------------------- another key


def test_encrypt_rekey_decrypt(path: Path) -> None:
    fill(path, None)
    with opened(path) as memory:
        before = memory.search("canary", **ANN)["results"]
    assert encrypt(path, "first")["encrypted"] is True
    assert b"canary" not in path.read_bytes()
    assert found(path, "first") == BOTH
    assert rekey(path, "first", RAW)["encrypted"] is True
    with pytest.raises(KeyRefusedError):
        opened(path, key="first")
    assert found(path) == BOTH
    assert decrypt(path, RAW)["encrypted"] is False
    with opened(path) as memory:
        assert memory.search("canary", **ANN)["results"] == before
        ops = [(each["op"], each["detail"]) for each in memory.audit_log() if each["op"] == "rekey"]
    assert ops == [
        ("rekey", {"from": "plain", "to": "encrypted"}),
        ("rekey", {"from": "encrypted", "to": "encrypted"}),
        ("rekey", {"from": "encrypted", "to": "plain"}),
    ]
    assert [each.name for each in path.parent.iterdir()] == ["memory.db"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_of_its_own_goes_on_signing_the_chain(path: Path) -> None:
    with opened(path, audit_key=OTHER) as memory:
        memory.add(CANARY, infer=False, **ANN)
    encrypt(path, RAW, audit_key=OTHER)
    with opened(path, key=RAW, audit_key=OTHER) as memory:
        verdict = memory.verify_audit()
        assert verdict["problems"] == []
        assert verdict["signed"] == verdict["entries"]
    with pytest.raises(KeyRefusedError, match="audit chain"):
        rekey(path, RAW, OTHER)  # without it nothing could be entered
    assert whole_file.leftovers(path) == []


def test_the_old_file_is_overwritten_on_request(path: Path, tmp_path: Path) -> None:
    fill(path, None)
    os.link(path, tmp_path / "link to the old one")
    encrypt(path, RAW, overwrite=True)
    old = (tmp_path / "link to the old one").read_bytes()
    assert old == bytes(len(old))
    assert len(old) > 4096
    assert found(path) == BOTH


def test_another_open_connection_is_waited_for_and_reported(path: Path) -> None:
    fill(path)
    with (
        opened(path, key=RAW) as memory,
        pytest.raises(LockedError, match="another program has"),
    ):
        rekey(path, RAW, OTHER, lock_wait_s=0.2)
    memory.close()
    assert found(path) == BOTH
    assert whole_file.leftovers(path) == []
    with opened(path, key=RAW) as memory:
        closing = threading.Timer(0.3, memory.close)
        closing.start()
        rekey(path, RAW, OTHER, lock_wait_s=20)
    assert found(path, OTHER) == BOTH


def test_a_damaged_file_is_not_put_in_place(path: Path) -> None:
    fill(path, None)
    content = bytearray(path.read_bytes())
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        [(page,)] = connection.execute("select rootpage from sqlite_schema where name = 'memory_by_owner'").fetchall()
    content[(page - 1) * 4096 : page * 4096] = os.urandom(4096)
    path.write_bytes(content)
    with pytest.raises(LocalmemError):
        encrypt(path, RAW)
    assert path.read_bytes()[:16] == opening.PLAIN
    assert whole_file.leftovers(path) == []


def test_rekeying_needs_a_file_and_keys(path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no file"):
        encrypt(path, RAW)
    fill(path)
    for call in (lambda: rekey(path, RAW, None), lambda: encrypt(path, None)):  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="key"):
            call()
    with pytest.raises(KeyRefusedError, match="missing"):
        decrypt(path)
    with pytest.raises(InvalidTypeError):
        rekey(path, RAW, 7)  # type: ignore[arg-type]
    assert found(path) == BOTH


@pytest.mark.parametrize(
    ("before", "after"), [(None, RAW), (RAW, OTHER), (RAW, None)], ids=["encrypt", "rekey", "decrypt"]
)
def test_every_fault_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, before: Any, after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = whole_file.sync_folder

    def observe(path: Path) -> tuple[bool, list[str]]:
        for each in whole_file.leftovers(path):
            each.unlink()
        for name, key in (("before", before), ("after", after)):
            try:
                return name == "after", found(path, key)
            except KeyRefusedError:
                continue
        raise AssertionError("neither key opens the file")

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        change: Callable[..., Any] = encrypt if before is None else decrypt if after is None else rekey
        given = [each for each in (before, after) if each is not None]
        monkeypatch.setattr(whole_file, "sync_folder", lambda folder: (sync(folder), vfs.adopt(path)))
        change(path, *given, vfs=vfs.name, lock_wait_s=1)
        acknowledge()

    swept = faults.sweep(
        tmp_path,
        make=lambda path: fill(path, before),
        act=act,
        observe=observe,
        errors=(LocalmemError,),
        points_max=8,
    )
    assert swept.before == (False, BOTH)
    assert swept.after == (True, BOTH)


def test_what_a_death_left_lying_is_removed_next_time(path: Path) -> None:
    fill(path, None)
    shutil.copy(path, path.with_name(f"{path.name}.new-0badcafe"))
    encrypt(path, RAW)
    assert [each.name for each in path.parent.iterdir()] == ["memory.db"]
