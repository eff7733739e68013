"""Secrets are masked before anything is written; what only looks like one is left alone.

The keys of tests/data/secrets.jsonl are invented, and stored in parts so that no scanner takes them for real ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmem.secrets import mask, replacement

ROWS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "secrets.jsonl").read_text("utf-8").splitlines()
]
POSITIVES = [row for row in ROWS if row["kinds"]]
NEGATIVES = [row for row in ROWS if not row["kinds"]]


def shown(row: dict[str, Any]) -> str:
    return "".join(row["parts"])[:30]


def test_the_set_is_as_large_as_promised() -> None:
    assert len(POSITIVES) >= 60
    assert len(NEGATIVES) >= 100


@pytest.mark.parametrize("row", POSITIVES, ids=shown)
def test_a_secret_is_masked_with_its_kind_and_length(row: dict[str, Any]) -> None:
    text = "".join(row["parts"])
    masked = mask(text, row["context"])
    assert sorted(found.kind for found in masked.found) == sorted(row["kinds"])
    for found in masked.found:
        assert text[found.start : found.end] not in masked.text
        assert replacement(found.kind, found.end - found.start) in masked.text
    if row["secret"]:
        secret = "".join(row["parts"][n] for n in row["secret"])
        assert [text[found.start : found.end] for found in masked.found] == [secret]


@pytest.mark.parametrize("row", NEGATIVES, ids=shown)
def test_what_only_looks_like_a_secret_stays(row: dict[str, Any]) -> None:
    text = "".join(row["parts"])
    assert mask(text).text == text


@pytest.mark.parametrize("row", ROWS, ids=shown)
def test_masking_twice_changes_nothing(row: dict[str, Any]) -> None:
    once = mask("".join(row["parts"]), row["context"]).text
    assert mask(once, row["context"]).text == once


PIECES = [
    "password is ",
    "my PIN is ",
    "4821",
    "card ",
    "4111 1111 ",
    "1111 1111",
    "sk-",
    "a1B2" * 9,
    "eyJ",
    ".",
    '"',
    "[secret: password, 4 characters]",
    "[secret: ",
    "]",
    "\n",
    " ",
    "://u:",
    "@",
    "-----BEGIN PRIVATE",
    " KEY-----",
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_masking_any_mixture_twice_changes_nothing(text: str) -> None:
    once = mask(text).text
    assert mask(once).text == once


@given(st.text(max_size=200))
def test_any_text_is_survived_and_found_in_order(text: str) -> None:
    masked = mask(text)
    places = [(found.start, found.end) for found in masked.found]
    assert places == sorted(places)
    assert all(0 <= start < end <= len(text) for start, end in places)


def test_several_secrets_keep_their_places() -> None:
    text = "my password is hunter2 and my PIN is 4821, door code: 9921#"
    masked = mask(text)
    assert [text[f.start : f.end] for f in masked.found] == ["hunter2", "4821", "9921#"]
    assert masked.text == (
        "my password is [secret: password, 7 characters] and my PIN is [secret: PIN, 4 characters], "
        "door code: [secret: access code, 5 characters]"
    )


def test_the_context_makes_a_number_a_card() -> None:
    number = "4111 1111 1111 " + "1111"
    assert mask(number).text == number
    assert mask(number, "which card do you want to pay with?").found[0].kind == "card number"


def test_a_label_right_before_makes_it_something_else() -> None:
    number = "4111 1111 1111 " + "1111"
    assert mask(f"my card was charged for order {number}").found == ()


def test_a_mask_written_by_hand_hides_nothing_that_is_not_a_mask() -> None:
    assert mask("[secret: my password is hunter2, 3 characters]").found


ADVERSARIAL: Sequence[tuple[str, str]] = [
    ("prose", "The quick brown fox jumps over the lazy dog and my card. "),
    ("letters", "a"),
    ("digits", "1"),
    ("spaced digits", "card 1 1 1 "),
    ("blanks", " "),
    ("tokens that never end", "eyJ"),
    ("tokens in a row", "eyJaaaaaaaa."),
    ("slack in a row", "xoxb-"),
    ("key blocks without an end", "-----BEGIN PRIVATE KEY-----"),
    ("password password", "password "),
    ("password is password is", "password is "),
    ("password for the", "password for the "),
    ("addresses", "http://a:b"),
    ("aws key aws key", "aws key "),
    ("pin for pin for", "pin for "),
    ("code for the", "code for the "),
    ("seed phrase", "seed phrase is abandon "),
    ("half masks", "[secret: "),
    ("colons", "1:"),
]


@pytest.mark.parametrize(("name", "unit"), ADVERSARIAL, ids=[name for name, _ in ADVERSARIAL])
def test_repetition_costs_no_more_than_its_length(name: str, unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        best = 10.0
        for _ in range(2):
            begin = time.perf_counter()
            mask(text)
            best = min(best, time.perf_counter() - begin)
        return best

    small, large = seconds(50_000), seconds(400_000)
    assert large < 8 * 4 * small + 0.2, f"{name}: {small:.3f} s for 50 kB, {large:.3f} s for 400 kB"
