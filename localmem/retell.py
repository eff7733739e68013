"""Turn what a person said of themselves round to the third person, by rule and word for word. Pure; English.

Word lists are data (``rules/clauses.toml``). Where the rules are not sure of a subject there is no wording: the words
are then quoted, which is less fluent and never wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from localmem import rules, words

# A wording with choices: one tuple of alternatives per place, the likeliest first.
Lattice = tuple[tuple[str, ...], ...]

_CONTRACTED = {
    "i'm": ("is",), "im": ("is",), "i've": ("has",), "ive": ("has",), "i'll": ("will",), "i'd": ("would", "had"),
    "we're": ("is",), "we've": ("has",), "we'll": ("will",), "we'd": ("would", "had"),
}  # fmt: skip


def restate(clause: str, subject: str = "User", *, before: str = "") -> Lattice:
    """The clause in the third person about ``subject``: a place per word, alternatives where grammar allows two.

    "I teach maths, my wife's a nurse" gives (User)(teaches)(maths,)(User's)(wife's)(a)(nurse). ``before``: what the
    person said before the clause, for whom "she" is. An empty lattice: nothing that can be said of the subject.
    Other languages than English are quoted: their grammar is not known here.
    """
    if "en" not in words.guess_languages(f"{before}\n{clause}"):
        return ((f"{subject}:",), *((token,) for token in clause.split()))
    order = wish(clause, subject)
    return _told(clause, subject, before) if order is None else order


def likeliest(lattice: Sequence[tuple[str, ...]]) -> str:
    """The wording of first alternatives."""
    return " ".join(place[0] for place in lattice)


def told(text: str, subject: str, *, before: str = "", standing: bool = False) -> str | None:
    """Words worth keeping as a sentence about the subject: "quit the job" is "User quit the job".

    ``standing``: they say how the assistant should behave. None where a rule would be guessing: another language, a
    subject that is not named, a bare list.
    """
    plain = " ".join(text.replace("’", "'").split())
    if not plain or words.guess_languages(text)[0] != "en" or "en" not in words.guess_languages(f"{before}\n{text}"):
        return None
    standing = standing or re.match(r"(?i)(?:please|pls)\b", plain) is not None
    order = wish(plain, subject, standing=standing)
    if order is not None:  # said to another person it is no wish about the assistant
        return likeliest(order) if subject == "User" else None
    if standing or _UNTOLD.search(plain):
        return None
    if _OWN.match(plain):
        return _chosen(_places(plain, subject))
    first = plain.split()[0].lower().strip(",;:")
    if first in listed("openings", "they"):
        return likeliest(_told(plain, subject, before)) or None
    return _elided(plain, subject) or _in_place(plain, subject)


def names_relative(text: str) -> bool:
    """Whether a clause begins with a word that `told` replaces by the relative spoken of before: "she works nights"."""
    return text.split()[0].lower().replace("’", "'").strip(",;:") in listed("openings", "they")


_SPEAKING = frozenset({"i", "we", "my", "our", "me", "us", "mine", "ours", "myself", "ourselves", *_CONTRACTED})
# What begins with the person and what is theirs.
_OWN = re.compile(r"(?:i|we)(?:'(?:m|ve|ll|d|re))?\b|(?:im|ive|my|our)\b", re.IGNORECASE)
# Of these the rules would make nonsense: "we're two dads", "my tall one", what is said to another.
_UNTOLD = re.compile(
    r"\b(?:we're|we are)(?! (?:\w+ing|not|in|at|on|from|all|both|still|now|just|moving|married|vegan|vegetarian)\b)"
    r"|^(?:my|our)(?: \w+)? ones?\b|^(?:my|our) (?:first|second|third)\b(?! [^\W\d_]{4})|\byou(?:'\w+|r|rs)?\b",
    re.IGNORECASE,
)


def _elided(text: str, subject: str) -> str | None:
    """A clause that begins with the verb of an "I" left out: "know zero javascript", "doing keto since May"."""
    first, *rest = text.split()
    low, following = first.lower(), rest[0].lower().strip(",;:") if rest else ""
    turned: list[tuple[str, ...]] = []
    for token in text.split():
        _place(turned, token, subject, False)
    if low in listed("verbs", "adverbs"):
        return likeliest(_after_adverb(turned, subject)) or None
    asks = low in listed("openings", "unclear") and following in ("my", "our")
    if not following or asks or following.partition("'")[0] in listed("openings", "asked_after"):
        return None
    clear = following in listed("openings", "after_verb") or following[:1].isdigit()
    if low.endswith("ing") and len(low) > 4 and low not in listed("openings", "no_participle"):
        clear = clear or (following[:1].islower() and re.search(r"\b(?:is|was|are|were|has|makes)\b", text) is None)
        return likeliest(((subject,), ("is",), (low,), *turned[1:])) if clear else None
    known = listed("openings", "own_verb") | listed("verbs", "fixed") | listed("verbs", "either")
    if low in known:
        clear = clear or low not in listed("openings", "unclear")
    elif not (low in listed("openings", "elided") or _is_past(low)):
        return None
    return likeliest(((subject,), _verb(low), *turned[1:])) if clear else None


def _in_place(text: str, subject: str) -> str | None:
    """A clause that speaks of the person, but does not begin with them: "tomorrow I get the keys"."""
    places = _places(text, subject)
    first = text.split()[0].lower().strip(",;:")
    if first in listed("openings", "unclear") | listed("openings", "asking") | listed("signals", "imperative"):
        return None
    following = " ".join(text.split()[1:2]).lower()
    if first in _SPEAKING and " and " not in text:
        return None
    if first == "when" and following in listed("openings", "unclear"):  # "when can I eat"
        return None
    if not any(token.lower().strip(',.;:!?()"') in _SPEAKING for token in text.split()):
        return None
    wording = _chosen(places)
    return wording[0].upper() + wording[1:]


def _chosen(places: Sequence[tuple[str, ...]]) -> str:
    """The likeliest wording; "I'd moved" is "had moved"."""
    chosen = list(places)
    for position, place in enumerate(chosen[:-1]):
        following = chosen[position + 1][0].lower()
        had = following.endswith("ed") or following in listed("verbs", "after_has")
        if len(place) == 2 and place[0].startswith("would") and had:
            chosen[position] = place[1:]
    return likeliest(chosen)


def _told(clause: str, subject: str, before: str) -> Lattice:
    places = _places(clause, subject)
    if not places or re.match(rf"{re.escape(subject)}(?!\w)", places[0][0]):
        return tuple(places)
    return _with_subject(places, subject, before)


def _places(clause: str, subject: str) -> list[tuple[str, ...]]:
    places: list[tuple[str, ...]] = []
    own_verb = False  # the next verb is the subject's
    verb_seen = False  # the subject has had one
    for token in clause.replace("’", "'").split():
        joined = verb_seen and not own_verb and places[-1][0].lower() in ("and", "but")
        if joined and token.lower() in _joined_verbs() | listed("verbs", "joined"):
            own_verb = True
        had = own_verb
        own_verb = _place(places, token, subject, own_verb)
        verb_seen = verb_seen or (had and not own_verb) or token.lower() in _CONTRACTED
    return places


def _place(places: list[tuple[str, ...]], token: str, subject: str, own_verb: bool) -> bool:
    """Append the places of one word; True while the subject's verb is still to come."""
    low = token.strip(',.;:!?()"“”').lower()
    head = token[: len(token) - len(token.lstrip('("“'))]
    tail = token[len(token.rstrip(',.;:!?…)"”')) :] if low else ""
    if low in ("i", "we"):
        new = all(place[0] != subject for place in places)
        both = new and 1 < len(places) < 5 and places[-1][0].lower() == "and"  # "my sister Priya and I live"
        places.append((head + subject + tail,))
        return not both
    if low in _CONTRACTED:
        places += [(head + subject,), tuple(verb + tail for verb in _CONTRACTED[low])]
        return False
    changed = {
        "my": f"{subject}'s", "our": f"{subject}'s", "mine": f"{subject}'s", "ours": f"{subject}'s",
        "me": subject, "us": subject, "myself": "themselves", "ourselves": "themselves",
    }.get(low)  # fmt: skip
    if changed is not None:
        places.append((head + changed + tail,))
        return own_verb and "sel" in low
    if not own_verb:
        places.append((token,))
        return False
    if low in ("who", "which", "that", "and", "or", "as"):
        places.append((token,))
        return False
    adverb = low in listed("verbs", "adverbs") or (low.endswith("ly") and low not in ("fly", "rely", "apply", "supply"))
    places.append((token,) if adverb else tuple(form + tail for form in _verb(low)))
    return adverb


