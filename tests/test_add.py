"""What add() makes of an exchange: verbatim, or through extraction and decisions that a script controls."""

from __future__ import annotations

import datetime as dt
import math
import multiprocessing
import threading
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from conftest import Opener
from doubles import Listener, parse, resume_all, texts

from localmem.config import Limits
from localmem.errors import ConflictError, GeneratorError, InvalidInputError, LocalmemError
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator
from localmem.types import Prompt

ANN = {"user_id": "ann"}
MARCH = "2025-03-01T00:00:00"


def events(result: Any) -> list[tuple[str, str]]:
    return [(entry["event"], entry["memory"]) for entry in result["results"]]


def spoken(memory: Memory, **ids: str) -> list[str]:
    return sorted(texts(memory.get_all(**ids)))


# -- verbatim


def test_verbatim_keeps_each_message_as_it_is(memory: Memory) -> None:
    result = memory.add(
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "  I live in Porto.\nReally. "},
            {"role": "assistant", "content": "Nice!"},
            {"role": "tool", "content": "42"},
            {"role": "document", "content": "a page"},
        ],
        infer=False,
        **ANN,
    )
    kept = memory.get_all(**ANN)["results"]
    assert [entry["memory"] for entry in kept] == ["  I live in Porto.\nReally. ", "Nice!", "42", "a page"]
    assert [entry["actor"] for entry in kept] == ["user", "assistant", "tool", "document"]
    assert [entry["event"] for entry in result["results"]] == ["ADD"] * 4
    assert [entry["id"] for entry in result["results"]] == [entry["id"] for entry in kept]


