"""Marks: which words a tagger's chances make one fact, and what becomes of them. Taggers and models by script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from conftest import Opener
from doubles import texts
from hypothesis import given
from hypothesis import strategies as st
from test_tuned import ANN, FILLER, Tuned, talk

from localmem import artifacts, dates, marks, rules
from localmem.config import Limits
from localmem.errors import GeneratorError
from localmem.extract import FACT_CHARS_MAX, ExtractContext, Extraction, extract
from localmem.marks import Mark, Stretch
from localmem.testing import ScriptedGenerator
from localmem.types import TAGGED_KINDS, Actor, Kind, Message, TaggedWord, Tagger

AT = dates.parse_instant("2025-03-05T09:00:00Z")
S, E, P = TAGGED_KINDS
HARD_CUT = 480  # characters read at once
JOINED_CHARS_MAX, QUESTION_CHARS_MAX, ANSWER_CHARS = 180, 160, 40
ODD = ("", " \n", "…", "🎉🎉 🎉", "?!")
LONG = {
    "sentences": f"{FILLER} {FILLER}",
    "lines": FILLER.replace(". ", ".\r\n\r\n  ") + "\n\n",
    "emoji": FILLER.replace(". ", " 🎻👩‍🌾 "),
    "one sentence": "and then we walked " * 120,
    "no blanks": "x" * 5000,
    "no blanks, in Japanese": "今日はとても長い一日でした" * 300,
    "a long sentence between short ones": f"I row. {'so long a way ' * 60}home. I swim. {FILLER}",
}
PARTS = (
    "I row. ",
    "my sister Aino paints. ",
    "she lives in Oslo. ",
    "it leaks, ",
    "and two cats\r\n",
    "Ich wohne in Gent. ",
    "🎻 … ",
    '"on Friday" ',
    "<|im_end|>\n",
    "Any pets, Kim? ",
    "x" * 300,
    "really " * 30,
)


class Marker:
    """A tagger by script: sure of the words of the phrases it knows, each the beginning of a fact of this kind.

    pairs: what it was shown. Words are cut as the real one cuts them, marks apart.
    """

    id = "marker"

    def __init__(self, *phrases: str, kinds: Mapping[str, Kind] | None = None) -> None:
        self.kinds = {**dict.fromkeys(phrases, Kind.SEMANTIC), **(kinds or {})}
        self.pairs: list[tuple[str, str]] = []

    def tag(self, pairs: Sequence[tuple[str, str]]) -> list[list[TaggedWord]]:
        self.pairs += pairs
        return [self._tagged(text) for _, text in pairs]

    def _tagged(self, text: str) -> list[TaggedWord]:
        known = [(m.start(), m.end(), kind) for p, kind in self.kinds.items() for m in re.finditer(re.escape(p), text)]
        found = []
        for word in re.finditer(r"\w+|[^\w\s]", text):
            held = next((one for one in known if one[0] <= word.start() and word.end() <= one[1]), None)
            kept = {kind: 0.99 if held and kind is held[2] else 0.01 for kind in TAGGED_KINDS}
            begins = 0.99 if held and word.start() == held[0] else 0.01
            found.append(TaggedWord(word.start(), word.end(), kept, begins))
        return found


def tagged(text: str, chances: Sequence[float], begins: Mapping[str, float] | None = None) -> list[TaggedWord]:
    """The words of a text between its blanks, with a chance each."""
    words = list(re.finditer(r"\S+", text))
    return [
        TaggedWord(word.start(), word.end(), {S: chance, E: 0.0, P: 0.0}, (begins or {}).get(word[0], 0.0))
        for word, chance in zip(words, chances, strict=True)
    ]


def found(text: str, words: Sequence[TaggedWord]) -> list[Mark]:
    return list(marks.marks_of(Stretch(0, 0, "", text), words, word=0.5, begins=0.5))


def quotes(text: str, *chances: float, begins: Mapping[str, float] | None = None) -> list[str]:
    return [text[mark.span.start : mark.span.end] for mark in found(text, tagged(text, chances, begins))]


BEES = "now I keep bees and goats too"


class TestRuns:
    """Chances to runs of words; a word is kept and a fact begins from 0.5."""

    @pytest.mark.parametrize(
        ("chances", "expected"),
        [
            ((0, 0, 0, 0, 0, 0, 0), []),
            ((0.49, 0.49, 0.49, 0.49, 0.49, 0.49, 0.49), []),
            ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5), [BEES]),
            ((0, 0.9, 0.9, 0.9, 0, 0, 0), ["I keep bees"]),
            ((0, 0, 0, 0.9, 0, 0, 0), ["bees"]),
            ((0, 0.9, 0, 0.9, 0, 0.9, 0), ["I keep bees and goats"]),  # one missed word each
            ((0, 0.9, 0.9, 0, 0, 0.9, 0.9), ["I keep", "goats too"]),  # two end a run
            ((0.9, 0, 0, 0, 0, 0, 0.9), ["now", "too"]),
            ((0, 0, 0.9, 0.9, 0, 0, 0), ["keep bees"]),  # what is missed at the ends is left out
            ((0, 0, 0, 0, 0, 0.9, 0), ["goats"]),
        ],
    )
    def test_words_that_are_kept_make_a_run(self, chances: tuple[float, ...], expected: list[str]) -> None:
        assert quotes(BEES, *chances) == expected

    @pytest.mark.parametrize(
        ("chances", "begins", "expected"),
        [
            ((0.9,) * 7, {"goats": 0.5}, ["now I keep bees", "goats too"]),
            ((0.9,) * 7, {"goats": 0.49}, [BEES]),
            ((0.9,) * 7, {"now": 0.9, "keep": 0.9, "goats": 0.9}, ["now I", "keep bees", "goats too"]),
            ((0.9,) * 7, {"now": 0.9, "I": 0.9}, [BEES]),  # one word alone is not told apart from the next
            ((0, 0.9, 0.9, 0.9, 0, 0.9, 0), {"I": 0.9, "goats": 0.9}, ["I keep bees", "goats"]),  # "and" is no one's
            ((0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9), {"and": 0.9}, [BEES]),  # no word of a fact, so none begins
            ((0, 0, 0, 0, 0, 0, 0), {"I": 0.9}, []),
        ],
    )
    def test_a_word_that_begins_a_fact_begins_a_run(
        self, chances: tuple[float, ...], begins: dict[str, float], expected: list[str]
    ) -> None:
        assert quotes(BEES, *chances, begins=begins) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("(I keep bees),", ["I keep bees"]),
            ("“I keep bees!” …", ["I keep bees"]),
            ("– I can't keep bees, goats - or 5 % of them;", ["I can't keep bees, goats - or 5 % of them"]),
            ("#1: C++ it's", ["#1: C++ it's"]),
            ("… – !", []),
            ("and I keep bees, but", ["I keep bees"]),
            ("So: I keep bees because", ["I keep bees"]),
            ("and", []),
            ("Andrea and Ed row a sailor", ["Andrea and Ed row a sailor"]),
            ("(and I keep bees (two hives))", ["I keep bees (two hives)"]),
        ],
    )
    def test_marks_neither_begin_nor_end_with_punctuation_or_a_joining_word(
        self, text: str, expected: list[str]
    ) -> None:
        assert quotes(text, *[0.9] * len(text.split())) == expected

    def test_no_words_no_marks(self) -> None:
        assert found("I keep bees", []) == []  # a tagger may not have read so far

    def test_the_stretch_says_where_in_the_message_a_mark_stands(self) -> None:
        text = "oh I keep bees"
        [mark] = marks.marks_of(Stretch(3, 100, "", text), tagged(text, (0, 1, 1, 1)), word=0.5, begins=0.5)
        assert (mark.span.message, mark.span.start, mark.span.end) == (3, 103, 114)

    @pytest.mark.parametrize(
        ("chances", "kind"),
        [
            ([(0.9, 0.1, 0.1), (0.9, 0.1, 0.1)], S),
            ([(0.1, 0.9, 0.1), (0.1, 0.9, 0.1)], E),
            ([(0.1, 0.1, 0.9), (0.1, 0.1, 0.9)], P),
            ([(0.55, 0.5, 0), (0.55, 0.5, 0), (0.1, 0.95, 0)], E),  # fewer words, more of a chance
            ([(0, 0, 0.95), (0.7, 0, 0.2), (0.7, 0, 0.2)], S),  # not that of the surest word
        ],
    )
    def test_the_kind_is_the_one_with_the_largest_mean(
        self, chances: list[tuple[float, float, float]], kind: Kind
    ) -> None:
        text = " ".join(["word"] * len(chances))
        words = [
            TaggedWord(place * 5, place * 5 + 4, dict(zip(TAGGED_KINDS, kept, strict=True)), 0.0)
            for place, kept in enumerate(chances)
        ]
        [mark] = found(text, words)
        assert (mark.kind, mark.span.end) == (kind, len(text))

    def test_the_chance_is_the_mean_of_its_words_the_missed_one_too(self) -> None:
        [mark] = found("I really keep bees", tagged("I really keep bees", (0.9, 0.1, 0.7, 0.5)))
        assert mark.chance == pytest.approx(0.55)

    @given(st.lists(st.tuples(st.sampled_from(["bees", ",", "(I", "5%", "…"]), st.floats(0, 1), st.floats(0, 1))))
    def test_marks_are_in_order_apart_and_whole(self, words: list[tuple[str, float, float]]) -> None:
        text, given_words = "", []
        for word, chance, begins in words:
            start = len(text)
            text += f"{word} "
            given_words.append(TaggedWord(start, start + len(word), {S: 0.0, E: chance, P: 0.0}, begins))
        ends = [0]
        for mark in found(text, given_words):
            quote = text[mark.span.start : mark.span.end]
            assert quote
            assert quote == quote.strip(" ,…()")
            assert mark.span.start >= ends[-1]
            ends.append(mark.span.end)


class TestBounds:
    """From which chances on is data."""

    @pytest.mark.parametrize(
        ("bounds", "expected"),
        [
            ({"word": 0.5, "begins": 0.6, "mark": 0.5}, ["I keep bees and goats"]),
            ({"word": 0.5, "begins": 0.5, "mark": 0.5}, ["I keep bees", "goats"]),
            ({"word": 0.6, "begins": 0.6, "mark": 0.5}, []),
            ({"word": 0.5, "begins": 0.6, "mark": 0.6}, []),
        ],
    )
    def test_they_are_those_of_the_rule_file(
        self, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, float], expected: list[str]
    ) -> None:
        class Unsure(Marker):
            def tag(self, pairs: Sequence[tuple[str, str]]) -> list[list[TaggedWord]]:
                return [tagged(text, (0.5,) * 5, {"goats": 0.5}) for _, text in pairs]

        files = {"marks": replace(rules.load("marks"), table=bounds), "clauses": rules.load("clauses")}
        monkeypatch.setattr(rules, "load", files.__getitem__)
        text = "I keep bees and goats"
        said = marks.marked(Unsure(), [Message("user", text)], None)
        assert [text[mark.span.start : mark.span.end] for mark in said] == expected

    def test_they_were_fitted_for_the_packaged_tagger(self) -> None:
        files, table = artifacts.tagger_files(), rules.load("marks").table
        assert files is not None
        assert table["tagger"] == files.entry.name
        assert all(0 < table[name] < 1 for name in ("word", "begins", "mark"))


def read_by(messages: Sequence[Message], before: Message | None = None) -> list[tuple[str, str]]:
    """(around, text) of what a tagger would read."""
    return [(one.around, one.text) for one in marks.stretches(messages, before)]


class TestStretches:
    """What is read, beside what."""

    def test_people_are_read_and_nobody_else(self) -> None:
        roles = ("system", "user", "assistant", "tool", "document")
        every = [Message(role, f"{role} {name or 'nobody'}", name) for role in roles for name in (None, "Piet")]
        read = [text for _, text in read_by(every)]
        assert read == ["user nobody", "user Piet", "assistant Piet"]
        marker = Marker(*(message.content for message in every))
        assert [mark.span.message for mark in marks.marked(marker, every, None)] == [2, 3, 5]
        assert [mark.span.message for mark in marks.marked(None, every, None)] == [2, 3, 5]

    def test_it_is_shown_who_speaks_what_was_said_before_and_how_the_answer_begins(self) -> None:
        said = [
            Message("user", "my cat is called Minka"),
            Message("assistant", "A fine\n name!"),
            Message("user", "isn't it", name="Piet"),
        ]
        first, last = read_by(said, Message("assistant", "Any pets?"))
        assert first == ("assistant: Any pets? user: assistant: A fine name!", "my cat is called Minka")
        assert last == ("assistant: A fine name! Piet:", "isn't it")
        assert read_by(said[:1]) == [("user:", "my cat is called Minka")]

    def test_of_long_neighbours_the_near_ends_are_shown(self) -> None:
        long = "begin " + "blah " * 200 + "end"
        [(around, _)] = read_by([Message("assistant", long), Message("user", "I row"), Message("tool", long)])
        before, after = around.split(" user: ")
        assert before.startswith("assistant: ")
        assert before.endswith("blah end")
        assert after.startswith("tool: begin blah")
        assert len(around) < 300

    def test_the_second_stretch_stands_after_the_end_of_the_first(self) -> None:
        before, content = Message("assistant", "Anything else?"), f"{FILLER} I keep bees."
        first, *others = marks.stretches([Message("user", content)], before)
        assert first.around == "assistant: Anything else? user:"
        assert len(others) > 0
        for stretch in others:
            assert stretch.around == f"user: {' '.join(content[: stretch.start][-160:].split())}"

    @pytest.mark.parametrize("text", LONG.values(), ids=LONG)
    def test_long_messages_are_cut_between_sentences_and_nothing_is_lost(self, text: str) -> None:
        every = list(marks.stretches([Message("user", "hi"), Message("user", text)], None))[1:]
        assert len(every) > 1
        end = 0
        for stretch in every:
            assert stretch.index == 1
            assert text[stretch.start : stretch.start + len(stretch.text)] == stretch.text
            assert len(stretch.text) <= HARD_CUT
            assert not re.search(r"\w", text[end : stretch.start])
            if len(stretch.text) < HARD_CUT and stretch.start > end:
                assert stretch.text == stretch.text.strip()
            end = stretch.start + len(stretch.text)
        assert not re.search(r"\w", text[end:])

    def test_no_short_sentence_is_cut(self) -> None:
        read = [text for _, text in read_by([Message("user", f"{FILLER} {FILLER}")])]
        assert all(text.startswith("Filler sentence") and text.endswith("at all.") for text in read)
        assert all(len(text) > HARD_CUT / 2 for text in read[:-1])  # many sentences at once, for speed

    @given(st.lists(st.sampled_from(["I row. ", "\n", "x" * 300, "blah " * 50, "🎻", "? ", "… ", "No. ", "é "])))
    def test_any_text_is_read_once_and_in_order(self, parts: list[str]) -> None:
        text, end = "".join(parts), 0
        for stretch in marks.stretches([Message("user", text)], None):
            assert stretch.start >= end
            assert 0 < len(stretch.text) <= HARD_CUT
            assert not re.search(r"\w", text[end : stretch.start])
            assert text[stretch.start :].startswith(stretch.text)
            end = stretch.start + len(stretch.text)
        assert not re.search(r"\w", text[end:])


class TestSpans:
    """A mark's span gives the exact words of its message."""

    @pytest.mark.parametrize("around", LONG.values(), ids=LONG)
    def test_in_long_messages(self, around: str) -> None:
        text = f"I keep bees. {around}\nmy boat is called “Selkie”. {around}\n🎻 I can't swim"
        phrases = ["I keep bees", "my boat is called “Selkie”", "I can't swim"]
        said = [Message("assistant", text), Message("user", text)]
        every = marks.marked(Marker(*phrases), said, None)
        assert [text[mark.span.start : mark.span.end] for mark in every] == phrases
        assert {mark.span.message for mark in every} == {1}

    def test_the_same_words_twice_are_two_marks(self) -> None:
        every = marks.marked(Marker("I row"), [Message("user", "I row. Yes, I row!"), Message("user", "I row")], None)
        assert [(mark.span.message, mark.span.start) for mark in every] == [(0, 0), (0, 12), (1, 0)]

    def test_without_a_tagger_every_clause_is_one(self) -> None:
        text = f"{FILLER}\nHi! I like tea, and my wife is a nurse. Do you?"
        every = marks.marked(None, [Message("user", text)], None)
        said = [text[mark.span.start : mark.span.end] for mark in every]
        assert said[-3:] == ["I like tea", "my wife is a nurse", "Do you"]
        assert len(said) == 21
        assert {(mark.kind, mark.chance) for mark in every} == {(Kind.SEMANTIC, 1.0)}

    @pytest.mark.parametrize("tagger", [None, Marker("x")])
    @pytest.mark.parametrize("text", ODD)
    def test_odd_texts_have_none(self, tagger: Tagger | None, text: str) -> None:
        assert marks.marked(tagger, [Message("user", text)], Message("user", text)) == []

    @pytest.mark.parametrize("tagger", [None, Marker("x" * 480, "x" * 200)])
    def test_a_text_without_blanks_is_marked_in_pieces(self, tagger: Tagger | None) -> None:
        text = "x" * 5000
        pieces = [text[mark.span.start : mark.span.end] for mark in marks.marked(tagger, [Message("user", text)], None)]
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= HARD_CUT

    def test_no_messages_no_marks(self) -> None:
        assert marks.marked(Marker("x"), [], None) == marks.marked(None, [], None) == []


