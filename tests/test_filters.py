"""Filters: each operator on each type, the boolean tree, ids inside, times; and random trees against plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from conftest import Opener
from doubles import texts
from hypothesis import given, settings
from hypothesis import strategies as st

from localmem.errors import FilterError, InvalidInputError, LocalmemError
from localmem.filters import compile_filters, split_scope
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder

ANN = {"user_id": "ann"}

ROWS: dict[str, dict[str, Any]] = {
    "text": {"v": "Apple pie"},
    "lower": {"v": "apple"},
    "accent": {"v": "ÉCLAIR"},
    "empty": {"v": ""},
    "int": {"v": 3},
    "big": {"v": 2**40},
    "real": {"v": 3.5},
    "negative": {"v": -1},
    "true": {"v": True},
    "false": {"v": False},
    "null": {"v": None},
    "list": {"v": ["apple", 3, None, "É"]},
    "dict": {"v": {"apple": 1}},
    "missing": {"w": "apple"},
    "digits": {"v": "3"},
}


@pytest.fixture(scope="module")
def filled() -> Any:
    """One memory for each of ROWS, all of ann's."""
    with Memory(":memory:", embedder=HashEmbedder(), clock=FixedClock()) as memory:
        for name, metadata in ROWS.items():
            memory.add(name, infer=False, metadata=metadata, **ANN)
        yield memory


def matching(memory: Memory, filters: Any) -> set[str]:
    """What get_all() finds; search() must find the same."""
    found = set(texts(memory.get_all(filters=filters, **ANN)))
    assert set(texts(memory.search("apple", filters=filters, limit=50, **ANN))) == found
    return found


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("apple", {"lower"}),
        ({"eq": "apple"}, {"lower"}),
        ({"eq": "3"}, {"digits"}),
        (3, {"int"}),
        (3.0, {"int"}),
        ({"eq": 3.5}, {"real"}),
        (True, {"true"}),
        (False, {"false"}),
        (None, {"null"}),
        ("", {"empty"}),
        ({"ne": "apple"}, set(ROWS) - {"lower"}),
        ({"ne": 3}, set(ROWS) - {"int"}),
        ({"ne": True}, set(ROWS) - {"true"}),
        ({"ne": None}, set(ROWS) - {"null"}),
        ({"gt": 3}, {"big", "real"}),
        ({"gte": 3}, {"int", "big", "real"}),
        ({"lt": 3}, {"negative"}),
        ({"lte": 3.5}, {"negative", "int", "real"}),
        ({"gt": 0, "lt": 4}, {"int", "real"}),
        ({"gt": "a"}, {"lower", "accent"}),
        ({"lte": "Apple pie"}, {"text", "empty", "digits"}),
        ({"in": ["apple", 3, None]}, {"lower", "int", "null"}),
        (["apple", 3.5], {"lower", "real"}),
        ({"in": [True, "3"]}, {"true", "digits"}),
        ({"nin": ["apple", 3]}, set(ROWS) - {"lower", "int"}),
        ({"contains": "pple"}, {"text", "lower"}),
        ({"contains": "apple"}, {"lower", "list"}),
        ({"contains": "APPLE"}, set()),
        ({"icontains": "APPLE"}, {"text", "lower", "list"}),
        ({"icontains": "éclair"}, {"accent"}),
        ({"icontains": "é"}, {"accent", "list"}),
        ({"contains": 3}, {"list"}),
        ({"exists": True}, set(ROWS) - {"missing"}),
        ("*", set(ROWS) - {"missing"}),
        ({"exists": False}, {"missing"}),
        ({"$gt": 3}, {"big", "real"}),
        ({"$in": ["apple"]}, {"lower"}),
    ],
)
def test_each_operator_on_each_type(filled: Memory, condition: Any, expected: set[str]) -> None:
    assert matching(filled, {"v": condition}) == expected


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"AND": [{"v": {"gt": 0}}, {"v": {"lt": 4}}]}, {"int", "real"}),
        ({"OR": [{"v": "apple"}, {"w": "apple"}]}, {"lower", "missing"}),
        ({"NOT": [{"v": {"exists": True}}]}, {"missing"}),
        ({"NOT": {"v": {"exists": True}}}, {"missing"}),
        ({"NOT": [{"v": {"ne": 3}}]}, {"int"}),
        ({"NOT": [{"v": {"gt": 0}}, {"v": {"ne": -1}}]}, {"negative"}),
        ({"$or": [{"v": 3}, {"$and": [{"v": {"contains": "p"}}, {"v": {"ne": "apple"}}]}]}, {"int", "text"}),
        ({"OR": [{"v": 3, "w": "apple"}, {"w": "apple"}]}, {"missing"}),
        ({"v": {"gt": 0}, "OR": [{"v": 3}, {"v": 2**40}]}, {"int", "big"}),
        ({"AND": [{"OR": [{"v": 3}, {"v": 3.5}]}, {"NOT": [{"v": 3.5}]}]}, {"int"}),
        ({}, set(ROWS)),
    ],
)
def test_the_boolean_tree(filled: Memory, tree: Any, expected: set[str]) -> None:
    assert matching(filled, tree) == expected


