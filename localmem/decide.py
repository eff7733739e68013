"""Facts x neighbours to decisions: ADD, UPDATE, DELETE or NOOP, and of which memory.

An exact duplicate needs no model. Otherwise the relation of the fact to each near neighbour is scored by the
generator (one-token labels) and by the judge, and weighed together with what can be seen without understanding
(`relate.signals`). The weights are data, fitted per model (``rules/decide.toml``). What is in doubt never replaces or
removes a memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

from localmem import forget, prompts, relate, rules, support, tuned, words
from localmem.errors import GeneratorError
from localmem.types import STANCES, Actor, Decision, Fact, Generator, Judge, Message, Neighbour, Op, Prompt, Relation

# The relations that call for the same operation are weighed as one.
NONE, SAME, CHANGES, RETRACTS = "none", "same", "changes", "retracts"
_GROUPS: Mapping[str, tuple[Relation, ...]] = {
    NONE: (Relation.UNRELATED, Relation.COEXISTS),
    SAME: (Relation.SAME,),
    CHANGES: (Relation.REFINES, Relation.CHANGES),
    RETRACTS: (Relation.RETRACTS,),
}
_OPS = {SAME: Op.NOOP, CHANGES: Op.UPDATE, RETRACTS: Op.DELETE}
_MERGED_TOKENS_MAX = 64
_STALE_MIN = 0.8  # probability from which a change takes more than one memory with it
_NEW_WORDS_MAX = 1  # content words of a wording that stand in neither text; more are an invention
_SAID_SHARE_MIN, _KEPT_SHARE_MIN = 0.8, 0.8  # content words of the fact, and of a memory it refines, in the new text
_CONTENT_FREE = ("N/A", "")


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of the decision. Build one with `policy_for`; probabilities and cosines in [0, 1]."""

    weights: Mapping[str, Mapping[str, float]]  # class -> signal -> weight, against "none"
    label_weights: Mapping[str, float]  # class -> weight of the generator's log-odds
    offsets: Mapping[str, float]  # class -> added to its log-odds
    signal_scale: float  # how much the seen signals count beside the model
    calibrated: bool  # subtract the label bias measured on content-free notes (Zhao et al. 2021)
    accept: Mapping[str, float]  # class -> probability from which it is believed
    doubt: Mapping[str, float]  # class -> probability from which it is in doubt
    duplicate_cosine: float  # a NOOP in doubt stands from here on
    cosine_min: float  # neighbours further off are not asked about
    asked_max: int  # neighbours asked about, nearest first
    wished_min: float = 0.5  # probability of a forget request from which it is carried out
    meant_min: float = 0.5  # probability that a memory is meant by it
    paraphrases: bool = False  # whether the model knows the same thing said in quite other words
    judge_weights: Mapping[str, float] = field(default_factory=dict)  # as of the generator's; none: it is not asked
    crowd_weights: Mapping[str, float] = field(default_factory=dict)  # class -> weight of how near the others are


@dataclass(frozen=True, slots=True)
class _View:
    """One neighbour as seen from the fact: probabilities of the classes, and the models' log-scores of relations."""

    neighbour: Neighbour
    chances: Mapping[str, float]
    told: Mapping[Relation, float]  # by the generator
    judged: Mapping[Relation, float]


def policy_for(generator_id: str | None, judge_id: str | None = None, embedder_id: str | None = None) -> Policy:
    """The fitted numbers for a generator and a judge; those for any able generator where it has none of its own.

    Numbers fitted with a judge are for that judge only. Those for an embedder that has none of its own are those of
    the default one.
    """
    tables = [rules.load(name).table for name in ("decide", "decide_original")]
    table = next((each for each in tables if each["embedder"] == embedder_id), tables[0])
    fits = [fit for fit in table["models"] if fit.get("judge") in (None, judge_id)]
    chosen = next((fit for fit in fits if fnmatchcase((generator_id or "none").lower(), fit["pattern"])), fits[-1])
    return Policy(
        weights=table["weights"],
        label_weights=chosen["labels"],
        judge_weights=chosen.get("judged", {}),
        crowd_weights=chosen.get("crowd", {}),
        offsets=chosen.get("offsets", dict.fromkeys(_OPS, 0.0)),
        signal_scale=chosen["signal_scale"],
        calibrated=chosen["calibrated"],
        accept=chosen["accept"],
        doubt=chosen["doubt"],
        duplicate_cosine=table["duplicate_cosine"],
        cosine_min=table["cosine_min"],
        asked_max=chosen.get("asked_max", table["asked_max"]),
        wished_min=chosen.get("wished_min", 0.5),
        meant_min=chosen.get("meant_min", 0.5),
        paraphrases=chosen.get("paraphrases", False),
    )


