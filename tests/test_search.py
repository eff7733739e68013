"""What search() finds: words and meaning, raw turns, other scripts, the past; and random text against the word index."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import Opener
from doubles import Listener, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from localmem.errors import GeneratorError, InvalidTypeError
from localmem.memory import Memory
from localmem.rank import ASSISTANT_LESS, REPEATED, score
from localmem.testing import FixedClock, HashEmbedder

ANN = {"user_id": "ann"}


def keep(memory: Memory, *said: str, **ids: str) -> None:
    for text in said:
        memory.add(text, infer=False, **(ids or ANN))


def found(memory: Memory, query: str, **options: Any) -> list[str]:
    return texts(memory.search(query, **{**ANN, **options}))


def test_the_best_hit_comes_first_and_scores_fall(memory: Memory) -> None:
    keep(memory, "the boat is called Selkie", "the cat is called Brine", "tea with milk")
    hits = memory.search("what is the boat called", **ANN)["results"]
    assert hits[0]["memory"] == "the boat is called Selkie"
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_searching_writes_nothing(memory: Memory) -> None:
    keep(memory, "tea")
    assert memory.path is not None
    with memory._engine.store.db.snapshot() as tx:
        before = tx.execute("pragma data_version").fetchone(), memory.path.stat().st_mtime_ns
    memory.search("tea", **ANN)
    memory.context("tea", **ANN)
    memory.get_all(**ANN)
    wal = memory.path.with_name("memory.db-wal")
    size = wal.stat().st_size
    memory.search("tea", include="history", **ANN)
    assert wal.stat().st_size == size
    assert memory.path.stat().st_mtime_ns == before[1]


def test_explaining_with_turns_that_are_out_of_reach(open_memory: Opener, clock: FixedClock) -> None:
    """Of those that wait, another agent's and one that is past its time hold the same words."""
    memory = open_memory(worker=False)
    memory.add("the boat is called Selkie", wait=False, agent_id="guide", **ANN)
    memory.add("the boat was called Brine", wait=False, agent_id="other", **ANN)
    memory.add("the boat may be called Skua", wait=False, agent_id="guide", expires_at=clock() / 1e6 + 60, **ANN)
    clock.advance(61)
    hits = memory.search("what is the boat called", agent_id="guide", explain=True, **ANN)["results"]
    assert [hit["memory"] for hit in hits] == ["the boat is called Selkie"]
    assert hits[0]["signals"]["words"] > 0


def test_a_short_list_of_turns_is_the_beginning_of_a_long_one(open_memory: Opener) -> None:
    """What assistants said goes behind: of 80 turns that wait, those of the user are found behind 60 nearer ones."""
    memory = open_memory(worker=False)
    noise = [[{"role": "assistant", "content": f"the boat is called number {i}"}] for i in range(60)]
    said = [f"the boat is called number {i} then" for i in range(20)]
    memory.add_many([*noise, *said], **ANN)
    whole = memory.search("the boat is called", limit=200, **ANN)["results"]
    assert len(whole) == 80
    assert sum(text in said for text in texts({"results": whole})[:20]) > 10
    for limit in (1, 5, 20, 21, 35):
        assert memory.search("the boat is called", limit=limit, **ANN)["results"] == whole[:limit]


TALK = [
    "Ines: the harbour was full of sails on Sunday, we ate on the quay",
    "Bogdan: my sister sends her regards from Varna",
    "Ines: does Bogdan still play the accordion in the evenings?",
    "Bogdan: every day since spring, the neighbours are very patient with me",
    "Ines: then come to the market on Friday, they want music",
    "Bogdan: I can't, the van is in the garage till Monday",
]


def test_an_answer_is_found_with_the_question_before_it(memory: Memory) -> None:
    """It shares no word with what is asked: the turn before it does."""
    for text in TALK:
        memory.add(text, infer=False, timestamp="2025-04-02T18:00:00Z", **ANN)
    assert found(memory, "Does Bogdan play the accordion?")[:2] == [TALK[2], TALK[3]]


