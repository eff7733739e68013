"""The support guard: is a proposed fact really said in the conversation it is said to come from?

Each class of words has its own test. Names, identifiers, quantities and dates are where an invented fact does harm,
so they must stand in the conversation or follow from it; other words may be paraphrased, so only their share counts.
"""

from localmem.support.alignment import align
from localmem.support.evidence import content
from localmem.support.guards import GUARDS, SHARE_MIN, WORDS_MIN, check

__all__ = ["GUARDS", "SHARE_MIN", "WORDS_MIN", "align", "check", "content"]
