"""One connection: which file lies there, its key, the extension, the settings that every connection has."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmem.db.driver import apsw, sqlite_vec
from localmem.errors import InvalidInputError, KeyRefusedError, NotOurFileError, ReadOnlyError, StorageError
from localmem.keys import SALT_BYTES, Key

PLAIN = b"SQLite format 3\0"
HEADER_BYTES = 24
# Of an encrypted file the first 16 bytes are its salt; of what follows these three are always the same, in the clear:
# the bytes reserved in each page (for nonce and tag), and the constants of the payload fractions.
_ENCRYPTED = bytes((32, 64, 32, 32))
CIPHER = "chacha20"  # ChaCha20-Poly1305, each page authenticated
LAYER = "multipleciphers-"  # name of the VFS that encrypts, before that of the one below it


@dataclass(frozen=True, slots=True)
class Opening:
    """How the connections of one file are opened. ``path`` None: in memory. ``vfs``: name of a registered one."""

    path: Path | None
    durability: str
    lock_wait_s: float
    read_only: bool = False
    vfs: str | None = None
    raw_key: str | None = None  # as the key pragma wants it

    def connect(self, cache_kib: int) -> apsw.Connection:
        """A connection that has read nothing yet."""
        connection = apsw.Connection(*self._target(), vfs=self.vfs)
        try:
            self._set_up(connection, cache_kib)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: apsw.Connection, cache_kib: int) -> None:
        if self.raw_key is not None:
            unlock(connection, self.raw_key)
        connection.set_busy_handler(Patience(self.lock_wait_s))
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.enable_load_extension(False)
        connection.create_scalar_function("casefold", _casefold, 1, deterministic=True)  # lower() knows ASCII only
        connection.execute(f"pragma cache_size = -{cache_kib}")
        connection.execute("pragma temp_store = memory")
        connection.execute("pragma foreign_keys = on")
        connection.execute(f"pragma synchronous = {'full' if self.durability == 'power' else 'normal'}")

    def _target(self) -> tuple[str, int]:
        if self.path is None:
            return ":memory:", apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        if self.read_only:
            wal = Path(f"{self.path}-wal")
            immutable = "" if wal.exists() and wal.stat().st_size else "&immutable=1"
            uri = f"{self.path.resolve().as_uri()}?mode=ro{immutable}"
            return uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        return os.fspath(self.path), apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI  # URIs: for VACUUM INTO


def unlock(connection: apsw.Connection, raw_key: str) -> None:
    """Hand a connection its key before it reads anything. KeyRefusedError when this build doesn't encrypt."""
    if connection.pragma("cipher", CIPHER) != CIPHER or connection.pragma("key", raw_key) != "ok":
        raise KeyRefusedError(f"this build of SQLite does not know the cipher {CIPHER}; nothing was written")


def raw_key(path: Path, header: bytes, key: Key | None, vfs: str | None) -> str | None:
    """What the key pragma of each connection gets, None for a file without a key.

    Raises KeyRefusedError where a key was given and the file has none, and the reverse; NotOurFileError for what is no
    database at all. ``header``: of the file, as `header_of` says. An empty file, as a new one is, goes with both.
    """
    if key is not None and vfs is not None and not vfs.startswith(LAYER):
        raise KeyRefusedError(f"through the VFS {vfs} the file would not be encrypted; name it {LAYER}{vfs}")
    if not header:
        if key is None:
            return None
        salt = os.urandom(SALT_BYTES)
        return f"raw:{key.raw(salt).hex()}{salt.hex()}"
    if header.startswith(PLAIN):
        if key is not None:
            raise KeyRefusedError(
                f"{path} is not encrypted, and a key was given; open it without one, or run `localmem encrypt` first"
            )
        return None
    if key is not None:
        return f"raw:{key.raw(header[:SALT_BYTES]).hex()}"
    if header[20:HEADER_BYTES] == _ENCRYPTED:
        raise KeyRefusedError(f"{path} is encrypted (or its header is damaged); {GIVE_KEY}")
    raise NotOurFileError(
        f"{path} is not a localmem file, or its header is damaged, or it is encrypted in another way; "
        "nothing was changed. If it is one, restore a backup, or run `localmem salvage OUT`"
    )


GIVE_KEY = "give its key: Memory(path, key=…), --key-file, --keychain or --ask-key, LOCALMEM_KEY_FILE or LOCALMEM_KEY"


def header_of(path: Path, vfs: str | None = None) -> bytes:
    """The first bytes of a file, b"" of an empty one."""
    file = bare_file(path, vfs)
    try:
        return bytes(file.xRead(min(HEADER_BYTES, file.xFileSize()), 0))
    finally:
        file.xClose()


def bare_file(path: Path, vfs: str | None = None) -> apsw.VFSFile:
    """A file as it lies on the disk, to be read. By SQLite's own layer for the plain file system: to close a live file
    anywhere else would drop the locks that this process has on it (POSIX)."""
    below = (vfs or apsw.vfs_names()[0]).removeprefix(LAYER)
    return apsw.VFSFile(below, os.fspath(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READONLY, 0])


class Patience:
    """SQLite busy handler: sleeps with jitter until the wait is over; a steady pause would starve someone."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._deadline = 0.0

    def __call__(self, count: int) -> bool:
        now = time.monotonic()
        if count == 0:
            self._deadline = now + self._wait_s
        if now >= self._deadline:
            return False
        time.sleep(min(0.05, 0.0005 * 2 ** min(count, 7)) * random.uniform(0.5, 1.5))
        return True


def until_free(step: Any, wait_s: float) -> None:
    """Repeat a step that SQLite answers with BUSY without asking the busy handler (the switch to WAL)."""
    patience, count = Patience(wait_s), 0
    while True:
        try:
            step()
            return
        except (apsw.BusyError, apsw.LockedError):
            if not patience(count):
                raise
            count += 1


def _casefold(*values: Any) -> Any:
    (value,) = values
    return value.casefold() if isinstance(value, str) else value


def is_read_only(path: Path) -> bool:
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def create_private(path: Path) -> None:
    """Make the file readable by its owner alone; SQLite gives its side files the same mode."""
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; give the path of a file in it, e.g. {path / 'memory.db'}")
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} does not exist; create it first, or give another path")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise ReadOnlyError(f"{path} can't be created: {error.strerror}") from error