def decide(
    generator: Generator | None,
    fact: Fact,
    neighbours: Sequence[Neighbour],
    *,
    judge: Judge | None = None,
    policy: Policy | None = None,
    changeable: Callable[[Neighbour], bool] = lambda _: True,
) -> Decision:
    """The decision about one fact. See `decide_all`."""
    return decide_all(generator, [fact], [neighbours], judge=judge, policy=policy, changeable=changeable)[0]


def decide_all(
    generator: Generator | None,
    facts: Sequence[Fact],
    neighbours: Sequence[Sequence[Neighbour]],
    *,
    judge: Judge | None = None,
    policy: Policy | None = None,
    changeable: Callable[[Neighbour], bool] = lambda _: True,
) -> list[Decision]:
    """One decision for each fact, in order; ``neighbours`` has a row for each fact.

    ``changeable``: whether this fact's scope may update or delete the neighbour; where it may not, the fact is added
    beside it. Without a generator the signals decide alone. Raises GeneratorError when the model fails.
    """
    policy = policy or policy_for(generator.id if generator else None, judge.id if judge else None)
    asked = [_asked(fact, near, policy) for fact, near in zip(facts, neighbours, strict=True)]
    pairs = [(fact, other) for fact, near in zip(facts, asked, strict=True) for other in near]
    told = iter(relation_scores(generator, pairs, calibrated=policy.calibrated))
    judged = iter(judged_scores(judge if policy.judge_weights else None, pairs))
    decisions = []
    for fact, near, shown in zip(facts, asked, neighbours, strict=True):
        views = [_view(fact, other, near, next(told), next(judged), policy) for other in near]
        decision = _duplicate(fact, shown) or _judged(generator, fact, views, policy, changeable)
        decisions.append(replace(decision, neighbours=tuple(shown)))
    return _without_undoing(decisions)


def _without_undoing(decisions: Sequence[Decision]) -> list[Decision]:
    """Of "I work at the library now, not at the shop": what one fact updates, the other does not delete."""
    updated = {target.id for decision in decisions if decision.op is Op.UPDATE for target in decision.targets}
    kept = []
    for decision in decisions:
        left = tuple(target for target in decision.targets if target.id not in updated)
        if decision.op is Op.DELETE and len(left) < len(decision.targets):
            decision = replace(decision, targets=left, guards=(*decision.guards, "updated"))
            if not left:
                decision = replace(decision, op=Op.NOOP, reason="another fact said what holds instead")
        kept.append(decision)
    return kept


def same_words(a: str, b: str) -> bool:
    """Whether two texts differ in nothing but Unicode form, case, blanks and closing marks."""
    return _plain(a) == _plain(b)


def _plain(text: str) -> str:
    return " ".join(words.fold(text).split()).rstrip(" .,;:!…")


def _duplicate(fact: Fact, neighbours: Sequence[Neighbour]) -> Decision | None:
    known = tuple(other for other in neighbours if same_words(other.text, fact.text))[:1]
    if not known:
        return None
    return Decision(fact, Op.NOOP, known, guards=("exact_duplicate",), reason="already known, word for word")


def _asked(fact: Fact, neighbours: Sequence[Neighbour], policy: Policy) -> list[Neighbour]:
    """The nearest neighbours worth asking about; none where one is an exact duplicate."""
    if _duplicate(fact, neighbours):
        return []
    near = [other for other in neighbours if other.nearness >= policy.cosine_min]
    return sorted(near, key=lambda other: -other.nearness)[: policy.asked_max]


# ------------------------------------------------------------------ what the model says


def relation_scores(
    generator: Generator | None, pairs: Sequence[tuple[Fact, Neighbour]], *, calibrated: bool
) -> list[Mapping[Relation, float]]:
    """The model's log-score of each relation for each pair; empty without a model.

    ``calibrated``: less its bias for a letter, measured on notes without content.
    """
    if generator is None or not pairs:
        return [{} for _ in pairs]
    if tuned.speaks(generator.id):
        return stance_scores(generator, [(fact.text, other.text) for fact, other in pairs])
    file = prompts.load("relation")
    relations = [Relation(meaning) for meaning in file.labels]
    symbols = list(file.labels.values())
    bias = _label_bias(generator, symbols) if calibrated else (0.0,) * len(symbols)
    asked = [prompts.render("relation", known=other.text, new=fact.text) for fact, other in pairs]
    rows = score_many(generator, asked, symbols)
    return [{relation: row[i] - bias[i] for i, relation in enumerate(relations)} for row in rows]


