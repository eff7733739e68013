"""Commands for whoever answers for the file: purge, audit, and its keys."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localmem import files, keys, terminal
from localmem.cli.options import (
    Command,
    Options,
    cli,
    existing,
    find_id,
    key_options,
    named_key,
    open_memory,
    pass_options,
    print_records,
    shared,
)
from localmem.errors import InvalidInputError, StorageError
from localmem.keys import Key
from localmem.terminal import Column, one_line, say

if TYPE_CHECKING:
    from localmem.memory import Memory

# -------------------------------------------------------------------- purge


@cli.command()
@click.argument("memory_ids", nargs=-1, metavar="[ID…]")
@click.option("--all", "everything", is_flag=True, help="Everything of the scope.")
@click.option("--query", metavar="QUERY", help="The memories that a search finds; shows them and asks.")
@click.option("--requested", is_flag=True, help="What people asked to forget; without --user in the whole file.")
@click.option("--certificate", type=click.Path(path_type=Path), metavar="FILE", help="Write the certificate here.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@shared
@pass_options
def purge(
    options: Options,
    memory_ids: tuple[str, ...],
    everything: bool,
    query: str | None,
    requested: bool,
    certificate: Path | None,
    yes: bool,
) -> int:
    """Erase for good, and prove that nothing is left in the file.

    With each memory go its history, the turns it was said in and the decisions about it. Asks first. Exit 1 where
    another program kept the file from being written anew: `localmem resume` goes on with it.

    \b
    --json: {"purged": {table: rows}, "complete": bool, "reason"?,
      "certificate": {…} or null}
    """
    if sum((bool(memory_ids), everything, query is not None, requested)) != 1:
        raise click.UsageError("give ids, --all, --query or --requested")
    if certificate is not None and certificate.exists():
        raise InvalidInputError(f"{certificate} exists already; name a new file")
    with open_memory(options) as memory:
        what = _chosen(memory, options, memory_ids, query, requested, yes=yes)
        if what is None:
            raise click.Abort
        with terminal.waiting("erasing", quiet=options.quiet):
            done = memory.purge(**what)
    if certificate is not None and done.get("certificate"):
        _write(certificate, json.dumps(done["certificate"], indent=1) + "\n")
    if options.json:
        terminal.print_json({name: value for name, value in done.items() if name not in ("message", "results")})
    else:
        _print_purge(done, certificate)
    return 0 if done.get("complete", True) else 1


def _chosen(
    memory: Memory, options: Options, ids: Sequence[str], query: str | None, requested: bool, *, yes: bool
) -> dict[str, Any] | None:
    """The arguments of purge(), after the person agreed; None when not."""
    if requested:
        question = f"Erase for good what was asked to be forgotten ({options.who if options.ids else 'whole file'})?"
        return {**options.ids, "requested": True} if yes or _agrees(question) else None
    if ids:
        wanted = list(dict.fromkeys(find_id(memory, options, each, deleted=True) for each in ids))
        return (
            {**options.ids, "memory_id": wanted} if yes or _agrees(f"Erase {len(wanted)} memories for good?") else None
        )
    if query is not None:
        found = memory.purge(query=query, **options.scope)
        if not options.json:
            print_records(found["results"])
        question = f"Erase these {len(found['results'])} memories for good?"
        agreed = yes or (bool(found["results"]) and _agrees(question))
        return {**options.scope, "query": query, "confirm": found["confirm"]} if agreed else None
    count = len(memory.get_all(**options.scope)["results"])
    question = f"Erase everything of {options.who} for good, {count} memories with their history?"
    return options.scope if yes or _agrees(question) else None


def _agrees(question: str) -> bool:
    return terminal.ask(f"{question} [y/N] ")


def _print_purge(done: Mapping[str, Any], file: Path | None) -> None:
    if done["message"] == "Nothing to purge":
        terminal.write("nothing to purge")
        return
    rows = done["purged"]
    terminal.write(f"erased: {', '.join(f'{count} {table}' for table, count in rows.items())}")
    certificate = done["certificate"]
    if certificate is None:
        terminal.write(f"not complete: {done['reason']}; run `localmem resume` later")
        return
    raw, structure = certificate["raw"], certificate["structural"]
    terminal.write(f"logical: no row and no index tells of it ({certificate['logical']['terms_read']} terms read)")
    terminal.write(f"structural: {structure['free_pages']} free pages, {structure['wal_bytes']} bytes of WAL")
    read = ", ".join(f"{each['what']} {each['bytes']:,} bytes" for each in raw.get("read", ())) or "memory only"
    terminal.write(
        f"raw: {raw.get('pieces', 0)} pieces of {raw.get('records', 0)} records sought in {read}: "
        f"{raw.get('found', 0)} found"
    )
    signed = f"signed with key {certificate['key_id']}" if certificate["key_id"] else "not signed, a checksum"
    where = f", {file}" if file else ""
    terminal.write(f"certificate: {certificate['id']}, {signed}{where}")


def _write(file: Path, text: str) -> None:
    """A new file for its owner alone."""
    try:
        files.write_new(file, text.encode())
    except OSError as error:
        raise StorageError(f"{file} can't be written: {error.strerror}") from None


@cli.command("export")
@click.argument("file", type=click.Path(path_type=Path), required=False, metavar="[FILE]")
@shared
@pass_options
def export_scope(options: Options, file: Path | None) -> None:
    """Everything the store holds of somebody, one JSON object a line: into FILE, or to stdout.

    Memories with every version, the turns as they came, and the decisions; also what no search shows any more.

    \b
    --json: {"records": [{"record": "memory" or "episode" or "decision", …}]}
    """
    if file is not None and file.exists():
        raise InvalidInputError(f"{file} exists already; name a new file")
    with open_memory(options) as memory:
        found = memory.export(**options.scope)
    if file is not None:
        _write(file, "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in found))
        say(f"{len(found)} records of {options.who} are in {file}")
    elif options.json:
        terminal.print_json({"records": found})
    else:
        for each in found:
            terminal.write(json.dumps(each))


# -------------------------------------------------------------------- audit


@cli.group(invoke_without_command=True)
@click.pass_context
def audit(ctx: click.Context) -> None:
    """The audit chain: verify, sign, list, export, reads, purges, certificate."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


