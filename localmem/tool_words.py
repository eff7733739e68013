"""What a model is told beside a tool's results: hints to act on, and errors without what only a programmer can do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from localmem.errors import LocalmemError, TooLargeError

TROUBLE_CHARS_MAX = 2_000  # an error's cure stands at its end
SCORE_POOR = 0.05  # what scores less shares next to nothing with what was asked

SET_ASIDE = "Its facts could not be read. The words are kept; ask the user to run `localmem list --pending`."
UNREAD_ID = (
    'a result without an id is a text that is not read yet; wait, or add_memory "Please forget …" where it is to go'
)
_RECORDED = "Recorded, and found by search_memories at once."

Worker = Mapping[str, Any]  # as in stats()["worker"]


# -------------------------------------------------------------------- hints


def of_add(worker: Worker) -> str:
    """What to know of a text that was just recorded, whatever it says: it may ask to forget."""
    if worker["trouble"]:
        return f"{_RECORDED} It can't be read now. Tell the user: {trouble(worker)}"
    if worker["state"] == "paused":
        return f"{_RECORDED} It is read once the user lets the reading go on, which they paused."
    return f"{_RECORDED} It is read in the background; memory_status with this episode_id tells what came of it."


def of_episode(state: str, worker: Worker, *, changed: bool) -> str:
    """What became of one add."""
    if state == "set_aside":
        return SET_ASIDE
    if state == "done":
        nothing = "Nothing new was kept of it: it was known already, or held nothing to keep."
        return "Its facts are among the memories." if changed else nothing
    if worker["trouble"]:
        return f"It is kept, but can't be read now. Tell the user: {trouble(worker)}"
    if worker["state"] == "paused":
        return "It waits, as the user paused the reading. It is kept, and search_memories finds its words."
    return "Its facts are still to be read; search_memories finds the words meanwhile."


def of_memory(waiting: int, set_aside: int, worker: Worker) -> str:
    """Whether all is well."""
    if worker["trouble"]:
        what = "Texts are kept, but can't be read now." if waiting else "Nothing waits, but no text can be read now."
        return f"{what} Tell the user: {trouble(worker)}"
    if waiting and worker["state"] == "paused":
        return "Texts wait, as the user paused their reading. They are kept, and search_memories finds their words."
    if set_aside:
        return "Some texts could not be read. They are kept; ask the user to run `localmem list --pending`."
    return "Texts wait to be read; search_memories finds their words meanwhile." if waiting else "All is well."


def of_search(scores: list[float], when: str | None) -> str | None:
    """A word where nothing that was found is of use; None where something is."""
    if scores and max(scores) >= SCORE_POOR:
        return None
    if when:
        return f"Nothing was known to be true on {when[:10]} that fits."
    return "Nothing that is remembered fits this well."


# -------------------------------------------------------------------- errors

_FOR_PROGRAMMERS = (  # what is said to them, and what a model is told instead
    (re.compile(r"shorten it or (?:pass|raise) [^;]*$"), "send less text"),
    (re.compile(r"; add them in several calls, or raise Limits\.\w+"), "; send less text"),
    (re.compile(r" \(Limits\.\w+\)"), "; send less text"),
    (re.compile(r", or raise Limits\.\w+"), ""),
    (re.compile(r"Memory\(generator='([^']*)'\)"), r"`--generator \1`"),
    (re.compile(r", or use infer=False"), ""),
    (re.compile(r"add\(infer=True\) needs"), "reading texts needs"),
    (re.compile(r"call resume\(\)"), "run `localmem resume`"),
)
_FAILURES = {  # why reading failed, by the class that the file keeps of it
    "ConflictError": "The memories kept changing while it was read.",
    "GeneratorError": "The model's answer could not be used.",
    "GeneratorUnavailableError": "No model answered.",
    "LockedError": "The file was locked by another program.",
    "MissingExtraError": "What reads texts is not installed.",
    "ModelFileError": "The model's file is not what it should be.",
    "ModelNotFoundError": "The model's file is not there.",
    "StorageError": "The file could not be written.",
}


def retold(error: LocalmemError | str) -> str:
    """An error of ours without the half that speaks of Python code, which a model can't change."""
    told = str(error)
    for pattern, instead in _FOR_PROGRAMMERS:
        told = pattern.sub(instead, told)
    if isinstance(error, TooLargeError) and "less text" not in told:
        told += "; send less text"
    return told


def trouble(worker: Worker) -> str:
    """Why the worker can't read on, whole with its cure."""
    return retold(worker["trouble"]["message"])[:TROUBLE_CHARS_MAX]


def failure(kept: str | None) -> str | None:
    """The error that the file keeps of an episode, a class's name, as a sentence."""
    if kept is None or not kept.isidentifier():
        return kept
    return _FAILURES.get(kept, f"Reading it failed ({kept}).")


__all__ = [
    "SET_ASIDE", "UNREAD_ID", "failure", "of_add", "of_episode", "of_memory", "of_search", "retold", "trouble",
]  # fmt: skip
