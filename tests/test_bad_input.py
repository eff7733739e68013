"""Bad input: an error of ours that names the argument and what would be right, nothing written, no user text told."""

from __future__ import annotations

import datetime as dt
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from doubles import Listener, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from localmem.config import Limits
from localmem.errors import (
    InvalidInputError,
    InvalidTypeError,
    LocalmemError,
    ScopeError,
    TooLargeError,
)
from localmem.memory import Memory
from localmem.testing import HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}


def rows(memory: Memory) -> dict[str, int]:
    """How much the file holds, in every table that a call could write to."""
    tables = ("owner", "episode", "message", "memory", "version", "evidence", "decision", "memory_vec", "turn_vec")
    with memory._engine.store.db.snapshot() as tx:
        return {table: tx.execute(f"select count(*) from {table}").fetchone()[0] for table in tables}


MESSAGES: list[tuple[Any, str]] = [
    ("", r"messages\[0\]\.content is empty"),
    (" \n\t ", r"messages\[0\]\.content is empty"),
    ([], "messages is empty"),
    ((), "messages is empty"),
    (None, r"messages\[0\] must be a dict .*not NoneType"),
    (3, r"messages\[0\] must be a dict .*not int"),
    (b"tea", r"messages\[0\] must be a dict .*not bytes"),
    ({"a", "b"}, r"messages\[0\] must be a dict .*not set"),
    ([["tea"]], r"messages\[0\] must be a dict .*not list"),
    (["tea", 3], r"messages\[1\] must be a dict .*not int"),
    ({"role": "user"}, r"messages\[0\]\.content must be a str, not NoneType"),
    ({"role": "user", "content": None}, r"messages\[0\]\.content must be a str"),
    ({"role": "user", "content": 3}, r"messages\[0\]\.content must be a str, not int"),
    ({"role": "user", "content": {"text": "tea"}}, r"messages\[0\]\.content must be a str, not dict"),
    ({"role": "user", "content": []}, r"messages\[0\]\.content"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, r"content\[0\] is not a text part"),
    ({"role": "user", "content": [{"type": "text", "text": 3}]}, r"content\[0\] is not a text part"),
    ({"role": "user", "content": ["tea"]}, r"content\[0\] is not a text part"),
    ({"role": "wizard", "content": "tea"}, r"messages\[0\]\.role is 'wizard'; use one of user, assistant"),
    ({"role": None, "content": "tea"}, r"messages\[0\]\.role"),
    ({"role": ["user"], "content": "tea"}, r"messages\[0\]\.role"),
    ({"role": "", "content": "tea"}, r"messages\[0\]\.role"),
    ({"role": "user", "content": "tea", "name": 3.5}, r"messages\[0\]\.name must be a str"),
    ({"role": "user", "content": "tea", "name": "x" * 300}, r"messages\[0\]\.name has 300 bytes"),
    ("a\0b", r"messages\[0\]\.content holds a NUL character at position 1"),
    ("ab\ud800", r"messages\[0\]\.content holds a lone surrogate .*position 2"),
    (
        [{"role": "user", "content": "ok"}, {"role": "user", "content": "\udfff"}],
        r"messages\[1\]\.content holds a lone",
    ),
    ("x" * 10_000_000, r"messages\[0\]\.content has 10,000,000 bytes, the limit is .*message_bytes_max"),
    ("é" * 600_000, r"1,200,000 bytes"),
    (["tea"] * 1001, r"messages has 1,001 entries, the limit is 1,000.*messages_max"),
]


@pytest.mark.parametrize(("messages", "said"), MESSAGES, ids=[said[:30] for _, said in MESSAGES])
@pytest.mark.parametrize("infer", [True, False])
def test_bad_messages(open_memory: Opener, messages: Any, said: str, infer: bool) -> None:
    generator = ScriptedGenerator()
    memory = open_memory(generator=generator)
    before = rows(memory)
    with pytest.raises(InvalidInputError, match=said):
        memory.add(messages, infer=infer, **ANN)
    assert rows(memory) == before
    assert generator.calls == []


def test_errors_are_also_the_builtin_they_resemble(memory: Memory) -> None:
    with pytest.raises(TypeError):
        memory.add(3, **ANN)
    with pytest.raises(ValueError, match="empty"):
        memory.add("", **ANN)
    with pytest.raises(TooLargeError):
        memory.add("x" * 10_000_000, **ANN)


