"""Commands that change memories: add, update, delete, resume; and what is kept of the turns: retention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from localmem import terminal
from localmem.cli.options import (
    Options,
    cli,
    find_id,
    json_object,
    open_memory,
    pass_options,
    print_changes,
    shared,
    text_of,
    when,
    within,
)
from localmem.config import RETENTIONS
from localmem.errors import NotFoundError
from localmem.terminal import say

if TYPE_CHECKING:
    from localmem.memory import Memory


@cli.command()
@click.argument("text", nargs=-1, metavar="TEXT…")
@click.option("--role", type=click.Choice(["user", "assistant", "system", "tool", "document"]), default="user")
@click.option("--name", help="Who says it, where several people talk.")
@click.option("--infer/--no-infer", default=True, help="Extract facts (default), or store the text as it is.")
@click.option(
    "--metadata", callback=json_object, metavar="JSON", help="Kept with each memory; search can filter by it."
)
@click.option("--timestamp", callback=when, metavar="WHEN", help="When it was said; now if not given.")
@click.option("--no-wait", is_flag=True, help="Record it and end; a worker reads it.")
@shared
@pass_options
def add(
    options: Options,
    text: tuple[str, ...],
    role: str,
    name: str | None,
    infer: bool,
    metadata: dict[str, Any] | None,
    timestamp: str | None,
    no_wait: bool,
) -> None:
    """Remember something that was said.

    The words make one message; "-" reads it from stdin.

    \b
    --json: {"results": [{"id", "memory", "event", "previous_memory"?}],
      "episode_id"}; event is ADD, UPDATE or DELETE
    """
    message = {"role": role, "content": text_of(text, "TEXT"), **({"name": name} if name else {})}
    how: dict[str, Any] = {"infer": infer, "metadata": metadata, "timestamp": timestamp, "wait": not no_wait}
    quiet = options.quiet or not infer or no_wait
    with open_memory(options, create=True) as memory, terminal.waiting("reading", quiet=quiet):
        added = memory.add([message], **how, **options.scope)
    if options.json:
        terminal.print_json(added)
        return
    print_changes(added["results"])
    if not added["results"] and not options.quiet:
        say("recorded; `localmem worker` reads it" if "status" in added else "nothing new to remember", "dim")


@cli.command()
@click.argument("memory_id", metavar="ID")
@click.argument("text", nargs=-1, metavar="TEXT…")
@click.option("--metadata", callback=json_object, metavar="JSON", help="Replaces the memory's metadata.")
@click.option("--timestamp", callback=when, metavar="WHEN", help="Since when it is true; now if not given.")
@shared
@pass_options
def update(
    options: Options, memory_id: str, text: tuple[str, ...], metadata: dict[str, Any] | None, timestamp: str | None
) -> None:
    """Put a memory in other words. The old ones stay in its history.

    ID may be the beginning or end of one; "-" as TEXT reads stdin.

    \b
    --json: {"message", "results": [{"id", "memory", "event", "previous_memory"}]}
    """
    wording = None if metadata is not None and not text else text_of(text, "TEXT")
    with open_memory(options) as memory:
        wanted = find_id(memory, options, memory_id)
        done = within(memory, options).update(wanted, wording, metadata=metadata, timestamp=timestamp)
    if options.json:
        terminal.print_json(done)
    else:
        print_changes(done["results"])


@cli.command()
@click.argument("memory_ids", nargs=-1, metavar="ID…")
@click.option("--all", "everything", is_flag=True, help="Every memory of the scope.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask before --all.")
@shared
@pass_options
def delete(options: Options, memory_ids: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Take memories out of use. Their history stays readable.

    Each ID may be the beginning or end of one. --all asks first.

    \b
    --json: {"deleted": number,
      "results": [{"id", "memory", "event", "previous_memory"}]}
    """
    if bool(memory_ids) == everything:
        raise click.UsageError("give the ids of the memories to delete, or --all")
    with open_memory(options) as memory:
        if everything:
            done = _delete_all(memory, options, yes=yes)
        else:
            wanted = list(dict.fromkeys(find_id(memory, options, each) for each in memory_ids))
            for each in wanted:  # all known, or none is deleted
                if within(memory, options).get(each) is None:
                    raise NotFoundError(f"no memory has the id {each}, or it is deleted already; nothing was deleted")
            changes = [change for each in wanted for change in within(memory, options).delete(each)["results"]]
            done = {"deleted": len(changes), "results": changes}
    if options.json:
        terminal.print_json(done)
        return
    print_changes(done["results"])
    if everything:
        terminal.write(f"{done['deleted']} deleted")


def _delete_all(memory: Memory, options: Options, *, yes: bool) -> dict[str, Any]:
    count = len(memory.get_all(**options.scope)["results"])
    if count and not yes and not terminal.ask(f"Delete all {count} memories of {options.who}? [y/N] "):
        raise click.Abort
    return {"deleted": memory.delete_all(**options.scope)["deleted"], "results": []}


@cli.command()
@click.option("--without-raw-proof", is_flag=True, help="End purges whose pieces to be sought in the file are lost.")
@shared
@pass_options
def resume(options: Options, without_raw_proof: bool) -> None:
    """Finish what a missing or failed model left pending, and incomplete purges.

    The whole file, or with --user, --agent or --run the episodes of that scope.

    \b
    --json: {"episodes": number, "pending": number,
      "results": [{"id", "memory", "event"}],
      "purges": [{"id", "complete": bool, "reason", "certificate"}]}
    """
    with open_memory(options) as memory:
        purges = [] if options.ids else memory.finish_purges(without_raw_proof=without_raw_proof)
        waiting, changes, episodes = len(memory.pending(**options.ids)), list[Mapping[str, Any]](), 0
        with terminal.progress("resume", waiting, quiet=options.quiet or not waiting) as step:
            while (done := memory.resume(limit=1, **options.ids))["episodes"]:
                episodes += 1
                changes += done["results"]
                step(episodes, "")
        left = len(memory.pending(**options.ids))
    if options.json:
        terminal.print_json({"episodes": episodes, "pending": left, "results": changes, "purges": purges})
        return
    print_changes(changes)
    for each in purges:
        say(f"purge {each['id']} is done" if each["complete"] else f"purge {each['id']} waits: {each['reason']}")
    if not options.quiet:
        say(f"{episodes} finished" if episodes else "nothing was pending", "dim")


@cli.command()
@click.argument("wanted", type=click.Choice(RETENTIONS), required=False, metavar=f"[{'|'.join(RETENTIONS)}]")
@click.option("-y", "--yes", is_flag=True, help="Don't ask before words are taken out of the file.")
@shared
@pass_options
def retention(options: Options, wanted: str | None, yes: bool) -> None:
    """Show or set which turns keep their words once their facts are extracted.

    all: every turn. evidence: those that a memory was said in. none: no turn.
    A stricter setting is carried out at once, for all of the file; asks first.

    \b
    --json: {"retention", "dropped"?: number}
    """
    with open_memory(options) as memory:
        before, dropped = memory.retention, None
        if wanted is not None and wanted != before:
            stricter = RETENTIONS.index(wanted) > RETENTIONS.index(before)
            question = f"Take the words of turns out of {memory.path} for good, keeping {wanted}? [y/N] "
            if stricter and not yes and not terminal.ask(question):
                raise click.Abort
            dropped = memory.retain(wanted)["dropped"]
        found = memory.retention
    if options.json:
        terminal.print_json({"retention": found, **({} if dropped is None else {"dropped": dropped})})
        return
    terminal.write(found)
    if dropped and not options.quiet:
        say(f"{dropped} turns lost their words", "dim")