@pytest.mark.parametrize("infer", [True, False])
def test_what_an_assistant_said_counts_less_unless_it_is_asked_for(open_memory: Opener, infer: bool) -> None:
    memory = open_memory(generator=Listener(fail=True))
    for role, day in (("user", 1), ("assistant", 3)):
        with contextlib.suppress(GeneratorError):
            memory.add([{"role": role, "content": f"quince {role}"}], infer=infer, timestamp=f"2025-01-0{day}", **ANN)

    def less(query: str) -> dict[str, float]:
        hits = memory.search(query, explain=True, **ANN)["results"]
        return {hit["memory"]: round(hit["signals"]["evidence"] - hit["signals"]["fused"], 3) for hit in hits}

    assert less("the quince") == {"quince user": 0.0, "quince assistant": -ASSISTANT_LESS}
    assert less("the quince that you liked") == {"quince user": 0.0, "quince assistant": 0.0}


def test_a_turn_that_opens_with_the_assistant_is_its_own(memory: Memory) -> None:
    keep(memory, "Assistant: the quince tart", "Ann: the quince jam", "Assistants like the quince pie")
    hits = memory.search("the quince", explain=True, **ANN)["results"]
    less = {hit["memory"]: round(hit["signals"]["evidence"] - hit["signals"]["fused"], 3) for hit in hits}
    assert less["Assistants like the quince pie"] == 0.0
    assert less["Assistant: the quince tart"] < less["Ann: the quince jam"]


def test_the_last_line_of_a_talk_counts_most(memory: Memory) -> None:
    keep(memory, "bees", "clocks")
    assert found(memory, "bees\nclocks") == ["clocks", "bees"]
    assert found(memory, "clocks\nbees") == ["bees", "clocks"]
    assert found(memory, "clocks\n\nbees\n \n") == ["bees", "clocks"]


def test_turns_of_another_day_or_run_are_no_neighbours(memory: Memory) -> None:
    memory.add(TALK[2], infer=False, timestamp="2025-04-02T18:00:00Z", **ANN)
    memory.add(TALK[3], infer=False, timestamp="2025-04-03T18:00:00Z", **ANN)
    memory.add(TALK[3], infer=False, timestamp="2025-04-03T18:00:00Z", run_id="r", **ANN)
    memory.add(TALK[3].removeprefix("Bogdan: "), infer=False, timestamp="2025-04-03T18:00:00Z", **ANN)
    hits = memory.search("Does Bogdan play the accordion?", explain=True, **ANN)["results"]
    assert [round(hit["signals"]["evidence"] - hit["signals"]["fused"], 3) for hit in hits] == [
        0.0,
        0.0,
        0.0,
        -REPEATED,
    ]


def test_a_hit_by_words_alone_is_found(open_memory: Opener) -> None:
    """The union of the pools: a word that the vectors miss is not lost."""
    memory = open_memory(durability="process")
    memory.add([f"note {n} about the weather at sea and more words" for n in range(300)], infer=False, **ANN)
    keep(memory, "zyzzyva is what the invoice of long ago over there under the table was finally called by everybody")
    hits = memory.search("zyzzyva", explain=True, **ANN)["results"]
    assert hits[0]["memory"].startswith("zyzzyva")
    assert hits[0]["signals"]["words"] > 0


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("User bought three BOATS", "boat"),
        ("User's café is in Málaga", "cafe malaga"),
        ("User's cafe is in Malaga", "Café Málaga"),
        ("User studies at Universität Zürich", "universitat zurich"),
        ("User's flight is TP1234/5", "tp1234"),
        ("User's e-mail is ana.souza@example.org", "ana.souza@example.org"),
        ("User drives a Citroën C4", "c4"),
        ("東京タワーの近くに住んでいます", "東京"),
        ("東京タワーの近くに住んでいます", "タワー"),
        ("我喜欢喝绿茶", "绿茶"),
        ("저는 서울에 살아요", "서울에"),
        ("ฉันชอบชาเขียว", "ชาเขียว"),
        ("أحب الشاي الأخضر", "الشاي"),
        ("אני אוהב תה ירוק", "תה"),
        ("Я живу в Санкт-Петербурге", "петербурге"),
        ("मुझे हरी चाय पसंद है", "चाय"),
        ("Τρώω φέτα κάθε μέρα", "Φέτα"),
        ("Мой йогурт и ёлка", "йогурт"),
        ("Мой йогурт и ёлка", "ЁЛКА"),
        ("User's oﬃce is cold", "oﬃce"),
        ("User loves the 🐙 sticker", "🐙"),
        ("Mẹ tôi sống ở Hà Nội", "Hà Nội"),
    ],
)
def test_exact_words_are_found_in_any_script(open_memory: Opener, text: str, query: str) -> None:
    memory = open_memory(":memory:", embedder=HashEmbedder(dim=512))  # few words collide
    memory.add([f"filler number {n} about nothing much" for n in range(30)], infer=False, **ANN)
    keep(memory, text)
    hits = memory.search(query, explain=True, **ANN)["results"]
    assert hits[0]["memory"] == text
    assert hits[0]["signals"]["words"] > 0, hits[0]["signals"]


