"""The prompt files that are shipped: they parse, fit their budget, and their grammars accept their own examples."""

from __future__ import annotations

import pytest

from localmem import gbnf, prompts
from localmem.types import Relation

# four characters a token is a careful estimate for English in the models' tokenizers
BUDGETS = {"extract": 900, "relation": 500, "restate": 200, "merge": 250}
VALUES = {
    "extract": {"context": "", "messages": "user: hello"},
    "relation": {"known": "User has a dog", "new": "User has a cat"},
    "restate": {"clause": "I have a dog"},
    "merge": {"known": "User has a dog", "new": "User's dog is old"},
}


@pytest.mark.parametrize("name", BUDGETS)
def test_within_the_budget(name: str) -> None:
    prompt = prompts.render(name, **VALUES[name])
    assert sum(len(content) // 4 + 4 for _, content in prompt.turns) <= BUDGETS[name]


@pytest.mark.parametrize("name", ["extract", "merge"])
def test_the_grammar_accepts_the_examples(name: str) -> None:
    grammar = gbnf.parse(prompts.grammar(name, subjects=["User", "Assistant", "Ruta", "Piet"]))
    for _, reply in prompts.load(name).examples:
        assert grammar.matches(reply), reply


@pytest.mark.parametrize("bad", ["User has a dog", "- I have a dog", "- User has a dog\nmore", "NONE at all", ""])
def test_the_grammar_refuses_other_replies(bad: str) -> None:
    assert not gbnf.parse(prompts.grammar("extract", subjects=["User"])).matches(bad)


def test_relation_labels_are_all_relations_and_single_letters() -> None:
    labels = prompts.load("relation").labels
    assert set(labels) == {relation.value for relation in Relation}
    assert all(len(symbol) == 1 and symbol.isascii() for symbol in labels.values())
    assert {reply for _, reply in prompts.load("relation").examples} <= set(labels.values())
