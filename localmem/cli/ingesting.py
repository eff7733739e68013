"""The ingest command: conversation files into memories."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localmem import terminal
from localmem.cli.options import INTERRUPTED, Options, cli, json_object, open_memory, pass_options, shared, when
from localmem.terminal import one_line, say

if TYPE_CHECKING:
    from localmem.feed import Tally
    from localmem.memory import Memory
    from localmem.transcripts import Exchange, Transcript


def grouping(ctx: click.Context, param: click.Parameter, value: str) -> str | int:
    """How many messages go into one add: a word, or a number of at least 1."""
    if value in ("exchange", "turn", "session"):
        return value
    if value.isdigit() and int(value) >= 1:
        return int(value)
    raise click.BadParameter(f"{value!r} is neither exchange, turn, session nor a number of messages")


@cli.command()
@click.argument("files", nargs=-1, metavar="FILE…", required=True)
@click.option(
    "--exchange",
    "by",
    callback=grouping,
    default="exchange",
    metavar="HOW",
    help="What goes into one add: exchange (default), turn, session, or a number of messages.",
)
@click.option("--infer/--no-infer", default=True, help="Extract facts (default), or store each message as it is.")
@click.option("--timestamp", callback=when, metavar="WHEN", help="When it was said, where the file does not say.")
@click.option("--date-order", type=click.Choice(["dmy", "mdy"]), help="How to read dates like 5/6/2024.")
@click.option("--metadata", callback=json_object, metavar="JSON", help="Kept with each memory, beside its source.")
@click.option("--again", is_flag=True, help="Also add what an earlier run of the file has added.")
@shared
@pass_options
def ingest(options: Options, /, files: tuple[str, ...], **how: Any) -> int:
    """Remember whole conversations from files ("-" is stdin).

    Takes OpenAI-style JSON (a list of messages, {"messages": […]}, a list of
    conversations), the same as JSONL, chat exports, and text with one "Name: text" a
    line, with dates in headings or before the lines.

    A user's message and the replies to it go into one add; between named people each
    turn does (--exchange turn, session or a number of messages changes that). Each
    memory's metadata names its "source".

    Ctrl-C stops it; the same command goes on where it stopped, and adds what is new in a
    file that has grown. Without --user a conversation goes to the "user_id" in the file,
    one between named people to its conversation id, all else to the default user.

    \b
    --json: {"files": [{"file", "exchanges", "added", "known", "resumed",
      "failed", "left_out", "seconds", "pending": [episode ids],
      "events": {"ADD", "UPDATE", "DELETE", "NOOP", "UNSUPPORTED"}}],
      "interrupted"}
    """
    read = [(_transcript(each, how["date_order"]), each) for each in files]  # a broken one is told before hours of work
    told_files, worst = [], None
    with open_memory(options, create=True) as memory:
        for transcript, _ in read:
            tally = _ingest_one(memory, options, transcript, **how)
            told_files.append(_tally_shape(transcript, tally))
            if not options.json:
                _print_tally(transcript, tally, quiet=options.quiet)
            if tally.failed or tally.error or tally.interrupted:
                worst = tally
            if tally.error or tally.interrupted:
                break
    if options.json:
        terminal.print_json({"files": told_files, "interrupted": bool(worst and worst.interrupted)})
    if worst and worst.error:
        raise worst.error
    return INTERRUPTED if worst and worst.interrupted else 1 if worst else 0


def _transcript(file: str, date_order: str | None) -> Transcript:
    from localmem import transcripts

    if file == "-":
        return transcripts.parse(sys.stdin.buffer.read(), "stdin", date_order=date_order)
    return transcripts.read(Path(file).expanduser(), date_order=date_order)


def _ingest_one(
    memory: Memory,
    options: Options,
    transcript: Transcript,
    *,
    by: str | int,
    infer: bool,
    timestamp: str | None,
    metadata: dict[str, Any] | None,
    again: bool,
    date_order: str | None,
) -> Tally:
    from localmem.feed import Feeding, feed
    from localmem.transcripts import exchanges

    def scope(exchange: Exchange) -> Mapping[str, Any]:
        return options.scope if options.ids or exchange.owner is None else {"user_id": exchange.owner}

    found = exchanges(transcript, by, infer=infer)
    how = Feeding(transcript.name, scope, infer, timestamp, metadata or {}, again)
    with terminal.progress(transcript.name, len(found), quiet=options.quiet) as step:
        return feed(memory, found, how, lambda tally: step(tally.done, tally.note()))


def _tally_shape(transcript: Transcript, tally: Tally) -> dict[str, Any]:
    return {
        "file": transcript.name,
        "exchanges": tally.total,
        "added": tally.added,
        "known": tally.known,
        "resumed": tally.resumed,
        "failed": tally.failed,
        "left_out": transcript.left_out,
        "seconds": round(tally.seconds, 3),
        "events": {event: tally.events[event] for event in ("ADD", "UPDATE", "DELETE", "NOOP", "UNSUPPORTED")},
        "pending": tally.pending,
    }


def _print_tally(transcript: Transcript, tally: Tally, *, quiet: bool) -> None:
    events = tally.events
    if tally.known == tally.total and not tally.resumed:
        there = f"all {tally.total} exchanges were there already"
        terminal.write(f"{one_line(transcript.name)}: {there} (--again adds them once more)")
        return
    known = f", {tally.known} there already" if tally.known else ""
    resumed = f", {tally.resumed} finished from before" if tally.resumed else ""
    terminal.write(
        f"{one_line(transcript.name)}: {tally.added} of {tally.total} exchanges added{known}{resumed}; memories: "
        f"{events['ADD']} added, {events['UPDATE']} updated, {events['DELETE']} deleted, {events['NOOP']} unchanged"
    )
    if quiet:
        return
    if transcript.left_out:
        say(f"{transcript.left_out} messages or lines without anything to remember were left out", "dim")
    if events["UNSUPPORTED"]:
        say(f"{events['UNSUPPORTED']} facts were kept out: `localmem list --unsupported` shows them", "dim")
    if tally.failed and not tally.error:
        say(f"the model failed on {tally.failed}; the words are kept: `localmem resume` goes on with them")
    if tally.interrupted or tally.error:
        say(f"{'interrupted' if tally.interrupted else 'stopped'}; the same command goes on from here")
