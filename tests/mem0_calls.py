"""A table of calls as people's programs make them on mem0, and what came of each, in a form that can be compared.

Needs nothing but the standard library: it is also read in an environment that has mem0ai and no localmem.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from typing import Any

ANN = {"user_id": "ann"}
IN_ANN = {"filters": {"user_id": "ann"}}
UNKNOWN = "11111111-1111-4111-8111-111111111111"
TALK = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "I like tea"},
    {"role": "assistant", "content": "Noted: tea"},
]


class Step:
    """One call. ``@name`` in an argument is the first id in the results of the step of that name, ``@name.1`` the
    second; a step is named after its method and place unless it has a name."""

    def __init__(self, method: str, *args: Any, called: str = "", **kwargs: Any) -> None:
        self.method, self.args, self.kwargs, self.called = method, args, kwargs, called


def step(method: str, *args: Any, called: str = "", **kwargs: Any) -> Step:
    return Step(method, *args, called=called, **kwargs)


def tea(**more: Any) -> Step:
    return step("add", "I like tea", called="tea", infer=False, **{**ANN, **more})


def both(what: str, *args: Any, **kwargs: Any) -> list[Step]:
    """A reading call in the words of 1.x and in those of 2.x."""
    return [
        step(what, *args, called=f"{what} 1.x", **ANN, **kwargs),
        step(what, *args, called=f"{what} 2.x", **IN_ANN, **kwargs),
    ]


SCENARIOS: dict[str, list[Step]] = {
    # -- add
    "add verbatim": [tea(), step("get", "@tea"), *both("get_all"), step("history", "@tea")],
    "add a talk verbatim": [
        step("add", TALK, called="talk", infer=False, **ANN),
        step("get", "@talk.1"),
        *both("get_all"),
    ],
    "add with names": [
        step("add", [{"role": "user", "content": "I like tea", "name": "Bea"}], called="tea", infer=False, **ANN),
        step("get", "@tea"),
        step("history", "@tea"),
        step("search", "tea", called="by actor 1.x", **ANN, filters={"actor_id": "Bea"}),
        step("search", "tea", called="by actor 2.x", filters={"user_id": "ann", "actor_id": "Bea"}),
        step("search", "tea", called="by another actor 2.x", filters={"user_id": "ann", "actor_id": "Cleo"}),
    ],
    "add one dict": [step("add", {"role": "user", "content": "I like tea"}, infer=False, **ANN), *both("get_all")],
    "add with metadata": [tea(metadata={"topic": "drinks", "n": 3}), step("get", "@tea"), *both("get_all")],
    "add metadata with ids": [
        tea(metadata={"user_id": "eve", "agent_id": "desk"}),
        step("get", "@tea"),
        step("get_all", called="eve 1.x", user_id="eve"),
        step("get_all", called="eve 2.x", filters={"user_id": "eve"}),
    ],
    "add with three ids": [
        tea(agent_id="desk", run_id="r1"),
        step("get", "@tea"),
        step("get_all", called="run 1.x", run_id="r1"),
        step("get_all", called="run 2.x", filters={"run_id": "r1"}),
        step("get_all", called="another run 2.x", filters={"user_id": "ann", "run_id": "r2"}),
    ],
    "add for an agent": [tea(user_id=None, agent_id="desk"), step("get", "@tea")],
    "add without ids": [step("add", "I like tea", infer=False), step("add", "I like tea", called="empty", infer=False, user_id="")],
    "add with a blank id": [step("add", "I like tea", infer=False, user_id="  ")],
    "add with a space in the id": [step("add", "I like tea", infer=False, user_id="ann bell")],
    "add with a number as id": [tea(user_id=42), step("get", "@tea")],
    "add a wrong type": [step("add", 42, infer=False, **ANN), step("add", None, called="none", infer=False, **ANN)],
    "add nothing": [step("add", [], infer=False, **ANN), step("add", [], called="inferred", **ANN)],
    "add blank text": [step("add", "", called="inferred", **ANN), step("add", "", infer=False, **ANN)],
    "add a list of texts": [step("add", ["I like tea"], infer=False, **ANN)],
    "add a message without content": [
        step("add", [{"role": "assistant", "tool_calls": []}, {"role": "user", "content": "I like tea"}], infer=False, **ANN)
    ],
    "add only messages without content": [
        step("add", [{"role": "user"}], called="inferred", **ANN),
        step("add", [{"role": "user"}], called="verbatim", infer=False, **ANN),
        step("add", {"role": "user", "content": None}, called="none", **ANN),
        *both("get_all"),
    ],
    "add a message without role": [
        step("add", [{"content": "I like tea"}], called="inferred", **ANN),
        step("add", [{"content": "I like tea"}], called="verbatim", infer=False, **ANN),
        *both("get_all"),
    ],
    "add text parts": [
        step("add", [{"role": "user", "content": [{"type": "text", "text": "I like tea"}]}], infer=False, **ANN),
    ],
    "add a positional id": [step("add", "I like tea", "ann", infer=False)],
    "add an unknown memory type": [tea(memory_type="semantic")],
    "add a procedure": [
        step("add", TALK, called="made", agent_id="desk", memory_type="procedural_memory"),
        step("get", "@made"),
    ],
    "add a timestamp": [tea(timestamp=1_700_000_000)],
    "add an unknown argument": [tea(colour="green")],
    "add a prompt": [step("add", "fact: User lives in Porto", prompt="Only places", **ANN)],
    # -- add with a model
    "infer": [
        step("add", "fact: User lives in Porto", called="porto", metadata={"topic": "home"}, **ANN),
        step("get", "@porto"),
        step("history", "@porto"),
        *both("get_all"),
    ],
    "infer nothing": [step("add", "Good morning", **ANN), *both("get_all")],
    "infer an update": [
        step("add", "fact: User lives in Porto", called="porto", **ANN),
        step("add", "fact: User lives in Lisbon | changes: Porto", called="lisbon", **ANN),
        step("history", "@porto"),
        *both("get_all"),
    ],
    "infer a deletion": [
        step("add", "fact: User has a dog", called="dog", **ANN),
        step("add", "fact: User gave the animal away | retracts: dog", **ANN),
        step("get", "@dog"),
        step("history", "@dog"),
        *both("get_all"),
    ],
    "infer the same twice": [
        step("add", "fact: User lives in Porto", **ANN),
        step("add", "fact: User lives in Porto", called="again", **ANN),
        *both("get_all"),
    ],
    "infer with a broken model": [step("add", "the model fails", **ANN), *both("get_all")],
    # -- reading
    "get an unknown id": [step("get", UNKNOWN), step("history", UNKNOWN)],
    "get what is no id": [step("get", "nonsense"), step("history", "nonsense")],
    "search": [tea(), *both("search", "tea")],
    "search nothing": [*both("search", "tea"), *both("get_all")],
    "search is scoped": [
        tea(),
        step("search", "tea", called="bob 1.x", user_id="bob"),
        step("search", "tea", called="bob 2.x", filters={"user_id": "bob"}),
    ],
    "search one": [
        tea(),
        step("add", "I live in Porto", infer=False, **ANN),
        step("search", "I like tea", called="limit 1.x", limit=1, **ANN),
        step("search", "I like tea", called="top_k 2.x", top_k=1, **IN_ANN),
    ],
    "search with limit in 2.x": [tea(), step("search", "tea", limit=5, **IN_ANN), step("get_all", limit=5, **IN_ANN)],
    "search without ids": [step("search", "tea"), step("search", "tea", called="filters", filters={"topic": "x"})],
    "search a blank query": [tea(), *both("search", "  ")],
    "search no text": [tea(), *both("search", 42)],
    "search with a wrong top_k": [
        step("search", "tea", called="negative", top_k=-1, **IN_ANN),
        step("search", "tea", called="text", top_k="5", **IN_ANN),
        step("get_all", called="all, negative", top_k=-1, **IN_ANN),
    ],
    "search with a wrong threshold": [
        step("search", "tea", called="above 1", threshold=1.5, **IN_ANN),
        step("search", "tea", called="text", threshold="0.5", **IN_ANN),
    ],
    "search with a threshold none reaches": [
        tea(),
        step("search", "quantum", called="1.x", threshold=0.99, **ANN),
        step("search", "quantum", called="2.x", threshold=0.99, **IN_ANN),
    ],
    "search with a blank id": [step("search", "tea", filters={"user_id": " "})],
    "search with a reference date": [tea(), step("search", "tea", reference_date="2024-01-01", **IN_ANN)],
    "search reranked": [tea(), *both("search", "tea", rerank=True)],
    "search explained": [tea(), step("search", "tea", explain=True, **IN_ANN)],
    "search by metadata": [
        tea(metadata={"topic": "drinks", "n": 3}),
        step("add", "I like the sea", infer=False, metadata={"topic": "places", "n": 5}, **ANN),
        step("search", "like", called="eq 1.x", **ANN, filters={"topic": "drinks"}),
        step("search", "like", called="eq 2.x", filters={"user_id": "ann", "topic": "drinks"}),
        step("search", "like", called="gt 2.x", filters={"user_id": "ann", "n": {"gt": 4}}),
        step("search", "like", called="in 2.x", filters={"user_id": "ann", "topic": {"in": ["places"]}}),
        step("search", "like", called="or 2.x", filters={"user_id": "ann", "OR": [{"topic": "places"}, {"n": 3}]}),
        step("search", "like", called="not 2.x", filters={"user_id": "ann", "NOT": [{"topic": "places"}]}),
        step("search", "like", called="wildcard 2.x", filters={"user_id": "ann", "topic": "*"}),
        step("search", "like", called="unknown operator 2.x", filters={"user_id": "ann", "n": {"gt": 1, "like": 4}}),
        step("search", "like", called="or of nothing 2.x", filters={"user_id": "ann", "OR": []}),
        step("get_all", called="all 1.x", **ANN, filters={"topic": "drinks"}),
        step("get_all", called="all 2.x", filters={"user_id": "ann", "topic": "drinks"}),
    ],
    "search by metadata that localmem has a name for": [
        tea(metadata={"session_id": "s1", "kind": "k", "memory_type": "taste", "actor": "a", "expires_at": "never"}),
        step("add", "I like the sea", infer=False, metadata={"session_id": "s2", "kind": "j"}, **ANN),
        step("search", "like", called="session 1.x", **ANN, filters={"session_id": "s1"}),
        step("search", "like", called="session 2.x", filters={"user_id": "ann", "session_id": "s1"}),
        step("search", "like", called="kind 2.x", filters={"user_id": "ann", "kind": {"in": ["k", "l"]}}),
        step("search", "like", called="type 2.x", filters={"user_id": "ann", "memory_type": "taste"}),
        step("search", "like", called="actor 2.x", filters={"user_id": "ann", "actor": "a", "expires_at": "never"}),
        step("search", "like", called="or 2.x", filters={"user_id": "ann", "OR": [{"kind": "k"}, {"session_id": "s2"}]}),
        step("search", "like", called="not 2.x", filters={"user_id": "ann", "NOT": [{"kind": "k"}]}),
        step("get_all", called="all 2.x", filters={"user_id": "ann", "session_id": "s2"}),
    ],
    "get_all without ids": [step("get_all"), step("get_all", called="filters", filters={"topic": "x"})],
    "get_all one": [
        tea(),
        tea(),
        step("get_all", called="1.x", limit=1, **ANN),
        step("get_all", called="2.x", top_k=1, **IN_ANN),
    ],
    # -- changing
    "update": [
        tea(metadata={"topic": "drinks"}),
        step("update", "@tea", "I like coffee"),
        step("get", "@tea"),
        step("history", "@tea"),
    ],
    "update by data": [tea(), step("update", "@tea", data="I like coffee"), step("get", "@tea")],
    "update by text": [tea(), step("update", "@tea", text="I like coffee"), step("get", "@tea")],
    "update by name": [tea(), step("update", memory_id="@tea", data="I like coffee"), step("get", "@tea")],
    "update with metadata": [
        tea(metadata={"topic": "drinks", "n": 3}),
        step("update", "@tea", "I like coffee", metadata={"n": 4, "user_id": "eve"}),
        step("get", "@tea"),
        step("get_all", called="eve 2.x", filters={"user_id": "eve"}),
    ],
    "update metadata alone": [tea(metadata={"n": 3}), step("update", "@tea", metadata={"m": 1}), step("get", "@tea")],
    "update nothing": [tea(), step("update", "@tea")],
    "update an unknown id": [step("update", UNKNOWN, "I like coffee")],
    "delete": [tea(), step("delete", "@tea"), step("get", "@tea"), step("history", "@tea"), *both("get_all")],
    "delete an unknown id": [step("delete", UNKNOWN), tea(), step("delete", "@tea"), step("delete", "@tea", called="again")],
    "delete_all": [
        tea(),
        step("add", "I like the sea", called="bob", infer=False, user_id="bob"),
        step("delete_all", **ANN),
        *both("get_all"),
        step("get", "@bob"),
    ],
    "delete_all by position": [tea(), step("delete_all", "ann"), *both("get_all")],
    "delete_all of a run": [
        tea(run_id="r1"),
        step("add", "I like the sea", infer=False, **ANN),
        step("delete_all", run_id="r1", **ANN),
        *both("get_all"),
    ],
    "delete_all of nothing": [step("delete_all", **ANN)],
    "delete_all without ids": [tea(), step("delete_all"), *both("get_all")],
    "reset": [tea(), step("reset"), *both("get_all"), step("history", "@tea")],
    "chat": [step("chat", "What do I like?")],
    "expiry": [
        tea(expiration_date="2001-01-01"),
        *both("search", "tea"),
        *both("get_all"),
        step("get_all", called="shown", show_expired=True, **IN_ANN),
        step("search", "tea", called="found", show_expired=True, **IN_ANN),
        step("get", "@tea"),
        step("update", "@tea", called="cleared", expiration_date=None),
        step("get_all", called="afterwards", **IN_ANN),
    ],
    "expiry that is no date": [tea(expiration_date="soon")],
    "project": [step("project.update", decay=True)],
    # -- the same, awaited
    "async": [
        tea(),
        step("get", "@tea"),
        *both("search", "tea"),
        *both("get_all"),
        step("update", "@tea", "I like coffee"),
        step("history", "@tea"),
        step("delete", "@tea"),
        step("delete_all", **ANN),
        step("add", "fact: User lives in Porto", **ANN),
        step("add", "I like tea", called="without ids"),
        step("reset"),
        step("chat", "What do I like?"),
    ],
}  # fmt: skip


def play(memory: Any, steps: list[Step]) -> dict[str, Any]:
    """Make the calls one after the other; the outcome of each, by its name."""
    outcomes: dict[str, Any] = {}
    ids: dict[str, list[str]] = {}
    for number, each in enumerate(steps):
        name = each.called or each.method
        name = f"{name} #{number}" if name in outcomes else name
        try:
            result = call(memory, each, ids)
        except Exception as error:
            outcomes[name] = {"error": family(error), "code": getattr(error, "error_code", None)}
            continue
        if each.method == "add":
            ids[name] = [entry["id"] for entry in result["results"]]
        outcomes[name] = {"result": comparable(result)}
    return outcomes


def call(memory: Any, each: Step, ids: dict[str, list[str]]) -> Any:
    function = memory
    for part in each.method.split("."):
        function = getattr(function, part)
    args = [meant(value, ids) for value in each.args]
    kwargs = {name: meant(value, ids) for name, value in each.kwargs.items()}
    result = function(*args, **kwargs)
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def meant(value: Any, ids: dict[str, list[str]]) -> Any:
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    name, _, number = value[1:].partition(".")
    return ids[name][int(number or 0)]


def family(error: BaseException) -> list[str]:
    """What an ``except`` may name to catch it, beside Exception."""
    return [kind.__name__ for kind in type(error).__mro__ if kind not in (Exception, BaseException, object)]


UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")


def comparable(value: Any, key: str = "") -> Any:
    """A result without what differs from run to run: ids, times and scores are told by their kind."""
    if key == "score_details":  # what they add up is each library's own
        return sorted(type(each).__name__ for each in value.values())[:1]
    if isinstance(value, dict):
        return {name: comparable(each, name) for name, each in value.items()}
    if isinstance(value, list):
        told = [comparable(each) for each in value]
        return sorted(told, key=lambda each: str(each.get("memory"))) if _are_memories(told) else told
    if key in ("id", "memory_id") and isinstance(value, str):
        return "<id>" if UUID.fullmatch(value) else value
    if key in ("created_at", "updated_at") and isinstance(value, str):
        return "<time>" if TIME.fullmatch(value) else value
    if key == "score" and isinstance(value, float):
        return "<score>"
    return value


def _are_memories(entries: list[Any]) -> bool:
    return bool(entries) and all(isinstance(each, dict) and "memory" in each for each in entries)
