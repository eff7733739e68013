"""Commands around what waits to be read: worker, which reads it, and stats, which tells how far it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from localmem import terminal
from localmem.cli.options import Options, cli, open_memory, pass_options, shared
from localmem.config import WorkerOptions
from localmem.terminal import Column, say

if TYPE_CHECKING:
    from localmem.memory import Memory

LOOK_S = 1.0  # between two looks at how far it is


@cli.command()
@click.option("--until-empty", is_flag=True, help="End when nothing waits any more.")
@click.option("--nice", type=click.IntRange(0, 19), default=10, show_default=True, help="Behind other programs.")
@click.option("--stop-on-battery", is_flag=True, help="Read nothing while on battery; needs the extra battery.")
@click.option("--pause", "paused", flag_value=True, default=None, type=bool, help="Let no process read on, and end.")
@click.option("--go-on", "paused", flag_value=False, type=bool, help="End a pause, and end.")
@shared
@pass_options
def worker(options: Options, until_empty: bool, nice: int, stop_on_battery: bool, paused: bool | None) -> None:
    """Read what add(wait=False) left to be read.

    One process reads for all that have the file open; another one that stands by takes over within ten seconds. Runs
    until it is stopped (Ctrl-C or SIGTERM); what is half read then waits on.

    \b
    --json: {"read": number, "waiting", "set_aside", "paused": bool}
    """
    with open_memory(options, worker=WorkerOptions(on_battery=not stop_on_battery)) as memory:
        if paused is not None:
            memory.pause_worker() if paused else memory.resume_worker()
        else:
            if hasattr(os, "nice"):
                os.nice(nice)
            _read(memory, options, until_empty=until_empty)
        left = memory.stats()
    done = left["worker"]["read_here"]
    queue = {name: left["queue"][name] for name in ("waiting", "set_aside")}
    if options.json:
        terminal.print_json({"read": done, **queue, "paused": left["worker"]["state"] == "paused"})
    elif not options.quiet:
        say(_told(left) if paused is not None else f"{done} read, {_told(left)}", "dim")


def _read(memory: Memory, options: Options, *, until_empty: bool) -> None:
    """Stand by and read until told to stop."""
    stop, said = threading.Event(), ""
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        memory.start_worker()
        while not stop.is_set():
            if until_empty and memory.flush(timeout=0)["flushed"]:
                return
            found = memory.stats()
            if until_empty and (found["worker"]["trouble"] or found["worker"]["state"] == "paused"):
                memory.flush()  # raises what keeps it from reading, unless another process reads
            line = _told(found)
            if line != said and not options.quiet:
                say(line, "dim")
            said = line
            stop.wait(LOOK_S)
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(stats: Mapping[str, Any]) -> str:
    """How far it is, in words."""
    waiting, set_aside, worker = stats["queue"]["waiting"], stats["queue"]["set_aside"], stats["worker"]
    words = f"{waiting} waiting" if waiting else "nothing waits"
    if set_aside:
        words += f", {set_aside} set aside (`localmem resume` tries again)"
    if worker["state"] == "paused":
        words += ", paused (`localmem worker --go-on` ends that)"
    if worker["trouble"] and waiting:
        words += f"; {worker['trouble']['message']}"
    return words


@cli.command()
@shared
@pass_options
def stats(options: Options) -> None:
    """How much is remembered, what waits to be read, and who reads it.

    The whole file, or with --user, --agent or --run that scope.

    \b
    --json: {"memories", "deleted", "versions", "episodes", "messages",
      "queue": {"waiting", "set_aside", "oldest_at"},
      "worker": {"state": working|paused|none, "pid", "since", "done",
        "read_here", "trouble"},
      "pending": [{"episode_id", "said_at", "attempts", "error", "set_aside"}]}
    """
    with open_memory(options) as memory:
        found = memory.stats(**options.ids)
        failed = [each for each in memory.pending(**options.ids) if each["attempts"]]
    if options.json:
        terminal.print_json({**found, "pending": failed})
        return
    rows = [(name, found[name]) for name in ("memories", "deleted", "versions", "episodes", "messages")]
    rows += [("waiting", found["queue"]["waiting"]), ("set aside", found["queue"]["set_aside"])]
    terminal.print_table((Column("what"), Column("count", right=True)), rows)
    worker = found["worker"]
    reads = f"process {worker['pid']} reads, {worker['done']} done since {worker['since']}"
    terminal.write(f"worker: {reads if worker['state'] == 'working' else worker['state']}")
    if failed:
        columns = (Column("episode"), Column("attempts", right=True), Column("error"), Column("state"))
        states = {True: "set aside", False: "waiting"}
        terminal.print_table(
            columns, [(e["episode_id"], e["attempts"], e["error"], states[e["set_aside"]]) for e in failed]
        )
