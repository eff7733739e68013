"""What every command shares: the options, the store, ids, errors as one line and an exit code."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from localmem import __version__, keys, terminal
from localmem.config import DURABILITIES, WorkerOptions
from localmem.errors import InvalidInputError, LocalmemError, NotFoundError
from localmem.keys import Key
from localmem.terminal import Column, id_cell, one_line, say

if TYPE_CHECKING:
    from localmem.memory import BoundMemory, Memory

USER_DEFAULT = "default"
ID_CHARS_MIN = 4  # of a shortened id
INTERRUPTED = 130  # as shells have it for Ctrl-C

F = TypeVar("F", bound=Callable[..., Any])


# -------------------------------------------------------------------- options every command shares


@dataclass(slots=True)
class Options:
    """What the shared options came to. A command's own option wins over the one before the command's name."""

    store: str | None = None
    user: str | None = None
    agent: str | None = None
    run: str | None = None
    generator: str | None = None
    durability: str | None = None
    key_file: str | None = None
    keychain: str | None = None
    ask_key: bool = False
    audit_key_file: str | None = None
    audit_keychain: str | None = None
    checkpoint: str | None = None
    actor: str | None = None
    json: bool = False
    quiet: bool = False

    @property
    def ids(self) -> dict[str, Any]:
        """The ids that were given."""
        ids = {"user_id": self.user, "agent_id": self.agent, "run_id": self.run}
        return {name: value for name, value in ids.items() if value is not None}

    @property
    def scope(self) -> dict[str, Any]:
        """The ids that were given, or the default user's."""
        return self.ids or {"user_id": USER_DEFAULT}

    @property
    def who(self) -> str:
        """The scope in words."""
        return " ".join(f"{name.removesuffix('_id')} '{one_line(value)}'" for name, value in self.scope.items())


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        setattr(ctx.ensure_object(Options), str(param.name), value)


_SHARED = (
    (("-f", "--file", "--db", "store"), "FILE", "The store; without it the one in your data folder.", "LOCALMEM_DB"),
    (("-u", "--user", "user"), "ID", f"Whose memory ('{USER_DEFAULT}' if no id is given).", "LOCALMEM_USER"),
    (("--agent", "agent"), "ID", "The agent's id.", "LOCALMEM_AGENT"),
    (("--run", "run"), "ID", "The run's or session's id.", "LOCALMEM_RUN"),
    (("--generator", "generator"), "MODEL", "A GGUF file or a local server's URL.", "LOCALMEM_GENERATOR"),
    (("--key-file", "key_file"), "FILE", "Key of an encrypted store.", "LOCALMEM_KEY_FILE"),
    (("--keychain", "keychain"), "NAME", "Its key in the system's keychain.", "LOCALMEM_KEYCHAIN"),
    (("--audit-key-file", "audit_key_file"), "FILE", "What signs the audit chain.", "LOCALMEM_AUDIT_KEY_FILE"),
    (("--audit-keychain", "audit_keychain"), "NAME", "The same, in the keychain.", "LOCALMEM_AUDIT_KEYCHAIN"),
    (("--checkpoint", "checkpoint"), "FILE", "Where each change notes the chain's end.", "LOCALMEM_CHECKPOINT"),
    (("--actor", "actor"), "NAME", "Who acts, for the audit chain.", "LOCALMEM_ACTOR"),
)
_READ_BY_CONFIG = {
    "generator", "key_file", "keychain", "audit_key_file", "audit_keychain", "checkpoint", "actor"
}  # fmt: skip


def shared(function: F) -> F:
    """The options that every command takes, before or after its name."""
    for names, metavar, text, variable in reversed(_SHARED):
        hint = f"{text}  [{variable}]"
        function = click.option(*names, metavar=metavar, help=hint, expose_value=False, callback=_keep)(function)
    durability = click.Choice(DURABILITIES)
    text = "What a commit survives: power (a power cut, the default) or process (kill -9; faster)."
    function = click.option("--durability", type=durability, help=text, expose_value=False, callback=_keep)(function)
    text = "Ask for the passphrase of an encrypted store."
    function = click.option("--ask-key", is_flag=True, help=text, expose_value=False, callback=_keep)(function)
    text = "One JSON object on stdout."
    function = click.option("--json", is_flag=True, help=text, expose_value=False, callback=_keep)(function)
    text = "No progress, no words beside errors."
    return click.option("-q", "--quiet", is_flag=True, help=text, expose_value=False, callback=_keep)(function)


