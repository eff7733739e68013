"""The command that lets programs talk to a store: mcp."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localmem import terminal
from localmem.cli.options import Options, cli, open_memory, pass_options, shared
from localmem.config import WorkerOptions, settings
from localmem.mcp_server import access, clients, load
from localmem.terminal import say
from localmem.tools import SETS

if TYPE_CHECKING:
    from localmem.memory import BoundMemory, Memory

PORT = 8765
ACTOR = "mcp"  # in the audit chain


@cli.command()
@click.option("--tools", type=click.Choice(SETS), default="core", show_default=True, help="Which tools a model gets.")
@click.option("--read-only", is_flag=True, help="No tool that writes.")
@click.option("--http", is_flag=True, help="Serve over HTTP on this machine instead of stdin and stdout.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="With --http; 0: any.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --http: a loopback address.")
@click.option("--token-file", metavar="FILE", help="With --http: the token; made if it is not there.")
@click.option(
    "--print-config",
    "client",
    type=click.Choice(list(clients.CLIENTS)),
    metavar="CLIENT",
    help=f"Print what to paste into the settings of: {', '.join(clients.CLIENTS)}.",
)
@shared
@pass_options
def mcp(
    options: Options,
    tools: str,
    read_only: bool,
    http: bool,
    port: int,
    host: str,
    token_file: str | None,
    client: str | None,
) -> None:
    """Serve the memory to AI programs over MCP.

    Over stdin and stdout, for a client that starts this command; --print-config
    shows what to put into its settings. With --http for programs of this machine
    that send the token: that of --token-file or LOCALMEM_MCP_TOKEN, or a new one.

    Whose memory it is is fixed by --user, --agent and --run, and never a
    client's or a model's to choose.

    \b
    --json: with --print-config {"client", "file", "config": text}
    """
    if client is not None:
        _print_config(options, client, tools=tools, read_only=read_only)
        return
    if token_file and not http:
        raise click.UsageError("--token-file goes with --http")
    if options.ask_key and not http:
        raise click.UsageError("--ask-key can't ask where a client is at the other end; use --key-file or --keychain")
    serving = load()
    if not http:
        if sys.stdin.isatty() and not options.quiet:
            say("waiting for an MCP client on stdin; --print-config shows how one starts this command", "dim")
        with serving.stdout_apart():
            served = _served(options, serving, tools=tools, read_only=read_only)
        serving.serve_stdio(served)
        return
    listening = access.listen(host, port)
    token = _token(token_file)
    served = _served(options, serving, tools=tools, read_only=read_only)
    say(f"serving {options.who} at http://{access.authority(listening)}{serving.HTTP_PATH}")
    serving.serve_http(served, listening, token)


def _served(options: Options, serving: Any, *, tools: str, read_only: bool) -> Any:
    memory: Memory = open_memory(options, create=not read_only, worker=None if read_only else WorkerOptions())
    handle: BoundMemory = memory.bound(**options.scope, read_only=read_only, purge=False, actor=options.actor or ACTOR)
    return serving.Served(memory, handle, tools, read_only)


def _token(token_file: str | None) -> str:
    """The token of the file or the environment; else a new one, which is shown, as nobody could know it."""
    if token_file:
        return access.token_of(Path(token_file).expanduser())
    known = settings().mcp_token
    if known is not None:
        return access.checked_token(known, "LOCALMEM_MCP_TOKEN")
    token = access.new_token()
    say(f"token: {token}")
    return token


# -------------------------------------------------------------------- what to paste


def _print_config(options: Options, client: str, *, tools: str, read_only: bool) -> None:
    known = clients.CLIENTS[client]
    snippet = known.snippet(_launch(options, tools=tools, read_only=read_only))
    if options.json:
        terminal.print_json({"client": client, "file": known.file, "config": snippet})
        return
    if not options.quiet:
        say(f"put this into {known.file}:")
    terminal.write(snippet)


def _launch(options: Options, *, tools: str, read_only: bool) -> clients.Launch:
    """How a client is to start this server, from wherever it runs."""
    store = Path(options.store).expanduser().absolute() if options.store else settings().store
    command, arguments = _command(), ["mcp", "--file", str(store)]
    for name, value in options.scope.items():
        arguments += [f"--{name.removesuffix('_id')}", value]
    for flag, path in (
        ("--key-file", options.key_file),
        ("--audit-key-file", options.audit_key_file),
        ("--checkpoint", options.checkpoint),
    ):
        if path:
            arguments += [flag, str(Path(path).expanduser().absolute())]
    for flag, value in (
        ("--keychain", options.keychain),
        ("--audit-keychain", options.audit_keychain),
        ("--generator", options.generator),
        ("--durability", options.durability),
        ("--actor", options.actor),
        ("--tools", tools if tools != SETS[0] else None),
    ):
        if value:
            arguments += [flag, value]
    if read_only:
        arguments.append("--read-only")
    home = os.environ.get("LOCALMEM_HOME")
    environment = {"LOCALMEM_HOME": str(Path(home).expanduser().absolute())} if home else {}
    return clients.Launch(command[0], (*command[1:], *arguments), environment)


def _command() -> list[str]:
    """This command by its absolute path: clients start servers without the shell's search path."""
    beside = Path(sys.executable).parent
    found = shutil.which("localmem", path=str(beside)) or shutil.which("localmem")
    if Path(sys.argv[0]).name.startswith("localmem") and Path(sys.argv[0]).is_file():
        found = str(Path(sys.argv[0]).absolute())
    return [str(Path(found).absolute())] if found else [sys.executable, "-m", "localmem"]
