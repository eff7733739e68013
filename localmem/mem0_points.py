"""Points of Qdrant's local mode, which are pickles, read without unpickling: nothing in them is ever called.

A pickle is a program. This reads the few instructions that a point is written with (pydantic's state of a PointStruct:
dicts, lists, texts, numbers) as data; a name is noted, not looked up, and whatever else is met is refused. Work and
memory are bounded by the size of the bytes, and what is made of them by NODES_MAX and DEPTH_MAX.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from localmem.errors import InvalidInputError
from localmem.types import JSON

NODES_MAX = 100_000  # of one payload, once it is written out: a pickle can name a part many times
DEPTH_MAX = 50
_FLOATS = re.compile(rb"(?:G.{8})+", re.DOTALL)  # a vector is one long run of these
_MARK = object()

_MODELS = "qdrant_client.http.models.models"
_NAMES = {
    (_MODELS, "PointStruct"),
    (_MODELS, "SparseVector"),
    ("builtins", "set"),
    ("__builtin__", "set"),  # as protocol 2 has it
    *(  # a vector that is an array
        (module, name)
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric")
        for name in ("ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar")
    ),
}


class RefusedPointError(InvalidInputError):
    """Bytes that are no point as Qdrant writes it."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point's id and payload; the vector is not kept."""

    id: str
    payload: dict[str, JSON]


@dataclass(slots=True)
class _Named:
    """What would be an object of this name, and the state that it would be given."""

    module: str
    name: str
    state: Any = None


def read_point(data: bytes) -> Point:
    """The point in a pickle. RefusedPointError, which says why, for anything else."""
    try:
        found = _Reader(data).run()
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, RefusedPointError):
            raise
        raise RefusedPointError(f"a point is cut off or damaged ({type(error).__name__})") from None
    if not isinstance(found, _Named) or (found.module, found.name) != (_MODELS, "PointStruct"):
        raise RefusedPointError("a point is no PointStruct")
    fields = found.state.get("__dict__") if isinstance(found.state, dict) else None
    if not isinstance(fields, dict):
        raise RefusedPointError("a point has no fields")
    identity, payload = fields.get("id"), fields.get("payload")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise RefusedPointError("a point has no id")
    plain = _plain(payload if payload is not None else {}, [NODES_MAX], 0)
    if not isinstance(plain, dict):
        raise RefusedPointError("a point's payload is no dict")
    return Point(str(identity), plain)


def _plain(value: Any, budget: list[int], depth: int) -> JSON:
    """The value as JSON has it; RefusedPointError for what it has not, or beyond the limits."""
    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH_MAX:
        raise RefusedPointError("a point's payload is too large or nested too deep")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise RefusedPointError("a point's payload has keys that are no text")
        return {key: _plain(each, budget, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, budget, depth + 1) for each in value]
    raise RefusedPointError("a point's payload holds more than texts, numbers, lists and dicts")


