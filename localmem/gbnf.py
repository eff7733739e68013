"""GBNF, the grammar language of llama.cpp: parse, escape, and tell whether a text matches. Pure.

llama.cpp enforces a grammar while it generates; servers may ignore it, and a reply cut at the token limit may fall
outside it. So every reply that was not finished under the grammar is matched here again. The syntax is what llama.cpp
accepts (literals, character classes, ``.``, groups, ``|``, ``* + ? {m,n}``, rule names, comments), without its token
references, and left recursion is refused as it is there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from localmem.errors import InvalidInputError

REPETITIONS_MAX = 2000  # llama.cpp's own bound on {m,n}
TEXT_CHARS_MAX = 20_000  # a longer text is no reply of ours: it does not match


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """The characters of a quoted string, in order."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Chars:
    """One character in (or, negated, outside) the code point ranges, ends included."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def holds(self, char: str) -> bool:
        point = ord(char)
        return any(low <= point <= high for low, high in self.ranges) != self.negated


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """``part`` at least ``low`` and at most ``high`` times; None: without end."""

    part: Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A reference to another rule by name."""

    name: str


Node: TypeAlias = Literal | Chars | Sequence | Choice | Repeat | Rule


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A parsed grammar: every rule named in it exists, ``root`` among them, and none is left-recursive."""

    rules: Mapping[str, Node]

    def matches(self, text: str) -> bool:
        """Whether the whole text is one of the grammar's sentences."""
        if len(text) > TEXT_CHARS_MAX:
            return False
        try:
            return len(text) in _Matcher(self.rules, text).ends(self.rules["root"], 0)
        except RecursionError:  # thousands of nested brackets: nothing a prompt of ours asks for
            return False

    def whole_lines(self, text: str) -> str | None:
        """The longest run of complete lines at the start of the text that matches; None when there is none.

        For a reply cut in the middle: what stands after the last newline is not looked at.
        """
        lines = text.split("\n")[:-1]
        for count in range(len(lines), 0, -1):
            joined = "\n".join(lines[:count])
            for candidate in (joined + "\n", joined):
                if joined and self.matches(candidate):
                    return candidate
        return None


@functools.lru_cache(maxsize=64)
def parse(source: str) -> Grammar:
    """The grammar of a GBNF text. InvalidInputError names the line and what is wrong with it."""
    rules = _Parser(source).rules()
    if "root" not in rules:
        raise InvalidInputError("the grammar has no rule named root")
    for name, node in rules.items():
        for used in _references(node):
            if used not in rules:
                raise InvalidInputError(f"the grammar's rule {name} uses {used}, which is not defined")
    _refuse_left_recursion(rules)
    return Grammar(rules)


def literal(text: str) -> str:
    """The GBNF source of exactly this text, quotes included."""
    return '"' + "".join(_escape(char) for char in text) + '"'


def choice(texts: Iterable[str]) -> str:
    """The GBNF source of exactly one of these texts, as a group. InvalidInputError when there is none."""
    branches = [literal(text) for text in texts]
    if not branches:
        raise InvalidInputError("a grammar choice needs at least one text")
    return "(" + " | ".join(branches) + ")"


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char in _ESCAPES_OUT:
        return _ESCAPES_OUT[char]
    if ord(char) < 0x20 or ord(char) == 0x7F:
        return f"\\x{ord(char):02X}"
    return char


_ESCAPES_OUT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPES_IN = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_NAME = re.compile(r"[A-Za-z0-9-]+")
_BOUNDS = re.compile(r"\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}")


