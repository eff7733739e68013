"""Pieces of purged texts and vectors, sought in the raw bytes of a file to prove that nothing of them is left.

Whole texts or values cannot be sought: a freed cell loses its first bytes to the list of free blocks, and a vector of
1,536 bytes in a 12 KB chunk runs over pages that each begin with a header. So each text and vector gives several short
windows, any one of which betrays it: 16 bytes of a text, 64 of a vector. A remainder between two windows can go unseen:
up to 30 bytes in a text of up to 256, more in a longer one. Single words cannot be sought at all: they stand in other
texts too, and FTS5 writes a term without what it shares with the term before. That its index is clean is for fts5vocab
to say, not for this.

What is found is what an Aho-Corasick automaton finds, every needle at every offset and nothing else, without one more
dependency: a view of a block gives numpy the eight bytes from each offset, and a table tells which of them may begin a
needle. The few left are compared whole by another hash and then by an HMAC, so the needles themselves are kept nowhere,
and the same set, sealed, outlives a crash in the middle of a purge.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

NEEDLE_BYTES = 16  # of a text
WINDOW_BYTES = 64  # of a vector; no needle is longer
NEEDLE_BYTES_MIN = 8  # a shorter text stands in a file by chance
WINDOWS_MAX = 16  # of one text or vector, evenly spread
RECORDS_MAX = 2_000  # of one set; the needles of more would fill the table below
SECRET_BYTES_MIN = 16
_VECTOR_STEP = 256  # bytes of a vector for each window: several of them in every page it runs over
_TABLE_BITS = 22  # 4 MiB, about what a core's cache holds; 20,000 needles let 1 of 200 random offsets through
_BLOCK_BYTES = 4 << 20  # looked at at once
_VERSION = b"\x01"
_CHECKSUM_BYTES = 32
_ROW = np.dtype([("length", "u1"), ("record", "<u4"), ("start", "<u4"), ("whole", "<u4"), ("mac", "V16")])

Record = int | str  # whose needle it is: an id or a kind
_T = TypeVar("_T")


def text_needles(text: str) -> list[bytes]:
    """Windows of NEEDLE_BYTES of the UTF-8 bytes, first and last among them; a text of 8 to 15 bytes gives itself.

    At most WINDOWS_MAX, none twice; none of a shorter text, of blanks or of one byte. A lone surrogate: ValueError.
    """
    telling = [w for w in _windows(text.encode(), NEEDLE_BYTES) if w.decode(errors="ignore").strip()]
    return spread(telling, WINDOWS_MAX)


def vector_needles(vector: bytes) -> list[bytes]:
    """Windows of WINDOW_BYTES, one for each 256 bytes but at least 3 where there are; a shorter vector gives itself.

    At most WINDOWS_MAX, none twice; none of zeros (or any one byte), nor of a vector shorter than NEEDLE_BYTES_MIN.
    """
    return spread(_windows(vector, WINDOW_BYTES), min(WINDOWS_MAX, max(3, len(vector) // _VECTOR_STEP)))


def spread(items: Sequence[_T], count_max: int) -> list[_T]:
    """At most ``count_max`` (at least 2) of the items, evenly spread, with the first and the last."""
    if len(items) <= count_max:
        return list(items)
    return [items[n * (len(items) - 1) // (count_max - 1)] for n in range(count_max)]


def _windows(data: bytes, size: int) -> list[bytes]:
    if len(data) < NEEDLE_BYTES_MIN:
        return []
    last = max(0, len(data) - size)
    windows = (data[at : at + size] for at in (*range(0, last, size), last))
    return list(dict.fromkeys(window for window in windows if len(set(window)) > 1))


class Needles:
    """A set of needles, kept as keyed hashes. Make one with ``of`` or ``open``; it never changes, threads may share it.

    Whoever has the secret can test guesses against it: destroy the secret with the sealed form, when the purge is done.
    """

    def __init__(self, rows: Any, records: Sequence[Record], keys: _Keys) -> None:
        self._rows, self._records, self._keys = rows, records, keys
        self._owners: dict[bytes, list[int]] = {}  # by HMAC; one window can be of several records
        for mac, record in zip(rows["mac"].tolist(), rows["record"].tolist(), strict=True):
            self._owners.setdefault(mac, []).append(record)
        self._lengths: list[int] = np.unique(rows["length"]).tolist()
        self._starts = np.zeros(1 << _TABLE_BITS, np.uint8)  # for each start, the bits of the lengths to look at
        for n, length in enumerate(self._lengths):
            self._starts[rows["start"][rows["length"] == length]] |= 1 << n % 8
        self._wholes = np.zeros(1 << _TABLE_BITS, bool)
        self._wholes[rows["whole"]] = True

    @classmethod
    def of(cls, needles: Iterable[tuple[Record, bytes]], secret: bytes) -> Needles:
        """``secret``: 16 random bytes or more. A needle not of 8 to 64 bytes, too many records: ValueError."""
        keys, by_length, numbers = _Keys(secret), dict[int, list[tuple[bytes, int]]](), dict[Record, int]()
        for record, needle in needles:
            if not NEEDLE_BYTES_MIN <= len(needle) <= WINDOW_BYTES:
                raise ValueError(f"a needle of {record!r} has {len(needle)} bytes, not {NEEDLE_BYTES_MIN} to 64")
            by_length.setdefault(len(needle), []).append((needle, numbers.setdefault(record, len(numbers))))
        if len(numbers) > RECORDS_MAX:
            raise ValueError(f"needles of {len(numbers)} records, at most {RECORDS_MAX} at once; see spread()")
        groups = [_rows(group, keys) for group in by_length.values()]
        return cls(np.concatenate([np.empty(0, _ROW), *groups]), list(numbers), keys)

    @classmethod
    def open(cls, blob: bytes, secret: bytes) -> Needles:
        """The set that ``seal`` wrote; ValueError if the blob is damaged, of another version or of another secret."""
        if blob[:1] != _VERSION:
            raise ValueError(f"sealed needles of an unknown version {blob[:1].hex()!r}, not {_VERSION.hex()!r}")
        keys, checksum = _Keys(secret), blob[1 : 1 + _CHECKSUM_BYTES]
        body = keys.masked(blob[1 + _CHECKSUM_BYTES :], checksum)
        if not hmac.compare_digest(keys.checksum(body), checksum):
            raise ValueError("the sealed needles are damaged, or sealed with another secret")
        records, _, rows = body.partition(b"\n")
        return cls(np.frombuffer(rows, _ROW), json.loads(records), keys)

    def seal(self) -> bytes:
        """The set as bytes for ``open``: without the secret they tell how many needles there are, and nothing else."""
        body = json.dumps(self._records).encode() + b"\n" + self._rows.tobytes()
        checksum = self._keys.checksum(body)
        return _VERSION + checksum + self._keys.masked(body, checksum)

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def records_count(self) -> int:
        """Of how many records these needles are."""
        return len(self._records)

    def records(self, hits: Iterable[bytes]) -> set[Record]:
        """Whose needles these hits are."""
        return {self._records[n] for hit in hits for n in self._owners.get(self._keys.mac(hit), ())}

    def find(self, data: bytes | memoryview) -> set[bytes]:
        """The needles that stand anywhere in ``data``, at any offset."""
        view = memoryview(data).cast("B")
        return self.scan(lambda amount, offset: view[offset : offset + amount], len(view))

    def scan(self, read: Callable[[int, int], bytes | memoryview], size: int) -> set[bytes]:
        """``find`` in something of ``size`` bytes too large to hold. ``read(amount, offset)`` like apsw's xRead.

        A read that gives fewer bytes than asked for raises ValueError: what was not read proves nothing.
        """
        found: set[bytes] = set()
        overlap = max(self._lengths, default=1) - 1  # for a needle that begins in one block and ends in the next
        for offset in range(0, size if self._lengths else 0, _BLOCK_BYTES):
            amount = min(_BLOCK_BYTES + overlap, size - offset)
            block = read(amount, offset)
            if len(block) != amount:
                raise ValueError(f"{len(block)} of {amount} bytes could be read at offset {offset}")
            self._search(np.frombuffer(block, np.uint8), found)
        return found

    def _search(self, block: Any, found: set[bytes]) -> None:
        """Add the needles in a block, uint8 (bytes,), to ``found``."""
        words = _words(block)
        for shift in range(8):
            lengths = self._starts.take(self._keys.starts(words[shift::8]), mode="wrap")
            near = np.flatnonzero(lengths != 0)  # of numbers flatnonzero takes five times as long as of truths
            if len(near):
                self._verify(block, near * 8 + shift, lengths[near], found)

    def _verify(self, block: Any, places: Any, lengths: Any, found: set[bytes]) -> None:
        """Add to ``found`` what is a needle, of those lengths, at one of the places."""
        words = _words(block)
        for n, length in enumerate(self._lengths):
            at = places[(lengths & (1 << n % 8) != 0) & (places <= len(block) - length)]
            at = at[self._wholes.take(self._keys.wholes(words, at, length), mode="wrap")]
            if len(at):
                windows = np.ndarray(len(block) - length + 1, f"V{length}", block, strides=(1,))[at]
                found.update(w for w in set(windows.tolist()) - found if self._keys.mac(w) in self._owners)


def _words(block: Any) -> Any:
    """The eight bytes from each offset of uint8 (bytes,) as a number: a view, of shape (bytes - 7,)."""
    return np.ndarray(max(0, len(block) - 7), "<u8", block, strides=(1,))


def _rows(needles: list[tuple[bytes, int]], keys: _Keys) -> Any:
    """Needles of one length, with the numbers of their records, as an array of _ROW."""
    length = len(needles[0][0])
    words = _words(np.frombuffer(b"".join(needle for needle, _ in needles), np.uint8))
    at = np.arange(len(needles)) * length
    rows = np.empty(len(needles), _ROW)
    rows["length"] = length
    rows["record"] = [record for _, record in needles]
    rows["start"] = keys.starts(words[at])
    rows["whole"] = keys.wholes(words, at, length)
    rows["mac"] = np.frombuffer(b"".join(keys.mac(needle) for needle, _ in needles), "V16")
    return rows


class _Keys:
    """Four hashes under one secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise ValueError(f"a secret of {len(secret)} bytes, not at least {SECRET_BYTES_MIN}")
        key = {use: hmac.digest(secret, b"localmem needles " + use, "sha256") for use in (b"hash", b"mac", b"seal")}
        factors = hashlib.shake_256(key[b"hash"]).digest(WINDOW_BYTES + 8)
        self._factors = np.frombuffer(factors, "<u8") | np.uint64(1)
        self._mac_key, self._seal_key = key[b"mac"], key[b"seal"]

    def starts(self, words: Any) -> Any:
        """A hash of each word, int64 in [0, 2^_TABLE_BITS): of how a needle begins."""
        return _top_bits(words * self._factors[0])

    def wholes(self, words: Any, at: Any, length: int) -> Any:
        """The same of all ``length`` bytes from each of some offsets; the last word may overlap the one before."""
        total = words[at + (length - 8)] * self._factors[1]
        for n, offset in enumerate(range(0, length - 8, 8), start=2):
            total += words[at + offset] * self._factors[n]
        return _top_bits(total)

    def mac(self, needle: bytes) -> bytes:
        """16 bytes that are of no other needle."""
        return hmac.digest(self._mac_key, needle, "sha256")[:16]

    def checksum(self, body: bytes) -> bytes:
        return hmac.digest(self._seal_key, b"checksum " + body, "sha256")

    def masked(self, body: bytes, checksum: bytes) -> bytes:
        """The body under a key stream of its own checksum (as in AES-SIV), so no stream is used twice; or back."""
        stream = hashlib.shake_256(self._seal_key + checksum).digest(len(body))
        return (np.frombuffer(body, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()


def _top_bits(hashes: Any) -> Any:
    hashes >>= np.uint64(64 - _TABLE_BITS)
    return hashes.view(np.int64)
