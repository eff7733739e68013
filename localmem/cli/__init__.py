"""The command line. Data on stdout, words on stderr, ``--json`` everywhere; exit 0 done, 1 failed, 2 misused.

Every command talks to a Memory and to nothing below it. With ``--json`` stdout holds exactly one JSON object, whose
shape the command's help names, and an error is ``{"error": {"type", "message"}}`` on stderr.
"""

from __future__ import annotations

from typing import NoReturn

from localmem.cli import (  # each adds its commands
    doctoring,
    importing,
    ingesting,
    keeping,
    models,
    reading,
    serving,
    working,
    writing,
)
from localmem.cli.options import cli


def main() -> NoReturn:
    """The ``localmem`` command."""
    cli.main(prog_name="localmem")


__all__ = [
    "cli",
    "doctoring",
    "importing",
    "ingesting",
    "keeping",
    "main",
    "models",
    "reading",
    "serving",
    "working",
    "writing",
]