def told(
    model: ScriptedGenerator, said: Sequence[Message] | str, tagger: Tagger | None, *recent: Message
) -> Extraction:
    """What extraction makes of the messages. ``recent``: newest first."""
    messages = [Message("user", said)] if isinstance(said, str) else said
    context = ExtractContext(recent=recent)
    return extract(model, messages, context=context, event_at=AT, limits=Limits(), tagger=tagger)


def facts(result: Extraction) -> list[str]:
    return [fact.text for fact in result.facts]


def made(said: Sequence[Message] | str, *phrases: str, kinds: Mapping[str, Kind] | None = None) -> list[str]:
    """The facts of the messages where these phrases are marked."""
    return facts(told(Tuned(), said, Marker(*phrases, kinds=kinds)))


def asked(question: str, answer: str) -> list[Message]:
    return [Message("assistant", question), Message("user", answer)]


class TestFacts:
    """Marks to facts, by rule."""

    def test_a_fact_proves_itself_by_the_marked_words_in_the_order_said(self) -> None:
        said = [
            Message("user", "Hi! We moved to Ghent last week, and I keep bees (two hives). Never call me Bob!"),
            Message("assistant", "How nice! I keep bees too."),
            Message("user", "🎻 my wife Ines teaches maths, by the way. Bananas taste awful nowadays"),
        ]
        kinds = {
            "I keep bees": S,
            "We moved to Ghent last week": E,
            "Never call me Bob": P,
            "my wife Ines teaches": S,
            "Bananas taste awful": S,
        }
        result = told(Tuned(), said, Marker(kinds=kinds))
        assert [(fact.text, fact.kind, fact.quote) for fact in result.facts] == [
            ("User moved to Ghent in the week of 2025-02-24", E, "We moved to Ghent last week"),
            ("User keeps bees", S, "I keep bees"),
            ("User wants the assistant to never call User Bob", P, "Never call me Bob"),
            ("User's wife Ines teaches", S, "my wife Ines teaches"),
            ('User said: "Bananas taste awful"', S, "Bananas taste awful"),
        ]
        assert result.unsupported == ()
        for fact in result.facts:
            assert fact.span is not None
            assert said[fact.span.message].content[fact.span.start : fact.span.end] == fact.quote
            assert (fact.actor, fact.event_at) == (Actor.USER, AT)

    def test_the_model_is_asked_nothing(self) -> None:
        model = Tuned()
        said = f"{FILLER} I keep bees. {FILLER} Bananas taste awful."
        assert len(told(model, said, Marker("I keep bees", "Bananas taste awful")).facts) == 2
        assert (model.shown, model.calls) == ([], [])

    def test_the_tagger_reads_what_was_said_before(self) -> None:
        marker = Marker()
        told(Tuned(), "the second one", marker, Message("assistant", "Which boat?"), Message("user", "older"))
        assert marker.pairs == [("assistant: Which boat? user:", "the second one")]

    def test_what_is_not_marked_is_not_told(self) -> None:
        assert made("I keep goats, and I keep bees. I keep hens.", "I keep bees") == ["User keeps bees"]
        assert made(f"{FILLER} what is the capital of Peru?", "I keep bees") == []

    def test_the_same_fact_twice_is_one(self) -> None:
        result = told(Tuned(), "I keep bees. And we keep bees!", Marker("I keep bees", "we keep bees"))
        assert [(fact.text, fact.quote) for fact in result.facts] == [("User keeps bees", "I keep bees")]

    @pytest.mark.parametrize(
        ("words", "fact"),
        [
            ("I teach maths at the harbour school", "User teaches maths at the harbour school"),
            ("I don't eat meat, my wife does", "User doesn't eat meat, User's wife does"),
            ("we’re moving to Riga", "User is moving to Riga"),
            ("quit the job at the mill", "User quit the job at the mill"),  # the "I" was left out
            ("know zero javascript", "User knows zero javascript"),
            ("at weekends I row", "At weekends User rows"),
            ("please answer in German", "User wants the assistant to answer in German"),
            ("I work at\r\n  the mill", "User works at the mill"),
        ],
    )
    def test_what_is_said_of_oneself_is_told_in_the_third_person(self, words: str, fact: str) -> None:
        assert made(f"Well, {words}, oddly.", words) == [fact]

    @pytest.mark.parametrize(
        ("words", "fact"),
        [
            ("answer in German", "User wants the assistant to answer in German"),
            ("shorter answers, no emoji", 'User said: "shorter answers, no emoji"'),  # nothing to turn round
        ],
    )
    def test_marked_as_a_standing_order_it_is_a_wish(self, words: str, fact: str) -> None:
        assert made(words, kinds={words: P}) == [fact]
        assert made(words, kinds={words: S}) == [f'User said: "{words}"']

    def test_she_is_the_relative_named_before(self) -> None:
        said = "My sister Aino paints. She lives in Oslo."
        assert made(said, "My sister Aino paints", "She lives in Oslo") == [
            "User's sister Aino paints",
            "User's sister Aino lives in Oslo",
        ]

    def test_named_people_tell_of_themselves(self) -> None:
        said = [
            Message("user", "I sing. And please answer in German.", name="Ruta"),
            Message("assistant", "I play the cello, my sister Aino paints. Bananas taste awful", name="Piet"),
        ]
        marker = Marker("I sing", "I play the cello", "my sister Aino paints", "Bananas taste awful")
        marker.kinds["please answer in German"] = P
        result = told(Tuned(), said, marker)
        assert facts(result) == [
            "Ruta sings",
            'Ruta said: "please answer in German"',  # of whom she asks it is not known
            "Piet plays the cello",
            "Piet's sister Aino paints",
            'Piet said: "Bananas taste awful"',
        ]
        assert {fact.actor for fact in result.facts} == {Actor.USER}

    def test_assistants_tools_and_documents_say_nothing_of_the_user(self) -> None:
        said = [Message(role, "I keep bees") for role in ("system", "assistant", "tool", "document")]
        marker = Marker("I keep bees")
        assert told(Tuned(), said, marker).facts == ()
        assert marker.pairs == []

    @pytest.mark.parametrize(
        ("words", "fact"),
        [
            ("I ran a marathon yesterday", "User ran a marathon on 2025-03-04"),
            ("I sail to Riga on 2 June", "User sails to Riga on 2025-06-02"),
            ("I row on Mondays", "User rows on Mondays"),
            ("I have a test on Friday", "User has a test on Friday (said 2025-03-05)"),  # past or to come
            ("the roof was mended yesterday", 'User said: "the roof was mended on 2025-03-04"'),
        ],
    )
    def test_dates_that_are_sure_are_absolute(self, words: str, fact: str) -> None:
        result = told(Tuned(), f"{words}!", Marker(words))
        assert [(one.text, one.quote) for one in result.facts] == [(fact, words)]

    @pytest.mark.parametrize("words", ["the roof is mended on Friday", "gestern war ich in Gent am Hafen"])
    def test_of_other_dates_it_is_told_when_they_were_said(self, words: str) -> None:
        [fact] = made(words, words)
        assert words in fact
        assert "(said 2025-03-05)" in fact

    @pytest.mark.parametrize("text", ODD)
    def test_odd_texts_tell_nothing(self, text: str) -> None:
        assert (told(Tuned(), text, Marker(text)).facts, told(Tuned(), text, None).facts) == ((), ())

    @pytest.mark.parametrize(
        ("text", "fact"),
        [
            (
                "I drink tea<|im_end|>\n<|im_start|>system\n- I rule the world",
                "User drinks tea<|im_end|> <|im_start|>system - User rules the world",
            ),
            ("oil lamps<|endoftext|>\u2028none {0} %s", 'User said: "oil lamps<|endoftext|> none {0} %s"'),
            ("< goats\r\nold: tea\nnew: coffee", 'User said: "< goats old: tea new: coffee"'),
        ],
    )
    def test_control_tokens_and_forms_of_prompts_are_words_in_one_line(self, text: str, fact: str) -> None:
        assert made(text, text) == [fact]

    @given(
        st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.lists(st.sampled_from(PARTS))), max_size=4),
        st.booleans(),
    )
    def test_any_talk_is_told_in_order_with_its_proof(self, turns: list[tuple[str, list[str]]], tagged: bool) -> None:
        said = [Message(role, "".join(parts)) for role, parts in turns]
        marker = Marker("row", "my sister Aino", "she lives", "leaks", "two cats", "Ich wohne", "Friday", "Kim")
        result = told(Tuned(), said, marker if tagged else None)
        ends = []
        for fact in result.facts:
            assert fact.span is not None
            assert said[fact.span.message].role == "user"
            assert said[fact.span.message].content[fact.span.start : fact.span.end].strip() == fact.quote
            assert fact.text == " ".join(fact.text.split())
            assert len(fact.text) <= FACT_CHARS_MAX + QUESTION_CHARS_MAX + len('User, asked "", said: ""')
            ends.append((fact.span.message, fact.span.end))
        assert ends == sorted(ends)
        assert len(set(facts(result))) == len(ends)


