"""The phrase rules of each language, compiled from ``rules/dates.toml`` once and when first asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from localmem import rules


@dataclass(frozen=True, slots=True)
class Rule:
    what: str
    shift: int
    pattern: re.Pattern[str]
    absolute: bool


@dataclass(frozen=True, slots=True)
class Language:
    name: str
    rules: tuple[Rule, ...]
    months: tuple[re.Pattern[str], ...]
    weekdays: tuple[re.Pattern[str], ...]
    units: Mapping[str, re.Pattern[str]]
    numbers: Mapping[str, int]
    seasons: tuple[re.Pattern[str], ...]
    season_names: tuple[str, ...]
    holidays: tuple[tuple[re.Pattern[str], str], ...]
    past: re.Pattern[str]
    future: re.Pattern[str]
    time: re.Pattern[str]
    time_words: Mapping[str, int]
    write: Mapping[str, str]
    month_names: tuple[str, ...]
    keep: tuple[str, ...]
    drop: tuple[str, ...]
    recurs: re.Pattern[str]
    follow_no: re.Pattern[str]
    spans: re.Pattern[str]
    listed_weekday: tuple[re.Pattern[str], re.Pattern[str]]


_COMMON: tuple[tuple[str, str], ...] = (
    (
        "iso",
        r"(?P<y>(?:19|20)\d\d)-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])"
        r"(?:[T ](?P<h>[01]\d|2[0-3]):(?P<mi>[0-5]\d))?",
    ),
    ("iso", r"(?P<y>(?:19|20)\d\d)-(?P<month>0[1-9]|1[0-2])(?![-\d])"),
    ("iso", r"(?P<y>(?:19|20)\d\d)/(?P<month>0?[1-9]|1[0-2])/(?P<day>0?[1-9]|[12]\d|3[01])"),
    ("numeric", r"(?P<day>0?[1-9]|[12]\d|3[01])\.(?P<month>0?[1-9]|1[0-2])\.(?P<y>(?:19|20)\d\d)"),
    ("numeric", r"(?P<day>1[3-9]|2\d|3[01])/(?P<month>0?[1-9]|1[0-2])/(?P<y>(?:19|20)\d\d)"),
    ("numeric", r"(?P<month>0?[1-9]|1[0-2])/(?P<day>1[3-9]|2\d|3[01])/(?P<y>(?:19|20)\d\d)"),
    ("slashes", r"(?P<day>0?[1-9]|1[0-2])/(?P<month>0?[1-9]|1[0-2])/(?P<y>(?:19|20)\d\d)"),
)


@cache
def common_rules() -> tuple[Rule, ...]:
    """Dates in digits, the same in every language."""
    return tuple(
        Rule(what, 0, re.compile(rf"(?<![\w./-]){pattern}(?![\w/-])"), absolute=True) for what, pattern in _COMMON
    )


@cache
def language_of(name: str) -> Language:
    """The compiled rules of one of ``words.LANGUAGES``; KeyError for another."""
    table = rules.load("dates").table[name]
    full = [alternatives.split("|")[0] for alternatives in table["months"]]
    filled = _placeholders(table)

    return Language(
        name=name,
        rules=tuple(_compiled(what, shift, pattern, filled) for what, shift, pattern in table["rules"]),
        months=_whole(table["months"]),
        weekdays=_whole(table["weekdays"]),
        units={unit: re.compile(f"(?i)(?:{pattern})") for unit, pattern in table["units"].items()},
        numbers=table["numbers"],
        seasons=tuple(re.compile(f"(?i)(?:{pattern})") for pattern in table["seasons"]),
        season_names=tuple(pattern.split("|")[0] for pattern in table["seasons"]),
        holidays=tuple((re.compile(f"(?i)(?:{pattern})"), day) for pattern, day in table["holidays"].items()),
        past=_cue(table["past"]),
        future=_cue(table["future"]),
        time=re.compile(f"(?i)(?:{table['time']})"),
        time_words=table.get("time_words", {}),
        write=table["write"],
        month_names=tuple(table.get("month_names", [month.capitalize() for month in full])),
        keep=tuple(sorted(table["keep"], key=len, reverse=True)),
        drop=tuple(sorted(table["drop"], key=len, reverse=True)),
        recurs=re.compile(rf"(?i)(?<!\w)(?:{table['recurs']})\W+(?:\w+\W+)?$"),
        follow_no=re.compile(rf"(?i)[ -](?:{table.get('follow_no', 'x^')})(?!\w)"),
        spans=re.compile(rf"(?i)(?<![\w.,]){filled['n']}[ -](?:(?:{_MORE}) )?{filled['unit']}(?!\w)"),
        listed_weekday=_listed(filled["wda"].replace("?P<wd>", "?:")),
    )


_MORE = "more|further|weitere[rn]?|autres|más|altri|mais"
_LISTING = r",|/|-|–|&|\+|and|or|to|through|bis|und|oder|et|ou|à|y|o|a|e|en|of|tot"


def _listed(weekdays: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What stands before and after a weekday that is one of several: "Monday to Friday"."""
    before = re.compile(rf"(?i)(?:{weekdays})s?\.? ?(?:{_LISTING})? ?$")
    return before, re.compile(rf"(?i) ?(?:{_LISTING}) ?(?:{weekdays})")