def test_verbatim_stores_the_same_words_twice_when_told_twice(memory: Memory) -> None:
    for _ in range(2):
        memory.add("tea", infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == ["tea", "tea"]


def test_verbatim_needs_no_model(open_memory: Opener) -> None:
    generator = ScriptedGenerator(fail=True)
    memory = open_memory(generator=generator)
    memory.add("I live in Porto", infer=False, **ANN)
    assert texts(memory.search("where is home? Porto?", **ANN)) == ["I live in Porto"]
    assert generator.calls == []


def test_one_call_is_one_transaction(open_memory: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure at the last message leaves nothing of the first."""
    from localmem import rank

    memory = open_memory()
    real = rank.mentions

    def failing(text: str) -> tuple[str, ...]:
        if text == "third":
            raise MemoryError("no room")
        return real(text)

    monkeypatch.setattr(rank, "mentions", failing)
    with pytest.raises(MemoryError):
        memory.add(["first", "second", "third"], infer=False, **ANN)
    monkeypatch.undo()
    assert texts(memory.get_all(**ANN)) == []
    assert memory.search("first second", include="all", **ANN)["results"] == []
    assert memory.check() == []


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        ("tea", ["tea"]),
        ({"role": "user", "content": "tea"}, ["tea"]),
        ({"content": "tea"}, ["tea"]),
        (["tea", "coffee"], ["tea", "coffee"]),
        (("tea", {"role": "assistant", "content": "coffee"}), ["tea", "coffee"]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "tea"}, {"type": "text", "text": "milk"}]}],
            ["tea\nmilk"],
        ),
        ([{"role": "developer", "content": "be brief"}, {"role": "human", "content": "tea"}], ["tea"]),
        ([{"role": "ai", "content": "tea"}, {"role": "function", "content": "9"}], ["tea", "9"]),
        ([{"role": "user", "name": "Rosa", "content": "tea"}], ["tea"]),
    ],
)
def test_every_usual_form_of_messages(memory: Memory, messages: Any, kept: list[str]) -> None:
    memory.add(messages, infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == kept


def test_metadata_comes_back_and_its_ids_do_not_set_the_scope(memory: Memory) -> None:
    metadata = {
        "user_id": "eve",
        "agent_id": "eve",
        "run_id": "eve",
        "tags": ["a", {"b": None}],
        "n": 1.5,
        "ü.'\"": True,
    }
    added = memory.add("tea", infer=False, metadata=metadata, **ANN)
    metadata["tags"] = "changed afterwards"
    found = memory.get(added["results"][0]["id"])
    assert found is not None
    assert found["metadata"]["tags"] == ["a", {"b": None}]
    assert found["metadata"]["ü.'\""] is True
    assert (found["user_id"], found.get("agent_id"), found.get("run_id")) == ("ann", None, None)
    for ids in ({"user_id": "eve"}, {"agent_id": "eve"}, {"run_id": "eve"}):
        assert texts(memory.get_all(**ids)) == []
        assert memory.search("tea", **ids)["results"] == []


PORTO = dt.timezone(dt.timedelta(hours=2))


@pytest.mark.parametrize(
    ("timestamp", "said"),
    [
        ("2023-05-08T13:56:00Z", "2023-05-08T13:56:00"),
        ("2023-05-08T15:56:00+02:00", "2023-05-08T13:56:00"),
        ("2023-05-08 13:56", "2023-05-08T13:56:00"),
        ("2023-05-08", "2023-05-08T00:00:00"),
        (dt.datetime(2023, 5, 8, 13, 56), "2023-05-08T13:56:00"),
        (dt.datetime(2023, 5, 8, 15, 56, tzinfo=PORTO), "2023-05-08T13:56:00"),
        (dt.date(2023, 5, 8), "2023-05-08T00:00:00"),
        (1683554160, "2023-05-08T13:56:00"),
        (1683554160.5, "2023-05-08T13:56:00.5"),
        (-86400, "1969-12-31T00:00:00"),
        (None, MARCH),
    ],
)
def test_every_form_of_timestamp(memory: Memory, timestamp: Any, said: str) -> None:
    added = memory.add("tea", infer=False, timestamp=timestamp, **ANN)
    found = memory.get(added["results"][0]["id"])
    assert found is not None
    assert found["valid_from"].startswith(said)
    assert found["created_at"].startswith(MARCH)
    assert dt.datetime.fromisoformat(found["valid_from"]).utcoffset() == dt.timedelta(0)


def test_an_expired_memory_is_gone_from_every_read(memory: Memory, clock: FixedClock) -> None:
    added = memory.add("the parcel code is Q7", infer=False, expires_at="2025-03-02", **ANN)
    kept = memory.add("the parcel is blue", infer=False, **ANN)
    assert len(texts(memory.search("parcel", **ANN))) == 2
    assert memory.get_all(**ANN)["results"][0]["expires_at"].startswith("2025-03-02")
    clock.advance(86_400)
    assert texts(memory.search("parcel code Q7", **ANN)) == ["the parcel is blue"]
    assert texts(memory.search("parcel", include="history", **ANN)) == ["the parcel is blue"]
    assert texts(memory.search("parcel", filters={"kind": "semantic"}, **ANN)) == ["the parcel is blue"]
    assert texts(memory.get_all(**ANN)) == ["the parcel is blue"]
    assert "Q7" not in memory.context("parcel code Q7", **ANN)
    assert memory.get(kept["results"][0]["id"]) is not None
    found = memory.get(added["results"][0]["id"])
    assert found is None or found["expires_at"] < "2025-03-03"  # by its id it may still be looked at


def test_expiry_given_with_a_conversation_reaches_its_facts(story: Memory, clock: FixedClock) -> None:
    story.add("fact: User is in room 12", expires_at="2025-03-02", **ANN)
    assert spoken(story, **ANN) == ["User is in room 12"]
    clock.advance(2 * 86_400)
    assert spoken(story, **ANN) == []
    story.add("fact: User is in room 12", **ANN)  # an expired twin is no duplicate
    assert spoken(story, **ANN) == ["User is in room 12"]


# -- the four operations


def test_add_returns_what_happened(story: Memory) -> None:
    result = story.add(
        [
            {"role": "user", "content": "hello\nfact: User lives in Porto\nfact: User likes tea"},
            {"role": "assistant", "content": "noted"},
        ],
        metadata={"source": "chat"},
        **ANN,
    )
    assert events(result) == [("ADD", "User lives in Porto"), ("ADD", "User likes tea")]
    first = story.get(result["results"][0]["id"])
    assert first is not None
    assert (first["memory"], first["metadata"], first["actor"]) == ("User lives in Porto", {"source": "chat"}, "user")
    assert isinstance(result["episode_id"], str)
    assert story.pending() == []


def test_nothing_to_keep_is_an_empty_result(story: Memory) -> None:
    assert story.add("good morning!", **ANN)["results"] == []
    assert spoken(story, **ANN) == []


def test_an_update_makes_a_version_with_both_time_axes(story: Memory, clock: FixedClock) -> None:
    story.add("fact: User lives in Porto", timestamp="2025-01-10", **ANN)
    clock.advance(3600)
    result = story.add("fact: User lives in Lisbon | changes: User lives in", timestamp="2025-02-20", **ANN)
    assert events(result) == [("UPDATE", "User lives in Lisbon")]
    assert result["results"][0]["previous_memory"] == "User lives in Porto"
    memory_id = result["results"][0]["id"]

    assert spoken(story, **ANN) == ["User lives in Lisbon"]
    assert texts(story.search("User lives in Porto", **ANN)) == ["User lives in Lisbon"]
    old, new = story.history(memory_id)
    assert (old["event"], old["new_memory"], old["old_memory"]) == ("ADD", "User lives in Porto", None)
    assert (new["event"], new["new_memory"], new["old_memory"]) == (
        "UPDATE",
        "User lives in Lisbon",
        "User lives in Porto",
    )
    assert old["valid_from"].startswith("2025-01-10")
    assert old["valid_to"].startswith("2025-02-20")
    assert new["valid_from"].startswith("2025-02-20")
    assert new["valid_to"] is None
    assert old["created_at"].startswith("2025-03-01T00:00:00")
    assert old["updated_at"].startswith("2025-03-01T01:00:00")
    assert new["created_at"].startswith("2025-03-01T01:00:00")
    assert [e["quote"] for e in new["evidence"]] == ["fact: User lives in Lisbon | changes: User lives in"]

    was = {"as_of": "2025-02-01"}
    assert texts(story.get_all(**was, **ANN)) == ["User lives in Porto"]
    assert texts(story.search("where does User live", **was, **ANN)) == ["User lives in Porto"]
    assert texts(story.get_all(as_of="2025-02-20", **ANN)) == ["User lives in Lisbon"]
    assert texts(story.get_all(as_of="2025-01-09", **ANN)) == []
    knew = {"known_at": "2025-03-01T00:30:00"}
    assert texts(story.get_all(**knew, **ANN)) == ["User lives in Porto"]
    assert texts(story.search("where does User live", **knew, **ANN)) == ["User lives in Porto"]
    assert texts(story.get_all(known_at="2025-03-01T01:00:00", **ANN)) == ["User lives in Lisbon"]
    assert texts(story.get_all(known_at="2025-02-28", **ANN)) == []
    assert [entry["memory"] for entry in story.all_versions(**ANN)] == ["User lives in Porto"]
    past = story.search("Porto", include="history", **ANN)["results"]
    assert {(entry["memory"], entry.get("superseded", False)) for entry in past} == {
        ("User lives in Porto", True),
        ("User lives in Lisbon", False),
    }


def test_saying_it_again_adds_evidence_and_nothing_else(story: Memory, clock: FixedClock) -> None:
    first = story.add("fact: User likes tea", timestamp="2025-01-01", **ANN)
    before = story.get_all(**ANN)
    clock.advance(60)
    again = story.add("fact: user likes  TEA.", timestamp="2025-02-01", **ANN)
    assert again["results"] == []
    assert story.get_all(**ANN) == before
    (version,) = story.history(first["results"][0]["id"])
    assert [(e["kind"], e["said_at"][:10]) for e in version["evidence"]] == [
        ("support", "2025-01-01"),
        ("confirm", "2025-02-01"),
    ]
    assert [d["op"] for d in story.decisions(**ANN)] == ["ADD", "NOOP"]


def test_a_retraction_leaves_a_tombstone(story: Memory) -> None:
    added = story.add("fact: User has a car", timestamp="2025-01-01", **ANN)
    memory_id = added["results"][0]["id"]
    result = story.add("fact: User no longer has a car | retracts: User has a car", timestamp="2025-02-01", **ANN)
    assert events(result) == [("DELETE", "User has a car")]
    assert spoken(story, **ANN) == []
    assert story.search("car", **ANN)["results"] == []
    assert story.get(memory_id) is None
    told = story.history(memory_id)
    assert [(entry["event"], entry["is_deleted"]) for entry in told] == [("ADD", False), ("DELETE", True)]
    assert told[0]["valid_to"].startswith("2025-02-01")
    assert texts(story.get_all(as_of="2025-01-15", **ANN)) == ["User has a car"]
    assert texts(story.get_all(as_of="2025-02-15", **ANN)) == []
    assert [entry["memory"] for entry in story.all_versions(**ANN)] == ["User has a car"]


def test_the_end_of_what_was_not_known_is_a_memory(story: Memory) -> None:
    story.add("fact: User no longer has a car | retracts: User has a car", timestamp="2025-02-01", **ANN)
    assert spoken(story, **ANN) == ["User no longer has a car"]
    assert story.all_versions(**ANN) == []
    assert len(story.search("car", include="history", **ANN)["results"]) == 1
    assert [(d["op"], d["targets"]) for d in story.decisions(**ANN)] == [("ADD", [])]


def test_what_had_ended_stays_ended_when_it_is_heard_of_later(story: Memory) -> None:
    story.add("fact: User no longer has a car | retracts: User has a car", timestamp="2025-02-01", **ANN)
    story.add("fact: User has a car", timestamp="2025-01-01", **ANN)
    assert spoken(story, **ANN) == ["User no longer has a car"]
    assert texts(story.get_all(as_of="2025-01-15", **ANN)) == ["User has a car"]
    assert texts(story.get_all(as_of="2025-02-15", **ANN)) == ["User no longer has a car"]
    assert story.check() == []


def test_a_contradiction_in_doubt_marks_both_sides(story: Memory) -> None:
    story.add("fact: User hates fish", **ANN)
    story.add("fact: User hates rain", **ANN)
    result = story.add("fact: User orders fish every Friday | contests: User hates fish", **ANN)
    assert result["results"][0]["contested"] is True
    one, rain, two = story.get_all(**ANN)["results"]
    assert one["contested_with"] == [two["id"]]
    assert two["contested_with"] == [one["id"]]
    assert "contested_with" not in rain
    assert texts(story.contested(**ANN)) == ["User hates fish", "User orders fish every Friday"]
    assert texts(story.contested(user_id="bob")) == []


@pytest.mark.parametrize("settled", ["update", "delete", "fact"])
def test_settling_a_contradiction_clears_both_marks(story: Memory, settled: str) -> None:
    story.add("fact: User hates fish", **ANN)
    story.add("fact: User orders fish every Friday | contests: User hates fish", **ANN)
    memory_id = story.get_all(**ANN)["results"][0]["id"]
    if settled == "update":
        story.update(memory_id, "User hated fish as a child")
    elif settled == "delete":
        story.delete(memory_id)
    else:
        story.add("fact: User hates only raw fish | changes: User hates fish", **ANN)
    assert texts(story.contested(**ANN)) == []
    assert all("contested_with" not in entry for entry in story.get_all(**ANN)["results"])


def test_an_unsupported_fact_is_kept_in_the_decision_log_only(story: Memory) -> None:
    result = story.add("fact: User has a yacht | unsupported\nfact: User likes tea", **ANN)
    assert events(result) == [("ADD", "User likes tea")]
    assert spoken(story, **ANN) == ["User likes tea"]
    for include in ("facts", "pending", "history"):
        assert "User has a yacht" not in texts(story.search("yacht", include=include, **ANN))
    (refused,) = story.decisions(unsupported=True, **ANN)
    assert (refused["fact"], refused["unsupported"], refused["guards"]) == ("User has a yacht", True, ["words"])
    assert [d["fact"] for d in story.decisions(unsupported=False, **ANN)] == ["User likes tea"]
    assert story.decisions(user_id="bob") == []


def test_the_decision_log_tells_what_was_decided_and_on_what(story: Memory) -> None:
    story.add("fact: User lives in Porto", **ANN)
    added = story.add("fact: User lives in Lisbon | changes: User lives in", **ANN)
    (decision,) = story.decisions(episode_id=added["episode_id"], **ANN)
    memory_id = added["results"][0]["id"]
    assert (decision["op"], decision["fact"], decision["text"]) == (
        "UPDATE",
        "User lives in Lisbon",
        "User lives in Lisbon",
    )
    assert decision["targets"] == [memory_id]
    assert [n["id"] for n in decision["neighbours"]] == [memory_id]
    assert decision["fingerprint"]["generator"] == "scripted"
    assert decision["quote"].startswith("fact: User lives in Lisbon")
    assert len(story.decisions(limit=1, **ANN)) == 1


def test_one_reply_that_says_the_same_twice_is_one_memory(story: Memory) -> None:
    story.add("fact: User likes tea\nfact: User likes tea\nfact: user likes tea!", **ANN)
    assert spoken(story, **ANN) == ["User likes tea"]


def test_facts_beyond_the_limit_of_an_episode_are_not_stored(open_memory: Opener, scripted: None) -> None:
    memory = open_memory(generator=Listener(), limits=Limits(facts_per_episode_max=3))
    memory.add("\n".join(f"fact: User owns boat number {n}" for n in range(6)), **ANN)
    assert len(spoken(memory, **ANN)) == 3


# -- scopes that meet


def test_a_run_scoped_fact_is_added_beside_a_user_level_one(story: Memory) -> None:
    story.add("fact: User drinks tea", **ANN)
    story.add("fact: User drinks coffee | changes: User drinks", run_id="r1", **ANN)
    assert spoken(story, **ANN) == ["User drinks coffee", "User drinks tea"]
    assert spoken(story, run_id="r1", **ANN) == ["User drinks coffee"]
    story.add("fact: User no longer drinks | retracts: User drinks", run_id="r2", **ANN)
    assert spoken(story, **ANN) == ["User drinks coffee", "User drinks tea", "User no longer drinks"]


def test_a_run_scoped_fact_changes_its_own_runs_row_only(story: Memory) -> None:
    story.add("fact: User drinks tea", run_id="r1", **ANN)
    story.add("fact: User drinks milk", run_id="r2", **ANN)
    story.add("fact: User drinks coffee | changes: User drinks", run_id="r1", **ANN)
    assert spoken(story, run_id="r1", **ANN) == ["User drinks coffee"]
    assert spoken(story, run_id="r2", **ANN) == ["User drinks milk"]


def test_a_fact_of_one_agent_leaves_the_rows_of_another(story: Memory) -> None:
    story.add("fact: User drinks tea", agent_id="cook", **ANN)
    story.add("fact: User drinks coffee | changes: User drinks", agent_id="guide", **ANN)
    story.add("fact: User no longer drinks | retracts: User drinks", agent_id="clerk", **ANN)
    assert spoken(story, **ANN) == ["User drinks coffee", "User drinks tea", "User no longer drinks"]
    assert spoken(story, agent_id="cook", **ANN) == ["User drinks tea"]


def test_a_user_level_fact_does_not_see_the_rows_of_runs(story: Memory) -> None:
    """DESIGN section 4: reconciling sees the owner's rows whose run is the fact's or none."""
    story.add("fact: User drinks tea", run_id="r1", **ANN)
    story.add("fact: User drinks coffee | changes: User drinks", **ANN)
    assert spoken(story, **ANN) in (["User drinks coffee"], ["User drinks coffee", "User drinks tea"])


def test_the_same_fact_of_two_owners_is_two_memories(story: Memory) -> None:
    for ids in (ANN, {"user_id": "bob"}, {"agent_id": "ann"}, {"run_id": "ann"}):
        story.add("fact: User drinks tea", **ids)
    for ids in (ANN, {"user_id": "bob"}, {"agent_id": "ann"}, {"run_id": "ann"}):
        assert spoken(story, **ids) == ["User drinks tea"]
    story.add("fact: User drinks milk | changes: User drinks", **ANN)
    assert spoken(story, user_id="bob") == ["User drinks tea"]
    assert spoken(story, agent_id="ann") == ["User drinks tea"]


def test_reading_matches_each_id_given_and_leaves_the_others_free(story: Memory) -> None:
    story.add("fact: User drinks tea", **ANN)
    story.add("fact: User drinks milk", agent_id="cook", **ANN)
    story.add("fact: User drinks beer", agent_id="cook", run_id="r1", **ANN)
    story.add("fact: User drinks water", agent_id="cook", user_id="bob")
    story.add("fact: Assistant drinks oil", agent_id="cook")
    expected = {
        "User drinks": {
            "tea": [ANN],
            "milk": [ANN, {"agent_id": "cook"}, {"agent_id": "cook", **ANN}],
            "beer": [
                ANN,
                {"agent_id": "cook"},
                {"run_id": "r1"},
                {"agent_id": "cook", **ANN},
                {"agent_id": "cook", "run_id": "r1", **ANN},
            ],
            "water": [{"agent_id": "cook"}, {"user_id": "bob"}],
        }
    }
    scopes: list[dict[str, str]] = [
        ANN,
        {"user_id": "bob"},
        {"agent_id": "cook"},
        {"run_id": "r1"},
        {"agent_id": "cook", **ANN},
        {"agent_id": "cook", "run_id": "r1", **ANN},
    ]
    for ids in scopes:
        wanted = sorted(f"User drinks {what}" for what, homes in expected["User drinks"].items() if ids in homes) + (
            ["Assistant drinks oil"] if ids == {"agent_id": "cook"} else []
        )
        assert spoken(story, **ids) == sorted(wanted), ids
        assert sorted(texts(story.search("drinks", **ids))) == sorted(wanted), ids


# -- without the model, before it and despite it


def test_an_exact_duplicate_is_decided_without_the_model(open_memory: Opener) -> None:
    """The real extraction and the real decision, with a generator that answers extraction only."""
    generator = ScriptedGenerator({"Porto": ["User lives in Porto"]})
    memory = open_memory(generator=generator)
    memory.add("I live in Porto", **ANN)
    before = generator.calls.count(("score_labels", "relation"))
    memory.add("did I say that I live in Porto?", **ANN)
    memory.add("I live in Porto, you know", **ANN)
    scored = [call for call in generator.calls if call[0] == "score_labels"]
    assert len(scored) == before == 0
    assert spoken(memory, **ANN) == ["User lives in Porto"]


def test_a_failing_model_leaves_the_words_pending_and_findable(open_memory: Opener) -> None:
    generator = ScriptedGenerator({"Porto": ["User lives in Porto"]}, fail=True)
    memory = open_memory(generator=generator)
    with pytest.raises(GeneratorError) as raised:
        memory.add([{"role": "user", "content": "I live in Porto", "name": "Ann"}], **ANN)
    episode_id = raised.value.episode_id
    (waiting,) = memory.pending()
    assert waiting["episode_id"] == episode_id
    assert (waiting["user_id"], waiting["attempts"], waiting["error"]) == ("ann", 1, "GeneratorError")
    (hit,) = memory.search("Porto", **ANN)["results"]
    assert (hit["turn"], hit["state"], hit["memory"], hit["id"]) == (True, "pending", "Ann: I live in Porto", None)
    assert "I live in Porto" in memory.context("Porto", **ANN)
    assert memory.search("Porto", include="facts", **ANN)["results"] == []
    assert memory.search("Porto", user_id="bob")["results"] == []
    assert memory.check() == []

    with pytest.raises(GeneratorError):
        memory.resume()
    assert memory.pending()[0]["attempts"] == 2
    generator.fail = False
    done = memory.resume()
    assert events(done) == [("ADD", "User lives in Porto")]
    assert done["episodes"] == 1
    assert memory.pending() == []
    assert texts(memory.search("Porto", **ANN)) == ["User lives in Porto"]  # the turn has made way for its fact
    assert memory.resume()["episodes"] == 0
    assert spoken(memory, **ANN) == ["User lives in Porto"]
    said = memory.search("Porto", include="all", **ANN)["results"]
    assert {(hit.get("turn", False), hit.get("state")) for hit in said} == {(False, None), (True, "extracted")}


def test_a_crash_inside_the_model_is_told_as_a_generator_error(open_memory: Opener) -> None:
    def crash() -> None:
        raise ZeroDivisionError("I live in Porto")

    memory = open_memory(generator=Listener(during=crash))
    with pytest.raises(GeneratorError, match="ZeroDivisionError") as raised:
        memory.add("I live in Porto", **ANN)
    assert "Porto" not in str(raised.value)
    assert raised.value.episode_id == memory.pending()[0]["episode_id"]
    assert memory.pending()[0]["error"] == "ZeroDivisionError"


def test_a_missing_model_leaves_the_episode_pending(
    open_memory: Opener, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path))
    memory = open_memory(generator=str(tmp_path / "gone.gguf"))
    with pytest.raises(LocalmemError) as raised:
        memory.add("I live in Porto", **ANN)
    assert raised.value.episode_id == memory.pending()[0]["episode_id"]  # type: ignore[attr-defined]
    assert len(memory.search("Porto", **ANN)["results"]) == 1


def test_resume_takes_event_order_not_arrival(open_memory: Opener, scripted: None) -> None:
    generator = Listener(fail=True)
    memory = open_memory(generator=generator)
    for day, town in (("03", "Faro"), ("01", "Porto"), ("02", "Lisbon")):
        with pytest.raises(GeneratorError):
            memory.add(f"fact: User lives in {town} | changes: User lives in", timestamp=f"2025-02-{day}", **ANN)
    assert [entry["said_at"][:10] for entry in memory.pending(**ANN)] == ["2025-02-01", "2025-02-02", "2025-02-03"]
    generator.fail = False
    assert events(memory.resume()) == [
        ("ADD", "User lives in Porto"),
        ("UPDATE", "User lives in Lisbon"),
        ("UPDATE", "User lives in Faro"),
    ]


def test_resume_of_one_scope_leaves_the_others_waiting(open_memory: Opener, scripted: None) -> None:
    generator = Listener(fail=True)
    memory = open_memory(generator=generator)
    for ids in (ANN, {"user_id": "bob"}):
        with pytest.raises(GeneratorError):
            memory.add("fact: User likes tea", **ids)
    generator.fail = False
    memory.bound(user_id="bob").resume()
    assert spoken(memory, user_id="bob") == ["User likes tea"]
    assert spoken(memory, **ANN) == []
    memory.resume(**ANN)
    assert spoken(memory, **ANN) == ["User likes tea"]


def test_two_resumes_at_once_finish_each_episode_once(open_memory: Opener, scripted: None) -> None:
    generator = Listener(fail=True)
    memory = open_memory(generator=generator, durability="process")
    for number in range(12):
        with pytest.raises(GeneratorError):
            memory.add(f"fact: User owns boat number {number}", **ANN)
    assert memory.path is not None
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=resume_all, args=(str(memory.path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert memory.pending() == []
    assert spoken(memory, **ANN) == sorted(f"User owns boat number {n}" for n in range(12))
    assert len(memory.decisions(**ANN)) == 12  # each decided once


def test_two_threads_resuming_finish_each_episode_once(open_memory: Opener, scripted: None) -> None:
    generator = Listener(fail=True)
    memory = open_memory(generator=generator)
    for number in range(6):
        with pytest.raises(GeneratorError):
            memory.add(f"fact: User owns boat number {number}\nfact: User sails on day {number}", **ANN)
    generator.fail = False
    meet = threading.Barrier(2, timeout=10)

    def during() -> None:
        if not meet.broken:
            try:
                meet.wait(timeout=0.3)
            except threading.BrokenBarrierError:
                return

    generator.during = during
    threads = [threading.Thread(target=memory.resume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spoken(memory, **ANN)) == 12
    assert len(memory.decisions(**ANN)) == 12


# -- while the model was thinking


def test_the_words_are_found_while_the_model_thinks(open_memory: Opener, scripted: None) -> None:
    found: list[Any] = []

    def meanwhile() -> None:
        found.extend(other.search("harbour", **ANN)["results"])

    other = open_memory()
    memory = open_memory(generator=Listener(during=meanwhile))
    memory.add("see you at the harbour", **ANN)
    (hit,) = found
    assert (hit["memory"], hit["turn"], hit["state"]) == ("see you at the harbour", True, "pending")


class Stumbling(HashEmbedder):
    """Fails on texts that hold a certain word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def embed_passages(self, texts: Sequence[str]) -> Any:
        if any(self.word in text and not text.startswith("fact:") for text in texts):
            raise RuntimeError("out of memory")
        return super().embed_passages(texts)


def test_an_embedder_that_fails_at_once_leaves_nothing(open_memory: Opener) -> None:
    memory = open_memory(embedder=Stumbling("Porto"))
    for infer in (True, False):
        with pytest.raises(RuntimeError, match="out of memory"):
            memory.add("I live in Porto", infer=infer, **ANN)
    assert memory.pending() == []
    assert spoken(memory, **ANN) == []
    assert memory.check() == []


def test_an_embedder_that_fails_on_a_fact_leaves_the_episode_pending(open_memory: Opener, scripted: None) -> None:
    embedder = Stumbling("Porto")
    memory = open_memory(embedder=embedder, generator=Listener())
    with pytest.raises(LocalmemError) as raised:
        memory.add("fact: User lives in Porto", **ANN)
    assert raised.value.episode_id == memory.pending()[0]["episode_id"]  # type: ignore[attr-defined]
    embedder.word = "nothing"
    memory.resume()
    assert spoken(memory, **ANN) == ["User lives in Porto"]


def test_evidence_is_cut_at_the_right_characters(story: Memory) -> None:
    """Positions count characters, in SQLite as in Python, beyond the basic plane too."""
    line = "fact: User loves \U0001f419 Köln \U00020000"
    added = story.add([f"\U0001f469\u200d\U0001f467 é\n{line}\nbye \U0001f419", "and then"], **ANN)
    (version,) = story.history(added["results"][0]["id"])
    (evidence,) = version["evidence"]
    assert (evidence["message"], evidence["quote"]) == (0, line)
    assert evidence["episode_id"] == added["episode_id"]


def test_the_same_fact_stored_meanwhile_stays_one_memory(open_memory: Opener, scripted: None) -> None:
    other = open_memory(generator=Listener())
    calls = []

    def meanwhile() -> None:
        if not calls:
            calls.append(1)
            other.add("fact: User lives in Porto", **ANN)

    memory = open_memory(generator=Listener(during=meanwhile))
    memory.add("fact: User lives in Porto", **ANN)
    assert spoken(memory, **ANN) == ["User lives in Porto"]
    (version,) = memory.history(memory.get_all(**ANN)["results"][0]["id"])
    assert [e["kind"] for e in version["evidence"]] == ["support", "confirm"]


@pytest.mark.parametrize("moment", ["extract", "decide"])
@pytest.mark.parametrize("change", ["same fact", "update", "delete", "delete_all", "unrelated", "reset"])
def test_an_owner_that_moves_at_any_moment(
    open_memory: Opener, scripted: None, monkeypatch: pytest.MonkeyPatch, moment: str, change: str
) -> None:
    """Another program changes the owner's memories while this one extracts, or between its look and its apply."""
    import doubles

    from localmem import ingest

    other = open_memory(generator=Listener())
    memory = open_memory(generator=Listener())
    first = memory.add("fact: User lives in Porto", timestamp="2025-01-01", **ANN)["results"][0]["id"]
    calls: list[str] = []

    def meanwhile(name: str) -> None:
        if name == moment and not calls:
            calls.append(name)
            if change == "same fact":
                other.add("fact: User lives in Lisbon | changes: User lives in", timestamp="2025-02-01", **ANN)
            elif change == "update":
                other.update(first, "User lives in Braga", timestamp="2025-01-20")
            elif change == "delete":
                other.delete(first)
            elif change == "delete_all":
                other.delete_all(**ANN)
            elif change == "unrelated":
                other.add("fact: User likes tea", **ANN)
            else:
                other.reset()

    def extract(*args: Any, **kwargs: Any) -> Any:
        meanwhile("extract")
        return doubles.follow_extract(*args, **kwargs)

    def decide_all(*args: Any, **kwargs: Any) -> Any:
        decisions = doubles.follow_decide(*args, **kwargs)
        meanwhile("decide")
        return decisions

    monkeypatch.setattr(ingest, "extract", extract)
    monkeypatch.setattr(ingest, "decide_all", decide_all)
    try:
        memory.add("fact: User lives in Lisbon | changes: User lives in", timestamp="2025-02-01", **ANN)
    except LocalmemError as error:
        assert change == "reset", error  # the episode itself is gone
    assert calls
    expected = {
        "same fact": ["User lives in Lisbon"],
        "update": ["User lives in Lisbon"],
        "unrelated": ["User likes tea", "User lives in Lisbon"],
        "reset": [],
    }
    if change in expected:
        assert spoken(memory, **ANN) == expected[change]
    else:  # deleted by hand on 1 March what was said on 1 February: an older fact does not undo that
        assert spoken(memory, **ANN) == []
    assert memory.pending() == []
    assert memory.check() == []


def test_an_owner_that_never_rests_is_a_conflict_and_the_episode_waits(open_memory: Opener, scripted: None) -> None:
    import doubles

    from localmem import ingest

    other = open_memory(generator=Listener())
    memory = open_memory(generator=Listener())
    memory.add("fact: User lives in Porto", timestamp="2025-01-01", **ANN)
    memory_id = memory.get_all(**ANN)["results"][0]["id"]
    numbers = iter(range(100))

    def decide_all(*args: Any, **kwargs: Any) -> Any:
        decisions = doubles.follow_decide(*args, **kwargs)
        other.update(memory_id, f"User lives in town {next(numbers)}", timestamp="2025-01-02")
        return decisions

    with mock.patch.object(ingest, "decide_all", decide_all), pytest.raises(ConflictError, match="resume"):
        memory.add("fact: User lives in Lisbon | changes: User lives in", timestamp="2025-02-01", **ANN)
    assert next(numbers) == Limits().reconcile_rounds_max
    assert len(memory.pending()) == 1
    assert memory.check() == []
    memory.resume()
    assert spoken(memory, **ANN) == ["User lives in Lisbon"]


# -- the real policy behind a scripted generator


def _says(relation: str) -> Any:
    """Label probabilities of a model that is sure of one relation."""
    from localmem import prompts

    symbol = prompts.load("relation").labels[relation]

    def labels(prompt: Prompt, asked: Sequence[str]) -> Sequence[float]:
        return [math.log(0.99) if label == symbol else math.log(0.01 / (len(asked) - 1)) for label in asked]

    return labels


@pytest.mark.parametrize(
    ("relation", "event", "left"),
    [
        ("unrelated", "ADD", ["User lives in Lisbon", "User lives in Porto"]),
        ("coexists", "ADD", ["User lives in Lisbon", "User lives in Porto"]),
        ("changes", "UPDATE", ["User lives in Lisbon"]),
        ("retracts", "DELETE", []),
    ],
)
def test_the_real_decision_follows_a_model_that_is_sure(
    open_memory: Opener, relation: str, event: str, left: list[str]
) -> None:
    generator = Listener(
        {"moved to Lisbon": ["User lives in Lisbon"], "live in Porto": ["User lives in Porto"]}, labels=_says(relation)
    )
    memory = open_memory(generator=generator)
    memory.add("I live in Porto", timestamp="2025-01-01", **ANN)
    result = memory.add("I moved to Lisbon and live there", timestamp="2025-02-01", **ANN)
    assert [entry["event"] for entry in result["results"]] == [event]
    assert spoken(memory, **ANN) == left
    assert texts(memory.get_all(as_of="2025-01-15", **ANN)) == ["User lives in Porto"]
    past = [entry["memory"] for entry in memory.all_versions(**ANN)]
    assert past == ([] if "User lives in Porto" in left else ["User lives in Porto"])
    last = memory.decisions(**ANN)[-1]
    assert last["probabilities"]
    assert sum(last["probabilities"].values()) == pytest.approx(1.0, abs=0.01)


def test_the_real_stages_from_words_to_memory(open_memory: Opener) -> None:
    generator = Listener({"yacht": ["User owns a submarine"], "live in Porto": ["User lives in Porto"]})
    memory = open_memory(generator=generator)
    result = memory.add("I live in Porto", **ANN)
    assert events(result) == [("ADD", "User lives in Porto")]
    memory.add("a yacht would be nice", **ANN)
    assert spoken(memory, **ANN) == ["User lives in Porto"]
    assert [d["fact"] for d in memory.decisions(unsupported=True, **ANN)] == ["User owns a submarine"]
    assert memory.history(result["results"][0]["id"])[0]["evidence"][0]["quote"] in "I live in Porto"


def test_parse_knows_its_own_language() -> None:
    line = parse("fact: a b | changes: a | unsupported")
    assert line is not None
    assert (line.text, line.directives) == ("a b", {"changes": "a", "unsupported": ""})
    assert parse("hello") is None


def test_messages_are_masked_before_anything_is_written(story: Memory) -> None:
    secret = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    for infer in (True, False):
        story.add(f"fact: User has the token {secret} for the build", infer=infer, **ANN)
    assert story.path is not None
    for path in story.path.parent.glob("memory.db*"):
        assert secret.encode() not in path.read_bytes(), path
    assert all(secret not in text for text in spoken(story, **ANN))


def test_clean_text_keeps_odd_but_valid_unicode(memory: Memory) -> None:
    odd = "👩‍👩‍👧 \u202eabc\u202c \ufeff é \U0001f1f5\U0001f1f9 \x01"
    added = memory.add(odd, infer=False, **ANN)
    found = memory.get(added["results"][0]["id"])
    assert found is not None
    assert found["memory"] == odd


def test_update_by_a_fact_keeps_the_first_metadata(story: Memory) -> None:
    story.add("fact: User lives in Porto", metadata={"source": "a"}, **ANN)
    added = story.add("fact: User lives in Faro | changes: User lives in", metadata={"source": "b"}, **ANN)
    found = story.get(added["results"][0]["id"])
    assert found is not None
    assert found["metadata"] == {"source": "a"}


def test_too_long_for_a_memory_is_refused_verbatim_only(open_memory: Opener, scripted: None) -> None:
    memory = open_memory(generator=Listener(), limits=Limits(memory_bytes_max=100))
    with pytest.raises(InvalidInputError, match=r"messages\[0\]\.content.*memory_bytes_max"):
        memory.add("x" * 101, infer=False, **ANN)
    memory.add("x" * 101, **ANN)
    assert memory.pending() == []
