"""Fixtures of the whole suite: real files, pretend models, and a look at every file once its test is done."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import Listener, following_scripts
from hypothesis import HealthCheck, settings

from localmem import artifacts
from localmem.config import Limits
from localmem.errors import LocalmemError
from localmem.llm import LlamaGenerator
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator

# Files on a busy disk make single examples slow; that is no failure. Derandomised wherever CI says so.
settings.register_profile(
    "localmem",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
settings.load_profile("localmem")

Opener = Callable[..., Memory]


def pytest_configure(config: pytest.Config) -> None:
    """Nobody's real data folder is touched: without LOCALMEM_HOME, an empty one."""
    if "LOCALMEM_HOME" not in os.environ:
        home = tempfile.TemporaryDirectory(prefix="localmem-tests-")
        config.add_cleanup(home.cleanup)
        os.environ["LOCALMEM_HOME"] = home.name
    for name in ("GENERATOR", "KEY", "KEY_FILE", "KEYCHAIN", "AUDIT_KEY_FILE", "CHECKPOINT", "ACTOR", "MCP_TOKEN"):
        os.environ.pop(f"LOCALMEM_{name}", None)


@pytest.fixture
def clock() -> FixedClock:
    """2025-03-01T00:00:00Z until it is moved."""
    return FixedClock()


@pytest.fixture(scope="module")
def base_model() -> Iterator[LlamaGenerator]:
    """The base model, where it is installed."""
    pytest.importorskip("llama_cpp")
    try:
        generator = LlamaGenerator(artifacts.generator_path())
    except LocalmemError as error:
        pytest.skip(f"no base model: {type(error).__name__}")
    yield generator
    generator.close()


@pytest.fixture
def scripted() -> Iterator[None]:
    """add() follows the ``fact:`` lines of its messages, see doubles.py."""
    with following_scripts():
        yield


@pytest.fixture
def open_memory(tmp_path: Path, clock: FixedClock) -> Iterator[Opener]:
    """Open a Memory on a file of the test's folder; afterwards every file it opened must be sound.

    open_memory(name="memory.db", sound=True, **arguments of Memory). sound=False: the test breaks the file itself.
    """
    opened: list[tuple[Memory, bool]] = []
    paths: dict[Path, Any] = {}
    keys: dict[Path, Any] = {}

    def opener(name: str = "memory.db", *, sound: bool = True, **options: Any) -> Memory:
        path: Any = name if name == ":memory:" else tmp_path / name
        options = {"embedder": HashEmbedder(), "generator": ScriptedGenerator(), "clock": clock, **options}
        memory = Memory(path, **options)
        opened.append((memory, sound))
        if memory.path is not None and sound:
            paths[memory.path] = options["embedder"]
            keys[memory.path] = {name: options[name] for name in ("key", "audit_key") if name in options}
        return memory

    yield opener
    for memory, sound in opened:
        if memory.path is None and sound and not memory._closed:
            assert memory.check() == []
            assert memory.verify_audit()["problems"] == []
        memory.close()
    for path, embedder in paths.items():
        if path.exists():
            with Memory(
                path, embedder=embedder, generator=ScriptedGenerator(), limits=Limits(), **keys[path]
            ) as memory:
                assert memory.check() == []
                assert memory.verify_audit()["problems"] == []


@pytest.fixture
def memory(open_memory: Opener) -> Memory:
    """An empty store on a real file."""
    return open_memory()


@pytest.fixture
def listener() -> Listener:
    """A generator that says nothing and remembers what it was shown."""
    return Listener()


@pytest.fixture
def story(open_memory: Opener, listener: Listener, scripted: None) -> Memory:
    """An empty store whose add() follows the ``fact:`` lines of its messages."""
    return open_memory(generator=listener)
