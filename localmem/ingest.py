"""The write story of DESIGN section 3: mask, record, extract, embed, look around, decide, apply.

Nothing between the two short writes holds a lock; what a failure leaves behind is a pending episode, and
finish() brings it to its end exactly once, whoever calls it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from localmem import forget, notes, profile, rank, secrets, store_pools, store_queue, store_read, tuned, wishes
from localmem.config import Limits
from localmem.decide import decide_all, policy_for
from localmem.errors import (
    AuditError,
    ClosedError,
    ConflictError,
    EmbedderMismatchError,
    GeneratorError,
    GeneratorUnavailableError,
    InstallationError,
    KeyRefusedError,
    LocalmemError,
    MissingExtraError,
    ModelFileError,
    ModelNotFoundError,
    SchemaError,
    StorageError,
)
from localmem.extract import ExtractContext, Extraction, extract
from localmem.store import EpisodeRecord, Incoming, Store, Verbatim
from localmem.store_apply import FORGET, USER_REQUEST, OwnerMovedError, Plan, Snapshot, TakenBackError, stated
from localmem.store_passages import later_passages
from localmem.types import (
    FOREVER,
    JSON,
    Actor,
    Change,
    Decision,
    Embedder,
    EpisodeId,
    Fact,
    Generator,
    Instant,
    Judge,
    Message,
    Neighbour,
    Op,
    Reranker,
    Scope,
    Tagger,
)

if TYPE_CHECKING:
    from localmem.db import Tx
    from localmem.types import Vector, Vectors

SUMMARY_LINES_MAX = 12
EMBEDDED_AT_ONCE = 256  # texts of a bulk add between two reports of how far it is
REQUESTS_MAX = 8  # forget requests in one add
FORGET_ASKED_COSINE, FORGET_ASKED_MAX = 0.2, 24  # memories the tuned model is asked about
FORGET_COSINE, FORGET_HALF_COSINE, FORGET_WORDS = 0.62, 0.45, 0.5


@dataclass(frozen=True, slots=True)
class Engine:
    """What the stories work with; one for each Memory."""

    store: Store
    embedder: Embedder
    generator: Callable[[], Generator]  # opened on first use
    judge: Judge | None
    tagger: Tagger | None
    clock: Callable[[], Instant]
    limits: Limits
    reranker: Reranker | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """What one add() came to. ``changes`` holds NOOPs too."""

    episode_id: EpisodeId
    changes: tuple[Change, ...]


# -------------------------------------------------------------------- entrances


@dataclass(frozen=True, slots=True)
class Said:
    """One exchange as it was given, checked. ``later``, of a verbatim one: what its last message came to say, and
    since when."""

    scope: Scope
    messages: tuple[Message, ...]
    event_at: Instant
    metadata: Mapping[str, JSON]
    expires_at: Instant | None = None
    later: tuple[tuple[str, Instant], ...] = ()
    keep: bool = False  # what gives no fact is kept as it stands, see notes.py


def remember(engine: Engine, said: Said) -> Added:
    """``add(infer=True)``: record the episode, then finish it. Raises GeneratorError with the pending episode's id."""
    now = engine.clock()
    coming = _incoming(engine, said)
    [episode_id] = engine.store.record_episodes([coming], now, due_at=store_queue.claimed(now))
    assert episode_id is not None
    return finish(engine, episode_id)


def enqueue(engine: Engine, said: Sequence[Said], *, chars_max: int, once: bool = False) -> list[EpisodeId | None]:
    """Record episodes, all of them or none, and leave them to a worker.

    chars_max: messages beyond that many characters of an exchange are not embedded now, but by `settle`; their words
    are found at once. ``once``: None in the place of those whose source_id was added to their scope before.
    """
    coming = [_incoming(engine, each, chars_max=chars_max) for each in said]
    return engine.store.record_episodes(coming, engine.clock(), unless=store_read.ingested if once else None)


