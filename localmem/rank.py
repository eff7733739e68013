"""Pure ranking: duplicate keys, query terms, mentions, BM25 over one owner's statistics, fusion."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from localmem import words

# Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", section 3.2: the usual k1 and b.
BM25_K1, BM25_B = 1.2, 0.75
TERMS_MAX = 32  # query terms looked up, rarest words of a long query first by length
# Evidence that a row answers a query; chosen on our own talks and lists (models/training/recall), see `evidence`.
VECTOR_WEIGHT, WORD_WEIGHT, MENTION_WEIGHT = 15.0, 0.3, 0.4
STANDING_FROM, STANDING_MAX = 2.25, 14.0  # standard deviations: less is chance, more says no more
STANDING_POWER = 1.5  # one rare name counts more than some everyday words
DOCUMENTS_FEW = 15  # the fewest among which scores were calibrated
DOCUMENTS_MIN, DOCUMENTS_MAX = 60, 400  # among fewer or more, words stand out as they would among so many
TIME_WEIGHT, RECENT_WEIGHT, PAST_WEIGHT = 3.0, 0.5, 1.0  # where the query asks for a time, the newest, what was once
LAST_LINE = 0.3  # of a query of several lines, how much its last one counts beside the whole
ASSISTANT_LESS = 1.5  # what an assistant said is rarely what is asked for, unless the query is about it
LIFT = 0.18  # what the turn before and the turn after count
USUAL_COSINE = 0.1  # of a row that has nothing to do with the query
# Evidence to a score, by scripts/calibrate_search.py: 0.5 at MIDDLE among 100 memories, at GROWTH more among 272.
SCORE_SLOPE, SCORE_MIDDLE, SCORE_GROWTH = 0.50, 10.9, 1.0
NEAR_DUPLICATE_COSINE = 0.97
REPEATED = 8.0  # what is taken off the evidence of a hit that repeats a better one

# Scripts written without spaces: a run of them is one unicode61 token, so pairs of characters are indexed as well.
_DENSE = "぀-ヿ㐀-䶿一-鿿豈-﫿฀-๿຀-໿က-႟ក-៿"
_DENSE_RUN = re.compile(f"[{_DENSE}]+")
_SYMBOL = re.compile("[\u2600-\u27bf\U0001f1e6-\U0001faff]")  # emoji: separators to unicode61, unknown to the embedder
_CAPITALISED = re.compile(r"[A-ZÀ-ÖØ-Þ][\w'’&.-]*(?:\s+[A-ZÀ-ÖØ-Þ][\w'’&.-]*)*")
_IDENTIFIER = re.compile(  # every repetition is bounded, so that no text takes quadratic time
    r"\b(?=[\w./-]{0,60}\d)(?=[\w./-]{0,60}[A-Za-z])\w[\w./-]{2,60}|\b\d[\d.,:/-]{0,40}\d\b|\b\d\b"
    r"|\b[^\s@]{1,64}@[^\s@]{1,100}\.\w{2,20}"
)
_QUOTED = re.compile(r"[\"“„«]([^\"“”„«»\n]{2,60})[\"”“»]")
_SPEAKER = re.compile(r"([^\s:][^:\n]{0,40}): ")
_SUBJECTS = frozenset({"user", "assistant", "i", "i'm", "i've", "i'd", "i'll"})


def key(text: str) -> str:
    """Texts with equal keys are exact duplicates: case, spacing, curly quotes and end punctuation are ignored."""
    return " ".join(words.fold(text).split()).rstrip(".!;, ")


def grams(text: str) -> str | None:
    """Space-separated character pairs of the runs in scripts without spaces, and emoji by number; None without any."""
    pairs: dict[str, None] = {}
    for run in _DENSE_RUN.findall(text):
        pairs.update(dict.fromkeys([run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)]))
    pairs.update(dict.fromkeys(f"u{ord(symbol):x}" for symbol in _SYMBOL.findall(text)))
    return " ".join(pairs) or None


def word_count(text: str) -> int:
    """Length of a text for BM25, at least 1."""
    return max(1, words.count(text))


def terms(query: str) -> list[str]:
    """FTS5 expressions of a query's words, each quoted, without stop words unless there is nothing else.

    The leading "User" of stored facts says nothing about any of them, so it is never looked up.
    """
    spelled = {token.folded: token.text for token in words.tokens(query[:20_000])}
    found = {folded: raw for folded, raw in spelled.items() if folded not in ("user", "user's")}
    strong = [raw for folded, raw in found.items() if folded not in words.all_stop_words()]
    # As written: FTS5 folds the query as it folded the index, which is less than words.bare() folds.
    chosen = sorted(strong or found.values(), key=len, reverse=True)[:TERMS_MAX]
    expressions = [f"text : {quoted(word)}" for word in chosen if not _DENSE_RUN.fullmatch(word)]
    return expressions + [f"grams : {quoted(pair)}" for pair in (grams(query[:2_000]) or "").split()[:TERMS_MAX]]


def coverage(query: str, text: str) -> float:
    """Share in [0, 1] of the query's content words that the text holds, by stem; 0 for a query without any."""
    asked = {t.folded for t in words.tokens(query)} - words.all_stop_words() - {"user", "user's"}
    held = words.stems(t.folded for t in words.tokens(text))
    return len(words.stems(asked) & held) / len(words.stems(asked)) if asked else 0.0


