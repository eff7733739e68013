"""The import commands: memories of other libraries."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from localmem import terminal
from localmem.cli.options import Command, Options, cli, open_memory, pass_options, shared
from localmem.terminal import one_line, say

OWNERS_SHOWN = 20


@cli.group("import", invoke_without_command=True)
@click.pass_context
def import_(ctx: click.Context) -> None:
    """Bring memories over from another library: mem0."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


import_.command_class = Command


@import_.command()
@click.argument("path", metavar="PATH")
@click.option("--dry-run", is_flag=True, help="Only say what would be added and what not; writes nothing.")
@click.option("--collection", metavar="NAME", help="Only this collection of a Qdrant folder; without it all.")
@click.option("--history", metavar="FILE", help="mem0's history.db, if it lies neither in the folder nor beside it.")
@click.option("--no-history", is_flag=True, help="Leave the former texts behind; they can't be added later.")
@shared
@pass_options
def mem0(
    options: Options, /, path: str, dry_run: bool, collection: str | None, history: str | None, no_history: bool
) -> int:
    """Add the memories of a mem0 store, with their metadata, times and former texts.

    PATH is mem0's Qdrant folder (vector_store.config.path; /tmp/qdrant if none was
    configured), a JSON file of what get_all() returned, or OpenMemory's export (a zip).
    Each memory keeps its user, agent and run; those without any are skipped, or go to
    --user (--agent, --run). No model is needed: the texts stay as they are. Former texts
    come from mem0's history.db; a folder without one needs --history or --no-history.

    All are written, or none. The same command again adds what is new.

    \b
    --json: {"source", "history": file or null, "history_missing", "found",
      "added", "known", "versions", "skipped": {reason: count}, "dry_run",
      "owners": [{"user_id"?, "agent_id"?, "run_id"?, "memories"}]}
    """
    from localmem.mem0_import import import_mem0

    if no_history and history is not None:
        raise click.UsageError("--history and --no-history exclude each other")
    former = False if no_history else history
    where = {"collection": collection, "history": former, "dry_run": dry_run, **options.ids}
    store = _for_dry_run(options) if dry_run else options
    with (
        open_memory(store, create=True) as memory,
        terminal.progress(Path(path).name, 100, quiet=options.quiet) as step,
    ):

        def progress(done: int, total: int) -> None:
            step(done * 100 // total, f"{done:,} texts")

        told = import_mem0(memory, path, progress=progress, **where)
    if options.json:
        terminal.print_json(told)
    else:
        _print(told)
        if not options.quiet:
            _say_what_next(told, options.store)
    return 0


def _for_dry_run(options: Options) -> Options:
    """A dry run makes no file: where there is none it looks at an empty store in memory."""
    from localmem.config import settings

    there = Path(options.store).expanduser() if options.store else settings().store
    return options if there.exists() else replace(options, store=":memory:", checkpoint=None)


def _print(told: Mapping[str, Any]) -> None:
    verb = "would be added" if told["dry_run"] else "added"
    known = f", {told['known']:,} there already" if told["known"] else ""
    former = told["versions"] - told["added"]
    terminal.write(
        f"{one_line(told['source'])}: {told['added']:,} of {told['found']:,} memories {verb}{known}"
        + (f", with {former:,} former texts" if former else "")
    )
    for owner in told["owners"][:OWNERS_SHOWN]:
        ids = " ".join(f"{name.removesuffix('_id')} '{one_line(owner[name])}'" for name in owner if name != "memories")
        terminal.write(f"  {owner['memories']:,}  {ids}")
    if len(told["owners"]) > OWNERS_SHOWN:
        terminal.write(f"  … and {len(told['owners']) - OWNERS_SHOWN:,} more (--json lists all)")
    for reason, count in told["skipped"].items():
        terminal.write(f"  {count:,} skipped, {one_line(reason)}")


def _say_what_next(told: Mapping[str, Any], store: str | None) -> None:
    from localmem.mem0_import import without_history

    if told["dry_run"] and told["added"]:
        if told["history_missing"]:
            say(without_history(one_line(told["source"])))
        say("nothing was written; run it without --dry-run to add them", "dim")
    elif told["added"]:
        owner = told["owners"][0]
        ids = " ".join(f"--{n.removesuffix('_id')} {shlex.quote(owner[n])}" for n in reversed(owner) if n != "memories")
        file = f" --file {shlex.quote(store)}" if store else ""
        say(f"look at them with: localmem list {one_line(ids + file)}", "dim")