def _incoming(engine: Engine, said: Said, *, chars_max: int | None = None) -> Incoming:
    masked = mask(said.messages)
    read = [i for i, m in enumerate(masked) if m.role != "system"]
    if chars_max is not None:
        upto = itertools.accumulate(len(masked[i].content) for i in read)
        read = [i for i, chars in zip(read, upto, strict=True) if chars <= chars_max]
    texts = [masked[i].content for i in read]
    return Incoming(
        said.scope,
        masked,
        said.event_at,
        vectors=dict(zip(read, engine.embedder.embed_passages(texts), strict=True)) if texts else {},
        passages=later_passages(engine.embedder, texts),
        metadata=said.metadata,
        expires_at=said.expires_at,
        keep=said.keep,
    )


def settle(engine: Engine, episode_id: EpisodeId) -> None:
    """Embed the turns of an episode that were recorded without a vector."""
    with engine.store.snapshot() as tx:
        owed = store_queue.unembedded(tx, episode_id)
    made = _embed(engine, owed.values())
    passages = later_passages(engine.embedder, owed.values())
    later = {row: passages[text] for row, text in owed.items() if text in passages}
    with engine.store.write() as tx:
        store_queue.settle_vectors(tx, episode_id, {row: made[text] for row, text in owed.items()}, later)


def store_verbatim(engine: Engine, said: Said) -> Added:
    """``add(infer=False)``: each message becomes one memory as it is, in one transaction and without a model."""
    [added] = store_all_verbatim(engine, [said])
    assert added is not None
    return added


def store_all_verbatim(
    engine: Engine,
    said: Sequence[Said],
    told: Callable[[int, int], object] = lambda done, total: None,
    *,
    once: bool = False,
) -> list[Added | None]:
    """Several verbatim adds in one transaction: all of them, or nothing. Their texts are embedded before it begins;
    ``told`` hears of how many, and of how many there are. ``once``: None in the place of those whose source_id was
    added to their scope before, also by another process meanwhile."""
    masked = [
        (tuple(mask(each.messages)), tuple((secrets.mask(t, t).text, at) for t, at in each.later)) for each in said
    ]
    texts = list(dict.fromkeys(text for messages, later in masked for text in _verbatim_texts(messages, later)))
    vectors: dict[str, Vector] = {}
    for start in range(0, len(texts), EMBEDDED_AT_ONCE):
        vectors |= _embed(engine, texts[start : start + EMBEDDED_AT_ONCE])
        told(len(vectors), len(texts))
    passages = later_passages(engine.embedder, texts)
    recordings = [
        Verbatim(_verbatim_plan(each, messages, vectors, passages), messages, later)
        for each, (messages, later) in zip(said, masked, strict=True)
    ]
    unless = store_read.ingested if once else None
    done = engine.store.record_verbatim(recordings, engine.clock(), unless=unless)
    return [None if each is None else Added(each[0], tuple(each[1])) for each in done]


def _verbatim_texts(messages: Sequence[Message], later: Sequence[tuple[str, Instant]]) -> list[str]:
    return [m.content for m in messages if m.role != "system"] + [text for text, _ in later]


def _verbatim_plan(
    said: Said, messages: Sequence[Message], vectors: Mapping[str, Vector], passages: Mapping[str, Vectors]
) -> Plan:
    facts = [_verbatim(m, i, said.event_at) for i, m in enumerate(messages) if m.role != "system"]
    return Plan(
        scope=said.scope,
        decisions=tuple(Decision(fact, Op.ADD) for fact in facts),
        vectors=vectors,
        passages=passages,
        reason="verbatim",
        event_at=said.event_at,
        metadata=said.metadata,
        expires_at=said.expires_at,
    )


def _verbatim(message: Message, position: int, event_at: Instant) -> Fact:
    actor = Actor(message.role) if message.role in ("assistant", "tool", "document") else Actor.USER
    return replace(stated(message.content, event_at, position), actor=actor)


