"""The doctor: what it finds in sound and in broken circumstances, and that it tells nothing of what is remembered."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from click.testing import CliRunner

from localmem import Memory, artifacts, doctor, llm, probe
from localmem.cli import cli, options
from localmem.db import driver
from localmem.doctor import Report, examine, machine, watch, workday
from localmem.doctor import file as looking
from localmem.doctor.finding import FAILED, NOTE, OK, WARNING, Finding
from localmem.errors import GeneratorError, InstallationError
from localmem.testing import HashEmbedder, ScriptedGenerator

CANARY = "Zanzibar canary number seventeen"
KEY, AUDIT = bytes(range(32)), bytes(range(40, 72))
ANN = {"user_id": "ann"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store's place in a folder as localmem makes it; nothing else of this machine's localmem is seen."""
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "home"))
    for name in ("LOCALMEM_KEY_FILE", "LOCALMEM_AUDIT_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder / "localmem.db"


def opened(path: Path, **options: Any) -> Memory:
    return Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator(), **options)


def fill(path: Path, **options: Any) -> None:
    with opened(path, **options) as memory:
        memory.add(CANARY, infer=False, metadata={"note": CANARY}, **ANN)


def looked(path: Path, **options: Any) -> dict[str, Finding]:
    """What the doctor says of the store, by name; the last one of a name."""
    found = looking.look(path, lambda: opened(path, **options))
    assert_silent(found)
    return {each.name: each for each in found}


def assert_silent(found: list[Finding]) -> None:
    told = repr(found)
    assert "Zanzibar" not in told
    assert KEY.hex() not in told
    assert all(each.state in (OK, NOTE, WARNING, FAILED) and each.text for each in found)


def states(found: dict[str, Finding], *but: str) -> dict[str, str]:
    return {name: each.state for name, each in found.items() if each.state != OK and name not in but}


# -------------------------------------------------------------------- the store


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_sound_store(path: Path, key: Any) -> None:
    fill(path, key=key)
    found = looked(path, key=key)
    assert states(found) == {"vectors": NOTE}  # HashEmbedder does not come with localmem
    assert ("not encrypted" in found["store"].text) is (key is None)
    assert set(found) == {"store", "permissions", "disk", "integrity", "audit", "vectors", "pending", "leftovers"}


def test_no_store_yet_is_no_failure_and_none_is_made(path: Path) -> None:
    path.parent.rmdir()
    [found] = looking.look(path, lambda: opened(path))
    assert (found.state, "there is no store" in found.text) == (NOTE, True)
    assert not path.parent.exists()


def test_who_else_may_read_it(path: Path) -> None:
    fill(path)
    path.chmod(0o644)
    path.parent.chmod(0o755)
    found = [each for each in looking.look(path, lambda: opened(path)) if each.name == "permissions"]
    assert [each.state for each in found] == [WARNING, WARNING]
    for each in found:
        os.system(each.cure)
    assert looked(path)["permissions"].state == OK
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_side_file_that_others_may_read(path: Path) -> None:
    fill(path)
    with opened(path) as memory:
        memory.add("more", infer=False, **ANN)
        Path(f"{path}-wal").chmod(0o640)
        assert "localmem.db-wal" in looked(path)["permissions"].cure


