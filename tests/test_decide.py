"""Decisions: the rules around the model's judgement, with a model that says what the test wants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from localmem import artifacts, prompts, relate, rules
from localmem.config import Limits
from localmem.decide import Policy, chances, decide, decide_all, label_odds, policy_for, same_words
from localmem.extract import ExtractContext, extract
from localmem.llm import LlamaGenerator
from localmem.testing import ScriptedGenerator
from localmem.types import Actor, Decision, Fact, Message, Neighbour, Op, Prompt, Relation


def neighbour(text: str, cosine: float = 0.7, **fields: object) -> Neighbour:
    return replace(Neighbour(id=text, version=1, text=text, cosine=cosine, event_at=0), **fields)  # type: ignore[arg-type]


def saying(*relations: Relation, sure: float = 12.0, merged: str = "NONE") -> ScriptedGenerator:
    """A model that gives these relations, one for each pair it is asked about, the last one from then on."""
    symbols = prompts.load("relation").labels
    left = list(relations)

    def labels(prompt: Prompt, asked: Sequence[str]) -> Sequence[float]:
        relation = left.pop(0) if len(left) > 1 else left[0]
        return [0.0 if symbol == symbols[relation] else -sure for symbol in asked]

    class Merging(ScriptedGenerator):
        def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
            self.calls.append(("generate", prompt.name))
            return merged

    return Merging(labels=labels)


def decided(relation: Relation, fact: str, *known: str, **fields: object) -> Decision:
    return decide(saying(relation), Fact(fact, **fields), [neighbour(text) for text in known])  # type: ignore[arg-type]


class TestDuplicates:
    @pytest.mark.parametrize("other", ["user lives in  Ghent.", "User lives in Ghent", "User Lives in Ghent!"])
    def test_the_same_words_need_no_model(self, other: str) -> None:
        generator = saying(Relation.CHANGES)
        decision = decide(
            generator, Fact("User lives in Ghent"), [neighbour("User has a boat"), neighbour(other, 0.99)]
        )
        assert (decision.op, decision.targets[0].text) == (Op.NOOP, other)
        assert decision.guards == ("exact_duplicate",)
        assert generator.calls == []

    def test_unicode_forms_are_one(self) -> None:
        assert same_words("User likes caf\u00e9", "User likes cafe\u0301")
        assert not same_words("User likes tea", "User likes tee")


class TestOperations:
    def test_nothing_near_is_added(self) -> None:
        decision = decide(saying(Relation.CHANGES), Fact("User has a boat"), [neighbour("User is deaf", 0.05)])
        assert (decision.op, decision.targets, decision.confidence) == (Op.ADD, (), 1.0)

    def test_coexisting_is_added(self) -> None:
        assert decided(Relation.COEXISTS, "User has a parrot", "User has a dog").op is Op.ADD

    def test_same_is_a_noop_with_its_target(self) -> None:
        decision = decided(Relation.SAME, "User has a pet dog", "User has a dog called Bruno")
        assert (decision.op, decision.targets[0].text) == (Op.NOOP, "User has a dog called Bruno")

    def test_changes_update_with_the_new_wording(self) -> None:
        decision = decided(Relation.CHANGES, "User lives in Linz now", "User lives in Graz")
        assert (decision.op, decision.text) == (Op.UPDATE, "User lives in Linz now")
        assert decision.targets[0].text == "User lives in Graz"

    def test_retracts_delete_every_target(self) -> None:
        known = ("User skis every winter", "User owns red skis")
        decision = decided(Relation.RETRACTS, "User sold the skis and gave up skiing", *known)
        assert decision.op is Op.DELETE
        assert {target.text for target in decision.targets} == set(known)

    def test_a_retraction_that_names_the_new_state_is_an_update(self) -> None:
        fact = "User no longer drives a Golf, now drives a Polo"
        decision = decided(Relation.RETRACTS, fact, "User drives a Golf")
        assert (decision.op, decision.text) == (Op.UPDATE, fact)

    def test_an_ending_of_what_is_not_known_is_new(self) -> None:
        decision = decided(Relation.UNRELATED, "User no longer has a car", "User has a carpet")
        assert (decision.op, decision.targets, decision.ends) == (Op.ADD, (), "User has a car")

    def test_the_log_has_what_was_weighed(self) -> None:
        decision = decided(Relation.CHANGES, "User lives in Linz now", "User lives in Graz")
        assert math.isclose(sum(decision.probabilities.values()), 1.0)
        assert decision.probabilities["changes"] > 0.9
        assert [other.text for other in decision.neighbours] == ["User lives in Graz"]

    def test_what_one_fact_updates_another_does_not_delete(self) -> None:
        shop, bag = neighbour("User works at a print shop"), neighbour("User has a print shop's bag")
        facts = [Fact("User works at the library"), Fact("User no longer works at the print shop")]
        for order in (facts, facts[::-1]):
            model = saying(*(Relation.CHANGES if "library" in fact.text else Relation.RETRACTS for fact in order))
            found = {d.fact.text: d for d in decide_all(model, order, [[shop], [shop]])}
            assert found[facts[0].text].op is Op.UPDATE
            assert (found[facts[1].text].op, found[facts[1].text].targets) == (Op.NOOP, ())
            assert found[facts[1].text].ends is None  # nothing is left behind for what comes later
        both = decide_all(saying(Relation.CHANGES, Relation.RETRACTS), facts, [[shop], [shop, bag]])
        assert [(d.op, [t.text for t in d.targets]) for d in both] == [
            (Op.UPDATE, [shop.text]),
            (Op.DELETE, [bag.text]),
        ]

    def test_several_facts_each_with_its_own_neighbours(self) -> None:
        generator = saying(Relation.SAME, Relation.CHANGES)
        facts = [Fact("User has a pet dog"), Fact("User lives in Linz now"), Fact("User is tall")]
        near = [[neighbour("User has a dog")], [neighbour("User lives in Graz")], []]
        assert [d.op for d in decide_all(generator, facts, near)] == [Op.NOOP, Op.UPDATE, Op.ADD]

    def test_without_a_model_the_signals_decide(self) -> None:
        known = [neighbour("User lives in Graz", 0.75), neighbour("User's sister is a baker", 0.2)]
        assert decide(None, Fact("User has no siblings"), []).op is Op.ADD
        assert decide(None, Fact("User lives in Graz."), known).op is Op.NOOP


class TestRefining:
    def test_a_fact_with_all_old_details_replaces(self) -> None:
        decision = decided(Relation.REFINES, "User plays the cello in the town orchestra", "User plays the cello")
        assert (decision.op, decision.text) == (Op.UPDATE, "User plays the cello in the town orchestra")

    def test_a_merged_wording_that_keeps_everything_is_used(self) -> None:
        generator = saying(Relation.REFINES, merged="User has a dog called Bruno, nine years old")
        known = neighbour("User has a dog called Bruno")
        decision = decide(generator, Fact("User's dog is nine years old"), [known])
        assert (decision.op, decision.text) == (Op.UPDATE, "User has a dog called Bruno, nine years old")
        assert "merged" in decision.guards

    @pytest.mark.parametrize("merged", ["User has a dog", "User has a dog called Rex, nine years old", "NONE"])
    def test_a_merged_wording_that_loses_or_invents_is_not(self, merged: str) -> None:
        generator = saying(Relation.REFINES, merged=merged)
        known = neighbour("User has a dog called Bruno")
        decision = decide(generator, Fact("User's dog is nine years old"), [known])
        assert (decision.op, decision.guards) == (Op.ADD, ("not_merged",))


class TestDoubt:
    def test_a_change_in_doubt_is_added_and_both_are_contested(self) -> None:
        policy = replace(policy_for("scripted"), accept=dict.fromkeys(("same", "changes", "retracts"), 1.1))
        known = neighbour("User lives in Graz")
        decision = decide(saying(Relation.CHANGES), Fact("User lives in Linz now"), [known], policy=policy)
        assert (decision.op, decision.contested, decision.guards) == (Op.ADD, (known,), ("doubt",))

    @pytest.mark.parametrize(("cosine", "op"), [(0.95, Op.NOOP), (0.7, Op.ADD)])
    def test_a_noop_in_doubt_goes_by_the_cosine(self, cosine: float, op: Op) -> None:
        policy = replace(policy_for("scripted"), accept=dict.fromkeys(("same", "changes", "retracts"), 1.1))
        known = neighbour("User has a dog", cosine)
        assert decide(saying(Relation.SAME), Fact("User has a pet dog"), [known], policy=policy).op is op

    def test_the_assistant_does_not_overrule_the_user(self) -> None:
        decision = decided(Relation.CHANGES, "User lives in Linz now", "User lives in Graz", actor=Actor.ASSISTANT)
        assert decision.op is Op.ADD
        assert decision.contested[0].text == "User lives in Graz"

    @pytest.mark.parametrize("relation", [Relation.CHANGES, Relation.RETRACTS])
    def test_a_memory_of_a_wider_scope_stays(self, relation: Relation) -> None:
        known = neighbour("User lives in Graz")
        fact = Fact("User lives in Linz now")
        decision = decide(saying(relation), fact, [known], changeable=lambda other: False)
        assert (decision.op, decision.targets, decision.contested) == (Op.ADD, (), ())

    def test_a_known_fact_of_a_wider_scope_is_still_known(self) -> None:
        known = neighbour("User has a dog called Bruno")
        decision = decide(saying(Relation.SAME), Fact("User has a pet dog"), [known], changeable=lambda other: False)
        assert decision.op is Op.NOOP


class TestPolicy:
    def test_every_model_has_one(self) -> None:
        for name in (None, "scripted", "llama:SmolLM2-135M-Instruct.Q4_0", "server:qwen"):
            policy = policy_for(name)
            assert set(policy.accept) == set(policy.doubt) == set(policy.label_weights) == set(policy.weights)
            assert all(policy.doubt[c] <= policy.accept[c] for c in policy.accept)

    def test_each_embedder_that_comes_with_localmem_has_its_own(self) -> None:
        embedders = [entry.name for entry in artifacts.manifest().embedders]
        assert [rules.load(name).table["embedder"] for name in ("decide", "decide_original")] == embedders
        own = [policy_for(None, None, name).weights for name in embedders]
        assert own[0] != own[1]
        assert policy_for(None, None, "another").weights == policy_for(None).weights == own[0]

    def test_every_weight_has_its_signal(self) -> None:
        seen = relate.signals("User lives in Linz now", "User lives in Graz", 0.7, [0.7, 0.2])
        for weights in policy_for(None).weights.values():
            assert set(weights) == set(seen) - {"crowd"}  # each model has its own weight of that

    def test_among_many_alike_a_change_is_less_likely(self) -> None:
        policy = policy_for("llama:smollm2+localmem-smollm2-135m")
        fact, known = "User's draft has 4,200 words", "User's draft has 3,000 words"
        alone = chances(relate.signals(fact, known, 0.7, [0.7, 0.2]), label_odds({}), policy)
        crowded = chances(relate.signals(fact, known, 0.7, [0.7, 0.69, 0.68, 0.66]), label_odds({}), policy)
        assert crowded["changes"] < alone["changes"]

    def test_an_able_models_word_outweighs_the_signals(self) -> None:
        seen = relate.signals("User is a retired teacher", "User is a retired primary school teacher", 0.9, [0.9])
        policy: Policy = policy_for("server:able")
        for relation, name in ((Relation.SAME, "same"), (Relation.RETRACTS, "retracts"), (Relation.COEXISTS, "none")):
            scores = {other: 0.0 if other is relation else -12.0 for other in Relation}
            found = chances(seen, label_odds(scores), policy)
            assert max(found, key=lambda one: found[one]) == name

    def test_calibration_takes_the_bias_of_a_letter_away(self) -> None:
        generator = saying(Relation.RETRACTS)  # whatever it is shown
        policy = replace(policy_for("scripted"), calibrated=True)
        known = neighbour("User's sister is a baker", 0.35)
        assert decide(generator, Fact("User is learning Greek"), [known], policy=policy).op is Op.ADD


class SureJudge:
    """Says the same of every pair."""

    id = "sure"

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self.asked: list[tuple[str, str]] = []

    def relations(self, pairs: Sequence[tuple[str, str]]) -> list[Mapping[Relation, float]]:
        self.asked += pairs
        told = (Relation.COEXISTS, Relation.SAME, Relation.REFINES, Relation.CHANGES, Relation.RETRACTS)
        return [{one: -0.01 if one is self.relation else -6.0 for one in told} for _ in pairs]


class TestJudge:
    FACT, KNOWN = Fact("User lives in Linz now"), (neighbour("User lives in Graz"),)

    def with_weight(self, weight: float) -> Policy:
        return replace(policy_for("scripted"), judge_weights=dict.fromkeys(("same", "changes", "retracts"), weight))

    def test_its_word_is_weighed_beside_the_generators(self) -> None:
        generator, judge = saying(Relation.COEXISTS, sure=2.0), SureJudge(Relation.CHANGES)
        alone = decide(generator, self.FACT, self.KNOWN, policy=self.with_weight(0.0))
        both = decide(generator, self.FACT, self.KNOWN, judge=judge, policy=self.with_weight(1.5))
        assert (alone.op, both.op) == (Op.ADD, Op.UPDATE)
        assert judge.asked == [("User lives in Linz now", "User lives in Graz")]

    def test_disagreement_about_a_memory_leaves_it(self) -> None:
        judge = SureJudge(Relation.COEXISTS)
        decision = decide(saying(Relation.CHANGES, sure=3.0), self.FACT, self.KNOWN, judge=judge,
                          policy=self.with_weight(1.5))  # fmt: skip
        assert decision.op is Op.ADD

    def test_it_is_not_asked_where_it_counts_nothing(self) -> None:
        judge = SureJudge(Relation.RETRACTS)
        assert decide(saying(Relation.CHANGES), self.FACT, self.KNOWN, judge=judge).op is Op.UPDATE
        assert judge.asked == []

    def test_numbers_fitted_with_a_judge_are_for_that_judge_only(self) -> None:
        tuned = "llama:base+localmem-x"
        packaged = artifacts.manifest().judge
        assert packaged is not None
        assert policy_for(tuned, packaged.name).judge_weights
        assert not policy_for(tuned, "another").judge_weights
        assert not policy_for(tuned).judge_weights


@pytest.mark.model
class TestRealModel:
    """The base model where it is installed: labels it can say, a story of two sentences."""

    def test_it_is_asked_and_heard(self, base_model: LlamaGenerator) -> None:
        known = [neighbour("User lives in Graz", 0.8), neighbour("User's sister is a baker", 0.4)]
        decision = decide(base_model, Fact("User lives in Linz now, no longer in Graz"), known)
        assert math.isclose(sum(decision.probabilities.values()), 1.0)
        assert known[1] not in decision.targets
        again = decide(base_model, Fact("User lives in Linz now, no longer in Graz"), known)
        assert again == decision

    def test_it_words_a_clause_in_the_persons_own_words(self, base_model: LlamaGenerator) -> None:
        said = [Message("user", "I'd moved to Turku in May 2019 for the shipyard"), Message("assistant", "Noted.")]
        found = extract(base_model, said, context=ExtractContext(), event_at=0, limits=Limits())
        wordings = {f"User {verb} moved to Turku in May 2019 for the shipyard" for verb in ("had", "would")}
        assert {fact.text for fact in found.facts} <= wordings
        assert len(found.facts) == 1