def mask(messages: Sequence[Message]) -> list[Message]:
    """The messages with secrets replaced before anything is written; each one's context is the others' text."""
    texts = [m.content for m in messages]
    whole = "\n".join(texts)[:20_000]
    return [replace(m, content=secrets.mask(m.content, whole).text) for m in messages]


# -------------------------------------------------------------------- finishing an episode


def finish(engine: Engine, episode_id: EpisodeId) -> Added:
    """Bring a pending episode to its end: forget request, or extract and reconcile. Safe to call from anywhere twice.

    Raises GeneratorError (or the MissingExtraError or ModelNotFoundError behind it) with ``episode_id`` set; the
    episode stays pending and its words stay found.
    """
    changes: list[Change] = []
    try:
        for _ in range(engine.limits.reconcile_rounds_max):
            with engine.store.snapshot() as tx:
                episode = store_read.episode(tx, episode_id)
            if episode.state != "pending":
                break
            with contextlib.suppress(TakenBackError):  # then what is left of it is read again
                _read(engine, episode, changes)
                break
        else:
            raise ConflictError(f"the words of episode {episode_id} kept being taken back; call resume() to finish it")
    except Exception as error:
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong first
            blamed = not isinstance(error, UNAVAILABLE)
            engine.store.episode_failed(episode_id, type(error).__name__, engine.clock(), blamed=blamed)
        told = _told(error, episode_id)
        raise told from (None if told is error else error)
    return Added(episode_id, tuple(changes))


def _read(engine: Engine, episode: EpisodeRecord, changes: list[Change]) -> None:
    """Carry out the requests of an episode, then extract and reconcile what is left; ``changes`` grows meanwhile."""
    if episode.owes_vectors:
        settle(engine, episode.id)
    rest, spent = _without_spent(engine, episode)
    for _ in range(REQUESTS_MAX):
        request = _request_in(engine, rest)
        if request is None:
            break
        left = _without(rest, request)
        finish = not _readable(left)
        changes += _forget(engine, rest, request, finish=finish, spent=spent)
        if finish:
            return
        taken_back = left.taken_back | {position for _, position in _said_before(rest, request)}
        rest, spent = replace(left, taken_back=taken_back), (*spent, (episode.id, request.message))
    changes += _reconcile(engine, rest, suppress=spent)


# What says nothing about the episode it was raised over: it would be the same with any other.
UNAVAILABLE = (
    MissingExtraError,
    ModelNotFoundError,
    ModelFileError,
    InstallationError,
    GeneratorUnavailableError,
    StorageError,
    ClosedError,
    KeyRefusedError,
    AuditError,
    EmbedderMismatchError,
    SchemaError,
)


def _told(error: Exception, episode_id: EpisodeId) -> Exception:
    """The same error where it is ours, else a GeneratorError; both carry the id of the episode that waits."""
    if not isinstance(error, LocalmemError):
        error = GeneratorError(
            f"reading the messages failed ({type(error).__name__}); episode {episode_id} is kept and pending: "
            "call resume() when the cause is mended"
        )
    error.episode_id = episode_id  # type: ignore[attr-defined]
    return error


def _reconcile(
    engine: Engine, episode: EpisodeRecord, *, suppress: tuple[tuple[EpisodeId, int], ...] = ()
) -> tuple[Change, ...]:
    generator = engine.generator()
    found = extract(
        generator,
        episode.messages,
        context=_context(engine, episode),
        event_at=episode.event_at,
        limits=engine.limits,
        tagger=engine.tagger,
    )
    if episode.keep:
        found = notes.kept(found, episode.messages, episode.event_at)
    facts = found.facts[: engine.limits.facts_per_episode_max]
    vectors = _embed(engine, [fact.text for fact in facts])
    facts = _without_near_duplicates(facts, vectors)
    policy = policy_for(generator.id, engine.judge.id if engine.judge else None, engine.embedder.id)
    for _ in range(engine.limits.reconcile_rounds_max):
        snapshot, near = _look_around(engine, episode, facts, vectors)
        decisions = decide_all(
            generator,
            facts,
            near,
            judge=engine.judge,
            policy=policy,
            changeable=lambda n: _may_change(episode.scope, n),
        )
        worded = (text for d in decisions for text in (d.text, d.ends) if text)
        vectors |= _embed(engine, [text for text in worded if text not in vectors])
        plan = replace(_plan(engine, episode, decisions, found, vectors, snapshot), suppress=suppress)
        try:
            changes = engine.store.apply(plan, engine.clock())
        except OwnerMovedError:
            continue
        return () if changes is None else changes
    raise ConflictError(
        f"the memories of this owner kept changing; episode {episode.id} is pending, call resume() to finish it"
    )


