"""What is left of purged texts and vectors in raw bytes: all of it is found, and nothing else is."""

from __future__ import annotations

import os
import random
from pathlib import Path

import apsw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmem import needles
from localmem.needles import NEEDLE_BYTES, RECORDS_MAX, WINDOW_BYTES, WINDOWS_MAX, Needles, text_needles, vector_needles

SECRET = bytes(range(32))
SENTENCE = "Ann told me that her sister moved from Porto to a house near the harbour"


def of(*found: bytes) -> Needles:
    return Needles.of([(1, needle) for needle in found], SECRET)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def vector(seed: int, dim: int = 384) -> bytes:
    return np.random.default_rng(seed).standard_normal(dim).astype("<f4").tobytes()


# ------------------------------------------------------------------- windows


def test_the_windows_of_a_text_cover_it_from_the_first_byte_to_the_last() -> None:
    assert text_needles("The harbour of Porto is old") == [b"The harbour of P", b"r of Porto is old"[1:]]
    assert text_needles("exactly 16 bytes") == [b"exactly 16 bytes"]


def test_a_short_text_gives_itself_and_a_shorter_one_nothing() -> None:
    assert text_needles("likes tea") == [b"likes tea"]
    assert text_needles("tea time") == [b"tea time"]
    assert text_needles("tea now") == []
    assert text_needles("") == []


def test_a_long_text_gives_a_bounded_number_of_windows_and_first_and_last_are_among_them() -> None:
    text = " ".join(f"word {n}" for n in range(5_000))
    windows = text_needles(text)
    assert len(windows) == WINDOWS_MAX
    assert (windows[0], windows[-1]) == (text[:16].encode(), text[-16:].encode())
    places = [text.index(window.decode()) for window in windows]
    assert max(np.diff(places)) < 1.1 * len(text) / (WINDOWS_MAX - 1)


@pytest.mark.parametrize("text", [" " * 40, "\n \t" * 9, "-" * 30, "\u3000" * 20, "\0" * 64])
def test_windows_that_say_nothing_are_left_out(text: str) -> None:
    assert text_needles(text) == []
    assert text_needles(text * 3 + SENTENCE)[-1] == SENTENCE[-16:].encode()


def test_a_window_that_comes_twice_is_sought_once() -> None:
    assert text_needles("sixteen letters." * 5) == [b"sixteen letters."]


def test_the_windows_of_a_vector_are_spread_over_it_and_do_not_overlap() -> None:
    whole = vector(1)
    places = [whole.index(window) for window in vector_needles(whole)]
    assert (len(places), places[0], places[-1]) == (6, 0, len(whole) - WINDOW_BYTES)
    assert min(np.diff(places)) >= WINDOW_BYTES
    assert max(np.diff(places)) <= 384


def test_a_small_vector_gives_what_it_has() -> None:
    levels = noise(384)  # 8-bit levels
    assert vector_needles(levels) == [levels[:64], levels[128:192], levels[-64:]]
    assert vector_needles(levels[:40]) == [levels[:40]]
    assert vector_needles(levels[:7]) == []


def test_the_zeros_of_a_vector_are_not_sought() -> None:
    assert vector_needles(bytes(1536)) == []
    sparse = bytes(640) + noise(64) + bytes(832)
    assert vector_needles(sparse) == [sparse[640:704]]


# ------------------------------------------------------------------- finding


@pytest.mark.parametrize("size", [*range(8, 18), 63, 64])
def test_a_needle_is_found_at_every_alignment_and_at_both_ends(size: int) -> None:
    needle, data = noise(size, seed=size), noise(400)
    sought = of(needle, noise(size, seed=99))
    for at in range(17):
        assert sought.find(data[:at] + needle + data[at:]) == {needle}
        assert sought.find(data + data[:at] + needle) == {needle}
        assert sought.find(data[:at] + needle[:-1] + bytes([needle[-1] ^ 1]) + data[at:]) == set()
    assert sought.find(needle) == {needle}


def test_needles_of_every_length_together_are_all_found() -> None:
    sought = [noise(size, seed=size) for size in range(8, 65)]
    assert of(*sought).find(memoryview(noise(77) + b"-".join(sought))) == set(sought)


def test_needles_that_begin_each_other_are_all_found() -> None:
    whole = noise(64)
    sought = [whole[:size] for size in range(8, 65)]
    for order in (sought, sought[::-1]):
        assert of(*order).find(b"---" + whole) == set(sought)
        assert of(*order).find(b"---" + whole[:30]) == set(sought[:23])


