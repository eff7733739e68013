"""The tools that a model gets for its memory: one table, from which function calling and the MCP server both are made.

A tool acts on a bound handle, so that whose memory it is never is the model's to choose. Names are mem0's; "full" adds
what explains, and OpenMemory's names. Answers are small: what a model needs for its next step, with long texts cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from localmem import tool_words
from localmem.errors import InvalidInputError, LocalmemError, NotFoundError
from localmem.tool_arguments import Given, Parameter, checked, parameters_schema
from localmem.types import JSON, Instant, Scope

STYLES = ("openai", "anthropic")
SETS = ("core", "full")
TEXT_CHARS_MAX = 2_000  # of one memory in a list; get_memory shows all of it
QUOTE_CHARS_MAX, QUOTES_MAX = 300, 3
CUT = " […]"
# What models put before a tool's name, from the shape of a call or from how clients name servers' tools.
_PREFIXES = ("functions.", "mcp__", "localmem.", "localmem__")

# A bound handle; its class stands above and names this module, so it can't be named here.
Bound = Any
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: what a model reads of it, what it answers, and the call on a bound handle. Annotations as in MCP."""

    name: str
    title: str
    description: str
    parameters: tuple[Parameter, ...]
    output_schema: dict[str, JSON]  # of what it answers, where that is no error
    run: Callable[[Bound, Mapping[str, Any]], Answer]
    full: bool = False
    writes: bool = False
    destructive: bool = False
    idempotent: bool = True

    @property
    def input_schema(self) -> dict[str, JSON]:
        """JSON schema of the arguments."""
        return parameters_schema(self.parameters)


def table(tools: str = "core", *, writes: bool = True) -> list[Tool]:
    """The tools of a set; without those that write for a read-only handle. InvalidInputError for an unknown set."""
    if tools not in SETS:
        raise InvalidInputError(f"tools must be one of {', '.join(SETS)}, not {tools!r:.40}")
    return [each for each in TOOLS if (tools == "full" or not each.full) and (writes or not each.writes)]


def schema(style: str, tools: str, *, writes: bool) -> list[dict[str, Any]]:
    """The tools as an OpenAI or Anthropic request wants them. InvalidInputError for an unknown style or set."""
    if style not in STYLES:
        raise InvalidInputError(f"style must be one of {', '.join(STYLES)}, not {style!r:.40}")
    chosen = table(tools, writes=writes)
    if style == "anthropic":
        return [{"name": t.name, "description": t.description, "input_schema": t.input_schema} for t in chosen]
    return [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": t.input_schema},
        }
        for t in chosen
    ]


def dispatch(
    memory: Bound, name: Any, arguments: Any, *, within: Scope, tools: str, writes: bool, bytes_max: int, now: Instant
) -> Answer:
    """Run a model's call on a handle bound to ``within``. A mistake of the model's, and any LocalmemError, is answered
    as {"error": {"type", "message"}}; ``tools``: the set it was shown, without those that write unless ``writes``."""
    found = {each.name: each for each in table(tools, writes=writes)}
    meant = _meant(name)
    if meant not in found and any(each.name == meant for each in table(tools)):
        return _error("ReadOnlyError", f"this memory is read-only. The tools are: {', '.join(found)}")
    tool = found.get(meant)
    if tool is None:
        near = get_close_matches(meant, list(found), n=1)
        asked = f"; did you mean {near[0]}?" if near else "."
        return _error("UnknownToolError", f"there is no tool {name!r:.60}{asked} The tools are: {', '.join(found)}")
    try:
        given = checked(
            tool.parameters, arguments, bound_to=within, bytes_max=bytes_max, now=now, strict=tool.destructive
        )
    except LocalmemError as error:
        return _error(type(error).__name__, tool_words.retold(error))
    try:
        return _told(tool.run(memory, given.values), given)
    except NotFoundError as error:
        of_memory = any(each.name.startswith("memory_id") for each in tool.parameters)
        advice = "; take an id from search_memories or list_memories" if of_memory else ""
        return _error(type(error).__name__, f"{_as_sent(str(error), given)}{advice}")
    except LocalmemError as error:
        return _error(type(error).__name__, tool_words.retold(error))


def _meant(name: Any) -> str:
    """A tool's name without what models put before it."""
    if not isinstance(name, str):
        return ""
    meant: str = name
    for prefix in _PREFIXES:
        meant = meant.removeprefix(prefix)
    return meant