audit.command_class = Command


@audit.command()
@shared
@pass_options
def verify(options: Options) -> int:
    """Read the whole chain again, and compare the texts with it.

    With --checkpoint FILE also whether its end was cut off or an older copy of the file was put back.

    \b
    --json: {"ok": bool, "problems": [sentence], "entries", "signed",
      "key_id", "key_given", "head", "texts", "checkpoints"}
    """
    with open_memory(options) as memory:
        found = memory.verify_audit()
    if options.json:
        terminal.print_json(found)
    else:
        terminal.write(f"{found['entries']} entries, {found['texts']} texts compared, {_vouched(found)}")
        if found["checkpoints"]:
            terminal.write(f"{found['checkpoints']} checkpoints agree")
        terminal.write("\n".join(map(one_line, found["problems"])) if found["problems"] else "ok")
    return 0 if found["ok"] else 1


def _vouched(found: Mapping[str, Any]) -> str:
    if not found["key_id"]:
        return "not signed: a checksum, which anybody could make anew"
    if not found["key_given"]:
        return f"signed with key {found['key_id']}, which was not given: what is signed could not be verified"
    return f"signed with key {found['key_id']}"


@audit.command()
@click.option("--previous-key-file", metavar="FILE", help="The key that signed it so far, if one did.")
@click.option("--previous-keychain", metavar="NAME", help="… of the system's keychain.")
@shared
@pass_options
def sign(options: Options, previous_key_file: str | None, previous_keychain: str | None) -> None:
    """Sign the chain with another key from here on, after it was verified.

    --audit-key-file or --audit-keychain name the new key. What was entered before was not signed with it.

    \b
    --json: {"key_id"}
    """
    before = named_key(previous_key_file, previous_keychain, "--previous-key-file or --previous-keychain")
    with open_memory(options) as memory:
        done = memory.sign_audit(before)
    terminal.print_json(done) if options.json else terminal.write(f"signed with key {done['key_id']} from here on")


