"""Prompt and grammar files: read once, checked when read, rendered without surprises.

``NAME.toml`` holds ``system``, ``examples`` (user and assistant turns) and ``user``, whose ``{placeholders}`` are
filled by `render`; ``NAME.gbnf``, where a reply is generated, holds the grammar, whose ``{placeholders}`` are filled
by `grammar` with literals. ``NAME.LANGUAGE.toml`` and ``NAME.LANGUAGE.gbnf`` win where they exist. A filled value is
never read again, so braces in a user's text stay what they are. The version is a hash of the files: it goes into
every decision they caused.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from localmem import gbnf
from localmem.errors import InstallationError, InvalidInputError
from localmem.types import Prompt

FOLDER = Path(__file__).parent
_KEYS = {"version", "description", "system", "examples", "user", "labels"}
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_GRAMMAR_PLACEHOLDER = re.compile(r'(?P<quote>"?)\{(?P<name>[a-z][a-z0-9_]*)\}(?P=quote)')
_FILE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_RESERVED = {"language", "folder"}


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A checked prompt file. ``version``: first 12 hex digits of the sha256 over the files' bytes."""

    name: str
    version: str
    system: str
    examples: tuple[tuple[str, str], ...]  # (user, assistant)
    user: str  # with {placeholders}
    placeholders: frozenset[str]
    grammar: str | None  # with {placeholders}
    grammar_placeholders: frozenset[str]
    labels: Mapping[str, str]  # meaning -> the symbol that is scored; empty where nothing is


def render(name: str, /, *, language: str = "en", folder: Path | None = None, **values: object) -> Prompt:
    """The chat prompt with its placeholders filled. The turns before the last are the same in every call.

    InvalidInputError when a placeholder has no value or a value has no placeholder.
    """
    file = load(name, language, folder)
    _check_names(f"prompt {name}", file.placeholders, values)
    system = (("system", file.system),) if file.system else ()
    shown = tuple(turn for user, assistant in file.examples for turn in (("user", user), ("assistant", assistant)))
    asked = _PLACEHOLDER.sub(lambda found: str(values[found[1]]), file.user)
    return Prompt(name=name, version=file.version, turns=(*system, *shown, ("user", asked)))


def grammar(name: str, /, *, language: str = "en", folder: Path | None = None, **literals: str | Sequence[str]) -> str:
    """The GBNF of a prompt, each placeholder filled with one literal text or a choice between several.

    InvalidInputError when the prompt has no grammar, or literals and placeholders differ.
    """
    file = load(name, language, folder)
    if file.grammar is None:
        raise InvalidInputError(f"prompt {name} has no grammar: there is no file {name}.gbnf")
    _check_names(f"grammar {name}", file.grammar_placeholders, literals)
    return _fill_grammar(file.grammar, literals)


@functools.lru_cache(maxsize=64)
def load(name: str, language: str = "en", folder: Path | None = None) -> PromptFile:
    """Read and check a prompt and its grammar.

    InvalidInputError for a name or language that can't be one; InstallationError for a missing or broken file.
    """
    if not _FILE_NAME.fullmatch(name) or not _LANGUAGE.fullmatch(language):
        raise InvalidInputError(f"a prompt is named like 'extract', a language like 'en'; not {name!r}, {language!r}")
    text_path = _find(folder or FOLDER, name, language, "toml")
    if text_path is None:
        raise InstallationError(f"the prompt file {name}.toml is missing from {folder or FOLDER}; reinstall localmem")
    grammar_path = _find(folder or FOLDER, name, language, "gbnf")
    text_bytes = text_path.read_bytes()
    grammar_bytes = b"" if grammar_path is None else grammar_path.read_bytes()
    try:
        fields = tomllib.loads(text_bytes.decode())
        source = None if grammar_path is None else grammar_bytes.decode()
        return _checked(name, hashlib.sha256(text_bytes + b"\0" + grammar_bytes).hexdigest()[:12], fields, source)
    except (ValueError, KeyError, TypeError) as error:  # TOMLDecodeError, UnicodeDecodeError, InvalidInputError
        raise InstallationError(f"the prompt file {text_path.name} or its grammar is broken: {error}") from error


def _find(folder: Path, name: str, language: str, suffix: str) -> Path | None:
    paths = (folder / f"{name}.{language}.{suffix}", folder / f"{name}.{suffix}")
    return next((path for path in paths if path.is_file()), None)


def _checked(name: str, version: str, fields: Mapping[str, Any], source: str | None) -> PromptFile:
    if unknown := set(fields) - _KEYS:
        raise InvalidInputError(f"unknown keys {sorted(unknown)}; known are {sorted(_KEYS)}")
    system, user = _text(fields.get("system", ""), "system"), _text(fields["user"], "user")
    examples = tuple(_example(example, position) for position, example in enumerate(fields.get("examples", ())))
    labels = {str(meaning): _text(symbol, "labels") for meaning, symbol in fields.get("labels", {}).items()}
    if len(set(labels.values())) != len(labels):
        raise InvalidInputError("two labels have the same symbol")
    placeholders = frozenset(_PLACEHOLDER.findall(user))
    if reserved := placeholders & _RESERVED:
        raise InvalidInputError(f"{sorted(reserved)} can't be placeholders: they are arguments of render()")
    fixed = system, *(text for example in examples for text in example)
    if strays := {stray for text in fixed for stray in _PLACEHOLDER.findall(text)} & placeholders:
        raise InvalidInputError(f"placeholders {sorted(strays)} stand outside of user, where nothing fills them")
    return PromptFile(
        name=name,
        version=version,
        system=system,
        examples=examples,
        user=user,
        placeholders=placeholders,
        grammar=source,
        grammar_placeholders=frozenset() if source is None else _checked_grammar(source),
        labels=MappingProxyType(labels),
    )


def _example(fields: Any, position: int) -> tuple[str, str]:
    if not isinstance(fields, dict) or set(fields) != {"user", "assistant"}:
        raise InvalidInputError(f"examples[{position}] must have exactly the keys user and assistant")
    return _text(fields["user"], f"examples[{position}]"), _text(fields["assistant"], f"examples[{position}]")


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{key} must be text")
    return value


def _checked_grammar(source: str) -> frozenset[str]:
    names = frozenset(found["name"] for found in _grammar_places(source))
    if reserved := names & _RESERVED:
        raise InvalidInputError(f"{sorted(reserved)} can't be placeholders: they are arguments of grammar()")
    gbnf.parse(_fill_grammar(source, dict.fromkeys(names, "x")))
    return names


def _grammar_places(source: str) -> Iterator[re.Match[str]]:
    for line in source.splitlines():
        if not line.lstrip().startswith("#"):
            yield from _GRAMMAR_PLACEHOLDER.finditer(line)


def _fill_grammar(source: str, literals: Mapping[str, str | Sequence[str]]) -> str:
    def filled(found: re.Match[str]) -> str:
        value = literals.get(found["name"])
        if value is None:  # only in a comment
            return found[0]
        return gbnf.literal(value) if isinstance(value, str) else gbnf.choice(value)

    return _GRAMMAR_PLACEHOLDER.sub(filled, source)


def _check_names(what: str, wanted: frozenset[str], given: Mapping[str, object]) -> None:
    if missing := wanted - set(given):
        raise InvalidInputError(f"{what} needs values for {sorted(missing)}")
    if unknown := set(given) - wanted:
        raise InvalidInputError(f"{what} has no placeholders {sorted(unknown)}; it has {sorted(wanted)}")
