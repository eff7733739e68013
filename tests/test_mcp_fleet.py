"""Eight MCP servers on one file, as eight programs start them, with one worker that is killed again and again."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from doubles import texts
from test_mcp import COMMAND, environment, open_store

pytest.importorskip("mcp")

import anyio
import anyio.to_thread
from mcp import StdioServerParameters, stdio_client
from mcp.client.client import Client

SERVERS, ADDS_EACH, KILLS = 8, 250, 3
CALL_S, END_S = 60, 300


def fact(server: int, number: int) -> str:
    return f"User owns boat {number} of harbour {server}"


async def serve(
    parameters: StdioServerParameters, server: int, acknowledged: dict[str, str], over: anyio.Event
) -> None:
    """A client that adds its facts and stays until all is over. When its server dies it starts another one, and adds
    again what was not answered."""
    number = 0
    while not over.is_set():
        with contextlib.suppress(Exception):  # as a client sees it: the pipe is closed, a stream ended, time is up
            async with Client(stdio_client(parameters), mode="legacy") as client:
                while number < ADDS_EACH:
                    text = fact(server, number)
                    with anyio.fail_after(CALL_S):
                        result = await client.call_tool("add_memory", {"text": f"fact: {text}"})
                    assert not result.is_error, result.content
                    answer: dict[str, Any] = result.structured_content
                    assert answer["status"] == "waiting"
                    acknowledged[answer["episode_id"]] = text
                    number += 1
                while not over.is_set():
                    await client.call_tool("memory_status", {})
                    await anyio.sleep(0.5)


async def kill_workers(path: Path, acknowledged: dict[str, str], killed: list[int], over: anyio.Event) -> None:
    """kill -9 of whichever server holds the lease, a few times; over when all is added and read."""
    with open_store(path) as looking:
        while True:
            await anyio.sleep(1)
            stats = await anyio.to_thread.run_sync(looking.stats)
            if len(acknowledged) == SERVERS * ADDS_EACH and not stats["queue"]["waiting"]:
                over.set()
                return
            worker = stats["worker"]
            if len(killed) < KILLS and worker["state"] == "working" and worker["pid"] not in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker["pid"], signal.SIGKILL)
                    killed.append(worker["pid"])


async def fleet(path: Path, home: Path, acknowledged: dict[str, str], killed: list[int]) -> None:
    over = anyio.Event()
    words = [*COMMAND, "mcp", "--file", str(path), "--user", "ann"]
    parameters = StdioServerParameters(command=words[0], args=words[1:], env=environment(home))
    with anyio.fail_after(END_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_workers, path, acknowledged, killed, over)
            for server in range(SERVERS):
                tasks.start_soon(serve, parameters, server, acknowledged, over)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_eight_servers_and_a_killed_worker_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    acknowledged: dict[str, str] = {}
    killed: list[int] = []
    open_store(path).close()
    anyio.run(fleet, path, tmp_path, acknowledged, killed)
    assert len(acknowledged) == SERVERS * ADDS_EACH
    assert len(killed) == KILLS
    with open_store(path) as memory:
        assert memory.flush(timeout=0) == {"flushed": True, "waiting": 0, "set_aside": 0}
        assert {memory.status(each)["state"] for each in acknowledged} == {"done"}
        known = texts(memory.get_all(user_id="ann"))
        assert sorted(known) == sorted(fact(server, n) for server in range(SERVERS) for n in range(ADDS_EACH))
        assert memory.check() == []
        assert memory.verify_audit()["problems"] == []
