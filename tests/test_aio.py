"""AsyncMemory: every call of Memory, awaited, with the same answers, errors and files."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import Listener, texts

from localmem import AsyncMemory
from localmem.aio import AsyncBoundMemory
from localmem.errors import ClosedError, GeneratorError, InvalidInputError, InvalidTypeError, NotFoundError, ScopeError
from localmem.memory import BoundMemory, Memory
from localmem.testing import FixedClock, HashEmbedder, ScriptedGenerator

NOT_AWAITED = {"bound", "from_config"}  # they only build an object
Opener = Callable[..., AsyncMemory]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where a test keeps its store; afterwards the file must be sound."""
    where = tmp_path / "memory.db"
    yield where
    if where.exists():
        with Memory(where, embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
            assert memory.check() == []


@pytest.fixture
def open_async(path: Path, clock: FixedClock, scripted: None) -> Opener:
    """Open an AsyncMemory on the test's file; its add() follows the ``fact:`` lines of the messages."""

    def opener(**options: Any) -> AsyncMemory:
        return AsyncMemory(
            path, **{"embedder": HashEmbedder(), "generator": ScriptedGenerator(), "clock": clock, **options}
        )

    return opener


def calls_of(kind: type) -> list[str]:
    """The public calls of a class."""
    return sorted(name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name)))


# -------------------------------------------------------------------- the same surface


@pytest.mark.parametrize("name", sorted(set(calls_of(Memory)) - NOT_AWAITED))
def test_every_call_of_memory_is_there_and_awaited(open_async: Opener, name: str) -> None:
    async def story() -> None:
        async with open_async() as memory:
            call = getattr(memory, name)
            assert inspect.iscoroutinefunction(call)
            assert inspect.signature(call) == inspect.signature(getattr(memory._memory, name))
            assert call.__doc__ == getattr(Memory, name).__doc__
            assert name in dir(memory)

    asyncio.run(story())


@pytest.mark.parametrize("name", sorted(set(calls_of(BoundMemory)) - NOT_AWAITED))
def test_every_call_of_a_bound_handle_is_there_and_awaited(open_async: Opener, name: str) -> None:
    async def story() -> None:
        async with open_async() as memory:
            assert inspect.iscoroutinefunction(getattr(memory.bound(user_id="ann"), name))

    asyncio.run(story())


@pytest.mark.parametrize("name", ["nothing_of_that_name", "_engine", "_closed", "__len__"])
def test_what_memory_has_not_is_not_there(open_async: Opener, name: str) -> None:
    async def story() -> None:
        async with open_async() as memory:
            assert not hasattr(memory, name)

    asyncio.run(story())


def test_a_property_is_read_from_the_memory_itself(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            with pytest.raises(AttributeError, match="path"):
                _ = memory.path

    asyncio.run(story())


# -------------------------------------------------------------------- the same answers


STORY: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("add", ("fact: User likes tea",), {"user_id": "ann", "metadata": {"tag": "drink"}}),
    ("add", ("fact: User drinks coffee now | changes: tea",), {"user_id": "ann", "timestamp": "2025-04-01"}),
    ("add", ("the boat is called Nordstern",), {"user_id": "ann", "run_id": "r1", "infer": False}),
    ("add", ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],), {"agent_id": "chef"}),
    ("add", ("x",), {"user_id": "bob", "infer": False, "expires_at": "2030-01-01"}),
    ("search", ("boat",), {"user_id": "ann", "explain": True}),
    ("search", ("coffee",), {"filters": {"user_id": "ann", "tag": "drink"}, "top_k": 3, "include": "history"}),
    ("context", ("boat coffee",), {"user_id": "ann"}),
    ("get_all", (), {"user_id": "ann"}),
    ("all_versions", (), {"user_id": "ann"}),
    ("decisions", (), {"user_id": "ann"}),
    ("pending", (), {}),
    ("contested", (), {"user_id": "ann"}),
    ("ingested", (), {"user_id": "ann"}),
    ("resume", (), {}),
    ("delete_all", (), {"user_id": "bob"}),
    ("reindex", (), {}),
    ("check", (), {}),
    ("get_all", (), {"user_id": "bob"}),
]