def _context(engine: Engine, episode: EpisodeRecord) -> ExtractContext:
    limits = engine.limits
    with engine.store.snapshot() as tx:
        recent = store_read.recent_messages(tx, episode.scope, before=episode.id, limit=limits.context_messages_max)
        owner = replace(episode.scope, run_id=None) if episode.scope.user_id else episode.scope
        known = profile.compose(
            tx, owner, engine.clock(), tokens_max=limits.context_tokens, lines_max=SUMMARY_LINES_MAX
        )
    return ExtractContext(summary=tuple(line.text for line in known), recent=recent)


def _look_around(
    engine: Engine, episode: EpisodeRecord, facts: Sequence[Fact], vectors: Mapping[str, Vector]
) -> tuple[Snapshot, list[tuple[Neighbour, ...]]]:
    """Neighbours of all facts in one snapshot."""
    with engine.store.snapshot() as tx:
        snapshot = store_pools.take_snapshot(tx, episode.scope)
        near = [
            store_pools.neighbours(
                tx,
                episode.scope,
                fact.text,
                vectors[fact.text],
                event_at=fact.event_at,
                now=engine.clock(),
                k=engine.limits.neighbours_per_fact,
                matrices=engine.store.matrices,
            )
            for fact in facts
        ]
    return snapshot, near


def _may_change(scope: Scope, neighbour: Neighbour) -> bool:
    """A run-scoped fact may not change a user-level row; it is added beside it."""
    return scope.run_id is None or neighbour.run_id is not None


def _plan(
    engine: Engine,
    episode: EpisodeRecord,
    decisions: Sequence[Decision],
    found: Extraction,
    vectors: Mapping[str, Vector],
    snapshot: Snapshot,
) -> Plan:
    judge = {"judge": engine.judge.id} if engine.judge else {}
    refused = tuple(
        Decision(fact, Op.NOOP, guards=guards, unsupported=True, reason="unsupported", confidence=0.0)
        for fact, guards in found.unsupported
    )
    return Plan(
        scope=episode.scope,
        decisions=(*decisions, *refused),
        vectors=vectors,
        passages=later_passages(engine.embedder, vectors),
        reason="model",
        event_at=episode.event_at,
        episode_id=episode.id,
        snapshot=snapshot,
        metadata=episode.metadata,
        expires_at=episode.expires_at,
        fingerprint={**engine.generator().fingerprint(), **found.fingerprint, **judge},
        log=True,
        taken_back=episode.taken_back,
    )


def _without_near_duplicates(facts: Sequence[Fact], vectors: Mapping[str, Vector]) -> tuple[Fact, ...]:
    """One reply may say the same thing twice; the second would not see the first among its neighbours."""
    kept: list[Fact] = []
    for fact in facts:
        same = (float(np.dot(vectors[fact.text], vectors[other.text])) for other in kept)
        if all(cosine < rank.NEAR_DUPLICATE_COSINE for cosine in same):
            kept.append(fact)
    return tuple(kept)


def _embed(engine: Engine, texts: Iterable[str]) -> dict[str, Vector]:
    unique = list(dict.fromkeys(texts))
    if not unique:
        return {}
    rows: Vectors = engine.embedder.embed_passages(unique)
    return dict(zip(unique, rows, strict=True))


