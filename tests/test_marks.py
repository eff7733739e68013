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
from test_tuned import ANN, FILLER, Tuned, marked_in, talk

from localmem import artifacts, dates, marks, prompts, rules
from localmem.config import Limits
from localmem.errors import GeneratorError
from localmem.extract import ExtractContext, Extraction, extract
from localmem.marks import Mark, Stretch
from localmem.testing import ScriptedGenerator
from localmem.types import TAGGED_KINDS, Actor, Kind, Message, Prompt, TaggedWord, Tagger

AT = dates.parse_instant("2025-03-05T09:00:00Z")
S, E, P = TAGGED_KINDS
HARD_CUT = 480  # characters read at once
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


class TestFacts:
    """Marks to facts, by a tuned model."""

    def test_a_fact_proves_itself_by_the_marked_words_in_the_order_said(self) -> None:
        said = [
            Message("user", "Hi! We moved to Ghent last week, and I keep bees (two hives). Never call me Bob!"),
            Message("assistant", "How nice! I keep bees too."),
            Message("user", "🎻 my wife Ines teaches maths, by the way"),
        ]
        kinds = {"I keep bees": S, "We moved to Ghent last week": E, "Never call me Bob": P, "my wife Ines teaches": S}
        replies = {
            "Ines": "- User's wife Ines teaches maths",
            "Bob": "! User never wants to be called Bob",
            "bees": "- User keeps bees",
            "Ghent": "@ User moved to Ghent last week",
        }
        model = Tuned(replies)
        result = told(model, said, Marker(kinds=kinds))
        assert [(fact.text, fact.kind, fact.quote) for fact in result.facts] == [
            ("User moved to Ghent in the week of 2025-02-24", E, "We moved to Ghent last week"),
            ("User keeps bees", S, "I keep bees"),
            ("User never wants to be called Bob", P, "Never call me Bob"),
            ("User's wife Ines teaches maths", S, "my wife Ines teaches"),
        ]
        assert result.unsupported == ()
        for fact in result.facts:
            assert fact.span is not None
            assert said[fact.span.message].content[fact.span.start : fact.span.end] == fact.quote
            assert (fact.actor, fact.event_at) == (Actor.USER, AT)

    def test_the_model_is_asked_once_for_each_mark_and_for_nothing_else(self) -> None:
        model, marker = Tuned(), Marker("I keep bees", "I row")
        told(model, f"{FILLER} I keep bees. {FILLER} I row.", marker)
        assert [marked_in(text) for text in model.asked("fact")] == ["user: I keep bees", "user: I row"]
        idle = Tuned({"": "- User likes tea"})
        assert told(idle, f"{FILLER} what is the capital of Peru?", marker).facts == ()
        assert idle.shown == []

    def test_the_tagger_reads_what_was_said_before(self) -> None:
        marker = Marker()
        told(Tuned(), "the second one", marker, Message("assistant", "Which boat?"), Message("user", "older"))
        assert marker.pairs == [("assistant: Which boat? user:", "the second one")]

    def test_none_is_nothing(self) -> None:
        result = told(Tuned({"goats": "- User keeps goats"}), "I keep bees and I keep goats", Marker("I keep bees"))
        assert (result.facts, result.unsupported) == ((), ())

    def test_the_same_fact_twice_is_one(self) -> None:
        marker = Marker("I keep bees", "bees are mine")
        result = told(Tuned({"bees": "- User keeps bees"}), "I keep bees. The bees are mine.", marker)
        assert [(fact.text, fact.quote) for fact in result.facts] == [("User keeps bees", "I keep bees")]

    @pytest.mark.parametrize(
        "draft",
        [
            "User teaches maths at Hogwarts",
            "User teaches maths 12 hours a week at the harbour school",
            "User no longer teaches maths at the harbour school",
            "User adores skiing down icy volcano slopes",
            "Assistant teaches maths at the harbour school",
        ],
    )
    def test_a_draft_that_strays_gives_way_to_the_words_as_they_stand(self, draft: str) -> None:
        words = "I teach maths at the harbour school"
        result = told(Tuned({"maths": f"@ {draft}"}), f"Well, {words}, oddly.", Marker(kinds={words: P}))
        assert [(fact.text, fact.quote, fact.kind) for fact in result.facts] == [
            ("User teaches maths at the harbour school", words, P)
        ]
        assert result.unsupported == ()

    @pytest.mark.parametrize(
        "said",
        [
            "it's always raining in Ghent",  # no sentence about the speaker
            "Bananas taste awful nowadays",  # the speaker says so, no more
            "Ich wohne seit drei Jahren in Gent und arbeite dort im Hafen",  # a grammar not known here
        ],
    )
    def test_a_draft_that_strays_is_refused_where_the_words_can_not_stand(self, said: str) -> None:
        result = told(Tuned({said[:10]: "- User lives in Narnia"}), said, Marker(said))
        assert result.facts == ()
        [(fact, guards)] = result.unsupported
        assert (fact.text, fact.quote) == ("User lives in Narnia", said)
        assert "name" in guards

    def test_dates_of_words_as_they_stand_are_absolute(self) -> None:
        words = "I ran a marathon yesterday"
        result = told(Tuned({"marathon": "@ User ran to Narnia"}), words, Marker(kinds={words: E}))
        assert facts(result) == ["User ran a marathon on 2025-03-04"]

    def test_named_people_tell_of_themselves(self) -> None:
        said = [Message("user", "I sing", name="Ruta"), Message("assistant", "and I play the cello", name="Piet")]
        model = Tuned({"sing": "- Ruta sings", "cello": "- Piet plays the cello in Narnia"})
        result = told(model, said, Marker("I sing", "I play the cello"))
        assert facts(result) == ["Ruta sings", "Piet plays the cello"]
        assert {fact.actor for fact in result.facts} == {Actor.USER}

    def test_assistants_tools_and_documents_say_nothing_of_the_user(self) -> None:
        roles = ("system", "assistant", "tool", "document")
        said = [Message(role, "I keep bees") for role in roles]
        model, marker = Tuned({"bees": "- User keeps bees"}), Marker("I keep bees")
        assert told(model, said, marker).facts == ()
        assert (marker.pairs, model.shown) == ([], [])

    @pytest.mark.parametrize("text", ODD)
    def test_odd_texts_ask_nothing(self, text: str) -> None:
        model = Tuned({"": "- User likes tea"})
        assert (told(model, text, Marker("x")).facts, told(model, text, None).facts) == ((), ())
        assert model.shown == []

    def test_a_model_that_fails_at_the_second_mark_says_so(self) -> None:
        with pytest.raises(GeneratorError):
            told(Breaking({"bees": "- User keeps bees"}), "I keep bees. I row.", Marker("I keep bees", "I row"))


