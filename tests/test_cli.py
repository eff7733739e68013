"""The command line as a person and as a script meet it: what lands on which stream, in which shape, with which exit."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from doubles import Listener

from localmem import Memory, __version__
from localmem.cli import cli, options
from localmem.errors import GeneratorError, ModelNotFoundError, ScopeError
from localmem.testing import HashEmbedder, ScriptedGenerator
from localmem.types import Prompt

ROOT = Path(__file__).resolve().parent.parent
FILES = Path(__file__).parent / "data" / "transcripts"
UNKNOWN = "00000000-0000-7000-8000-000000000000"


class Trouble(ScriptedGenerator):
    """Answers by script; ``before`` may raise when a text is about to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[str], None] = lambda said: None

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        self.before(prompt.turns[-1][1])
        return super().generate(prompt, grammar=grammar, tokens_max=tokens_max)


@dataclass(frozen=True)
class Ran:
    """One finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


Run = Callable[..., Ran]


@pytest.fixture
def generator() -> Trouble:
    return Trouble()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: Trouble, scripted: None) -> Iterator[Run]:
    """run(*words, stdin="", env={}): the command in this process, on a store in the test's folder."""
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "home"))
    for name in ("LOCALMEM_USER", "LOCALMEM_AGENT", "LOCALMEM_RUN", "LOCALMEM_DB"):
        monkeypatch.delenv(name, raising=False)

    def make_memory(path: str | None, **given: Any) -> Memory:
        return Memory(path, embedder=HashEmbedder(), **{**given, "generator": the_generator})

    the_generator = generator
    monkeypatch.setattr(options, "make_memory", make_memory)
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}  # click < 8.2
    runner = CliRunner(**apart)

    def run(*words: str, stdin: str = "", env: dict[str, str] | None = None) -> Ran:
        done = runner.invoke(cli, list(words), input=stdin, env=env)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Ran(done.exit_code, done.stdout, done.stderr)

    yield run
    store = tmp_path / "home" / "localmem.db"
    if store.exists():
        with make_memory(str(store), generator=None, durability="power") as memory:
            assert memory.check() == []


def memories(run: Run, *words: str) -> list[str]:
    return [each["memory"] for each in run("list", "--json", *words).json["results"]]


def ids(run: Run, *words: str) -> list[str]:
    return [each["id"] for each in run("list", "--json", *words).json["results"]]


# -------------------------------------------------------------------- nothing there yet