def test_keys_may_be_anything(memory: Memory) -> None:
    odd = ['a"b', "a.b", "a b", "$", "ключ", "v'); drop table memory; --", "[0]", "AND ", "created"]
    for number, key in enumerate(odd):
        memory.add(f"row {number}", infer=False, metadata={key: number}, **ANN)
    for number, key in enumerate(odd):
        if key.strip("$ ").upper() in ("AND", "OR", "NOT") or key == "$":
            continue
        assert texts(memory.get_all(filters={key: number}, **ANN)) == [f"row {number}"], key
    assert len(memory.get_all(**ANN)["results"]) == len(odd)


def test_ids_inside_filters(memory: Memory) -> None:
    memory.add("one", infer=False, agent_id="a", metadata={"n": 1}, **ANN)
    memory.add("two", infer=False, run_id="r", metadata={"n": 2}, **ANN)
    memory.add("three", infer=False, user_id="bob", agent_id="a", metadata={"n": 3})
    cases: list[tuple[Any, list[str]]] = [
        ({"user_id": "ann"}, ["one", "two"]),
        ({"user_id": "ann", "agent_id": "a"}, ["one"]),
        ({"AND": [{"user_id": "ann"}, {"run_id": "r"}]}, ["two"]),
        ({"AND": [{"user_id": "ann"}, {"OR": [{"agent_id": "a"}, {"run_id": "r"}]}]}, ["one", "two"]),
        ({"user_id": "ann", "NOT": [{"agent_id": "a"}]}, ["two"]),
        ({"agent_id": "a"}, ["one", "three"]),
        ({"agent_id": "a", "user_id": {"ne": "ann"}}, ["three"]),
        ({"agent_id": "a", "OR": [{"user_id": "bob"}, {"n": 1}]}, ["one", "three"]),
        ({"agent_id": "a", "user_id": {"in": ["bob", "eve"]}}, ["three"]),
        ({"user_id": "ann", "run_id": {"exists": False}}, ["one"]),
        ({"user_id": "ann", "run_id": "*"}, ["two"]),
        ({"user_id": "eve"}, []),
    ]
    for filters, expected in cases:
        assert texts(memory.get_all(filters=filters)) == expected, filters
        assert sorted(texts(memory.search("row", filters=filters))) == sorted(expected), filters


def test_times_compare_as_times(memory: Memory, clock: FixedClock) -> None:
    first = memory.add("first", infer=False, timestamp="2024-01-01", **ANN)["results"][0]["id"]
    clock.advance(86_400)
    memory.add("second", infer=False, timestamp="2024-06-01", expires_at="2030-01-01", **ANN)
    cases: list[tuple[Any, set[str]]] = [
        ({"created_at": {"gte": "2025-03-02"}}, {"second"}),
        ({"created_at": {"lt": "2025-03-02T00:00:00Z"}}, {"first"}),
        ({"created_at": {"gte": "2025-03-01", "lte": "2025-03-01T01:00:00+01:00"}}, {"first"}),
        ({"created_at": "2025-03-01"}, {"first"}),
        ({"created_at": {"gt": 1740787200}}, {"second"}),
        ({"valid_from": {"gt": "2024-02-01"}}, {"second"}),
        ({"expires_at": {"exists": True}}, {"second"}),
        ({"expires_at": {"gt": "2029-01-01"}}, {"second"}),
        ({"NOT": [{"expires_at": {"gt": "2029-01-01"}}]}, {"first"}),
        ({"kind": "semantic"}, {"first", "second"}),
        ({"memory_type": {"ne": "semantic"}}, set()),
        ({"actor": "user", "id": first}, {"first"}),
    ]
    for filters, expected in cases:
        assert matching(memory, filters) == expected, filters
    memory.update(first, "first, changed")
    assert matching(memory, {"updated_at": {"gte": "2025-03-02"}}) == {"first, changed", "second"}