_about = click.option("--memory", "memory_id", metavar="ID", help="What changed this memory, or showed it.")


@audit.command("list")
@_about
@shared
@pass_options
def list_entries(options: Options, memory_id: str | None) -> None:
    """The chain as a table; with --user, --agent or --run what concerns that owner.

    \b
    --json: {"entries": [{"seq", "at", "actor", "op", "owner", "subject",
      "decision_id", "commitment", "detail", "mac"}]}
    """
    found = _entries(options, memory_id)
    if options.json:
        terminal.print_json({"entries": found})
        return
    columns = (Column("entry", right=True), Column("at"), Column("actor"), Column("did"), Column("what", flex=True))
    rows = [
        (str(each["seq"]), terminal.minute(each["at"]), one_line(each["actor"]), each["op"], _detail(each["detail"]))
        for each in found
    ]
    terminal.print_table(columns, rows)


def _entries(options: Options, memory_id: str | None) -> list[dict[str, Any]]:
    with open_memory(options) as memory:
        wanted = None if memory_id is None else find_id(memory, options, memory_id, deleted=True)
        return memory.audit_log(memory_id=wanted, **options.ids)


def _detail(detail: Any) -> str:
    """What an entry tells beside its operation, in words; hashes and lists are for `audit export`."""
    if not isinstance(detail, dict):
        return one_line(detail)
    told = [str(detail[name]) for name in ("reason", "what", "retention", "from", "to") if name in detail]
    if "seen" in detail:
        told.append(f"{len(detail['seen'])} memories")
    return " ".join(told)


@audit.command()
@_about
@shared
@pass_options
def export(options: Options, memory_id: str | None) -> None:
    """Print the chain, one JSON object a line; with --user, --agent or --run what concerns that owner.

    \b
    --json: {"entries": [{"seq", "at", "actor", "op", "owner", "subject",
      "decision_id", "commitment", "detail", "mac"}]}
    """
    found = _entries(options, memory_id)
    if options.json:
        terminal.print_json({"entries": found})
        return
    for each in found:
        terminal.write(json.dumps(each))


@audit.command()
@click.argument("wanted", type=click.Choice(["on", "off"]), required=False, metavar="[on|off]")
@shared
@pass_options
def reads(options: Options, wanted: str | None) -> None:
    """Show or set whether reads are entered in the chain too. A setting of the file.

    \b
    --json: {"reads": bool}
    """
    with open_memory(options) as memory:
        if wanted is not None:
            memory.audit_reads(wanted == "on")
        found = memory.audits_reads
    terminal.print_json({"reads": found}) if options.json else terminal.write("on" if found else "off")


@audit.command()
@shared
@pass_options
def purges(options: Options) -> None:
    """List the purges of the file, with their certificates.

    \b
    --json: {"purges": [{"id", "at", "state", "reason", "certificate"}]}
    """
    with open_memory(options) as memory:
        found = memory.purges()
    if options.json:
        terminal.print_json({"purges": found})
        return
    rows = [(each["id"], terminal.minute(each["at"]), each["state"], each["reason"] or "") for each in found]
    terminal.print_table((Column("id", "id"), Column("at"), Column("state"), Column("reason", flex=True)), rows)


@audit.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@shared
@pass_options
def certificate(options: Options, file: Path) -> int:
    """Check a purge's certificate: its signature, and its place in the chain.

    \b
    --json: {"ok": bool, "signed": bool, "problems": [sentence]}
    """
    try:
        given = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        raise InvalidInputError(f"{file} is not a certificate: it can't be read as JSON") from None
    with open_memory(options) as memory:
        found = memory.verify_certificate(given)
    if options.json:
        terminal.print_json(found)
    else:
        fine = "ok" if found["signed"] else "ok, but not signed: anybody could have made it"
        terminal.write("\n".join(found["problems"]) or fine)
    return 0 if found["ok"] else 1


