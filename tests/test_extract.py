"""Extraction: what reaches the model, what comes out of its reply, and the clause-by-clause reading of small models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pytest

from localmem import clauses, dates
from localmem.config import Limits
from localmem.extract import FACT_CHARS_MAX, ExtractContext, Extraction, extract, kind_of, reading_of
from localmem.testing import ScriptedGenerator
from localmem.types import Actor, Kind, Message, Prompt

AT = dates.parse_instant("2025-03-05T09:00:00Z")  # a Wednesday


class Recorder(ScriptedGenerator):
    """Answers every part with the same lines and keeps what it was shown."""

    def __init__(self, *lines: str, id: str = "scripted") -> None:
        super().__init__()
        self.id = id
        self.lines = lines
        self.shown: list[str] = []
        self.grammars: list[str] = []

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        self.shown.append(prompt.turns[-1][1])
        self.grammars.append(grammar)
        return "\n".join(f"- {line}" for line in self.lines) or "NONE"


def said(*texts: str, reply: str | None = None) -> list[Message]:
    """Messages of the user, and the assistant's reply if there is one."""
    return [Message("user", text) for text in texts] + ([Message("assistant", reply)] if reply else [])


def read(
    generator: ScriptedGenerator,
    messages: Sequence[Message],
    context: ExtractContext | None = None,
    limits: Limits | None = None,
) -> Extraction:
    return extract(generator, messages, context=context or ExtractContext(), event_at=AT, limits=limits or Limits())


def texts(result: Extraction) -> list[str]:
    return [fact.text for fact in result.facts]


class TestFacts:
    def test_a_fact_carries_the_exact_words_that_prove_it(self) -> None:
        messages = said("hi there", "we moved to Ghent, and I work at the harbour office", reply="How nice!")
        fact = read(Recorder("User works at the harbour office"), messages).facts[0]
        assert fact.span is not None
        assert messages[fact.span.message].content[fact.span.start : fact.span.end] == fact.quote
        assert "harbour office" in fact.quote
        assert (fact.actor, fact.event_at) == (Actor.USER, AT)

    def test_nothing_to_keep(self) -> None:
        assert read(Recorder(), said("what is the capital of Peru?")).facts == ()

    def test_no_messages_ask_nothing(self) -> None:
        generator = Recorder("User is called Ada")
        assert read(generator, [Message("system", "You are helpful"), Message("user", "  ")]).facts == ()
        assert generator.shown == []

    def test_relative_dates_become_absolute(self) -> None:
        result = read(Recorder("User ran a marathon yesterday"), said("I ran a marathon yesterday"))
        assert texts(result) == ["User ran a marathon on 2025-03-04"]
        assert result.facts[0].kind is Kind.EPISODIC

    def test_the_same_line_twice_is_one_fact(self) -> None:
        result = read(Recorder("User likes tea", "User likes tea.", "user likes  tea"), said("I like tea"))
        assert texts(result) == ["User likes tea"]

    def test_endings_and_blanks_are_tidied(self) -> None:
        assert texts(read(Recorder("User  likes   green tea ..."), said("I like green tea"))) == [
            "User likes green tea"
        ]

    def test_an_endless_fact_is_cut_between_words(self) -> None:
        words = "tea " * 200
        result = read(Recorder("User likes " + words), said("I like " + words))
        assert all(len(text) <= FACT_CHARS_MAX and text.endswith("tea") for text in texts(result))

    def test_an_invented_fact_is_kept_apart(self) -> None:
        result = read(Recorder("User has a dog called Bruno"), said("my cat is called Minka"))
        assert result.facts == ()
        [(fact, guards)] = result.unsupported
        assert fact.text == "User has a dog called Bruno"
        assert guards

    def test_a_fact_of_the_context_alone_is_dropped(self) -> None:
        context = ExtractContext(summary=("User plays the cello",))
        result = read(Recorder("User plays the cello"), said("thanks, that helps"), context)
        assert (result.facts, result.unsupported) == ((), ())

    def test_a_confirmed_question_is_a_fact(self) -> None:
        context = ExtractContext(recent=(Message("assistant", "Is Ludmila your sister?"),))
        fact = read(Recorder("User's sister is called Ludmila"), said("yes, exactly"), context).facts[0]
        assert fact.quote.startswith("yes")
        assert fact.actor is Actor.USER

    def test_what_only_the_assistant_said_is_no_fact_about_the_user(self) -> None:
        messages = said("any idea for dinner?", reply="You could cook lentil soup with cumin.")
        result = read(Recorder("User cooks lentil soup with cumin"), messages)
        assert result.facts == ()
        assert result.unsupported[0][1] == ("assistant_only",)

    def test_a_promise_of_the_assistant_is_the_assistants(self) -> None:
        messages = said("when was the bin day again", reply="Thursday. I'll remind you every Wednesday evening.")
        result = read(Recorder("Assistant will remind User every Wednesday evening"), messages)
        assert [fact.actor for fact in result.facts] == [Actor.ASSISTANT]

    def test_fingerprint_names_prompt_rules_and_reading(self) -> None:
        given: Mapping[str, str] = read(Recorder(), said("hello")).fingerprint
        assert given["extract_reading"] == "whole"
        assert re.fullmatch("[0-9a-f]{12}", given["extract_prompt"])

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("User lives in Ghent", Kind.SEMANTIC),
            ("User flies to Oslo on 2025-04-01", Kind.EPISODIC),
            ("User starts a new job in April 2025", Kind.EPISODIC),
            ("User wants the assistant to answer in French", Kind.PROCEDURAL),
            ("User wants short answers", Kind.PROCEDURAL),
            ("User wants a piano", Kind.SEMANTIC),
        ],
    )
    def test_kind(self, text: str, kind: Kind) -> None:
        assert kind_of(text) is kind


