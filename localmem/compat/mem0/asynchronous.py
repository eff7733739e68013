"""mem0's AsyncMemory: the same calls, each in a worker thread."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from types import TracebackType
from typing import Any, Self

import localmem
from localmem.aio import InThreads
from localmem.compat.mem0.configs.base import MemoryConfig
from localmem.compat.mem0.synchronous import Memory, Project


class AsyncProject(Project):
    """mem0's ``memory.project``, awaited."""

    async def update(self, **settings: Any) -> None:  # type: ignore[override]
        """Raises ValidationError, as Project."""
        super().update(**settings)


class AsyncMemory(InThreads):
    """Memory for asyncio programs: add, search, get, get_all, update, delete, delete_all, history, reset and chat are
    awaited. ``AsyncMemory.from_config(…)`` can be used as it is and awaited: mem0 had it both ways."""

    def __init__(self, config: MemoryConfig | Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(Memory(config, **options))
        self.config = self._memory.config
        self.api_version = self._memory.api_version

    @classmethod
    def from_config(cls, config_dict: Mapping[str, Any], **options: Any) -> Self:
        """As Memory.from_config()."""
        return cls(config_dict, **options)

    @property
    def local(self) -> localmem.Memory:
        """The localmem.Memory beneath, whose calls are not awaited."""
        found: localmem.Memory = self._memory.local
        return found

    @property
    def project(self) -> AsyncProject:
        """Refuses every change, as in mem0's open source."""
        return AsyncProject()

    def close(self) -> None:
        """Release the file and the model; not awaited, as in mem0."""
        self._memory.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield  # makes it a generator, which an awaitable gives

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
