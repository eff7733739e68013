"""Commands that only look: search, list, show, history; and the file's upkeep: check, reindex, reembed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from localmem import terminal
from localmem.cli.options import (
    RECORD_COLUMNS,
    Options,
    cli,
    existing,
    find_id,
    json_object,
    key_options,
    open_memory,
    pass_options,
    print_records,
    shared,
    when,
    within,
)
from localmem.config import DURABILITIES
from localmem.errors import NotFoundError
from localmem.terminal import Column, id_cell, one_line, say

if TYPE_CHECKING:
    from localmem.memory import Memory


NOTHING = {
    None: "nothing is remembered",
    "contested": "no memories contradict each other",
    "unsupported": "no facts were kept out",
    "pending": "nothing is pending",
    "deleted": "nothing was deleted",
    "history": "no wording was ever superseded or deleted",
}


@cli.command()
@click.argument("query", nargs=-1, metavar="QUERY…", required=True)
@click.option("-n", "--limit", type=click.IntRange(1), default=10, show_default=True, help="At most that many.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Leave out what scores below.")
@click.option(
    "--filter", "filters", callback=json_object, metavar="JSON", help='On metadata: \'{"source": {"in": ["diary"]}}\'.'
)
@click.option(
    "--include",
    type=click.Choice(["facts", "pending", "episodes", "all", "history"]),
    default="pending",
    show_default=True,
    help="Facts alone, also words not extracted yet, all turns, everything, or superseded facts too.",
)
@click.option("--as-of", callback=when, metavar="WHEN", help="What was true then.")
@click.option("--known-at", callback=when, metavar="WHEN", help="What the file knew then.")
@click.option("--explain", is_flag=True, help="Show how each score came about.")
@shared
@pass_options
def search(options: Options, /, query: tuple[str, ...], explain: bool, **how: Any) -> None:
    """Find the memories that matter for a question, best first.

    \b
    --json: {"results": [{"id", "memory", "score", "metadata", "created_at", …}]}
    score is between 0 and 1. Raw words have "turn": true and no id.
    """
    with open_memory(options) as memory:
        hits = memory.search(" ".join(query), explain=explain, **how, **options.scope)
    if options.json:
        terminal.print_json(hits)
        return
    columns = [
        Column("score", right=True),
        *RECORD_COLUMNS,
        *([Column("signals", "dim", flex=True)] if explain else []),
    ]
    terminal.print_table(columns, [_hit_row(hit, explain) for hit in hits["results"]])
    if not hits["results"] and not options.quiet:
        say(f"nothing found for {options.who}", "dim")


def _hit_row(hit: Mapping[str, Any], explain: bool) -> list[str]:
    mark = " (superseded)" if hit.get("superseded") else " (as said)" if hit.get("turn") else ""
    since = hit.get("valid_from") or hit["created_at"]
    row = [f"{hit['score']:.2f}", id_cell(hit["id"]), f"{hit['memory']}{mark}", terminal.day(since)]
    return [*row, _told(hit["signals"])] if explain else row


def _told(signals: Mapping[str, float]) -> str:
    """Each signal; behind a pool's the place there: "vector=0.43#2"."""
    places = {name: f"#{place}" for name, place in signals.items() if name.endswith("_rank")}
    return " ".join(
        f"{name}={value:.2f}{places.get(f'{name}_rank', '')}" for name, value in signals.items() if name not in places
    )


@cli.command("list")
@click.option("--contested", "view", flag_value="contested", help="Memories that contradict each other.")
@click.option("--unsupported", "view", flag_value="unsupported", help="Facts kept out: the words did not support them.")
@click.option("--pending", "view", flag_value="pending", help="What waits for `localmem resume`.")
@click.option("--deleted", "view", flag_value="deleted", help="Memories taken out of use, in their last wording.")
@click.option("--history", "view", flag_value="history", help="Every superseded or deleted wording.")
@click.option("-n", "--limit", type=click.IntRange(1), help="At most that many.")
@click.option("--as-of", callback=when, metavar="WHEN", help="What was true then.")
@click.option("--known-at", callback=when, metavar="WHEN", help="What the file knew then.")
@shared
@pass_options
def list_(options: Options, view: str | None, limit: int | None, as_of: str | None, known_at: str | None) -> None:
    """What is remembered, oldest first.

    \b
    --json: {"results": [{"id", "memory", "metadata", "created_at",
      "valid_from", …}]}; --contested adds "contested_with", --unsupported
      lists decisions {"id", "fact", "quote", "guards", …}, and --pending
      episodes {"episode_id", "said_at", "messages", "error", …}
    """
    if view and (as_of or known_at):
        raise click.UsageError(f"--{view} can't be combined with --as-of or --known-at")
    with open_memory(options) as memory:
        found = _listed(memory, options, view, as_of=as_of, known_at=known_at)
    found = found[:limit] if limit else found
    if options.json:
        terminal.print_json({"results": found})
    else:
        _print_listed(found, view)
        if not found and not options.quiet:
            whole_file = view == "pending" and not options.ids
            say(f"{NOTHING[view]}{'' if whole_file else f' for {options.who}'}", "dim")


def _listed(memory: Memory, options: Options, view: str | None, **moments: Any) -> list[Any]:
    if view == "contested":
        return list(memory.contested(**options.scope)["results"])
    if view == "unsupported":
        return memory.decisions(unsupported=True, **options.scope)
    if view == "pending":
        return memory.pending(**options.ids)
    everything = list(memory.get_all(**moments, **options.scope)["results"])
    if view is None:
        return everything
    past = memory.all_versions(**options.scope)
    if view == "history":
        return past
    live = {each["id"] for each in everything}
    return list({each["id"]: each for each in past if each["id"] not in live}.values())