def without_ids(value: Any, names: dict[str, str]) -> Any:
    """The same value with every memory and episode id replaced by the order of its first appearance."""
    if isinstance(value, dict):
        return {key: without_ids(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_ids(inner, names) for inner in value]
    if isinstance(value, str) and len(value.partition(":")[0]) == 36 and value[14] == "7":
        return names.setdefault(value, f"id {len(names)}")
    return value


def test_the_same_calls_give_the_same_answers(open_async: Opener, tmp_path: Path, clock: FixedClock) -> None:
    async def awaited() -> list[Any]:
        async with open_async() as memory:
            return [await getattr(memory, name)(*args, **kwargs) for name, args, kwargs in STORY]

    with Memory(tmp_path / "sync.db", embedder=HashEmbedder(), generator=ScriptedGenerator(), clock=clock) as memory:
        called = [getattr(memory, name)(*args, **kwargs) for name, args, kwargs in STORY]
    of_async: dict[str, str] = {}
    of_sync: dict[str, str] = {}
    for (name, *_), one, other in zip(STORY, asyncio.run(awaited()), called, strict=True):
        assert without_ids(one, of_async) == without_ids(other, of_sync), name
        assert type(one) is type(other)


def test_one_file_for_both_forms(open_async: Opener, path: Path) -> None:
    async def story() -> tuple[str, list[Any]]:
        async with open_async() as memory:
            added = await memory.add("I like tea", user_id="ann", infer=False)
            memory_id = added["results"][0]["id"]
            await memory.update(memory_id, "I like coffee")
            return memory_id, await memory.history(memory_id)

    memory_id, told = asyncio.run(story())
    with Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
        assert memory.history(memory_id) == told
        assert memory.get(memory_id)["memory"] == "I like coffee"


def test_a_result_iterates_over_its_hits(open_async: Opener) -> None:
    async def story() -> list[str]:
        async with open_async() as memory:
            await memory.add("I like tea", user_id="ann", infer=False)
            return [hit["memory"] for hit in await memory.search("tea", user_id="ann")]

    assert asyncio.run(story()) == ["I like tea"]


def test_delete_and_reset(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            first = (await memory.add("one", user_id="ann", infer=False))["results"][0]["id"]
            await memory.add("two", user_id="ann", infer=False)
            await memory.delete(first)
            assert await memory.get(first) is None
            assert texts(await memory.get_all(user_id="ann")) == ["two"]
            assert (await memory.reset())["deleted"] == 2
            assert texts(await memory.get_all(user_id="ann")) == []

    asyncio.run(story())


# -------------------------------------------------------------------- many at once


def test_fifty_adds_and_searches_at_once(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async(durability="process") as memory:
            adds = [memory.add(f"note number{i}", user_id=f"user {i % 5}", infer=False) for i in range(50)]
            searches = [memory.search("note", user_id=f"user {i % 5}", limit=50) for i in range(50)]
            done = await asyncio.gather(*(call for pair in zip(adds, searches, strict=True) for call in pair))
            assert len({change["id"] for added in done[::2] for change in added["results"]}) == 50
            for i, found in enumerate(done[1::2]):  # each saw some whole state of its own user
                mine = {f"note number{n}" for n in range(50) if n % 5 == i % 5}
                assert set(texts(found)) <= mine
            for user in range(5):
                held = texts(await memory.get_all(user_id=f"user {user}"))
                assert sorted(held) == sorted(f"note number{n}" for n in range(50) if n % 5 == user)
            assert await memory.check() == []

    asyncio.run(story())


def test_the_same_fact_many_times_at_once_is_one_memory(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            await asyncio.gather(*(memory.add("fact: User likes tea", user_id="ann") for _ in range(10)))
            assert texts(await memory.get_all(user_id="ann")) == ["User likes tea"]
            assert await memory.pending() == []

    asyncio.run(story())


def test_many_updates_of_one_memory_at_once(open_async: Opener) -> None:
    """None is lost: the last writer wins, the others are in the history."""

    async def story() -> None:
        async with open_async() as memory:
            memory_id = (await memory.add("version", user_id="ann", infer=False))["results"][0]["id"]
            for _ in range(3):
                await asyncio.gather(*(memory.update(memory_id, f"version {i}") for i in range(3)))
            told = await memory.history(memory_id)
            assert [step["version"] for step in told] == list(range(1, 11))
            assert (await memory.get(memory_id))["memory"] == told[-1]["new_memory"]

    asyncio.run(story())


def test_the_loop_goes_on_while_a_model_thinks(open_async: Opener) -> None:
    async def story() -> None:
        go_on = threading.Event()
        memory = open_async(generator=Listener(during=lambda: go_on.wait(30)))
        async with memory:
            adding = asyncio.create_task(memory.add("fact: User likes tea", user_id="ann"))
            while not await memory.pending():
                await asyncio.sleep(0.01)
            assert texts(await memory.search("tea", user_id="ann")) == ["fact: User likes tea"]  # the raw words
            assert not adding.done()
            go_on.set()
            assert texts(await adding) == ["User likes tea"]
            assert texts(await memory.search("tea", user_id="ann")) == ["User likes tea"]

    asyncio.run(story())


def test_one_memory_in_two_loops_one_after_the_other(open_async: Opener) -> None:
    memory = open_async()
    asyncio.run(memory.add("I like tea", user_id="ann", infer=False))
    assert texts(asyncio.run(memory.get_all(user_id="ann"))) == ["I like tea"]
    asyncio.run(memory.close())


# -------------------------------------------------------------------- lifetime


def test_the_context_manager_closes(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            await memory.add("I like tea", user_id="ann", infer=False)
        for call in (memory.get_all(user_id="ann"), memory.search("tea", user_id="ann"), memory.check()):
            with pytest.raises(ClosedError):
                await call
        await memory.close()  # a second time is fine

    asyncio.run(story())


def test_the_context_manager_closes_after_an_error_and_lets_it_through(open_async: Opener) -> None:
    async def story() -> None:
        memory = open_async()
        with pytest.raises(ZeroDivisionError):
            async with memory:
                raise ZeroDivisionError
        with pytest.raises(ClosedError):
            await memory.check()

    asyncio.run(story())


def test_from_config(path: Path, clock: FixedClock) -> None:
    async def story() -> None:
        config = {"path": str(path), "durability": "process"}
        made = AsyncMemory.from_config(config, embedder=HashEmbedder(), generator=ScriptedGenerator(), clock=clock)
        assert type(made) is AsyncMemory
        async with made as memory:
            await memory.add("I like tea", user_id="ann", infer=False)
            assert texts(await memory.get_all(user_id="ann")) == ["I like tea"]

    asyncio.run(story())
    assert path.exists()


def test_from_config_keeps_a_subclass(path: Path) -> None:
    class Mine(AsyncMemory):
        pass

    made = Mine.from_config({"path": str(path)}, embedder=HashEmbedder(), generator=ScriptedGenerator())
    assert type(made) is Mine
    asyncio.run(made.close())


@pytest.mark.parametrize(
    ("options", "error"), [({"durability": "none"}, InvalidInputError), ({"clock": 3}, InvalidTypeError)]
)
def test_bad_arguments_are_refused_at_once(path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        AsyncMemory(path, embedder=HashEmbedder(), **options)
    with pytest.raises(error):
        AsyncMemory.from_config({"path": str(path)}, embedder=HashEmbedder(), **options)
    assert not path.exists()


# -------------------------------------------------------------------- bound handles


def test_a_bound_handle_stays_in_its_scope(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            ann, bob = memory.bound(user_id="ann"), memory.bound(user_id="bob")
            assert isinstance(ann, AsyncBoundMemory)
            hers = (await ann.add("ann likes tea", infer=False))["results"][0]["id"]
            await bob.add("bob likes tea", infer=False)
            assert texts(await ann.search("tea")) == texts(await ann.get_all()) == ["ann likes tea"]
            assert await bob.get(hers) is None
            for call in (bob.history(hers), bob.update(hers, "mine"), bob.delete(hers)):
                with pytest.raises(NotFoundError):
                    await call
            for refused in (ann.get_all(user_id="bob"), ann.check(), ann.reindex(), ann.reset()):
                with pytest.raises(ScopeError):
                    await refused
            assert await memory.get(hers) == await ann.get(hers)

    asyncio.run(story())


def test_a_bound_handle_narrows_and_reads_only(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            narrow = memory.bound(user_id="ann").bound(run_id="r1", read_only=True)
            assert isinstance(narrow, AsyncBoundMemory)
            await memory.add("here", user_id="ann", run_id="r1", infer=False)
            await memory.add("there", user_id="ann", run_id="r2", infer=False)
            assert texts(await narrow.get_all()) == ["here"]
            for refused in (narrow.add("x", infer=False), narrow.delete_all(), narrow.resume()):
                with pytest.raises(ScopeError):
                    await refused
            await narrow.close()  # leaves the memory open
            assert texts(await memory.get_all(user_id="ann")) == ["here", "there"]

    asyncio.run(story())


def test_binding_without_a_scope_is_refused_at_once(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            with pytest.raises(ScopeError):
                memory.bound()

    asyncio.run(story())


# -------------------------------------------------------------------- errors and cancelling


def test_errors_travel(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async(generator=ScriptedGenerator(fail=True)) as memory:
            for call, error in (
                (memory.add("I like tea"), ScopeError),
                (memory.add("", user_id="ann"), InvalidInputError),
                (memory.add(3, user_id="ann"), InvalidTypeError),
                (memory.search("tea", user_id="ann", limit=-1), InvalidInputError),
                (memory.search("tea", user_id="ann", nonsense=1), TypeError),
                (memory.history("unknown"), NotFoundError),
            ):
                with pytest.raises(error):
                    await call
            with pytest.raises(GeneratorError) as caught:
                await memory.add("fact: User likes tea", user_id="ann")
            assert [episode["episode_id"] for episode in await memory.pending()] == [caught.value.episode_id]

    asyncio.run(story())


def test_one_failure_among_many_leaves_the_others(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async() as memory:
            said = ["one", "", "two", "three"]
            calls = (memory.add(text, user_id="ann", infer=False) for text in said)
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(result, InvalidInputError) for result in done] == [not text for text in said]
            assert sorted(texts(await memory.get_all(user_id="ann"))) == ["one", "three", "two"]

    asyncio.run(story())


def test_cancelling_an_add_leaves_a_sound_file(open_async: Opener) -> None:
    """The thread can't be stopped: the caller goes on at once, the write ends whole or is not begun."""

    async def story() -> None:
        go_on = threading.Event()
        async with open_async(generator=Listener(during=lambda: go_on.wait(30))) as memory:
            adding = asyncio.create_task(memory.add("fact: User likes tea", user_id="ann"))
            while not await memory.pending():
                await asyncio.sleep(0.01)
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
            assert await memory.check() == []
            assert len(await memory.pending()) == 1  # the words are kept
            go_on.set()
            async with asyncio.timeout(30):
                while await memory.pending():
                    await asyncio.sleep(0.01)
            assert texts(await memory.get_all(user_id="ann")) == ["User likes tea"]
            assert await memory.check() == []

    asyncio.run(story())


def test_a_timeout_is_a_cancellation(open_async: Opener) -> None:
    async def story() -> None:
        async with open_async(generator=Listener(during=lambda: time.sleep(0.3))) as memory:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(memory.add("fact: User likes tea", user_id="ann"), 0.05)
            while not (await memory.pending() or texts(await memory.get_all(user_id="ann"))):
                await asyncio.sleep(0.01)
            await memory.resume()  # beside the thread that still thinks: each episode exactly once
            assert texts(await memory.get_all(user_id="ann")) == ["User likes tea"]
            assert await memory.pending() == []

    asyncio.run(story())


def test_cancelling_many_at_any_moment_leaves_a_sound_file(open_async: Opener, path: Path) -> None:
    async def story() -> None:
        async with open_async(durability="process") as memory:
            for delay_ms in range(0, 20, 4):
                calls = [memory.add(f"note {delay_ms} {i}", user_id="ann", infer=False) for i in range(8)]
                calls += [memory.add(f"fact: User owns boat {delay_ms} {i}", user_id="ann") for i in range(4)]
                calls += [memory.search("note", user_id="ann") for _ in range(4)]
                tasks = [asyncio.create_task(call) for call in calls]
                await asyncio.sleep(delay_ms / 1000)
                for task in tasks:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(result, dict | asyncio.CancelledError) for result in done)
                assert await memory.check() == []

    asyncio.run(story())
    with Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
        memory.resume()
        assert memory.check() == []
        held = texts(memory.get_all(user_id="ann"))
        assert len(set(held)) == len(held)
        assert texts(memory.search(held[0], user_id="ann"))[0] == held[0] if held else True


def test_closing_while_calls_run(open_async: Opener, path: Path) -> None:
    """Each call ends whole or with ClosedError; what it answered is in the file."""

    async def story() -> list[Any]:
        memory = open_async(durability="process")
        tasks = [asyncio.create_task(memory.add(f"note {i}", user_id="ann", infer=False)) for i in range(20)]
        await asyncio.sleep(0.01)
        await memory.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    done = asyncio.run(story())
    assert [error for error in done if not isinstance(error, dict | ClosedError)] == []
    kept = {change["memory"] for added in done if isinstance(added, dict) for change in added["results"]}
    with Memory(path, embedder=HashEmbedder(), generator=ScriptedGenerator()) as memory:
        assert kept <= set(texts(memory.get_all(user_id="ann")))