def test_the_limit_of_a_message_can_be_raised(open_memory: Opener) -> None:
    long = "tea " * 300_000
    memory = open_memory(limits=Limits(message_bytes_max=2_000_000, memory_bytes_max=2_000_000))
    memory.add(long, infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == [long]


BAD_IDS: list[tuple[Any, str]] = [
    ("", "is empty"),
    ("  ", "is empty"),
    (3.5, "must be a str, not float"),
    (True, "must be a str, not bool"),
    (["ann"], "must be a str, not list"),
    (b"ann", "must be a str, not bytes"),
    ({"id": 1}, "must be a str, not dict"),
    ("x" * 257, "has 257 bytes, the limit is 256"),
    ("a\0b", "NUL"),
    ("\ud83d", "lone surrogate"),
]

SCOPED: dict[str, Callable[..., Any]] = {
    "add": lambda m, **k: m.add("tea", infer=False, **k),
    "add with the model": lambda m, **k: m.add("tea", **k),
    "search": lambda m, **k: m.search("tea", **k),
    "context": lambda m, **k: m.context("tea", **k),
    "get_all": lambda m, **k: m.get_all(**k),
    "page": lambda m, **k: m.page(**k),
    "delete_all": lambda m, **k: m.delete_all(**k),
    "all_versions": lambda m, **k: m.all_versions(**k),
    "decisions": lambda m, **k: m.decisions(**k),
    "contested": lambda m, **k: m.contested(**k),
    "bound": lambda m, **k: m.bound(**k),
}


@pytest.mark.parametrize("name", SCOPED)
def test_no_scope_and_bad_ids(memory: Memory, name: str) -> None:
    call = SCOPED[name]
    memory.add("kept", infer=False, **ANN)
    before = rows(memory)
    with pytest.raises(ScopeError, match="user_id, agent_id, run_id"):
        call(memory)
    for argument in ("user_id", "agent_id", "run_id", "session_id"):
        for value, said in BAD_IDS:
            with pytest.raises(InvalidInputError, match=f"{argument} .*{said}"):
                call(memory, **{argument: value})
            if argument != "user_id":
                with pytest.raises(InvalidInputError, match=f"{argument} .*{said}"):
                    call(memory, **{argument: value}, **ANN)
    assert rows(memory) == before
    assert texts(memory.get_all(**ANN)) == ["kept"]


BAD_TIMES: list[Any] = [
    "yesterday-ish",
    "2025-13-01",
    "2025-02-30",
    "",
    "2025-01-01T25:00:00",
    b"2025-01-01",
    True,
    math.nan,
    math.inf,
    1e30,
    -1e30,
    10**40,
    [2025],
    {"year": 2025},
    object(),
    dt.time(12, 0),
    dt.timedelta(days=1),
    "2025-01-01\0",
    "\ud800",
]

TIMED: dict[str, tuple[str, Callable[[Memory, Any], Any]]] = {
    "add": ("timestamp", lambda m, t: m.add("tea", infer=False, timestamp=t, **ANN)),
    "add with the model": ("timestamp", lambda m, t: m.add("tea", timestamp=t, **ANN)),
    "expiry": ("expires_at", lambda m, t: m.add("tea", infer=False, expires_at=t, **ANN)),
    "expiry with the model": ("expires_at", lambda m, t: m.add("tea", expires_at=t, **ANN)),
    "as_of": ("as_of", lambda m, t: m.search("tea", as_of=t, **ANN)),
    "known_at": ("known_at", lambda m, t: m.search("tea", known_at=t, **ANN)),
    "reference_date": ("reference_date", lambda m, t: m.search("tea", reference_date=t, **ANN)),
    "get_all as_of": ("as_of", lambda m, t: m.get_all(as_of=t, **ANN)),
    "get_all known_at": ("known_at", lambda m, t: m.get_all(known_at=t, **ANN)),
    "update": ("timestamp", lambda m, t: m.update(m.get_all(**ANN)["results"][0]["id"], "x", timestamp=t)),
}


@pytest.mark.parametrize("name", TIMED)
def test_bad_times(memory: Memory, name: str) -> None:
    argument, call = TIMED[name]
    memory.add("kept", infer=False, **ANN)
    before = rows(memory)
    for value in BAD_TIMES:
        with pytest.raises(InvalidInputError, match=argument):
            call(memory, value)
    assert rows(memory) == before


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("x", "metadata must be a dict, not str"),
        ([("a", 1)], "metadata must be a dict, not list"),
        ({1: "a"}, "str keys"),
        ({"a": object()}, "JSON"),
        ({"a": {1, 2}}, "JSON"),
        ({"a": b"x"}, "JSON"),
        ({"a": math.nan}, "JSON"),
        ({"a": math.inf}, "JSON"),
        ({"a": "\0"}, "NUL"),
        ({"a\0": 1}, "NUL"),
        ({"a": ["\ud800"]}, "surrogate"),
        ({"a": "x" * 70_000}, "metadata_bytes_max"),
    ],
)
def test_bad_metadata(memory: Memory, metadata: Any, said: str) -> None:
    kept = memory.add("kept", infer=False, **ANN)["results"][0]["id"]
    before = rows(memory)
    for call in (
        lambda: memory.add("tea", infer=False, metadata=metadata, **ANN),
        lambda: memory.add("tea", metadata=metadata, **ANN),
        lambda: memory.update(kept, "changed", metadata=metadata),
    ):
        with pytest.raises(InvalidInputError, match=f"metadata.*{said}|{said}"):
            call()
    assert rows(memory) == before


