"""Long texts: what stands after the 256 tokens that one vector knows is found by its meaning too."""

from __future__ import annotations

from pathlib import Path

import apsw
import numpy as np
import pytest
from conftest import Opener
from doubles import Listener, texts

from localmem import Memory, reembed
from localmem.embed import PASSAGES_MAX, OnnxEmbedder, default_embedder, packaged_embedder
from localmem.embedders import names
from localmem.errors import GeneratorError
from localmem.store_passages import blobs, later_passages

ANN = {"user_id": "ann"}
ALL = ("facts", "pending", "episodes", "all", "history")
# Everyday notes, none of which has to do with pets.
NOTE = (
    "We talked about the new timetable of the tram and how the stop near the bakery was moved. "
    "The painters finished the corridor on Wednesday and left two tins of grey behind. "
    "Somebody has to ring the insurance about the broken window before the end of the month. "
)
FACT = (
    "My dachshund Pretzel had her puppies in the linen cupboard. All five are brown, the smallest sleeps in a shoebox, "
    "and the vet vaccinates them on Thursday. "
)
LATE = (NOTE * 8 + FACT + NOTE).strip()
QUESTION = "has she got young dogs?"


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return default_embedder()


def others(memory: Memory) -> None:
    """Memories that the question is nearer to than to the note's beginning."""
    for text in ("User bought bread", "User's sister is a nurse", "User owns a red bicycle", "User hates parsnips"):
        memory.add(text, infer=False, **ANN)
    memory.add(NOTE * 9, infer=False, **ANN)


class TestCutting:
    def test_short_texts_are_not_cut(self, embedder: OnnxEmbedder) -> None:
        assert [embedder.later_passages(text) for text in ("x", NOTE, NOTE * 3, " ", "x" * 5000)] == [[]] * 5

    def test_nothing_between_two_passages_is_left_out(self, embedder: OnnxEmbedder) -> None:
        text = " ".join(f"word{i}" for i in range(1200))
        read = embedder._model().tokenizer.encode(text).offsets[-2][1]
        for passage in embedder.later_passages(text):
            start = text.index(passage, max(0, read - 1000))
            assert start < read < start + len(passage)  # they overlap, so that a fact stands whole in one of them
            assert embedder.later_passages(passage) == []
            read = start + len(passage)
        assert read == len(text)

    def test_a_very_long_text_ends_somewhere(self, embedder: OnnxEmbedder) -> None:
        assert len(embedder.later_passages(NOTE * 2000)) == PASSAGES_MAX
        assert len(embedder.later_passages("猫を二匹飼っています。" * 5000)) == PASSAGES_MAX

    def test_vectors_only_for_the_long_ones(self, embedder: OnnxEmbedder) -> None:
        made = later_passages(embedder, [NOTE, LATE, FACT])
        assert list(made) == [LATE]
        assert np.allclose(np.linalg.norm(made[LATE], axis=1), 1, atol=1e-5)

    def test_eight_bits_keep_the_direction(self, embedder: OnnxEmbedder) -> None:
        vectors = embedder.embed_passages([FACT, NOTE])
        found = np.array([np.frombuffer(blob, np.int8) for blob in blobs(vectors)], np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        assert (found * vectors).sum(axis=1).min() > 0.999

    @pytest.mark.parametrize("bad", [np.zeros((1, 4)), np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]])])
    def test_no_vector(self, bad: object) -> None:
        with pytest.raises(ValueError, match="finite and not zero"):
            blobs(bad)  # type: ignore[arg-type]