def _as_sent(message: str, given: Given) -> str:
    """Ids are looked up in lower case, and quoted as the model wrote them."""
    for value in given.values.values():
        if isinstance(value, str):
            message = message.replace(f"{value.strip().lower()!r:.60}", f"{value!r:.60}")
    return message


def _error(kind: str, message: str) -> Answer:
    return {"error": {"type": kind, "message": message}}


def _told(answer: Answer, given: Given) -> Answer:
    return {**answer, "ignored_arguments": list(given.ignored)} if given.ignored else answer


# -------------------------------------------------------------------- what tools answer


def _object(required: Mapping[str, JSON], **optional: JSON) -> dict[str, JSON]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _answer(required: Mapping[str, JSON], **optional: JSON) -> dict[str, JSON]:
    """An answer; arguments that were of no use are named in it."""
    return _object(required, **optional, ignored_arguments=_list(_TEXT))


def _list(of: JSON) -> dict[str, JSON]:
    return {"type": "array", "items": of}


_TEXT: dict[str, JSON] = {"type": "string"}
_MAYBE_TEXT: dict[str, JSON] = {"type": ["string", "null"]}
_NUMBER: dict[str, JSON] = {"type": "number"}
_COUNT: dict[str, JSON] = {"type": "integer", "minimum": 0}
_FLAG: dict[str, JSON] = {"type": "boolean"}
_MOMENT: dict[str, JSON] = {"type": "string", "format": "date-time"}
_MAYBE_MOMENT: dict[str, JSON] = {"type": ["string", "null"], "format": "date-time"}

_RECORD_MAYBE: dict[str, JSON] = {"updated_at": _MOMENT, "valid_from": _MOMENT, "contested_with": _list(_TEXT)}
_RECORD = _object({"id": _TEXT, "memory": _TEXT, "created_at": _MOMENT}, **_RECORD_MAYBE)
_HIT_REQUIRED: dict[str, JSON] = {"id": _MAYBE_TEXT, "memory": _TEXT, "score": _NUMBER, "created_at": _MOMENT}
_HIT_MAYBE: dict[str, JSON] = {**_RECORD_MAYBE, "turn": _FLAG}
_HIT = _object(_HIT_REQUIRED, **_HIT_MAYBE)
_SIGNALS: dict[str, JSON] = {"type": "object", "additionalProperties": _NUMBER}
_CHANGE = _object({"id": _TEXT, "memory": _MAYBE_TEXT, "event": _TEXT}, previous_memory=_TEXT)