class Breaking(Tuned):
    """Fails at every second mark, until it is mended."""

    mended = False

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        told = super().generate(prompt, grammar=grammar, tokens_max=tokens_max)
        if not self.mended and len(self.asked("fact")) % 2 == 0:
            raise GeneratorError("the double was told to fail")
        return told


class Deaf(Marker):
    """A tagger that nobody may ask."""

    def tag(self, pairs: Sequence[tuple[str, str]]) -> list[list[TaggedWord]]:
        raise AssertionError("the tagger was asked")


class TestFingerprint:
    def test_it_names_the_tagger_and_the_prompt(self) -> None:
        found = told(Tuned(), "I keep bees", Marker()).fingerprint
        assert found["extract_tagger"] == "marker"
        assert found["extract_prompt"] == prompts.load("fact").version
        assert (found["extract_reading"], "extract_rules" in found) == ("tuned", True)

    def test_without_a_tagger_it_names_none(self) -> None:
        assert "extract_tagger" not in told(Tuned(), "I keep bees", None).fingerprint

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
        replies = {"bees": "- User keeps bees", "Selkie": "- User's boat is called Argo", "goats": "- User has goats"}
        memory = open_memory(generator=Tuned(replies))
        text = f"{FILLER} I keep bees. {FILLER} And my boat is called Selkie! I have goats."
        memory.add(talk(("assistant", "Tell me!"), ("user", text)), **ANN)
        stored = memory.get_all(**ANN)["results"]
        assert [one["memory"] for one in stored] == ["User keeps bees", "User's boat is called Selkie"]
        proofs = [memory.history(one["id"])[0]["evidence"][0] for one in stored]
        assert [proof["quote"] for proof in proofs] == ["I keep bees", "my boat is called Selkie"]
        assert [text[proof["start"] : proof["end"]] for proof in proofs] == [proof["quote"] for proof in proofs]
        assert {one["fingerprint"]["extract_tagger"] for one in memory.decisions(**ANN)} == {"marker"}
        assert marker.pairs[0][0] == "assistant: Tell me! user:"

    def test_what_is_not_marked_is_still_found_as_it_was_said(self, open_memory: Opener, marker: Marker) -> None:
        memory = open_memory(generator=Tuned({"goats": "- User has goats"}))
        assert memory.add("I have goats", **ANN)["results"] == []
        assert (texts(memory.get_all(**ANN)), memory.pending()) == ([], [])
        assert "I have goats" in texts(memory.search("goats", include="all", **ANN))

    def test_a_model_that_fails_half_way_leaves_all_for_resume(self, open_memory: Opener, marker: Marker) -> None:
        model = Breaking({"bees": "- User keeps bees", "Selkie": "- User's boat is called Selkie"})
        memory = open_memory(generator=model)
        with pytest.raises(GeneratorError):
            memory.add("I keep bees, and my boat is called Selkie", **ANN)
        assert (texts(memory.get_all(**ANN)), len(memory.pending())) == ([], 1)
        model.mended = True
        memory.resume()
        assert texts(memory.get_all(**ANN)) == ["User keeps bees", "User's boat is called Selkie"]
        assert memory.pending() == []