def test_a_filter_on_versions_of_the_past(memory: Memory) -> None:
    memory_id = memory.add("old", infer=False, timestamp="2024-01-01", metadata={"n": 1}, **ANN)["results"][0]["id"]
    memory.update(memory_id, "new", timestamp="2024-06-01")
    for filters in ({"n": 1}, {"n": {"gte": 1}}):
        assert texts(memory.search("old", filters=filters, as_of="2024-03-01", **ANN)) == ["old"]
        assert texts(memory.search("old", filters=filters, **ANN)) == ["new"]
        assert set(texts(memory.search("old", filters=filters, include="history", **ANN))) == {"old", "new"}


def test_many_matching_rows_and_few_are_found_alike(open_memory: Opener) -> None:
    """More than 2,000 rows that match take another way through the vectors than few."""
    memory = open_memory(durability="process", name=":memory:")
    for start in range(0, 2600, 650):
        memory.add(
            [f"note {n} of ship {n % 7} at sea" for n in range(start, start + 650)],
            infer=False,
            metadata={"a": 1},
            **ANN,
        )
    memory.add("the lighthouse note of ship 3", infer=False, metadata={"a": 1, "rare": True}, **ANN)
    many = memory.search("lighthouse note of a ship", filters={"a": 1}, **ANN)["results"]
    few = memory.search("lighthouse note of a ship", filters={"rare": True}, **ANN)["results"]
    assert many[0]["memory"] == few[0]["memory"] == "the lighthouse note of ship 3"
    assert many[0]["score"] == pytest.approx(few[0]["score"], abs=1e-5)
    assert len(many) == 10
    assert len(few) == 1
    assert memory.search("lighthouse", filters={"a": 2}, **ANN)["results"] == []


BROKEN: list[Any] = [
    {"v": {}},
    {"v": {"like": "x"}},
    {"v": {"eq": {"a": 1}}},
    {"v": {"gt": None}},
    {"v": {"gt": True}},
    {"v": {"gt": [1]}},
    {"v": {"in": []}},
    {"v": {"in": "abc"}},
    {"v": []},
    {"v": {"in": list(range(1001))}},
    {"v": {"exists": "yes"}},
    {"v": {"contains": None}},
    {"v": {"contains": ["a"]}},
    {"v": 2**63},
    {"v": "a\0b"},
    {"v": "\ud800"},
    {"\ud800": 1},
    {"": 1},
    {3: 1},
    {"AND": []},
    {"AND": {"v": 1}},
    {"AND": [1]},
    {"OR": "v"},
    {"NOT": None},
    {"NOT": [["v"]]},
    {"created_at": "soon"},
    {"created_at": {"contains": "2025"}},
    {"created_at": None},
    {"user_id": {"gt": 3}, "v": 1},
    {"kind": 3},
    {"v": object()},
    {"v": {1: 2}},
    {"v": b"bytes"},
    [("v", 1)],
    "v",
    3,
    True,
    {"AND": [{"v": 1}] * 300},
]


@pytest.mark.parametrize("filters", BROKEN, ids=lambda f: repr(f)[:40].encode("ascii", "backslashreplace").decode())
def test_a_broken_filter_says_where(filled: Memory, filters: Any) -> None:
    for call in (
        lambda: filled.search("apple", filters=filters, **ANN),
        lambda: filled.get_all(filters=filters, **ANN),
        lambda: filled.context("apple", filters=filters, **ANN),
    ):
        with pytest.raises(FilterError, match="filters"):
            call()