def quoted(word: str) -> str:
    """An FTS5 string: no character in it is an operator."""
    return '"' + word.replace('"', '""') + '"'


def mentions(text: str) -> tuple[str, ...]:
    """Normalised entities of a text by rule: names, identifiers, numbers, quoted spans; without "User".

    A capitalised word that only opens a sentence counts when it stands inside a longer name.
    """
    found: dict[str, None] = {}
    for match in _CAPITALISED.finditer(text):
        name = match[0].rstrip(".-'’&")
        opening = match.start() == 0 or text[: match.start()].rstrip()[-1:] in '.!?:\n"“'
        parts = name.split()
        if opening and (len(parts) == 1 or words.fold(parts[0]).removesuffix("'s") in _SUBJECTS):
            parts = parts[1:]
        _note(found, " ".join(parts))
        if len(parts) > 1:
            for part in parts:
                _note(found, part)
    for match in [*_IDENTIFIER.finditer(text), *_QUOTED.finditer(text)]:
        _note(found, match[1] if match.re is _QUOTED else match[0])
    return tuple(found)[:64]


def _note(found: dict[str, None], name: str) -> None:
    name = words.bare(name).strip(" .,'").removesuffix("'s")
    if name and name not in _SUBJECTS and name not in words.all_stop_words() and len(name) <= 80:
        found[name] = None


def _idf(documents: int, holding: int) -> float:
    """Robertson-Sparck Jones weight, kept positive (Robertson and Zaragoza 2009, section 3.1)."""
    return math.log(1 + max(documents - holding + 0.5, 0.5) / (holding + 0.5))


def _held(postings: Sequence[frozenset[int]], documents: int) -> dict[int, float]:
    """Row id -> sum of its terms' weights, for every row with any."""
    held: dict[int, float] = {}
    for rows in postings:
        weight = _idf(documents, len(rows))
        for row in rows:
            held[row] = held.get(row, 0.0) + weight
    return held


def _best(weights: Sequence[float]) -> float:
    """What a row of no length with every term would score; 1 where no term is held anywhere, so that all score 0."""
    return sum(weights) * (BM25_K1 + 1) / (1 + BM25_K1 * (1 - BM25_B)) or 1.0


def rarest_first(postings: Sequence[frozenset[int]], documents: int, *, keep: int) -> dict[int, float]:
    """Row id -> sum of its terms' weights, for the ``keep`` best rows: who is worth reading a length for."""
    scores = _held(postings, documents)
    best = heapq.nsmallest(keep, scores.items(), key=lambda item: (-item[1], item[0]))
    return dict(best)


def spread(postings: Sequence[frozenset[int]], documents: int) -> float:
    """Standard deviation of `bm25` over all rows, with and without the words, each as of average length; from 0.001.

    A score counts by how far it stands out: many rows hold some words of a long question, few hold a rare name.
    """
    found = _held(postings, documents).values()
    total = _best([_idf(documents, len(rows)) for rows in postings])  # a row of average length scores what it holds
    count = max(documents, len(found), DOCUMENTS_MIN)
    mean = sum(found) / total / count
    deviation = math.sqrt(max(0.0, sum(value * value for value in found) / total**2 / count - mean * mean))
    return max(0.001, deviation * math.sqrt(max(1.0, count / DOCUMENTS_MAX)))


def speaker(text: str) -> str | None:
    """Who says a turn that opens with a name ("Ana: …"); None where it does not."""
    match = _SPEAKER.match(text)
    return match[1] if match else None