# -------------------------------------------------------------------- keys


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), required=False, metavar="[FILE]")
@shared
@pass_options
def keygen(options: Options, file: Path | None) -> None:
    """Make a new random key: in FILE, for its owner alone, or with --keychain NAME in the system's keychain.

    Without the key nobody can open an encrypted store: keep a copy of it somewhere else.

    \b
    --json: {"file" or "keychain"}
    """
    if (file is None) == (options.keychain is None):
        raise click.UsageError("give a file, or --keychain NAME")
    if file is not None:
        keys.write_new(file)
        place = {"file": str(file)}
    else:
        keys.write_new_to_keychain(str(options.keychain))
        place = {"keychain": str(options.keychain)}
    if options.json:
        terminal.print_json(place)
    elif not options.quiet:
        [(kind, name)] = place.items()
        say(f"a new key is in the {kind} {name}; keep a copy of it somewhere safe")


def _new_key(function: Any) -> Any:
    for names, metavar, text in (
        (("--new-keychain",), "NAME", "… of the system's keychain."),
        (("--new-key-file",), "FILE", "The new key; without one a passphrase is asked for."),
    ):
        function = click.option(*names, metavar=metavar, help=text)(function)
    return function


_overwrite = click.option("--overwrite", is_flag=True, help="Overwrite the old file's bytes with zeros afterwards.")


@cli.command()
@_new_key
@_overwrite
@shared
@pass_options
def encrypt(options: Options, new_key_file: str | None, new_keychain: str | None, overwrite: bool) -> None:
    """Give a store a key. It is written anew and takes the old one's place; nobody else may have it open.

    \b
    --json: {"path", "encrypted": true, "bytes"}
    """
    from localmem.encryption import encrypt as write_anew

    existing(options)
    key = _wanted(new_key_file, new_keychain)
    _told(options, write_anew(options.store, key, overwrite=overwrite, **_signing(options)))


@cli.command()
@_new_key
@_overwrite
@shared
@pass_options
def rekey(options: Options, new_key_file: str | None, new_keychain: str | None, overwrite: bool) -> None:
    """Give an encrypted store another key. --key-file or --keychain name the one it has.

    \b
    --json: {"path", "encrypted": true, "bytes"}
    """
    from localmem.encryption import rekey as write_anew

    existing(options)
    known = key_options(options)["key"]
    key = _wanted(new_key_file, new_keychain)
    _told(options, write_anew(options.store, known, key, overwrite=overwrite, **_signing(options)))


@cli.command()
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@_overwrite
@shared
@pass_options
def decrypt(options: Options, overwrite: bool, yes: bool) -> None:
    """Take a store's key away: whoever can read the file can read what it says then. Asks first.

    \b
    --json: {"path", "encrypted": false, "bytes"}
    """
    from localmem.encryption import decrypt as write_anew

    existing(options)
    if not yes and not _agrees("Write the store without its key?"):
        raise click.Abort
    known = key_options(options)["key"]
    _told(options, write_anew(options.store, known, overwrite=overwrite, **_signing(options)))


def _signing(options: Options) -> dict[str, Any]:
    given = key_options(options)
    return {"audit_key": given["audit_key"], "actor": given["actor"], "checkpoint": options.checkpoint}


def _wanted(file: str | None, keychain: str | None) -> Key:
    return named_key(file, keychain, "--new-key-file or --new-keychain") or _asked()


def _asked() -> Key:
    """A passphrase typed twice, which nothing shows."""
    first = getpass.getpass("New passphrase: ")
    if getpass.getpass("Once more: ") != first:
        raise InvalidInputError("the two passphrases differ; nothing was changed")
    key = keys.key_of(first)
    assert key is not None
    return key


def _told(options: Options, done: Mapping[str, Any]) -> None:
    if options.json:
        terminal.print_json(done)
        return
    terminal.write(f"{done['path']}: {'encrypted' if done['encrypted'] else 'not encrypted'}, {done['bytes']:,} bytes")
