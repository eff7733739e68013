"""Requests to forget, found by rule before extraction, and facts that only take back a state.

A request acts on the person's own memory, so a false alarm deletes what was wanted: the rules ask for the form of a
request (the begin of a clause, an imperative, a memory or the person's own words as its object). Where the words
alone don't settle it ("forget that, let's do Friday") the confidence is below ``SURE_MIN`` and a model may decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from localmem import rules, words
from localmem.types import Message, Span

SURE_MIN = 0.7  # below it a request is marked ambiguous


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """What a person asked to be forgotten.

    ``kind`` is last (what was just said), topic (``query`` says which) or everything. ``span`` holds the words of the
    request in its message; ``remainder`` what else the message says and may be kept, "" when nothing of weight.
    ``own``: a request of kind last whose object stands in its own message ("I'm in AA. Don't save this"): that
    message is not to be read for facts, and nothing older is meant.
    """

    kind: str
    query: str
    message: int
    span: Span
    confidence: float  # in (0, 1]
    remainder: str
    own: bool = False
    more: tuple[Span, ...] = ()  # other words of the same request

    @property
    def ambiguous(self) -> bool:
        """The words may also mean something else: ask a model before acting."""
        return self.confidence < SURE_MIN


def detect(messages: Sequence[Message]) -> ForgetRequest | None:
    """The request to forget in the messages of role user, the surest and then the last; None without one."""
    found = [request for n, m in enumerate(messages) if m.role == "user" for request in _requests(n, m.content)]
    return max(found, key=lambda r: (r.confidence, r.message, -r.span.start), default=None)


@dataclass(frozen=True, slots=True)
class _Rule:
    kind: str
    confidence: float
    pattern: re.Pattern[str]


_TOPIC = r"(?P<t>[^.!?;\n]{2,120}?)"


@cache
def _rules(language: str) -> tuple[_Rule, ...]:
    table = rules.load("forget").table[language]
    filled = {key: table[key] for key in ("mem", "from", "say", "end", "topic_end")} | {"t": _TOPIC}
    return tuple(
        _Rule(kind, sure, _compiled(table["opening"], pattern, filled)) for kind, sure, pattern in table["rules"]
    )


def _compiled(opening: str, pattern: str, filled: dict[str, str]) -> re.Pattern[str]:
    for _ in range(2):  # {end} and {say} may stand inside {from}
        pattern = re.sub(r"\{(mem|from|say|end|topic_end|t)\}", lambda m: filled[m[1]], pattern)
    return re.compile(rf"(?im)(?:{_START})[\s¿¡(]*(?P<request>{opening}{pattern})")


# Where a request may begin: the text, a line, a sentence or clause, or after a joining word.
_START = "|".join(
    (
        "^",
        r"(?<=[.!?;:,\n(…–—-])",
        *(
            rf"(?<=\b{word}\s)"
            for word in ["and", "but", "so", "oh", "und", "aber", "et", "y", "e", "en", "maar", "ma", "mas"]
        ),
    )
)


def _requests(number: int, text: str) -> Iterator[ForgetRequest]:
    plain = words.straighten(text)
    for language in words.LANGUAGES:
        if not _cue(language).search(plain):
            continue
        for rule in _rules(language):
            for m in rule.pattern.finditer(plain):
                if not _reported(plain, m.start("request")):
                    yield _request(number, text, m, rule)


@cache
def _cue(language: str) -> re.Pattern[str]:
    """A word without which no rule of the language can match: ordinary messages cost microseconds."""
    return re.compile(rules.load("forget").table[language]["cue"], re.I)


@cache
def _reported_before() -> re.Pattern[str]:
    return re.compile(rules.load("forget").table["reported"]["pattern"])


def _reported(text: str, start: int) -> bool:
    """Whether the words before make it somebody else's request, a quotation, or "don't …"."""
    return bool(_reported_before().search(text[max(0, start - 60) : start].rstrip(" ,:")))


def _request(number: int, text: str, m: re.Match[str], rule: _Rule) -> ForgetRequest:
    start, end = m.span("request")
    start += len(text[start:end]) - len(text[start:end].lstrip())
    before, after = weighty(text[:start]), weighty(text[end:])
    query = _trimmed(text[m.start("t") : m.end("t")]) if rule.kind == "topic" else ""
    own = False
    if rule.kind == "last":
        # What was just said is what stands before in the same message; "this" is also what follows ("don't save this:
        # …").
        ahead = bool(_THIS.search(text[start:end]))
        own = bool(before or (after and ahead))
        before, after = "", "" if ahead else after
    rest = " ".join(part for part in (before, after) if part)
    return ForgetRequest(rule.kind, query, number, Span(number, start, end), rule.confidence, rest, own)


