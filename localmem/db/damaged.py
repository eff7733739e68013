"""A damaged file, page by page: copied, what its WAL holds put in, decrypted. The file itself is only read."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from localmem.db import opening
from localmem.db.btree import INDEX_INNER, INDEX_LEAF, TABLE_INNER, TABLE_LEAF, Pages
from localmem.db.driver import apsw
from localmem.db.raw_file import shim_over
from localmem.errors import ConflictError, KeyRefusedError, StorageError
from localmem.keys import SALT_BYTES, Key

PAGE_BYTES = 4096  # of every file that localmem makes
_RESERVED_BYTES = 32  # of an encrypted page, for its nonce and tag
_BLOCK_BYTES = 256 * PAGE_BYTES
_WAL_BYTES, _FRAME_BYTES = 32, 24  # headers of the WAL and of each page in it
_WAL_MAGIC = 0x377F0682  # the last bit: whether its checksums are of big-endian numbers
_SAMPLE_PAGES = 500
_WITHOUT_KEY = "leave it out (and unset LOCALMEM_KEY_FILE, LOCALMEM_KEY and LOCALMEM_KEYCHAIN)"


@dataclass(frozen=True, slots=True)
class Copied:
    """What copying came to: pages that the disk did not give, pages from the WAL, transactions of it that are lost."""

    unreadable: int
    wal_pages: int
    commits_lost: int
    has_journal: bool  # of another journal mode, which localmem leaves at once: it is not used


@dataclass(frozen=True, slots=True)
class Opened:
    """The pages of a damaged file, and what its header says of it."""

    pages: Pages
    encrypted: bool
    schema: int | None  # the number of its schema; None: the header doesn't tell
    unreadable: set[int] = field(default_factory=set)  # pages that could not be had or decrypted so far


def copy(path: Path, to: Path) -> Copied:
    """Copy a file and put in what was committed to its WAL, as SQLite would. What the disk does not give is zeros.

    Raises ConflictError when another program writes meanwhile, StorageError when the copy can't be written.
    """
    before = _state(path)
    try:
        with os.fdopen(os.open(to, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w+b") as made:
            unreadable = _copy_bytes(path, made)
            pages, lost = _put_in_wal(Path(f"{path}-wal"), made)
    except OSError as error:
        raise StorageError(f"{path} could not be copied to {to}: {error.strerror or error}") from None
    if _state(path) != before:
        raise ConflictError(f"another program is writing to {path}; close it and try again")
    journal = Path(f"{path}-journal")
    return Copied(unreadable, pages, lost, journal.exists() and journal.stat().st_size > 0)


@contextlib.contextmanager
def opened(path: Path, key: Key | None, name: Path) -> Iterator[Opened]:
    """The pages of a copy of the file ``name``.

    Raises KeyRefusedError when it is encrypted and the key does not open a single page, or it is not and there is one.
    """
    with path.open("rb") as file:
        header = file.read(opening.HEADER_BYTES)
        if _is_plain(header, file):
            if key is not None:
                raise KeyRefusedError(f"{name} is not encrypted, and a key was given; {_WITHOUT_KEY}")
            yield _plain(file, header)
            return
    if key is None:
        raise KeyRefusedError(
            f"the file is encrypted, or it is no localmem file, or nothing of it is whole; {opening.GIVE_KEY}"
        )
    with _decrypted(path, key, header) as found:
        if all(found.pages.read(number) is None for number in range(1, found.pages.count + 1)):
            raise KeyRefusedError(
                f"no page of {name} can be opened with this key. Either it is another key, or the file is not "
                "encrypted by localmem, or, with a passphrase, the first 16 bytes of the file are damaged"
            )
        found.unreadable.clear()
        yield found


# -------------------------------------------------------------------- copying


def _state(path: Path) -> list[tuple[int, int]]:
    found = []
    for each in (path, Path(f"{path}-wal")):
        with contextlib.suppress(FileNotFoundError):
            told = each.stat()
            found.append((told.st_size, told.st_mtime_ns))
    return found


def _copy_bytes(path: Path, made: IO[bytes]) -> int:
    """Copy the file through SQLite's own layer (see opening.bare_file); how many pages could not be read."""
    file, unreadable = opening.bare_file(path), 0
    try:
        size = file.xFileSize()
        for offset in range(0, size, _BLOCK_BYTES):
            amount = min(_BLOCK_BYTES, size - offset)
            try:
                made.write(bytes(file.xRead(amount, offset)))
            except apsw.IOError:  # a bad sector: the pages beside it may be well
                unreadable += _copy_singly(file, made, offset, amount)
    finally:
        file.xClose()
    return unreadable


def _copy_singly(file: apsw.VFSFile, made: IO[bytes], offset: int, amount: int) -> int:
    unreadable = 0
    for at in range(offset, offset + amount, PAGE_BYTES):
        page = min(PAGE_BYTES, offset + amount - at)
        try:
            made.write(bytes(file.xRead(page, at)))
        except apsw.IOError:
            made.write(bytes(page))
            unreadable += 1
    return unreadable


# -------------------------------------------------------------------- the WAL


def _put_in_wal(wal: Path, made: IO[bytes]) -> tuple[int, int]:
    """Put the pages of a WAL in their places, as far as SQLite would trust it; (their number, commits beyond that).

    By hand, since SQLite opens nothing whose first page is damaged, and throws the WAL away when it closes.
    """
    if not wal.exists() or wal.stat().st_size <= _WAL_BYTES:
        return 0, 0
    with wal.open("rb") as file:
        places, size, lost = _committed(file)
        for number, place in places.items():
            file.seek(place)
            made.seek((number - 1) * PAGE_BYTES)
            made.write(file.read(PAGE_BYTES))
        if size:
            made.truncate(size * PAGE_BYTES)
    return len(places), lost


