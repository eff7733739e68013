"""A file made by an earlier localmem (schema 2, tests/data/schema2.db.gz): everything in it is there and works on."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import apsw
import faults
import pytest
from conftest import Opener
from doubles import Listener, texts

from localmem.db import SCHEMA_VERSION
from localmem.errors import LocalmemError
from localmem.memory import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}
FILE = Path(__file__).parent / "data" / "schema2.db.gz"


@pytest.mark.usefixtures("scripted")
def test_a_file_of_schema_2(open_memory: Opener, tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_bytes(gzip.decompress(FILE.read_bytes()))
    with open_memory(generator=Listener()) as memory:
        assert memory.check() == []
        kettle = "the kettle " * 400
        assert texts(memory.get_all(**ANN)) == ["User lives in Faro", "User keeps bees", kettle]
        assert texts(memory.search("Faro", **ANN))[0] == "User lives in Faro"
        assert "User lives in Porto" in texts(memory.search("Porto", include="history", **ANN))
        assert "barrow" not in repr([memory.search("barrow", include=i, **ANN) for i in ("history", "all")])
        memory.add("fact: User owns a barrow", timestamp="2025-01-04", **ANN)  # said before it was taken back
        assert "barrow" not in repr(memory.get_all(**ANN))
        assert memory.retention == "all"
        assert memory.resume()["episodes"] == 1
        assert texts(memory.search("hums", **ANN))[0] == "User hums"
        assert texts(memory.get_all(user_id="bob", run_id="r")) == ["User rows"]
        assert memory.check() == []
    with apsw.Connection(str(tmp_path / "memory.db")) as connection:
        assert connection.pragma("user_version") == SCHEMA_VERSION


def test_every_fault_while_it_is_brought_up_to_date(tmp_path: Path) -> None:
    """All schema steps land or none; the audit chain, begun after them, has every text or is begun again."""

    def opened(path: Path, vfs: str | None = None) -> Memory:
        return Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator(), vfs=vfs)

    def act(path: Path, vfs: faults.FaultVFS, acknowledge: faults.Acknowledge) -> None:
        with opened(path, vfs.name):
            acknowledge()

    def observe(path: Path) -> tuple[int, int, int]:
        """Schema, texts, entries of the chain."""
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            version = int(str(connection.pragma("user_version")))
            [(count,)] = connection.execute("select (select count(*) from version) + (select count(*) from message)")
            if version < SCHEMA_VERSION:
                return version, count, 0
            [(entries,)] = connection.execute("select count(*) from audit")
            return version, count, entries

    def finish(path: Path) -> None:
        with opened(path) as memory:
            assert memory.check() == []
            assert memory.verify_audit()["problems"] == []

    swept = faults.sweep(
        tmp_path,
        make=lambda path: path.write_bytes(gzip.decompress(FILE.read_bytes())),
        act=act,
        observe=observe,
        errors=(LocalmemError,),
        between=lambda now, before: now == (SCHEMA_VERSION, before[1], 0),  # type: ignore[index]
        finish=finish,
        points_max=8,
    )
    before, after = swept.before, swept.after
    assert isinstance(before, tuple)
    assert isinstance(after, tuple)
    assert (before[0], after[0]) == (2, SCHEMA_VERSION)
    assert after[1] == before[1]
    assert after[2] > after[1]  # each text, and what was deleted
