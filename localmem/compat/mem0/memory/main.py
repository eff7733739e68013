"""mem0's import path of its classes: ``from localmem.compat.mem0.memory.main import Memory, AsyncMemory``."""

from localmem.compat.mem0.asynchronous import AsyncMemory
from localmem.compat.mem0.synchronous import Memory

__all__ = ["AsyncMemory", "Memory"]