_THIS = re.compile(r"(?i)\b(?:this|any of (?:this|it)|off the record|dies|ceci|esto|questo|isto|disto|dit)\b")


def _trimmed(topic: str) -> str:
    topic = topic.strip(" \t\"'“”‘’«».,:;")
    return re.sub(r"(?i)[, ]+(?:please|pls|bitte|stp|svp|por favor|per favore|alsjeblieft)$", "", topic)


def blanked(text: str, spans: Sequence[Span]) -> str:
    """The text with blanks in the place of each span, so that no position moves."""
    for span in spans:
        text = text[: span.start] + " " * (span.end - span.start) + text[span.end :]
    return text


def weighty(part: str) -> str:
    """What stands beside a request without the polite words around it; "" when nothing else is left."""
    spoken = words.tokens(part)
    if all(token.folded in _empty_words() for token in spoken):
        return ""
    first = next(n for n, token in enumerate(spoken) if token.folded not in _polite_words())
    rest = part[spoken[first].start :] if first else part.lstrip(" \t\n,;:.!?-–—")
    return rest.strip(" \t\n,;:-–—")


@cache
def _polite_words() -> frozenset[str]:
    return frozenset(rules.load("forget").table["empty"]["polite"].split())


@cache
def _empty_words() -> frozenset[str]:
    return frozenset(words.bare(rules.load("forget").table["empty"]["words"]).split())


# --- retractions ---


def retraction(fact_text: str) -> str | None:
    """The state that a fact merely takes back, as a positive statement for matching; None for any other fact.

    "User no longer has a car" gives "User has a car". A fact that says what came instead, or that holds more than the
    end of a state ("User quit smoking"), is no mere retraction.
    """
    fact = words.straighten(fact_text).strip().rstrip(".! ")
    table = rules.load("forget").table["retraction"]
    if re.search(table["replaced"], fact):
        return None
    core = re.sub(table["tail"], "", fact).strip()
    for pattern, form in _retractions():
        if m := pattern.match(core):
            return _core(m, form)
    return None


@cache
def _retractions() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), form) for pattern, form in rules.load("forget").table["retraction"]["rules"])


def _core(m: re.Match[str], form: str) -> str | None:
    table = rules.load("forget").table["retraction"]
    if re.search(table["unreal"], m[1]):
        return None  # "will perhaps quit", "has not yet sold": nothing has ended
    if "{animal}" in form:
        if not re.search(table["animals"], m[2]):
            return None  # the death of a person is news, not the end of a possession
        form = form.replace(" {animal}", "")
    if "-ing}" in form:
        if re.match(table["abstained"], m[2]):
            return None
        form = form.replace(r"{\2-ing}", _third_person(_infinitive(m[2])))
    if "s}" in form:
        form = form.replace(r"{\2s}", _third_person(m[2]))
    if "{a}" in form:
        form = form.replace("{a} ", _article(m[2]))
    owner = m[1].removesuffix("'s")
    return " ".join(m.expand(form.replace("{owner}", owner)).split())


def _article(noun: str) -> str:
    head = re.split(r" (?:of|for|in|at|on|with|to|from|and)\b", noun)[0].split()[-1]
    if re.search(r"[^s]s$", head) or re.match(r"\d|[A-Z]\w+'s ", noun):
        return ""
    return "an " if noun[:1].lower() in "aeiou" else "a "


def _third_person(verb: str) -> str:
    irregular = {"have": "has", "be": "is", "do": "does", "go": "goes"}
    if verb in irregular:
        return irregular[verb]
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(?:s|sh|ch|x|z|o)$", verb) else "s")


def _infinitive(gerund: str) -> str:
    """``taking`` to take, ``running`` to run, ``playing`` to play: by the shape of the word."""
    base = gerund[:-3]
    if len(base) > 2 and base[-1] == base[-2] and base[-1] not in "lsz":
        return base[:-1]
    if (
        re.search(
            r"(?:[^aeiou][aiou][kvzs]|[aeo]ng|[ai]r|[iu]d|at|[ao]v|iv|uc|ng|rv|us|os|as|is|ak|ik|ok|yp|op|om|in[kd]?|ot|at)$",
            base,
        )
        and base not in _NO_E
    ):
        return (
            base + "e"
            if re.search(r"[^aeiou][aeiou][^aeiouwxy]$|[rc]v$|[aeiou][rn][cgs]$|uc$|[aeiou][scvz]$", base)
            else base
        )
    return base


_NO_E = frozenset(["visit", "edit", "eat", "sit", "meet", "plan", "help", "cook", "feel", "wait", "need", "read"])