_SHARED_NAMES = {names[-1] for names, *_ in _SHARED} | {"durability", "ask_key", "json", "quiet"}


class Command(click.Command):
    """A command whose help shows the shared options apart from its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Own options first, then the shared ones."""
        own, common = list[tuple[str, str]](), list[tuple[str, str]]()
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):  # click 8.5 lists arguments too
                (common if param.name in _SHARED_NAMES else own).append(record)
        for title, records in (("Options", own), ("Shared options", common)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Commands(click.Group):
    """The group; its main() turns every error into one line and an exit code."""

    command_class = Command

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run and exit. KeyboardInterrupt is 130, LocalmemError 1, a usage error 2."""
        given = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in given
        for stream in (sys.stdout, sys.stderr):  # a console that lacks a character shows a mark, not a traceback
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                result = super().main(args, *rest, **{**extra, "standalone_mode": False})
                sys.stdout.flush()
            sys.exit(result if isinstance(result, int) else 0)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.Abort as error:
            interrupted = isinstance(error.__cause__, KeyboardInterrupt)
            kind, words = ("Interrupted", "interrupted") if interrupted else ("Abort", "nothing was done")
            terminal.print_error({"type": kind, "message": words}, as_json=True) if as_json else say(words)
            sys.exit(INTERRUPTED if interrupted else 1)
        except click.ClickException as error:
            _show_misuse(error, as_json=as_json)
            sys.exit(error.exit_code)
        except LocalmemError as error:
            terminal.print_error(told(error), as_json=as_json)
            sys.exit(1)
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing may be flushed into the closed pipe at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


def told(error: LocalmemError) -> dict[str, Any]:
    """An error as the command line shows it, with what became of the words given."""
    shape: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if episode_id := getattr(error, "episode_id", None):
        shape["episode_id"] = episode_id
        if "resume()" in shape["message"]:
            shape["message"] = shape["message"].replace("call resume()", "run `localmem resume`")
        else:
            shape["message"] += " (the words are kept: `localmem resume` goes on with them)"
    return shape


def _show_misuse(error: click.ClickException, *, as_json: bool) -> None:
    if as_json:
        terminal.print_error({"type": type(error).__name__, "message": error.format_message()}, as_json=True)
    else:
        error.show()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@shared
@click.version_option(__version__, prog_name="localmem", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Long-term memory in one local file.

    \b
    localmem add "I moved to Porto last week"
    localmem ingest chat.json
    localmem search "where do I live?"

    Into a pipe, tables are one line a row with tabs between the columns and whole ids.
    """
    _from_environment(ctx.ensure_object(Options))
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _from_environment(options: Options) -> None:
    """What no option before the command said, but for what config reads."""
    for names, _, _, variable in _SHARED:
        name = names[-1]
        if name not in _READ_BY_CONFIG and getattr(options, name) is None and os.environ.get(variable):
            setattr(options, name, os.environ[variable])


pass_options = click.make_pass_decorator(Options)


# -------------------------------------------------------------------- what commands share


def make_memory(path: str | None, **options: Any) -> Memory:
    """The Memory every command works with; tests put another one here."""
    from localmem.memory import Memory

    return Memory(path, **options)


def open_memory(options: Options, *, create: bool = False, worker: WorkerOptions | None = None) -> Memory:
    """The store. Only adding makes a new file at a path that was given: a mistyped name must not look empty.

    worker: on what terms this command reads what waits; most are over too soon to.
    """
    if not create:
        existing(options)
    return make_memory(
        options.store,
        worker=worker or False,
        generator=options.generator,
        durability=options.durability or DURABILITIES[0],
        checkpoint=options.checkpoint,
        **key_options(options),
    )


def key_options(options: Options) -> dict[str, Any]:
    """What opens and signs the store, as named on the command line; the rest is the environment's to say."""
    if sum((bool(options.key_file), bool(options.keychain), options.ask_key)) > 1:
        raise click.UsageError("give one of --key-file, --keychain and --ask-key")
    asked = keys.key_of(getpass.getpass("Passphrase: ")) if options.ask_key else None
    return {
        "key": asked or named_key(options.key_file, options.keychain, "--key-file or --keychain"),
        "audit_key": named_key(options.audit_key_file, options.audit_keychain, "--audit-key-file or --audit-keychain"),
        "actor": options.actor,
    }


def named_key(file: str | None, keychain: str | None, names: str) -> Key | None:
    """The key in a file or in the keychain, if one is named."""
    if file and keychain:
        raise click.UsageError(f"give {names}, not both")
    if keychain:
        return keys.from_keychain(keychain)
    return keys.from_file(file) if file else None


def existing(options: Options) -> None:
    """InvalidInputError when a path was given and no file is there."""
    if options.store and options.store != ":memory:" and not Path(options.store).expanduser().exists():
        raise InvalidInputError(f"there is no file {options.store}; `localmem add` or `localmem ingest` makes one")


def within(memory: Memory, options: Options) -> Memory | BoundMemory:
    """The Memory, bound to the ids that were given: then an id of another scope is unknown."""
    return memory.bound(**options.ids) if options.ids else memory


def find_id(memory: Memory, options: Options, given: str, *, deleted: bool = False) -> str:
    """A memory id from a whole one, or from the beginning or end of one in the scope."""
    text = given.strip().lower()
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        return text
    if len(text) < ID_CHARS_MIN or not re.fullmatch(r"[0-9a-f-]+", text):
        raise click.BadParameter(
            f"{given!r} is no id; give one from `localmem list`, or at least {ID_CHARS_MIN} characters of its end"
        )
    known: set[str] = {each["id"] for each in memory.get_all(**options.scope)["results"]}
    if deleted:
        known |= {each["id"] for each in memory.all_versions(**options.scope)}
    found = sorted(each for each in known if each.startswith(text) or each.endswith(text))
    if not found:
        raise NotFoundError(f"no memory of {options.who} has an id that begins or ends with {text}")
    if len(found) > 1:
        raise InvalidInputError(f"{len(found)} ids begin or end with {text}: {', '.join(found[:5])}; give more of it")
    return found[0]


def when(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A moment as ISO text: ISO 8601, Unix seconds, or a whole date in words. An open year or day is misuse."""
    if value is None:
        return None
    from localmem.dates import parse_instant, parse_loose, to_iso

    text = value.strip()
    instant = parse_instant(float(text)) if re.fullmatch(r"\d{9,11}(\.\d+)?", text) else parse_loose(text)
    if instant is None:
        raise click.BadParameter(
            f"{text!r:.40} is not a date; give one like 2025-03-01, 2025-03-01T09:12Z or '1 March 2025'"
        )
    return to_iso(instant)


def json_object(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """A JSON object. Anything else is misuse."""
    if value is None:
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"it is not JSON ({error}); {_AN_OBJECT}") from None
    if not isinstance(parsed, dict):
        raise click.BadParameter(f"it is a JSON {type(parsed).__name__}; {_AN_OBJECT}")
    return parsed


_AN_OBJECT = """give an object such as '{"source": "diary"}'"""


def text_of(words: Sequence[str], what: str) -> str:
    """The words as one text; "-" or nothing reads stdin."""
    if words and words != ("-",):
        text = " ".join(words)
    elif sys.stdin.isatty() and not words:
        raise click.UsageError(f"{what} is missing; give it, or - to read it from stdin")
    else:
        text = sys.stdin.read().strip()
    if not text.strip():
        raise click.UsageError(f"{what} is empty")
    return text


def print_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    """One line for each change: ``+`` added, ``~`` updated, ``-`` deleted."""
    for change in changes:
        event, was = change["event"], change.get("previous_memory")
        text = one_line(change["memory"] or was or "")
        if event == "UPDATE" and was:
            text += f"  (was: {one_line(was)})"
        contested = "  contested" if change.get("contested") else ""
        terminal.write(f"{terminal.MARKS[event]} {text}{contested}  [{terminal.short(change['id'])}]", event)


RECORD_COLUMNS = (
    Column("id", "id"),
    Column("memory", flex=True),
    Column("true since"),
)


def print_records(records: Sequence[Mapping[str, Any]]) -> None:
    """Memories as a table."""
    rows = [(id_cell(each["id"]), each["memory"], terminal.day(each["valid_from"])) for each in records]
    terminal.print_table(RECORD_COLUMNS, rows)
