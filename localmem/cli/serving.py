"""The command that lets programs talk to a store: mcp."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localmem import terminal
from localmem.cli.options import Options, cli, open_memory, pass_options, shared
from localmem.config import WorkerOptions, settings
from localmem.errors import InvalidInputError
from localmem.mcp_server import access, clients, load
from localmem.terminal import say
from localmem.tools import SETS

if TYPE_CHECKING:
    from localmem.memory import BoundMemory, Memory

PORT = 8765
ACTOR = "mcp"  # in the audit chain


@cli.command()
@click.option("--tools", type=click.Choice(SETS), default="core", show_default=True, help="Which tools a model gets.")
@click.option("--read-only", is_flag=True, help="No tool that writes; so too where the store can't be written to.")
@click.option("--http", is_flag=True, help="Serve over HTTP on this machine instead of stdin and stdout.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="With --http; 0: any.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --http: a loopback address.")
@click.option("--token-file", metavar="FILE", help="With --http: the token; made if it is not there.")
@click.option(
    "--print-config",
    "client",
    type=click.Choice(list(clients.CLIENTS)),
    metavar="CLIENT",
    help=f"Print what to paste into the settings of: {', '.join(clients.CLIENTS)}. With --http: to reach it there.",
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
    if not http:
        _refuse_without_http()
    if options.ask_key and not http:
        raise click.UsageError("--ask-key can't ask where a client is at the other end; use --key-file or --keychain")
    if client is not None and http:
        _print_address(options, client, host, port, token_file)
        return
    if client is not None:
        _print_config(options, client, tools=tools, read_only=read_only)
        return
    serving = load()
    _check_generator(options)
    if not http:
        if sys.stdin is None or sys.stdout is None:  # descriptors that are closed
            raise InvalidInputError("there is no stdin or stdout to talk to a client over; open them, or use --http")
        if sys.stdin.isatty() and not options.quiet:
            say("waiting for an MCP client on stdin; --print-config shows how one starts this command", "dim")
        with serving.stdout_apart():
            served = _served(options, serving, tools=tools, read_only=read_only)
        serving.serve_stdio(served)
        return
    listening = access.listen(host, port)
    token = _token(token_file)
    served = _served(options, serving, tools=tools, read_only=read_only)
    say(f"serving {options.who} at http://{access.authority(listening)}{access.HTTP_PATH}")
    serving.serve_http(served, listening, token)


def _refuse_without_http() -> None:
    """UsageError for what goes with --http, given without it."""
    context = click.get_current_context()
    for name in ("port", "host", "token_file"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --http")


def _check_generator(options: Options) -> None:
    """Refuse a generator that can't be one now, where somebody reads it: texts would wait for it in silence."""
    from localmem.llm import open_generator
    from localmem.llm_model import check_gguf

    spec = options.generator or settings().generator
    if spec is None:  # the installed one, which may be installed later
        return
    generator = open_generator(spec)
    if generator is not None and "://" not in spec:
        check_gguf(Path(spec).expanduser())


def _served(options: Options, serving: Any, *, tools: str, read_only: bool) -> Any:
    memory: Memory = open_memory(options, create=not read_only, worker=None if read_only else WorkerOptions())
    if memory.read_only and not read_only:
        say(f"{memory.path} or its folder can't be written to: it is served as with --read-only")
        read_only = True
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
    _show_config(options, client, clients.CLIENTS[client].snippet(_launch(options, tools=tools, read_only=read_only)))


def _print_address(options: Options, client: str, host: str, port: int, token_file: str | None) -> None:
    """What a client needs to reach the server that --http starts with these options."""
    remote = clients.CLIENTS[client].remote
    if remote is None:
        raise click.UsageError(
            f"{client} starts its servers itself: leave out --http, --print-config is for stdio then"
        )
    if not port:
        raise click.UsageError("--port 0 is another port at each start; give one for the client to find the server at")
    if not token_file and settings().mcp_token is None:
        raise click.UsageError("a client needs a token that stays: give --token-file, or set LOCALMEM_MCP_TOKEN")
    token = _token(token_file)
    address = access.loopback(host)
    shown = f"[{address}]" if ":" in address else address
    _show_config(options, client, remote(clients.Address(f"http://{shown}:{port}{access.HTTP_PATH}", token)))


def _show_config(options: Options, client: str, snippet: str) -> None:
    known = clients.CLIENTS[client]
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
    for flag, value in _named(options):
        arguments += [flag, value]
    for flag, value in (("--durability", options.durability), ("--tools", tools if tools != SETS[0] else None)):
        if value:
            arguments += [flag, value]
    if read_only:
        arguments.append("--read-only")
    home = os.environ.get("LOCALMEM_HOME")
    environment = {"LOCALMEM_HOME": str(Path(home).expanduser().absolute())} if home else {}
    return clients.Launch(command[0], (*command[1:], *arguments), environment)


def _named(options: Options) -> Iterator[tuple[str, str]]:
    """Keys, model and who acts, given or from the environment, which a client doesn't hand on to what it starts."""
    found = settings()
    key_file, keychain = _either(options.key_file, options.keychain, found.key_file, found.keychain, "KEY")
    if found.key is not None and not options.key_file and not options.keychain:
        raise click.UsageError("LOCALMEM_KEY has no place in a client's settings: put the key into a --key-file")
    audit = _either(
        options.audit_key_file, options.audit_keychain, found.audit_key_file, found.audit_keychain, "AUDIT_KEY"
    )
    for flag, path in (
        ("--key-file", key_file),
        ("--audit-key-file", audit[0]),
        ("--checkpoint", options.checkpoint or found.checkpoint),
    ):
        if path:
            yield flag, str(Path(path).expanduser().absolute())
    generator = options.generator or found.generator
    if generator and generator != "none" and "://" not in generator:
        generator = str(Path(generator).expanduser().absolute())
    for flag, value in (
        ("--keychain", keychain),
        ("--audit-keychain", audit[1]),
        ("--generator", generator),
        ("--actor", options.actor or found.actor),
    ):
        if value:
            yield flag, value


def _either(
    file: str | None, keychain: str | None, env_file: str | None, env_keychain: str | None, name: str
) -> tuple[str | None, str | None]:
    """Where a key is: as given, else as the environment says. UsageError for two places."""
    if file and keychain:
        option = name.lower().replace("_", "-")
        raise click.UsageError(f"give --{option}-file or --{option.replace('key', 'keychain')}, not both")
    if file or keychain:
        return file, keychain
    if env_file and env_keychain:
        raise click.UsageError(f"set only one of LOCALMEM_{name}_FILE and LOCALMEM_{name.replace('KEY', 'KEYCHAIN')}")
    return env_file, env_keychain


def _command() -> list[str]:
    """This command by its absolute path: clients start servers without the shell's search path."""
    beside = Path(sys.executable).parent
    found = shutil.which("localmem", path=str(beside)) or shutil.which("localmem")
    if Path(sys.argv[0]).name.startswith("localmem") and Path(sys.argv[0]).is_file():
        found = str(Path(sys.argv[0]).absolute())
    return [str(Path(found).absolute())] if found else [sys.executable, "-m", "localmem"]
