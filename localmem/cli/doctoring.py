"""Commands for when something is wrong, or must be shown not to be: doctor and salvage."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localmem import terminal
from localmem.cli.options import Options, cli, existing, key_options, open_memory, pass_options, shared
from localmem.config import settings
from localmem.terminal import Column, one_line, say

if TYPE_CHECKING:
    from localmem.doctor import Report

MARKS = {"ok": "✓", "note": "·", "warning": "!", "failed": "✗"}
_PLAIN_MARKS = {"ok": "+", "note": ".", "warning": "!", "failed": "x"}
ALTERED_TOLD = 10


@cli.command()
@click.option("--airgap", is_flag=True, help="Also watch a working day: does anything leave the machine?")
@shared
@pass_options
def doctor(options: Options, airgap: bool) -> int:
    """Is everything as it should be? Exit 1 when something failed.

    Looks at versions, the models' sha256, the processor, the model's answers to 40 prompts (under a minute), telemetry,
    and the store: who may read it, whether it is whole, its audit chain, free space. Nothing is changed, and no text of
    a memory is shown.

    With --airgap a store of its own goes through its whole life in a process without network (unshare) under a native
    trace (strace), as far as the system allows that; which it was is told.

    \b
    --json: {"ok": bool, "findings": [{"name",
      "state": "ok", "note", "warning" or "failed", "text", "cure"?}],
      "proof"?: {"by": [watch], "steps", "generator", "network": [call],
      "files": [call]}}
    """
    from localmem.doctor import examine

    path = Path(options.store).expanduser().absolute() if options.store else settings().store
    with terminal.steps(quiet=options.quiet or options.json) as step:
        report = examine(
            path,
            lambda: open_memory(options),
            airgap=airgap,
            generator=options.generator,
            progress=step,
        )
    if options.json:
        terminal.print_json(report.to_dict())
    else:
        _print_report(report, quiet=options.quiet)
    return 0 if report.ok else 1


def _print_report(report: Report, *, quiet: bool) -> None:
    """A mark and a line for each finding; into a pipe its state as a word."""
    marks = MARKS if terminal.can_show("".join(MARKS.values())) else _PLAIN_MARKS
    rows = []
    for each in report.findings:
        mark = marks[each.state] if sys.stdout.isatty() else each.state
        rows.append((mark, each.name, f"{each.text}. To do: {each.cure}" if each.cure else each.text))
    terminal.print_table((Column(""), Column("about"), Column("found", flex=True)), rows)
    if quiet:
        return
    counts = {state: sum(each.state == state for each in report.findings) for state in ("failed", "warning")}
    say(f"{counts['failed']} failed, {counts['warning']} to be cured" if any(counts.values()) else "all well")


@cli.command()
@click.argument("out", metavar="OUT")
@shared
@pass_options
def salvage(options: Options, out: str) -> int:
    """Write what can be read of a damaged store into a new one. Exit 1 when anything is lost.

    OUT must not exist yet. It has the same key as the damaged file, which is only read and stays as it is; close other
    programs that use it. Where OUT ends in .jsonl it gets lines of JSON, as of `localmem export`, not encrypted.

    Vectors and word indexes are made anew, and the audit chain begins anew with what was found.

    \b
    --json: {"out", "complete": bool, "memories", "turns",
      "pages": [{"page", "of": table or index}],
      "tables": {NAME: {"read", "lost", "rebuilt", "left_out", "whole"}},
      "altered": [{"of", "id", "number"}], "problems": [sentence],
      "notes": [sentence]}
    """
    from localmem.salvaging import salvage as save

    existing(options)
    keys = key_options(options)
    with terminal.steps(quiet=options.quiet or options.json) as step:
        done = save(options.store, out, progress=step, **keys)
    if options.json:
        terminal.print_json(done)
    else:
        _print_salvaged(done, quiet=options.quiet)
    return 0 if done["complete"] else 1


def _print_salvaged(done: Mapping[str, Any], *, quiet: bool) -> None:
    columns = (
        Column("table"),
        Column("read", right=True),
        Column("lost", right=True),
        Column("put up again", right=True),
        Column("left out", right=True),
        Column("known to be whole"),
    )
    rows = [
        (name, each["read"], each["lost"], each["rebuilt"], each["left_out"], "yes" if each["whole"] else "no")
        for name, each in done["tables"].items()
    ]
    terminal.print_table(columns, rows)
    terminal.write(f"{done['out']}: {done['memories']} memories, {done['turns']} turns")
    if quiet:
        return
    for each in done["altered"][:ALTERED_TOLD]:
        of = "memory" if each["of"] == "version" else "episode"
        say(f"not as it was written: {of} {each['id']}, {each['of']} {each['number']}")
    if len(done["altered"]) > ALTERED_TOLD:
        say(f"and {len(done['altered']) - ALTERED_TOLD} more texts; --json names all")
    damaged = sorted({each["of"] or "nobody knows what" for each in done["pages"]})
    if damaged:
        say(f"damaged pages: {len(done['pages'])}, of {', '.join(damaged)}")
    for sentence in (*done["notes"], *done["problems"]):
        say(one_line(sentence))
    say("nothing is lost" if done["complete"] else "not all could be saved: keep the damaged file, and your backups")