def _committed(file: IO[bytes]) -> tuple[dict[int, int], int, int]:
    """(page -> where in the WAL its last committed content stands, pages of the file then, commits not to be trusted).

    https://sqlite.org/fileformat2.html, section 4: every frame has the salts of the header, and a checksum of all that
    stands before it. Frames with other salts are of before the last checkpoint.
    """
    header = file.read(_WAL_BYTES)
    magic, _, page_bytes, _, *salts_and_sums = struct.unpack(">8I", header)
    salts, sums = tuple(salts_and_sums[:2]), tuple(salts_and_sums[2:])
    big = bool(magic & 1)
    trusted = magic & ~1 == _WAL_MAGIC and page_bytes == PAGE_BYTES and _summed(header[:24], (0, 0), big) == sums
    committed, pending, pages, lost = dict[int, int](), dict[int, int](), 0, 0
    while len(frame := file.read(_FRAME_BYTES + PAGE_BYTES)) == _FRAME_BYTES + PAGE_BYTES:
        number, size, *rest = struct.unpack(">6I", frame[:_FRAME_BYTES])
        if trusted and tuple(rest[:2]) != salts:
            break
        if trusted:
            sums = _summed(frame[_FRAME_BYTES:], _summed(frame[:8], sums, big), big)
            trusted = sums == tuple(rest[2:]) and number > 0
        if not trusted:
            lost += size > 0 and tuple(rest[:2]) == salts
            continue
        pending[number] = file.tell() - PAGE_BYTES
        if size:
            committed.update(pending)
            pending, pages = {}, size
    return {number: place for number, place in committed.items() if number <= pages}, pages, lost


def _summed(data: bytes, sums: tuple[int, ...], big: bool) -> tuple[int, int]:
    """The WAL's running checksum. Of an encrypted file it is of the encrypted bytes."""
    words = array("I", data)
    if big is not (sys.byteorder == "big"):
        words.byteswap()
    one, two = sums
    pairs = iter(words)
    for first, second in zip(pairs, pairs, strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


# -------------------------------------------------------------------- pages


def _is_plain(header: bytes, file: IO[bytes]) -> bool:
    """Whether a file is not encrypted, also where its header is damaged: most of its pages look like pages."""
    if header.startswith(opening.PLAIN):
        return True
    count = os.fstat(file.fileno()).st_size // PAGE_BYTES
    wanted = range(2, count + 1, max(1, count // _SAMPLE_PAGES))
    pages = [os.pread(file.fileno(), PAGE_BYTES, (number - 1) * PAGE_BYTES) for number in wanted]
    written = [page for page in pages if any(page)]
    return 5 * sum(map(_looks_like_page, written)) > len(written)  # of random bytes 1 in 1,000 does


def _looks_like_page(page: bytes) -> bool:
    if page[0] not in (TABLE_INNER, TABLE_LEAF, INDEX_INNER, INDEX_LEAF):
        return False
    head = 12 if page[0] in (TABLE_INNER, INDEX_INNER) else 8
    count, content = struct.unpack(">HH", page[3:7])
    return bool(head + 2 * count <= (content or 65_536) <= len(page))


def _plain(file: IO[bytes], header: bytes) -> Opened:
    size = int.from_bytes(header[16:18], "big") if header.startswith(opening.PLAIN) else PAGE_BYTES
    size = size if size in (512, 1024, 2048, 4096, 8192, 16384, 32768) else PAGE_BYTES
    count, unreadable = -(-os.fstat(file.fileno()).st_size // size), set[int]()

    def read(number: int) -> bytes | None:
        page = os.pread(file.fileno(), size, (number - 1) * size) if 1 <= number <= count else b""
        if not page:
            unreadable.add(number)
        return page.ljust(size, b"\0") if page else None  # the end of a file that was cut off

    return Opened(Pages(read, count, size), False, _schema(read(1)), unreadable)


@contextlib.contextmanager
def _decrypted(path: Path, key: Key, header: bytes) -> Iterator[Opened]:
    """Each page is authenticated: what was changed can't be had at all."""
    raw_key = f"raw:{key.raw(header[:SALT_BYTES].ljust(SALT_BYTES, bytes(1))).hex()}"
    shim, unreadable = shim_over(apsw.vfs_names()[0]), set[int]()
    connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=shim.name)
    try:
        opening.unlock(connection, raw_key)
        file = shim.opened[-1]
        count = -(-file.xFileSize() // PAGE_BYTES)

        def read(number: int) -> bytes | None:
            try:
                page = bytes(file.xRead(PAGE_BYTES, (number - 1) * PAGE_BYTES)) if 1 <= number <= count else b""
            except apsw.Error:
                page = b""
            if len(page) != PAGE_BYTES:
                unreadable.add(number)
            return page if len(page) == PAGE_BYTES else None

        yield Opened(Pages(read, count, PAGE_BYTES - _RESERVED_BYTES), True, _schema(read(1)), unreadable)
    finally:
        connection.close()
        shim.opened.clear()


def _schema(page: bytes | None) -> int | None:
    """The number of the schema in the header on page 1, if it is one."""
    number = 0 if page is None else int.from_bytes(page[60:64], "big")
    return number if 0 < number < 1000 else None