def test_the_word_user_finds_nothing_by_itself(memory: Memory) -> None:
    keep(memory, "User likes tea", "User has a boat")
    hits = memory.search("user", explain=True, **ANN)["results"]
    assert all(hit["signals"]["words"] == 0 for hit in hits)


@pytest.mark.parametrize(
    "query",
    [
        '"',
        '""""',
        "'",
        "*",
        "a*",
        "^a",
        "a AND b",
        "a OR",
        "NOT",
        "NEAR(a b, 3)",
        "text : a",
        "owner : o1",
        "(",
        ")",
        "a)(b",
        "-a",
        "+",
        "{text owner} : x",
        "\\",
        "%_",
        "?1",
        ";--",
        "a\nb\tc",
        "\u200b",
        "\u202e",
        "🐙",
        "o1 h1 p1 x1",
        "a" * 5000,
        "word " * 3000,
    ],
)
def test_no_query_is_syntax(memory: Memory, query: str) -> None:
    keep(memory, "User likes tea and a boat")
    keep(memory, "User hides a boat", user_id="bob")
    for include in ("pending", "facts", "episodes", "all", "history"):
        assert set(found(memory, query, include=include)) <= {"User likes tea and a boat"}
    memory.context(query, **ANN)


WORDLIKE = st.text(alphabet=st.characters(categories=("L", "N"), max_codepoint=0x2FFFF), min_size=1, max_size=8)
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=60)


@settings(max_examples=200)
@given(ANY_TEXT.filter(str.strip), ANY_TEXT.filter(str.strip))
def test_any_text_can_be_stored_and_any_text_asked(text: str, query: str) -> None:
    with Memory(":memory:", embedder=HashEmbedder(), clock=FixedClock()) as memory:
        keep(memory, text)
        assert memory.get_all(**ANN)["results"][0]["memory"] == text
        assert set(found(memory, query)) <= {text}
        assert found(memory, text) == [text]
        assert memory.check() == []


@settings(max_examples=200)
@given(st.lists(WORDLIKE, min_size=1, max_size=6), st.data())
def test_every_exact_word_is_found_by_the_word_index(words: list[str], data: st.DataObject) -> None:
    from localmem import words as text_words

    word = data.draw(st.sampled_from(words))
    text = " ".join(["start", *words])
    folded = text_words.bare(word)
    if not any(unicodedata.category(c)[0] in "LN" for c in folded) or folded in text_words.all_stop_words():
        return
    if folded in ("user", "start"):
        return
    with Memory(":memory:", embedder=HashEmbedder(), clock=FixedClock()) as memory:
        keep(memory, text, "another memory about nothing")
        hits = memory.search(word, explain=True, **ANN)["results"]
        scores = {hit["memory"]: hit["signals"]["words"] for hit in hits}
        assert scores[text] > 0, (text, word)


# -- raw turns


def test_a_turn_makes_way_for_its_facts(open_memory: Opener, scripted: None) -> None:
    generator = Listener(fail=True)
    memory = open_memory(generator=generator)
    with pytest.raises(GeneratorError):
        memory.add("so, the ferry to Vigo was late\nfact: User took the ferry to Vigo", **ANN)
    (hit,) = memory.search("ferry Vigo", **ANN)["results"]
    assert (hit["turn"], hit["state"], hit["role"]) == (True, "pending", "user")
    assert json.loads(json.dumps(hit)) == hit
    generator.fail = False
    memory.resume()
    assert found(memory, "ferry Vigo") == ["User took the ferry to Vigo"]
    assert found(memory, "ferry Vigo", include="facts") == ["User took the ferry to Vigo"]
    (turn,) = memory.search("ferry Vigo", include="episodes", **ANN)["results"]
    assert (turn["turn"], turn["state"]) == (True, "extracted")
    assert len(found(memory, "ferry Vigo", include="all")) == 2