def test_a_needle_across_the_border_of_two_blocks_is_found(tmp_path: Path) -> None:
    text, window = b"from Porto to a ", noise(WINDOW_BYTES, seed=5)
    sought, path = of(text, window), tmp_path / "large"
    for needle in (text, window):
        for before in (0, 1, 7, len(needle) // 2, len(needle) - 1, len(needle)):
            content = bytes(needles._BLOCK_BYTES - before) + needle + b"end"
            path.write_bytes(content)
            with path.open("rb") as file:
                found = sought.scan(lambda amount, offset: os.pread(file.fileno(), amount, offset), len(content))
            assert found == {needle}


def test_nothing_is_found_in_noise() -> None:
    sought = Needles.of(
        [(n, needle) for n in range(1_000) for needle in text_needles(f"{n} {SENTENCE}") + vector_needles(vector(n))],
        SECRET,
    )
    assert len(sought) > 7_000
    assert sought.find(noise(8 << 20)) == set()


def test_nothing_is_found_of_nothing() -> None:
    assert of().find(noise(100)) == set()
    assert of(b"likes tea").find(b"") == set()
    assert of(b"likes tea").find(b"tea") == set()
    assert len(Needles.open(of().seal(), SECRET)) == 0


def test_windows_that_share_beginning_and_end_with_a_needle_are_not_taken_for_it() -> None:
    needle = b"The user" + bytes(48) + b"her tea."
    near = b"The user" + bytes(47) + b"\1her tea."
    assert of(needle).find(b"_" + near * 1_000) == set()
    assert of(needle, near).find(b"_" + near * 1_000) == {near}


def test_little_is_left_for_the_slow_comparison_even_where_everything_begins_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bytes] = []
    mac = needles._Keys.mac

    def counted(keys: needles._Keys, window: bytes) -> bytes:
        asked.append(window)
        return mac(keys, window)

    monkeypatch.setattr(needles._Keys, "mac", counted)
    sought = of(b"The user said it", b"The user" + bytes(48) + b"her tea.")
    texts = [b"The user " + noise(9, seed=n) + b"." for n in range(5_000)]
    vectors = [b"The user" + noise(48, seed=n) + b"her tea." for n in range(5_000)]
    asked.clear()
    assert sought.find(b"".join(texts + vectors)) == set()
    assert len(asked) < 10


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"a", b"b", b"\0", b"\xff", b"abababab"]), max_size=300).map(b"".join),
    cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(8, 64)), max_size=12),
    others=st.lists(st.binary(min_size=8, max_size=64), max_size=4),
    block_bytes=st.sampled_from([1, 8, 64, 100, 4096]),
)
def test_it_agrees_with_a_plain_search(
    data: bytes, cuts: list[tuple[int, int]], others: list[bytes], block_bytes: int
) -> None:
    cut = [data[at : at + size] for at, size in cuts]
    sought = [*others, *(n for n in cut if len(n) >= 8), *(n[:-1] + b"b" for n in cut if len(n) >= 8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needles, "_BLOCK_BYTES", block_bytes)
        assert of(*sought).find(data) == {needle for needle in sought if needle in data}


def test_texts_in_other_scripts_are_found() -> None:
    texts = [
        "Größe: straße über ähnliche Öfen",
        "彼女はポルトから引っ越しました",
        "👩‍👩‍👧 moved 🏡 to 🇵🇹",
        "אני גר בליד הנמל",
    ]
    for text in texts:
        sought = of(*text_needles(text))
        assert len(sought) >= 2
        assert sought.find(b"\1" + text.encode() + b"\2") == set(text_needles(text))


def test_hits_say_whose_they_are() -> None:
    sought = Needles.of([(7, b"likes tea"), ("vector", b"likes tea"), (8, b"no coffee")], SECRET)
    assert len(sought) == 2
    assert sought.records(sought.find(b"Ann likes tea")) == {7, "vector"}
    assert sought.records([]) == set()


# ------------------------------------------------------------------- refusing


@pytest.mark.parametrize("size", [0, 7, 65])
def test_a_needle_too_short_or_too_long_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"a needle of 1 has {size} bytes"):
        of(bytes(size))


def test_more_records_than_can_be_sought_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="2001 records"):
        Needles.of(((n, b"likes tea") for n in range(RECORDS_MAX + 1)), SECRET)
    chosen = needles.spread(range(100_000), RECORDS_MAX)
    assert (len(set(chosen)), chosen[0], chosen[-1]) == (RECORDS_MAX, 0, 99_999)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        Needles.of([], bytes(15))


def test_a_file_that_became_shorter_is_not_called_clean() -> None:
    with pytest.raises(ValueError, match="3 of 100 bytes could be read at offset 0"):
        of(b"likes tea").scan(lambda amount, offset: b"tea", 100)


# ------------------------------------------------------------------- sealing