class _Reader:
    """The stack of a pickle, and the instructions that a point needs."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle leaves when it stops."""
        while True:
            floats = _FLOATS.match(self._data, self._at)
            if floats:
                count = (floats.end() - self._at) // 9
                self._stack += struct.unpack(">" + "xd" * count, floats[0])
                self._at = floats.end()
            code = self._take(1)[0]
            if code == ord("."):
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise RefusedPointError(f"a point holds the pickle instruction {code:#04x}, which no point needs")
            step(self)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise IndexError(count)
        taken, self._at = self._data[self._at : end], end
        return taken

    def _number(self, form: str) -> int:
        (number,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(number)

    def _text(self, form: str) -> None:
        self._stack.append(self._take(self._number(form)).decode("utf-8", "surrogatepass"))

    def _bytes(self, form: str) -> None:
        self._stack.append(_Named("builtins", "bytes", self._take(self._number(form))[:0]))

    def _line(self) -> str:
        end = self._data.index(b"\n", self._at)
        text = self._data[self._at : end].decode()
        self._at = end + 1
        return text

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._take(1)[0]), "little", signed=True))

    def _since_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                since = self._stack[place + 1 :]
                del self._stack[place:]
                return since
        raise IndexError("no mark")

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError(count)
        parts = tuple(self._stack[len(self._stack) - count :])
        self._stack[len(self._stack) - count :] = [parts]

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _extend(self, parts: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise TypeError("no list")
        self._stack[-1] += parts

    def _set_pair(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_pairs([key, value])

    def _set_pairs(self, parts: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(parts) % 2:
            raise TypeError("no dict")
        for key, value in zip(parts[::2], parts[1::2], strict=True):
            if not isinstance(key, str | int | float | None):
                raise TypeError("a key")
            target[key] = value

    def _drop(self, parts: list[Any]) -> None:
        if not isinstance(self._stack[-1], _Named):
            raise TypeError("no set")

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):  # to hash or show anything deeper could overflow
            raise TypeError("no name")
        if (module, name) not in _NAMES:
            raise RefusedPointError(f"a point names {module[:60]}.{name[:60]}, which no point needs")
        self._stack.append(_Named(module, name))

    def _stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _make(self) -> None:
        _, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, _Named):
            raise TypeError("no name")
        self._stack.append(_Named(kind.module, kind.name))

    def _build(self) -> None:
        state, made = self._stack.pop(), self._stack[-1]
        if not isinstance(made, _Named):
            raise TypeError("no object")
        made.state = state

    def _keep(self, place: int) -> None:
        self._memo[place] = self._stack[-1]


def _steps() -> dict[int, Callable[[_Reader], Any]]:
    """What each instruction does, by its byte; PEP 3154 and pickletools name them."""

    def push(made: Callable[[], Any]) -> Callable[[_Reader], Any]:
        return lambda reader: reader._stack.append(made())

    def number(form: str) -> Callable[[_Reader], Any]:
        return lambda reader: reader._stack.append(reader._number(form))

    return {
        0x80: lambda r: r._take(1),  # PROTO
        0x95: lambda r: r._take(8),  # FRAME
        ord("("): push(lambda: _MARK),
        ord("N"): push(lambda: None),
        0x88: push(lambda: True),
        0x89: push(lambda: False),
        ord("K"): number("<B"),
        ord("M"): number("<H"),
        ord("J"): number("<i"),
        0x8A: lambda r: r._long(),
        0x8C: lambda r: r._text("<B"),
        ord("X"): lambda r: r._text("<I"),
        0x8D: lambda r: r._text("<Q"),
        ord("C"): lambda r: r._bytes("<B"),
        ord("B"): lambda r: r._bytes("<I"),
        0x8E: lambda r: r._bytes("<Q"),
        ord("]"): push(list),
        ord("}"): push(dict),
        ord(")"): push(tuple),
        0x8F: push(lambda: _Named("builtins", "set")),
        ord("a"): lambda r: r._append(),
        ord("e"): lambda r: r._extend(r._since_mark()),
        ord("s"): lambda r: r._set_pair(),
        ord("u"): lambda r: r._set_pairs(r._since_mark()),
        0x90: lambda r: r._drop(r._since_mark()),  # ADDITEMS
        0x85: lambda r: r._tuple(1),
        0x86: lambda r: r._tuple(2),
        0x87: lambda r: r._tuple(3),
        ord("t"): lambda r: r._stack.append(tuple(r._since_mark())),
        ord("q"): lambda r: r._keep(r._number("<B")),
        ord("r"): lambda r: r._keep(r._number("<I")),
        0x94: lambda r: r._keep(len(r._memo)),
        ord("h"): lambda r: r._stack.append(r._memo[r._number("<B")]),
        ord("j"): lambda r: r._stack.append(r._memo[r._number("<I")]),
        ord("c"): lambda r: r._name(r._line(), r._line()),
        0x93: lambda r: r._stack_name(),
        0x81: lambda r: r._make(),  # NEWOBJ
        ord("R"): lambda r: r._make(),  # REDUCE: of the names above, and nothing is called
        ord("b"): lambda r: r._build(),
    }


_STEPS = _steps()