def waiting(open_memory: Opener, *adds: tuple[list[str], dict[str, str]]) -> Memory:
    """A store whose turns were not read yet; each add's messages with its further arguments."""
    memory = open_memory(generator=Listener(fail=True))
    for said, options in adds:
        with pytest.raises(GeneratorError):
            memory.add([{"role": "user", "content": one} for one in said], **ANN, **options)
    return memory


@pytest.mark.parametrize("together", [True, False])
def test_a_raw_answer_is_found_with_the_question_before_it(open_memory: Opener, together: bool) -> None:
    at = {"timestamp": "2025-04-02T18:00:00Z"}
    adds = [(TALK, at)] if together else [([text], at) for text in TALK]
    memory = waiting(open_memory, *adds)
    assert found(memory, "Does Bogdan play the accordion?")[:2] == [TALK[2], TALK[3]]
    assert found(memory, "Does Bogdan play the accordion?", include="episodes")[:2] == [TALK[2], TALK[3]]


def test_raw_turns_of_another_day_run_or_owner_are_no_neighbours(open_memory: Opener) -> None:
    memory = waiting(
        open_memory,
        (TALK[2:3], {"timestamp": "2025-04-02T18:00:00Z"}),
        (TALK[3:4], {"timestamp": "2025-04-03T18:00:00Z"}),
        (TALK[3:4], {"timestamp": "2025-04-03T18:00:00Z", "run_id": "r"}),
    )
    with pytest.raises(GeneratorError):
        memory.add(TALK[3], user_id="bob", timestamp="2025-04-02T18:00:00Z")
    hits = memory.search("Does Bogdan play the accordion?", explain=True, **ANN)["results"]
    assert [hit["signals"]["evidence"] - hit["signals"]["fused"] for hit in hits] == [0.0, 0.0, 0.0]


def test_raw_turns_of_the_time_that_is_asked_for(open_memory: Opener) -> None:
    said = [(["the ferry was late"], {"timestamp": f"2025-0{month}-10"}) for month in (1, 2, 3)]
    memory = waiting(open_memory, *said)
    [first, *_] = memory.search("what about the ferry in February 2025?", **ANN)["results"]
    assert first["created_at"] == "2025-02-10T00:00:00Z"


def test_a_raw_turn_that_has_expired_is_gone(open_memory: Opener, clock: FixedClock) -> None:
    memory = waiting(open_memory, (["the garden gate squeaks"], {"expires_at": "2025-03-02"}))
    assert found(memory, "garden gate") == ["the garden gate squeaks"]
    clock.advance(2 * 86_400)
    assert [found(memory, "garden gate", include=include) for include in ("pending", "episodes", "all")] == [[], [], []]


def test_system_messages_are_never_found(open_memory: Opener) -> None:
    memory = open_memory(generator=Listener(fail=True))
    with pytest.raises(GeneratorError):
        memory.add(
            [{"role": "system", "content": "speak of pirates"}, {"role": "user", "content": "hello there"}], **ANN
        )
    for include in ("pending", "episodes", "all", "history"):
        assert "speak of pirates" not in found(memory, "pirates", include=include)


def test_a_superseded_fact_does_not_come_back_through_its_turn(open_memory: Opener, scripted: None) -> None:
    memory = open_memory(generator=Listener())
    memory.add("fact: User lives in Porto", timestamp="2025-01-01", **ANN)
    memory.add("fact: User lives in Faro | changes: User lives in", timestamp="2025-02-01", **ANN)
    assert found(memory, "User lives in Porto") == ["User lives in Faro"]
    assert "Porto" not in memory.context("User lives in Porto", **ANN)


