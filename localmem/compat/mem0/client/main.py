"""The client of mem0's cloud has no place in a local memory: making one says what to use."""

from __future__ import annotations

from typing import Any

from localmem.compat.mem0.exceptions import ConfigurationError


class MemoryClient:
    """Raises ConfigurationError: what it would talk to is a service on the network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigurationError(
            f"{type(self).__name__} talks to mem0's cloud, and localmem to nobody; use Memory() or AsyncMemory(), "
            "which have the same calls. To bring memories over, "
            "save what its get_all() returns as JSON and run: localmem import mem0 FILE",
            error_code="CONFIG_001",
            suggestion="from localmem.compat.mem0 import Memory",
        )


class AsyncMemoryClient(MemoryClient):
    """Raises ConfigurationError, as MemoryClient."""
