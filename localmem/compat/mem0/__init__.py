"""mem0's open-source names on localmem: ``from localmem.compat.mem0 import Memory`` for ``from mem0 import Memory``.

Calls, results and errors are those of mem0ai 1.x and 2.x; the memories lie in one local file and no key is needed.
tests/test_mem0_peers.py compares both with the real packages and names every difference. Of mem0's modules there are
memory.main, client.main, configs.base and exceptions; ``__version__`` is localmem's own.
"""

from localmem import __version__
from localmem.compat.mem0.client.main import AsyncMemoryClient, MemoryClient
from localmem.compat.mem0.configs.base import MemoryConfig
from localmem.compat.mem0.memory.main import AsyncMemory, Memory

__all__ = ["AsyncMemory", "AsyncMemoryClient", "Memory", "MemoryClient", "MemoryConfig", "__version__"]