def _is_past(low: str) -> bool:
    return low.endswith("ed") and len(low) > 3 and low not in listed("verbs", "no_past")


@cache
def _joined_verbs() -> frozenset[str]:
    """After "and" these are the subject's again: "I'm 74 and have …"."""
    return frozenset(pair.split("=")[0] for pair in listed("verbs", "irregular"))


def _verb(low: str) -> tuple[str, ...]:
    """Third-person forms of a verb said in the first person, the likeliest first."""
    irregular = dict(pair.split("=") for pair in listed("verbs", "irregular"))
    if low in irregular:
        return (irregular[low],)
    if low in listed("verbs", "fixed") or not low.isalpha():
        return (low,)
    gerund = low.endswith("ing") and len(low) > 4 and low not in listed("openings", "no_participle")
    if _is_past(low) or gerund or (low.endswith("s") and low[:-1] in listed("openings", "elided")):
        return (low,)
    third = _third_person(low)
    return (low, third) if low in listed("verbs", "either") else (third,)


def _third_person(low: str) -> str:
    if re.search(r"(?:s|sh|ch|x|z|o)$", low):
        return low + "es"
    if re.search(r"[^aeiou]y$", low):
        return low[:-1] + "ies"
    return low + "s"


def _with_subject(places: list[tuple[str, ...]], subject: str, before: str) -> Lattice:
    """A clause that does not begin with its subject, made to; empty where that would be guessing."""
    first = places[0][0]
    low = first.lower().strip(",;:")
    if low in listed("openings", "they"):
        return _of_relative(places, subject, before)
    if low in listed("openings", "no_topic"):
        return ()
    if low in listed("verbs", "adverbs"):
        return _after_adverb(places, subject)
    gerund = low.endswith("ing") and len(low) > 4 and low not in listed("openings", "no_participle")
    if gerund and not any(place[0].lower() in listed("verbs", "after_gerund") for place in places[1:9]):
        return ((subject,), ("is",), (low,), *places[1:])
    past = _is_past(low) or low in listed("verbs", "either")
    if len(places) > 2 and (past or low in listed("openings", "own_verb") | listed("verbs", "fixed")):
        return ((subject,), _verb(low), *places[1:])
    if low == "the" and len(places) > 3:
        return ((f"{subject}'s",), *places[1:])
    return ((subject,), ("says",), *places) if len(places) > 2 else ()