# -------------------------------------------------------------------- forgetting


def _request_in(engine: Engine, episode: EpisodeRecord) -> forget.ForgetRequest | None:
    """What the episode asks to forget. Plain words need no model; a missing one shows when facts are read."""
    plain = forget.detect(episode.messages)
    if plain is not None and not plain.ambiguous:
        return plain
    generator = engine.generator()
    if not tuned.speaks(generator.id):
        return None
    return wishes.understood(generator, episode.messages, _context(engine, episode).recent[::-1])


def _forget(
    engine: Engine,
    episode: EpisodeRecord,
    request: forget.ForgetRequest,
    *,
    finish: bool,
    spent: tuple[tuple[EpisodeId, int], ...],
) -> tuple[Change, ...]:
    """Carry out a forget request at once, before facts are read.

    finish: the messages say nothing else. Otherwise their other words go on to extraction, the request blanked out,
    and its message is suppressed when the episode ends, as are those of ``spent`` requests.
    """
    with engine.store.snapshot() as tx:
        targets, turns = _forget_targets(engine, tx, episode, request)
    if request.kind == "topic":
        targets = _meant(engine, episode, request, targets)
    turns = [*turns, *_said_before(episode, request)]
    words = episode.messages[request.message].content[request.span.start : request.span.end]
    decision = Decision(
        Fact(text=words, event_at=episode.event_at),
        Op.DELETE if targets else Op.NOOP,
        tuple(targets),
        confidence=request.confidence,
        guards=(FORGET,),
        reason=USER_REQUEST if targets else "forget request without target",
    )
    plan = Plan(
        scope=episode.scope,
        decisions=(decision,),
        vectors={},
        reason="model",
        event_at=episode.event_at,
        episode_id=episode.id,
        suppress=(*turns, *((*spent, (episode.id, request.message)) if finish else ())),
        log=True,
        finish=finish,
    )
    return engine.store.apply(plan, engine.clock()) or ()


def _said_before(episode: EpisodeRecord, request: forget.ForgetRequest) -> list[tuple[EpisodeId, int]]:
    """The user's messages before a "forget that" in the same exchange: they are what it means."""
    if request.kind != "last" or request.own:
        return []
    return [(episode.id, i) for i in range(request.message) if episode.messages[i].role == "user"]


def _without(episode: EpisodeRecord, request: forget.ForgetRequest) -> EpisodeRecord:
    """The episode without the request's words, positions unmoved; without the messages that it takes back."""
    messages = list(episode.messages)
    for _, position in _said_before(episode, request):
        messages[position] = replace(messages[position], content="")
    message = messages[request.message]
    nothing_else = request.own or not request.remainder.strip()
    rest = "" if nothing_else else forget.blanked(message.content, (request.span, *request.more))
    messages[request.message] = replace(message, content=rest)
    return replace(episode, messages=tuple(messages))


def _without_spent(engine: Engine, episode: EpisodeRecord) -> tuple[EpisodeRecord, tuple[tuple[EpisodeId, int], ...]]:
    """The episode without requests that were carried out before a failure, and the messages they stand in."""
    with engine.store.snapshot() as tx:
        done = store_read.forgotten_words(tx, episode.id)
    messages = list(episode.messages)
    spent: list[tuple[EpisodeId, int]] = []
    for words in done:
        place = next((i for i, m in enumerate(messages) if words and words in m.content), None)
        if place is not None:
            messages[place] = replace(messages[place], content=messages[place].content.replace(words, " " * len(words)))
            spent.append((episode.id, place))
    return replace(episode, messages=tuple(messages)), tuple(spent)


def _readable(episode: EpisodeRecord) -> bool:
    """Whether anybody but the assistant says anything."""
    return any(m.content.strip() and (m.role != "assistant" or m.name) and m.role != "system" for m in episode.messages)