@pytest.mark.parametrize("variable", ["LOCALMEM_KEY_FILE", "LOCALMEM_AUDIT_KEY_FILE"])
def test_key_files(path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    key = path.with_name("the key")
    monkeypatch.setenv(variable, str(key))
    found = {each.name: each for each in looking.look(path, lambda: opened(path))}
    assert (found["key file"].state, variable in found["key file"].text) == (FAILED, True)
    key.write_text(f"raw:{KEY.hex()}\n")
    key.chmod(0o604)
    assert looked(path)["key file"].state == WARNING
    os.system(looked(path)["key file"].cure)
    assert looked(path)["key file"].state == OK


def test_a_store_that_cannot_be_opened_is_one_finding(path: Path) -> None:
    fill(path, key=KEY)
    found = looked(path)
    assert found["store"].state == FAILED
    assert "is encrypted" in found["store"].text
    assert "--key-file" in found["store"].cure
    assert found["disk"].state == OK


def test_a_damaged_page(path: Path) -> None:
    fill(path)
    content = bytearray(path.read_bytes())
    at = content.find(CANARY.encode()) // 4096 * 4096
    content[at : at + 4096] = bytes(4096)
    path.write_bytes(content)
    found = looked(path)
    assert found["integrity"].state == FAILED
    assert "localmem salvage OUT" in found["integrity"].cure
    assert found["leftovers"].state == OK


def test_a_broken_invariant(path: Path) -> None:
    fill(path)
    with apsw.Connection(str(path)) as connection:
        connection.execute("update version set number = 7")
    found = looked(path)["integrity"]
    assert (found.state, "versions not numbered from 1" in found.text) == (FAILED, True)


def test_the_audit_chain(path: Path) -> None:
    fill(path)
    assert "checksum" in looked(path)["audit"].text
    path.unlink()
    fill(path, audit_key=AUDIT)
    assert looked(path)["audit"].state == NOTE
    assert "signed" in looked(path, audit_key=AUDIT)["audit"].text
    with apsw.Connection(str(path)) as connection:
        connection.execute("update audit set actor = 'eve' where seq = 2")
    assert looked(path, audit_key=AUDIT)["audit"].state == FAILED


def test_vectors_of_the_packaged_embedder(path: Path) -> None:
    with Memory(path, generator="none") as memory:
        memory.add("tea", infer=False, **ANN)
    [found] = [each for each in looking.look(path, lambda: Memory(path, generator="none")) if each.name == "vectors"]
    assert found.state == OK


def test_what_waits_to_be_finished(path: Path) -> None:
    failing = Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator(fail=True))
    with failing as memory, pytest.raises(GeneratorError):
        memory.add(CANARY, **ANN)
    found = looked(path)
    assert (found["pending"].state, found["pending"].cure) == (NOTE, "`localmem resume` goes on with them")
    with opened(path) as memory, memory._engine.store.write() as tx:
        tx.execute("insert into purge (id, at, state, reason, detail) values ('p1', 1, 'incomplete', 'locked', '{}')")
    assert looked(path)["purges"].state == WARNING


def test_leftovers(path: Path) -> None:
    fill(path)
    with opened(path) as memory, memory._engine.store.write() as tx:
        tx.execute("insert into purge (id, at, state, detail) values ('p1', 1, 'incomplete', '{}')")
    for name in ("localmem.db.new-1a2b3c4d", "localmem.db-purge-p1", "localmem.db-purge-p2"):
        path.with_name(name).write_bytes(b"")
    found = looked(path)["leftovers"]
    assert found.state == WARNING
    assert "new-1a2b3c4d" in found.cure
    assert "purge-p2" in found.cure
    assert "purge-p1" not in found.cure  # it is sought for yet


def test_little_space(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(looking.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000))
    assert looked(path)["disk"].state == WARNING


# -------------------------------------------------------------------- the machine


def test_versions_here() -> None:
    found = machine.versions()
    assert [each.state for each in found] in ([OK, OK], [OK, NOTE])
    assert "sqlite-vec 0.1." in found[1].text


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: None if name == "tokenizers" else real(name))
    assert machine.versions()[-1].state == FAILED
    assert "tokenizers" in machine.versions()[-1].text


def test_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.driver().state == OK

    def refuse() -> None:
        raise InstallationError("another package has overwritten apsw-sqlite3mc")

    with monkeypatch.context() as patched:
        patched.setattr(machine, "_version", lambda name: "3.50")
        assert machine.driver().state == WARNING
    monkeypatch.setattr(driver, "check_driver", refuse)
    found = machine.driver()
    assert (found.state, found.cure) == (FAILED, driver.APSW_CURE)