def test_metadata_that_contains_itself(memory: Memory) -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for metadata in (circle, {"deep": deep}):
        with pytest.raises(InvalidInputError, match="metadata"):
            memory.add("tea", infer=False, metadata=metadata, **ANN)
    assert rows(memory)["episode"] == 0


def test_odd_numbers_in_metadata_do_not_break_the_file(memory: Memory) -> None:
    """Whatever is accepted must come back, and filters over the owner must go on working."""
    for number, value in enumerate((10**30, -(10**30), 1e308, 5e-324, -0.0, 2**63, 2**53 + 1)):
        try:
            memory.add(f"row {number}", infer=False, metadata={"v": value}, **ANN)
        except InvalidInputError:
            continue
        assert memory.get_all(**ANN)["results"][-1]["metadata"] == {"v": value}
        memory.get_all(filters={"v": {"gt": 0}}, **ANN)
        memory.search("row", filters={"v": {"in": [1, 2]}}, **ANN)


@pytest.mark.parametrize("argument", ["limit", "top_k"])
@pytest.mark.parametrize("value", [-1, -(10**9), 10_001, 10**12, True, False, 2.0, "3", [3], math.nan])
def test_bad_limits(memory: Memory, argument: str, value: Any) -> None:
    memory.add("tea", infer=False, **ANN)
    for call in (lambda **k: memory.search("tea", **k), memory.get_all):
        with pytest.raises(InvalidInputError, match="limit|top_k"):
            call(**{argument: value}, **ANN)


@pytest.mark.parametrize("value", [-0.1, 1.1, 100, math.nan, math.inf, True, "0.5", [0.5]])
def test_bad_thresholds(memory: Memory, value: Any) -> None:
    memory.add("tea", infer=False, **ANN)
    for call in (
        lambda: memory.search("tea", threshold=value, **ANN),
        lambda: memory.context("tea", threshold=value, **ANN),
    ):
        with pytest.raises(InvalidInputError, match="threshold"):
            call()


@pytest.mark.parametrize("value", [-1, True, 1.5, "100", None])
def test_bad_max_tokens(memory: Memory, value: Any) -> None:
    memory.add("tea", infer=False, **ANN)
    with pytest.raises(InvalidInputError, match="max_tokens"):
        memory.context("tea", max_tokens=value, **ANN)


@pytest.mark.parametrize("value", ["everything", "", None, 3, ["facts"], {}])
def test_bad_include(memory: Memory, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="include.*history"):
        memory.search("tea", include=value, **ANN)


BAD_QUERIES: list[tuple[Any, str]] = [
    ("", "query is empty"),
    (" \n", "query is empty"),
    (None, "query must be a str, not NoneType"),
    (3, "query must be a str"),
    (["tea"], "query must be a str"),
    (b"tea", "query must be a str"),
    ("x" * 100_001, "query .*100,000"),
    ("a\0b", "query holds a NUL"),
    ("\udc00", "query holds a lone surrogate"),
]