def _after_adverb(places: list[tuple[str, ...]], subject: str) -> Lattice:
    """ "never eat meat": the verb follows, after "still" or "just" only where it is known as one."""
    adverb, *rest = places
    if not rest or re.match(rf"{re.escape(subject)}(?!\w)", rest[0][0]):
        return ()
    verb = rest[0][0].lower()
    known = verb in listed("openings", "own_verb") | listed("verbs", "fixed") | listed("signals", "state")
    known = known or verb.endswith("ed") or adverb[0].lower() in ("always", "never", "usually")
    if not verb or verb in listed("verbs", "adverbs") or not known:
        return ()
    return ((subject,), (adverb[0].lower(),), _verb(verb), *rest[1:])


def _of_relative(places: list[tuple[str, ...]], subject: str, before: str) -> Lattice:
    """ "She works nights" after "my wife …" is about the wife; after anything else it is left alone."""
    first = places[0][0].lower()
    others = listed("people", "women" if first.startswith(("he", "his")) and not first.startswith("her") else "men")
    several = first.startswith("the")
    relatives = [
        one for one in _relative().findall(before) if several == (one.split()[-1] in listed("people", "several"))
    ]
    if not relatives or (not several and others & set(relatives[-1].lower().split())):
        return ()
    start: list[tuple[str, ...]] = [(f"{subject}'s",), (relatives[-1],)]
    verb = {"he's": "is", "she's": "is", "they're": "are", "they've": "have"}.get(first)
    if verb == "is" and len(places) > 1 and places[1][0].lower() in listed("verbs", "after_has"):
        verb = "has"
    if verb is not None:
        start.append((verb,))
    elif first in ("his", "her", "their"):
        start[-1] = (f"{relatives[-1]}'s",)
    return (*start, *places[1:])


@cache
def _relative() -> re.Pattern[str]:
    kin = sorted(listed("people", "relatives"), key=len, reverse=True)
    return re.compile(rf"\b(?i:my|our) ((?:[\w-]+ )?(?:{'|'.join(kin)})\b(?!['’-])(?: [A-ZÀ-Þ][\w'-]+)?)")


def wish(clause: str, subject: str, *, standing: bool = False) -> Lattice | None:
    """A standing order to the assistant said of the person: "never use emoji": User wants the assistant to never …

    ``standing``: that it is meant for good is known.
    """
    plain = clause.replace("’", "'")
    found = _order().match(plain)
    if found is None or not (standing or found["adverb"] or found["negation"] or _standing().search(plain)):
        return None
    verb, *rest = plain[found.end() :].split()
    if not rest:
        return None
    order = "not to" if found["negation"] else f"to {found['adverb'].lower()}" if found["adverb"] else "to"
    if found["negation"] == "stop":  # "stop suggesting …" is not "not to suggesting"
        order, verb = "to stop", verb.lower()
    places: list[tuple[str, ...]] = [(f"{subject} wants the assistant {order}",), (verb.lower(),)]
    own_verb = False
    for token in rest:
        own_verb = _place(places, token, subject, own_verb)
    return tuple(places)


@cache
def _order() -> re.Pattern[str]:
    table = rules.load("clauses").table["wishes"]
    one, *several = phrases(table["polite"])
    polite = "|".join(sorted((*one.split(), *several), key=len, reverse=True))
    verbs = "|".join(table["verbs"].split())
    return re.compile(
        rf"(?:(?:{polite})\s+)*(?:(?P<adverb>always|never)\s+|(?P<negation>don't|do not|stop)\s+)?(?:please\s+|pls\s+)?"
        rf"(?=(?:{verbs})\b|(?<=stop )\w+ing\b)",
        re.IGNORECASE,
    )


@cache
def _standing() -> re.Pattern[str]:
    return _whole_words(phrases(rules.load("clauses").table["wishes"]["standing"]))


def _whole_words(listed_phrases: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, listed_phrases))})(?!\w)", re.IGNORECASE)


def phrases(text: str) -> list[str]:
    """Parted by ``|`` in the rule data."""
    return [" ".join(phrase.split()) for phrase in text.split("|")]


@cache
def listed(part: str, name: str) -> frozenset[str]:
    """One word list of ``rules/clauses.toml``."""
    return frozenset(rules.load("clauses").table[part][name].split())