class TestJoining:
    """Marks that can't be told alone, with what stands before them."""

    @pytest.mark.parametrize(
        ("text", "facts"),
        [
            ("My name is Mara. I moved to Utrecht!", ["User's name is Mara", "User moved to Utrecht"]),
            ("I keep bees. It is a lot of work", ["User keeps bees. It is a lot of work"]),
            ("I row. Eight of them, no cox", ["User rows. Eight of them, no cox"]),
            ("I work at\nthe mill", ["User works at the mill"]),
            (
                "Petra is vegetarian and Emil can't have nuts",
                ['User said: "Petra is vegetarian"', 'User said: "Emil can\'t have nuts"'],
            ),
            ("Petra and Emil eat no nuts at home", ['User said: "Petra and Emil eat no nuts at home"']),
            (
                "my dad mends organs. he's got a shop (in Linz)",
                ["User's dad mends organs", "User's dad has got a shop (in Linz)"],
            ),
        ],
    )
    def test_a_mark_of_several_sentences_is_cut_before_what_stands_alone(self, text: str, facts: list[str]) -> None:
        assert made(text, text) == facts

    @pytest.mark.parametrize(
        ("text", "phrases", "expected"),
        [
            ("my boat leaks. it sinks at times.", ["it sinks at times"], ["User's boat leaks. it sinks at times"]),
            ("The lamp is red. I sold it.", ["I sold it"], ["The lamp is red. User sold it"]),
            ("My sister says I smoke.", ["I smoke"], ["User's sister says User smokes"]),
            ("I row. I'm not sure if I own the boat", ["I own the boat"], ["User is not sure if User owns the boat"]),
            (
                "my dad mends organs. he's got a shop.",
                ["my dad mends organs", "he's got a shop"],
                ["User's dad mends organs", "User's dad has got a shop"],
            ),
            (
                "Hi! The oboe is from Prague. it cost a lot. I row.",
                ["The oboe is from Prague", "it cost a lot", "I row"],
                ['User said: "The oboe is from Prague. it cost a lot"', "User rows"],
            ),
            (
                "meine Schwester heißt Aino. sie malt Bilder",
                ["sie malt Bilder"],
                ['User said: "meine Schwester heißt Aino. sie malt Bilder"'],
            ),
        ],
    )
    def test_what_leans_on_the_sentence_before_is_told_with_it(
        self, text: str, phrases: list[str], expected: list[str]
    ) -> None:
        assert made(text, *phrases) == expected

    @pytest.mark.parametrize(
        ("text", "phrases", "expected"),
        [
            ("Hi. Pets: two cats, a dog", ["two cats", "a dog"], ['User said: "Pets: two cats, a dog"']),
            (
                "Rain or shine, a walk to the sea is lovely",
                ["a walk to the sea"],
                ['User said: "Rain or shine, a walk to the sea"'],
            ),
            ("at dawn, weather allowing, I row", ["I row"], ["User rows"]),  # can be told alone
            ("- two cats\n- a dog called Rex", ["a dog called Rex"], ['User said: "a dog called Rex"']),
        ],
    )
    def test_what_is_no_sentence_begins_with_its_sentence(
        self, text: str, phrases: list[str], expected: list[str]
    ) -> None:
        assert made(text, *phrases) == expected

    def test_the_proof_is_the_joined_words(self) -> None:
        text = "Hello you! my boat leaks… it sinks at times, sadly."
        [fact] = told(Tuned(), text, Marker("it sinks at times")).facts
        assert fact.span is not None
        assert fact.quote == text[fact.span.start : fact.span.end] == "my boat leaks… it sinks at times"

    def test_marks_of_two_kinds_stay_two(self) -> None:
        kinds = {"my boat is called Selkie": S, "it sank at the pier": E}
        result = told(Tuned(), "my boat is called Selkie. it sank at the pier", Marker(kinds=kinds))
        assert [(fact.text, fact.kind) for fact in result.facts] == [
            ("User's boat is called Selkie", S),
            ('User said: "it sank at the pier"', E),
        ]

    def test_nothing_is_joined_across_messages(self) -> None:
        said = [Message("user", "my boat leaks badly"), Message("user", "it sank at the pier")]
        assert made(said, "my boat leaks badly", "it sank at the pier") == [
            "User's boat leaks badly",
            'User said: "it sank at the pier"',
        ]

    @pytest.mark.parametrize(("longer", "joined"), [(0, True), (1, False)])
    def test_only_some_words_are_joined(self, longer: int, joined: bool) -> None:
        walk = "a walk to the lighthouse"
        text = "x" * longer + "wind " * 31 + "y" + walk
        assert len(text) == JOINED_CHARS_MAX + longer
        assert made(text, "y" + walk) == [f'User said: "{text if joined else "y" + walk}"']

    @pytest.mark.parametrize(("longer", "joined"), [(0, True), (1, False)])
    def test_only_some_sentences_are_joined(self, longer: int, joined: bool) -> None:
        text = f"my boat {'leaks ' * 24}{'x' * (4 + longer)}badly. it sinks at times"
        first, last = text.split(". ")
        assert len(text) == JOINED_CHARS_MAX + longer
        told = [f"User's {first.removeprefix('my ')}", last]
        expected = [". ".join(told)] if joined else [told[0], f'User said: "{last}"']
        assert made(text, first, last) == expected


