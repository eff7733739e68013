"""localmem.compat.mem0 where mem0 itself can't be asked: configuration, files, dialects, errors, what lies beneath.

The calls themselves are compared with the real packages in test_mem0_peers.py.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import following_scripts

import localmem
from localmem import errors
from localmem.compat.mem0 import AsyncMemory, AsyncMemoryClient, Memory, MemoryClient, MemoryConfig, exceptions
from localmem.compat.mem0.configs.base import LlmConfig, VectorStoreConfig
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}
IN_ANN = {"filters": {"user_id": "ann"}}
Opener = Callable[..., Memory]


@pytest.fixture
def opened(tmp_path: Path, clock: FixedClock) -> Iterator[Opener]:
    """Open a compat Memory on a file of the test's folder; afterwards it must be sound."""
    made: list[Memory] = []

    def opener(config: Any = None, **options: Any) -> Memory:
        given = {"embedder": HashEmbedder(), "generator": ScriptedGenerator(), "clock": clock, **options}
        if config is None:
            given.setdefault("path", tmp_path / "localmem.db")
        memory = Memory(config, **given)
        made.append(memory)
        return memory

    with following_scripts():
        yield opener
    for memory in made:
        if not memory.local._closed:
            assert memory.local.check() == []
        memory.close()


def texts(found: dict[str, Any]) -> list[str]:
    return sorted(each["memory"] for each in found["results"])


