"""Normalisation: what must compare equal does, and positions stay where they must."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmem import rules, words


@pytest.mark.parametrize(
    ("one", "other"),
    [("Zoë", "zoe"), ("STRASSE", "Straße"), ("don’t", "don't"), ("Ångström", "angstrom"), ("e\u0301t\u00e9", "ete")],
)
def test_bare_forms_compare_equal(one: str, other: str) -> None:
    assert words.bare(one) == words.bare(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("move", "moved"),
        ("move", "moving"),
        ("running", "run"),
        ("swims", "swimming"),
        ("cities", "city"),
        ("studied", "studies"),
        ("lives", "living"),
        ("dogs", "dog"),
        ("wife's", "wife"),
        ("allergies", "allergy"),
    ],
)
def test_forms_of_a_word_meet(one: str, other: str) -> None:
    assert words.stem(one) == words.stem(other)


@pytest.mark.parametrize(("one", "other"), [("Paul", "Paula"), ("sing", "single"), ("cat", "cater"), ("bus", "busy")])
def test_different_words_do_not_meet(one: str, other: str) -> None:
    assert words.stem(one.lower()) != words.stem(other.lower())


def test_a_word_in_another_script_is_its_own_stem() -> None:
    assert words.stem("москва") == "москва"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I saw him at the station yesterday", "en"),
        ("Ich habe ihn gestern am Bahnhof gesehen", "de"),
        ("Je l'ai vu hier à la gare", "fr"),
        ("Lo vi ayer en la estación con mi hermana", "es"),
        ("L'ho visto ieri alla stazione con mia sorella", "it"),
        ("Vi o meu irmão ontem na estação", "pt"),
        ("Ik heb hem gisteren op het station gezien", "nl"),
    ],
)
def test_the_language_of_a_sentence(text: str, language: str) -> None:
    assert words.guess_languages(text)[0] == language


def test_one_foreign_looking_word_does_not_turn_english_off() -> None:
    assert "en" in words.guess_languages("User met Ana last week")


def test_no_function_word_means_any_language() -> None:
    assert words.guess_languages("12345") == words.LANGUAGES


@given(st.text())
def test_straightening_moves_nothing(text: str) -> None:
    assert len(words.straighten(text)) == len(text)


@given(st.text())
def test_tokens_lie_where_they_say(text: str) -> None:
    for token in words.tokens(text):
        assert text[token.start : token.end] == token.text


def test_every_rule_file_loads_and_has_a_version() -> None:
    versions = {name: rules.load(name).version for name in rules.NAMES}
    assert all(len(version) == 12 for version in versions.values())
    assert len(set(versions.values())) == len(versions)
    assert len(rules.version()) == 12


def test_an_unknown_rule_file_is_a_bug() -> None:
    with pytest.raises(KeyError, match="no rule file named 'nonsense'"):
        rules.load("nonsense")
