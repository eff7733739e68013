"""mem0's configuration: what of it means something here, and where the file goes.

``path`` (localmem's own) names the file. Else it is ``localmem.db`` in the folder of ``vector_store.config.path``, else
beside ``history_db_path``, else ``mem0.db`` in the user's data folder: ``localmem.db`` there is the command line's and
the MCP server's, which ``reset()``, with which mem0's tutorials begin, must not empty. A ``collection_name`` other than
mem0's default has a file of its own, ``localmem-NAME.db``: what mem0 kept apart stays apart. An ``llm`` on this machine
becomes the generator.
The embedder and the rest are localmem's; a warning names the sections that are not used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localmem import inputs
from localmem.compat.mem0.exceptions import ConfigurationError
from localmem.config import STORE_NAME, settings

COLLECTION_DEFAULT = "mem0"
FILE_AT_HOME = "mem0.db"  # in the data folder, beside localmem's own
LOCAL_SERVERS = {
    "ollama": "http://localhost:11434",
    "lmstudio": "http://localhost:1234",
    "vllm": "http://localhost:8000",
}
_LOOPBACK = re.compile(r"https?://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?(/.*)?", re.IGNORECASE)
_SECTIONS = ("vector_store", "llm", "embedder", "graph_store", "reranker")
_ON_A_DISK = ("qdrant", "chroma", "faiss")  # vector stores that mem0 keeps in a folder unless a server is named
_OF_A_SERVER = frozenset({"host", "port", "url", "api_key", "client", "tenant"})
_PROMPTS = ("custom_instructions", "custom_prompt", "custom_fact_extraction_prompt", "custom_update_memory_prompt")


class Section:
    """One of mem0's sections: ``provider`` and ``config``, a dict."""

    def __init__(self, provider: str | None = None, config: Any = None, **more: Any) -> None:
        self.provider = provider
        self.config = {**_plain(config), **more}

    def __repr__(self) -> str:  # no values: there may be keys among them
        return f"{type(self).__name__}(provider={self.provider!r}, config=<{', '.join(sorted(self.config))}>)"


class VectorStoreConfig(Section):
    """Section ``vector_store``."""


class LlmConfig(Section):
    """Section ``llm``."""


class EmbedderConfig(Section):
    """Section ``embedder``."""


class GraphStoreConfig(Section):
    """Section ``graph_store``."""


class RerankerConfig(Section):
    """Section ``reranker``."""


_KINDS = (VectorStoreConfig, LlmConfig, EmbedderConfig, GraphStoreConfig, RerankerConfig)


class MemoryConfig:
    """mem0's MemoryConfig: its sections, ``history_db_path``, ``version``, prompts, and localmem's own arguments."""

    def __init__(self, **given: Any) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}
        for name, kind in zip(_SECTIONS, _KINDS, strict=True):
            setattr(self, name, _section(kind, name, given.get(name)))
        self.history_db_path: str | None = given.get("history_db_path")
        self.version: str = given.get("version") or "v1.1"

    def __repr__(self) -> str:
        return f"MemoryConfig({', '.join(sorted(self.given))})"

    def options(self, instead: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """localmem.Memory's arguments; those of ``instead`` count before the configuration's. Warns of the sections
        that are not used."""
        own = {
            n: v for n, v in self.given.items() if n in inputs.OWN_OPTIONS and not (n in _SECTIONS and _is_section(v))
        }
        chosen = {**inputs.options(own), **(instead or {})}
        unused = [name for name in ("embedder", "reranker") if _is_section(self.given.get(name))]
        if chosen.get("path") is None:
            chosen["path"] = self.place()
        server = self.server()
        if server is not None and "generator" not in chosen:
            chosen["generator"] = server
        if server is None and "llm" in self.given:
            unused.append("llm")
        if "vector_store" in self.given and _names_a_server(self.section("vector_store")):
            unused.append("vector_store")
        unused += [name for name in ("graph_store", *_PROMPTS) if name in self.given]
        if unused:
            warnings.warn(
                f"localmem keeps everything in one local file, with its own models; not used of the configuration: "
                f"{', '.join(unused)}",
                stacklevel=4,
            )
        return chosen

    def section(self, name: str) -> Section:
        """One of the sections, an empty one where it was not given."""
        found: Section = getattr(self, name)
        return found

    def place(self) -> Path | str:
        """The file, or ":memory:". Makes the folder that mem0 would have made."""
        given = self.section("vector_store").config
        name = given.get("collection_name") or COLLECTION_DEFAULT
        if not isinstance(name, str) or not re.fullmatch(r"[\w .@+-]{1,100}", name) or name.startswith("."):
            raise ConfigurationError(
                f"vector_store.config.collection_name {name!r:.60} can't be part of a file's name", "CONFIG_002"
            )
        file = STORE_NAME if name == COLLECTION_DEFAULT else f"localmem-{name}.db"
        path = _path_of(given)
        if path == ":memory:":
            return path
        if path:
            folder = Path(path).expanduser()
        elif self.history_db_path and self.history_db_path != ":memory:":
            folder = Path(self.history_db_path).expanduser().parent
        else:
            folder = settings().home
        if file == STORE_NAME and folder.absolute() == settings().home.absolute():
            file = FILE_AT_HOME
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / file

    def server(self) -> str | None:
        """The model server of section ``llm`` as a generator, None unless it is on this machine."""
        section = self.section("llm")
        urls = [value for name, value in section.config.items() if name.endswith("base_url") and isinstance(value, str)]
        url = urls[0] if urls else LOCAL_SERVERS.get(section.provider or "")
        if url is None or not _LOOPBACK.fullmatch(url):
            return None
        base = url.rstrip("/")
        model = section.config.get("model")
        return f"{base if base.endswith('/v1') else base + '/v1'}{f'#{model}' if model else ''}"


def config_of(given: Any) -> MemoryConfig:
    """A MemoryConfig from what mem0's users hand in: one, a dict, None. ConfigurationError for anything else."""
    if isinstance(given, MemoryConfig):
        return given
    if given is None:
        return MemoryConfig()
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigurationError(
            f"the configuration must be a dict or a MemoryConfig, not {type(given).__name__}", "CONFIG_002"
        )
    return MemoryConfig(**given)


def _names_a_server(store: Section) -> bool:
    """Whether mem0 would have kept its vectors elsewhere, or no place of them is named at all."""
    named = {name for name, value in store.config.items() if value is not None}
    elsewhere = store.provider not in (None, *_ON_A_DISK) and "path" not in named
    return elsewhere or bool(named & _OF_A_SERVER) or not named & {"path", "collection_name"}


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping | Section)


def _section(kind: type[Section], name: str, given: Any) -> Section:
    if isinstance(given, Section):
        return given
    if given is None or not isinstance(given, Mapping):
        if given is not None and name not in inputs.OWN_OPTIONS:  # an embedder or a reranker may be an object of ours
            raise ConfigurationError(
                f"{name} must be a dict with provider and config, not {type(given).__name__}", "CONFIG_002"
            )
        return kind()
    return kind(given.get("provider"), given.get("config"))


def _plain(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return dict(config)
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def _path_of(config: Mapping[str, Any]) -> str | None:
    path = config.get("path")
    return str(path) if path else None
