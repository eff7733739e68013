"""User filters: the full boolean tree, checked once and compiled to bound SQL.

``{"AND": [{"category": "work"}, {"NOT": [{"rank": {"gt": 3}}]}]}``. Operators: eq ne gt gte lt lte in nin
contains icontains exists; a bare value means eq, ``"*"`` means exists. Fields are metadata keys, or the columns
in COLUMNS; ``metadata.NAME`` is the metadata key NAME, also where there is a column of that name. A missing key fails
every comparison except ``ne``, ``nin`` and ``exists: False``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localmem.dates import parse_instant
from localmem.errors import FilterError, InvalidInputError

SCOPE_KEYS = {"user_id": "user_id", "agent_id": "agent_id", "run_id": "run_id", "session_id": "run_id"}
_TIMES = {
    "created_at": "m.created_at",
    "updated_at": "v.recorded_at",
    "valid_from": "v.valid_from",
    "expires_at": "m.expires_at",
}
_TEXTS = {
    "id": "m.id",
    "kind": "m.kind",
    "memory_type": "m.kind",
    "actor": "m.actor",
    "user_id": "m.user_id",
    "agent_id": "m.agent_id",
    "run_id": "m.run_id",
    "session_id": "m.run_id",
    "hash": "v.hash",
}
COLUMNS = frozenset({*_TIMES, *_TEXTS})
OPERATORS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "contains", "icontains", "exists")
_SYMBOL = {"eq": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
DEPTH_MAX = 20
IN_METADATA = "metadata."  # before the name of a key


@dataclass(frozen=True, slots=True)
class Condition:
    """A boolean SQL expression over ``memory m`` and its ``version v``, with its bindings in order."""

    sql: str = "1"
    bindings: tuple[Any, ...] = ()

    def __bool__(self) -> bool:
        return self.sql != "1"


ANY = Condition()  # no condition


def split_scope(filters: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, Any]]:
    """(the ids given at the top level of a 2.x filter, what remains). Raises FilterError unless a mapping."""
    if filters is None:
        return {}, {}
    if not isinstance(filters, Mapping):
        raise FilterError(f"filters must be a dict such as {{'category': 'work'}}, not {type(filters).__name__}")
    ids: dict[str, str] = {}
    rest: dict[str, Any] = {}
    for name, value in filters.items():
        if name in SCOPE_KEYS and isinstance(value, str) and value != "*":
            ids[SCOPE_KEYS[name]] = value
        else:
            rest[name] = value
    clauses = rest.get("AND")
    if isinstance(clauses, list):  # 2.x writes {"AND": [{"user_id": "alice"}, …]}
        for clause in clauses:
            if isinstance(clause, Mapping) and len(clause) == 1:
                ((name, value),) = clause.items()
                if name in SCOPE_KEYS and isinstance(value, str) and value != "*":
                    ids.setdefault(SCOPE_KEYS[name], value)
    return ids, rest


def compile_filters(filters: Mapping[str, Any], *, nodes_max: int = 200) -> Condition:
    """Check and compile a filter tree. Raises FilterError naming the place, e.g. ``filters.AND[1].rank``."""
    budget = [nodes_max]
    return _all_of(filters, "filters", budget, 0)


def _all_of(tree: Any, place: str, budget: list[int], depth: int) -> Condition:
    if not isinstance(tree, Mapping):
        raise FilterError(f"{place} must be a dict, not {type(tree).__name__}")
    if depth > DEPTH_MAX:
        raise FilterError(f"{place} is nested more than {DEPTH_MAX} deep")
    return _join(" and ", [_one(name, value, f"{place}.{name}", budget, depth) for name, value in tree.items()])


def _one(name: Any, value: Any, place: str, budget: list[int], depth: int) -> Condition:
    budget[0] -= 1
    if budget[0] < 0:
        raise FilterError("filters has too many conditions; raise Limits.filter_nodes_max")
    if not isinstance(name, str) or not name:
        raise FilterError(f"{place}: a field name must be a non-empty string, not {name!r:.40}")
    _whole_text(name, place)
    word = name.strip("$").upper()
    if word in ("AND", "OR", "NOT"):
        return _branch(word, value, place, budget, depth)
    if isinstance(value, Mapping):
        if not value:
            raise FilterError(f"{place} has no operator; use one of {', '.join(OPERATORS)}")
        budget[0] -= len(value)
        return _join(" and ", [_leaf(name, operator, operand, place) for operator, operand in value.items()])
    if isinstance(value, list):
        return _leaf(name, "in", value, place)
    return _leaf(name, "exists", True, place) if value == "*" else _leaf(name, "eq", value, place)


def _branch(word: str, value: Any, place: str, budget: list[int], depth: int) -> Condition:
    clauses = [value] if word == "NOT" and isinstance(value, Mapping) else value
    if not isinstance(clauses, list) or not clauses:
        raise FilterError(f"{place} must be a non-empty list of dicts")
    parts = [_all_of(clause, f"{place}[{i}]", budget, depth + 1) for i, clause in enumerate(clauses)]
    if word == "NOT":  # as mem0 and MongoDB's $nor: none of the clauses holds
        joined = _join(" or ", parts)
        return Condition(f"(not {joined.sql})", joined.bindings)
    return _join(" and " if word == "AND" else " or ", parts)


def _join(glue: str, parts: Sequence[Condition]) -> Condition:
    if not parts:
        return Condition()
    sql = glue.join(part.sql for part in parts)
    bindings = tuple(binding for part in parts for binding in part.bindings)
    return Condition(f"({sql})", bindings)


def _leaf(name: str, operator: Any, operand: Any, place: str) -> Condition:
    operator = operator.lstrip("$") if isinstance(operator, str) else operator
    if operator not in OPERATORS:
        raise FilterError(f"{place}: unknown operator {str(operator)[:40]!r}; use one of {', '.join(OPERATORS)}")
    if operator == "exists":
        if not isinstance(operand, bool):
            raise FilterError(f"{place}.exists must be true or false")
        return _exists(name, operand)
    if operator in ("in", "nin"):
        if not isinstance(operand, list | tuple) or not operand:
            raise FilterError(f"{place}.{operator} must be a non-empty list")
        if len(operand) > 1000:
            raise FilterError(f"{place}.{operator} lists more than 1,000 values")
        either = _join(" or ", [_compare(name, "eq", value, place) for value in operand])
        return either if operator == "in" else Condition(f"(not {either.sql})", either.bindings)
    if operator == "ne":
        equal = _compare(name, "eq", operand, place)
        return Condition(f"(not {equal.sql})", equal.bindings)
    return _compare(name, operator, operand, place)


def _exists(name: str, wanted: bool) -> Condition:
    column = _TIMES.get(name) or _TEXTS.get(name)
    if column:
        return Condition(f"({column} is {'not ' if wanted else ''}null)")
    sql = "exists (select 1 from json_each(m.metadata) j where j.key = ?)"
    return Condition(sql if wanted else f"(not {sql})", (name.removeprefix(IN_METADATA),))


def _compare(name: str, operator: str, operand: Any, place: str) -> Condition:
    if name in _TIMES:
        return _compare_time(_TIMES[name], operator, operand, place)
    if name in _TEXTS:
        return _compare_text(_TEXTS[name], operator, operand, place)
    return _compare_metadata(name, operator, operand, place)


def _compare_time(column: str, operator: str, operand: Any, place: str) -> Condition:
    if operator not in _SYMBOL:
        raise FilterError(f"{place}: {operator} can't be used with a time; use eq, ne, gt, gte, lt, lte, in, nin")
    try:
        instant = parse_instant(operand)
    except InvalidInputError as error:
        raise FilterError(f"{place}: {error}") from error
    return Condition(f"coalesce({column} {_SYMBOL[operator]} ?, 0)", (instant,))


def _compare_text(column: str, operator: str, operand: Any, place: str) -> Condition:
    if not isinstance(operand, str):
        raise FilterError(f"{place} must be compared with a string, not {type(operand).__name__}")
    _whole_text(operand, place)
    if operator in ("contains", "icontains"):
        return Condition(f"coalesce({_INSTR[operator](column)}, 0)", (operand,))
    return Condition(f"coalesce({column} {_SYMBOL[operator]} ?, 0)", (operand,))


_INSTR: dict[str, Callable[[str], str]] = {
    "contains": lambda column: f"instr({column}, ?) > 0",
    "icontains": lambda column: f"instr(casefold({column}), casefold(?)) > 0",
}


def _compare_metadata(name: str, operator: str, operand: Any, place: str) -> Condition:
    """json_each, not a JSON path: a key may hold quotes and dots."""
    if isinstance(operand, str):
        _whole_text(operand, place)
    if operator in ("contains", "icontains"):
        return _contains(name, operator, operand, place)
    if operand is None and operator == "eq":
        return _any_value(name, "j.type = 'null'", ())
    if isinstance(operand, bool):
        if operator != "eq":
            raise FilterError(f"{place}: {operator} can't be used with true or false; use eq or ne")
        return _any_value(name, "j.type = ?", ("true" if operand else "false",))
    if isinstance(operand, int | float) and _storable(operand):
        return _any_value(name, f"j.type in ('integer', 'real') and j.atom {_SYMBOL[operator]} ?", (operand,))
    if isinstance(operand, str):
        return _any_value(name, f"j.type = 'text' and j.atom {_SYMBOL[operator]} ?", (operand,))
    raise FilterError(f"{place} must be compared with a string, number or boolean, not {type(operand).__name__}")


def _contains(name: str, operator: str, operand: Any, place: str) -> Condition:
    """A substring of a text, or a member of a list."""
    if not isinstance(operand, str):
        if isinstance(operand, int | float) and _storable(operand):
            return _any_value(
                name, "j.type = 'array' and exists (select 1 from json_each(j.value) where atom = ?)", (operand,)
            )
        raise FilterError(f"{place}.{operator} must be a string or a number, not {type(operand).__name__}")
    member = "atom = ?" if operator == "contains" else "casefold(atom) = casefold(?)"
    sql = (
        f"(j.type = 'text' and {_INSTR[operator]('j.atom')}) or "
        f"(j.type = 'array' and exists (select 1 from json_each(j.value) where {member}))"
    )
    return _any_value(name, sql, (operand, operand))


def _any_value(name: str, test: str, bindings: tuple[Any, ...]) -> Condition:
    sql = f"exists (select 1 from json_each(m.metadata) j where j.key = ? and ({test}))"
    return Condition(sql, (name.removeprefix(IN_METADATA), *bindings))


def _storable(number: float) -> bool:
    return isinstance(number, float) or -(2**63) <= number < 2**63


def _whole_text(text: str, place: str) -> None:
    if re.search("[\ud800-\udfff\0]", text):
        raise FilterError(f"{place} holds a lone surrogate or a NUL character")
