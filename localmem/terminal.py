"""What the command line prints: JSON, tables for people, one line a row for pipes, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

SHORT_ID = 8  # from the end: a UUIDv7 begins with its time, so all memories of one minute begin alike
PLAIN_PROGRESS_S = 30.0  # between two lines of progress where stderr is no terminal
MARKS = {"ADD": "+", "UPDATE": "~", "DELETE": "-", "NOOP": "="}
STYLES = {"ADD": "green", "UPDATE": "yellow", "DELETE": "red", "NOOP": "cyan", "id": "cyan", "dim": "dim"}

# Stored text is not trusted: escape sequences could rewrite the screen, and direction marks hide what stands there.
_UNSAFE = dict.fromkeys(
    (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}"
)
_UNSAFE_IN_TEXT = {code: mark for code, mark in _UNSAFE.items() if chr(code) not in "\n\t"}


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column. ``flex`` columns share the room that is left and wrap; the others never do."""

    name: str
    style: str = ""
    flex: bool = False
    right: bool = False


def short(memory_id: str) -> str:
    """The end of an id, enough to name a memory by hand."""
    return memory_id[-SHORT_ID:]


def one_line(text: Any) -> str:
    """Any text as one line that can't steer the terminal."""
    return " ".join(str(text).split()).translate(_UNSAFE)


def safe(text: str) -> str:
    """Text with its lines, without what could steer the terminal."""
    return text.translate(_UNSAFE_IN_TEXT)


def day(iso: str | None) -> str:
    """The date of an ISO timestamp; "" for none."""
    return iso[:10] if iso else ""


def minute(iso: str | None) -> str:
    """Date and time of an ISO timestamp, to the minute, UTC."""
    return iso[:16].replace("T", " ") if iso else ""


# -------------------------------------------------------------------- stdout


def print_json(shape: Mapping[str, Any]) -> None:
    """One JSON object. Beyond ASCII as it is where stdout can hold it, else escaped."""
    ascii_only = (sys.stdout.encoding or "ascii").replace("-", "").casefold() not in ("utf8", "utf8sig")
    write(json.dumps(dict(shape.items()), ensure_ascii=ascii_only, indent=2 if sys.stdout.isatty() else None))


def write(text: str, style: str = "") -> None:
    """A line on stdout, never cut or wrapped."""
    if style and sys.stdout.isatty():
        _console(sys.stdout).print(text, style=STYLES.get(style, style), markup=False, highlight=False, soft_wrap=True)
        return
    sys.stdout.write(f"{text}\n")


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> None:
    """On a terminal a table within its width; into a pipe one line a row, columns separated by tabs, no heading."""
    if not rows:
        return
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(one_line("" if cell is None else cell) for cell in row) + "\n")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(
            column.name,
            style=STYLES.get(column.style, column.style),
            justify="right" if column.right else "left",
            no_wrap=not column.flex,
            ratio=None,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(one_line("" if cell is None else cell)) for cell in row))
    _console(sys.stdout).print(table)


def id_cell(memory_id: str | None) -> str:
    """An id for a table: short for people, whole for pipes, "" for none."""
    if memory_id is None:
        return ""
    return short(memory_id) if sys.stdout.isatty() else memory_id


# -------------------------------------------------------------------- stderr


def say(text: str, style: str = "") -> None:
    """Words for the person, on stderr."""
    if style and sys.stderr.isatty():
        _console(sys.stderr).print(text, style=STYLES.get(style, style), markup=False, highlight=False, soft_wrap=True)
        return
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def ask(question: str) -> bool:
    """Whether the person says yes; no where nobody answers. click's own prompt would write a blank to stdout."""
    sys.stderr.write(question)
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    return answer.strip().casefold() in ("y", "yes")


def print_error(error: Mapping[str, Any], *, as_json: bool) -> None:
    """``{"error": {"type", "message", …}}`` or one line, on stderr either way: stdout holds data only."""
    if as_json:
        say(json.dumps({"error": dict(error)}))
        return
    say(f"error: {safe(str(error['message']))}", "bold red")


@contextmanager
def progress(label: str, total: int, *, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Yields ``step(done, note)``. A bar with the time left on a terminal; elsewhere a line every half minute."""
    if quiet:
        yield lambda done, note: None
    elif sys.stderr.isatty():
        with _bar(label, total) as step:
            yield step
    else:
        yield _plain_steps(label, total)


@contextmanager
def waiting(text: str, *, quiet: bool) -> Iterator[None]:
    """A spinner with a word beside it while something takes seconds; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield
    else:
        with _console(sys.stderr).status(text):
            yield


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a call for each step of a long job; on a terminal the running one has a spinner."""
    if quiet:
        yield lambda text: None
    elif not sys.stderr.isatty():
        yield say
    else:
        console = _console(sys.stderr)
        with console.status("") as status:

            def step(text: str) -> None:
                console.print(one_line(text), markup=False, style="dim", soft_wrap=True)
                status.update("working")

            yield step


def _plain_steps(label: str, total: int) -> Callable[[int, str], None]:
    told_at = time.monotonic()

    def step(done: int, note: str) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= PLAIN_PROGRESS_S:
            told_at = time.monotonic()
            say(f"{label}: {done:,} of {total:,}{'  ' + note if note else ''}")

    return step


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    note = TextColumn("{task.fields[note]}", markup=False)
    name = TextColumn("{task.description}", markup=False)
    bar = Progress(
        name,
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        note,
        TimeRemainingColumn(),
        console=_console(sys.stderr),
        transient=True,
    )
    with bar:
        task = bar.add_task(one_line(label)[:24], total=total or None, note="")
        yield lambda done, text: bar.update(task, completed=done, note=one_line(text))


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    # With NO_COLOR rich still writes bold and dim; a person who sets it wants plain text.
    return Console(file=stream, highlight=False, color_system=None) if console.no_color else console


def can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