def test_the_place_in_the_tree_is_named(filled: Memory) -> None:
    with pytest.raises(FilterError, match=r"filters\.AND\[1\]\.NOT\[0\]\.rank"):
        filled.get_all(filters={"AND": [{"v": 1}, {"NOT": [{"rank": {"above": 3}}]}]}, **ANN)


def test_too_deep_a_tree_is_refused(filled: Memory) -> None:
    tree: Any = {"v": 1}
    for _ in range(100):
        tree = {"NOT": [tree]}
    with pytest.raises(FilterError, match="deep"):
        filled.get_all(filters=tree, **ANN)


def test_a_filter_that_contains_itself_is_refused(filled: Memory) -> None:
    tree: dict[str, Any] = {}
    tree["AND"] = [tree]
    with pytest.raises(FilterError):
        filled.get_all(filters=tree, **ANN)


# -- random trees against plain Python

KEYS = ["v", "w", "z"]
NUMBERS = st.one_of(st.integers(-5, 5), st.floats(-5, 5, allow_nan=False).map(lambda x: round(x, 1)))
STRINGS = st.sampled_from(["", "a", "A", "ab", "aB", "é", "É", "3", "ß", "b a"])
SCALARS = st.one_of(NUMBERS, STRINGS, st.booleans(), st.none())
METADATA = st.dictionaries(
    st.sampled_from(KEYS), st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.just({"a": 1})), max_size=3
)

Predicate = Callable[[Mapping[str, Any]], bool]


def _same(value: Any, operand: Any) -> bool:
    if isinstance(value, bool) or isinstance(operand, bool) or value is None or operand is None:
        return value is operand
    if isinstance(value, int | float) and isinstance(operand, int | float):
        return value == operand
    return isinstance(value, str) and isinstance(operand, str) and value == operand


def _ordered(value: Any, operand: Any, test: Callable[[Any, Any], bool]) -> bool:
    if isinstance(value, bool) or value is None:
        return False
    if isinstance(operand, str):
        return isinstance(value, str) and test(value.encode(), operand.encode())
    return isinstance(value, int | float) and test(value, operand)


def _member(value: Any, operand: Any, fold: bool) -> bool:
    if isinstance(operand, str):
        wanted = operand.casefold() if fold else operand
        if isinstance(value, str):
            return wanted in (value.casefold() if fold else value)
        members = [v for v in value if isinstance(v, str)] if isinstance(value, list) else []
        return wanted in [m.casefold() if fold else m for m in members]
    numbers = [v for v in value if isinstance(v, int | float)] if isinstance(value, list) else []
    return any(v == operand for v in numbers)  # JSON true in a list equals 1 in SQLite, as in Python


def reference(tree: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """What a filter means."""
    return all(_holds(name, value, metadata) for name, value in tree.items())


def _holds(name: str, value: Any, metadata: Mapping[str, Any]) -> bool:
    if name == "AND":
        return all(reference(clause, metadata) for clause in value)
    if name == "OR":
        return any(reference(clause, metadata) for clause in value)
    if name == "NOT":
        return not any(reference(clause, metadata) for clause in value)
    conditions = value if isinstance(value, dict) else {"in": value} if isinstance(value, list) else {"eq": value}
    return all(_leaf(operator, operand, name, metadata) for operator, operand in conditions.items())


def _leaf(operator: str, operand: Any, name: str, metadata: Mapping[str, Any]) -> bool:
    there, value = name in metadata, metadata.get(name)
    if operator == "exists":
        return there is operand
    if operator in ("ne", "nin"):
        operands = operand if operator == "nin" else [operand]
        return not (there and any(_same(value, o) for o in operands))
    if not there:
        return False
    if operator in ("eq", "in"):
        return any(_same(value, o) for o in (operand if operator == "in" else [operand]))
    if operator in ("contains", "icontains"):
        return _member(value, operand, operator == "icontains")
    tests: dict[str, Callable[[Any, Any], bool]] = {
        "gt": lambda a, b: a > b,
        "gte": lambda a, b: a >= b,
        "lt": lambda a, b: a < b,
        "lte": lambda a, b: a <= b,
    }
    return _ordered(value, operand, tests[operator])


ORDERED = st.one_of(NUMBERS, STRINGS)
CONDITIONS = st.one_of(
    SCALARS,
    st.lists(SCALARS, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "eq": SCALARS,
            "ne": SCALARS,
            "gt": ORDERED,
            "gte": ORDERED,
            "lt": ORDERED,
            "lte": ORDERED,
            "in": st.lists(SCALARS, min_size=1, max_size=3),
            "nin": st.lists(SCALARS, min_size=1, max_size=3),
            "contains": st.one_of(STRINGS, NUMBERS),
            "icontains": STRINGS,
            "exists": st.booleans(),
        },
    ).filter(bool),
)
LEAVES = st.dictionaries(st.sampled_from(KEYS), CONDITIONS, min_size=1, max_size=2)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "AND": st.lists(inner, min_size=1, max_size=3),
            "OR": st.lists(inner, min_size=1, max_size=3),
            "NOT": st.lists(inner, min_size=1, max_size=2),
            "v": CONDITIONS,
        },
    ).filter(bool),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=60)