def test_the_rest_is_looked_at_without_a_driver(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(machine, "driver", lambda: Finding("database driver", FAILED, "overwritten"))
    report = examine(path, lambda: opened(path))
    assert not report.ok
    assert "integrity" not in {each.name for each in report.findings}
    assert "telemetry" in {each.name for each in report.findings}


def test_models(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    assert [each.state for each in machine.models()] == [OK, NOTE]  # the generator is not in this home
    status = artifacts.list_models()[0]
    for change, state in (
        ({"sha256_ok": False}, FAILED),
        ({"installed": False, "path": None}, FAILED),
        ({"sha256_ok": None, "kind": "generator"}, NOTE),
    ):
        changed = dataclasses.replace(status, **change)
        monkeypatch.setattr(artifacts, "verify", lambda changed=changed: [changed])
        [found] = machine.models()
        assert found.state == state


def test_the_probe(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    assert machine.probe(None, lambda words: None).state == NOTE  # nothing is installed in this home
    assert machine.probe("none", lambda words: None).state == NOTE
    monkeypatch.setattr(llm, "open_generator", lambda spec: ScriptedGenerator())
    difference = probe.LabelDifference("stance-oboe", "other", 0.99, "refines", 0.9)
    for labels, state in (((), OK), ((difference,), FAILED)):
        outcome = probe.Outcome(40, labels, (), 0.01, "", "here", "there", same_base=True)
        monkeypatch.setattr(probe, "run", lambda *_, outcome=outcome: outcome)
        assert machine.probe(None, lambda words: None).state == state

    def fail(*_: Any) -> Any:
        raise GeneratorError("out of memory")

    monkeypatch.setattr(probe, "run", fail)
    assert machine.probe(None, lambda words: None).state == FAILED


INFO = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AMX_INT8 = 1 | AVX_VNNI = 0 | OPENMP = 1 | REPACK = 1 |"


def ran(code: int, out: str = "") -> Callable[..., Any]:
    return lambda *_, **__: subprocess.CompletedProcess([], code, out, "")


def test_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.needed(INFO) == ["SSE3", "AVX2", "AVX512"]
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    monkeypatch.setattr(machine.subprocess, "run", ran(0, INFO))
    enough = frozenset(["pni", "avx2", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"])
    for flags, state, words in (
        (enough, OK, "this processor has it"),
        (enough - {"avx512dq"}, FAILED, "needs AVX512, which"),
        (None, NOTE, "can't be told here"),
    ):
        monkeypatch.setattr(machine, "cpu_flags", lambda flags=flags: flags)
        found = machine.processor()
        assert (found[0].state, words in found[0].text) == (state, True)
    monkeypatch.setattr(machine.subprocess, "run", ran(-4))
    assert machine.processor()[0].state == FAILED
    assert "SIGILL" in machine.processor()[0].text
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert machine.processor()[0].state == NOTE


def test_a_model_is_not_asked_that_would_kill_the_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processor", lambda: [Finding("processor", FAILED, "SIGILL")])
    monkeypatch.setattr(machine, "probe", lambda *_: pytest.fail("it was asked"))
    assert not examine(path, lambda: opened(path)).ok


def test_cpu_flags(tmp_path: Path) -> None:
    for text, wanted in (("flags\t\t: fpu pni avx2\n", {"fpu", "pni", "avx2"}), ("Features : asimd\n", {"asimd"})):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{text}processor : 1\n")
        assert machine.cpu_flags(tmp_path / "cpuinfo") == wanted
    assert machine.cpu_flags(tmp_path / "nowhere") is None


@pytest.mark.parametrize("airgap", [False, True])
def test_telemetry(monkeypatch: pytest.MonkeyPatch, airgap: bool) -> None:
    monkeypatch.setattr(machine, "talkative", list)  # other tests import an HTTP client
    assert [each.state for each in machine.telemetry(airgap=airgap, environ={})] == [OK]
    worse = FAILED if airgap else WARNING
    [found] = machine.telemetry(airgap=airgap, environ={"ORT_DISABLE_TELEMETRY": "0"})
    assert found.state == worse
    environ = {"HTTPS_PROXY": "http://user:secret@proxy", "SENTRY_DSN": "https://secret@sentry"}
    found_ = machine.telemetry(airgap=airgap, environ=environ)
    assert [each.state for each in found_] == [OK, WARNING, NOTE]
    assert "secret" not in repr(found_)
    monkeypatch.setattr(machine, "talkative", lambda: ["requests"])
    assert machine.telemetry(airgap=airgap, environ={})[-1].state == WARNING
    monkeypatch.setattr(machine, "_version", lambda name: "1.29.0")
    assert machine.telemetry(airgap=airgap, environ={})[0].state == worse


# -------------------------------------------------------------------- airgap


def airgapped() -> tuple[Finding, dict[str, Any]]:
    found, proof = doctor._airgap()
    return found[0], proof


def test_a_working_day_is_silent(path: Path) -> None:
    found, proof = airgapped()
    sure = {"unshare -rn", "strace"} & set(proof["by"])
    assert found.state == (OK if sure else WARNING), found
    assert (proof["network"], proof["files"], proof["generator"]) == ([], [], None)
    assert {"add", "search", "context", "update", "purge", "encrypt", "audit verify", "check"} <= set(proof["steps"])
    assert all(each in found.text for each in proof["by"])


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "call to the network"),
        ("import pathlib, tempfile; pathlib.Path(tempfile.gettempdir(), 'left').write_text('')", "files were written"),
        ("raise SystemExit('no room')", "no room"),
        ("import onnxruntime", "before it was told"),
    ],
)
def test_what_is_not_silent_fails(path: Path, monkeypatch: pytest.MonkeyPatch, does: str, words: str) -> None:
    monkeypatch.setattr(workday, "CODE", f"{does}\n{workday.CODE}")
    found, proof = airgapped()
    assert (found.state, words in found.text) == (FAILED, True), found
    if "network" in words:
        assert proof["network"]
    if "files" in words:
        assert proof["files"]


def test_a_day_that_went_wrong_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        workday, "CODE", "from localmem.doctor import workday\nworkday.work = lambda *_: {'steps': [], 'wrong': ['a search']}\n"
        "workday.main(heard, telemetry)"
    )  # fmt: skip
    assert "a search" in airgapped()[0].text


def test_the_audit_hook_alone_is_no_proof(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_works", lambda *command: False)
    found, proof = airgapped()
    assert (found.state, proof["by"]) == (WARNING, ["audit hook"])
    assert "does not see native code" in found.text


# -------------------------------------------------------------------- the command


@pytest.fixture
def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """run(*words): the command in this process, on the store in this test's home."""
    for name in ("LOCALMEM_USER", "LOCALMEM_DB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(options, "make_memory", lambda place, **_: opened(path))
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}  # click < 8.2
    runner = CliRunner(**apart)
    return lambda *words: runner.invoke(cli, list(words))


def test_the_command(run: Callable[..., Any], path: Path) -> None:
    fill(path)
    plain, quiet, as_json = run("doctor"), run("doctor", "--quiet"), run("doctor", "--json")
    assert (plain.exit_code, quiet.exit_code, as_json.exit_code) == (0, 0, 0), plain.output
    assert quiet.stderr == as_json.stderr == ""
    rows = [line.split("\t") for line in plain.stdout.splitlines()]
    told = json.loads(as_json.stdout)
    assert [row[:2] for row in rows] == [[each["state"], each["name"]] for each in told["findings"]]
    assert told["ok"] is True
    assert "proof" not in told
    assert "Zanzibar" not in plain.output + as_json.output


def test_the_command_fails_where_something_failed(run: Callable[..., Any], path: Path) -> None:
    path.write_bytes(b"no store at all" * 1000)
    done = run("doctor", "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert [each["name"] for each in told["findings"] if each["state"] == FAILED] == ["store"]


def test_the_proof_is_told(run: Callable[..., Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = {"by": ["strace"], "steps": ["open"], "generator": None, "network": [], "files": []}
    monkeypatch.setattr(doctor, "_airgap", lambda: ([Finding("airgap", OK, "watched by strace")], proof))
    assert json.loads(run("doctor", "--airgap", "--json").stdout)["proof"] == proof
    assert "ok\tairgap\twatched by strace" in run("doctor", "--airgap").stdout


def test_a_report_is_ok_unless_something_failed() -> None:
    assert Report((Finding("a", WARNING, "b", "c"), Finding("d", NOTE, "e"))).ok
    assert not Report((Finding("a", FAILED, "b"),)).ok
    assert Finding("a", WARNING, "b", "c").to_dict() == {"name": "a", "state": "warning", "text": "b", "cure": "c"}


# -------------------------------------------------------------------- salvage, the command


def test_salvage(run: Callable[..., Any], path: Path, tmp_path: Path) -> None:
    fill(path)
    whole = run("salvage", str(tmp_path / "whole.db"), "--json")
    assert (whole.exit_code, json.loads(whole.stdout)["complete"], whole.stderr) == (0, True, "")
    content = bytearray(path.read_bytes())
    at = content.find(CANARY.encode()) // 4096 * 4096
    content[at : at + 4096] = bytes(4096)
    path.write_bytes(content)
    part = run("salvage", str(tmp_path / "part.db"))
    assert part.exit_code == 1
    assert "part.db: " in part.stdout
    assert "keep the damaged file" in part.stderr
    assert "damaged pages: 1" in part.stderr
    again = run("salvage", str(tmp_path / "part.db"), "--json")
    assert (again.exit_code, json.loads(again.stderr)["error"]["type"]) == (1, "InvalidInputError")


def test_salvage_of_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("salvage", str(tmp_path / "out.db"), "--file", str(tmp_path / "nowhere.db"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "there is no file" in done.stderr
