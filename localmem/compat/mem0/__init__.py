"""mem0's open-source names on localmem: ``from localmem.compat.mem0 import Memory`` for ``from mem0 import Memory``.

Calls, results and errors are those of mem0ai 1.x and 2.x; the memories lie in one local file and no key is needed.
tests/test_mem0_peers.py compares both with the real packages and names every difference.
"""

from localmem.compat.mem0.asynchronous import AsyncMemory
from localmem.compat.mem0.client import AsyncMemoryClient, MemoryClient
from localmem.compat.mem0.configs.base import MemoryConfig
from localmem.compat.mem0.memory import Memory

__all__ = ["AsyncMemory", "AsyncMemoryClient", "Memory", "MemoryClient", "MemoryConfig"]