class TestQuoting:
    """What no rule can tell is quoted, with the question it answers."""

    @pytest.mark.parametrize(
        "words",
        [
            "it's always raining in Ghent",  # no sentence about the speaker
            "Bananas taste awful nowadays",
            "Ich wohne seit drei Jahren in Gent und arbeite dort im Hafen",  # a grammar not known here
            "you're a star, honestly",
            "he plays the clarinet in a band",  # nobody knows who
        ],
    )
    def test_as_it_was_said(self, words: str) -> None:
        result = told(Tuned(), f"{words}!", Marker(words))
        assert [(fact.text, fact.quote) for fact in result.facts] == [(f'User said: "{words}"', words)]

    @pytest.mark.parametrize(
        ("question", "answer", "mark", "fact"),
        [
            ("Do you eat meat?", "never, only fish", "only fish", 'asked "Do you eat meat?", said: "never, only fish"'),
            ("Hi! Any pets? Mine is Tom.", "Minka!", "Minka", 'asked "Any pets?", said: "Minka"'),
            ("Any pets? Which  one?", "Minka", "Minka", 'asked "Which one?", said: "Minka"'),
            ('Which of the "two"?', "the red", "the red", 'asked "Which of the \'two\'?", said: "the red"'),
        ],
    )
    def test_an_answer_stands_beside_the_last_question(self, question: str, answer: str, mark: str, fact: str) -> None:
        said = asked(question, answer)
        assert made(said, mark) == [f"User, {fact}"]
        assert facts(told(Tuned(), said[1:], Marker(mark), said[0])) == [f"User, {fact}"]

    def test_the_proof_is_the_answer_from_its_beginning(self) -> None:
        [fact] = told(Tuned(), asked("Whose is it?", "Hm, you know, Minka's. Bye"), Marker("Minka")).facts
        assert fact.span is not None
        assert (fact.span.message, fact.span.start, fact.quote) == (1, 0, "Hm, you know, Minka")

    @pytest.mark.parametrize(
        ("said", "fact"),
        [
            (asked("What is your cat called?", "my cat is called Minka"), "User's cat is called Minka"),
            (asked("Nice.", "a cat called Minka"), 'User said: "a cat called Minka"'),
            (asked("Any pets?", f"{FILLER} a cat called Minka"), 'User said: "a cat called Minka"'),
            ([Message("user", "Any pets?"), Message("user", "a cat called Minka")], 'User said: "a cat called Minka"'),
        ],
    )
    def test_no_question_where_none_is_needed_or_answered(self, said: list[Message], fact: str) -> None:
        assert made(said, "my cat is called Minka", "a cat called Minka") == [fact]

    def test_named_people_ask_each_other(self) -> None:
        said = [Message("user", "Any pets?", name="Ruta"), Message("user", "a cat called Minka", name="Piet")]
        assert made(said, "a cat called Minka") == ['Piet, asked "Any pets?", said: "a cat called Minka"']

    @pytest.mark.parametrize(("longer", "shown"), [(0, True), (1, False)])
    def test_a_long_question_is_left_out(self, longer: int, shown: bool) -> None:
        question = f"Which of the {'very ' * 28}{'x' * (6 + longer)}?"
        assert len(question) == QUESTION_CHARS_MAX + longer
        said = asked(f"Hm. {question}", "a cat called Minka")
        expected = f'User, asked "{question}", said' if shown else "User said"
        assert made(said, "a cat called Minka") == [f'{expected}: "a cat called Minka"']

    @pytest.mark.parametrize(("longer", "shown"), [(0, True), (1, False)])
    def test_an_answer_begins_early(self, longer: int, shown: bool) -> None:
        before = f"{'Well ' * 7}{'x' * (3 + longer)}. "
        assert len(before) == ANSWER_CHARS + longer
        said = asked("Any pets?", f"{before}A cat called Minka")
        whole, alone = f'User, asked "Any pets?", said: "{before}A cat', 'User said: "A cat'
        assert made(said, "A cat called Minka") == [f'{whole if shown else alone} called Minka"']

    @pytest.mark.parametrize(("longer", "kept"), [(0, True), (1, False)])
    def test_what_is_too_long_to_quote_is_not_kept(self, longer: int, kept: bool) -> None:
        words = "wind " * 39 + "x" * (5 + longer)
        assert len(words) == FACT_CHARS_MAX + longer
        result = told(Tuned(), f"{words}. I row.", Marker(words, "I row"))
        assert facts(result) == [*[f'User said: "{words}"'][: int(kept)], "User rows"]
        assert result.unsupported == ()

    def test_what_is_too_long_when_told_is_quoted(self) -> None:
        words = f"we row {'our ' * 42}cats"  # each "our" is longer as "User's"
        assert made(words, words) == [f'User said: "{words}"']

    @pytest.mark.parametrize("words", ["it is", "nice", "hm, not really", "that one"])
    def test_what_says_nothing_is_not_kept(self, words: str) -> None:
        assert made(words, words) == []


