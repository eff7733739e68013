"""The pure parts of ranking: duplicate keys, query terms, mentions, BM25, fusion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmem import rank

SCORES = st.dictionaries(st.integers(0, 20), st.floats(0, 1), max_size=8)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("User likes tea", "user LIKES  tea."),
        ("User's cat is called Brine", "User’s cat is called Brine!"),
        ("User lives in Málaga", "User lives in Ma\u0301laga"),
        ("User likes tea\n", " User likes tea;"),
    ],
)
def test_equal_keys_are_exact_duplicates(one: str, other: str) -> None:
    assert rank.key(one) == rank.key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("User likes tea", "User likes teas"),
        ("User lives in Malaga", "User lives in Málaga"),
        ("User has 2 cats", "User has 3 cats"),
        ("User likes tea", "User does not like tea"),
        ("User asked: tea?", "User asked: tea"),
    ],
)
def test_different_words_have_different_keys(one: str, other: str) -> None:
    assert rank.key(one) != rank.key(other)


@given(st.text())
def test_key_is_stable_and_never_raises(text: str) -> None:
    assert rank.key(rank.key(text)) == rank.key(text)


def test_grams_cover_scripts_without_spaces() -> None:
    assert rank.grams("plain English") is None
    assert rank.grams("東京タワー") == "東京 京タ タワ ワー"
    assert rank.grams("私は tea が") == "私は が"
    assert rank.grams("สวัสดี") is not None
    assert rank.grams("🎉 party 猫 ☕") == "猫 u1f389 u2615"


def test_terms_are_quoted_and_leave_out_what_says_nothing() -> None:
    assert rank.terms("Where does the User live?") == ['text : "live"']
    assert rank.terms("") == []
    assert rank.terms("user") == []
    assert rank.terms("the of and") != []  # nothing else is there to look for
    assert rank.terms('"; DROP TABLE x -- NEAR(') != []
    assert all(term.count('"') % 2 == 0 for term in rank.terms('a"b ""c" OR * ^x NOT y'))
    assert len(rank.terms(" ".join(f"word{n}" for n in range(500)))) <= rank.TERMS_MAX


def test_mentions() -> None:
    found = rank.mentions('User met Ana Souza at gate B12 on 2024-05-06, call +351 or a@b.pt, file "red plan"')
    assert {"ana souza", "ana", "souza", "b12", "2024-05-06", "a@b.pt", "red plan"} <= set(found)
    assert "user" not in found
    assert rank.mentions("User likes tea") == ()
    assert rank.mentions("Zoë") == rank.mentions("Zoë".upper()) == ()  # it only opens the sentence
    assert rank.mentions("User knows Zoë") == rank.mentions("User knows ZOE")


@given(st.text(max_size=300))
def test_mentions_never_raise_and_are_bounded(text: str) -> None:
    found = rank.mentions(text)
    assert len(found) <= 64
    assert len(set(found)) == len(found)
    assert all(name.strip() for name in found)


def test_bm25_prefers_rare_words_and_short_rows() -> None:
    rare, common = frozenset({1}), frozenset({1, 2, 3, 4})
    scores = rank.bm25([rare, common], {1: 5, 2: 5, 3: 50, 4: 5}, documents=10, average_words=8)
    assert scores[1] > scores[2] > scores[3]
    assert scores[2] == scores[4]
    assert all(0 <= score <= 1 for score in scores.values())
    assert rank.bm25([], {}, documents=10, average_words=8) == {}


@given(
    st.lists(st.frozensets(st.integers(1, 30), min_size=1, max_size=10), min_size=1, max_size=5),
    st.dictionaries(st.integers(1, 30), st.integers(1, 400), max_size=12),
    st.integers(0, 40),
    st.floats(0.5, 100),
)
def test_bm25_stays_within_its_bounds(
    postings: list[frozenset[int]], lengths: dict[int, int], documents: int, average: float
) -> None:
    scores = rank.bm25(postings, lengths, documents=documents, average_words=average)
    assert set(scores) == set(lengths)
    assert all(0 <= score <= 1 + 1e-9 for score in scores.values())
    assert all((scores[row] > 0) == any(row in rows for rows in postings) for row in lengths)


@given(st.lists(st.frozensets(st.integers(1, 30), min_size=1), max_size=5), st.integers(0, 40), st.integers(1, 20))
def test_rarest_first_keeps_the_best_rows(postings: list[frozenset[int]], documents: int, keep: int) -> None:
    best = rank.rarest_first(postings, documents, keep=keep)
    assert len(best) == min(keep, len(frozenset().union(*postings)))
    assert list(best.values()) == sorted(best.values(), reverse=True)
    everything = rank.rarest_first(postings, documents, keep=1000)
    assert list(everything.items())[: len(best)] == list(best.items())


@given(SCORES, SCORES, SCORES)
def test_fuse_keeps_the_union_best_first(
    by_vector: dict[int, float], by_words: dict[int, float], by_mention: dict[int, float]
) -> None:
    fused = rank.fuse(by_vector, by_words, by_mention, spread=0.1)
    assert set(fused) == {*by_vector, *by_words, *by_mention}
    scores = [entry["fused"] for entry in fused.values()]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= rank.score(score, 50) <= 1 for score in scores)


def test_fuse_breaks_ties_the_same_way_every_time() -> None:
    rows = dict.fromkeys((70, 3, 1009, 8, 64), 0.5)  # a set would hand these out in another order
    assert list(rank.fuse(rows, {}, {}, spread=0.1)) == [3, 8, 64, 70, 1009]


def test_a_rare_word_alone_is_worth_as_much_as_a_near_vector() -> None:
    one_of_a_thousand = rank.spread([frozenset({7})], 1000)
    fused = rank.fuse({3: 0.5}, {7: 0.6}, {}, spread=one_of_a_thousand)
    assert list(fused) == [7, 3]
    everywhere = rank.spread([frozenset(range(500))], 1000)
    assert list(rank.fuse({3: 0.5}, {7: 0.6}, {}, spread=everywhere)) == [3, 7]


@given(st.lists(st.frozensets(st.integers(1, 30), min_size=1, max_size=10), max_size=5), st.integers(0, 40))
def test_spread_is_never_nothing(postings: list[frozenset[int]], documents: int) -> None:
    assert rank.spread(postings, documents) > 0


def test_more_of_any_evidence_is_never_worth_less() -> None:
    for grid in ([rank.evidence(c / 20, 3.0) for c in range(-20, 21)], [rank.evidence(0.3, s / 4) for s in range(80)]):
        assert grid == sorted(grid)


def test_turns_beside_each_other_share_what_they_have() -> None:
    scores = {1: rank.evidence(0.6, 0.0), 2: rank.evidence(0.1, 0.0), 3: rank.evidence(0.1, 0.0)}
    shared = rank.lifted(scores, {(1, 2)})
    assert shared[2] > shared[3] == scores[3]
    assert shared[1] == scores[1]  # its neighbour has nothing to do with the query
    assert rank.lifted(scores, set()) == scores


def test_speaker() -> None:
    assert rank.speaker("Ana: we moved") == "Ana"
    assert rank.speaker("Mary Lou Smith: yes") == "Mary Lou Smith"
    for text in ("we moved: to Porto", "https://example.org", "Ana:", ""):
        assert rank.speaker(text) in (None, "we moved")


def test_coverage() -> None:
    assert rank.coverage("my old boat", "User's boat is old") == 1.0
    assert rank.coverage("boats", "User has a boat") == 1.0
    assert rank.coverage("boat and harbour", "User has a boat") == 0.5
    assert rank.coverage("the of", "the of") == 0.0
