"""What differs between mem0 1.x and 2.x: defaults, and what each refuses. Without ``strict`` both are understood."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localmem import filters as filtering
from localmem.compat.mem0.exceptions import ValidationError, without_scope

IDS = ("user_id", "agent_id", "run_id")
# What is a column or an id in localmem, and in mem0 a key of the metadata like any other.
_METADATA_HERE = frozenset({*filtering.COLUMNS, *filtering.SCOPE_KEYS}) - {
    *IDS,
    "id",
    "hash",
    "created_at",
    "updated_at",
}

_LATER = {  # arguments that 1.x does not know
    "add": ("timestamp", "expiration_date"),
    "search": ("top_k", "explain", "reference_date", "show_expired"),
    "get_all": ("top_k", "show_expired"),
    "update": ("text", "expiration_date"),
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of mem0's two APIs. ``limit``: of a search or a list that names none."""

    name: str
    limit: int


ONE = Dialect("1.x", 100)
TWO = Dialect("2.x", 20)
BY_NAME = {"1.x": ONE, "2.x": TWO, "1": ONE, "2": TWO}


def dialect_of(name: Any, argument: str) -> Dialect | None:
    """The dialect of that name. None for none, and for "v1.0" and "v1.1", which mem0 takes and which change nothing."""
    if name is None or (argument == "version" and name in ("v1.0", "v1.1", "v1.2", "v2", "v3")):
        return None
    if not isinstance(name, str) or name not in BY_NAME:
        raise ValidationError(f"{argument} must be '1.x' or '2.x', not {name!r:.40}", "VALIDATION_004")
    return BY_NAME[name]


def refuse(strict: Dialect | None, method: str, given: Mapping[str, Any]) -> None:
    """Raise as that version of mem0 does where an argument is not one of its own. None is not given."""
    present = [name for name, value in given.items() if value is not None]
    if strict is ONE:
        for name in present:
            if name in _LATER.get(method, ()):
                raise TypeError(f"Memory.{method}() got an unexpected keyword argument {name!r} (mem0 1.x)")
    elif strict is TWO:
        _refuse_two(method, present)


def _refuse_two(method: str, present: list[str]) -> None:
    ids = [name for name in present if name in IDS]
    if method in ("search", "get_all") and ids:
        raise ValidationError(
            f"mem0 2.x takes {', '.join(ids)} of {method}() inside filters: filters={{'{ids[0]}': …}}",
            "VALIDATION_001",
        )
    for name in ("timestamp", "reference_date"):
        if name in present:
            raise ValidationError(
                f"mem0's open source 2.x does not take {name} in {method}(); without strict='2.x' localmem does",
                "VALIDATION_004",
            )
    if "limit" in present:
        warnings.warn("mem0 2.x ignores limit: it is top_k there", stacklevel=5)


def ids_of(
    strict: Dialect | None, method: str, given: Mapping[str, Any], filters: Mapping[str, Any] | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """(the ids of a reading call, what remains of its filters). ValidationError where there is none."""
    if filters is not None and not isinstance(filters, Mapping):
        raise ValidationError(f"filters must be a dict, not {type(filters).__name__}", "VALIDATION_003")
    at_top = {name: identifier(strict, value, name) for name, value in given.items() if value is not None}
    rest: dict[str, Any] = _by_mem0s_names(filters or {})
    inside = {}
    for name in IDS:
        value = rest.get(name)
        if name in rest and not isinstance(value, Mapping | list) and value != "*":
            if value is not None:
                inside[name] = identifier(strict, value, f"filters.{name}")
            del rest[name]
    if not at_top and (strict is ONE or not (inside or _within_and(rest))):
        where = f"pass user_id, agent_id or run_id to {method}()"
        inside_too = "" if strict is ONE else f", or inside its filters: {method}(…, filters={{'user_id': 'alice'}})"
        raise without_scope(f"At least one of 'user_id', 'agent_id', or 'run_id' must be provided: {where}{inside_too}")
    for name, value in inside.items():
        if at_top.setdefault(name, value) != value:
            raise ValidationError(f"{name} and filters.{name} name two different ids", "VALIDATION_004")
    return at_top, rest


def _by_mem0s_names(filters: Any) -> Any:
    """The filter tree with the names that mean something else in localmem marked as metadata."""
    if not isinstance(filters, Mapping):
        return filters
    told = {}
    for name, value in filters.items():
        if str(name).strip("$").upper() in ("AND", "OR", "NOT"):
            told[name] = [_by_mem0s_names(e) for e in value] if isinstance(value, list) else _by_mem0s_names(value)
        else:
            told[filtering.IN_METADATA + name if name in _METADATA_HERE else name] = value
    return told


def _within_and(filters: Mapping[str, Any]) -> bool:
    """Whether an id stands in a clause of the filters' AND, as mem0's platform has it."""
    clauses = filters.get("AND")
    return isinstance(clauses, list) and any(isinstance(c, Mapping) and set(c) & set(IDS) for c in clauses)


def identifier(strict: Dialect | None, value: Any, name: str) -> str:
    """An id as mem0 2.x has it: a number as text, without blanks around it. ValidationError for an empty one."""
    text = str(value).strip()
    if not text:
        raise without_scope(f"{name} is empty; give an id, or leave it out")
    if strict is TWO and any(letter.isspace() for letter in text):
        raise ValidationError(f"{name} holds blanks, which mem0 2.x refuses", "VALIDATION_004")
    return text


def limit_of(limit: Any, top_k: Any, *, ignored: bool, default: int) -> int:
    """How many results at most: limit (1.x), top_k (2.x), else the default. ``ignored``: 2.x does not look at limit."""
    limit = None if ignored else limit
    if limit is not None and top_k is not None and limit != top_k:
        raise ValidationError("limit and top_k are two words for the same thing; give one of them", "VALIDATION_004")
    wanted = default if limit is None and top_k is None else top_k if limit is None else limit
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        name = "top_k" if limit is None else "limit"
        raise ValidationError(f"{name} must be a whole number of at least 0, not {wanted!r:.40}", "VALIDATION_004")
    return wanted