def test_every_mode_after_an_update(open_memory: Opener, scripted: None) -> None:
    """The old value: gone from facts, marked in history and among raw turns; each fact names its turns."""
    memory = open_memory(generator=Listener())
    memory.add("fact: User lives in Porto", timestamp="2025-01-01", **ANN)
    memory.add("fact: User lives in Faro | changes: User lives in", timestamp="2025-02-01", **ANN)

    def seen(include: str) -> set[tuple[str, bool, bool]]:
        hits = memory.search("User lives in Porto", include=include, **ANN)["results"]
        return {(hit["memory"], hit.get("turn", False), hit.get("superseded", False)) for hit in hits}

    new, old = ("User lives in Faro", False, False), ("User lives in Porto", False, True)
    turns = {
        ("fact: User lives in Porto", True, True),
        ("fact: User lives in Faro | changes: User lives in", True, False),
    }
    assert seen("facts") == seen("pending") == {new}
    assert seen("history") == {new, old}
    assert seen("episodes") == turns
    assert seen("all") == {new, *turns}
    hits = memory.search("User lives in Faro", include="all", **ANN)["results"]
    places = {hit["memory"]: (hit["episode_id"], hit["message"]) for hit in hits if hit.get("turn")}
    (fact,) = [hit for hit in hits if not hit.get("turn")]
    assert [(one["episode_id"], one["message"]) for one in fact["sources"]] == [
        places["fact: User lives in Faro | changes: User lives in"]
    ]


def test_turns_respect_agent_and_run(open_memory: Opener) -> None:
    memory = open_memory(generator=Listener(fail=True))
    for ids in ({"run_id": "r1"}, {"run_id": "r2"}, {"agent_id": "a"}):
        with pytest.raises(GeneratorError):
            memory.add(f"the ferry of {next(iter(ids.values()))}", **ANN, **ids)
    assert found(memory, "ferry", run_id="r1") == ["the ferry of r1"]
    assert found(memory, "ferry", agent_id="a") == ["the ferry of a"]
    assert len(found(memory, "ferry")) == 3
    assert texts(memory.search("ferry", run_id="r2")) == ["the ferry of r2"]


# -- time


def test_reference_date_is_what_now_means(memory: Memory) -> None:
    memory.add("the parcel code is Q7", infer=False, expires_at="2025-06-01", **ANN)
    assert found(memory, "parcel", reference_date="2025-05-31") == ["the parcel code is Q7"]
    assert found(memory, "parcel", reference_date="2025-06-02") == []


def test_the_past_is_searched_by_meaning_and_by_words(memory: Memory) -> None:
    memory_id = memory.add("the harbour master is Rui", infer=False, timestamp="2024-01-01", **ANN)["results"][0]["id"]
    memory.update(memory_id, "the harbour master is Inês", timestamp="2024-06-01")
    assert found(memory, "Rui", as_of="2024-02-01") == ["the harbour master is Rui"]
    assert found(memory, "harbour master", as_of="2024-02-01") == ["the harbour master is Rui"]
    assert found(memory, "harbour master", as_of="2023-12-31") == []
    assert found(memory, "Rui", as_of="2024-07-01") == ["the harbour master is Inês"]


def test_as_of_and_known_at_together(memory: Memory, clock: FixedClock) -> None:
    memory_id = memory.add("rent is 700", infer=False, timestamp="2024-01-01", **ANN)["results"][0]["id"]
    clock.advance(3600)
    memory.update(memory_id, "rent is 800", timestamp="2024-06-01")
    early = "2025-03-01T00:30:00"
    assert found(memory, "rent", as_of="2024-07-01") == ["rent is 800"]
    assert found(memory, "rent", known_at=early) == ["rent is 700"]
    # At that time the file did not know yet that 700 would end, though today it knows: only what was recorded counts.
    assert found(memory, "rent", as_of="2024-02-01", known_at=early) == ["rent is 700"]


def test_the_same_question_gets_the_same_answer(open_memory: Opener) -> None:
    memory = open_memory(durability="process")
    memory.add(["tea and boats"] * 5 + [f"boat {n}" for n in range(20)], infer=False, **ANN)
    first = memory.search("boat tea", limit=25, explain=True, **ANN)
    for _ in range(5):
        assert memory.search("boat tea", limit=25, explain=True, **ANN) == first
    memory.close()
    assert open_memory().search("boat tea", limit=25, explain=True, **ANN) == first


def test_searching_without_the_owner_is_as_right(memory: Memory) -> None:
    """Ids not given are free: rows of several users that share an agent or a run."""
    for number, user in enumerate(("ann", "bob", "eve")):
        memory.add(f"boat number {number}", infer=False, user_id=user, agent_id="a", run_id=f"r{number % 2}")
    assert sorted(texts(memory.search("boat", agent_id="a"))) == [f"boat number {n}" for n in range(3)]
    assert sorted(texts(memory.search("boat", run_id="r0"))) == ["boat number 0", "boat number 2"]
    assert texts(memory.search("boat", agent_id="a", run_id="r1")) == ["boat number 1"]
    assert texts(memory.search("number 2", agent_id="a", limit=1)) == ["boat number 2"]