def _cut(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    return text if len(text) <= chars_max else text[: chars_max - len(CUT)] + CUT


def _record(found: Mapping[str, Any], chars_max: int = TEXT_CHARS_MAX) -> Answer:
    told = {"id": found["id"], "memory": _cut(found["memory"], chars_max), "created_at": _second(found["created_at"])}
    if found["updated_at"] not in (None, found["created_at"]):
        told["updated_at"] = _second(found["updated_at"])
    if found.get("valid_from"):
        told["valid_from"] = _second(found["valid_from"])
    return {**told, "contested_with": found["contested_with"]} if found.get("contested_with") else told


def _second(iso: str) -> str:
    """A moment without what is smaller than a second."""
    return f"{iso[:19]}Z"


def _hit(found: Mapping[str, Any]) -> Answer:
    told = {**_record(found), "score": found["score"]}
    return {**told, "turn": True} if found.get("turn") else told


def _change(change: Mapping[str, Any]) -> Answer:
    before = change.get("previous_memory")
    memory = change["memory"] or None
    told = {"id": change["id"], "memory": None if memory is None else _cut(memory), "event": change["event"]}
    return told if before is None else {**told, "previous_memory": _cut(before)}


# -------------------------------------------------------------------- the calls


def _add(memory: Bound, given: Mapping[str, Any]) -> Answer:
    message = {"role": given["role"], "content": given["text"]}
    added = memory.add([message], timestamp=given["when"], wait=False, keep=True)
    hint = tool_words.of_add(memory._worker_now())
    return {"episode_id": added["episode_id"], "status": added["status"], "hint": hint}


def _search(memory: Bound, given: Mapping[str, Any]) -> Answer:
    found = memory.search(
        given["query"], limit=given["limit"], threshold=given.get("threshold"), as_of=given.get("when")
    )
    results = [_hit(hit) for hit in found["results"]]
    hint = tool_words.of_search([each["score"] for each in results], given.get("when"))
    return {"results": results} if hint is None else {"results": results, "hint": hint}


def _explain(memory: Bound, given: Mapping[str, Any]) -> Answer:
    found = memory.search(given["query"], limit=given["limit"], explain=True)
    return {"results": [{**_hit(hit), "signals": hit["signals"]} for hit in found["results"]]}


def _get(memory: Bound, given: Mapping[str, Any]) -> Answer:
    found = memory.get(given["memory_id"])
    if found is None:
        raise NotFoundError(f"no memory has the id {given['memory_id']!r:.60}")
    return {**_record(found, len(found["memory"])), "version": found["version"], "metadata": found["metadata"]}


def _list_memories(memory: Bound, given: Mapping[str, Any]) -> Answer:
    page = memory.page(limit=given["limit"], offset=given["offset"], newest_first=True)
    told = {
        "results": [_record(each) for each in page["results"]],
        "total": page["total"],
        "offset": page["offset"],
        "more": page["more"],
    }
    return {**told, "next_offset": page["offset"] + len(page["results"])} if page["more"] else told


def _update(memory: Bound, given: Mapping[str, Any]) -> Answer:
    done = memory.update(given["memory_id"], given["text"])
    return {"results": [_change(each) for each in done["results"]]}


def _delete(memory: Bound, given: Mapping[str, Any]) -> Answer:
    done = memory.delete(given["memory_id"])
    return {"results": [_change(each) for each in done["results"]]}


def _delete_many(memory: Bound, given: Mapping[str, Any]) -> Answer:
    """All of them known, or none is deleted."""
    wanted = given["memory_ids"]
    unknown = [each for each in wanted if memory.get(each) is None]
    if unknown:
        raise NotFoundError(f"no memory has the id {unknown[0]!r:.60}; nothing was deleted")
    return {"results": [_change(change) for each in wanted for change in memory.delete(each)["results"]]}


def _delete_all(memory: Bound, given: Mapping[str, Any]) -> Answer:
    if not given["confirm"]:
        total = memory.page(limit=0)["total"]
        raise InvalidInputError(
            f"this would delete all {total:,} memories; nothing was deleted. Only if the user asked for exactly that, "
            'call it with {"confirm": true}'
        )
    return {"deleted": memory.delete_all()["deleted"]}


def _history(memory: Bound, given: Mapping[str, Any]) -> Answer:
    versions = memory.history(given["memory_id"])
    shown = versions[-given["limit"] :]
    return {"results": [_version(each) for each in shown], "total": len(versions)}


def _version(version: Mapping[str, Any]) -> Answer:
    quotes = [each["quote"] for each in version["evidence"] if each["quote"]]
    new, old = version["new_memory"], version["old_memory"]
    return {
        "event": version["event"],
        "memory": None if new is None else _cut(new),
        "previous_memory": None if old is None else _cut(old),
        "created_at": _second(version["created_at"]),
        "valid_from": _second(version["valid_from"]),
        "valid_to": version["valid_to"] and _second(version["valid_to"]),
        "reason": version["reason"],
        "quotes": [_cut(quote, QUOTE_CHARS_MAX) for quote in quotes[-QUOTES_MAX:]],
    }


def _context(memory: Bound, given: Mapping[str, Any]) -> Answer:
    return {"context": memory.context(given["query"], max_tokens=given["max_tokens"])}


def _decisions(memory: Bound, given: Mapping[str, Any]) -> Answer:
    found = memory.decisions(episode_id=given["episode_id"], unsupported=True if given["unsupported"] else None)
    shown = found[-given["limit"] :]
    return {"results": [_decision(each) for each in shown], "total": len(found)}


def _decision(decision: Mapping[str, Any]) -> Answer:
    return {
        "fact": _cut(decision["fact"]),
        "quote": _cut(decision["quote"] or "", QUOTE_CHARS_MAX),
        "event": decision["op"],
        "targets": decision["targets"],
        "reason": decision["reason"],
        "unsupported": decision["unsupported"],
        "episode_id": decision["episode_id"],
        "created_at": _second(decision["at"]),
    }


def _status(memory: Bound, given: Mapping[str, Any]) -> Answer:
    if given["episode_id"]:
        return _status_of(memory, given["episode_id"])
    found = memory.stats()
    queue, worker = found["queue"], found["worker"]
    told = {
        "memories": found["memories"],
        "waiting": queue["waiting"],
        "set_aside": queue["set_aside"],
        "worker": worker["state"],
    }
    return {**told, "hint": tool_words.of_memory(queue["waiting"], queue["set_aside"], worker)}


def _status_of(memory: Bound, episode_id: str) -> Answer:
    found = memory.status(episode_id)
    told = {name: found[name] for name in ("episode_id", "state", "attempts", "ahead")}
    told["error"] = tool_words.failure(found["error"])
    told["said_at"] = _second(found["said_at"])
    results = [_change(each) for each in found["results"]]
    hint = tool_words.of_episode(found["state"], memory._worker_now(), changed=bool(results))
    return {**told, "results": results, "hint": hint}


# -------------------------------------------------------------------- the table

_ID = "01928f2e-7c3a-7b1e-9f00-3c5d2a1b4e6f"
_QUERY = Parameter(
    "query", "string", "What to look for: a question or a few words.", required=True,
    example="Where does the user live?", also=("q", "question", "text", "search", "search_query", "topic"),
)  # fmt: skip
_LIMIT = Parameter(
    "limit", "integer", "How many to return.", minimum=1, maximum=50, default=10,
    also=("top_k", "k", "n", "count", "max_results", "num_results"),
)  # fmt: skip
_MEMORY_ID = Parameter(
    "memory_id", "id", "The id of a memory, from search_memories or list_memories.", required=True, example=_ID,
    also=("id", "mem_id", "memory"),
)  # fmt: skip
_WORDS = ("content", "memory", "data", "fact", "message", "new_text", "messages")
_SAID = Parameter(
    "text", "string", "What was said or is to be remembered, in full sentences.", required=True,
    example="I moved to Porto last week.", also=_WORDS,
)  # fmt: skip

_ADD = Tool(
    "add_memory",
    "Remember",
    "Remember something for later conversations: a fact, preference, plan or event about the user. "
    "Pass the user's own words. What is known already is updated, not kept twice.",
    (
        _SAID,
        Parameter(
            "role", "string", "Who said it.", choices=("user", "assistant"), default="user", example="user",
            also=("speaker", "author"), meant=(("human", "user"), ("ai", "assistant"), ("bot", "assistant")),
        ),
        Parameter(
            "when", "past", "Date it was said, like 2025-03-01. Leave out for now.", example="2025-03-01",
            also=("timestamp", "date", "time", "said_at"),
        ),
    ),
    _answer({"episode_id": _TEXT, "status": {"type": "string", "enum": ["waiting", "done"]}, "hint": _TEXT}),
    _add,
    writes=True,
    idempotent=False,
)  # fmt: skip
_SEARCH_TOOL = Tool(
    "search_memories",
    "Search memories",
    "Find what is remembered, best first. Use it before answering anything that may depend on the user's life, "
    "preferences or earlier talks. score: how well it fits, 0 to 1. A result without an id is a text not read yet.",
    (
        _QUERY,
        _LIMIT,
        Parameter(
            "threshold", "number", "Leave out results that score less. Leave out to get all.", minimum=0, maximum=1,
            example=0.3, also=("min_score", "score"),
        ),
        Parameter(
            "when", "moment", "Search what was true on that date, like 2025-03-01. Leave out for what is true now.",
            example="2025-03-01", also=("as_of", "date"),
        ),
    ),
    _answer({"results": _list(_HIT)}, hint=_TEXT),
    _search,
)  # fmt: skip
_LIST = Tool(
    "list_memories",
    "List memories",
    "List everything that is remembered, newest first, page by page. To find something, use search_memories.",
    (
        replace(_LIMIT, maximum=100, default=20),
        Parameter(
            "offset", "integer", "How many to skip: next_offset of the page before.", minimum=0,
            maximum=1_000_000_000, default=0, also=("skip", "start", "next_offset", "after"),
        ),
    ),
    _answer(
        {"results": _list(_RECORD), "total": _COUNT, "offset": _COUNT, "more": _FLAG}, next_offset=_COUNT
    ),
    _list_memories,
)  # fmt: skip

TOOLS: tuple[Tool, ...] = (
    _ADD,
    _SEARCH_TOOL,
    Tool(
        "get_memory",
        "Read a memory",
        "Read one memory in full by its id.",
        (_MEMORY_ID,),
        _answer(
            {"id": _TEXT, "memory": _TEXT, "created_at": _MOMENT, "version": _COUNT, "metadata": {"type": "object"}},
            **_RECORD_MAYBE,
        ),
        _get,
    ),
    _LIST,
    Tool(
        "update_memory",
        "Correct a memory",
        "Replace the text of a memory that is wrong. For something new, use add_memory.",
        (_MEMORY_ID, replace(_SAID, description="The whole new text.", example="User lives in Porto")),
        _answer({"results": _list(_CHANGE)}),
        _update,
        writes=True,
        destructive=True,
        idempotent=False,
    ),
    Tool(
        "delete_memory",
        "Delete a memory",
        "Delete one memory by its id, when the user asks to forget it or it is wrong.",
        (_MEMORY_ID,),
        _answer({"results": _list(_CHANGE)}),
        _delete,
        writes=True,
        destructive=True,
    ),
    Tool(
        "memory_history",
        "History of a memory",
        "How a memory changed: each earlier text, when it was true, why it changed, and the words it came from.",
        (_MEMORY_ID, replace(_LIMIT, description="How many versions to return, the latest.", default=20)),
        _answer(
            {
                "results": _list(
                    _object(
                        {
                            "event": _TEXT,
                            "memory": _MAYBE_TEXT,
                            "previous_memory": _MAYBE_TEXT,
                            "created_at": _MOMENT,
                            "valid_from": _MOMENT,
                            "valid_to": _MAYBE_MOMENT,
                            "reason": _MAYBE_TEXT,
                            "quotes": _list(_TEXT),
                        }
                    )
                ),
                "total": _COUNT,
            }
        ),
        _history,
    ),
    Tool(
        "memory_status",
        "Status",
        "Whether added texts were read already, and whether all is well. With an episode_id: what became of that add.",
        (
            Parameter(
                "episode_id", "id", "The episode_id that add_memory answered. Leave out for the whole memory.",
                example=_ID, also=("id", "episode"),
            ),
        ),
        _answer(
            {"hint": _TEXT},
            memories=_COUNT, waiting=_COUNT, set_aside=_COUNT, worker=_TEXT,
            episode_id=_TEXT, state=_TEXT, attempts=_COUNT, ahead=_COUNT, said_at=_MOMENT, error=_MAYBE_TEXT,
            results=_list(_CHANGE),
        ),
        _status,
    ),
    Tool(
        "memory_context",
        "Context for a question",
        "What is remembered about a question as one block of text to put into a prompt.",
        (
            _QUERY,
            Parameter(
                "max_tokens", "integer", "About how long at most.", minimum=1, maximum=4000, default=500,
                also=("tokens",),
            ),
        ),
        _answer({"context": _TEXT}),
        _context,
        full=True,
    ),
    Tool(
        "explain_search",
        "Explain a search",
        "Search, and show how each result's score came about.",
        (_QUERY, _LIMIT),
        _answer({"results": _list(_object({**_HIT_REQUIRED, "signals": _SIGNALS}, **_HIT_MAYBE))}),
        _explain,
        full=True,
    ),
    Tool(
        "memory_decisions",
        "Decision log",
        "Why memories were added, changed, deleted or left alone: the latest decisions, oldest of them first.",
        (
            Parameter(
                "episode_id", "id", "Decisions about one add alone. Leave out for all.", example=_ID,
                also=("episode", "id"),
            ),
            Parameter(
                "unsupported", "boolean", "Show facts alone that were kept out, as the words did not support them.",
                default=False,
            ),
            replace(_LIMIT, default=20),
        ),
        _answer(
            {
                "results": _list(
                    _object(
                        {
                            "fact": _TEXT,
                            "quote": _TEXT,
                            "event": _TEXT,
                            "targets": _list(_TEXT),
                            "reason": _MAYBE_TEXT,
                            "unsupported": _FLAG,
                            "episode_id": _TEXT,
                            "created_at": _MOMENT,
                        }
                    )
                ),
                "total": _COUNT,
            }
        ),
        _decisions,
        full=True,
    ),
    replace(_ADD, name="add_memories", description="The same as add_memory.", full=True),
    replace(_SEARCH_TOOL, name="search_memory", description="The same as search_memories.", full=True),
    Tool(
        "delete_memories",
        "Delete memories",
        "Delete several memories by their ids, when the user asks to forget them.",
        (
            Parameter(
                "memory_ids", "ids", "Ids of memories, with commas between them.", required=True,
                example=f"{_ID},{_ID[:-1]}0", also=("ids", "memory_id", "id", "memories"),
            ),
        ),
        _answer({"results": _list(_CHANGE)}),
        _delete_many,
        full=True,
        writes=True,
        destructive=True,
    ),
    Tool(
        "delete_all_memories",
        "Delete all memories",
        "Delete everything that is remembered. Only when the user asks for exactly that.",
        (
            Parameter(
                "confirm", "confirmation", "true, where the user asked for exactly that.", required=True, example=False
            ),
        ),
        _answer({"deleted": _COUNT}),
        _delete_all,
        full=True,
        writes=True,
        destructive=True,
    ),
)  # fmt: skip

__all__ = ["SETS", "STYLES", "TOOLS", "Tool", "dispatch", "schema", "table"]
