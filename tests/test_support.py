"""The support guard: what was said passes, what was made up falls, each by the guard made for it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmem import dates, support
from localmem.types import Message

AT = dates.parse_instant("2025-03-05T14:00:00Z")
TALK = [
    Message(
        "user",
        "Our vet says Pretzel, the 9 year old dachshund, has Cushing's, so trilostane twice a day. My sister Ana is vegan, I'm "
        "not. We don't eat pork. The new laptop is a Framework 16 with 64gb, and I moved to Ghent last Friday. "
        "Dentist on the 14th, 1,240 euros.",
    ),
    Message("assistant", "Here is a checklist for Pretzel."),
]


def failed(fact: str, quote: str = "") -> tuple[str, ...]:
    return support.check(fact, quote, TALK, [], AT)


@pytest.mark.parametrize(
    "fact",
    [
        "User has a 9-year-old dachshund, Pretzel",
        "User's dog Pretzel has Cushing's disease and takes trilostane twice a day",
        "User's sister Ana is vegan",
        "User moved to Ghent on 2025-02-28",
        "User has a Framework 16 laptop with 64 GB RAM",
        "User has a dentist appointment on 2025-03-14 for 1240 euros",
        "User does not eat pork",
        "Assistant made a checklist for Pretzel",
    ],
)
def test_what_was_said_is_supported(fact: str) -> None:
    assert failed(fact) == ()


@pytest.mark.parametrize(
    ("fact", "guard"),
    [
        ("User has a dachshund called Bruno", "name"),
        ("User moved to Antwerp", "name"),
        ("User has a laptop with an RTX4090X", "identifier"),
        ("User's mail is ana.b@example.org", "identifier"),
        ("User has a 12-year-old dachshund, Pretzel", "quantity"),
        ("User pays the dentist 1,420 euros", "quantity"),
        ("User has seven dachshunds", "quantity"),
        ("User moved to Ghent on 2025-02-20", "date"),
        ("User moved to Ghent in 2019", "date"),
        ("User has a dentist appointment in July 2025", "date"),
        ("User collects antique porcelain trains with great passion", "words"),
    ],
)
def test_what_was_made_up_falls_by_its_guard(fact: str, guard: str) -> None:
    assert guard in failed(fact)


@pytest.mark.parametrize(
    ("fact", "quote"),
    [
        ("User eats pork meat", "We don't eat pork meat"),
        ("User no longer has a dachshund", "Pretzel, the 9 year old dachshund"),
        ("User is not 9", "I'm 9"),
    ],
)
def test_a_turned_statement_falls(fact: str, quote: str) -> None:
    assert "negation" in support.check(fact, quote, [Message("user", quote)], [], AT)


@pytest.mark.parametrize(
    ("fact", "quote"),
    [
        ("User no longer has a car", "I sold the car"),
        ("User no longer drinks coffee", "I've quit coffee"),
        ("User avoids peanuts", "I can't have peanuts"),
        ("User is allergic to peanuts", "no peanuts, I'm allergic"),
        ("User wants kilometres, not miles", "always use kilometres"),
        ("User's sister lives in Pune", "no, she's in Pune"),
        ("User's claim HH-77 is paid", "they paid claim no. HH-77"),
    ],
)
def test_other_words_for_no_are_understood(fact: str, quote: str) -> None:
    message = Message("user", f"{quote}. My sister is in Pune, miles are hopeless.")
    assert "negation" not in support.check(fact, quote, [message], [], AT)


def test_the_sister_is_not_the_user() -> None:
    assert "subject" in support.check(
        "User is vegan", "My sister is vegan", [Message("user", "My sister is vegan")], [], AT
    )
    assert (
        support.check("User's sister is vegan", "My sister is vegan", [Message("user", "My sister is vegan")], [], AT)
        == ()
    )


def test_a_relative_needs_a_word_for_one() -> None:
    said = [Message("user", "I'm vegan and live in Ghent")]
    assert "relation" in support.check("User's brother is vegan", "I'm vegan", said, [], AT)
    assert support.check("User's mother is vegan", "mum is vegan", [Message("user", "mum is vegan")], [], AT) == ()


def test_the_context_and_the_speakers_count() -> None:
    said = [Message("user", "yes, that one", name="Gareth")]
    assert support.check("Gareth drives a Volvo", "that one", said, ["Do you drive a Volvo?"], AT) == ()
    assert "name" in support.check("Gareth drives a Volvo", "that one", said, [], AT)


def test_german_nouns_are_no_names() -> None:
    said = [Message("user", "Ich hab seit gestern eine Katze")]
    assert support.check("User hat seit 2025-03-04 eine Katze", "eine Katze", said, [], AT) == ()


def test_the_best_clause_is_found_in_the_users_words() -> None:
    talk = [
        Message("user", "Hi! We moved to Ghent on Friday, and my sister Ana stayed in Bruges. Recipe for soup?"),
        Message("assistant", "Moving to Ghent, lovely. Ana stayed in Bruges then."),
    ]
    found = support.align("User's sister Ana stayed in Bruges", talk)
    assert found is not None
    span, quote = found
    assert span.message == 0
    assert talk[0].content[span.start : span.end] == quote
    assert "Ana stayed in Bruges" in quote
    assert "soup" not in quote


def test_the_named_speaker_is_preferred() -> None:
    talk = [Message("user", "I keep bees", name="Ann"), Message("user", "I keep bees", name="Bob")]
    found = support.align("Bob keeps bees", talk)
    assert found is not None
    assert found[0].message == 1


def test_nothing_in_common_is_none() -> None:
    assert support.align("User keeps bees", [Message("user", "what time is it")]) is None


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=120))
def test_any_text_is_survived(fact: str, quote: str, said: str) -> None:
    failed_guards = support.check(fact, quote, [Message("user", said)], [], AT)
    assert set(failed_guards) <= set(support.GUARDS)
    found = support.align(fact, [Message("user", said)])
    assert found is None or said[found[0].start : found[0].end] == found[1]


def test_a_fact_costs_milliseconds() -> None:
    failed("User moved to Ghent on 2025-02-28")  # compiles the rules
    begin = time.perf_counter()
    for _ in range(20):
        failed("User moved to Ghent on 2025-02-28")
    assert (time.perf_counter() - begin) / 20 < 0.1  # usually 3 ms; the bound is for a busy machine


@pytest.mark.parametrize(
    ("fact", "said", "stands"),
    [
        ("User started drinking in 2024", "I stopped drinking in 2024", False),
        ("User sold the canoe", "we bought the canoe in spring", False),
        ("User hates coriander", "I love coriander", False),
        ("User started swimming", "I stopped running and started swimming", True),
        ("User sold the car and bought a bike", "we sold the car and bought a bike", True),
    ],
)
def test_a_verb_is_not_turned_round(fact: str, said: str, stands: bool) -> None:
    assert ("negation" not in support.check(fact, said, [Message("user", said)], [], AT)) is stands