@pytest.mark.parametrize(("query", "said"), BAD_QUERIES, ids=[said for _, said in BAD_QUERIES])
def test_bad_queries(memory: Memory, query: Any, said: str) -> None:
    memory.add("tea", infer=False, **ANN)
    for call in (memory.search, memory.context):
        with pytest.raises(InvalidInputError, match=said):
            call(query, **ANN)


def test_a_query_at_the_limit_is_answered(memory: Memory) -> None:
    memory.add("tea", infer=False, **ANN)
    assert texts(memory.search("tea " * 25_000, **ANN)) == ["tea"]
    assert texts(memory.search("é" * 100_000, **ANN)) in ([], ["tea"])


@pytest.mark.parametrize("value", [None, 3, b"x", ["x"], {"id": "x"}, 3.5, True])
def test_bad_memory_ids(memory: Memory, value: Any) -> None:
    for call in (memory.get, memory.history, memory.delete, lambda i: memory.update(i, "x")):
        with pytest.raises(InvalidTypeError, match="memory_id must be a str"):
            call(value)


@pytest.mark.parametrize("value", ["", "  ", 3, ["x"], b"x", "a\0", "\ud800", "x" * 1_000_001, {}])
def test_bad_new_text(memory: Memory, value: Any) -> None:
    kept = memory.add("kept", infer=False, **ANN)["results"][0]["id"]
    before = rows(memory)
    for argument in ("data", "text"):
        with pytest.raises(InvalidInputError, match="data|text"):
            memory.update(kept, **{argument: value})
    assert rows(memory) == before
    assert texts(memory.get_all(**ANN)) == ["kept"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": 3}, "path must be a str"),
        ({"path": b"x.db"}, "path"),
        ({"path": ""}, "path is empty"),
        ({"path": "  "}, "path is empty"),
        ({"path": "a\0b"}, "path"),
        ({"path": True}, "path"),
        ({"durability": "forever"}, "durability must be one of power, process"),
        ({"durability": None}, "durability"),
        ({"durability": 1}, "durability"),
        ({"limits": {"messages_max": 3}}, "limits"),
        ({"limits": 3}, "limits"),
        ({"embedder": "minilm"}, "embedder"),
        ({"embedder": object()}, "embedder"),
        ({"generator": 3}, "generator"),
        ({"generator": object()}, "generator"),
        ({"allow_remote": "yes"}, "allow_remote"),
        ({"clock": 3}, "clock"),
    ],
)
def test_bad_arguments_of_memory(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    arguments = {"path": tmp_path / "memory.db", "embedder": HashEmbedder(), **options}
    with pytest.raises(InvalidInputError, match=said), Memory(**arguments) as memory:
        memory.add("tea", **ANN)  # a generator may be looked at when it is first needed
    # the words of the last add may wait in the file, but no facts were made
    assert "limits" not in options or not (tmp_path / "memory.db").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"lock_wait_s": -1},
        {"lock_wait_s": "long"},
        {"message_bytes_max": 0},
        {"neighbours_per_fact": -3},
        {"reconcile_rounds_max": 0},
        {"result_limit_max": 2.5},
    ],
)
def test_bad_limits_of_memory(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(changes))):
        Memory(tmp_path / "memory.db", embedder=HashEmbedder(), limits=Limits(**changes))


def test_an_unknown_argument_is_a_type_error(memory: Memory) -> None:
    for call in (
        lambda: memory.all_versions(usr_id="ann"),
        lambda: memory.decisions(usr_id="ann"),
        lambda: memory.search("tea", usr_id="ann"),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match="usr_id"):
            call()


@pytest.mark.parametrize("value", [3, b"x", ["x"], ""])
def test_bad_decision_filters(memory: Memory, value: Any) -> None:
    memory.add("tea", infer=False, **ANN)
    try:
        assert memory.decisions(episode_id=value, **ANN) == []
    except LocalmemError as error:
        assert "episode_id" in str(error)
    with pytest.raises(InvalidInputError, match="limit"):
        memory.decisions(limit=-1, **ANN)


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=6),
        st.binary(max_size=4),
        st.just(object()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.data())
