"""mem0's exceptions, each also what mem0's code raised in its place and what localmem raises.

So ``except ValueError``, ``except mem0.exceptions.ValidationError`` and ``except localmem.errors.InvalidInputError``
catch the same refusal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from localmem import errors

WITHOUT_MODEL = "add(…, infer=False) keeps each message as it is and needs no model"


class MemoryError(Exception):  # the name is mem0's
    """Any of mem0's errors, with its ``message``, ``error_code``, ``details``, ``suggestion`` and ``debug_info``."""

    def __init__(
        self,
        message: str,
        error_code: str = "MEM_001",
        details: Mapping[str, Any] | None = None,
        suggestion: str | None = None,
        debug_info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code
        self.details = dict(details or {})
        self.suggestion = suggestion
        self.debug_info = dict(debug_info or {})

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        told = ("message", "error_code", "details", "suggestion", "debug_info")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in told)})"


class ValidationError(MemoryError, errors.InvalidInputError):
    """An argument that can't be used. Also a ValueError, which mem0 raises for some of them."""


class ArgumentTypeError(ValidationError, errors.InvalidTypeError):
    """An argument of the wrong type. Also a TypeError."""


class MemoryNotFoundError(MemoryError, errors.NotFoundError, ValueError):
    """No memory of that id. Also a ValueError, which mem0 raises."""

    __str__ = MemoryError.__str__


class ConfigurationError(MemoryError, ValueError):
    """A configuration that can't be used."""


class LLMError(MemoryError, errors.GeneratorError):
    """The model failed. The words are kept: ``episode_id`` names them, ``memory.local.resume()`` finishes them."""


class DependencyError(MemoryError, errors.MissingExtraError):
    """A package is missing; the message names the command that installs it."""


class ModelNotFoundError(LLMError, errors.ModelNotFoundError):
    """No model is installed; the message names the command that installs one. Not a name of mem0's."""


class ModelRunnerError(LLMError, DependencyError):
    """The package that runs the model is missing; the message names the pip command. Not a name of mem0's."""


class AuthenticationError(MemoryError):
    """Of mem0's cloud; never raised here."""


class RateLimitError(MemoryError):
    """Of mem0's cloud; never raised here."""


class NetworkError(MemoryError):
    """Of mem0's cloud; never raised here."""


class MemoryQuotaExceededError(MemoryError):
    """Of mem0's cloud; never raised here."""


class MemoryCorruptionError(MemoryError):
    """Never raised here: a damaged file is localmem.errors.CorruptFileError."""


class VectorSearchError(MemoryError):
    """Never raised here."""


class CacheError(MemoryError):
    """Never raised here."""


class VectorStoreError(MemoryError):
    """Never raised here: what goes wrong with the file is a localmem.errors.StorageError."""


class GraphStoreError(MemoryError):
    """Never raised here; of mem0 1.x."""


class EmbeddingError(MemoryError):
    """Never raised here."""


class DatabaseError(MemoryError):
    """Never raised here: what goes wrong with the file is a localmem.errors.StorageError."""


@contextlib.contextmanager
def told_as_mem0(*, by_model: bool = False) -> Iterator[None]:
    """localmem's errors as mem0's; those that mem0 has no word for go through as they are. by_model: what is missing
    is what reading messages needs, and so an LLMError too."""
    try:
        yield
    except MemoryError:
        raise
    except errors.NotFoundError as error:
        raise MemoryNotFoundError(str(error), "MEM_404", suggestion="Search again, or list the memories") from error
    except errors.ScopeError as error:
        raise without_scope(str(error)) from error
    except errors.InvalidTypeError as error:
        raise ArgumentTypeError(str(error), "VALIDATION_003") from error
    except errors.InvalidInputError as error:
        raise ValidationError(str(error), "VALIDATION_004") from error
    except errors.GeneratorError as error:
        raise _kept(LLMError(str(error), "LLM_001"), error) from error
    except errors.ModelNotFoundError as error:
        if not by_model:
            raise
        raise _kept(ModelNotFoundError(str(error), "LLM_001", suggestion=WITHOUT_MODEL), error) from error
    except errors.MissingExtraError as error:
        if by_model:
            raise _kept(ModelRunnerError(str(error), "DEP_001", suggestion=WITHOUT_MODEL), error) from error
        raise DependencyError(str(error), "DEP_001") from error


def without_scope(message: str) -> ValidationError:
    """What mem0 says where no id was given."""
    suggestion = "Please provide at least one identifier to scope the memory operation."
    return ValidationError(message, "VALIDATION_001", suggestion=suggestion)


def _kept(told: MemoryError, error: Exception) -> MemoryError:
    told.episode_id = getattr(error, "episode_id", None)  # type: ignore[attr-defined]
    return told