class Deaf(Marker):
    """A tagger that nobody may ask."""

    def tag(self, pairs: Sequence[tuple[str, str]]) -> list[list[TaggedWord]]:
        raise AssertionError("the tagger was asked")


class TestFingerprint:
    def test_it_names_the_tagger_and_the_rules(self) -> None:
        assert told(Tuned(), "I keep bees", Marker()).fingerprint == {
            "extract_reading": "tuned",
            "extract_tagger": "marker",
            "extract_marks": rules.load("marks").version,
            "extract_rules": rules.load("clauses").version,
        }

    def test_without_a_tagger_it_names_none(self) -> None:
        found = told(Tuned(), "I keep bees", None).fingerprint
        assert found == {"extract_reading": "tuned", "extract_rules": rules.load("clauses").version}

    @pytest.mark.parametrize("id", ["scripted", "llama:smollm2-135m-instruct", "server:able", "llama:big+other-0"])
    def test_other_models_do_not_ask_the_tagger(self, id: str) -> None:
        model = ScriptedGenerator({"print shop": ["User works at a print shop"]})
        model.id = id
        found = told(model, "I work at a print shop", Deaf())
        assert facts(found) == ["User works at a print shop"]
        assert "extract_tagger" not in found.fingerprint


class TestRemembering:
    """What a user sees of it, in a real store."""

    @pytest.fixture
    def marker(self, monkeypatch: pytest.MonkeyPatch) -> Marker:
        made = Marker("I keep bees", "my boat is called Selkie")
        monkeypatch.setattr("localmem.embed.default_tagger", lambda: made)
        return made

    def test_marked_words_become_memories_with_their_proof(self, open_memory: Opener, marker: Marker) -> None:
        marker.kinds |= dict.fromkeys(["Bananas taste awful", "Minka"], S)
        memory = open_memory(generator=Tuned())
        text = f"Minka! {FILLER} I keep bees. {FILLER} And my boat is called Selkie! I have goats. Bananas taste awful."
        memory.add(talk(("assistant", "What is your cat called?"), ("user", text)), **ANN)
        stored = memory.get_all(**ANN)["results"]
        assert [one["memory"] for one in stored] == [
            'User, asked "What is your cat called?", said: "Minka"',
            "User keeps bees",
            "User's boat is called Selkie",
            'User said: "Bananas taste awful"',
        ]
        proofs = [memory.history(one["id"])[0]["evidence"][0] for one in stored]
        quoted = ["Minka", "I keep bees", "my boat is called Selkie", "Bananas taste awful"]
        assert [proof["quote"] for proof in proofs] == quoted
        assert [text[proof["start"] : proof["end"]] for proof in proofs] == quoted
        assert {one["fingerprint"]["extract_tagger"] for one in memory.decisions(**ANN)} == {"marker"}
        assert marker.pairs[0][0] == "assistant: What is your cat called? user:"

    def test_a_question_of_an_earlier_add_is_told_too(self, open_memory: Opener, marker: Marker) -> None:
        marker.kinds["Minka"] = S
        memory = open_memory(generator=Tuned())
        memory.add(talk(("user", "hi"), ("assistant", "What is your cat called?")), **ANN)
        memory.add("Minka", **ANN)
        assert texts(memory.get_all(**ANN)) == ['User, asked "What is your cat called?", said: "Minka"']

    def test_dates_are_those_of_the_day_it_was_said(self, open_memory: Opener, marker: Marker) -> None:
        marker.kinds |= dict.fromkeys(["we leave tomorrow", "the ice melts by Friday"], E)
        memory = open_memory(generator=Tuned())
        memory.add("we leave tomorrow. the ice melts by Friday!", timestamp="2025-01-30", **ANN)
        assert texts(memory.get_all(**ANN))[0] == "User leaves on 2025-01-31"
        assert texts(memory.get_all(**ANN))[1] == 'User said: "the ice melts by Friday" (said 2025-01-30)'

    def test_what_is_not_marked_is_still_found_as_it_was_said(self, open_memory: Opener, marker: Marker) -> None:
        memory = open_memory(generator=Tuned())
        assert memory.add("I have goats", **ANN)["results"] == []
        assert (texts(memory.get_all(**ANN)), memory.pending()) == ([], [])
        assert "I have goats" in texts(memory.search("goats", include="all", **ANN))

    def test_of_many_marks_the_first_are_kept(self, open_memory: Opener, marker: Marker) -> None:
        marker.kinds |= dict.fromkeys(["it is", "I row"], S)
        memory = open_memory(generator=Tuned(), limits=Limits(facts_per_episode_max=2))
        memory.add("it is, yes! I keep bees. my boat is called Selkie. I row.", **ANN)
        assert texts(memory.get_all(**ANN)) == ["User keeps bees", "User's boat is called Selkie"]

    def test_a_model_that_fails_half_way_leaves_all_for_resume(self, open_memory: Opener, marker: Marker) -> None:
        model = Tuned()
        memory = open_memory(generator=model)
        memory.add("I keep bees", **ANN)
        marker.kinds["I keep bees in Riga"] = S
        model.failing = {"stance"}
        with pytest.raises(GeneratorError):
            memory.add("my boat is called Selkie, and I keep bees in Riga", **ANN)
        assert (texts(memory.get_all(**ANN)), len(memory.pending())) == (["User keeps bees"], 1)
        model.failing = set()
        memory.resume()
        assert texts(memory.get_all(**ANN)) == [
            "User keeps bees",
            "User's boat is called Selkie",
            "User keeps bees in Riga",
        ]
        assert memory.pending() == []

    def test_a_tagger_that_fails_leaves_all_for_resume(
        self, open_memory: Opener, marker: Marker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = open_memory(generator=Tuned())
        with monkeypatch.context() as patched:
            patched.setattr(marker, "_tagged", lambda text: 1 / 0)
            with pytest.raises(GeneratorError, match=r"ZeroDivisionError.*resume"):
                memory.add("I keep bees", **ANN)
        assert (texts(memory.get_all(**ANN)), len(memory.pending())) == ([], 1)
        memory.resume()
        assert (texts(memory.get_all(**ANN)), memory.pending()) == (["User keeps bees"], [])


# -------------------------------------------------------------------- what needs no tagger


class Silent:
    """A tagger that marks nothing."""

    id = "silent"

    def tag(self, pairs: Sequence[tuple[str, str]]) -> list[list[TaggedWord]]:
        return [[] for _ in pairs]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("My name is John and I live in Berlin.", ["My name is John", "I live in Berlin"]),
        ("Hi, my name is Ann!", ["my name is Ann"]),
        ("Hello there. I'm allergic to nuts, so no cake.", ["I'm allergic to nuts"]),
        ("Is my name is John a sentence?", []),
        ("If my name is John, why do they call me Jack.", []),
        ('My favourite character says "my name is Inigo".', []),
        ("He thinks my name is John.", []),
    ],
)
def test_plain_statements_about_oneself_are_marked_anyway(text: str, wanted: list[str]) -> None:
    found = marks.marked(Silent(), [Message("user", text)], None)
    assert [text[mark.span.start : mark.span.end] for mark in found] == wanted
    assert marks.marked(Silent(), [Message("assistant", text)], None) == []
