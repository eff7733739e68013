"""AsyncMemory: the same calls as Memory, each run in a worker thread. No copied implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Any, Self

from localmem.memory import Memory


class InThreads:
    """Wraps a Memory or a bound handle: ``await m.search(…)`` is ``m.search(…)`` in a thread."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("_"):
            raise AttributeError(name)
        call = getattr(self._memory, name)
        if not callable(call):
            raise AttributeError(f"{name} is no call; read it from the Memory itself")

        @wraps(call)
        async def in_thread(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(call, *args, **kwargs)

        return in_thread

    def __dir__(self) -> list[str]:
        return sorted(name for name in dir(self._memory) if not name.startswith("_"))

    def bound(self, **options: Any) -> AsyncBoundMemory:
        """A handle that can't leave its scope, as Memory.bound()."""
        return AsyncBoundMemory(self._memory.bound(**options))


class AsyncBoundMemory(InThreads):
    """The asynchronous form of a bound handle."""


class AsyncMemory(InThreads):
    """Memory for asyncio programs. Takes Memory's arguments; every call but ``bound`` is awaited."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(Memory(*args, **kwargs))

    @classmethod
    def from_config(cls, config: dict[str, Any] | None = None, **options: Any) -> Self:
        """As Memory.from_config()."""
        made = cls.__new__(cls)
        InThreads.__init__(made, Memory.from_config(config, **options))
        return made

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._memory.close)
