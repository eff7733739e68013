"""What a model hands to a tool: read, repaired where only one thing can be meant, else answered so that it can repair.

Small models send numbers as strings, null for what they leave out, other names for parameters, JSON inside JSON.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localmem import inputs
from localmem.dates import parse_loose, to_iso
from localmem.errors import InvalidInputError, InvalidTypeError, ScopeError
from localmem.tool_words import UNREAD_ID
from localmem.types import JSON, Instant, Scope

# What scopes are called here and elsewhere, written plainly, each with the id of a handle's scope that it means.
_SCOPES = {"user": "user_id", "agent": "agent_id", "run": "run_id", "session": "run_id"}
_SCOPES |= {f"{name}id": own for name, own in _SCOPES.items()} | dict.fromkeys(("appid", "orgid", "projectid"), "")
_WRAPPINGS = ("arguments", "parameters", "args", "kwargs", "input", "properties")
_OF_A_CALL = ("name", "type", "tool", "function")  # stand beside the arguments
_NOTHING = ("", "null", "none", "undefined", "nil")  # words for a value left out
_DRESS = " \t\r\n\"'`[]<>()"  # around an id
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")
_NAMES_ALIKE = 0.8  # difflib's ratio: "qurey" for "query" is 0.8
_AHEAD_MAX = 24 * 3600 * 1_000_000  # microseconds: clocks and time zones differ
_FENCED = re.compile(r"\A\s*```[a-z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL | re.IGNORECASE)
_ODD_ESCAPE = re.compile(r"\\(?![\\'\"abfnrtvxNuU0-7])")  # of which Python warns
_LITERAL_CHARS_MAX = 20_000  # Python's parser is not made for what is hostile
_TYPES = {"string": "a string", "integer": "a whole number", "number": "a number", "boolean": "true or false"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool. ``also``: other names that models use for it. ``kind`` is a flat JSON type, or a string
    of which more is known: "moment" is a date, "past" one that is not ahead, "id" an id, "ids" several with commas
    between them. "confirmation" is a boolean that is False for all but true, missing too: the call answers that."""

    name: str
    kind: str
    description: str
    required: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    default: JSON = None
    example: JSON = None
    also: tuple[str, ...] = ()
    meant: tuple[tuple[str, str], ...] = ()  # other words for choices

    @property
    def type(self) -> str:
        """The flat JSON type."""
        return "boolean" if self.kind == "confirmation" else self.kind if self.kind in _TYPES else "string"

    def schema(self) -> dict[str, JSON]:
        """As JSON schema."""
        shape: dict[str, JSON] = {"type": self.type, "description": self.description}
        if self.choices:
            shape["enum"] = list(self.choices)
        for key, value in (("minimum", self.minimum), ("maximum", self.maximum), ("default", self.default)):
            if value is not None:
                shape[key] = value
        return shape


@dataclass(frozen=True, slots=True)
class Given:
    """Arguments that fit: a value for each parameter (its default or None where none came), and what was left out."""

    values: Mapping[str, Any]
    ignored: tuple[str, ...] = ()


def parameters_schema(parameters: Sequence[Parameter]) -> dict[str, JSON]:
    """The JSON schema of a tool's arguments."""
    return {
        "type": "object",
        "properties": {each.name: each.schema() for each in parameters},
        "required": [each.name for each in parameters if each.required],
        "additionalProperties": False,
    }


def checked(
    parameters: Sequence[Parameter],
    arguments: Any,
    *,
    bound_to: Scope,
    bytes_max: int,
    now: Instant,
    strict: bool = False,
) -> Given:
    """The arguments of a call, a dict or JSON text, as values of the right types.

    bound_to: the scope of the handle; another id is refused. strict: arguments the tool does not have are refused too,
    not left out: of a call that deletes they might have named less. bytes_max: of one text. Raises InvalidInputError
    with a message to repair from.
    """
    example = json.dumps({each.name: each.example for each in parameters if each.required}, ensure_ascii=False)
    known = {each.name for each in parameters}
    given = _unwrapped(_object(arguments, example), known)
    named, others = _named(parameters, given)
    ignored = _strangers(others, sorted(known), bound_to, strict)
    values: dict[str, Any] = {}
    for each in parameters:
        value = named.get(each.name)
        if each.kind == "confirmation":
            values[each.name] = value is True or (isinstance(value, str) and value.strip().casefold() == "true")
        elif each.name in named and _is_unread(value, each):
            raise InvalidInputError(UNREAD_ID)
        elif _is_nothing(value, each):
            if each.required:
                missing = "is missing" if each.name not in named else "is empty"
                raise InvalidInputError(f"{each.name} {missing}; give it, for example {example}")
            values[each.name] = each.default
        else:
            values[each.name] = _value(each, value, bytes_max, now)
    return Given(values, tuple(ignored))


