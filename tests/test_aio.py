"""AsyncMemory: the same calls, awaited; no copied implementation."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from doubles import Listener, following_scripts, texts

from localmem import AsyncMemory, Memory
from localmem.errors import ClosedError, GeneratorError, InvalidInputError, NotFoundError, ScopeError
from localmem.testing import HashEmbedder, ScriptedGenerator

ANN = {"user_id": "ann"}


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def opened(folder: Path, **options: Any) -> AsyncMemory:
    return AsyncMemory(
        folder / "memory.db", **{"embedder": HashEmbedder(), "generator": ScriptedGenerator(), **options}
    )


def test_the_usual_calls(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as memory:
            added = await memory.add("I live in Porto", infer=False, metadata={"topic": "home"}, **ANN)
            memory_id = added["results"][0]["id"]
            assert texts(await memory.search("Porto", limit=3, **ANN)) == ["I live in Porto"]
            assert texts(await memory.search(query="Porto", filters={"user_id": "ann", "topic": "home"}, top_k=5)) == [
                "I live in Porto"
            ]
            await memory.update(memory_id=memory_id, data="I live in Faro")
            assert (await memory.get(memory_id))["memory"] == "I live in Faro"
            assert [entry["event"] for entry in await memory.history(memory_id)] == ["ADD", "UPDATE"]
            assert "Faro" in await memory.context("Faro", **ANN)
            await memory.delete(memory_id)
            with pytest.raises(NotFoundError):
                await memory.delete(memory_id)
            assert (await memory.delete_all(**ANN))["deleted"] == 0
            assert await memory.check() == []
            await memory.reset()
        with pytest.raises(ClosedError):
            await memory.search("Porto", **ANN)

    run(work())


def test_every_public_call_of_memory_is_there(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as memory:
            names = [n for n, _ in inspect.getmembers(Memory, inspect.isfunction) if not n.startswith("_")]
            assert {"add", "search", "get", "get_all", "update", "delete", "resume", "pending"} <= set(names)
            for name in names:
                assert callable(getattr(memory, name))
                assert name in dir(memory)
            assert inspect.iscoroutinefunction(memory.search)
            assert memory.search.__doc__ == Memory.search.__doc__
            with pytest.raises(AttributeError):
                _ = memory.nonsense
            with pytest.raises(AttributeError):
                _ = memory._engine

    run(work())


def test_many_calls_at_once_lose_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, durability="process") as memory:
            await asyncio.gather(*(memory.add(f"note {n}", infer=False, **ANN) for n in range(60)))
            found = await asyncio.gather(*(memory.search(f"note {n}", limit=1, **ANN) for n in range(60)))
            assert [texts(result) for result in found] == [[f"note {n}"] for n in range(60)]
            assert len((await memory.get_all(**ANN))["results"]) == 60
            assert await memory.check() == []

    run(work())


def test_the_event_loop_is_not_held_up_while_a_model_thinks(tmp_path: Path) -> None:
    """The generator waits for something that only the event loop can do meanwhile."""
    let_go = threading.Event()

    async def work() -> None:
        with following_scripts():
            generator = Listener(during=lambda: let_go.wait(timeout=30))
            async with opened(tmp_path, generator=generator) as memory:
                adding = asyncio.create_task(memory.add("fact: User likes tea", **ANN))
                while not generator.prompts:
                    await asyncio.sleep(0.01)
                assert texts(await memory.search("tea", include="facts", **ANN)) == []  # nor is reading held up
                assert not adding.done()
                let_go.set()
                assert [entry["event"] for entry in (await adding)["results"]] == ["ADD"]

    run(work())


def test_errors_come_through(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, generator=ScriptedGenerator(fail=True)) as memory:
            with pytest.raises(ScopeError):
                await memory.search("tea")
            with pytest.raises(InvalidInputError):
                await memory.add("", **ANN)
            with pytest.raises(GeneratorError) as raised:
                await memory.add("hello", **ANN)
            assert raised.value.episode_id == (await memory.pending())[0]["episode_id"]

    run(work())


def test_bound_handles(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as memory:
            handle = memory.bound(**ANN)
            await handle.add("tea", infer=False)
            assert texts(await handle.get_all()) == ["tea"]
            narrow = handle.bound(run_id="r1", read_only=True)
            assert texts(await narrow.get_all()) == []
            with pytest.raises(ScopeError, match="read-only"):
                await narrow.add("x", infer=False)
            with pytest.raises(ScopeError):
                await memory.bound(user_id="bob").get_all(**ANN)

    run(work())


def test_from_config(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncMemory.from_config({"path": str(tmp_path / "m.db")}, embedder=HashEmbedder()) as memory:
            await memory.add("tea", infer=False, **ANN)
        assert (tmp_path / "m.db").exists()

    run(work())


def test_a_cancelled_add_leaves_a_sound_file(tmp_path: Path) -> None:
    """The thread cannot be stopped: it finishes, or the episode waits."""

    async def work() -> None:
        async with opened(tmp_path) as memory:
            task = asyncio.create_task(memory.add("tea", infer=False, **ANN))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await memory.add("milk", infer=False, **ANN)
            assert {"milk"} <= set(texts(await memory.get_all(**ANN))) <= {"tea", "milk"}
            assert await memory.check() == []

    run(work())