def judged_scores(judge: Judge | None, pairs: Sequence[tuple[Fact, Neighbour]]) -> list[Mapping[Relation, float]]:
    """The judge's log-probability of each relation for each pair; empty without a judge."""
    if judge is None:
        return [{} for _ in pairs]
    return judge.relations([(fact.text, other.text) for fact, other in pairs])


def stance_scores(generator: Generator, pairs: Sequence[tuple[str, str]]) -> list[Mapping[Relation, float]]:
    """The tuned model's log-score of each relation for each (new text, known text)."""
    asked = [tuned.stance_prompt(new, known) for new, known in pairs]
    rows = score_many(generator, asked, list(prompts.load("stance").labels.values()))
    return [dict(zip(STANCES, row, strict=True)) for row in rows]


def _label_bias(generator: Generator, symbols: Sequence[str]) -> tuple[float, ...]:
    """Mean log-score of each label for notes without content; measured once for a generator."""
    if generator not in _BIASES:
        blank = [prompts.render("relation", known=text, new=text) for text in _CONTENT_FREE]
        rows = score_many(generator, blank, symbols)
        _BIASES[generator] = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))
    return _BIASES[generator]


# A model's bias does not change while it is open; measuring it costs two of the prompts of a decision.
_BIASES: WeakKeyDictionary[Generator, tuple[float, ...]] = WeakKeyDictionary()


def score_many(generator: Generator, asked: Sequence[Prompt], labels: Sequence[str]) -> list[tuple[float, ...]]:
    """`score_labels` of several prompts, side by side where the generator can."""
    together = getattr(generator, "score_labels_many", None)
    if together is not None:
        return list(together(asked, labels))
    return [tuple(generator.score_labels(prompt, labels)) for prompt in asked]


def label_odds(relations: Mapping[Relation, float]) -> dict[str, float]:
    """Log-odds of each class against "none" by the model's scores alone; 0 for all without scores."""
    if not relations:
        return dict.fromkeys(_OPS, 0.0)
    totals = {name: _log_sum([relations[r] for r in group if r in relations]) for name, group in _GROUPS.items()}
    return {name: max(-12.0, min(12.0, totals[name] - totals[NONE])) for name in _OPS}


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


# ------------------------------------------------------------------ weighing


def _view(
    fact: Fact,
    other: Neighbour,
    near: Sequence[Neighbour],
    told: Mapping[Relation, float],
    judged: Mapping[Relation, float],
    policy: Policy,
) -> _View:
    said, known = relate.neutral(fact.text, other.text)
    seen = relate.signals(said, known, other.cosine, [n.cosine for n in near])
    believed = chances(seen, label_odds(told), policy, label_odds(judged))
    if not relate.may_repeat(said, known, 1.0 if policy.paraphrases else other.cosine):
        believed = {**believed, NONE: believed[NONE] + believed[SAME], SAME: 0.0}
    return _View(other, believed, told, judged)