def test_a_sealed_set_finds_the_same() -> None:
    sought = [*text_needles(SENTENCE), *vector_needles(vector(1)), b"likes tea"]
    first = Needles.of([(4, needle) for needle in sought], SECRET)
    again = Needles.open(first.seal(), SECRET)
    data = noise(1000) + SENTENCE.encode() + noise(33) + vector(1)[:700] + noise(9) + b"likes te"
    assert again.find(data) == first.find(data) == {needle for needle in sought if needle in data}
    assert again.records(again.find(data)) == {4}
    assert again.seal() == first.seal()


def test_a_sealed_set_shows_nothing_of_what_is_sought() -> None:
    sought = [*text_needles(SENTENCE), *vector_needles(vector(1)), *[b"likes tea%d" % n for n in range(10)]]
    blob = Needles.of([("ann's record", needle) for needle in sought], SECRET).seal()
    assert not [needle for needle in sought if needle[:4] in blob or needle[-4:] in blob]
    assert b"ann" not in blob
    # Not even that two needles begin alike: under another secret, or with one more needle, every part differs.
    other = Needles.of([("ann's record", needle) for needle in [*sought, b"no coffee"]], SECRET).seal()
    parts = {blob[at : at + 4] for at in range(1, len(blob) - 3)}
    assert not parts & {other[at : at + 4] for at in range(1, len(other) - 3)}


def test_a_wrong_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="damaged, or sealed with another secret"):
        Needles.open(of(b"likes tea").seal(), SECRET[::-1])


def test_a_damaged_sealed_set_is_refused() -> None:
    blob = of(b"likes tea", b"no coffee").seal()
    for at in range(1, len(blob)):
        with pytest.raises(ValueError, match="damaged"):
            Needles.open(blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :], SECRET)
    for cut in (blob[:-1], blob + b"\0", blob[:20], blob[:33]):
        with pytest.raises(ValueError, match="damaged"):
            Needles.open(cut, SECRET)


@pytest.mark.parametrize("blob", [b"", b"\x02" + bytes(60), b"SQLite format 3\0"])
def test_a_sealed_set_of_another_version_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="unknown version"):
        Needles.open(blob, SECRET)


# ------------------------------------------------------------------- a real file


def database(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.execute("pragma page_size = 4096; pragma secure_delete = off; pragma journal_mode = delete")
    return connection


def left_in(path: Path, sought: Needles) -> set[bytes]:
    with path.open("rb") as file:
        return sought.scan(lambda amount, offset: os.pread(file.fileno(), amount, offset), path.stat().st_size)


def test_a_deleted_text_is_found_in_the_file_until_vacuum(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    connection = database(path)
    connection.execute("create table turn (id integer primary key, text text); create virtual table f using fts5(text)")
    with connection:
        for n in range(300):
            text = SENTENCE if n == 150 else f"{n} Tom thinks that the weather of day {n} was {'very ' * (n % 7)}good"
            connection.execute("insert into turn values (?, ?)", (n, text))
            connection.execute("insert into f (rowid, text) values (?, ?)", (n, text))
    sought = of(*text_needles(SENTENCE))
    assert left_in(path, sought) == set(text_needles(SENTENCE))
    connection.execute("delete from turn where id = 150; delete from f where rowid = 150")
    assert left_in(path, sought)
    connection.execute("vacuum")
    assert left_in(path, sought) == set()
    connection.close()


def test_a_vector_in_a_blob_over_several_pages_is_found_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    connection = database(path)
    connection.execute("create table chunk (id integer primary key, vectors blob)")
    vectors = [vector(n) for n in range(64)]  # of 1,536 bytes, eight to a blob of 12 KB
    for n in range(0, 64, 8):
        connection.execute("insert into chunk values (?, ?)", (n, b"".join(vectors[n : n + 8])))
    sought = Needles.of([(n, needle) for n, each in enumerate(vectors) for needle in vector_needles(each)], SECRET)
    found = left_in(path, sought)
    assert sum(each in path.read_bytes() for each in vectors) < 60  # the others are cut by a page's header
    assert all(len(found & set(vector_needles(each))) >= 5 for each in vectors)
    connection.execute("delete from chunk where id = 16")
    assert sought.records(left_in(path, sought)) >= {*range(16, 24)}
    connection.execute("vacuum")
    assert sought.records(left_in(path, sought)) == {*range(64)} - {*range(16, 24)}
    connection.close()


def test_a_text_cut_by_a_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    connection = database(path)
    text = " ".join(f"on day {n} Ann walked to the harbour" for n in range(400))
    connection.execute("create table turn (text text)")
    connection.execute("insert into turn values (?)", (text,))
    connection.close()
    assert text.encode() not in path.read_bytes()
    assert len(left_in(path, of(*text_needles(text)))) >= WINDOWS_MAX - 4
    assert len(text) > 3 * 4096 > NEEDLE_BYTES
