"""Long-term memory for AI agents in one SQLite file that never leaves the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from localmem.aio import AsyncMemory
    from localmem.config import Limits, WorkerOptions
    from localmem.embedders import reembed
    from localmem.encryption import decrypt, encrypt, rekey
    from localmem.mem0_import import import_mem0
    from localmem.memory import BoundMemory, Memory
    from localmem.salvaging import salvage

__all__ = [
    "AsyncMemory",
    "BoundMemory",
    "Limits",
    "Memory",
    "WorkerOptions",
    "__version__",
    "decrypt",
    "encrypt",
    "import_mem0",
    "reembed",
    "rekey",
    "salvage",
]

_HOMES = {
    "AsyncMemory": "localmem.aio",
    "BoundMemory": "localmem.memory",
    "Limits": "localmem.config",
    "Memory": "localmem.memory",
    "WorkerOptions": "localmem.config",
    "decrypt": "localmem.encryption",
    "encrypt": "localmem.encryption",
    "import_mem0": "localmem.mem0_import",
    "reembed": "localmem.embedders",
    "rekey": "localmem.encryption",
    "salvage": "localmem.salvaging",
}


def __getattr__(name: str) -> object:  # PEP 562: the import of localmem alone stays light
    if name not in _HOMES:
        raise AttributeError(f"module 'localmem' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