def chances(
    seen: Mapping[str, float], odds: Mapping[str, float], policy: Policy, judged: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Probabilities of none, same, changes and retracts from the signals and the log-odds of generator and judge."""
    totals = {NONE: 0.0}
    for name in _OPS:
        weights = policy.weights[name]
        total = sum(weight * seen.get(signal, 0.0) for signal, weight in weights.items())
        totals[name] = policy.signal_scale * total + policy.label_weights[name] * odds[name] + policy.offsets[name]
        if judged is not None and policy.judge_weights:
            totals[name] += policy.judge_weights[name] * judged[name]
        totals[name] += policy.crowd_weights.get(name, 0.0) * seen.get("crowd", 0.0)
    norm = _log_sum(list(totals.values()))
    return {name: math.exp(total - norm) for name, total in totals.items()}


def _judged(
    generator: Generator | None,
    fact: Fact,
    views: Sequence[_View],
    policy: Policy,
    changeable: Callable[[Neighbour], bool],
) -> Decision:
    """The class that is believed most beyond what is asked of it, turned into a decision by the rules."""
    name, view = _strongest(views, policy.accept)
    if view is None:
        return _doubtful(fact, views, policy, changeable)
    probabilities = dict(view.chances)
    if name == SAME:
        return _noop(fact, view, probabilities)
    if not changeable(view.neighbour):
        return _added(fact, views, guards=("out_of_reach",), reason="a memory of a wider scope stays as it is")
    if _outranked(fact, view.neighbour):
        return _contested(fact, view, "assistant_over_user", "the assistant does not overrule the user")
    if name == RETRACTS and not relate.states_replacement(fact.text):
        targets = [v for v in views if v.chances[RETRACTS] >= policy.accept[RETRACTS]]
        return _deleted(fact, [v for v in targets if changeable(v.neighbour) and not _outranked(fact, v.neighbour)])
    update = _updated(generator, fact, view, policy)
    if update.op is not Op.UPDATE or _refines(fact, view, policy):
        return update
    stale = [v for v in views if v is not view and _stale(v, fact, policy) and changeable(v.neighbour)]
    return replace(update, targets=(*update.targets, *(v.neighbour for v in stale)))


def _stale(view: _View, fact: Fact, policy: Policy) -> bool:
    """Whether a change makes this memory stale besides the one it replaces, by the models' own word."""
    if not view.told or not policy.paraphrases or _outranked(fact, view.neighbour):
        return False
    said = {relation: score + view.judged.get(relation, 0.0) for relation, score in view.told.items()}
    ended = max(said[Relation.CHANGES], said[Relation.RETRACTS])
    kept = max(score for r, score in said.items() if r not in (Relation.CHANGES, Relation.RETRACTS))
    sure = view.chances[CHANGES] + view.chances[RETRACTS]
    return ended > kept and sure >= max(_STALE_MIN, policy.accept[CHANGES])


def _strongest(views: Sequence[_View], bounds: Mapping[str, float]) -> tuple[str, _View | None]:
    """The class and neighbour furthest above the bound of the class; (NONE, None) when nothing reaches it.

    "Same" also has to be the likeliest of its neighbour's classes: a NOOP in error loses what was said.
    """
    passing = [
        (v.chances[name] / bounds[name], name, v)
        for v in views
        for name in _OPS
        if v.chances[name] >= bounds[name] and (name != SAME or v.chances[SAME] == max(v.chances.values()))
    ]
    if not passing:
        return NONE, None
    _, name, view = max(passing, key=lambda found: found[0])
    return name, view


def _doubtful(fact: Fact, views: Sequence[_View], policy: Policy, changeable: Callable[[Neighbour], bool]) -> Decision:
    """Nothing is believed: NOOP for a near duplicate, both contested for a possible change, else a plain ADD."""
    name, view = _strongest(views, policy.doubt)
    if view is not None and name == SAME and view.neighbour.cosine >= policy.duplicate_cosine:
        return replace(_noop(fact, view, view.chances), guards=("doubt", "duplicate_cosine"))
    if view is not None and name in (CHANGES, RETRACTS) and changeable(view.neighbour):
        return _contested(fact, view, "doubt", "may change a memory, but that is not certain enough")
    ended = None if relate.states_replacement(fact.text) else forget.retraction(fact.text)
    if ended is not None:
        return replace(_added(fact, views, reason="ends what was not known"), ends=ended)
    return _added(fact, views)


def _outranked(fact: Fact, other: Neighbour) -> bool:
    return fact.actor is Actor.ASSISTANT and other.actor is Actor.USER


def _best(views: Sequence[_View]) -> float:
    """How sure it is that the fact stands alone: the smallest chance of "none"."""
    return min((view.chances[NONE] for view in views), default=1.0)


def _added(fact: Fact, views: Sequence[_View], *, guards: tuple[str, ...] = (), reason: str = "new") -> Decision:
    nearest: Mapping[str, float] = min(views, key=lambda v: v.chances[NONE]).chances if views else {}
    return Decision(fact, Op.ADD, confidence=_best(views), guards=guards, probabilities=dict(nearest), reason=reason)


def _contested(fact: Fact, view: _View, guard: str, reason: str) -> Decision:
    return Decision(
        fact,
        Op.ADD,
        confidence=view.chances[NONE],
        contested=(view.neighbour,),
        guards=(guard,),
        probabilities=dict(view.chances),
        reason=reason,
    )


def _noop(fact: Fact, view: _View, probabilities: Mapping[str, float]) -> Decision:
    return Decision(
        fact,
        Op.NOOP,
        (view.neighbour,),
        confidence=view.chances[SAME],
        probabilities=dict(probabilities),
        reason="already known",
    )


def _deleted(fact: Fact, targets: Sequence[_View]) -> Decision:
    first = max(targets, key=lambda v: v.chances[RETRACTS])
    return Decision(
        fact,
        Op.DELETE,
        tuple(v.neighbour for v in targets),
        confidence=first.chances[RETRACTS],
        probabilities=dict(first.chances),
        reason="retracted",
    )


# ------------------------------------------------------------------ the wording of an update


def _updated(generator: Generator | None, fact: Fact, view: _View, policy: Policy) -> Decision:
    """UPDATE with the complete new wording; ADD where details would be lost and no merged wording holds."""
    known = view.neighbour
    update = Decision(
        fact,
        Op.UPDATE,
        (known,),
        text=fact.text,
        confidence=max(view.chances[CHANGES], view.chances[RETRACTS]),
        probabilities=dict(view.chances),
        reason="changed",
    )
    refines = _refines(fact, view, policy)
    if generator is not None and tuned.speaks(generator.id):
        text = _reworded(generator, fact, known, Relation.REFINES if refines else Relation.CHANGES)
        if text is not None:
            return replace(update, text=text, reason="refined" if refines else "changed", guards=("reworded",))
        if not refines or relate.adds_up(fact.text, known.text):
            return replace(update, text=relate.instead(fact.text, known.text))
        both = relate.joined(fact.text, known.text)
        return _beside(fact, view) if both is None else replace(update, text=both, reason="refined", guards=("joined",))
    if relate.adds_up(fact.text, known.text) or not refines:
        return update
    merged = _merged(generator, fact, known)
    if merged is not None:
        return replace(update, text=merged, reason="refined", guards=("merged",))
    return _beside(fact, view)


def _beside(fact: Fact, view: _View) -> Decision:
    return Decision(
        fact,
        Op.ADD,
        confidence=view.chances[NONE],
        guards=("not_merged",),
        probabilities=dict(view.chances),
        reason="adds to a memory, but no wording kept all details of both",
    )


def _refines(fact: Fact, view: _View, policy: Policy) -> bool:
    """Whether the old details stay true: no sign of a conflict, and what the models say, by their weight."""
    told = 0.0
    for weights, said in ((policy.label_weights, view.told), (policy.judge_weights, view.judged)):
        if said and weights:
            told += weights[CHANGES] * (said[Relation.REFINES] - said[Relation.CHANGES])
    return told + (-1.0 if relate.conflicts(fact.text, view.neighbour.text) else 1.0) > 0


def _merged(generator: Generator | None, fact: Fact, known: Neighbour) -> str | None:
    """One wording of both, checked: no content word of either is lost and nothing is new. None when there is none."""
    if generator is None:
        return None
    prompt = prompts.render("merge", known=known.text, new=fact.text)
    text = _sentence(generator, prompt, "merge", fact, known)
    if text is None:
        return None
    both = frozenset(relate.content(fact.text)) | frozenset(relate.content(known.text))
    return text if frozenset(relate.content(text)) == both else None


def _reworded(generator: Generator, fact: Fact, known: Neighbour, stance: Relation) -> str | None:
    """The tuned model's wording of an update, checked: it says what the fact says, and little of a memory that stays
    true is lost. None when it does not."""
    prompt = tuned.reword_prompt(stance.value, [known.text], fact.text)
    text = _sentence(generator, prompt, "reword", fact, known)
    if text is None or not _holds(text, fact.text, _SAID_SHARE_MIN):
        return None
    said = {*relate.content(fact.text), *relate.content(known.text)}
    if len(set(relate.content(text)) - said) > _NEW_WORDS_MAX:
        return None
    if relate.negates(text) and not relate.negates(fact.text) and not relate.negates(known.text):
        return None
    return text if stance is Relation.CHANGES or _holds(text, known.text, _KEPT_SHARE_MIN) else None


def _holds(text: str, source: str, share_min: float) -> bool:
    """Whether a text has the names and numbers of its source and at least this share of its content words."""
    if relate.names(source) - relate.names(text) - {text.partition(" ")[0]}:
        return False
    wanted = frozenset(relate.content(source))
    kept = len(wanted & frozenset(relate.content(text)))
    return not relate.numbers(source) - relate.numbers(text) and kept >= share_min * len(wanted)


def _sentence(generator: Generator, prompt: Prompt, grammar: str, fact: Fact, known: Neighbour) -> str | None:
    """One line about the same person that says nothing beyond both texts; None when the model does not give one."""
    subjects = sorted(
        {text.partition(" ")[0].removesuffix("'s").removesuffix("’s") for text in (fact.text, known.text)}
    )
    try:
        reply = generator.generate(
            prompt, grammar=prompts.grammar(grammar, subjects=subjects), tokens_max=_MERGED_TOKENS_MAX
        )
    except GeneratorError:
        return None  # the fact is safe without a merged wording
    text = " ".join(reply.split()).rstrip(" .,;:")
    source = f"{known.text}\n{fact.text}"
    failed = support.check(text, source, [Message("user", source)], [], fact.event_at)
    return None if failed else text