def _print_listed(found: Sequence[Mapping[str, Any]], view: str | None) -> None:
    if view == "unsupported":
        columns = [Column("fact", flex=True), Column("not in the words", flex=True), Column("because", flex=True)]
        terminal.print_table(columns, [(e["fact"], e["quote"], ", ".join(e["guards"])) for e in found])
    elif view == "pending":
        columns = [Column("episode", "id"), Column("said at"), Column("messages", right=True), Column("why", flex=True)]
        rows = [
            (id_cell(e["episode_id"]), terminal.minute(e["said_at"]), e["messages"], e["error"] or "not started")
            for e in found
        ]
        terminal.print_table(columns, rows)
    elif view == "contested":
        rows = [
            (id_cell(e["id"]), e["memory"], terminal.day(e["valid_from"]), ", ".join(map(id_cell, e["contested_with"])))
            for e in found
        ]
        terminal.print_table([*RECORD_COLUMNS, Column("against", "id", flex=True)], rows)
    else:
        print_records(found)


@cli.command()
@click.argument("memory_id", metavar="ID")
@shared
@pass_options
def show(options: Options, memory_id: str) -> None:
    """One memory with everything kept about it.

    ID may be the beginning or end of one.

    \b
    --json: {"id", "memory", "hash", "metadata", "created_at", "updated_at",
      "valid_from", …}
    """
    with open_memory(options) as memory:
        wanted = find_id(memory, options, memory_id)
        record = within(memory, options).get(wanted)
    if record is None:
        raise NotFoundError(f"no memory has the id {wanted}; if it was deleted, `localmem history` still shows it")
    if options.json:
        terminal.print_json(record)
        return
    for name, value in record.items():
        if name != "hash" and value not in (None, {}, []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            terminal.write(f"{name:<14}  {terminal.one_line(text)}")


@cli.command()
@click.argument("memory_id", metavar="ID")
@shared
@pass_options
def history(options: Options, memory_id: str) -> None:
    """The life of a memory.

    Each wording, since when it is true, why, and the words it came from. ID may be the
    beginning or end of one; deleted memories have a history too.

    \b
    --json: {"results": [{"event", "old_memory", "new_memory", "version",
      "valid_from", "valid_to", "reason",
      "evidence": [{"quote", "said_at", "kind", …}], …}]}
    """
    with open_memory(options) as memory:
        wanted = find_id(memory, options, memory_id, deleted=True)
        versions = within(memory, options).history(wanted)
    if options.json:
        terminal.print_json({"results": versions})
        return
    for version in versions:
        until = f" to {terminal.day(version['valid_to'])}" if version["valid_to"] else ""
        text = one_line(version["new_memory"] or version["old_memory"] or "")
        line = f"{terminal.MARKS[version['event']]} {text}"
        terminal.write(f"{line}  ({terminal.day(version['valid_from'])}{until}, {version['reason']})", version["event"])
        for evidence in version["evidence"]:
            gone = "(taken back)" if evidence["quote"] is None else "(words not kept)"
            said = f'"{one_line(evidence["quote"])}"' if evidence["quote"] else gone
            again = " again" if evidence["kind"] == "confirm" else ""
            terminal.write(f"    said{again} {terminal.minute(evidence['said_at'])}: {said}", "dim")


@cli.command()
@shared
@pass_options
def check(options: Options) -> int:
    """Look for broken invariants in the file. Exit 1 when there are any.

    \b
    --json: {"ok": true or false, "problems": [sentence]}
    """
    with open_memory(options) as memory:
        problems = memory.check()
    if options.json:
        terminal.print_json({"ok": not problems, "problems": problems})
    else:
        terminal.write("\n".join(map(one_line, problems)) if problems else "ok")
    return 1 if problems else 0


@cli.command()
@shared
@pass_options
def reindex(options: Options) -> None:
    """Rebuild the vector and word indexes from the memories themselves.

    \b
    --json: {"ok": true}
    """
    with open_memory(options) as memory:
        memory.reindex()
    terminal.print_json({"ok": True}) if options.json else terminal.write("ok")


@cli.command()
@click.argument("embedder", required=False, metavar="[EMBEDDER]")
@shared
@pass_options
def reembed(options: Options, embedder: str | None) -> None:
    """Make all vectors anew with another embedder.

    EMBEDDER is one of those that `localmem models list` shows; without it the one for new stores. Until the last
    vector is there the store works as before. Interrupted, the same command goes on where it stopped.

    \b
    --json: {"embedder", "previous", "memories": number, "turns": number}
    """
    from localmem.embedders import reembed as make_anew

    existing(options)
    durability = options.durability or DURABILITIES[0]
    with contextlib.ExitStack() as shown:
        step: Callable[[int, str], None] | None = None

        def told(there: int, wanted: int) -> None:
            nonlocal step
            step = step or shown.enter_context(terminal.progress("vectors", wanted, quiet=options.quiet))
            step(there, "")

        done = make_anew(options.store, embedder, progress=told, durability=durability, **key_options(options))
    if options.json:
        terminal.print_json(done)
    elif done["previous"] == done["embedder"]:
        terminal.write(f"the vectors are those of {done['embedder']} already")
    else:
        terminal.write(f"{done['previous']} -> {done['embedder']}: {done['memories']} memories, {done['turns']} turns")