class _Parser:
    """Recursive descent over one source text; ``at`` is the next character."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(newlines=True)
        while self.at < len(self.source):
            name = self._name()
            if name in rules:
                raise self._error(f"rule {name} is defined twice")
            self._skip(newlines=False)
            if not self.source.startswith("::=", self.at):
                raise self._error(f"expected ::= after the rule name {name}")
            self.at += 3
            self._skip(newlines=True)
            rules[name] = self._choice(nested=False)
            if self.at < len(self.source) and self.source[self.at] not in "\r\n":
                raise self._error("expected the end of the line")
            self._skip(newlines=True)
        return rules

    def _choice(self, *, nested: bool) -> Node:
        branches = [self._sequence(nested=nested)]
        while self._peek() == "|":
            self.at += 1
            self._skip(newlines=True)
            branches.append(self._sequence(nested=nested))
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self, *, nested: bool) -> Node:
        parts: list[Node] = []
        while (char := self._peek()) and char not in "|)\r\n":
            part = self._part()
            self._skip(newlines=nested)
            parts.append(self._repeated(part, nested=nested))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _part(self) -> Node:
        char = self._peek()
        if char == '"':
            return self._literal()
        if char == "[":
            return self._chars()
        if char == ".":
            self.at += 1
            return Chars((), negated=True)
        if char == "(":
            self.at += 1
            self._skip(newlines=True)
            inside = self._choice(nested=True)
            if self._peek() != ")":
                raise self._error("expected ) at the end of the group")
            self.at += 1
            return inside
        return Rule(self._name())

    def _repeated(self, part: Node, *, nested: bool) -> Node:
        while (char := self._peek()) and char in "*+?{":
            if char == "{":
                low, high = self._bounds()
            else:
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
                self.at += 1
            part = Repeat(part, low, high)
            self._skip(newlines=nested)
        return part

    def _bounds(self) -> tuple[int, int | None]:
        found = _BOUNDS.match(self.source, self.at)
        if found is None:
            raise self._error("expected {m}, {m,} or {m,n}")
        low = int(found[1])
        high = low if found[2] is None else int(found[3]) if found[3] else None
        if max(low, high or 0) > REPETITIONS_MAX or (high is not None and high < low):
            raise self._error(f"repetition bounds must rise and stay within {REPETITIONS_MAX}")
        self.at = found.end()
        return low, high

    def _literal(self) -> Node:
        self.at += 1
        text = ""
        while self._peek() != '"':
            text += self._char("a literal")
        self.at += 1
        return Literal(text)

    def _chars(self) -> Node:
        self.at += 1
        negated = self._peek() == "^"
        self.at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            low = high = ord(self._char("a character class"))
            if self._peek() == "-" and self.source[self.at + 1 : self.at + 2] not in ("", "]"):
                self.at += 1
                high = ord(self._char("a character class"))
            if high < low:
                raise self._error("a character range must rise")
            ranges.append((low, high))
        self.at += 1
        return Chars(tuple(ranges), negated)

    def _char(self, where: str) -> str:
        char = self._peek()
        if not char:
            raise self._error(f"{where} does not end")
        self.at += 1
        if char != "\\":
            return char
        code = self._peek()
        self.at += 1
        if code in _ESCAPES_IN and code:
            return _ESCAPES_IN[code]
        digits = self.source[self.at : self.at + _HEX_DIGITS.get(code, 0)]
        if not digits or not re.fullmatch(rf"[0-9A-Fa-f]{{{_HEX_DIGITS[code]}}}", digits) or int(digits, 16) > 0x10FFFF:
            raise self._error(f"unknown escape \\{code} in {where}")
        self.at += len(digits)
        return chr(int(digits, 16))

    def _name(self) -> str:
        found = _NAME.match(self.source, self.at)
        if found is None:
            raise self._error("expected a rule name (letters, digits and hyphens), a literal, a class or a group")
        self.at = found.end()
        return found[0]

    def _peek(self) -> str:
        return self.source[self.at : self.at + 1]

    def _skip(self, *, newlines: bool) -> None:
        blank = " \t\r\n" if newlines else " \t"
        while (char := self._peek()) and (char in blank or char == "#"):
            if char == "#":
                end = self.source.find("\n", self.at)
                self.at = len(self.source) if end < 0 else end
            else:
                self.at += 1

    def _error(self, what: str) -> InvalidInputError:
        return InvalidInputError(f"grammar line {self.source.count(chr(10), 0, self.at) + 1}: {what}")


class _Matcher:
    """All places where a part can end, for a part and a start, each computed once."""

    def __init__(self, rules: Mapping[str, Node], text: str) -> None:
        self.rules = rules
        self.text = text
        self.known: dict[tuple[int, int], frozenset[int]] = {}

    def ends(self, node: Node, start: int) -> frozenset[int]:
        key = (id(node), start)
        if key not in self.known:
            self.known[key] = frozenset(self._ends(node, start))
        return self.known[key]

    def _ends(self, node: Node, start: int) -> Iterable[int]:
        match node:
            case Literal(text):
                return (start + len(text),) if self.text.startswith(text, start) else ()
            case Chars():
                return (start + 1,) if start < len(self.text) and node.holds(self.text[start]) else ()
            case Rule(name):
                return self.ends(self.rules[name], start)
            case Choice(branches):
                return {end for branch in branches for end in self.ends(branch, start)}
            case Sequence(parts):
                reached = {start}
                for part in parts:
                    reached = {end for place in reached for end in self.ends(part, place)}
                return reached
            case Repeat():
                return self._repeat_ends(node, start)

    def _repeat_ends(self, node: Repeat, start: int) -> set[int]:
        reached = {start}
        for _ in range(node.low):
            reached = {end for place in reached for end in self.ends(node.part, place)}
        found, fresh, rounds = set(reached), reached, node.low
        while fresh and (node.high is None or rounds < node.high):
            fresh = {end for place in fresh for end in self.ends(node.part, place)} - found
            found |= fresh
            rounds += 1
        return found


def _references(node: Node) -> Iterable[str]:
    match node:
        case Rule(name):
            yield name
        case Choice(parts) | Sequence(parts):
            for part in parts:
                yield from _references(part)
        case Repeat(part):
            yield from _references(part)


def _refuse_left_recursion(rules: Mapping[str, Node]) -> None:
    """Raise when a rule can reach itself before it has read a character: llama.cpp refuses it, matching would hang."""
    empty: set[str] = set()
    while (grown := {name for name, node in rules.items() if _can_be_empty(node, empty)}) != empty:
        empty = grown
    first = {name: set(_leftmost(node, empty)) for name, node in rules.items()}
    for name in rules:
        seen: set[str] = set()
        todo = [name]
        while todo:
            for reached in first[todo.pop()] - seen:
                if reached == name:
                    raise InvalidInputError(f"the grammar's rule {name} is left-recursive; put the recursion last")
                seen.add(reached)
                todo.append(reached)


def _can_be_empty(node: Node, empty: set[str]) -> bool:
    match node:
        case Literal(text):
            return not text
        case Chars():
            return False
        case Rule(name):
            return name in empty
        case Choice(branches):
            return any(_can_be_empty(branch, empty) for branch in branches)
        case Sequence(parts):
            return all(_can_be_empty(part, empty) for part in parts)
        case Repeat(part, low):
            return low == 0 or _can_be_empty(part, empty)


def _leftmost(node: Node, empty: set[str]) -> Iterable[str]:
    match node:
        case Rule(name):
            yield name
        case Choice(branches):
            for branch in branches:
                yield from _leftmost(branch, empty)
        case Sequence(parts):
            for part in parts:
                yield from _leftmost(part, empty)
                if not _can_be_empty(part, empty):
                    return
        case Repeat(part):
            yield from _leftmost(part, empty)