def bm25(
    postings: Sequence[frozenset[int]], lengths: Mapping[int, int], *, documents: int, average_words: float
) -> dict[int, float]:
    """Row id -> BM25 score over the best a row could reach, in [0, 1], for the rows whose length in words is given.

    Term frequency counts as 1 (memories are single sentences), so no text has to be read to score.
    """
    weights = [_idf(documents, len(rows)) for rows in postings]
    best, average = _best(weights), max(average_words, 1.0)
    held = dict.fromkeys(lengths, 0.0)
    for weight, rows in zip(weights, postings, strict=True):
        for row in rows.intersection(lengths):
            held[row] += weight
    return {
        row: held[row] * (BM25_K1 + 1) / (1 + BM25_K1 * (1 - BM25_B + BM25_B * length / average)) / best
        for row, length in lengths.items()
    }


def fuse(
    by_vector: Mapping[int, float], by_words: Mapping[int, float], by_mention: Mapping[int, float], *, spread: float
) -> dict[int, dict[str, float]]:
    """The union of the pools: row id -> {"fused", "vector", "words", "mentions"}, best first.

    by_vector holds cosines, by_words BM25 shares whose standard deviation over all rows is ``spread``, by_mention the
    share of the query's mentions in the row; fused is the evidence that the row answers the query.
    """
    told = []
    for row in {*by_vector, *by_words, *by_mention}:
        vector, word = by_vector.get(row, 0.0), by_words.get(row, 0.0)
        mention = by_mention.get(row, 0.0)
        told.append((-evidence(vector, word / spread, mention), row, vector, word, mention))
    told.sort()
    return {
        row: {"fused": -less, "vector": vector, "words": word, "mentions": mention}
        for less, row, vector, word, mention in told
    }


def evidence(cosine: float, standing: float, mention: float = 0.0) -> float:
    """Of a row that it answers the query. ``standing``: its BM25 share in standard deviations of all rows'."""
    beyond: float = max(0.0, min(standing, STANDING_MAX) - STANDING_FROM) ** STANDING_POWER
    return VECTOR_WEIGHT * cosine + WORD_WEIGHT * beyond + MENTION_WEIGHT * mention


def timed(
    scores: Mapping[int, float], fits: Mapping[int, float], ages: Mapping[int, float], past: Collection[int]
) -> dict[int, float]:
    """Evidence with what time says: ``fits`` and ``ages`` in [0, 1] (1: in the asked time; 0: the newest), by row.

    Empty where the query says nothing of the kind.
    """
    return {
        row: score
        + TIME_WEIGHT * fits.get(row, 0.0)
        + (RECENT_WEIGHT * (1.0 - ages[row]) if row in ages else 0.0)
        + (PAST_WEIGHT if row in past else 0.0)
        for row, score in scores.items()
    }


def varied(scores: Mapping[int, float], texts: Mapping[int, str]) -> dict[int, float]:
    """Evidence, less for each row that says again what a row before it says: the same content words in the same order.

    ``texts``: of the rows that matter, best first. Vectors would not do: "gate 3, row 7" is near "gate 7, row 3".
    """
    varied, said = dict(scores), set[tuple[str, ...]]()
    for row, text in texts.items():
        folded = words.folded(text)
        gist = tuple(word for word in folded if word not in words.all_stop_words()) or tuple(folded)
        if gist in said:
            varied[row] -= REPEATED
        said.add(gist)
    return varied


def lifted(scores: Mapping[int, float], beside: Iterable[tuple[int, int]]) -> dict[int, float]:
    """Evidence, of which each of two turns beside each other has got a share of the other's.

    An answer often makes sense only with the question before it. What counts is what the other turn has beyond a row
    that has nothing to do with the query.
    """
    base = evidence(USUAL_COSINE, 0.0)
    shared = dict(scores)
    for one, other in beside:
        shared[one] += LIFT * (scores[other] - base)
        shared[other] += LIFT * (scores[one] - base)
    return shared


def score(evidence: float, documents: int) -> float:
    """How likely a hit answers the query, in [0, 1], by its evidence and the number of memories it stands out of."""
    middle = SCORE_MIDDLE + SCORE_GROWTH * math.log(max(documents, DOCUMENTS_FEW) / 100)
    return 1.0 / (1.0 + math.exp(SCORE_SLOPE * (middle - evidence)))