class TestWhatIsShown:
    def test_what_one_of_two_people_says_of_themselves_is_about_them(self) -> None:
        talk = [
            Message("user", "did you hear from the shelter?", "Ines"),
            Message("assistant", "I adopted a greyhound called Pim there", "Olof"),
        ]
        result = read(Recorder("Ines adopted a greyhound called Pim"), talk)
        assert texts(result) == ["Olof adopted a greyhound called Pim"]
        assert result.facts[0].actor is Actor.USER  # a person, though the role is the assistant's

    def test_what_one_of_two_people_says_of_the_other_stays_so(self) -> None:
        talk = [
            Message("user", "I heard you adopted a greyhound, Olof!", "Ines"),
            Message("assistant", "true", "Olof"),
        ]
        assert texts(read(Recorder("Olof adopted a greyhound"), talk)) == ["Olof adopted a greyhound"]

    def test_grammar_offers_the_named_people(self) -> None:
        generator = Recorder()
        read(generator, [Message("user", "I got the job", "Ruta"), Message("user", 'well done, "boss"', 'Piet "P"')])
        assert '"Ruta"' in generator.grammars[0]
        assert r'"Piet \"P\""' in generator.grammars[0]
        assert '"User"' not in generator.grammars[0]
        assert "Ruta: I got the job" in generator.shown[0]

    def test_context_is_within_its_budget_newest_first(self) -> None:
        generator = Recorder()
        recent = [Message("user", f"message {i} " + "word " * 40) for i in range(20)]
        context = ExtractContext(summary=("User has a boat",), recent=tuple(recent))
        read(generator, said("hello"), context, Limits(context_tokens=120))
        shown = generator.shown[0]
        assert "message 0" in shown
        assert "message 9" not in shown
        assert generator.count_tokens(shown.partition("New:")[0]) < 150

    def test_assistant_turns_are_cut_in_the_context(self) -> None:
        generator = Recorder()
        context = ExtractContext(recent=(Message("assistant", "blah " * 400), Message("user", "my lovely boat")))
        read(generator, said("hello"), context)
        assert generator.shown[0].count("blah") < 80
        assert "my lovely boat" in generator.shown[0]

    def test_system_messages_are_not_read_and_documents_are_quoted(self) -> None:
        generator = Recorder()
        read(
            generator,
            [Message("system", "be kind"), Message("document", "line one\nline two"), Message("user", "see?")],
        )
        assert "be kind" not in generator.shown[0]
        assert "document: > line one\n> line two" in generator.shown[0]

    def test_a_long_message_is_read_in_parts_and_spans_stay_right(self) -> None:
        sentences = [f"This is the filler sentence number {i} about nothing much." for i in range(120)]
        text = " ".join([*sentences, "I keep bees in Lugano.", *sentences])
        generator = Recorder("User keeps bees in Lugano")
        result = read(generator, said("hello", text), limits=Limits(part_tokens_max=300))
        assert len(generator.shown) > 4
        assert all(generator.count_tokens(shown) < 400 for shown in generator.shown)
        [fact] = result.facts
        assert fact.span is not None
        assert fact.span.message == 1
        assert text[fact.span.start : fact.span.end] == fact.quote
        assert "bees in Lugano" in fact.quote

    def test_a_word_longer_than_a_part_is_read_too(self) -> None:
        generator = Recorder()
        read(generator, said("x" * 5000), limits=Limits(part_tokens_max=100))
        assert sum(shown.count("x") for shown in generator.shown) == 5000


