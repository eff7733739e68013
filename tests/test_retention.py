"""What is kept of the turns once their facts are extracted: all of them, those a memory was said in, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Opener
from doubles import Listener, texts

from localmem.cli import cli
from localmem.config import RETENTIONS
from localmem.errors import GeneratorError, InvalidInputError, ScopeError
from localmem.memory import Memory

ANN = {"user_id": "ann"}
EVERY = ("facts", "pending", "episodes", "all", "history")
TALK = (
    {"role": "system", "content": "You are a gardener called Mossbeard"},
    {"role": "user", "content": "fact: User grows quinces"},
    {"role": "user", "content": "the weather is drizzly again"},
    {"role": "assistant", "content": "Drizzly days are good for quinces"},
    {"role": "user", "content": "fact: User hums oddly | unsupported"},
)
CHATTER = ("drizzly", "Mossbeard")

pytestmark = pytest.mark.usefixtures("scripted")


def words_in(path: Path) -> str:
    """Every word in the file's tables and indexes, told apart from what lies in free pages."""
    import apsw

    connection = apsw.Connection(str(path))
    tables = ("message", "version", "decision")
    rows = [str(row) for table in tables for row in connection.execute(f"select * from {table}")]
    connection.execute("create virtual table temp.terms using fts5vocab('main', 'turn_fts', 'row')")
    rows += [str(row) for row in connection.execute("select term from temp.terms")]
    connection.close()
    return "\n".join(rows)


def shown(memory: Memory) -> str:
    found = [memory.search("quinces drizzly Mossbeard", include=include, limit=50, **ANN) for include in EVERY]
    return repr([*found, memory.get_all(**ANN), memory.decisions(**ANN)])


@pytest.mark.parametrize("retention", RETENTIONS)
def test_what_is_left(open_memory: Opener, tmp_path: Path, retention: str) -> None:
    with open_memory(generator=Listener(), retention=retention) as memory:
        [added] = memory.add(list(TALK), timestamp="2025-01-04", **ANN)["results"]
        assert texts(memory.search("quinces", **ANN)) == ["User grows quinces"]
        found = shown(memory)
        [version] = memory.history(added["id"])
        [evidence] = version["evidence"]
        refused = memory.decisions(unsupported=True, **ANN)
        memory.add("fact: User owns a barrow", infer=False, **ANN)
        assert "barrow" in repr(memory.get_all(**ANN))
    held = words_in(tmp_path / "memory.db").lower()
    assert [word for word in CHATTER if word in found] == (["drizzly"] if retention == "all" else [])
    assert [word for word in CHATTER if word.lower() in held] == (list(CHATTER) if retention == "all" else [])
    assert (evidence["message"], evidence["said_at"]) == (1, "2025-01-04T00:00:00Z")
    assert evidence["quote"] == ("" if retention == "none" else "fact: User grows quinces")
    assert [(each["fact"], each["quote"] == "") for each in refused] == [("User hums oddly", retention != "all")]


def test_what_waits_is_kept_until_it_is_read(open_memory: Opener) -> None:
    failing = open_memory(generator=Listener(fail=True), retention="none")
    with pytest.raises(GeneratorError):
        failing.add("fact: User grows quinces", **ANN)
    assert texts(failing.search("quinces", **ANN)) == ["fact: User grows quinces"]
    failing.close()
    with open_memory(generator=Listener()) as memory:  # the setting stands in the file
        assert memory.retention == "none"
        memory.resume()
        assert texts(memory.search("quinces", **ANN)) == ["User grows quinces"]
        assert memory.search("quinces", include="episodes", **ANN)["results"] == []


def test_no_later_prompt_holds_what_was_dropped(open_memory: Opener) -> None:
    listener = Listener()
    with open_memory(generator=listener, retention="evidence") as memory:
        memory.add(list(TALK), **ANN)
        memory.add("Please forget that.", **ANN)
        memory.add("fact: User owns a barrow", **ANN)
        assert texts(memory.get_all(**ANN)) == ["User owns a barrow"]  # "that" is still known by its place
    assert "drizzly" not in listener.shown.split("User owns a barrow")[-1]


def test_a_stricter_setting_is_carried_out_on_what_is_there(open_memory: Opener, tmp_path: Path) -> None:
    with open_memory(generator=Listener()) as memory:
        memory.add(list(TALK), **ANN)
        before = memory.search("quinces", include="facts", **ANN)
        assert memory.retain("evidence")["dropped"] == 4
        assert memory.retain("evidence")["dropped"] == 0
        assert memory.retain("none")["dropped"] == 1
        assert memory.retain("all")["dropped"] == 0
        after = memory.search("quinces", include="facts", **ANN)
        without = [{**hit, "sources": None} for hit in before["results"]]
        assert [{**hit, "sources": None} for hit in after["results"]] == without
        memory.add("the kettle whistles", **ANN)
        assert "the kettle whistles" in repr(memory.search("kettle", include="episodes", **ANN))
    assert "drizzly" not in words_in(tmp_path / "memory.db")


def test_while_vectors_are_made_anew(open_memory: Opener, tmp_path: Path) -> None:
    import apsw

    with open_memory(generator=Listener()) as memory:
        memory.add(list(TALK), **ANN)
        connection = apsw.Connection(str(tmp_path / "memory.db"))
        connection.execute("insert into reembedded select 'turn_vec', id, 0, x'00' from message")
        memory.retain("none")
        assert connection.execute("select count(*) from reembedded where kind = 'turn_vec'").fetchall() == [(0,)]
        connection.close()


def test_a_preset_and_an_argument(open_memory: Opener) -> None:
    with open_memory(preset="regulated") as memory:
        assert memory.retention == "evidence"
    with open_memory() as memory:
        assert memory.retention == "evidence"
    with open_memory(preset="regulated", retention="none") as memory:
        assert memory.retention == "none"


def test_bad_values(open_memory: Opener) -> None:
    with pytest.raises(InvalidInputError, match="retention must be one of all, evidence, none, not 'most'"):
        open_memory(retention="most")
    with pytest.raises(InvalidInputError, match="preset must be one of regulated, not 'strict'"):
        open_memory(preset="strict")
    with open_memory() as memory:
        with pytest.raises(InvalidInputError, match="retention must be one of"):
            memory.retain(None)  # type: ignore[arg-type]
        with pytest.raises(ScopeError, match="whole file"):
            memory.bound(**ANN).retain("none")
        assert memory.retention == "all"


def test_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with Memory(path, generator=Listener()) as memory:
        memory.add(list(TALK), **ANN)

    def command(*words: str, said: str = "") -> tuple[int, str]:
        ran = CliRunner().invoke(cli, ["retention", *words, "--file", str(path)], input=said)
        return ran.exit_code, ran.output

    assert command() == (0, "all\n")
    code, told = command("none", said="n\n")
    assert code != 0
    assert "for good, keeping none? [y/N]" in told
    assert command("evidence", "--yes") == (0, "4 turns lost their words\nevidence\n")
    assert command("none", "--yes", "--json") == (0, '{"retention": "none", "dropped": 1}\n')
    assert command("all", "--json") == (0, '{"retention": "all", "dropped": 0}\n')
    assert command("some")[0] == 2
    with Memory(path) as memory:
        [kept] = memory.get_all(**ANN)
    shown = CliRunner().invoke(cli, ["history", kept["id"], "--user", "ann", "--file", str(path)]).output
    assert "(words not kept)" in shown
    assert "taken back" not in shown