@pytest.mark.parametrize("mark", ["—", "boat"], ids=["vectors-alone", "words-too"])
@pytest.mark.parametrize("hidden_by", ["agent", "run", "superseded", "deleted", "expired", "validity", "filter"])
def test_what_is_out_of_sight_does_not_crowd_out_what_is_in_sight(
    open_memory: Opener, clock: FixedClock, hidden_by: str, mark: str
) -> None:
    """Visibility is decided before the k nearest are cut: hundreds of nearer rows that may not be shown are no obstacle."""
    memory = open_memory(":memory:")
    crowd = [f"{mark} {n}" for n in range(500)]
    asked: dict[str, Any] = dict(ANN)
    wanted: dict[str, Any] = dict(ANN)
    if hidden_by in ("agent", "run"):
        memory.add(crowd, infer=False, **ANN, **{f"{hidden_by}_id": "other"})
        asked[f"{hidden_by}_id"] = wanted[f"{hidden_by}_id"] = "mine"
    elif hidden_by == "superseded":
        for entry in memory.add(crowd, infer=False, **ANN)["results"]:
            memory.update(entry["id"], "zebra quantum marmalade")
    elif hidden_by == "deleted":
        memory.add(crowd, infer=False, **ANN)
        memory.delete_all(**ANN)
    elif hidden_by == "expired":
        memory.add(crowd, infer=False, expires_at="2025-03-02", **ANN)
        clock.advance(3 * 86_400)
    elif hidden_by == "validity":
        memory.add(crowd, infer=False, timestamp="2025-02-20", **ANN)
        asked["as_of"] = "2025-02-10"
    else:
        memory.add(crowd, infer=False, metadata={"n": 1}, **ANN)
        asked["filters"] = {"n": 2}
    memory.add(f"{mark} lighthouse stands there", infer=False, timestamp="2025-02-01", metadata={"n": 2}, **wanted)
    hits = memory.search(mark, include="facts", **asked)["results"]
    assert hits[0]["memory"] == f"{mark} lighthouse stands there"
    assert not {hit["memory"] for hit in hits} & set(crowd)


def test_a_large_owner_and_many_small_ones(open_memory: Opener) -> None:
    memory = open_memory(":memory:")
    memory.add([f"large note {n}" for n in range(900)], infer=False, user_id="large")
    for number in range(40):
        memory.add(f"the small boat {number}", infer=False, user_id=f"small{number}")
    for number in (0, 17, 39):
        assert texts(memory.search("boat", user_id=f"small{number}")) == [f"the small boat {number}"]
    assert texts(memory.search("large note 777", user_id="large", limit=1)) == ["large note 777"]
    assert len(texts(memory.search("note", user_id="large", limit=900))) > 90


# -- time in the query


@pytest.fixture
def years(memory: Memory) -> Memory:
    """120 walks from 2019 to 2024, a move in the middle, and what the user drove before and after."""
    for number in range(120):
        year, month = 2019 + number // 20, 1 + number % 12
        memory.add(f"walked to hill {number}", infer=False, timestamp=f"{year}-{month:02d}-10", **ANN)
    memory.add("User moved to Porto with two suitcases", infer=False, timestamp="2022-04-02", **ANN)
    memory.add("User drives an old Volvo", infer=False, timestamp="2020-02-11", **ANN)
    memory.add("User drives a blue Fiat", infer=False, timestamp="2023-08-20", **ANN)
    return memory


@pytest.mark.parametrize("query", ["Where have I walked in May 2021?", "the hill walked to last May"])
def test_a_date_in_the_query_finds_what_is_of_that_time(years: Memory, query: str) -> None:
    found = years.search(query, limit=2, reference_date="2022-01-20", **ANN)["results"]
    assert {each["valid_from"][:7] for each in found} == {"2021-05"}


