"""Rule files: phrases, patterns and word lists as data. Each is read once and carries a version for the fingerprint."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

NAMES = (
    "words", "secrets", "dates", "support", "marks", "forget", "clauses", "extract", "relate", "decide",
    "decide_original", "timing",
)  # fmt: skip


@dataclass(frozen=True)
class RuleFile:
    """One parsed rule file. ``version`` is the first 12 hex digits of the file's sha256."""

    name: str
    version: str
    table: Mapping[str, Any]


@cache
def load(name: str) -> RuleFile:
    """Read ``localmem/rules/<name>.toml``. KeyError for a name not in ``NAMES``: a bug, not a user's mistake."""
    if name not in NAMES:
        raise KeyError(f"no rule file named {name!r}; there are {', '.join(NAMES)}")
    content = resources.files(__name__).joinpath(f"{name}.toml").read_bytes()
    # Hash without carriage returns: a checkout with Windows line ends has the same rules.
    digest = hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
    return RuleFile(name=name, version=digest[:12], table=tomllib.loads(content.decode("utf-8")))


def version() -> str:
    """One hash over all rule files, 12 hex digits, for the fingerprint of a decision."""
    joined = "".join(f"{name}:{load(name).version};" for name in NAMES)
    return hashlib.sha256(joined.encode()).hexdigest()[:12]