class TestFinding:
    def test_a_fact_late_in_a_long_memory(self, open_memory: Opener, embedder: OnnxEmbedder) -> None:
        with open_memory(embedder=embedder) as memory:
            others(memory)
            added = memory.add(LATE, infer=False, timestamp="2025-01-01", **ANN)["results"][0]["id"]
            assert memory.search(QUESTION, **ANN)["results"][0]["id"] == added
            memory.update(added, NOTE * 8, timestamp="2025-02-01")
            assert memory.search(QUESTION, **ANN)["results"][0]["id"] != added
            assert texts(memory.search(QUESTION, as_of="2025-01-15", **ANN))[0] == LATE
            assert memory.search(QUESTION, include="history", **ANN)["results"][0]["superseded"]
            assert LATE not in repr(memory.search(QUESTION, user_id="bob"))

    def test_a_fact_late_in_a_message_that_waits(self, open_memory: Opener, embedder: OnnxEmbedder) -> None:
        with open_memory(embedder=embedder, generator=Listener(fail=True)) as memory:
            others(memory)
            with pytest.raises(GeneratorError):
                memory.add(LATE, **ANN)
            assert texts(memory.search(QUESTION, **ANN))[0] == LATE
            assert texts(memory.search(QUESTION, include="episodes", **ANN)) == [LATE]

    def test_by_agent_and_run(self, open_memory: Opener, embedder: OnnxEmbedder) -> None:
        with open_memory(embedder=embedder) as memory:
            memory.add(LATE, infer=False, agent_id="helper", run_id="r1", **ANN)
            assert texts(memory.search(QUESTION, agent_id="helper")) == [LATE]
            assert texts(memory.search(QUESTION, run_id="r2", **ANN)) == []

    @pytest.mark.usefixtures("scripted")
    def test_what_is_taken_back_leaves_no_passage(self, open_memory: Opener, embedder: OnnxEmbedder) -> None:
        with open_memory(embedder=embedder, generator=Listener()) as memory:
            memory.add(f"fact: {LATE}", **ANN)
            assert LATE in texts(memory.search(QUESTION, **ANN))
            memory.add("Please delete everything you know about me.", **ANN)
            assert [memory.search(QUESTION, include=include, **ANN)["results"] for include in ALL] == [[]] * len(ALL)
            assert count(memory) == 0


class TestMadeAnew:
    def test_a_file_from_before(self, open_memory: Opener, embedder: OnnxEmbedder, tmp_path: Path) -> None:
        """Its long texts get their passages by reindex(), each once."""
        with open_memory(embedder=embedder, generator=Listener(fail=True)) as memory:
            others(memory)
            memory.add(LATE, infer=False, **ANN)
            with pytest.raises(GeneratorError):
                memory.add(LATE + "!", **ANN)
            wanted = count(memory)
            with apsw.Connection(str(tmp_path / "memory.db")) as connection:
                connection.execute("delete from passage")
            assert texts(memory.search(QUESTION, include="facts", **ANN))[0] != LATE
            memory.reindex()
            memory.reindex()
            assert count(memory) == wanted > 3
            assert texts(memory.search(QUESTION, include="facts", **ANN))[0] == LATE

    def test_with_another_embedder(self, tmp_path: Path) -> None:
        path = tmp_path / "memory.db"
        with Memory(path, embedder=names()[1]) as memory:
            others(memory)
            memory.add(LATE, infer=False, **ANN)
            wanted = count(memory)
        reembed(path, names()[0])
        with Memory(path) as memory:
            assert count(memory) == wanted
            assert memory.check() == []
            assert texts(memory.search(QUESTION, **ANN))[0] == LATE
        with Memory(tmp_path / "fresh.db", embedder=packaged_embedder(names()[0])) as fresh:
            others(fresh)
            fresh.add(LATE, infer=False, **ANN)
            assert fresh.search(QUESTION, **ANN)["results"][0]["score"] == pytest.approx(_score(path))


def count(memory: Memory) -> int:
    with apsw.Connection(str(memory.path)) as connection:
        [(found,)] = connection.execute("select count(*) from passage")
    return int(found)


def _score(path: Path) -> float:
    with Memory(path) as memory:
        return float(memory.search(QUESTION, **ANN)["results"][0]["score"])
