"""Dates in text: find phrases such as "last Friday", and work out what they meant when they were said.

Always resolved against the message's own timestamp, never against the clock. English is covered in full; German,
French, Spanish, Italian, Portuguese and Dutch in the common phrases (``rules/dates.toml``). Text in a script that
none of these is written in goes to the library dateparser, as do timestamps in free form: it reads many languages,
but of thirteen everyday English phrases it resolved nine ("on the 5th" becomes another month, "tomorrow at 9" loses
its time, "this weekend" and "since 2019" are not found), takes "may", "sun" and "24/7" for dates, and needs 0.2 s to
import. So our rules come first, and it is imported only when needed.
"""

from localmem.dates.instants import FIRST, LAST, parse_instant, parse_loose, to_iso
from localmem.dates.phrases import DatePhrase, resolve
from localmem.dates.reading import readings, spans_from
from localmem.dates.rewriting import SAID_ON, as_said, rewrite

__all__ = [
    "FIRST",
    "LAST",
    "SAID_ON",
    "DatePhrase",
    "as_said",
    "parse_instant",
    "parse_loose",
    "readings",
    "resolve",
    "rewrite",
    "spans_from",
    "to_iso",
]