def _forget_targets(
    engine: Engine, tx: Tx, episode: EpisodeRecord, request: forget.ForgetRequest
) -> tuple[list[Neighbour], list[tuple[EpisodeId, int]]]:
    """(memories, raw messages) meant by a request, in the caller's own scope only."""
    within = store_pools.reach(tx, episode.scope, -FOREVER)  # what has expired is meant too
    if within is None:
        return [], []
    everything = {n.id: n for n in store_read.targets_ever(tx, within)}
    if request.kind == "everything":
        return list(everything.values()), store_read.owner_messages(tx, episode.scope, before=episode.id)
    if request.kind == "last":
        if request.own or _said_before(episode, request):
            return [], []
        ids = store_read.last_changed(tx, within, episode.id)
        return [everything[i] for i in ids if i in everything], store_read.last_messages(tx, episode.id)
    vector = engine.embedder.embed_query(request.query)
    within = replace(within, history=True)
    cosines = store_pools.vector_pool(tx, within, vector)
    known = store_read.records(tx, within, list({*cosines, *store_pools.word_pool(tx, within, request.query)}))
    near = {r.id: cosines.get(v, 0.0) for v, (r, _) in known.items()}
    ids = sorted((i for i in near if i in everything), key=lambda i: -near[i])
    turns = store_read.matching_messages(tx, episode.scope, before=episode.id)
    meant = [(e, p) for e, p, content in turns if rank.coverage(request.query, content) >= 1.0]
    return [replace(everything[i], cosine=near[i]) for i in ids], meant


def _meant(
    engine: Engine, episode: EpisodeRecord, request: forget.ForgetRequest, candidates: Sequence[Neighbour]
) -> list[Neighbour]:
    """The memories a request names: by the tuned model where it is there, else by shared words and nearness."""
    generator = _tuned_generator(engine)
    if generator is None:
        return [n for n in candidates if _is_meant(request.query, n.text, n.cosine)]
    said = episode.messages[request.message].content[request.span.start : request.span.end]
    asked = said if rank.coverage(request.query, said) >= FORGET_WORDS else f"forget {request.query}"
    near = [n for n in candidates if n.cosine >= FORGET_ASKED_COSINE or rank.coverage(request.query, n.text) > 0]
    near = near[:FORGET_ASKED_MAX]
    try:
        wanted = wishes.meant(generator, asked, [n.text for n in near], engine.judge)
    except (MissingExtraError, ModelNotFoundError):  # plain words need no model
        wanted = [_is_meant(request.query, n.text, n.cosine) for n in near]
    return [n for n, yes in zip(near, wanted, strict=True) if yes]


def _tuned_generator(engine: Engine) -> Generator | None:
    """The generator where it knows forget requests; plain ones are carried out without a model too."""
    try:
        generator = engine.generator()
        return generator if tuned.speaks(generator.id) else None
    except LocalmemError:
        return None


def _is_meant(query: str, text: str, cosine: float) -> bool:
    """A forget request takes what holds all of its words, or is near in meaning; half and half needs both."""
    share = rank.coverage(query, text)
    return share >= 1.0 or cosine >= FORGET_COSINE or (share >= FORGET_WORDS and cosine >= FORGET_HALF_COSINE)


# -------------------------------------------------------------------- resuming


def resume(engine: Engine, scope: Scope | None, limit: int | None = None) -> list[Added]:
    """Finish every pending episode of the scope (None: of the file), or the first ``limit`` of them, in event order
    within each owner.

    Those that were set aside too. The first failure ends it with that error: a missing model fails for all of them.
    """
    with engine.store.snapshot() as tx:
        waiting = store_read.pending(tx, scope)
    return [_claimed(engine, episode_id) for episode_id in waiting[:limit]]


def _claimed(engine: Engine, episode_id: EpisodeId) -> Added:
    """Finish an episode that no worker takes up meanwhile."""
    with engine.store.write() as tx:
        store_queue.claim(tx, episode_id, engine.clock())
    return finish(engine, episode_id)
