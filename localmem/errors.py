"""The error tree. Every error says which argument or file, what was found, and what to do next.

Messages may carry ids, counts, limits and paths; never the text of a message or a memory.
"""

from __future__ import annotations


class LocalmemError(Exception):
    """Anything localmem raises on purpose."""


class InvalidInputError(LocalmemError, ValueError):
    """An argument that can't be used: says which, what was given and what would be right."""


class InvalidTypeError(InvalidInputError, TypeError):
    """An argument of the wrong type."""


class ScopeError(InvalidInputError):
    """No user_id, agent_id or run_id given, or one a bound handle may not use."""


class FilterError(InvalidInputError):
    """A filter tree that can't be compiled: names the place in the tree."""


class TooLargeError(InvalidInputError):
    """Input beyond a configured limit: names the limit and how to raise it."""


class NotFoundError(LocalmemError, KeyError):
    """No memory of that id in this scope."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class ConflictError(LocalmemError):
    """The memory or its owner moved while a change was prepared; nothing was written."""


class StorageError(LocalmemError, OSError):
    """The file could not be read or written: full disk, I/O error. Nothing was half-written."""


class LockedError(StorageError, TimeoutError):
    """Another process held the write lock for longer than the configured wait."""


class ReadOnlyError(StorageError, PermissionError):
    """A write to a file or folder that is read-only."""


class CorruptFileError(StorageError):
    """The file is damaged."""


class NotOurFileError(LocalmemError, ValueError):
    """A file that exists and is not a localmem store."""


class KeyRefusedError(LocalmemError, ValueError):
    """A key that can't be had or doesn't open the file; a file without one where a key was given."""


class AuditError(LocalmemError, RuntimeError):
    """The audit chain is not as it was written."""


class SchemaError(LocalmemError, RuntimeError):
    """A store written by a newer localmem."""


class EmbedderMismatchError(LocalmemError, ValueError):
    """The store's vectors were made by another embedder."""


class ClosedError(LocalmemError, RuntimeError):
    """The Memory was closed."""


class MissingExtraError(LocalmemError, ImportError):
    """An optional dependency is missing; names the pip command."""


class InstallationError(LocalmemError, RuntimeError):
    """The Python environment can't run localmem, e.g. a plain apsw shadows apsw-sqlite3mc."""


class ModelNotFoundError(LocalmemError, FileNotFoundError):
    """A model file is not there: names each place tried and the command that cures it."""


class ModelFileError(LocalmemError, ValueError):
    """A model file that is not what it should be: wrong checksum, not a GGUF, no chat template."""


class GeneratorError(LocalmemError, RuntimeError):
    """The generator failed. The words are safe: ``episode_id`` is pending; `resume()` finishes it."""

    episode_id: str | None = None

    def __init__(self, message: str, *, episode_id: str | None = None) -> None:
        super().__init__(message)
        self.episode_id = episode_id


class GeneratorUnavailableError(GeneratorError):
    """No model answers at all, whatever it is asked: a server that is down. What was asked is not the cause."""
