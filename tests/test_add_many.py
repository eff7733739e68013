"""add_many(infer=False): many exchanges as they are, in one transaction. test_queue.py has those that wait."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Opener
from doubles import texts

from localmem.config import Limits
from localmem.errors import InvalidInputError, InvalidTypeError, ScopeError, TooLargeError
from localmem.memory import Memory
from localmem.testing import FixedClock

ANN = {"user_id": "ann"}
MARCH, APRIL, MAY = "2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z", "2024-05-01T00:00:00Z"


def test_each_entry_has_its_own_scope_metadata_and_time(memory: Memory) -> None:
    talk = [{"role": "user", "content": "I like tea"}, {"role": "assistant", "content": "Noted"}]
    added = memory.add_many(
        [
            {"messages": talk, "metadata": {"n": 1}, "timestamp": MARCH, **ANN},
            {"messages": "I row", "metadata": {"n": 2}, "session_id": "r1", "user_id": "bob"},
        ],
        infer=False,
    )
    assert [(each["memory"], each["event"]) for each in added["results"]] == [
        ("I like tea", "ADD"),
        ("Noted", "ADD"),
        ("I row", "ADD"),
    ]
    assert len(set(added["episodes"])) == 2
    tea, noted = memory.get_all(**ANN)["results"]
    assert (tea["metadata"], tea["valid_from"], noted["actor"]) == ({"n": 1}, MARCH, "assistant")
    (rows,) = memory.get_all(user_id="bob", run_id="r1")["results"]
    assert (rows["metadata"], rows["valid_from"]) == ({"n": 2}, "2025-03-01T00:00:00Z")
    assert texts(memory.search("tea", **ANN))[0] == "I like tea"


def test_later_wordings_are_versions(memory: Memory) -> None:
    later = [{"text": "I drink tea", "timestamp": APRIL}, {"text": "I drink green tea", "timestamp": MAY}]
    added = memory.add_many(
        [{"messages": "I drink coffee", "timestamp": MARCH, "later": later, "metadata": {"n": 1}, **ANN}], infer=False
    )
    assert [each["event"] for each in added["results"]] == ["ADD", "UPDATE", "UPDATE"]
    (now,) = memory.get_all(**ANN)["results"]
    assert (now["memory"], now["version"], now["valid_from"], now["metadata"]) == (
        "I drink green tea",
        3,
        MAY,
        {"n": 1},
    )
    told = [
        (row["old_memory"], row["new_memory"], row["valid_from"], row["valid_to"]) for row in memory.history(now["id"])
    ]
    assert told == [
        (None, "I drink coffee", MARCH, APRIL),
        ("I drink coffee", "I drink tea", APRIL, MAY),
        ("I drink tea", "I drink green tea", MAY, None),
    ]
    assert texts(memory.get_all(as_of="2024-04-15", **ANN)) == ["I drink tea"]


@pytest.mark.parametrize(
    ("entry", "error", "says"),
    [
        ({"messages": "tea"}, ScopeError, "no scope"),
        ({"messages": "  ", **ANN}, InvalidInputError, "empty"),
        ({"messages": "long text", **ANN}, TooLargeError, "8 bytes|9 bytes"),
        ({"messages": "tea", "infer": True, **ANN}, InvalidTypeError, "'infer'"),
        ({"messages": "tea", "timestamp": "soon", **ANN}, InvalidInputError, "timestamp"),
        ({"messages": "tea", "metadata": {"at": object()}, **ANN}, InvalidInputError, "metadata"),
        ({"messages": "tea", "later": ["cocoa"], **ANN}, InvalidTypeError, "later"),
        ({"messages": "tea", "later": [{"text": "cocoa"}], **ANN}, InvalidInputError, "since when"),
        ({"messages": "tea", "later": [{"text": "", "timestamp": 1}], **ANN}, InvalidInputError, "later.text"),
        (
            {"messages": {"role": "system", "content": "hi"}, "later": [{"text": "x", "timestamp": 1}], **ANN},
            InvalidInputError,
            "system",
        ),
        ("tea", ScopeError, "no scope"),
        ({"messages": 7, **ANN}, InvalidTypeError, "messages"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_named_and_nothing_is_written(
    open_memory: Opener, entry: Any, error: type[Exception], says: str
) -> None:
    memory = open_memory(limits=Limits(memory_bytes_max=8))
    with pytest.raises(error, match=rf"^exchanges\[1\].*({says})"):
        memory.add_many([{"messages": "tea", **ANN}, entry], infer=False)
    assert texts(memory.get_all(**ANN)) == []


def test_of_nothing_is_nothing(memory: Memory) -> None:
    assert memory.add_many([], infer=False) == {"results": [], "episodes": [], "status": "done"}


def test_a_bound_handle_keeps_its_entries_in_its_scope(memory: Memory) -> None:
    handle = memory.bound(**ANN)
    handle.add_many([{"messages": "tea"}, {"messages": "milk", "run_id": "r1"}], infer=False)
    assert texts(memory.get_all(**ANN)) == ["tea", "milk"]
    with pytest.raises(ScopeError, match=r"exchanges\[1\]"):
        handle.add_many([{"messages": "rum"}, {"messages": "rum", "user_id": "bob"}], infer=False)
    with pytest.raises(ScopeError, match="read-only"):
        memory.bound(read_only=True, **ANN).add_many([{"messages": "rum"}], infer=False)
    assert texts(memory.get_all(**ANN)) == ["tea", "milk"]


def test_once(memory: Memory) -> None:
    def entry(text: str, source: Any, **ids: str) -> dict[str, Any]:
        return {"messages": text, "metadata": {"source_id": source}, **(ids or ANN)}

    memory.add("tea", infer=False, metadata={"source_id": "a"}, **ANN)
    entries = [entry("tea", "a"), entry("milk", "b"), entry("tea", "a", user_id="bob"), entry("rum", 7)]
    added = memory.add_many(entries, infer=False, once=True)
    assert [each["memory"] for each in added["results"]] == ["milk", "tea", "rum"]
    assert [episode is None for episode in added["episodes"]] == [True, False, False, False]
    assert texts(memory.get_all(**ANN)) == ["tea", "milk", "rum"]
    assert memory.add_many(entries[:2], infer=False, once=True)["episodes"] == [None, None]
    memory.add_many(entries[:1], infer=False)
    assert texts(memory.get_all(**ANN)) == ["tea", "milk", "rum", "tea"]


def test_progress_secrets_and_many(memory: Memory, clock: FixedClock) -> None:
    heard: list[tuple[int, int]] = []
    secret = "my key is sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD"
    entries = [{"messages": f"note {n}", **ANN} for n in range(600)] + [{"messages": secret, **ANN}]
    memory.add_many(entries, infer=False, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(256, 601), (512, 601), (601, 601)]
    kept = texts(memory.get_all(**ANN))
    assert kept[:600] == [f"note {n}" for n in range(600)]
    assert "abcdefghij" not in kept[600]


def test_dropped_turns_are_dropped_at_once(open_memory: Opener) -> None:
    memory = open_memory(retention="none")
    memory.add_many([{"messages": "I like tea", **ANN}], infer=False)
    (episode,) = [each for each in memory.export(**ANN) if each["record"] == "episode"]
    assert "tea" not in str(episode["messages"])
    assert texts(memory.get_all(**ANN)) == ["I like tea"]