READING = [
    ("list",),
    ("list", "--contested"),
    ("list", "--unsupported"),
    ("list", "--pending"),
    ("list", "--deleted"),
    ("list", "--history"),
    ("search", "tea"),
    ("search", "tea", "--explain", "--include", "all", "--as-of", "2025-01-01"),
    ("resume",),
    ("check",),
    ("reindex",),
    ("delete", "--all", "--yes"),
    ("models", "list"),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_every_command_works_on_an_empty_store(run: Run, words: tuple[str, ...]) -> None:
    plain, quiet, as_json = run(*words), run(*words, "--quiet"), run(*words, "--json")
    assert (plain.code, quiet.code, as_json.code) == (0, 0, 0)
    assert quiet.err == ""
    assert isinstance(as_json.json, dict)
    assert as_json.json.get("results", []) == []


@pytest.mark.parametrize("command", ["show", "history", "update", "delete"])
@pytest.mark.parametrize("given", [UNKNOWN, "12345678"])
def test_unknown_ids(run: Run, command: str, given: str) -> None:
    words = (command, given, *(["new words"] if command == "update" else []))
    plain, as_json = run(*words), run("--json", *words)
    assert (plain.code, plain.out, plain.err.count("\n")) == (1, "", 1)
    assert plain.err.startswith("error: no memory")
    assert given in plain.err
    assert (as_json.code, as_json.out) == (1, "")
    assert as_json.error["type"] == "NotFoundError"


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("list", "--nonsense"),
        ("add", "  "),
        ("add", "hi", "--metadata", "{"),
        ("add", "hi", "--metadata", "[1]"),
        ("add", "hi", "--timestamp", "soon"),
        ("add", "hi", "--role", "king"),
        ("search",),
        ("search", "x", "--limit", "0"),
        ("search", "x", "--threshold", "2"),
        ("list", "--deleted", "--as-of", "2025-01-01"),
        ("show", "xyz"),
        ("delete",),
        ("delete", "--all", UNKNOWN),
        ("ingest",),
        ("ingest", "x.json", "--exchange", "0"),
        ("update", UNKNOWN),
    ],
    ids=" ".join,
)
def test_misuse_is_2_and_nothing_is_written(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    plain, as_json = run(*words), run(*words, "--json")
    assert (plain.code, as_json.code) == (2, 2)
    assert plain.out == as_json.out == ""
    assert "Error" in plain.err
    assert "Traceback" not in plain.err
    assert as_json.error["message"]


def test_help_names_every_shape_and_no_command_is_without_words(run: Run) -> None:
    assert run().out == run("--help").out
    assert run("--version").out == f"localmem {__version__}\n"
    commands: dict[str, Any] = {**cli.commands}
    groups = {name: commands.pop(name).commands for name in ("audit", "import", "models")}
    within = [[group, name] for group, members in groups.items() for name in members]
    for path in [*([name] for name in commands), *within]:
        shown = run(*path, "--help")
        assert shown.code == 0
        assert "--json: " in shown.out, path
        assert "Shared options:" in shown.out, path
        assert max(map(len, shown.out.splitlines())) <= 80, path


# -------------------------------------------------------------------- a life


def test_from_adding_to_deleting(run: Run) -> None:
    added = run("add", "fact: User lives in Porto", "--timestamp", "2025-01-05", "--json").json
    assert [(e["event"], e["memory"]) for e in added["results"]] == [("ADD", "User lives in Porto")]
    moved = run("add", "fact: User lives in Lisbon | changes: User lives", "--timestamp", "1 March 2025")
    assert moved.out.startswith("~ User lives in Lisbon  (was: User lives in Porto)")
    assert run("add", "fact: User lives in Lisbon").err == "nothing new to remember\n"

    (found,) = run("search", "where does the user live?", "--json").json["results"]
    assert (found["memory"], found["user_id"]) == ("User lives in Lisbon", "default")
    assert 0 <= found["score"] <= 1
    memory_id = found["id"]

    told = run("history", memory_id, "--json").json["results"]
    assert [e["event"] for e in told] == ["ADD", "UPDATE"]
    plain = run("history", memory_id).out
    assert "User lives in Porto  (2025-01-05 to 2025-03-01" in plain
    assert "said 2025-01-05 00:00:" in plain
    assert memories(run, "--as-of", "2025-02-01") == ["User lives in Porto"]
    assert memories(run, "--history") == ["User lives in Porto"]

    assert run("update", memory_id, "User", "lives", "in", "Faro").code == 0
    assert run("show", memory_id, "--json").json["memory"] == "User lives in Faro"
    assert "User lives in Faro" in run("show", memory_id).out
    gone = run("delete", memory_id, "--json").json
    assert gone["deleted"] == 1
    assert memories(run) == []
    assert memories(run, "--deleted") == ["User lives in Faro"]
    assert run("show", memory_id).err.endswith("`localmem history` still shows it\n")
    assert run("history", memory_id[-8:], "--json").json["results"][-1]["event"] == "DELETE"


def test_views(run: Run) -> None:
    run("add", "fact: User eats meat")
    run("add", "fact: User is vegetarian | contests: User eats")
    run("add", "fact: User owns a yacht | unsupported")
    contested = run("list", "--contested", "--json").json["results"]
    assert {e["memory"] for e in contested} == {"User eats meat", "User is vegetarian"}
    assert run("list", "--contested").out.count(contested[0]["id"]) == 2  # itself, and as the other one's
    (kept_out,) = run("list", "--unsupported", "--json").json["results"]
    assert kept_out["fact"] == "User owns a yacht"
    assert run("list", "--unsupported").out.startswith("User owns a yacht\t")


def test_text_from_stdin_and_words_without_quotes(run: Run) -> None:
    assert run("add", "--no-infer", "two", "words").code == 0
    assert run("add", "--no-infer", "-", stdin="from\nstdin\n").code == 0
    assert run("add", "--no-infer", stdin="piped").code == 0
    assert run("update", ids(run)[2], "-", stdin="piped and changed").code == 0
    assert memories(run) == ["two words", "from\nstdin", "piped and changed"]
    assert [line.split("\t")[1] for line in run("list").out.splitlines()][1] == "from stdin"


def test_metadata_and_filters(run: Run) -> None:
    run("add", "--no-infer", "the boat is blue", "--metadata", '{"topic": "boat", "n": 1}')
    run("add", "--no-infer", "the boat is old", "--metadata", '{"topic": "age"}')
    (found,) = run("search", "boat", "--filter", '{"topic": {"in": ["boat"]}}', "--json").json["results"]
    assert found["memory"] == "the boat is blue"
    assert run("update", found["id"], "--metadata", '{"topic": "paint"}').code == 0
    assert run("show", found["id"], "--json").json["metadata"] == {"topic": "paint"}
    refused = run("search", "boat", "--filter", '{"topic": {"like": 1}}', "--json")
    assert (refused.code, refused.error["type"]) == (1, "FilterError")


def test_ids_may_be_shortened(run: Run) -> None:
    run("add", "--no-infer", "first")
    run("add", "--no-infer", "second")
    first, second = ids(run)
    assert run("show", first[-8:], "--json").json["id"] == first
    assert run("show", second.upper(), "--json").json["id"] == second
    assert run("show", first[:4]).err.startswith(f"error: 2 ids begin or end with {first[:4]}: {first}, {second};")
    both = run("delete", first[-8:], second, first, "--json").json
    assert (both["deleted"], memories(run)) == (2, [])


def test_deleting_several_is_all_or_nothing(run: Run) -> None:
    run("add", "--no-infer", "first")
    assert run("delete", ids(run)[0], UNKNOWN).code == 1
    assert memories(run) == ["first"]


def test_scopes(run: Run) -> None:
    run("add", "--no-infer", "Ana's", "--user", "ana")
    run("--user", "ben", "add", "--no-infer", "Ben's")
    run("add", "--no-infer", "of a run", "--run", "r1", env={"LOCALMEM_USER": "ana"})
    run("add", "--no-infer", "of an agent", "--agent", "bot")
    assert memories(run) == []
    assert memories(run, "--user", "ana") == ["Ana's", "of a run"]
    assert memories(run, "--user", "ana", "--run", "r1") == ["of a run"]
    assert memories(run, "--agent", "bot") == ["of an agent"]
    assert [e["memory"] for e in run("list", "--json", env={"LOCALMEM_USER": "ben"}).json["results"]] == ["Ben's"]
    # The option behind the command wins over the one before it, and that over the environment.
    words = ("--user", "x", "list", "--json", "--user", "ben")
    assert len(run(*words, env={"LOCALMEM_USER": "ana"}).json["results"]) == 1
    (bens,) = ids(run, "--user", "ben")
    for command in ("show", "history", "delete"):
        assert run(command, bens, "--user", "ana").err.startswith("error: no memory has the id")
    assert run("show", bens).code == 0  # whoever has the file and the whole id may look


def test_delete_all_asks(run: Run) -> None:
    run("add", "--no-infer", "one")
    run("add", "--no-infer", "other", "--user", "ben")
    refused = run("delete", "--all", stdin="n\n")
    assert (refused.code, refused.out) == (1, "")
    assert "Delete all 1 memories of user 'default'?" in refused.err
    assert run("delete", "--all").code == 1  # nobody there to ask
    assert memories(run) == ["one"]
    agreed = run("delete", "--all", "--json", stdin="y\n")
    assert agreed.json == {"deleted": 1, "results": []}
    assert memories(run) == []
    assert memories(run, "--user", "ben") == ["other"]


def test_the_store(run: Run, tmp_path: Path) -> None:
    mine = str(tmp_path / "mine.db")
    missing = run("list", "--file", mine)
    assert missing.err == f"error: there is no file {mine}; `localmem add` or `localmem ingest` makes one\n"
    assert not Path(mine).exists()
    assert run("--db", mine, "add", "--no-infer", "kept here", "--durability", "process").code == 0
    assert memories(run, "-f", mine) == memories(run, "--db", mine) == ["kept here"]
    assert memories(run) == []
    (tmp_path / "other.txt").write_text("this is no store, and it is long enough to have a header of its own" * 20)
    refused = run("list", "--file", str(tmp_path / "other.txt"), "--json")
    assert (refused.code, refused.error["type"], refused.out) == (1, "NotOurFileError", "")


def test_check_tells_what_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("check").out == "ok\n"
    assert run("check", "--json").json == {"ok": True, "problems": []}
    monkeypatch.setattr(Memory, "check", lambda self: ["memory 1 has no vector", "memory 2 has no head"])
    broken = run("check", "--json")
    assert (broken.code, broken.json["ok"], len(broken.json["problems"])) == (1, False, 2)
    plain = run("check")
    assert (plain.code, plain.out) == (1, "memory 1 has no vector\nmemory 2 has no head\n")
    monkeypatch.undo()


# -------------------------------------------------------------------- a model that fails


def test_a_failed_model_leaves_the_words_pending(run: Run, generator: Trouble) -> None:
    def fail(said: str) -> None:
        raise GeneratorError("the model is out of memory")

    generator.before = fail
    failed = run("add", "fact: User likes tea", "--json")
    assert (failed.code, failed.out, failed.error["type"]) == (1, "", "GeneratorError")
    assert "`localmem resume`" in failed.error["message"]
    (waiting,) = run("list", "--pending", "--json").json["results"]
    assert waiting["episode_id"] == failed.error["episode_id"]
    assert "GeneratorError" in run("list", "--pending").out
    assert run("search", "tea", "--json").json["results"][0]["turn"] is True
    assert "(as said)" in run("search", "tea").out
    assert run("resume").code == 1

    generator.before = lambda said: None
    done = run("resume", "--json").json
    assert (done["episodes"], done["pending"], done["results"][0]["memory"]) == (1, 0, "User likes tea")
    assert run("resume").err == "nothing was pending\n"


# -------------------------------------------------------------------- ingest


def chat(tmp_path: Path, count: int = 6, name: str = "chat.json") -> str:
    """A chat of ``count`` exchanges, each with one fact."""
    said = [
        message
        for i in range(count)
        for message in (
            {"role": "user", "content": f"hello {i}\nfact: User has house {i}"},
            {"role": "assistant", "content": "I see."},
        )
    ]
    file = tmp_path / name
    file.write_text(json.dumps(said), encoding="utf-8")
    return str(file)


def houses(count: int) -> list[str]:
    return [f"User has house {i}" for i in range(count)]


def test_ingest_once(run: Run, tmp_path: Path) -> None:
    file = chat(tmp_path)
    (first,) = run("ingest", file, "--json").json["files"]
    assert {name: first[name] for name in ("file", "exchanges", "added", "known", "failed", "pending")} == {
        "file": "chat.json",
        "exchanges": 6,
        "added": 6,
        "known": 0,
        "failed": 0,
        "pending": [],
    }
    assert first["events"] == {"ADD": 6, "UPDATE": 0, "DELETE": 0, "NOOP": 0, "UNSUPPORTED": 0}
    assert memories(run) == houses(6)
    assert run("list", "--json").json["results"][3]["metadata"]["source"] == "chat.json#4"

    again = run("ingest", file)
    assert again.code == 0
    assert again.out == "chat.json: all 6 exchanges were there already (--again adds them once more)\n"
    grown = run("ingest", chat(tmp_path, 8), "--json").json["files"][0]
    assert (grown["added"], grown["known"]) == (2, 6)
    assert memories(run) == houses(8)
    assert run("ingest", file, "--user", "ben", "--json").json["files"][0]["added"] == 8  # another one's memory
    repeated = run("ingest", file, "--again", "--json").json["files"][0]
    assert (repeated["added"], repeated["events"]["NOOP"]) == (8, 8)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_ingest_goes_on_where_it_was_interrupted(run: Run, generator: Trouble, tmp_path: Path, at: int) -> None:
    def interrupt(said: str) -> None:
        if f"house {at}" in said:
            raise KeyboardInterrupt

    generator.before = interrupt
    file = chat(tmp_path)
    stopped = run("ingest", file, "--json")
    assert stopped.code == 130
    assert stopped.json["interrupted"] is True
    assert stopped.json["files"][0]["added"] == at
    assert memories(run) == houses(at)

    generator.before = lambda said: None
    (rest,) = run("ingest", file, "--json").json["files"]
    assert (rest["added"], rest["known"], rest["resumed"]) == (5 - at, at + 1, 1)
    assert sorted(memories(run)) == houses(6)
    assert run("list", "--pending", "--json").json["results"] == []


def test_ingest_goes_on_after_a_failure(run: Run, generator: Trouble, tmp_path: Path) -> None:
    def fail(said: str) -> None:
        if "house 1" in said or "house 4" in said:
            raise GeneratorError("too long")

    generator.before = fail
    done = run("ingest", chat(tmp_path))
    assert done.code == 1
    assert "4 of 6 exchanges added" in done.out
    assert "the model failed on 2; the words are kept: `localmem resume`" in done.err
    generator.before = lambda said: None
    assert run("resume", "--json").json["episodes"] == 2
    assert sorted(memories(run)) == houses(6)
    assert run("ingest", chat(tmp_path), "--json").json["files"][0]["known"] == 6


def test_ingest_stops_at_once_without_a_model(run: Run, generator: Trouble, tmp_path: Path) -> None:
    def missing(said: str) -> None:
        raise ModelNotFoundError("no model; install it with: localmem models install")

    generator.before = missing
    stopped = run("ingest", chat(tmp_path), chat(tmp_path, name="other.json"))
    assert stopped.code == 1
    assert stopped.err.splitlines()[-1].startswith(
        "error: no model; install it with: localmem models install (the words"
    )
    assert len(run("list", "--pending", "--json").json["results"]) == 1
    generator.before = lambda said: None
    assert run("ingest", chat(tmp_path), "--json").json["files"][0]["added"] == 5
    assert sorted(memories(run)) == houses(6)


def test_ingest_gives_up_on_a_model_that_always_fails(run: Run, generator: Trouble, tmp_path: Path) -> None:
    def refused(said: str) -> None:
        raise GeneratorError("connection refused")

    generator.before = refused
    stopped = run("ingest", chat(tmp_path, 20), "--json")
    assert (stopped.code, stopped.error["message"].split(" (")[0]) == (1, "connection refused")
    assert (stopped.json["files"][0]["failed"], len(stopped.json["files"][0]["pending"])) == (5, 5)
    generator.before = lambda said: None
    assert run("ingest", chat(tmp_path, 20), "--json").json["files"][0]["resumed"] == 5
    assert len(memories(run)) == 20


def test_ingested_and_a_limit_for_resume(story: Memory) -> None:
    """What ingest asks a Memory: exactly this scope, text only, and one pending episode at a time."""
    for n, (scope, source_id) in enumerate([({}, "a"), ({"run_id": "r"}, "b"), ({}, 7), ({}, "a"), ({}, None)]):
        story.add(f"words {n}", user_id="ana", infer=False, metadata={"source_id": source_id}, **scope)
    story.add("words", user_id="ben", infer=False, metadata={"source_id": "c"})
    story.add("words", user_id="ben", infer=False)
    assert story.ingested(user_id="ana") == {"a"}
    assert story.ingested(user_id="ana", run_id="r") == {"b"}
    assert story.ingested(user_id="nobody") == set()
    assert story.bound(user_id="ben").ingested() == {"c"}
    with pytest.raises(ScopeError):
        story.bound(user_id="ben").ingested(user_id="ana")

    def fail() -> None:
        raise GeneratorError("out of memory")

    generator = story._open_generator()
    assert isinstance(generator, Listener)
    generator.during = fail
    for n in (2, 1, 3):
        with pytest.raises(GeneratorError):
            story.add(f"fact: number {n}", user_id="ana", timestamp=f"2025-01-0{n}")
    generator.during = None
    done = [[e["memory"] for e in story.resume(limit=1)["results"]] for _ in range(4)]
    assert done == [["number 1"], ["number 2"], ["number 3"], []]
    assert story.resume(limit=0)["episodes"] == 0


def test_ingest_of_named_people_and_several_files(run: Run) -> None:
    files = [str(FILES / name) for name in ("sessions.jsonl", "conversations.json", "named.txt")]
    done = run("ingest", "--no-infer", "--json", *files).json["files"]
    assert [each["added"] for each in done] == [3, 3, 5]
    assert done[2]["left_out"] == 1
    tom = run("list", "--user", "duo-7", "--json").json["results"][0]
    assert (tom["valid_from"], tom["metadata"]["conversation"]) == ("2023-05-08T13:56:00Z", "duo-7")
    assert len(memories(run, "--user", "omar")) == 2
    assert len(memories(run)) == 3 + 5
    assert run("ingest", "--no-infer", files[0], "--user", "me", "--json").json["files"][0]["added"] == 3


def test_ingest_from_stdin_with_options(run: Run) -> None:
    done = run(
        "ingest", "-", "--timestamp", "2025-02-01", "--metadata", '{"diary": true}', stdin="Me: fact: User sails\n"
    )
    assert done.code == 0
    (kept,) = run("list", "--json").json["results"]
    assert (kept["valid_from"], kept["metadata"]["diary"], kept["metadata"]["source"]) == (
        "2025-02-01T00:00:00Z",
        True,
        "stdin#1",
    )


def test_ingest_reads_every_file_before_it_begins(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('[{"role": "user", "content": "a"}, {"role": "king", "content": "b"}]')
    refused = run("ingest", chat(tmp_path), str(tmp_path / "bad.json"))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("error: bad.json, message 2: the role is 'king'")
    assert memories(run) == []
    assert run("ingest", str(tmp_path / "none.json")).err.endswith(
        "none.json can't be read: No such file or directory\n"
    )


def test_ingest_shows_how_far_it_is_where_stderr_is_a_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localmem.terminal.PLAIN_PROGRESS_S", 0.0)
    assert "chat.json: 3 of 6  +3\n" in run("ingest", chat(tmp_path)).err
    assert run("ingest", chat(tmp_path, 7), "--quiet").err == ""


# -------------------------------------------------------------------- models


def test_models(run: Run, tmp_path: Path) -> None:
    listed = run("models", "list", "--json").json["models"]
    assert {each["kind"] for each in listed} == {"embedder", "judge", "tagger", "adapter", "generator"}
    missing = run("models", "path")
    assert missing.code == 1
    assert "localmem models install" in missing.err
    (tmp_path / "text.gguf").write_text("no model")
    assert run("models", "import", str(tmp_path / "text.gguf")).err.startswith("error: ")
    (tmp_path / "mine.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(64))
    put = run("models", "import", str(tmp_path / "mine.gguf"), "--json", "--quiet").json["path"]
    assert put == str(tmp_path / "home" / "models" / "mine.gguf")
    assert run("models", "path", "mine").out == f"{put}\n"
    assert run("models", "verify").code == 0
    Path(put).write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(65))
    broken = run("models", "verify", "--json")
    assert broken.code == 1
    assert [each["name"] for each in broken.json["models"] if each["sha256_ok"] is False] == ["mine"]


# -------------------------------------------------------------------- as a program

LAUNCHER = """
import sys, time
from localmem import Memory
from localmem.cli import main, options
from localmem.testing import HashEmbedder, ScriptedGenerator

class Slow(ScriptedGenerator):
    def generate(self, prompt, **how):
        print("reading", file=sys.stderr, flush=True)
        time.sleep(0.5)
        return super().generate(prompt, **how)

def make_memory(path, **given):
    return Memory(path, embedder=HashEmbedder(), **{**given, "generator": Slow()})

options.make_memory = make_memory
main()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCALMEM_", "NO_COLOR", "FORCE_COLOR"))}
    environment.update(
        LOCALMEM_HOME=str(tmp_path / "home"),
        PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        COLUMNS="80",
        TERM="xterm-256color",
    )
    return environment


@pytest.fixture
def launcher(tmp_path: Path) -> str:
    """A command line with the hashing embedder, for processes of their own."""
    file = tmp_path / "launcher.py"
    file.write_text(LAUNCHER, encoding="utf-8")
    return str(file)


def process(environment: dict[str, str], *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, encoding="utf-8", check=False, **how
    )


def test_python_m_localmem(environment: dict[str, str]) -> None:
    shown = process(environment, "-m", "localmem", "--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"localmem {__version__}\n", "")
    misused = process(environment, "-m", "localmem", "--json", "nonsense")
    assert (misused.returncode, misused.stdout) == (2, "")
    assert "nonsense" in json.loads(misused.stderr)["error"]["message"]
    assert process(environment, "-m", "localmem", "models", "list", "--json").returncode == 0


def test_the_real_embedder_and_no_model(environment: dict[str, str], tmp_path: Path) -> None:
    kept = process(environment, "-m", "localmem", "add", "--no-infer", "The tram stops at the museum")
    assert (kept.returncode, kept.stderr) == (0, "")
    found = process(environment, "-m", "localmem", "search", "public transport", "--json")
    assert json.loads(found.stdout)["results"][0]["memory"] == "The tram stops at the museum"
    file = tmp_path / "gone.gguf"
    failed = process(environment, "-m", "localmem", "--generator", str(file), "add", "I like trams")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "`localmem resume`" in failed.stderr
    assert process(environment, "-m", "localmem", "check").stdout == "ok\n"


def test_any_text_in_any_locale(environment: dict[str, str], launcher: str) -> None:
    ascii_only = {**environment, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert process(environment, launcher, "add", "--no-infer", "Zoë likes 茶").returncode == 0
    assert process(environment, launcher, "list").stdout.split("\t")[1] == "Zoë likes 茶"
    assert process(ascii_only, launcher, "list").stdout.split("\t")[1] == "Zo? likes ?"
    listed = process(ascii_only, launcher, "list", "--json")
    assert json.loads(listed.stdout)["results"][0]["memory"] == "Zoë likes 茶"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes and signals")
def test_a_closed_pipe_is_no_error(environment: dict[str, str], launcher: str, tmp_path: Path) -> None:
    file = tmp_path / "long.json"
    file.write_text(json.dumps([{"role": "user", "content": f"{i} " + "x" * 900} for i in range(300)]))
    assert process(environment, launcher, "ingest", "--no-infer", str(file), "--durability", "process").returncode == 0
    command = f'"{sys.executable}" "{launcher}" list | head -n 1'
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes and signals")
def test_ctrl_c_tells_what_was_done(environment: dict[str, str], launcher: str, tmp_path: Path) -> None:
    words = [sys.executable, launcher, "ingest", chat(tmp_path, 40)]
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # background jobs ignore it, and so would the child
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        signal.signal(signal.SIGINT, before)
        for _ in range(3):
            assert running.stderr.readline() == "reading\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert out.startswith("chat.json: 2 of 40 exchanges added")
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    waiting = json.loads(process(environment, launcher, "list", "--pending", "--json").stdout)["results"]
    assert len(waiting) == 1


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX")
def test_on_a_terminal(environment: dict[str, str], launcher: str) -> None:
    """A table within 80 columns with short ids; NO_COLOR is heard; what is stored can't steer the terminal."""
    text = (
        "The boat in the old harbour has a blue hull, \x1b[31mtwo\x1b[0m masts and sails that are far too heavy for her"
    )
    assert process(environment, launcher, "add", "--no-infer", text).returncode == 0
    coloured = on_terminal(environment, launcher, "list")
    assert "\x1b[31m" not in coloured
    assert "\x1b[" in coloured
    plain = on_terminal({**environment, "NO_COLOR": "1"}, launcher, "list")
    lines = plain.replace("\r", "").splitlines()
    assert lines[0].split() == ["id", "memory", "true", "since"]
    assert len(lines) > 2  # wrapped, not cut
    assert max(map(len, lines)) <= 80
    assert "too heavy" in plain
    (whole,) = json.loads(process(environment, launcher, "list", "--json").stdout)["results"]
    assert f"{whole['id'][-8:]} " in plain
    assert whole["id"] not in plain
    assert whole["memory"] == text


def on_terminal(environment: dict[str, str], *words: str) -> str:
    """What the command writes when its stdout is a terminal of 80 columns."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=theirs, stderr=subprocess.DEVNULL
    ) as running:
        os.close(theirs)
        shown = b""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                chunk = os.read(ours, 65_536)
            except OSError:  # Linux: the other side is closed
                break
            if not chunk:
                break
            shown += chunk
    os.close(ours)
    assert running.returncode == 0
    return shown.decode()


# -- what waits


def test_add_without_waiting_then_a_worker(run: Run) -> None:
    added = run("add", "fact: User sails", "--no-wait", "--user", "ann", "--json").json
    assert added["status"] == "waiting"
    assert "localmem worker" in run("add", "fact: User rows", "--no-wait", "--user", "ann").err
    waiting = run("stats", "--json").json
    assert (waiting["queue"]["waiting"], waiting["worker"]["state"], waiting["memories"]) == (2, "none", 0)
    done = run("worker", "--until-empty", "--nice", "0", "--json")
    assert done.json == {"read": 2, "waiting": 0, "set_aside": 0, "paused": False}
    assert run("stats", "--user", "ann").out.splitlines()[0] == "memories\t2"
    assert run("stats", "--user", "ben").out.splitlines()[0] == "memories\t0"


def test_the_worker_is_paused_and_goes_on(run: Run) -> None:
    run("add", "fact: User sails", "--no-wait")
    assert run("worker", "--pause", "--json").json["paused"] is True
    assert "paused" in run("stats").out
    assert "--go-on" in run("worker", "--pause").err
    assert run("worker", "--go-on", "--json").json == {"read": 0, "waiting": 1, "set_aside": 0, "paused": False}
    assert run("worker", "--until-empty", "--nice", "0", "-q").err == ""


def test_stats_tell_what_failed(run: Run, generator: Trouble) -> None:
    def refuse(said: str) -> None:
        raise GeneratorError("told to fail")

    generator.before = refuse
    assert run("add", "fact: User sails").code == 1
    [failed] = run("stats", "--json").json["pending"]
    assert (failed["attempts"], failed["error"], failed["set_aside"]) == (1, "GeneratorError", False)
    assert run("stats").out.splitlines()[-1].split("\t")[1:] == ["1", "GeneratorError", "waiting"]


def test_a_worker_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """A real process, without a model: it says why nothing is read, and SIGTERM is an ordinary end."""
    store = tmp_path / "memory.db"
    env = {**os.environ, "LOCALMEM_HOME": str(tmp_path), "LOCALMEM_GENERATOR": "none"}
    words = [sys.executable, "-m", "localmem", "--file", str(store)]
    subprocess.run([*words, "add", "I moved to Porto", "--no-wait"], check=True, env=env, cwd=ROOT)
    with subprocess.Popen([*words, "worker"], stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT) as process:
        hung = threading.Timer(60, process.kill)
        hung.start()
        assert process.stderr is not None
        seen = [next(line for line in process.stderr if "generator is set to 'none'" in line)]
        process.send_signal(signal.SIGTERM)
        seen += process.stderr
        hung.cancel()
        assert process.wait(30) == 0
    assert seen[0].startswith("1 waiting; ")
    assert seen[-1].startswith("0 read, 1 waiting")


def test_a_worker_that_is_to_end_says_why_it_can_not_read(run: Run, generator: Trouble) -> None:
    def unavailable(said: str) -> None:
        raise ModelNotFoundError("there is no model; run `localmem models install`")

    generator.before = unavailable
    run("add", "fact: User sails", "--no-wait")
    done = run("worker", "--until-empty", "--nice", "0")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: there is no model; run `localmem models install`")
    run("worker", "--pause")
    paused = run("worker", "--until-empty", "--nice", "0")
    assert paused.code == 1
    assert "paused" in paused.err.splitlines()[-1]