@given(st.lists(METADATA, min_size=4, max_size=8), st.lists(TREES, min_size=5, max_size=10))
def test_random_trees_mean_what_plain_python_says(rows: list[dict[str, Any]], trees: list[dict[str, Any]]) -> None:
    with Memory(":memory:", embedder=HashEmbedder(), clock=FixedClock()) as memory:
        for number, metadata in enumerate(rows):
            memory.add(f"row {number}", infer=False, metadata=metadata, **ANN)
        for tree in trees:
            expected = {f"row {n}" for n, metadata in enumerate(rows) if reference(tree, metadata)}
            assert matching(memory, tree) == expected, tree


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=3),
        st.sampled_from(["AND", "OR", "NOT", "*", "2025-01-01"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(
                    [
                        "AND",
                        "OR",
                        "NOT",
                        "v",
                        "eq",
                        "in",
                        "gt",
                        "contains",
                        "exists",
                        "user_id",
                        "created_at",
                        "id",
                        "kind",
                    ]
                ),
                st.text(max_size=3),
                st.integers(),
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=10,
)


@settings(max_examples=400)
@given(JUNK)
def test_random_junk_works_or_is_an_error_of_ours(filled: Memory, junk: Any) -> None:
    for call in (filled.get_all, lambda **k: filled.search("apple", **k)):
        try:
            call(filters=junk, **ANN)
        except LocalmemError as error:
            assert isinstance(error, InvalidInputError)


def test_nan_and_infinity_do_no_harm(filled: Memory) -> None:
    for operand in (math.nan, math.inf, -math.inf):
        for operator in ("eq", "ne", "gt", "lte"):
            try:
                matching(filled, {"v": {operator: operand}})
            except FilterError:
                continue


def test_split_scope_takes_ids_only() -> None:
    ids, rest = split_scope({"user_id": "ann", "session_id": "s", "v": 1, "agent_id": {"ne": "a"}})
    assert ids == {"user_id": "ann", "run_id": "s"}
    assert rest == {"v": 1, "agent_id": {"ne": "a"}}
    assert split_scope(None) == ({}, {})


def test_compiled_filters_bind_every_value() -> None:
    condition = compile_filters({"v'": "x'; drop table memory; --", "OR": [{"w": {"in": [1, "two"]}}]})
    assert "drop" not in condition.sql
    assert condition.sql.count("?") == len(condition.bindings)


def test_metadata_can_be_meant_where_there_is_a_column(memory: Memory) -> None:
    memory.add("tea", infer=False, metadata={"kind": "k", "session_id": "s1", "expires_at": 7}, **ANN)
    memory.add("milk", infer=False, **ANN)
    assert matching(memory, {"kind": "semantic"}) == {"tea", "milk"}
    assert matching(memory, {"metadata.kind": "k"}) == {"tea"}
    assert matching(memory, {"metadata.expires_at": {"gt": 6}, "metadata.session_id": "*"}) == {"tea"}
    assert matching(memory, {"NOT": [{"metadata.kind": {"exists": True}}]}) == {"milk"}
    assert matching(memory, {"metadata.user_id": "ann"}) == set()