def test_a_date_that_a_memory_names_counts_as_well(years: Memory) -> None:
    years.add("User walked to a hill in October 1998", infer=False, timestamp="2024-06-01", **ANN)
    assert texts(years.search("Which hill was it in October 1998?", limit=1, **ANN)) == [
        "User walked to a hill in October 1998"
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("before", ["User drives an old Volvo", "User drives a blue Fiat"]),
        ("after", ["User drives a blue Fiat", "User drives an old Volvo"]),
    ],
)
def test_before_and_after_an_event(years: Memory, word: str, expected: list[str]) -> None:
    found = texts(years.search(f"What car User drives {word} User moved to Porto", limit=5, **ANN))
    assert [text for text in found if "drives" in text] == expected


def test_the_latest_of_what_is_alike(memory: Memory) -> None:
    for day in (3, 9, 5):
        memory.add("Ana: the car sits at the garage", infer=False, timestamp=f"2024-05-{day:02d}", **ANN)
    for query, first in (("where is the car currently", "2024-05-09"), ("where is the car", "2024-05-03")):
        assert memory.search(query, limit=1, **ANN)["results"][0]["valid_from"][:10] == first


def test_what_was_so_before_is_found_in_history(memory: Memory) -> None:
    added = memory.add("User prefers tea in the morning", infer=False, timestamp="2024-01-01", **ANN)
    memory.update(added["results"][0]["id"], "User prefers coffee in the morning", timestamp="2024-06-01")
    asked = "What did the user prefer in the morning before?"
    assert texts(memory.search(asked, limit=1, include="history", **ANN)) == ["User prefers tea in the morning"]
    assert texts(memory.search(asked, **ANN)) == ["User prefers coffee in the morning"]


def test_explain_tells_the_place_in_each_pool(memory: Memory) -> None:
    memory.add(["the boat is called Selkie", "the boat needs paint", "a letter for Rui"], infer=False, **ANN)
    hits = memory.search("the boat Selkie", explain=True, **ANN)["results"]
    first = hits[0]["signals"]
    assert (first["vector_rank"], first["words_rank"], first["mentions_rank"]) == (1, 1, 1)
    assert hits[1]["signals"]["words_rank"] == 2
    assert "mentions_rank" not in hits[1]["signals"]
    for hit in hits:
        assert hit["score"] == pytest.approx(score(hit["signals"]["evidence"], 3), abs=1e-3)


# -- diversity and reranking


def test_what_repeats_a_better_hit_stands_behind_others(memory: Memory) -> None:
    memory.add(
        ["the boat lies at pier nine"] * 4 + ["the boat lies in harbour", "a letter for Rui"], infer=False, **ANN
    )
    assert found(memory, "the boat lies at pier", limit=3)[:2] == [
        "the boat lies at pier nine",
        "the boat lies in harbour",
    ]


class Longest:
    """Likes long texts."""

    id = "longest"

    def __init__(self) -> None:
        self.shown: list[Sequence[str]] = []

    def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        self.shown.append(texts)
        return [len(text) / 50 for text in texts]


def test_a_reranker_puts_the_best_hits_in_order(open_memory: Opener) -> None:
    reranker = Longest()
    memory = open_memory(reranker=reranker)
    memory.add([f"boat {'o' * n}" for n in range(30)], infer=False, **ANN)
    hits = memory.search("boat", limit=30, explain=True, **ANN)["results"]
    shown = set(reranker.shown[0])
    assert len(shown) == 20
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert hits[0]["memory"] == max(shown, key=len)
    assert [hit["signals"].get("reranked") for hit in hits[:20]] == pytest.approx(scores[:20], abs=1e-4)
    assert "reranked" not in hits[20]["signals"]
    assert all(0 <= score <= 1 for score in scores)
    assert len(memory.search("boat", limit=30, threshold=0.5, **ANN)["results"]) == sum(s >= 0.5 for s in scores)


def test_a_reranker_must_be_one(open_memory: Opener) -> None:
    with pytest.raises(InvalidTypeError, match="reranker"):
        open_memory(reranker="minilm", sound=False)


def test_what_differs_in_a_number_repeats_nothing(memory: Memory) -> None:
    said = ["seat 3 in row 7 is free", "seat 7 in row 3 is free"]  # the same vector to HashEmbedder
    memory.add(said, infer=False, **ANN)
    assert sorted(found(memory, "seat 7 in row 3")) == said
    hits = memory.search("seat 7 in row 3", explain=True, **ANN)["results"]
    assert [hit["signals"]["evidence"] - hit["signals"]["fused"] for hit in hits] == [0.0, 0.0]