def _cue(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?i)(?<!\w)(?:{pattern})(?!\w)")


def _whole(alternatives: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(f"(?i)(?:{pattern})\\Z") for pattern in alternatives)


def _placeholders(table: Mapping[str, Any]) -> dict[str, str]:
    full_months = "|".join(m.split("|")[0] for m in table["months"])
    months = "|".join(sorted("|".join(table["months"]).split("|"), key=len, reverse=True))
    free = "|".join(m for m in (a.split("|")[0] for a in table["months"]) if m not in table["ambiguous_months"])
    weekdays = "|".join(_long_names(names) for names in table["weekdays"])
    every_weekday = "|".join(sorted("|".join(table["weekdays"]).split("|"), key=len, reverse=True))
    numbers = "|".join(sorted(map(re.escape, table["numbers"]), key=len, reverse=True))
    dom = r"(?:0?[1-9]|[12]\d|3[01])(?!\d)"
    return {
        "wd": f"(?P<wd>{weekdays})",
        "wda": f"(?P<wd>{every_weekday})",
        "mon": f"(?P<mon>{full_months})",
        "mfree": f"(?P<mon>{free})",
        "cap": f"(?P<mon>{'|'.join(m.capitalize() for m in table['ambiguous_months'])})",
        "mab": f"(?P<mon>{months})",
        "mab1": f"(?P<mon1>{months})",
        "n": rf"(?P<n>\d{{1,3}}|{numbers})",
        "unit": f"(?P<unit>{'|'.join(table['units'].values())})",
        "dom": f"(?P<dom>{dom})",
        "dom1": f"(?P<dom1>{dom})",
        "ord": table["ordinals"],
        "y": r"(?P<y>(?:19|20)\d\d)(?!\d)",
        "sea": f"(?:{'|'.join(table['seasons'])})",
        "hol": f"(?:{'|'.join(sorted(table['holidays'], key=len, reverse=True))})",
    }


def _long_names(names: str) -> str:
    """The names of a weekday that are words, without the two- to five-letter abbreviations."""
    first, *others = names.split("|")
    return "|".join((first, *(name for name in others if len(name) > 5)))


def _compiled(what: str, shift: int, pattern: str, filled: Mapping[str, str]) -> Rule:
    seen: dict[str, int] = {}

    def fill(m: re.Match[str]) -> str:
        text = filled[m[1]]
        if not text.startswith("(?P<"):
            return text
        # A group name may stand once: the second {wd} of a pattern becomes wd_2, and group() looks at both.
        name = text[4 : text.index(">")]
        seen[name] = seen.get(name, 0) + 1
        return text if seen[name] == 1 else text.replace(f"(?P<{name}>", f"(?P<{name}_{seen[name]}>", 1)

    filled_in = re.sub(r"\{([a-z]+1?)\}", fill, pattern)
    absolute = what in ("month_day", "range", "named_year", "numeric", "iso", "holiday") or (
        what == "named_month" and shift == 0
    )
    return Rule(what, shift, re.compile(rf"(?i)(?<!\w)(?<!\d[.,:/-])(?:{filled_in})(?!\w)"), absolute)


def group(m: re.Match[str], name: str) -> str | None:
    """A named part of a match, in whichever place of the pattern it stands."""
    for candidate in (name, f"{name}_2", f"{name}_3"):
        if candidate in m.re.groupindex and m[candidate] is not None:
            return str(m[candidate])
    return None


def count_of(m: re.Match[str], language: Language) -> int:
    """The number of "two weeks", in digits or in words."""
    said = group(m, "n") or "1"
    return int(said) if said.isdigit() else language.numbers[said.lower()]


def unit_of(m: re.Match[str], language: Language) -> str:
    """day, week, month or year."""
    said = group(m, "unit") or ""
    return next(name for name, pattern in language.units.items() if pattern.fullmatch(said))
