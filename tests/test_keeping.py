"""The commands of whoever answers for the file: purge, export, audit, keys. As a person types them."""

from __future__ import annotations

import contextlib
import getpass
import json
import stat
from pathlib import Path

import apsw
import pytest
from test_cli import Run, generator, run  # noqa: F401  (fixtures)

CANARY = "Zanzibar canary number seventeen"


@pytest.fixture
def filled(run: Run, tmp_path: Path) -> Run:  # noqa: F811
    """Two people's memories, of which one was deleted and one forgotten."""
    run("add", "--no-infer", CANARY, "--user", "ann", "--actor", "desk one")
    run("add", "--no-infer", "Ann keeps goats", "--user", "ann")
    run("add", "--no-infer", "Ben keeps bees", "--user", "ben")
    return run


def store(tmp_path: Path) -> Path:
    return tmp_path / "home" / "localmem.db"


def ids(run: Run, user: str) -> list[str]:  # noqa: F811
    return [each["id"] for each in run("list", "--json", "--user", user).json["results"]]


# -------------------------------------------------------------------- purge


def test_everything_of_a_person_goes_with_a_certificate(filled: Run, tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"
    done = filled("purge", "--all", "--yes", "--user", "ann", "--certificate", str(file))
    assert done.code == 0
    assert "2 memory" in done.out
    assert "0 free pages, 0 bytes of WAL" in done.out
    assert "0 found" in done.out
    assert "not signed" in done.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert filled("audit", "certificate", str(file)).out == "ok, but not signed: anybody could have made it\n"
    assert ids(filled, "ann") == []
    assert len(ids(filled, "ben")) == 1
    assert CANARY.encode() not in store(tmp_path).read_bytes()
    content = json.loads(file.read_text())
    content["rows"]["memory"] = 7
    file.write_text(json.dumps(content))
    changed = filled("audit", "certificate", str(file))
    assert (changed.code, changed.out) == (1, "it was changed after it was signed\n")
    file.write_text("nonsense")
    assert filled("audit", "certificate", str(file)).code == 1


def test_nothing_goes_without_a_yes(filled: Run) -> None:
    for words in (["--all"], ["--requested"], ["--query", "goats"], [ids(filled, "ann")[0]]):
        refused = filled("purge", *words, "--user", "ann", stdin="n\n")
        assert refused.code == 1, words
        assert "nothing was done" in refused.err
    assert len(ids(filled, "ann")) == 2
    assert filled("purge", "--all", "--user", "ann", stdin="y\n").code == 0
    assert ids(filled, "ann") == []


def test_one_memory_by_the_end_of_its_id(filled: Run, tmp_path: Path) -> None:
    wanted = ids(filled, "ann")[0]
    assert filled("delete", wanted[-8:], "--user", "ann").code == 0
    done = filled("purge", wanted[-8:], "--user", "ann", "--yes", "--json")
    assert done.json["complete"] is True
    assert done.json["certificate"]["what"]["what"] == "memories"
    assert CANARY.encode() not in store(tmp_path).read_bytes()
    assert len(ids(filled, "ann")) == 1
    assert filled("purge", wanted, "--user", "ann", "--yes").code == 1


def test_a_query_shows_what_would_go(filled: Run) -> None:
    done = filled("purge", "--query", "goats", "--user", "ben", stdin="y\n")
    assert "Ben keeps bees" in done.out
    assert ids(filled, "ben") == []
    assert len(ids(filled, "ann")) == 2


def test_misuse(filled: Run, tmp_path: Path) -> None:
    for words in ([], ["--all", "--requested"], ["--all", "some-id"]):
        assert filled("purge", *words).code == 2
    (tmp_path / "there").write_text("")
    assert filled("purge", "--all", "--yes", "--user", "ann", "--certificate", str(tmp_path / "there")).code == 1
    assert len(ids(filled, "ann")) == 2
    assert filled("purge", "--all", "--yes", "--user", "nobody").out == "nothing to purge\n"


def test_an_incomplete_purge_is_told_and_resumed(filled: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as scarce:
        scarce.setattr("localmem.db.raw_file._free_memory", lambda: 0)
        done = filled("purge", "--all", "--yes", "--user", "ann")
    assert done.code == 1
    assert "localmem resume" in done.out
    assert "incomplete" in filled("audit", "purges").out
    resumed = filled("resume")
    assert resumed.code == 0
    assert "is done" in resumed.err
    assert "incomplete" not in filled("audit", "purges").out


# -------------------------------------------------------------------- access and audit


def test_all_that_is_kept_of_somebody(filled: Run, tmp_path: Path) -> None:
    file = tmp_path / "ann.jsonl"
    done = filled("export", str(file), "--user", "ann")
    assert done.err == f"4 records of user 'ann' are in {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [each["record"] for each in records] == ["memory", "memory", "episode", "episode"]
    assert records[0]["versions"][0]["memory"] == CANARY
    assert records[2]["messages"][0]["content"] == CANARY
    assert "Ben" not in file.read_text()
    assert filled("export", str(file), "--user", "ann").code == 1  # is there already
    assert filled("export", "--user", "ann", "--json").json["records"] == records
    assert [each["op"] for each in filled("audit", "export", "--user", "ann", "--json").json["entries"]][-2:] == [
        "export",
        "audit_export",
    ]


def test_who_did_what(filled: Run) -> None:
    lines = [json.loads(line) for line in filled("audit", "export").out.splitlines()]
    assert [each["op"] for each in lines] == ["begin", "turn", "add", "turn", "add", "turn", "add", "audit_export"]
    assert [each["actor"] for each in lines[1:3]] == ["desk one", "desk one"]
    assert filled("audit", "reads").out == "off\n"
    assert filled("audit", "reads", "on", "--json").json == {"reads": True}
    filled("search", "goats", "--user", "ann", "--actor", "desk two")
    last = filled("audit", "export", "--json").json["entries"][-2]
    assert (last["op"], last["actor"], len(last["detail"]["seen"])) == ("search", "desk two", 2)
    goats = next(
        each["id"] for each in filled("list", "--user", "ann", "--json").json["results"] if "goats" in each["memory"]
    )
    about = [
        each["op"] for each in filled("audit", "export", "--user", "ann", "--memory", goats, "--json").json["entries"]
    ]
    assert [op for op in about if op != "get_all"] == ["add", "search"]
    table = [line.split("\t") for line in filled("audit", "list", "--user", "ann").out.splitlines()]
    assert [row[2:] for row in table if row[3] == "search"] == [["desk two", "search", "2 memories"]]
    verified = filled("audit", "verify")
    assert verified.code == 0
    assert "not signed: a checksum" in verified.out
    assert verified.out.endswith("ok\n")


def test_a_signed_chain_and_its_checkpoints(run: Run, tmp_path: Path) -> None:  # noqa: F811
    key, outside = str(tmp_path / "audit key"), str(tmp_path / "outside")
    assert run("keygen", key).err.startswith("a new key is in the file")
    signed = ["--audit-key-file", key, "--checkpoint", outside]
    run("add", "--no-infer", "Ann keeps goats", *signed)
    run("add", "--no-infer", "Ann keeps bees", *signed)
    found = run("audit", "verify", *signed, "--json").json
    assert (found["ok"], found["signed"], found["entries"], found["checkpoints"]) == (
        True,
        5,
        5,
        3,
    )  # one when it was opened
    refused = run("add", "--no-infer", "Ann keeps cats")
    assert refused.code == 1
    assert "LOCALMEM_AUDIT_KEY_FILE" in refused.err
    without = run("audit", "verify")
    assert "was not given" in without.out
    with contextlib.closing(apsw.Connection(str(store(tmp_path)))) as connection:
        connection.execute("delete from audit where seq = 5")
    cut = run("audit", "verify", *signed)
    assert cut.code == 1
    assert "its end was cut off" in cut.out


def test_a_chain_is_signed_when_it_is_asked(filled: Run, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for key in (one, two):
        filled("keygen", key)
    refused = filled("add", "--no-infer", "Ann keeps cats", "--audit-key-file", one)
    assert refused.code == 1
    assert "localmem audit sign" in refused.err
    assert filled("audit", "verify", "--audit-key-file", one).code == 1
    assert filled("audit", "sign", "--audit-key-file", one).out.endswith("from here on\n")
    assert filled("add", "--no-infer", "Ann keeps cats", "--audit-key-file", one).code == 0
    wrong = filled("audit", "sign", "--audit-key-file", two)
    assert (wrong.code, "another key" in wrong.err) == (1, True)
    done = filled("audit", "sign", "--audit-key-file", two, "--previous-key-file", one, "--json").json
    found = filled("audit", "verify", "--audit-key-file", two, "--json").json
    assert (found["ok"], found["key_id"], found["signed"]) == (True, done["key_id"], 1)


# -------------------------------------------------------------------- keys


def test_a_key_for_the_store_and_another_and_none(filled: Run, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert filled("keygen", one, "--json").json == {"file": one}
    filled("keygen", two)
    assert filled("encrypt", "--new-key-file", one, "--overwrite").out.endswith(
        f"encrypted, {store(tmp_path).stat().st_size:,} bytes\n"
    )
    assert CANARY.encode() not in store(tmp_path).read_bytes()
    refused = filled("list", "--user", "ann")
    assert refused.code == 1
    assert "LOCALMEM_KEY_FILE" in refused.err
    assert CANARY in filled("list", "--user", "ann", "--key-file", one).out
    assert filled("rekey", "--key-file", one, "--new-key-file", two).code == 0
    assert filled("list", "--user", "ann", "--key-file", one).code == 1
    assert CANARY in filled("list", "--user", "ann", env={"LOCALMEM_KEY_FILE": two}).out
    assert filled("decrypt", "--key-file", two, stdin="n\n").code == 1
    assert filled("decrypt", "--key-file", two, "--yes", "--json").json["encrypted"] is False
    assert CANARY in filled("list", "--user", "ann").out


def test_a_passphrase_is_asked_for_twice(filled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["first try", "another", "the passphrase", "the passphrase"])
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(answers))
    assert "differ" in filled("encrypt").err
    assert filled("encrypt").code == 0
    known = {"LOCALMEM_KEY": "the passphrase"}
    assert CANARY in filled("list", "--user", "ann", env=known).out
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "the passphrase")
    assert CANARY in filled("list", "--user", "ann", "--ask-key").out
    assert filled("decrypt", "--yes", env=known).code == 0


def test_key_misuse(filled: Run, tmp_path: Path) -> None:
    for words in (
        ["keygen"],
        ["keygen", "file", "--keychain", "name"],
        ["encrypt", "--new-key-file", "a", "--new-keychain", "b"],
        ["list", "--key-file", "a", "--keychain", "b"],
    ):
        assert filled(*words).code == 2, words
    assert filled("rekey", "--new-key-file", str(tmp_path / "nowhere")).code == 1
    assert filled("encrypt", "-f", str(tmp_path / "nowhere.db"), "--new-key-file", "x").code == 1