# -------------------------------------------------------------------- the object


def _object(arguments: Any, example: str) -> dict[str, Any]:
    """The arguments as a dict: JSON text is read, also JSON text within JSON text, fenced, or as Python writes it."""
    value = arguments
    for _ in range(2):
        if isinstance(value, str | bytes):
            if not value.strip():
                return {}
            try:
                value = _read(value)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                raise InvalidInputError(f"the arguments are not JSON; give an object such as {example}") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        kind = {list: "a list", str: "a string", bool: "true or false"}.get(type(value), "a number")
        raise InvalidTypeError(f"the arguments are {kind}, not an object; give an object such as {example}")
    return {str(name): each for name, each in value.items()}


def _read(sent: str | bytes) -> Any:
    """JSON, or a dict as Python writes it. Raises ValueError and what Python's parser raises."""
    text = sent if isinstance(sent, str) else sent.decode()
    fenced = _FENCED.match(text)
    text = fenced[1] if fenced else text
    try:
        return json.loads(text)
    except ValueError:
        if not text.lstrip().startswith("{") or len(text) > _LITERAL_CHARS_MAX or _ODD_ESCAPE.search(text):
            raise
    written = ast.literal_eval(text.strip())
    if not isinstance(written, dict):  # a set
        raise ValueError("no object")
    return json.loads(json.dumps(written))  # what JSON can't say is refused, a tuple is a list


def _unwrapped(given: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Without a wrapping such as {"name": …, "arguments": {…}}, which models copy from the shape of a call."""
    for name in _WRAPPINGS:
        inner = given.get(name)
        if name not in known and isinstance(inner, Mapping) and not known & set(given):
            beside = {key: each for key, each in given.items() if key not in (name, *_OF_A_CALL)}
            return {**beside, **{str(key): each for key, each in inner.items()}}
    return given


def _named(parameters: Sequence[Parameter], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was given by the parameters' own names, and what is left. Another name counts where its own is missing."""
    named = {each.name: given[each.name] for each in parameters if each.name in given}
    others = {name: value for name, value in given.items() if name not in named}
    for each in parameters:
        if each.name in named:
            continue
        plain = {_plain(name): name for name in others if _plain(name) not in _SCOPES}
        names = [_plain(each.name), *map(_plain, each.also)]
        meant = next((plain[name] for name in names if name in plain), None)
        if meant is None and each.required:
            close = difflib.get_close_matches(_plain(each.name), list(plain), n=1, cutoff=_NAMES_ALIKE)
            meant = plain[close[0]] if close else None
        if meant is not None:
            named[each.name] = others.pop(meant)
    return named, others


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())


def _strangers(others: Mapping[str, Any], known: Sequence[str], bound_to: Scope, strict: bool) -> list[str]:
    """The names of arguments that are left out. Nobody else's memory is promised, and a call that deletes is refused
    rather than widened."""
    ignored = []
    for name, value in others.items():
        if value in (None, "", [], {}):
            continue
        if (scope := _SCOPES.get(_plain(name))) is not None:
            if str(value) != getattr(bound_to, scope, None):
                raise ScopeError(f"whose memory this is can't be chosen; leave {name:.40} out")
            continue
        if strict:
            names = ", ".join(known) or "none"
            raise InvalidInputError(
                f"there is no parameter {name!r:.40}; the parameters are: {names}. Nothing was changed"
            )
        ignored.append(name[:40].encode("utf-8", "replace").decode())  # lone surrogates can't be sent on
    return ignored


# -------------------------------------------------------------------- one value


def _is_nothing(value: Any, parameter: Parameter) -> bool:
    if value is None or value == [] or value == {}:
        return True
    if not isinstance(value, str):
        return False
    text = value.strip()
    return not text or (not parameter.required and text.casefold() in _NOTHING)


def _is_unread(value: Any, parameter: Parameter) -> bool:
    """Whether it is the null that a search shows in place of the id of what is not read yet."""
    if not parameter.name.startswith("memory_id"):
        return False
    each = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else [value]
    return any(one is None or (isinstance(one, str) and one.strip(_DRESS).casefold() in _NOTHING[1:]) for one in each)