# -- where the file goes


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder."""
    monkeypatch.setenv("LOCALMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("sections", "file"),
    [
        ({}, "home/mem0.db"),
        ({"vector_store": {"provider": "qdrant", "config": {"path": "{}/q"}}}, "q/localmem.db"),
        ({"history_db_path": "{}/h/history.db"}, "h/localmem.db"),
        ({"history_db_path": ":memory:"}, "home/mem0.db"),
        ({"history_db_path": "{}/home/history.db"}, "home/mem0.db"),
        ({"vector_store": {"config": {"path": "{}/home"}}}, "home/mem0.db"),
        (
            {"vector_store": {"config": {"path": "{}/q", "collection_name": "notes"}}, "history_db_path": "{}/h.db"},
            "q/localmem-notes.db",
        ),
        ({"vector_store": {"config": {"collection_name": "mem0"}}}, "home/mem0.db"),
        ({"vector_store": {"config": {"collection_name": "notes"}}}, "home/localmem-notes.db"),
        ({"path": "{}/own.db", "vector_store": {"config": {"path": "{}/q"}}}, "own.db"),
    ],
)  # fmt: skip
def test_the_file_lies_where_mem0s_would(tmp_path: Path, home: Path, sections: dict[str, Any], file: str) -> None:
    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(each) for name, each in value.items()}
        return value.replace("{}", str(tmp_path)) if isinstance(value, str) else value

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Memory.from_config(placed(sections), embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
            memory.add("tea", infer=False, **ANN)
            assert memory.local.path == tmp_path / file
    assert (tmp_path / file).is_file()


def test_reset_leaves_the_command_lines_file_alone(home: Path) -> None:
    models: dict[str, Any] = {"embedder": HashEmbedder(), "generator": ScriptedGenerator()}
    with localmem.Memory(**models) as mine:
        mine.add("I like tea", infer=False, **ANN)
        with Memory(**models) as tutorial:
            assert tutorial.local.path == home / "mem0.db"
            assert texts(tutorial.get_all(**ANN)) == []
            tutorial.add("I like milk", infer=False, **ANN)
            tutorial.reset()
            assert texts(tutorial.get_all(**ANN)) == []
        assert texts(mine.get_all(**ANN)) == ["I like tea"]
    with Memory(path=None, **models) as same:
        assert same.local.path == home / "mem0.db"


def test_a_path_of_ones_own_makes_no_data_folder(home: Path, tmp_path: Path) -> None:
    with Memory(path=tmp_path / "own.db", embedder=HashEmbedder()) as memory:
        assert memory.local.path == tmp_path / "own.db"
    assert not home.exists()


def test_in_memory(opened: Opener) -> None:
    memory = opened({"vector_store": {"config": {"path": ":memory:"}}})
    assert memory.local.path is None
    memory.add("tea", infer=False, **ANN)
    assert texts(memory.get_all(**ANN)) == ["tea"]


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", 7, "a\nb"])
def test_a_collection_that_is_no_file_name(tmp_path: Path, home: Path, name: Any) -> None:
    config = {"vector_store": {"config": {"path": str(tmp_path / "q"), "collection_name": name}}}
    if name == "":  # none
        Memory(config, embedder=HashEmbedder()).close()
        return
    with pytest.raises(exceptions.ConfigurationError, match="collection_name") as caught:
        Memory(config, embedder=HashEmbedder())
    assert isinstance(caught.value, ValueError)


def test_memories_of_mem0_in_the_folder_are_told_of_once(tmp_path: Path, opened: Opener) -> None:
    (tmp_path / "q" / "collection").mkdir(parents=True)
    config = {"vector_store": {"provider": "qdrant", "config": {"path": str(tmp_path / "q")}}}
    with pytest.warns(UserWarning, match=f"localmem import mem0 {tmp_path / 'q'} --file"):
        opened(config).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(config)


# -- the models


@pytest.mark.parametrize(
    ("section", "server"),
    [
        ({"provider": "ollama"}, "http://localhost:11434/v1"),
        ({"provider": "ollama", "config": {"model": "qwen3:4b"}}, "http://localhost:11434/v1#qwen3:4b"),
        (
            {"provider": "ollama", "config": {"model": "m", "ollama_base_url": "http://127.0.0.1:1"}},
            "http://127.0.0.1:1/v1#m",
        ),
        ({"provider": "openai", "config": {"openai_base_url": "http://[::1]:8080/v1/"}}, "http://[::1]:8080/v1"),
        ({"provider": "lmstudio", "config": {}}, "http://localhost:1234/v1"),
    ],
)  # fmt: skip
def test_a_model_on_this_machine_is_used(opened: Opener, tmp_path: Path, section: Any, server: str) -> None:
    memory = opened({"llm": section, "path": tmp_path / "m.db"}, generator=None)
    assert memory.config.options()["generator"] == server


@pytest.mark.parametrize(
    "section",
    [
        {"provider": "openai", "config": {"model": "gpt-4o", "api_key": "sk-secret"}},
        {"provider": "openai", "config": {"openai_base_url": "https://127.0.0.1.example.com/v1"}},
        {"provider": "ollama", "config": {"ollama_base_url": "http://10.0.0.7:11434"}},
        {"provider": "openai", "config": {"openai_base_url": "http://localhost@example.com/v1"}},
    ],
)
def test_a_model_elsewhere_is_not(opened: Opener, tmp_path: Path, section: Any) -> None:
    with pytest.warns(UserWarning, match="not used of the configuration: llm$"):
        memory = opened({"llm": section, "path": tmp_path / "m.db"})
    assert "sk-secret" not in f"{memory.config!r}{memory.config.llm!r}"
    with pytest.warns(UserWarning, match="llm"):
        assert "generator" not in memory.config.options()


def test_what_is_not_used_is_told_in_one_warning_without_its_values(opened: Opener, tmp_path: Path) -> None:
    config = {
        "version": "v1.1",
        "path": tmp_path / "m.db",
        "vector_store": {"provider": "qdrant", "config": {"host": "db.example.com", "api_key": "sk-secret"}},
        "embedder": {"provider": "openai", "config": {"model": "text-embedding-3-small"}},
        "reranker": {"provider": "cohere", "config": {"api_key": "sk-secret"}},
        "graph_store": {"provider": "neo4j", "config": {"url": "neo4j://x", "password": "sk-secret"}},
        "custom_instructions": "Only food",
    }
    with pytest.warns(UserWarning, match="not used") as heard:
        opened(config)
    (warning,) = heard
    assert str(warning.message).endswith(
        "not used of the configuration: embedder, reranker, vector_store, graph_store, custom_instructions"
    )


@pytest.mark.parametrize(
    "store",
    [
        {"provider": "qdrant", "config": {"host": "localhost", "port": 6333, "collection_name": "chat"}},
        {"provider": "qdrant", "config": {"url": "https://q.example.com", "api_key": "sk-secret", "path": "{}"}},
        {"provider": "pgvector", "config": {"collection_name": "chat"}},
        {"provider": "milvus", "config": {"url": "./milvus.db", "collection_name": "chat"}},
        {"config": {"host": "localhost", "collection_name": "chat"}},
        {"provider": "qdrant"},
    ],
)
def test_a_vector_stores_server_is_told_of(opened: Opener, home: Path, tmp_path: Path, store: Any) -> None:
    if "path" in store.get("config", {}):
        store["config"]["path"] = str(tmp_path / "q")
    with pytest.warns(UserWarning, match="not used of the configuration: vector_store$"):
        opened({"vector_store": store})


@pytest.mark.parametrize("provider", ["qdrant", "chroma", "faiss", "localmem"])
def test_a_vector_store_on_the_disk_is_not(opened: Opener, home: Path, tmp_path: Path, provider: str) -> None:
    nothing = {"host": None, "port": None, "embedding_model_dims": 1536, "on_disk": True}
    config = {"path": str(tmp_path / "q"), "collection_name": "chat", **nothing}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened({"vector_store": {"provider": provider, "config": config}})


def test_classes_of_mem0s_configuration(tmp_path: Path, opened: Opener) -> None:
    store = VectorStoreConfig(provider="qdrant", config={"path": str(tmp_path / "q")})
    config = MemoryConfig(vector_store=store, llm=LlmConfig(provider="ollama", config={"model": "m"}), version="v1.0")
    memory = opened(config)
    assert (memory.local.path, memory.api_version) == (tmp_path / "q" / "localmem.db", "v1.0")
    assert memory.config.section("llm").config == {"model": "m"}


@pytest.mark.parametrize("config", ["path", 3, ["x"], {1: 2}, {"vector_store": "qdrant"}, {"version": "9"}])
def test_a_configuration_that_is_none(home: Path, config: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - it is also mem0's own
        Memory(config, embedder=HashEmbedder())


@pytest.mark.parametrize("options", [{"strict": "3.x"}, {"version": "nonsense"}, {"strict": 2}, {"strict": "v1.1"}])
def test_a_dialect_that_is_none(home: Path, options: Any) -> None:
    with pytest.raises(exceptions.ValidationError, match=r"'1\.x' or '2\.x'"):
        Memory(embedder=HashEmbedder(), **options)


def test_with_mem0s_relations(tmp_path: Path, opened: Opener) -> None:
    graph = {"graph_store": {"provider": "kuzu", "config": {"db": ":memory:"}}, "path": tmp_path / "m.db"}
    with pytest.warns(UserWarning, match="graph_store"):
        memory = opened(graph)
    assert memory.add("tea", infer=False, **ANN)["relations"] == {"deleted_entities": [], "added_entities": []}
    assert memory.search("tea", **ANN)["relations"] == []
    assert memory.get_all(**ANN)["relations"] == []


# -- dialects


def many(memory: Memory, count: int = 120) -> None:
    memory.local.add_many([f"note {n}" for n in range(count)], infer=False, **ANN)


def test_each_call_has_the_defaults_of_the_dialect_it_is_made_in(opened: Opener) -> None:
    memory = opened()
    many(memory)
    assert len(memory.get_all(**ANN)["results"]) == 100
    assert len(memory.get_all(**IN_ANN)["results"]) == 20
    assert len(memory.search("note", **ANN)["results"]) == 100
    assert len(memory.search("note", **IN_ANN)["results"]) == 20
    assert len(memory.get_all(limit=7, **IN_ANN)["results"]) == 7
    assert len(memory.get_all(top_k=7, **ANN)["results"]) == 7
    assert len(memory.get_all(limit=100_000, **ANN)["results"]) == 120
    assert len(memory.search("note", top_k=100_000, **ANN)["results"]) == 120
    assert memory.search("note", limit=0, **ANN) == {"results": []}
    with pytest.raises(exceptions.ValidationError, match="two words"):
        memory.get_all(limit=1, top_k=2, **ANN)


@pytest.mark.parametrize(("version", "count"), [("1.x", 100), ("2.x", 20), ("v1.1", 20), (None, 20)])
def test_a_version_decides_the_defaults(opened: Opener, version: str | None, count: int) -> None:
    memory = opened(version=version)
    many(memory)
    assert len(memory.get_all(**IN_ANN)["results"]) == count


def test_attributed_to_is_told_of_facts_in_2_x(opened: Opener) -> None:
    memory = opened(version="2.x")
    said = memory.add("fact: User lives in Porto", **ANN)["results"][0]["id"]
    assert memory.get(said)["attributed_to"] == "user"  # type: ignore[index]
    verbatim = memory.add("tea", infer=False, **ANN)["results"][0]["id"]
    assert "attributed_to" not in (memory.get(verbatim) or {})


def test_both_dialects_at_once(opened: Opener) -> None:
    memory = opened()
    memory.add("tea", infer=False, metadata={"n": 1}, agent_id="desk", **ANN)
    assert texts(memory.search("tea", user_id="ann", filters={"agent_id": "desk", "n": 1})) == ["tea"]
    assert texts(memory.search("tea", user_id="ann", filters={"user_id": "ann"})) == ["tea"]
    assert texts(memory.search("tea", filters={"AND": [{"user_id": "ann"}, {"n": {"gte": 1}}]})) == ["tea"]
    assert texts(memory.get_all(filters={"user_id": "ann", "OR": [{"n": 1}, {"n": 2}]})) == ["tea"]
    assert texts(memory.get_all(user_id="ann", filters={"n": 2})) == []
    assert texts(memory.get_all(user_id="ann", filters={"NOT": {"kind": "semantic"}})) == ["tea"]  # no key of its own
    with pytest.raises(ValueError, match="two different ids"):
        memory.search("tea", user_id="ann", filters={"user_id": "bob"})
    with pytest.raises(ValueError, match="must be provided"):
        memory.search("tea", filters={"OR": [{"user_id": "ann"}, {"user_id": "bob"}]})


def test_numbers_as_ids(opened: Opener) -> None:
    memory = opened()
    memory.add("tea", infer=False, user_id=7)
    assert texts(memory.get_all(user_id="7")) == texts(memory.get_all(filters={"user_id": 7})) == ["tea"]
    memory.delete_all(user_id=7)
    assert texts(memory.get_all(user_id=7)) == []


def test_what_mem0_2_x_swallows_is_told(opened: Opener) -> None:
    memory = opened()
    memory.add("tea", infer=False, **ANN)
    with pytest.warns(UserWarning, match="takes no notice of keyword_search, output_format"):
        assert texts(memory.search("tea", output_format="v1.1", keyword_search=True, **ANN)) == ["tea"]
    with pytest.raises(TypeError, match="output_format"):
        opened(path=":memory:", strict="1.x").search("tea", output_format="v1.1", **ANN)


def test_a_timestamp_of_ones_own(opened: Opener) -> None:
    memory = opened()
    said = memory.add("tea", infer=False, timestamp="2020-02-03", **ANN)["results"][0]["id"]
    assert memory.get(said)["created_at"] == "2020-02-03T00:00:00+00:00"  # type: ignore[index]
    memory.add("fact: User rows", timestamp=1_600_000_000, **ANN)
    assert texts(memory.search("rows", reference_date="2020-10-01", **ANN))[0] == "User rows"
    for call in ("add", "search"):
        argument = {"timestamp": 1} if call == "add" else {"reference_date": 1}
        with pytest.raises(ValueError, match=next(iter(argument))):
            getattr(opened(path=":memory:", strict="2.x"), call)(
                "tea", **argument, **(ANN if call == "add" else IN_ANN)
            )


# -- what is kept


def test_roles_that_localmem_has_not_are_kept_as_they_are(opened: Opener) -> None:
    memory = opened()
    talk = [{"role": "critic", "content": "too long", "name": "Bea"}, {"role": "user", "content": "fact: User rows"}]
    added = memory.add(talk, infer=False, **ANN)["results"]
    assert [(each["role"], each["actor_id"]) for each in added] == [("critic", "Bea"), ("user", None)]
    assert memory.get(added[0]["id"])["role"] == "critic"  # type: ignore[index]
    assert memory.history(added[0]["id"])[0]["role"] == "critic"
    assert texts(memory.search("long", filters={"user_id": "ann", "role": "critic"})) == ["too long"]
    assert [each["memory"] for each in memory.add(talk, user_id="bob")["results"]] == ["User rows"]


def test_pictures_and_calls_are_passed_over(opened: Opener) -> None:
    memory = opened()
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    talk = [
        {"role": "user", "content": picture},
        {"role": "user", "content": [picture]},
        {"role": "user", "content": [{"type": "text", "text": "my boat"}, picture, {"type": "text", "text": "is red"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    assert [each["memory"] for each in memory.add(talk, infer=False, **ANN)["results"]] == ["my boat is red"]


def test_expiry_by_the_day(opened: Opener, clock: FixedClock) -> None:
    memory = opened()
    said = memory.add("tea", infer=False, expiration_date="2025-03-02", **ANN)["results"][0]["id"]
    memory.add("milk", infer=False, **ANN)
    clock.advance(86_400 + 3_600)  # its last day
    assert texts(memory.get_all(**ANN)) == texts(memory.search("tea", **ANN)) == ["milk", "tea"]
    clock.advance(86_400)
    assert texts(memory.get_all(**ANN)) == texts(memory.search("tea", **ANN)) == ["milk"]
    assert texts(memory.search("tea", top_k=1, filters={"user_id": "ann", "NOT": [{"n": 1}]})) == ["milk"]
    assert texts(memory.get_all(show_expired=True, **ANN)) == ["milk", "tea"]
    memory.update(said, expiration_date="2025-04-01")
    assert texts(memory.get_all(**ANN)) == ["milk", "tea"]


def test_a_failed_model_keeps_the_words(opened: Opener) -> None:
    generator = ScriptedGenerator(fail=True)
    memory = opened(generator=generator)
    with pytest.raises(exceptions.LLMError) as caught:
        memory.add("fact: User rows", **ANN)
    assert isinstance(caught.value, RuntimeError | errors.GeneratorError)
    assert caught.value.episode_id == memory.local.pending()[0]["episode_id"]  # type: ignore[attr-defined]
    assert memory.search("rows", **ANN) == {"results": []}  # mem0's results have ids, and the words have none yet
    generator.fail = False
    memory.local.resume()
    assert texts(memory.search("rows", **ANN)) == ["User rows"]


def test_without_a_model_an_llm_error_says_what_to_install(opened: Opener, home: Path) -> None:
    memory = opened(generator=None)
    with pytest.raises(exceptions.LLMError, match=r"localmem models install|localmem\[llm\]") as caught:
        memory.add("I like tea", **ANN)
    assert isinstance(caught.value, errors.ModelNotFoundError | errors.MissingExtraError)
    assert "infer=False" in (caught.value.suggestion or "")
    assert caught.value.episode_id == memory.local.pending()[0]["episode_id"]
    assert [each["memory"] for each in memory.add("I like milk", infer=False, **ANN)["results"]] == ["I like milk"]


@pytest.mark.parametrize(
    ("missing", "kinds"),
    [
        (errors.ModelNotFoundError("install it"), (FileNotFoundError, errors.ModelNotFoundError)),
        (errors.MissingExtraError("install it"), (ImportError, exceptions.DependencyError, errors.MissingExtraError)),
    ],
)
def test_what_a_model_needs_is_told_as_llm_error(
    opened: Opener, missing: errors.LocalmemError, kinds: tuple[type[Exception], ...]
) -> None:
    class Missing(ScriptedGenerator):
        def generate(self, *_: Any, **__: Any) -> str:
            raise missing

    with pytest.raises(exceptions.LLMError, match="^install it$") as caught:
        opened(generator=Missing()).add("fact: User rows", **ANN)
    for kind in kinds:
        assert isinstance(caught.value, kind)
    assert caught.value.__cause__ is missing


def test_an_extra_that_is_no_models_is_a_dependency() -> None:
    with pytest.raises(exceptions.DependencyError) as caught, exceptions.told_as_mem0():
        raise errors.MissingExtraError("to have a keychain needs: …")
    assert not isinstance(caught.value, exceptions.LLMError)
    with pytest.raises(errors.ModelNotFoundError) as other, exceptions.told_as_mem0():
        raise errors.ModelNotFoundError("the model file of the embedder is missing")
    assert not isinstance(other.value, exceptions.MemoryError)


# -- errors


@pytest.mark.parametrize(
    ("call", "kinds", "code"),
    [
        (lambda m: m.add("tea", infer=False), (exceptions.ValidationError, ValueError, errors.InvalidInputError), "VALIDATION_001"),
        (lambda m: m.add(7, **ANN), (exceptions.ValidationError, TypeError, errors.InvalidTypeError), "VALIDATION_003"),
        (lambda m: m.add("tea", memory_type="x", **ANN), (exceptions.ValidationError,), "VALIDATION_002"),
        (lambda m: m.add("tea", metadata={"at": object()}, infer=False, **ANN), (exceptions.ValidationError,), "VALIDATION_004"),
        (lambda m: m.add("tea", metadata="x", **ANN), (exceptions.ValidationError,), "VALIDATION_003"),
        (lambda m: m.search("tea", filters="ann"), (exceptions.ValidationError,), "VALIDATION_003"),
        (lambda m: m.search("tea", filters={"user_id": "ann", "n": {"like": 1}}), (exceptions.ValidationError, ValueError), "VALIDATION_004"),
        (lambda m: m.delete("unknown"), (exceptions.MemoryNotFoundError, ValueError, KeyError, errors.NotFoundError), "MEM_404"),
        (lambda m: m.update("unknown", "tea"), (exceptions.MemoryNotFoundError, ValueError), "MEM_404"),
        (lambda m: m.update("unknown", metadata={"n": 1}), (exceptions.MemoryNotFoundError, ValueError), "MEM_404"),
        (lambda m: m.delete_all(), (exceptions.ValidationError, ValueError), "VALIDATION_001"),
        (lambda m: m.project.update(decay=True), (exceptions.ValidationError, ValueError), "VALIDATION_004"),
    ],
)  # fmt: skip
def test_an_error_is_mem0s_and_ours(opened: Opener, call: Any, kinds: tuple[type[Exception], ...], code: str) -> None:
    with pytest.raises(exceptions.MemoryError) as caught:
        call(opened())
    for kind in kinds:
        assert isinstance(caught.value, kind)
    error = caught.value
    assert (error.error_code, str(error)) == (code, error.message)
    assert isinstance(error.details, dict)
    assert error.message in repr(error)


def test_every_error_class_can_be_raised_as_mem0_raises_it() -> None:
    kinds = [
        each for each in vars(exceptions).values() if isinstance(each, type) and each.__module__ == exceptions.__name__
    ]
    assert len(kinds) >= 16
    for kind in kinds:
        made = kind("told", "X_1", details={"a": 1}, suggestion="do", debug_info={"b": 2})
        assert isinstance(made, exceptions.MemoryError)
        assert (str(made), made.error_code, made.details, made.suggestion, made.debug_info) == (
            "told",
            "X_1",
            {"a": 1},
            "do",
            {"b": 2},
        )


def test_after_close(opened: Opener) -> None:
    memory = opened()
    memory.close()
    memory.close()
    with pytest.raises(errors.ClosedError):
        memory.search("tea", **ANN)


@pytest.mark.parametrize("kind", [MemoryClient, AsyncMemoryClient])
def test_the_clouds_client_says_what_to_use(kind: Any) -> None:
    with pytest.raises(exceptions.ConfigurationError, match=r"use Memory\(\) or AsyncMemory\(\)"):
        kind(api_key="m0-secret")


# -- import paths


def test_import_paths_of_mem0() -> None:
    from localmem.compat import mem0
    from localmem.compat.mem0.client.main import AsyncMemoryClient as AsyncClient
    from localmem.compat.mem0.client.main import MemoryClient as Client
    from localmem.compat.mem0.memory.main import AsyncMemory as AsyncMain
    from localmem.compat.mem0.memory.main import Memory as Main

    assert (Main, AsyncMain, Client, AsyncClient) == (Memory, AsyncMemory, MemoryClient, AsyncMemoryClient)
    assert mem0.__version__ == localmem.__version__


# -- awaited


def test_from_config_with_and_without_await(tmp_path: Path) -> None:
    async def story() -> None:
        options: dict[str, Any] = {"embedder": HashEmbedder(), "generator": ScriptedGenerator()}
        config = {"path": str(tmp_path / "m.db")}
        plain = AsyncMemory.from_config(config, **options)
        await plain.add("tea", infer=False, **ANN)
        plain.close()
        awaited = await AsyncMemory.from_config(config, **options)
        async with awaited:
            assert texts(await awaited.search("tea", **ANN)) == ["tea"]
            assert isinstance(awaited.local, localmem.Memory)
            with pytest.raises(exceptions.MemoryNotFoundError):
                await awaited.delete("unknown")
            with pytest.raises(ValueError, match="platform"):
                await awaited.project.update(decay=True)
            with pytest.raises(NotImplementedError):
                await awaited.chat("tea")
        with pytest.raises(errors.ClosedError):
            await awaited.get_all(**ANN)

    asyncio.run(story())


def test_many_at_once(tmp_path: Path) -> None:
    async def story() -> list[str]:
        options: dict[str, Any] = {"embedder": HashEmbedder(), "generator": ScriptedGenerator()}
        async with AsyncMemory(path=tmp_path / "m.db", **options) as memory:
            await asyncio.gather(*(memory.add(f"note {n}", infer=False, **ANN) for n in range(20)))
            return texts(await memory.get_all(**ANN))

    assert asyncio.run(story()) == sorted(f"note {n}" for n in range(20))
