"""A file made by an earlier localmem (schema 2, tests/data/schema2.db.gz): everything in it is there and works on."""

from __future__ import annotations

import gzip
from pathlib import Path

import apsw
import pytest
from conftest import Opener
from doubles import Listener, texts

from localmem.db import SCHEMA_VERSION

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