def _value(parameter: Parameter, value: Any, bytes_max: int, now: Instant) -> Any:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    match parameter.kind:
        case "integer":
            return _bounded(parameter, _whole(parameter, value))
        case "number":
            return _bounded(parameter, _number(parameter, value))
        case "boolean":
            return _boolean(parameter, value)
        case "id" | "ids":
            ids = _ids(parameter, value, bytes_max)
            if parameter.kind == "id" and len(ids) > 1:
                raise InvalidInputError(f"{parameter.name} must be one id, not {len(ids)}; call once for each")
            return ids if parameter.kind == "ids" else ids[0]
    text = _text(parameter, value, bytes_max)
    if parameter.choices:
        return _choice(parameter, text)
    return _moment(parameter, text, now) if parameter.kind in ("moment", "past") else text


def _number(parameter: Parameter, value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value.strip().strip("\"'"))
        except ValueError:
            raise _wrong(parameter, value) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(parameter, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(parameter, value)
    return value


def _whole(parameter: Parameter, value: Any) -> int:
    number = _number(parameter, value)
    if number != int(number):
        raise _wrong(parameter, value)
    return int(number)


def _bounded(parameter: Parameter, value: float) -> float:
    """Within the bounds; more than there can be of a count means all there can be."""
    low, high = parameter.minimum, parameter.maximum
    if low is None or high is None:
        return value
    if value > high and parameter.kind == "integer":
        return int(high)
    if not low <= value <= high:
        span = f"between {low:,} and {high:,}"
        raise InvalidInputError(f"{parameter.name} must be {span}, not {value!r:.40}; {_for_example(parameter)}")
    return value


def _boolean(parameter: Parameter, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().casefold()
    if word not in (*_YES, *_NO):
        raise _wrong(parameter, value)
    return word in _YES


def _text(parameter: Parameter, value: Any, bytes_max: int) -> str:
    """A string. A list of strings is one text of several lines, a number is its digits."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = "\n".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _wrong(parameter, value)
    return inputs.clean_text(value, parameter.name, bytes_max=bytes_max, limit="message_bytes_max")


def _choice(parameter: Parameter, text: str) -> str:
    word = text.strip().casefold()
    word = dict(parameter.meant).get(word, word)
    if word not in parameter.choices:
        raise InvalidInputError(
            f"{parameter.name} is {text.strip()!r:.40}; give one of {', '.join(parameter.choices)}, or leave it out"
        )
    return word


def _moment(parameter: Parameter, text: str, now: Instant) -> str:
    instant = parse_loose(text)
    if instant is None:
        raise InvalidInputError(
            f"{parameter.name} is {text.strip()!r:.40}, which is no full date; give one like 2025-03-01 "
            "or 2025-03-01T09:12:00Z, or leave it out"
        )
    if parameter.kind == "past" and instant > now + _AHEAD_MAX:
        raise InvalidInputError(
            f"{parameter.name} is the date on which it was said, not the date of what it tells of; leave it out"
        )
    return to_iso(instant)


def _ids(parameter: Parameter, value: Any, bytes_max: int) -> list[str]:
    """Ids from one string with commas between them, or from a list of strings."""
    text = _text(parameter, value, bytes_max)
    found = [each.strip(_DRESS) for each in text.replace("\n", ",").split(",")]
    ids = list(dict.fromkeys(each for each in found if each))
    if not ids:
        raise InvalidInputError(f"{parameter.name} is empty; {_for_example(parameter)}")
    return ids


def _wrong(parameter: Parameter, value: Any) -> InvalidInputError:
    """What was given is told by its kind alone, or if it is a short word or a number: a text may be the user's."""
    kinds = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        given = f"{value!r:.40}" if len(str(value)) <= 20 else "a longer value"
    else:
        given = kinds.get(type(value), "something else")
    return InvalidTypeError(
        f"{parameter.name} must be {_TYPES[parameter.type]}, not {given}; {_for_example(parameter)}"
    )


def _for_example(parameter: Parameter) -> str:
    example = parameter.example if parameter.example is not None else parameter.default
    said = f"for example {json.dumps({parameter.name: example}, ensure_ascii=False)}"
    return said if parameter.required else f"{said}, or leave it out"


__all__ = ["Given", "Parameter", "checked", "parameters_schema"]