def test_nothing_but_our_errors_for_any_junk(data: st.DataObject) -> None:
    """Whatever is handed to whatever argument: it works, or it is an error of ours, and the file stays sound."""
    with Memory(":memory:", embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
        kept = memory.add("kept", infer=False, **ANN)["results"][0]["id"]
        calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "add": (memory.add, {"messages": "tea", "infer": False, **ANN}),
            "search": (memory.search, {"query": "tea", **ANN}),
            "get_all": (memory.get_all, dict(ANN)),
            "context": (memory.context, {"query": "tea", **ANN}),
            "update": (memory.update, {"memory_id": kept, "data": "tea"}),
            "get": (memory.get, {"memory_id": kept}),
            "history": (memory.history, {"memory_id": kept}),
        }
        names = {
            "add": ["messages", "user_id", "metadata", "timestamp", "expires_at", "run_id"],
            "search": ["query", "limit", "top_k", "filters", "threshold", "include", "as_of", "known_at", "user_id"],
            "get_all": ["limit", "top_k", "filters", "as_of", "agent_id"],
            "context": ["query", "max_tokens", "limit", "filters", "threshold"],
            "update": ["memory_id", "data", "text", "metadata", "timestamp"],
            "get": ["memory_id"],
            "history": ["memory_id"],
        }
        for _ in range(4):
            call = data.draw(st.sampled_from(sorted(calls)))
            argument = data.draw(st.sampled_from(names[call]))
            function, arguments = calls[call]
            try:
                function(**{**arguments, argument: data.draw(ANYTHING)})
            except LocalmemError:
                continue
        assert memory.check() == []


# -- no user text leaves the file

CANARY = "zanzibar-canary-4711"


def test_no_user_text_in_logs_warnings_or_errors(
    open_memory: Opener,
    scripted: None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every input carries a canary; what the library logs, prints, warns and raises must not."""
    caplog.set_level(logging.DEBUG)
    generator = Listener()
    memory = open_memory(generator=generator)
    said: list[str] = []

    def tell(call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            chain: BaseException | None = error
            while chain is not None:
                said.append(f"{type(chain).__name__}: {chain} {chain.args!r}")
                chain = chain.__cause__

    def crash() -> None:
        raise RuntimeError("a model that crashed")

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        memory.add(f"fact: User owns {CANARY}", metadata={"a": CANARY}, **ANN)
        memory.add(f"fact: User owns no {CANARY} | unsupported", **ANN)
        memory.add(CANARY, infer=False, **ANN)
        kept = memory.get_all(**ANN)["results"][0]["id"]
        generator.during = crash
        tell(lambda: memory.add(f"fact: User lost {CANARY}", **ANN))
        generator.during = None
        generator.fail = True
        tell(lambda: memory.add(f"fact: User lost {CANARY}", **ANN))
        tell(memory.resume)
        generator.fail = False
        for call in (
            lambda: memory.add(f"{CANARY}\0", **ANN),
            lambda: memory.add(f"{CANARY}\ud800", infer=False, **ANN),
            lambda: memory.add(CANARY * 100_000, **ANN),
            lambda: memory.add({"role": "user", "content": {CANARY: CANARY}}, **ANN),
            lambda: memory.add({"role": "user", "content": [{CANARY: CANARY}]}, **ANN),
            lambda: memory.add([CANARY, 3], **ANN),
            lambda: memory.add("x", metadata={CANARY: object()}, **ANN),
            lambda: memory.add("x", metadata={CANARY: f"{CANARY}\0"}, **ANN),
            lambda: memory.search(f"{CANARY}\0", **ANN),
            lambda: memory.search(CANARY * 10_000, **ANN),
            lambda: memory.search("x", filters={"v": {"gt": {CANARY: 1}}}, **ANN),
            lambda: memory.search("x", filters={"v": f"{CANARY}\0"}, **ANN),
            lambda: memory.update(kept, f"{CANARY}\0"),
            lambda: memory.update(kept, CANARY * 10_000),
            lambda: memory.update("unknown", CANARY),
        ):
            tell(call)
        memory.search(CANARY, include="all", **ANN)
        memory.context(CANARY, **ANN)
        memory.update(kept, f"User sold {CANARY}")
        memory.delete(kept)
        memory.resume()
        memory.check()
        memory.reindex()
        memory.close()
    assert len(said) >= 15
    assert [line for line in said if CANARY in line] == []
    assert CANARY not in caplog.text
    assert [str(w.message) for w in warned if CANARY in str(w.message)] == []
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
