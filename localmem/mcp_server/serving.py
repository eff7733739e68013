"""The two ways to reach the server: stdin and stdout of the client that started it, or HTTP on loopback."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from localmem.mcp_server import access
from localmem.mcp_server.access import Guard, authorities
from localmem.mcp_server.server import Served, make_server

BODY_BYTES_MAX = 4 * 2**20  # a text of Limits.message_bytes_max, escaped
SESSIONS_MAX = 100
CONNECTIONS_MAX = 200
SESSION_IDLE_S = 30 * 60.0
_LIBRARIES = ("mcp", "uvicorn", "starlette", "sse_starlette", "asyncio", "anyio")
_GONE = (BrokenPipeError, ConnectionResetError, anyio.BrokenResourceError, anyio.ClosedResourceError)


def serve_stdio(served: Served) -> None:
    """Serve the client at the other end of stdin and stdout until it is gone, then close the Memory."""
    _silence_libraries()
    anyio.run(_stdio, served)


async def _stdio(served: Served) -> None:
    server = make_server(served)
    try:
        # Within, descriptor 1 leads to stderr, so that what a native library prints there is no protocol. What Python
        # prints would stand in a buffer until the descriptor is back, hence the second line.
        async with stdio_server() as (read, write):
            with contextlib.redirect_stdout(sys.stderr):
                await _until_gone(served, server, read, write)
    except* _GONE:
        pass  # the client went away while it was written to


async def _until_gone(served: Served, server: Server[Any], read: Any, write: Any) -> None:
    async with anyio.create_task_group() as tasks:
        if os.name != "nt":
            tasks.start_soon(_exit_on_signal, served)
        await server.run(read, write, server.create_initialization_options())
        tasks.cancel_scope.cancel()


async def _exit_on_signal(served: Served) -> None:
    """End the process at Ctrl-C or a plain kill: a thread that reads stdin can't be woken."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            await anyio.to_thread.run_sync(served.end)
            os._exit(128 + number)


def serve_http(served: Served, listening: socket.socket, token: str) -> None:
    """Serve whoever knows the token at a loopback address until interrupted, then close the Memory."""
    import uvicorn

    _silence_libraries()
    app = make_server(served).streamable_http_app(
        streamable_http_path=access.HTTP_PATH,
        json_response=True,
        max_request_body_size=BODY_BYTES_MAX,
        session_idle_timeout=SESSION_IDLE_S,
        max_sessions=SESSIONS_MAX,
    )
    config = uvicorn.Config(
        Guard(app, token, authorities(listening), access.HTTP_PATH),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _silence_libraries() -> None:
    """What these libraries log may hold what was asked, or a header with the token."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False


@contextlib.contextmanager
def stdout_apart() -> Iterator[None]:
    """Descriptor 1 leads to stderr meanwhile: opening a store loads native libraries, and one might print."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
        sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