SMALL = "llama:SmolLM2-135M-Instruct.Q4_0"


class TestClauseByClause:
    def test_which_models_are_led(self) -> None:
        assert reading_of(SMALL) == "clauses"
        assert reading_of(SMALL + "+localmem-1") == "tuned"
        assert reading_of(SMALL + "+other") == "whole"
        assert reading_of("llama:Qwen2.5-7B-Instruct-Q4_K_M") == "whole"
        assert reading_of("scripted") == "whole"

    def test_only_words_of_the_person_are_used(self) -> None:
        generator = Recorder(id=SMALL)
        messages = said("I work as a welder in Turku. My sister Aino lives next door!", reply="Noted.")
        result = read(generator, messages)
        assert texts(result) == ["User works as a welder in Turku", "User's sister Aino lives next door"]
        assert [fact.quote for fact in result.facts] == [
            "I work as a welder in Turku",
            "My sister Aino lives next door",
        ]
        assert generator.shown == []  # nothing to choose, nothing to ask

    def test_small_talk_gives_nothing(self) -> None:
        messages = said(
            "thanks, that was great!", "can you write a haiku about frogs?", reply="Old pond, a frog jumps in."
        )
        assert read(Recorder(id=SMALL), messages).facts == ()

    def test_the_model_chooses_where_grammar_allows_two(self) -> None:
        class Second(Recorder):
            def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
                self.grammars.append(grammar)
                return "User had moved to Turku in May 2019 for the shipyard"

        generator = Second(id=SMALL)
        result = read(generator, said("I'd moved to Turku in May 2019 for the shipyard", reply="Noted."))
        assert texts(result) == ["User had moved to Turku in May 2019 for the shipyard"]
        assert '("would" | "had")' in generator.grammars[0]


class TestClauses:
    def test_positions_are_those_of_the_text(self) -> None:
        text = "Oh hi! Well, I live in St. Gallen; my dog's 3. And you?\n- so I quit, and we moved"
        found = clauses.clauses(text)
        assert all(text[clause.start : clause.end] == clause.text for clause in found)
        assert [c.text for c in found if not c.question] == ["I live in St. Gallen", "my dog's 3", "I quit", "we moved"]

    @pytest.mark.parametrize("text", ["", "   ", "?!…", "😀😀", "\n\n", "a", "((((", "I", "my", "'"])
    def test_odd_texts(self, text: str) -> None:
        for clause in clauses.clauses(text):
            assert text[clause.start : clause.end] == clause.text
        clauses.worth_keeping(text, before=None, after=None)
