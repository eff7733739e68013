"""The main job on scripts/sample_chat.json, shown step by step. Started by quickstart.py inside ``.venv``."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from localmem import Memory, config, secrets
from localmem.errors import LocalmemError

ROOT = Path(__file__).resolve().parent.parent
CHAT = Path(__file__).with_name("sample_chat.json")
USER = "mara"
SEARCHES = (
    "Where do I work?",
    "When is my cello lesson?",
    "Where am I going on holiday?",
    "Do I eat meat?",
    "Who is Ines?",
)
MARKS = {  # event -> (mark, word, style); the word carries the meaning where there is no colour
    "ADD": ("+", "added", "green"),
    "UPDATE": ("~", "updated", "yellow"),
    "DELETE": ("-", "deleted", "red"),
    "NOOP": ("=", "known", "cyan"),
    "KEPT OUT": ("?", "kept out", "magenta"),
    "": ("·", "nothing to keep", "dim"),
}

Shape = Mapping[str, Any]
console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)


def main() -> int:
    store = config.settings().home / "quickstart.db"
    store.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-wal", "-shm"):  # a fresh one each time: the demo always tells the same story
        Path(f"{store}{suffix}").unlink(missing_ok=True)
    sessions = json.loads(CHAT.read_text("utf-8"))
    try:
        with Memory(store) as memory:
            took = [seconds for session in sessions for seconds in tell(memory, session)]
            title("What is remembered now")
            show_memories(memory)
            title("The life of one memory")
            show_history(memory)
            title("Searches")
            show_searches(memory)
            broken = memory.check()
        title("Kept in one file")
        show_file(store, sessions, took, broken)
    except LocalmemError as error:
        console.print(f"\n[bold red]The demo stopped:[/] {error}", markup=True)
        return 1
    title("Now you")
    show_next(store)
    return 0


# -- the conversation -------------------------------------------------------------------------------------------------


def tell(memory: Memory, session: Shape) -> Iterator[float]:
    """Feed a session exchange by exchange, showing what each came to; the seconds of each add."""
    began = datetime.fromisoformat(session["timestamp"])
    title(f"{session['title']} · {began.day} {began:%B %Y}")
    messages = session["messages"]
    for start in range(0, len(messages), 2):
        exchange = messages[start : start + 2]
        masked = secrets.mask(exchange[0]["content"]).text
        show(("Mara", "bold cyan", 5), (masked, ""))
        if masked != exchange[0]["content"]:
            show(("", "", 5), ("! masked", "red", 11), ("the secret, before anything is written", ""))
        at = time.perf_counter()
        with console.status("[dim]reading[/]", spinner="dots"):
            said = began + timedelta(minutes=start)
            added = memory.add(exchange, user_id=USER, timestamp=said)
        took = time.perf_counter() - at
        log = memory.decisions(episode_id=added["episode_id"], user_id=USER)
        for number, (mark, style, text) in enumerate(outcome(added["results"], log)):
            end = f"{took:.1f} s" if number == 0 else ""
            show(("", "", 5), (mark, style, 11 if text else 17), (text, ""), (end, "dim", 6))
        yield took


def outcome(changes: Sequence[Shape], log: Sequence[Shape]) -> Iterator[tuple[str, str, str]]:
    """What happened to the memories, then what was seen and not stored: (mark and word, style, text)."""
    told = []
    for change in changes:
        mark, word, style = MARKS[change["event"]]
        before = change.get("previous_memory")
        if change["event"] == "DELETE":
            asked = not any(each["op"] == "DELETE" for each in log)  # a forget request leaves no words in the log
            told.append((f"{mark} {'forgotten' if asked else word}", style, before or change["memory"]))
        else:
            told.append((f"{mark} {word}", style, change["memory"]))
        if change["event"] == "UPDATE":
            told.append(("  before", "dim", before))
    for each in log:
        event = "KEPT OUT" if each["unsupported"] else each["op"]
        if event in ("KEPT OUT", "NOOP"):
            mark, word, style = MARKS[event]
            told.append((f"{mark} {word}", style, each["fact"]))
    mark, word, style = MARKS[""]
    yield from told or [(f"{mark} {word}", style, "")]


def show(*cells: tuple[str, str] | tuple[str, str, int]) -> None:
    """One row: (text, style) takes the room that is left, (text, style, width) has its own; long text wraps inside."""
    grid = Table.grid(padding=(0, 1), expand=True)
    for cell in cells:
        fixed = cell[2] if len(cell) == 3 else None
        right = fixed is not None and cell is cells[-1]
        grid.add_column(
            width=fixed, ratio=None if fixed else 1, justify="right" if right else "left", no_wrap=bool(fixed)
        )
    grid.add_row(*(Text(cell[0], style=cell[1]) for cell in cells))
    with console.capture() as drawn:
        console.print(grid)
    for line in drawn.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def title(text: str) -> None:
    console.print()
    console.rule(Text(text, style="bold"), align="left", style="dim")


# -- what came of it --------------------------------------------------------------------------------------------------


def show_memories(memory: Memory) -> None:
    for each in memory.get_all(user_id=USER)["results"]:
        versions = f"{each['version']} versions, " if each["version"] > 1 else ""
        show((each["memory"], ""), (f"{versions}since {day(each['valid_from'])}", "dim", 31))


def show_history(memory: Memory) -> None:
    """The memory that changed most often, or one that was deleted."""
    heads = memory.get_all(user_id=USER)["results"]
    changed = [each["id"] for each in sorted(heads, key=lambda each: -each["version"]) if each["version"] > 1]
    gone = [each["id"] for each in memory.all_versions(user_id=USER)]
    chosen = next(iter([*changed, *gone, *(each["id"] for each in heads)]), None)
    if chosen is None:
        console.print("Nothing was remembered.")
        return
    for version in memory.history(chosen):
        mark, word, style = MARKS[version["event"]]
        until = f" to {day(version['valid_to'])}" if version["valid_to"] else ""
        text = version["new_memory"] or version["old_memory"]
        show((f"{mark} {word}", style, 9), (text, ""))
        show(("", "", 9), (f"true from {day(version['valid_from'])}{until}", "dim"))
        for evidence in version["evidence"][:1]:
            if evidence["quote"]:
                show(("", "", 9), (f'said on {day(evidence["said_at"])}: "{evidence["quote"]}"', "dim"))


def show_searches(memory: Memory) -> None:
    for query in SEARCHES:
        at = time.perf_counter()
        hits = memory.search(query, user_id=USER, limit=2)["results"]
        took = (time.perf_counter() - at) * 1e3
        show((query, "bold"), (f"{took:.0f} ms", "dim", 7))
        for hit in hits:
            show(("", "", 1), (f"{hit['score']:.2f}", "dim", 4), (hit["memory"], ""))
        if not hits:
            show(("", "", 1), ("nothing", "dim"))


def show_file(store: Path, sessions: Sequence[Shape], took: Sequence[float], broken: Sequence[str]) -> None:
    words = {word for each in sessions for said in each["messages"] for word in said["content"].split()}
    token = next(word.strip(".,") for word in words if word.startswith("ghp_"))
    found = token.encode() in store.read_bytes()
    for name, text in (
        ("file", f"{near(store)}, {store.stat().st_size / 1e3:,.0f} KB"),
        ("time", f"{len(took)} exchanges in {sum(took):.0f} s, the slowest {max(took):.1f} s"),
        ("secret", "FOUND IN THE FILE" if found else "masked before anything was written: it is not in the file"),
        ("check", "; ".join(broken) if broken else "every invariant of the file holds"),
        ("network", "not used: model, embedder and database ran inside this process"),
    ):
        show((name, "dim", 8), (text, "bold red" if "FOUND" in text else ""))


def show_next(store: Path) -> None:
    """Commands that work as printed, in the shell that ran this."""
    home, activate = config.settings().home, Path(sys.prefix) / "bin" / "activate"
    names = {"LOCALMEM_HOME": str(home), "LOCALMEM_DB": str(store), "LOCALMEM_USER": USER}
    if os.name == "nt":
        lines = [f'& "{Path(sys.prefix) / "Scripts" / "Activate.ps1"}"']
        lines += [f'$env:{name} = "{value}"' for name, value in names.items()]
    else:
        lines = [f"source {shlex.quote(near(activate))}"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in names.items()]
    lines += ['localmem search "evening plans"', 'localmem add "My cello lessons are on Mondays now."', "localmem list"]
    for text in lines:
        console.out(f"  {text}", highlight=False)
    console.print("\nThe first lines point at the sample's file; without them, localmem uses your own data folder.")
    console.print("README.md has the same in Python. python3 scripts/test.py runs the tests.")


def near(path: Path) -> str:
    """The path as the user would type it: relative to the current folder when that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive on Windows
        return str(path)
    return relative if len(relative) < len(str(path)) else str(path)


def day(iso: str) -> str:
    moment = datetime.fromisoformat(iso)
    return f"{moment.day} {moment:%b %Y}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
