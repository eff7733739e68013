"""Faults below SQLite: a VFS that fails, tears or cuts the n-th write, and children killed at the n-th statement.

`FaultVFS` counts every write, sync, truncate and delete of a database, its WAL and its journals, and keeps a copy of
what each file held at its last sync. `sweep` runs one action again and again, with one fault at each operation in turn,
and compares what the file then holds with what it held before and what it should hold after. `run_child` runs an action
in a forked process and kills it with SIGKILL at a chosen SQL statement, or wherever the action kills itself.

Known limit: apsw carries a Python exception raised in a VFS method to the caller, even where SQLite itself swallows the
error (a checkpoint at close or after a commit). So an action may raise although its commit stands; `sweep` allows this.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import apsw

SECTOR_BYTES = 512
SLOW_S = 10.0  # one faulted run; longer means that something retries an error that cannot heal

ERROR_KINDS = ("io", "full", "torn")  # the process lives on, and the disk works again
DEATH_KINDS = ("stop", "torn_stop", "power", "power_torn")  # nothing works until reboot()
KINDS = ERROR_KINDS + DEATH_KINDS
"""What can happen at operation n.

io          the operation fails with an I/O error, once; nothing of it is done
full        from here on, writes that grow a file fail with "disk full", until `lift()`
torn        a write leaves its first half, then fails with an I/O error, once
stop        the process dies just before the operation; the files stay as they are
torn_stop   the process dies with the first half of this write on the disk
power       power cut: each file falls back to its last sync; unsynced creations and deletions are undone
power_torn  power cut: a seeded random half of the unsynced sectors, truncations, creations and deletions survive
"""
WRITE_ONLY_KINDS = frozenset({"full", "torn", "torn_stop"})

_COUNTED_FILES = (
    apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
)
_JOURNALS = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
_serial = itertools.count(1)
_kept: list[apsw.VFS] = []  # the cipher's layer holds a pointer to each for the life of the process


@dataclass(frozen=True, slots=True)
class Operation:
    """One counted operation: verb is write, sync, truncate or delete; file is the name without its folder."""

    verb: str
    file: str
    offset: int = 0
    size_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.verb} {self.file} at {self.offset} ({self.size_bytes} bytes)"


@dataclass(slots=True)
class _Shadow:
    """What a power cut would leave of one path. ``durable`` is None where the path does not exist durably."""

    durable: bytes | None
    dirty: list[tuple[int, int]] = field(default_factory=list)  # (offset, bytes) written since the last sync
    entry_changed: bool = False  # created or deleted since the folder was last synced


class FaultVFS(apsw.VFS):
    """A VFS over "unix", below the cipher layer, with one planned fault at a time.

    Hand ``vfs.name`` to the connection: it names the cipher's layer over this VFS, which SQLite3 Multiple Ciphers makes
    when first asked for. (The other way round, this VFS above the cipher's, the WAL would be written in the clear.)
    ``operations`` lists what was counted since `plan` or `counting`. fsync is not passed on to the disk: durability is
    what the shadow copies say. For one process only.
    """

    def __init__(self, name: str | None = None, *, seed: int = 0) -> None:
        bare = name or f"fault-{os.getpid()}-{next(_serial)}"
        self.name = f"multipleciphers-{bare}"
        self.operations: list[Operation] = []
        self.open_files = 0  # database, WAL and journal files open now: 0 once every connection is closed
        self.fired: Operation | None = None  # where the planned fault struck
        self.dead = False
        self._kind: str | None = None
        self._at = 0
        self._is_full = False
        self._seed = seed
        self._shadows: dict[str, _Shadow] = {}
        self._image: dict[str, bytes | None] = {}  # what the reboot finds
        super().__init__(bare, "unix")
        _kept.append(self)

    # planning

    def plan(self, kind: str, at: int) -> None:
        """Strike at the ``at``-th operation from now, counted from 1. ValueError for an unknown kind or at < 1."""
        if kind not in KINDS or at < 1:
            raise ValueError(f"kind must be one of {', '.join(KINDS)} and at >= 1, not {kind!r} and {at}")
        self.lift()
        self._kind, self._at, self.fired = kind, at, None
        self.operations.clear()

    def lift(self) -> None:
        """Forget the planned fault; a full disk has room again. A dead VFS stays dead until `reboot`."""
        self._kind, self._is_full = None, False

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[Operation]]:
        """Count without faults: yields the list that grows with each operation."""
        self.lift()
        self.operations.clear()
        yield self.operations

    def cut(self, kind: str = "power") -> None:
        """Die here, between two operations. ``kind`` is one of DEATH_KINDS."""
        self._image = self._after_cut(kind)
        self.dead = True

    def adopt(self, path: Path) -> None:
        """A rename, of which SQLite knows nothing, has put this file in its place, and the folder was synced."""
        self._shadows[str(path)] = _Shadow(path.read_bytes())

    def reboot(self) -> None:
        """Put back on the disk what the death left, as new files (an old connection can no longer touch them).

        Close every connection first. Without a death before it, only the shadow copies are forgotten.
        """
        if self.dead:
            for path, content in self._image.items():
                _replace(Path(path), content)
                Path(f"{path}-shm").unlink(missing_ok=True)
        self._image.clear()
        self._shadows.clear()
        self.dead = False
        self.lift()

    # SQLite calls these

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        self.check_alive(apsw.CantOpenError)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None or not flags[0] & _COUNTED_FILES:
            return apsw.VFSFile("unix", name, flags)
        existed = os.path.exists(path)
        if path not in self._shadows:
            self._shadows[path] = _Shadow(Path(path).read_bytes() if existed else None)
        opened = _FaultFile(self, path, name, flags)
        if not existed and os.path.exists(path):
            self._shadows[path].entry_changed = True
        self.open_files += 1
        return opened

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.check_alive()
        if not filename.endswith(("-journal", "-wal")) or not os.path.exists(filename):
            return super().xDelete(filename, syncdir)
        shadow = self._shadows.setdefault(filename, _Shadow(Path(filename).read_bytes()))
        struck = self.strike(Operation("delete", os.path.basename(filename)))
        if struck == "power_torn":
            self._delete(filename, shadow)
        if struck in DEATH_KINDS:
            self.cut(struck)
        if struck:
            raise _io_error(apsw.SQLITE_IOERR_DELETE)
        self._delete(filename, shadow)
        if syncdir:
            self.sync_folder(os.path.dirname(filename))
        return None

    def xAccess(self, pathname: str, flags: int) -> bool:
        self.check_alive()
        return super().xAccess(pathname, flags)

    def excepthook(self, *_: object) -> None:
        """An injected error that SQLite swallowed: not worth a traceback on stderr."""

    # used by the files

    def check_alive(self, error: type[apsw.Error] = apsw.IOError) -> None:
        if self.dead:
            raise error("the machine is off: reboot() first")

    def strike(self, operation: Operation) -> str | None:
        """Count the operation; the kind of fault that strikes it, or None."""
        self.operations.append(operation)
        if self._kind is None or len(self.operations) != self._at:
            return None
        if self._kind in WRITE_ONLY_KINDS and operation.verb != "write":
            return None
        self.fired = operation
        if self._kind == "full":
            self._is_full = True
            return None
        return self._kind

    def refuses_growth(self) -> bool:
        return self._is_full

    def shadow(self, path: str) -> _Shadow:
        return self._shadows[path]

    def sync_folder(self, folder: str) -> None:
        """Creations and deletions in the folder last from here on (a created file without a sync is empty)."""
        for path, shadow in self._shadows.items():
            if shadow.entry_changed and os.path.dirname(path) == folder:
                shadow.entry_changed = False
                shadow.durable = b"" if os.path.exists(path) else None

    def _delete(self, path: str, shadow: _Shadow) -> None:
        super().xDelete(path, False)
        shadow.entry_changed = True
        shadow.dirty.clear()

    def _after_cut(self, kind: str) -> dict[str, bytes | None]:
        if kind not in DEATH_KINDS:
            raise ValueError(f"kind must be one of {', '.join(DEATH_KINDS)}, not {kind!r}")
        if kind in ("stop", "torn_stop"):
            return {path: _read(path) for path in self._shadows}
        if kind == "power":
            return {path: shadow.durable for path, shadow in self._shadows.items()}
        chance = random.Random(f"{self._seed}:{len(self.operations)}")
        return {path: _torn(shadow, _read(path), chance) for path, shadow in self._shadows.items()}


class _FaultFile(apsw.VFSFile):
    """A database, WAL or journal file of a `FaultVFS`."""

    def __init__(self, vfs: FaultVFS, path: str, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._vfs = vfs
        self._path = path
        self._file = os.path.basename(path)
        self._is_journal = bool(flags[0] & _JOURNALS)
        self._is_open = True
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._vfs.check_alive()
        return super().xRead(amount, offset)

    def xFileSize(self) -> int:
        self._vfs.check_alive()
        return super().xFileSize()

    def xWrite(self, data: bytes, offset: int) -> None:
        self._vfs.check_alive()
        struck = self._vfs.strike(Operation("write", self._file, offset, len(data)))
        if self._vfs.refuses_growth() and offset + len(data) > super().xFileSize():
            raise apsw.FullError("injected: disk full")
        if struck in ("torn", "torn_stop"):
            self._write(bytes(data[: max(1, len(data) // 2)]), offset)
        if struck == "power_torn":
            self._write(data, offset)
        self._fall(struck, apsw.SQLITE_IOERR_WRITE)
        self._write(data, offset)

    def xSync(self, flags: int) -> None:
        self._vfs.check_alive()
        struck = self._vfs.strike(Operation("sync", self._file))
        self._fall(struck, apsw.SQLITE_IOERR_FSYNC)
        shadow = self._vfs.shadow(self._path)
        if shadow.entry_changed and self._is_journal:  # SQLite syncs the folder after a new journal's first sync
            self._vfs.sync_folder(os.path.dirname(self._path))
        shadow.entry_changed = False
        shadow.durable = _read(self._path)
        shadow.dirty.clear()

    def xTruncate(self, newsize: int) -> None:
        self._vfs.check_alive()
        struck = self._vfs.strike(Operation("truncate", self._file, newsize))
        if struck == "power_torn":
            super().xTruncate(newsize)
        self._fall(struck, apsw.SQLITE_IOERR_TRUNCATE)
        super().xTruncate(newsize)

    def xClose(self) -> None:
        if self._is_open:
            self._is_open = False
            self._vfs.open_files -= 1
        super().xClose()

    def excepthook(self, *_: object) -> None:
        """As in `FaultVFS.excepthook`."""

    def _write(self, data: bytes, offset: int) -> None:
        self._vfs.shadow(self._path).dirty.append((offset, len(data)))
        super().xWrite(data, offset)

    def _fall(self, struck: str | None, code: int) -> None:
        if struck in DEATH_KINDS:
            self._vfs.cut(struck)
        if struck:
            raise _io_error(code)


def _io_error(code: int) -> apsw.IOError:
    error = apsw.IOError("injected: disk I/O error")
    error.extendedresult = code
    return error


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _replace(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def _torn(shadow: _Shadow, current: bytes | None, chance: random.Random) -> bytes | None:
    """What is left of one file when about half of its unsynced sectors and folder entries survive the cut."""
    base = shadow.durable
    if shadow.entry_changed:
        if chance.random() < 0.5:
            return base
        base = None if current is None else b""
    if base is None or current is None:
        return base
    left = bytearray(base)
    if len(current) < len(left) and chance.random() < 0.5:
        del left[len(current) :]
    sectors = {
        sector
        for offset, size in shadow.dirty
        for sector in range(offset // SECTOR_BYTES, (offset + size - 1) // SECTOR_BYTES + 1)
    }
    for sector in sorted(sectors):
        written = current[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES]
        if written and chance.random() < 0.5:
            left.extend(bytes(max(0, sector * SECTOR_BYTES - len(left))))
            left[sector * SECTOR_BYTES : sector * SECTOR_BYTES + len(written)] = written
    return bytes(left)


# sweeping one action

Acknowledge = Callable[[], None]
Act = Callable[[Path, FaultVFS, Acknowledge], object]
Between = Callable[[Hashable, Hashable], bool]  # (state found, state before): may a fault leave this?
NEVER = 2**62
AT_PROMISE = 0  # a death just as the action calls acknowledge()


def never(_now: Hashable, _before: Hashable) -> bool:
    """Nothing lies between before and after."""
    return False


@dataclass(frozen=True, slots=True)
class Outcome:
    """One faulted run. ``error`` is what the action raised before it called ``acknowledge``."""

    kind: str
    at: int  # operation, from 1; AT_PROMISE; one more than the last: after the action closed everything
    operation: Operation | None  # None: the fault struck between operations
    acknowledged: bool
    error: BaseException | None
    now: Hashable
    seconds: float

    def __str__(self) -> str:
        done = "acknowledged" if self.acknowledged else f"raised {type(self.error).__name__}: {self.error}"
        return f"{self.kind} at {self.at} [{self.operation}], {done}, {self.seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did: counted operations of the unfaulted run, and every faulted run."""

    operations: tuple[Operation, ...]
    before: Hashable
    after: Hashable
    outcomes: tuple[Outcome, ...]


def sweep(
    folder: Path,
    *,
    make: Callable[[Path], object],
    act: Act,
    observe: Callable[[Path], Hashable],
    errors: tuple[type[BaseException], ...],
    between: Between = never,
    finish: Callable[[Path], object] | None = None,
    kinds: Sequence[str] = KINDS,
    points_max: int = 40,
    seed: int = 0,
) -> Sweep:
    """Run ``act`` with every kind of fault at every operation, and with every death at the promise and after the end.

    Of each kind, at most ``points_max`` writes (evenly spaced) and as many other operations are struck.

    make(path) prepares the file once, closed at its end (it may leave the path missing).
    act(path, vfs, acknowledge) opens the file through ``vfs.name``, does its work, calls acknowledge() when
    the work is promised to its caller (if ever), and closes. Before that it may raise one of ``errors``, nothing else.
    observe(path) opens without faults, asserts that nothing is broken, and returns the state as a value with ==.
    The state must be the one before, the one after (nothing else once acknowledged), or one that ``between`` allows.
    finish(path), where given, completes what the fault cut short: then the state must be the one after.

    Raises AssertionError that lists every broken run.
    """
    start, work = folder / "start.db", folder / "work.db"
    make(start)
    before = observe(_copy(start, work))
    vfs = FaultVFS(seed=seed)
    operations = _count(vfs, _copy(start, work), act)
    after = observe(work)
    outcomes: list[Outcome] = []
    broken: list[str] = []
    for kind, at in _points(operations, kinds, points_max):
        _copy(start, work)
        try:
            outcome = _run(vfs, work, act, observe, kind, at, len(operations))
            outcomes.append(outcome)
            problem = _problem(outcome, before, after, errors, between)
            if not problem and finish and outcome.now != after:
                finish(work)
                problem = "" if observe(work) == after else f"finished as {observe(work)!r}, not {after!r}"
            if problem:
                broken.append(f"{outcome}: {problem}")
        except Exception:
            broken.append(f"{kind} at {at}: {traceback.format_exc()}")
    assert not broken, f"{len(broken)} of {len(outcomes)} faulted runs broke:\n" + "\n".join(broken[:20])
    return Sweep(tuple(operations), before, after, tuple(outcomes))


def _count(vfs: FaultVFS, work: Path, act: Act) -> list[Operation]:
    with vfs.counting() as operations:
        act(work, vfs, lambda: None)
    assert vfs.open_files == 0, f"{vfs.open_files} files are still open after the action closed everything"
    vfs.reboot()
    return list(operations)


def _run(
    vfs: FaultVFS,
    work: Path,
    act: Act,
    observe: Callable[[Path], Hashable],
    kind: str,
    at: int,
    operations: int,
) -> Outcome:
    promised: list[bool] = []
    error: BaseException | None = None

    def acknowledge() -> None:
        promised.append(True)
        if at == AT_PROMISE:
            vfs.cut(kind)

    vfs.plan(kind, at or NEVER)
    started = time.perf_counter()
    try:
        act(work, vfs, acknowledge)
    except Exception as raised:
        error = _without_frames(raised)
    if at > operations and kind in DEATH_KINDS:
        vfs.cut(kind)
    seconds = time.perf_counter() - started
    operation = vfs.fired
    if vfs.open_files:
        gc.collect()
    leaked = vfs.open_files
    vfs.reboot()
    now = observe(work)
    assert not leaked or promised, f"{leaked} files stayed open after {error!r} ({kind} at {at})"
    return Outcome(kind, at, operation, bool(promised), error, now, seconds)


def _without_frames(error: BaseException) -> BaseException:
    """The error without its tracebacks, causes' too: their frames would keep connections open."""
    links, seen = [error], set[int]()
    while links:
        link = links.pop()
        if id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            links += [other for other in (link.__cause__, link.__context__) if other is not None]
    return error


def _problem(
    outcome: Outcome,
    before: Hashable,
    after: Hashable,
    errors: tuple[type[BaseException], ...],
    between: Between,
) -> str:
    """What is wrong with the outcome, or "". After the promise the error is apsw's own (see the module's limit)."""
    if outcome.seconds > SLOW_S:
        return f"took longer than {SLOW_S:g} s"
    if outcome.acknowledged:
        return "" if outcome.now == after else f"promised, but the state is {outcome.now!r}, not {after!r}"
    if outcome.error is not None and not isinstance(outcome.error, errors):
        return f"raised {outcome.error!r}, not one of {', '.join(error.__name__ for error in errors)}"
    if outcome.now in (before, after) or between(outcome.now, before):
        return ""
    return f"the state is {outcome.now!r}, neither before {before!r} nor after {after!r}"


def _points(operations: Sequence[Operation], kinds: Sequence[str], points_max: int) -> Iterator[tuple[str, int]]:
    """(kind, at) of every run: the sampled operations, shifted from kind to kind, and for deaths promise and end."""
    writes = [at for at, operation in enumerate(operations, 1) if operation.verb == "write"]
    others = [at for at, operation in enumerate(operations, 1) if operation.verb != "write"]
    for index, kind in enumerate(kinds):
        struck = spaced(writes, points_max, shift=index / len(kinds))
        if kind not in WRITE_ONLY_KINDS:
            struck = sorted(struck + spaced(others, points_max, shift=index / len(kinds)))
        yield from ((kind, at) for at in struck)
        if kind in DEATH_KINDS:
            yield kind, AT_PROMISE
            yield kind, len(operations) + 1


def spaced(values: Sequence[int], count_max: int, *, shift: float = 0.0) -> list[int]:
    """At most ``count_max`` (>= 3) of the values: the first, the last, and others evenly spaced between them.

    shift in [0, 1) moves the others on by that share of their distance.
    """
    if len(values) <= count_max:
        return list(values)
    step = (len(values) - 1) / (count_max - 1)
    inner = (min(round((index + shift) * step), len(values) - 2) for index in range(1, count_max - 1))
    return [values[index] for index in dict.fromkeys([0, *inner, len(values) - 1])]


def _copy(start: Path, work: Path) -> Path:
    for suffix in ("", "-wal", "-shm", "-journal"):
        source, target = Path(f"{start}{suffix}"), Path(f"{work}{suffix}")
        target.unlink(missing_ok=True)
        if source.exists():
            shutil.copyfile(source, target)
    return work


# killing a child process


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child ended. ``statements`` is known where it ended by itself; ``error`` is its traceback or ""."""

    killed: bool
    acknowledged: bool
    statements: int
    error: str


def run_child(job: Callable[[Acknowledge], object], *, kill_at: int | None = None, timeout_s: float = 60.0) -> ChildEnd:
    """Run ``job(acknowledge)`` in a forked child; SIGKILL it as it starts its ``kill_at``-th SQL statement (from 1).

    Statements are counted over every connection that the child opens, nested ones (triggers, FTS) included.
    The job may also kill itself, with `die`. Raises AssertionError when the child runs longer than ``timeout_s``.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(job, kill_at, writer)
    os.close(writer)
    try:
        said = _listen(reader, child, timeout_s)
    finally:
        os.close(reader)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    lines = said.split("\n", 2)  # "+" or "" for the promise, then the count, then a traceback
    acknowledged = said.startswith("+")
    ended = len(lines) > 2
    return ChildEnd(killed, acknowledged, int(lines[1]) if ended else 0, lines[2] if ended else "")


def die() -> None:
    """Kill this process as `kill -9` would. Only for use inside `run_child`."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is on its way


def _child(job: Callable[[Acknowledge], object], kill_at: int | None, writer: int) -> None:
    """The child's whole life. Never returns: os._exit keeps pytest's own exit handlers out of the child."""
    statements = itertools.count(1)
    seen = 0

    def count(_: object) -> None:
        nonlocal seen
        seen = next(statements)
        if seen == kill_at:
            die()

    def watch(connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_STMT, count, id=count)

    code = 1
    try:
        apsw.connection_hooks.append(watch)
        failure = ""
        try:
            job(lambda: os.write(writer, b"+") and None)
        except BaseException:
            failure = traceback.format_exc()
        os.write(writer, f"\n{seen}\n{failure}".encode())
        code = 0
    finally:
        os._exit(code)


def _listen(reader: int, child: int, timeout_s: float) -> str:
    """All that the child wrote until it ended. Kills a child that is too slow."""
    said = b""
    deadline = time.monotonic() + timeout_s
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"the child ran longer than {timeout_s:g} s")
        chunk = os.read(reader, 65536)
        if not chunk:
            return said.decode(errors="replace")
        said += chunk


def sweep_kills(
    folder: Path,
    *,
    make: Callable[[Path], object],
    act: Callable[[Path, Acknowledge], object],
    observe: Callable[[Path], Hashable],
    between: Between = never,
    finish: Callable[[Path], object] | None = None,
    points_max: int = 40,
) -> list[ChildEnd]:
    """`sweep` for SIGKILL: one child per sampled SQL statement of ``act``. The same rules for the state.

    Raises AssertionError that lists every broken run.
    """
    start, work = folder / "start.db", folder / "work.db"
    make(start)
    before = observe(_copy(start, work))
    whole = run_child(lambda promise: act(_copy(start, work), promise))
    assert whole.acknowledged, f"the action failed without a kill: {whole}"
    assert not whole.error, f"the action failed without a kill: {whole.error}"
    after = observe(work)
    ends: list[ChildEnd] = []
    broken: list[str] = []
    for at in spaced(range(1, whole.statements + 1), points_max):
        _copy(start, work)
        end = run_child(lambda promise: act(work, promise), kill_at=at)
        ends.append(end)
        try:
            broken += _kill_problems(at, end, observe(work), before, after, between)
            if finish and observe(work) != after:
                finish(work)
                assert observe(work) == after, f"finished as {observe(work)!r}, not {after!r}"
        except Exception:
            broken.append(f"killed at statement {at}: {traceback.format_exc()}")
    assert not broken, f"{len(broken)} of {len(ends)} kills broke:\n" + "\n".join(broken[:20])
    return ends


def _kill_problems(
    at: int,
    end: ChildEnd,
    now: Hashable,
    before: Hashable,
    after: Hashable,
    between: Between,
) -> list[str]:
    if not end.killed:
        return [f"statement {at}: not killed: {end}"]
    if now == after or (not end.acknowledged and (now == before or between(now, before))):
        return []
    return [f"killed at statement {at} ({end}): the state is {now!r}, before {before!r}, after {after!r}"]
